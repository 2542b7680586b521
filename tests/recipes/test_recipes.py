"""Every recipe is what its head says, and runs."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from configs import resolved
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from tiny_runs import CIFAR, IMAGENET, train, write_images

from ride_timm.cli import main as ride_timm
from ride_timm.errors import RideError
from ride_timm.evaluation.cost import gmacs, gmacs_by_experts
from ride_timm.losses import balpoe_tau
from ride_timm.recipes import list_recipes, load_recipe, recipe_text
from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.records.published import published_weights
from ride_timm.training.picks import RATES
from ride_timm.training.resolve import recipe_values

ALL = list_recipes()
LATER = [name for name in ALL if load_recipe(name).options.get('stage', 'experts') != 'experts']
TUNING = [name for name in ALL if load_recipe(name).pick_rest]
FIRST = [name for name in ALL if name not in (*LATER, *TUNING)]
PLAIN = ['tinyimagenetlt_balanced_softmax', 'tinyimagenetlt_ce']
CIFAR_200 = [name for name in FIRST if load_recipe(name).options['epochs'] == 200]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('data'), size=32)


@pytest.fixture(scope='module')
def init(data, tmp_path_factory):
    """A network for the later stages and a teacher, of either family."""
    runs = tmp_path_factory.mktemp('init')
    return {
        model: str(train(data, runs, model, '--model', model, '--holdout', '0.2', size=32) / 'last.pth.tar')
        for model in (CIFAR, IMAGENET)
    }


@pytest.mark.parametrize('name', ALL)
def test_every_key_is_an_argument_of_the_right_type(name):
    recipe = load_recipe(name).options
    assert recipe_values(name) == recipe, 'a number that YAML reads as text'
    args = resolved(['--recipe', name])
    assert args.from_recipe == recipe.keys()
    for key, value in recipe.items():
        assert getattr(args, key) == value


@pytest.mark.parametrize('name', ALL)
def test_a_recipe_says_what_it_is(name):
    recipe = load_recipe(name)
    assert 20 < len(recipe.title) <= 120
    unknown = ('imagenetlt_router', 'inat18_router', 'tinyimagenetlt_balpoe', *TUNING)
    assert bool(recipe.reference or recipe.measured) == (name not in unknown)
    for row in recipe.reference:
        assert row['source']
        assert row.get('overall', row.get('mean_experts')) > 0
    for weight in recipe.measured:
        results = json.loads((published_weights()[weight].folder / 'results.json').read_text())
        assert name in {stage['recipe'] for stage in results['training']}


@pytest.mark.parametrize('name', ALL)
def test_commands_in_the_head_parse(name):
    text = recipe_text(name).replace('\\\n#', ' ')
    commands = re.findall(
        r'^# +(?:torchrun .*?-m ride_timm train|ride-timm train) (.*?)(?: +#.*)?$', text, re.MULTILINE
    )
    assert commands
    for command in commands:
        args = resolved(command.split())
        assert args.data_dir
        assert args.recipe in ALL
        assert name in TUNING or args.global_batch_size % args.batch_size == 0


@pytest.mark.parametrize('name', FIRST)
def test_the_architecture_exists_and_takes_the_loss(name):
    recipe = load_recipe(name).options
    assert timm.is_model(recipe['model'])
    if recipe['loss'] == 'balpoe':
        spread = balpoe_tau(timm.create_model(recipe['model']).num_experts)  # where the recipe leaves it to the loss
        assert np.mean(recipe.get('loss_kwargs', {}).get('tau', spread)) == 1.0


@pytest.mark.parametrize('name', FIRST)
def test_one_epoch_runs(name, data, init, tmp_path):
    family = CIFAR if name.startswith('cifar') else IMAGENET
    options = ['--recipe', name, '--model', family]
    if name == 'cifar100lt_ce':
        options = ['--recipe', name, '--model-kwargs', 'layers=1,1,1']
    if name in PLAIN:
        options = ['--recipe', name, '--model', 'resnet50', '--model-kwargs', 'layers=(1,1,1,1)']
    if name == 'cifar100lt_ride_distill':
        options += ['--teacher', init[CIFAR]]
    saved = read_checkpoint(train(data, tmp_path, 'run', *options, size=32) / 'last.pth.tar')
    recipe = load_recipe(name).options
    assert saved['ride']['loss'] == recipe['loss']
    group = saved['optimizer']['param_groups'][0]
    assert (group['initial_lr'], group['weight_decay']) == (recipe['lr'], recipe['weight_decay'])
    assert len(saved['optimizer']['param_groups']) == 1, 'biases and BatchNorm decay too'
    assert group['nesterov'] == (recipe['opt'] == 'sgd')


@pytest.mark.parametrize('name', TUNING)
def test_a_recipe_for_fine_tuning_leaves_the_rest_to_be_picked(name, data, init, tmp_path):
    """Batch, loss and warm-up of the images; the learning rate falls from layer to layer, over what trains alone."""
    common = ['--recipe', name, '--init', init[IMAGENET], '--device', 'cpu', '--no-amp', '-j', '0', '--epochs', '4']
    folder = tmp_path / 'run'
    more = ['--data-dir', str(data), '--output', str(tmp_path), '--experiment', 'run', '--val-interval', '4']
    assert ride_timm(['train', *common, *more]) == 0
    saved = read_checkpoint(folder / 'last.pth.tar')
    assert (saved['args']['batch_size'], saved['args']['warmup_epochs'], saved['ride']['loss']) == (8, 1, 'balpoe')
    assert np.mean(saved['ride']['tau']) == 1.0
    groups, recipe = saved['optimizer']['param_groups'], load_recipe(name).options
    rate = RATES['adamw'][1] * (8 / 128) ** 0.5
    assert [group['initial_lr'] for group in groups] == pytest.approx([rate] * len(groups))
    assert min(group['lr_scale'] for group in groups) < 1 == max(group['lr_scale'] for group in groups)
    assert {group['weight_decay'] for group in groups} == {0.0, 0.05}
    trained = sum(len(group['params']) for group in groups)
    net = timm.create_model(IMAGENET, num_classes=3)
    assert trained == len(list((net.experts if 'train_only' in recipe else net).parameters()))
    assert load_recipe(name).options.keys().isdisjoint({'model', 'data_dir', 'epochs', 'batch_size', 'loss'})


@pytest.mark.parametrize('name', LATER)
def test_one_epoch_of_a_later_stage_runs(name, data, init, tmp_path):
    family = CIFAR if name.startswith('cifar') else IMAGENET
    saved = read_checkpoint(
        train(data, tmp_path, 'run', '--recipe', name, '--init', init[family], size=32) / 'last.pth.tar'
    )
    assert saved['arch'] == family
    assert saved['ride']['stage'] == load_recipe(name).options['stage']


def learning_rates(name, *options):
    """The learning rate of every epoch, by timm's scheduler."""
    args = resolved(['--recipe', name, *options])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.lr)
    kwargs = scheduler_kwargs(args, decreasing_metric=False)
    scheduler, epochs = create_scheduler_v2(optimizer, **kwargs, updates_per_epoch=10)
    rates = []
    for epoch in range(epochs):
        rates.append(optimizer.param_groups[0]['lr'])
        scheduler.step(epoch + 1)
    return np.array(rates)


