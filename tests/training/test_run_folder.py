"""One training at a time in a folder, whichever way the others end; and which folders and files are a run's."""

import errno
import os
import shutil
import signal
import time

import pytest
import torch
from crash_tools import finish, load, options, run_command, run_ranks, start, wait_for
from tiny_runs import write_images

from ride_timm.errors import RideError
from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.training import run_folder
from ride_timm.training.run_folder import checkpoints_in, locked
from ride_timm.training.saver import RunSaver


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    output = tmp_path_factory.mktemp('trained')
    assert run_command(options(data, output, 'run', '--epochs', '2', '--checkpoint-hist', '2')) == 0
    return output / 'run'


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != 'run.lock'}


def hold(folder, forks=False):
    """In a child: lock a folder and stay, with a further process as the loading of images starts them."""
    with locked(folder):
        if forks and os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        (folder.parent / 'holds').touch()
        time.sleep(60)


def holder(folder, *args):
    child = start(hold, folder, *args, log=folder.parent / 'log')
    wait_for((folder.parent / 'holds').exists)
    return child


def test_a_second_training_is_refused_until_the_first_is_gone(data, trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / 'run')
    before = contents(run)
    child = holder(run, True)
    for resume in ('auto', ''):
        assert run_command(options(data, tmp_path, 'run', '--epochs', '3', '--resume', resume)) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if 'error:' in line]
        assert len(said) == 1
        assert str(child.pid) in said[0]
    assert contents(run) == before
    child.kill()  # and leaves a process behind that was forked while it had the lock
    assert finish(child) == -signal.SIGKILL
    assert (run / 'run.lock').exists()
    assert run_command(options(data, tmp_path, 'run', '--epochs', '3')) == 0
    assert load(run / 'last.pth.tar')['epoch'] == 2
    assert not (run / 'run.lock').exists()


def test_two_processes_are_refused_as_one_is(data, tmp_path):
    child = holder(tmp_path / 'run')
    try:
        assert run_ranks(run_command, options(data, tmp_path, 'run', '-b', '4'), folder=tmp_path) == [2, 2]
    finally:
        child.kill()
    assert str(child.pid) in (tmp_path / 'rank0.log').read_text()
    assert 'The saving process failed' in (tmp_path / 'rank1.log').read_text()
    assert 'Traceback' not in (tmp_path / 'rank0.log').read_text() + (tmp_path / 'rank1.log').read_text()


def contend(folder, end):
    """In a child: lock and free the folder again and again; alone with it while it is locked."""
    held = 0
    while time.monotonic() < end:
        try:
            with locked(folder):
                alone = os.open(folder / 'alone', os.O_CREAT | os.O_EXCL)  # fails where another one is inside
                os.close(alone)
                (folder / 'alone').unlink()
                held += 1
        except RideError:
            pass
    return 0 if held else 3


def test_no_two_have_the_lock_at_once(tmp_path):
    end = time.monotonic() + 1.5
    children = [start(contend, tmp_path / 'run', end, log=tmp_path / 'log') for _ in range(3)]
    assert [finish(child) for child in children] == [0, 0, 0], (tmp_path / 'log').read_text()


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch, caplog, number):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_folder.fcntl, 'lockf', refuse)
    with locked(tmp_path / 'run'):
        assert str(tmp_path / 'run') in caplog.text


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'precious').write_text('precious')
    (tmp_path / 'run/run.lock').symlink_to(tmp_path / 'precious')
    with pytest.raises(RideError, match='cannot be written'), locked(tmp_path / 'run'):
        pass
    assert (tmp_path / 'precious').read_text() == 'precious'


@pytest.mark.parametrize('error', [RideError('x'), KeyboardInterrupt(), OSError(5, 'x')], ids=lambda error: type(error))
def test_errors_free_the_folder(tmp_path, error):
    with pytest.raises(type(error)), locked(tmp_path / 'new'):
        raise error
    assert not (tmp_path / 'new').exists()  # nothing was in it
    (tmp_path / 'own').mkdir()
    with pytest.raises(type(error)), locked(tmp_path / 'own'):
        raise error
    assert list((tmp_path / 'own').iterdir()) == []


@pytest.mark.parametrize('name', ['..', '.', 'a/../../b', '/ABSOLUTE'])
def test_an_experiment_is_a_folder_inside_of_output(data, tmp_path, capsys, name):
    output = tmp_path / 'output'
    name = name.replace('/ABSOLUTE', str(tmp_path / 'b'))
    assert run_command(options(data, output, name)) == 2
    assert f'--experiment {name}' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_experiment_may_have_folders_of_its_own(data, tmp_path):
    assert run_command(options(data, tmp_path, 'group/run', '--epochs', '1')) == 0
    assert load(tmp_path / 'group/run/last.pth.tar')['epoch'] == 0


