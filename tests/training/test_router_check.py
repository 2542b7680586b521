"""The warning of a router that did not learn."""

import pytest
from tiny_runs import CIFAR, train, write_images

from ride_timm.training.router import check_router

LEAST = 2.75  # of a router that answers alike for every image, where 6 % of the answers should be to go on


@pytest.mark.parametrize(
    ('loss', 'warned'), [(6.8, True), (LEAST + 0.05, True), (LEAST - 0.05, False), (0.5, False)]
)  # fmt: skip
def test_warned_of_above_the_constant_answer(loss, warned, caplog):
    check_router({'loss': loss, 'needed': 0.06})
    assert ('was trained too coarsely' in caplog.text) is warned
    if warned:
        assert f'ended at {loss:.3g}, and a router with one output for all images has 2.75' in caplog.text


@pytest.mark.parametrize('needed', [0.0, 1.0])
def test_nothing_is_said_where_one_answer_is_always_right(needed, caplog):
    check_router({'loss': 1.0, 'needed': needed})
    assert not caplog.text


def test_the_weight_counts(caplog):
    check_router({'loss': 0.5, 'needed': 0.06}, pos_weight=1.0)
    assert 'has 0.227' in caplog.text


def test_train_warns(tmp_path, caplog):
    data = write_images(tmp_path / 'data')
    experts = train(data, tmp_path, 'experts', '--model', CIFAR, '--holdout', '0.25') / 'last.pth.tar'
    stage = ('--stage', 'router', '--init', str(experts), '--epochs', '2')
    train(data, tmp_path, 'wild', *stage, '--lr', '1000', '--weight-decay', '0')
    assert caplog.text.count('was trained too coarsely; train it again with --clip-grad 1, or a smaller --lr') == 1
