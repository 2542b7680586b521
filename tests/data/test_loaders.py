import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from timm.data import FastCollateMixup
from timm.data.loader import PrefetchLoader
from timm.task.evaluator import evaluation_sample_limit

from ride_timm.data import (
    cifar_train_transform,
    create_eval_loader,
    create_sampler,
    create_train_loader,
    open_eval_split,
    open_train_split,
    reseed,
    start_epoch,
)
from ride_timm.errors import RideError, one_line

# Python 3.12 warns about any fork of a process that has threads
pytestmark = pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')

STYLE = {'input_size': (3, 8, 8), 'mean': (0.5, 0.4, 0.3), 'std': (0.2, 0.25, 0.5)}
TRAIN = {'a': 9, 'b': 3, 'c': 1}


@pytest.fixture
def split(make_folder):
    return open_train_split(make_folder({'train': TRAIN}))


def batches(loader):
    return [(images.clone(), target.clone()) for images, target in loader]


def equal(first, second):
    return len(first) == len(second) > 0 and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


@pytest.mark.parametrize('with_sampler', [False, True])
@pytest.mark.parametrize('transform', [None, cifar_train_transform(8, padding=2)])
def test_train_batches(split, with_sampler, transform):
    sampler = create_sampler('balanced', split.targets, 3) if with_sampler else None
    loader = create_train_loader(split, **STYLE, batch_size=4, transform=transform, sampler=sampler)
    assert isinstance(loader, PrefetchLoader)
    assert len(loader) == 3
    if transform is not None:
        assert loader.dataset.transform is transform
    found = batches(loader)
    assert [tuple(images.shape) for images, _ in found] == [(4, 3, 8, 8)] * 3
    assert found[0][0].dtype == torch.float32
    assert found[0][1].dtype == torch.int64
    if with_sampler:
        assert loader.sampler is sampler


def test_normalisation_happens_once_in_the_prefetcher(make_folder):
    root = make_folder({'val': {'a': 2}})
    split = open_eval_split(root, class_names=('a',))
    ((images, _),) = batches(create_eval_loader(split, **STYLE, batch_size=2, crop_pct=1.0))
    raw = np.stack([np.asarray(split.dataset.load(i)) for i in range(2)]) / 255
    expected = ((raw - STYLE['mean']) / STYLE['std']).transpose(0, 3, 1, 2)
    assert np.allclose(images.numpy(), expected, atol=1e-5)


def test_eval_keeps_order_and_the_last_images(split):
    loader = create_eval_loader(split, **STYLE, batch_size=4)
    found = batches(loader)
    assert [len(target) for _, target in found] == [4, 4, 4, 1]
    assert torch.cat([target for _, target in found]).tolist() == split.targets.tolist()


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('name', ['instance', 'balanced'])
def test_an_epoch_can_be_repeated_bitwise(split, workers, name):
    def loader():
        sampler = create_sampler(name, split.targets, 3, seed=7)
        transform = cifar_train_transform(8, padding=2)
        return create_train_loader(
            split, **STYLE, batch_size=4, workers=workers, transform=transform, sampler=sampler, re_prob=0.5
        )

    straight, history = loader(), []
    for epoch in range(3):
        start_epoch(straight, seed=7, epoch=epoch)
        history.append(batches(straight))
        torch.rand(epoch + 1)  # whatever a training step draws
    torch.rand(5)
    resumed = loader()
    for epoch in (1, 2):
        start_epoch(resumed, seed=7, epoch=epoch)
        assert equal(batches(resumed), history[epoch])
    assert not equal(history[0], history[1])
    start_epoch(resumed, seed=8, epoch=1)
    assert not equal(batches(resumed), history[1])


