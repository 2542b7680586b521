"""The network that is distilled: `--teacher`."""

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

import torch
from timm.utils import is_primary
from torch import nn

from ride_timm.data import DataSplit
from ride_timm.errors import RideError
from ride_timm.inference.load import load
from ride_timm.tasks import Teacher
from ride_timm.training.config import ResolvedConfig

__all__ = ['build_teacher', 'weights_digest']

_logger = logging.getLogger(__name__)


def build_teacher(config: ResolvedConfig, train: DataSplit, images: Mapping[str, Any]) -> Teacher:
    """Load the teacher and bring its classes into the order of the data.

    Args:
        config: The run's options: `teacher` is anything that `load` loads. The folder of a run stands for the
            moving average of its weights where it keeps one, a checkpoint for the weights themselves.
        train: The training images.
        images: timm's data configuration of the student, whose images the teacher is given.

    Raises:
        RideError: The teacher cannot be read, or has other classes or channels than the data.
    """
    trained = load(str(config.teacher))
    model: Any = trained.model
    names = trained.class_names
    if names is None:
        raise RideError(
            f'--teacher {config.teacher} does not name its classes, so they cannot be matched to the data; give a '
            'checkpoint of ride-timm, which names them.'
        )
    differing = set(names) ^ set(train.class_names)
    if differing:
        raise RideError(
            f'--teacher {config.teacher} knows {len(names)} classes and {train.source} has {train.num_classes}, and '
            f'{min(differing)} is in only one of them; give a teacher that was trained on the same classes.'
        )
    if model.in_chans != config.in_chans:
        raise RideError(
            f'--teacher {config.teacher} takes images of {model.in_chans} channels, but {config.model} of '
            f'{config.in_chans}; give a teacher with the same.'
        )
    own = model.pretrained_cfg
    teacher = Teacher(
        model,
        order=[names.index(name) for name in train.class_names],
        teacher_pixels=(own['mean'], own['std']),
        student_pixels=(images['mean'], images['std']),
    )
    if is_primary(config):
        experts = getattr(model, 'num_experts', 1)
        _logger.info(
            f'Distilling {config.teacher} ({experts} experts) with weight {config.distill_weight:g}, temperature '
            f'{config.distill_temperature:g}' + ('; its images are normalised anew' if teacher.normalises else '')
        )
    return teacher


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of a network's parameters and buffers, in hexadecimal digits: the same wherever its file lies.

    Args:
        network: On any device.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
