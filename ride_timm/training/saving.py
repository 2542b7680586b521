"""What saves a run, and what it says of it."""

from pathlib import Path
from typing import Any

import yaml

from ride_timm.data import split_digest
from ride_timm.errors import RideError
from ride_timm.evaluation.writing import environment
from ride_timm.files import write_whole
from ride_timm.inference.load import TrainedNet
from ride_timm.records.provenance import add_segment
from ride_timm.tasks import ExpertTask
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.loop import Trainer
from ride_timm.training.resume import Resumed
from ride_timm.training.run_data import RunData
from ride_timm.training.run_folder import DAMAGED, LAST
from ride_timm.training.saver import RunSaver
from ride_timm.training.stages import Stage
from ride_timm.training.teacher import weights_digest

__all__ = ['LESS_IS_BETTER', 'create_saver', 'record']

LESS_IS_BETTER = ('loss', 'ece', 'gmacs', 'mean_experts')
"""Metrics of which the least is the best."""


def record(stage: Stage, data: RunData, init: TrainedNet | None, task: ExpertTask) -> dict[str, Any]:
    """What the checkpoint's `ride` entry says of the stage, next to class names and counts.

    Args:
        stage: The stage.
        data: The images.
        init: The network that it was initialised from.
        task: The stage's task.

    Returns:
        `stage`; `holdout` and `val_part` (fraction, seed, digest), None without one; `tau`; `pixel_range` of 16-bit
        images, None without any; `train_digest`, that of the names of the training images; `teacher`, the digest of its
        weights, None without one; and in the router stage what the experts were trained with, which the router does not
        change.
    """
    teacher = getattr(task, 'teacher', None)
    return {
        'stage': stage.name,
        'holdout': None if data.holdout is None else data.holdout.to_json(),
        'val_part': None if data.val_part is None else data.val_part.to_json(),
        'tau': getattr(task.criterion, 'tau', None),
        'train_digest': split_digest(data.train),
        'teacher': None if teacher is None else weights_digest(teacher.model),
        'pixel_range': data.train.dataset.pixel_range,
        **stage.inherited_record(init),
    }


def create_saver(
    config: ResolvedConfig, folder: Path, data: RunData, trainer: Trainer, entry: dict[str, Any],
    resumed: Resumed | None,
) -> RunSaver:  # fmt: skip
    """Make what saves into the run's folder.

    Args:
        config: The run's options, complete; written to `args.yaml`.
        folder: The run's folder, which is there.
        data: The images.
        trainer: What is saved.
        entry: What the checkpoint's `ride` entry says of the stage.
        resumed: What the run goes on from; in the folder itself, its history of saves goes on too.

    Raises:
        RideError: The folder cannot be written.
    """
    settings = config.settings()
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
            'loss': config.loss,
            'loss_kwargs': dict(config.loss_kwargs),
            **entry,
            'segments': _segments(config, resumed),
        },
        settings=settings,
        decreasing=config.eval_metric in LESS_IS_BETTER,
        max_history=config.checkpoint_hist,
    )
    if resumed is not None and resumed.inside and 'saver' in resumed.checkpoint:
        before = (resumed.checkpoint.get('args') or {}).get('eval_metric', config.eval_metric)
        state = resumed.checkpoint['saver']
        saver.restart(resumed.path, state if before == config.eval_metric else _unranked(state))
    return saver


def _segments(config: ResolvedConfig, resumed: Resumed | None) -> list[dict[str, Any]]:
    """The commands and machines of the run, this one's last."""
    checkpoint: dict[str, Any] = {'epoch': -1} if resumed is None else resumed.checkpoint
    earlier = (checkpoint.get('ride') or {}).get('segments', [])
    return add_segment(earlier, int(checkpoint['epoch']) + 1, config.command, environment())


def _unranked(state: dict[str, Any]) -> dict[str, Any]:
    """The history of saves without its ranks, for a run that ranks by another metric now."""
    files = [(name, None) for name, _ in state.get('checkpoint_files', [])]
    epoch, _ = state.get('pending') or (None, None)
    return {'checkpoint_files': files, 'best_epoch': None, 'best_metric': None, 'pending': (epoch, None)}
