"""`ride-timm export MODEL`: a network as one file that runs without ride-timm.

`--format onnx` writes what onnxruntime runs, in any language. With `--routed` or `--threshold` an expert is a branch of
the graph that runs only for the images that reach it, at any batch size. `ride_timm.inference.onnx` predicts image
files with it, without torch. `--format torch-export` writes what `torch.export.load` reads; it computes all experts.

Labels, preprocessing, threshold and temperatures are in the file's metadata.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from ride_timm.commands.options import add_model_argument, add_routing_options, routing_threshold
from ride_timm.commands.parser import Parser
from ride_timm.errors import RideError
from ride_timm.files import check_writable, writing
from ride_timm.inference.load import load
from ride_timm.logs import setup_logging
from ride_timm.models import count_experts
from ride_timm.publishing.formats import write_onnx, write_program
from ride_timm.values import check_values

__all__ = ['build_parser', 'main']

_SUFFIXES = {'onnx': '.onnx', 'torch-export': '.pt2'}


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm export`."""
    parser = Parser(
        prog='ride-timm export',
        description='Write a network as one file that runs without ride-timm, with labels and preparation of images.',
    )
    add_model_argument(parser)
    parser.add_argument(
        '--format', required=True, choices=list(_SUFFIXES), help='onnx for onnxruntime; torch-export for PyTorch alone'
    )
    add_routing_options(parser)
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
    if threshold is not None and args.format == 'torch-export':
        raise RideError('A program of torch.export computes all experts; use --format onnx to leave early.')
    path = Path(args.output or trained.name.rpartition('/')[2] + _SUFFIXES[args.format])
    with writing(path, '--output'):
        if args.format == 'onnx':
            write_onnx(trained, path, threshold)
        else:
            write_program(trained, path)
    experts = count_experts(trained.model)
    passed = f'all {experts} experts' if threshold is None else f'1 to {experts} experts, threshold {threshold:g}'
    print(f'{path}: {passed if experts else "a plain network"}, {path.stat().st_size / 1e6:.1f} MB')
    return 0
