"""The benchmark that draws the README's picture: what it measures, and that it shows the published results."""

import json
import sys
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from ride_timm.inference.load import TrainedNet, load
from ride_timm.records.published import published_weights
from ride_timm.records.training_record import TrainingRecord

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'benchmarks'))
import accuracy_cost
from inference import Planned, spread

ROOT = accuracy_cost.ROOT
MEASURED = ROOT / 'benchmarks/results/accuracy_cost_cpu.json'
PLAIN = 'ride_resnet32_1e.ce_cifar100lt'


def results_of(name):
    return json.loads((ROOT / 'weights' / name / 'results.json').read_text())


def check_points(found):
    """The picture shows every published network of LABELS as its results.json says, at a time of each batch."""
    shown = [point for of_data in accuracy_cost.published().values() for point in accuracy_cost.points(of_data, found)]
    assert {point.name for point in shown} == set(accuracy_cost.LABELS)
    for point in shown:
        results = results_of(point.name)
        assert list(point.milliseconds) == [str(batch) for batch in found['args']['batches']]
        assert min(point.milliseconds.values()) > 0
        if point.way == 'ensemble':
            assert point.gmacs == point.nets * results['network']['gmacs']
        else:
            test = results['test']['routed' if point.way == 'routed' else 'all_experts']
            assert (point.top1, point.gmacs) == (test['top1'], pytest.approx(test['gmacs'], rel=1e-3))
    return shown


def test_measures_and_draws(tmp_path, monkeypatch):
    names = [name for name in accuracy_cost.LABELS if name.endswith('cifar100lt')]
    monkeypatch.setattr(accuracy_cost, 'LABELS', {name: accuracy_cost.LABELS[name] for name in names})
    output, picture = tmp_path / 'found.json', tmp_path / 'picture.png'
    ensemble = {'network': PLAIN, 'nets': 3, 'seeds': [1, 2, 3], 'top1': 43.0}
    output.write_text(json.dumps({'ensembles': [ensemble]}))  # measured before
    argv = ['--output', str(output), '--picture', str(picture), '--threads', str(torch.get_num_threads())]
    accuracy_cost.main([*argv, '--rounds', '1', '--seconds', '0', '--batches', '1', '2'])
    found = json.loads(output.read_text())
    assert found['ensembles'] == [ensemble]
    assert found['environment']['threads'] == torch.get_num_threads()
    ways = [(point.name, point.way) for point in check_points(found)]
    assert ways == [(name, way) for name in names for way in ('all', 'ensemble' if name == PLAIN else 'routed')]
    with Image.open(picture) as first:
        pixels = first.convert('RGB').tobytes()
    found['rows'][0]['milliseconds']['1'] *= 10
    output.write_text(json.dumps(found))
    accuracy_cost.main([*argv, '--draw'])
    with Image.open(picture) as second:
        assert second.convert('RGB').tobytes() != pixels


def test_every_published_network_is_in_the_picture():
    assert set(accuracy_cost.LABELS) == set(published_weights())


def test_the_committed_times_are_of_the_published_networks():
    found = json.loads(MEASURED.read_text())
    check_points(found)
    assert found['command'].startswith('python benchmarks/accuracy_cost.py')


@pytest.mark.parametrize('name', [name for name in accuracy_cost.LABELS if 'experts' in accuracy_cost.LABELS[name][0]])
def test_as_many_images_pass_each_number_of_experts_as_in_the_published_test(name):
    results = results_of(name)
    experts = results['network']['num_experts']
    shares = [results['test']['routed'][f'share_{k + 1}'] for k in range(experts)]
    passes = spread(shares, 64)
    assert all(abs((passes == k + 1).sum() - 64 * share) < 1 for k, share in enumerate(shares))


def test_each_image_passes_the_planned_experts():
    net = timm.create_model('test_ride_resnet_cifar_3e', router=True, num_classes=5).eval()
    passes = spread([0.25, 0.25, 0.5], 8)
    net.router = Planned(net.router, passes)
    with torch.no_grad():
        assert torch.equal(net.forward_routed(torch.randn(8, 3, 32, 32), 0.5).num_experts, passes)


def plain(seed):
    """As the published plain network was trained, with random weights."""
    torch.manual_seed(seed)
    published = load(PLAIN)
    model = timm.create_model('ride_resnet32_1e', num_classes=100).eval()
    record = TrainingRecord(loss='ce')
    return TrainedNet(
        model, f'run {seed}', published.class_names, published.class_counts, record, {'seed': seed}, f'run {seed}'
    )


def test_an_ensemble_answers_with_the_mean_of_the_probabilities(tmp_path, monkeypatch):
    names = load(PLAIN).class_names
    torch.manual_seed(0)
    for name, pixels in zip(names, torch.randint(256, (100, 32, 32, 3), dtype=torch.uint8), strict=True):
        folder = tmp_path / 'val' / name
        folder.mkdir(parents=True)
        Image.fromarray(pixels.numpy()).save(folder / '0.png')
    nets = {f'run {seed}': plain(seed) for seed in (1, 2, 3)}
    monkeypatch.setattr(accuracy_cost, 'load', nets.__getitem__)
    found = accuracy_cost.measure_ensemble(list(nets), str(tmp_path))
    assert (found['network'], found['nets'], found['seeds']) == (PLAIN, 3, [1, 2, 3])
    x = torch.randn(4, 3, 32, 32)
    models = [net.model for net in nets.values()]
    with torch.no_grad():
        mean = sum(model(x).softmax(1) for model in models) / 3
        torch.testing.assert_close(accuracy_cost.Ensemble(models)(x).softmax(1), mean)


@pytest.mark.parametrize(('sources', 'named'), [
    ([PLAIN] * 3, '42, 42, 42'),  # seeds
    ([PLAIN] * 2, '3 or 4'),  # as many as there are experts
    (['ride_resnet32_3e.ride_cifar100lt'] * 3, 'ride_resnet32_3e'),  # not plain
])  # fmt: skip
def test_what_is_no_ensemble_of_plain_networks_is_refused(sources, named, tmp_path):
    with pytest.raises(SystemExit, match=named):
        accuracy_cost.measure_ensemble(sources, str(tmp_path))
