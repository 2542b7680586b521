"""The quickstart: runs, prints what it promises and leaves files that work."""

import json
import re
import sys

import pytest
import timm
import torch

from ride_timm.cli import main
from ride_timm.commands import quickstart


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('quickstart')


@pytest.fixture(scope='module')
def printed(folder, request):
    capture = request.config.pluginmanager.getplugin('capturemanager')
    with capture.global_and_fixture_disabled():
        import contextlib
        import io

        text = io.StringIO()
        with contextlib.redirect_stdout(text):
            assert main(['quickstart', '--output', str(folder), '--epochs', '2']) == 0
    return text.getvalue()


def test_prints_both_networks(printed):
    for name in (quickstart.PLAIN, quickstart.EXPERTS, quickstart.ROUTED):
        row = re.search(rf'^  {re.escape(name)} +((?:[\d.]+ +){{5}}[\d.]+)$', printed, re.MULTILINE)
        assert row, f'no row of {name}'
        overall, many, medium, few, experts, mmacs = map(float, row[1].split())
        assert all(0 <= value <= 100 for value in (overall, many, medium, few))
        assert 1 <= experts <= 3
        assert 0 < mmacs < 20


def test_threshold_comes_from_held_out_images(printed, folder):
    line = re.search(r'^Threshold ([\d.e-]+), chosen on held-out images: .*\d', printed, re.MULTILINE)
    assert line, printed
    model = timm.create_model(f'local-dir:{folder / "ride_routed"}', pretrained=True)
    assert model.router_threshold == pytest.approx(float(line[1]), rel=1e-5)


def test_shows_every_experts_vote(printed):
    assert len(re.findall(r'^  expert \d says \d \(\d+ %\), then \d \(\d+ %\)$', printed, re.MULTILINE)) == 3
    assert re.search(r'routed through [123] of 3 experts, the network answers \d', printed)


def test_says_how_to_go_on(printed):
    assert 'ride-timm train --data-dir YOUR_FOLDER' in printed


def test_files_are_there_and_agree_with_the_table(printed, folder):
    results = json.loads((folder / 'results.json').read_text())
    assert f'{results[quickstart.EXPERTS]["top1"]:9.1f}' in printed
    assert sum(results['class_counts']) == len(list((folder / 'digits' / 'train').glob('*/*.png')))
    assert (folder / 'per_class.png').read_bytes().startswith(b'\x89PNG')


def test_saved_network_loads_with_its_router_and_labels(printed, folder):
    model = timm.create_model(f'local-dir:{folder / "ride_routed"}', pretrained=True).eval()
    assert model.pretrained_cfg['label_names'] == [str(i) for i in range(10)]
    assert tuple(model.pretrained_cfg['input_size']) == (3, 16, 16)
    assert model.forward_routed(torch.zeros(2, 3, 16, 16)).logits.shape == (2, 10)


def test_validate_repeats_the_routed_results(printed, folder, tmp_path):
    out = tmp_path / 'figures.json'
    weights = folder / 'ride_routed' / 'model.safetensors'
    command = ['validate', '--checkpoint', str(weights), '--data-dir', str(folder / 'digits')]
    assert main([*command, '--routed', '--device', 'cpu', '--results-file', str(out)]) == 0
    figures = json.loads(out.read_text())
    routed = json.loads((folder / 'results.json').read_text())[quickstart.ROUTED]
    for name in ('top1', 'many', 'medium', 'few', 'mean_experts', 'gmacs'):
        assert figures[name] == pytest.approx(routed[name], abs=1e-6)


def test_digits_are_cut_the_same_way_again(tmp_path):
    first = quickstart.write_digits(tmp_path / 'a', seed=3)
    names = sorted(p.relative_to(tmp_path / 'a') for p in (tmp_path / 'a').glob('*/*/*.png'))
    assert quickstart.write_digits(tmp_path / 'b', seed=3) == first
    assert names == sorted(p.relative_to(tmp_path / 'b') for p in (tmp_path / 'b').glob('*/*/*.png'))
    assert first == sorted(first, reverse=True)
    assert first[0] == 114
    assert first[9] == 5


def test_splits_share_no_image(tmp_path):
    quickstart.write_digits(tmp_path, seed=3)
    names = [p.name for p in tmp_path.glob('*/*/*.png')]
    assert len(set(names)) == len(names)
    assert len(list((tmp_path / 'val').glob('*/*.png'))) == 400
    assert len(list((tmp_path / 'holdout').glob('*/*.png'))) == 200


def test_another_seed_leaves_no_stale_images(tmp_path):
    quickstart.write_digits(tmp_path, seed=1)
    counts = quickstart.write_digits(tmp_path, seed=2)
    assert len(list((tmp_path / 'train').glob('*/*.png'))) == sum(counts)


def test_missing_extra_is_one_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, 'sklearn', None)
    assert main(['quickstart', '--output', str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    assert 'pip install "ride-timm[quickstart]"' in error
