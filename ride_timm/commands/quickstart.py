"""`ride-timm quickstart`: three experts and a plain network learn a long tail of real handwritten digits."""

import argparse
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ride_timm.commands.parser import Parser
from ride_timm.commands.train import main as train_main
from ride_timm.data import (
    ClassBalancedSampler,
    DataSplit,
    GroupChoice,
    choose_groups,
    create_eval_loader,
    create_train_loader,
    create_train_transform,
    long_tail_indices,
    open_eval_split,
    open_train_split,
)
from ride_timm.evaluation.metrics import ClassResult
from ride_timm.evaluation.one_pass import measure
from ride_timm.evaluation.thresholds import choose_threshold
from ride_timm.evaluation.writing import environment, write_json
from ride_timm.inference.load import load
from ride_timm.installation import require
from ride_timm.publishing.folder import save_folder
from ride_timm.training.router import train_router
from ride_timm.training.run_folder import checkpoints_in, locked
from ride_timm.values import check_values

__all__ = ['build_parser', 'main']

PLAIN, EXPERTS = 'plain ResNet, cross-entropy', 'RIDE, 3 experts (BalPoE)'
ROUTED = f'{EXPERTS}, routed'
IMAGE_SIZE = 16  # the digits are 8x8; twice that keeps two strided stages meaningful
LAYERS = (2, 2, 2)  # six blocks instead of ResNet-32's fifteen: a minute on two cores
MAX_LOSS = 0.02  # share of the answers that routing may change; it takes at least 149 images
IMBALANCE = 20  # 5 images of the rarest class: with 3 its accuracy depends on which three more than on the method
SHOWN = ('top1', 'many', 'medium', 'few')


@dataclass
class Measured:
    """A trained network and what it reached on the test images."""

    model: Any
    metrics: OrderedDict[str, float]
    table: list[ClassResult]
    groups: GroupChoice


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm quickstart`."""
    parser = Parser(
        prog='ride-timm quickstart',
        description='Train a small RIDE network with a router, and a plain one, on a long tail of handwritten digits.',
    )
    parser.add_argument('--output', default='output/quickstart', metavar='DIR', help='default: output/quickstart')
    parser.add_argument('--epochs', type=int, default=40, metavar='N', help='default: 40')
    parser.add_argument('--seed', type=int, default=42, metavar='N', help='default: 42')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the quickstart."""
    args = build_parser().parse_args(argv)
    check_values(vars(args))
    require('The quickstart', 'ride-timm[quickstart]', 'sklearn', 'matplotlib')
    start = time.perf_counter()
    folder = Path(args.output)
    counts = write_digits(folder / 'digits', args.seed)
    print(f'Handwritten digits, training images per class: {" ".join(map(str, counts))} (imbalance factor {IMBALANCE})')
    plain = _train(args, folder, 'plain', 'ride_resnet32_1e', 'ce')
    ride = _train(args, folder, 'ride', 'ride_resnet32_3e', 'balpoe')
    routed = _route(args, folder, ride)
    _print_table(plain, ride, routed)
    _show_one_image(folder, ride.model)
    files = _save(folder, args, plain, ride, routed)
    print(f'\nDone in {time.perf_counter() - start:.0f} s on {environment()["hardware"]}. Saved:')
    for what, path in files.items():
        print(f'  {what:<10}  {path}')
    print(
        '\nThe same on your own images (a folder with train/CLASS/*.jpg and val/CLASS/*.jpg):\n'
        '  ride-timm train --data-dir YOUR_FOLDER'
    )
    return 0


def write_digits(folder: Path, seed: int, imbalance: float = IMBALANCE) -> list[int]:
    """Write scikit-learn's digits as image folders: a long-tailed `train`, and balanced `val` and `holdout`.

    Digit 0 keeps the most training images and 9 the fewest. Every class has 40 test images and 20 held-out ones.

    Args:
        folder: Gets `train/DIGIT/*.png`, `val/DIGIT/*.png` and `holdout/DIGIT/*.png`.
        seed: Of the split and the cut.
        imbalance: Training images of the most frequent class over those of the rarest.

    Returns:
        Training images of each class.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    rng = np.random.RandomState(seed)
    test, holdout, rest = [], [], []
    for label in range(10):
        rows = rng.permutation(np.flatnonzero(digits.target == label))
        test.append(rows[:40])
        holdout.append(rows[40:60])
        rest.append(rows[60:174])  # as many of every class, so that the cut alone makes the tail
    pool = np.concatenate(rest)
    kept = pool[long_tail_indices(digits.target[pool], imbalance, 10, seed=seed)]
    for split, rows in (('train', kept), ('val', np.concatenate(test)), ('holdout', np.concatenate(holdout))):
        for stale in (folder / split).glob('*/*.png'):
            stale.unlink()
        for row in rows:
            path = folder / split / str(digits.target[row]) / f'{row:04d}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[row] * 255 / 16).astype(np.uint8)).save(path)
    return [int((digits.target[kept] == label).sum()) for label in range(10)]


