"""What goes wrong with images of one's own: right labels, or one clear sentence."""

import os
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from ride_timm.data import (
    check_apart,
    check_images,
    find_unreadable,
    hold_out,
    open_eval_split,
    open_train_split,
    tell_copies,
)
from ride_timm.errors import RideError


def folder_of(split, index):
    return split.dataset.filename(index).split('/')[-2]


def test_numbers_as_folder_names_when_validation_lacks_some(make_folder):
    root = make_folder({'train': {'0': 1, '1': 1, '2': 1, '10': 2}, 'val': {'10': 2, '2': 1}})
    train = open_train_split(root)
    val = open_eval_split(root, class_names=train.class_names)
    assert train.class_names == ('0', '1', '2', '10')
    assert {folder_of(val, i): int(val.targets[i]) for i in range(3)} == {'2': 2, '10': 3}


def test_a_class_named_train_is_no_split(make_folder):
    """CIFAR-100 has such a class."""
    classes = {'maple': 2, 'train': 3, 'tulip': 1}
    root = make_folder({'train': classes, 'val': classes, 'flat': {'': 2}})
    for split in (open_train_split(root / 'val'), open_eval_split(root / 'val', class_names=tuple(classes))):
        assert split.class_names == ('maple', 'train', 'tulip')
        assert split.class_counts.tolist() == [2, 3, 1]
    assert len(open_train_split(root).targets) == 6
    (root / 'apart/train').mkdir(parents=True)
    (root / 'flat/0.png').rename(root / 'apart/train/0.png')
    for others in ((), ('val',)):
        for name in others:
            (root / 'apart' / name).mkdir()
        with pytest.raises(RideError, match='without a class folder'):
            open_train_split(root / 'apart')


def test_a_folder_named_by_a_digit_that_is_no_number(make_folder):
    root = make_folder({'train': {'²': 1, '10': 1, '2': 1}, 'val': {'²': 1}})
    split = open_train_split(root)
    assert split.class_names == ('2', '10', '²')
    assert [split.dataset.filename(row) for row in range(3)] == ['2/0.png', '10/0.png', '²/0.png']


@pytest.mark.parametrize('content', [b'', b'no image', b'\xff\xd8\xff\xe0\x00\x10JFIF'])
def test_unreadable_image_in_a_class_of_one(make_folder, content):
    root = make_folder({'train': {'a': 2, 'b': 1, 'c': 2}})
    (root / 'train/b/0.png').write_bytes(content)
    split = open_train_split(root)
    assert split.class_counts.tolist() == [2, 1, 2]
    with pytest.raises(RideError, match=r'1 of 5 images of .*train/b/0.png .*remove or replace'):
        check_images(split)
    for index in range(5):
        if folder_of(split, index) != 'b':
            assert split.dataset[index][1] == 'abc'.index(folder_of(split, index))
        else:
            with pytest.raises(RideError, match=r'train/b/0.png cannot be read'):
                split.dataset[index]


def test_a_class_of_one_is_trained_on_and_not_set_apart(make_folder):
    split = open_train_split(make_folder({'train': {'a': 6, 'b': 1}}))
    parts = hold_out(split, 0.5)
    assert parts.train.class_counts.tolist() == [3, 1]
    assert parts.held.class_counts.tolist() == [3, 0]


@pytest.mark.parametrize('kind', ['png', 'gif', 'webp', 'tiff'])
def test_the_first_frame_of_an_animation(tmp_path, kind):
    frames = [Image.new('RGB', (6, 6), (40 * n, 0, 0)) for n in range(4)]
    (tmp_path / 'x').mkdir()
    options = {'lossless': True} if kind == 'webp' else {}
    frames[1].save(tmp_path / f'x/moving.{kind}', save_all=True, append_images=frames[2:], **options)
    frames[3].save(tmp_path / 'x/still.png')
    list_file = tmp_path / 'list.txt'
    list_file.write_text(f'x/moving.{kind} moving\nx/still.png still\n')
    split = open_train_split(tmp_path, list_file=list_file)
    assert [split.dataset[index][1] for index in range(2)] == [0, 1]
    red = split.dataset[0][0].getpixel((3, 3))[0]
    assert abs(red - 40) <= 2


