"""RIDE on ResNet and ResNeXt with the ImageNet stem.

Paper: Long-tailed Recognition by Routing Diverse Distribution-Aware Experts, ICLR 2021, arXiv:2010.01809.
The trunk (stem, layer1, layer2) is shared; each expert has its own layer3, layer4 and head, by default at three
quarters of the width. Made of timm's ResNet blocks, with its state-dict names.
"""

from typing import TYPE_CHECKING, Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerType, get_act_layer, get_norm_layer
from timm.models import checkpoint_seq, generate_default_cfgs
from timm.models.resnet import BasicBlock, Bottleneck
from torch import nn

from ride_timm import _compat
from ride_timm.records.published import register_published

from ._factory import create_multi_expert, head_names, register_entry_point
from .multi_expert import Expert
from .stages import StageNet

__all__ = ['RideResNet']  # timm's register_model adds the entry points


class ResNetExpert(Expert):
    """One expert: its own last two stages and its head."""

    if TYPE_CHECKING:
        layer3: nn.Module
        layer4: nn.Module

    def __init__(self, stages: list[tuple[str, nn.Module]]) -> None:
        super().__init__()
        for name, stage in stages:
            self.add_module(name, stage)

    def forward_features(self, x: list[torch.Tensor]) -> torch.Tensor:
        """Final feature map of this expert, from that of the trunk."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer3, self.layer4], x[0], flatten=True)
        return self.layer4(self.layer3(x[0]))


class RideResNet(StageNet):
    """ResNet or ResNeXt trunk with K experts.

    Args:
        block: timm's BasicBlock or Bottleneck.
        layers: Blocks of each of the four stages.
        num_experts: Number K of experts.
        num_classes: Number C of classes; 0 removes the heads.
        in_chans: Channels of the images.
        global_pool: timm's type of pooling; '' for none (with `num_classes=0`).
        channels: Width of each of the four stages; the last two are an expert's.
        head: `cosine`, `biased_cosine` or `linear`.
        cardinality: Groups of the 3x3 convolutions (ResNeXt).
        base_width: Width of a group at 64 channels (ResNeXt).
        router: Whether to have a router; None means where the published weights, `local-dir:` or `hf-hub:` have one. A
            bare file (`checkpoint_path`) with a router needs True. A number of classes: only where the heads have it.
        router_top_k: How many of the largest running mean logits the router sees, at most `num_classes`.
        router_threshold: The probability above which an image goes on, when none is given.
        act_layer: Activation, by name or class.
        norm_layer: Normalisation, by name or class.
        drop_rate: Dropout before the heads.
        drop_path_rate: Stochastic depth at the last block.
        device: Where to create parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: Arguments that do not fit each other.
    """

    if TYPE_CHECKING:
        layer1: nn.Module
        layer2: nn.Module

    trunk_stages = ('layer1', 'layer2')
    expert_stages = ('layer3', 'layer4')

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        layers: tuple[int, ...],
        num_experts: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = 'avg',
        channels: tuple[int, ...] = (64, 128, 192, 384),
        head: str = 'cosine',
        cardinality: int = 1,
        base_width: int = 64,
        router: bool | int | None = None,
        router_top_k: int = 50,
        router_threshold: float = 0.5,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(layers) != 4 or len(channels) != 4:
            raise ValueError(f'layers={layers} and channels={channels} were given; each has one number for 4 stages.')
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        act: Any = get_act_layer(act_layer)
        norm: Any = get_norm_layer(norm_layer)
        stem = 64
        self.conv1 = nn.Conv2d(in_chans, stem, kernel_size=7, stride=2, padding=3, bias=False, **dd)
        self.bn1 = norm(stem, **dd)
        self.act1 = act(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        experts = []
        for k in range(num_experts):
            # make_blocks builds all four stages; the spare first halves of the later calls are thrown away
            stages, info = _compat.make_blocks(
                (block,) * 4,
                tuple(channels),
                tuple(layers),
                stem,
                cardinality=cardinality,
                base_width=base_width,
                act_layer=act,
                norm_layer=norm,
                drop_path_rate=drop_path_rate,
                **dd,
            )
            if k == 0:
                for name, stage in stages[:2]:
                    self.add_module(name, stage)
            experts.append(ResNetExpert(stages[2:]))
        self.experts = nn.ModuleList(experts)
        self.feature_info = [
            {'num_chs': stem, 'reduction': 2, 'module': 'act1'},
            *info[:2],
            *(i | {'num_chs': i['num_chs'] * num_experts, 'module': f'experts.{i["module"]}'} for i in info[2:]),
        ]
        self.num_features = int(self.feature_info[-1]['num_chs'])
        self.init_weights()
        self._init_heads(
            num_classes, in_chans, global_pool, head, router, router_top_k, router_threshold, drop_rate, dd
        )

    @torch.jit.ignore
    def init_weights(self) -> None:
        """He-normal convolutions over fan-out; the last normalisation of a block is not zeroed, as the reference."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')

    def forward_trunk(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Feature map (B, 512, H/8, W/8 for bottlenecks) of the shared stem and first two stages."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return [checkpoint_seq([self.layer1, self.layer2], x, flatten=True)]
        return [self.layer2(self.layer1(x))]


def resnet_cfg(num_experts: int, **kwargs: Any) -> dict[str, Any]:
    """Timm's cfg of these networks."""
    return {
        'url': '',
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 0.875,
        'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv1',
        'classifier': head_names(num_experts),
        'license': 'apache-2.0',
        'paper_ids': 'arXiv:2010.01809',
        **kwargs,
    }


_BACKBONES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    'ride_resnet10': ('ResNet-10', (2, 3, 4), {'block': BasicBlock, 'layers': (1, 1, 1, 1), 'router_top_k': 30}),
    'ride_resnet18': ('ResNet-18', (2, 3, 4), {'block': BasicBlock, 'layers': (2, 2, 2, 2)}),
    'ride_resnet50': ('ResNet-50', (2, 3, 4, 6), {'block': Bottleneck, 'layers': (3, 4, 6, 3)}),
    'ride_resnet101': ('ResNet-101', (2, 3, 4), {'block': Bottleneck, 'layers': (3, 4, 23, 3)}),
    'ride_resnet152': ('ResNet-152', (2, 3, 4), {'block': Bottleneck, 'layers': (3, 8, 36, 3)}),
    'ride_resnext50_32x4d': (
        'ResNeXt-50 32x4d',
        (2, 3, 4, 6),
        {'block': Bottleneck, 'layers': (3, 4, 6, 3), 'cardinality': 32, 'base_width': 4},
    ),
    'ride_resnext101_32x4d': (
        'ResNeXt-101 32x4d',
        (2, 3, 4),
        {'block': Bottleneck, 'layers': (3, 4, 23, 3), 'cardinality': 32, 'base_width': 4},
    ),
    'ride_resnext152_32x4d': (
        'ResNeXt-152 32x4d',
        (2, 3, 4),
        {'block': Bottleneck, 'layers': (3, 8, 36, 3), 'cardinality': 32, 'base_width': 4},
    ),
    'test_ride_resnet': (
        'tiny ResNet',
        (3,),
        {'block': BasicBlock, 'layers': (1, 1, 1, 1), 'channels': (16, 24, 32, 48)},
    ),
}
_VARIANTS = {f'{backbone}_{k}e': k for backbone, (_, counts, _) in _BACKBONES.items() for k in counts}

default_cfgs = generate_default_cfgs(
    register_published(
        {variant: resnet_cfg(k) for variant, k in _VARIANTS.items()}
        | {'test_ride_resnet_3e': resnet_cfg(3, input_size=(3, 160, 160), pool_size=(5, 5))}
    )
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> RideResNet:
    arch = _BACKBONES[variant.rpartition('_')[0]][2]
    return create_multi_expert(RideResNet, variant, pretrained, arch, **kwargs)


for _variant, _k in _VARIANTS.items():
    _title = _BACKBONES[_variant.rpartition('_')[0]][0]
    register_entry_point(__name__, _variant, f'RIDE {_title} with {_k} experts of reduced width.', _create)
