r"""Compare steps of a recipe for CIFAR-100-LT on held-out training images; the test images are not looked at.

    python benchmarks/ladder.py --data-dir data/cifar100_lt [--steps base aa gated] [--seeds 42 43]
    python benchmarks/ladder.py --data-dir data/cifar100_lt --device cuda --parallel 6 \
      --options='--amp --amp-dtype bfloat16 --channels-last --cuda-graph'

A step is another one plus one change (`--list` shows them). Each is trained for `--epochs` on run A's nine tenths of
the training images (`--holdout 0.1 --holdout-seed 42`) with each seed, and a line is added to
`benchmarks/results/cifar100lt_ladder.csv`. The same command goes on where it was stopped: what has a line for its step,
seed and epochs is not trained again, and a run under way resumes. `--deadline SECONDS` stops in time. On the CPU a run
takes one thread and gives way to other work.

The table compares by the mean over the last ten epochs, since the 1,095 held-out images tell a single epoch to about
1.5 points only (`se`). All steps are measured on the same images, so what makes a difference uncertain is how far
seeds of one step lie apart. That is estimated from all steps with several seeds together; without any it is taken to
be 0.5 points. A step stands out from the one that it builds on where the difference is beyond twice its standard error.
"""

import argparse
import csv
import json
import math
import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from run_until import run_until

GROUPS = ('many', 'medium', 'few')
COLUMNS = (
    'step', 'seed', 'epochs', 'balanced', 'se', 'balanced_last10', *GROUPS, 'ece', 'seconds', 'hardware', 'commit',
)  # fmt: skip
COMMON = ('--holdout', '0.1', '--holdout-seed', '42', '--data-on-device')
LAST = 10  # epochs that are averaged
STOPPED = 143  # exit status after SIGTERM
SEED_SPREAD = 0.5  # points, where it cannot be estimated


HEADS = '--stage heads --loss balanced_softmax --sampler instance --epochs 20 --warmup-epochs 2 --lr 0.1'


class Step(NamedTuple):
    """A training to compare: the options of the step `parent`, and these.

    `later` has a stage of its own, which goes on from the network of the parent with these options alone.
    """

    parent: str | None
    options: str
    later: bool = False


# the weights of TCL's losses are a third of its own, as BalPoE's loss is the mean over three experts and not the sum
STEPS = {
    'base': Step(None, '--recipe cifar100lt_balpoe --sched cosine --warmup-epochs 5'),
    'aa': Step('base', '--augmentation cifar_aa'),
    'aa_no_mixup': Step('aa', '--mixup 0'),
    'tau_mdcs': Step('aa_no_mixup', '--loss-kwargs tau=mdcs'),
    'tau_tcl': Step('aa_no_mixup', '--loss-kwargs tau=tcl'),
    'schedule': Step('aa_no_mixup', '--lr 0.15 --warmup-lr 0.05 --opt momentum'),
    'schedule_tcl': Step('schedule', '--mutual-gated 0.33 --soft-suppression 0.0067'),
    'schedule_tcl_tau': Step('schedule_tcl', '--loss-kwargs tau=tcl'),
    'schedule_tcl_heads': Step('schedule_tcl', f'{HEADS} --augmentation cifar_aa', later=True),
    'schedule_mixup': Step('aa', '--lr 0.15 --warmup-lr 0.05 --opt momentum'),
    'schedule_mixup_tcl': Step('schedule_mixup', '--mutual-gated 0.33 --soft-suppression 0.0067'),
    'mutual': Step('aa_no_mixup', '--mutual 0.67'),  # as much as `gated`, without its gate
    'gated': Step('aa_no_mixup', '--mutual-gated 0.33'),
    'suppression': Step('aa_no_mixup', '--soft-suppression 0.0067'),
    'gated_suppression': Step('gated', '--soft-suppression 0.0067'),
    'tcl': Step('gated_suppression', '--loss-kwargs tau=tcl'),
    'average': Step('aa_no_mixup', '--average-epochs 5'),
    'ema': Step('aa_no_mixup', '--model-ema --model-ema-decay 0.999'),
    'heads': Step('aa_no_mixup', f'{HEADS} --augmentation cifar_aa', later=True),
}


def options_of(name: str) -> list[str]:
    """All options of a step, those of the steps that it builds on first."""
    parent, options, later = STEPS[name]
    return [*(options_of(parent) if parent and not later else ()), *shlex.split(options)]


