"""RIDE multi-expert networks for long-tailed image recognition, as timm models.

Importing the package registers the architectures, whether timm is imported before or after it:
`timm.create_model('ride_resnet50_4e')`. `__all__` lists the public API; each name is imported, and torch with
it, on first use. All of it works with a plain `DataLoader`, and with any timm classifier as a network of one expert.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from pathlib import Path as _Path

    from torch import nn as _nn

    from ride_timm.inference.prior import logit_adjustment as logit_adjustment
    from ride_timm.training.router import train_router as train_router

    from . import data as data
    from . import evaluation as evaluation
    from . import losses as losses
    from . import models as models
    from . import tasks as tasks
    from .data.counts import class_counts as class_counts
    from .evaluation.scores import evaluate as evaluate
    from .evaluation.thresholds import choose_threshold as choose_threshold
    from .inference.calibration import calibrate as calibrate
    from .inference.load import load as load
    from .inference.predict import predict as predict
    from .losses.factory import create_loss as create_loss
    from .models.ride_backbone import rideify as rideify
    from .training.config import TrainConfig as TrainConfig
    from .training.run import train as train

from .errors import RideError as RideError
from .registration import explained as _explained
from .registration import register as _register
from .version import __version__ as __version__

__all__ = [
    'RideError',
    'TrainConfig',
    '__version__',
    'calibrate',
    'choose_threshold',
    'class_counts',
    'create_loss',
    'data',
    'evaluate',
    'evaluation',
    'from_pretrained',
    'load',
    'logit_adjustment',
    'losses',
    'models',
    'predict',
    'rideify',
    'tasks',
    'train',
    'train_router',
]

_FUNCTIONS = {
    'TrainConfig': 'training.config:TrainConfig',
    'calibrate': 'inference.calibration:calibrate',
    'choose_threshold': 'evaluation.thresholds:choose_threshold',
    'class_counts': 'data.counts:class_counts',
    'create_loss': 'losses.factory:create_loss',
    'evaluate': 'evaluation.scores:evaluate',
    'load': 'inference.load:load',
    'logit_adjustment': 'inference.prior:logit_adjustment',
    'predict': 'inference.predict:predict',
    'rideify': 'models.ride_backbone:rideify',
    'train': 'training.run:train',
    'train_router': 'training.router:train_router',
}
"""Where the functions of the API are: module and name in it."""

_register()


def __getattr__(name: str) -> _Any:
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    module, _, function = _FUNCTIONS.get(name, name).partition(':')
    with _explained():
        found: _Any = _importlib.import_module(f'{__name__}.{module}')
    if function:
        found = getattr(found, function)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def from_pretrained(
    source: '_Path | str',
    *,
    num_classes: int | None = None,
    cache_dir: '_Path | str | None' = None,
    token: str | bool | None = None,
    sha256: dict[str, str] | None = None,
    **model_kwargs: _Any,
) -> '_nn.Module':
    """Load a trained network, in eval mode, from a name, the Hub, a folder or a checkpoint.

    Args:
        source: The name of a published network (`ride_resnet32_3e.ride_cifar100lt`), `hf-hub:ORG/NAME[@REVISION]`, a
            folder (packaged, of a run, or `local-dir:DIR`) or a checkpoint of `ride-timm train`.
        num_classes: Another number of classes C, with new heads (C features each); None keeps them.
        cache_dir: Folder of the Hub's cache, the client's by default.
        token: For private repositories; the one of `hf auth login` by default.
        sha256: Hash by file name (`model.safetensors`, `config.json`), which the Hub's files must have.
        **model_kwargs: Further arguments of the architecture, such as `router=False` or `in_chans=1`.

    Returns:
        The network: images (B, 3, H, W) to mean logits (B, C). `pretrained_cfg['label_names']` names the classes.

    Raises:
        RideError: It cannot be loaded: unknown architecture, repository or revision, private repository, no connection,
            a hash that is not the promised one. The sentence says what to do.

    Example:
        >>> import ride_timm, torch
        >>> model = ride_timm.from_pretrained('ride_resnet32_3e.ride_cifar100lt')
        >>> model(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 100])
    """
    from .inference.load import load as load_network

    hub: dict[str, _Any] = {'cache_dir': cache_dir, 'token': token, 'sha256': sha256}
    return load_network(source, num_classes=num_classes, model_kwargs=model_kwargs, **hub).model
