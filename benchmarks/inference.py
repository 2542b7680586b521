r"""Inference speed: RIDE networks next to their plain backbone, and what routing saves of the time that it should save.

    python benchmarks/inference.py [--pairs ride_resnet32_3e=ride_resnet32_1e ...] [--batches 1 8 64]
      [--ways eager channels_last bf16 compiled] [--shares 0 0.25 0.5 0.75 1] [--device cuda] [--output FILE.json]

First table: images and GMACs a second of each network with all of its experts, and how its GMACs a second compare
with those of the plain backbone: 1 means that an operation takes as long. Second table: the network routed, where a
share of the images leaves after the first expert and the others pass all (the router is computed, its answer is
replaced); the promised speed-up is that of the operations; `by time` has the trunk and an expert timed alone in the
place of their operations, so that it tells slow operations from what routing itself costs. Random weights and images.
All that a row compares takes turns, and the fastest of all rounds counts. With one thread it is CPU time, which other
work on the machine disturbs less; but there PyTorch computes 1x1 convolutions of fewer than 16 images without oneDNN,
at half the speed, so that routing pays less.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from ride_timm.evaluation.cost import gmacs, gmacs_by_experts, mean_gmacs
from ride_timm.evaluation.writing import environment, write_json
from ride_timm.models import MultiExpertNet

PAIRS = (
    'ride_resnet32_3e=ride_resnet32_1e',
    'ride_resnet50_2e=resnet50',
    'ride_resnet50_4e=resnet50',
    'ride_resnet18d_3e=resnet18d',
    'ride_convnext_nano_3e=convnext_nano',
)
WAYS = ('eager', 'channels_last', 'bf16', 'compiled')


class Planned(nn.Module):
    """A router that is computed, and whose answer is replaced.

    Attributes:
        passes: How many experts each image of the next batch passes, (B,), int64.
    """

    def __init__(self, router: nn.Module, passes: torch.Tensor) -> None:
        super().__init__()
        self.router, self.passes = router, passes

    def forward(self, index: int, pooled: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Logit of "go on" of each image that is still there, minus or plus infinity."""
        self.router(index, pooled, mean)
        there = self.passes[self.passes > index]
        return torch.where(there > index + 1, torch.inf, -torch.inf)


def spread(shares: Sequence[float], images: int) -> torch.Tensor:
    """How many experts each image passes, (images,), int64, where these shares pass 1, 2, ..., K; in a random order."""
    places = (torch.arange(images, dtype=torch.float64) + 0.5) / images
    limits = torch.tensor(shares, dtype=torch.float64).cumsum(0)[:-1]
    passes = torch.searchsorted(limits, places) + 1
    return passes[torch.randperm(images, generator=torch.Generator().manual_seed(0))]


def prepare(net: Any, images: torch.Tensor, way: str) -> Callable[[], object]:
    """A call that answers the images once."""
    if way != 'eager':
        images = images.contiguous(memory_format=torch.channels_last)
    if way != 'eager' and isinstance(net, nn.Module):
        net.to(memory_format=torch.channels_last)
    run: Any = torch.compile(net) if way == 'compiled' else net

    def call() -> object:
        with torch.inference_mode(), torch.autocast(images.device.type, torch.bfloat16, enabled=way == 'bf16'):
            return run(images)

    return call


def fastest(calls: Mapping[str, Callable[[], object]], device: str, rounds: int, seconds: float) -> dict[str, float]:
    """Seconds of one call of each, the least of all rounds; they take turns."""
    clock = time.process_time if device == 'cpu' and torch.get_num_threads() == 1 else time.perf_counter

    def timed(call: Callable[[], object], repeats: int) -> float:
        began = clock()
        for _ in range(repeats):
            call()
        if device != 'cpu':
            torch.cuda.synchronize()
        return (clock() - began) / repeats

    for call in calls.values():  # compile, and fill the caches
        timed(call, 2)
    repeats = {name: max(int(seconds / timed(call, 1)), 1) for name, call in calls.items()}
    return {
        name: min(times)
        for name, times in zip(
            calls,
            zip(*([timed(call, repeats[name]) for name, call in calls.items()] for _ in range(rounds)), strict=True),
            strict=True,
        )
    }


