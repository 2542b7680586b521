"""Values of command-line arguments that no later step could use, refused before any work is done."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from timm.optim import list_optimizers

from ride_timm.errors import RideError, did_you_mean
from ride_timm.options import flag

__all__ = ['CORES', 'RANGES', 'check_device', 'check_values', 'choose_device']

CORES = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
"""Processor cores that this process may use."""
_MOST_WORKERS = max(64, 4 * CORES)  # each is a process


class _Range(NamedTuple):
    low: float
    high: float
    text: str

    @classmethod
    def of(cls, low: float, high: float, text: str, names: str) -> 'dict[str, _Range]':
        return dict.fromkeys(names.split(), cls(low, high, text))


_WHOLE = 10**9
_MOST = 1e30  # finite
RANGES: dict[str, _Range] = {
    **_Range.of(
        1, _WHOLE, 'a whole number of at least 1',
        'batch_size validation_batch_size epochs val_interval grad_accum_steps checkpoint_hist lr_base_size '
        'global_batch_size top_k',
    ),
    **_Range.of(
        0, _WHOLE, 'a whole number of at least 0',
        'log_interval warmup_epochs cooldown_epochs patience_epochs decay_milestones mixup_off_epoch '
        'average_epochs expert_order',
    ),
    **_Range.of(
        0, _MOST, 'a number of at least 0',
        'lr lr_base warmup_lr min_lr weight_decay momentum decay_rate opt_eps mixup cutmix mutual mutual_hard '
        'mutual_gated soft_suppression router_pos_weight distill_weight init_noise color_jitter',
    ),
    **_Range.of(1e-9, _MOST, 'a number above 0', 'clip_grad distill_temperature mutual_temperature max_shard_size std'),
    **_Range.of(1e-9, _WHOLE, 'a number above 0', 'decay_epochs'),
    **_Range.of(1, _WHOLE, 'a time of at least 1 second', 'time_budget'),
    **_Range.of(
        0, 1, 'from 0 to 1',
        'drop drop_path hflip vflip reprob smoothing mixup_prob mixup_switch_prob model_ema_decay '
        'crop_confidence max_loss',
    ),
    **_Range.of(0, 1, 'a probability from 0 to 1', 'threshold router_threshold'),
    **_Range.of(1e-9, 1 - 1e-9, 'between 0 and 1', 'abstain'),
    **_Range.of(0, 1 - 1e-9, 'from 0 to below 1', 'holdout val_fraction opt_betas confidence'),
    **_Range.of(1e-9, 1, 'above 0 and at most 1', 'layer_decay scale'),  # layers: at 0 all but the heads stand still
    **_Range.of(0.1, 1, 'from 0.1 to 1', 'crop_pct'),  # of the enlarged image: its side is the crop's over this
    **_Range.of(1e-3, 1e3, 'from 0.001 to 1000', 'ratio'),
    **_Range.of(-1e6, 1e6, 'a number from -1e6 to 1e6', 'mean'),
    **_Range.of(-100, 100, 'a number from -100 to 100', 'logit_adjustment'),  # log pi is at most some tens
    **_Range.of(1, 1e9, 'a number of at least 1', 'imb_factor'),
    **_Range.of(0, 2**32 - 1, f'a whole number from 0 to {2**32 - 1}', 'seed val_seed holdout_seed'),
    **_Range.of(-1, _WHOLE, 'a whole number of at least -1', 'reweight_epoch'),
    **_Range.of(0, _MOST_WORKERS, f'a whole number from 0 to {_MOST_WORKERS} on this machine', 'workers'),
    **_Range.of(1, _MOST_WORKERS, f'a whole number from 1 to {_MOST_WORKERS} on this machine', 'threads'),
    **_Range.of(1, 2**14, f'a whole number from 1 to {2**14}', 'img_size'),
    **_Range.of(1, 1000, 'a whole number from 1 to 1000', 'in_chans'),
    **_Range.of(1, 10**6, 'a whole number from 1 to 1000000', 'num_classes'),
    **_Range.of(0, 2**16 - 1, f'a whole number from 0 to {2**16 - 1}', 'port'),
}  # fmt: skip
"""What each number of a command may be, by the argument's name; of a list, each number in it."""

_SCHEDULERS = ('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant', 'plateau', 'none')
_WITH_DECAY_PHASE = ('wsd', 'rsqrt')
_INTERPOLATIONS = ('bicubic', 'bilinear', 'box', 'hamming', 'lanczos', 'nearest')


