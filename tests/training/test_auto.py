"""`ride-timm train --data-dir DIR` without a recipe."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
from configs import resolved
from PIL import Image
from tiny_runs import CIFAR, write_images

from ride_timm.commands.train import main
from ride_timm.data import DataSplit
from ride_timm.errors import RideError
from ride_timm.inference.load import TrainedNet
from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.training import picks, resolve
from ride_timm.training.pace import Pace


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


FAST = Pace(0.001, 10, 0.001)


def chosen(counts, size=(32, 32), *options, init=None, device='cpu', world=1, pace=FAST):
    config = resolved(['--data-dir', 'x', *options]).but(device=device, world_size=world)
    if init is not None:
        config = config.but(model=init.name, init=init.source)
    images = split(counts, size)
    config = picks.from_images(config, images, picks.short_side(images), init)
    return picks.from_paces(config, images, [pace] * len(picks.ways_to_compute(config)))


def trained(name='ride_resnet18_3e', size=(64, 64), names=('a', 'b')):
    """Weights to initialise from, of images of this size; those of timm's come without names of classes."""
    net = SimpleNamespace(pretrained_cfg={'input_size': (3, *size), 'architecture': name})
    return TrainedNet(net, name, names, source='weights')


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
    fresh, tuned = (chosen([5000, 50], init=init) for init in (None, trained('ride_resnet32_3e')))
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
    assert '--hflip 0.5 (mirrored images' in caplog.text


def computed(monkeypatch, steps, *options, bfloat16=('avx512_bf16',)):
    """How a network is trained whose steps take these seconds, and what is said of it."""
    monkeypatch.setattr(picks, 'bfloat16_on_cpu', lambda: list(bfloat16))
    config = resolved(['--data-dir', 'x', *options]).but(device='cpu')
    assert len(picks.ways_to_compute(config)) == len(steps)
    config = picks.from_paces(config, split([10]), [Pace(step, 10, 1.0) for step in steps])
    return config.amp, config.channels_last


