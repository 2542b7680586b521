"""The report: a page that is safe, whole and says what `validate` says."""

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from report_reading import Page, read, report, validated
from timm.models._input import update_model_args
from tiny_runs import CIFAR, train, write_images

from ride_timm.cli import guarded
from ride_timm.commands.report import build_parser, main
from ride_timm.data import choose_groups, create_eval_loader, open_eval_split
from ride_timm.errors import RideError
from ride_timm.evaluation.metrics import ClassResult, expected_calibration_error, wilson_interval
from ride_timm.evaluation.one_pass import Answers, Measured, measure_split
from ride_timm.evaluation.sweep import THRESHOLDS
from ride_timm.inference.load import load
from ride_timm.inference.prediction import predict
from ride_timm.pages import figures
from ride_timm.pages.answers import agreement, reliability, worst_pairs
from ride_timm.pages.figures import draw_curves, read_curves, thumbnail
from ride_timm.pages.report import Content, Example, render
from ride_timm.publishing.folder import save_folder

NAMES = ['<script>alert(1)</script>', 'a & b "wild" <img src=x onerror=alert(1)>', "été d'hiver 猫 {x} $title"]


@pytest.fixture(autouse=True)
def small_figures(monkeypatch):
    """What is on the figures is tested elsewhere; large ones take seconds."""
    monkeypatch.setattr(figures, 'DPI', 50)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Images with lists, whose class names are trouble."""
    root = write_images(tmp_path_factory.mktemp('images'))
    for split in ('train', 'val'):
        files = [(label, path) for label, name in enumerate(('ant', 'bee', 'cat'))
                 for path in sorted((root / split / name).iterdir())]  # fmt: skip
        (root / f'{split}.txt').write_text(''.join(f'{path.relative_to(root)} {label}\n' for label, path in files))
    (root / 'names.txt').write_text('\n'.join(NAMES) + '\n', encoding='utf-8')
    return root


@pytest.fixture(scope='module')
def forms(data):
    return ['--train-list', data / 'train.txt', '--val-list', data / 'val.txt', '--class-names', data / 'names.txt']


@pytest.fixture(scope='module')
def experts(tmp_path_factory, data, forms):
    """A run of two epochs without a router, from lists."""
    return train(
        data, tmp_path_factory.mktemp('runs'), 'a <b> & c', '--model', CIFAR, *map(str, forms), '--epochs', '2'
    )


@pytest.fixture(scope='module')
def routed(tmp_path_factory, data):
    """A packaged folder with a router that parts the images; its weights are random."""
    torch.manual_seed(3)
    net = timm.create_model(CIFAR, num_classes=3, router=True).eval()
    with torch.no_grad():
        net.router.out.weight.normal_(std=3)
        for weight in net.experts.parameters():
            if weight.ndim == 2:
                weight.normal_(std=3)
        net.pretrained_cfg.update(input_size=(3, 8, 8), crop_pct=1.0)
        images = torch.cat([batch for batch, _ in loading(net, data)])
        threshold = float(net.forward_router(images).router_logits.sigmoid().median())
    update_model_args(net, router_threshold=threshold)
    net.router_threshold = threshold
    folder = tmp_path_factory.mktemp('weights') / 'net'
    save_folder(net, folder, ['ant', 'bee', 'cat'], [24, 12, 5], {'loss': 'ride'})
    return folder


def loading(net, data):
    """Batches of the evaluation images as the network takes them."""
    config = timm.data.resolve_data_config({}, model=net)
    keys = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
    split = open_eval_split(data, class_names=['ant', 'bee', 'cat'])
    options = {key: config[key] for key in keys}
    return create_eval_loader(split, batch_size=7, device=torch.device('cpu'), **options)


def assert_column(page, column, measured, names):
    labels = {'overall': 'top1', 'worst class': 'worst_class', 'calibration error (ECE)': 'ece',
              'harmonic mean of the classes': 'harmonic', 'many': 'many', 'medium': 'medium', 'few': 'few'}  # fmt: skip
    for name in names:
        assert page.row(name)[column] == f'{measured[labels[name]]:.2f}', name


ALL = ('overall', 'many', 'medium', 'few', 'worst class', 'calibration error (ECE)', 'harmonic mean of the classes')


def test_a_run_from_lists_with_troublesome_names(experts, data, forms, capsys):
    report(experts)
    assert str(experts / 'report.html') in capsys.readouterr().out
    page = read(experts / 'report.html')
    assert page.ids == [
        'accuracy', 'tail', 'confusions', 'calibration', 'experts', 'training', 'errors', 'classes'
    ]  # fmt: skip
    assert set(NAMES) <= set(page.texts)
    assert experts.name in page.texts
    measured = validated(experts / 'last.pth.tar', '--data-dir', data, *forms)
    assert_column(page, 1, measured, ALL)
    for k in range(3):
        assert page.row(f'expert {k} alone')[1] == f'{measured[f"expert{k}_top1"]:.2f}'
    table = (experts / 'per_class.csv').read_text(encoding='utf-8')
    for name, count in zip(NAMES, (24, 12, 5), strict=True):
        row = page.class_row(name)
        assert row[2:4] == [str(count), '4']
        assert f',{count},4,{float(row[4])}' in table
    wrong = round(12 * (1 - measured['top1'] / 100))
    assert len(page.images) == 3 + wrong
    assert any('2 of 2 epochs.' in text for text in page.texts)


def test_the_answers_on_the_page_are_those_of_predict(experts, data):
    report(experts / 'last.pth.tar', '--output', experts / 'other.html')
    page = read(experts / 'other.html')
    trained = load(experts)
    paths = [str(path) for path in sorted((data / 'val').rglob('*.png'))]
    truth = dict(zip(('ant', 'bee', 'cat'), NAMES, strict=True))
    found = dict(zip(paths, predict(trained, paths), strict=True))
    wrong = {path: p.top[0] for path, p in found.items() if p.top[0].label != truth[path.split('/')[-2]]}
    order = sorted(wrong, key=lambda path: -wrong[path].confidence)
    assert wrong
    assert page.alts[3:] == [f'Image of {truth[path.split("/")[-2]]}' for path in order]
    with Image.open(order[0]) as image, Image.open(io.BytesIO(page.images[3])) as shown:
        assert np.array_equal(np.asarray(image), np.asarray(shown))


def test_a_single_epoch_makes_no_curve(data, tmp_path):
    run = train(data, tmp_path, 'run', '--model', CIFAR)
    report(run)
    page = read(run / 'report.html')
    assert 'training' in page.ids
    assert '1 of 1 epoch.' in page.texts
    assert not any('epochs' in alt for alt in page.alts)


@pytest.fixture(scope='module')
def unbalanced(data, tmp_path_factory):
    """The images, with 12, 4 and 2 to evaluate on."""
    root = write_images(tmp_path_factory.mktemp('unbalanced'), val=12)
    for name, kept in (('bee', 4), ('cat', 2)):
        for path in sorted((root / 'val' / name).iterdir())[kept:]:
            path.unlink()
    return root


def test_the_mean_over_classes_leads_where_images_are_not_balanced(routed, unbalanced, tmp_path):
    common = [f'local-dir:{routed}', '--data-dir', unbalanced]
    report(*common, '--output', tmp_path / 'a.html')
    page = read(tmp_path / 'a.html')
    for column, more in ((1, []), (2, ['--routed'])):
        measured = validated(*common, *more)
        assert measured['balanced'] != pytest.approx(measured['top1'])
        for name, key in (('mean over classes', 'balanced'), ('over images', 'top1'), ('macro F1', 'macro_f1')):
            assert page.row(name)[column] == f'{measured[key]:.2f}'
    order = [row[0] for row in page.rows]
    assert order.index('over images') == order.index('mean over classes') + 1
    tiles = [text for text in page.texts if text in ('mean over classes', 'over images', 'overall')]
    assert tiles[:2] == ['mean over classes', 'over images']
    assert 'overall' not in tiles
    assert page.row('expert 0 alone, over images')[1]
    assert any('2 to 12 per class' in text for text in page.texts)


def test_precision_and_intervals_stand_next_to_accuracy(routed, unbalanced, tmp_path):
    table = tmp_path / 'classes.csv'
    common = [f'local-dir:{routed}', '--data-dir', unbalanced]
    report(*common, '--output', tmp_path / 'a.html')
    validated(*common, '--per-class-file', table)
    page = read(tmp_path / 'a.html')
    with table.open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row['predicted']) for row in rows) == 18
    for row in rows:
        low, high = wilson_interval(int(row['correct']), int(row['test_images']))
        assert (float(row['accuracy_low']), float(row['accuracy_high'])) == (low, high)
        precision = f'{float(row["precision"]):.2f}' if row['precision'] else '\N{EN DASH}'
        accuracy = f'{float(row["accuracy"]):.2f}'
        expected = [row['test_images'], accuracy, f'{low:.0f} to {high:.0f}', precision, row['predicted']]
        assert page.class_row(row['name'])[3:] == expected


def test_the_curve_of_the_mean_over_classes(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        'ride_timm.pages.figures._line', lambda axes, epochs, values, colour, label, width=1: drawn.append(label)
    )
    curves = {'epoch': [0, 1], 'lr': [0.1, 0.1], 'eval_top1': [50.0, 60.0], 'eval_balanced': [50.0, 60.0 + 1e-12]}
    draw_curves(curves)
    assert 'overall' in drawn
    assert 'mean over classes' not in drawn
    drawn.clear()
    draw_curves(curves | {'eval_balanced': [40.0, 60.0]})
    assert drawn.index('mean over classes') < drawn.index('over images')
    assert 'overall' not in drawn


def test_experts_that_never_agree_have_no_accuracy_where_they_do():
    votes = np.array([[0, 1], [1, 0]])
    answers = Answers(np.array([0, 1]), np.array([0, 1]), np.array([0.9, 0.8]), votes, np.full((2, 2), 0.7))
    measured = replace(_measured(answers, ('a', 'b')), num_experts=2)
    measured.metrics.update(expert0_top1=100.0, expert1_top1=0.0)
    page = Page(render(Content('n', 'm', 'd', measured, {}, {'calibration': thumbnail(Image.new('L', (4, 4)))})))
    assert page.row('all experts agree')[1:] == ['0', '0.0 %', '\N{EN DASH}']
    assert page.row('they differ')[1:] == ['2', '100.0 %', '100.00 %']


def test_a_router(routed, data, tmp_path):
    report(f'local-dir:{routed}', '--data-dir', data, '--output', tmp_path / 'a.html')
    page = read(tmp_path / 'a.html')
    assert 'routing' in page.ids
    assert 'training' not in page.ids
    common = [f'local-dir:{routed}', '--data-dir', data]
    assert_column(page, 1, validated(*common), ALL)
    own = validated(*common, '--routed')
    assert 1 < own['mean_experts'] < 3  # the threshold parts the images
    assert_column(page, 2, own, ALL)
    assert page.row('experts, mean')[1:] == ['3', f'{own["mean_experts"]:.2f}']
    assert any(f'{100 * own["share_1"]:.1f}\xa0% pass 1 expert' in text for text in page.texts)


def test_levels_of_a_taxonomy(routed, data, tmp_path):
    (tmp_path / 'tree.csv').write_text('ant,insect\nbee,insect\ninsect,animal\ncat,animal\n')
    common = [f'local-dir:{routed}', '--data-dir', data, '--taxonomy', tmp_path / 'tree.csv']
    report(*common, '--output', tmp_path / 'a.html')
    page = read(tmp_path / 'a.html')
    for column, more in ((3, []), (4, ['--routed'])):
        measured = validated(*common, *more)
        assert page.row('classes')[column] == f'{measured["top1"]:.2f}'
        for level in (1, 2):
            assert page.row(f'level {level}')[column] == f'{measured[f"level{level}_top1"]:.2f}'
    assert [page.row(name)[2] for name in ('classes', 'level 1', 'level 2')] == ['3', '2', '1']
    pairs = {frozenset(row[:2]): row[2] for row in page.rows if set(row[:2]) <= {'ant', 'bee', 'cat'}}
    shared = {
        frozenset(('ant', 'bee')): 'insect',
        frozenset(('ant', 'cat')): 'animal',
        frozenset(('bee', 'cat')): 'animal',
    }
    assert pairs
    assert pairs.items() <= shared.items()


def test_a_plain_network_of_timms_without_names(data, tmp_path):
    torch.manual_seed(0)
    net = timm.create_model('test_resnet', num_classes=3)
    net.pretrained_cfg.update(input_size=(3, 32, 32))
    save_folder(net, tmp_path / 'net')
    report(tmp_path / 'net', '--data-dir', data, '--output', tmp_path / 'a.html')
    page = read(tmp_path / 'a.html')
    assert not {'experts', 'routing', 'training'} & set(page.ids)
    measured = validated(f'local-dir:{tmp_path / "net"}', '--data-dir', data)
    assert_column(page, 1, measured, ALL)
    assert page.class_row('ant')[1:4] == ['many', '24', '4']  # names and counts of the train folder


def test_without_training_counts(tmp_path):
    root = write_images(tmp_path / 'images', {'ant': 1, 'bee': 1})
    net = timm.create_model('test_resnet', num_classes=2)
    net.pretrained_cfg.update(input_size=(3, 32, 32))
    save_folder(net, tmp_path / 'net', ['ant', 'bee'])
    only = tmp_path / 'only'
    only.mkdir()
    (root / 'val').rename(only / 'val')
    report(tmp_path / 'net', '--data-dir', only, '--output', tmp_path / 'a.html')
    page = read(tmp_path / 'a.html')
    assert 'tail' not in page.ids
    assert page.class_row('ant')[1] == '4'
    assert 'training images' not in str(page.rows)


@pytest.mark.parametrize('change', ['gone', 'named', 'none', 'nowhere', 'output', 'unfinished'])
def test_what_cannot_be_is_one_sentence(experts, routed, tmp_path, capsys, change):
    folder = tmp_path / 'run'
    folder.mkdir()
    (folder / 'args.yaml').write_text(f'data_dir: {tmp_path / "away"}\ndataset: ""\n')
    if change != 'unfinished':
        (folder / 'last.pth.tar').write_bytes((experts / 'last.pth.tar').read_bytes())
    argv, said = {
        'gone': ([folder], 'say where they are with --data-dir'),
        'named': ([experts, '--data-dir', tmp_path / 'no'], 'no such folder'),
        'none': ([routed], 'is not a run folder, so it is not known where its images are; add --data-dir'),
        'nowhere': ([tmp_path / 'typo'], 'typo; name the folder of a run'),
        'output': ([experts, '--output', tmp_path / 'no' / 'a.html'], 'create it first'),
        'unfinished': ([folder], 'no last.pth.tar'),
    }[change]
    assert guarded('report', lambda: main(list(map(str, argv)))) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count('\n') == 1
    with pytest.raises(RideError):
        main(list(map(str, argv)))


def test_every_text_from_outside_is_escaped(routed, data, tmp_path):
    net = load(routed).model
    split = replace(open_eval_split(data, class_names=['ant', 'bee', 'cat']), class_names=tuple(NAMES))
    config = timm.data.resolve_data_config({}, model=net)
    measured = measure_split(net, split, [24, 12, 5], config, routed=True, thresholds=THRESHOLDS)
    picture = thumbnail(Image.new('RGB', (300, 150)))
    evil = '"><script>\x00\udcff\u202e' + NAMES[1]
    example = Example(evil, picture, evil, evil, 0.5, [(evil, 0.5)] * 3)
    pictures = dict.fromkeys(('tail', 'calibration', 'routing', 'curves'), picture)
    content = Content(evil, evil, evil, measured, {evil: evil}, pictures, [example] * 2, evil)
    path = tmp_path / 'a.html'
    path.write_text(render(content), encoding='utf-8')  # no byte of a file name is left that UTF-8 has not
    page = read(path)
    shown = '"><script>\\x00\\udcff\\u202e' + NAMES[1]
    assert page.texts.count(shown) >= 8
    assert not {'script', 'onerror'} & {*page.tags, *page.attributes}
    assert Image.open(io.BytesIO(page.images[0])).size == (128, 64)


def test_without_wrong_answers():
    names = ('a', 'b')
    measured = _measured(Answers(*map(np.array, ([0, 1], [0, 1], [0.9, 0.8], [[0], [1]], [[0.9], [0.8]]))), names)
    page = Page(render(Content('n', 'm', 'd', measured, {}, {'calibration': thumbnail(Image.new('L', (4, 4)))})))
    assert 'Every answer is right.' in page.texts
    assert 'No image was misclassified.' in page.texts


def _measured(answers, names):
    table = [ClassResult(i, name, 'many', 5, 1, 100.0) for i, name in enumerate(names)]
    measured = {'top1': 100.0, 'ece': 1.0, 'gmacs': 1.0, 'num_classes_without_images': 0}
    confusion = np.eye(len(names), len(names) + 1, dtype=np.int64)
    groups = choose_groups([5] * len(names))
    return Measured(measured, table, confusion, groups, 1, (3, 8, 8), answers)


def test_the_small_figures():
    rng = np.random.default_rng(0)
    targets, votes = rng.integers(0, 4, 60), rng.integers(0, 4, (60, 3))
    confidence = np.concatenate([rng.random(57), [0.0, 1.0, 1 / 15]])
    answers = Answers(targets, votes[:, 0], confidence, votes, rng.random((60, 3)))
    images, right, mean = reliability(answers)
    hits = np.nan_to_num(right) * images
    assert images.sum() == 60
    assert hits.sum() == pytest.approx((votes[:, 0] == targets).sum())
    for m in range(15):
        inside = (confidence > m / 15) & (confidence <= (m + 1) / 15) | ((m == 0) & (confidence == 0))
        assert images[m] == inside.sum()
        assert np.isnan(mean[m]) if not inside.any() else mean[m] == pytest.approx(confidence[inside].mean())
    assert 0 < expected_calibration_error(images, hits, np.nan_to_num(mean) * images) < 100
    matrix = agreement(answers)
    for i in range(3):
        for j in range(3):
            same = sum(a == b for a, b in zip(votes[:, i], votes[:, j], strict=True))
            assert matrix[i, j] == pytest.approx(100 * same / 60)
    confusion = np.array([[5, 3, 0, 0], [1, 2, 0, 3], [0, 0, 4, 0]])
    assert worst_pairs(confusion) == [(1, 3, 3, 6), (0, 1, 3, 8), (1, 0, 1, 6)]
    assert worst_pairs(confusion, 1) == [(1, 3, 3, 6)]


def test_the_curves_of_a_summary():
    found = read_curves('epoch,train_loss,eval_top1,lr\n0,2.5,,0.1\n1,nan,50.0,0.05\nbroken\n')
    assert found['epoch'] == [0.0, 1.0]
    assert found['lr'] == [0.1, 0.05]
    assert json.dumps(found['eval_top1']) == '[NaN, 50.0]'
    assert read_curves('') == read_curves('epoch,lr\n') == {}


def test_the_parser_has_defaults():
    args = build_parser().parse_args(['somewhere'])
    assert (args.run, args.data_dir, args.output, args.batch_size) == ('somewhere', None, None, 256)
