"""The first stage: the whole network, or parts of it."""

from typing import Any

import torch
from torch import nn

from ride_timm.data.splits import is_same_split, split_plan
from ride_timm.errors import RideError, did_you_mean
from ride_timm.inference.load import TrainedNet
from ride_timm.losses import DistillationLoss
from ride_timm.records.training_record import SplitPlan
from ride_timm.tasks import ExpertTask, HeadTask, RideDistillationTask, RideTask
from ride_timm.training.auxiliary import AUXILIARY, build_auxiliary
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.run_data import RunData
from ride_timm.training.teacher import build_teacher

from .base import Stage, warn

__all__ = ['ExpertsStage']


class ExpertsStage(Stage):
    """All of the network trains, or the parts that `--train-only` names."""

    name = 'experts'
    first = True
    own_options = (
        'teacher', 'distill_weight', 'distill_temperature', 'mutual_temperature', *AUXILIARY, 'average_epochs',
        'pretrained', 'from_scratch', 'time_budget', 'tail',
    )  # fmt: skip

    def without_init(self) -> None:
        """Nothing is needed."""

    def read_init(self, config: ResolvedConfig) -> TrainedNet | None:
        """As in `Stage`; parts train on their classification loss alone."""
        if config.train_only and (config.teacher or any(getattr(config, name) for name in AUXILIARY)):
            raise RideError(
                '--train-only trains parts of a network on their classification loss alone; leave out --teacher, '
                '--mutual, --mutual-hard, --mutual-gated and --soft-suppression.'
            )
        return super().read_init(config)

    def model_options(self, config: ResolvedConfig, init: TrainedNet | None, data: RunData) -> ResolvedConfig:
        """As in `Stage`; parts train on top of a trained network."""
        if config.train_only and init is None:
            raise RideError(
                f'--train-only {" ".join(config.train_only)} trains parts of a trained network and there is none to '
                'initialise from; give --init, or --pretrained with a ride_* architecture.'
            )
        return super().model_options(config, init, data)

    def holdout_plan(self, config: ResolvedConfig, init: TrainedNet | None) -> SplitPlan | None:
        """What `--holdout` says."""
        if not config.holdout:
            return None
        plan = split_plan(config, config.holdout, config.seed if config.holdout_seed is None else config.holdout_seed)
        known = init.record.holdout if init is not None else None
        if init is not None and not is_same_split(plan, known):
            warn(config, f'The weights of {init.source} may have seen the held-out images.')
        return plan

    def keeps_heads(self, config: ResolvedConfig, init: TrainedNet, data: RunData) -> bool:
        """For classes of the same names."""
        return init.class_names == data.train.class_names

    def build_task(
        self, config: ResolvedConfig, model: Any, data: RunData, criterion: Any, device: torch.device
    ) -> ExpertTask:
        """Classification, with the added losses and the teacher that the options name."""
        if config.train_only:
            return HeadTask(model, criterion, device=device, parts=[_part(model, name) for name in config.train_only])
        auxiliary = build_auxiliary(config, criterion, data.train.class_counts)
        if not config.teacher:
            return RideTask(model, criterion, device=device, auxiliary=auxiliary)
        assert config.data_config is not None
        return RideDistillationTask(
            model,
            criterion,
            build_teacher(config, data.train, config.data_config),
            DistillationLoss(config.distill_temperature),
            config.distill_weight,
            device=device,
            auxiliary=auxiliary,
        )


def _part(model: nn.Module, name: str) -> nn.Module:
    names = {known for known, module in model.named_modules() if known and any(True for _ in module.parameters())}
    if name not in names:
        hint = did_you_mean(name, names, '; print the network for their names.', cutoff=0.4)
        raise RideError(f'--train-only {name} was given, but the network has no such part with parameters{hint}')
    return model.get_submodule(name)
