"""Serving other class frequencies: the arithmetic, networks with hooks, the files of frequencies, and `validate`."""

import copy
import json
import unicodedata

import numpy as np
import pytest
import timm
import torch
from models.routed_nets import expected_experts, routed_net, safe_thresholds
from reference import logit_adjusted_loss
from reference.prior import served_logits
from tiny_runs import CIFAR, write_images

from ride_timm.commands.predict import main as predict
from ride_timm.commands.validate import build_parser, validate
from ride_timm.errors import RideError
from ride_timm.evaluation.cost import gmacs_by_experts
from ride_timm.inference.load import TrainedNet, load
from ride_timm.inference.prior import (
    apply_options,
    apply_prior,
    logit_adjustment,
    parse_prior,
    serve_prior,
)
from ride_timm.losses import prior_correction
from ride_timm.publishing.folder import save_folder
from ride_timm.records.runs import read_per_class
from ride_timm.records.training_record import TrainingRecord

COUNTS = (90, 40, 20, 10, 5, 3, 2, 1, 0)
TAU = (0.0, 1.5, 2.0)
TARGET = (1.0, 2.0, 3.0, 1.0, 0.5, 0.1, 4.0, 2.0, 1.0)
NAMES = ('ant', 'bee, wild', 'été')


@pytest.fixture
def net():
    torch.manual_seed(0)
    return routed_net(CIFAR, num_classes=len(COUNTS))


