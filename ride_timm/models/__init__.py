"""The networks; importing this registers them in timm."""

from .heads import CosineLinear as CosineLinear
from .multi_expert import MultiExpertNet as MultiExpertNet
from .ride_resnet import RideResNet as RideResNet
from .ride_resnet_cifar import RideResNetCifar as RideResNetCifar
from .router import ExpertRouter as ExpertRouter
from .routing import RoutedOutput as RoutedOutput
from .routing import RouterOutput as RouterOutput

__all__ = [
    'CosineLinear',
    'ExpertRouter',
    'MultiExpertNet',
    'RideResNet',
    'RideResNetCifar',
    'RoutedOutput',
    'RouterOutput',
]
