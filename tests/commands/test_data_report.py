"""`ride-timm data`, against folders whose faults are known."""

import io
import json
import os
import shlex
import shutil
import sys

import numpy as np
import pytest
from PIL import Image
from tiny_runs import CIFAR, train, write_images

from ride_timm.cli import guarded
from ride_timm.commands.data import main
from ride_timm.errors import RideError
from ride_timm.records.checkpoint import read_checkpoint


@pytest.fixture
def data(tmp_path):
    return write_images(tmp_path / 'my images')


@pytest.fixture
def report(capsys):
    """Exit status and output of the command."""

    def run(*argv):
        status = main([str(word) for word in argv])
        return status, capsys.readouterr().out

    return run


def found(text):
    """{level: [text of each finding]} of a JSON report."""
    levels = {'error': [], 'warning': [], 'ok': []}
    for finding in json.loads(text)['findings']:
        levels[finding['level']].append((finding['text'], finding['details']))
    return levels


def test_a_sound_folder(data, report):
    status, said = report(data)
    assert status == 0
    assert 'form        image folders' in said
    for row in ('training           41         3        24        12         5       4.8', '12         3         4'):
        assert row in said
    for name, counts in (('ant', '24'), ('bee', '12'), ('cat', '5')):
        line = next(line for line in said.splitlines() if line.startswith(name))
        assert line.split()[1] == counts
        assert line.split()[-2] == '4'
    assert 'thirds of the classes' in said
    assert 'Sizes     8x8' in said
    assert 'Pixels    RGB 53' in said
    assert 'ok        all 53 images can be read' in said
    assert said.endswith(f"ride-timm train --data-dir '{data}'\n")


def test_json(data, report):
    status, said = report(data, '--json')
    assert status == 0
    values = json.loads(said)
    assert values['trainable'] is True
    assert values['training']['images'] == 41
    assert values['training']['imbalance_factor'] == 4.8
    assert values['training']['modes'] == {'RGB': 41}
    assert values['evaluation']['largest_image'] == [8, 8]
    assert values['classes'][0] == {'name': 'ant', 'training': 24, 'evaluation': 4, 'group': 'many'}
    assert values['groups']['rule'] == 'quantile'


def test_the_shown_command_trains(data, report, tmp_path):
    status, said = report(data / 'train', '--val-fraction', '0.25')
    assert status == 0
    assert '10 of 41 training images of' in said
    assert said.endswith(f"--data-dir '{data}/train' --val-fraction 0.25\n")
    train(data / 'train', tmp_path, 'run', '--model', CIFAR, '--loss', 'ce', '--val-fraction', '0.25')


def test_what_a_training_refuses_is_an_error(data, report, tmp_path):
    """Whatever the report calls an error ends the training too, and the other way round."""
    faults = {
        'unreadable': lambda: (data / 'train/cat/1.png').write_bytes(b'none'),
        'empty class': lambda: (data / 'train/empty').mkdir(),
        'unknown class': lambda: shutil.copytree(data / 'val/cat', data / 'val/catt'),
        'loose image': lambda: shutil.copy(data / 'val/cat/0.png', data / 'train/x.png'),
        'the same folder': lambda: (data / 'val').symlink_to(data / 'train', target_is_directory=True),
    }
    for number, break_it in enumerate(faults.values()):
        backup = shutil.copytree(data, tmp_path / f'backup{number}')
        if number == 4:
            shutil.rmtree(data / 'val')
        break_it()
        status, said = report(data, '--json')
        assert (status, json.loads(said)['trainable']) == (1, False), list(faults)[number]
        assert found(said)['error']
        with pytest.raises(RideError):
            train(data, tmp_path, f'run{number}', '--model', CIFAR, '--loss', 'ce')
        shutil.rmtree(data)
        shutil.move(backup, data)
    assert report(data)[0] == 0


