"""Answers for other class frequencies, of all experts and of the first n, from the formula, one number at a time."""

import math

from reference.logit_adjusted_loss import prior


def served_logits(expert_logits, num_experts, class_counts, tau, target):
    """Mean of z_k over the first n experts + (mean of their tau - 1) log pi + log q, for each image its own n."""
    pi, q = prior(class_counts), [weight / sum(target) for weight in target]
    result = []
    for image, passed in zip(expert_logits, num_experts, strict=True):
        mean_tau = sum(tau[:passed]) / passed
        row = []
        for c in range(len(pi)):
            mean = sum(image[k][c] for k in range(passed)) / passed
            row.append(mean + (mean_tau - 1) * math.log(pi[c]) + math.log(q[c]))
        result.append(row)
    return result
