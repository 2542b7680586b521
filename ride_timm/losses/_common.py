"""What the losses share: the module classes, the checks of a batch, hard and soft targets, means and divergences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ride_timm._compat import Float32Buffers
from ride_timm.errors import RideError

from ._options import check_epoch

ExpertLogits: TypeAlias = Tensor | Sequence[Tensor]
"""Logits (B, K, C); K logits (B, C), as a network returns in training; or (B, C), a single expert."""

_SOFT_SUM_TOLERANCE = 1e-2  # what float16 soft targets of thousands of classes may be off


class ExpertLoss(Float32Buffers):
    """What every training criterion of several experts offers: `parts`, `forward`, `set_epoch` and `end_epoch`.

    A subclass implements `parts`. `tau` is the logit adjustment that the experts are trained with, one number per
    expert or one for all, which `prior_correction` asks for; None where there is none.

    Class statistics live in buffers that stay float32: the log prior of a rare class would lose its digits in half
    precision. What follows from the data is non-persistent and never enters a checkpoint; what training has found does.
    """

    tau: float | tuple[float, ...] | None = None

    def parts(self, logits: ExpertLogits, target: Tensor) -> dict[str, Tensor]:
        """Computes the loss and what it is made of.

        Args:
            logits: Expert logits, shape (B, K, C), or what the network returned: a tuple of K logits (B, C), or (B, C).
            target: Class indices of shape (B,), or class probabilities of shape (B, C) where the loss takes them.

        Returns:
            Scalars by name: `loss` carries the gradient, the others are detached and for logging.
        """
        raise NotImplementedError

    def forward(self, logits: ExpertLogits, target: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            logits: Expert logits, shape (B, K, C), or what the network returned: a tuple of K logits (B, C), or (B, C).
            target: Class indices of shape (B,), or class probabilities of shape (B, C) where the loss takes them.

        Returns:
            The loss, a scalar in float32 (float64 for float64 logits).
        """
        return self.parts(logits, target)['loss']

    def set_epoch(self, epoch: int) -> None:
        """Tells the loss which epoch begins; losses without a schedule ignore it.

        Args:
            epoch: Index of the epoch, counted from 0.
        """
        check_epoch(epoch)

    def end_epoch(self) -> None:
        """Tells the loss that an epoch of training is over, in every process; most have nothing to do then."""


