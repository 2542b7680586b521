r"""Accuracy over cost of the published networks: measures their time, and draws docs/results.png, the README's picture.

    python benchmarks/accuracy_cost.py --threads 2
    python benchmarks/accuracy_cost.py --ensemble RUN RUN RUN --data-dir data/cifar100_lt
    python benchmarks/accuracy_cost.py --draw

The first line measures the milliseconds of an image, alone and in batches: all experts, routed, the plain network, and
ensembles of as many plain networks as there are experts, one after the other. Routed, as many of the images pass 1, 2,
... experts as in the published test: the router is computed, and its answer replaced. So weights and images can be
random. All networks of a data set take turns, and the fastest of all rounds counts; the machine has to be idle. With
one thread it is CPU time.

The second line measures the accuracy of an ensemble of plain networks, that of the mean of their probabilities; each
was trained as the published one and with another seed. Without it, the picture has no ensembles. Both lines write
benchmarks/results/accuracy_cost_cpu.json and draw; the third only draws. Accuracies and GMACs of the published networks
are those of weights/*/results.json.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from inference import Planned, fastest, spread
from matplotlib.figure import Figure
from PIL import Image
from torch import nn

from ride_timm.commands.validate import open_images
from ride_timm.evaluation.one_pass import measure_split
from ride_timm.evaluation.writing import environment, write_json
from ride_timm.inference.load import TrainedNet, load
from ride_timm.inference.network import data_config
from ride_timm.options import DataForm, filled
from ride_timm.records.published import published_weights
from ride_timm.records.results import Results, read_results

ROOT = Path(__file__).resolve().parents[1]
LABELS = {
    'ride_resnet32_1e.ce_cifar100lt': ('plain, cross-entropy', '#6B6B6B'),
    'ride_resnet32_3e.ride_cifar100lt': ('RIDE, 3 experts', '#0072B2'),
    'ride_resnet32_3e.balpoe_cifar100lt': ('BalPoE, 3 experts', '#D55E00'),
    'ride_resnet32_4e.ride_cifar100lt': ('RIDE, 4 experts', '#009E73'),
    'resnet50.ce_tinyimagenetlt': ('plain, cross-entropy', '#6B6B6B'),
    'resnet50.balanced_softmax_tinyimagenetlt': ('plain, balanced softmax', '#CC79A7'),
    'ride_resnet50_4e.ride_tinyimagenetlt': ('RIDE, 4 experts', '#009E73'),
}
"""Legend and colour of each network."""


class Point(NamedTuple):
    """A place in the picture.

    Attributes:
        name: The published network, or that of which an ensemble has several.
        way: `all`, `routed` or `ensemble`.
        nets: How many networks.
        top1: Test accuracy in percent.
        gmacs: Of an image.
        milliseconds: Of an image, by the size of the batch.
    """

    name: str
    way: str
    nets: int
    top1: float
    gmacs: float
    milliseconds: Mapping[str, float]


class Ensemble(nn.Module):
    """Plain networks, one after the other; its softmax is the mean of theirs."""

    def __init__(self, nets: Sequence[Any]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)
        self.num_classes = nets[0].num_classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logarithms of the probabilities, (B, C), of images (B, channels, H, W)."""
        return torch.stack([net(x).softmax(dim=-1) for net in self.nets]).mean(dim=0).log()


def published() -> dict[str, list[Results]]:
    """The networks of the picture, by data set."""
    weights = published_weights()
    of_data: dict[str, list[Results]] = {}
    for name in LABELS:
        results = read_results(weights[name].folder)
        of_data.setdefault(results.data.name, []).append(results)
    return of_data


def sizes(of_data: Sequence[Results]) -> list[int]:
    """Of how many plain networks an ensemble has as many as one of these networks has experts."""
    return sorted({results.net.num_experts for results in of_data if results.net.num_experts > 1})


def measure(of_data: Sequence[Results], batches: Sequence[int], rounds: int, seconds: float) -> list[dict[str, Any]]:
    """Time of the networks of one data set.

    Returns:
        Rows with `network`, `way`, `nets` and `milliseconds` of an image by the size of the batch. Where all experts
        are computed, networks of one architecture are one row.
    """
    nets: dict[tuple[str, str, int], Any] = {}
    plans: dict[tuple[str, str, int], torch.Tensor] = {}
    images = max(batches)
    for results in of_data:
        nets[results.architecture, 'all', 1] = _create(results)
        if results.test.routed is not None:
            shares = [results.test.routed[f'share_{k + 1}'] for k in range(results.net.num_experts)]
            key = (str(results.name), 'routed', 1)
            plans[key] = spread(shares, images)
            nets[key] = _create(results)
            nets[key].router = Planned(nets[key].router, plans[key])
            nets[key].set_routing(0.5)
        if results.net.num_experts == 1:
            for size in sizes(of_data):
                nets[results.architecture, 'ensemble', size] = Ensemble([_create(results) for _ in range(size)]).eval()
    x = torch.randn(images, *of_data[0].net.input_size)
    found: dict[tuple[str, str, int], dict[str, float]] = {key: {} for key in nets}
    for batch in batches:
        names = {str(key): key for key in nets}
        calls = {name: _call(nets[key], x, batch, plans.get(key)) for name, key in names.items()}
        for name, taken in fastest(calls, 'cpu', rounds, seconds).items():
            found[names[name]][str(batch)] = 1000 * taken / images
    rows = []
    for (network, way, count), milliseconds in found.items():
        rows.append({'network': network, 'way': way, 'nets': count, 'milliseconds': milliseconds})
        shown = ', '.join(f'batch {batch} {time:.3f} ms' for batch, time in milliseconds.items())
        print(f'{network:<40}{way:<10}{count:>2}  {shown}', flush=True)
    return rows