@pytest.mark.parametrize('name', CIFAR_200)
def test_cifar_schedules_are_the_papers(name):
    warmup = 20 if name == 'cifar100lt_ride_distill' else 5
    gamma = load_recipe(name).options['decay_rate']
    assert gamma == (0.1 if 'balpoe' in name or 'sade' in name else 0.01)
    expected = [0.1 * gamma ** ((e >= 160) + (e >= 180)) * min((e + 1) / warmup, 1.0) for e in range(200)]
    np.testing.assert_allclose(learning_rates(name), expected, rtol=1e-9)


@pytest.mark.parametrize('name', [n for n in FIRST if n.startswith(('imagenet', 'inat'))])
def test_large_schedules_are_the_papers(name):
    base = 0.2 if name.startswith('inat') else 0.1
    expected = [base * 0.1 ** ((e >= 60) + (e >= 80)) * min((e + 1) / 5, 1.0) for e in range(100)]
    np.testing.assert_allclose(learning_rates(name), expected, rtol=1e-9)
    recipe = load_recipe(name).options
    assert recipe['reweight_epoch'] == 80
    assert recipe['loss_kwargs']['diversity'] == -0.2
    assert recipe['loss_kwargs']['rho'] == (0.015 if name.startswith('inat') else 0.02)
    assert recipe['global_batch_size'] == (512 if name.startswith('inat') else 256)


@pytest.mark.parametrize('name', [n for n in LATER if n.endswith('router')])
def test_router_schedules_are_the_papers(name):
    expected = [0.005 * (1 + np.cos(np.pi * e / 5)) for e in range(5)]
    np.testing.assert_allclose(learning_rates(name), expected, rtol=1e-9)
    recipe = load_recipe(name).options
    assert (recipe['sampler'], recipe['batch_size'], recipe['weight_decay']) == ('balanced', 512, 5e-4)


