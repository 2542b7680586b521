"""Weights to publish: a tiny network that nobody trained, in a folder as `ride-timm package` writes it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from weight_results import make_results

from ride_timm.pages.card import render_card
from ride_timm.publishing.folder import save_folder
from ride_timm.publishing.index import renew_entry
from ride_timm.records.results import Results

ARCHITECTURE = 'test_ride_resnet_cifar_3e'
NAME = f'{ARCHITECTURE}.ride_toys'
REPO = f'me/{NAME}'
CLASS_NAMES = ['ant', 'bee', 'cat', 'dog', 'elk']
THRESHOLD = 0.65
UPLOADED = ['README.md', 'config.json', 'model.safetensors', 'results.json', 'routing.png', 'tail.png']
PICTURE = bytes.fromhex(  # one pixel
    '89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8ffff3f0005fe02fe'
    'dccc59e70000000049454e44ae426082'
)


def make_weight(root: Path, name: str = NAME, *, router: bool = True, seed: int = 0) -> Path:
    """Write `root/<name>` and enter it into `root/index.json`."""
    torch.manual_seed(seed)
    kwargs: dict[str, Any] = {'router': True, 'router_threshold': THRESHOLD} if router else {}
    net = timm.create_model(ARCHITECTURE, num_classes=len(CLASS_NAMES), **kwargs)
    results = make_results(classes=len(CLASS_NAMES), router=router, name=name, class_names=CLASS_NAMES)
    results['architecture'] = ARCHITECTURE
    counts = [row['train_images'] for row in results['test']['per_class']]
    folder = root / name
    save_folder(net, folder, CLASS_NAMES, counts, {'loss': 'ride', 'loss_kwargs': {}, 'tau': None})
    results['network']['bytes'] = (folder / 'model.safetensors').stat().st_size
    (folder / 'results.json').write_text(json.dumps(results), encoding='utf-8')
    config = json.loads((folder / 'config.json').read_text(encoding='utf-8'))
    (folder / 'README.md').write_text(render_card(Results.from_json(results), config), encoding='utf-8')
    for picture in ('tail.png', 'routing.png'):
        (folder / picture).write_bytes(PICTURE)
    if not (root / 'index.json').is_file():
        (root / 'index.json').write_text('{"format": 1, "weights": {}}', encoding='utf-8')
    assert renew_entry(folder)
    return folder


def split_tensors(folder: Path) -> None:
    """Store the tensors in two parts instead of one file."""
    whole = folder / 'model.safetensors'
    tensors = load_file(whole)
    whole.unlink()
    places = {key: f'model-{1 + i % 2:05d}-of-00002.safetensors' for i, key in enumerate(sorted(tensors))}
    for part in set(places.values()):
        save_file({key: tensors[key] for key in tensors if places[key] == part}, folder / part)
    (folder / 'model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': places}))
    renew_entry(folder)


def hub_entry(folder: Path) -> dict[str, Any] | None:
    """What the index beside the folder says of its copy on the Hub."""
    content = json.loads((folder.parent / 'index.json').read_text(encoding='utf-8'))
    entry: dict[str, Any] | None = content['weights'][folder.name]['hub']
    return entry


def hashes(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    return {
        name: {'size': len(data), 'sha256': hashlib.sha256(data).hexdigest()} for name, data in sorted(files.items())
    }


def images(number: int = 4) -> torch.Tensor:
    return torch.randn(number, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def logits(net: nn.Module) -> torch.Tensor:
    """(4, 5) logits of the same four images."""
    with torch.inference_mode():
        out: torch.Tensor = net.eval()(images())
    return out
