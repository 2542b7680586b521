"""RIDE: sum_k [CE_w(z_k - 30 m_y onehot(y), y) + lambda mean(T)^2 KL(sg softmax(zbar / T) || softmax(z_k / T))]."""

import numpy as np
from reference import base_loss
from reference.probabilities import kl, mean_over_experts


def temperatures(class_counts, rho):
    """T_c = u_c / max u, u_c = C pi_c rho + 1 - rho."""
    counts = [max(n, 1) for n in class_counts]
    raised = [len(counts) * n / sum(counts) * rho + 1 - rho for n in counts]
    return [u / max(raised) for u in raised]


def diversity_term(logits, temperature, teacher_logits=None):
    """sum_k mean(T)^2 KL(...), averaged over the batch; `teacher_logits` freezes what zbar is taken from."""
    batch, experts, classes = logits.shape
    teacher_logits = logits if teacher_logits is None else teacher_logits
    total = 0.0
    for i in range(batch):
        mean = mean_over_experts(teacher_logits, i)
        for k in range(experts):
            teacher = [mean[c] / temperature[c] for c in range(classes)]
            student = [logits[i, k, c] / temperature[c] for c in range(classes)]
            total += kl(teacher, student) / batch
    return (sum(temperature) / classes) ** 2 * total


def ride_loss(
    logits,
    target,
    class_counts,
    base='ldam',
    margin_scale=30.0,
    diversity=-0.45,
    rho=0.05,
    beta=0.9999,
    reweighting=False,
    mode='individual',
    gamma=2.0,
    teacher_logits=None,
):
    experts = logits.shape[1]
    weights = base_loss.effective_number_weights(class_counts, beta) if reweighting else None
    temperature = temperatures(class_counts, rho) if reweighting else [1.0] * len(class_counts)
    options = {'weights': weights, 'margin_scale': margin_scale, 'gamma': gamma}
    if mode == 'collaborative':
        mean = np.array([[mean_over_experts(logits, i)] for i in range(len(logits))])
        classification = experts * base_loss.experts_loss(mean, target, base, class_counts, **options)
    else:
        classification = base_loss.experts_loss(logits, target, base, class_counts, **options)
    return classification + diversity * diversity_term(logits, temperature, teacher_logits)
