import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ride_timm.data.near_duplicates import fingerprint, near_duplicates


def scene(seed, size=64):
    """Smooth random shapes, as in photographs."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return coarse.resize((size, size), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def compressed(image):
    file = io.BytesIO()
    image.save(file, 'JPEG', quality=60)
    return Image.open(file)


def noisy(image):
    noise = np.random.default_rng(5).normal(0, 6, (64, 64, 3))
    return Image.fromarray(np.clip(np.asarray(image) * 0.9 + noise, 0, 255).astype(np.uint8))


CHANGES = {
    'smaller': lambda image: image.resize((48, 40)),
    'compressed': compressed,
    'darker and noisy': noisy,
    'grey': lambda image: image.convert('L'),
    'moved a little': lambda image: image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0.4, 0, 1, 0.4)),
}


@pytest.mark.parametrize('change', CHANGES.values(), ids=CHANGES)
def test_the_same_scene_is_found(change):
    first = [fingerprint(scene(seed)) for seed in range(30)]
    second = [fingerprint(change(scene(seed))) for seed in range(20, 40)]
    assert near_duplicates(first, second) == {seed - 20: seed for seed in range(20, 30)}


def test_other_scenes_are_not():
    prints = [fingerprint(scene(seed)) for seed in range(600)]
    assert near_duplicates(prints[:400], prints[400:]) == {}


def test_images_without_contrast_are_not_compared():
    flat = Image.new('RGB', (30, 30), (10, 90, 30))
    assert fingerprint(flat) is None
    assert near_duplicates([None, fingerprint(scene(1))], [None, fingerprint(flat)]) == {}
    assert near_duplicates([], [fingerprint(scene(1))]) == {}
