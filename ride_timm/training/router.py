"""Training the router of a network whose experts are done, and measuring what it saves."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import unwrap_model
from torch import nn

from ride_timm.data import start_epoch
from ride_timm.errors import RideError
from ride_timm.losses import RouterLoss, constant_router_loss
from ride_timm.models import count_experts
from ride_timm.tasks import RouterTask
from ride_timm.training.loop import Autocast, Trainer, train_epoch

__all__ = ['check_router', 'train_router']

_logger = logging.getLogger(__name__)


def train_router(
    model: nn.Module,
    loader: Any,
    *,
    epochs: int = 5,
    lr: float = 0.01,
    pos_weight: float | None = None,
    target: str = 'disagreement',
    weight_decay: float = 5e-4,
    autocast: Autocast = nullcontext,
    seed: int = 42,
) -> None:
    """Train only the router, and add one if there is none: SGD with Nesterov momentum 0.9, cosine to 0, no warm-up.

    Experts and trunk stay as they are, BatchNorm's statistics too. Afterwards, even if training
    fails, the network is in eval mode, its router frozen and everything else as trainable as before.

    Source: RIDE (arXiv:2010.01809), stage 2.

    Args:
        model: A multi-expert network of C classes, where it is to be trained.
        loader: Training batches of images (B, channels, H, W) and class indices (B,), such as a `DataLoader`; drawn
            class-balanced if the rare classes are to count (`ride_timm.data.ClassBalancedSampler`).
        epochs: Passes over the loader.
        lr: Learning rate at the start.
        pos_weight: Weight of the images that need more experts; None: 1, and the paper's 100 for `accuracy`, where
            they are few and stopping too early costs much.
        target: Where it is to go on: where the answer is not that of all experts (`disagreement`), which is what
            `choose_threshold` certifies, or where a wrong answer would become right (`accuracy`), as the paper has it.
        weight_decay: On all of the router's parameters.
        autocast: Context of the forward pass.
        seed: Seed of the batches, and of what is drawn for them; global random state is set by it.

    Raises:
        RideError: The network has fewer than two experts, there is nothing to train on, or the loss is not finite.

    Example:
        >>> import timm, torch, ride_timm as rt
        >>> data = torch.utils.data.TensorDataset(torch.randn(12, 3, 32, 32), torch.arange(12) % 3)
        >>> model = timm.create_model('test_ride_resnet_cifar_3e', num_classes=3)
        >>> rt.train_router(model, torch.utils.data.DataLoader(data, batch_size=4), epochs=1)
        >>> model.router is None
        False
    """
    net: Any = unwrap_model(model)
    if count_experts(net) < 2:
        raise RideError(
            f'The network has {max(count_experts(net), 1)} expert(s), but a router needs at least two; use a '
            'multi-expert network, such as ride_resnet50_3e.'
        )
    if epochs < 1 or not len(loader):
        raise RideError(f'{epochs} epochs of {len(loader)} batches were given; train for at least one of each.')
    if pos_weight is None:
        pos_weight = 100.0 if target == 'accuracy' else 1.0
    criterion = RouterLoss(pos_weight, target)
    if net.router is None:
        net.add_router()
    device = next(net.parameters()).device
    before = [(p, p.requires_grad) for p in net.parameters()]
    try:
        task = RouterTask(net, criterion, device=device)
        parameters = [p for p in net.parameters() if p.requires_grad]
        optimizer = create_optimizer_v2(parameters, opt='sgd', lr=lr, momentum=0.9, weight_decay=weight_decay)
        trainer = Trainer(task, loader, optimizer, device, autocast, epochs=epochs)
        updates = trainer.updates_per_epoch
        trainer.scheduler = CosineLRScheduler(optimizer, t_initial=epochs * updates, t_in_epochs=False)
        means = {'loss': 0.0, 'needed': 0.0}
        for epoch in range(epochs):
            start_epoch(loader, seed=seed, epoch=epoch)
            means = train_epoch(trainer, epoch)
            _logger.info(f'Router epoch {epoch}: loss {means["loss"]:.4f}, {100 * means["needed"]:.1f} % should go on')
    finally:  # a loss that is not finite, or Ctrl-C, leaves a network that can be trained on
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)
        net.require_router().requires_grad_(False)
        net.eval()
    check_router(means, pos_weight)


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
            f"The router's loss ended at {means['loss']:.3g}, and a router with one output for all images "
            f'has {least:.3g}: it was trained too coarsely; train it again with --clip-grad 1, or a smaller --lr.'
        )
