"""`ride-timm validate --holdout`: choosing settings on the training images that a training held out."""

import json

import pytest
from tiny_runs import train, write_images

from ride_timm.commands.validate import main as validate
from ride_timm.errors import RideError
from ride_timm.records.runs import read_per_class


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def experts(tmp_path_factory, data):
    return train(data, tmp_path_factory.mktemp('runs'), 'experts', '--holdout', '0.25', '--no-amp')


def test_validate_measures_on_the_held_out_images(data, experts, tmp_path, caplog):
    run = json.loads((experts / 'results.json').read_text())['last']
    figures = tmp_path / 'figures.json'
    options = ['--checkpoint', str(experts), '--data-dir', str(data), '--device', 'cpu', '--results-file', str(figures)]
    assert validate([*options, '--holdout', '0.25']) == 0
    found = json.loads(figures.read_text())
    for key in ('top1', 'loss', 'ece', 'many', 'medium', 'few', 'num_images'):
        assert found.get(key) == pytest.approx(run.get(key), abs=1e-4), key
    assert 'held out' in found['data']
    assert 'seen' not in caplog.text
    assert validate([*options, '--holdout', '0.25', '--seed', '7']) == 0
    assert 'held out other images (--holdout 0.25, seed 42) than these (--holdout 0.25, seed 7)' in caplog.text
    with pytest.raises(RideError, match='--seed 7 has no effect without --holdout'):
        validate([*options, '--seed', '7'])
    with pytest.raises(RideError, match=r'--holdout 2 .* below 1'):
        validate([*options, '--holdout', '2'])


def test_validate_of_weights_that_do_not_say_what_was_held_out(data, tmp_path, caplog):
    run = train(data, tmp_path, 'whole')
    per_class = tmp_path / 'classes.csv'
    options = ['--checkpoint', str(run), '--data-dir', str(data), '--device', 'cpu', '--per-class-file', str(per_class)]
    assert validate([*options, '--holdout', '0.25', '--results-file', str(tmp_path / 'figures.json')]) == 0
    assert 'does not say which images its training held out; if not these' in caplog.text
    accuracies = [row['accuracy'] for row in read_per_class(per_class)]
    balanced = json.loads((tmp_path / 'figures.json').read_text())['balanced']
    assert balanced == pytest.approx(sum(accuracies) / len(accuracies), abs=0.01)
