"""Softmax and Kullback-Leibler divergence of one row of numbers, in plain float64 loops."""

import math


def log_softmax(row):
    largest = max(row)
    total = 0.0
    for value in row:
        total += math.exp(value - largest)
    return [value - largest - math.log(total) for value in row]


def kl(teacher_row, student_row):
    """KL(softmax(teacher) || softmax(student))."""
    teacher, student = log_softmax(teacher_row), log_softmax(student_row)
    total = 0.0
    for t, s in zip(teacher, student, strict=True):
        total += math.exp(t) * (t - s)
    return total


def mean_over_experts(logits, sample):
    """zbar of one sample: the mean of its expert logits, class by class."""
    _, experts, classes = logits.shape
    return [sum(logits[sample, k, c] for k in range(experts)) / experts for c in range(classes)]
