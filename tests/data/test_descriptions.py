"""Classes named by WordNet ids are shown by what they mean, everywhere the same network says the same."""

import json

import pytest
import timm
import torch
from tiny_runs import CIFAR, train, write_images

import ride_timm.commands.report
from ride_timm.commands import predict
from ride_timm.data.descriptions import label_descriptions, readable_label
from ride_timm.publishing.folder import save_folder

GOLDFISH, FISH = 'n01443537', {'n01443537': 'goldfish, Carassius auratus'}
NO_CLASS = 'n99999999'


def test_wordnet_ids_are_described():
    assert readable_label(GOLDFISH) == 'goldfish (n01443537)'
    assert label_descriptions([GOLDFISH, 'cat', NO_CLASS, '']) == FISH


@pytest.mark.parametrize('name', ['cat', '', '0', NO_CLASS, 'n01443537 ', 'N01443537', 'xn01443537', 'n014435370'])
def test_other_names_stay(name):
    assert readable_label(name) == name
    assert label_descriptions([name]) == {}


def test_classes_that_share_a_lemma_stay_apart():
    crane = 'n02012849', 'n03126707'  # the bird and the machine
    assert len({label_descriptions([name])[name].split(',')[0] for name in crane}) == 1
    assert len({readable_label(name) for name in crane}) == 2


def test_timm_finds_them_in_a_folder(tmp_path):
    net = timm.create_model(CIFAR, num_classes=2)
    save_folder(net, tmp_path / 'net', [GOLDFISH, 'cat'], [3, 2])
    loaded = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True)
    assert loaded.pretrained_cfg['label_names'] == [GOLDFISH, 'cat']
    assert loaded.pretrained_cfg['label_descriptions'] == FISH


def test_they_do_not_outlive_their_classes(tmp_path):
    save_folder(timm.create_model(CIFAR, num_classes=2), tmp_path / 'net', [GOLDFISH, 'cat'], [3, 2])
    tuned = timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True)
    save_folder(tuned, tmp_path / 'tuned', ['ant', 'bee'], [3, 2])
    assert GOLDFISH not in (tmp_path / 'tuned' / 'config.json').read_text()


def test_predict_and_report_show_them(tmp_path, capsys):
    torch.manual_seed(0)
    data = write_images(tmp_path / 'images', {GOLDFISH: 12, 'n02012849': 5, 'cat': 3})
    run = train(data, tmp_path, 'run')
    image = str(data / 'val' / GOLDFISH / '0.png')
    capsys.readouterr()
    assert predict.main([str(run), image, '--device', 'cpu']) == 0
    assert 'goldfish (n01443537)' in capsys.readouterr().out
    assert predict.main([str(run), image, '--device', 'cpu', '--json']) == 0
    said = json.loads(capsys.readouterr().out)  # other programs get the names of the classes
    assert {vote['label'] for vote in said[0]['top']} == {GOLDFISH, 'n02012849', 'cat'}
    assert ride_timm.commands.report.main([str(run), '--device', 'cpu', '--output', str(tmp_path / 'page.html')]) == 0
    page = (tmp_path / 'page.html').read_text()
    assert '<bdi>goldfish (n01443537)</bdi>' in page
    assert '<bdi>crane (n02012849)</bdi>' in page
    assert f'alt="Image of {GOLDFISH}"' not in page
