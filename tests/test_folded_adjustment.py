"""The logit adjustment in the heads' biases: the arithmetic, and the way from a run to a router on top of it."""

import copy
import json

import pytest
import timm
import torch
from models.routed_nets import routed_net
from tiny_runs import CIFAR, train, write_images

import ride_timm
from ride_timm.commands.package import main as package
from ride_timm.commands.validate import build_parser, validate
from ride_timm.errors import RideError
from ride_timm.inference.load import load
from ride_timm.inference.prior import fold_logit_adjustment, logit_adjustment
from ride_timm.models import CosineLinear

COUNTS = (90, 40, 20, 10, 5, 3, 2, 1, 0)
NET, ROUTED = f'{CIFAR}.adjusted', f'{CIFAR}.routed'


def same(one, other, atol=1e-5):
    torch.testing.assert_close(one.softmax(-1), other.softmax(-1), rtol=0, atol=atol)


class TestFold:
    @pytest.mark.parametrize('head', ['cosine', 'linear'])
    def test_it_answers_as_logit_adjustment_does(self, head):
        torch.manual_seed(0)
        model = timm.create_model(CIFAR, num_classes=len(COUNTS), head=head).eval()
        served, images = copy.deepcopy(model), torch.randn(4, 3, 32, 32)
        before = model(images)
        logit_adjustment(served, COUNTS, tau=0.7)
        fold_logit_adjustment(model, COUNTS, 0.7)
        same(model(images), served(images))
        same(model.forward_experts(images), served.forward_experts(images))
        assert (model(images).softmax(1) - before.softmax(1)).abs().max() > 0.01
        assert model.head == {'cosine': 'biased_cosine', 'linear': 'linear'}[head]
        fold_logit_adjustment(model, COUNTS, -0.7)
        same(model(images), before)

    def test_a_router_goes(self):
        model, images, _ = routed_net(CIFAR, num_classes=len(COUNTS))
        model.set_routing(0.5)
        fold_logit_adjustment(model, COUNTS)
        assert model.router is None
        assert model(images).shape == (len(images), len(COUNTS))
        assert not any(key.startswith('router') for key in model.state_dict())

    def test_a_plain_network(self):
        torch.manual_seed(0)
        model = timm.create_model('test_resnet', num_classes=len(COUNTS)).eval()
        served, images = copy.deepcopy(model), torch.randn(2, 3, 32, 32)
        logit_adjustment(served, COUNTS, tau=1.0)
        fold_logit_adjustment(model, COUNTS)
        same(model(images), served(images))

    def test_a_head_without_bias(self):
        model = timm.create_model('test_resnet', num_classes=len(COUNTS))
        model.fc = torch.nn.Linear(model.num_features, len(COUNTS), bias=False)
        with pytest.raises(RideError, match='The head Linear has no bias for a logit adjustment'):
            fold_logit_adjustment(model, COUNTS)

    def test_of_other_classes(self):
        with pytest.raises(RideError, match='have 9 classes, but class_counts has 3'):
            fold_logit_adjustment(timm.create_model(CIFAR, num_classes=len(COUNTS)), (3, 2, 1))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('data'), val=9)


@pytest.fixture(scope='module')
def runs(tmp_path_factory, data):
    """The experts, held out images beside; the packaged folder with adjustment; a router trained on that."""
    output = tmp_path_factory.mktemp('runs')
    first = train(data, output, 'experts', '--model', CIFAR, '--loss', 'ride', '--holdout', '0.25')
    assert package([str(first), '--data-dir', str(data), '--output', str(output / NET), '--logit-adjustment', '1']) == 0
    train(data, output, 'router', '--stage', 'router', '--init', str(output / NET))
    assert package([str(output / 'router'), '--data-dir', str(data), '--output', str(output / ROUTED)]) == 0
    return output


def figures(folder, data, *options):
    argv = ['--model', f'local-dir:{folder}', '--data-dir', str(data), '--device', 'cpu', *options]
    return validate(build_parser().parse_args(argv))


