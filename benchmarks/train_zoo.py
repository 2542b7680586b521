r"""Train, route, measure and export the published networks of a data set, one after the other or side by side.

    python benchmarks/train_zoo.py --data-dir data/cifar100_lt [--only NAME ...] [--parallel 1] [--seeds 42]
    python benchmarks/train_zoo.py --plan tinyimagenetlt --data-dir data/tiny_imagenet_lt [--epochs 40] [--one-run]

Every network with a router is trained twice. Run A holds a tenth of the training images out, stratified, and chooses
the router's threshold there. Run B is trained on all images and takes that choice; it is what `weights/NAME` publishes,
and its results are the first and only look at the test images. With several seeds, B is trained with each and the one
with the median overall accuracy is published, next to the mean and standard deviation of all.

`--one-run` saves half of that where a training is dear: there is no run B, every network of the plan is trained without
the held-out tenth, so that they remain comparable, and run A itself is published. Its card says under the title that it
saw only a part of the training images, and how many.

The same command goes on where it was stopped: each stage resumes from its last checkpoint, finished ones are skipped.
What a finished stage wrote down, without tensors, is kept under `--records`, to be committed: run A need not be trained
again on another machine, and a `last.pth.tar` that was put into such a folder is what the stage goes on from there. A
network that lies in `--weights` and whose runs do not lie in `--output` counts as trained with its seed and is left as
it is, unless another seed has the median: remove it to train it anew. Each run is measured as soon as it has ended,
next to those that still train, into `exported/` under `--output`, and not again unless that folder is removed.
`--deadline SECONDS` stops in time (the stages get SIGTERM and save); `--dry-run` prints the commands. `--options` go to
every training, such as `--amp --channels-last --torchcompile`. `--epochs` trains the experts for another number of
epochs than the recipe's, whose schedule must scale with it; commands and epochs stand in the results and on the cards.

On a GPU these nets are done faster than a CPU prepares their images, and one alone leaves most of it idle:

    nvidia-cuda-mps-control -d
    python benchmarks/train_zoo.py --data-dir data/cifar100_lt --seeds 42 43 44 --parallel 6 --device cuda \
      --options='--amp --amp-dtype bfloat16 --channels-last --cuda-graph --data-on-device'
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from run_until import run_until
from zoo_plans import PLANS, TEACHER, Net

from ride_timm.commands.package import seed_rows
from ride_timm.evaluation.writing import write_json
from ride_timm.recipes import load_recipe

HOLDOUT = ['--holdout', '0.1', '--val-interval', '20']
LAST_ONLY = ['--val-interval', '100000']
"""Run B sees the test images after its last epoch only."""
FEW_EPOCHS = 20
"""Below these the recipes' five epochs of warm-up would be a quarter and more of the training."""
RECORDED = ('results.json', 'summary.csv', 'per_class.csv')
"""What of a finished stage is kept: small, and all that the cards are made from."""
SHOWN = ('top1', 'many', 'medium', 'few', 'ece')


