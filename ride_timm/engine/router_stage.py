"""Training the router of a network whose experts are done, and measuring what it saves."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from timm.data.loader import PrefetchLoader
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler

from ride_timm._compat import update_model_args
from ride_timm.data import start_epoch
from ride_timm.engine.loop import Autocast, Trainer, train_epoch
from ride_timm.engine.sweep import TOLERANCE, SweepRow, choose_threshold
from ride_timm.losses import constant_router_loss
from ride_timm.models import MultiExpertNet
from ride_timm.tasks import RouterTask

__all__ = ['check_router', 'settle_threshold', 'train_router']

_logger = logging.getLogger(__name__)


def train_router(
    net: MultiExpertNet,
    loader: PrefetchLoader,
    *,
    epochs: int = 5,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    device: torch.device | None = None,
    autocast: Autocast = nullcontext,
    seed: int = 42,
) -> None:
    """Train the router alone: SGD with Nesterov momentum 0.9, cosine to 0, no warm-up.

    Source: RIDE (arXiv:2010.01809), stage 2.

    Args:
        net: With a router; its other parameters are frozen from here on.
        loader: Training batches, drawn class-balanced (`ClassBalancedSampler`).
        epochs: Passes over the loader.
        lr: Learning rate at the start.
        weight_decay: On all of the router's parameters.
        device: Where the network is.
        autocast: Context of the forward pass.
        seed: Seed of the batches and their augmentation.
    """
    device = device or next(net.parameters()).device
    task = RouterTask(net, device=device)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = create_optimizer_v2(parameters, opt='sgd', lr=lr, momentum=0.9, weight_decay=weight_decay)
    trainer = Trainer(task, loader, optimizer, device, autocast, epochs=epochs)
    updates = trainer.updates_per_epoch
    trainer.scheduler = CosineLRScheduler(optimizer, t_initial=epochs * updates, t_in_epochs=False)
    means = {'loss': 0.0, 'needed': 0.0}
    for epoch in range(epochs):
        start_epoch(loader, seed=seed, epoch=epoch)
        means = train_epoch(trainer, epoch)
        _logger.info(f'router epoch {epoch}: loss {means["loss"]:.4f}, {100 * means["needed"]:.1f} % should go on')
    check_router(means)
    net.requires_grad_(True)
    net.require_router().requires_grad_(False)
    net.eval()


def check_router(means: Mapping[str, float], pos_weight: float = 100.0) -> None:
    """Warn of a router whose training did not converge: one that answers alike for every image has the lower loss.

    Its thresholds would still be chosen and kept, and route worse than they could.

    Args:
        means: The last epoch's `loss` and `needed`, as `train_epoch` returns them.
        pos_weight: Weight of the images that need more experts, as of `RouterLoss`.
    """
    least = constant_router_loss(means['needed'], pos_weight)
    if 0 < least < means['loss']:
        _logger.warning(
            f"The router's loss ended at {means['loss']:.3g}, and a router that answers alike for every image has "
            f'{least:.3g}: it was trained too coarsely; train it again with --clip-grad 1, or a smaller --lr.'
        )


def settle_threshold(net: MultiExpertNet, rows: Sequence[SweepRow], fixed: float | None = None) -> str:
    """Give the network the threshold that it routes with, chosen on held-out images.

    Args:
        net: With a trained router; its `router_threshold` is set.
        rows: Of a sweep over images that neither the experts nor the router were trained on, and that are not the test
            images.
        fixed: Take this threshold instead of the chosen one.

    Returns:
        How the threshold came about, in words.
    """
    chosen = choose_threshold(rows)
    net.router_threshold = chosen if fixed is None else fixed
    update_model_args(net, router_threshold=net.router_threshold)  # what an export of this network writes down
    rule = f'fewest GMACs at most {TOLERANCE} points below all experts on held-out images, over images and over classes'
    if fixed is not None:
        rule = f'--router-threshold ({chosen:g} has the {rule})'
    return rule