def test_whoever_loads_the_folder_has_it(runs, data):
    counts = load(runs / NET).class_counts
    raw, images = load(runs / 'experts').model, torch.randn(3, 3, 8, 8)
    logit_adjustment(raw, counts, tau=1.0)
    loaded = timm.create_model(f'local-dir:{runs / NET}', pretrained=True).eval()
    same(loaded(images), raw(images))
    assert loaded.head == 'biased_cosine'
    assert all(isinstance(expert.fc, CosineLinear) and expert.fc.bias is not None for expert in loaded.experts)
    measured = json.loads((runs / NET / 'results.json').read_text())['test']['all_experts']
    assert figures(runs / NET, data)['ece'] == pytest.approx(measured['ece'], abs=0.01)
    tuned = ride_timm.from_pretrained(runs / NET, num_classes=2)
    assert tuned(images).shape == (3, 2)
    other = timm.create_model(f'local-dir:{runs / NET}', pretrained=True)
    other.reset_classifier(2)
    for network in (tuned, other):  # new heads have no old bias
        assert network.head == 'cosine'
        assert network.experts[0].fc.bias is None


def test_fine_tuning_on_other_classes_begins_without_it(runs, tmp_path):
    other = write_images(tmp_path / 'other', {'dog': 12, 'eel': 9})
    run = train(other, tmp_path, 'tuned', '--init', str(runs / NET))
    assert load(run).model.head == 'cosine'
    assert load(run).record.logit_adjustment is None


def test_going_on_with_the_same_classes_keeps_the_heads(runs, data, tmp_path):
    still = ('--lr', '1e-12', '--warmup-epochs', '0', '--weight-decay', '0')
    run = train(data, tmp_path, 'on', '--init', str(runs / NET), *still)
    before, after = load(runs / NET).model, load(run).model
    assert after.head == 'biased_cosine'
    torch.testing.assert_close(after.experts[0].fc.bias, before.experts[0].fc.bias)


def test_the_option_is_the_whole_adjustment(runs, data):
    with_it = figures(runs / NET, data)
    assert figures(runs / NET, data, '--logit-adjustment', '1')['loss'] == pytest.approx(with_it['loss'], abs=1e-4)
    raw = load(runs / 'experts').model
    without = figures(runs / NET, data, '--logit-adjustment', '0')
    assert without['loss'] != pytest.approx(with_it['loss'], abs=1e-3)
    argv = ['--checkpoint', str(runs / 'experts'), '--data-dir', str(data), '--device', 'cpu']
    assert validate(build_parser().parse_args(argv))['loss'] == pytest.approx(without['loss'], abs=1e-4)
    assert raw.head == 'cosine'


def test_a_router_is_trained_on_top(runs, data):
    router = json.loads((runs / 'router' / 'results.json').read_text())
    assert router['choices']['sweep']  # on the images that the experts held out
    routed = load(runs / ROUTED)
    assert routed.record.logit_adjustment == 1.0
    assert routed.model.router is not None
    images = torch.randn(3, 3, 8, 8)
    same(routed.model(images), load(runs / NET).model(images))
    with pytest.raises(RideError, match=r'has a router, trained on the unadjusted logits; package the run of'):
        options = ['--output', str(runs / f'{CIFAR}.x'), '--logit-adjustment', '1']
        package([str(runs / 'router'), '--data-dir', str(data), *options])


def test_the_card_says_so(runs):
    text = (runs / NET / 'README.md').read_text()
    assert '**A post-hoc logit adjustment of 1 is part of the heads**' in text
    assert 'A post-hoc logit adjustment of 1 is part of the heads' in (runs / ROUTED / 'README.md').read_text()


def test_experts_with_a_tau_list(tmp_path, data):
    run = train(data, tmp_path, 'run', '--model', CIFAR, '--loss', 'balpoe')
    with pytest.raises(RideError, match=r'\(loss balpoe\) was trained with a tau list'):
        package([str(run), '--data-dir', str(data), '--output', str(tmp_path / NET), '--logit-adjustment', '1'])