def close(actual, wanted):
    torch.testing.assert_close(actual.detach(), torch.as_tensor(wanted), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize('form', ['NFC', 'NFD'])
def test_names_in_either_unicode_form(tmp_path, form):
    path = tmp_path / 'p.json'
    names = (unicodedata.normalize(form, name) for name in NAMES)
    path.write_text(json.dumps(dict(zip(names, (1, 2.0, 5), strict=True)), ensure_ascii=False), encoding='utf-8')
    assert parse_prior(str(path), NAMES, (1, 1, 1)) == (0.125, 0.25, 0.625)


class TestCorrectPrior:
    def test_oracle(self):
        logits = torch.randn(5, len(COUNTS), dtype=torch.float64)
        wanted = logit_adjusted_loss.prior_correction(logits.numpy(), COUNTS, TAU, TARGET)
        np.testing.assert_allclose(prior_correction(logits, COUNTS, TAU, TARGET).numpy(), wanted, rtol=1e-12)

    @pytest.mark.parametrize('tau', [(0.0, 1.0, 2.0), (1.0, 1.0, 1.0), 1.0])
    def test_uniform_changes_no_probability_where_the_mean_of_tau_is_1(self, tau):
        logits = torch.randn(5, len(COUNTS), dtype=torch.float64)
        corrected = prior_correction(logits, COUNTS, tau, (7.0,) * len(COUNTS))
        np.testing.assert_allclose(corrected.softmax(1).numpy(), logits.softmax(1).numpy(), rtol=1e-12)


class TestServePrior:
    def test_all_experts(self, net):
        model, images, _ = net
        raw = model.forward_experts(images).detach()
        serve_prior(model, TAU, COUNTS, TARGET)
        wanted = served_logits(raw.tolist(), [3] * len(raw), COUNTS, TAU, TARGET)
        close(model(images), wanted)
        close(model.forward_experts(images).mean(1), wanted)

    def test_each_expert_alone(self, net):
        model, images, _ = net
        raw = model.forward_experts(images).detach()
        serve_prior(model, TAU, COUNTS, TARGET)
        for k, tau in enumerate(TAU):
            alone = served_logits(raw[:, k : k + 1].tolist(), [1] * len(raw), COUNTS, (tau,), TARGET)
            close(model.forward_experts(images)[:, k], alone)

    def test_routed(self, net):
        """Each image gets the mean tau of the experts that it passes, and passes as many as without correction."""
        model, images, router_logits = net
        raw = model.forward_experts(images).tolist()
        serve_prior(model, TAU, COUNTS, TARGET)
        close(model.forward_router(images).router_logits, router_logits)
        thresholds = safe_thresholds(router_logits)
        assert thresholds
        for threshold in (0.0, *thresholds, 1.0):
            routed = model.forward_routed(images, threshold)
            passed = expected_experts(router_logits, threshold)
            assert routed.num_experts.tolist() == passed.tolist()
            close(routed.logits, served_logits(raw, passed.tolist(), COUNTS, TAU, TARGET))

    def test_uniform_changes_images_that_pass_the_first_expert_only(self, net):
        """With tau (0, 1, 2) the mean of all is unbiased, and the first expert alone expects the training prior."""
        model, images, _ = net
        before, first = model(images).softmax(1), model.forward_routed(images, 1.0).logits.softmax(1)
        serve_prior(model, (0.0, 1.0, 2.0), COUNTS, (1.0,) * len(COUNTS))
        torch.testing.assert_close(model(images).softmax(1), before)
        moved = model.forward_routed(images, 1.0).logits.softmax(1)
        assert (moved[:, 0] < first[:, 0]).all()
        assert (moved[:, -1] > first[:, -1]).all()

    def test_train_gives_back_the_first_expert(self, net):
        model, images, _ = net
        first = model.forward_experts(images)[:, 0].softmax(1)
        serve_prior(model, TAU, COUNTS, parse_prior('train', [''] * len(COUNTS), COUNTS))
        torch.testing.assert_close(model.forward_experts(images)[:, 0].softmax(1), first)

    def test_one_tau_for_all(self, net):
        model, images, _ = net
        raw = model.forward_experts(images).tolist()
        serve_prior(model, 1.0, COUNTS, TARGET)
        close(model(images), served_logits(raw, [3] * len(raw), COUNTS, (1.0, 1.0, 1.0), TARGET))

    @pytest.mark.parametrize('name', ['test_resnet', 'ride_resnet32_1e'])
    def test_a_network_of_one_expert(self, name):
        model = timm.create_model(name, num_classes=len(COUNTS)).eval()
        images = torch.randn(2, 3, 32, 32)
        raw = model(images)[:, None].tolist()
        serve_prior(model, (1.5,), COUNTS, TARGET)
        close(model(images), served_logits(raw, [1, 1], COUNTS, (1.5,), TARGET))

    def test_it_can_be_undone_and_is_not_saved(self, net):
        model, images, _ = net
        before, keys = model(images), list(model.state_dict())
        serve_prior(model, TAU, COUNTS, TARGET)
        assert list(model.state_dict()) == keys
        logit_adjustment(model, COUNTS, tau=0)
        torch.testing.assert_close(model(images), before, rtol=0, atol=0)
        routed = model.forward_routed(images, 1.0).logits
        torch.testing.assert_close(routed, model.forward_experts(images)[:, 0])

    def test_copies_and_costs(self, net):
        model, images, _ = net
        costs = gmacs_by_experts(model, (3, 32, 32))
        serve_prior(model, TAU, COUNTS, TARGET)
        torch.testing.assert_close(copy.deepcopy(model)(images), model(images))
        assert gmacs_by_experts(model, (3, 32, 32)) == costs

    def test_tau_of_other_experts(self, net):
        with pytest.raises(RideError, match=r'has 3 expert\(s\) and tau has 2 numbers'):
            serve_prior(net[0], (0.0, 2.0), COUNTS, TARGET)


class TestLogitAdjustment:
    @staticmethod
    def adjusted(probabilities, tau):
        """Oracle, in NumPy: exp(z - tau log pi), normalised; counts below 1 as 1."""
        prior = np.maximum(COUNTS, 1) / np.maximum(COUNTS, 1).sum()
        powers = probabilities / prior**tau
        return powers / powers.sum(-1, keepdims=True)

    @pytest.mark.parametrize('tau', [-0.5, 0.0, 0.3, 1.0, 2.5])
    def test_oracle(self, net, tau):
        model, images, router_logits = net
        raw = model.forward_experts(images).detach().double()
        logit_adjustment(model, COUNTS, tau=tau)
        wanted = self.adjusted(raw.mean(1).softmax(1).numpy(), tau)
        np.testing.assert_allclose(model(images).softmax(1).detach().numpy(), wanted, rtol=1e-3, atol=1e-6)
        for threshold in (0.0, *safe_thresholds(router_logits), 1.0):  # every image passes as many experts as before
            routed = model.forward_routed(images, threshold)
            passed = expected_experts(router_logits, threshold)
            assert routed.num_experts.tolist() == passed.tolist()
            means = np.stack([logits[:n].mean(0).softmax(0).numpy() for logits, n in zip(raw, passed, strict=True)])
            found = routed.logits.softmax(1).detach().numpy()
            np.testing.assert_allclose(found, self.adjusted(means, tau), rtol=1e-3, atol=1e-6)

    def test_1_moves_to_the_tail(self, net):
        model, images, _ = net
        before = model(images).softmax(1)
        logit_adjustment(model, COUNTS, tau=1.0)
        after = model(images).softmax(1)
        np.testing.assert_allclose(after.detach().numpy(), self.adjusted(before.detach().numpy(), 1.0), rtol=1e-3)
        assert (after[:, 0] < before[:, 0]).all()
        assert (after[:, -1] > before[:, -1]).all()

    def test_a_second_call_replaces_the_first_and_0_takes_it_back(self, net):
        (model, images, _), before = net, net[0](net[1])
        logit_adjustment(model, COUNTS, tau=0.5)
        served = copy.deepcopy(model)
        serve_prior(served, 1.0, COUNTS, COUNTS[::-1])
        logit_adjustment(served, COUNTS, tau=0.5)
        assert torch.equal(served(images), model(images))
        assert not torch.equal(model(images), before)
        logit_adjustment(served, COUNTS, tau=0.0)
        assert torch.equal(served(images), before)

    def test_other_classes(self, net):
        with pytest.raises(RideError, match='have 9 classes, but class_counts has 3'):
            logit_adjustment(net[0], (3, 2, 1), tau=1.0)


class TestParsePrior:
    def parse(self, path):
        return parse_prior(str(path), NAMES, (6, 3, 1))

    def test_names(self):
        assert parse_prior('uniform', NAMES, (6, 3, 1)) == (1 / 3, 1 / 3, 1 / 3)
        assert parse_prior('train', NAMES, (6, 3, 0)) == pytest.approx((0.6, 0.3, 0.1))

    def test_json(self, tmp_path):
        (tmp_path / 'prior.json').write_text(json.dumps({'été': 20, 'ant': 50.0, 'bee, wild': 30}))
        assert self.parse(tmp_path / 'prior.json') == pytest.approx((0.5, 0.3, 0.2))

    @pytest.mark.parametrize(
        ('text', 'wanted'),
        [
            ('{"ant": 1, "bee, wild": 1}', 'été'),
            ('{"ant": 1, "ants": 1}', '"ants"'),
            *(
                (f'{{"ant": {value}, "bee, wild": 1, "été": 1}}', 'ant')
                for value in ('0', '-1', 'NaN', '1e400', 'true')
            ),
            ('{"ant": "1", "bee, wild": 1, "été": 1}', 'ant'),
            ('[1, 2, 3]', 'a.json holds no JSON object'),
            ('ant,1', 'a.json is not valid JSON'),
            ('[' * 100_000, 'a.json is'),
        ],
    )
    def test_refusals(self, tmp_path, text, wanted):
        (tmp_path / 'a.json').write_text(text, encoding='utf-8')
        with pytest.raises(RideError, match=wanted) as error:
            self.parse(tmp_path / 'a.json')
        assert '\n' not in str(error.value)

    def test_no_file(self):
        with pytest.raises(RideError, match='--prior unifrom'):
            self.parse('unifrom')

    def test_classes_of_one_name(self, tmp_path):
        (tmp_path / 'a.json').write_text('{"crane": 1}')
        with pytest.raises(RideError, match=r'a.json cannot tell classes of one name apart'):
            parse_prior(str(tmp_path / 'a.json'), ('crane', 'crane'), (1, 1))


class TestApplyPrior:
    @pytest.mark.parametrize('loss', [None, 'ride'])
    def test_weights_without_tau(self, loss):
        trained = TrainedNet(torch.nn.Identity(), 'some_net', NAMES, (3, 2, 1), TrainingRecord(loss=loss))
        loss = r' \(loss ride\)' if loss else ''
        with pytest.raises(
            RideError, match=rf'--prior train was given, but some_net{loss} has no tau list, so .* unknown'
        ):
            apply_prior(trained, 'train')

    def test_weights_without_counts(self):
        trained = TrainedNet(torch.nn.Identity(), 'some_net', NAMES, None, TrainingRecord(tau=(0, 1, 2)))
        with pytest.raises(RideError, match='does not say how many training images each class had'):
            apply_prior(trained, 'uniform')

    def test_what_to_do_instead(self):
        trained = TrainedNet(torch.nn.Identity(), 'some_net', NAMES, (3, 2, 1), TrainingRecord(loss='ride'))
        with pytest.raises(RideError, match=r'give --logit-adjustment TAU instead'):
            apply_prior(trained, 'uniform')


class TestApplyLogitAdjustment:
    def test_experts_with_a_tau_list(self):
        trained = TrainedNet(
            torch.nn.Identity(), 'some_net', NAMES, (3, 2, 1), TrainingRecord(tau=(0, 1, 2), loss='balpoe')
        )
        with pytest.raises(RideError, match=r'0\.5 was given, but some_net \(loss balpoe\) was .* use --prior uniform'):
            apply_options(trained, None, 0.5)

    def test_weights_without_counts(self):
        trained = TrainedNet(torch.nn.Identity(), 'some_net', NAMES, None)
        with pytest.raises(RideError, match=r'--logit-adjustment 1 was given, .* how many training images each class'):
            apply_options(trained, None, 1.0)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'), {'ant': 30, 'bee': 6, 'cat': 2}, val=3)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = timm.create_model(CIFAR, num_classes=3, router=True)
    folder = tmp_path_factory.mktemp('weights') / 'net'
    save_folder(model, folder, ['ant', 'bee', 'cat'], [30, 6, 2], {'loss': 'balpoe', 'tau': [0.0, 1.0, 2.0]})
    return folder


class TestValidate:
    def figures(self, data, folder, *options):
        argv = ['--model', f'local-dir:{folder}', '--data-dir', str(data), '--device', 'cpu', *options]
        results = validate(build_parser().parse_args(argv))
        return {key: value for key, value in results.items() if key not in ('environment', 'prior')}

    def test_uniform_is_what_mean_tau_1_answers_anyway(self, data, folder):
        plain, uniform = self.figures(data, folder), self.figures(data, folder, '--prior', 'uniform')
        for key in ('top1', 'loss', 'ece'):
            assert uniform[key] == pytest.approx(plain[key], abs=1e-4), key

    def test_the_loss_is_that_of_the_corrected_logits(self, data, folder, tmp_path):
        (tmp_path / 'prior.json').write_text('{"bee": 1, "cat": 1, "ant": 8}')
        options = ['--prior', str(tmp_path / 'prior.json')]
        plain, served = self.figures(data, folder), self.figures(data, folder, *options)
        assert served['loss'] != pytest.approx(plain['loss'], abs=1e-3)
        for key in served:  # of every expert too, and at the same cost
            assert key in plain
        assert served['gmacs'] == plain['gmacs']
        results = validate(
            build_parser().parse_args(['--model', f'local-dir:{folder}', '--data-dir', str(data), *options])
        )
        assert results['prior'] == {'target': options[1], 'frequencies': pytest.approx((0.8, 0.1, 0.1))}
        trained = load(folder)
        apply_prior(trained, options[1])
        images = torch.zeros(1, 3, 8, 8)
        raw = load(folder).model.forward_experts(images).tolist()
        close(trained.model(images), served_logits(raw, [3], (30, 6, 2), (0.0, 1.0, 2.0), (8, 1, 1)))

    def test_a_prior_that_rules_all_but_one_class_out_in_practice(self, data, folder, tmp_path):
        for name in ('ant', 'bee', 'cat'):
            weights = dict.fromkeys(('ant', 'bee', 'cat'), 1e-25) | {name: 1}
            (tmp_path / 'prior.json').write_text(json.dumps(weights))
            for more in ([], ['--routed'], ['--threshold', '1']):
                results = self.figures(data, folder, '--prior', str(tmp_path / 'prior.json'), *more)
                assert results['top1'] == pytest.approx(100 / 3)
                assert results['worst_class'] == 0


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """A network whose loss has no tau list."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('weights') / 'net'
    model = timm.create_model(CIFAR, num_classes=3, router=True)
    save_folder(model, folder, ['ant', 'bee', 'cat'], [30, 6, 2], {'loss': 'ride'})
    return folder


class TestValidateAdjusted:
    def figures(self, data, folder, *options):
        argv = ['--model', f'local-dir:{folder}', '--data-dir', str(data), '--device', 'cpu', *options]
        return validate(build_parser().parse_args(argv))

    def test_so_much_that_all_is_the_rarest_class(self, data, plain, tmp_path):
        for more in ([], ['--routed']):
            file = tmp_path / 'classes.csv'
            results = self.figures(data, plain, '--logit-adjustment', '50', '--per-class-file', str(file), *more)
            assert results['logit_adjustment'] == 50
            assert {row['name']: row['accuracy'] for row in read_per_class(file)} == {'ant': 0, 'bee': 0, 'cat': 100}

    def test_0_changes_nothing(self, data, plain):
        before, after = self.figures(data, plain), self.figures(data, plain, '--logit-adjustment', '0')
        for key in ('top1', 'loss', 'ece', 'gmacs'):
            assert after[key] == pytest.approx(before[key], abs=1e-4), key

    @pytest.mark.parametrize('value', ['nan', 'inf', '1000'])
    def test_values(self, data, plain, value):
        with pytest.raises(RideError, match=rf'--logit-adjustment {value} was given; it is a number from -100 to 100'):
            self.figures(data, plain, '--logit-adjustment', value)

    def test_one_of_both(self, data, plain, capsys):
        with pytest.raises(SystemExit):
            self.figures(data, plain, '--logit-adjustment', '1', '--prior', 'uniform')
        assert 'not allowed with' in capsys.readouterr().err

    def test_predict_says_so(self, data, plain, capsys):
        image = next(data.glob('val/ant/*'))
        assert predict([str(plain), str(image), '--logit-adjustment', '50']) == 0
        shown = capsys.readouterr().out
        assert 'logits adjusted with tau 50' in shown
        assert 'cat' in shown.splitlines()[2]
