"""`ride-timm predict`: the same answers as `validate`, in three forms, and no answer for what cannot be read."""

import csv
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_runs import CIFAR, train, write_images

import ride_timm as rt
import ride_timm.commands.validate as validation
from ride_timm.commands.predict import main
from ride_timm.data import Crop, ImageSet, create_eval_loader, open_image, open_unlabelled
from ride_timm.errors import RideError
from ride_timm.evaluation import one_pass
from ride_timm.evaluation.metrics import LongTailEvaluator
from ride_timm.inference.load import load
from ride_timm.inference.prediction import Skipped, forward_votes, predict
from ride_timm.publishing.folder import save_folder

NAMES = ['<b>bee', 'cat', 'été, "wild"']
COUNTS = {NAMES[0]: 12, NAMES[1]: 4, NAMES[2]: 2}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """The usual images beside unusual ones, of all sizes."""
    root = write_images(tmp_path_factory.mktemp('images'), COUNTS, val=3)
    rng = np.random.default_rng(1)
    grey = rng.integers(0, 256, (20, 14)).astype(np.uint8)
    colour = Image.fromarray(rng.integers(0, 256, (9, 31, 3)).astype(np.uint8))
    folder = root / 'val' / NAMES[2]
    Image.fromarray(grey.astype(np.uint16) * 256 + 7).save(folder / 'sixteen bit.png')
    Image.fromarray(grey).save(folder / 'grey, é.png')
    Image.fromarray(grey > 99).save(folder / 'bit.png')
    colour.convert('CMYK').save(folder / 'cmyk.jpg')
    colour.convert('P').save(folder / 'palette.png', transparency=bytes(range(256)))
    colour.save(folder / 'animated.png', save_all=True, append_images=[Image.new('RGB', (31, 9))])
    return root


@pytest.fixture(scope='module')
def experts(tmp_path_factory):
    """A network with tau and a router in a packaged folder; its weights are random."""
    torch.manual_seed(3)
    net = timm.create_model(CIFAR, num_classes=3, router=True)
    with torch.no_grad():
        net.router.out.weight.normal_(std=2)
    net.pretrained_cfg.update(
        input_size=(3, 16, 16), mean=(0.3, 0.4, 0.5), interpolation='nearest', crop_pct=0.8, crop_mode='squash'
    )
    folder = tmp_path_factory.mktemp('weights') / 'net'
    save_folder(net, folder, NAMES, list(COUNTS.values()), {'loss': 'balpoe', 'tau': [0.0, 1.0, 2.0]})
    return folder


@pytest.fixture(scope='module')
def plain(tmp_path_factory, data):
    """The folder of a run that trained a plain network of timm's."""
    return train(data, tmp_path_factory.mktemp('runs'), 'plain', '--model', 'resnet18', '--loss', 'ce')


@pytest.fixture(scope='module')
def threshold(experts, data):
    """One that lets the routers part the images."""
    net = load(experts).model
    probabilities = []
    for path in sorted((data / 'val').rglob('*.*')):
        with path.open('rb') as file:
            pixels = np.asarray(open_image(file).resize((16, 16)), dtype=np.float32) / 255
        image = torch.tensor(pixels).permute(2, 0, 1)[None]
        with torch.no_grad():
            probabilities.append(net.forward_router(image).router_logits.sigmoid())
    return float(torch.cat(probabilities).median())


@pytest.fixture
def run(capsys):
    """Run the command on CPU; returns status, standard output and standard error."""

    def call(*argv):
        capsys.readouterr()
        status = main([*map(str, argv), '--device', 'cpu'])
        out, err = capsys.readouterr()
        return status, out, err

    return call


