"""Points the installed huggingface_hub at the test Hub, in this process and in its children."""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer
from huggingface_hub import constants, hf_api
from huggingface_hub.utils import _detect_agent, _http

_NOWHERE = 'http://127.0.0.1:9'  # the discard port: nobody listens, so that a connection is refused at once


def client_env(hub: HubServer, home: Path) -> dict[str, str]:
    """What a child process must find in its environment, on top of this one's.

    No token; what would go elsewhere is sent to a proxy that does not exist.
    """
    env = {
        'HF_ENDPOINT': hub.url,
        'HF_HOME': str(home),
        'HF_HUB_CACHE': str(home / 'hub'),
        'HF_ASSETS_CACHE': str(home / 'assets'),
        'HF_XET_CACHE': str(home / 'xet'),
        'HF_TOKEN_PATH': str(home / 'token'),
        'HF_HUB_DISABLE_XET': '0' if hub.inline else '1',
        'HF_HUB_DISABLE_TELEMETRY': '1',
        'HF_HUB_DISABLE_UPDATE_CHECK': '1',
        'HF_HUB_DISABLE_PROGRESS_BARS': '1',
        'HF_HUB_DISABLE_IMPLICIT_TOKEN': '0',
        'NO_PROXY': '127.0.0.1,localhost',
        'no_proxy': '127.0.0.1,localhost',
    }
    env |= dict.fromkeys(('HF_HUB_OFFLINE', 'TRANSFORMERS_OFFLINE', 'HF_DEBUG', 'HUGGINGFACE_CO_STAGING'), '0')
    env |= dict.fromkeys(('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN', 'HF_OIDC_RESOURCE'), '')
    for name in ('http_proxy', 'https_proxy', 'all_proxy'):
        env |= {name: _NOWHERE, name.upper(): _NOWHERE}
    return env


def attach_client(monkeypatch: pytest.MonkeyPatch, hub: HubServer, home: Path) -> None:
    """Let the client in this process talk to the Hub only, with an empty cache and no token.

    The client reads its environment once, at import: this sets the environment, and what was made of it.
    """
    for name, value in client_env(hub, home).items():
        # No proxies here, where sockets are guarded: the client would set up TLS for each.
        monkeypatch.setenv(name, '' if value == _NOWHERE else value)
    values: dict[str, Any] = {
        'ENDPOINT': hub.url,
        'HUGGINGFACE_CO_URL_TEMPLATE': f'{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}',
        'HF_HOME': str(home),
        'HF_HUB_CACHE': str(home / 'hub'),
        'HUGGINGFACE_HUB_CACHE': str(home / 'hub'),
        'HF_ASSETS_CACHE': str(home / 'assets'),
        'HF_XET_CACHE': str(home / 'xet'),
        'HF_TOKEN_PATH': str(home / 'token'),
        'HF_STORED_TOKENS_PATH': str(home / 'stored_tokens'),
        'AGENT_HARNESSES_PATH': str(home / '.agent_harnesses.json'),
        'HF_HUB_DISABLE_XET': not hub.inline,
        'HF_HUB_DISABLE_TELEMETRY': True,
        'HF_HUB_DISABLE_IMPLICIT_TOKEN': False,
        'HF_HUB_OFFLINE': False,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(hf_api.api, 'endpoint', hub.url)  # behind the functions of the package: `model_info(...)`
    monkeypatch.setattr(hf_api.api, 'token', None)
    monkeypatch.setattr(_http, '_HUB_ORIGINS', frozenset({_http._url_origin(hub.url)}))
    monkeypatch.setattr(_detect_agent, '_registry', _detect_agent._EMPTY_REGISTRY)  # else it asks the Hub
    bars = sys.modules['huggingface_hub.utils.tqdm']  # its name in the package is the class
    monkeypatch.setattr(bars, 'HF_HUB_DISABLE_PROGRESS_BARS', True)
    _http.close_session()  # its connections, and the proxies that it read


class Clock:
    """Stands for the module `time` in the client: waiting is noted, not done."""

    def __init__(self) -> None:
        self.naps: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


def skip_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the client retry at once; the list collects the seconds that it would have waited."""
    clock = Clock()
    monkeypatch.setattr('huggingface_hub.utils._http.time', clock)
    monkeypatch.setattr('huggingface_hub.file_download.time', clock)
    return clock.naps


def refuse_foreign(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Refuse connections of this process to anything but 127.0.0.1; the list collects what was tried."""
    tried: list[str] = []
    real = {name: getattr(socket.socket, name) for name in ('connect', 'connect_ex')}
    look_up = socket.getaddrinfo

    def check(host: Any) -> None:
        if host not in ('127.0.0.1', 'localhost', None, ''):
            tried.append(str(host))
            raise OSError(f'a test must not connect to {host}')

    def guarded(name: str) -> Any:
        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                check(address[0])
            return real[name](self, address)

        return connect

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        check(host.decode() if isinstance(host, bytes) else host)
        return look_up(host, *args, **kwargs)

    for name in real:
        monkeypatch.setattr(socket.socket, name, guarded(name))
    monkeypatch.setattr(socket, 'getaddrinfo', getaddrinfo)
    return tried
