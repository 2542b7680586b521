"""The trained weights that a training without `--init` is initialised from.

The first line of `STARTS` that fits the images and the hardware, and whose weights are available, is taken. A named
--model is initialised from its own pretrained weights instead.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from timm.utils import is_primary

from ride_timm.errors import RideError
from ride_timm.inference.hub import UnreachableError
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.network import check_architecture, known_cfg
from ride_timm.models.ride_zoo import backbone_of
from ride_timm.records.published import default_tag
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.initial import counterpart, is_multi_expert, plain_backbone, read_initial
from ride_timm.training.picks import SMALL_IMAGE, replace

__all__ = ['STARTS', 'Start', 'choose_start', 'measured_rate', 'own_weights']

_logger = logging.getLogger(__name__)

PACKAGED = 'ride_resnet32_3e.balpoe_cifar100lt'
"""In every wheel, 3 MB."""


class Start(NamedTuple):
    """Weights to start from.

    Attributes:
        weights: As `--init` takes them; those of a plain backbone seed the trunk and three experts.
        why: The reason, for the log.
        most: Pixels of the images up to which they are taken.
        device: The kind of device that they are for; None for any.
        sizes: Least and largest `--img-size`; None for the size that the weights were trained at.
        rate: Peak learning rate of AdamW for a batch of 128, where it was measured.
    """

    weights: str
    why: str
    most: float = math.inf
    device: str | None = None
    sizes: tuple[int, int] | None = None
    rate: float | None = None


STARTS = (
    # benchmarks/own_data.py: class mean 48.7 % from these, 14.8 % from random weights, 38.2 % from one plain ResNet-32
    Start(PACKAGED, 'trained on small images', most=SMALL_IMAGE),
    # no squeeze-and-excitation, no SiLU: twice the images a second of EfficientNet-B0 on a CPU; the rate is that of
    # benchmarks/backbones.py
    Start('tf_efficientnet_lite0.in1k', 'of ImageNet, fast on a CPU', device='cpu', sizes=(128, 224), rate=8e-3),
    Start('convnext_nano.in12k_ft_in1k', 'of ImageNet-12k, fast on a GPU', device='cuda', sizes=(128, 224)),
    # always there; images are scaled to its 32 pixels: class mean 48.7 % there and 25.9 % at 64 pixels
    Start(PACKAGED, 'in the package'),
)  # fmt: skip


def choose_start(
    config: ResolvedConfig, side: int, before: Mapping[str, Any] | None = None
) -> tuple[ResolvedConfig, TrainedNet | None]:
    """Pick the weights to initialise from and what follows from them; all processes take the same.

    Args:
        config: The options so far, without --init.
        side: Pixels of the images.
        before: Settings of the run to continue, whose weights are kept.

    Returns:
        The options with `init`, `model` and `img_size`, and the network; None for random weights.

    Raises:
        RideError: The architecture is unknown, or the weights of the run to continue are not available.
    """
    if config.from_scratch or (config.pretrained and config.model):
        return config, None
    if config.model:
        check_architecture(config.model)
    init: TrainedNet | None = None
    if before is not None:
        config = config.but(model=config.model or before.get('model'))
        start = _known(str(before['init']), 'as the checkpoint was trained') if before.get('init') else None
    else:
        start, init = _first_available(config, side) if is_primary(config) else (None, None)
        start = _from_primary(config, start)
    if start is None:
        return config, None
    init = init or _read(start.weights, config)
    config = config.but(pretrained=False)  # which no --model was named for
    config = replace(config, 'init', start.weights, f'{start.why}; --from-scratch for random weights')
    config = replace(config, 'model', _architecture(start), 'that of these weights')
    if start.sizes is not None and 'img_size' not in config.model_kwargs:
        least, most = start.sizes
        size = min(max(-(-side // 32) * 32, least), most)
        config = replace(config, 'img_size', size, f'images of about {side} pixels')
    return config, init


def _known(weights: str, why: str) -> Start:
    """The line of these weights, whatever the images, or a new one."""
    return next((start for start in STARTS if start.weights == weights), Start(weights, why))._replace(why=why)


def measured_rate(weights: str | None) -> float | None:
    """The peak learning rate for a batch of 128 that suits weights; None where none was measured.

    Args:
        weights: As `--init` takes them.
    """
    return next((start.rate for start in STARTS if start.weights == weights), None)


def _fitting(config: ResolvedConfig, side: int) -> Iterator[Start]:
    """The lines that fit, up to the first whose weights are always there."""
    device = torch.device(config.device or 'cpu').type
    for start in STARTS:
        if side <= start.most and start.device in (None, device):
            yield start
            if start.weights == PACKAGED:
                return


def _architecture(start: Start) -> str:
    return counterpart(start.weights.partition('.')[0])


def _first_available(config: ResolvedConfig, side: int) -> tuple[Start | None, TrainedNet | None]:
    """The first start whose weights are available, and these; warnings name those that are not."""
    if config.model:
        own = own_weights(config.model, config.model_kwargs)
        if own is None:
            _logger.warning(f'There are no pretrained weights for {config.model}; training starts from random ones.')
        starts = [_known(own, f'those of {config.model}')] if own else []
    else:
        starts = list(_fitting(config, side))
    for start in starts:
        try:
            return start, _read(start.weights, config)
        except UnreachableError:
            why = 'are not in the cache and the Hugging Face Hub cannot be reached'
        except RideError as error:
            why = f'cannot be loaded: {error}'.rstrip('.')
        rest = 'random' if start is starts[-1] else 'other'
        _logger.warning(f'The weights {start.weights} {why}; the training starts from {rest} ones.')
    return None, None


def own_weights(model: str, model_kwargs: Mapping[str, Any]) -> str | None:
    """The name of the pretrained weights of an architecture, or of the plain one that seeds it.

    Args:
        model: Its name, with a tag or without.
        model_kwargs: Its arguments, of which `ride` has a backbone.
    """
    bare = model.partition('.')[0]
    if bare == 'ride':
        backbone = model_kwargs.get('backbone')
        return str(backbone) if backbone else None
    if is_multi_expert(model):
        tested = next((start.weights for start in STARTS if start.weights.partition('.')[0] == model), None)
        if tested or '.' in model or default_tag(bare):
            return tested or model
        plain = backbone_of(bare) or plain_backbone(bare)
        return plain if plain and _has_weights(plain) else None
    return model if _has_weights(model) else None


def _has_weights(model: str) -> bool:
    cfg = known_cfg(model)
    return ':' in model or bool(cfg is not None and cfg.has_weights)


def _read(source: str, config: ResolvedConfig) -> TrainedNet:
    kwargs = {key: value for key, value in config.model_kwargs.items() if not key.startswith('router')}
    return read_initial(source, None if config.model == source else config.model, model_kwargs=kwargs)


def _from_primary(config: ResolvedConfig, value: Any) -> Any:
    """What the first process has, in all of them."""
    if not config.distributed:
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values, device=torch.device(str(config.device)))
    return values[0]
