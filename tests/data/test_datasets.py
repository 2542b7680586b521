import logging
import struct

import numpy as np
import pytest
from PIL import Image

from ride_timm.data import open_eval_split, open_train_split
from ride_timm.errors import RideError


def labels_by_name(split):
    """{class folder: labels that its images got}, from the file names alone."""
    found = {}
    for index in range(len(split.dataset)):
        folder = split.dataset.filename(index).split('/')[-2]
        found.setdefault(folder, set()).add(split.dataset[index][1])
    return found


def test_train_split_of_a_folder(make_folder):
    split = open_train_split(make_folder({'train': {'dog': 3, 'ant': 1}}))
    assert split.class_names == ('ant', 'dog')
    assert split.num_classes == 2
    assert split.class_counts.tolist() == [1, 3]
    assert split.targets.dtype == np.int64
    assert split.targets.tolist() == [split.dataset[i][1] for i in range(4)]
    assert labels_by_name(split) == {'ant': {0}, 'dog': {1}}
    assert split.source.endswith('train')


def test_class_folders_may_be_given_directly(make_folder):
    root = make_folder({'train': {'a': 1, 'b': 1}, 'other': {'b': 1}})
    assert open_train_split(root / 'train').class_names == ('a', 'b')
    assert open_eval_split(root / 'other', class_names=('a', 'b')).targets.tolist() == [1]


def test_numbered_folders_sort_by_number(make_folder):
    names = tuple(str(n) for n in range(12))
    assert open_train_split(make_folder({'train': dict.fromkeys(names, 1)})).class_names == names


def test_names_that_sort_alike_have_a_fixed_order(make_folder):
    split = open_train_split(make_folder({'train': {'1': 1, '01': 1, 'cat': 1, 'Cat': 1}}))
    assert split.class_names == ('01', '1', 'Cat', 'cat')


@pytest.mark.parametrize('absent', ['a', 'b', 'c'])
def test_class_missing_in_validation_shifts_no_label(make_folder, absent):
    val = {name: 2 for name in 'abc' if name != absent}
    root = make_folder({'train': {'a': 1, 'b': 1, 'c': 1}, 'val': val})
    train = open_train_split(root)
    split = open_eval_split(root, class_names=train.class_names)
    assert labels_by_name(split) == {name: {'abc'.index(name)} for name in val}
    assert split.class_counts['abc'.index(absent)] == 0


def test_labels_follow_given_names_in_any_order(make_folder):
    root = make_folder({'train': {'a': 1, 'b': 2}, 'val': {'a': 1, 'b': 1}})
    assert labels_by_name(open_train_split(root, class_names=('b', 'a'))) == {'b': {0}, 'a': {1}}
    assert labels_by_name(open_eval_split(root, class_names=('b', 'a'))) == {'b': {0}, 'a': {1}}


def test_validation_class_that_training_lacks(make_folder):
    root = make_folder({'train': {'apple': 1, 'pear': 1}, 'val': {'apple': 1, 'apples': 1, 'x': 1}})
    with pytest.raises(RideError, match=r'"apples" and 1 more.*2 classes.*did you mean apple.*rename or remove'):
        open_eval_split(root, class_names=('apple', 'pear'))


def test_training_set_without_an_expected_class(make_folder):
    root = make_folder({'train': {'a': 1, 'b': 1}})
    with pytest.raises(RideError, match='lacks 1 of the 3 expected classes, first "c"'):
        open_train_split(root, class_names='abc')


def test_empty_class_folder_in_training(make_folder):
    root = make_folder({'train': {'a': 1, 'b': 0}})
    with pytest.raises(RideError, match=r'class folder .*train/b holds no image; add images of it, or remove'):
        open_train_split(root)


def test_empty_class_folder_in_validation_is_a_class_without_images(make_folder):
    root = make_folder({'train': {'a': 1, 'b': 1}, 'val': {'a': 2, 'b': 0}})
    assert open_eval_split(root, class_names=('a', 'b')).class_counts.tolist() == [2, 0]


@pytest.mark.parametrize('folder', ['val', 'validation', 'valid', 'eval', 'test'])
def test_names_of_the_validation_folder(make_folder, folder):
    root = make_folder({'training': {'a': 1}, folder: {'a': 2}})
    assert len(open_eval_split(root, class_names=('a',)).dataset) == 2
    assert len(open_train_split(root).dataset) == 1


def test_training_images_are_never_evaluated_by_accident(make_folder):
    root = make_folder({'train': {'a': 1}})
    for split in ('val', 'test'):
        with pytest.raises(RideError, match=f'training folder but none for evaluation; add one named {split}'):
            open_eval_split(root, class_names=('a',), split=split)


def test_missing_folder(tmp_path):
    with pytest.raises(RideError, match=r'nowhere does not exist; give a folder with train/<class>/<image>'):
        open_train_split(tmp_path / 'nowhere')
    (tmp_path / 'file').touch()
    with pytest.raises(RideError, match='is not a folder'):
        open_train_split(tmp_path / 'file')


def test_no_images_at_all(make_folder):
    with pytest.raises(RideError, match=r'No image in .*train; put images \(.jpg, .png, '):
        open_train_split(make_folder({'train': {'a': 0, 'b': 0}}))


def test_images_outside_class_folders(make_folder):
    root = make_folder({'train': {'a': 1}})
    Image.new('RGB', (4, 4)).save(root / 'train/loose.png')
    with pytest.raises(RideError, match=r'loose.png lies without a class folder'):
        open_train_split(root)


