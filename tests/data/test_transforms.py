import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from ride_timm.data import cifar_train_transform, create_train_transform, reseed
from ride_timm.errors import RideError


def pixels(side=32):
    return np.random.default_rng(0).integers(1, 256, (side, side, 3), dtype=np.uint8)


def test_output_is_what_fast_collate_takes():
    out = cifar_train_transform()(Image.fromarray(pixels()))
    assert (out.dtype, tuple(out.shape)) == (torch.uint8, (3, 32, 32))


def test_without_rotation_it_is_a_shifted_maybe_flipped_image_on_black():
    source = pixels()
    padded = np.pad(source, ((4, 4), (4, 4), (0, 0)))
    windows = [padded[y : y + 32, x : x + 32] for y in range(9) for x in range(9)]
    candidates = {w.tobytes() for w in windows} | {w[:, ::-1].tobytes() for w in windows}
    transform = cifar_train_transform(degrees=0)
    seen = set()
    for epoch in range(40):
        reseed(0, epoch)
        seen.add(transform(Image.fromarray(source)).permute(1, 2, 0).contiguous().numpy().tobytes())
    assert seen <= candidates
    assert len(seen) > 20


def test_rotation_takes_nearest_pixels_and_fills_black():
    two_values = Image.fromarray(np.where(pixels() > 128, 200, 40).astype(np.uint8))
    transform = cifar_train_transform(padding=0, hflip=0)
    black = 0
    for epoch in range(20):
        reseed(0, epoch)
        out = transform(two_values)
        assert set(out.unique().tolist()) <= {0, 40, 200}
        black += int((out[0, :2, :2] == 0).any())
    assert black


def test_other_image_sizes_are_resized_first():
    assert cifar_train_transform(size=16, degrees=0)(Image.fromarray(pixels(64))).shape == (3, 16, 16)


def test_transform_by_name():
    image = Image.fromarray(pixels())
    for name in ('cifar', 'timm'):
        out = create_train_transform(name, (3, 24, 24))(image)
        assert (out.dtype, tuple(out.shape)) == (torch.uint8, (3, 24, 24))
    assert create_train_transform('cifar', 24, degrees=0)(image).shape == (3, 24, 24)
    with pytest.raises(RideError, match='"nope" is unknown; use one of timm, cifar'):
        create_train_transform('nope')
    with pytest.raises(RideError, match='square'):
        create_train_transform('cifar', (3, 32, 48))


def test_flip_shows_images_as_they_are_evaluated_and_their_mirror_images():
    pixels = np.random.default_rng(0).integers(0, 256, (21, 30, 3), dtype=np.uint8)
    image, kwargs = Image.fromarray(pixels), {'interpolation': 'bilinear', 'crop_pct': 0.9}
    evaluated = create_transform((3, 16, 16), use_prefetcher=True, **kwargs)(image)
    for hflip, expected in ((0.0, evaluated), (1.0, evaluated.flip(-1))):
        assert torch.equal(create_train_transform('flip', (3, 16, 16), hflip=hflip, **kwargs)(image), expected)
