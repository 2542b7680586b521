"""The folder of a checkpoint: precision, one file of tensors or several, and the configuration."""

import json
import math

import pytest
import timm
import torch
from safetensors.torch import load_file

from ride_timm.errors import RideError
from ride_timm.inference.load import load
from ride_timm.publishing.folder import save_folder, tensor_bytes
from ride_timm.publishing.index import renew_entry
from ride_timm.publishing.precision import cast_state, round_network
from ride_timm.records.published import SHARD_INDEX, WEIGHTS, read_index
from ride_timm.training.initial import read_initial

ARCHITECTURE = 'test_ride_resnet_cifar_3e'
NAME = f'{ARCHITECTURE}.half_toys'
NAMES = ['ant', 'bee', 'cat', 'dog', 'elk']
LIMIT = 60_000


@pytest.fixture
def net():
    torch.manual_seed(3)
    net = timm.create_model(ARCHITECTURE, num_classes=5, router=True, router_threshold=0.35)
    return net.eval()


@pytest.fixture
def folder(net, tmp_path):
    """Float16, in several files, in an index."""
    folder = tmp_path / 'weights' / NAME
    save_folder(net, folder, NAMES, [9, 7, 5, 3, 1], dtype=torch.float16, max_shard_size=LIMIT)
    (folder.parent / 'index.json').write_text('{"format": 1, "weights": {}}')
    assert renew_entry(folder)
    return folder


def logits(net):
    with torch.inference_mode():
        return net.eval()(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1)))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


# precision


def test_matrices_are_halved_and_the_rest_is_not(net):
    state, cast = net.state_dict(), cast_state(net.state_dict(), torch.float16)
    halved = {key for key, tensor in cast.items() if tensor.dtype == torch.float16}
    assert halved == {key for key in state if key.endswith('weight') and ('conv' in key or 'fc' in key)}
    assert list(cast) == list(state)
    for key in state.keys() - halved:
        assert cast[key].dtype == state[key].dtype, key  # normalisation, its counters, the router


def test_rounding_gives_what_is_stored(net):
    stored = cast_state(net.state_dict(), torch.float16)
    round_network(net, torch.float16)
    state = net.state_dict()
    assert all(torch.equal(state[key], stored[key].to(state[key].dtype)) for key in state)
    assert all(tensor.dtype == torch.float32 for tensor in net.parameters())


def test_a_value_beyond_the_range_is_refused(net):
    net.conv1.weight.data[0, 0, 0, 0] = 70_000.0
    with pytest.raises(RideError, match=r'conv1\.weight has a value of 7e\+04, beyond the 65504 of float16'):
        cast_state(net.state_dict(), torch.float16)
    assert cast_state(net.state_dict(), torch.float32).keys() == net.state_dict().keys()


# files


def test_the_parts(net, folder):
    parts = sorted(path.name for path in folder.glob('*.safetensors'))
    assert len(parts) > 2
    assert parts == [f'model-{i:05d}-of-{len(parts):05d}.safetensors' for i in range(1, len(parts) + 1)]
    for part in parts:
        tensors = load_file(folder / part)
        assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= LIMIT
    places = json.loads((folder / SHARD_INDEX).read_text())['weight_map']
    assert places.keys() == net.state_dict().keys()
    assert tensor_bytes(folder) == sum((folder / part).stat().st_size for part in parts)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        (folder / 'config.json').stat().st_mode & 0o777
    }


def test_the_parts_come_back_as_the_network(net, folder):
    stored = cast_state(net.state_dict(), torch.float16)
    assert same(read_index(folder.parent)[NAME].load(), stored)
    round_network(net, torch.float16)
    for found in (load(folder), load(folder / SHARD_INDEX)):
        assert torch.equal(logits(found.model), logits(net))
        assert found.class_names == tuple(NAMES)
        assert found.class_counts == (9, 7, 5, 3, 1)
        assert found.model.router_threshold == 0.35
        assert 'state_dict' not in found.model.pretrained_cfg
    initial = read_initial(folder)
    assert torch.equal(logits(initial.model), logits(net))
    assert initial.class_counts == (9, 7, 5, 3, 1)


def test_new_heads_on_the_parts(net, folder):
    found = load(folder, num_classes=7).model
    assert found.router is None
    assert logits(found).shape == (4, 7)
    stored = cast_state(net.state_dict(), torch.float16)
    assert torch.equal(found.conv1.weight, stored['conv1.weight'].float())


def test_one_file_takes_the_place_of_several_and_the_other_way(net, folder):
    save_folder(net, folder, NAMES)
    assert [path.name for path in folder.iterdir() if 'model' in path.name] == [WEIGHTS]
    assert same(load_file(folder / WEIGHTS), net.state_dict())
    save_folder(net, folder, NAMES, max_shard_size=2 * LIMIT)
    assert not (folder / WEIGHTS).exists()
    save_folder(net, folder, NAMES, with_tensors=False)
    assert [path.name for path in folder.iterdir()] == ['config.json']
    assert tensor_bytes(folder) == 0


def test_a_limit_that_a_tensor_exceeds(net, tmp_path):
    largest = max(4 * tensor.numel() for tensor in net.state_dict().values())
    with pytest.raises(RideError, match='give a larger --max-shard-size'):
        save_folder(net, tmp_path / NAME, max_shard_size=largest - 1)
    assert not (tmp_path / NAME).exists()
    save_folder(net, tmp_path / NAME, max_shard_size=largest)
    assert len(list((tmp_path / NAME).glob('*.safetensors'))) >= math.ceil(tensor_bytes(tmp_path / NAME) / largest)


# configuration


def test_a_plain_network_does_not_pass_for_timms_weights(tmp_path):
    net = timm.create_model('resnet50', num_classes=5, layers=(1, 1, 1, 1))
    net.pretrained_cfg.update(input_size=(3, 64, 64), crop_pct=1.0, interpolation='bilinear')
    save_folder(net, tmp_path / 'resnet50.toys', NAMES, with_tensors=False)
    cfg = json.loads((tmp_path / 'resnet50.toys' / 'config.json').read_text())['pretrained_cfg']
    assert not cfg.keys() & {'tag', 'test_input_size', 'test_crop_pct', 'origin_url', 'paper_ids', 'hf_hub_id', 'url'}
    assert (cfg['input_size'], cfg['pool_size']) == ([3, 64, 64], [2, 2])


def test_the_size_of_the_last_maps(tmp_path):
    net = timm.create_model('test_ride_resnet_3e', num_classes=5)
    for size, pooled in ((160, 5), (64, 2), (70, 3)):
        net.pretrained_cfg['input_size'] = (3, size, size)
        save_folder(net, tmp_path / 'x', NAMES)
        cfg = json.loads((tmp_path / 'x' / 'config.json').read_text())['pretrained_cfg']
        assert cfg['pool_size'] == [pooled, pooled]
        assert net.forward_features(torch.zeros(1, 3, size, size)).shape[-2:] == (pooled, pooled)
        assert cfg['paper_ids'] == 'arXiv:2010.01809'
