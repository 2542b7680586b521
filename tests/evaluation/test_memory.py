"""Batches that do not fit, with an allocator that fails on purpose."""

import json

import pytest
import torch
from tiny_runs import CIFAR, train, write_images

from ride_timm.commands.validate import build_parser, validate
from ride_timm.errors import RideError
from ride_timm.evaluation.memory import FittingForward, is_out_of_memory
from ride_timm.models import RideResNetCifar


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('data'))


@pytest.fixture
def room_for(monkeypatch):
    """Let the networks compute only so many images at once; returns a list of the batches that were computed."""

    def limit(number):
        done = []
        forward_trunk = RideResNetCifar.forward_trunk

        def forward(self, x):
            if len(x) > number:
                raise torch.OutOfMemoryError('CUDA out of memory.')
            done.append(len(x))
            return forward_trunk(self, x)

        monkeypatch.setattr(RideResNetCifar, 'forward_trunk', forward)
        return done

    return limit


def test_what_is_shortage_of_memory():
    assert is_out_of_memory(torch.OutOfMemoryError())
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError('DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.'))
    assert not is_out_of_memory(RuntimeError('shapes cannot be multiplied'))


def test_the_error_that_torch_raises_here():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**59)
    assert is_out_of_memory(caught.value)


class TestParts:
    def test_halves_until_they_fit(self):
        sizes = []

        def forward(images):
            sizes.append(len(images))
            if len(images) > 3:
                raise torch.OutOfMemoryError
            return images * 2

        images = torch.arange(11.0).reshape(11, 1, 1, 1)
        assert torch.equal(FittingForward(forward)(images), images * 2)
        assert sizes == [11, 6, 3, 3, 3, 2]

    def test_what_did_not_fit_is_not_tried_again(self, caplog):
        sizes = []

        def forward(images):
            sizes.append(len(images))
            if len(images) > 3:
                raise torch.OutOfMemoryError
            return images * 2

        compute = FittingForward(forward)
        images = torch.arange(7.0).reshape(7, 1, 1, 1)
        assert all(torch.equal(compute(images[:n]), images[:n] * 2) for n in (7, 7, 3, 1))
        assert sizes == [7, 4, 2, 2, 2, 1, 2, 2, 2, 1, 2, 1, 1]
        assert caplog.text.count('A batch of 7 images does not fit into the memory of cpu') == 1
        assert 'it is computed in parts of 2' in caplog.text

    def test_tuples_stay_tuples(self):
        def forward(images):
            if len(images) > 2:
                raise MemoryError
            return images, images + 1

        images = torch.arange(5.0).reshape(5, 1, 1, 1)
        one, other = FittingForward(forward)(images)
        assert torch.equal(one, images)
        assert torch.equal(other, images + 1)

    def test_not_even_one_image(self):
        def forward(images):
            raise MemoryError

        with pytest.raises(RideError, match='One image of 8x6 pixels does not fit into the memory of cpu'):
            FittingForward(forward)(torch.zeros(4, 3, 8, 6))

    def test_other_errors_pass(self):
        def forward(images):
            raise RuntimeError('something else')

        with pytest.raises(RuntimeError, match='something else'):
            FittingForward(forward)(torch.zeros(4, 3, 8, 6))


def measured(run, data, *options):
    arguments = ['--checkpoint', str(run / 'last.pth.tar'), '--data-dir', str(data), '--device', 'cpu', *options]
    return validate(build_parser().parse_args(arguments))


def test_evaluation_gives_the_same_figures(data, tmp_path, room_for, caplog):
    first = train(data, tmp_path, 'experts', '--model', CIFAR, '--loss', 'ride', '--holdout', '0.25')
    run = train(data, tmp_path, 'router', '--stage', 'router', '--init', str(first / 'last.pth.tar'))
    ways = [(), ('--routed',), ('--threshold', '0')]
    before = [measured(run, data, *way) for way in ways]
    batches = room_for(5)
    for way, wanted in zip(ways, before, strict=True):
        found = measured(run, data, *way)
        assert {k: v for k, v in found.items() if k != 'loss'} == {k: v for k, v in wanted.items() if k != 'loss'}
        assert found['loss'] == pytest.approx(wanted['loss'])
    assert max(batches) <= 5
    assert 'A batch of 12 images does not fit into the memory of cpu: it is computed in parts of 6' in caplog.text


def test_training_names_half_of_the_batch(data, tmp_path, room_for):
    room_for(4)
    with pytest.raises(RideError, match='A training batch of 8 images') as caught:
        train(data, tmp_path, 'run', '--model', CIFAR)
    assert 'use -b 4, with twice the --grad-accum-steps' in str(caught.value)
    run = train(data, tmp_path, 'run', '--model', CIFAR, '-b', '4', '--grad-accum-steps', '2', '-vb', '2')
    assert json.loads((run / 'results.json').read_text())['last_epoch'] == 0


def test_the_state_of_the_optimizer_takes_memory_too(data, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise torch.OutOfMemoryError('CUDA out of memory.')

    monkeypatch.setattr(torch.optim.SGD, 'step', full)
    with pytest.raises(RideError, match='use -b 4'):
        train(data, tmp_path, 'run', '--model', CIFAR)


def test_a_batch_of_one_has_no_half(data, tmp_path, room_for):
    room_for(0)
    with pytest.raises(RideError, match='use a smaller --img-size'):
        train(data, tmp_path, 'run', '--model', CIFAR, '-b', '2')
