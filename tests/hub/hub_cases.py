"""A model to upload, and what the tests of the test Hub do with it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hub_server import HubServer
from huggingface_hub import CommitInfo, HfApi

REPO = 'me/model'
CARD = '---\nlicense: apache-2.0\ntags: [image-classification]\n---\n# A model\n'
FILES = {
    'README.md': CARD.encode(),
    'config.json': b'{"architecture": "a"}',
    'model.safetensors': bytes(range(256)) * 9,
}


def write_model(folder: Path, files: Mapping[str, bytes] = FILES) -> Path:
    folder.mkdir(exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def push(hub: HubServer, folder: Path, repo_id: str = REPO, **options: Any) -> CommitInfo:
    """Create the repository if there is none, and upload."""
    api = HfApi(token=hub.token)
    api.create_repo(repo_id, exist_ok=True)
    return api.upload_folder(repo_id=repo_id, folder_path=folder, **options)


def shapes(hub: HubServer) -> list[str]:
    """The logged requests without what differs from run to run."""
    return [re.sub('[0-9a-f]{64}', 'OID', str(request).replace(REPO, 'R')) for request in hub.requests]