def read_lines(path: Path) -> list[dict[str, str]]:
    """The lines of the ladder's file; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline='') as file:
        return list(csv.DictReader(file))


def add_line(path: Path, line: dict[str, Any]) -> None:
    """Add a line to the ladder's file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open('a', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(line)


def read_run(step: str, folder: Path) -> dict[str, Any]:
    """What the ladder keeps of a finished run."""
    results = json.loads((folder / 'results.json').read_text())
    last, stage, environment = results['last'], results['training'][0], results['test']['environment']
    with (folder / 'summary.csv').open(newline='') as file:
        epochs = list(csv.DictReader(file))
    with (folder / 'per_class.csv').open(newline='') as file:
        images = {group: [] for group in GROUPS}
        for row in csv.DictReader(file):
            if int(row['test_images']):
                images[row['group']].append(int(row['test_images']))
    seconds = sum(stage['images'] / float(row['train_images_per_second']) for row in epochs)
    curve = [_balanced({group: float(row[f'eval_{group}']) for group in GROUPS}, images) for row in epochs[-LAST:]]
    return {
        'step': step, 'seed': stage['seed'], 'epochs': stage['epochs'],
        'balanced': f'{_balanced(last, images):.2f}', 'se': f'{_standard_error(last, images):.2f}',
        'balanced_last10': f'{statistics.fmean(curve):.2f}',
        **{name: f'{last[name]:.2f}' for name in (*GROUPS, 'ece')},
        'seconds': round(seconds), 'hardware': environment['hardware'], 'commit': environment['commit'],
    }  # fmt: skip


def _balanced(means: dict[str, float], images: dict[str, list[int]]) -> float:
    """Mean of the class accuracies in percent, from those of the groups and the held-out images of their classes."""
    return sum(means[group] * len(images[group]) for group in GROUPS) / sum(map(len, images.values()))


def _standard_error(means: dict[str, float], images: dict[str, list[int]]) -> float:
    """Standard error of `_balanced` in points, each class taken to be as hard as its group is on average.

    A class of one held-out image is all right or all wrong, which tells nothing about how far it may be off.
    """
    variance = sum(
        means[group] * (100.0 - means[group]) * sum(1.0 / n for n in images[group]) for group in GROUPS if images[group]
    )
    return math.sqrt(variance) / sum(map(len, images.values()))


def seed_spread(lines: Iterable[dict[str, str]]) -> tuple[float, bool]:
    """Standard deviation between seeds of one step in points, and whether it is estimated from the lines."""
    groups = [values for values in _by_step(lines).values() if len(values) > 1]
    freedom = sum(len(values) - 1 for values in groups)
    if not freedom:
        return SEED_SPREAD, False
    return math.sqrt(sum((len(v) - 1) * statistics.variance(v) for v in groups) / freedom), True


