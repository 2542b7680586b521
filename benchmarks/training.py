"""Training speed on the CPU: our way beside a plain loop, in images per second.

    python benchmarks/training.py [--model ride_resnet32_3e] [--batch-size 128] [--steps 30] [--rounds 3] [--compiled]

Plain: float32, contiguous, eager, a Python loop over the experts' losses. Ours: RideTask with bfloat16 autocast and
channels_last, as `ride-timm train --amp --channels-last` runs it, and with `--compiled` also with its `--torchcompile`.
All do forward, backward and the SGD step on the same random images. Each way runs in a process of its own, since the
trainer sets how a process keeps freed memory; `ours, memory given back` is ours without that setting. Rounds alternate,
so that a busy machine slows all. Prints median, minimum and maximum over the rounds, and the ratios of the medians to
plain; `--output` writes them as JSON.
"""

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

from ride_timm.engine.allocator import keep_freed_memory
from ride_timm.engine.results import environment, write_json
from ride_timm.losses import RideLoss
from ride_timm.tasks import RideTask


def plain_step(model: str, images: torch.Tensor, target: torch.Tensor, counts: list[int]) -> Callable[[], None]:
    """One step of the plain loop."""
    net = timm.create_model(model).train()
    net.set_expert_training(True)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    loss_of = RideLoss(counts)

    def step() -> None:
        optimizer.zero_grad()
        outputs = net(images)
        mean = torch.stack(outputs).mean(0).softmax(-1).detach()
        loss = torch.zeros(())
        for output in outputs:
            loss = loss + F.cross_entropy(output, target)
            loss = loss + loss_of.diversity * F.kl_div(output.log_softmax(-1), mean, reduction='batchmean')
        loss.backward()
        optimizer.step()

    return step


def our_step(
    model: str, images: torch.Tensor, target: torch.Tensor, counts: list[int], compiled: bool = False
) -> Callable[[], None]:
    """One step as the trainer does it."""
    net = timm.create_model(model).to(memory_format=torch.channels_last).train()
    task = RideTask(net, RideLoss(counts), verbose=False)
    if compiled:
        task.compile()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            result = task(images.contiguous(memory_format=torch.channels_last), target)
        result['loss'].backward()
        optimizer.step()

    return step


def serve(way: str, args: argparse.Namespace, orders: Connection) -> None:
    """In a process of its own: a round for every order, answered by its images per second."""
    torch.manual_seed(0)
    images = torch.randn(args.batch_size, 3, 32, 32)
    counts = [int(500 * 0.01 ** (i / 99)) for i in range(100)]
    target = torch.randint(100, (args.batch_size,))
    if way in ('ours', 'ours, compiled'):
        keep_freed_memory()
    make = plain_step if way == 'plain' else our_step
    step = make(args.model, images, target, counts)
    if way == 'ours, compiled':
        step = our_step(args.model, images, target, counts, compiled=True)
    for _ in range(4):
        step()  # warm up
    orders.send(None)
    while orders.recv():
        start = time.perf_counter()
        for _ in range(args.steps):
            step()
        orders.send(args.batch_size * args.steps / (time.perf_counter() - start))


def measure(args: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of every round, by way."""
    context = multiprocessing.get_context('spawn')
    ways = ['plain', 'ours, memory given back', 'ours', *(['ours, compiled'] if args.compiled else [])]
    pipes = {}
    for way in ways:
        pipes[way], theirs = context.Pipe()
        context.Process(target=serve, args=(way, args, theirs), daemon=True).start()
        pipes[way].recv()  # warm
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, pipe in pipes.items():
            pipe.send(True)
            speeds[way].append(pipe.recv())
    for pipe in pipes.values():
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
    parser.add_argument('--output', type=Path, help='JSON file')
    args = parser.parse_args()
    speeds = measure(args)
    where = environment()
    print(f'{args.model}, batch {args.batch_size}, {args.rounds} rounds of {args.steps} steps; torch {where["torch"]},')
    print(f'{where["hardware"]}, {torch.get_num_threads()} threads')
    plain = statistics.median(speeds['plain'])
    ratios = {way: statistics.median(values) / plain for way, values in speeds.items()}
    for way, values in speeds.items():
        low, middle, high = min(values), statistics.median(values), max(values)
        print(f'{way:<24} {middle:7.1f} images/s  ({low:.1f} to {high:.1f}), {ratios[way]:.2f} times plain')
    if args.output:
        content = {'args': {k: str(v) for k, v in vars(args).items()}, 'images_per_second': speeds, 'ratios': ratios}
        write_json(args.output, {**content, 'environment': where})


if __name__ == '__main__':
    main()
