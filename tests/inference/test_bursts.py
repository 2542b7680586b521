"""Images answered together: the mean of their logits, whatever the batches are, and each with its own experts."""

import csv
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_runs import CIFAR

import ride_timm as rt
from ride_timm.commands.predict import main
from ride_timm.errors import RideError
from ride_timm.inference.load import load
from ride_timm.inference.prediction import vote
from ride_timm.publishing.folder import save_folder


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    save_folder(timm.create_model(CIFAR, num_classes=4), tmp_path / 'net', list('abcd'), [4, 3, 2, 1])
    rng = np.random.default_rng(0)
    for name in ('fox_1', 'elk_1', 'fox_2', 'fox_3', 'elk_2', 'alone'):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f'{name}.png')
    (tmp_path / 'fox_4.png').write_bytes(b'no image')
    return tmp_path


def test_the_images_of_a_burst_get_the_answer_of_their_mean_logits(folder, capsys):
    names = sorted(map(str, folder.glob('*.png')))
    logits = torch.cat([batch.votes.logits for batch in vote(load(folder / 'net'), names)])
    assert (
        main([str(folder / 'net'), *names, '--group-pattern', r'(\w+)_\d[.]', '--json', '-b', '2', '--device', 'cpu'])
        == 1
    )
    rows = json.loads(capsys.readouterr().out)
    assert [row['path'] for row in rows] == [name for name in names if 'fox_4' not in name]
    for row in rows:
        word = row['path'].rpartition('/')[2].partition('_')[0]
        members = [i for i, name in enumerate(names) if f'/{word}' in name and 'fox_4' not in name]
        share, answer = logits[members].mean(0).softmax(0).max(0)
        assert row['group'] == (row['path'] if 'alone' in word else word)
        assert row['class_index'] == int(answer)
        assert row['confidence'] == pytest.approx(float(share), abs=1e-5)
        (own,) = rt.predict(load(folder / 'net'), row['path'])
        assert [vote['label'] for vote in row['experts']] == [vote.label for vote in own.experts]


def test_by_a_column_of_a_table(folder, tmp_path):
    table = tmp_path / 'images.csv'
    table.write_text('image,burst\nfox_1.png,1\nelk_1.png,1\nfox_2.png,\n')
    options = ['--table', str(table), '--data-dir', str(folder), '--group-column', 'burst', '--device', 'cpu']
    assert main([str(folder / 'net'), *options, '--output', str(tmp_path / 'out.csv')]) == 0
    first, second, third = csv.DictReader((tmp_path / 'out.csv').read_text().splitlines())
    assert (first['group'], third['group']) == ('1', 'fox_2.png')
    assert first['confidence'] == second['confidence'] != third['confidence']
    table.write_text('image,burst\nfox_1.png,\nelk_1.png,\n')
    with pytest.raises(RideError, match='--group-column burst'):
        main([str(folder / 'net'), *options])


def test_there_is_a_group_for_each_image(folder):
    net = load(folder / 'net')
    with pytest.raises(RideError, match='one for each'):
        rt.predict(net, [str(folder / 'alone.png')], groups=['a', 'b'])
