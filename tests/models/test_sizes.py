import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import ride_timm  # noqa: F401  registers the architectures

# architecture: multiply-accumulates in billions, parameters in millions
SMALL = {
    'ride_resnet32_1e': ('0.0689', '0.470'),
    'ride_resnet32_2e': ('0.0749', '0.531'),
    'ride_resnet32_3e': ('0.1004', '0.784'),
    'ride_resnet32_4e': ('0.1258', '1.037'),
    'ride_resnet32_6e': ('0.1767', '1.544'),
}
LARGE = {
    'ride_resnet50_2e': ('4.451', '29.60'),
    'ride_resnet50_3e': ('5.770', '43.68'),
    'ride_resnet50_4e': ('7.089', '57.75'),
    'ride_resnext50_32x4d_2e': ('4.646', '29.06'),
    'ride_resnext50_32x4d_3e': ('6.050', '42.89'),
    'ride_resnext50_32x4d_4e': ('7.454', '56.71'),
}


def measure(architecture, num_classes, size):
    model = timm.create_model(architecture, num_classes=num_classes, device='meta').eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 3, size, size, device='meta'))
    return counter.get_total_flops() / 2e9, sum(p.numel() for p in model.parameters()) / 1e6


@pytest.mark.parametrize('architecture, expected', SMALL.items())
def test_small(architecture, expected):
    macs, parameters = measure(architecture, num_classes=100, size=32)
    assert (f'{macs:.4f}', f'{parameters:.3f}') == expected


@pytest.mark.parametrize('architecture, expected', LARGE.items())
def test_large(architecture, expected):
    macs, parameters = measure(architecture, num_classes=1000, size=224)
    assert (f'{macs:.3f}', f'{parameters:.2f}') == expected