def test_huge_images(make_folder, monkeypatch):
    root = make_folder({'train': {'a': 1, 'b': 1}}, size=64)
    split = open_train_split(root)
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 64 * 64 // 2 - 1)  # Pillow's own limit is twice 89 million
    assert [why for _, why in find_unreadable(split)] == ['more than 4,094 pixels, which Pillow refuses'] * 2
    with pytest.raises(RideError, match=r'train/a/0.png \(more than 4,094 pixels, which Pillow refuses\)'):
        check_images(split)


def test_wide_and_tall_images_are_read(tmp_path):
    for name, size in (('a', (4000, 2)), ('b', (1, 3000))):
        (tmp_path / name).mkdir()
        Image.new('L', size, 7).save(tmp_path / name / 'x.png')
    split = open_train_split(tmp_path)
    assert [split.dataset[i][0].size for i in range(2)] == [(4000, 2), (1, 3000)]


@pytest.mark.parametrize(
    ('pixels', 'reason'),
    [
        (np.array([[0, 256, 65535]], dtype=np.uint16), None),
        (np.array([[0, 128, 255]], dtype=np.int32), 'its pixels are 32-bit integers'),
        (np.array([[0, 65535, 70000]], dtype=np.int32), 'its pixels are 32-bit integers; save it with 8 or 16 bits'),
        (np.array([[-1, 0, 7]], dtype=np.int32), 'its pixels are 32-bit integers'),
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float32), 'its pixels are floating-point numbers'),
    ],
)
def test_more_than_16_bits_are_no_black_or_white_image(tmp_path, pixels, reason):
    (tmp_path / 'a').mkdir()
    Image.fromarray(pixels).save(tmp_path / 'a/x.tiff')
    (tmp_path / 'list').write_text('a/x.tiff y\n')
    images = open_train_split(tmp_path, list_file=tmp_path / 'list', in_chans=1).dataset
    if reason is None:
        assert np.asarray(images[0][0]).tolist() == [[0, 1, 255]]
    else:
        with pytest.raises(RideError, match=rf'x\.tiff .*{reason}'):
            images[0]


@pytest.mark.parametrize('name', ['great white', 'a, b', '<script>alert(1)<', 'größe', '猫', 'a=b', "it's", '$x$'])
def test_names_of_classes(make_folder, name):
    root = make_folder({'train': {'m': 1, name: 1}, 'val': {name: 2}})
    train = open_train_split(root)
    assert set(train.class_names) == {'m', name}
    val = open_eval_split(root, class_names=train.class_names)
    assert [train.class_names[val.dataset[i][1]] for i in range(2)] == [name, name]


def test_a_class_name_that_is_no_text(make_folder):
    root = make_folder({'train': {'a': 1, 'b': 1}})
    (root / 'train/b').rename(root / 'train' / os.fsdecode(b'caf\xe9'))
    with pytest.raises(RideError, match=r'class name "caf\\udce9" of .*train is not in UTF-8; rename it') as error:
        open_train_split(root)
    str(error.value).encode()


def test_the_same_folder_on_both_sides(make_folder):
    root = make_folder({'train': {'a': 2, 'b': 1}})
    (root / 'val').symlink_to(root / 'train', target_is_directory=True)
    train = open_train_split(root)
    with pytest.raises(RideError, match=r'All 3 evaluation images \(.*val\) are training images too, first .*a/0.png'):
        check_apart(train, open_eval_split(root, class_names=train.class_names))


def test_a_shared_class_folder(make_folder):
    root = make_folder({'train': {'a': 2, 'b': 1}, 'val': {'a': 3}})
    (root / 'val/b').symlink_to(root / 'train/b', target_is_directory=True)
    train = open_train_split(root)
    with pytest.raises(RideError, match=r'1 of the 4 evaluation images .*train/b/0.png'):
        check_apart(train, open_eval_split(root, class_names=train.class_names))


def test_separate_images_pass(make_folder):
    root = make_folder({'train': {'a': 2, 'b': 1}, 'val': {'a': 2, 'b': 1}})
    train = open_train_split(root)
    check_apart(train, open_eval_split(root, class_names=train.class_names))
    parts = hold_out(train, 0.5)
    check_apart(parts.train, parts.held)


