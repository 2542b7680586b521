"""Reading official checkpoints inertly, and their keys under our names."""

import builtins
import collections
import contextlib
import functools
import logging
import os
import pathlib
import pickle
import subprocess
import sys
import tarfile
import types
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ride_timm.errors import RideError
from ride_timm.publishing.official import from_official, load_official

TENSORS = {
    'backbone.conv1.weight': torch.arange(6.0).reshape(2, 3),
    'backbone.bn1.num_batches_tracked': torch.tensor(7),
}


@pytest.fixture
def config_parser(monkeypatch):
    """The class that published checkpoints hold, in a module that exists only while the file is written."""
    module = types.ModuleType('parse_config')

    class ConfigParser:
        def __init__(self):
            self.config = collections.OrderedDict(arch={'type': 'Model', 'args': {'num_classes': 100}})
            self.save_dir = pathlib.Path('/somewhere')
            self.log_levels = {0: logging.WARNING, 1: logging.INFO}
            self.logger = logging.getLogger('trainer')

        def __setstate__(self, state):
            raise AssertionError('the file was run')

    ConfigParser.__module__, ConfigParser.__qualname__ = 'parse_config', 'ConfigParser'
    module.ConfigParser = ConfigParser
    monkeypatch.setitem(sys.modules, 'parse_config', module)
    return ConfigParser


def save(path, checkpoint, monkeypatch=None, **kwargs):
    torch.save(checkpoint, path, **kwargs)
    if monkeypatch is not None:
        monkeypatch.delitem(sys.modules, 'parse_config')  # the reader has no such module
    return path


def assert_is_tensors(found):
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[key], value) for key, value in TENSORS.items())


def test_published_form(tmp_path, config_parser, monkeypatch):
    model = nn.Linear(2, 2)
    checkpoint = {
        'arch': 'Model',
        'epoch': 200,
        'state_dict': collections.OrderedDict(TENSORS),
        'optimizer': torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9).state_dict(),
        'monitor_best': np.float64(0.48),
        'config': config_parser(),
        'criterion': nn.CrossEntropyLoss(weight=torch.ones(2)),
    }
    assert_is_tensors(load_official(save(tmp_path / 'a.pth', checkpoint, monkeypatch)))
    assert 'parse_config' not in sys.modules


def test_awkward_objects(tmp_path):
    counts = collections.defaultdict(list, {'a': [1]})
    others = [
        counts, np.arange(3), np.random.default_rng(0), frozenset([1]), {1, 2}, b'bytes', 2**80, 1j, slice(1), range(3),
        functools.partial(print, 1), torch.nn.functional.cross_entropy, {pathlib.Path('/a'): 1}, torch.float16,
        np.dtype('float32'), len, nn.Linear(2, 2), torch.Size([1]),
    ]  # fmt: skip
    assert_is_tensors(load_official(save(tmp_path / 'a.pth', {'others': others, 'state_dict': TENSORS})))


def test_bare_state_dict_parameters_and_safetensors(tmp_path):
    assert_is_tensors(load_official(save(tmp_path / 'a.pth', TENSORS)))
    found = load_official(save(tmp_path / 'b.pth', {'w': nn.Parameter(torch.ones(2))}))
    assert not found['w'].requires_grad
    save_file(TENSORS, tmp_path / 'c.safetensors')
    assert_is_tensors(load_official(tmp_path / 'c.safetensors'))
    save_file(TENSORS, tmp_path / 'd.pth')  # told by its content
    assert_is_tensors(load_official(str(tmp_path / 'd.pth')))


