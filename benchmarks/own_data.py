"""One's own long tail: timm's plain training beside ours, the same backbone, schedule and augmentation.

    python benchmarks/own_data.py [--data DIR] [--epochs 30] [--seeds 42 43 44] [--output FILE.json]

DIR holds `train/CLASS/*` and `val/CLASS/*`; without it scikit-learn's handwritten digits are cut to a long tail
(imbalance factor 30). Both networks are trained by `ride-timm train` with the same options: plain is the one-expert
network with cross-entropy, ours the one with three experts and BalPoE, which `ride-timm train` picks without options.
`--init WEIGHTS` begins both with the same weights. Prints mean and standard deviation over the seeds, in percent, and
the differences; below, of the images of each group, how many percent were taken for a class of which group.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from ride_timm.commands.quickstart import write_digits
from ride_timm.commands.train import main as train
from ride_timm.data import GROUP_NAMES
from ride_timm.evaluation.writing import environment, write_json
from ride_timm.inference.load import load
from ride_timm.inference.prediction import Prediction, predict
from ride_timm.records.runs import read_per_class

SHOWN = ('top1', 'many', 'medium', 'few', 'ece')


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', metavar='DIR', help='default: the digits')
    parser.add_argument('--epochs', type=int, default=30)
    parser.add_argument('--seeds', type=int, nargs='+', default=[42, 43, 44])
    parser.add_argument('--plain', default='ride_resnet32_1e', metavar='NAME', help='plain architecture')
    parser.add_argument('--ours', default='ride_resnet32_3e', metavar='NAME', help='multi-expert architecture')
    parser.add_argument('--loss', default='balpoe', help='loss of the multi-expert network (default: %(default)s)')
    parser.add_argument('--init', metavar='WEIGHTS', help='begin both with these weights, as `ride-timm train --init`')
    parser.add_argument('--lr', type=float, default=0.1)
    parser.add_argument('--options', default='', help='further options of `ride-timm train`, for both')
    parser.add_argument('--output', type=Path, help='JSON file')
    return parser


def run(args: argparse.Namespace, data: Path, folder: Path, way: str, seed: int) -> dict[str, float]:
    """Train one network and return the figures of its last epoch."""
    model, loss = (args.plain, 'ce') if way == 'plain' else (args.ours, args.loss)
    name = f'{way}-{seed}'
    options = ['--data-dir', str(data), '--model', model, '--loss', loss, '--seed', str(seed)]
    options += ['--epochs', str(args.epochs), '--lr', str(args.lr), '--weight-decay', '5e-4', '--smoothing', '0']
    options += ['--warmup-epochs', '5', '--no-amp']
    options += ['--val-interval', str(args.epochs), '--output', str(folder), '--experiment', name, '--quiet']
    options += ['--init', args.init] if args.init else ['--from-scratch']
    if train([*options, *args.options.split()]):
        raise SystemExit(f'{name} did not finish')
    last: dict[str, float] = json.loads((folder / name / 'results.json').read_text())['last']
    wrong = mistakes(folder / name, data)
    return last | {f'{true}_as_{to}': share for true, row in wrong.items() for to, share in row.items()}


def mistakes(folder: Path, data: Path) -> dict[str, dict[str, float]]:
    """Percent of the images of each group that a run takes for a wrong class, by that class's group."""
    group = {row['name']: row['group'] for row in read_per_class(folder / 'per_class.csv')}
    files = [str(path) for path in sorted((data / 'val').glob('*/*'))]
    counts: dict[str, dict[str, int]] = {name: dict.fromkeys(GROUP_NAMES, 0) for name in GROUP_NAMES}
    totals = dict.fromkeys(GROUP_NAMES, 0)
    for found in predict(load(folder), files, top_k=1):
        assert isinstance(found, Prediction)
        true, answer = Path(found.path).parent.name, found.top[0].label
        totals[group[true]] += 1
        counts[group[true]][group[answer]] += answer != true
    return {name: {to: 100 * n / max(totals[name], 1) for to, n in row.items()} for name, row in counts.items()}


def describe(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of each figure over the seeds."""
    names = [name for name in rows[0] if name in SHOWN or '_as_' in name]
    values = {name: [row[name] for row in rows] for name in names}
    return {
        name: {'mean': statistics.mean(found), 'std': statistics.stdev(found) if len(found) > 1 else float('nan')}
        for name, found in values.items()
    }


def show(name: str, figures: dict[str, dict[str, float]]) -> None:
    """One row of the table."""
    cells = [f'{figures[key]["mean"]:7.2f} ± {figures[key]["std"]:4.2f}' for key in SHOWN]
    print(f'{name:<10}' + ''.join(f'{cell:>16}' for cell in cells))


def main() -> None:
    """Measure and print."""
    args = build_parser().parse_args()
    found: dict[str, list[dict[str, float]]] = {'plain': [], 'ours': []}
    with tempfile.TemporaryDirectory() as folder:
        digits = ['--hflip', '0', '--img-size', '16', '--model-kwargs', 'layers=(2,2,2)']
        data = Path(args.data) if args.data else Path(folder, 'digits')
        for seed in args.seeds:
            if not args.data:
                write_digits(data, seed, imbalance=30)
            for way in found:
                if not args.data and not args.options:
                    args.options = ' '.join([*digits, '-b', '64'])
                found[way].append(run(args, data, Path(folder), way, seed))
    table = {way: describe(rows) for way, rows in found.items()}
    where = environment()
    print(f'{args.data or "digits"}, {args.epochs} epochs, seeds {args.seeds}; {args.plain} with cross-entropy beside')
    print(f'{args.ours} with {args.loss}; {where["hardware"]}, torch {where["torch"]}')
    print(' ' * 10 + ''.join(f'{name:>16}' for name in SHOWN))
    for way, figures in table.items():
        show(way, figures)
    gains = {name: table['ours'][name]['mean'] - table['plain'][name]['mean'] for name in SHOWN}
    print(
        f'{"ours - plain":<12}' + ''.join(f'{gain:>+{14 if not i else 16}.2f}' for i, gain in enumerate(gains.values()))
    )
    print('\nwrong, taken for a class of the group')
    print(' ' * 20 + ''.join(f'{name:>16}' for name in GROUP_NAMES))
    for way, figures in table.items():
        for true in GROUP_NAMES:
            cells = [figures[f'{true}_as_{to}'] for to in GROUP_NAMES]
            print(f'{way:<10}{true:<10}' + ''.join(f'{c["mean"]:9.2f} ± {c["std"]:4.2f}' for c in cells))
    if args.output:
        given: dict[str, Any] = {key: str(value) for key, value in vars(args).items()}
        write_json(args.output, {'args': given, 'runs': found, 'summary': table, 'environment': where})


if __name__ == '__main__':
    main()
