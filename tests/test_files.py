"""Files that the user names: whole or not written, links and devices left as they are, one sentence where it fails."""

import os
import stat
import threading
from pathlib import Path

import pytest

from ride_timm.errors import RideError
from ride_timm.files import check_folder, check_writable, write_whole, writing


def test_text_and_bytes(tmp_path):
    write_whole(tmp_path / 'text', 'größe\r\n')
    write_whole(tmp_path / 'bytes', b'\x00\xff')
    assert (tmp_path / 'text').read_bytes() == 'größe\r\n'.encode()
    assert (tmp_path / 'bytes').read_bytes() == b'\x00\xff'
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize('before', ['old', None])
def test_a_link_stays_and_its_target_is_written(tmp_path, before):
    (tmp_path / 'folder').mkdir()
    target = tmp_path / 'folder/target'
    if before is not None:
        target.write_text(before)
    link = tmp_path / 'link'
    link.symlink_to('folder/target')
    check_writable(link, '--output')
    write_whole(link, 'new')
    assert link.is_symlink()
    assert target.read_text() == 'new'
    assert list(target.parent.iterdir()) == [target]


def test_a_pipe_is_written_into(tmp_path):
    pipe = tmp_path / 'pipe'
    os.mkfifo(pipe)
    found = []
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    check_writable(pipe, '--output')
    write_whole(pipe, 'new')
    reader.join(10)
    assert found == ['new']
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_into():
    check_writable('/dev/null', '--output')
    write_whole(Path('/dev/null'), 'new')
    assert stat.S_ISCHR(Path('/dev/null').stat().st_mode)


def test_standard_output_comes_in_order(capfd):
    print('before')
    write_whole(Path('/dev/stdout'), 'file\n')
    print('after')
    assert capfd.readouterr().out == 'before\nfile\nafter\n'


def test_permissions_stay(tmp_path):
    path = tmp_path / 'file'
    path.write_text('old')
    path.chmod(0o600)
    write_whole(path, 'new')
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_planted_link_is_not_followed(tmp_path):
    (tmp_path / 'precious').write_text('old')
    (tmp_path / 'file.tmp').symlink_to('precious')
    write_whole(tmp_path / 'file', 'new')
    assert (tmp_path / 'precious').read_text() == 'old'
    assert (tmp_path / 'file').read_text() == 'new'


def circle(folder):
    (folder / 'a').symlink_to('b')
    (folder / 'b').symlink_to('a')
    return folder / 'a'


REFUSED = {
    'a folder': (lambda folder: folder, 'cannot be written'),
    'no folder above': (lambda folder: folder / 'none/file', 'there is no folder'),
    'a long name': (lambda folder: folder / ('x' * 300), 'File name too long'),
    'a long path': (lambda folder: folder / ('x/' * 3000), 'File name too long'),
    'a circle of links': (circle, 'symbolic links'),
    'a file as a folder': (lambda folder: Path(__file__) / 'file', 'Not a directory'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refused_before_and_while_writing(tmp_path, case):
    make, wanted = REFUSED[case]
    path = make(tmp_path)
    with pytest.raises(RideError, match=wanted) as refused:
        check_writable(path, '--output')
    assert str(refused.value).startswith('--output ')
    assert len(str(refused.value)) < 600
    with pytest.raises(RideError, match='cannot be written'), writing(path, '--output'):
        write_whole(path, 'new')


def test_a_full_disk_names_option_and_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(RideError, match=r'--plot .*tail\.png'), writing(tmp_path / 'tail.png', '--plot'):
        write_whole(tmp_path / 'tail.png', b'new')
    assert list(tmp_path.iterdir()) == []


def test_without_permission(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    for refused in (tmp_path, tmp_path / 'file'):
        monkeypatch.setattr(os, 'access', lambda path, mode, refused=refused: Path(path) != refused)
        with pytest.raises(RideError, match='cannot be written'):
            check_writable(tmp_path / 'file', '--output')
    monkeypatch.setattr(os, 'access', lambda path, mode: False)
    with pytest.raises(RideError, match='cannot be written'):
        check_folder(tmp_path / 'new', '--output')


def test_folders(tmp_path):
    (tmp_path / 'file').touch()
    check_folder(tmp_path / 'several/new/ones', '--output')
    check_folder(tmp_path, '--output')
    assert [path.name for path in tmp_path.iterdir()] == ['file']
    for path in (tmp_path / 'file', tmp_path / 'file/folder'):
        with pytest.raises(RideError, match='file is not a folder'):
            check_folder(path, '--output')
    with pytest.raises(RideError, match='File name too long'):
        check_folder(tmp_path / ('x' * 300), '--output')
