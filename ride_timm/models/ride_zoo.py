"""Popular backbones by name: `ride_<backbone>_2e` and `_3e`, which `timm.create_model` knows."""

from typing import Any

from timm.models import generate_default_cfgs, get_pretrained_cfg

from ride_timm.records.published import register_published

from ._factory import check_fixed, expert_count, register_entry_point
from .ride_backbone import RideBackbone, backbone_cfg, create_on_backbone

__all__ = ['BACKBONES', 'backbone_of']  # register_entry_point adds the names

BACKBONES = {
    'caformer_s18.sail_in22k_ft_in1k': 'CAFormer-S18',
    'convnext_nano.in12k_ft_in1k': 'ConvNeXt-Nano',
    'convnext_tiny.in12k_ft_in1k': 'ConvNeXt-Tiny',
    'convnext_small.in12k_ft_in1k': 'ConvNeXt-Small',
    'convnextv2_nano.fcmae_ft_in22k_in1k': 'ConvNeXt V2 Nano',
    'convnextv2_tiny.fcmae_ft_in22k_in1k': 'ConvNeXt V2 Tiny',
    'deit3_small_patch16_224.fb_in22k_ft_in1k': 'DeiT III Small',
    'efficientnet_b0.ra_in1k': 'EfficientNet-B0',
    'eva02_tiny_patch14_224.mim_in22k': 'EVA-02 Tiny',
    'eva02_small_patch14_224.mim_in22k': 'EVA-02 Small',
    'fastvit_t8.apple_in1k': 'FastViT-T8',
    'hiera_tiny_224.mae_in1k_ft_in1k': 'Hiera-Tiny',
    'maxvit_tiny_tf_224.in1k': 'MaxViT-Tiny',
    'mobilenetv4_conv_small.e2400_r224_in1k': 'MobileNetV4 Conv Small',
    'mobilenetv4_conv_medium.e500_r224_in1k': 'MobileNetV4 Conv Medium',
    'mobilevit_s.cvnets_in1k': 'MobileViT-S',
    'regnety_008.pycls_in1k': 'RegNetY-800MF',
    'resnet18d.ra2_in1k': 'ResNet-18-D',
    'resnet50d.ra2_in1k': 'ResNet-50-D',
    'swin_tiny_patch4_window7_224.ms_in22k_ft_in1k': 'Swin-Tiny',
    'swinv2_tiny_window8_256.ms_in1k': 'Swin V2 Tiny',
    'tf_efficientnet_lite0.in1k': 'EfficientNet-Lite0',
    'tf_efficientnetv2_s.in21k_ft_in1k': 'EfficientNetV2-S',
    'vit_tiny_patch16_224.augreg_in21k_ft_in1k': 'ViT-Ti/16',
    'vit_small_patch16_224.augreg_in21k_ft_in1k': 'ViT-S/16',
    'vit_base_patch16_224.augreg2_in21k_ft_in1k': 'ViT-B/16',
    'vit_small_patch14_dinov2.lvd142m': 'DINOv2 ViT-S/14',
    'vit_base_patch14_dinov2.lvd142m': 'DINOv2 ViT-B/14',
    'vit_small_patch16_dinov3.lvd1689m': 'DINOv3 ViT-S/16',
    'vit_base_patch16_dinov3.lvd1689m': 'DINOv3 ViT-B/16',
    'vit_base_patch16_clip_224.openai': 'CLIP ViT-B/16',
    'vit_base_patch16_siglip_224.v2_webli': 'SigLIP 2 ViT-B/16',
}
"""timm's name of each backbone, with the tag that `pretrained=True` starts from, and what its authors call it."""

_VARIANTS = {f'ride_{name.partition(".")[0]}_{k}e': name for name in BACKBONES for k in (2, 3)}

default_cfgs = generate_default_cfgs(
    register_published(
        {variant: backbone_cfg(get_pretrained_cfg(name), expert_count(variant)) for variant, name in _VARIANTS.items()}
    )
)


def backbone_of(architecture: str) -> str | None:
    """Name and tag of the timm model that an architecture with a name here is built on; None for any other."""
    return _VARIANTS.get(architecture)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> RideBackbone:
    check_fixed(variant, kwargs, 'num_experts', 'backbone')
    return create_on_backbone(variant, pretrained, _VARIANTS[variant], expert_count(variant), **kwargs)


for _variant, _name in _VARIANTS.items():
    register_entry_point(
        __name__,
        _variant,
        f'RIDE {BACKBONES[_name]} with {expert_count(_variant)} experts, seeded from {_name} by `pretrained=True`.',
        _create,
    )