def at_least_float32(values: Tensor) -> Tensor:
    """Raises half-precision values to float32 and leaves float32 and float64 as they are.

    That is all a loss needs under autocast: the element-wise operations and reductions it is made of are never lowered
    by autocast, only matrix products and convolutions are.

    Args:
        values: A tensor of any shape.

    Returns:
        The same values in float32 or float64.
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def stack_experts(output: ExpertLogits) -> Tensor:
    """Expert logits from what a network returns in training.

    Args:
        output: A tuple or list of K logits (B, C), one tensor (B, C) of a single expert, or logits (B, K, C).

    Returns:
        Shape (B, K, C).
    """
    if isinstance(output, Tensor):
        return output.unsqueeze(1) if output.ndim == 2 else output
    return torch.stack(tuple(output), dim=1)


def in_training(logits: Tensor) -> bool:
    """Whether a loss of these logits is there to train a network, in a pass that may warn."""
    return logits.requires_grad and not torch.compiler.is_compiling()


def is_soft(target: Tensor) -> bool:
    """Tells class probabilities from class indices.

    Args:
        target: Class indices, shape (B,), or class probabilities, shape (B, C).

    Returns:
        Whether they are class probabilities.
    """
    return target.ndim == 2


def prepare_batch(logits: ExpertLogits, target: Tensor, num_classes: int | None = None) -> tuple[Tensor, Tensor]:
    """Checks one batch and raises it to the precision of the computation.

    Shapes are checked always. The values of the targets are checked on the CPU only, as reading them on an accelerator
    would make every step wait for it.

    Args:
        logits: Expert logits, as `stack_experts` takes them.
        target: Class indices, shape (B,), or class probabilities, shape (B, C).
        num_classes: The C that the loss was made for; None takes any.

    Returns:
        Logits of shape (B, K, C) in float32 or float64, and targets as int64 (B,) or in the logits' dtype (B, C).

    Raises:
        RideError: If the logits have another C than the loss was made for.
        ValueError: If shapes or target values are not what a loss can take.
    """
    logits = prepare_logits(logits)
    batch, _, classes = logits.shape
    if num_classes is not None:
        check_classes(classes, num_classes)
    if target.shape not in ((batch,), (batch, classes)):
        raise ValueError(
            f'The target has shape {tuple(target.shape)}, but must be class indices of shape ({batch},) '
            f'or class probabilities of shape ({batch}, {classes}).'
        )
    if is_soft(target) != target.is_floating_point():
        raise ValueError(
            f'The target of shape {tuple(target.shape)} is {target.dtype}, but class indices (B,) must be integers '
            'and class probabilities (B, C) floating point numbers.'
        )
    if target.device.type == 'cpu' and not torch.compiler.is_compiling():
        _check_target_values(target, classes)
    return logits, target.to(logits.dtype if is_soft(target) else torch.int64)


def prepare_logits(logits: ExpertLogits, name: str = 'logits', axes: str = 'BKC') -> Tensor:
    """Checks that logits have the axes they should and raises them to float32 at least.

    Args:
        logits: The logits, one axis for each letter of `axes`; those of experts as `stack_experts` takes them.
        name: What the caller calls them, for the error message.
        axes: One letter per axis.

    Returns:
        The logits in float32 or float64.

    Raises:
        ValueError: If an axis is missing or empty, or the logits are not floating point numbers.
    """
    wanted = f'({", ".join(axes)})'
    if axes == 'BKC':
        logits = stack_experts(logits)
    assert isinstance(logits, Tensor)
    if logits.ndim != len(axes) or not logits.numel():
        raise ValueError(f'The {name} have shape {tuple(logits.shape)}, but must be {wanted} with no empty axis.')
    if not logits.is_floating_point():
        raise ValueError(f'The {name} are {logits.dtype}, but must be floating point numbers.')
    return at_least_float32(logits)


def _check_target_values(target: Tensor, classes: int) -> None:
    if is_soft(target):
        sums = target.double().sum(1)
        if bool((target < 0).any()) or not bool(((sums - 1).abs() <= _SOFT_SUM_TOLERANCE).all()):
            raise ValueError('Each row of a soft target must be non-negative and sum to 1.')
    elif bool((target < 0).any()) or bool((target >= classes).any()):
        raise ValueError(
            f'The target holds the class indices {int(target.min())} to {int(target.max())}, '
            f'but the logits have the classes 0 to {classes - 1}.'
        )


def log_likelihoods(log_probs: Tensor, target: Tensor) -> Tensor:
    """Selects the log probabilities that a target asks for.

    Args:
        log_probs: Log probabilities, shape (B, K, C).
        target: Class indices, shape (B,), or class probabilities, shape (B, C).

    Returns:
        Shape (B, K, L): the label's log probability (L = 1) for class indices, all of them (L = C) for soft targets.
    """
    if is_soft(target):
        return log_probs
    return log_probs.gather(2, target[:, None, None].expand(-1, log_probs.shape[1], 1))


def label_weights(target: Tensor, like: Tensor, class_weight: Tensor | None = None) -> Tensor:
    """Computes how much each label of each sample counts, to go with `log_likelihoods`.

    Args:
        target: Class indices, shape (B,), or class probabilities, shape (B, C).
        like: A tensor with the dtype and device of the result.
        class_weight: Weight of each class, shape (C,); None weighs all alike.

    Returns:
        Shape (B, L): w_y (L = 1) for class indices, t_c w_c (L = C) for soft targets t.
    """
    if is_soft(target):
        return target if class_weight is None else target * class_weight.to(like.dtype)
    if class_weight is None:
        return like.new_ones(target.shape[0], 1)
    return class_weight.to(like.dtype)[target].unsqueeze(1)


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """Averages the losses of each expert over the batch, sum_i w_i l_i / sum_i w_i.

    Args:
        losses: Losses by sample, expert and label, shape (B, K, L).
        weights: Weights by sample and label, shape (B, L).

    Returns:
        One mean per expert, shape (K,).
    """
    return (losses * weights.unsqueeze(1)).sum((0, 2)) / weights.sum()


def kl_divergence(teacher_log_probs: Tensor, student_log_probs: Tensor) -> Tensor:
    """Computes KL(teacher || student) over the last axis; the teacher gets no gradient.

    Args:
        teacher_log_probs: Log probabilities, shape (..., C).
        student_log_probs: Log probabilities, shape (..., C), broadcast against the teacher's.

    Returns:
        The divergences, shape (...).
    """
    teacher = teacher_log_probs.detach()
    return (teacher.exp() * (teacher - student_log_probs)).sum(-1)


def check_classes(classes: int, counted: int) -> None:
    """Checks that a loss and the logits it gets know the same number of classes.

    Args:
        classes: The C of the logits.
        counted: The length of the class counts.

    Raises:
        RideError: If they do not.
    """
    if classes != counted:
        raise RideError(
            f'The logits have {classes} classes, but class_counts has {counted}; '
            'pass one count per class of the model, 0 for a class without training images.'
        )
