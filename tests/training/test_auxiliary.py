"""Losses that the arguments add: their weights, their names in the table, and what of them a checkpoint keeps."""

import csv

import pytest
from tiny_runs import CIFAR, fails, train, write_images

from ride_timm.records.checkpoint import read_checkpoint

MODEL = ('--model', CIFAR)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('data'))


def test_mutual_distillation(data, tmp_path):
    folder = train(data, tmp_path, 'mutual', *MODEL, '--loss', 'balpoe', '--mutual', '0.5', '--mutual-hard', '0.25')
    with (folder / 'summary.csv').open(newline='') as file:
        row = {key: float(value) for key, value in next(csv.DictReader(file)).items() if key.startswith('train')}
    expected = row['train_classification'] + 0.5 * row['train_mutual'] + 0.25 * row['train_mutual_hard']
    assert row['train_loss'] == pytest.approx(expected, rel=1e-4)
    assert row['train_mutual'] > 0
    fails('loss sade serve different class priors', data, tmp_path, 'a', *MODEL, '--loss', 'sade', '--mutual', '1')


def test_gated_distillation_and_suppression(data, tmp_path):
    added = ('--mutual-gated', '0.5', '--soft-suppression', '0.25')
    folder = train(data, tmp_path, 'gated', *MODEL, '--loss', 'logit_adjusted', '--loss-kwargs', 'tau=mdcs', *added)
    with (folder / 'summary.csv').open(newline='') as file:
        row = {key: float(value) for key, value in next(csv.DictReader(file)).items() if key.startswith('train')}
    expected = row['train_classification'] + 0.5 * row['train_mutual_gated'] + 0.25 * row['train_soft_suppression']
    assert row['train_loss'] == pytest.approx(expected, rel=1e-4)
    assert row['train_mutual_gated'] > 0
    checkpoint = read_checkpoint(folder / 'last.pth.tar')
    assert list(checkpoint['ride']['tau']) == list(checkpoint['args']['loss_kwargs']['tau']) == [-0.5, 1.0, 2.5]
    (accuracy,) = checkpoint['task_state'].values()
    assert 0.0 < accuracy.max() < 1.0
    fails('--mutual-gated compares', data, tmp_path, 'a', *MODEL, '--loss', 'sade', *added)
    unknown = ('--loss', 'balpoe', '--loss-kwargs', 'tau=mcds')
    fails("tau is 'mcds', but must be one of", data, tmp_path, 'b', *MODEL, *unknown)
