"""RIDE on the three-stage ResNet for 32x32 images.

Paper: Long-tailed Recognition by Routing Diverse Distribution-Aware Experts, ICLR 2021, arXiv:2010.01809; the backbone
is that of the CIFAR experiments of Deep Residual Learning, arXiv:1512.03385, section 4.2.
The trunk (stem, layer1) is shared; each expert has its own layer2, layer3 and head, by default at three quarters of
the width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerType, get_act_layer, get_norm_layer
from timm.models import checkpoint_seq, generate_default_cfgs
from timm.models.resnet import BasicBlock
from torch import nn

from ride_timm.records.published import register_published

from ._factory import create_multi_expert, expert_count, head_names, register_entry_point
from .multi_expert import Expert
from .stages import StageNet

__all__ = ['RideResNetCifar']  # timm's register_model adds the entry points

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2023, 0.1994, 0.2010)


class PadShortcut(nn.Module):
    """Option-A shortcut: every `stride`-th pixel, and zero channels on both sides, the odd one behind.

    Source: arXiv:1512.03385, section 4.1, option A.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        if out_channels < in_channels:
            raise ValueError(
                f'A stage of {out_channels} channels follows one of {in_channels}; channels= must not fall, because '
                'the shortcuts only pad.'
            )
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.behind = out_channels - in_channels - self.before

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Shape (B, out_channels, H / stride, W / stride) from (B, in_channels, H, W)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], [0, 0, 0, 0, self.before, self.behind])


class CifarExpert(Expert):
    """One expert: its own last two stages and its head."""

    def __init__(self, layer2: nn.Module, layer3: nn.Module) -> None:
        super().__init__()
        self.layer2 = layer2
        self.layer3 = layer3

    def forward_features(self, x: list[torch.Tensor]) -> torch.Tensor:
        """Final feature map of this expert, from that of the trunk."""
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq([self.layer2, self.layer3], x[0], flatten=True)
        return self.layer3(self.layer2(x[0]))


class RideResNetCifar(StageNet):
    """Three-stage ResNet trunk for 32x32 images with K experts.

    Args:
        layers: Blocks of each of the three stages.
        num_experts: Number K of experts.
        num_classes: Number C of classes; 0 removes the heads.
        in_chans: Channels of the images.
        global_pool: timm's type of pooling; '' for none (with `num_classes=0`).
        channels: Width of each of the three stages; the last two are an expert's.
        head: `cosine`, `biased_cosine` or `linear`.
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

    trunk_stages = ('layer1',)
    expert_stages = ('layer2', 'layer3')

    def __init__(
        self,
        layers: tuple[int, ...],
        num_experts: int,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = 'avg',
        channels: tuple[int, ...] = (16, 24, 48),
        head: str = 'cosine',
        router: bool | int | None = None,
        router_top_k: int = 30,
        router_threshold: float = 0.5,
        act_layer: LayerType = nn.ReLU,
        norm_layer: LayerType = nn.BatchNorm2d,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if len(layers) != 3 or len(channels) != 3:
            raise ValueError(f'layers={layers} and channels={channels} were given; each has one number for 3 stages.')
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        block_args: dict[str, Any] = {
            'act_layer': get_act_layer(act_layer),
            'norm_layer': get_norm_layer(norm_layer),
            **dd,
        }
        drop_rates = _drop_path_rates(drop_path_rate, layers)
        stem = channels[0]
        self.conv1 = nn.Conv2d(in_chans, stem, kernel_size=3, padding=1, bias=False, **dd)
        self.bn1 = block_args['norm_layer'](stem, **dd)
        self.act1 = block_args['act_layer'](inplace=True)
        self.maxpool = nn.Identity()
        self.layer1 = _stage(stem, channels[0], 1, drop_rates[0], block_args)
        self.experts = nn.ModuleList(
            CifarExpert(
                _stage(channels[0], channels[1], 2, drop_rates[1], block_args),
                _stage(channels[1], channels[2], 2, drop_rates[2], block_args),
            )
            for _ in range(num_experts)
        )
        self.feature_info = [
            {'num_chs': stem, 'reduction': 1, 'module': 'act1'},
            {'num_chs': channels[0], 'reduction': 1, 'module': 'layer1'},
            {'num_chs': channels[1] * num_experts, 'reduction': 2, 'module': 'experts.layer2'},
            {'num_chs': channels[2] * num_experts, 'reduction': 4, 'module': 'experts.layer3'},
        ]
        self.num_features = int(self.feature_info[-1]['num_chs'])
        self.init_weights()
        self._init_heads(
            num_classes, in_chans, global_pool, head, router, router_top_k, router_threshold, drop_rate, dd
        )

    @torch.jit.ignore
    def init_weights(self) -> None:
        """He-normal convolutions over fan-in, as the reference."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward_trunk(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Feature map (B, channels[0], H, W) of the shared stem and first stage."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return [checkpoint_seq(self.layer1, x)]
        return [self.layer1(x)]


def _drop_path_rates(last: float, layers: tuple[int, ...]) -> list[list[float]]:
    """Stochastic depth of each block, rising linearly to `last`, by stage."""
    depth = iter(range(sum(layers)))
    return [[last * next(depth) / max(sum(layers) - 1, 1) for _ in range(blocks)] for blocks in layers]


def _stage(
    in_channels: int, channels: int, stride: int, drop_rates: list[float], block_args: dict[str, Any]
) -> nn.Sequential:
    blocks = []
    for rate in drop_rates:
        shortcut = PadShortcut(in_channels, channels, stride) if stride > 1 or in_channels != channels else None
        drop_path = DropPath(rate) if rate > 0.0 else None
        blocks.append(BasicBlock(in_channels, channels, stride, shortcut, drop_path=drop_path, **block_args))
        in_channels, stride = channels, 1
    return nn.Sequential(*blocks)


def cifar_cfg(num_experts: int, **kwargs: Any) -> dict[str, Any]:
    """Timm's cfg of these networks."""
    return {
        'url': '',
        'num_classes': 100,
        'input_size': (3, 32, 32),
        'pool_size': (8, 8),
        'crop_pct': 1.0,
        'interpolation': 'bilinear',
        'mean': CIFAR_MEAN,
        'std': CIFAR_STD,
        'first_conv': 'conv1',
        'classifier': head_names(num_experts),
        'license': 'apache-2.0',
        'paper_ids': 'arXiv:2010.01809',
        **kwargs,
    }


_VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    'ride_resnet32_1e': (
        'The plain ResNet-32 that the others are compared with: full width, linear head.',
        {'layers': (5, 5, 5), 'channels': (16, 32, 64), 'head': 'linear'},
    ),
    **{
        f'ride_resnet32_{k}e': (f'RIDE ResNet-32 with {k} experts of reduced width.', {'layers': (5, 5, 5)})
        for k in (2, 3, 4, 6)
    },
    'test_ride_resnet_cifar_3e': ('A tiny network with 3 experts, for tests.', {'layers': (1, 1, 1)}),
}

default_cfgs = generate_default_cfgs(
    register_published({variant: cifar_cfg(expert_count(variant)) for variant in _VARIANTS})
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> RideResNetCifar:
    return create_multi_expert(RideResNetCifar, variant, pretrained, _VARIANTS[variant][1], **kwargs)


for _variant, (_doc, _) in _VARIANTS.items():
    register_entry_point(__name__, _variant, _doc, _create)