@pytest.fixture
def validated(monkeypatch):
    """Probabilities by file, and the figures, of the real `validate`."""

    def call(checkpoint, data, *options):
        seen, splits = [], []  # of the evaluator that was made last: the routed one, if there is one

        class Recorder(LongTailEvaluator):
            def reset(self):
                seen.append([])
                self.seen = seen[-1]
                super().reset()

            def update(self, output, target, experts=None):
                self.seen.extend(output.float().softmax(1).tolist())
                super().update(output, target, experts)

        def loading(split, **kwargs):
            splits.append(split)
            return create_eval_loader(split, **kwargs)

        monkeypatch.setattr(one_pass, 'LongTailEvaluator', Recorder)
        monkeypatch.setattr(one_pass, 'create_eval_loader', loading)
        name = '--model' if ':' in checkpoint else '--checkpoint'
        argv = [name, checkpoint, '--data-dir', str(data), '--device', 'cpu', *map(str, options)]
        figures = validation.validate(validation.build_parser().parse_args(argv))
        monkeypatch.undo()
        return dict(zip(splits[0].dataset.filenames(absolute=True), seen[-1], strict=True)), figures

    return call


def assert_same(found, wanted):
    """`predict --json --top-k 3` against the probabilities of `validate`."""
    assert {row['path'] for row in found} == set(wanted)
    for row in found:
        by_class = {vote['class_index']: vote['confidence'] for vote in row['top']}
        assert [by_class[c] for c in range(3)] == pytest.approx(wanted[row['path']], abs=1e-6)
        assert row['class_index'] == int(np.argmax(wanted[row['path']]))
        assert row['label'] == NAMES[row['class_index']]
        assert row['confidence'] == row['top'][0]['confidence'] == max(by_class.values())


@pytest.mark.parametrize('batch', [1, 4])
@pytest.mark.parametrize('options', ['', '--routed', '--threshold', '--prior uniform', '--prior train --threshold'])
def test_predict_equals_validate(experts, data, threshold, run, validated, options, batch):
    options = options.replace('--threshold', f'--threshold {threshold}').split()
    wanted, figures = validated(f'local-dir:{experts}', data, *options)
    status, out, err = run(experts, data / 'val', '--json', '-b', batch, *options)
    assert (status, err) == (0, '')
    found = json.loads(out)
    assert_same(found, wanted)
    passed = [row['num_experts'] for row in found]
    assert np.mean(passed) == pytest.approx(figures.get('mean_experts', 3))
    if '--threshold' in options:
        assert len(set(passed)) > 1


def test_a_plain_network_of_a_run(plain, data, run, validated):
    wanted, _ = validated(str(plain / 'last.pth.tar'), data)
    found = json.loads(run(plain, data / 'val', '--json', '-b', '4')[1])
    assert_same(found, wanted)
    assert all(row['experts'] == [] and row['num_experts'] is None for row in found)
    status, out, _ = run(plain / 'last.pth.tar', data / 'val')
    assert status == 0
    assert 'expert' not in out


def test_votes_of_the_experts_that_an_image_passed(experts, data, threshold):
    net = load(experts).model
    images = torch.randn(9, 3, 16, 16)
    every, routed = forward_votes(net, images), forward_votes(net, images, 0.0)
    torch.testing.assert_close(routed.expert_logits, every.expert_logits)
    assert every.num_experts.tolist() == [3] * 9
    routed = forward_votes(net, images, threshold)
    torch.testing.assert_close(routed.logits, net.forward_routed(images, threshold).logits)
    for row, passed in enumerate(routed.num_experts.tolist()):
        torch.testing.assert_close(routed.expert_logits[row, :passed], every.expert_logits[row, :passed])
        assert routed.expert_logits[row, passed:].isnan().all()
        limit, asked = math.log(threshold / (1 - threshold)), routed.router_logits[row, :passed]
        assert (asked > limit).tolist() == [True] * (passed - 1) + [False] * (passed < 3)
        assert routed.router_logits[row, passed:].isnan().all()
    assert every.router_logits.isnan().all()
    with torch.no_grad():
        torch.testing.assert_close(forward_votes(net, images, 0.0).router_logits, net.forward_router(images)[0])
    assert not net.experts[0]._forward_hooks
    assert not net.router._forward_hooks


