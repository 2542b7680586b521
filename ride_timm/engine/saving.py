"""What saves a run, and where."""

import argparse
from pathlib import Path
from typing import Any

import yaml

from ride_timm.engine.checkpoint import RunSaver
from ride_timm.engine.files import write_whole
from ride_timm.engine.loop import Trainer
from ride_timm.engine.resume import is_inside, resumed_path
from ride_timm.engine.run_data import RunData
from ride_timm.errors import RideError
from ride_timm.metrics import leading_accuracy

__all__ = ['LESS_IS_BETTER', 'create_saver', 'settle_metric']

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
    args: argparse.Namespace, folder: Path, data: RunData, trainer: Trainer,
    checkpoint: dict[str, Any] | None,
) -> RunSaver:  # fmt: skip
    """Make the run's folder and what saves into it.

    Args:
        args: The run's arguments, complete; written to `args.yaml`.
        folder: The run's folder.
        data: The images.
        trainer: What is saved.
        checkpoint: The one that the run goes on from; in the folder itself, its history of saves goes on too.

    Raises:
        RideError: The folder cannot be written.
    """
    settings = {k: v for k, v in vars(args).items() if k not in ('explicit', 'from_recipe')}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / 'args.yaml', yaml.safe_dump(settings))
    except OSError as error:
        raise RideError(
            f'The run cannot be written to {folder} ({error.strerror}); choose another --output.'
        ) from error
    saver = RunSaver(
        extra={
            'class_names': list(data.train.class_names),
            'class_counts': data.train.class_counts.tolist(),
            'loss': args.loss,
            'loss_kwargs': dict(args.loss_kwargs),
        },
        settings=settings,
        model=trainer.task.get_trainable_module(),
        optimizer=trainer.optimizer,
        amp_scaler=trainer.scaler,
        checkpoint_dir=str(folder),
        recovery_dir=str(folder),
        decreasing=args.eval_metric in LESS_IS_BETTER,
        max_history=args.checkpoint_hist,
        task=trainer.task,
    )
    if checkpoint is not None and 'saver' in checkpoint:
        source = resumed_path(args, folder)
        if is_inside(source, folder):
            before = (checkpoint.get('args') or {}).get('eval_metric', args.eval_metric)
            state = checkpoint['saver'] if before == args.eval_metric else _unranked(checkpoint['saver'])
            saver.restart(source, state)
    return saver


def _unranked(state: dict[str, Any]) -> dict[str, Any]:
    """The history of saves without its ranks, which are of another figure than the run now ranks by."""
    files = [(name, None) for name, _ in state.get('checkpoint_files', [])]
    epoch, _ = state.get('pending') or (None, None)
    return {'checkpoint_files': files, 'best_epoch': None, 'best_metric': None, 'pending': (epoch, None)}
