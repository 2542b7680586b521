"""Evaluation images taken out of the training images, through the real commands."""

import json
import logging
import shutil

import pytest
from tiny_runs import CIFAR, fails, train, write_images

from ride_timm.commands.report import main as report
from ride_timm.commands.validate import main as validate
from ride_timm.errors import RideError
from ride_timm.records.checkpoint import read_checkpoint

MODEL = ('--model', CIFAR, '--loss', 'ce')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """A folder of class folders and nothing else: 24, 12 and 5 images."""
    return write_images(tmp_path_factory.mktemp('data')) / 'train'


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def experts(data, runs):
    return train(data, runs, 'experts', *MODEL, '--val-fraction', '0.25', '--holdout', '0.25', '--seed', '3')


def entry(run):
    return read_checkpoint(run / 'last.pth.tar')['ride']


def test_the_same_images_whatever_the_seed(data, runs, experts):
    other = train(data, runs, 'other', *MODEL, '--val-fraction', '0.25', '--seed', '4')
    part = entry(other)['val_part']
    assert part == entry(experts)['val_part']
    assert (part['fraction'], part['seed'], len(part['digest'])) == (0.25, 0, 64)
    assert entry(other)['class_counts'] == [18, 9, 4]
    results = json.loads((other / 'results.json').read_text())
    assert results['last']['num_images'] == 10
    assert (results['data']['evaluated_on'], results['data']['test_images']) == ('val_fraction', 10)
    drawn = train(data, runs, 'drawn', *MODEL, '--val-fraction', '0.25', '--val-seed', '1')
    assert entry(drawn)['val_part']['digest'] != part['digest']


def test_held_out_images_come_out_of_the_rest(experts):
    assert entry(experts)['class_counts'] == [18 - 5, 9 - 2, 4 - 1]
    assert entry(experts)['holdout']['digest'] != entry(experts)['val_part']['digest']


def test_later_stages_keep_them(data, runs, experts):
    router = ('--stage', 'router', '--init', str(experts / 'last.pth.tar'))
    later = train(data, runs, 'router', *router, '--seed', '9')
    assert entry(later)['val_part'] == entry(experts)['val_part']
    fails('--val-fraction 0.5 was given, but .* trained with 0.25', data, runs, 'x', *router, '--val-fraction', '0.5')
    without = train(data, runs, 'without', *MODEL, '--val-list', str(write_val_list(data)))
    heads = ('--stage', 'heads', '--init', str(without / 'last.pth.tar'), '--val-fraction', '0.25')
    fails('trained without one, so it has seen', data, runs, 'x', *heads)


def write_val_list(data):
    """One image per class, outside of the folder's tree of training images."""
    other = data.parent / 'val'
    file = data.parent / 'val.txt'
    file.write_text(''.join(f'{path} {path.parent.name}\n' for path in sorted(other.glob('*/0.png'))))
    return file


def test_resuming_keeps_them(data, runs, tmp_path):
    run = shutil.copytree(train(data, runs, 'resumed', *MODEL, '--val-fraction', '0.25'), tmp_path / 'resumed')
    more = (*MODEL, '--epochs', '2', '--resume', 'auto')
    assert train(data, tmp_path, 'resumed', *more, '--val-fraction', '0.25') == run
    fails('keep --val-fraction, --val-seed', data, tmp_path, 'resumed', *more, '--val-fraction', '0.5')
    changed = shutil.copytree(data, tmp_path / 'changed')
    (changed / 'ant/0.png').unlink()
    fails('keep --val-fraction, --val-seed', changed, tmp_path, 'resumed', *more, '--val-fraction', '0.25')


