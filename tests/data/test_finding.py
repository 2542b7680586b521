"""Which image files a user means."""

import io
import os
import sys

import pytest

from ride_timm.data.finding import find_images


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Empty files: finding reads none."""
    monkeypatch.chdir(tmp_path)
    names = ['10.png', '2.PNG', 'b/1.jpg', 'a/10.jpeg', 'a/9.jpeg', 'a/²/x.png', '.hidden.png', '.thumbs/1.png']
    for name in [*names, 'notes.txt', 'a/img[1].png', "a b,c '<script>' é.png"]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


INSIDE = ['2.PNG', '10.png', "a b,c '<script>' é.png"]
BELOW = ['a/9.jpeg', 'a/10.jpeg', 'a/img[1].png', 'a/²/x.png', 'b/1.jpg']


def test_folders_are_searched_in_natural_order(folder):
    found = find_images(['.'])
    assert found.paths == [*INSIDE, *BELOW]
    assert found.problems == []
    assert find_images([str(folder)]).paths == [str(folder / name) for name in (*INSIDE, *BELOW)]


def test_files_come_in_the_order_given_and_of_any_type(folder):
    assert find_images(['b/1.jpg', 'notes.txt', '10.png']) == (['b/1.jpg', 'notes.txt', '10.png'], [])
    assert find_images(['.hidden.png']).paths == ['.hidden.png']


def test_each_file_counts_once(folder):
    found = find_images(['10.png', './10.png', str(folder / '10.png'), 'a/../10.png', '.', 'a'])
    assert found.paths[0] == '10.png'
    assert sorted(found.paths) == sorted([*INSIDE, *BELOW])


def test_globs_that_the_shell_left(folder):
    assert find_images(['*.png']).paths == ['10.png', "a b,c '<script>' é.png"]
    assert find_images(['a/*.jpeg']).paths == ['a/9.jpeg', 'a/10.jpeg']
    assert find_images([str(folder / 'a' / '?.jpeg')]).paths == [str(folder / 'a/9.jpeg')]
    assert find_images(['**/*.jpg']).paths == ['b/1.jpg']
    assert find_images(['?']).paths == BELOW  # the folders a and b
    assert find_images(['*.gif']) == ([], ['there is no image "*.gif" (No such file or directory)'])


def test_a_name_that_exists_is_no_glob(folder):
    assert find_images(['a/img[1].png']).paths == ['a/img[1].png']
    (folder / 'a/img1.png').touch()
    assert find_images(['a/img[1].png']).paths == ['a/img[1].png']


@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_a_list_on_standard_input(folder, end):
    lines = ["a b,c '<script>' é.png", '', '10.png', 'b', 'missing.png', '10.png']
    for mark in ('', '\ufeff'):
        found = find_images(['2.PNG', '-'], io.BytesIO((mark + end.join(lines)).encode()))
        assert found.paths == ['2.PNG', lines[0], '10.png', 'b/1.jpg']
        assert found.problems == ['there is no image "missing.png" (No such file or directory)']


def test_lines_of_a_list_are_no_globs(folder):
    (folder / 'a/img[1].png').unlink()
    (folder / 'a/img1.png').touch()
    found = find_images(['-'], io.BytesIO(b'a/img[1].png\n*.png\n-\n'))
    assert found.paths == []
    assert len(found.problems) == 3


def test_a_file_named_like_the_list(folder):
    (folder / '-').touch()
    assert find_images(['-']).paths == ['-']


@pytest.mark.skipif(sys.platform != 'linux', reason='file names are bytes on Linux alone')
def test_names_that_are_no_utf8(folder):
    name = b'caf\xe9.png'
    with open(name, 'wb'):  # noqa: PTH123  bytes
        pass
    assert os.fsdecode(name) in find_images(['.']).paths
    assert find_images(['-'], io.BytesIO(name + b'\n')).paths == [os.fsdecode(name)]


def test_what_is_not_there(folder):
    (folder / 'empty').mkdir()
    for name, wanted in [
        ('none.png', 'there is no image "none.png" (No such file or directory)'),
        ('', 'there is no image "" ('),
        ('zero\0byte', 'there is no image "zero\0byte" ('),
        ('x' * 5000, 'File name too long'),
        ('10.png/x', 'Not a directory'),
        ('empty', 'no image lies in the folder empty'),
        (os.devnull, f'{os.devnull} is neither a file nor a folder'),
    ]:
        paths, problems = find_images([name])
        assert paths == []
        assert len(problems) == 1
        assert wanted in problems[0]


def test_folders_that_may_not_be_read(folder, monkeypatch):
    scan = os.scandir

    def refuse(path):
        if str(path).endswith('b'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    found = find_images(['.'])
    assert found.paths == [*INSIDE, *BELOW[:-1]]
    assert found.problems == ['the folder ./b cannot be read (Permission denied)']


def test_links(folder):
    """Links to folders are followed, into each folder once; two links to a file are two images."""
    (folder / 'b/back').symlink_to(folder)
    (folder / 'b/again.jpg').symlink_to(folder / 'b/1.jpg')
    (folder / 'c').symlink_to(folder / 'b')
    assert find_images(['b']).paths[:2] == ['b/1.jpg', 'b/again.jpg']
    assert find_images(['.']).paths == [*INSIDE, *BELOW, 'b/again.jpg']
    assert find_images(['c/1.jpg', 'b/1.jpg']).paths == ['c/1.jpg']


def test_images_of_other_types_are_counted(folder, caplog):
    for name in ('x.svg', 'b/y.djvu'):
        (folder / name).touch()
    assert find_images(['.']).paths == [*INSIDE, *BELOW]
    assert '2 images in . are left out' in caplog.text
    assert find_images(['x.svg', '*.djvu', 'b/*.djvu']).paths == ['x.svg', 'b/y.djvu']
