import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm

from ride_timm.commands import run
from ride_timm.errors import RideError

SCRIPT = """
import json, sys
import timm
from helper import VALUE
print(json.dumps([sys.argv, timm.list_models('ride_resnet32_*'), timm.__file__, VALUE, __name__, sys.path[0]]))
"""


def write_script(folder: Path, text: str = SCRIPT) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / 'helper.py').write_text('VALUE = 42\n')
    script = folder / 'script.py'
    script.write_text(text)
    return script


@pytest.fixture(autouse=True)
def forget_helper(monkeypatch):
    yield
    sys.modules.pop('helper', None)


def output(capsys) -> list:
    import json

    return json.loads(capsys.readouterr().out)


def test_script_sees_our_models_its_arguments_and_its_neighbours(tmp_path, capsys):
    script = write_script(tmp_path)
    before = list(sys.argv), list(sys.path)
    assert run.main([str(script), '--help', '--', '-x', 'a b']) == 0
    argv, models, timm_file, value, name, path = output(capsys)
    assert argv == [str(script), '--help', '--', '-x', 'a b']
    assert 'ride_resnet32_3e' in models
    assert timm_file == timm.__file__
    assert (value, name, path) == (42, '__main__', str(tmp_path))
    assert (sys.argv, sys.path) == before


def test_a_timm_beside_the_script_does_not_win(tmp_path, capsys):
    script = write_script(tmp_path, SCRIPT.replace('from helper import VALUE', 'VALUE = 0'))
    (tmp_path / 'timm').mkdir()
    (tmp_path / 'timm' / '__init__.py').write_text('raise SystemError("the wrong timm")\n')
    assert run.main([str(script)]) == 0
    _, _, timm_file, _, _, path = output(capsys)
    assert timm_file == timm.__file__
    assert path != str(tmp_path)


def test_in_a_fresh_interpreter(tmp_path):
    script = write_script(tmp_path / 'scripts', SCRIPT + 'sys.exit(7)\n')
    (tmp_path / 'scripts' / 'timm').mkdir()
    script.write_text(script.read_text().replace('from helper import VALUE', 'VALUE = 0'))
    (tmp_path / 'scripts' / 'timm' / '__init__.py').write_text('raise SystemError("the wrong timm")\n')
    root = str(Path(run.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, '-m', 'ride_timm', 'run', str(script), '--model', 'x'],
        cwd=tmp_path,
        env={**os.environ, 'PYTHONPATH': root},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7, done.stderr
    assert 'ride_resnet32_3e' in done.stdout
    assert '"--model", "x"' in done.stdout
    assert done.stderr == ''


@pytest.mark.parametrize('status', [0, 3, 'a message'])
def test_exit_status_passes_through(tmp_path, status):
    script = write_script(tmp_path, f'import sys\nsys.exit({status!r})\n')
    before = list(sys.argv), list(sys.path)
    with pytest.raises(SystemExit) as info:
        run.main([str(script)])
    assert info.value.code == status
    assert (sys.argv, sys.path) == before


def test_error_of_the_script_passes_through(tmp_path):
    script = write_script(tmp_path, 'raise ZeroDivisionError("its own")\n')
    with pytest.raises(ZeroDivisionError, match='its own'):
        run.main([str(script)])


def test_a_timm_of_the_current_folder_is_named(tmp_path, monkeypatch, capsys):
    script = write_script(tmp_path, 'pass\n')
    monkeypatch.chdir(Path(timm.__file__).parents[1])
    run.main([str(script)])
    assert f'timm {timm.__version__} is imported from' in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    run.main([str(script)])
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(('name', 'found'), [('missing.py', 'does not exist'), ('', 'is a folder')])
def test_no_script(tmp_path, name, found):
    with pytest.raises(RideError, match=found) as info:
        run.main([str(tmp_path / name), '--model', 'x'])
    assert '\n' not in str(info.value)


def test_without_a_script_the_usage_is_shown(capsys):
    with pytest.raises(SystemExit) as info:
        run.main([])
    assert info.value.code == 2
    assert 'SCRIPT' in capsys.readouterr().err
