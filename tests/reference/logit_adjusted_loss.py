"""reduce_k CE(z_k + tau_k log pi, y), SADE, and the correction of the mean logits for a target prior."""

import math

from reference.probabilities import log_softmax


def prior(class_counts):
    counts = [max(n, 1) for n in class_counts]
    return [n / sum(counts) for n in counts]


def cross_entropy(rows, target):
    """Mean over the batch of -sum_c t_c log p_c."""
    total = 0.0
    for row, label in zip(rows, target, strict=True):
        log_p = log_softmax(row)
        shares = [(label, 1.0)] if not hasattr(label, '__len__') else enumerate(label)
        for one_label, share in shares:
            total -= share * log_p[one_label]
    return total / len(rows)


def adjusted_loss(logits, target, adjustments, reduction):
    batch, experts, classes = logits.shape
    total = 0.0
    for k in range(experts):
        rows = [[logits[i, k, c] + adjustments[k][c] for c in range(classes)] for i in range(batch)]
        total += cross_entropy(rows, target)
    return total / experts if reduction == 'mean' else total


def logit_adjusted_loss(logits, target, class_counts, tau, reduction='mean'):
    adjustments = [[t * math.log(p) for p in prior(class_counts)] for t in tau]
    return adjusted_loss(logits, target, adjustments, reduction)


def rank_reversed(values):
    """The r-th largest value goes where the r-th smallest is."""
    order = sorted(range(len(values)), key=lambda c: values[c])
    result = [0.0] * len(values)
    for rank, c in enumerate(order):
        result[c] = values[order[len(values) - 1 - rank]]
    return result


def sade_loss(logits, target, class_counts):
    pi = prior(class_counts)
    pi_rev = rank_reversed(pi)
    adjustments = [
        [0.0 for _ in pi],
        [math.log(p) for p in pi],
        [math.log(p) - 2 * math.log(r) for p, r in zip(pi, pi_rev, strict=True)],
    ]
    return adjusted_loss(logits, target, adjustments, 'sum')


def prior_correction(mean_logits, class_counts, tau, target_prior):
    """Zbar + (mean(tau) - 1) log pi + log q."""
    pi, q = prior(class_counts), [value / sum(target_prior) for value in target_prior]
    mean_tau = sum(tau) / len(tau)
    return [[row[c] + (mean_tau - 1) * math.log(pi[c]) + math.log(q[c]) for c in range(len(pi))] for row in mean_logits]