def test_the_baseline_differs_in_network_and_loss_alone():
    plain, ride = load_recipe('cifar100lt_ce').options, load_recipe('cifar100lt_ride').options
    differing = {key for key in plain.keys() | ride.keys() if plain.get(key) != ride.get(key)}
    assert differing == {'model', 'loss', 'loss_kwargs', 'reweight_epoch'}


@pytest.mark.parametrize('epochs', [100, 30])
@pytest.mark.parametrize('name', [n for n in FIRST if n.startswith('tiny')])
def test_tiny_imagenet_schedules_follow_the_number_of_epochs(name, epochs):
    cosine = [0.05 * (1 + np.cos(np.pi * e / epochs)) for e in range(epochs)]
    expected = [0.02 * (e + 1) for e in range(4)] + cosine[4:]
    np.testing.assert_allclose(learning_rates(name, '--epochs', str(epochs)), expected, rtol=1e-9)
    assert load_recipe(name).options.get('reweight_epoch') is None, 'picked at 80 % of the epochs'


@pytest.mark.parametrize('name', [n for n in ALL if n.startswith('tiny')])
def test_tiny_imagenet_recipes_prepare_images_alike(name):
    ours, recipe = load_recipe('tinyimagenetlt_ride').options, load_recipe(name).options
    keys = ('augmentation', 'img_size', 'scale', 'hflip', 'color_jitter', 'interpolation', 'crop_pct', 'mean', 'std')
    assert {key: recipe[key] for key in keys} == {key: ours[key] for key in keys}
    assert (recipe['img_size'], recipe['crop_pct']) == (64, 1.0)


@pytest.mark.parametrize('name', PLAIN)
def test_the_plain_networks_of_tiny_imagenet_differ_in_network_and_loss_alone(name):
    plain, ride = load_recipe(name).options, load_recipe('tinyimagenetlt_ride').options
    differing = {key for key in plain.keys() | ride.keys() if plain.get(key) != ride.get(key)}
    assert differing == {'model', 'loss', 'loss_kwargs'}
    assert plain['model'] == 'resnet50'


def test_the_costs_in_the_heads_of_tiny_imagenet_are_counted():
    def cost(name, size=64):
        return gmacs(timm.create_model(name, num_classes=200, device='meta'), (3, size, size))

    routed = timm.create_model('ride_resnet50_4e', num_classes=200, router=True, device='meta')
    first, second, *_ = gmacs_by_experts(routed, (3, 64, 64))
    head = recipe_text('tinyimagenetlt_ride')
    for value in (cost('ride_resnet50_4e'), cost('ride_resnet50_4e', 128), cost('resnet50'), cost('resnet50', 128)):
        assert f'{value:.3f}' in head
    router = recipe_text('tinyimagenetlt_router')
    for value in (cost('resnet50'), first, second - first):
        assert f'{value:.3f}' in router
    assert f'{1 + (cost("resnet50") - first) / (second - first):.2f} of' in router
    assert f'{first:.3f}' in recipe_text('tinyimagenetlt_ce')
    assert f'{cost("ride_resnet50_4e"):.3f}' in recipe_text('tinyimagenetlt_ce')


def test_the_command_lists_and_prints(capsys):
    assert ride_timm(['recipes']) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in ALL:
        assert any(line.startswith(f'{name} ') and load_recipe(name).title in line for line in lines)
    assert ride_timm(['recipes', 'cifar100lt_sade']) == 0
    assert capsys.readouterr().out == recipe_text('cifar100lt_sade')
    assert ride_timm(['recipes', 'cifar100lt_sad']) == 2
    assert 'did you mean cifar100lt_sade?' in capsys.readouterr().err


def test_a_recipe_of_ones_own(tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text('title: Mine\nepochs: 3\n')
    assert resolved(['--recipe', str(path)]).epochs == 3
    assert load_recipe(str(path)).title == 'Mine'
    for text, words in (
        ('epochs: [', 'is not valid YAML'),
        ('measured: 3', '"measured"'),
        ('- 3', 'holds no `argument: value` lines'),
    ):
        path.write_text(text)
        with pytest.raises(RideError, match=words):
            load_recipe(str(path))
    with pytest.raises(RideError, match='There is no recipe'):
        load_recipe(str(tmp_path / 'none.yaml'))
