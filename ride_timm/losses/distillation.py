"""Distillation of a larger ensemble into the mean of the experts."""

from __future__ import annotations

from torch import Tensor, nn

from ._common import ExpertLogits, kl_divergence, prepare_logits
from ._options import check_number

__all__ = ['DistillationLoss']


class DistillationLoss(nn.Module):
    """Teaches the mean of the experts a teacher's predictions, an auxiliary term to add to a classification loss.

    T^2 KL(softmax(teacher / T) || softmax(zbar / T)), averaged over the batch. The teacher gets no gradient;
    put it into eval mode.

    Deviations from RIDE's code: the term is added once, not once for every expert; the teacher is meant to be in eval
    mode.

    Source: Hinton et al., arXiv:1503.02531, section 2; as used by RIDE, arXiv:2010.01809, with T = 1.5.

    Args:
        temperature: Softmax temperature T.

    Raises:
        RideError: If the temperature is not positive.
    """

    def __init__(self, temperature: float = 1.5) -> None:
        super().__init__()
        check_number('temperature', temperature, low=0.0, exclusive=True)
        self.temperature = temperature

    def parts(self, logits: ExpertLogits, teacher_logits: Tensor) -> dict[str, Tensor]:
        """Computes the loss.

        Args:
            logits: Expert logits of the student, shape (B, K, C).
            teacher_logits: Logits of the teacher, shape (B, C).

        Returns:
            `loss`, and the same number as `distillation`, detached.

        Raises:
            ValueError: If the shapes do not fit.
        """
        logits = prepare_logits(logits)
        teacher = prepare_logits(teacher_logits, 'teacher logits', 'BC').to(logits.dtype)
        if teacher.shape != (logits.shape[0], logits.shape[2]):
            raise ValueError(
                f'The teacher logits have shape {tuple(teacher.shape)}, but the student logits of shape '
                f'{tuple(logits.shape)} ask for {(logits.shape[0], logits.shape[2])}.'
            )
        student = logits.mean(1)
        divergence = kl_divergence(
            (teacher / self.temperature).log_softmax(-1), (student / self.temperature).log_softmax(-1)
        )
        loss = self.temperature**2 * divergence.mean()
        return {'loss': loss, 'distillation': loss.detach()}

    def forward(self, logits: ExpertLogits, teacher_logits: Tensor) -> Tensor:
        """Computes the loss.

        Args:
            logits: Expert logits of the student, shape (B, K, C).
            teacher_logits: Logits of the teacher, shape (B, C).

        Returns:
            The loss, a scalar in float32 (float64 for float64 logits).
        """
        return self.parts(logits, teacher_logits)['loss']
