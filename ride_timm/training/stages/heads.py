"""The heads stage: classifiers trained again on frozen features."""

from typing import Any, ClassVar

import torch

from ride_timm.tasks import ExpertTask, HeadTask
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.run_data import RunData

from .base import LaterStage

__all__ = ['HeadsStage']


class HeadsStage(LaterStage):
    """Classifier re-training (arXiv:1910.09217); lr 0.1 for a batch of 256 is timm's own --lr-base."""

    name = 'heads'
    own_options = ('keep_heads',)
    settings: ClassVar[dict[str, Any]] = {
        'sampler': 'balanced',
        'loss': 'ce',
        'epochs': 10,
        'opt': 'sgd',
        'momentum': 0.9,
        'weight_decay': 5e-4,
        'sched': 'cosine',
        'warmup_epochs': 0,
    }

    def needs_same_classes(self, config: ResolvedConfig) -> bool:
        """Where the heads train on."""
        return config.keep_heads

    def build_task(
        self, config: ResolvedConfig, model: Any, data: RunData, criterion: Any, device: torch.device
    ) -> ExpertTask:
        """The classification loss of the heads."""
        return HeadTask(model, criterion, device=device)