def _train(args: argparse.Namespace, folder: Path, name: str, model: str, loss: str) -> Measured:
    """Train through the ordinary command, and measure the last checkpoint."""
    print(f'Training {PLAIN if name == "plain" else EXPERTS} ...', flush=True)
    with locked(folder / name):
        for earlier in checkpoints_in(folder / name):
            earlier.unlink()  # the quickstart starts anew each time
    layers = 'layers=' + str(LAYERS).replace(' ', '')
    stopped = train_main([
        '--data-dir', str(folder / 'digits'), '--model', model, '--model-kwargs', layers, '--loss', loss,
        '--img-size', str(IMAGE_SIZE), '--hflip', '0', '--epochs', str(args.epochs), '-b', '64', '--lr', '0.1',
        '--sched', 'cosine', '--warmup-epochs', '2', '--warmup-lr', '0.02', '--weight-decay', '5e-4',
        '--val-interval', str(args.epochs), '--log-interval', '0', '--seed', str(args.seed), '--device', 'cpu',
        '--no-amp', '--from-scratch', '--output', str(folder), '--experiment', name, '--quiet',
    ])  # fmt: skip
    if stopped:  # by Ctrl-C
        raise SystemExit(stopped)
    net = load(folder / name).model
    train, val = _splits(folder)
    found = measure(net, _eval_loader(val, net), train.class_counts, class_names=val.class_names)
    return Measured(net, found.metrics, found.per_class, choose_groups(train.class_counts))


def _splits(folder: Path, evaluated: str = 'val') -> tuple[DataSplit, DataSplit]:
    train = open_train_split(folder / 'digits')
    return train, open_eval_split(folder / 'digits', class_names=train.class_names, split=evaluated)


def _eval_loader(split: DataSplit, net: Any) -> Any:
    return create_eval_loader(
        split,
        input_size=(3, IMAGE_SIZE, IMAGE_SIZE),
        mean=net.pretrained_cfg['mean'],
        std=net.pretrained_cfg['std'],
        crop_pct=1.0,
        interpolation='bilinear',
        batch_size=200,
    )


def _route(args: argparse.Namespace, folder: Path, ride: Measured) -> OrderedDict[str, float]:
    """Give the network a router, choose a threshold on held-out images, and measure routed inference on the others."""
    print('Training the router ...', flush=True)
    net = ride.model
    train, holdout = _splits(folder, 'holdout')
    size = (3, IMAGE_SIZE, IMAGE_SIZE)
    train_loader = create_train_loader(
        train,
        input_size=size,
        mean=net.pretrained_cfg['mean'],
        std=net.pretrained_cfg['std'],
        batch_size=64,
        sampler=ClassBalancedSampler(train.targets, train.num_classes, seed=args.seed),
        transform=create_train_transform('cifar', size, hflip=0.0),
    )
    train_router(net, train_loader, epochs=5, seed=args.seed)
    choice = choose_threshold(net, _eval_loader(holdout, net), max_loss=MAX_LOSS)
    print(f'Threshold {choice.threshold:g}, chosen on held-out images: {choice.certificate or choice.reason}')
    _, val = _splits(folder)
    routed = measure(net, _eval_loader(val, net), train.class_counts, routed=True).routed
    assert routed is not None
    return routed


