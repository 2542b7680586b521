import io
import sys

import numpy as np
import pytest
from PIL import Image

from ride_timm.data import guess_dataset, hold_out, open_eval_split, open_train_split
from ride_timm.errors import RideError

datasets = pytest.importorskip('datasets')


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)


def table(labels, names=None, image='image', label='label', start=0):
    """Rows whose image is filled with the value 10 (start + row)."""
    kind = (
        datasets.ClassLabel(names=names)
        if names
        else datasets.Value('string' if isinstance(labels[0], str) else 'int64')
    )
    features = datasets.Features({image: datasets.Image(), label: kind})
    images = [Image.new('RGB', (4, 4), (10 * (start + row),) * 3) for row in range(len(labels))]
    return datasets.Dataset.from_dict({image: images, label: labels}, features=features)


def parquet(folder, **splits):
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in splits.items():
        rows.to_parquet(folder / f'{name}-00000.parquet')
    return folder


NAMES = ['dog', 'ant', 'cow']


@pytest.fixture
def folder(tmp_path):
    return parquet(tmp_path / 'pets', train=table([0, 2, 1, 0], NAMES), validation=table([2, 0], NAMES, start=10))


def values(split):
    return [(split.dataset[i][0].getpixel((0, 0))[0], split.dataset[i][1]) for i in range(len(split.targets))]


def test_a_local_folder_of_parquet_files(folder):
    train = open_train_split(folder, 'hfds')
    assert train.class_names == ('dog', 'ant', 'cow')
    assert values(train) == [(0, 0), (10, 2), (20, 1), (30, 0)]
    assert train.source == f'hfds/{folder} (train)'
    assert train.dataset.filenames() == ['row 0', 'row 1', 'row 2', 'row 3']
    val = open_eval_split(folder, 'hfds', class_names=train.class_names)
    assert values(val) == [(100, 2), (110, 0)]
    assert val.source.endswith('(validation)')
    assert guess_dataset(folder) == 'hfds'


def test_by_path_with_a_cache(folder, tmp_path):
    train = open_train_split(tmp_path / 'there', f'hfds/{folder}')
    assert train.class_counts.tolist() == [2, 1, 1]
    assert (tmp_path / 'there').is_dir()
    assert open_train_split(None, f'hfds/{folder}', split='train[:2]').targets.tolist() == [0, 1]


@pytest.mark.parametrize('absent', [0, 1, 2])
def test_labels_follow_the_names(tmp_path, absent):
    """The same names in another order, and without the first, middle or last of them."""
    kept = [label for label in (0, 1, 2) if label != absent]
    train = open_train_split(parquet(tmp_path / 'x', train=table([0, 1, 2], NAMES)), 'hfds')
    other = parquet(tmp_path / 'y', test=table(kept, NAMES[::-1]))
    val = open_eval_split(other, 'hfds', class_names=train.class_names)
    assert [train.class_names[label] for label in val.targets] == [NAMES[::-1][label] for label in kept]


def test_a_declared_class_without_images_is_left_out(tmp_path, caplog):
    folder = parquet(tmp_path / 'x', train=table([0, 2], NAMES), test=table([2, 1], NAMES))
    with caplog.at_level('INFO'):
        train = open_train_split(folder, 'hfds')
    assert (train.class_names, train.targets.tolist()) == (('dog', 'cow'), [0, 1])
    assert '1 of the 3 class names have no image in' in caplog.text
    with pytest.raises(RideError, match='has the class "ant", which is not one of the 2 classes'):
        open_eval_split(folder, 'hfds', class_names=train.class_names)


@pytest.mark.parametrize('names', [['1', '2', '3'], ['1', '2', '10'], ['2', '0', '1']])
def test_declared_names_may_be_numbers(tmp_path, names):
    train = open_train_split(parquet(tmp_path / 'd', train=table([0, 2, 1, 0], names)), 'hfds')
    assert train.class_names == tuple(names)
    assert train.targets.tolist() == [0, 2, 1, 0]


def test_names_of_the_data_leave_no_room_for_others(folder, tmp_path):
    (tmp_path / 'names').write_text('x\ny\nz\n')
    with pytest.raises(RideError, match=r'--class-names is for labels that are numbers, and hfds/.* names its classes'):
        open_train_split(folder, 'hfds', names_file=tmp_path / 'names')


