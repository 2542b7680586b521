"""Networks whose router sends some images on and keeps others."""

import math

import numpy as np
import timm
import torch

import ride_timm  # noqa: F401  registers the architectures

# the side of the images, and arguments
ARCHITECTURES = {
    'test_ride_resnet_3e': (64, {}),
    'test_ride_resnet_cifar_3e': (32, {}),
    'ride_resnet32_4e': (16, {'layers': (1, 1, 1)}),
}


def routed_net(architecture, batch=12, num_classes=9):
    """A network and images of which about half go on after each expert.

    Returns:
        The network in eval mode, the images, and the logits of its routers for them, shape (batch, K - 1).
    """
    size, arguments = ARCHITECTURES[architecture]
    model = timm.create_model(architecture, num_classes=num_classes, router=True, **arguments).eval()
    images = torch.randn(batch, 3, size, size) + torch.randn(batch, 3, 1, 1)
    return model, images, divide(model, images)


def divide(model, images):
    """Have the routers of a network send about half of these images on; their logits, shape (batch, K - 1)."""
    with torch.no_grad():
        out = model.router.out.weight.normal_()
        # two hidden features move each router's logits to a median of zero, which the shared output layer cannot
        out[0, -2:] = torch.tensor([-1.0, 1.0])
        for hidden in model.router.hidden:
            hidden.weight.normal_(std=3)[-2:] = 0
            hidden.bias.zero_()
        for i, hidden in enumerate(model.router.hidden):
            ranked = model.forward_router(images).router_logits[:, i].sort().values
            middle = (ranked[len(images) // 2 - 1] + ranked[len(images) // 2]) / 2
            hidden.bias[-2:] = torch.stack([middle, -middle]).relu()
        return model.forward_router(images).router_logits


def expected_experts(router_logits, threshold):
    """How many experts each image passes: it goes on while the router's probability is above the threshold."""
    with np.errstate(divide='ignore'):
        limit = np.log(np.float64(threshold)) - np.log1p(-np.float64(threshold))
    counts = []
    for decisions in router_logits.double().numpy() > limit:
        stops = np.flatnonzero(~decisions)
        counts.append(1 + (stops[0] if len(stops) else len(decisions)))
    return torch.tensor(counts)


def safe_thresholds(router_logits):
    """Thresholds between the routers' probabilities, away from each of them by more than rounding."""
    ranked = router_logits.double().flatten().sort().values
    gaps = ranked.diff()
    wide = gaps > 1e-3
    middles = ((ranked[1:] + ranked[:-1]) / 2)[wide]
    return [1 / (1 + math.exp(-middle)) for middle in middles.tolist()]
