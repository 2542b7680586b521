"""The weights that a training begins with: `--init`."""

import argparse
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.models import adapt_input_conv, load_state_dict
from torch import nn

from ride_timm.engine.averaging import is_averaged
from ride_timm.engine.checkpoint import misfit, read_checkpoint
from ride_timm.engine.loading import FILE_SUFFIXES, file_in_folder, load_model, load_trained
from ride_timm.errors import RideError
from ride_timm.hub import UnreachableError
from ride_timm.inference.network import DATA_CONFIG_KEYS, unreachable
from ride_timm.models import MultiExpertNet
from ride_timm.models.checkpoint import checkpoint_filter_fn
from ride_timm.models.seeding import perturb_experts
from ride_timm.published import SHARD_INDEX
from ride_timm.records.kinds import CONFIG_SCHEMA
from ride_timm.records.runs import read_run
from ride_timm.records.schema import read_object
from ride_timm.records.tensors import check_archive

__all__ = ['Initial', 'counterpart', 'load_initial', 'read_initial', 'read_measured', 'reorder_experts', 'weights_file']

_logger = logging.getLogger(__name__)


@dataclass
class Initial:
    """A trained network to begin with.

    Attributes:
        path: The file.
        model: The network, as it was trained.
        name: Its architecture.
        class_names: Names of its C classes, None if the file does not say.
        class_counts: Training images of each, None if the file does not say.
        ride: What the file says of the training: loss, tau, held-out images.
        settings: Arguments of the training, empty if the file has none.
    """

    path: Path
    model: Any
    name: str
    class_names: tuple[str, ...] | None
    class_counts: tuple[int, ...] | None
    ride: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def prepares_images_as(self) -> dict[str, Any]:
        """Size, normalisation and crop of its images, as in a `pretrained_cfg`."""
        return {key: self.model.pretrained_cfg[key] for key in DATA_CONFIG_KEYS if key in self.model.pretrained_cfg}


def weights_file(path: str | Path) -> Path:
    """The file of weights that a path names: itself, or the one in a run's or an exported folder.

    Args:
        path: The file or folder.

    Raises:
        RideError: The folder is of neither kind.
    """
    return file_in_folder(Path(path)) if Path(path).is_dir() else Path(path)


def read_initial(
    path: str | Path, model: str | None = None, use_ema: bool = False, model_kwargs: dict[str, Any] | None = None
) -> Initial:
    """Read the weights to begin with, without running anything in a file.

    Args:
        path: A run's folder or a `.pth.tar` of it, a `.safetensors`, an exported folder, `hf-hub:ORG/NAME`, the name
            of one of our published weights, that of any pretrained network of timm's, or a file of a plain timm
            ResNet's weights.
        model: The architecture, where the file does not name it.
        use_ema: Take the moving average of the weights.
        model_kwargs: Arguments of the architecture, over those in the file.

    Raises:
        RideError: The file is missing, damaged, foreign, or does not fit the architecture.
    """
    if not Path(path).exists():
        if is_name(str(path)):
            return _read_named(str(path), model, model_kwargs)
        raise RideError(
            f'There is no checkpoint {path}, and no network of that name; give a run or a file of weights that is '
            'there, hf-hub:ORG/NAME, or the name of pretrained weights, such as resnet50.a1_in1k.'
        )
    file = weights_file(path)
    plain = _read_plain(file, model)
    if plain is not None:
        return plain
    try:
        ride, settings = _records(file, use_ema)
    except RideError:
        if use_ema or _plain_state(file) is None:
            raise
        raise RideError(
            f'{file} holds the weights of a plain ResNet and does not say of which; add the --model that they are to '
            'seed, such as ride_resnet50_3e for those of a resnet50.'
        ) from None
    options = argparse.Namespace(
        checkpoint=str(file), model=model, use_ema=use_ema, num_classes=None, model_kwargs=dict(model_kwargs or {})
    )
    found = load_trained(options)
    return Initial(file, found.model, found.name, found.class_names, found.class_counts, ride, settings)


def read_measured(run: Path) -> Initial:
    """The network that the figures of a finished run are of: its averaged weights where it keeps them.

    Args:
        run: The run's folder.

    Raises:
        RideError: As `read_run` and `read_initial`.
    """
    return read_initial(run / 'last.pth.tar', use_ema=is_averaged(read_run(run).args or {}))


def reorder_experts(init: Initial, order: Sequence[int]) -> None:
    """Put the experts into the order in which a router is to ask them.

    All of them together answer as before, since their mean has no order. Where experts are trained for different class
    priors, as BalPoE's and SADE's are, the first alone must be good for all classes if images are to stop there: with
    BalPoE's tau = (0, 1, 2) that is expert 1, whose logits alone are unbiased (arXiv:2206.05260, section 3).

    Args:
        init: A trained multi-expert network of K experts; changed in place, its router, which knew another order, goes.
        order: The numbers 0..K-1, the first expert first.

    Raises:
        RideError: `order` does not name every expert once.
    """
    experts = init.model.experts
    if sorted(order) != list(range(len(experts))):
        raise RideError(
            f'--expert-order {" ".join(map(str, order))} was given and {init.path} has {len(experts)} experts; name '
            f'each of 0 to {len(experts) - 1} once.'
        )
    init.model.experts = nn.ModuleList(experts[index] for index in order)
    init.model.router = None

    def ordered(values: Any) -> Any:
        return type(values)(values[index] for index in order)

    if init.ride.get('tau') is not None:
        init.ride['tau'] = ordered(init.ride['tau'])
    if isinstance((init.ride.get('loss_kwargs') or {}).get('tau'), (list, tuple)):
        init.ride['loss_kwargs'] = init.ride['loss_kwargs'] | {'tau': ordered(init.ride['loss_kwargs']['tau'])}


