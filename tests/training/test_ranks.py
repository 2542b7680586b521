"""Two processes: the same figures, the same weights, and one decision on when to stop."""

import math
import os
import random
import signal
import subprocess
import sys
from argparse import Namespace

import pytest
import timm
import torch
from crash_tools import assert_same_run, finish, load, options, rank, rows, run_command, run_ranks, start, start_ranks
from tiny_runs import write_images
from torch import nn

from ride_timm.data import create_eval_loader, open_eval_split, open_train_split
from ride_timm.evaluation import one_pass
from ride_timm.losses import create_loss
from ride_timm.tasks import RideTask
from ride_timm.training import loop, pace
from ride_timm.training.loop import Trainer, train_epoch


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


def logs(folder):
    return ''.join(path.read_text() for path in sorted(folder.glob('rank*.log')))


def train(argv, action=None, epoch=0, batch=0, on_rank=None):
    """In a child: a run with something happening before the step of a batch, in all ranks or in one."""
    backward = loop._backward
    seen = []

    def watched(trainer, images, *args):
        seen.append(None)
        now = len(seen) - 1 == epoch * len(trainer.loader) + batch and on_rank in (None, rank())
        if now and action == 'kill':
            os.kill(os.getpid(), signal.SIGKILL)
        if now and action == 'stop':
            os.kill(os.getpid(), signal.SIGTERM)
        if now and action == 'diverge':
            images = torch.full_like(images, math.nan)
        return backward(trainer, images, *args)

    loop._backward = watched
    pace.lone_step = lambda *args: None  # which are not of the run
    return run_command(argv)


DIFFICULT = ['--model-ema', '--model-ema-decay', '0.9', '--sampler', 'balanced', '-b', '4', '--dist-bn', '']


GATED = ['-b', '4', '--loss', 'balpoe', '--mutual-gated', '1', '--average-epochs', '2']


@pytest.mark.parametrize('more', [GATED, DIFFICULT], ids=['class accuracy, mean', 'balanced, moving average'])
def test_resume_in_two_processes(data, tmp_path, more):
    assert run_ranks(train, options(data, tmp_path, 'straight', *more), folder=tmp_path) == [0, 0]
    command = options(data, tmp_path, 'broken', *more)
    killed = run_ranks(train, command, 'kill', 1, 2, folder=tmp_path)
    assert killed == [-signal.SIGKILL] * 2
    assert load(tmp_path / 'broken/last.pth.tar')['epoch'] == 0
    assert run_ranks(train, command, folder=tmp_path) == [0, 0]
    assert_same_run(tmp_path / 'straight', tmp_path / 'broken')
    # what was evaluated is what was saved, in one process too
    figures = validate(data, tmp_path / 'straight')
    last = rows(tmp_path / 'straight')[-1]
    for name in ('top1', 'many', 'few', 'worst_class', 'ece'):
        assert float(last[f'eval_{name}']) == figures[name]


def validate(data, run):
    from ride_timm.commands.validate import build_parser
    from ride_timm.commands.validate import validate as measure

    argv = ['--checkpoint', str(run / 'last.pth.tar'), '--data-dir', str(data), '--device', 'cpu', '-b', '4']
    return measure(build_parser().parse_args([*argv, '--use-ema']))


@pytest.mark.parametrize('stopped', [0, 1])
def test_a_signal_to_one_process_stops_both(data, tmp_path, stopped):
    command = options(data, tmp_path, 'run', '-b', '4')
    assert run_ranks(train, command, 'stop', 1, 1, stopped, folder=tmp_path) == [143, 143]
    for number in (0, 1):
        said = (tmp_path / f'rank{number}.log').read_text()
        assert 'Stopped by SIGTERM in epoch 1 after 2 of 5 batches' in said
        assert 'Traceback' not in said
    assert load(tmp_path / 'run/last.pth.tar')['epoch'] == 0


@pytest.mark.parametrize('more', [[], ['--grad-accum-steps', '2']], ids=['', 'accumulate'])
def test_divergence_in_one_process_stops_both(data, tmp_path, more):
    command = options(data, tmp_path, 'run', '-b', '4', *more)
    assert run_ranks(train, command, 'diverge', 1, 1, 1, folder=tmp_path) == [2, 2]
    first, second = ((tmp_path / f'rank{number}.log').read_text() for number in (0, 1))
    assert 'Another process diverged in step' in first
    assert 'The loss became nan at epoch 1, batch 1' in second
    assert 'Traceback' not in first + second
    assert load(tmp_path / 'run/last.pth.tar')['epoch'] == 0


