"""The router stage: when an image has seen enough experts."""

from typing import Any, ClassVar

import torch

from ride_timm.errors import RideError
from ride_timm.inference.load import TrainedNet
from ride_timm.losses import RouterLoss
from ride_timm.tasks import ExpertTask, RouterTask
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.initial import reorder_experts
from ride_timm.training.run_data import RunData

from .base import LaterStage, experts_record, warn

__all__ = ['RouterStage', 'router_pos_weight']


class RouterStage(LaterStage):
    """The router trains on frozen experts. Source: RIDE (arXiv:2010.01809), stage 2."""

    name = 'router'
    routed = True
    own_options = ('router_threshold', 'router_pos_weight', 'router_target', 'expert_order')
    useless_options = ('loss', 'loss_kwargs', 'reweight_epoch', 'smoothing', 'mixup', 'cutmix')
    settings: ClassVar[dict[str, Any]] = {
        'sampler': 'balanced',
        'batch_size': 512,
        'epochs': 5,
        'opt': 'sgd',
        'lr': 0.01,
        'momentum': 0.9,
        'weight_decay': 5e-4,
        'sched': 'cosine',
        'warmup_epochs': 0,
    }

    def read_init(self, config: ResolvedConfig) -> TrainedNet | None:
        """Several experts, in the order in which the router is to ask them."""
        init = super().read_init(config)
        assert init is not None
        experts = getattr(init.model, 'num_experts', 1)
        if experts < 2:
            raise RideError(
                f'{init.source} is a {init.architecture} with {experts} expert; a router needs at least two.'
            )
        if config.expert_order:
            reorder_experts(init, config.expert_order)
        return init

    def needs_same_classes(self, config: ResolvedConfig) -> bool:
        """Always: the experts stay as they are."""
        return True

    def without_holdout(self, config: ResolvedConfig) -> None:
        """No threshold can be chosen."""
        kept = 'the given' if config.router_threshold is not None else "the network's"
        warn(
            config,
            'Without --holdout there are no images that experts and router have not seen, so no threshold is chosen '
            f'and {kept} one stays; train the experts with --holdout 0.1, or give `ride-timm route` other images.',
        )

    def model_options(self, config: ResolvedConfig, init: TrainedNet | None, data: RunData) -> ResolvedConfig:
        """The threshold is an argument of the architecture, which every later user of the weights creates it with."""
        config = super().model_options(config, init, data)
        threshold = config.router_threshold
        if threshold is None and init is not None and init.model.router is not None:
            threshold = init.model.router_threshold
        chosen = {} if threshold is None else {'router_threshold': threshold}
        return config.but(model_kwargs={**config.model_kwargs, 'router': True, **chosen})

    def router_remarks(self, init: TrainedNet) -> list[str]:
        """Whether the router is new."""
        return ['its router trains on' if init.model.router is not None else 'a new router']

    def build_task(
        self, config: ResolvedConfig, model: Any, data: RunData, criterion: Any, device: torch.device
    ) -> ExpertTask:
        """The answers after each expert alone teach the router."""
        return RouterTask(model, RouterLoss(router_pos_weight(config), config.router_target), device=device)

    def inherited_record(self, init: TrainedNet | None) -> dict[str, Any]:
        """What the experts were trained with, which the router does not change."""
        return {} if init is None else experts_record(init)


def router_pos_weight(config: ResolvedConfig) -> float:
    """The loss weight of images that need more experts: answers that differ are no rare case, and need none."""
    return config.router_pos_weight if config.router_target == 'accuracy' else 1.0
