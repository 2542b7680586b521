"""`ride-timm calibrate`: what it notes in a checkpoint, what other commands make of it, and what it leaves alone."""

import json

import numpy as np
import pytest
import timm
import torch
from tiny_runs import CIFAR, train, write_images

from ride_timm.commands.calibrate import main
from ride_timm.commands.predict import main as predict
from ride_timm.commands.report import main as report
from ride_timm.commands.validate import build_parser, validate
from ride_timm.errors import RideError
from ride_timm.inference.load import load
from ride_timm.publishing.folder import save_folder
from ride_timm.publishing.staging import stage

PUBLISHED = 'ride_resnet32_3e.balpoe_cifar100lt'


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'), {'ant': 40, 'bee': 30, 'cat': 20}, val=15)


@pytest.fixture
def run(data, tmp_path):
    return train(data, tmp_path, 'run', '--model', CIFAR, '--holdout', '0.3', '--epochs', '2')


def answers(model, data, capsys, *options):
    capsys.readouterr()
    predict([str(model), str(data / 'val'), '--json', '--device', 'cpu', *options])
    return json.loads(capsys.readouterr().out)


def test_confidences_change_and_answers_do_not(run, data, tmp_path, capsys):
    before, weights = answers(run, data, capsys), load(run).model.state_dict()
    measured = validate(build_parser().parse_args([str(run), '--data-dir', str(data), '--device', 'cpu']))
    assert main([str(run), '--data-dir', str(data), '--device', 'cpu']) == 0
    shown = capsys.readouterr().out
    net = load(run)
    found = net.record.calibration
    assert found.full.images == 27 and '27 images' in shown  # those held out
    assert all(torch.equal(value, weights[key]) for key, value in net.model.state_dict().items())
    after = answers(run, data, capsys)
    assert [row['label'] for row in after] == [row['label'] for row in before]
    logits = np.log([[vote['confidence'] for vote in row['top']] for row in before])
    expected = np.exp(logits / found.temperatures[-1])
    expected /= expected.sum(1, keepdims=True)
    np.testing.assert_allclose([[vote['confidence'] for vote in row['top']] for row in after], expected, rtol=1e-4)
    again = validate(build_parser().parse_args([str(run), '--data-dir', str(data), '--device', 'cpu']))
    assert again['top1'] == measured['top1']
    right = np.array([row['label'] in row['path'] for row in after])
    gap = abs(expected.max(1).mean() - right.mean())
    assert again['ece'] >= 100 * gap - 1e-3  # of the confidences that predict shows: no binning can be below it
    assert (tmp_path / 'to_upload').mkdir() is None
    stage(run, 'me/net', tmp_path / 'to_upload')
    assert load(tmp_path / 'to_upload').record.calibration == found


def test_a_run_says_where_its_images_are(run, data, capsys):
    assert main([str(run), '--device', 'cpu']) == 0
    assert '27 images' in capsys.readouterr().out
    here, there = (
        validate(build_parser().parse_args([str(run), '--device', 'cpu', *options]))
        for options in ((), ('--data-dir', str(data)))
    )
    assert here == there


def test_temperatures_that_make_it_worse_are_told(run, data, caplog, monkeypatch):
    monkeypatch.setattr('ride_timm.inference.calibration.fit_temperature', lambda *_: 100.0)
    assert main([str(run), '--device', 'cpu']) == 0
    assert 'calibration error is larger' in caplog.text


def test_answers_below_the_limit_are_unknown(run, data, capsys):
    main([str(run), '--data-dir', str(data), '--split', 'val', '--device', 'cpu'])
    rows = answers(run, data, capsys, '--abstain', '0.9', '--confidence', '0.5')
    least = min(row['confidence'] for row in rows if row['label'] != 'unknown')
    for row in rows:
        assert (row['label'] == 'unknown') == (row['class_index'] is None) == (row['confidence'] < least)
    with pytest.raises(RideError, match=r'it takes at least|only a higher rate'):
        answers(run, data, capsys, '--abstain', '0.0001')


def test_training_on_drops_it(run, data, tmp_path):
    main([str(run), '--data-dir', str(data), '--device', 'cpu'])
    options = ['--model', CIFAR, '--holdout', '0.3', '--epochs', '3', '--resume', 'auto']
    train(data, tmp_path, 'run', *options)
    assert load(run).record.calibration is None


def test_a_folder_with_a_router_is_measured_both_ways(data, tmp_path, capsys):
    torch.manual_seed(0)
    model = timm.create_model(CIFAR, num_classes=3, router=True, router_threshold=0.4)
    save_folder(model, tmp_path / 'net', ['ant', 'bee', 'cat'], [40, 30, 20])
    main([str(tmp_path / 'net'), '--data-dir', str(data), '--device', 'cpu'])
    report([str(tmp_path / 'net'), '--data-dir', str(data), '--output', str(tmp_path / 'report.html')])
    assert 'routed, threshold 0.4</th>' in (tmp_path / 'report.html').read_text()
    found = load(tmp_path / 'net').record.calibration
    assert (found.full.threshold, found.routed.threshold) == (None, 0.4)
    config = json.loads((tmp_path / 'net/config.json').read_text())
    config['ride']['calibration']['full']['limits'].append(0.0)
    (tmp_path / 'net/config.json').write_text(json.dumps(config))
    with pytest.raises(RideError, match='calibrate the network again'):
        load(tmp_path / 'net')


def test_a_published_network_is_written_to_a_folder(tmp_path):
    images = write_images(tmp_path / 'images', {'apple': 1, 'aquarium_fish': 1, 'baby': 1}, val=12, size=32)
    for name in load(PUBLISHED).class_names:
        (images / 'val' / name).mkdir(exist_ok=True)
    with pytest.raises(RideError, match='--output'):
        main([PUBLISHED, '--data-dir', str(images)])
    main([PUBLISHED, '--data-dir', str(images), '--output', str(tmp_path / 'net'), '--device', 'cpu'])
    assert load(tmp_path / 'net').record.calibration.full.images == 36
    assert load(PUBLISHED).temperatures is None