def test_copies_on_both_sides_and_under_two_classes_are_spoken_of(make_folder, caplog):
    root = make_folder({'train': {'a': 3, 'b': 2}, 'val': {'a': 2, 'b': 2}})
    train = open_train_split(root)
    tell_copies(train, open_eval_split(root, class_names=train.class_names))
    assert not caplog.records
    shutil.copy(root / 'train/a/0.png', root / 'val/a/copy.png')
    (root / 'val/b/link.png').symlink_to(root / 'train/b/1.png')
    shutil.copy(root / 'train/a/2.png', root / 'train/b/copy.png')
    train = open_train_split(root)
    val = open_eval_split(root, class_names=train.class_names)
    check_apart(train, val)
    tell_copies(train, val)
    sides, classes = (record.getMessage() for record in caplog.records)
    assert '2 of the 6 evaluation images are training images too, which inflates the accuracy' in sides
    assert 'train/a/0.png = ' in sides
    assert 'val/a/copy.png; ' in sides
    assert 'The same file is in different classes, first ' in classes
    assert 'train/b/copy.png; ' in classes


@pytest.mark.parametrize('known', [None, 'train'])
def test_a_class_name_in_another_unicode_form(make_folder, known):
    """A folder that was unpacked from a Mac's archive looks the same and is named by other characters."""
    apart = unicodedata.normalize('NFD', 'größe')
    root = make_folder({'train': {'a': 1, 'größe': 2}, 'val': {'a': 1, apart: 3}})
    train = open_train_split(root)
    if known is None:
        val = open_eval_split(root, class_names=train.class_names)
    else:
        val = open_train_split(root, split='val', class_names=train.class_names)
    assert val.class_names == ('a', 'größe')
    assert {folder_of(val, i): int(val.targets[i]) for i in range(4)} == {'a': 0, apart: 1}
    both = make_folder({'train': {'a': 1, 'größe': 2, apart: 1}})
    train = open_train_split(both)
    assert {folder_of(train, i): train.class_names[train.targets[i]] for i in range(4)} == {
        name: name for name in ('a', 'größe', apart)
    }


@pytest.mark.parametrize('split', ['train', 'val'])
def test_images_of_types_that_pillow_does_not_read(make_folder, split):
    root = make_folder({'train': {'a': 2, 'b': 1}, 'val': {'a': 1, 'b': 1}})
    for path in (root / split).glob('*/*'):
        path.rename(path.with_suffix('.svg'))
    number = 3 if split == 'train' else 2
    with pytest.raises(RideError, match=rf'No image in .*{split}, and {number} of types .* first .*\.svg'):
        if split == 'train':
            open_train_split(root)
        else:
            open_eval_split(root, class_names=('a', 'b'))


def test_splits_under_names_of_their_own(make_folder):
    root = make_folder({'Train': {'a': 2, 'b': 1}, 'Test': {'a': 1, 'b': 1}})
    with pytest.raises(RideError, match=r'one folder deep; .* or name the folders of classes with --train-split'):
        open_train_split(root)
    assert open_train_split(root, split='Train').class_counts.tolist() == [2, 1]


def test_nothing_can_be_set_apart_of_classes_of_one(make_folder):
    split = open_train_split(make_folder({'train': {'a': 1, 'b': 1}}))
    with pytest.raises(RideError, match=r'0.5 of .* holds out no image, as every class has a single one, .*add images'):
        hold_out(split, 0.5)


def test_the_same_torchvision_images_on_both_sides(make_folder):
    root = make_folder({'train': {'a': 2, 'b': 1}, 'val': {'a': 1, 'b': 1}})
    train = open_train_split(root / 'train', 'torch/image_folder')
    same = open_eval_split(root / 'train', 'torch/image_folder', class_names=train.class_names)
    with pytest.raises(RideError, match=r'All 3 evaluation images .* are training images too, first .*train/a/0.png'):
        check_apart(train, same)
    val = open_eval_split(root, 'torch/image_folder', class_names=train.class_names)
    check_apart(train, val)
    parts = hold_out(train, 0.5)
    check_apart(parts.train, parts.held)


def test_a_link_that_leads_nowhere(make_folder):
    root = make_folder({'train': {'a': 2, 'b': 1}})
    (root / 'train/a/0.png').unlink()
    (root / 'train/a/0.png').symlink_to('nowhere')
    with pytest.raises(RideError, match=r'train/a/0.png \(No such file or directory\); remove'):
        check_images(open_train_split(root))
