r"""One's own long tail: `ride-timm train` without options next to plain fine-tuning, at equal time.

    OMP_NUM_THREADS=1 python benchmarks/own_data.py --output FILE.json [--data DIR] [--squares N] [--seeds 42 43 44] \
      [--time-budget 1h] [--weights FILE]

DIR holds `train/CLASS/*` and `val/CLASS/*`, such as CIFAR-100-LT or Caltech-101-LT; without it scikit-learn's
handwritten digits are cut to a long tail (imbalance factor 30). `--squares N` takes the middle square of each image,
scaled to N pixels. The rows:

- without options: `ride-timm train --data-dir DIR --time-budget TIME`, with the start that it picks named.
- plain, cross-entropy: the same backbone with one head, and `--tail none`.
- plain, adjusted: the same run, measured with `--logit-adjustment 1`.
- control: initialised from `ride_resnet32_1e.ce_cifar100lt`, the plain network, with the loss that is picked.
- random weights: the network of the first row with `--from-scratch`.

The start is that of images of up to 40 pixels, the experts in the package; the plain backbone's weights are then those
of the control. For larger images give `--weights`, EfficientNet-Lite0's of ImageNet (`benchmarks/backbones.py
--convert`), with the learning rates that were measured there for experts and for the plain backbone. The first row
picks its epochs; the plain rows have as many more as their network has fewer operations (GMACs), so that they take the
same time, and CPU seconds stand next to each result. On larger images the control is small and takes less.
`--epochs N` gives all rows N epochs instead. timm's `train.py` is not among the rows, because no distribution of timm
holds it.

Each finished cell is added to FILE.json, and the same command goes on with those that are missing; one that was
stopped is trained anew. Prints mean and standard deviation over the seeds, in percent and seconds.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from backbones import BACKBONE
from PIL import Image, ImageOps

from ride_timm.commands.quickstart import write_digits
from ride_timm.commands.train import main as train
from ride_timm.commands.validate import main as validate
from ride_timm.evaluation.cost import gmacs, plain_gmacs
from ride_timm.evaluation.writing import environment, write_json
from ride_timm.records.runs import read_run
from ride_timm.training.starts import PACKAGED

FIRST, PLAIN, ADJUSTED, CONTROL, RANDOM = ROWS = (
    'without options', 'plain, cross-entropy', 'plain, adjusted', 'control', 'random weights',
)  # fmt: skip
PLAIN_WEIGHTS = 'ride_resnet32_1e.ce_cifar100lt'
RATES = {'experts': 8e-3, 'plain': 16e-3}
"""Of `BACKBONE` for a batch of 128: those of benchmarks/backbones.py for one of 32, times two (square root scaling)."""

ONCE = '10000'  # epochs between evaluations: the last epoch alone, so that nothing is chosen on test images
METRICS = {'overall': 'top1', 'class_mean': 'balanced', 'many': 'many', 'medium': 'medium', 'few': 'few', 'ece': 'ece'}
SHOWN = (*METRICS, 'epochs', 'cpu_seconds', 'wall_seconds')


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--output', required=True, type=Path, metavar='FILE', help='JSON file, which is added to')
    parser.add_argument('--data', type=Path, metavar='DIR', help='default: the digits')
    parser.add_argument('--squares', type=int, metavar='N', help='cut squares of N pixels of the images')
    parser.add_argument('--weights', type=Path, metavar='FILE', help=f'{BACKBONE} in safetensors')
    parser.add_argument('--seeds', type=int, nargs='+', default=[42, 43, 44])
    parser.add_argument('--rows', nargs='+', choices=ROWS, default=list(ROWS), metavar='ROW')
    parser.add_argument('--time-budget', default='1h', metavar='TIME', help='of the first row (default: %(default)s)')
    parser.add_argument('--epochs', type=int, metavar='N', help='of all rows, instead of equal time')
    parser.add_argument('--options', default='', help='further options of every training, in quotes')
    parser.add_argument('--work', type=Path, default=Path('output/own_data'), metavar='DIR', help='for images and runs')
    return parser


def settings_of(args: argparse.Namespace) -> dict[str, str | None]:
    """The options that results depend on."""
    names = ('data', 'squares', 'weights', 'time_budget', 'epochs', 'options')
    return {name: None if getattr(args, name) is None else str(getattr(args, name)) for name in names}


def images(args: argparse.Namespace, seed: int) -> Path:
    """The folder of the images, made if needed."""
    data: Path = args.data or args.work / f'digits-{seed}'
    if args.data is None:
        write_digits(data, seed, imbalance=30)
    if args.squares is None:
        return data
    folder: Path = args.work / f'{data.name}-{args.squares}'
    done = folder / 'complete'
    known = done.exists() and done.read_text() == str(data.resolve())
    if not known:
        shutil.rmtree(folder, ignore_errors=True)
    for source in () if known else sorted(data.glob('*/*/*')):
        target = (folder / source.relative_to(data)).with_suffix('.png')
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(source) as image:
            size = (args.squares, args.squares)
            ImageOps.fit(image.convert('RGB'), size, Image.Resampling.BICUBIC).save(target)
    done.write_text(str(data.resolve()))
    return folder


def row_options(row: str, weights: Path | None) -> list[str]:
    """The options of a row, without its length."""
    if row == CONTROL:
        return ['--init', PLAIN_WEIGHTS]
    plain = row in (PLAIN, ADJUSTED)
    if weights is None:
        start = ['--init', PLAIN_WEIGHTS, '--tail', 'none'] if plain else ['--init', PACKAGED]
        return ['--from-scratch', '--model', PACKAGED.partition('.')[0]] if row == RANDOM else start
    model = ['--model', BACKBONE if plain else f'ride_{BACKBONE}_3e', *(['--tail', 'none'] if plain else [])]
    rate = ['--lr-base-size', '128', '--lr-base-scale', 'sqrt']
    rate += ['--lr-base', str(RATES['plain' if plain else 'experts'])]
    return [*model, *(['--from-scratch'] if row == RANDOM else ['--init', str(weights), *rate])]


def same_time(row: str, first: Mapping[str, Any]) -> list[str]:
    """The epochs of another row that take the time of the first one, and the size of its images."""
    size, model = first['input_size'], first['model'].partition('.')[0]
    options = [] if row == CONTROL else ['--img-size', str(size[-1])]
    net = timm.create_model(model)
    ratio = 1.0 if row == RANDOM else gmacs(net, size) / plain_gmacs(net, size)
    return [*options, '--epochs', str(round(first['epochs'] * ratio))]


def run_row(row: str, seed: int, data: Path, args: argparse.Namespace) -> Path:
    """Train a row unless that is done; rows that differ only afterwards share their training."""
    trained = PLAIN if row == ADJUSTED else row
    folder: Path = args.work / 'runs'
    name = f'{args.output.stem}-{trained.replace(", ", "-").replace(" ", "_")}-{seed}'
    run = folder / name
    if (run / 'took.json').exists() and json.loads((run / 'took.json').read_text())['settings'] == settings_of(args):
        return run
    if args.epochs is not None:
        length = ['--epochs', str(args.epochs)]
    elif row == FIRST:
        length = ['--time-budget', args.time_budget]
    else:
        length = same_time(row, trained_with(run_row(FIRST, seed, data, args)))
    options = ['--data-dir', str(data), '--seed', str(seed), '--workers', '0', '--val-interval', ONCE]
    options += [*row_options(row, args.weights), *length, *shlex.split(args.options)]
    shutil.rmtree(run, ignore_errors=True)
    began, cpu = time.perf_counter(), time.process_time()
    if train([*options, '--output', str(folder), '--experiment', name]):
        raise SystemExit(f'{name} was stopped; the same command goes on.')
    took = {'cpu_seconds': time.process_time() - cpu, 'wall_seconds': time.perf_counter() - began}
    write_json(run / 'took.json', {'settings': settings_of(args), 'took': took})
    return run


def trained_with(run: Path) -> dict[str, Any]:
    """What was picked for a run."""
    args = read_run(run).args or {}
    names = ('model', 'init', 'loss', 'epochs', 'batch_size', 'lr', 'opt', 'weight_decay', 'amp', 'channels_last')
    return {
        **{name: args.get(name) for name in names},
        'input_size': args['data_config']['input_size'],
    }


def measure(row: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The results of a row on the test images, with what it took."""
    data = images(args, seed)
    run = run_row(row, seed, data, args)
    file = run / f'{"adjusted" if row == ADJUSTED else "validated"}.json'
    adjusted = ['--logit-adjustment', '1'] if row == ADJUSTED else []
    options = [str(run / 'last.pth.tar'), '--data-dir', str(data), '--results-file', str(file), *adjusted]
    with Path(os.devnull).open('w') as nowhere, contextlib.redirect_stdout(nowhere):
        validate(options)
    found, picked = json.loads(file.read_text()), trained_with(run)
    return {
        'row': row, 'seed': seed, 'picked': picked,
        'metrics': {name: found[key] for name, key in METRICS.items()}
        | {'epochs': picked['epochs']} | json.loads((run / 'took.json').read_text())['took'],
        'environment': {**environment(), 'threads': torch.get_num_threads()},
    }  # fmt: skip


