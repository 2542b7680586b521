"""The network that is distilled: `--teacher`."""

import argparse
import logging
from collections.abc import Mapping
from typing import Any

from timm.utils import is_primary

from ride_timm.data import DataSplit
from ride_timm.engine.initial import read_initial, weights_file
from ride_timm.engine.loading import load_trained
from ride_timm.errors import RideError
from ride_timm.tasks import Teacher

__all__ = ['build_teacher']

_logger = logging.getLogger(__name__)


def build_teacher(args: argparse.Namespace, train: DataSplit, config: Mapping[str, Any]) -> Teacher:
    """Load the teacher and bring its classes into the order of the data.

    Args:
        args: The run's arguments: `teacher` is a checkpoint, an exported folder, or a name of published weights.
        train: The training images.
        config: timm's data configuration of the student, whose images the teacher is given.

    Raises:
        RideError: The teacher cannot be read, or has other classes or channels than the data.
    """
    model, names = _read(args.teacher)
    if names is None:
        raise RideError(
            f'--teacher {args.teacher} does not name its classes, so they cannot be matched to the data; give a '
            'checkpoint of ride-timm, which names them.'
        )
    differing = set(names) ^ set(train.class_names)
    if differing:
        raise RideError(
            f'--teacher {args.teacher} knows {len(names)} classes and {train.source} has {train.num_classes}, and '
            f'{min(differing)} is in one of them alone; give a teacher that was trained on the same classes.'
        )
    if model.in_chans != args.in_chans:
        raise RideError(
            f'--teacher {args.teacher} takes images of {model.in_chans} channels and {args.model} of {args.in_chans}; '
            'give a teacher of the same.'
        )
    own = model.pretrained_cfg
    teacher = Teacher(
        model,
        order=[names.index(name) for name in train.class_names],
        teacher_pixels=(own['mean'], own['std']),
        student_pixels=(config['mean'], config['std']),
    )
    if is_primary(args):
        experts = getattr(model, 'num_experts', 1)
        _logger.info(
            f'Distilling {args.teacher} ({experts} experts) with weight {args.distill_weight:g}, temperature '
            f'{args.distill_temperature:g}' + ('; its images are normalised anew' if teacher.normalises else '')
        )
    return teacher


def _read(source: str) -> tuple[Any, tuple[str, ...] | None]:
    if weights_file(source).is_file() or source.endswith(('.pth.tar', '.pth', '.pt', '.safetensors')):
        found = read_initial(source)
        return found.model, found.class_names
    options = argparse.Namespace(
        checkpoint=None, model=source, pretrained=True, use_ema=False, num_classes=None, model_kwargs={}
    )
    published = load_trained(options)
    return published.model, published.class_names
