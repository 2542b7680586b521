"""The stages of a training: all of the network, the router on frozen experts, the heads on frozen features."""

from .base import Stage
from .experts import ExpertsStage
from .heads import HeadsStage
from .router import RouterStage

__all__ = ['STAGES', 'Stage']

STAGES: dict[str, Stage] = {stage.name: stage for stage in (ExpertsStage(), RouterStage(), HeadsStage())}
