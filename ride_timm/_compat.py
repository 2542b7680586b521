"""Every private or unstable name of timm, torch and other packages that is used here, with the reason.

A new version may move any of them; `tests/test_compat.py` has a test for each, whose failure says what breaks.
`ride_timm.models` takes names from the module only when it calls them: where this module is the first to import timm,
that import registers the architectures while this module is half done.
"""

import logging
import sys
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import torch
from timm.data.mixup import mixup_target  # timm.data exports Mixup alone; targets of batches that are not mixed
from timm.data.readers.reader import (
    Reader,  # base of what timm's ImageDataset reads; `_filename` is its abstract method
)
from timm.models._features import feature_take_indices  # `indices` of forward_intermediates, as timm's models read it
from timm.models._hub import save_config_for_hf  # save_for_hf writes a card as well
from timm.models._input import update_model_args  # keeps what an export writes down true after a change of the network
from timm.models.resnet import make_blocks  # the stages of timm's ResNet, so that an expert is one
from timm.task import ClassificationEvaluator
from torch import Tensor, nn

__all__ = [
    'Evaluator', 'Float32Buffers', 'Reader', 'bfloat16_on_cpu', 'feature_take_indices', 'filter_checkpoint',
    'get_batches', 'get_forward_hooks', 'get_inner', 'get_version', 'hand_over_path', 'make_blocks', 'mixup_target',
    'quiet_shards', 'save_config_for_hf', 'set_batches', 'shard_names', 'update_model_args',
]  # fmt: skip


class Evaluator(ClassificationEvaluator):
    """timm's evaluator, whose treatment of a batch is private."""

    def prepare(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, C) in float32 and classes (B,) of the images that count."""
        prepared: tuple[Tensor, Tensor] = self._prepare(output, target)
        return prepared

    def add_loss(self, loss: Tensor, images: int) -> None:
        """Add the mean loss of a batch."""
        self._accumulate_loss(loss, images)


class Float32Buffers(nn.Module):
    """A module whose floating point buffers move with it, but stay float32 under `half()` and `bfloat16()`.

    PyTorch offers no other place than `_apply`, through which every move and cast goes.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'Float32Buffers':
        precise = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in precise.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = buffer.to(moved.device)
        return self


def bfloat16_on_cpu() -> list[str]:
    """The instructions by which the CPU multiplies bfloat16 numbers; without any, mixed precision is slower.

    The keys of `get_capabilities` are not documented: `avx512_bf16`, `amx_bf16`, `arm_bf16`, ...
    """
    return [name for name, value in torch.cpu.get_capabilities().items() if 'bf16' in name and value]


def get_inner(module: nn.Module) -> nn.Module | None:
    """What a module wraps: `torch.compile` keeps it as `_orig_mod`, DistributedDataParallel as `module`."""
    inner = getattr(module, '_orig_mod', None) or getattr(module, 'module', None)
    return inner if isinstance(inner, nn.Module) else None


def get_forward_hooks(module: nn.Module) -> MutableMapping[int, Callable[..., Any]]:
    """The forward hooks of a module by handle, which PyTorch hands out only when they are registered."""
    return module._forward_hooks


def filter_checkpoint(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint as a timm model takes it, position embeddings resampled.

    timm's families have their filters next to their classes, by convention all of one name.
    """
    fit = getattr(sys.modules[type(model).__module__], 'checkpoint_filter_fn', None)
    return dict(fit(state, model)) if fit is not None else state


def get_version(tensor: Tensor) -> int:
    """How often a tensor was written to in place, which PyTorch counts and does not document."""
    return int(tensor._version)


def get_batches(loader: Any) -> Any:
    """The DataLoader within timm's PrefetchLoader, whose attribute is not documented."""
    return loader.loader


def set_batches(loader: Any, batches: Any) -> None:
    """Put other batches into timm's PrefetchLoader, since `create_loader` takes no sampler."""
    loader.loader = batches


def shard_names(dataset: Any) -> list[str]:
    """File names of the shards of a webdataset split, as timm's reader expands them."""
    return [str(name) for name in dataset.reader.split_info.filenames]


@contextmanager
def quiet_shards(when: bool) -> Iterator[None]:
    """Keep timm's reader of shards from warning that there is no `_info.json`; the logger is known by its name only."""
    logger = logging.getLogger('timm.data.readers.reader_wds')
    before, logger.disabled = logger.disabled, when or logger.disabled
    try:
        yield
    finally:
        logger.disabled = before


def hand_over_path(image: Any, preprocess: Callable[[Any], Any]) -> None:
    """Let a gradio image hand over what `preprocess` makes of the upload, instead of a file that gradio wrote anew."""
    image.preprocess = preprocess
