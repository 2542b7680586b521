"""Images held on the device: the augmentation is the Pillow one, pixel for pixel."""

import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from ride_timm.data import (
    CifarDraws,
    DeviceBatches,
    cifar_train_transform,
    create_train_loader,
    hold_on_device,
    open_train_split,
    start_epoch,
    warp_cifar,
)
from ride_timm.errors import RideError

SIZE = (3, 32, 32)


@pytest.fixture
def folder(tmp_path):
    """Two classes of random images, 9 and 4."""
    generator = torch.Generator().manual_seed(0)
    for name, count in (('a', 9), ('b', 4)):
        (tmp_path / 'train' / name).mkdir(parents=True)
        for index in range(count):
            pixels = torch.randint(256, (32, 32, 3), dtype=torch.uint8, generator=generator)
            Image.fromarray(pixels.numpy()).save(tmp_path / 'train' / name / f'{index}.png')
    return tmp_path


def loader_of(folder, *, held, batch_size=4, **kwargs):
    split = open_train_split(folder)
    loader = create_train_loader(
        split, input_size=SIZE, mean=(0.0,) * 3, std=(1.0,) * 3, batch_size=batch_size,
        transform=cifar_train_transform(**kwargs),
    )  # fmt: skip
    if held:
        hold_on_device(loader, split.targets, SIZE, InterpolationMode.BILINEAR, **kwargs)
    return loader


def with_pillow(image, top, left, flip, degrees):
    image = F.crop(F.pad(image, 4, fill=0), top, left, 32, 32)
    image = F.hflip(image) if flip else image
    return F.pil_to_tensor(F.rotate(image, degrees, interpolation=InterpolationMode.NEAREST, fill=0))


@pytest.mark.parametrize('side', [32])
def test_each_pixel_is_pillows(side):
    generator = torch.Generator().manual_seed(1)
    count = 300
    images = torch.randint(1, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    drawn = CifarDraws(
        torch.randint(9, (count,), generator=generator),
        torch.randint(9, (count,), generator=generator),
        torch.rand(count, generator=generator) < 0.5,
        torch.empty(count, dtype=torch.float64).uniform_(-15, 15, generator=generator),
    )
    drawn.degrees[:2] = torch.tensor([0.0, 15.0])
    made = warp_cifar(images, drawn)
    for index in range(count):
        image = Image.fromarray(images[index].permute(1, 2, 0).numpy())
        wanted = with_pillow(image, *(part[index].item() for part in drawn))
        assert torch.equal(made[index], wanted), index


def test_draws_are_the_recipes():
    batches = DeviceBatches(_Stub(), torch.zeros(1, 3, 32, 32, dtype=torch.uint8), torch.zeros(1))
    torch.manual_seed(0)
    drawn = batches.draw(40_000)
    for part in (drawn.top, drawn.left):
        shares = torch.bincount(part, minlength=9) / len(part)
        assert len(shares) == 9
        torch.testing.assert_close(shares, torch.full((9,), 1 / 9), atol=0.01, rtol=0)
    assert abs(drawn.flip.float().mean() - 0.5) < 0.01
    assert drawn.degrees.min() < -14.9
    assert drawn.degrees.max() > 14.9
    assert abs(drawn.degrees.mean()) < 0.2


class _Stub:
    sampler = batch_sampler = dataset = collate_fn = None
    batch_size, drop_last = 1, True


def test_without_augmentation_batches_are_the_loaders(folder):
    off = {'padding': 0, 'degrees': 0.0, 'hflip': 0.0}
    plain, held = loader_of(folder, held=False, **off), loader_of(folder, held=True, **off)
    for epoch in range(2):
        start_epoch(plain, seed=3, epoch=epoch)
        wanted = list(plain)
        start_epoch(held, seed=3, epoch=epoch)
        found = list(held)
        assert len(found) == len(wanted) == len(held) == 3  # the thirteenth image is left over
        for (images, target), (images2, target2) in zip(wanted, found, strict=True):
            assert torch.equal(images, images2)
            assert torch.equal(target, target2)


def test_an_epoch_repeats_and_epochs_differ(folder):
    loader = loader_of(folder, held=True)

    def run(epoch):
        start_epoch(loader, seed=5, epoch=epoch)
        return torch.cat([images for images, _ in loader])

    first = run(0)
    assert not torch.equal(first, run(1))
    assert torch.equal(first, run(0))


def test_images_that_are_not_square_are_refused(folder):
    Image.new('RGB', (48, 32)).save(folder / 'train' / 'a' / 'wide.png')
    with pytest.raises(RideError, match=r'has 48x32 pixels, and --data-on-device takes square ones only'):
        loader_of(folder, held=True)


def test_another_side_is_resized(folder):
    Image.new('RGB', (64, 64), (7, 8, 9)).save(folder / 'train' / 'b' / 'large.png')
    loader = loader_of(folder, held=True, batch_size=14)
    assert loader.loader.images.shape == (14, 3, 32, 32)
    index = [name for name, _ in _names(loader)].index('large.png')
    assert loader.loader.images[index].unique().tolist() == [7, 8, 9]
    assert loader.loader.targets[index] == 1


def _names(loader):
    dataset = loader.dataset
    return [(str(dataset.filename(i)).rpartition('/')[2], i) for i in range(len(dataset))]
