"""The traps of one's own images, by the commands that a user types: right labels, or one clear sentence."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import CIFAR, train, write_images

from ride_timm.cli import main
from ride_timm.escaping import from_csv_cell
from ride_timm.inference.load import load
from ride_timm.pages import figures

NAMES = ['10', '2', 'great white', 'a, b', '<script>alert(1)<', 'größe', '猫', '=1+1', 'it\'s "q" &amp;', '$x$']


@pytest.fixture(autouse=True)
def small_figures(monkeypatch):
    monkeypatch.setattr(figures, 'DPI', 30)


@pytest.fixture
def run(capsys):
    """Run `ride-timm`; returns status, standard output and standard error."""

    def call(*argv):
        capsys.readouterr()
        status = main([str(word) for word in argv])
        return status, *capsys.readouterr()

    return call


def sentence(err):
    """The only line, an error."""
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert ': error: ' in lines[0]
    return lines[0]


def per_class(folder):
    with (folder / 'per_class.csv').open(encoding='utf-8', newline='') as file:
        return {from_csv_cell(row['name']): row for row in csv.DictReader(file)}


def right_answers(run, folder, data):
    """By class, the share of images that `predict` labels as their folder."""
    status, out, err = run('predict', folder, data / 'val', '--csv', '--device', 'cpu')
    assert (status, err) == (0, '')
    rows = list(csv.DictReader(io.StringIO(out)))
    assert sorted(row['path'] for row in rows) == sorted(map(str, (data / 'val').glob('*/*')))
    hits = {}
    for row in rows:
        name = Path(row['path']).parent.name
        hits.setdefault(name, []).append(from_csv_cell(row['label']) == name)
    return {name: 100 * sum(found) / len(found) for name, found in hits.items()}


def write_kinds(folder):
    """One image of every unusual kind."""
    rng = np.random.default_rng(2)
    colour = Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8))
    Image.fromarray(rng.integers(0, 65536, (9, 12)).astype(np.uint16)).save(folder / 'sixteen bits.png')
    colour.convert('CMYK').save(folder / 'cmyk.jpg')
    colour.convert('P').save(folder / 'palette.png')
    colour.convert('P').save(folder / 'palette, transparent.png', transparency=bytes(range(256)))
    colour.convert('LA').save(folder / 'grey with alpha.png')
    colour.convert('1').save(folder / '<b>bits.png')
    colour.save(folder / 'bewegt é 猫.png', save_all=True, append_images=[Image.new('RGB', (12, 9))] * 2)
    Image.new('RGB', (60, 30), (1, 2, 3)).save(folder / 'large.png')


def test_any_name_and_any_kind_of_image(tmp_path, run, monkeypatch):
    """A large image is read without a warning, which `filterwarnings = error` would make an error."""
    data = write_images(tmp_path / 'my "images" ü', {name: 12 - n for n, name in enumerate(NAMES)}, val=2)
    for split in ('train', 'val'):
        write_kinds(data / split / NAMES[0])
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 60 * 30 - 1)
    status, out, _ = run('data', data, '--plot', tmp_path / 'tail.png')
    assert status == 0
    assert all(name in out for name in NAMES)
    folder = train(data, tmp_path / 'out', 'a run', '--model', CIFAR)
    names = load(folder).class_names
    assert names == ('2', '10', *sorted(NAMES[2:], key=str.lower))
    table = per_class(folder)
    assert {name: int(row['train_images']) for name, row in table.items()} == {
        name: 12 - n + 8 * (n == 0) for n, name in enumerate(NAMES)
    }
    answers = right_answers(run, folder, data)
    assert answers == {name: pytest.approx(float(row['accuracy'])) for name, row in table.items()}
    status, out, _ = run('predict', folder, data / 'val', '--device', 'cpu')
    assert status == 0
    assert len(out.splitlines()) == 2 + 28 + ('\n* ' in out)  # an answer that no expert gives alone is explained
    assert run('report', folder, '--device', 'cpu')[0] == 0
    page = (folder / 'report.html').read_text(encoding='utf-8')
    assert '<script' not in page
    for shown in ('&lt;script&gt;alert(1)&lt;', 'größe', '猫', 'it&#39;s &#34;q&#34; &amp;amp;', 'a, b', '$x$'):
        assert f'<bdi>{shown}</bdi>' in page


@pytest.mark.parametrize('absent', ['0', '2', '10'])
def test_numbers_as_names_and_a_class_missing_in_val(tmp_path, run, absent):
    data = write_images(tmp_path / 'data', {'0': 9, '1': 8, '2': 7, '10': 6}, val=3)
    shutil.rmtree(data / 'val' / absent)
    folder = train(data, tmp_path, 'run', '--model', CIFAR)
    assert load(folder).class_names == ('0', '1', '2', '10')
    table = per_class(folder)
    assert [(name, row['train_images'], row['test_images']) for name, row in table.items()] == [
        (name, count, '0' if name == absent else '3') for name, count in zip(('0', '1', '2', '10'), '9876', strict=True)
    ]
    answers = right_answers(run, folder, data)
    assert answers == {name: float(row['accuracy']) for name, row in table.items() if name != absent}
    assert run('report', folder, '--device', 'cpu')[0] == 0
    assert '1 class has no images here' in (folder / 'report.html').read_text(encoding='utf-8')


def test_a_class_of_one_image_stays_on_the_training_side(tmp_path, run):
    data = write_images(tmp_path / 'data', {'a': 8, 'b': 4, 'c': 1}) / 'train'
    folder = train(data, tmp_path, 'run', '--model', CIFAR, '--val-fraction', '0.5')
    counts = {name: (row['train_images'], row['test_images']) for name, row in per_class(folder).items()}
    assert counts == {'a': ('4', '4'), 'b': ('2', '2'), 'c': ('1', '0')}
    status, out, _ = run('validate', '--checkpoint', folder / 'last.pth.tar', '--data-dir', data, '--device', 'cpu')
    assert status == 0
    assert 'num_images                  6' in out
    assert run('report', folder, '--device', 'cpu')[0] == 0


@pytest.mark.parametrize('content', [b'', b'\x89PNG\r\n\x1a\n', b'text', 'bomb'])
def test_an_image_that_cannot_be_read(tmp_path, run, monkeypatch, content):
    data = write_images(tmp_path / 'data', {'a': 8, 'b': 4, 'c': 1}, val=2)
    folder = train(data, tmp_path, 'good', '--model', CIFAR)
    for split in ('train', 'val'):
        path = data / split / 'c/0.png'
        if content == 'bomb':
            Image.new('1', (64, 64)).save(path)
            monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 64 * 64 // 2 - 1)
        else:
            path.write_bytes(content)
    why = 'more than 4,094 pixels, which Pillow refuses' if content == 'bomb' else 'not an image, or an empty file'
    found = sentence(run('train', '--data-dir', data, '--model', CIFAR, '--output', tmp_path, '--device', 'cpu')[2])
    assert f'1 of 13 images of {data}/train cannot be read: {data}/train/c/0.png ({why}); remove or replace' in found
    for command in (['validate', '--checkpoint', folder / 'last.pth.tar', '--data-dir', data], ['report', folder]):
        status, _, err = run(*command, '--device', 'cpu')
        assert status == 2
        assert f'val/c/0.png ({why}); remove or replace' in sentence(err)
    status, out, err = run('predict', folder, data / 'val', '--json', '--device', 'cpu')
    assert status == 1
    assert len(json.loads(out)) == 5
    assert err == f'ride-timm predict: The image {data}/val/c/0.png cannot be read ({why}); remove or replace it.\n'
    status, out, _ = run('data', data)
    assert status == 1
    assert f'train/c/0.png ({why}, the only image of its class)' in out


def test_labels_with_gaps(tmp_path, run):
    data = write_images(tmp_path / 'data', {'a': 8, 'b': 6, 'c': 4})
    for split in ('train', 'val'):
        lines = (f'{path.relative_to(data)} {7 * "abc".index(path.parent.name)}' for path in data.glob(f'{split}/*/*'))
        (tmp_path / split).write_bytes('\r\n'.join(lines).encode())
    lists = ['--train-list', str(tmp_path / 'train'), '--val-list', str(tmp_path / 'val')]
    folder = train(data, tmp_path, 'run', '--model', CIFAR, *lists)
    table = per_class(folder)
    assert {name: row['train_images'] for name, row in table.items()} == {'0': '8', '7': '6', '14': '4'}
    _, out, _ = run('predict', folder, data / 'val', '--json', '--device', 'cpu')
    rows = json.loads(out)
    assert all(row['label'] == ['0', '7', '14'][row['class_index']] for row in rows)
    right = sum(row['label'] == str(7 * 'abc'.index(row['path'].split('/')[-2])) for row in rows)
    assert right == pytest.approx(sum(float(row['accuracy']) for row in table.values()) * 4 / 100)


def test_an_empty_folder(tmp_path, run):
    data = write_images(tmp_path / 'data', {'a': 4, 'b': 3})
    folder = train(data, tmp_path, 'run', '--model', CIFAR)
    empty = tmp_path / 'empty'
    empty.mkdir()
    assert 'No image in' in sentence(run('train', '--data-dir', empty, '--output', tmp_path)[2])
    assert 'No image in' in run('data', empty)[1]
    found = sentence(run('predict', folder, empty, '--device', 'cpu')[2])
    assert f'no image lies in the folder {empty}' in found
    assert 'No image in' in sentence(run('report', folder, '--data-dir', empty, '--device', 'cpu')[2])


def test_images_on_both_sides(tmp_path, run, caplog):
    data = write_images(tmp_path / 'data', {'a': 6, 'b': 3})
    shutil.copy(data / 'train/a/0.png', data / 'val/a/0.png')
    train(data, tmp_path, 'copy', '--model', CIFAR)
    assert '1 of the 8 evaluation images is a training image too, which inflates the accuracy' in caplog.text
    shutil.rmtree(data / 'val')
    (data / 'val').symlink_to(data / 'train', target_is_directory=True)
    found = sentence(run('train', '--data-dir', data, '--model', CIFAR, '--output', tmp_path, '--device', 'cpu')[2])
    assert 'All 9 evaluation images' in found


def test_twelve_bits_in_sixteen(tmp_path, run):
    """A microscope's values fill a sixteenth of what the file could hold; the network remembers which."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name, low in (('dim', 1000), ('bright', 2500)):
            folder = tmp_path / 'data' / split / name
            folder.mkdir(parents=True)
            for number in range(6):
                pixels = rng.integers(low, low + 1500, (8, 8)).astype(np.uint16)
                Image.fromarray(pixels).save(folder / f'{number}.png')
    folder = train(tmp_path / 'data', tmp_path, 'run', '--model', CIFAR)
    low, high = load(folder).record.pixel_range
    assert 1000 <= low < 1010
    assert 3990 < high < 4000
    assert right_answers(run, folder, tmp_path / 'data').keys() == {'dim', 'bright'}
    status, _, err = run('publish', folder, 'me/x', '--dry-run', '--output', tmp_path / 'published')
    assert status == 0, err
    assert load(tmp_path / 'published').record.pixel_range == (low, high)
    found = run('predict', tmp_path / 'published', tmp_path / 'data/val', '--csv', '--device', 'cpu')
    assert found[1] == run('predict', folder, tmp_path / 'data/val', '--csv', '--device', 'cpu')[1]