class Payload:
    """Runs something when it is unpickled."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def payloads(marker):
    touch = f'import pathlib; pathlib.Path({str(marker)!r}).touch()'
    return {
        'system': Payload(os.system, f'touch {marker}'),
        'subprocess': Payload(subprocess.check_call, ['touch', str(marker)]),
        'exec': Payload(builtins.exec, touch),
        'eval': Payload(builtins.eval, f'__import__("pathlib").Path({str(marker)!r}).touch()'),
        'mkdir': Payload(os.mkdir, str(marker)),
        'method': Payload(pathlib.Path.touch, pathlib.Path(marker)),
        'partial': Payload(functools.partial(os.system, f'touch {marker}')),
    }


@pytest.mark.parametrize('place', ['beside', 'inside', 'instead'])
@pytest.mark.parametrize('form', ['zip', 'protocol 4', 'legacy', 'pickle'])
@pytest.mark.parametrize('name', list(payloads('')))
def test_nothing_of_the_file_runs(tmp_path, name, form, place):
    marker = tmp_path / 'marker'
    payload = payloads(marker)[name]
    content = {'beside': {'config': payload, 'state_dict': TENSORS}, 'inside': {'state_dict': {'a': payload}}}
    content['instead'] = payload
    path = tmp_path / 'evil.pth'
    if form == 'pickle':
        path.write_bytes(pickle.dumps(content[place]))
    elif form == 'legacy':
        torch.save(content[place], path, _use_new_zipfile_serialization=False)
    else:
        torch.save(content[place], path, pickle_protocol=4 if form == 'protocol 4' else 2)
    try:
        found = load_official(path)
    except RideError as error:
        assert '\n' not in str(error)
    else:
        assert place == 'beside'
        assert_is_tensors(found)
    assert not marker.exists()
    with contextlib.suppress(TypeError):  # the payload is a live one
        pickle.loads(pickle.dumps(payload))
    assert marker.exists()


def replace_pickle(path, data):
    """A torch.save file whose pickle is `data`."""
    torch.save(TENSORS, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, 'w') as archive:
        for name, content in records.items():
            archive.writestr(name, data if name.endswith('/data.pkl') else content)
    return path


HAND_WRITTEN = {
    'global': b'\x80\x02cos\nmkdir\nX\x01\x00\x00\x00m\x85R.',
    'python 2 name': b'\x80\x02c__builtin__\neval\nX\x0d\x00\x00\x00os.mkdir("m")\x85R.',
    'dotted name': b'\x80\x02cpathlib\nos.mkdir\nX\x01\x00\x00\x00m\x85R.',
    'method of a result': b'\x80\x02cbuiltins\ngetattr\ncpathlib\nPath\nX\x05\x00\x00\x00mkdir\x86R'
    b'cpathlib\nPath\nX\x01\x00\x00\x00m\x85R\x85R.',
    'instance': b'(X\x01\x00\x00\x00mios\nmkdir\n.',
    'object': b'(cos\nmkdir\nX\x01\x00\x00\x00mo.',
    'stack global': b'\x80\x04X\x02\x00\x00\x00osX\x05\x00\x00\x00mkdir\x93X\x01\x00\x00\x00m\x85R.',
    'persistent id': b'\x80\x02X\x01\x00\x00\x00mQ.',
    'no end': b'\x80\x02}',
    'nothing': b'',
    'empty stack': b'\x80\x02R.',
    'no memo': b'\x80\x02h\x07.',
    'a number': b'\x80\x02K\x07.',
    'a list of itself': b'\x80\x02]q\x00h\x00a.',
}


@pytest.mark.parametrize('name', HAND_WRITTEN)
def test_hand_written_pickles(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = replace_pickle(tmp_path / 'a.pth', HAND_WRITTEN[name])
    with pytest.raises(RideError) as info:
        load_official(path)
    assert '\n' not in str(info.value)
    assert not pathlib.Path('m').exists()


def test_replaced_pickles_are_read(tmp_path):
    """The control for the test above."""
    path = replace_pickle(tmp_path / 'a.pth', b'')
    torch.save(TENSORS, tmp_path / 'b.pth')
    with zipfile.ZipFile(tmp_path / 'b.pth') as archive:
        data = archive.read('b/data.pkl')
    assert_is_tensors(load_official(replace_pickle(path, data)))


def test_blocked_names_are_named(tmp_path):
    torch.save({'state_dict': TENSORS, 'config': Payload(os.system, 'true')}, tmp_path / 'a.pth')
    with pytest.raises(RideError, match=r'posix\.system.*nothing was run'):
        load_official(tmp_path / 'a.pth')


def test_torchs_own_switch_does_not_unlock(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', '1')
    payload = Payload(builtins.exec, f'import pathlib; pathlib.Path({str(tmp_path / "marker")!r}).touch()')
    assert_is_tensors(load_official(save(tmp_path / 'a.pth', {'state_dict': TENSORS, 'config': payload})))
    assert not (tmp_path / 'marker').exists()


def test_allowed_names_are_left_as_they_were(tmp_path, config_parser, monkeypatch):
    before = set(torch.serialization.get_safe_globals())
    load_official(save(tmp_path / 'a.pth', {'state_dict': TENSORS, 'config': config_parser()}, monkeypatch))
    with pytest.raises(RideError):
        load_official(replace_pickle(tmp_path / 'b.pth', HAND_WRITTEN['empty stack']))
    assert set(torch.serialization.get_safe_globals()) == before


def refusal(path):
    with pytest.raises(RideError) as info:
        load_official(path)
    sentence = str(info.value)
    assert sentence.startswith(str(path))
    assert '\n' not in sentence
    assert sentence.endswith('.')
    return sentence


def test_what_is_no_checkpoint(tmp_path):
    assert 'does not exist' in refusal(tmp_path / 'missing.pth')
    assert 'is a folder' in refusal(tmp_path)
    for name, content in {
        'empty': b'',
        'text': b'version https://git-lfs.github.com/spec/v1\n',
        'nul': bytes(99),
    }.items():
        (tmp_path / name).write_bytes(content)
        assert 'neither of torch.save' in refusal(tmp_path / name)
    torch.save(TENSORS, tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)
    assert 'an older PyTorch' in refusal(tmp_path / 'legacy.pth')
    with tarfile.open(tmp_path / 'a.tar', 'w') as archive:
        archive.add(tmp_path / 'text', 'text')
    assert 'an older PyTorch' in refusal(tmp_path / 'a.tar')
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as archive:
        archive.writestr('a.pth', b'')
    assert 'not a complete torch.save file' in refusal(tmp_path / 'a.zip')
    (tmp_path / 'a.safetensors').write_bytes(b'{"a": 1}')
    assert 'not a complete safetensors file' in refusal(tmp_path / 'a.safetensors')


@pytest.mark.filterwarnings('ignore:Validating sparse')
# torch 2.11 warns of a sparse tensor before it gives it
@pytest.mark.filterwarnings('ignore:Sparse invariant checks')
@pytest.mark.parametrize(
    'content',
    [
        [1, 2],
        7,
        {},
        {'state_dict': None},
        {'epoch': 3},
        {'state_dict': {'a': torch.ones(1), 'b': 'text'}},
        {'state_dict': {1: torch.ones(1)}},
        {'state_dict': {'a': torch.eye(2).to_sparse()}},
        {'state_dict': {'a': torch.ones(2, device='meta')}},
    ],
)
def test_no_state_dict(tmp_path, content):
    assert 'give a checkpoint of the RIDE trainer' in refusal(save(tmp_path / 'a.pth', content))


@pytest.mark.parametrize('kind', ['torch', 'safetensors'])
def test_damaged_files_are_named(tmp_path, kind):
    whole = tmp_path / 'whole'
    if kind == 'torch':
        torch.save({'state_dict': TENSORS}, whole)
    else:
        save_file(TENSORS, whole)
    content = whole.read_bytes()
    path = tmp_path / 'cut.safetensors' if kind == 'safetensors' else tmp_path / 'cut.pth'
    for length in {0, 1, 4, 8, 9, len(content) - 1, *range(10, len(content), 97)}:
        path.write_bytes(content[:length])
        refusal(path)
    path.write_bytes(content)
    assert_is_tensors(load_official(path))


def test_a_flipped_bit_of_a_tensor_is_named(tmp_path):
    path = save(tmp_path / 'a.pth', {'w': torch.full((64,), 3.0)})
    content = bytearray(path.read_bytes())
    content[content.index(torch.full((64,), 3.0).numpy().tobytes()) + 100] ^= 1
    path.write_bytes(content)
    assert not torch.load(path, weights_only=True)['w'].eq(3).all()  # torch itself does not notice
    assert 'wrong checksum' in refusal(path)


def tensors(*keys):
    """Distinct tensors; a head's is (4, 10) or, with a bias, (10, 4)."""
    return {key: torch.arange(40.0).reshape(4, 10) + i for i, key in enumerate(keys)}