def is_name(text: str) -> bool:
    """Whether a text names weights rather than a file."""
    if text.startswith(('hf-hub:', 'local-dir:')):
        return True
    return timm.is_model(text.partition('.')[0]) and Path(text).suffix not in FILE_SUFFIXES


def _read_named(name: str, wanted: str | None, model_kwargs: dict[str, Any] | None) -> Initial:
    try:
        found = load_model(name, model_kwargs=model_kwargs)
    except UnreachableError:
        raise unreachable(name, wanted or counterpart(name.partition('.')[0])) from None
    model: Any = found.model
    ours = isinstance(model, MultiExpertNet)
    architecture = model.pretrained_cfg['architecture']
    # other data have other labels, and those of ImageNet are no folder names
    names, counts = (found.class_names, found.class_counts) if ours else (None, None)
    return Initial(Path(name), model, architecture, names, counts, dict(found.about))


def _read_plain(file: Path, model: str | None) -> Initial | None:
    """A file of a plain ResNet's weights, where the network to train has that one's multi-expert form."""
    backbone = plain_backbone(model)
    if backbone is None:
        return None
    state = _plain_state(file)
    if state is None:
        return None
    head, stem = state.get('fc.weight'), state['conv1.weight']
    classes = 0 if head is None else len(head)
    net = timm.create_model(backbone, num_classes=classes, in_chans=stem.shape[1]).eval()
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise RideError(
            f'{file} does not fit {backbone}, the plain form of {model} ({misfit(error)}); give the weights of a '
            f'{backbone}, or the --model that is built like these.'
        ) from None
    return Initial(file, net, backbone, None, None)


def _plain_state(file: Path) -> dict[str, Any] | None:
    """The tensors of a file of a plain ResNet's weights, None for any other."""
    try:
        check_archive(file)
        state: dict[str, Any] = load_state_dict(str(file), device='cpu', weights_only=True)
    except Exception:  # whatever is wrong with the file, its reader as a checkpoint of ours has the sentence
        return None
    if any(key.startswith('experts.') for key in state) or 'conv1.weight' not in state:
        return None
    return state


def plain_backbone(name: str | None) -> str | None:
    """The architecture of timm's that a multi-expert one is built like: `resnet50` for `ride_resnet50_4e`."""
    match = re.fullmatch(r'ride_(resne[x]?t\d+(?:_32x4d)?)_\d+e', (name or '').partition('.')[0])
    return match.group(1) if match and timm.is_model(match.group(1)) else None


def counterpart(name: str) -> str:
    """The network with three experts that a plain one seeds, itself where there is none."""
    return f'ride_{name}_3e' if timm.is_model(f'ride_{name}_3e') else name


def load_initial(model: Any, init: Initial, keep_heads: bool, noise: float = 0.0, seed: int = 0) -> None:
    """Copy the weights into a network; a router that only the network has stays as it was drawn.

    Args:
        model: The network to train; its `pretrained_cfg` learns how the images were prepared.
        init: The weights to begin with; a plain ResNet's seed the trunk and every expert.
        keep_heads: Copy the classification heads too.
        noise: Relative size of what sets experts with the same weights apart.
        seed: Of that noise.

    Raises:
        RideError: The weights do not fit the network.
    """
    state = init.model.state_dict()
    own = model.state_dict()
    stem = state.get('conv1.weight')
    if stem is not None and stem.shape[1] != model.in_chans:
        state['conv1.weight'] = adapt_input_conv(model.in_chans, stem)
    try:
        if isinstance(model, MultiExpertNet):
            state = checkpoint_filter_fn(state, model)
        if not keep_heads:
            state = {key: value for key, value in state.items() if not _is_head(key, model)}
            state |= {key: value for key, value in own.items() if _is_head(key, model)}
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RideError(
            f'The weights of --init {init.path} do not fit the network ({misfit(error)}); keep its options.'
        ) from None
    if isinstance(model, MultiExpertNet) and not isinstance(init.model, MultiExpertNet):
        perturb_experts(model.experts, noise, seed)
    model.pretrained_cfg.update(init.prepares_images_as())


def _is_head(key: str, model: nn.Module) -> bool:
    names: Any = model.pretrained_cfg.get('classifier') or ()  # type: ignore[union-attr,operator]
    return any(key.startswith(f'{name}.') for name in ((names,) if isinstance(names, str) else names))


def _records(file: Path, use_ema: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file says of its training: the `ride` entry and the arguments."""
    if file.suffix != '.safetensors' and file.name != SHARD_INDEX:
        checkpoint = read_checkpoint(file)
        if use_ema and 'state_dict_ema' not in checkpoint:
            raise RideError(f'{file} holds no moving average; leave --init-ema out.')
        return checkpoint.get('ride') or {}, checkpoint.get('args') or {}
    if use_ema:
        raise RideError(f'{file} holds one set of weights; leave --init-ema out.')
    beside = file.with_name('config.json')
    config = read_object(beside, CONFIG_SCHEMA) if beside.is_file() else {}
    return config.get('ride') or {}, {}