def _by_step(lines: Iterable[dict[str, str]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for line in lines:
        found.setdefault(line['step'], []).append(float(line['balanced_last10']))
    return found


def table(lines: list[dict[str, str]]) -> str:
    """The steps with their means over seeds, each next to the step that it builds on."""
    values, (spread, estimated) = _by_step(lines), seed_spread(lines)
    head = f'{"step":<20}{"seeds":>6}{"last 10":>9}{"se":>6}{"many":>7}{"medium":>8}{"few":>7}{"ECE":>7}  against'
    rows = [head]
    for name in [*(n for n in STEPS if n in values), *(n for n in values if n not in STEPS)]:
        own = [line for line in lines if line['step'] == name]
        mean = {key: statistics.fmean(float(line[key]) for line in own) for key in ('se', *GROUPS, 'ece')}
        row = f'{name:<20}{len(own):>6}{statistics.fmean(values[name]):>9.2f}{mean["se"]:>6.2f}'
        row += f'{mean["many"]:>7.1f}{mean["medium"]:>8.1f}{mean["few"]:>7.1f}{mean["ece"]:>7.1f}  '
        rows.append((row + _compared(name, values, spread)).rstrip())
    how = 'estimated' if estimated else 'assumed; train several seeds of a step to estimate it'
    return '\n'.join([*rows, f'Standard deviation between seeds: {spread:.2f} points ({how}).'])


def _compared(name: str, values: dict[str, list[float]], spread: float) -> str:
    parent = STEPS[name].parent if name in STEPS else None
    if parent not in values:
        return ''
    own, other = values[name], values[parent]
    difference = statistics.fmean(own) - statistics.fmean(other)
    error = spread * math.sqrt(1 / len(own) + 1 / len(other))
    verdict = ('better' if difference > 0 else 'worse') if abs(difference) > 2 * error else 'not told apart'
    return f'{parent}: {difference:+.2f} +- {error:.2f}, {verdict}'


class Ladder:
    """Trains what has no line yet.

    Args:
        args: Of `build_parser()`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.path = Path(args.results)
        self.end = time.monotonic() + args.deadline if args.deadline else None
        self.lock = Lock()

    def lines(self) -> list[dict[str, str]]:
        """The lines of this number of epochs."""
        return [line for line in read_lines(self.path) if line['epochs'] == str(self.args.epochs)]

    def climb(self, step: str, seed: int) -> bool:
        """Train a step with a seed and add its line, unless it has one; returns whether it has one now."""
        if any((line['step'], line['seed']) == (step, str(seed)) for line in self.lines()):
            return True
        folder = self._train(step, seed)
        if folder is None or self.args.dry_run:
            return folder is not None
        with self.lock:
            add_line(self.path, {**read_run(step, folder), 'epochs': self.args.epochs})
        return True

    def _train(self, step: str, seed: int) -> Path | None:
        """Train a step with a seed, unless that is done, and return its folder; None if it is not finished."""
        args, (parent, _, later) = self.args, STEPS[step]
        folder, before = (Path(args.output, f'{name}-{args.epochs}-{seed}') for name in (step, parent))
        if (folder / 'results.json').is_file():
            return folder
        command = [sys.executable, '-m', 'ride_timm.cli', 'train', *options_of(step)]
        if parent and later:
            if not args.dry_run and self._train(parent, seed) is None:
                return None
            command += ['--init', str(before / 'last.pth.tar'), '--data-on-device']  # it holds out the same images
        else:
            command += [*COMMON, '--epochs', str(args.epochs)]
        command += ['--seed', str(seed), '--data-dir', args.data_dir, '--device', args.device]
        command += ['--output', str(folder.parent), '--experiment', folder.name, '--resume', 'auto']
        command += shlex.split(args.options)
        if args.dry_run:
            print(shlex.join(['ride-timm', *command[3:]]))
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        log = folder.parent / f'{folder.name}.log'
        if run_until(self.end, command, log) not in (0, STOPPED):
            print(f'{log}: {log.read_text().splitlines()[-1]}', file=sys.stderr)
        return folder if (folder / 'results.json').is_file() else None


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-dir', help='folder with train/ and val/; without it the table alone is printed')
    parser.add_argument('--steps', nargs='+', metavar='NAME', choices=list(STEPS), default=list(STEPS))
    parser.add_argument('--seeds', type=int, nargs='+', default=[42, 43])
    parser.add_argument('--epochs', type=int, default=50)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--parallel', type=int, default=1, metavar='N', help='trainings at a time')
    parser.add_argument('--options', default='', help='further options of every training, in quotes')
    parser.add_argument('--output', default='output/ladder', help='folder of the runs')
    parser.add_argument('--results', default='benchmarks/results/cifar100lt_ladder.csv')
    parser.add_argument('--deadline', type=float, metavar='SECONDS', help='stop in time; the same command goes on')
    parser.add_argument('--dry-run', action='store_true', help='print the commands')
    parser.add_argument('--list', action='store_true', help='print the steps')
    return parser


def main() -> int:
    """Train what is missing, print the table."""
    args = build_parser().parse_args()
    if args.list:
        for name, (parent, options, _) in STEPS.items():
            print(f'{name:<20}{parent or "":<20}{options}')
        return 0
    ladder = Ladder(args)
    done = [True]
    if args.data_dir:
        if args.device == 'cpu':
            os.environ['OMP_NUM_THREADS'] = '1'
            os.nice(10)
        later = [step for step in args.steps if STEPS[step].later]
        first = [step for step in STEPS if step in {*args.steps, *(STEPS[name].parent for name in later)}]
        done = []
        for steps in ([step for step in first if step not in later], later):
            with ThreadPoolExecutor(args.parallel) as pool:  # all steps with one seed before the next
                tasks = [(step, seed) for seed in args.seeds for step in steps]
                done += pool.map(lambda task: ladder.climb(*task), tasks)
    if not args.dry_run:
        print(table(ladder.lines()))
    if not all(done):
        print(f'{done.count(False)} of {len(done)} trainings are not finished; the same command goes on.')
    return 0 if all(done) else 3


if __name__ == '__main__':
    sys.exit(main())