@pytest.mark.parametrize(('labels', 'names'), [(['b', 'a', 'b'], ('a', 'b')), ([10, 2, 10], ('2', '10'))])
def test_labels_without_declared_names(tmp_path, labels, names):
    train = open_train_split(parquet(tmp_path / 'x', train=table(labels)), 'hfds')
    assert (train.class_names, train.targets.tolist()) == (names, [1, 0, 1])
    (tmp_path / 'names').write_text('zero\none\ntwo\n')
    if names[0] == '2':
        with pytest.raises(RideError, match='The label "10"'):
            open_train_split(tmp_path / 'x', 'hfds', names_file=tmp_path / 'names')


def test_other_columns_are_found_or_asked_for(tmp_path):
    folder = parquet(tmp_path / 'x', train=table([0, 1], ['a', 'b'], image='img', label='fine'))
    assert values(open_train_split(folder, 'hfds')) == [(0, 0), (10, 1)]
    assert values(open_train_split(folder, 'hfds', input_key='img', target_key='fine')) == [(0, 0), (10, 1)]
    with pytest.raises(RideError, match='has no column "kind" but img, fine; choose one of them with --target-key'):
        open_train_split(folder, 'hfds', target_key='kind')
    with pytest.raises(RideError, match='has no column "picture" but img, fine; choose one of them with --input-key'):
        open_train_split(folder, 'hfds', input_key='picture')


@pytest.mark.parametrize('labels', [[0, -1], [0, None]])
def test_rows_without_a_label(tmp_path, labels):
    folder = parquet(tmp_path / 'x', train=table(labels))
    with pytest.raises(RideError, match=r'Row 1 of .* has the label (-1|None); every image needs one class'):
        open_train_split(folder, 'hfds')


@pytest.mark.parametrize('several', [True, False])
def test_saved_to_disk(tmp_path, several):
    rows = table([0, 2, 1, 0], NAMES)
    if several:
        datasets.DatasetDict(train=rows, validation=table([1], NAMES, start=10)).save_to_disk(tmp_path / 'saved')
    else:
        rows.save_to_disk(tmp_path / 'saved')
    train = open_train_split(tmp_path / 'saved', 'hfds')
    assert train.class_names == ('dog', 'ant', 'cow')
    assert values(train) == [(0, 0), (10, 2), (20, 1), (30, 0)]
    assert guess_dataset(tmp_path / 'saved') == 'hfds'
    if several:
        assert values(open_eval_split(tmp_path / 'saved', 'hfds', class_names=train.class_names)) == [(100, 1)]
    else:
        with pytest.raises(RideError, match='one saved data set without splits; take a part of it with --val-fraction'):
            open_eval_split(tmp_path / 'saved', 'hfds', class_names=train.class_names)


def test_parts_and_their_digest(folder):
    train = open_train_split(folder, 'hfds')
    one, other = hold_out(train, 0.5, seed=0), hold_out(train, 0.5, seed=1)
    assert len({one.digest, other.digest}) == 2 or one.held.dataset.rows.tolist() == other.held.dataset.rows.tolist()
    assert one.digest == hold_out(open_train_split(folder, 'hfds'), 0.5, seed=0).digest


def test_a_broken_image_is_named_by_its_row(tmp_path):
    good = io.BytesIO()
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(good, 'PNG')
    rows = {'image': [{'bytes': data, 'path': None} for data in (good.getvalue(), b'none')], 'label': ['a', 'b']}
    features = datasets.Features({'image': datasets.Image(), 'label': datasets.Value('string')})
    folder = parquet(tmp_path / 'x', train=datasets.Dataset.from_dict(rows, features=features))
    split = open_train_split(folder, 'hfds')
    with pytest.raises(RideError, match=r'The image row 1 of hfds/.* cannot be read \(not an image'):
        split.dataset[1]


def test_what_cannot_be_opened_is_one_sentence(tmp_path, folder):
    with pytest.raises(RideError, match=r'The split "val" of hfds/.* cannot be opened .*split "val".*--val-fraction'):
        open_eval_split(parquet(tmp_path / 'x', train=table([0])), 'hfds', class_names=('0',))
    with pytest.raises(RideError, match='given without a data set; use hfds/NAME'):
        open_train_split(None, 'hfds')
    with pytest.raises(
        RideError, match=r'holds no class folders of images but Parquet or Arrow files; add --dataset hfds'
    ):
        open_train_split(folder)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(RideError, match='cannot be opened') as error:
        open_train_split(tmp_path / 'empty', 'hfds')
    assert '\n' not in str(error.value)


def test_without_the_library(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(RideError, match='needs datasets, which is not installed; run: pip install "datasets"'):
        open_train_split(folder, 'hfds')