def _print_table(plain: Measured, ride: Measured, routed: OrderedDict[str, float]) -> None:
    rows = [(PLAIN, plain.metrics, 1.0), (EXPERTS, ride.metrics, 3.0), (ROUTED, routed, routed['mean_experts'])]
    print('\nAccuracy on 400 test images, 40 per class, in percent; groups by training images:')
    print(f'  {"":<32}{"overall":>9}{"many":>8}{"medium":>8}{"few":>8}{"experts":>9}{"MMACs":>8}')
    for name, metrics, experts in rows:
        results = f'{metrics["top1"]:9.1f}' + ''.join(f'{metrics.get(g, float("nan")):8.1f}' for g in SHOWN[1:])
        print(f'  {name:<32}{results}{experts:9.2f}{1000 * metrics["gmacs"]:8.2f}')


def _show_one_image(folder: Path, net: Any) -> None:
    """The test image that the experts disagree on most, what each says of it, and how far the router sent it."""
    _, val = _splits(folder)
    images = torch.cat([batch for batch, _ in _eval_loader(val, net)])
    with torch.inference_mode():
        all_votes = net.forward_experts(images).softmax(-1)
        index = int((all_votes - all_votes.mean(1, keepdim=True)).abs().sum((1, 2)).argmax())
        routed = net.forward_routed(images[index : index + 1])
    votes = all_votes[index]
    names = val.class_names
    truth = names[int(val.targets[index])]
    print(f'\nThe image on which the experts disagree most, {val.dataset.filename(index)}, a {truth}:')
    for expert, vote in enumerate(votes):
        top = vote.topk(2)
        first, second = (f'{names[int(i)]} ({100 * float(vote[i]):.0f} %)' for i in top.indices)
        print(f'  expert {expert} says {first}, then {second}')
    answer = names[int(routed.logits.argmax())]
    print(f'  routed through {int(routed.num_experts)} of {len(votes)} experts, the network answers {answer}')


def _save(
    folder: Path, args: argparse.Namespace, plain: Measured, ride: Measured, routed: OrderedDict[str, float]
) -> dict[str, Path]:
    """Write the routed network, the results and the plot."""
    files = {'checkpoint': folder / 'ride_routed', 'table': folder / 'results.json', 'plot': folder / 'per_class.png'}
    classes = [row.name for row in ride.table]
    save_folder(ride.model, files['checkpoint'], classes, [row.train_images for row in ride.table])
    write_json(
        files['table'],
        {
            'seed': args.seed,
            'epochs': args.epochs,
            'class_counts': [row.train_images for row in ride.table],
            PLAIN: plain.metrics,
            EXPERTS: ride.metrics,
            ROUTED: routed,
            'per_class': {PLAIN: _accuracies(plain), EXPERTS: _accuracies(ride)},
            'environment': environment(),
        },
    )
    _plot(files['plot'], plain, ride)
    return files


def _accuracies(measured: Measured) -> list[float]:
    return [row.accuracy for row in measured.table]


def _plot(path: Path, plain: Measured, ride: Measured) -> None:
    """Accuracy of each class over its training images, both networks, and the groups that they count to."""
    from matplotlib.figure import Figure  # without pyplot, which would look for a display

    figure = Figure(figsize=(7, 4), layout='constrained')
    axes = figure.subplots()
    place = np.arange(len(ride.table))
    for shift, measured, name, colour in ((-0.2, plain, PLAIN, '0.65'), (0.2, ride, EXPERTS, 'tab:blue')):
        axes.bar(place + shift, _accuracies(measured), 0.4, label=name, color=colour)
    for name, classes in ride.groups.groups.items():  # the classes are in the order of their counts
        first, last = int(min(classes)), int(max(classes))
        axes.axvline(last + 0.5, color='0.8', linewidth=0.8)
        axes.text((first + last) / 2, 103, name, ha='center', va='bottom')
    axes.set_xticks(place, [f'{row.name}\n{row.train_images}' for row in ride.table])
    axes.set(xlabel='digit, and its training images', ylabel='test accuracy (%)', ylim=(0, 112))
    axes.set_xlim(-0.5, len(place) - 0.5)
    axes.set_title('A long tail of handwritten digits')
    axes.legend(loc='lower left')
    figure.savefig(path, dpi=120)
