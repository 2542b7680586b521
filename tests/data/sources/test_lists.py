import logging
import unicodedata

import numpy as np
import pytest
from PIL import Image

from ride_timm.data import hold_out, open_eval_split, open_train_split
from ride_timm.errors import RideError


@pytest.fixture
def root(make_folder):
    return make_folder({'images': {'a': 3, 'b': 2, 'c': 1}, 'more': {'a': 1, 'c': 1}})


def write(root, name, *lines):
    file = root / name
    file.write_bytes('\r\n'.join(lines).encode())
    return file


def train(root, *lines, **options):
    return open_train_split(root, list_file=write(root, 'train.txt', *lines), **options)


NUMBERED = ('images/a/0.png 0', 'images/c/0.png 2', 'images/b/0.png 1', 'images/a/1.png 0')


def pixel(path):
    return Image.open(path).convert('RGB').getpixel((0, 0))


def test_numbers_without_a_gap_keep_their_values(root):
    split = train(root, *NUMBERED)
    assert split.class_names == ('0', '1', '2')
    assert split.targets.tolist() == [0, 2, 1, 0]
    assert split.class_counts.tolist() == [2, 1, 1]
    assert split.dataset.filenames() == ['images/a/0.png', 'images/c/0.png', 'images/b/0.png', 'images/a/1.png']
    assert split.dataset.filename(1, absolute=True) == str(root / 'images/c/0.png')
    image, label = split.dataset[1]
    assert (image.getpixel((0, 0)), label) == (pixel(root / 'images/c/0.png'), 2)
    assert split.source == str(root / 'train.txt')


def test_more_than_ten_numbers_sort_by_number(make_folder):
    root = make_folder({'x': {'y': 12}})
    split = train(root, *(f'x/y/{n}.png {n}' for n in reversed(range(12))))
    assert split.class_names == tuple(map(str, range(12)))
    assert split.targets.tolist() == list(range(12))[::-1]


def test_paths_are_relative_to_the_data_folder_or_else_to_the_list(root):
    file = write(root, 'images/train.txt', 'a/0.png cat', 'b/0.png dog')
    assert open_train_split(None, list_file=file).targets.tolist() == [0, 1]
    assert open_train_split(root / 'images', list_file=file).class_names == ('cat', 'dog')
    absolute = write(root, 'train.txt', f'{root}/images/a/0.png cat')
    assert len(open_train_split(root / 'more', list_file=absolute).dataset) == 1


@pytest.mark.parametrize('absent', [0, 1, 2])
def test_class_missing_in_the_evaluation_list_shifts_no_label(root, absent):
    split = train(root, *NUMBERED)
    lines = [line for line in ('images/a/2.png 0', 'images/b/1.png 1', 'more/c/0.png 2') if line[-1] != str(absent)]
    val = open_eval_split(root, list_file=write(root, 'val.txt', *lines), class_names=split.class_names)
    assert val.targets.tolist() == [label for label in range(3) if label != absent]
    assert val.class_counts.tolist() == [int(label != absent) for label in range(3)]


def test_evaluation_label_that_training_lacks(root):
    with pytest.raises(RideError, match=r'val.txt has the class "7", which is not one of the 3 classes'):
        open_eval_split(root, list_file=write(root, 'val.txt', 'more/a/0.png 7'), class_names=('0', '1', '2'))


def test_labels_with_a_gap_are_names(root, caplog):
    with caplog.at_level(logging.INFO):
        split = train(root, 'images/a/0.png 0', 'images/b/0.png 1', 'images/c/0.png 3')
    assert split.class_names == ('0', '1', '3')
    assert 'are numbers up to 3 without 2; they are taken as the names of 3 classes' in caplog.text
    val = write(root, 'val.txt', 'more/c/0.png 3')
    assert open_eval_split(root, list_file=val, class_names=split.class_names).targets.tolist() == [2]


@pytest.mark.parametrize('labels', [('1', '2', '3'), ('a', 'b', 'c'), ('0', '1', '2')])
def test_no_gap_is_spoken_of(root, caplog, labels):
    with caplog.at_level(logging.INFO):
        train(root, *(f'images/{folder}/0.png {label}' for folder, label in zip('abc', labels, strict=True)))
    assert 'numbers' not in caplog.text


def test_written_differently_is_another_class(root):
    assert train(root, 'images/a/0.png 1', 'images/b/0.png 01').class_names == ('01', '1')


def test_class_names_for_numbers(root, caplog):
    names = write(root, 'names.txt', 'dog', 'ant', 'cow', 'bee')
    with caplog.at_level(logging.INFO):
        split = train(root, *NUMBERED, names_file=names)
    assert split.class_names == ('dog', 'ant', 'cow')
    assert split.targets.tolist() == [0, 2, 1, 0]
    assert '1 of the 4 class names have no image in' in caplog.text
    assert 'first "bee"' in caplog.text
    # a list of the same data that names its classes, and one that numbers them
    for line in ('more/a/0.png ant', 'more/a/0.png 1'):
        val = write(root, 'val.txt', line)
        assert open_eval_split(
            root, list_file=val, names_file=names, class_names=split.class_names
        ).targets.tolist() == [1]


