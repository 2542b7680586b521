"""What the tests of the losses share: batches, class counts, and gradients by finite differences."""

import numpy as np
import torch

COUNTS = {
    'long tail': [500, 60, 7, 2],
    'a count of 1': [90, 10, 1, 5],
    'a count of 0': [40, 0, 3, 12],
    'equal': [7, 7, 7, 7],
}
TARGETS = {'one image': [2], 'several': [0, 3, 1, 2, 0], 'one class only': [1, 1, 1]}
EXPERTS = (1, 2, 3)
NUM_CLASSES = 4

# buffers are float32, so that constants such as log pi carry its rounding into a float64 loss
RTOL = 2e-6


def random_logits(batch, experts, classes=NUM_CLASSES, seed=0, scale=3.0):
    """Draws float64 logits of shape (B, K, C) as an array."""
    return scale * np.random.default_rng(seed).standard_normal((batch, experts, classes))


def soft_targets(labels, classes=NUM_CLASSES, share=0.7):
    """Mixes each label with that of the next image, as mixup does; (B, C)."""
    one_hot = np.eye(classes)[labels]
    return share * one_hot + (1 - share) * np.roll(one_hot, 1, axis=0)


def autograd_gradient(loss, logits, *rest):
    """The gradient of `loss(logits, *rest)` with respect to the logits, as an array."""
    inputs = torch.tensor(logits, requires_grad=True)
    loss(inputs, *rest).backward()
    return inputs.grad.numpy()


def numeric_gradient(function, array, step=1e-6):
    """The gradient of a function of one array by central differences."""
    gradient = np.zeros_like(array)
    for index in np.ndindex(array.shape):
        above, below = array.copy(), array.copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (function(above) - function(below)) / (2 * step)
    return gradient
