from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_image(path: Path, seed: int = 0, size: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def make_folder(tmp_path):
    """Write `{split: {class: number of images}}`; image number i over all has seed i."""

    def make(layout: dict[str, dict[str, int]], size: int = 8) -> Path:
        seed = 0
        for split, classes in layout.items():
            for name, count in classes.items():
                (tmp_path / split / name).mkdir(parents=True, exist_ok=True)
                for i in range(count):
                    write_image(tmp_path / split / name / f'{i}.png', seed, size)
                    seed += 1
        return tmp_path

    return make