class Zoo:
    """What the commands have in common.

    Args:
        args: Of `build_parser()`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.plan = PLANS[args.plan]
        self.output = Path(args.output)
        self.records = Path(args.records)
        self.end = time.monotonic() + args.deadline if args.deadline else None
        self.extra = shlex.split(args.options)

    @property
    def published(self) -> str:
        """Which run is published."""
        return 'A' if self.args.one_run else 'B'

    def run(self, net: Net, part: str, seed: int) -> Path:
        """Folder of a run: A or B of a network, with a seed."""
        return self.output / f'{net.name}.{part}-{seed}'

    def stages(self, net: Net, part: str, seed: int) -> list[Path]:
        """Folders of what a run is made of: its experts, and its router if it gets one."""
        experts = self.run(net, part, seed)
        return [experts, _router_of(experts)] if net.router else [experts]

    def train(self, net: Net, part: str, seed: int) -> bool:
        """Train the experts, then the router; returns whether both are done."""
        foreign = self.foreign(net)
        if foreign is not None and (part != self.published or seed in _seeds(foreign)):
            return True
        experts = self.run(net, part, seed)
        if part == 'A' and not self.args.one_run and self.recorded(_router_of(experts)) is not None:
            return True  # of run A only the choice is needed
        held = HOLDOUT if part == 'A' else LAST_ONLY
        teacher: Path | str = self.run(Net(TEACHER, ''), self.published, self.args.seeds[0]) / 'last.pth.tar'
        if self.foreign(Net(TEACHER, '')) is not None:
            teacher = TEACHER
        distil = ['--teacher', str(teacher)] if net.recipe.endswith('_distill') else []
        options = [*net.options, *self._epochs(), *held, *distil, '--seed', str(seed)]
        if not self._stage(experts, ['--recipe', net.recipe, *options]):
            return False
        if not net.router:
            return True
        fixed = ['--val-interval', '100000', *net.router_options]
        if part == 'B':
            chosen = self.choice(net)
            if chosen is None:
                return False
            if '--router-threshold' not in fixed:
                fixed += ['--router-threshold', f'{chosen:g}']
        init = ['--init', str(experts / 'last.pth.tar')]
        return self._stage(
            _router_of(experts), ['--recipe', self.plan.router_recipe, *init, *fixed, '--seed', str(seed)]
        )

    def _epochs(self) -> list[str]:
        if self.args.epochs is None:
            return []
        short = ['--warmup-epochs', '1'] if self.args.epochs < FEW_EPOCHS else []
        return ['--epochs', str(self.args.epochs), *short]

    def choice(self, net: Net) -> float | None:
        """The threshold that run A chose on held-out images; None while it is not done."""
        foreign = self.foreign(net)
        if foreign is not None and foreign['choices'] is not None:
            return float(foreign['choices']['threshold'])
        found = self.recorded(_router_of(self.run(net, 'A', self.args.seeds[0])))
        if found is None:
            return None
        results = json.loads((found / 'results.json').read_text())
        older = 'router_threshold' in results  # a run of before version 2 of the file
        return float(results['router_threshold'] if older else results['choices']['threshold'])

    def foreign(self, net: Net) -> dict[str, Any] | None:
        """The `results.json` of a network that is published already, by a run that is not here; None if it is not."""
        path = Path(self.args.weights, net.name, 'results.json')
        if not path.is_file():
            return None
        results: dict[str, Any] = json.loads(path.read_text())
        seed = _seeds(results)[0]
        return None if seed is not None and self.run(net, self.published, seed).exists() else results

    def seeds(self, net: Net) -> list[Any]:
        """The seeds to choose the published one from: those given, after that of what is published already."""
        foreign = self.foreign(net)
        known = [] if foreign is None else [seed for seed in _seeds(foreign)[:1] if seed is not None]
        return list(dict.fromkeys([*known, *self.args.seeds]))

    def recorded(self, run: Path) -> Path | None:
        """Where the results of a finished stage lie: in its own folder or among the records; None if nowhere."""
        return next((path for path in (run, self.records / run.name) if (path / 'results.json').is_file()), None)

    def _record(self, run: Path) -> None:
        kept = self.records / run.name
        kept.mkdir(parents=True, exist_ok=True)
        for name in filter(lambda name: (run / name).is_file(), RECORDED):
            shutil.copy(run / name, kept / name)
        (kept / 'last.pth.tar').unlink(missing_ok=True)  # of the stage when it was under way

    def _stage(self, folder: Path, options: list[str]) -> bool:
        if (folder / 'results.json').is_file():
            self._record(folder)
            return True
        command = [sys.executable, '-m', 'ride_timm.cli', 'train', *options, '--data-dir', self.args.data_dir]
        command += ['--output', str(folder.parent), '--experiment', folder.name, '--resume', 'auto', *self.extra]
        if self.args.dry_run:
            print(shlex.join(['ride-timm', *command[3:]]))
            return True
        folder.parent.mkdir(parents=True, exist_ok=True)
        if not folder.exists() and (self.records / folder.name / 'last.pth.tar').is_file():
            shutil.copytree(self.records / folder.name, folder)
        run_until(self.end, command, folder.parent / f'{folder.name}.log')
        done = (folder / 'results.json').is_file()
        if done:
            self._record(folder)
        return done

    def exported(self, net: Net, seed: int) -> Path:
        """Folder that a run is exported to, before one of them is published."""
        return Path(self.args.output, 'exported', str(seed), net.name)

    def export(self, net: Net, seed: int) -> dict[str, Any] | None:
        """Measure the run of a seed and write its folder, unless that is done; None while the run is not finished."""
        ended = self.stages(net, self.published, seed)[-1] / 'results.json'
        if not ended.is_file():
            return None
        made = self.exported(net, seed) / 'results.json'
        if not made.is_file() or made.stat().st_mtime < ended.stat().st_mtime:
            self._export(net, seed)
        results: dict[str, Any] = json.loads(made.read_text())
        return results

    def publish(self, net: Net) -> dict[str, Any] | None:
        """Put the run with the median accuracy into `weights/NAME`; None while a run is not done."""
        foreign = self.foreign(net)
        own = [seed for seed in self.args.seeds if foreign is None or seed not in _seeds(foreign)]
        if foreign is not None and not own:
            return foreign
        made: dict[int, dict[str, Any]] = {}
        for seed in own:
            results = self.export(net, seed)
            if results is None:
                return None
            made[seed] = results
        place = Path(self.args.weights, net.name)
        known = _seeds(foreign)[0] if foreign is not None else None
        if foreign is not None and known is not None:
            shutil.copytree(place, self.exported(net, known), dirs_exist_ok=True)
            made[known] = foreign
        order = sorted(made, key=lambda seed: made[seed]['test']['all_experts']['top1'])
        median = order[(len(order) - 1) // 2]
        if foreign is None or median != known:
            shutil.rmtree(place, ignore_errors=True)  # the other seed's tensors may be cut into other files
            shutil.copytree(self.exported(net, median), place)
        others = [self.exported(net, seed) for seed in made if seed != median]
        published = made[median]
        published['seeds'] = seed_rows(median, published['test']['all_experts'], others)
        write_json(place / 'results.json', published)  # its card and its hashes are renewed with those of all
        return published

    def _export(self, net: Net, seed: int) -> None:
        stages = self.stages(net, self.published, seed)
        command = [sys.executable, '-m', 'ride_timm.cli', 'package', *map(str, stages)]
        command += ['--output', str(self.exported(net, seed)), '--data-dir', self.args.data_dir]
        command += ['--device', self.args.device, '--data-name', self.plan.data_name, '--data-id', self.plan.data_id]
        command += self.plan.export if net.kept else ['--results-only']
        chooser = seed if self.args.one_run else self.seeds(net)[0]
        choices = [str(found) for run in self.stages(net, 'A', chooser) if (found := self.recorded(run)) is not None]
        command += ['--choices', *choices] if net.router else []
        command += ['--note', net.note] if net.note else []
        subprocess.run(command, check=True)

    def work(self, net: Net, part: str, seed: int) -> None:
        """Train, and measure what may be published: while other trainings still run, not after the last of them."""
        if self.train(net, part, seed) and part == self.published and not (self.args.no_export or self.args.dry_run):
            self.export(net, seed)


def _seeds(results: dict[str, Any]) -> list[Any]:
    """Seeds that a published network has results of, its own first."""
    return [row['seed'] for row in results['seeds']]


def _router_of(experts: Path) -> Path:
    """Folder of the run that trains the router of a run's experts."""
    return experts.with_name(f'{experts.name}-router')


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data-dir', required=True, help='folder with train/ and val/')
    parser.add_argument(
        '--plan', default='cifar100lt', choices=list(PLANS), help='whose networks (default: cifar100lt)'
    )
    parser.add_argument('--one-run', action='store_true', help='train and publish run A alone')
    parser.add_argument('--epochs', type=int, metavar='N', help="of the experts (default: the recipe's)")
    parser.add_argument('--only', nargs='+', metavar='NAME', help='these networks (default: all, in order of worth)')
    parser.add_argument('--seeds', type=int, nargs='+', default=[42])
    parser.add_argument('--parallel', type=int, default=1, metavar='N', help='trainings at a time')
    parser.add_argument('--options', default='', help='further options of every training, in quotes')
    parser.add_argument('--output', default='output/zoo', help='folder of the runs')
    parser.add_argument(
        '--records', default='benchmarks/results/runs', help='folder of what finished stages wrote down'
    )
    parser.add_argument('--weights', default='weights', help='folder of the published weights')
    parser.add_argument('--device', default='cpu', help='where to measure')
    parser.add_argument('--deadline', type=float, metavar='SECONDS', help='stop in time; the same command goes on')
    parser.add_argument('--no-export', action='store_true', help='train only')
    parser.add_argument('--dry-run', action='store_true', help='print the commands')
    return parser