def fill_disk(argv):
    from ride_timm.training.saver import RunSaver

    save = RunSaver._write

    def full(self, path, epoch, *args):
        if epoch == 1:
            raise OSError(28, 'No space left on device')
        save(self, path, epoch, *args)

    RunSaver._write = full
    return run_command(argv)


def test_a_full_disk_stops_both(data, tmp_path):
    assert run_ranks(fill_disk, options(data, tmp_path, 'run', '-b', '4'), folder=tmp_path) == [2, 2]
    assert 'No space left on device' in (tmp_path / 'rank0.log').read_text()
    assert 'The saving process failed' in (tmp_path / 'rank1.log').read_text()
    assert 'Traceback' not in logs(tmp_path)
    assert load(tmp_path / 'run/last.pth.tar')['epoch'] == 0


def network():
    torch.manual_seed(0)
    net = timm.create_model('test_ride_resnet_cifar_3e', num_classes=3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            module.eval()
            module.train = lambda mode=True, module=module: module  # stays so, whatever the loop says
    return net


def batches(size):
    """Twelve images in a fixed order, in batches of `size`."""
    torch.manual_seed(1)
    images, target = torch.randn(12, 3, 8, 8), torch.arange(12) % 3
    return list(zip(images.split(size), target.split(size), strict=True))


def train_fixed(folder, size, accumulate=1, share=False):
    """Two epochs on fixed batches; the weights go into a file."""
    args = Namespace(device='cpu')
    if share:
        timm.utils.init_distributed_device(args)
    net = network()
    task = RideTask(net, create_loss('ride', [6, 4, 2], margin_scale=1.0))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    if share:
        task.prepare_distributed()
    mine = batches(size)
    if share:  # as batches of twice the size are cut in two
        mine = mine[args.rank :: args.world_size]
    world = args.world_size if share else 1
    trainer = Trainer(task, mine, optimizer, torch.device('cpu'), accum_steps=accumulate, world_size=world)
    means = [train_epoch(trainer, epoch)['loss'] for epoch in range(2)]
    if not share or args.rank == 0:
        found = {'weights': net.state_dict(), 'loss': torch.tensor(means)}
        torch.save(found, folder / f'{size}x{accumulate}-{share}.pt')
    if share:
        torch.distributed.destroy_process_group()
    return 0


def assert_close(a, b):
    for name in a['weights']:
        torch.testing.assert_close(a['weights'][name], b['weights'][name], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(a['loss'], b['loss'], rtol=1e-5, atol=1e-6)


def test_two_processes_are_one_with_the_doubled_batch(tmp_path):
    train_fixed(tmp_path, 4)
    assert run_ranks(train_fixed, tmp_path, 2, 1, True, folder=tmp_path) == [0, 0], logs(tmp_path)
    assert_close(load(tmp_path / '4x1-False.pt'), load(tmp_path / '2x1-True.pt'))


def test_accumulating_is_the_big_batch(tmp_path):
    train_fixed(tmp_path, 4)
    train_fixed(tmp_path, 2, 2)
    assert_close(load(tmp_path / '4x1-False.pt'), load(tmp_path / '2x2-False.pt'))


def test_accumulating_in_two_processes(tmp_path):
    train_fixed(tmp_path, 6)  # 3 images, twice, in two processes make a step
    assert run_ranks(train_fixed, tmp_path, 3, 2, True, folder=tmp_path) == [0, 0], logs(tmp_path)
    whole = load(tmp_path / '3x2-True.pt')
    train_fixed(tmp_path, 12)
    assert_close(load(tmp_path / '12x1-False.pt'), whole)


def test_a_step_of_fewer_batches_at_the_end(tmp_path):
    """Three batches of 4, two a step: the second step has one batch, and its gradient is not halved."""
    net = network()
    task = RideTask(net, create_loss('ce'))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    trainer = Trainer(task, batches(4), optimizer, torch.device('cpu'), accum_steps=2)
    assert trainer.updates_per_epoch == 2
    train_epoch(trainer, 0)
    by_hand = network().train()
    by_hand.set_expert_training(True)
    reference = torch.optim.SGD(by_hand.parameters(), lr=0.01)
    for group in (batches(4)[:2], batches(4)[2:]):
        images, target = (torch.cat(part) for part in zip(*group, strict=True))
        loss = sum(nn.functional.cross_entropy(logits, target) for logits in by_hand(images))
        reference.zero_grad()
        loss.backward()
        reference.step()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def measure(data, folder, share):
    args = Namespace(device='cpu', rank=0)
    if share:
        timm.utils.init_distributed_device(args)
    names = open_train_split(data).class_names
    split = open_eval_split(data, class_names=names)
    loader = create_eval_loader(
        split, input_size=(3, 8, 8), mean=(0.5,) * 3, std=(0.2,) * 3, batch_size=3, distributed=share
    )
    found = one_pass.measure(network(), loader, [24, 12, 5], distributed=share)
    figures, table = found.metrics, found.per_class
    if args.rank == 0:
        torch.save({'figures': dict(figures), 'table': [row.plain() for row in table]}, folder / f'{share}.pt')
    if share:
        torch.distributed.destroy_process_group()
    return 0


def test_two_processes_measure_the_same(tmp_path):
    data = write_images(tmp_path / 'images', val=5)  # 15 images: one rank gets one twice
    measure(data, tmp_path, False)
    assert run_ranks(measure, data, tmp_path, True, folder=tmp_path) == [0, 0], logs(tmp_path)
    alone, shared = load(tmp_path / 'False.pt'), load(tmp_path / 'True.pt')
    assert alone['figures'].pop('loss') == pytest.approx(shared['figures'].pop('loss'), rel=1e-6)
    assert alone == shared
    assert alone['figures']['num_images'] == 15


@pytest.mark.slow
def test_under_torchrun(data, tmp_path):
    """The real launcher: a run, a stop by its SIGTERM with loading processes, and the rest of the run."""
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', '-m']
    env = {**os.environ, 'OMP_NUM_THREADS': '1'}

    def command(name):
        return [
            *torchrun,
            'ride_timm',
            'train',
            *options(data, tmp_path, name, '-b', '4', '-j', '1', '--epochs', '6')[1:],
        ]

    assert subprocess.run(command('straight'), env=env, capture_output=True, timeout=200).returncode == 0
    with subprocess.Popen(command('broken'), env=env, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith('epoch 1'):
                process.send_signal(signal.SIGTERM)
                break
        said = process.stderr.read()
    assert said.count('Stopped by SIGTERM') == 2, said
    done = load(tmp_path / 'broken/last.pth.tar')['epoch']
    assert 1 <= done < 5
    assert subprocess.run(command('broken'), env=env, capture_output=True, timeout=200).returncode == 0
    assert_same_run(tmp_path / 'straight', tmp_path / 'broken')


@pytest.mark.slow
def test_killed_and_resumed_until_it_is_done(data, tmp_path):
    """SIGKILL to both processes at random moments, again and again."""
    rng = random.Random(1)
    more = ['-b', '4', '--epochs', '8']
    assert run_ranks(train, options(data, tmp_path, 'straight', *more), folder=tmp_path) == [0, 0]
    command = options(data, tmp_path, 'broken', *more)
    for _ in range(12):
        processes = start_ranks(train, command, folder=tmp_path)
        processes[0].join(rng.uniform(0.3, 2.0))
        for process in processes:
            process.kill()
        if [finish(process) for process in processes] == [0, 0]:
            break
    assert run_ranks(train, command, folder=tmp_path) == [0, 0]
    assert_same_run(tmp_path / 'straight', tmp_path / 'broken')


def test_killed_and_resumed_alone(data, tmp_path):
    rng = random.Random(2)
    assert run_command(options(data, tmp_path, 'straight', '--epochs', '12')) == 0
    command = options(data, tmp_path, 'broken', '--epochs', '12')
    kills = 0
    for _ in range(6):
        process = start(run_command, command, log=tmp_path / 'log')
        process.join(rng.uniform(0.1, 0.6))
        process.kill()
        kills += finish(process) == -signal.SIGKILL
    assert kills
    assert run_command(command) == 0
    assert_same_run(tmp_path / 'straight', tmp_path / 'broken')