def test_how_to_compute_is_what_was_faster(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    assert computed(monkeypatch, [1.0, 0.8, 0.5]) == (True, True)  # plain, channels last, in mixed precision too
    assert '--amp (0.5 s a step instead of 1 s; else --no-amp)' in caplog.text
    assert computed(monkeypatch, [1.0, 0.8, 2.0]) == (False, True)
    assert computed(monkeypatch, [1.0, 0.95, 0.92]) == (False, False)  # as much as noise
    assert computed(monkeypatch, [1.0, 0.5], '--no-channels-last') == (True, False)
    assert computed(monkeypatch, [1.0, 0.5], '--channels-last') == (True, True)
    assert computed(monkeypatch, [1.0], '--no-amp') == (False, False)
    assert computed(monkeypatch, [1.0], bfloat16=()) == (False, False)


@pytest.mark.parametrize('options, epochs', [((), 77), (('--time-budget', '10m'), 15), (('--epochs', '7'), 7)])
def test_the_epochs_fit_into_the_time_and_their_length_is_announced(caplog, options, epochs):
    caplog.set_level(logging.INFO)
    args = chosen([5000, 50], (32, 32), *options, init=trained('ride_resnet32_3e', (32, 32)), pace=Pace(0.9, 39, 4.9))
    assert args.epochs == epochs  # of 40 seconds each; without options 3,000 steps, which are 51 minutes
    minutes = round(args.epochs * (39 * 0.9 + 4.9) / 60)
    assert f'About {minutes} minutes: {args.epochs} epochs of 39 steps at 0.9 s' in caplog.text
    assert args.warmup_epochs == min(5, args.epochs // 4)


def test_an_epoch_that_is_longer_than_the_time(caplog):
    caplog.set_level(logging.INFO)
    assert chosen([5000, 50], (32, 32), '--time-budget', '1', pace=Pace(1.0, 39, 1.0)).epochs == 1
    assert 'About 40 seconds: 1 epoch of 39 steps' in caplog.text
    rare = chosen([5000, 50], (32, 32), '--time-budget', '10m', '--val-interval', '100', pace=Pace(1.0, 39, 39.0))
    assert rare.epochs == 14  # evaluated once


def test_weights_keep_the_size_that_they_were_trained_at():
    for size in (32, 64, 224):
        init = trained(size=(size, size))
        assert chosen([300, 100, 10], (300, 300), init=init).img_size == size
        assert chosen([300, 100, 10], (300, 300), '--img-size', '128', init=init).img_size == 128
    assert chosen([300, 100, 10], (300, 300), init=trained(size=(32, 64))).img_size is None  # and so both sides


def test_plain_weights_of_timm_take_the_size_of_the_images():
    assert chosen([300, 100, 10], (50, 50), init=trained(size=(224, 224), names=None)).img_size == 64


def test_a_named_model_leaves_the_other_choices():
    args = chosen([300, 100, 10], (50, 60), '--model', 'resnet18')
    assert (args.model, args.img_size, args.batch_size, args.loss) == ('resnet18', 64, 16, 'balanced_softmax')
    assert args.epochs == chosen([300, 100, 10], (50, 60)).epochs
    assert args.lr == pytest.approx(0.1 * 16 / 128)
    args = chosen([300, 100, 10], (50, 60), '--model', CIFAR)
    assert (args.img_size, args.loss) == (32, 'balpoe')
    assert chosen([300, 100, 10], (50, 60), '--model', 'ride_resnet32_1e').loss == 'balanced_softmax'


@pytest.mark.parametrize(
    'options, wanted',
    [
        (['--model', 'efficientnet_b4'], 320),  # which is made for larger images than 224 pixels
        (['--model', 'resnet18'], 224),
        (['--model', 'vit_tiny_patch16_224'], None),  # which takes no other size
        (['--model', 'vit_tiny_patch16_224', '--model-kwargs', 'img_size=96'], None),
    ],
)
def test_the_size_that_a_named_model_takes(options, wanted):
    assert chosen([300, 100, 10], (640, 480), *options).img_size == wanted


def test_a_named_model_that_nothing_has():
    with pytest.raises(RideError, match='no architecture resnet81'):
        chosen([300, 10], (32, 32), '--model', 'resnet81')


@pytest.mark.parametrize(
    'options', [('--sampler', 'balanced'), ('--reweight-epoch', '3'), ('--loss-kwargs', 'rho=0.1')]
)
def test_what_corrects_for_the_imbalance_already(options):
    args = chosen([300, 10], (32, 32), *options)
    assert (args.loss, args.mixup) == (None, 0.0)


def test_rates_of_other_optimizers_are_their_own():
    for options in (['--opt', 'adamw'], ['--lr-base', '0.2']):
        assert chosen([300, 10], (32, 32), *options).lr is None
    assert chosen([300, 10], (32, 32), '--opt', 'adamw').weight_decay == 2e-5


def test_the_rate_is_that_of_all_processes_together():
    one = chosen([3000], (32, 32), '-b', '16')
    more = chosen([3000], (32, 32), '-b', '16', '--grad-accum-steps', '2', world=2)
    assert more.lr == pytest.approx(4 * one.lr)
    assert more.epochs >= one.epochs


def test_pretrained_weights_of_timm_count_as_trained():
    args = chosen([5000, 50], (64, 64), '--model', 'resnet18', '--pretrained')
    assert args.epochs < chosen([5000, 50], (64, 64), '--model', 'resnet18').epochs


def test_new_heads_on_a_pretrained_backbone_train_with_adamw():
    backbone = trained(size=(224, 224), names=None)
    for args in (
        chosen([5000, 50], (64, 64), init=backbone),
        chosen([5000, 50], (64, 64), '--model', 'resnet18', '--pretrained'),
    ):
        assert (args.opt, args.layer_decay, args.weight_decay) == ('adamw', 0.8, 0.05)
        assert args.lr == pytest.approx(1e-3 * (args.batch_size / 128) ** 0.5, rel=1e-3)
    assert chosen([5000, 50], (64, 64), '--opt', 'sgd', init=backbone).lr == pytest.approx(0.02 * 32 / 128)
    assert chosen([5000, 50], (64, 64), init=trained()).opt == 'sgd'


def test_a_rate_that_was_measured_is_that_of_adamw():
    images, backbone = split([5000, 50], (64, 64)), trained(size=(224, 224), names=None)
    for options, wanted in (([], 8e-3 / 2), (['--opt', 'sgd'], 0.02 / 4)):
        config = resolved(['--data-dir', 'x', '-b', '32', *options])
        config = config.but(device='cpu', model=backbone.name, init=backbone.source)
        assert picks.from_images(config, images, 64, backbone, 8e-3).lr == pytest.approx(wanted)


def test_a_run_that_goes_on_keeps_its_optimizer():
    picked = chosen([5000, 50], (64, 64), init=trained(size=(224, 224), names=None))
    before = {'opt': 'sgd', 'lr': 0.005, 'weight_decay': 5e-4, 'layer_decay': None, 'epochs': 30}
    kept = picks.from_settings(picked, before)
    assert {name: getattr(kept, name) for name in before} == before


@pytest.mark.parametrize('options', [('--recipe', 'cifar100lt_ce'), ('--stage', 'heads')])
def test_a_recipe_or_a_stage_closes_the_question(options):
    config = resolved(['--data-dir', 'x', '--init', 'y', *options])
    assert not resolve.is_open(config)
    assert resolve.for_evaluation(config) == config


def test_the_sizes_are_looked_at_evenly_and_the_transform_is_put_back():
    images = Images([(10, 99)] * 300 + [(50, 60)] * 301)
    given = DataSplit(images, ('a',), np.zeros(601, dtype=np.int64), 'nowhere')
    assert picks.short_side(given, sample=601) == 50
    assert images.transform == 'of the loader'


def test_class_folders_alone_are_split(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = write_images(tmp_path / 'data', {'ant': 30, 'bee': 10, 'cat': 2}, size=32) / 'train'
    options = ['--output', str(tmp_path / 'out'), '--epochs', '1', '--device', 'cpu']
    assert main(['--data-dir', str(data), *options]) == 0
    assert '--val-fraction 0.2 (no images to evaluate on in ' in caplog.text
    assert caplog.text.index('to override a value, set the option') < caplog.text.index('--model')
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
    assert isinstance(checkpoint['args']['lr'], float)