def create(name: str, device: str) -> Any:
    """A network in eval mode with its usual size of images, with a router where it has experts."""
    torch.manual_seed(0)
    router = {'router': True} if name.startswith('ride_') and not name.endswith('_1e') else {}
    return timm.create_model(name, **router).eval().to(device)


def measure(pair: str, batch: int, way: str, args: argparse.Namespace) -> dict[str, Any]:
    """One network and its plain backbone, and the network routed."""
    name, _, backbone = pair.partition('=')
    net, plain = create(name, args.device), create(backbone, args.device)
    assert isinstance(net, MultiExpertNet)
    size = timm.data.resolve_model_data_config(net)['input_size']
    images = torch.randn(batch, *size, device=args.device)
    costs, plain_cost = gmacs_by_experts(net, size), gmacs(plain, size)
    shares = dict.fromkeys(int(batch * share) / batch for share in args.shares)  # what a batch of this size can have
    if way == 'compiled':
        shares = {}  # it computes all experts
    calls = {'plain': prepare(plain, images, way), 'full': prepare(net, images, way)}
    if shares:
        with torch.inference_mode():
            crossing = net.forward_trunk(images)
        calls['trunk'] = prepare(net.forward_trunk, images, way)
        calls['expert'] = prepare(lambda _: net.experts[0](crossing), images, way)
    for share in shares:
        routed = create(name, args.device)
        passes = spread(_leaving_first(share, len(costs)), batch).to(args.device)
        routed.router = Planned(routed.router, passes)
        routed.set_routing(0.5)
        calls[f'{share:g}'] = prepare(routed, images, way)
    seconds = fastest(calls, args.device, args.rounds, args.seconds)
    full = gmacs(net, size)
    routed_rows = []
    for share in shares:
        promised = full / mean_gmacs(costs, _leaving_first(share, len(costs)))
        passed = share + (1 - share) * len(costs)
        by_time = seconds['full'] / (seconds['trunk'] + passed * seconds['expert'])
        measured = seconds['full'] / seconds[f'{share:g}']
        routed_rows.append({'share': share, 'promised': promised, 'by_time': by_time, 'measured': measured})
    return {
        'network': name, 'plain': backbone, 'batch': batch, 'way': way, 'gmacs': full, 'plain_gmacs': plain_cost,
        'images_per_second': batch / seconds['full'], 'plain_images_per_second': batch / seconds['plain'],
        'relative_gmacs_per_second': full / seconds['full'] * seconds['plain'] / plain_cost, 'routed': routed_rows,
    }  # fmt: skip


def _leaving_first(share: float, experts: int) -> list[float]:
    return [share, *[0.0] * (experts - 2), 1 - share]


def show(row: Mapping[str, Any]) -> None:
    """A line of each table."""
    line = f'{row["network"]:<24}{row["batch"]:>4} {row["way"]:<14}{row["images_per_second"]:>9.1f} images/s'
    line += f'{row["images_per_second"] * row["gmacs"]:>8.2f} GMAC/s, {row["relative_gmacs_per_second"]:.2f} of plain'
    print(line, flush=True)
    for routed in row['routed']:
        kept = routed['measured'] / routed['promised']
        print(
            f'    {routed["share"]:>4.0%} leave: {routed["measured"]:.2f} times as fast, '
            f'{kept:.2f} of the promised {routed["promised"]:.2f} (by time {routed["by_time"]:.2f})'
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pairs', nargs='+', default=PAIRS, metavar='NETWORK=PLAIN')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 8, 16, 64])
    parser.add_argument('--ways', nargs='+', choices=WAYS, default=WAYS)
    parser.add_argument('--shares', type=float, nargs='+', default=[0, 0.25, 0.5, 0.75, 1])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--seconds', type=float, default=0.5, help='of a round, for each')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--output', type=Path, metavar='FILE', help='JSON file')
    args = parser.parse_args()
    rows = []
    for pair in args.pairs:
        for way in args.ways:
            for batch in args.batches:
                rows.append(measure(pair, batch, way, args))
                show(rows[-1])
                torch.compiler.reset()
                if args.output is not None:
                    facts = {**environment(), 'threads': torch.get_num_threads(), 'device': args.device}
                    write_json(args.output, {'rows': rows, 'environment': facts})


if __name__ == '__main__':
    main()
