"""The networks; importing this registers them in timm."""

from . import ride_zoo as ride_zoo
from .heads import CosineLinear as CosineLinear
from .multi_expert import MultiExpertNet as MultiExpertNet
from .multi_expert import count_experts as count_experts
from .multi_expert import expert_logits as expert_logits
from .ride_backbone import RideBackbone as RideBackbone
from .ride_backbone import rideify as rideify
from .ride_resnet import RideResNet as RideResNet
from .ride_resnet_cifar import RideResNetCifar as RideResNetCifar
from .router import ExpertRouter as ExpertRouter
from .routing import RoutedOutput as RoutedOutput
from .routing import RouterOutput as RouterOutput

__all__ = [
    'CosineLinear',
    'ExpertRouter',
    'MultiExpertNet',
    'RideBackbone',
    'RideResNet',
    'RideResNetCifar',
    'RoutedOutput',
    'RouterOutput',
    'count_experts',
    'expert_logits',
    'rideify',
]
