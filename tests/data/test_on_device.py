"""Images held on the device: the augmentation is the Pillow one, pixel for pixel."""

import pytest
import torch
from configs import resolved
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from ride_timm.data import (
    CifarAugmentation,
    CifarDraws,
    CropAugmentation,
    cifar_train_transform,
    create_train_loader,
    hold_on_device,
    on_device,
    open_train_split,
    start_epoch,
)
from ride_timm.data.device_crops import jitter_colours, resize_crops
from ride_timm.errors import RideError
from ride_timm.training.augmentation import device_augmentation

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
        hold_on_device(loader, split.targets, lambda _: CifarAugmentation(**kwargs))
    return loader


def with_pillow(image, top, left, flip, degrees):
    image = F.crop(F.pad(image, 4, fill=0), top, left, 32, 32)
    image = F.hflip(image) if flip else image
    return F.pil_to_tensor(F.rotate(image, degrees, interpolation=InterpolationMode.NEAREST, fill=0))


def test_each_pixel_is_pillows():
    side = 32
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
    augmentation = CifarAugmentation()
    made = augmentation.apply(images, *augmentation.prepare(drawn))
    for index in range(count):
        image = Image.fromarray(images[index].permute(1, 2, 0).numpy())
        wanted = with_pillow(image, *(part[index].item() for part in drawn))
        assert torch.equal(made[index], wanted), index


@pytest.mark.parametrize('shape', [(32, 48), (45, 32), (64, 40), (20, 33)])
def test_images_that_are_no_squares(shape):
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(0)
    augmentation = CifarAugmentation(shape=shape)
    pixels = torch.randint(1, 256, (40, *shape, 3), dtype=torch.uint8, generator=generator)
    kept = [augmentation.before(Image.fromarray(each.numpy())) for each in pixels]
    assert kept[0].size == augmentation.kept[::-1]
    drawn = augmentation.draw(2000)
    assert (drawn.top.max(), drawn.left.max()) == tuple(side + 8 - 32 for side in augmentation.kept)
    drawn = CifarDraws(*(part[:40] for part in drawn))
    made = augmentation.apply(torch.stack([F.pil_to_tensor(each) for each in kept]), *augmentation.prepare(drawn))
    for index, image in enumerate(kept):
        wanted = with_pillow(image, *(part[index].item() for part in drawn))
        assert torch.equal(made[index], wanted), index


def test_draws_are_the_recipes():
    torch.manual_seed(0)
    drawn = CifarAugmentation().draw(40_000)
    for part in (drawn.top, drawn.left):
        shares = torch.bincount(part, minlength=9) / len(part)
        assert len(shares) == 9
        torch.testing.assert_close(shares, torch.full((9,), 1 / 9), atol=0.01, rtol=0)
    assert abs(drawn.flip.float().mean() - 0.5) < 0.01
    assert drawn.degrees.min() < -14.9
    assert drawn.degrees.max() > 14.9
    assert abs(drawn.degrees.mean()) < 0.2


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


