"""Reading files runs nothing in them, and takes no damaged one for a whole one."""

import argparse
import ast
import random
from pathlib import Path

import pytest
import torch
from crash_tools import load, options, run_command
from tiny_runs import write_images

import ride_timm
from ride_timm.errors import RideError
from ride_timm.records.checkpoint import read_checkpoint

PACKAGE = Path(ride_timm.__file__).parent
SOURCES = sorted(PACKAGE.rglob('*.py'))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    output = tmp_path_factory.mktemp('output')
    more = ['--epochs', '2', '--model-ema', '--amp', '--amp-dtype', 'float16', '--holdout', '0.25', '--opt', 'adamw']
    more += ['--loss-kwargs', 'rho=0.1', '--model-kwargs', 'head=cosine']
    assert run_command(options(data, output, 'run', *more)) == 0
    return output / 'run'


def test_everything_we_write_loads_without_pickle(run):
    files = list(run.glob('*.pth.tar'))
    assert len(files) == 3
    for path in files:
        state = torch.load(path, weights_only=True)
        assert {'epoch', 'arch', 'state_dict', 'state_dict_ema', 'optimizer', 'args', 'ride', 'version'} <= set(state)
        assert type(state['args']) is dict


def dotted(node):
    if isinstance(node, ast.Attribute):
        return f'{dotted(node.value)}.{node.attr}'
    return node.id if isinstance(node, ast.Name) else ''


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_the_package_runs_nothing_it_reads(path):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names] + [getattr(node, 'module', None) or '']
            assert not {'pickle', 'cPickle', 'dill', 'joblib', 'marshal', 'shelve', 'cloudpickle'} & set(names)
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        keywords = {word.arg: word.value for word in node.keywords}
        if name.endswith('torch.load') or name == 'torch_load':
            assert isinstance(keywords.get('weights_only'), ast.Constant), f'{path}:{node.lineno}'
            assert keywords['weights_only'].value is True, f'{path}:{node.lineno}'
        assert 'allow_pickle' not in keywords
        assert name not in ('eval', 'exec', 'yaml.load', 'yaml.unsafe_load', 'yaml.full_load'), f'{path}:{node.lineno}'


class Trap:
    """Touches a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (Path(self.marker),))


def evil(run, folder):
    state = load(run / 'last.pth.tar')
    state['args']['data_dir'] = Trap(str(folder / 'marker'))
    torch.save(state, folder / 'evil.pth.tar')
    return folder / 'evil.pth.tar'


@pytest.mark.parametrize('how', ['resume', 'init', 'teacher', 'validate'])
def test_foreign_classes_are_refused(data, run, tmp_path, capsys, how):
    path = str(evil(run, tmp_path))
    if how == 'validate':
        status = run_command(['validate', '--checkpoint', path, '--data-dir', str(data), '--device', 'cpu'])
    else:
        status = run_command(options(data, tmp_path, 'new', '--resume', '', f'--{how}', path))
    assert status == 2
    said = capsys.readouterr().err
    assert 'names Python classes' in said
    assert 'Traceback' not in said
    assert not (tmp_path / 'marker').exists()


def test_the_trap_works(run, tmp_path):
    torch.load(evil(run, tmp_path), weights_only=False)
    assert (tmp_path / 'marker').exists()


def test_timms_own_checkpoints_are_read(run, tmp_path):
    """timm's training saves its arguments as a Namespace."""
    state = load(run / 'last.pth.tar')
    state['args'] = argparse.Namespace(model='m', opt='sgd')
    torch.save(state, tmp_path / 'timm.pth.tar')
    assert read_checkpoint(tmp_path / 'timm.pth.tar')['args'] == {'model': 'm', 'opt': 'sgd'}


def test_any_cut_is_noticed(run, tmp_path):
    whole = (run / 'last.pth.tar').read_bytes()
    rng = random.Random(0)
    for end in [0, 1, 4, len(whole) // 2, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(20))]:
        (tmp_path / 'cut').write_bytes(whole[:end])
        with pytest.raises(RideError, match='not a training checkpoint, or a damaged one'):
            read_checkpoint(tmp_path / 'cut')


def test_a_flipped_bit_is_noticed_or_harmless(run, tmp_path):
    """Checksums cover every tensor; a bit in the padding between them changes nothing."""
    whole = bytearray((run / 'last.pth.tar').read_bytes())
    expected = read_checkpoint(run / 'last.pth.tar')['state_dict']
    rng = random.Random(0)
    noticed = 0
    for _ in range(40):
        place, bit = rng.randrange(len(whole)), 1 << rng.randrange(8)
        whole[place] ^= bit
        (tmp_path / 'flipped').write_bytes(whole)
        whole[place] ^= bit
        try:
            found = read_checkpoint(tmp_path / 'flipped')['state_dict']
        except RideError:
            noticed += 1
            continue
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert noticed >= 30


@pytest.mark.parametrize('content', [{'state_dict': 3}, {'model': {}}, [1, 2], torch.zeros(3)])
def test_other_contents_are_no_checkpoints(tmp_path, content):
    torch.save(content, tmp_path / 'file')
    with pytest.raises(RideError, match='not a training checkpoint'):
        read_checkpoint(tmp_path / 'file')