def _create(results: Results) -> Any:
    weight = published_weights()[str(results.name)]
    return timm.create_model(weight.architecture, num_classes=weight.num_classes, **weight.model_args).eval()


def _call(net: Any, x: torch.Tensor, batch: int, plan: torch.Tensor | None) -> Callable[[], None]:
    """A call that answers all of the images, (N, channels, H, W), batch after batch."""
    parts = x.split(batch)
    plans = [None] * len(parts) if plan is None else plan.split(batch)

    def call() -> None:
        with torch.inference_mode():
            for part, passes in zip(parts, plans, strict=True):
                if passes is not None:
                    net.router.passes = passes
                net(part)

    return call


def measure_ensemble(sources: Sequence[str], data_dir: str) -> dict[str, Any]:
    """Accuracy of an ensemble of plain networks.

    Args:
        sources: Whatever `ride_timm.load` takes, of one published plain network and its seeds.
        data_dir: Folder with `train` and `val`.

    Returns:
        `network`, the published one; `nets`, `seeds`, `top1`, and the versions and hardware as `environment`.
    """
    trained = [load(source) for source in sources]
    names = {_published_twin(net) for net in trained}
    if len(names) > 1:
        raise SystemExit(f'The networks were trained as {" and ".join(sorted(names))}; name one kind.')
    name = names.pop()
    allowed = next(sizes(of_data) for of_data in published().values() if name in [r.name for r in of_data])
    if len(trained) not in allowed:
        raise SystemExit(
            f'{len(trained)} networks were given; an ensemble is compared with as many experts: '
            f'give {" or ".join(map(str, allowed))}.'
        )
    seeds = [_seed(net) for net in trained]
    if len(set(seeds)) < len(seeds):
        raise SystemExit(f'The networks were trained with the seeds {seeds}; each needs another one.')
    split, counts = open_images(filled(DataForm(data_dir=data_dir)), trained[0])
    ensemble = Ensemble([net.model for net in trained])
    found = measure_split(ensemble, split, counts, data_config(trained[0].model))
    print(f'{len(trained)} x {name}, seeds {seeds}: {found.metrics["top1"]:.2f} %')
    return {
        'network': name, 'nets': len(trained), 'seeds': seeds, 'top1': found.metrics['top1'],
        'environment': environment(),
    }  # fmt: skip


def _published_twin(trained: TrainedNet) -> str:
    """The published plain network that was trained as this one, but for its seed."""
    for results in (results for of_data in published().values() for results in of_data):
        same = (results.architecture, results.method, results.data.num_classes, results.data.train_images)
        images = sum(trained.class_counts or ())
        this = (trained.architecture, trained.record.loss, trained.model.num_classes, images)
        if same == this and results.net.num_experts == 1:
            return str(results.name)
    raise SystemExit(
        f'{trained.source} was not trained as one of the published plain networks: on all of their training images, '
        'with their architecture and loss.'
    )


def _seed(trained: TrainedNet) -> int:
    weight = published_weights().get(trained.source)
    seed = trained.settings.get('seed') if weight is None else read_results(weight.folder).training[0].seed
    if seed is None:
        raise SystemExit(f'{trained.source} does not say its seed; name the run.')
    return int(seed)


def points(of_data: Sequence[Results], found: Mapping[str, Any]) -> Iterator[Point]:
    """What the picture shows of one data set.

    Args:
        of_data: Results of the published networks.
        found: Content of the JSON file.
    """
    times = {(row['network'], row['way'], row['nets']): row['milliseconds'] for row in found['rows']}
    for results in of_data:
        name, test = str(results.name), results.test
        yield Point(name, 'all', 1, test.all_experts['top1'], results.net.gmacs, times[results.architecture, 'all', 1])
        if test.routed is not None:
            routed = test.routed
            yield Point(name, 'routed', 1, routed['top1'], routed['gmacs'], times[name, 'routed', 1])
        for ensemble in found['ensembles']:
            if ensemble['network'] == name:
                nets = ensemble['nets']
                spent = times[results.architecture, 'ensemble', nets]
                yield Point(name, 'ensemble', nets, ensemble['top1'], nets * results.net.gmacs, spent)


