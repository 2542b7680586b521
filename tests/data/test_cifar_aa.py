import numpy as np
import torch
from PIL import Image

from ride_timm.data import Cutout, cifar_aa_train_transform, create_train_transform, reseed


def test_cutout_blackens_one_square_clipped_at_the_border():
    seen = set()
    for epoch in range(200):
        reseed(0, epoch)
        image = torch.full((3, 12, 10), 7, dtype=torch.uint8)
        out = Cutout(4)(image)
        assert int(image.min()) == 7, 'the input stays as it is'
        black = out[0] == 0
        assert (out == out[:1]).all()
        rows, columns = black.any(1).nonzero().flatten(), black.any(0).nonzero().flatten()
        top, bottom, left, right = (int(v) for v in (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1))
        assert black[top:bottom, left:right].all()
        assert int(black.sum()) == (bottom - top) * (right - left)
        assert 2 <= bottom - top <= 4
        assert bottom - top == 4 or top == 0 or bottom == 12
        assert right - left == 4 or left == 0 or right == 10
        seen.add((top, bottom, left, right))
    assert len(seen) > 60  # of the 120 centres


def test_every_centre_is_as_likely():
    torch.manual_seed(0)
    blacked = sum((Cutout(2)(torch.ones(1, 4, 4)) == 0).float() for _ in range(4000)) / 4000
    # centre c blackens c - 1 and c, so the last pixel of a row has one centre and the others two
    expected = torch.tensor([2, 2, 2, 1]).outer(torch.tensor([2, 2, 2, 1])) / 16
    assert torch.allclose(blacked[0], expected, atol=0.04)


def test_strong_augmentation_by_name():
    pixels = np.random.default_rng(0).integers(1, 256, (32, 32, 3), dtype=np.uint8)
    transform = create_train_transform('cifar_aa', (3, 32, 32), hflip=0.5, interpolation='bilinear')
    outputs = []
    for epoch in (0, 0, 1):
        reseed(0, epoch)
        outputs.append(transform(Image.fromarray(pixels)))
    assert outputs[0].dtype == torch.uint8
    assert outputs[0].shape == (3, 32, 32)
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])
    assert (outputs[0] == 0).all(0).sum() >= 64, 'a quarter of the square is inside at least'


def test_strong_augmentation_of_another_size_and_grey():
    grey = Image.fromarray(np.full((20, 20), 99, dtype=np.uint8))
    out = cifar_aa_train_transform(size=16, cutout=4)(grey)
    assert out.shape == (1, 16, 16)
