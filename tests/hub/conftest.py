"""A Hugging Face Hub for tests: fixtures.

    def test_publish(hub, hub_login):                     # the real client, in this process
    def test_command(hub, hub_env):                       # subprocess.run(..., env={**os.environ, **hub_env})
    @pytest.mark.parametrize('hub_mode', ['lfs', 'inline'])

`hub` is a `hub_server.HubServer`; it fails the test when the Hub was asked something that it does not know, or anything
but 127.0.0.1 was asked something.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hub_client import attach_client, client_env, refuse_foreign, skip_waiting
from hub_server import HubServer
from huggingface_hub.utils import _http


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Forgive the client a deprecated call of its own, which would fail every upload to the large file storage."""
    for item in items:
        if 'hub' in getattr(item, 'fixturenames', ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"))


@pytest.fixture
def hub_mode() -> str:
    """How files are uploaded: 'lfs', weights to the large file storage; 'inline', everything within the commit."""
    return 'lfs'


@pytest.fixture
def client_naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client would have waited before its retries; it retries at once."""
    return skip_waiting(monkeypatch)


@pytest.fixture
def foreign_hosts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Hosts that something in this process tried to reach, and could not."""
    return refuse_foreign(monkeypatch)


@pytest.fixture
def hub(
    hub_mode: str,
    client_naps: list[float],
    foreign_hosts: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[HubServer]:
    """A running, empty Hub, the only one that the client in this process knows; no token is set."""
    assert hub_mode in ('lfs', 'inline'), hub_mode
    with HubServer(inline=hub_mode == 'inline') as server:
        attach_client(monkeypatch, server, tmp_path_factory.mktemp('hf_home'))
        yield server
        _http.close_session()
    problems = [*server.problems, *(f'a connection to {host} was tried' for host in foreign_hosts)]
    if problems:
        pytest.fail('\n'.join(problems), pytrace=False)


@pytest.fixture
def hub_login(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """Log in with the token of `hub`, here and in child processes, as a user does with HF_TOKEN."""
    monkeypatch.setenv('HF_TOKEN', hub.token)
    return hub.token


@pytest.fixture
def hub_env(hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables that let a child process know this Hub alone, with an empty cache and no token."""
    return client_env(hub, tmp_path_factory.mktemp('hf_home_child'))