def test_nested_class_folders(make_folder):
    root = make_folder({'train': {'a/x': 1, 'b/x': 1}})
    with pytest.raises(RideError, match=r'a/x/0.png lies more than one folder deep'):
        open_train_split(root)


def test_hidden_files_and_folders_are_passed_over(make_folder):
    root = make_folder({'train': {'a': 1, '.ipynb_checkpoints': 2, 'a/.cache': 1}})
    (root / 'train/a/._0.png').write_bytes(b'resource fork')
    split = open_train_split(root)
    assert split.class_names == ('a',)
    assert len(split.dataset) == 1


def test_images_of_types_that_pillow_does_not_read_are_reported(make_folder, caplog):
    root = make_folder({'train': {'a': 1}})
    (root / 'train/a/x.svg').touch()
    with caplog.at_level(logging.WARNING):
        assert len(open_train_split(root).dataset) == 1
    assert 'x.svg' in caplog.text


def test_reading_as_grey(make_folder):
    root = make_folder({'train': {'a': 1}})
    assert open_train_split(root, in_chans=1).dataset[0][0].mode == 'L'
    with pytest.raises(RideError, match=r'0.png.*--in-chans'):
        open_train_split(root, in_chans=2).dataset[0]


def test_long_tailed_cut_of_a_folder(make_folder):
    root = make_folder({'train': dict.fromkeys('abc', 9)})
    split = open_train_split(root, imb_factor=9)
    assert split.class_counts.tolist() == [9, 3, 1]
    assert labels_by_name(split) == {'a': {0}, 'b': {1}, 'c': {2}}
    assert split.source.endswith('cut to imbalance factor 9')


def test_cut_that_does_not_fit(make_folder):
    root = make_folder({'train': {'a': 4, 'b': 4}})
    with pytest.raises(RideError, match=r'leaves 1 classes .* first "b"; use at most 4'):
        open_train_split(root, imb_factor=100)
    with pytest.raises(RideError, match=r'at least 1, not 0\.01'):
        open_train_split(root, imb_factor=0.01)
    tail = make_folder({'tail': {'a': 9, 'b': 3}})
    with pytest.raises(RideError, match=r'already imbalanced .* 3\).*drop --imb-factor'):
        open_train_split(tail / 'tail', imb_factor=2)


def write_mnist(root, split, labels):
    """Tiny files in MNIST's format; image i is filled with the value 10 i."""
    raw = root / 'MNIST/raw'
    raw.mkdir(parents=True, exist_ok=True)
    n = len(labels)
    pixels = np.repeat(10 * np.arange(n, dtype=np.uint8), 28 * 28)
    (raw / f'{split}-images-idx3-ubyte').write_bytes(struct.pack('>4I', 2051, n, 28, 28) + pixels.tobytes())
    (raw / f'{split}-labels-idx1-ubyte').write_bytes(struct.pack('>2I', 2049, n) + bytes(labels))


@pytest.fixture
def mnist(tmp_path):
    write_mnist(tmp_path, 'train', [*range(10), *range(10)])
    write_mnist(tmp_path, 't10k', [3, 1])
    return tmp_path


def test_torchvision_data_set(mnist):
    train = open_train_split(mnist, 'torch/mnist')
    assert train.class_names[:2] == ('0 - zero', '1 - one')
    assert train.class_counts.tolist() == [2] * 10
    image, label = train.dataset[11]
    assert (image.mode, image.getpixel((0, 0)), label) == ('RGB', (110, 110, 110), 1)
    split = open_eval_split(mnist, 'torch/mnist', class_names=train.class_names)
    assert split.targets.tolist() == [3, 1]
    assert split.source == 'torch/mnist (val)'


def test_torchvision_labels_follow_the_names(mnist):
    names = open_train_split(mnist, 'torch/mnist').class_names[::-1]
    assert open_eval_split(mnist, 'torch/mnist', class_names=names).targets.tolist() == [6, 8]
    with pytest.raises(RideError, match='has the class "0 - zero" and 9 more'):
        open_eval_split(mnist, 'torch/mnist', class_names=('a', 'b'))


def test_torchvision_cut(mnist):
    split = open_train_split(mnist, 'torch/mnist', imb_factor=2)
    assert split.class_counts.tolist() == [2, *[1] * 9]
    for index in range(len(split.dataset)):
        image, label = split.dataset[index]
        assert image.getpixel((0, 0))[0] // 10 % 10 == label == split.targets[index]


@pytest.mark.parametrize(
    ('name', 'message'),
    [
        ('torch/cifar100', r'torch/cifar100 \(train\) cannot be opened in .*pass --dataset-download'),
        ('torch/nothing', 'timm knows no data set torch/nothing'),
        ('tfds/cifar10', '"tfds/cifar10" is not supported'),
        ('cifar100', '"cifar100" is not supported'),
    ],
)
def test_data_sets_that_cannot_be_opened(tmp_path, name, message):
    with pytest.raises(RideError, match=message) as error:
        open_train_split(tmp_path, name)
    assert '\n' not in str(error.value)


def test_repeated_class_names_are_refused(make_folder):
    root = make_folder({'val': {'a': 1}})
    with pytest.raises(RideError, match='repeat'):
        open_eval_split(root, class_names=('a', 'a'))
