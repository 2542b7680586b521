import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import timm
import torch

import ride_timm
from ride_timm import installation
from ride_timm.commands import env
from ride_timm.errors import InstallationError

ROOT = Path(ride_timm.__file__).parents[1]
REPAIR = 'pip install --upgrade --force-reinstall torch torchvision timm'


@pytest.mark.parametrize(
    ('name', 'version', 'text'),
    [
        ('timm', '1.0.30', 'timm 1.0.30 is installed'),
        ('timm', '1.1.0', 'timm 1.1.0 is installed'),
        ('torch', '2.10.0+cu130', 'torch 2.10.0+cu130 is installed'),
        ('tqdm', None, 'tqdm is not installed'),
    ],
)
def test_a_requirement_that_is_not_met(monkeypatch, name, version, text):
    real = installation.version_of
    monkeypatch.setattr(installation, 'version_of', lambda asked: version if asked == name else real(asked))
    problem = installation.find_problem()
    assert problem.startswith(text)
    assert f'pip install --upgrade "{name}' in problem


def test_report(capsys):
    assert env.main(['--json']) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['problem'] is None
    assert report['ride_timm'] == ride_timm.__version__
    assert (report['torch'], report['timm']) == (metadata.version('torch'), timm.__version__)
    assert len(report['cuda_devices']) == torch.cuda.device_count()
    assert env.main([]) == 0
    assert timm.__version__ in capsys.readouterr().out


def python(*args, path, cwd):
    environ = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(path), str(ROOT)])}
    return subprocess.run([sys.executable, *args], cwd=cwd, env=environ, capture_output=True, text=True)


@pytest.fixture
def broken(tmp_path):
    """A torchvision that fails as one of another build does."""
    package = tmp_path / 'stubs' / 'torchvision'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    return tmp_path / 'stubs'


def test_import_of_a_broken_pair_is_one_sentence(broken, tmp_path):
    done = python('-c', 'import ride_timm, timm', path=broken, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert issubclass(InstallationError, ImportError)
    assert last.startswith('ride_timm.errors.InstallationError: torchvision')
    assert 'operator torchvision::nms does not exist' in last
    assert REPAIR in last


def test_a_command_on_a_broken_pair_is_one_sentence(broken, tmp_path):
    done = python('-m', 'ride_timm.cli', 'predict', 'model', 'image', path=broken, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith('ride-timm predict: error: torchvision')
    assert REPAIR in line


def test_env_works_on_a_broken_pair(broken, tmp_path):
    done = python('-m', 'ride_timm', 'env', '--json', path=broken, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr == ''
    problem = json.loads(done.stdout)['problem']
    assert 'torchvision::nms' in problem
    assert REPAIR in problem


def test_an_error_of_the_package_itself_is_shown_as_it_is(tmp_path):
    code = 'import sys\nsys.modules["ride_timm.models"] = None\nimport ride_timm, timm'
    done = python('-c', code, path=tmp_path, cwd=tmp_path)
    assert 'InstallationError' not in done.stderr
    assert 'ride_timm.models' in done.stderr.splitlines()[-1]