@pytest.mark.parametrize('form', ['class folders', 'train alone', 'list'])
def test_without_evaluation_images_a_part_is_shown(data, report, tmp_path, form):
    """What a training takes by itself, and with the command that is printed."""
    shutil.rmtree(data / 'val')
    (tmp_path / 'all.txt').write_text(''.join(f'{p} {p.parent.name}\n' for p in sorted((data / 'train').glob('*/*'))))
    where = {'class folders': (data / 'train',), 'train alone': (data,), 'list': ('--train-list', tmp_path / 'all.txt')}
    status, said = report(*where[form])
    assert status == 0
    assert 'warning   there are no evaluation images: shown is the split of --val-fraction 0.2' in said
    assert 'evaluation          8         3         5         2         1' in said
    assert said.endswith(' --val-fraction 0.2\n')
    command = ['--data-dir', str(data), *shlex.split(said.splitlines()[-1])[2:]]  # of a repeated option the last counts
    told = train(data, tmp_path, 'run', '--model', CIFAR, '--loss', 'ce', *command)
    left = command[: command.index('--val-fraction')]
    alone = train(data, tmp_path, 'other', '--model', CIFAR, '--loss', 'ce', *left)
    parts = [read_checkpoint(run / 'last.pth.tar')['ride']['val_part'] for run in (told, alone)]
    assert parts[0] == parts[1]


def test_unreadable_images_are_named_with_their_reason(data, report):
    for path in sorted((data / 'train/cat').iterdir())[1:]:
        path.unlink()
    (data / 'train/cat/0.png').write_bytes(b'')
    (data / 'val/ant/3.png').write_bytes((data / 'val/ant/3.png').read_bytes()[:60])
    status, said = report(data)
    assert status == 1
    assert 'error     2 of 49 images cannot be read; remove or replace them' in said
    assert 'train/cat/0.png (not an image, or an empty file, the only image of its class)' in said
    assert '  val/ant/3.png (' in said
    assert report(data, '--counts-only')[0] == 0  # nothing was opened


def test_duplicates(data, report):
    shutil.copy(data / 'train/ant/0.png', data / 'train/ant/copy.png')
    shutil.copy(data / 'train/ant/1.png', data / 'val/ant/copy.png')
    shutil.copy(data / 'train/ant/2.png', data / 'train/bee/copy.png')
    status, said = report(data, '--json')
    assert status == 0
    warnings = dict(found(said)['warning'])
    assert warnings == {
        'the same file is in different classes': ['train/ant/2.png = train/bee/copy.png'],
        'a training image is an evaluation image too, which inflates the accuracy': [
            'train/ant/1.png = val/ant/copy.png'
        ],
        'a training image is there more than once': ['train/ant/0.png = train/ant/copy.png'],
    }


def test_a_copy_under_another_class_on_the_other_side_is_both(data, report):
    shutil.copy(data / 'train/ant/1.png', data / 'train/bee/copy.png')
    shutil.copy(data / 'train/ant/1.png', data / 'val/ant/copy.png')
    warnings = dict(found(report(data, '--json')[1])['warning'])
    copies = ['train/ant/1.png = train/bee/copy.png = val/ant/copy.png']
    assert warnings == {
        'the same file is in different classes': copies,
        'a training image is an evaluation image too, which inflates the accuracy': copies,
    }


def test_an_archive_beside_its_folders_hides_no_error(data, report):
    (data / 'train.tar').write_bytes(b'')
    (data / 'train/ant/deep').mkdir()
    shutil.copy(data / 'val/ant/0.png', data / 'train/ant/deep/0.png')
    status, said = report(data)
    assert status == 1
    assert 'more than one folder deep' in said
    assert 'train.tar' not in said


@pytest.mark.parametrize('columns', ['8', '11', '20'])
def test_a_terminal_too_narrow_to_read(data, report, monkeypatch, columns):
    monkeypatch.setenv('COLUMNS', columns)
    for side in ('train', 'val'):
        (data / side / 'ant').rename(data / side / 'a long name of ants')
    assert report(data, '--counts-only')[0] == 0


def test_classes_of_one_side_and_of_one_image(data, report):
    for path in sorted((data / 'train/cat').iterdir())[1:]:
        path.unlink()
    shutil.rmtree(data / 'val/bee')
    status, said = report(data, '--json')
    assert status == 0
    assert dict(found(said)['warning']) == {
        '1 class has a single training image': ['cat'],
        '1 class has no evaluation image, so no accuracy': ['bee'],
    }


