"""Training speed: our way next to a plain loop, in images per second.

    python benchmarks/training.py [--model ride_resnet32_3e] [--batch-size 128] [--steps 30] [--rounds 3] [--compiled]
    python benchmarks/training.py --device cuda [--img-size 64] [--copies 4]

Plain: float32, contiguous, eager, a Python loop over the experts' losses. Ours: RideTask with bfloat16 autocast and
channels_last, as `ride-timm train --amp --channels-last` runs it, and with `--compiled` also with its `--torchcompile`.
All do forward, backward and the SGD step on the same random images. Each way runs in a process of its own, since the
trainer sets how a process keeps freed memory; `ours, memory given back` is ours without that setting. Rounds alternate,
so that a busy machine slows all.

On a GPU there are `ours, CUDA graph`, which is the trainer's `--cuda-graph`, and `ours, one stream`, the same without
the experts' own streams; every step reads the loss, as the trainer does. `--copies N` has N processes of each way
compute at the same time and adds up what they do.

Prints median, minimum and maximum over the rounds, and the ratios of the medians to the first way; `--output` writes
them as JSON.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F

from ride_timm.evaluation.writing import environment, write_json
from ride_timm.losses import RideLoss
from ride_timm.tasks import RideTask
from ride_timm.training.fast.allocator import keep_freed_memory
from ride_timm.training.fast.graphed import GraphedStep


def plain_step(model: str, images: torch.Tensor, target: torch.Tensor, counts: list[int]) -> Callable[[], None]:
    """One step of the plain loop."""
    net = timm.create_model(model).to(images.device).train()
    net.set_expert_training(True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    loss_of = RideLoss(counts).to(images.device)

    def step() -> None:
        optimizer.zero_grad()
        outputs = net(images)
        mean = torch.stack(outputs).mean(0).softmax(-1).detach()
        loss = torch.zeros((), device=images.device)
        for output in outputs:
            loss = loss + F.cross_entropy(output, target)
            loss = loss + loss_of.diversity * F.kl_div(output.log_softmax(-1), mean, reduction='batchmean')
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def our_step(way: str, model: str, images: torch.Tensor, target: torch.Tensor, counts: list[int]) -> Callable[[], None]:
    """One step as the trainer does it."""
    net = timm.create_model(model).to(images.device).to(memory_format=torch.channels_last).train()
    task = RideTask(net, RideLoss(counts), device=images.device, verbose=False)
    if 'compiled' in way:
        task.compile()
    autocast = partial(torch.autocast, images.device.type, torch.bfloat16)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def eager(images: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        with autocast():
            result = task(images, target)
        result['loss'].backward()
        return result

    compute: Any = eager
    if 'CUDA graph' in way or 'one stream' in way:
        compute = GraphedStep(task, autocast, side_by_side='compiled' not in way and 'one stream' not in way)

    def step() -> None:
        optimizer.zero_grad()
        result = compute(images.contiguous(memory_format=torch.channels_last), target)
        optimizer.step()
        result['loss'].item()

    return step


def serve(way: str, args: argparse.Namespace, orders: Connection) -> None:
    """In a process of its own: a round for every order, answered by its images per second."""
    torch.manual_seed(0)
    device = torch.device(args.device)
    images = torch.randn(args.batch_size, 3, args.img_size, args.img_size, device=device)
    classes = timm.get_pretrained_cfg(args.model).num_classes
    counts = [int(500 * 0.01 ** (i / (classes - 1))) for i in range(classes)]
    target = torch.randint(classes, (args.batch_size,), device=device)
    if way.startswith('ours') and 'given back' not in way and device.type == 'cpu':
        keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    if way == 'plain':
        step = plain_step(args.model, images, target, counts)
    else:
        step = our_step(way, args.model, images, target, counts)
    for _ in range(4):
        step()  # warm up
    orders.send(None)
    while orders.recv():
        start = time.perf_counter()
        for _ in range(args.steps):
            step()
        orders.send(args.batch_size * args.steps / (time.perf_counter() - start))


def ways_of(args: argparse.Namespace) -> list[str]:
    """What is measured."""
    if args.device == 'cpu':
        return ['plain', 'ours, memory given back', 'ours', *(['ours, compiled'] if args.compiled else [])]
    compiled = ['ours, compiled', 'ours, compiled, CUDA graph'] if args.compiled else []
    return ['plain', 'ours', 'ours, one stream', 'ours, CUDA graph', *compiled]


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of every round, by way."""
    context = multiprocessing.get_context('spawn')
    pipes: dict[str, list[Connection]] = {way: [] for way in args.only or ways_of(args)}
    for way, copies in pipes.items():
        for _ in range(args.copies):
            ours, theirs = context.Pipe()
            copies.append(ours)
            context.Process(target=serve, args=(way, args, theirs), daemon=True).start()
    for copies in pipes.values():
        for pipe in copies:
            pipe.recv()  # warm
    speeds: dict[str, list[float]] = {way: [] for way in pipes}
    for _ in range(args.rounds):
        for way, copies in pipes.items():
            for pipe in copies:
                pipe.send(True)
            speeds[way].append(sum(pipe.recv() for pipe in copies))
    for copies in pipes.values():
        for pipe in copies:
            pipe.send(False)
    return speeds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='ride_resnet32_3e')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--steps', type=int, default=30, help='steps a round')
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument(
        '--compiled', action='store_true', help='also with --torchcompile, which takes a minute to begin'
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--img-size', type=int, default=32)
    parser.add_argument('--copies', type=int, default=1, metavar='N', help='processes of each way at a time')
    parser.add_argument('--only', nargs='+', metavar='WAY', help='these ways (default: all)')
    parser.add_argument('--output', type=Path, help='JSON file')
    args = parser.parse_args()
    speeds = measure(args)
    where = environment()
    if args.device != 'cpu':
        where['hardware'] = torch.cuda.get_device_name(args.device)
    print(f'{args.model}, batch {args.batch_size}, {args.rounds} rounds of {args.steps} steps; torch {where["torch"]},')
    print(f'{where["hardware"]}, {torch.get_num_threads()} threads, {args.copies} at a time')
    plain = statistics.median(next(iter(speeds.values())))
    ratios = {way: statistics.median(values) / plain for way, values in speeds.items()}
    for way, values in speeds.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(
            f'{way:<24} {middle:7.1f} images/s  ({low:.1f} to {high:.1f}), {ratios[way]:.2f} times {next(iter(speeds))}'
        )
    if args.output:
        content = {'args': {k: str(v) for k, v in vars(args).items()}, 'images_per_second': speeds, 'ratios': ratios}
        write_json(args.output, {**content, 'environment': where})


if __name__ == '__main__':
    main()
