"""Groups of images through the real commands: no split divides them, in any stage."""

import json
import logging
from dataclasses import replace

import pytest
from tiny_runs import CIFAR, train, write_images

from ride_timm.commands.report import main as report
from ride_timm.commands.route import main as route
from ride_timm.commands.validate import main as validate
from ride_timm.errors import RideError
from ride_timm.inference.load import load
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
    with pytest.raises(RideError, match='the groups and the data'):
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
    both = ('--group-pattern', PATTERN, '--group-column', 'place', '--table', str(data.parent / 'x.csv'))
    with pytest.raises(RideError, match='both define the groups'):
        train(data, tmp_path, 'x', *MODEL, *both)
    with pytest.raises(RideError, match='--group-column is for tables'):
        train(data, tmp_path, 'x', *MODEL, '--val-fraction', '0.25', '--group-column', 'place')


@pytest.fixture
def table(data, tmp_path):
    """A table of the same images, with the last digit of their number as the place."""
    rows = [f'{path.relative_to(data)},{path.parent.name},p{path.stem[-1]}' for path in sorted(data.glob('*/*.png'))]
    file = tmp_path / 'images.csv'
    file.write_text('\n'.join(['path,label,place', *rows]))
    return file


def test_a_column_gives_the_same_split_as_a_pattern(data, experts, table, tmp_path):
    options = ('--table', str(table), '--group-column', 'place', '--val-fraction', '0.25', '--holdout', '0.25')
    run = train(data, tmp_path, 'column', *MODEL, *options)
    plan = entry(run)['holdout']
    assert (plan['group_column'], plan['grouped']) == ('place', True)
    router = ('--stage', 'router', '--init', str(run / 'last.pth.tar'), '--table', str(table))
    assert entry(train(data, tmp_path, 'router', *router))['holdout'] == plan
    loose = ('--table', str(table), '--val-fraction', '0.25', '--holdout', '0.25')
    assert 'grouped' not in entry(train(data, tmp_path, 'loose', *MODEL, *loose))['holdout']


def test_a_column_that_is_not_there(data, table, tmp_path):
    options = ('--table', str(table), '--val-fraction', '0.25', '--group-column')
    with pytest.raises(RideError, match=r'none called "plaec".*place'):
        train(data, tmp_path, 'x', *MODEL, *options, 'plaec')


def test_results_by_group(data, experts, tmp_path, capsys):
    run = json.loads((experts / 'results.json').read_text())
    found = tmp_path / 'found.json'
    command = [str(experts), '--device', 'cpu', '--data-dir', str(data), '--results-file', str(found)]
    assert validate([*command, '--holdout', '0.25', '--seed', '42']) == 0
    groups = json.loads(found.read_text())['image_groups']
    assert groups == run['test']['image_groups']
    assert sum(row['images'] for row in groups['worst']) == run['last']['num_images']
    assert groups['top1'] == pytest.approx(run['last']['top1'])
    assert 'worst groups' in capsys.readouterr().out
    assert report([str(experts), '--output', str(tmp_path / 'r.html'), '--device', 'cpu']) == 0
    assert 'By group of images' in (tmp_path / 'r.html').read_text()


def test_routed_results_by_group(data, experts, tmp_path):
    router = train(data, tmp_path, 'router', '--stage', 'router', '--init', str(experts / 'last.pth.tar'))
    results = json.loads((router / 'results.json').read_text())
    assert results['test']['image_groups']['top1'] == pytest.approx(results['last']['top1'])


def test_groups_that_the_training_did_not_keep(data, tmp_path):
    """Results by group of a split that divides them: the split stays that of the run."""
    run = train(data, tmp_path, 'loose', *MODEL, '--val-fraction', '0.25')
    found = tmp_path / 'found.json'
    command = [str(run), '--device', 'cpu', '--data-dir', str(data), '--results-file', str(found)]
    assert validate([*command, '--group-pattern', PATTERN]) == 0
    measured = json.loads(found.read_text())
    assert measured['top1'] == pytest.approx(json.loads((run / 'results.json').read_text())['last']['top1'])
    assert measured['image_groups']['groups'] > 1


def test_a_certificate_is_of_the_groups_that_were_held_out(data, experts, tmp_path, caplog):
    router = train(data, tmp_path, 'router', '--stage', 'router', '--init', str(experts / 'last.pth.tar'))
    command = [str(router), '--data-dir', str(data), '--device', 'cpu', '--max-loss', '0.9', '--confidence', '0.5']
    assert route(command) == 0
    held = json.loads((experts / 'results.json').read_text())['last']['num_images']
    assert load(router).record.certificate.images == held
    assert 'images of other groups' in caplog.text
    with pytest.raises(RideError, match=r'was trained with .*leave the option out'):
        route([*command, '--group-pattern', '^.'])


@pytest.mark.parametrize('val_fraction', [(), ('--val-fraction', '0.25')])
def test_groups_that_the_training_did_not_keep_do_not_change_what_certifies(data, tmp_path, caplog, val_fraction):
    where = data if val_fraction else data.parent
    loose = train(where, tmp_path, 'loose', *MODEL, *val_fraction, '--holdout', '0.25')
    router = train(where, tmp_path, 'router', '--stage', 'router', '--init', str(loose))
    command = [str(router), '--data-dir', str(data), '--device', 'cpu', '--max-loss', '0.9', '--confidence', '0.5']
    assert route(command) == 0
    before = load(router).record.certificate
    assert 'other groups' not in caplog.text
    assert route([*command, '--group-pattern', PATTERN]) == 0
    assert replace(load(router).record.certificate, date=before.date) == before
    assert before.images < 15
    assert 'other groups' in caplog.text
