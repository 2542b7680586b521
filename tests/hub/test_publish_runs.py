"""`ride-timm publish` of runs of a second: what they measured themselves, and on which images."""

import csv
import json
import shutil

import pytest
import timm
import torch
from published import UPLOADED, images
from safetensors.torch import load
from tiny_runs import CIFAR, COUNTS, train, write_images

from ride_timm.commands.publish import main
from ride_timm.errors import RideError
from ride_timm.inference.load import load as load_network

REPO = f'me/{CIFAR}.mine'
RIDE = ('--model', CIFAR, '--loss', 'balpoe')


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    """A: images held out, and its router, which chose a threshold on them; B: all images; a network of timm's."""
    output = tmp_path_factory.mktemp('runs')
    data = write_images(tmp_path_factory.mktemp('data') / 'colours', val=5)
    first = train(data, output, 'A', *RIDE, '--holdout', '0.25')
    train(data, output, 'A-router', '--stage', 'router', '--init', str(first / 'last.pth.tar'))
    train(data, output, 'B', *RIDE, '--seed', '5', '--model-ema')
    train(data, output, 'plain', '--model', 'test_resnet', '--loss', 'ce', size=32)
    return output


def publish(folder, *options, repo_id=REPO):
    return main([str(folder), repo_id, *options])


def published_results(hub, repo_id=REPO):
    return json.loads(hub.files(repo_id)['results.json'])


def read_run(folder):
    return json.loads((folder / 'results.json').read_text())


def accuracies(folder):
    with (folder / 'per_class.csv').open(newline='') as file:
        return [float(row['accuracy']) if row['accuracy'] else None for row in csv.DictReader(file)]


@pytest.mark.parametrize('hub_mode', ['lfs', 'inline'])
def test_a_routers_run(hub, hub_login, runs):
    publish(runs / 'A-router')
    assert list(hub.files(REPO)) == UPLOADED
    trained = load_network(runs / 'A-router').model
    net = timm.create_model(f'hf-hub:{REPO}', pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(net(images()), trained(images()))
        assert torch.equal(net.forward_routed(images()).logits, trained.forward_routed(images()).logits)
    config = json.loads(hub.files(REPO)['config.json'])
    assert config['label_names'] == list(COUNTS)
    assert config['ride']['tau'] == [0.0, 1.0, 2.0]

    results, run, experts = published_results(hub), read_run(runs / 'A-router'), read_run(runs / 'A')
    assert results['name'] == f'{CIFAR}.mine'
    assert results['data']['evaluated_on'] == 'held_out'
    assert results['data']['test_images'] == run['choices']['held_out']['images'] == 10
    assert results['data']['train_images'] == sum(COUNTS.values()) - 10
    assert results['choices']['threshold'] == run['choices']['threshold'] == net.router_threshold
    assert results['choices']['sweep'] == run['choices']['sweep']
    assert results['test']['routed'] == run['last']
    assert [stage['stage'] for stage in results['training']] == ['experts', 'router']
    for name in ('top1', 'ece', 'expert0_top1'):
        assert results['test']['all_experts'][name] == experts['last'][name]
    assert [row['accuracy'] for row in results['test']['per_class']] == accuracies(runs / 'A')
    assert results['network']['bytes'] == len(hub.files(REPO)['model.safetensors'])


def test_the_card_names_the_images(hub, hub_login, runs, capsys):
    publish(runs / 'A-router', '--data-name', 'Colours')
    card = hub.files(REPO)['README.md'].decode()
    assert 'not test images' in card
    assert 'held-out training images' in card
    assert 'training images of' in card.split('##')[0]
    assert 'Colours' in card
    assert 'split: held out' in card


def test_without_the_experts_run(hub, hub_login, runs, tmp_path):
    """The figures of all experts are then those of threshold 0; the accuracies of the classes are not known."""
    shutil.copytree(runs / 'A-router', tmp_path / 'alone')
    run = read_run(tmp_path / 'alone')
    run['training'][0]['init'] = str(tmp_path / 'gone' / 'last.pth.tar')
    (tmp_path / 'alone' / 'results.json').write_text(json.dumps(run))
    publish(tmp_path / 'alone')
    results = published_results(hub)
    assert [stage['stage'] for stage in results['training']] == ['router']
    assert results['test']['all_experts']['top1'] == run['choices']['sweep'][0]['top1']
    assert [row['accuracy'] for row in results['test']['per_class']] == [None] * len(COUNTS)
    assert [row['train_images'] for row in results['test']['per_class']] == [18, 9, 4]


def test_a_run_on_all_images(hub, hub_login, runs):
    """Its figures are those of the moving average, and so are the weights."""
    repo_id = 'me/some-name'
    publish(runs / 'B', repo_id=repo_id)
    results, run = published_results(hub, repo_id), read_run(runs / 'B')
    assert results['name'] == f'{CIFAR}.balpoe_colours'
    assert results['data']['evaluated_on'] == 'test'
    assert results['choices'] is results['test']['routed'] is None
    assert {key: results['test']['all_experts'][key] for key in run['last']} == run['last']
    assert results['seeds'][0]['seed'] == 5
    saved = load(hub.files(repo_id)['model.safetensors'])
    average = torch.load(runs / 'B' / 'last.pth.tar', weights_only=True)['state_dict_ema']
    assert all(torch.equal(saved[key.removeprefix('module.')], average[key]) for key in average)
    assert 'not test images' not in hub.files(repo_id)['README.md'].decode()

    before = hub.head(repo_id)
    publish(runs / 'B', repo_id=repo_id)
    assert hub.head(repo_id) == before


def test_a_network_of_timm(hub, hub_login, runs):
    publish(runs / 'plain', repo_id='me/plain')
    results = published_results(hub, 'me/plain')
    assert results['name'] == 'test_resnet.ce_colours'
    assert (results['network']['num_experts'], results['network']['gmacs_by_experts']) == (1, None)
    net = timm.create_model('hf-hub:me/plain', pretrained=True).eval()
    with torch.inference_mode():
        assert torch.equal(net(images()), load_network(runs / 'plain').model(images()))


def test_an_unfinished_run(hub, hub_login, runs, tmp_path):
    shutil.copytree(runs / 'B', tmp_path / 'run')
    content = read_run(tmp_path / 'run')
    (tmp_path / 'run' / 'results.json').write_text(json.dumps(content | {'last_epoch': 7}))
    with pytest.raises(RideError, match=r'is of another epoch than the results'):
        publish(tmp_path / 'run')
    (tmp_path / 'run' / 'results.json').unlink()
    with pytest.raises(RideError, match=r'holds no results\.json, which a training writes at its end'):
        publish(tmp_path / 'run')
    assert hub.requests == []