def test_an_exported_network_is_not_trained_over(data, tmp_path, capsys):
    (tmp_path / 'exported').mkdir()
    for name in ('config.json', 'results.json'):
        (tmp_path / 'exported' / name).write_text('{}')
    assert run_command(options(data, tmp_path, 'exported')) == 2
    assert '--experiment' in capsys.readouterr().err
    assert contents(tmp_path / 'exported') == {'config.json': b'{}', 'results.json': b'{}'}


def test_an_output_that_is_a_link_or_no_folder(data, tmp_path, capsys):
    (tmp_path / 'real').mkdir()
    (tmp_path / 'link').symlink_to('real')
    assert run_command(options(data, tmp_path / 'link', 'run', '--epochs', '1')) == 0
    assert run_command(options(data, tmp_path / 'real', 'run', '--epochs', '2')) == 0
    assert load(tmp_path / 'link/run/last.pth.tar')['epoch'] == 1
    (tmp_path / 'file').touch()
    for place in (tmp_path / 'file', '/dev/null'):
        assert run_command(options(data, place, 'run')) == 2
        assert f'{place}/run' in capsys.readouterr().err


def test_what_counts_as_a_checkpoint_of_the_run(tmp_path):
    for name in ('last', 'model_best', 'checkpoint-2', 'checkpoint-10', 'checkpoint-x', 'checkpoint--1', 'tmp'):
        (tmp_path / f'{name}.pth.tar').touch()
    (tmp_path / 'checkpoint-3.pth.tar').mkdir()
    (tmp_path / 'checkpoint-4').mkdir()
    names = [path.name.removesuffix('.pth.tar') for path in checkpoints_in(tmp_path)]
    assert names == ['last', 'checkpoint-10', 'checkpoint-2', 'model_best']
    assert checkpoints_in(tmp_path / 'none') == []


FOREIGN = {
    'above': {'checkpoint_files': [('../precious.pth.tar', 9.0), ('checkpoint-0.pth.tar', 1.0)]},
    'absolute': {'checkpoint_files': [('PRECIOUS', 9.0)]},
    'through a folder': {'checkpoint_files': [('checkpoint-1.pth.tar/../../precious.pth.tar', 9.0)]},
    'another file': {'checkpoint_files': [('args.yaml', 9.0)]},
    'last': {'checkpoint_files': [('last.pth.tar', 9.0)]},
    'a line end': {'checkpoint_files': [('checkpoint-1.pth.tar\n', 9.0)]},
    'no name': {'checkpoint_files': [(b'checkpoint-0.pth.tar', 9.0)]},
    'no pair': {'checkpoint_files': ['checkpoint-0.pth.tar']},
    'no list': {'checkpoint_files': 'checkpoint-0.pth.tar'},
    'no rank': {'checkpoint_files': [('checkpoint-0.pth.tar', 'best')]},
    'best': {'best_epoch': '/../../precious', 'best_metric': 1.0},
    'pending': {'pending': ('/../../precious', None)},
    'many pending': {'pending': [1, 2, 3]},
    'no history': 'saver',
}


@pytest.mark.parametrize('saver', FOREIGN.values(), ids=FOREIGN.keys())
def test_a_checkpoint_has_no_file_of_others_removed(data, trained, tmp_path, capsys, saver):
    run = shutil.copytree(trained, tmp_path / 'run')
    precious = tmp_path / 'precious.pth.tar'
    precious.write_text('precious')
    state = load(run / 'last.pth.tar')
    if isinstance(saver, dict):
        saver = state['saver'] | saver
        if saver['checkpoint_files'] == [('PRECIOUS', 9.0)]:
            saver['checkpoint_files'] = [(str(precious), 9.0)]
    state['saver'] = saver
    (run / 'last.pth.tar').unlink()
    torch.save(state, run / 'last.pth.tar')
    before = contents(run)
    assert run_command(options(data, tmp_path, 'run', '--checkpoint-hist', '1')) == 2
    assert str(run / 'last.pth.tar') in capsys.readouterr().err
    assert contents(run) == before
    assert precious.read_text() == 'precious'


def test_the_saver_itself_takes_no_other_names(trained, tmp_path):
    shutil.copy(trained / 'last.pth.tar', tmp_path / 'last.pth.tar')
    state = read_checkpoint(tmp_path / 'last.pth.tar')['saver'] | {'checkpoint_files': [('../x', 1.0)] * 3}
    with pytest.raises(RideError, match=r'\.\./x'):
        RunSaver.restart(object.__new__(RunSaver), tmp_path / 'last.pth.tar', state)
