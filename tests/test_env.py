import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import ride_timm
from ride_timm import env
from ride_timm.errors import InstallationError

ROOT = Path(ride_timm.__file__).parents[1]
PAIR = 'pip install --upgrade --force-reinstall torch torchvision'


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these versions are installed, by pip, with these requirements."""

    def pretend(versions, requires):
        monkeypatch.setattr(env, 'installed_version', versions.get)
        monkeypatch.setattr(env, '_recorded_version', lambda name: (versions.get(name) or '').partition('+')[0] or None)
        monkeypatch.setattr(env, '_requirements', lambda name: [Requirement(text) for text in requires.get(name, [])])

    return pretend


OURS = {'ride-timm': ['torch>=2.11', 'torchvision>=0.26', 'timm<1.1,>=1.0.31', 'tqdm>=4.66']}
SOUND = {'torch': '2.13.0+cu130', 'torchvision': '0.28.0+cu130', 'timm': '1.0.31', 'tqdm': '4.67'}


@pytest.mark.parametrize(
    ('changed', 'pinned', 'text', 'repair'),
    [
        ({'torch': '2.13.0+cpu'}, 'torch==2.13.0', 'different builds', PAIR),
        ({'torch': '2.13.0+cu126'}, 'torch==2.13.0', 'different builds', PAIR),
        ({'torch': '2.14.0+cu130'}, 'torch==2.13.0', 'built for torch==2.13.0, not for 2.14.0+cu130', PAIR),
        ({'torch': '2.14.0+cu130'}, 'torch (>=2.15.0)', 'built for torch>=2.15.0', PAIR),
        ({'torch': '2.10.0+cu130'}, 'torch>=2.10', 'torch 2.10.0+cu130 is installed', PAIR),
        ({'timm': '1.0.30'}, 'torch', 'timm 1.0.30 is installed, and ride-timm needs timm', 'pip install --upgrade "t'),
        ({'timm': '1.1.0'}, 'torch', 'timm 1.1.0 is installed', 'pip install --upgrade "timm<1.1,>=1.0.31"'),
        ({'tqdm': None}, 'torch', 'tqdm is not installed', 'pip install "tqdm>=4.66"'),
        ({'torchvision': None}, 'torch', 'torchvision is not installed', 'pip install "torchvision>=0.26"'),
    ],
)
def test_one_problem_is_named_with_its_repair(installed, changed, pinned, text, repair):
    installed(SOUND | changed, OURS | {'torchvision': [pinned]})
    (problem,) = env.find_problems()
    assert text in problem.text
    assert problem.repair.startswith(repair)
    sentence = env.explain(RuntimeError('operator torchvision::nms does not exist'))
    assert text in sentence
    assert repair in sentence
    assert '\n' not in sentence


@pytest.mark.parametrize(
    'changed',
    [
        {},
        {'torch': '2.13.0+cpu', 'torchvision': '0.28.0+cpu'},
        {'torch': '2.13.0', 'torchvision': '0.28.0'},
        {'torch': '2.13.1+cu130'},
        {'torch': '2.13.0+cu130', 'torchvision': '0.28.0+cpu'},  # loads; its operators run on the CPU
        {'torch': '2.13.0+cu132', 'torchvision': '0.28.0+cu130'},  # one major version of CUDA
        {'torch': '2.13.0+rocm7.0', 'torchvision': '0.28.0+rocm7.0'},
        {'timm': '1.0.32.dev0'},
    ],
)
def test_sound_installations(installed, changed):
    installed(SOUND | changed, OURS | {'torchvision': ['torch>=2.13', 'numpy']})
    assert env.find_problems() == []
    # not the fault of the installation: the error is to be shown as it is
    assert env.explain(AttributeError('a mistake of ours')) is None


def test_a_timm_that_pip_did_not_install_is_located(installed, monkeypatch, tmp_path):
    installed(SOUND | {'timm': '1.0.29.dev0'}, OURS)
    monkeypatch.setattr(env, '_recorded_version', lambda name: '1.0.31')
    monkeypatch.setattr(env, '_folder', lambda name: tmp_path / name)
    (problem,) = env.find_problems()
    assert f'timm 1.0.29.dev0 is imported from {tmp_path / "timm"}' in problem.text
    assert f'another folder than {tmp_path}' in problem.repair


def test_installed_version_is_that_of_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(env, '_folder', lambda name: tmp_path)
    assert env.installed_version('timm') == env._recorded_version('timm')
    (tmp_path / 'version.py').write_text("cuda = '13.0'\n__version__ = '2.13.0+cu130'\n")
    assert env.installed_version('torch') == '2.13.0+cu130'
    assert env.installed_version('no-such-package') == '2.13.0+cu130'
    monkeypatch.setattr(env, '_folder', lambda name: None)
    assert env.installed_version('no-such-package') is None


def test_own_requirements_leave_extras_out():
    names = {need.name for need in env._requirements('ride-timm')}
    assert {'torch', 'torchvision', 'timm'} <= names
    assert 'pytest' not in names
    assert env._requirements('no-such-package') == []


def test_report(capsys, monkeypatch):
    import numpy
    import timm
    import torch

    found = env._try_imports()
    monkeypatch.setattr(env, '_try_imports', lambda: found)  # seconds each time
    assert env.main(['--json']) == 0
    report = json.loads(capsys.readouterr().out)
    assert report['problems'] == []
    assert report['ride_timm'] == ride_timm.__version__
    assert report['packages']['torch'] == torch.__version__
    assert report['packages']['timm'] == timm.__version__
    assert report['packages']['numpy'] == numpy.__version__
    assert report['cuda']['available'] == torch.cuda.is_available()
    assert report['cores'] >= 1
    assert env.main([]) == 0
    table = capsys.readouterr().out
    for value in (ride_timm.__version__, torch.__version__, timm.__version__, 'No problem found.'):
        assert value in table


def test_report_of_a_problem(installed, capsys, monkeypatch):
    monkeypatch.setattr(env, '_try_imports', lambda: ({'cuda': None, 'bf16_on_cpu': None}, None))
    installed(SOUND | {'torch': '2.13.0+cpu'}, {'torchvision': ['torch==2.13.0']})
    assert env.main([]) == 1
    assert f'different builds\n repair: {PAIR}' in capsys.readouterr().out
    assert env.main(['--json']) == 1
    (problem,) = json.loads(capsys.readouterr().out)['problems']
    assert problem['repair'] == PAIR


def python(*args, path, cwd):
    environ = {**os.environ, 'PYTHONPATH': os.pathsep.join([str(path), str(ROOT)])}
    return subprocess.run([sys.executable, *args], cwd=cwd, env=environ, capture_output=True, text=True)


@pytest.fixture
def broken(tmp_path):
    """A torchvision that fails as one of another build does."""
    package = tmp_path / 'stubs' / 'torchvision'
    package.mkdir(parents=True)
    (package / '__init__.py').write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    (package / 'version.py').write_text("__version__ = '0.28.0+cpu'\n")
    return tmp_path / 'stubs'


def test_import_of_a_broken_pair_is_one_sentence(broken, tmp_path):
    done = python('-c', 'import ride_timm, timm', path=broken, cwd=tmp_path)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert issubclass(InstallationError, ImportError)
    assert last.startswith('ride_timm.errors.InstallationError: torchvision 0.28.0+cpu cannot be imported')
    assert 'operator torchvision::nms does not exist' in last
    assert PAIR in last


def test_a_command_on_a_broken_pair_is_one_sentence(broken, tmp_path):
    done = python('-m', 'ride_timm.cli', 'predict', 'model', 'image', path=broken, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith('ride-timm predict: error: torchvision 0.28.0+cpu cannot be imported')
    assert PAIR in line


@pytest.mark.parametrize('start', ['module', 'command'])
def test_env_works_on_a_broken_pair(broken, tmp_path, start):
    script = tmp_path / 'ride-timm'  # as pip writes it
    script.write_text('import sys\nfrom ride_timm.cli import main\nsys.exit(main())\n')
    args = ['-m', 'ride_timm.env', '--json'] if start == 'module' else [str(script), 'env', '--json']
    done = python(*args, path=broken, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == ''
    report = json.loads(done.stdout)
    assert report['packages']['torchvision'] == '0.28.0+cpu'
    assert report['cuda'] is not None
    (problem,) = report['problems']
    assert 'torchvision::nms' in problem['text']
    assert problem['repair'] == PAIR


def test_an_old_timm_in_the_current_folder_is_named(tmp_path):
    package = tmp_path / 'timm'
    package.mkdir()
    (package / '__init__.py').write_text('')
    (package / 'version.py').write_text("__version__ = '0.9.16'\n")
    done = python('-c', 'import ride_timm, timm', path=tmp_path, cwd=tmp_path)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f'ride_timm.errors.InstallationError: timm 0.9.16 is imported from {package}')
