"""Mutual: sum over j != k of T^2 KL(stopgrad softmax(z_j / T) || softmax(z_k / T)) / (K - 1)."""

import math

from reference.logit_adjusted_loss import prior
from reference.probabilities import kl, mean_over_experts


def adjusted(logits, class_counts, tau):
    result = logits.copy()
    batch, experts, classes = logits.shape
    log_prior = [math.log(p) for p in prior(class_counts)]
    for i in range(batch):
        for k in range(experts):
            for c in range(classes):
                result[i, k, c] += tau[k] * log_prior[c]
    return result


def mutual_loss(logits, temperature=1.0, num_hard=None, teacher_logits=None):
    """`teacher_logits` freezes the z_j and the choice of the hard classes."""
    teacher_logits = logits if teacher_logits is None else teacher_logits
    batch, experts, classes = logits.shape
    total = 0.0
    for i in range(batch):
        mean = mean_over_experts(teacher_logits, i)
        kept = range(classes)
        if num_hard is not None:
            kept = sorted(range(classes), key=lambda c, mean=mean: -mean[c])[:num_hard]
        for k in range(experts):
            for j in range(experts):
                if j != k:
                    teacher = [teacher_logits[i, j, c] / temperature for c in kept]
                    student = [logits[i, k, c] / temperature for c in kept]
                    total += temperature**2 * kl(teacher, student) / (experts - 1) / batch
    return total
