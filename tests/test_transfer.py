"""The benchmark that fine-tunes from weights: once for real, on tiny images."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from tiny_runs import IMAGENET, write_images

from ride_timm.publishing.folder import save_folder

SCRIPT = Path(__file__).resolve().parents[1] / 'benchmarks' / 'transfer.py'


@pytest.mark.slow
def test_both_sides_differ_in_their_beginning_alone(tmp_path):
    """Four trainings of one epoch in one process: about twenty seconds."""
    data = write_images(tmp_path / 'data', size=32)
    weights = tmp_path / f'{IMAGENET}.other_things'
    net = timm.create_model(IMAGENET, num_classes=5)
    save_folder(net, weights, [f'thing {i}' for i in range(5)], [5, 4, 3, 2, 1])
    options = ['--weights', str(weights), '--data', str(data), '--epochs', '1', '--seeds', '1', '2', '--img-size', '32']
    options += ['--runs', str(tmp_path / 'runs'), '--output', str(tmp_path / 'found.json')]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options, '--batch-size', '8', '--options', '--device cpu -j 0'],
        capture_output=True, text=True, timeout=280, check=False, env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'n = 2 seeds [1, 2]' in done.stdout
    found = json.loads((tmp_path / 'found.json').read_text())
    assert {way: len(rows) for way, rows in found['runs'].items()} == {'scratch': 2, 'tuned': 2}
    tuned, scratch = (
        json.loads((tmp_path / 'runs' / f'{way}-1' / 'results.json').read_text())['args']
        for way in ('tuned', 'scratch')
    )
    ours = {'command', 'experiment', 'from_scratch', 'init', 'lr', 'model_kwargs'}
    assert {key for key in tuned if tuned[key] != scratch[key]} <= ours
    assert tuned['model'] == IMAGENET
    assert (tuned['lr'], scratch['lr']) == (0.00125, 0.00625)
    gain = found['summary']['tuned']['top1']['mean'] - found['summary']['scratch']['top1']['mean']
    assert f'{gain:+.2f}' in done.stdout.splitlines()[-1]
