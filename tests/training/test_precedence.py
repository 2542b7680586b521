"""Explicit flag > recipe > stage > default; and what is refused by name."""

import logging

import pytest
from configs import resolved

from ride_timm.commands.train import build_parser
from ride_timm.errors import RideError
from ride_timm.losses import list_losses
from ride_timm.options import options_of
from ride_timm.training.config import LOSSES, TrainConfig
from ride_timm.training.resolve import _with_lr
from ride_timm.training.stages import STAGES


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe file and return its path."""

    def write(text):
        path = tmp_path / 'mine.yaml'
        path.write_text(text)
        return str(path)

    return write


def test_flag_over_recipe_over_default(recipe):
    args = resolved(['--recipe', recipe('epochs: 7\nlr: 0.3\nopt: momentum'), '--lr', '0.2'])
    assert (args.lr, args.epochs, args.opt, args.momentum) == (0.2, 7, 'momentum', 0.9)
    assert args.explicit == {'lr', 'recipe'}
    assert args.from_recipe == {'epochs', 'opt'}


def test_a_flag_that_repeats_the_default_still_wins(recipe):
    assert resolved(['--recipe', recipe('epochs: 7'), '--epochs', '300']).epochs == 300


@pytest.mark.parametrize('stage', ['router', 'heads'])
def test_recipe_over_stage_over_default(recipe, stage):
    args = resolved(['--recipe', recipe(f'stage: {stage}\nepochs: 7'), '--momentum', '0.8'])
    assert (args.stage, args.epochs, args.momentum) == (stage, 7, 0.8)
    for key in STAGES[stage].settings.keys() - {'epochs', 'momentum'}:
        assert getattr(args, key) == STAGES[stage].settings[key]


def test_router_stage_has_the_papers_schedule():
    args = resolved(['--stage', 'router'])
    assert (args.sampler, args.batch_size, args.epochs, args.opt, args.lr) == ('balanced', 512, 5, 'sgd', 0.01)
    assert (args.momentum, args.weight_decay, args.sched, args.warmup_epochs) == (0.9, 5e-4, 'cosine', 0)
    assert (args.min_lr, args.router_target) == (0.0, 'disagreement')


def test_single_loss_options_replace_those_of_the_recipe(recipe):
    text = 'loss: ride\nloss_kwargs: {diversity: -0.45, rho: 0.05}\nopt_kwargs: {filter_bias_and_bn: false}'
    args = resolved(['--recipe', recipe(text), '--loss-kwargs', 'diversity=-0.1'])
    assert args.loss_kwargs == {'diversity': -0.1, 'rho': 0.05}
    assert args.opt_kwargs == {'filter_bias_and_bn': False}


def test_another_loss_drops_the_recipes_options_aloud(recipe, caplog):
    text = 'loss: ride\nloss_kwargs: {diversity: -0.45}\nreweight_epoch: 160\nepochs: 7'
    args = resolved(['--recipe', recipe(text), '--loss', 'ce'])
    assert (args.loss, args.loss_kwargs, args.reweight_epoch, args.epochs) == ('ce', {}, None, 7)
    assert 'for the loss ride; its loss_kwargs and reweight_epoch are left out for --loss ce' in caplog.text


def test_numbers_that_yaml_reads_as_text_are_numbers(recipe):
    args = resolved(['--recipe', recipe('lr: 1e-1\nweight-decay: 5e-4\nepochs: 2.0\nscale: [1, 1e0]')])
    assert (args.lr, args.weight_decay, args.epochs, args.scale) == (0.1, 5e-4, 2, [1.0, 1.0])
    assert isinstance(args.epochs, int)


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('lerning_rate: 0.1', 'the key lerning_rate, which is not a training option'),
        ('lr_bse: 0.1', 'did you mean lr_base'),
        ('lr: fast', "lr: 'fast', but lr must be a number"),
        ('lr: true', 'lr must be a number'),
        ('epochs: 2.5', 'epochs must be a whole number'),
        ('loss: hinge', 'loss must be one of balanced_softmax, balpoe'),
        ('stage: middle', 'stage must be one of experts, router, heads'),
        ('amp: 1', 'amp must be true or false'),
        ('loss_kwargs: [a]', 'loss_kwargs must be a mapping'),
        ('scale: [1]', 'scale must be a list of 2'),
        ('decay_milestones: 5', 'decay_milestones must be a list'),
        ('recipe: cifar100lt_ride', 'the key recipe, which is not a training option'),
        ('model: 3', 'model must be a text'),
    ],
)
def test_a_wrong_recipe_is_one_sentence(recipe, text, words):
    with pytest.raises(RideError, match=words):
        resolved(['--recipe', recipe(text)])


@pytest.mark.parametrize(
    ('argv', 'words'),
    [
        (['--router-threshold', '0.3'], '--router-threshold is for the stage router and this is the stage experts'),
        (['--keep-heads'], '--keep-heads is for the stage heads'),
        (['--stage', 'router', '--teacher', 'x'], '--teacher is for the stage experts'),
        (['--stage', 'heads', '--mutual', '0.5'], '--mutual is for the stage experts'),
        (['--stage', 'heads', '--mutual-gated', '1'], '--mutual-gated is for the stage experts'),
        (['--stage', 'router', '--loss', 'ce'], '--loss does nothing in the stage router'),
        (['--stage', 'router', '--mixup', '0.4'], '--mixup does nothing in the stage router'),
        (['--stage', 'router', '--recipe', 'cifar100lt_ride'], 'is for the stage experts; leave one of them out'),
        (['--holdout-seed', '2'], '--holdout-seed needs --holdout or --init'),
        (['--distill-weight', '2'], '--distill-weight needs --teacher'),
        (['--mutual-temperature', '2'], '--mutual-temperature needs --mutual or --mutual-hard'),
    ],
)
def test_options_of_another_stage_are_refused(argv, words):
    with pytest.raises(RideError, match=words):
        resolved(argv)


def test_python_says_the_same_as_the_command_line():
    config = TrainConfig(data_dir='x', lr='1e-1', scale=(0.5, 1), epochs=300)
    assert config.given == {'data_dir', 'lr', 'scale', 'epochs'}
    assert (config.lr, config.scale) == (0.1, [0.5, 1.0])
    with pytest.raises(RideError, match=r'--epochs 2\.5 was given'):
        TrainConfig(epochs=2.5)


def test_losses_without_torch_are_those_of_the_package():
    assert list(LOSSES) == list_losses()


def test_every_option_says_what_it_does(capsys):
    assert all(len(entry.help) > 8 for entry in options_of(TrainConfig).values())
    with pytest.raises(SystemExit):
        build_parser().parse_args(['--help'])
    text = ' '.join(capsys.readouterr().out.split())
    assert '--weight-decay W weight decay (default: 2e-05)' in text
    assert '80 % of the epochs' in text


def test_unknown_flags_fail(capsys):
    with pytest.raises(SystemExit):
        resolved(['--tempreture', '1'])
    assert 'there is no option --tempreture, did you mean --' in capsys.readouterr().err


def settled(*argv, world_size=1):
    return _with_lr(resolved(list(argv)).but(world_size=world_size))


BATCH = 'lr: 0.1\nwarmup_lr: 0.02\nglobal_batch_size: 128\nbatch_size: 128\n'


def test_the_recipes_batch_is_not_spoken_of(recipe, caplog):
    caplog.set_level(logging.INFO)
    assert settled('--recipe', recipe(BATCH)).lr == 0.1
    assert settled('--recipe', recipe(BATCH), '-b', '32', world_size=4).lr == 0.1
    assert not caplog.records


def test_another_batch_keeps_the_rate_and_says_so(recipe, caplog):
    args = settled('--recipe', recipe(BATCH), '-b', '64', '--grad-accum-steps', '2', world_size=4)
    assert (args.lr, args.warmup_lr) == (0.1, 0.02)
    made = '(-b 64, 4 processes, 2 batches accumulated)'
    assert f'for 128 images per step and this run has 512 {made}' in caplog.text
    assert 'kept; --scale-lr makes it 0.4' in caplog.text


def test_scaling_is_linear_and_for_adaptive_optimizers_by_the_root(recipe, caplog):
    args = settled('--recipe', recipe(BATCH), '-b', '512', '--scale-lr')
    assert (args.lr, args.warmup_lr) == pytest.approx((0.4, 0.08))
    assert 'scaled to 0.4 (linear), and the warm-up starts at 0.08' in caplog.text
    args = settled('--recipe', recipe(BATCH), '-b', '512', '--scale-lr', '--opt', 'adamw')
    assert args.lr == pytest.approx(0.2)


@pytest.mark.parametrize('argv', [['--scale-lr'], ['--scale-lr', '--lr', '0.1', '--global-batch-size', '8']])
def test_scaling_nothing_is_refused(argv):
    with pytest.raises(RideError, match='--scale-lr scales the --lr of a recipe'):
        settled(*argv)


def test_without_a_rate_timms_rule_holds():
    assert settled('-b', '64', world_size=2).lr == pytest.approx(0.1 * 128 / 256)
