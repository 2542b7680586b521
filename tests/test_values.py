"""Numbers of the command line: every one has a range, and nothing outside of it gets past the check."""

import argparse

import pytest

from ride_timm.cli import COMMANDS, main, module_of
from ride_timm.errors import RideError
from ride_timm.values import RANGES, check_values

ACTIONS = [
    (command, action)
    for command in COMMANDS
    for action in module_of(command).build_parser()._actions
    if action.type in (int, float)
]
IDS = [f'{command} {action.option_strings[-1]}' for command, action in ACTIONS]
HUGE = 10**20


def check(action, *values):
    """Check one argument, as a list where it is one."""
    given = list(values) if action.nargs is not None else values[0]
    check_values({action.dest: given})


@pytest.mark.parametrize(('command', 'action'), ACTIONS, ids=IDS)
def test_every_number_has_a_range(command, action):
    low, high, _ = RANGES[action.dest]
    flag = f'--{action.dest.replace("_", "-")}'
    two = action.nargs is not None
    for value in (low, high):
        check(action, *[value] * (2 if action.dest == 'opt_betas' else 1))
    for value in (float('nan'), float('inf'), -float('inf'), -HUGE, high * 2 + 1, low - abs(low) - 1):
        with pytest.raises(RideError, match=f'^{flag} '):
            check(action, *([low, value] if two else [value]))


@pytest.mark.parametrize(('command', 'action'), ACTIONS, ids=IDS)
def test_defaults_are_in_range(command, action):
    if action.default is not None and action.default is not argparse.SUPPRESS:
        check_values({action.dest: action.default})


@pytest.mark.parametrize(
    ('given', 'wanted'),
    [
        ({'sched': 'wsd', 'decay_epochs': 90}, '--sched wsd decays over --decay-epochs 90 of the 8 epochs'),
        ({'sched': 'wsd', 'decay_epochs': 0.01}, '--decay-epochs 0.01'),
        ({'sched': 'rsqrt', 'decay_epochs': 9}, '--decay-epochs 9'),
        ({'sched': 'rsqrt', 'warmup_epochs': 0}, '--warmup-epochs of at least 1'),
        ({'sched': 'step', 'decay_epochs': 0}, '--decay-epochs 0'),
        ({'sched': 'step', 'decay_rate': 2}, '--decay-rate 2'),
        ({'sched': 'plateau', 'sched_on_updates': True}, '--sched plateau'),
        ({'interpolation': 'random'}, '--interpolation random'),
        ({'opt_betas': [0.9]}, '--opt-betas was given 1 numbers; it takes 2 or 3'),
    ],
)
def test_what_timm_would_fail_on(given, wanted):
    settings = {
        'sched': 'cosine', 'epochs': 10, 'warmup_epochs': 2, 'decay_epochs': 0.2, 'decay_rate': 0.1,
        'warmup_prefix': False, 'sched_on_updates': False,
    }  # fmt: skip
    check_values(settings)
    with pytest.raises(RideError, match=wanted):
        check_values(settings | given)


def test_schedules_with_a_decay_phase_take_their_own_default():
    from configs import resolved

    for name, wanted in (('step', 90), ('wsd', 0.2), ('rsqrt', 0.2)):
        assert resolved(['--sched', name]).decay_epochs == wanted


@pytest.mark.parametrize(
    ('argv', 'wanted'),
    [
        (['data', 'images', '--val-fraction', '2'], '--val-fraction 2'),
        (['data', 'images', '--threads', '0'], '--threads 0'),
        (['package', 'run', '--data-dir', 'images', '--output', __file__], f'--output {__file__}'),
        (['package', 'run', '--data-dir', 'images', '--output', 'folder', '-b', '0'], '--batch-size 0'),
        (['convert', 'file', '--output', __file__], f'--output {__file__}'),
        (['convert', 'file', '--output', 'folder', '--std', '0', '1', '1'], '--std 0'),
        (['quickstart', '--epochs', '0'], '--epochs 0'),
    ],
)
def test_refused_before_anything_is_read(argv, wanted, capsys):
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'ride-timm {argv[0]}: error: {wanted}')