@pytest.mark.parametrize('prefix', ['', 'backbone.', 'module.backbone.', 'module.'])
@pytest.mark.parametrize(
    ('official', 'ours'),
    [
        (
            'conv1.weight bn1.running_var layer1.4.bn2.num_batches_tracked layer2s.1.0.conv1.weight '
            'layer3s.0.4.bn1.bias linears.0.weight linears.1.weight',
            'conv1.weight bn1.running_var layer1.4.bn2.num_batches_tracked experts.1.layer2.0.conv1.weight '
            'experts.0.layer3.4.bn1.bias experts.0.fc.weight experts.1.fc.weight',
        ),
        (
            'conv1.weight layer2.0.downsample.0.weight layer3s.11.22.conv3.weight '
            'layer4s.0.0.downsample.1.running_mean linears.0.weight expert_help_pred_hidden_fcs.0.bias '
            'expert_help_pred_fc.weight expert_help_pred_fc.bias',
            'conv1.weight layer2.0.downsample.0.weight experts.11.layer3.22.conv3.weight '
            'experts.0.layer4.0.downsample.1.running_mean experts.0.fc.weight router.hidden.0.bias router.out.weight '
            'router.out.bias',
        ),
        (
            'layer1.0.conv1.weight layer2.0.conv1.weight layer3.0.conv1.weight linear.weight linear.bias',
            'layer1.0.conv1.weight experts.0.layer2.0.conv1.weight experts.0.layer3.0.conv1.weight '
            'experts.0.fc.weight experts.0.fc.bias',
        ),
        (
            'layer1.0.conv1.weight layer2.0.conv1.weight layer3.0.conv1.weight layer4.0.bn3.bias linear.weight',
            'layer1.0.conv1.weight layer2.0.conv1.weight experts.0.layer3.0.conv1.weight experts.0.layer4.0.bn3.bias '
            'experts.0.fc.weight',
        ),
    ],
)
def test_every_key_is_renamed(official, ours, prefix):
    given = tensors(*official.split())
    converted = from_official({prefix + key: value for key, value in given.items()})
    assert list(converted) == ours.split()
    has_bias = any(key.endswith('.fc.bias') for key in converted)
    for (theirs, value), (key, found) in zip(given.items(), converted.items(), strict=True):
        cosine_head = theirs.startswith('linear') and not has_bias
        assert torch.equal(found, torch.from_numpy(value.numpy().T.copy()) if cosine_head else value), key
        assert found.is_contiguous()