def test_the_three_forms_agree(experts, data, threshold, run, tmp_path):
    options = [experts, data / 'val', '--threshold', threshold, '--top-k', 2]
    found = json.loads(run(*options, '--json')[1])
    assert list(found[0]) == ['path', 'label', 'class_index', 'confidence', 'top', 'experts', 'num_experts']
    rows = list(csv.DictReader(io.StringIO(run(*options, '--csv')[1])))
    lines = run(*options)[1].splitlines()[2:]
    assert len(found) == len(rows) == len(lines) == 15
    for entry, row, line in zip(found, rows, lines, strict=True):
        assert row['path'] == entry['path']
        assert row['num_experts'] == str(entry['num_experts']) == line.rpartition(' ')[2]
        votes = {'': entry, 'top1_': entry['top'][0], 'top2_': entry['top'][1]}
        votes |= {f'expert{k}_': vote for k, vote in enumerate(entry['experts'])}
        for prefix, vote in votes.items():
            for field in ('label', 'class_index', 'confidence'):
                wanted = '' if vote is None else repr(vote[field]) if field == 'confidence' else str(vote[field])
                assert row[f'{prefix}{field}'] == wanted
        assert len(row) == 5 + 3 * 5
        assert f'   {entry["label"]} ' in line
        assert f' {100 * entry["confidence"]:.1f} %' in line
    for form in ('json', 'csv'):
        assert run(*options, '--output', tmp_path / f'out.{form}') == (0, '', '')
        assert (tmp_path / f'out.{form}').read_text(encoding='utf-8') == run(*options, f'--{form}')[1]


def test_the_table(experts, data, run):
    status, out, err = run(experts, data / 'val' / NAMES[0], '--top-k', '9')
    assert (status, err) == (0, '')
    heading, header, *lines = out.splitlines()
    assert '3 classes, all 3 experts (routing is off; --routed turns it on)' in heading
    assert header.split() == ['image', 'label', '#2', '#3', 'expert', '0', 'expert', '1', 'expert', '2']
    assert {line.index(' % ') for line in lines} == {lines[0].index(' % ')}
    assert ' = ' in out
    assert 'routed with threshold 0.5 through 1 to 3 experts' in run(experts, data / 'val', '--routed')[1]
    assert 'class frequencies uniform' in run(experts, data / 'val', '--prior', 'uniform')[1]


@pytest.fixture
def broken(data, tmp_path):
    """A folder with good images between bad ones, and the names of the bad."""
    good = data / 'val' / NAMES[2] / 'cmyk.jpg'
    (tmp_path / '1.jpg').write_bytes(good.read_bytes())
    (tmp_path / '2 truncated.jpg').write_bytes(good.read_bytes()[:-300])
    (tmp_path / '3 empty.png').touch()
    (tmp_path / '4\ntext.jpg').write_text('no image at all')
    Image.new('L', (30, 30)).save(tmp_path / '5 bomb.png')
    Image.new('L', (17, 17), 99).save(tmp_path / '6.png')
    return tmp_path


@pytest.mark.parametrize('workers', [0, 1])
@pytest.mark.filterwarnings('ignore:This DataLoader will create')
def test_bad_images_are_reported_and_skipped(experts, broken, run, monkeypatch, workers):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 280)  # images of 560 pixels are refused, of 289 warned of
    status, out, err = run(experts, broken, '--json', '-b', 4, '-j', workers)
    assert status == 1
    assert [Path(row['path']).name for row in json.loads(out)] == ['1.jpg', '6.png']
    lines = err.splitlines()
    assert len(lines) == 4
    for line, name, reason in zip(
        lines,
        ['2 truncated.jpg', '3 empty.png', r'4\ntext.jpg', '5 bomb.png'],
        ['truncated', 'not an image, or an empty file', 'not an image', 'pixels'],
        strict=True,
    ):
        assert line.startswith(f'ride-timm predict: The image {broken}/{name} cannot be read (')
        assert reason in line


def test_good_images_are_not_changed_by_bad_ones(experts, broken, run):
    alone = json.loads(run(experts, broken / '1.jpg', broken / '6.png', '--json')[1])
    among = json.loads(run(experts, broken / '1.jpg', broken / '2 truncated.jpg', broken / '6.png', '--json')[1])
    for one, other in zip(alone, among, strict=True):
        assert one['label'] == other['label']
        assert one['confidence'] == pytest.approx(other['confidence'], abs=1e-6)


@pytest.mark.parametrize('form', ['--json', '--csv', None])
def test_no_image_can_be_read(experts, broken, run, form):
    status, out, err = run(experts, broken / '3 empty.png', *([form] if form else []))
    assert status == 1
    assert len(err.splitlines()) == 1
    assert {'--json': out == '[]\n', '--csv': out.startswith('path,label'), None: '3 classes' in out}[form]