def test_five_channels(tmp_path, run):
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name, band in (('crop', 3), ('weed', 4)):
            folder = tmp_path / 'data' / split / name
            folder.mkdir(parents=True)
            for number in range(8):
                array = rng.integers(0, 2000, (9, 12, 5)).astype(np.uint16)
                array[..., band] += 2000
                np.save(folder / f'{number}.npy', array)
    data = tmp_path / 'data'
    assert 'in-chans' in sentence(run('train', '--data-dir', data, '--model', CIFAR, '--output', tmp_path)[2])
    folder = train(data, tmp_path, 'run', '--model', CIFAR, '--in-chans', '5')
    net = load(folder)
    assert net.model.in_chans == 5
    assert net.record.pixel_range[1] > 3900
    assert right_answers(run, folder, data).keys() == {'crop', 'weed'}
    assert run('validate', '--checkpoint', folder, '--data-dir', data, '--device', 'cpu')[0] == 0
    assert run('report', folder, '--device', 'cpu')[0] == 0
    assert run('data', data)[0] == 0
    for option in (['--aa', 'rand-m9'], ['--data-on-device']):
        refused = run('train', '--data-dir', data, '--model', CIFAR, '--in-chans', '5', *option, '--output', tmp_path)
        assert option[0] in sentence(refused[2])
    assert '5 channels' in sentence(run('demo', folder)[2])