def test_unusual_images_are_counted(data, report):
    Image.fromarray(np.zeros((9, 9), dtype=np.uint16)).save(data / 'train/ant/deep.png')
    Image.new('CMYK', (30, 7)).save(data / 'train/ant/print.jpg')
    frames = [Image.new('RGB', (8, 8), (n, 0, 0)) for n in (1, 2)]
    frames[0].save(data / 'train/ant/moving.png', save_all=True, append_images=frames[1:])
    status, said = report(data)
    assert status == 0
    assert 'Sizes     8x8 to 30x7 pixels, median 8x8' in said
    assert 'Pixels    RGB 54, ' in said
    assert 'warning   1 image has 16 bits' in said
    assert 'warning   1 image is animated; the first frame is used' in said


def test_pixels_with_fractions_are_refused(data, report, tmp_path):
    Image.fromarray(np.ones((8, 8), dtype=np.float32)).save(tmp_path / 'x.tiff')
    lines = ''.join(f'{path} {path.parent.name}\n' for path in sorted((data / 'train').glob('*/*')))
    (tmp_path / 'all.txt').write_text(f'{tmp_path}/x.tiff ant\n{lines}')
    status, said = report('--train-list', tmp_path / 'all.txt')
    assert status == 1
    assert 'images cannot be read; remove or replace them' in said
    assert 'x.tiff (its pixels are floating-point numbers; save it with 8 or 16 bits a channel' in said
    assert 'has 16 bits' not in said


def test_a_file_in_place_of_the_folder(report, tmp_path):
    (tmp_path / 'list.txt').write_text('x.png 0\n')
    status, said = report(tmp_path / 'list.txt')
    assert status == 1
    assert 'x.png (line 1)' in said
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images' / 'x.png').touch()
    found = report(tmp_path / 'list.txt', '--data-dir', tmp_path / 'images', '--counts-only')
    assert found[0] == 1  # a single image cannot be trained and evaluated on
    assert found == report('--table', tmp_path / 'list.txt', tmp_path / 'images', '--counts-only')
    for argv in ((tmp_path / 'list.txt', '--table', 'y'), (tmp_path, '--data-dir', 'y')):
        with pytest.raises(RideError, match='leave one of them out'):
            report(*argv)
    with pytest.raises(RideError, match=r'list.txt is a file; name it with --table'):
        report('--data-dir', tmp_path / 'list.txt')


@pytest.mark.parametrize('classes', [3, 25])
def test_long_names_leave_the_lines_as_wide_as_the_terminal(tmp_path, report, classes):
    for number in range(classes):
        name = f'{"猫" if number else "x"}{"long name " * 7}{number}'
        (tmp_path / 'train' / name).mkdir(parents=True)
        for image in range(4 + number):
            (tmp_path / 'train' / name / f'{image}.png').touch()
    said = report(tmp_path, '--counts-only')[1]
    shown = said[said.index('\n\n', said.index('imbalance')) : said.index('Groups by')]
    assert max(map(len, shown.splitlines())) <= 100
    assert f'name {classes - 1}' in shown


@pytest.mark.parametrize(
    'name', ['<script>alert(1)<', 'größe, 1', '猫', '\x1b[31mred', 'a\nb', os.fsdecode(b'caf\xe9')]
)
def test_any_name_can_be_shown(data, report, name):
    (data / 'train/cat').rename(data / 'train' / name)
    shutil.rmtree(data / 'val/cat')
    shutil.copy(data / 'train' / name / '0.png', data / 'train' / name / 'copy.png')
    status, said = report(data)
    assert status == (1 if name.startswith('caf') else 0)
    said.encode()
    assert '\x1b' not in said
    assert json.loads(report(data, '--json')[1])['classes'][0]['name'] is not None


@pytest.mark.parametrize('encoding', ['ascii', 'cp1252'])
def test_a_terminal_that_lacks_letters(data, monkeypatch, encoding):
    (data / 'train/cat').rename(data / 'train/größe 猫')
    (data / 'val/cat').rename(data / 'val/größe 猫')
    shown = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, 'stdout', shown)
    assert guarded('data', lambda: main([str(data)])) == 0
    shown.flush()
    said = shown.buffer.getvalue().decode(encoding)
    assert ('gr\\xf6\\xdfe \\u732b' if encoding == 'ascii' else 'größe \\u732b') in said


