"""Fixtures of the fake Hub. No test here can reach a network: every request of the client goes to the fake."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import FakeHub
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils import close_session
from huggingface_hub.utils._http import default_client_factory


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Forgive the client a deprecated call of its own, which would fail every upload to the large file storage."""
    for item in items:
        if 'hub' in getattr(item, 'fixturenames', ()):
            item.add_marker(pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"))


@pytest.fixture
def hub_mode() -> str:
    """How files are uploaded: 'lfs', tensors to the large file storage; 'inline', everything within the commit."""
    return 'lfs'


@pytest.fixture
def client_naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the client would have waited before its retries; it retries at once."""
    naps: list[float] = []
    monkeypatch.setattr('time.sleep', naps.append)
    return naps


@pytest.fixture
def hub(hub_mode: str, client_naps: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    """An empty Hub, the only one that the client in this process knows, with an empty cache and no token."""
    fake = FakeHub(inline=hub_mode == 'inline')
    cache = tmp_path / 'hub-cache'
    for name in ('HF_TOKEN', 'HUGGING_FACE_HUB_TOKEN'):
        monkeypatch.delenv(name, raising=False)
    values = {
        'HF_HUB_CACHE': str(cache),
        'HUGGINGFACE_HUB_CACHE': str(cache),
        'HF_TOKEN_PATH': str(cache / 'token'),
        'HF_HUB_DISABLE_XET': True,
        'HF_HUB_DISABLE_TELEMETRY': True,
        'HF_HUB_OFFLINE': False,
    }
    for name, value in values.items():
        monkeypatch.setattr(constants, name, value)
    fake.attach()
    yield fake
    set_client_factory(default_client_factory)
    close_session()


@pytest.fixture
def hub_login(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> str:
    """Log in with the token of `hub`, as a user does with HF_TOKEN."""
    monkeypatch.setenv('HF_TOKEN', hub.token)
    return hub.token
