import io
import json
import sys
import tarfile

import pytest
from PIL import Image

from ride_timm.data import check_images, guess_dataset, hold_out, open_eval_split, open_train_split
from ride_timm.errors import RideError

pytest.importorskip('webdataset')


def png(value):
    file = io.BytesIO()
    Image.new('RGB', (4, 4), (value,) * 3).save(file, 'PNG')
    return file.getvalue()


def shard(path, *samples):
    """Write samples, each a dict of suffix -> content; sample number i has the key i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, 'w') as tar:
        for number, files in enumerate(samples):
            for suffix, content in files.items():
                info = tarfile.TarInfo(f'part/{number:04d}.{suffix}')
                data = content if isinstance(content, bytes) else str(content).encode()
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return path


def labelled(value, label, suffix='png'):
    return {suffix: png(value), 'cls': label}


def values(split):
    return [(split.dataset[i][0].getpixel((0, 0))[0], split.dataset[i][1]) for i in range(len(split.targets))]


@pytest.fixture
def folder(tmp_path):
    shard(tmp_path / 'train-0000.tar', labelled(10, 0), labelled(20, 2))
    shard(tmp_path / 'train-0001.tar', labelled(30, 1), labelled(40, 0, 'PNG'))
    shard(tmp_path / 'val-0000.tar', labelled(50, 2), labelled(60, 0))
    return tmp_path


def test_shards_by_their_names(folder):
    train = open_train_split(folder, 'wds')
    assert train.class_names == ('0', '1', '2')
    assert values(train) == [(10, 0), (20, 2), (30, 1), (40, 0)]
    assert train.dataset.filenames()[2] == 'train-0001.tar/part/0000.png'
    assert train.dataset.filename(2, absolute=True) == f'{folder}/train-0001.tar/part/0000.png'
    assert train.source == f'2 shards of {folder} (train)'
    val = open_eval_split(folder, 'wds/anything', class_names=train.class_names)
    assert values(val) == [(50, 2), (60, 0)]
    check_images(train)
    assert guess_dataset(folder) == 'wds'


def test_shards_in_folders_with_class_names(tmp_path):
    shard(tmp_path / 'train/0.tar', labelled(10, 1), labelled(20, 0))
    shard(tmp_path / 'test/0.tar', labelled(30, 1))
    (tmp_path / 'classnames.txt').write_text('dog\nant\n')
    train = open_train_split(tmp_path, 'wds')
    assert (train.class_names, values(train)) == (('dog', 'ant'), [(10, 1), (20, 0)])
    (tmp_path / 'other').write_text('x\ny\n')
    assert open_train_split(tmp_path, 'wds', names_file=tmp_path / 'other').class_names == ('x', 'y')
    assert values(open_eval_split(tmp_path, 'wds', class_names=train.class_names)) == [(30, 1)]


def test_timms_info_file_and_its_notation(folder):
    splits = {
        'train': {'name': 'train', 'num_samples': 2, 'filenames': ['train-0001.tar'], 'shard_lengths': [2]},
        'validation': {'name': 'validation', 'num_samples': 2, 'filenames': ['val-0000.tar'], 'shard_lengths': [2]},
    }
    assert len(open_train_split(folder, 'wds', split='train-{0000..0001}.tar').targets) == 4
    (folder / '_info.json').write_text(json.dumps({'splits': splits}))
    assert values(open_train_split(folder, 'wds')) == [(30, 1), (40, 0)]
    assert len(open_eval_split(folder, 'wds', class_names=('0', '1', '2')).targets) == 2
    with pytest.raises(RideError, match='has no shards of the split "holdout"'):
        open_train_split(folder, 'wds', split='holdout')
    (folder / '_info.json').write_text('{"splits": {"train": {}}}')
    with pytest.raises(RideError, match='is not as timm writes it'):
        open_train_split(folder, 'wds')


@pytest.mark.parametrize('absent', [0, 1, 2])
def test_class_missing_in_validation_shifts_no_label(tmp_path, absent):
    kept = [label for label in range(3) if label != absent]
    shard(tmp_path / 'train.tar', *(labelled(label, label) for label in range(3)))
    shard(tmp_path / 'val.tar', *(labelled(label, label) for label in kept))
    train = open_train_split(tmp_path, 'wds')
    assert values(open_eval_split(tmp_path, 'wds', class_names=train.class_names)) == [(n, n) for n in kept]


def test_labels_in_json_and_as_names(tmp_path):
    samples = [{'jpeg': png(n), 'json': json.dumps({'id': 3 - n, 'kind': kind})} for n, kind in enumerate('bab')]
    shard(tmp_path / 'train.tar', *samples)
    assert open_train_split(tmp_path, 'wds', target_key='kind').class_names == ('a', 'b')
    assert open_train_split(tmp_path, 'wds', target_key='id').targets.tolist() == [2, 1, 0]
    with pytest.raises(RideError, match='and no cls with a label; name the field of its json with --target-key'):
        open_train_split(tmp_path, 'wds')
    with pytest.raises(RideError, match=r"The label of .* cannot be read \(KeyError\('sort'\)\)"):
        open_train_split(tmp_path, 'wds', target_key='sort')


def test_unlabelled_samples_are_left_out_aloud(tmp_path, caplog):
    shard(tmp_path / 'train.tar', labelled(1, 0), labelled(2, -1), labelled(3, 1))
    assert values(open_train_split(tmp_path, 'wds')) == [(1, 0), (3, 1)]
    assert '1 samples of' in caplog.text


@pytest.mark.parametrize(
    ('sample', 'words'),
    [
        ({'png': png(0)}, 'has png and no cls with a label; add it'),
        ({'cls': '0'}, r'has cls and no image \(jpg, jpeg, png, webp\); name its suffix with --input-key'),
        ({'png': png(0), 'cls': ''}, "The label of .* is ''"),
    ],
)
def test_incomplete_samples_are_named(tmp_path, sample, words):
    shard(tmp_path / 'train.tar', labelled(0, 0), sample)
    with pytest.raises(RideError, match=words) as error:
        open_train_split(tmp_path, 'wds')
    assert 'part/0001 of' in str(error.value)


def test_shards_that_cannot_be_read(tmp_path):
    with pytest.raises(RideError, match=r'has no train\*.tar; name the shards with --train-split'):
        open_train_split(tmp_path, 'wds')
    (tmp_path / 'train.tar').write_bytes(b'x' * 2000)
    with pytest.raises(RideError, match=r'The shard .*train.tar cannot be read'):
        open_train_split(tmp_path, 'wds')
    with pytest.raises(RideError, match=r'The shard .*data-0.tar of the split .* is not there'):
        open_train_split(tmp_path, 'wds', split='data-{0..1}.tar')
    with pytest.raises(RideError, match=r'The folder of shards .*none does not exist'):
        open_train_split(tmp_path / 'none', 'wds')


def test_a_broken_image_is_named(tmp_path):
    shard(tmp_path / 'train.tar', labelled(0, 0), {'png': b'none', 'cls': 1})
    split = open_train_split(tmp_path, 'wds')
    with pytest.raises(RideError, match=r'train.tar/part/0001.png cannot be read'):
        split.dataset[1]


def test_a_folder_of_shards_says_what_to_add(folder):
    with pytest.raises(RideError, match='no class folders of images but tar files; add --dataset wds'):
        open_train_split(folder)


def test_parts(folder):
    parts = hold_out(open_train_split(folder, 'wds'), 0.5)
    assert parts.train.class_counts.tolist() == [1, 1, 1]
    assert sorted(values(parts.train) + values(parts.held)) == [(10, 0), (20, 2), (30, 1), (40, 0)]


def test_without_the_library(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, 'webdataset', None)
    with pytest.raises(RideError, match='needs webdataset, which is not installed; run: pip install "webdataset"'):
        open_train_split(folder, 'wds')
