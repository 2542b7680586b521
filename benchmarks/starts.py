"""Where to start on one's own images: random weights, our published networks, and two plain controls.

    OMP_NUM_THREADS=1 python benchmarks/starts.py --data DIR --output FILE.json [--sizes 32 64] [--seeds 42]

DIR holds `train/CLASS/*` and `val/CLASS/*`. Squares of each size are cut from its images, and `ride-timm train` picks
everything but the epochs (8 at 32 pixels, 4 at 64), which are the same for all starts: random weights,
three BalPoE experts of CIFAR-100-LT, and as controls the plain network of the same data, with cross entropy and with
balanced softmax. Weights keep their 32 pixels; in a last row the experts are given the images at 64.
Each finished cell is added to FILE.json; the same command later goes on with those that are missing. Prints percent.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps

from ride_timm.commands.train import main as train
from ride_timm.evaluation.writing import environment, write_json
from ride_timm.records.runs import read_per_class

EPOCHS = {32: 8, 64: 4}
EXPERTS, PLAIN = 'ride_resnet32_3e.balpoe_cifar100lt', 'ride_resnet32_1e.ce_cifar100lt'
STARTS = {
    'random weights': ['--from-scratch'],
    'experts': ['--init', EXPERTS],
    'plain, cross entropy': ['--init', PLAIN, '--loss', 'ce'],
    'plain, balanced softmax': ['--init', PLAIN, '--loss', 'balanced_softmax'],
}
ENLARGED = {'experts, at 64 pixels': ['--init', EXPERTS, '--img-size', '64']}
SHOWN = ('class_mean', 'top1', 'many', 'medium', 'few', 'cpu_seconds')


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, type=Path, metavar='DIR')
    parser.add_argument('--output', required=True, type=Path, metavar='FILE', help='JSON file, which is added to')
    parser.add_argument('--work', type=Path, default=Path('output/starts'), metavar='DIR', help='for squares and runs')
    parser.add_argument('--sizes', type=int, nargs='+', default=[32, 64], choices=list(EPOCHS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[42])
    return parser


def squares(data: Path, folder: Path, size: int) -> Path:
    """Copies of all images, cut to their middle square and scaled to `size` pixels, without loss."""
    done = folder / 'complete'
    for source in () if done.exists() else sorted(data.glob('*/*/*')):
        target = (folder / source.relative_to(data)).with_suffix('.png')
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as image:
            ImageOps.fit(image.convert('RGB'), (size, size), Image.Resampling.BICUBIC).save(target)
    done.touch()
    return folder


def cells(sizes: list[int], seeds: list[int]) -> list[dict[str, Any]]:
    """What is measured, in order: each start at each size, and by seed."""
    found = []
    for seed in seeds:
        for size in sizes:
            for start, options in (STARTS | ({} if size == 32 else ENLARGED)).items():
                found.append({'images': size, 'start': start, 'options': options, 'seed': seed})
    return [cell | {'epochs': EPOCHS[cell['images']]} for cell in found]


def measure(cell: Mapping[str, Any], data: Path, folder: Path) -> dict[str, Any]:
    """Train one cell and return the metrics of its last epoch, with what it took."""
    name = f'{cell["images"]}-{cell["start"].replace(", ", "-").replace(" ", "_")}-{cell["seed"]}'
    options = ['--data-dir', str(data), '--epochs', str(cell['epochs']), '--val-interval', str(cell['epochs'])]
    options += ['--seed', str(cell['seed']), '--workers', '0', '--output', str(folder), '--experiment', name]
    began, cpu = time.perf_counter(), time.process_time()
    if train([*options, *cell['options'], '--resume', 'auto', '--quiet']):
        raise SystemExit(f'{name} was stopped; the same command goes on.')
    took = {'seconds': time.perf_counter() - began, 'cpu_seconds': time.process_time() - cpu}
    results = json.loads((folder / name / 'results.json').read_text())
    tested = [row['accuracy'] for row in read_per_class(folder / name / 'per_class.csv') if row['accuracy'] is not None]
    picked = {key: results['args'][key] for key in ('model', 'loss', 'img_size', 'batch_size', 'lr', 'amp')}
    picked['input_size'] = results['args']['data_config']['input_size']
    metrics = {'class_mean': statistics.mean(tested), **results['last']}
    where = {**environment(), 'threads': torch.get_num_threads()}
    return {**cell, 'picked': picked, 'metrics': metrics, **took, 'environment': where}


def show(done: list[dict[str, Any]]) -> None:
    """The table: a row a start and size, means over the seeds."""
    print(f'{"images":<8}{"start":<26}{"seeds":>6}' + ''.join(f'{name:>12}' for name in SHOWN))
    for size, start in dict.fromkeys((cell['images'], cell['start']) for cell in done):
        rows = [
            c['metrics'] | {'cpu_seconds': c['cpu_seconds']} for c in done if (c['images'], c['start']) == (size, start)
        ]
        means = [statistics.mean(row[name] for row in rows) for name in SHOWN]
        print(f'{size:<8}{start:<26}{len(rows):>6}' + ''.join(f'{mean:>12.1f}' for mean in means))


def main() -> None:
    """Measure what is missing and print all."""
    args = build_parser().parse_args()
    done: list[dict[str, Any]] = json.loads(args.output.read_text())['cells'] if args.output.exists() else []
    for cell in cells(args.sizes, args.seeds):
        if not any(all(old[key] == value for key, value in cell.items()) for old in done):
            data = squares(args.data, args.work / str(cell['images']), cell['images'])
            done.append(measure(cell, data, args.work / 'runs'))
            args.output.parent.mkdir(parents=True, exist_ok=True)
            write_json(args.output, {'data': args.data.name, 'cells': done})
            show(done[-1:])
    show(done)


if __name__ == '__main__':
    main()
