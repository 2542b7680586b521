"""What published weights are worth to other images: fine-tuning from them next to training from scratch.

    python benchmarks/transfer.py --data data/cifar100_lt [--weights ride_resnet50_4e] [--epochs 5] [--seeds 42 43 44]

DIR holds `train/CLASS/*` and `val/CLASS/*`. Both sides are the same network, enlarged images, loss, schedule and
batches; the weights' heads are left behind and drawn anew, as for any other classes. They differ in where the bodies
begin and in the peak of the learning rate, for which each side has what `ride-timm train` picks for it: 0.02 for a
batch of 128 from trained weights, 0.1 from random ones. Prints mean and standard deviation over the seeds, in percent,
and the differences; `--output` writes them as JSON.
"""

import argparse
import json
import shlex
import statistics
import tempfile
from pathlib import Path
from typing import Any

from ride_timm.commands.train import main as train
from ride_timm.evaluation.writing import environment, write_json

RATES = {'scratch': 0.1, 'tuned': 0.02}
"""Peak of the learning rate for a batch of 128."""

SHOWN = ('top1', 'many', 'medium', 'few', 'ece')


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, type=Path, metavar='DIR')
    parser.add_argument('--weights', default='ride_resnet50_4e', metavar='NAME', help='as `ride-timm train --init`')
    parser.add_argument('--model', metavar='NAME', help='the architecture (default: that of the name of the weights)')
    parser.add_argument('--loss', default='balpoe', metavar='NAME')
    parser.add_argument('--img-size', type=int, default=64, metavar='N')
    parser.add_argument('--epochs', type=int, default=5, metavar='N')
    parser.add_argument('--batch-size', type=int, default=128, metavar='N')
    parser.add_argument('--seeds', type=int, nargs='+', default=[42, 43, 44])
    parser.add_argument('--options', default='', help='further options of `ride-timm train`, in quotes, for both')
    parser.add_argument('--runs', type=Path, metavar='DIR', help='keep the runs here, and go on with those there')
    parser.add_argument('--output', type=Path, metavar='FILE', help='JSON file')
    return parser


def command(args: argparse.Namespace, folder: Path, way: str, seed: int) -> list[str]:
    """The options of `ride-timm train` for one side and seed."""
    options = ['--model', args.model or Path(args.weights).name.partition('.')[0]]
    options += ['--init', args.weights] if way == 'tuned' else ['--from-scratch']
    options += ['--data-dir', str(args.data), '--loss', args.loss, '--epochs', str(args.epochs), '--seed', str(seed)]
    options += ['--img-size', str(args.img_size), '-b', str(args.batch_size), '--crop-pct', '1.0']
    options += ['--lr', f'{RATES[way] * args.batch_size / 128:g}', '--warmup-epochs', '1', '--weight-decay', '5e-4']
    options += ['--augmentation', 'timm', '--scale', '0.25', '1.0', '--interpolation', 'bilinear', '--smoothing', '0']
    options += ['--val-interval', str(args.epochs), '--output', str(folder), '--experiment', f'{way}-{seed}']
    return [*options, '--no-amp', '--resume', 'auto', '--quiet', *shlex.split(args.options)]


def run(args: argparse.Namespace, folder: Path, way: str, seed: int) -> dict[str, float]:
    """Train one side and return the metrics of its last epoch."""
    results = folder / f'{way}-{seed}' / 'results.json'
    if not results.is_file() and train(command(args, folder, way, seed)):
        raise SystemExit(f'{way}-{seed} did not finish; with --runs DIR the same command goes on.')
    last: dict[str, float] = json.loads(results.read_text())['last']
    return last


def describe(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of each result over the seeds."""
    values = {name: [row[name] for row in rows] for name in SHOWN}
    return {
        name: {'mean': statistics.mean(found), 'std': statistics.stdev(found) if len(found) > 1 else float('nan')}
        for name, found in values.items()
    }


def main() -> None:
    """Measure and print."""
    args = build_parser().parse_args()
    found: dict[str, list[dict[str, float]]] = {way: [] for way in RATES}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in args.seeds:
            for way, rows in found.items():
                rows.append(run(args, args.runs or Path(temporary), way, seed))
    table, where = {way: describe(rows) for way, rows in found.items()}, environment()
    print(f'{args.data}, {args.epochs} epochs at {args.img_size} pixels, n = {len(args.seeds)} seeds {args.seeds}:')
    print(f'{args.weights} fine-tuned next to the same network from scratch; mean ± standard deviation, percent')
    print(f'{where["hardware"]}, torch {where["torch"]}')
    print(f'{"":<18}' + ''.join(f'{name:>16}' for name in table['tuned']))
    for way, metrics in table.items():
        cells = [f'{value["mean"]:.2f} ± {value["std"]:.2f}' for value in metrics.values()]
        print(f'{way:<18}' + ''.join(f'{cell:>16}' for cell in cells))
    gains = {name: table['tuned'][name]['mean'] - table['scratch'][name]['mean'] for name in table['tuned']}
    print(f'{"tuned - scratch":<18}' + ''.join(f'{gain:>+16.2f}' for gain in gains.values()))
    if args.output:
        given: dict[str, Any] = {key: str(value) for key, value in vars(args).items()}
        write_json(args.output, {'args': given, 'runs': found, 'summary': table, 'environment': where})


if __name__ == '__main__':
    main()
