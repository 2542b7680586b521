"""What saves a run, and where."""

import argparse
from pathlib import Path
from typing import Any

import yaml

from ride_timm.engine.checkpoint import RunSaver
from ride_timm.engine.files import write_whole
from ride_timm.engine.loop import Trainer
from ride_timm.engine.provenance import add_segment
from ride_timm.engine.results import environment
from ride_timm.engine.resume import Resumed
from ride_timm.engine.run_data import RunData
from ride_timm.engine.run_folder import DAMAGED, LAST
from ride_timm.errors import RideError
from ride_timm.metrics import leading_accuracy

__all__ = ['LESS_IS_BETTER', 'create_saver', 'run_settings', 'settle_metric']

LESS_IS_BETTER = ('loss', 'ece', 'gmacs', 'mean_experts')
"""Figures of which the least is the best."""


def settle_metric(args: argparse.Namespace, data: RunData, checkpoint: dict[str, Any] | None) -> None:
    """Choose what ranks the checkpoints where the command line does not: a resumed run keeps what it ranked by.

    Args:
        args: The run's arguments; `eval_metric` is set.
        data: The images.
        checkpoint: The one that the run goes on from.
    """
    before = ((checkpoint or {}).get('args') or {}).get('eval_metric')
    args.eval_metric = args.eval_metric or before or leading_accuracy(data.val.class_counts)


def create_saver(
    args: argparse.Namespace, folder: Path, data: RunData, trainer: Trainer, entry: dict[str, Any],
    resumed: Resumed | None,
) -> RunSaver:  # fmt: skip
    """Make what saves into the run's folder.

    Args:
        args: The run's arguments, complete; written to `args.yaml`.
        folder: The run's folder, which is there.
        data: The images.
        trainer: What is saved.
        entry: What the checkpoint's `ride` entry says of the stage.
        resumed: What the run goes on from; in the folder itself, its history of saves goes on too.

    Raises:
        RideError: The folder cannot be written.
    """
    settings = run_settings(args)
    try:
        write_whole(folder / 'args.yaml', yaml.safe_dump(settings))
        if resumed is not None and resumed.damaged:
            (folder / LAST).replace(folder / DAMAGED)
    except OSError as error:
        raise RideError(
            f'The run cannot be written to {folder} ({error.strerror}); choose another --output.'
        ) from error
    saver = RunSaver(
        folder,
        trainer.task,
        trainer.optimizer,
        trainer.scaler,
        extra={
            'class_names': list(data.train.class_names),
            'class_counts': data.train.class_counts.tolist(),
            'loss': args.loss,
            'loss_kwargs': dict(args.loss_kwargs),
            **entry,
            'segments': _segments(args, resumed),
        },
        settings=settings,
        decreasing=args.eval_metric in LESS_IS_BETTER,
        max_history=args.checkpoint_hist,
    )
    if resumed is not None and resumed.inside and 'saver' in resumed.checkpoint:
        before = (resumed.checkpoint.get('args') or {}).get('eval_metric', args.eval_metric)
        state = resumed.checkpoint['saver']
        saver.restart(resumed.path, state if before == args.eval_metric else _unranked(state))
    return saver


def run_settings(args: argparse.Namespace) -> dict[str, Any]:
    """What is kept of a run's arguments: all but where their values come from."""
    return {key: value for key, value in vars(args).items() if key not in ('explicit', 'from_recipe')}


def _segments(args: argparse.Namespace, resumed: Resumed | None) -> list[dict[str, Any]]:
    """The commands and machines of the run, this one's last."""
    checkpoint: dict[str, Any] = {'epoch': -1} if resumed is None else resumed.checkpoint
    earlier = (checkpoint.get('ride') or {}).get('segments', [])
    return add_segment(earlier, int(checkpoint['epoch']) + 1, getattr(args, 'command', None), environment())


def _unranked(state: dict[str, Any]) -> dict[str, Any]:
    """The history of saves without its ranks, which are of another figure than the run now ranks by."""
    files = [(name, None) for name, _ in state.get('checkpoint_files', [])]
    epoch, _ = state.get('pending') or (None, None)
    return {'checkpoint_files': files, 'best_epoch': None, 'best_metric': None, 'pending': (epoch, None)}
