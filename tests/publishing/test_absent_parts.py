"""A checkout without the large files: the index names tensors that are not there, and everything else works."""

import json
import os
import subprocess
import sys

import pytest
import timm
import torch
from weight_results import make_results

from ride_timm.commands.publish import main as publish
from ride_timm.commands.weights import main as list_weights
from ride_timm.errors import RideError
from ride_timm.inference.load import load
from ride_timm.inference.network import check_architecture
from ride_timm.publishing.folder import save_folder
from ride_timm.publishing.index import hash_folder, renew_entry
from ride_timm.records.published import PretrainedError, published_weights, read_index, register_published

ARCHITECTURE = 'ride_resnet18_4e'  # which the package has no weights of
NAME = f'{ARCHITECTURE}.large_toys'
SMALL = {'layers': (1, 1, 1, 1), 'channels': (8, 8, 12, 12)}
HUB = {'repo_id': 'org/name', 'revision': 'a' * 40}
CODE = f"""
import timm, torch
import ride_timm
from ride_timm.records.published import PretrainedError
print(timm.list_pretrained('{ARCHITECTURE}*'))
net = timm.create_model('{ARCHITECTURE}', layers={SMALL['layers']}, channels={SMALL['channels']})
print(net.num_classes, net.pretrained_cfg['input_size'], net(torch.zeros(2, 3, 64, 64)).shape)
try:
    timm.create_model('{ARCHITECTURE}', pretrained=True)
except PretrainedError as error:
    print(error)
"""


@pytest.fixture
def folder(tmp_path):
    """A weight in several files that are listed and gone."""
    torch.manual_seed(0)
    net = timm.create_model(ARCHITECTURE, num_classes=7, router=True, **SMALL)
    net.pretrained_cfg['input_size'] = (3, 64, 64)
    folder = tmp_path / 'weights' / NAME
    save_folder(net, folder, [f'c{i}' for i in range(7)], [9] * 7, max_shard_size=100_000)
    (folder / 'results.json').write_text(json.dumps(make_results(classes=7, name=NAME)))
    (folder.parent / 'index.json').write_text('{"format": 1, "weights": {}}')
    renew_entry(folder)
    for path in folder.glob('*.safetensors'):
        path.unlink()
    return folder


def pin(folder):
    index = folder.parent / 'index.json'
    content = json.loads(index.read_text())
    files = {'model.safetensors': {'size': 3, 'sha256': 'b' * 64}}
    content['weights'][NAME]['hub'] = {**HUB, 'files': files}
    index.write_text(json.dumps(content))


def test_the_index_still_names_them(folder):
    weight = read_index(folder.parent)[NAME]
    assert len(weight.tensor_files) > 1
    assert weight.has_tensors
    assert not weight.is_local
    assert weight.source == {}
    with pytest.raises(PretrainedError, match=r'model-00001-of-0000\d\.safetensors of .* is not in'):
        weight.load()


def test_a_renewed_entry_keeps_what_is_not_here(folder):
    pin(folder)
    before = json.loads((folder.parent / 'index.json').read_text())['weights'][NAME]
    (folder / 'README.md').write_text('a new card')
    assert renew_entry(folder)
    entry = json.loads((folder.parent / 'index.json').read_text())['weights'][NAME]
    assert entry['hub'] == before['hub']
    assert entry['files'] == before['files'] | {'README.md': hash_folder(folder)['README.md']}
    assert list(entry['files']) == sorted(entry['files'])


def test_parts_of_other_tensors_are_not_kept(folder):
    index = folder / 'model.safetensors.index.json'
    index.write_text(index.read_text().replace('conv1', 'conv2'))
    assert renew_entry(folder)
    assert not read_index(folder.parent)[NAME].has_tensors


def test_the_folder_says_what_it_lacks(folder):
    with pytest.raises(RideError, match=r'are not all there \(model-00001-of-0000\d\.safetensors is missing'):
        load(folder)


def test_a_fresh_process_goes_to_the_hub_and_says_when_that_fails(folder):
    """Importing, the defaults and random weights work without a warning; `pretrained=True` says what is the matter."""

    def run():
        environment = {'RIDE_TIMM_WEIGHTS': str(folder.parent), 'HF_HUB_OFFLINE': '1', 'OMP_NUM_THREADS': '1'}
        environment['HF_HOME'] = str(folder.parent / 'cache')
        done = subprocess.run(
            [sys.executable, '-W', 'error', '-c', CODE], env={**os.environ, **environment}, capture_output=True,
            text=True, timeout=250, check=False,
        )  # fmt: skip
        assert all('pretrained=True loads' in line for line in done.stderr.splitlines()), done.stderr
        return done.stdout.splitlines()

    listed, made, failure = run()
    assert listed == '[]'
    assert made == '1000 (3, 224, 224) torch.Size([2, 1000])'  # the architecture's own
    assert f'of {NAME} is not in {folder} and the index pins no copy on the Hugging Face Hub' in failure
    assert 'RIDE_TIMM_WEIGHTS' in failure
    pin(folder)
    listed, _, failure = run()
    assert listed == f"['{NAME}']"
    assert f'{NAME} is not in {folder} and model.safetensors cannot be fetched from org/name at aaaaaaaaaa' in failure
    assert 'check the connection' in failure


def test_it_is_listed_with_its_figures(folder, monkeypatch, capsys):
    monkeypatch.setenv('RIDE_TIMM_WEIGHTS', str(folder.parent))
    published_weights.cache_clear()
    try:
        assert list_weights([]) == 0
    finally:
        published_weights.cache_clear()
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(NAME))
    assert row.endswith('not available')
    assert f'{make_results(classes=7)["test"]["all_experts"]["top1"]:.2f}' in row


def test_results_alone(folder, monkeypatch, capsys):
    """A network that others are only compared with is listed, and is nobody's pretrained weights."""
    (folder / 'model.safetensors.index.json').unlink()
    renew_entry(folder)
    monkeypatch.setenv('RIDE_TIMM_WEIGHTS', str(folder.parent))
    published_weights.cache_clear()
    try:
        assert list_weights([]) == 0
        (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(NAME))
        assert row.endswith('results only')
        base = {ARCHITECTURE: {'num_classes': 1000}}
        assert register_published(base) == base
        with pytest.raises(RideError, match='no weights'):
            check_architecture(NAME)
        with pytest.raises(RideError, match='RIDE_TIMM_WEIGHTS'):
            publish(['--all', '--dry-run'])
        assert NAME in capsys.readouterr().err
    finally:
        published_weights.cache_clear()
