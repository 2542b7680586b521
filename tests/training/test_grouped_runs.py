"""Groups of images through the real commands: no split divides them, in any stage."""

import json
import logging

import pytest
from tiny_runs import CIFAR, train, write_images

from ride_timm.commands.validate import main as validate
from ride_timm.errors import RideError
from ride_timm.records.checkpoint import read_checkpoint

MODEL = ('--model', CIFAR, '--loss', 'ce')
PATTERN = r'(\d)\.png'  # ten groups, each with images of several classes
PARTS = ('--val-fraction', '0.25', '--holdout', '0.25', '--group-pattern', PATTERN)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder of class folders and nothing else: 24, 12 and 5 images."""
    return write_images(tmp_path_factory.mktemp('data')) / 'train'


@pytest.fixture(scope='module')
def experts(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp('runs'), 'experts', *MODEL, *PARTS)


def entry(run):
    return read_checkpoint(run / 'last.pth.tar')['ride']


def test_later_stages_and_resumed_runs_keep_the_groups(data, experts, tmp_path):
    plans = {name: entry(experts)[name] for name in ('holdout', 'val_part')}
    assert {plan['group_pattern'] for plan in plans.values()} == {PATTERN}
    assert sum(entry(experts)['class_counts']) + 8 < 41
    later = train(data, tmp_path, 'router', '--stage', 'router', '--init', str(experts / 'last.pth.tar'))
    assert {name: entry(later)[name] for name in plans} == plans
    assert json.loads((later / 'results.json').read_text())['args']['group_pattern'] == PATTERN
    more = (*MODEL, *PARTS, '--epochs', '2', '--resume', str(experts / 'last.pth.tar'))
    assert entry(train(data, tmp_path, 'more', *more))['holdout'] == plans['holdout']
    with pytest.raises(RideError, match=r'keep --val-fraction, --val-seed'):
        train(data, tmp_path, 'other', *more[:-4], '--group-pattern', r'/(\d)', '--epochs', '2', *more[-2:])


def test_other_groups_than_those_of_the_experts_are_refused(data, experts, tmp_path):
    stage = ('--stage', 'router', '--init', str(experts / 'last.pth.tar'))
    with pytest.raises(RideError, match=r'was trained with .*leave the option out'):
        train(data, tmp_path, 'x', *stage, '--group-pattern', '^.')
    without = train(data, tmp_path, 'without', *MODEL, '--val-fraction', '0.25')
    assert 'group_pattern' not in entry(without)['val_part']
    heads = ('--stage', 'heads', '--init', str(without / 'last.pth.tar'), '--group-pattern', PATTERN)
    with pytest.raises(RideError, match='was trained without it'):
        train(data, tmp_path, 'x', *heads)


def test_validate_measures_on_the_same_images(data, experts, tmp_path):
    found = tmp_path / 'found.json'
    command = [str(experts / 'last.pth.tar'), '--device', 'cpu', '--data-dir', str(data), '--results-file', str(found)]
    assert validate([*command, '--holdout', '0.25', '--seed', '42']) == 0
    last = json.loads((experts / 'results.json').read_text())['last']
    assert json.loads(found.read_text())['top1'] == pytest.approx(last['top1'])
    assert json.loads(found.read_text())['num_images'] == last['num_images']


def test_groups_on_both_sides_are_named(data, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        train(data.parent, tmp_path, 'both', *MODEL, '--group-pattern', PATTERN)
    assert '4 groups of images stand on both sides' in caplog.text


def test_options_that_do_not_fit(data, tmp_path):
    both = ('--group-pattern', PATTERN, '--group-column', 'place')
    with pytest.raises(RideError, match='both say what belongs together'):
        train(data, tmp_path, 'x', *MODEL, *both)
    with pytest.raises(RideError, match='is no table'):
        train(data, tmp_path, 'x', *MODEL, '--val-fraction', '0.25', '--group-column', 'place')
