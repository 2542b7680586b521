"""Training speed on the CPU: our way beside a plain loop, in images per second.

    python benchmarks/training.py [--model ride_resnet32_3e] [--batch-size 128] [--steps 8] [--rounds 5]

Plain: float32, contiguous, eager, a Python loop over the experts' losses. Ours: RideTask with bfloat16 autocast and
channels_last, as `ride-timm train --amp --channels-last` runs it. Both do forward, backward and the SGD step on the
same random images; rounds of the two alternate, so that a busy machine slows both. Prints median, minimum and maximum
over the rounds, and the ratio of the medians; `--output` writes them as JSON.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

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


def our_step(model: str, images: torch.Tensor, target: torch.Tensor, counts: list[int]) -> Callable[[], None]:
    """One step as the trainer does it."""
    net = timm.create_model(model).to(memory_format=torch.channels_last).train()
    task = RideTask(net, RideLoss(counts), verbose=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, nesterov=True)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            result = task(images.contiguous(memory_format=torch.channels_last), target)
        result['loss'].backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='ride_resnet32_3e')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--steps', type=int, default=8, help='steps a round')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--output', type=Path, help='JSON file')
    args = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(args.batch_size, 3, 32, 32)
    counts = [int(500 * 0.01 ** (i / 99)) for i in range(100)]
    target = torch.randint(100, (args.batch_size,))
    ways = {
        'plain': plain_step(args.model, images, target, counts),
        'ours': our_step(args.model, images, target, counts),
    }
    speeds: dict[str, list[float]] = {name: [] for name in ways}
    for step in ways.values():
        step()  # warm up
    for _ in range(args.rounds):
        for name, step in ways.items():
            start = time.perf_counter()
            for _ in range(args.steps):
                step()
            speeds[name].append(args.batch_size * args.steps / (time.perf_counter() - start))
    where = environment()
    print(
        f'{args.model}, batch {args.batch_size}, {args.rounds} rounds of {args.steps} steps; torch {where["torch"]}, '
    )
    print(f'{where["hardware"]}, {torch.get_num_threads()} threads')
    for name, values in speeds.items():
        print(f'{name:<6} {statistics.median(values):7.1f} images/s  ({min(values):.1f} to {max(values):.1f})')
    ratio = statistics.median(speeds['ours']) / statistics.median(speeds['plain'])
    print(f'ratio  {ratio:.2f}')
    if args.output:
        content = {'args': {k: str(v) for k, v in vars(args).items()}, 'images_per_second': speeds, 'ratio': ratio}
        write_json(args.output, {**content, 'environment': where})


if __name__ == '__main__':
    main()