def check_values(values: Mapping[str, Any]) -> None:
    """Refuse numbers that are out of range, and names that timm does not know.

    Args:
        values: By option, of any of the commands; what is absent or None is passed over.

    Raises:
        RideError: Naming the argument, what it is and what it may be.
    """
    for name, given in values.items():
        for value in given if isinstance(given, (list, tuple)) else [given]:
            if name in RANGES and value is not None:
                _check_number(name, value)
    # timm takes `lookahead_` before the name
    _check_name('opt', str(values.get('opt', '')).lower().split('_')[-1], [str(name) for name in list_optimizers()])
    _check_name('sched', values.get('sched', ''), _SCHEDULERS)
    _check_name('interpolation', values.get('interpolation', ''), _INTERPOLATIONS)
    _check_schedule(values)
    channels = values.get('in_chans') or 3
    for name in ('mean', 'std'):
        _check_count(values, name, (1, channels))
    _check_count(values, 'color_jitter', (1, 3, 4))
    _check_count(values, 'opt_betas', (2, 3))
    check_device(values.get('device'))


def choose_device(device: torch.device | str | None = None) -> torch.device:
    """The device to compute on.

    Args:
        device: The user's choice; None or '' leaves it.

    Returns:
        That, or else the current CUDA device, or the CPU where there is none.
    """
    return torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))


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
            raise RideError(f'--device {name} was given, but PyTorch finds no CUDA device; use --device cpu.')
        index = name.partition(':')[2] or '0'
        if not index.isdigit() or int(index) >= found:
            raise RideError(f'--device {name} was given, but PyTorch finds {found}; use cuda:0 to cuda:{found - 1}.')
        return
    try:
        usable = torch.zeros(1, device=name).item() == 0.0
    except (RuntimeError, NotImplementedError):  # unknown, not built in, or `meta`, which holds no data
        usable = False
    if not usable:
        raise RideError(f'--device {name} was given, but PyTorch cannot compute on it here; use cpu, cuda or cuda:1.')


def _check_number(name: str, value: float) -> None:
    low, high, text = RANGES[name]
    if low <= value <= high:  # a number that is no number is in no range
        return
    most = f', and at most {high:g}' if value > high and high in (_WHOLE, _MOST) else ''
    raise RideError(f'{flag(name)} {value:g} was given; it is {text}{most}.')


def _check_schedule(values: Mapping[str, Any]) -> None:
    """Refuse what timm's schedulers would fail on, some of them in the middle of a training."""
    name = values.get('sched', 'poly')  # whose power --decay-rate is
    if name != 'poly' and values['decay_rate'] > 1:
        raise RideError(f'--decay-rate {values["decay_rate"]:g} was given; for --sched {name} it is from 0 to 1.')
    if name == 'plateau' and values['sched_on_updates']:
        raise RideError('--sched plateau looks at evaluations, so it cannot go with --sched-on-updates; leave one out.')
    if name == 'rsqrt' and not values['warmup_epochs']:
        raise RideError('--sched rsqrt falls by the length of the warmup; give --warmup-epochs of at least 1.')
    if name in _WITH_DECAY_PHASE:
        length = values['epochs'] - (0 if values['warmup_prefix'] else values['warmup_epochs'])
        decay = values['decay_epochs'] * (length if values['decay_epochs'] < 1 else 1)
        if not 0.5 < decay <= length:
            raise RideError(
                f'--sched {name} decays over --decay-epochs {values["decay_epochs"]:g} of the {length} epochs after '
                'the warmup; give at least 1 and at most that many, or a fraction of them such as 0.2.'
            )


def _check_name(name: str, value: str, known: Sequence[str]) -> None:
    if not value or value in known:
        return
    hint = did_you_mean(value, known, f'; choose one of {", ".join(known)}.')
    raise RideError(f'{flag(name)} {value} is not known to timm{hint}')


def _check_count(options: Mapping[str, Any], name: str, counts: Sequence[int]) -> None:
    values = options.get(name)
    if isinstance(values, (list, tuple)) and len(values) not in counts:
        wanted = ' or '.join(map(str, dict.fromkeys(counts)))
        raise RideError(f'{flag(name)} was given {len(values)} numbers; it takes {wanted}.')
