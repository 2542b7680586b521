"""CE_w of plain cross-entropy, focal loss and LDAM for one expert, from the formulas."""

import math

from reference.probabilities import log_softmax


def effective_number_weights(class_counts, beta):
    """w_c proportional to (1 - b) / (1 - b^n_c), mean 1; counts below 1 count as 1."""
    raw = [(1 - beta) / (1 - beta ** max(n, 1)) for n in class_counts]
    return [w * len(raw) / sum(raw) for w in raw]


def margins(class_counts):
    """m_c = 0.5 (n_min / n_c)^(1/4)."""
    counts = [max(n, 1) for n in class_counts]
    return [0.5 * (min(counts) / n) ** 0.25 for n in counts]


def sample_loss(row, label, base, class_counts, margin_scale=30.0, gamma=2.0):
    """The loss of one expert's logits for one sample under one label."""
    if base == 'ldam':
        row = list(row)
        row[label] -= margin_scale * margins(class_counts)[label]
    log_p = log_softmax(row)[label]
    if base == 'focal':
        return -((1 - math.exp(log_p)) ** gamma) * log_p
    return -log_p


def weighted_loss(rows, target, base, class_counts, weights=None, **options):
    """CE_w = sum_i w_{y_i} l_i / sum_i w_{y_i}; a soft target counts each of its labels with its share."""
    numerator = denominator = 0.0
    for row, label in zip(rows, target, strict=True):
        shares = [(label, 1.0)] if not hasattr(label, '__len__') else list(enumerate(label))
        for one_label, share in shares:
            weight = share * (1.0 if weights is None else weights[one_label])
            numerator += weight * sample_loss(row, one_label, base, class_counts, **options)
            denominator += weight
    return numerator / denominator


def experts_loss(logits, target, base, class_counts, weights=None, **options):
    """The sum of CE_w over the experts."""
    return sum(
        weighted_loss(logits[:, k], target, base, class_counts, weights, **options) for k in range(logits.shape[1])
    )
