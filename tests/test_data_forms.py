"""From every form of data to a report and predictions: the labels are the right ones all the way."""

import base64
import html
import importlib.util
import io
import json
import re
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import CIFAR, train, write_images

import ride_timm.commands.validate as validation
from ride_timm.commands.predict import main as predict_main
from ride_timm.commands.report import main as report_main
from ride_timm.errors import RideError
from ride_timm.inference.load import load
from ride_timm.pages import figures

NAMES = ['cat', 'ant', 'bee']  # by number; not in the order of the alphabet
ERROR = re.compile(
    r'<img[^>]*src="data:image/png;base64,([^"]*)" alt="Image of ([^"]*)".*?answer: <b><bdi>(.*?)</bdi>', re.DOTALL
)


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    """Image folders, which the other forms are made of."""
    return write_images(tmp_path_factory.mktemp('images'), {'ant': 24, 'bee': 12, 'cat': 5})


@pytest.fixture(autouse=True)
def small_figures(monkeypatch):
    monkeypatch.setattr(figures, 'DPI', 30)


def listed(images, split):
    """Image files and the number of the class of each."""
    paths = sorted((images / split).glob('*/*.png'))
    order = np.random.default_rng(1).permutation(len(paths))
    return [(paths[i], NAMES.index(paths[i].parent.name)) for i in order]


def rows_of(images, split):
    datasets = pytest.importorskip('datasets')
    pairs = listed(images, split)
    features = datasets.Features({'image': datasets.Image(), 'label': datasets.ClassLabel(names=NAMES)})
    columns = {
        'image': [{'bytes': path.read_bytes(), 'path': None} for path, _ in pairs],
        'label': [label for _, label in pairs],
    }
    return datasets.Dataset.from_dict(columns, features=features)


def as_parquet(images, root):
    (root / 'rows').mkdir()
    for split, name in (('train', 'train'), ('val', 'validation')):
        rows_of(images, split).to_parquet(root / f'rows/{name}-00000.parquet')
    return ['--data-dir', root / 'rows', '--dataset', 'hfds']


def as_saved(images, root):
    """One saved table without splits."""
    rows_of(images, 'train').save_to_disk(root / 'rows')
    return ['--data-dir', root / 'cache', '--dataset', f'hfds/{root}/rows', '--val-fraction', '0.4']


def as_image_folder_of_hugging_face(images, root):
    pytest.importorskip('datasets')
    return ['--data-dir', root / 'cache', '--dataset', f'hfds/{images}']


def as_shards(images, root):
    pytest.importorskip('webdataset')
    (root / 'classnames.txt').write_text('\n'.join(NAMES))
    for split in ('train', 'val'):
        with tarfile.open(root / f'{split}-0.tar', 'w') as tar:
            for number, (path, label) in enumerate(listed(images, split)):
                for suffix, content in (('png', path.read_bytes()), ('cls', str(label).encode())):
                    info = tarfile.TarInfo(f'{number:04d}.{suffix}')
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return ['--data-dir', root, '--dataset', 'wds']


def as_lists(images, root):
    """A list as published beside a CSV as a Windows program writes it."""
    text = ''.join(f'{path.relative_to(images)} {label}\n' for path, label in listed(images, 'train'))
    (root / 'train.txt').write_text(text)
    rows = [f'"{path.relative_to(images)}",{NAMES[label]}' for path, label in listed(images, 'val')]
    (root / 'val.csv').write_bytes('\r\n'.join(['path,label', *rows, '']).encode('utf-8-sig'))
    (root / 'names.txt').write_text('\r\n'.join(NAMES))
    return [
        '--data-dir', images, '--train-list', root / 'train.txt', '--val-list', root / 'val.csv',
        '--class-names', root / 'names.txt',
    ]  # fmt: skip


def as_table(images, root):
    """One table of all images with a column of splits, after which the images are called."""
    lines = ['kind;image_id;dx;set']
    for split in ('train', 'val'):
        lines += [f'x;{split}/{NAMES[label]}/{path.stem};{label};{split}' for path, label in listed(images, split)]
    (root / 'table.csv').write_text('\n'.join(lines))
    (root / 'names.txt').write_text('\n'.join(NAMES))
    return ['--table', root / 'table.csv', '--data-dir', images, '--class-names', root / 'names.txt']


def as_boxes(images, root):
    """COCO's form, with a box around each whole image."""
    options = []
    for split in ('train', 'val'):
        pairs = listed(images, split)
        content = {
            'categories': [{'id': number, 'name': name} for number, name in enumerate(NAMES)],
            'images': [{'id': i, 'file_name': str(path.relative_to(images))} for i, (path, _) in enumerate(pairs)],
            'annotations': [
                {'image_id': i, 'category_id': label, 'bbox': [0, 0, 8, 8]} for i, (_, label) in enumerate(pairs)
            ],
        }
        (root / f'{split}.json').write_text(json.dumps(content))
        options += [f'--{split}-list', root / f'{split}.json']
    return [*options, '--data-dir', images, '--crop', 'boxes']


