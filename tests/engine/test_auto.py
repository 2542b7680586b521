"""`ride-timm train --data-dir DIR` without a model or a recipe."""

import argparse
import logging

import numpy as np
import pytest
from PIL import Image
from tiny_runs import CIFAR, write_images

from ride_timm.data import DataSplit
from ride_timm.engine import auto
from ride_timm.engine.args import parse_args
from ride_timm.engine.checkpoint import read_checkpoint
from ride_timm.train import main


class Images:
    """Blank images of given sizes, with labels."""

    def __init__(self, sizes):
        self.sizes, self.transform = sizes, 'of the loader'

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        assert self.transform is None
        return Image.new('RGB', self.sizes[index]), 0


def split(counts, size=(32, 32)):
    targets = np.repeat(np.arange(len(counts)), counts)
    return DataSplit(Images([size] * len(targets)), tuple(map(str, counts)), targets, 'nowhere')


def chosen(counts, size=(32, 32), *options, tuned=False, device='cpu'):
    args = parse_args(['--data-dir', 'x', *options])
    args.device, args.rank, args.world_size = device, 0, 1
    auto.choose(args, split(counts, size), tuned)
    return args


def test_small_images():
    args = chosen([500, 200, 100, 50, 5])
    assert (args.model, args.img_size, args.batch_size, args.loss) == ('ride_resnet32_3e', 32, 32, 'balpoe')
    assert args.epochs == 200
    assert args.mixup == 0.4
    assert args.lr == pytest.approx(0.1 * 32 / 128)


@pytest.mark.parametrize('size, wanted', [((64, 80), 64), ((100, 70), 96), ((640, 480), 224), ((41, 41), 64)])
def test_the_size_of_larger_images(size, wanted):
    args = chosen([300, 100, 10], size)
    assert (args.model, args.img_size) == ('ride_resnet18_3e', wanted)


@pytest.mark.parametrize(
    'images, batch', [(20, 8), (161, 8), (320, 16), (2560, 128), (100_000, 128)]
)  # fmt: skip
def test_the_batch_leaves_twenty_steps(images, batch):
    assert chosen([images]).batch_size == batch


def test_the_hardware():
    assert chosen([3000, 30], (300, 300)).batch_size == 32
    assert chosen([3000, 30], (300, 300), '--amp', device='cuda').batch_size == 128
    assert chosen([3000, 30], (300, 300), '--amp', device='cuda').model == 'ride_resnet50_3e'


def test_trained_weights_need_fewer_and_smaller_steps():
    fresh, tuned = (chosen([5000, 50], tuned=tuned) for tuned in (False, True))
    assert tuned.epochs < fresh.epochs
    assert tuned.lr < fresh.lr
    assert tuned.mixup == 0.0


def test_what_the_command_line_says_stays(caplog):
    caplog.set_level(logging.INFO)
    options = ('--epochs', '7', '-b', '4', '--lr', '0.5', '--loss', 'ce', '--img-size', '96', '--weight-decay', '0')
    args = chosen([100, 10], (300, 300), *options)
    assert (args.epochs, args.batch_size, args.lr, args.loss, args.img_size) == (7, 4, 0.5, 'ce', 96)
    assert args.weight_decay == 0
    assert args.mixup == 0.0
    for name in ('epochs', 'batch-size', 'lr', 'loss', 'img-size', 'weight-decay'):
        assert f'--{name} ' not in caplog.text


def test_each_choice_is_printed_with_its_reason(caplog):
    caplog.set_level(logging.INFO)
    chosen([100, 10], (180, 200))
    for line in ('--model ride_resnet18_3e (images of about 180 pixels on the CPU)', '--batch-size 8 (110 training'):
        assert line in caplog.text
    assert '--loss balpoe (imbalance factor 10;' in caplog.text


def test_mixed_precision_can_be_refused(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(auto, '_cpu_has_bfloat16', lambda: True)
    args = chosen([100, 10])
    assert (args.amp, args.amp_dtype, args.channels_last) == (True, 'bfloat16', True)
    assert '--amp (the hardware computes in bfloat16; else --no-amp)' in caplog.text
    caplog.clear()
    args = chosen([100, 10], (32, 32), '--no-amp')
    assert (args.amp, args.channels_last) == (False, False)
    assert '--amp' not in caplog.text
    args = chosen([100, 10], (32, 32), '--no-channels-last')
    assert (args.amp, args.channels_last) == (True, False)


def test_weights_of_small_images_keep_their_size():
    args = parse_args(['--data-dir', 'x'])
    args.device, args.rank, args.world_size, args.model = 'cpu', 0, 1, 'ride_resnet32_3e'
    auto.choose(args, split([300, 100, 10], (300, 300)), tuned=True)
    assert args.img_size is None


@pytest.mark.parametrize('options', [('--model', CIFAR), ('--recipe', 'cifar100lt_ce'), ('--stage', 'heads')])
def test_a_model_or_a_recipe_closes_the_question(options):
    assert auto.is_open(parse_args(['--data-dir', 'x']))
    assert not auto.is_open(parse_args(['--data-dir', 'x', *options]))


def test_the_sizes_are_looked_at_evenly_and_the_transform_is_put_back():
    images = Images([(10, 99)] * 300 + [(50, 60)] * 301)
    given = DataSplit(images, ('a',), np.zeros(601, dtype=np.int64), 'nowhere')
    assert auto.short_side(given, sample=601) == 50
    assert images.transform == 'of the loader'


def test_class_folders_alone_are_split(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = write_images(tmp_path / 'data', {'ant': 30, 'bee': 10, 'cat': 2}, size=32) / 'train'
    options = ['--output', str(tmp_path / 'out'), '--epochs', '1', '--device', 'cpu']
    assert main(['--data-dir', str(data), *options]) == 0
    assert '--val-fraction 0.2 (no images to evaluate on in ' in caplog.text
    assert caplog.text.index('give the option yourself') < caplog.text.index('--model')
    checkpoint = read_checkpoint(next((tmp_path / 'out').iterdir()) / 'last.pth.tar')
    assert checkpoint['ride']['val_part']['fraction'] == 0.2
    assert sum(checkpoint['ride']['class_counts']) < 42


def test_the_command(tmp_path, capsys):
    data = write_images(tmp_path / 'data', size=32)
    done = main(['--data-dir', str(data), '--output', str(tmp_path / 'out'), '--epochs', '1', '--device', 'cpu'])
    assert done == 0
    run = next((tmp_path / 'out').iterdir())
    checkpoint = read_checkpoint(run / 'last.pth.tar')
    assert checkpoint['arch'] == 'ride_resnet32_3e'
    assert checkpoint['ride']['loss'] == 'balpoe'
    assert isinstance(argparse.Namespace(**checkpoint['args']).lr, float)