def test_types_are_kept():
    given = {'linears.0.weight': torch.ones(4, 10, dtype=torch.float16), 'bn1.num_batches_tracked': torch.tensor(9)}
    converted = from_official(given)
    assert converted['experts.0.fc.weight'].dtype == torch.float16
    assert converted['bn1.num_batches_tracked'] is given['bn1.num_batches_tracked']


@pytest.mark.parametrize(
    ('keys', 'named'),
    [
        ('layer3.0.conv1.weight layer4s.0.0.conv1.weight linears.0.weight', r'layer3\.\* for all .* layer4s\.\*'),
        ('layer2.0.conv1.weight layer3s.0.0.conv1.weight linears.0.weight', r'layer2\.\* for all .* layer3s\.\*'),
        ('linears.0.weight expert_help_pred_fcs.0.weight', r'expert_help_pred_fcs\.\*'),
        ('linears.0.weight layer4s.0.0.conv1.weight layer1s.0.0.conv1.weight', r'layer1s\.0\.0\.conv1\.weight'),
        ('linears.0.weight layer2s.0.0.conv1.weight layer4s.0.0.conv1.weight', r'layer2s\.0\.0\.conv1\.weight'),
        ('linears.0.weight layer1.0.conv4.weight', r'layer1\.0\.conv4\.weight'),
        ('linears.0.weight linear.weight', r'linear\.weight'),
        ('conv1.weight layer1.0.conv1.weight fc.weight', r'fc\.weight'),
        ('conv1.weight experts.0.layer3.0.conv1.weight', r'experts\.0\.layer3'),
        ('conv1.weight module.backbone.conv1.weight', r'conv1\.weight twice'),
        ('conv1.weight bn1.bias', r'no linears\.0\.weight'),
        ('', r'no linears\.0\.weight'),
    ],
)
def test_what_nobody_published_is_refused_by_name(keys, named):
    with pytest.raises(RideError, match=named) as info:
        from_official(tensors(*keys.split()))
    assert '\n' not in str(info.value)