SCRIPT = """
import sys
from ride_timm.data import create_train_loader, open_train_split, start_epoch
style = {'input_size': (3, 8, 8), 'mean': (0.5, 0.4, 0.3), 'std': (0.2, 0.25, 0.5)}
loader = create_train_loader(open_train_split(sys.argv[1]), **style, batch_size=4)
for epoch in (1, 2):
    start_epoch(loader, seed=3, epoch=epoch)
    for images, target in loader:
        print(epoch, images.double().sum().item().hex(), target.tolist())
"""


def test_a_fresh_process_continues_the_epochs(split):
    loader = create_train_loader(split, **STYLE, batch_size=4)
    lines = []
    for epoch in range(3):
        start_epoch(loader, seed=3, epoch=epoch)
        lines += [f'{epoch} {images.double().sum().item().hex()} {target.tolist()}' for images, target in loader]
    run = subprocess.run([sys.executable, '-c', SCRIPT, split.source], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == lines[3:]


def test_reseed_separates_seed_epoch_and_rank():
    def draws(*args):
        reseed(*args)
        return torch.rand(1).item(), np.random.rand(), random.random()

    arguments = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (1, 1, 0), (0, 2, 0), (2, 0, 0)]
    seen = [draws(*a) for a in arguments]
    for column in zip(*seen, strict=True):
        assert len(set(column)) == len(arguments)
    assert draws(0, 1, 0) == seen[2]


def test_fewer_images_than_a_batch_make_one_batch(split):
    loader = create_train_loader(split, **STYLE, batch_size=128)
    assert [len(target) for _, target in batches(loader)] == [13]


def test_mixup_gets_an_even_batch(split):
    collate = FastCollateMixup(mixup_alpha=0.4, num_classes=3)
    loader = create_train_loader(split, **STYLE, batch_size=128, collate_fn=collate)
    assert [tuple(target.shape) for _, target in batches(loader)] == [(12, 3)]


def test_a_single_image_is_refused(make_folder):
    split = open_train_split(make_folder({'train': {'a': 1}}))
    with pytest.raises(RideError, match='1 images per process'):
        create_train_loader(split, **STYLE, batch_size=4)


@pytest.mark.parametrize('workers', [0, 1])
def test_unreadable_image_ends_in_one_line_that_names_it(split, workers):
    path = split.dataset.filename(2, absolute=True)
    Path(path).write_text('not a picture')
    loader = create_train_loader(split, **STYLE, batch_size=13, workers=workers)
    with pytest.raises(RideError) as error:
        batches(loader)
    assert one_line(error.value) == (
        f'The image {path} cannot be read (not an image, or an empty file); remove or replace it.'
    )


def test_one_line_of_a_plain_error():
    assert one_line(RideError('a sentence: do this')) == 'a sentence: do this'


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures('process_group')
def test_distributed_loaders(split):
    loader = create_train_loader(split, **STYLE, batch_size=4, distributed=True)
    orders = set()
    for seed, epoch in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        start_epoch(loader, seed=seed, epoch=epoch)
        orders.add(tuple(loader.sampler))
    assert len(orders) == 3
    assert all(sorted(order) == list(range(13)) for order in orders)
    sampler = create_sampler('sqrt', split.targets, 3)
    assert create_train_loader(split, **STYLE, batch_size=4, distributed=True, sampler=sampler).sampler is sampler
    evaluation = create_eval_loader(split, **STYLE, batch_size=4, distributed=True)
    assert evaluation_sample_limit(evaluation) == 13


def test_start_epoch_tells_our_sampler(split):
    sampler = create_sampler('balanced', split.targets, 3)
    loader = create_train_loader(split, **STYLE, batch_size=4, sampler=sampler)
    start_epoch(loader, seed=0, epoch=5)
    assert sampler.epoch == 5


def test_grey_images(make_folder):
    split = open_train_split(make_folder({'train': {'a': 2}}), in_chans=1)
    loader = create_train_loader(
        split, input_size=(1, 8, 8), mean=(0.5,), std=(0.5,), batch_size=2, transform=cifar_train_transform(8)
    )
    assert batches(loader)[0][0].shape == (2, 1, 8, 8)
