"""Soft suppression: sum_k KL(t || p_k), t the softmax of zbar with what outranks the target set to its mean."""

from reference.probabilities import kl, mean_over_experts


def suppressed(row, label):
    mean = sum(row) / len(row)
    return [-30.0 if c == label else mean if value > row[label] else value for c, value in enumerate(row)]


def soft_suppression_loss(logits, target, teacher_logits=None):
    """`teacher_logits` freezes what zbar is taken from."""
    teacher_logits = logits if teacher_logits is None else teacher_logits
    batch, experts, _ = logits.shape
    total = 0.0
    for i in range(batch):
        teacher = suppressed(mean_over_experts(teacher_logits, i), target[i])
        total += sum(kl(teacher, list(logits[i, k])) for k in range(experts)) / batch
    return total
