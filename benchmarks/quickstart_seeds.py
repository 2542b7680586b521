"""Does the quickstart's claim hold for every seed and number of threads?

    python benchmarks/quickstart_seeds.py [--seeds 42 43 ...] [--threads 1 2] [--output FILE.json]

Runs `ride-timm quickstart` once for each seed and number of threads, and prints mean, standard deviation and range of
the overall accuracy, of the groups and of the rarest class, and of the differences between experts and plain network.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ride_timm.commands.quickstart import EXPERTS, PLAIN, ROUTED
from ride_timm.commands.quickstart import main as quickstart
from ride_timm.evaluation.writing import environment, write_json

SHOWN = ('top1', 'many', 'medium', 'few', 'rarest')


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--seeds', type=int, nargs='+', default=list(range(42, 47)))
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--output', type=Path, default=Path('benchmarks/results/quickstart_cpu.json'))
    return parser


def run(seed: int, threads: int) -> dict[str, Any]:
    """Run the quickstart once; accuracies in percent of each network."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        quickstart(['--output', folder, '--seed', str(seed)])
        found = json.loads((Path(folder) / 'results.json').read_text())
    row: dict[str, Any] = {'seed': seed, 'threads': threads, 'mean_experts': found[ROUTED]['mean_experts']}
    for name in (PLAIN, EXPERTS, ROUTED):
        row[name] = {key: found[name][key] for key in SHOWN[:-1]}
    for name, classes in found['per_class'].items():
        row[name]['rarest'] = classes[-1]
    return row


def summary(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per network and result: mean, standard deviation and range over the runs."""
    lines = []
    for key in SHOWN:
        values = {name: [row[name][key] for row in rows] for name in (PLAIN, EXPERTS)}
        values['difference'] = [row[EXPERTS][key] - row[PLAIN][key] for row in rows]
        for name, each in values.items():
            spread = statistics.stdev(each) if len(each) > 1 else 0.0
            lines.append(
                f'{key:<8}{name:<28}{statistics.mean(each):7.1f} ± {spread:4.1f}   {min(each):6.1f} to {max(each):.1f}'
            )
    return lines


def main() -> None:
    """Run all, print the summary and write the file after each run."""
    args = build_parser().parse_args()
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for threads in args.threads:
            rows.append(run(seed, threads))
            write_json(args.output, {'runs': rows, 'environment': environment()})
    print('\n'.join(summary(rows)))


if __name__ == '__main__':
    main()
