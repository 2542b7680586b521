"""Distillation: T^2 KL(softmax(teacher / T) || softmax(zbar / T)), averaged over the batch."""

from reference.probabilities import kl, mean_over_experts


def distillation_loss(logits, teacher_logits, temperature):
    total = 0.0
    for i in range(len(logits)):
        teacher = [value / temperature for value in teacher_logits[i]]
        student = [value / temperature for value in mean_over_experts(logits, i)]
        total += temperature**2 * kl(teacher, student)
    return total / len(logits)
