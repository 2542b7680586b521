import logging
import os

import numpy as np
import pytest
from PIL import Image

from ride_timm.data import check_images, open_train_split
from ride_timm.data.finding import find_images
from ride_timm.data.images import image_types
from ride_timm.errors import RideError

FORMATS = {'.ppm': 'PPM', '.pgm': 'PPM', '.bmp': 'BMP', '.tif': 'TIFF', '.gif': 'GIF', '.webp': 'WEBP', '.JPG': 'JPEG'}


def test_every_type_that_pillow_reads_is_taken(make_folder):
    root = make_folder({'train': {'a': 1, 'b': 1}})
    for suffix, kind in FORMATS.items():
        Image.new('L' if suffix == '.pgm' else 'RGB', (8, 8)).save(root / f'train/a/x{suffix}', kind)
    split = open_train_split(root)
    assert split.class_counts.tolist() == [1 + len(FORMATS), 1]
    check_images(split)
    assert len(find_images([str(root / 'train/a')]).paths) == 1 + len(FORMATS)
    assert {suffix.lower() for suffix in FORMATS} <= set(image_types())


def test_what_archives_and_systems_leave_behind_is_no_class(make_folder):
    root = make_folder({'train': {'a': 2, 'b': 1, '__MACOSX': 1, '.git': 1, '@eaDir': 1}})
    (root / 'train/a/.DS_Store').touch()
    (root / 'train/a/Thumbs.db').touch()
    Image.new('L', (4, 4)).save(root / 'train/a/._0.png')
    split = open_train_split(root)
    assert split.class_names == ('a', 'b')
    assert split.class_counts.tolist() == [2, 1]
    assert len(find_images([str(root / 'train')]).paths) == 3


def test_links_in_circles_end(make_folder, caplog):
    root = make_folder({'train': {'a': 2, 'b': 1}})
    (root / 'train/a/up').symlink_to(root / 'train', target_is_directory=True)
    (root / 'train/a/self').symlink_to(root / 'train/a', target_is_directory=True)
    (root / 'train/loop').symlink_to(root, target_is_directory=True)
    with caplog.at_level(logging.WARNING):
        split = open_train_split(root)
    assert split.class_counts.tolist() == [2, 1]
    assert 'train/loop' in caplog.text


def test_a_class_may_be_a_link(make_folder):
    root = make_folder({'train': {'a': 2, 'b': 1}, 'elsewhere': {'c': 3}})
    (root / 'train/c').symlink_to(root / 'elsewhere/c', target_is_directory=True)
    assert open_train_split(root).class_counts.tolist() == [2, 1, 3]


@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='no named pipes here')
@pytest.mark.parametrize('kind', ['pipe', 'device'])
def test_what_is_no_file_is_neither_waited_for_nor_read(make_folder, kind):
    root = make_folder({'train': {'a': 2, 'b': 1}})
    special = root / 'train/a/x.png'
    if kind == 'pipe':
        os.mkfifo(special)
    else:
        special.symlink_to('/dev/zero')
    split = open_train_split(root)
    assert split.class_counts.tolist() == [3, 1]
    with pytest.raises(RideError, match=r'a/x\.png .*not a regular file'):
        check_images(split)
    (root / 'list.txt').write_text('train/a/0.png c\ntrain/a/x.png c\n')
    with pytest.raises(RideError, match=r'a/x\.png'):
        check_images(open_train_split(root, list_file=root / 'list.txt'))


def test_an_unreadable_class_folder_is_named(make_folder, monkeypatch):
    root = make_folder({'train': {'a': 2, 'b': 1}})
    scan = os.scandir

    def refuse(path):
        if str(path).endswith('train/b'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scan(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(RideError, match=r'train/b cannot be read \(Permission denied\)'):
        open_train_split(root)


@pytest.mark.parametrize('header', ['', 'image_id,sex,diagnosis,label\n'])
def test_ids_without_a_suffix_find_their_file(make_folder, header):
    root = make_folder({'images': {'all': 2}})
    (root / 'images/all/0.png').rename(root / 'images/ISIC_1.jpg')
    (root / 'images/all/1.png').rename(root / 'images/ISIC_2.tif')
    middle = ',f,mole' if header else ''
    (root / 'list.csv').write_text(header + f'ISIC_1{middle},x\nISIC_2{middle},y\n')
    split = open_train_split(root / 'images', list_file=root / 'list.csv')
    assert split.class_names == ('x', 'y')
    assert [np.asarray(split.dataset[row][0]).shape[2] for row in range(2)] == [3, 3]