FORMS = [as_parquet, as_saved, as_image_folder_of_hugging_face, as_shards, as_lists, as_table, as_boxes]


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    if importlib.util.find_spec('datasets') is not None:
        import datasets

        monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'hf'))
        monkeypatch.setattr(datasets.config, 'HF_HUB_OFFLINE', True)


def pixels(image):
    return np.asarray(image.convert('RGB')).tobytes()


def run_report(run):
    """Top-1 as on the page, and (pixels, true class, answer) of the wrong answers shown."""
    assert report_main([str(run), '--device', 'cpu']) == 0
    text = (run / 'report.html').read_text(encoding='utf-8')
    errors = [
        (pixels(Image.open(io.BytesIO(base64.b64decode(picture)))), html.unescape(truth), html.unescape(answer))
        for picture, truth, answer in ERROR.findall(text)
    ]
    return float(re.search(r'(?:overall|over images)</td><td>([\d.]+)', text)[1]), errors, text


def predicted(run, capsys, *paths):
    """Label of each file, by the command."""
    capsys.readouterr()
    assert predict_main([str(run), *map(str, paths), '--json', '--device', 'cpu']) == 0
    return {row['path']: row['label'] for row in json.loads(capsys.readouterr().out)}


def check_labels(run, options, truth, capsys, names):
    """Compare `validate`, the page and `predict` on the same images.

    Args:
        run: The folder of a run.
        options: Where its images are.
        truth: Image file -> class name, of at least all evaluation images.
        capsys: Of pytest.
        names: The classes in the order that their indices should have.
    """
    assert load(run).class_names == names
    overall, errors, text = run_report(run)
    answers = predicted(run, capsys, *truth)
    by_pixels = {pixels(Image.open(path)): path for path in truth}
    assert len(by_pixels) == len(truth)
    assert errors
    for found, true, answer in errors:
        path = by_pixels[found]
        assert true == truth[path]
        assert answer == answers[str(path)] != true
    parser = validation.build_parser()
    options = list(map(str, options))
    if '--val-fraction' in options:  # the checkpoint knows
        options = options[: options.index('--val-fraction')]
    argv = ['--checkpoint', str(run / 'last.pth.tar'), *options, '--device', 'cpu']
    figures = validation.validate(parser.parse_args(argv))
    assert overall == pytest.approx(figures['top1'], abs=0.006)
    images = figures['num_images']
    if images == len(truth):
        right = sum(answers[str(path)] == name for path, name in truth.items())
        assert figures['top1'] == pytest.approx(100 * right / images)
    assert len(errors) == min(24, round(images * (1 - figures['top1'] / 100)))
    return text


@pytest.mark.usefixtures('own_cache')
@pytest.mark.parametrize('form', FORMS)
def test_labels_all_the_way(images, tmp_path, form, capsys):
    options = form(images, tmp_path)
    run = train(images, tmp_path, 'run', '--model', CIFAR, *map(str, options))
    split = 'train' if form is as_saved else 'val'
    truth = {path: path.parent.name for path in (images / split).glob('*/*.png')}
    names = ('ant', 'bee', 'cat') if form in (as_image_folder_of_hugging_face, as_boxes) else tuple(NAMES)
    text = check_labels(run, options, truth, capsys, names)
    data = {as_parquet: 'rows', as_saved: 'rows', as_shards: tmp_path.name}
    assert f'<dt>Data</dt><dd>{data.get(form, images.name)}</dd>' in text
    assert 'Generating' not in capsys.readouterr().err  # progress bars are for terminals


def test_torchvision_all_the_way(tmp_path, capsys):
    """MNIST's files, as few as can be; its names sort otherwise than their images do."""
    rng = np.random.default_rng(0)
    raw = tmp_path / 'MNIST/raw'
    raw.mkdir(parents=True)
    truth = {}
    names = ('zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine')
    for split, times in (('train', 4), ('t10k', 2)):
        labels = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), times))
        grey = rng.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8)
        header = struct.pack('>4I', 2051, len(labels), 28, 28)
        (raw / f'{split}-images-idx3-ubyte').write_bytes(header + grey.tobytes())
        (raw / f'{split}-labels-idx1-ubyte').write_bytes(struct.pack('>2I', 2049, len(labels)) + labels.tobytes())
        for number, label in enumerate(labels.tolist() if split == 't10k' else ()):
            path = tmp_path / f'{number}.png'
            Image.fromarray(grey[number]).save(path)
            truth[path] = f'{label} - {names[label]}'
    options = ['--data-dir', tmp_path, '--dataset', 'torch/mnist']
    common = ['--model', CIFAR, *map(str, options)]
    for channels in ('3', '1'):
        run = train(tmp_path, tmp_path, f'run{channels}', *common, '--in-chans', channels)
        known = tuple(f'{label} - {name}' for label, name in enumerate(names))
        check_labels(run, options, truth, capsys, known)
    assert isinstance(run, Path)
    with pytest.raises(RideError, match=r'All 40 evaluation images .* are training images too, first number 0'):
        train(tmp_path, tmp_path, 'same', *common, '--val-split', 'train')
