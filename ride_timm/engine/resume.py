"""Going on with a run from a checkpoint."""

import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models import clean_state_dict
from timm.utils import is_primary

from ride_timm.engine.checkpoint import misfit, read_checkpoint
from ride_timm.engine.run_data import RunData
from ride_timm.errors import RideError
from ride_timm.tasks import ExpertTask

__all__ = ['find_checkpoint', 'is_inside', 'restore', 'resumed_path']

_logger = logging.getLogger(__name__)

_LAST = 'last.pth.tar'

# where a run is, and how it is shown: nothing of what it computes
_HARMLESS = {
    'checkpoint_hist', 'command', 'data_config', 'data_dir', 'dataset_download', 'device', 'experiment', 'explicit',
    'from_recipe', 'init', 'local_rank', 'log', 'log_interval', 'model_kwargs', 'no_check_images', 'output', 'pin_mem',
    'quiet', 'rank', 'recipe', 'resume', 'teacher', 'workers',
}  # fmt: skip
_HYPERPARAMETERS = ('lr', 'weight_decay', 'momentum', 'dampening', 'nesterov', 'betas', 'eps')


def find_checkpoint(args: argparse.Namespace, folder: Path, data: RunData) -> dict[str, Any] | None:
    """Read the checkpoint that `--resume` names.

    Options that differ from those it was trained with are listed in a warning; the command line's hold.

    Args:
        args: The run's arguments, complete.
        folder: The run's folder, whose `last.pth.tar` `--resume auto` means.
        data: The images.

    Returns:
        The checkpoint, or None for a run from the start.

    Raises:
        RideError: It cannot be read, or is of another model, optimizer or other classes; or another run is in the way.
    """
    last = folder / _LAST
    path = resumed_path(args, folder)
    if not args.resume or (args.resume == 'auto' and not path.exists()):
        return None
    checkpoint = read_checkpoint(path)
    if last.exists() and not is_inside(path, folder):
        raise RideError(
            f'{folder} holds a run of its own and --resume names {path}; add --resume auto to go on with the run in '
            'the folder, or choose another --experiment NAME.'
        )
    _check_kind(args, checkpoint, path)
    _check_classes(checkpoint, path, data)
    if is_primary(args):
        done = int(checkpoint['epoch']) + 1
        _logger.info(f'Going on from {path}: {done} {"epoch is" if done == 1 else "epochs are"} done')
        _report_changes(args, checkpoint, data)
    return checkpoint


def resumed_path(args: argparse.Namespace, folder: Path) -> Path:
    """The checkpoint that `--resume` names: `auto` is the run's own last one, a folder the last one in it.

    Args:
        args: The run's arguments.
        folder: The run's folder.
    """
    path = folder if args.resume == 'auto' else Path(args.resume)
    return path / _LAST if path.is_dir() or args.resume == 'auto' else path


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a file lies in a folder."""
    return path.parent.resolve() == folder.resolve()


def restore(
    checkpoint: Mapping[str, Any], task: ExpertTask, optimizer: torch.optim.Optimizer, scaler: Any = None
) -> None:
    """Load weights, optimizer and scaler of a checkpoint.

    The optimizer keeps the learning rate, weight decay and momentum it was created with, so that the command line's
    hold; for the same command line they are the checkpoint's.

    Args:
        checkpoint: Of `find_checkpoint`.
        task: Its network is loaded.
        optimizer: Freshly created, without a scheduler yet.
        scaler: The scaler of float16 training, if there is one.

    Raises:
        RideError: The checkpoint does not fit.
    """
    wanted = [{key: group[key] for key in _HYPERPARAMETERS if key in group} for group in optimizer.param_groups]
    try:
        task.load_checkpoint_state(clean_state_dict(checkpoint['state_dict']), checkpoint.get('task_state'))
        optimizer.load_state_dict(checkpoint['optimizer'])
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise RideError(
            f'The checkpoint does not fit the network or the optimizer ({misfit(error)}); keep the options.'
        ) from None
    for group, values in zip(optimizer.param_groups, wanted, strict=True):
        group.pop('initial_lr', None)  # schedulers would go on from it
        group.update(values)
    if scaler is not None and scaler.state_dict_key in checkpoint:
        scaler.load_state_dict(checkpoint[scaler.state_dict_key])


def _check_kind(args: argparse.Namespace, checkpoint: Mapping[str, Any], path: Path) -> None:
    if not {'epoch', 'optimizer'} <= checkpoint.keys():
        raise RideError(f'{path} holds weights without a training state; resume from a last.pth.tar.')
    if checkpoint.get('arch') != args.model:
        raise RideError(
            f'{path} is of {checkpoint.get("arch")} and --model is {args.model}; resume with the same model.'
        )
    opt = (checkpoint.get('args') or {}).get('opt', args.opt)
    if opt != args.opt:
        raise RideError(f'{path} was trained with --opt {opt} and --opt is {args.opt}; resume with the same optimizer.')


def _check_classes(checkpoint: Mapping[str, Any], path: Path, data: RunData) -> None:
    names = (checkpoint.get('ride') or {}).get('class_names')
    if names is None or list(names) == list(data.train.class_names):
        return
    pairs = enumerate(zip(names, data.train.class_names, strict=False))
    differ = next((f'; class {i} is {a} there and {b} here' for i, (a, b) in pairs if a != b), '')
    raise RideError(
        f'{path} was trained on other classes ({len(names)}) than {data.train.source} has '
        f'({data.train.num_classes}{differ}); resume on the same data.'
    )


def _report_changes(args: argparse.Namespace, checkpoint: Mapping[str, Any], data: RunData) -> None:
    before, now = checkpoint.get('args') or {}, vars(args)
    shared = sorted((before.keys() & now.keys()) - _HARMLESS)
    changes = [f'{key} {before[key]} -> {now[key]}' for key in shared if _plain(before[key]) != _plain(now[key])]
    counts = (checkpoint.get('ride') or {}).get('class_counts')
    if args.stage != 'router' and counts is not None and list(counts) != data.train.class_counts.tolist():
        changes.append(f'training images {sum(counts)} -> {len(data.train.targets)}')
    if changes:
        _logger.warning(f'Not as the checkpoint was trained, and so not the same run: {", ".join(changes)}.')
    if args.sched == 'plateau':
        _logger.warning('The state of the plateau schedule is in no checkpoint of timm; it starts anew.')


def _plain(value: Any) -> Any:
    """Lists and tuples alike."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
