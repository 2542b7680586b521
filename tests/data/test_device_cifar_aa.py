"""AutoAugment and Cutout of whole batches: torchvision's choices, Pillow's pixels."""

import itertools

import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import functional as F

from ride_timm.data import CifarAAAugmentation, Cutout
from ride_timm.data.device_policy import CifarPolicy

POLICY = transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10)


def sample_images(count, side=32, channels=3, seed=0):
    """Noise, smooth images, two grey levels, and one."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=generator)
    coarse = 40 + 180 * torch.rand(count, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=side, mode='bilinear').to(torch.uint8)
    images[1::4] = smooth[1::4]
    images[2::4] = (images[2::4] > 100) * 190 + 3
    images[3::4] = images[3::4, :, :1, :1]
    return images


def as_pillow(image):
    return Image.fromarray(image.permute(1, 2, 0).squeeze(-1).numpy())


def by_torchvision(image, pair, chances, positive, monkeypatch):
    monkeypatch.setattr(POLICY, 'get_params', lambda _: (int(pair), chances, positive))
    return F.pil_to_tensor(POLICY(as_pillow(image)))


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('side', [32, 29])
def test_each_operation_has_pillows_pixels(monkeypatch, side, channels):
    """Every pair in both directions, with both operations done; there is no difference, not even of rounding."""
    choices = list(itertools.product(range(25), [(0, 0), (1, 1), (0, 1)], range(4)))
    images = sample_images(len(choices), side, channels)
    pairs, positive = torch.tensor([c[0] for c in choices]), torch.tensor([c[1] for c in choices])
    policy, never_above = CifarPolicy(side), torch.zeros(len(choices), 2)
    before = images.clone()
    made = policy.apply(images, policy.choose(pairs, never_above, positive))
    assert torch.equal(images, before)
    for index, choice in enumerate(choices):
        wanted = by_torchvision(images[index], pairs[index], never_above[index], positive[index], monkeypatch)
        assert torch.equal(made[index], wanted), (POLICY.policies[choice[0]], choice)


def test_whole_augmentation_is_crop_flip_policy_and_cutout(monkeypatch):
    torch.manual_seed(0)
    augmentation, images = CifarAAAugmentation(), sample_images(300)
    drawn = augmentation.draw(300)
    made = augmentation.apply(images, *augmentation.prepare(drawn))
    for index, image in enumerate(images):
        crop = [part[index].item() for part in drawn.crop]
        wanted = F.crop(F.pad(image, 4), *crop[:2], 32, 32)
        wanted = F.hflip(wanted) if crop[2] else wanted
        wanted = by_torchvision(wanted, drawn.pairs[index], drawn.chances[index], drawn.positive[index], monkeypatch)
        centre = iter(drawn.centres[index])
        with monkeypatch.context() as patch:
            patch.setattr(torch, 'randint', lambda *_, centre=centre: next(centre))
            wanted = Cutout(16)(wanted)
        assert torch.equal(made[index], wanted), index


def test_images_of_another_shape():
    augmentation = CifarAAAugmentation(size=16, cutout=4, shape=(20, 33))
    kept = augmentation.before(Image.new('RGB', (33, 20), (9, 9, 9)))
    images = F.pil_to_tensor(kept).unsqueeze(0).expand(50, -1, -1, -1)
    made = augmentation.apply(images, *augmentation.prepare(augmentation.draw(50)))
    assert made.shape == (50, 3, 16, 16)
    assert made.dtype == torch.uint8


def test_draws_are_as_likely_as_torchvisions():
    torch.manual_seed(0)
    drawn = CifarAAAugmentation().draw(50_000)
    shares = torch.bincount(drawn.pairs, minlength=25) / 50_000
    torch.testing.assert_close(shares, torch.full((25,), 1 / 25), atol=0.005, rtol=0)
    assert drawn.positive.float().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.01)
    assert drawn.centres.unique().tolist() == list(range(32))
    assert not drawn.crop.degrees.any()
    policy = CifarPolicy(32)
    done = policy.choose(drawn.pairs, drawn.chances, drawn.positive) != 100
    for pair, operations in enumerate(POLICY.policies):
        found = done[drawn.pairs == pair].float().mean(0).tolist()
        assert found == pytest.approx([p for _, p, _ in operations], abs=0.06)


def test_an_image_does_not_depend_on_its_batch():
    torch.manual_seed(0)
    augmentation, images = CifarAAAugmentation(), sample_images(40)
    prepared = augmentation.prepare(augmentation.draw(40))
    whole = augmentation.apply(images, *prepared)
    parts = [augmentation.apply(images[i : i + 7], *(p[i : i + 7] for p in prepared)) for i in range(0, 40, 7)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_a_gpu_makes_the_same_pixels():
    torch.manual_seed(0)
    augmentation, images = CifarAAAugmentation(), sample_images(2000)
    prepared = augmentation.prepare(augmentation.draw(2000))
    found = augmentation.apply(images.cuda(), *(part.cuda() for part in prepared))
    assert torch.equal(found.cpu(), augmentation.apply(images, *prepared))
