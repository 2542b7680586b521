"""Values of command-line arguments that no later step could use, refused before any work is done."""

import argparse
import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from timm.optim import list_optimizers
from timm.utils import ParseKwargs

from ride_timm.errors import RideError

__all__ = ['KeyValues', 'check_device', 'check_values', 'check_writable']

_ANY = float('inf')
_MOST = 1e30  # finite
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            'batch_size', 'validation_batch_size', 'epochs', 'val_interval', 'grad_accum_steps', 'checkpoint_hist',
            'img_size', 'lr_base_size', 'global_batch_size', 'top_k',
        ),
        (1, _ANY),
    ),
    **dict.fromkeys(
        ('workers', 'log_interval', 'warmup_epochs', 'cooldown_epochs', 'patience_epochs', 'average_epochs'),
        (0, _ANY),
    ),
    **dict.fromkeys(
        ('lr', 'lr_base', 'warmup_lr', 'min_lr', 'weight_decay', 'momentum', 'decay_rate', 'mixup', 'cutmix',
         'mutual', 'mutual_hard', 'mutual_gated', 'soft_suppression', 'router_pos_weight', 'init_noise'),
        (0, _MOST),
    ),
    **dict.fromkeys(
        (
            'drop', 'drop_path', 'hflip', 'vflip', 'reprob', 'smoothing', 'mixup_prob', 'mixup_switch_prob',
            'model_ema_decay', 'threshold', 'router_threshold',
        ),
        (0, 1),
    ),
    **dict.fromkeys(('seed', 'holdout_seed'), (0, 2**32 - 1)),
    'logit_adjustment': (-100, 100),  # below 0 towards the head; log pi is at most some tens
    'layer_decay': (1e-9, 1),  # at 0 all but the heads would stand still
    **dict.fromkeys(('clip_grad', 'crop_pct', 'distill_temperature', 'mutual_temperature'), (1e-9, _MOST)),
}  # fmt: skip
_SCHEDULERS = ('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant', 'plateau', 'none')
_INTERPOLATIONS = ('bicubic', 'bilinear', 'box', 'hamming', 'lanczos', 'nearest', 'random')


class KeyValues(ParseKwargs):
    """timm's action for `K=V` arguments, which says so where a `=` is missing instead of failing."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Collect the pairs into a dict, or end with argparse's message."""
        for value in values:
            if '=' not in value:
                raise argparse.ArgumentError(self, f'{value!r} is not of the form KEY=VALUE')
        super().__call__(parser, namespace, values, option_string)


def check_values(args: argparse.Namespace) -> None:
    """Refuse numbers that are out of range, and names that timm does not know.

    Args:
        args: Of any of the commands; arguments that are absent or None are passed over.

    Raises:
        RideError: Naming the argument, what it is and what it may be.
    """
    for name, (low, high) in _RANGES.items():
        value = getattr(args, name, None)
        # a number that is no number is in no range
        if value is not None and not low <= value <= high:
            raise RideError(f'{_flag(name)} {value:g} was given; it is {_range_text(name, low, high)}.')
    # timm takes `lookahead_` before the name
    _check_name('opt', str(getattr(args, 'opt', '')).lower().split('_')[-1], [str(name) for name in list_optimizers()])
    _check_name('sched', getattr(args, 'sched', ''), _SCHEDULERS)
    _check_name('interpolation', getattr(args, 'interpolation', ''), _INTERPOLATIONS)
    channels = getattr(args, 'in_chans', None) or 3
    for name in ('mean', 'std'):
        _check_count(args, name, (1, channels))
    _check_count(args, 'color_jitter', (1, 3, 4))
    check_device(getattr(args, 'device', None))


def check_device(name: str | None) -> None:
    """Refuse a device that PyTorch cannot compute on here.

    Args:
        name: As `torch.device` takes it; None or '' leaves the choice.

    Raises:
        RideError: It is unknown, or not there.
    """
    if not name:
        return
    kind = name.partition(':')[0]
    if kind == 'cuda':  # without starting it, which takes memory of the first GPU
        found = torch.cuda.device_count()
        if not found:
            raise RideError(f'--device {name} was given and PyTorch finds no CUDA device; use --device cpu.')
        index = name.partition(':')[2] or '0'
        if not index.isdigit() or int(index) >= found:
            raise RideError(f'--device {name} was given and PyTorch finds {found}; use cuda:0 to cuda:{found - 1}.')
        return
    try:
        usable = torch.zeros(1, device=name).item() == 0.0
    except (RuntimeError, NotImplementedError):  # unknown, not built in, or `meta`, which holds no data
        usable = False
    if not usable:
        raise RideError(f'--device {name} was given and PyTorch cannot compute on it here; use cpu, cuda or cuda:1.')


def check_writable(path: str | None, option: str) -> None:
    """Refuse a file that cannot be written, before what it is for is computed.

    Args:
        path: The file; None passes.
        option: The argument's name, for the message.

    Raises:
        RideError: Its folder is missing or cannot be written to, or it is a folder itself.
    """
    if not path:
        return
    folder = Path(path).parent
    if not folder.is_dir():
        raise RideError(f'{option} {path} was given and there is no folder {folder}; make it first.')
    if Path(path).is_dir() or not os.access(folder, os.W_OK):
        raise RideError(f'{option} {path} was given and it cannot be written; choose another file.')


def _check_name(name: str, value: str, known: Sequence[str]) -> None:
    if not value or value in known:
        return
    close = difflib.get_close_matches(value, known, n=1)
    hint = f'did you mean {close[0]}?' if close else f'choose one of {", ".join(known)}.'
    raise RideError(f'{_flag(name)} {value} was given and timm knows no such one; {hint}')


def _check_count(args: argparse.Namespace, name: str, counts: Sequence[int]) -> None:
    values = getattr(args, name, None)
    if isinstance(values, (list, tuple)) and len(values) not in counts:
        wanted = ' or '.join(map(str, dict.fromkeys(counts)))
        raise RideError(f'{_flag(name)} was given {len(values)} numbers; it takes {wanted}.')


def _flag(name: str) -> str:
    return '--' + name.replace('_', '-')


def _range_text(name: str, low: float, high: float) -> str:
    if low < 0:
        return f'a number from {low:g} to {high:g}'
    if high == 1:
        if low:
            return 'above 0 and at most 1'
        return 'a probability from 0 to 1' if name.endswith('threshold') else 'from 0 to 1'
    if high == _ANY:
        return f'a whole number of at least {low:g}'
    if name.endswith('seed'):
        return f'a whole number from 0 to {high:.0f}'
    return 'a number above 0' if low else 'a number of at least 0'
