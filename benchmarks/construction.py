"""What building K experts costs next to K + 1 plain constructions of the backbone, in CPU seconds.

    python benchmarks/construction.py [BACKBONE ...] [--rounds 5] [--output benchmarks/results/construction_cpu.json]

From random weights, where every expert is drawn anew. The fastest of the rounds counts, since other work on the machine
only adds. Without names: every backbone that has an architecture of its own. `tests/models/test_ride_backbone.py` holds
the ratio below 1.3.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm

import ride_timm  # noqa: F401, registers the architectures
from ride_timm.evaluation.writing import environment, write_json
from ride_timm.models.ride_zoo import BACKBONES


def cpu_seconds(build: Callable[[], Any], rounds: int) -> float:
    """CPU time of the fastest of some calls, after one that does not count."""
    build()
    seconds = []
    for _ in range(rounds):
        began = time.process_time()
        build()
        seconds.append(time.process_time() - began)
    return min(seconds)


def ratios(backbone: str, rounds: int = 5) -> dict[str, float]:
    """CPU seconds of the plain backbone, and of 2 and 3 experts as a ratio to 3 and 4 of it.

    Args:
        backbone: timm's name.
        rounds: How often each is built.
    """
    plain = cpu_seconds(lambda: timm.create_model(backbone), rounds)
    found = {'plain_seconds': plain}
    for k in (2, 3):
        ours = cpu_seconds(lambda k=k: timm.create_model('ride', backbone=backbone, num_experts=k), rounds)
        found[f'ratio_{k}e'] = ours / plain / (k + 1)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('backbones', nargs='*', metavar='BACKBONE', help="timm's names")
    parser.add_argument('--rounds', type=int, default=5, metavar='N')
    parser.add_argument('--output', type=Path, metavar='FILE', help='JSON file')
    args = parser.parse_args()
    names = args.backbones or [name.partition('.')[0] for name in BACKBONES]
    print('| backbone | plain, CPU s | K = 2, ratio | K = 3, ratio |\n|---|---:|---:|---:|')
    found = {}
    for name in names:
        found[name] = ratios(name, args.rounds)
        print('| {} | {plain_seconds:.3f} | {ratio_2e:.2f} | {ratio_3e:.2f} |'.format(name, **found[name]), flush=True)
    where = environment()
    print(f'{where["hardware"]}, Python {where["python"]}, torch {where["torch"]}, the fastest of {args.rounds}')
    if args.output:
        write_json(args.output, {'args': {'rounds': args.rounds}, 'backbones': found, 'environment': where})


if __name__ == '__main__':
    main()