def show(cells: list[Mapping[str, Any]]) -> None:
    """The table: a line a row, mean and standard deviation over the seeds."""
    print(f'{"row":<22}{"seeds":>5}' + ''.join(f'{name.removesuffix("_seconds"):>15}' for name in SHOWN))
    for row in dict.fromkeys(cell['row'] for cell in cells):
        found = [cell['metrics'] for cell in cells if cell['row'] == row]
        texts = []
        for name in SHOWN:
            values = [metrics[name] for metrics in found]
            spread = f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else ''
            texts.append(f'{statistics.mean(values):.1f}{spread}')
        print(f'{row:<22}{len(found):>5}' + ''.join(f'{text:>15}' for text in texts))


def main() -> None:
    """Measure what is missing and print all."""
    args = build_parser().parse_args()
    settings = settings_of(args)
    before = json.loads(args.output.read_text()) if args.output.exists() else {'settings': settings, 'cells': []}
    if before.get('settings') != settings:
        raise SystemExit(f'{args.output} is of other settings ({before.get("settings")}); name another --output.')
    done: list[Mapping[str, Any]] = before['cells']
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for row in args.rows:
            if not any((cell['row'], cell['seed']) == (row, seed) for cell in done):
                done.append(measure(row, seed, args))
                write_json(args.output, {'settings': settings, 'cells': done})
                show(done[-1:])
    show(done)


if __name__ == '__main__':
    main()