def tasks(nets: list[Net], seeds: list[int], one_run: bool) -> Iterator[tuple[Net, str, int]]:
    """Trainings in order: A before B, the teacher before its student, one seed of all networks before the next."""
    ordered = sorted(nets, key=lambda net: net.recipe.endswith('_distill'))
    for seed in seeds:
        for net in ordered:
            if net.router and not one_run and seed == seeds[0]:
                yield net, 'A', seed
            yield net, 'A' if one_run else 'B', seed


def _renew_cards(root: Path) -> None:
    """Write all cards again, each next to the others, and the table of `MODEL_CARD.md` next to `weights/`."""
    folders = [str(path.parent) for path in sorted(root.glob('*/results.json'))]
    page = root.resolve().parent / 'MODEL_CARD.md'
    if folders:
        table = ['--model-card', str(page)] if page.is_file() else []
        subprocess.run([sys.executable, '-m', 'ride_timm.cli', 'card', *folders, *table], check=True)


def main() -> int:
    """Train what is missing, export what is done, print the table."""
    args = build_parser().parse_args()
    plan = PLANS[args.plan]
    known = {net.name: net for net in plan.nets}
    unknown = set(args.only or ()) - known.keys()
    if unknown:
        print(f'There is no network {unknown.pop()}; choose from {", ".join(known)}.', file=sys.stderr)
        return 2
    nets = [known[name] for name in args.only] if args.only else list(plan.nets)
    fixed = [net.recipe for net in nets if load_recipe(net.recipe).options['sched'] == 'multistep']
    if args.epochs is not None and fixed:
        print(f'The schedule of {fixed[0]} has fixed milestones that --epochs cuts off; leave it out.', file=sys.stderr)
        return 2
    zoo = Zoo(args)
    for net in nets:
        foreign = zoo.foreign(net)
        if foreign is not None and len(_seeds(foreign)) > 1 and not set(args.seeds) <= set(_seeds(foreign)):
            print(
                f'{net.name} is published with the median of the seeds {", ".join(map(str, _seeds(foreign)))}, of '
                'which only one is there; give these --seeds, or remove it to train it anew.', file=sys.stderr,
            )  # fmt: skip
            return 2
    with ThreadPoolExecutor(args.parallel) as pool:
        # with several at a time a B may come to its router before A has chosen; the second pass finishes it
        for _ in range(2 if args.parallel > 1 else 1):
            list(pool.map(lambda task: zoo.work(*task), tasks(nets, args.seeds, args.one_run)))
    if args.no_export or args.dry_run:
        return 0
    missing = []
    for net in nets:
        results = zoo.publish(net)
        if results is None:
            missing.append(net.name)
            continue
        for kind in ('all_experts', 'routed'):
            measured = results['test'][kind]
            if measured is not None:
                values = ', '.join(f'{key} {measured[key]:.2f}' for key in SHOWN if key in measured)
                print(f'{net.name:<42} {kind:<11} {values}, {measured["gmacs"]:.4f} GMACs')
    _renew_cards(Path(args.weights))
    if missing:
        print(f'Not finished: {", ".join(missing)}; the same command goes on.')
    return 0 if not missing else 3


if __name__ == '__main__':
    sys.exit(main())