@pytest.mark.parametrize(
    ('label', 'names', 'words'),
    [
        ('4', ('x', 'y'), r'The label "4" \(line 2 of .*train.txt\) is none of the 2 class names and no number from 0'),
        ('-1', ('x', 'y'), 'The label "-1"'),
        ('z', ('x', 'y'), 'The label "z"'),
        ('1', ('1', '0'), 'is a class name and also the number of the class "0"'),
    ],
)
def test_labels_that_the_names_do_not_explain(root, label, names, words):
    file = write(root, 'names.txt', *names)
    with pytest.raises(RideError, match=words):
        train(root, f'images/a/0.png {names[0]}', f'images/b/0.png {label}', names_file=file)


def test_missing_files_are_counted_and_the_first_named(root):
    with pytest.raises(
        RideError,
        match=r'2 of the 3 images of .*train.txt cannot be found, first .*/images/a/9.png \(line 2\); check the data '
        r'folder \(--data-dir\)',
    ):
        train(root, 'images/a/0.png 0', 'images/a/9.png 0', 'nowhere/x.png 1')
    with pytest.raises(RideError, match=r'An image of .* cannot be found'):
        train(root, 'images/a 0')  # a folder has no image's name
    with pytest.raises(RideError, match=r'The data folder .*nowhere of the list .* does not exist'):
        open_train_split(root / 'nowhere', list_file=write(root, 'train.txt', 'x.png 0'))


def test_slashes_and_unicode_forms_of_other_systems(root):
    decomposed = unicodedata.normalize('NFD', 'Bär')
    folder = root / 'images' / 'z'
    folder.mkdir()
    (root / 'images/a/0.png').rename(folder / f'{decomposed}.png')
    split = train(root, 'images\\b\\0.png dog', f'images/z/{unicodedata.normalize("NFC", "Bär")}.png bear')
    assert split.class_counts.tolist() == [1, 1]
    assert all(split.dataset.load(index) for index in range(2))


@pytest.mark.parametrize('name', ['my cat, 1.png', '<script>alert(1).png', 'größe.png', '猫.png'])
def test_names_with_blanks_commas_markup_and_other_letters(root, name):
    (root / 'images/a/0.png').rename(root / 'images/a' / name)
    split = train(root, f'images/a/{name} x', 'images/b/0.png y')
    assert (split.class_names, split.targets.tolist()) == (('x', 'y'), [0, 1])
    assert split.dataset.load(0).size == (8, 8)


def test_an_image_with_two_labels(root, caplog):
    with pytest.raises(RideError, match=r'gives the image ./images/a/0.png two labels, x on line 1 and y on line 3'):
        train(root, 'images/a/0.png x', 'images/b/0.png y', './images/a/0.png y')
    split = train(root, 'images/a/0.png x', 'images/b/0.png y', 'images/a/0.png x')
    assert split.class_counts.tolist() == [2, 1]
    assert '1 lines of' in caplog.text


def test_a_list_beside_a_folder(root):
    names = write(root, 'names.txt', 'b', 'a', 'c')
    split = train(root, *NUMBERED, names_file=names)
    val = open_eval_split(root, split='more', class_names=split.class_names)
    assert val.targets.tolist() == [1, 2]


def test_parts_of_a_list(root):
    split = train(root, *(f'images/a/{i}.png x' for i in range(3)), *(f'images/b/{i}.png y' for i in range(2)))
    parts = hold_out(split, 0.4, seed=0)
    assert parts.train.class_counts.tolist() == [2, 1]
    for part in parts[:2]:
        for index, target in enumerate(part.targets):
            assert part.dataset.filename(index).split('/')[1] == 'ab'[target]
            assert part.dataset[index][0].getpixel((0, 0)) == pixel(root / part.dataset.filename(index))


def test_an_unreadable_image_of_a_list(root):
    (root / 'images/c/0.png').write_bytes(b'no image')
    split = train(root, *NUMBERED)
    with pytest.raises(RideError, match=r'images/c/0.png cannot be read \(not an image'):
        split.dataset[1]


def test_lists_and_other_forms_exclude_each_other(root):
    with pytest.raises(RideError, match=r'The list .* and --dataset torch/cifar10 both say'):
        open_train_split(root, 'torch/cifar10', list_file=write(root, 'train.txt', *NUMBERED))
    with pytest.raises(RideError, match='--class-names is for lists, hfds and wds, and image folders name'):
        open_train_split(root / 'images', names_file=write(root, 'names.txt', 'a'))


def test_a_long_list_is_read_in_linear_time(root):
    lines = [f'images/a/{i % 3}.png {i % 3}' for i in range(3000)]
    split = train(root, *lines)
    assert np.bincount(split.targets).tolist() == [1000] * 3