def test_a_missing_image_among_others(experts, broken, run):
    status, out, err = run(experts, broken / '1.jpg', broken / 'none.png', '--csv')
    assert status == 1
    assert len(out.splitlines()) == 2
    assert err == f'ride-timm predict: there is no image "{broken}/none.png" (No such file or directory)\n'


def test_an_image_that_is_being_written(experts, broken, monkeypatch):
    """Unreadable at first and not any more: no prediction, since nobody knows of what."""
    intact = ImageSet.load
    failures = iter([True])
    monkeypatch.setattr(ImageSet, 'load', lambda self, i: 1 / 0 if next(failures, False) else intact(self, i))
    (found,) = predict(load(experts), [str(broken / '1.jpg')])
    assert isinstance(found, Skipped)
    assert 'something is writing it' in found.reason


def test_logits_that_are_not_finite(experts, broken):
    trained = load(experts)
    torch.nn.init.constant_(trained.model.experts[1].fc.weight, torch.nan)
    (found,) = predict(trained, [str(broken / '1.jpg')])
    assert found == (str(broken / '1.jpg'), f'The network gives the image {broken}/1.jpg no finite logits.')


def test_equal_logits_rank_by_index(experts, broken):
    trained = load(experts)
    trained.model.forward_experts = lambda images: torch.zeros(len(images), 3, 3)
    (found,) = predict(trained, [str(broken / '1.jpg')], top_k=2)
    assert [vote.class_index for vote in found.top] == [0, 1]
    assert found.top[0].confidence == pytest.approx(1 / 3)


def test_a_network_without_class_names(tmp_path, broken, run):
    save_folder(timm.create_model(CIFAR, num_classes=3), tmp_path / 'net')
    images = [broken / '1.jpg', broken / '6.png']
    status, out, err = run(tmp_path / 'net', *images, '--json')
    assert status == 0
    assert {row['label'] for row in json.loads(out)} <= {'0', '1', '2'}
    assert err.count('names no classes, so labels are class indices') == 1
    assert len(err.splitlines()) == 1
    assert 'all 3 experts, =' in run(tmp_path / 'net', *images)[1]  # without a router, none is spoken of


def test_paths_from_standard_input(experts, broken, run, monkeypatch):
    text = f'{broken}/6.png\r\n{broken}/1.jpg\r\n'.encode()
    monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(text)))
    status, out, _ = run(experts, '-', '--csv')
    assert status == 0
    assert [row['path'] for row in csv.DictReader(io.StringIO(out))] == [f'{broken}/6.png', f'{broken}/1.jpg']


def test_options_between_images(experts, broken, run):
    status, out, _ = run(experts, broken / '1.jpg', '--csv', broken / '6.png')
    assert status == 0
    assert len(out.splitlines()) == 3


@pytest.mark.skipif(sys.platform != 'linux', reason='file names are bytes on Linux alone')
@pytest.mark.parametrize('encoding', ['utf-8', 'ascii'])
def test_names_that_a_terminal_cannot_show(experts, broken, monkeypatch, tmp_path, encoding):
    name = '\x1b[31m \udce9 é.jpg'
    (broken / '1.jpg').rename(broken / name)
    for form, wanted in ((None, r'\x1b[31m \udce9 '), ('--csv', '\x1b[31m \\udce9 é'), ('--json', r'\udce9 \u00e9')):
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, 'stdout', out)
        assert main([str(experts), str(broken / name), '--device', 'cpu', *([form] if form else [])]) == 0
        out.flush()
        written = out.buffer.getvalue().decode('utf-8')
        assert wanted in written
        if form == '--json':
            assert json.loads(written)[0]['path'] == str(broken / name)


