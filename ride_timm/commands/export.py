"""`ride-timm export MODEL`: a network as one file that runs without ride-timm.

`--format onnx` writes what onnxruntime runs, in any language. With `--routed` or `--threshold` an expert is a branch of
the graph that runs only for the images that reach it, at any batch size. `ride_timm.inference.onnx` predicts image
files with it, without torch. `--format torch-export` writes what `torch.export.load` reads; it computes all experts.

`--int8 DIR` computes in 8-bit integers (ONNX only). DIR holds images, at best those of the training; classes are not
needed. Half of them, of 512 at most, set the ranges of the activations; the other half show how many answers stay.

Labels, preprocessing, threshold and temperatures are in the file's metadata.
"""

import argparse
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ride_timm.commands.options import add_model_argument, add_routing_options, routing_threshold
from ride_timm.commands.parser import Parser
from ride_timm.data.finding import find_images
from ride_timm.errors import RideError
from ride_timm.files import check_writable, writing
from ride_timm.inference.load import TrainedNet, load
from ride_timm.inference.prediction import forward_votes
from ride_timm.logs import setup_logging
from ride_timm.models import count_experts
from ride_timm.publishing.formats import describe, write_onnx, write_program
from ride_timm.values import check_values

__all__ = ['build_parser', 'main']

Batches: TypeAlias = list[NDArray[np.float32]]

_SUFFIXES = {'onnx': '.onnx', 'torch-export': '.pt2'}


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm export`."""
    parser = Parser(
        prog='ride-timm export',
        description='Export a network to one file that runs without ride-timm, with labels and preprocessing.',
    )
    add_model_argument(parser)
    parser.add_argument(
        '--format', required=True, choices=list(_SUFFIXES), help='onnx for onnxruntime; torch-export for PyTorch alone'
    )
    add_routing_options(parser)
    parser.add_argument('--int8', metavar='DIR', help='compute in 8-bit integers, calibrated on these images')
    parser.add_argument('--output', metavar='FILE', help="file to write (default: the network's name, .onnx or .pt2)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Export from a command line."""
    args = build_parser().parse_args(argv)
    check_values(vars(args))
    check_writable(args.output, '--output')
    setup_logging(logging.WARNING)
    trained = load(args.model)
    threshold = routing_threshold(args, trained)
    if args.format == 'torch-export' and (threshold is not None or args.int8):
        raise RideError(
            '--format torch-export computes all experts in float32; use --format onnx for routing and --int8.'
        )
    calibration, others = _images(args.int8, trained) if args.int8 else (None, [])
    path = Path(args.output or trained.name.rpartition('/')[2] + _SUFFIXES[args.format])
    with writing(path, '--output'):
        if args.format == 'onnx':
            write_onnx(trained, path, threshold, calibration)
        else:
            write_program(trained, path)
    experts = count_experts(trained.model)
    passed = f'all {experts} experts' if threshold is None else f'1 to {experts} experts, threshold {threshold:g}'
    print(f'{path}: {passed if experts else "a plain network"}, {path.stat().st_size / 1e6:.1f} MB')
    if others:
        same = _same_answers(trained, path, threshold, others)
        print(f'{path}: {same.mean():.1%} of {len(same)} images that were not used for calibration keep their answer')
    return 0


def _images(folder: str, trained: TrainedNet) -> tuple[Batches, Batches]:
    """Batches of prepared images for calibration, and as many for a check."""
    from ride_timm.inference.onnx import prepare

    found = find_images([folder])
    if not found.paths:
        raise RideError(f'--int8 {folder} was given, but {found.problems[0]}; name a folder of images.')
    config = describe(trained, None)
    try:
        arrays = [prepare(path, config) for path in random.Random(0).sample(found.paths, min(len(found.paths), 512))]
    except ValueError as error:
        raise RideError(f'{error} Remove it, or name another folder.') from None
    return _batches(arrays[::2]), _batches(arrays[1::2])


def _batches(arrays: list[NDArray[np.float32]]) -> Batches:
    return [np.stack(arrays[start : start + 32]) for start in range(0, len(arrays), 32)]


def _same_answers(trained: TrainedNet, path: Path, threshold: float | None, batches: Batches) -> NDArray[np.bool_]:
    """Whether the file answers as the network does, for each image."""
    from ride_timm.inference.onnx import OnnxNet

    net, same = OnnxNet(path), []
    for batch in batches:
        wanted = forward_votes(trained.model, torch.from_numpy(batch), threshold).logits.argmax(1)
        same.append(net(batch)[0].argmax(1) == wanted.numpy())
    return np.concatenate(same)
