"""How a command ends that is stopped from outside: no traceback, and nothing that Python adds at its end."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ride_timm.cli import guarded, main


def test_a_reader_that_has_gone(monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, 'w') as out:  # which writes what is left when it closes, as at the end of a process
        monkeypatch.setattr(sys, 'stdout', out)
        assert main(['recipes']) == 1


def test_ctrl_c():
    def stopped():
        raise KeyboardInterrupt

    assert guarded('predict', stopped) == 130


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='no device that is always full')
@pytest.mark.parametrize('argv', [['recipes'], ['weights', '--help'], ['--help']], ids=' '.join)
def test_a_full_standard_output(argv):
    with Path('/dev/full').open('w') as full:
        done = subprocess.run(
            [sys.executable, '-m', 'ride_timm.cli', *argv], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert 'The output cannot be written (No space left on device)' in line


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ('error', 'wanted'),
    [
        (
            PermissionError(13, 'Permission denied', 'images/cat'),
            'images/cat cannot be read or written (Permission denied)',
        ),
        (FileNotFoundError(2, 'No such file', b'a\xff'), r'a\udcff cannot be read or written (No such file)'),
        (OSError(36, 'File name too long', 'x' * 5000), '(File name too long)'),
        (OSError(28, 'No space left on device'), 'The output cannot be written'),
        (MemoryError(), 'Out of memory'),
    ],
)
def test_what_the_system_refuses_is_one_sentence(error, wanted, capsys):
    assert guarded('train', raising(error)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith('ride-timm train: error: ')
    assert wanted in line
    assert len(line) < 500


@pytest.mark.parametrize('error', [KeyError('name'), OSError('of a library'), OSError(9, 'Bad file descriptor')])
def test_a_mistake_of_ours_keeps_its_traceback(error):
    with pytest.raises(type(error)):
        guarded('train', raising(error))


def test_letters_that_the_terminal_lacks(monkeypatch):
    shown = io.TextIOWrapper(io.BytesIO(), encoding='ascii')
    monkeypatch.setattr(sys, 'stdout', shown)
    assert guarded('export', lambda: print('größe') or 0) == 0
    assert shown.buffer.getvalue() == b'gr\\xf6\\xdfe\n'
