"""Importing the package has no side effect but the registration of its architectures."""

import importlib
import json
import pkgutil
import subprocess
import sys
import types

import pytest
import timm

import ride_timm
from ride_timm.models.ride_zoo import BACKBONES

ARCHITECTURES = [
    *(f'ride_resnet32_{k}e' for k in (1, 2, 3, 4, 6)),
    *(f'ride_resnet10_{k}e' for k in (2, 3, 4)),
    *(f'ride_resnet18_{k}e' for k in (2, 3, 4)),
    *(f'ride_resnet50_{k}e' for k in (2, 3, 4, 6)),
    *(f'ride_resnet101_{k}e' for k in (2, 3, 4)),
    *(f'ride_resnet152_{k}e' for k in (2, 3, 4)),
    *(f'ride_resnext50_32x4d_{k}e' for k in (2, 3, 4, 6)),
    *(f'ride_resnext101_32x4d_{k}e' for k in (2, 3, 4)),
    *(f'ride_resnext152_32x4d_{k}e' for k in (2, 3, 4)),
]
TINY = ['test_ride_resnet_3e', 'test_ride_resnet_cifar_3e']
MODULES = sorted(m.name for m in pkgutil.walk_packages(ride_timm.__path__, 'ride_timm.') if '__main__' not in m.name)


# what a fresh process sees of the import; every warning is an error there
PROGRAM = """
import json, random, socket, sys

attempts = []

def refuse(*args, **kwargs):
    attempts.append(repr(args))
    raise OSError('no network')

for name in ('connect', 'connect_ex', 'bind', 'sendto'):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.create_connection = refuse

import numpy, torch, timm

def settings():
    return torch.get_num_threads(), torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()

def random_states():
    return repr(random.getstate()), repr(numpy.random.get_state(legacy=False)), torch.get_rng_state().tolist()

numpy.set_printoptions(threshold=sys.maxsize)
before = settings(), random_states()
modules = set(sys.modules)
import ride_timm
modules = sorted(set(sys.modules) - modules)
after = settings(), random_states()
json.dump({
    'modules': modules,
    'network': attempts,
    'settings': before[0] == after[0],
    'random states': before[1] == after[1],
    'cuda': torch.cuda.is_initialized(),
}, sys.stdout)
"""


def import_afresh():
    result = subprocess.run([sys.executable, '-W', 'error', '-c', PROGRAM], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    return json.loads(result.stdout)


@pytest.fixture(scope='module')
def seen():
    return import_afresh()


def test_registered_architectures():
    assert sorted(timm.list_models('ride_*', module=('ride_resnet', 'ride_resnet_cifar'))) == sorted(ARCHITECTURES)
    assert sorted(timm.list_models('test_ride_*')) == TINY
    ours = {name for module in timm.list_modules() if 'ride' in module for name in timm.list_models(module=module)}
    on_timm = {f'ride_{name.partition(".")[0]}_{k}e' for name in BACKBONES for k in (2, 3)}
    assert ours == {*ARCHITECTURES, *TINY, 'ride', *on_timm}
    assert len(on_timm) == 64


@pytest.mark.parametrize('architecture', [*ARCHITECTURES, *TINY])
def test_pretrained_cfgs(architecture):
    cfg = timm.get_pretrained_cfg(architecture, allow_unregistered=False)
    num_experts = int(architecture.rpartition('_')[2].removesuffix('e'))
    assert list(cfg.classifier) == [f'experts.{k}.fc' for k in range(num_experts)]
    assert (cfg.license, cfg.paper_ids) == ('apache-2.0', 'arXiv:2010.01809')


def test_no_side_effects(seen):
    expected = {'network': [], 'settings': True, 'random states': True, 'cuda': False}
    assert {key: seen[key] for key in expected} == expected


def test_import_adds_the_networks_and_no_other_package(seen):
    """How long it takes is measured by `benchmarks/startup.py`."""
    assert {name.partition('.')[0] for name in seen['modules']} <= {'ride_timm', 'timm'}
    parts = {name.split('.')[1] for name in seen['modules'] if name.startswith('ride_timm.')}
    assert 'models' in parts
    assert not parts & {'commands', 'data', 'engine', 'evaluation', 'inference', 'losses', 'pages', 'tasks', 'training'}


def test_public_names():
    values = {name: getattr(ride_timm, name) for name in ride_timm.__all__}
    assert set(ride_timm.__all__) <= set(dir(ride_timm))
    assert len(values) == len(ride_timm.__all__)
    names = {name for name, value in vars(ride_timm).items() if not isinstance(value, types.ModuleType)}
    assert {name for name in names if not name.startswith('_')} <= set(values)
    with pytest.raises(AttributeError, match='no_such_name'):
        ride_timm.no_such_name  # noqa: B018


@pytest.mark.parametrize('name', ['ride_timm', *MODULES])
def test_modules(name):
    module = importlib.import_module(name)
    missing = [public for public in getattr(module, '__all__', []) if not hasattr(module, public)]
    assert not missing
