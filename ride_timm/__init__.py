"""RIDE multi-expert networks for long-tailed image recognition, as timm models.

Importing the package registers the architectures, whether timm is imported before or after it:
`timm.create_model('ride_resnet50_4e')`. `ride_timm.losses`, `.data`, `.models`, `.tasks` and `.metrics` are imported
when they are first asked for.
"""

import importlib as _importlib
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from pathlib import Path as _Path

    from torch import nn as _nn

    from . import data as data
    from . import losses as losses
    from . import metrics as metrics
    from . import models as models
    from . import tasks as tasks

from .errors import RideError as RideError
from .registration import explained as _explained
from .registration import register as _register
from .version import __version__ as __version__

__all__ = ['RideError', '__version__', 'data', 'from_pretrained', 'losses', 'metrics', 'models', 'tasks']

_register()


def __getattr__(name: str) -> _Any:
    if name in __all__:
        with _explained():
            return _importlib.import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


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
    """Load a trained network from wherever it lies, in eval mode.

    Args:
        source: The name of a published weight (`ride_resnet32_3e.ride_cifar100lt`), `hf-hub:ORG/NAME[@REVISION]`, a
            folder (exported, of a run, or `local-dir:DIR`) or a checkpoint of `ride-timm train`.
        num_classes: Another number of classes C, with new heads (C features each); None keeps them.
        cache_dir: Folder of the Hub's cache, the client's by default.
        token: For private repositories; the one of `hf auth login` by default.
        sha256: Hash by file name (`model.safetensors`, `config.json`), which the Hub's files must have.
        **model_kwargs: Further arguments of the architecture, such as `router=False` or `in_chans=1`.

    Returns:
        The network: images (B, 3, H, W) to mean logits (B, C). `pretrained_cfg['label_names']` names the classes.

    Raises:
        RideError: It cannot be had: unknown architecture, repository or revision, private repository, no connection,
            a hash that is not the promised one. The sentence says what to do.
    """
    from .engine.loading import load_model

    hub: dict[str, _Any] = {'cache_dir': cache_dir, 'token': token, 'sha256': sha256}
    return load_model(source, num_classes=num_classes, model_kwargs=model_kwargs, **hub).model
