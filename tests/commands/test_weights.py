"""What the published weights claim, recomputed: hashes, sizes, parameters, GMACs, cards, tables."""

import json
from pathlib import Path

import pytest
import timm
import torch

from ride_timm.evaluation.cost import describe_network
from ride_timm.evaluation.sweep import choose_threshold
from ride_timm.pages.card import models_table, render_card
from ride_timm.publishing.index import hash_folder
from ride_timm.records.published import package_root, published_weights, read_index
from ride_timm.records.results import read_results

ROOT = Path(__file__).resolve().parents[2]
WEIGHTS = read_index(package_root()) if (package_root() / 'index.json').is_file() else {}
LOCAL = {name: weight for name, weight in WEIGHTS.items() if weight.is_local}
every_weight = pytest.mark.parametrize('weight', WEIGHTS.values(), ids=list(WEIGHTS))
every_local_weight = pytest.mark.parametrize('weight', LOCAL.values(), ids=list(LOCAL))


def results_of(weight):
    return json.loads((weight.folder / 'results.json').read_text(encoding='utf-8'))


def all_results():
    return [read_results(weight.folder) for weight in WEIGHTS.values()]


def test_every_folder_is_in_the_index():
    folders = {path.name for path in package_root().iterdir() if path.is_dir() and not path.name.startswith('.')}
    assert folders == set(WEIGHTS)


def test_timm_lists_exactly_what_can_be_had():
    available = {name for name, weight in published_weights().items() if weight.source}
    assert set(timm.list_pretrained('*ride_*')) == available


@every_weight
def test_the_hashes(weight):
    on_disk = hash_folder(weight.folder)
    expected = {name: hash_._asdict() for name, hash_ in weight.files.items()}
    missing = expected.keys() - on_disk.keys()
    assert all(name.endswith('.safetensors') for name in missing)  # large ones need not be in a clone
    assert {name: about for name, about in expected.items() if name not in missing} == on_disk


@every_local_weight
def test_size_and_cost(weight):
    results = results_of(weight)
    net = timm.create_model(weight.name, pretrained=True)
    described = json.loads(json.dumps(describe_network(net, results['network']['input_size'])))
    assert {key: results['network'][key] for key in described} == described
    assert results['network']['bytes'] == sum(weight.files[name].size for name in weight.tensor_files)
    assert results['test']['all_experts']['gmacs'] == pytest.approx(described['gmacs'])


@every_local_weight
def test_it_computes_and_fine_tunes(weight):
    net = timm.create_model(weight.name, pretrained=True).eval()
    images = torch.randn(2, *results_of(weight)['network']['input_size'])
    with torch.inference_mode():
        assert net(images).isfinite().all()
    other = timm.create_model(weight.name, pretrained=True, num_classes=10).train()
    assert other(images).shape == (2, 10)


@every_weight
def test_the_configuration_agrees_with_the_results(weight):
    results, about = results_of(weight), weight.config['ride']
    assert results['name'] == weight.name
    assert sum(about['class_counts']) == results['data']['train_images']
    assert len(about['class_counts']) == len(weight.config['label_names']) == results['data']['num_classes']
    assert about['router'] == results['network']['router']
    if results['choices'] is not None:
        assert about['router_threshold'] == results['choices']['threshold']


@every_weight
def test_the_threshold_was_chosen_on_held_out_images(weight):
    results = results_of(weight)
    if not results['network']['router']:
        pytest.skip('no router')
    choices = results['choices']
    # what was given by hand is what the rule would take over the images alone, and the card says why
    by_hand = choices['by_hand']
    assert choices['threshold'] == choose_threshold(choices['sweep'], **({'measures': ['top1']} if by_hand else {}))
    assert not by_hand or 'chosen on run A' in results['note']
    assert choices['held_out']['images'] + choices['training'][0]['images'] == results['data']['train_images']
    assert results['test']['routed']['threshold'] == choices['threshold']


@every_weight
def test_the_commits_are_known(weight):
    for stage in results_of(weight)['training']:
        assert len(stage['commit']) == 40
        assert all(character in '0123456789abcdef' for character in stage['commit'])


@every_weight
def test_the_per_class_figures_add_up(weight):
    test = results_of(weight)['test']
    rows = test['per_class']
    images = sum(row['test_images'] for row in rows)
    correct = sum(row['test_images'] * row['accuracy'] / 100 for row in rows if row['test_images'])
    assert test['all_experts']['top1'] == pytest.approx(100 * correct / images)
    for name, members in test['groups'].items():
        accuracy = [rows[index]['accuracy'] for index in members]
        assert test['all_experts'][name] == pytest.approx(sum(accuracy) / len(accuracy))


@every_weight
def test_the_card_is_made_from_the_results(weight):
    card = render_card(read_results(weight.folder), weight.config, others=all_results())
    assert (weight.folder / 'README.md').read_text() == card


def test_the_model_cards_table():
    text = (ROOT / 'MODEL_CARD.md').read_text(encoding='utf-8')
    between = text.split('<!-- models: begin -->')[1].split('<!-- models: end -->')[0]
    assert between.strip() == models_table(all_results()).strip()
