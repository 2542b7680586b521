import math

import pytest
import torch
from torch import nn

pytest.register_assert_rewrite('model_tester')  # test files import it


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    torch.compiler.reset()  # a method that many networks share is compiled anew only a few times


@pytest.fixture
def check_initialisation():
    """Check a network's drawn parameters; `fan` picks the axis of a convolution's weight that He's formula counts."""

    def check(model, fan):
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                weight = module.weight.detach()
                axis = {'in': 1, 'out': 0}[fan]
                std = math.sqrt(2 / (weight.shape[axis] * weight[0, 0].numel()))
                assert abs(weight.std().item() / std - 1) < 4 / math.sqrt(2 * weight.numel())
                assert abs(weight.mean().item() / std) < 4 / math.sqrt(weight.numel())
            if isinstance(module, nn.BatchNorm2d):
                assert module.weight.eq(1).all()
                assert module.bias.eq(0).all()

    return check