class TestRefusals:
    @pytest.mark.parametrize(
        ('options', 'wanted'),
        [
            (['--top-k', '0'], '--top-k 0 was given; it is a whole number of at least 1'),
            (['--threshold', '1.5'], '--threshold 1.5 was given; it is a probability from 0 to 1'),
            (['-b', '0'], '--batch-size 0'),
            (['--output', 'nowhere/x.json'], 'there is no folder nowhere'),
            (['--routed'], 'Routing was asked for, but .*plain has no router'),
            (['--prior', 'uniform'], 'has no tau list'),
            (['--prior', ''], 'has no tau list'),
        ],
    )
    def test_options(self, plain, broken, options, wanted):
        with pytest.raises(RideError, match=wanted):
            main([str(plain), str(broken / '1.jpg'), *options])

    @pytest.mark.parametrize(
        ('name', 'wanted'),
        [
            ('my-run', 'There is no my-run. Name a checkpoint, a folder, '),
            ('ride_resnet32_4', 'There is no ride_resnet32_4, did you mean ride_resnet32_4e? Name a checkpoint, '),
            ('net.pt', 'There is no checkpoint net.pt'),
            ('ride_resnet32_4e.none', 'There are no weights ride_resnet32_4e.none; those of ride_resnet32_4e are: '),
        ],
    )
    def test_models(self, broken, name, wanted):
        with pytest.raises(RideError) as caught:
            main([name, str(broken / '1.jpg')])
        assert str(caught.value).startswith(wanted)

    def test_nothing_to_predict(self, experts, tmp_path, monkeypatch):
        with pytest.raises(RideError, match=r'Nothing to predict: no image lies in the folder'):
            main([str(experts), str(tmp_path)])
        monkeypatch.setattr(sys, 'stdin', io.TextIOWrapper(io.BytesIO(b'\r\n')))
        with pytest.raises(RideError, match='Nothing to predict: the list of paths is empty'):
            main([str(experts), '-'])


def test_a_table_of_images(data, experts, tmp_path, capsys):
    """The same answers as for the files, under the names of the table; the missing one is named."""
    files = sorted((data / 'val' / 'cat').glob('*.png'))
    table = tmp_path / 'photos.csv'
    table.write_text('photo_no;file\n' + ''.join(f'{i};{path.stem}\n' for i, path in enumerate(files)) + '9;gone\n')
    where = ['--table', str(table), '--data-dir', str(data / 'val' / 'cat'), '--json']
    assert main([str(experts), *where]) == 1
    out, err = capsys.readouterr()
    assert 'gone' in err
    rows = json.loads(out)
    assert [row['path'] for row in rows] == [path.stem for path in files]
    assert main([str(experts), *map(str, files), '--json']) == 0
    assert [row | {'path': ''} for row in json.loads(capsys.readouterr().out)] == [row | {'path': ''} for row in rows]


def test_boxes_of_a_detector(data, experts, tmp_path, capsys):
    file = data / 'val' / 'cat' / '0.png'
    boxes = [[0, 0, 0.5, 1], [0.5, 0, 0.5, 1], [0, 0, 1, 1]]
    detections = [
        {'category': '1', 'conf': conf, 'bbox': box} for conf, box in zip((0.9, 0.1, 0.5), boxes, strict=True)
    ]
    content = {'images': [{'file': file.name, 'detections': detections}], 'detection_categories': {'1': 'animal'}}
    (tmp_path / 'md.json').write_text(json.dumps(content))
    where = ['--table', str(tmp_path / 'md.json'), '--data-dir', str(file.parent), '--crop', 'boxes', '--json']
    assert main([str(experts), *where]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row['path'] for row in rows] == ['0.png#xywh=percent:0,0,50,100', '0.png#xywh=percent:0,0,100,100']
    parts = open_unlabelled(tmp_path / 'md.json', file.parent, crop=Crop('boxes'))
    assert [(found.path, found.top[0].label) for found in rt.predict(load(experts), parts)] == [
        (row['path'], row['label']) for row in rows
    ]
    with Image.open(file) as image:
        half = next(predict(load(experts), [image.crop((0, 0, image.width // 2, image.height))]))
    votes = [(vote['label'], vote['confidence']) for vote in rows[0]['top']]
    assert votes == [(vote.label, pytest.approx(vote.confidence, rel=1e-4)) for vote in half.top]


@pytest.mark.parametrize('argv', [['--table', 't.csv', 'x.png'], ['--crop', 'boxes', 'x.png'], []])
def test_images_are_named_one_way(experts, argv):
    with pytest.raises(RideError, match='--table'):
        main([str(experts), *argv])