@pytest.mark.parametrize('together', [2, 100])
def test_batches_augmented_together_are_the_same(folder, monkeypatch, together):
    loader = loader_of(folder, held=True)

    def run():
        start_epoch(loader, seed=5, epoch=0)
        return list(loader)

    apart = run()
    monkeypatch.setattr(on_device, '_at_once', lambda *_: together)
    for one, other in zip(apart, run(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_images_that_are_not_square_are_refused(folder):
    Image.new('RGB', (48, 32)).save(folder / 'train' / 'a' / 'wide.png')
    with pytest.raises(
        RideError, match=r'has 48x32 pixels and the first 32x32, and --data-on-device takes images of one'
    ):
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


def random_images(count, height, width, seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def as_pillow(image):
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())


@pytest.mark.parametrize('size', [(64, 64), (48, 80), (32, 32), (96, 40)])
def test_each_resized_crop_is_pillows(size):
    """Larger and smaller, whole images and single pixels."""
    images = random_images(120, 64, 56)
    generator = torch.Generator().manual_seed(2)
    height = torch.randint(1, 65, (120,), generator=generator)
    width = torch.randint(1, 57, (120,), generator=generator)
    height[:3], width[:3] = torch.tensor([64, 1, 64]), torch.tensor([56, 1, 1])
    top = (torch.rand(120, generator=generator) * (65 - height)).long()
    left = (torch.rand(120, generator=generator) * (57 - width)).long()
    made = resize_crops(images, top, left, height, width, size)
    for index in range(120):
        box = [int(part[index]) for part in (top, left, height, width)]
        wanted = F.resized_crop(as_pillow(images[index]), *box, list(size), InterpolationMode.BILINEAR)
        assert torch.equal(made[index], F.pil_to_tensor(wanted)), box


@pytest.mark.parametrize('channels', [1, 3])
def test_each_jittered_pixel_is_pillows(channels):
    images = random_images(200, 9, 11, channels=channels)
    generator = torch.Generator().manual_seed(3)
    factors = torch.rand(200, 3, generator=generator) * 2
    factors[:2] = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    order = torch.rand(200, 3, generator=generator).argsort(1)
    made = jitter_colours(images, factors, order)
    steps = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    for index in range(200):
        image = as_pillow(images[index])
        for what in order[index].tolist():
            image = steps[what](image, factors[index, what].item())
        assert torch.equal(made[index], F.pil_to_tensor(image)), (order[index], factors[index])


def test_crops_are_drawn_as_timm_draws_them():
    """Means and spreads of the areas, ratios and places, against timm's own draws."""
    from timm.data.transforms import RandomResizedCropAndInterpolation

    torch.manual_seed(0)
    augmentation = CropAugmentation((64, 48), (64, 64), scale=(0.25, 1.0), color_jitter=(0.4, 0.2, 0.0, 0.0))
    drawn = augmentation.draw(20_000)
    assert bool((drawn.top >= 0).all() and (drawn.top + drawn.height <= 64).all())
    assert bool((drawn.left >= 0).all() and (drawn.left + drawn.width <= 48).all())
    image = Image.new('RGB', (48, 64))
    theirs = torch.tensor(
        [RandomResizedCropAndInterpolation.get_params(image, (0.25, 1.0), (3 / 4, 4 / 3)) for _ in range(20_000)]
    ).double()
    ours = torch.stack(drawn[:4], 1).double()
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), rtol=0, atol=0.35)
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.03, atol=0)
    assert abs(drawn.hflip.float().mean() - 0.5) < 0.02
    assert not drawn.vflip.any()
    for index, strength in enumerate((0.4, 0.2, 0.0)):
        values = drawn.factors[:, index]
        assert float(values.min()) == pytest.approx(1 - strength, abs=0.01)
        assert float(values.max()) == pytest.approx(1 + strength, abs=0.01)
    assert torch.bincount(drawn.order[:, 0], minlength=3).min() > 6000


def test_a_ratio_that_never_fits_takes_the_middle():
    augmentation = CropAugmentation((64, 8), (64, 64), scale=(1.0, 1.0), ratio=(3 / 4, 4 / 3))
    drawn = augmentation.draw(5)
    assert drawn.width.tolist() == [8] * 5
    assert drawn.height.tolist() == [11] * 5
    assert drawn.top.tolist() == [26] * 5


def test_flips_turn_the_crop():
    augmentation = CropAugmentation((4, 4), (4, 4), scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=1.0, vflip=1.0,
                                    color_jitter=0.0)  # fmt: skip
    images = random_images(3, 4, 4)
    made = augmentation.apply(images, *augmentation.prepare(augmentation.draw(3)))
    assert torch.equal(made, images.flip(-1, -2))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (
            ('--augmentation', 'cifar_aa', '--in-chans', '4'),
            'takes pictures, not images of 4 channels',
        ),
        (('--augmentation', 'timm', '--aa', 'rand-m9-mstd0.5'), 'does not do --aa rand-m9-mstd0.5; it does'),
        (('--augmentation', 'timm', '--interpolation', 'bicubic'), 'does not do --interpolation bicubic; it does'),
        (('--augmentation', 'flip'), 'does not do --augmentation flip; it does'),
    ],
)
def test_other_augmentations_are_refused(options, message):
    args = resolved(['--model', 'ride_resnet32_3e', '--data-dir', 'x', *options])
    with pytest.raises(RideError, match=message):
        device_augmentation(args, (args.in_chans or 3, 32, 32), args.interpolation or 'bilinear')


def test_hue_is_refused():
    args = resolved(['--model', 'x', '--data-dir', 'x', '--augmentation', 'timm', '--color-jitter', *'1110'])
    assert isinstance(device_augmentation(args, SIZE, 'bilinear')((32, 32)), CropAugmentation)
    args = args.but(color_jitter=[0.4, 0.4, 0.4, 0.1])
    with pytest.raises(RideError, match='leaves the hue as it is; give --color-jitter three numbers'):
        device_augmentation(args, SIZE, 'bilinear')((32, 32))
