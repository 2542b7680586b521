"""A routed network with random weights and unusual class names, for the tests of the demo."""

from pathlib import Path

import timm
import torch
from tiny_runs import CIFAR

from ride_timm.publishing.folder import save_folder

NAMES = ['<img src=x onerror="window.hacked=1">', 'cat', 'été, "wild"', 'dog']


def save_net(folder: Path) -> Path:
    """A packaged folder."""
    torch.manual_seed(3)
    net = timm.create_model(CIFAR, num_classes=4, router=True)
    with torch.no_grad():
        net.router.out.weight.normal_(std=2)
    net.pretrained_cfg.update(input_size=(3, 16, 16), crop_pct=0.9)
    save_folder(net, folder, NAMES, [12, 4, 2, 1], {'loss': 'balpoe', 'tau': [0.0, 1.0, 2.0]})
    return folder
