"""Gated mutual: sum over k != j of 1[expert k is right] w_y KL(p_k || p_j), w_c ~ sqrt(1 - acc_c) of mean 1."""

import math

from reference.probabilities import kl


def class_weights(accuracy, class_counts):
    """Mean 1 over the classes with images; 1 for the others, and for all where nothing is left to learn."""
    raw = [math.sqrt(1 - a) for a in accuracy]
    mean = sum(w for w, n in zip(raw, class_counts, strict=True) if n) / sum(n > 0 for n in class_counts)
    return [w / mean if n and mean else 1.0 for w, n in zip(raw, class_counts, strict=True)]


def predicted(logits, i, k):
    row = list(logits[i, k])
    return row.index(max(row))


def gated_mutual_loss(logits, target, weights, teacher_logits=None):
    """`teacher_logits` freezes the p_k and what is right."""
    teacher_logits = logits if teacher_logits is None else teacher_logits
    batch, experts, _ = logits.shape
    total = 0.0
    for i in range(batch):
        for k in range(experts):
            if predicted(teacher_logits, i, k) == target[i]:
                for j in range(experts):
                    if j != k:
                        total += weights[target[i]] * kl(list(teacher_logits[i, k]), list(logits[i, j])) / batch
    return total


def moved_accuracy(accuracy, logits, target, momentum):
    """m acc_c + (1 - m) share of (image of class c, expert) pairs that are right; kept where c does not occur."""
    batch, experts, classes = logits.shape
    result = list(accuracy)
    for c in range(classes):
        of_class = [i for i in range(batch) if target[i] == c]
        if of_class:
            right = sum(predicted(logits, i, k) == c for i in of_class for k in range(experts))
            result[c] = momentum * accuracy[c] + (1 - momentum) * right / (len(of_class) * experts)
    return result
