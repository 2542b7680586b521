"""Class frequencies of unlabelled images: found on shifted digits, and served by a network as they were estimated."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from tiny_runs import CIFAR

from ride_timm.errors import RideError
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.prediction import predict, vote
from ride_timm.inference.prior import parse_prior, serve_prior
from ride_timm.inference.prior_estimation import estimate_prior, serve_estimated_prior
from ride_timm.inference.temperature import fit_temperature
from ride_timm.records.calibration import AnswerCounts, Calibration, ConfidenceCurve
from ride_timm.records.training_record import TrainingRecord

NAMES = ('ant', 'bee, wild', 'été')


@pytest.mark.parametrize('shift', ['tail', 'reversed', 'three'])
def test_shifted_digits(shift):
    images, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(labels))
    images, labels = images[order] / 16, labels[order]
    train, held, rest = np.split(np.arange(len(labels)), [600, 800])
    model = LogisticRegression(C=100.0, max_iter=500).fit(images[train], labels[train])
    temperature = fit_temperature(
        torch.tensor(model.decision_function(images[held])), torch.tensor(labels[held], dtype=torch.int64)
    )
    assert temperature > 1.3  # it is too sure of itself
    weights = {'tail': 0.6 ** np.arange(10), 'reversed': 0.6 ** np.arange(10)[::-1], 'three': np.eye(10)[:3].sum(0)}
    wanted = rng.multinomial(3000, weights[shift] / weights[shift].sum())
    rows = np.concatenate([rng.choice(rest[labels[rest] == c], number) for c, number in enumerate(wanted)])
    logits = torch.tensor(model.decision_function(images[rows]))
    found = estimate_prior(logits / temperature).numpy()
    truth = wanted / wanted.sum()
    assert found.sum() == pytest.approx(1)
    assert abs(found - truth).max() < 0.02
    counted = np.bincount(logits.argmax(1), minlength=10) / len(rows)  # of the answers
    assert abs(found - truth).sum() < abs(counted - truth).sum()


def calibrated(temperatures):
    counts = AnswerCounts(images=1, said=(1,), wrong=(0,))
    curve = ConfidenceCurve(limits=(0.0,), fitted=counts, measured=counts, ece_before=0.0, ece_after=0.0)
    return Calibration(temperatures=temperatures, full=curve)


@pytest.mark.parametrize('routed', [False, True])
def test_a_calibrated_network_answers_for_what_was_estimated(routed):
    torch.manual_seed(0)
    model = timm.create_model(CIFAR, num_classes=3, router=True).eval()
    with torch.no_grad():
        model.router.out.weight.normal_(std=0.3)
    record = TrainingRecord(tau=(0.0, 1.0, 2.0), calibration=calibrated((2.0, 0.5, 1.5)))
    net = TrainedNet(model, CIFAR, NAMES, (50, 10, 5), record)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 9 * n, (16, 16, 3), dtype=np.uint8)) for n in range(1, 29)]
    (asked,) = vote(net, images, threshold=0.0)
    threshold = float(asked.votes.router_logits.sigmoid().median()) if routed else None
    serve_prior(model, record.tau, net.class_counts, [1.0] * 3, net.temperatures)
    (before,) = vote(net, images, threshold=threshold)
    if routed:
        assert len(before.votes.num_experts.unique()) > 1
    found = serve_estimated_prior(net, images, threshold=threshold)
    torch.testing.assert_close(torch.tensor(found).double(), estimate_prior(before.votes.logits), rtol=1e-4, atol=1e-5)
    wanted = (before.votes.logits + torch.tensor(found).log()).softmax(1)
    for row, prediction in enumerate(predict(net, images, threshold=threshold)):
        for vote_ in prediction.top:
            assert vote_.confidence == pytest.approx(float(wanted[row, vote_.class_index]), abs=1e-4)


def test_a_list_of_the_classes_that_occur(tmp_path, caplog):
    path = tmp_path / 'species.txt'
    path.write_text('\ufeffété\r\n\r\nbee, wild\nwasp\n', encoding='utf-8')
    assert parse_prior(str(path), NAMES, (1, 1, 1)) == pytest.approx((0, 0.5, 0.5))
    assert 'wasp' in caplog.text
    path.write_text('ant, 3\n"bee, wild",1\n')
    assert parse_prior(str(path), NAMES, (1, 1, 1)) == pytest.approx((0.75, 0.25, 0))


@pytest.mark.parametrize('text', ['wasp\n', 'ant\nant\n', 'ant,-1\n', 'ant,many\n', 'ant,0\n', ''])
def test_lists_that_say_nothing(tmp_path, text):
    path = tmp_path / 'species.txt'
    path.write_text(text)
    with pytest.raises(RideError, match=r'species\.txt (names|has)'):
        parse_prior(str(path), NAMES, (1, 1, 1))