def test_validate_measures_on_them(data, experts, tmp_path):
    found = tmp_path / 'found.json'
    command = ['--checkpoint', str(experts / 'last.pth.tar'), '--device', 'cpu', '--results-file', str(found)]
    assert validate([*command, '--data-dir', str(data)]) == 0
    measured = json.loads(found.read_text())
    assert measured['num_images'] == 10
    assert 'training images of' in measured['data']
    changed = shutil.copytree(data, tmp_path / 'changed')
    (changed / 'ant/0.png').unlink()
    with pytest.raises(RideError, match=r'takes other images of .*changed than when the network was trained'):
        validate([*command, '--data-dir', str(changed)])
    (changed / 'val').mkdir()
    for name in ('ant', 'bee', 'cat'):
        (changed / name).rename(changed / 'val' / name)
    assert validate([*command, '--data-dir', str(changed)]) == 0
    assert json.loads(found.read_text())['num_images'] == 40


def test_where_it_is_needed_and_where_not(data, tmp_path):
    wanted = (*MODEL, '--val-split', 'val')
    fails('has no evaluation images next to it; take a part .* --val-fraction 0.2', data, tmp_path, 'x', *wanted)
    fails('is for data without evaluation images', data.parent, tmp_path, 'x', *MODEL, '--val-fraction', '0.2')
    fails('--val-fraction 2 .* below 1', data, tmp_path, 'x', *MODEL, '--val-fraction', '2')
    fails('--val-fraction 0.001 of .* holds out no image', data, tmp_path, 'x', *MODEL, '--val-fraction', '0.001')


def test_weights_that_may_have_seen_them(data, runs, experts, caplog):
    more = ('--init', str(experts / 'last.pth.tar'), '--val-fraction', '0.3')
    with caplog.at_level(logging.WARNING):
        train(data, runs, 'tuned', '--loss', 'ce', *more)
    assert 'may have seen the images that are evaluated on' in caplog.text


def test_lists(data, runs, tmp_path):
    images = sorted(data.glob('*/*.png'))
    numbers = {'ant': 0, 'bee': 1, 'cat': 2}
    lines = [f'{path.relative_to(data)},{numbers[path.parent.name]}\r\n' for path in images]
    (tmp_path / 'train.csv').write_bytes(''.join(lines[::2]).encode())
    (tmp_path / 'val.csv').write_bytes(''.join(lines[1::2]).encode())
    (tmp_path / 'names.txt').write_text('ant\nbee\ncat\n')
    both = ('--train-list', str(tmp_path / 'train.csv'), '--val-list', str(tmp_path / 'val.csv'))
    named = ('--class-names', str(tmp_path / 'names.txt'))
    run = train(data, runs, 'lists', *MODEL, *both, *named)
    assert entry(run)['class_names'] == ['ant', 'bee', 'cat']
    assert sum(entry(run)['class_counts']) == len(lines[::2])
    found = tmp_path / 'found.json'
    command = ['--checkpoint', str(run / 'last.pth.tar'), '--device', 'cpu', '--results-file', str(found)]
    assert validate([*command, '--data-dir', str(data), *both[2:], *named]) == 0
    assert json.loads(found.read_text())['num_images'] == len(lines[1::2])
    with pytest.raises(RideError, match='has the class "0" and 2 more'):
        validate([*command, '--data-dir', str(data), *both[2:]])
    fails('are the same file', data, runs, 'x', *MODEL, *both[:2], '--val-list', both[1])
    fails('both say what the images are', data, runs, 'x', *MODEL, *both, '--dataset', 'torch/cifar10')
    fails('has no evaluation images next to it', data, runs, 'x', *MODEL, *both[:2], '--val-split', 'val')
    (tmp_path / 'val.csv').write_text(''.join(lines))
    fails('evaluation images .* are training images too, first', data, runs, 'x', *MODEL, *both, *named)


def test_another_training_split_is_found_again(tmp_path):
    data = write_images(tmp_path / 'data')
    (data / 'train').rename(data / 'images')
    shutil.rmtree(data / 'val')
    run = train(data, tmp_path, 'run', *MODEL, '--train-split', 'images', '--val-fraction', '0.25')
    assert report([str(run)]) == 0  # as the training says
    figures = tmp_path / 'figures.json'
    where = ['--data-dir', str(data), '--train-split', 'images', '--results-file', str(figures)]
    assert validate(['--checkpoint', str(run), *where]) == 0
    last = json.loads((run / 'results.json').read_text())['last']
    assert json.loads(figures.read_text())['top1'] == last['top1']
