"""The command that trains the published networks: the order of the runs, and once for real on tiny images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import write_images

SCRIPT = Path(__file__).resolve().parents[1] / 'benchmarks' / 'train_zoo.py'
RIDE = 'ride_resnet32_3e.ride_cifar100lt'


def run(*arguments, cwd=None):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=280, cwd=cwd, check=False,
        env=environment,
    )  # fmt: skip


def test_the_commands():
    done = run('--data-dir', 'data', '--dry-run', '--options=--amp', '--only', 'ride_resnet32_1e.ce_cifar100lt')
    assert done.stdout.splitlines() == [
        'ride-timm train --recipe cifar100lt_ce --val-interval 100000 --seed 42 --data-dir data --output output/zoo '
        '--experiment ride_resnet32_1e.ce_cifar100lt.B-42 --resume auto --amp'
    ]


def test_run_a_holds_images_out_and_comes_first():
    first, router = run('--data-dir', 'data', '--dry-run', '--only', RIDE).stdout.splitlines()[:2]
    assert '--recipe cifar100lt_ride --holdout 0.1' in first
    assert '--recipe cifar100lt_router' in router
    assert f'--init output/zoo/{RIDE}.A-42/last.pth.tar' in router


def test_an_unknown_network():
    done = run('--data-dir', 'data', '--only', 'resnet50')
    assert done.returncode == 2
    assert 'There is no network resnet50' in done.stderr


@pytest.mark.slow
def test_two_seeds_of_one_network(tmp_path):
    """Eight trainings of one epoch in processes of their own, two exports: about two minutes."""
    data = write_images(tmp_path / 'data', {'ant': 40, 'bee': 30, 'cat': 20}, val=6, size=32)
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'weights' / 'index.json').write_text('{"format": 1, "weights": {}}')
    options = ['--data-dir', str(data), '--only', RIDE, '--seeds', '1', '2', '--options', '--epochs 1 -b 16']
    done = run(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / 'weights' / RIDE / 'results.json').read_text())
    assert {row['seed'] for row in results['seeds']} == {1, 2}
    assert results['choices']['threshold'] == results['test']['routed']['threshold']
    assert '--holdout 0.1' in results['choices']['training'][0]['command']
    assert RIDE in json.loads((tmp_path / 'weights' / 'index.json').read_text())['weights']
    again = run(*options, '--no-export', cwd=tmp_path)  # nothing is left to train
    assert again.returncode == 0
