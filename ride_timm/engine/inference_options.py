"""What the commands that ask a trained network share: which one, for which class frequencies, and computed where."""

import argparse
from typing import Any

import torch

__all__ = ['add_device_option', 'add_model_argument', 'add_prior_option', 'choose_device']


def add_model_argument(parser: argparse.ArgumentParser, dest: str = 'model', **more: Any) -> None:
    """Add MODEL.

    Args:
        parser: Gets the argument, as `ride_timm.load` takes it.
        dest: Its name in the parsed arguments.
        **more: Further arguments of `add_argument`.
    """
    parser.add_argument(
        dest, metavar='MODEL', **more,
        help='checkpoint, folder of a run or of `ride-timm export`, local-dir:DIR, hf-hub:ORG/NAME, or published name',
    )  # fmt: skip


def add_prior_option(parser: argparse.ArgumentParser) -> None:
    """Add `--prior` and `--logit-adjustment`, one of which may be given.

    Args:
        parser: Gets them, as `ride_timm.prior.apply_options` takes them.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        '--prior', metavar='Q',
        help='answer for other class frequencies: uniform, train, or a JSON file {class name: frequency}; for losses '
        'with a tau list',
    )  # fmt: skip
    group.add_argument(
        '--logit-adjustment', type=float, metavar='TAU',
        help='take TAU times the log class prior out of the logits, for a better tail at the cost of the head: 0 to '
        'about 1; for losses without a tau list',
    )  # fmt: skip


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`.

    Args:
        parser: Gets `--device`; `ride_timm.engine.values.check_values` refuses one that is not there.
    """
    parser.add_argument('--device', help='cpu, cuda, ... (default: cuda where there is one)')


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """The device to compute on.

    Args:
        device: The user's choice; None or '' leaves it.

    Returns:
        That, or else the current CUDA device, or the CPU where there is none.
    """
    return torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
