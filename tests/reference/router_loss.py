"""Router: mean over I of BCE(router I, 1[wrong after experts 0..I and right after some longer prefix])."""

import math


def prefix_prediction(logits, sample, last):
    """The class of the largest mean logit over experts 0..last; the first one of equals."""
    classes = logits.shape[2]
    means = [sum(logits[sample, k, c] for k in range(last + 1)) / (last + 1) for c in range(classes)]
    return means.index(max(means))


def router_targets(expert_logits, target):
    batch, experts, _ = expert_logits.shape
    rows = []
    for i in range(batch):
        right = [prefix_prediction(expert_logits, i, last) == target[i] for last in range(experts)]
        rows.append([float(not right[last] and any(right[last + 1 :])) for last in range(experts - 1)])
    return rows


def disagreement_targets(expert_logits):
    batch, experts, _ = expert_logits.shape
    answers = [[prefix_prediction(expert_logits, i, last) for last in range(experts)] for i in range(batch)]
    return [[float(answer != row[-1]) for answer in row[:-1]] for row in answers]


def router_loss(router_logits, expert_logits, target, pos_weight):
    wanted = router_targets(expert_logits, target)
    batch, routers = router_logits.shape
    total = 0.0
    for last in range(routers):
        for i in range(batch):
            p = 1 / (1 + math.exp(-router_logits[i, last]))
            total -= pos_weight * wanted[i][last] * math.log(p) + (1 - wanted[i][last]) * math.log(1 - p)
    return total / (batch * routers)
