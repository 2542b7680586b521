"""From images to a published network in half precision and several files, at the scale of seconds.

The network is `ride_resnet50_4e` with one narrow block a stage, the recipes are those of Tiny-ImageNet-LT, the images
five classes of 64 pixels. As with `--one-run` of `benchmarks/train_zoo.py` the run that held images out is published.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import train, write_images

from ride_timm.commands.package import main as package
from ride_timm.records.published import read_index
from ride_timm.records.results import read_results

COUNTS = {'ant': 48, 'bee': 32, 'cat': 21, 'dog': 10, 'elk': 4}
NAME = 'ride_resnet50_4e.ride_tinyimagenetlt'
PLAIN = 'resnet50.ce_tinyimagenetlt'
SHARD = 0.15  # MiB
LAYERS = ('--model-kwargs', 'layers=(1,1,1,1)')
pytestmark = pytest.mark.slow


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'), COUNTS, val=7, size=64)


@pytest.fixture(scope='module')
def runs(tmp_path_factory, data):
    runs = tmp_path_factory.mktemp('runs')
    held = ('--holdout', '0.2', '--val-interval', '20', '--epochs', '3', '--warmup-epochs', '1')
    small = (*LAYERS, 'channels=(16,16,24,32)')
    experts = train(data, runs, 'A', '--recipe', 'tinyimagenetlt_ride', *small, *held, size=64)
    router = ('--recipe', 'tinyimagenetlt_router', '--init', str(experts / 'last.pth.tar'))
    train(data, runs, 'A-router', *router, size=64)
    train(data, runs, 'plain', '--recipe', 'tinyimagenetlt_ce', *LAYERS, *held, size=64)
    return runs


@pytest.fixture(scope='module')
def root(tmp_path_factory, data, runs):
    root = tmp_path_factory.mktemp('weights')
    (root / 'index.json').write_text('{"format": 1, "weights": {}}')
    folders = [str(runs / name) for name in ('A', 'A-router')]
    common = ['--data-dir', str(data), '--data-name', 'Tiny-ImageNet-LT']
    stored = ['--dtype', 'float16', '--max-shard-size', str(SHARD), '--choices', *folders]
    assert package([*folders, '--output', str(root / NAME), *common, *stored]) == 0
    assert package([str(runs / 'plain'), '--output', str(root / PLAIN), *common, '--results-only']) == 0
    return root


def fresh(root, *command):
    """A process whose registry holds these weights."""
    environment = {**os.environ, 'RIDE_TIMM_WEIGHTS': str(root), 'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1'}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_files_are_small_and_in_the_index(root):
    weight = read_index(root)[NAME]
    assert len(weight.tensor_files) > 2
    assert max(weight.files[name].size for name in weight.tensor_files) < (SHARD + 0.02) * 2**20
    tensors = {key: value for name in weight.tensor_files for key, value in load_file(root / NAME / name).items()}
    kept = {key for key, value in tensors.items() if value.dtype == torch.float32}
    assert {key for key in tensors if re.search(r'bn\d|downsample\.1|^router', key)} == {
        *kept, *(key for key in tensors if key.endswith('num_batches_tracked'))
    }  # fmt: skip
    assert read_results(root / NAME).net.bytes == sum(weight.files[name].size for name in weight.tensor_files)


def test_classes_are_counted_with_the_images_that_were_held_out(root):
    results = read_results(root / NAME)
    assert [row.train_images for row in results.test.per_class] == list(COUNTS.values())
    assert read_index(root)[NAME].config['ride']['class_counts'] == list(COUNTS.values())
    seen = results.training[0].images
    assert seen + results.choices.held_out.images == results.data.train_images == sum(COUNTS.values())
    assert read_results(root / PLAIN).data.train_images == sum(COUNTS.values())


def test_the_card_is_honest(root):
    text = (root / NAME / 'README.md').read_text()
    assert '**Trained on a part of the training images**: 92 of 115.' in text
    assert 'that this training held out, never on test images' in text
    assert 'except `--epochs 3` (experts)' in text
    assert 'It is not an ImageNet-LT network' in text
    assert 'in float16 (normalisation, biases and router in float32)' in text
    assert '3x64x64' in text


def test_the_plain_network_is_results_alone(root):
    assert {path.suffix for path in (root / PLAIN).iterdir()} == {'.json', '.md', '.png'}
    assert not read_index(root)[PLAIN].has_tensors
    results = read_results(root / PLAIN)
    assert results.net.bytes is None
    assert results.architecture == 'resnet50'
    assert results.net.num_experts == 1


def test_it_is_what_pretrained_means(root):
    code = (
        'import timm, torch, ride_timm\n'
        f"net = timm.create_model('{NAME.partition('.')[0]}', pretrained=True).eval()\n"
        "print(timm.list_pretrained('ride_resnet50*'), timm.list_pretrained('resnet50.ce*'))\n"
        'print(net.num_classes, net.router is not None, net.pretrained_cfg["input_size"], {p.dtype for p in '
        'net.parameters()})\n'
        "other = timm.create_model('ride_resnet50_4e', pretrained=True, num_classes=3)\n"
        'print(other(torch.zeros(2, 3, 96, 96)).shape, other.router)\n'
    )
    assert fresh(root, '-W', 'error', '-c', code).splitlines() == [
        f"['{NAME}'] []",
        '5 True (3, 64, 64) {torch.float32}',
        'torch.Size([2, 3]) None',
    ]


@pytest.mark.parametrize('way', [(), ('--routed',)])
def test_validate_prints_the_cards_figures(root, data, tmp_path, way):
    command = [
        '-m',
        'ride_timm.cli',
        'validate',
        '--model',
        'ride_resnet50_4e',
        '--pretrained',
        '--data-dir',
        str(data),
    ]
    fresh(root, *command, *way, '--results-file', str(tmp_path / 'found.json'), '--device', 'cpu')
    found = json.loads((tmp_path / 'found.json').read_text())
    test = read_results(root / NAME).test
    expected = test.routed if way else test.all_experts
    for name in ('top1', 'many', 'medium', 'few', 'ece', 'loss', 'gmacs', 'mean_experts', 'worst_class'):
        assert (name in expected) == (name in found), name
        if name in expected:
            assert found[name] == pytest.approx(expected[name], abs=1e-4), name
    row = next(
        line for line in (root / NAME / 'README.md').read_text().splitlines() if line.startswith('| all 4 experts')
    )
    if not way:
        assert row.split('|')[2].strip() == f'{found["top1"]:.2f}'
