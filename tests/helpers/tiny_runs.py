"""Training runs of a second: tiny images, tiny networks, the real command."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ride_timm.commands.train import main
from ride_timm.errors import RideError

CIFAR, IMAGENET = 'test_ride_resnet_cifar_3e', 'test_ride_resnet_3e'
COUNTS = {'ant': 24, 'bee': 12, 'cat': 5}


def write_images(root: Path, counts: dict[str, int] | None = None, val: int = 4, size: int = 8) -> Path:
    """Image folders `train` (long-tailed) and `val`; every class has a colour of its own, under noise."""
    counts = COUNTS if counts is None else counts
    rng = np.random.default_rng(0)
    for split, wanted in (('train', counts), ('val', dict.fromkeys(counts, val))):
        for label, (name, number) in enumerate(wanted.items()):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(number):
                pixels = rng.integers(0, 120, (size, size, 3))
                pixels[..., label % 3] += 100
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{i}.png')
    return root


def train(data: Path, output: Path, name: str, *options: str, size: int = 8) -> Path:
    """Run `ride-timm train` with small defaults, which `options` may override; returns the run's folder."""
    small = ['--img-size', str(size), '-b', '8', '--epochs', '1', '--log-interval', '0', '--device', 'cpu', '-j', '0']
    small += ['--no-amp']  # the same on every machine
    common = ['--data-dir', str(data), '--output', str(output), '--experiment', name]
    assert main([*small, *common, *options]) == 0
    return output / name


def fails(words: str, *arguments: Any) -> None:
    """`train` with these arguments is refused in one line with these words."""
    with pytest.raises(RideError, match=words) as caught:
        train(*arguments)
    assert '\n' not in str(caught.value)