def draw(path: Path, found: Mapping[str, Any]) -> None:
    """Draw the picture: a row of panels for each data set, over GMACs and over the time at each size of the batch.

    Args:
        path: The PNG file to write.
        found: Content of the JSON file.
    """
    all_data = published()
    batches = [str(batch) for batch in found['args']['batches']]
    figure = Figure(figsize=(3.3 * (1 + len(batches)), 3.1 * len(all_data)), layout='constrained')
    grid = figure.subplots(len(all_data), 1 + len(batches), sharey='row', squeeze=False)
    for row, (data, of_data) in zip(grid, all_data.items(), strict=True):
        for axes, batch in zip(row, (None, *batches), strict=True):
            for point in points(of_data, found):
                _draw_point(axes, point, point.gmacs if batch is None else point.milliseconds[batch])
            axes.set(xlabel='GMACs per image' if batch is None else f'ms per image, batch of {batch}')
            axes.grid(color='#E4E4E4', linewidth=0.7)
            axes.set_axisbelow(True)
            axes.spines[['top', 'right']].set_visible(False)
            axes.margins(0.1, 0.12)
            axes.set_xlim(left=0)
        for results in of_data:
            _draw_thresholds(row[0], results)
        depth = 'ResNet-32' if data.startswith('CIFAR') else 'ResNet-50, 64 pixels'
        row[0].set_title(f'{data}, {depth}', loc='left', fontsize=11)
        row[0].set(ylabel='test accuracy (%)')
        row[-1].legend(fontsize=8.5, frameon=False)
    where = found['environment']
    hardware = f'{where["hardware"]}, threads: {where["threads"]}, torch {where["torch"]}'
    figure.supxlabel(hardware, fontsize=8, color='#6B6B6B', x=0.99, ha='right')
    figure.savefig(path, dpi=110)
    with Image.open(path) as image:
        image.convert('RGB').quantize(128).save(path, optimize=True)


def _draw_point(axes: Any, point: Point, cost: float) -> None:
    label, colour = LABELS[point.name]
    kind = {'color': colour, 'markersize': 8, 'linestyle': 'none'}
    if point.way == 'routed':
        axes.plot(cost, point.top1, marker='o', markerfacecolor='white', **kind)
    elif point.way == 'ensemble':
        axes.plot(cost, point.top1, marker='D', label=f'{point.nets} x {label}', **kind)
    else:
        axes.plot(cost, point.top1, marker='s' if 'plain' in label else 'o', label=label, **kind)


def _draw_thresholds(axes: Any, results: Results) -> None:
    rows = sorted(results.test.sweep or (), key=lambda row: row['gmacs'])
    colour = LABELS[str(results.name)][1]
    axes.plot([r['gmacs'] for r in rows], [r['top1'] for r in rows], color=colour, linewidth=1.2, alpha=0.6)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument('--draw', action='store_true', help='draw what was measured before')
    instead.add_argument('--ensemble', nargs='+', metavar='NETWORK', help='runs, checkpoints or published names')
    parser.add_argument('--data-dir', metavar='DIR', help='of --ensemble, with train and val')
    parser.add_argument('--batches', type=int, nargs='+', default=[1, 64], help='the largest is how many images')
    parser.add_argument('--rounds', type=int, default=10)
    parser.add_argument('--seconds', type=float, default=0.5, help='of a round, for each')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--output', type=Path, default=ROOT / 'benchmarks/results/accuracy_cost_cpu.json')
    parser.add_argument('--picture', type=Path, default=ROOT / 'docs/results.png')
    args = parser.parse_args(argv)
    if bool(args.ensemble) != bool(args.data_dir):
        parser.error('--ensemble and --data-dir need each other')
    torch.set_num_threads(args.threads)
    command = shlex.join(['python', 'benchmarks/accuracy_cost.py', *(sys.argv[1:] if argv is None else argv)])
    found: dict[str, Any] = json.loads(args.output.read_text()) if args.output.exists() else {'ensembles': []}
    if args.ensemble:
        ensemble = {**measure_ensemble(args.ensemble, args.data_dir), 'command': command}
        same = (ensemble['network'], ensemble['nets'])
        found['ensembles'] = [row for row in found['ensembles'] if (row['network'], row['nets']) != same] + [ensemble]
    elif not args.draw:
        rows = [
            row for of_data in published().values() for row in measure(of_data, args.batches, args.rounds, args.seconds)
        ]
        given = {'batches': args.batches, 'rounds': args.rounds, 'seconds': args.seconds}
        where = {**environment(), 'threads': args.threads}
        found = {'command': command, 'args': given, 'rows': rows, 'environment': where, 'ensembles': found['ensembles']}
    if not args.draw:
        write_json(args.output, found)
    if 'rows' in found:
        draw(args.picture, found)
    else:
        print(f'{args.output} has no times yet, without which nothing is drawn; give neither --draw nor --ensemble.')


if __name__ == '__main__':
    main()