def test_many_classes_make_a_tail(tmp_path, report, capsys):
    counts = {f'class {n}': 1 + 200 // (n + 1) for n in range(30)}
    for name, count in counts.items():
        (tmp_path / 'train' / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / 'train' / name / f'{i}.png').touch()
    (tmp_path / 'val').symlink_to(tmp_path / 'train', target_is_directory=True)
    status, said = report(tmp_path, '--counts-only')
    assert status == 1
    shown = [line.split() for line in said.splitlines() if line.startswith('class ')][1:]
    assert len(shown) == 20
    assert (shown[0][:3], shown[-1][:3]) == (['class', '0', '201'], ['class', '29', '7'])
    assert [int(line[2]) for line in shown] == sorted((int(line[2]) for line in shown), reverse=True)
    assert 'training images (limits of the field: many > 100, medium 20..100, few < 20)' in said
    lines = [line.split() for line in report(tmp_path, '--counts-only', '--all')[1].splitlines()]
    found = {int(line[1]): (int(line[2]), int(line[-2])) for line in lines if line[:1] == ['class'] and len(line) > 4}
    assert found == {n: (count, count) for n, count in enumerate(counts.values())}


def test_lists(data, report, tmp_path):
    for split in ('train', 'val'):
        paths = sorted((data / split).glob('*/*.png'))
        (tmp_path / f'{split}.txt').write_text(''.join(f'{p.relative_to(data)} {p.parent.name}\n' for p in paths))
    both = ('--train-list', tmp_path / 'train.txt', '--val-list', tmp_path / 'val.txt')
    status, said = report(data, *both)
    assert status == 0
    assert 'form        lists of images' in said
    assert said.strip().endswith(f'--train-list {tmp_path}/train.txt --val-list {tmp_path}/val.txt')
    status, said = report(data, *both[:2])
    assert status == 0  # val/ beside it has the same names
    (data / 'val/ant/0.png').unlink()
    status, said = report(data, *both)
    assert status == 1
    assert 'error     An image of' in said


def test_the_form_of_a_folder_is_found(tmp_path, report, monkeypatch):
    datasets = pytest.importorskip('datasets')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', str(tmp_path / 'cache'))
    features = datasets.Features({'image': datasets.Image(), 'label': datasets.ClassLabel(names=['a', 'b'])})
    (tmp_path / 'x').mkdir()
    for split, start in (('train', 0), ('test', 100)):
        images = [Image.new('L', (4, 4), start + i) for i in range(3)]
        rows = datasets.Dataset.from_dict({'image': images, 'label': [0, 1, 0]}, features=features)
        rows.to_parquet(tmp_path / 'x' / f'{split}-0.parquet')
    status, said = report(tmp_path / 'x')
    assert status == 0
    assert 'form        Hugging Face dataset' in said
    assert said.strip().endswith('--dataset hfds')


def test_plot(data, report, tmp_path, monkeypatch):
    pytest.importorskip('matplotlib')
    (data / 'train/cat').rename(data / 'train/$x$ 猫')
    shutil.rmtree(data / 'val/cat')
    assert report(data, '--plot', tmp_path / 'tail.png')[0] == 0
    with Image.open(tmp_path / 'tail.png') as image:
        assert image.size == (1600, 720)
        assert len(image.convert('RGB').getcolors(10**7)) > 20
    with pytest.raises(RideError, match='there is no folder'):
        report(data, '--plot', tmp_path / 'none/tail.png')
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(RideError, match=r'--plot needs matplotlib.*ride-timm\[quickstart\]'):
        report(data, '--plot', tmp_path / 'other.png')


def test_nothing_to_report_on(tmp_path, report):
    with pytest.raises(RideError, match='none does not exist'):
        report(tmp_path / 'none')
    with pytest.raises(RideError, match='No --data-dir was given'):
        report()
    status, said = report(tmp_path)
    assert status == 1
    assert 'error     No image in' in said
