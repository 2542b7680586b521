"""`import ride_timm` registers the architectures whenever timm comes, and the command line starts without torch."""

import importlib
import importlib.util
import json
import subprocess
import sys

import pytest

import ride_timm
from ride_timm import registration
from ride_timm.errors import InstallationError


def run_python(program):
    done = subprocess.run([sys.executable, '-W', 'error', '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_commands_that_need_no_network_import_no_torch():
    program = """
import sys
from ride_timm.cli import main
lines = [['--help'], ['--version'], ['trian'], ['weights'], ['weights', '--json'], ['recipes'],
         ['recipes', 'cifar100lt_ride']]
statuses = [main(argv) for argv in lines]
print(statuses, sorted({'torch', 'torchvision', 'timm', 'numpy'} & sys.modules.keys()))
"""
    assert run_python(program).splitlines()[-1] == '[0, 0, 2, 0, 0, 0, 0] []'


def test_timm_imported_later_by_several_threads_at_once():
    program = """
import json, sys, threading
import ride_timm
before = 'torch' in sys.modules
found = []
def look():
    import timm
    found.append(timm.is_model('ride_resnet50_4e'))
threads = [threading.Thread(target=look) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
import timm
from ride_timm import losses, models
json.dump([before, found, timm.is_model('ride_resnet50_4e'), type(timm.__spec__.loader).__name__], sys.stdout)
"""
    assert json.loads(run_python(program)) == [False, [True] * 4, True, 'SourceFileLoader']


def test_a_part_of_ours_imported_first():
    program = 'from ride_timm.models.heads import CosineLinear\nimport timm\nprint(timm.is_model("ride_resnet50_4e"))'
    assert run_python(program) == 'True\n'


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A timm that is not imported yet; returns its file and the list of registrations."""
    (tmp_path / 'timm').mkdir()
    file = tmp_path / 'timm/__init__.py'
    file.write_text('executed = True\n')
    importlib.import_module('timm')  # the real one, which is there again after the test
    monkeypatch.delitem(sys.modules, 'timm')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, 'meta_path', list(sys.meta_path))
    registered = []
    monkeypatch.setattr(registration, '_register_now', lambda: registered.append(sys.modules['timm'].executed))
    return file, registered


def waiting():
    return sum(isinstance(finder, registration._Finder) for finder in sys.meta_path)


def test_registered_after_timm_and_nothing_stays(stub):
    _, registered = stub
    registration.register()
    registration.register()
    assert (registered, waiting()) == ([], 1)
    assert importlib.util.find_spec('timm') is not None  # looking is not importing
    assert (registered, waiting()) == ([], 1)
    timm = importlib.import_module('timm')
    assert (registered, waiting()) == ([True], 0)
    assert type(timm.__loader__).__module__ == type(timm.__spec__.loader).__module__ == '_frozen_importlib_external'
    importlib.reload(timm)
    assert registered == [True]


def test_registered_at_once_where_timm_is_there(stub):
    _, registered = stub
    importlib.import_module('timm')
    registration.register()
    assert (registered, waiting()) == ([True], 0)


def test_a_timm_that_fails_is_explained_each_time(stub, monkeypatch):
    file, registered = stub
    monkeypatch.setattr('ride_timm.installation.find_problem', lambda: 'torchvision is of another build')
    file.write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    registration.register()
    for _ in range(2):
        with pytest.raises(InstallationError, match='torchvision is of another build'):
            importlib.import_module('timm')
    assert (registered, waiting()) == ([], 1)


def test_no_timm_at_all(stub):
    file, _ = stub
    sys.path.remove(str(file.parents[1]))
    sys.meta_path[:] = []
    registration.register()
    with pytest.raises(ModuleNotFoundError, match="No module named 'timm'"):
        importlib.import_module('timm')


def test_a_mistake_of_ours_is_shown_as_it_is():
    with pytest.raises(AttributeError, match='ours'), registration.explained():
        raise AttributeError('ours')


def test_parts_are_attributes():
    assert {'data', 'evaluation', 'losses', 'models', 'tasks', 'from_pretrained'} <= set(ride_timm.__all__)
    assert set(ride_timm.__all__) <= set(dir(ride_timm))
    for name in ('data', 'evaluation', 'losses', 'models', 'tasks'):
        assert getattr(ride_timm, name) is importlib.import_module(f'ride_timm.{name}')
    with pytest.raises(AttributeError, match='no attribute'):
        _ = ride_timm.loses
