"""The network that a training is initialised from: `--init`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from timm.models import adapt_input_conv, load_state_dict
from torch import Tensor, nn

from ride_timm._compat import filter_checkpoint
from ride_timm.errors import RideError
from ride_timm.inference.hub import UnreachableError
from ride_timm.inference.load import TrainedNet, is_name, load
from ride_timm.inference.network import DATA_CONFIG_KEYS, unreachable
from ride_timm.models import count_experts
from ride_timm.models.checkpoint import checkpoint_filter_fn
from ride_timm.models.ride_zoo import backbone_of
from ride_timm.models.seeding import perturb_experts
from ride_timm.records.checkpoint import misfit
from ride_timm.records.published import default_tag
from ride_timm.records.tensors import check_archive

__all__ = [
    'counterpart', 'is_multi_expert', 'load_initial', 'plain_backbone', 'pretrained_source', 'read_initial',
    'reorder_experts',
]  # fmt: skip


def read_initial(
    source: str | Path,
    model: str | None = None,
    use_ema: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
) -> TrainedNet:
    """Read the network to initialise from, without running anything in a file.

    Args:
        source: As for `load`, or a file of a plain timm backbone's weights. Of a run's folder the weights themselves
            are taken, not their moving average.
        model: The architecture to train: of the file where it does not name its own; that which a plain one seeds.
        use_ema: Take the moving average of the weights.
        model_kwargs: Arguments of the architecture, over those in the file.

    Raises:
        RideError: It is missing, damaged, foreign, or does not fit the architecture.
    """
    path, text = Path(source), str(source)
    if not path.exists() and not is_name(text):
        raise RideError(
            f'There is no checkpoint {text}, and no network of that name; give a run or a file of weights that is '
            'there, hf-hub:ORG/NAME, or the name of pretrained weights, such as resnet50.a1_in1k.'
        )
    backbone = plain_backbone(model, model_kwargs)
    if backbone is not None and path.is_file():
        state = _plain_state(path)
        if state is not None:
            return _from_plain(path, state, str(model), backbone)
    plain_source = is_multi_expert(model) and not path.exists() and not is_multi_expert(text)
    try:
        found = load(source, architecture=model, use_ema=use_ema, model_kwargs=None if plain_source else model_kwargs)
    except UnreachableError:
        raise unreachable(text, model or counterpart(text.partition('.')[0])) from None
    except RideError:
        if use_ema or not path.is_file() or _plain_state(path) is None:
            raise
        raise RideError(
            f'{text} holds the weights of a plain network and does not say of which; add the --model that they are to '
            'seed, such as ride_resnet50_3e for those of a resnet50.'
        ) from None
    seeds = not count_experts(found.model) and is_multi_expert(model)
    if model and not path.is_file() and not seeds and model.partition('.')[0] != found.architecture:
        raise RideError(f'{text} is a {found.architecture} and --model is {model}; leave one of them out.')
    if not path.exists() and not count_experts(found.model):
        found.class_names = found.class_counts = None  # other data have other labels: ImageNet's are no folder names
    return found


def reorder_experts(init: TrainedNet, order: Sequence[int]) -> None:
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
            f'--expert-order {" ".join(map(str, order))} was given, but {init.source} has {len(experts)} experts; name '
            f'each of 0 to {len(experts) - 1} once.'
        )
    init.model.experts = nn.ModuleList(experts[index] for index in order)
    init.model.router = None

    def ordered(values: Any) -> Any:
        return type(values)(values[index] for index in order)

    record, options = init.record, dict(init.record.loss_kwargs or {})
    if isinstance(options.get('tau'), (list, tuple)):
        options['tau'] = ordered(options['tau'])
    tau = ordered(record.tau) if isinstance(record.tau, tuple) else record.tau
    init.record = replace(record, tau=tau, loss_kwargs=options or record.loss_kwargs)


def _from_plain(file: Path, state: dict[str, Any], model: str, backbone: str) -> TrainedNet:
    """The plain backbone of a file, for the multi-expert network of it."""
    cfg: Any = timm.get_pretrained_cfg(backbone)
    heads = [state[f'{name}.weight'] for name in _names(cfg.classifier) if f'{name}.weight' in state]
    stems = [state[f'{name}.weight'] for name in _names(cfg.first_conv) if f'{name}.weight' in state]
    shape = {'in_chans': stems[0].shape[1]} if stems else {}
    net = timm.create_model(backbone, num_classes=len(heads[0]) if heads else 0, **shape).eval()
    try:
        net.load_state_dict(filter_checkpoint(state, net))
    except (RuntimeError, KeyError) as error:
        raise RideError(
            f'{file} does not fit {backbone}, the plain form of {model} ({misfit(error)}); give the weights of a '
            f'{backbone}, or the --model that is built like these.'
        ) from None
    return TrainedNet(net, backbone, source=str(file))


def _plain_state(file: Path) -> dict[str, Any] | None:
    """The tensors of a file of a plain network's weights, None for any other."""
    try:
        check_archive(file)
        state: dict[str, Any] = load_state_dict(str(file), device='cpu', weights_only=True)
    except Exception:  # whatever is wrong with the file, its reader as a checkpoint of ours has the sentence
        return None
    tensors = all(isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items())
    return state if state and tensors and not any(key.startswith('experts.') for key in state) else None


def is_multi_expert(name: str | None) -> bool:
    """Whether this is an architecture of ours."""
    return f'{name}_'.startswith(('ride_', 'test_ride_'))


def plain_backbone(name: str | None, model_kwargs: Mapping[str, Any] | None = None) -> str | None:
    """The architecture of timm's that a multi-expert one is built like: `resnet50` for `ride_resnet50_4e`.

    Args:
        name: The multi-expert architecture.
        model_kwargs: Its arguments, of which `ride` has a backbone.
    """
    bare = (name or '').partition('.')[0]
    match = re.fullmatch(r'ride_(\w+)_\d+e', bare)
    found = str((model_kwargs or {}).get('backbone')) if bare == 'ride' else match and match.group(1)
    return found.partition('.')[0] if found and timm.is_model(found) else None


def pretrained_source(model: str, model_kwargs: Mapping[str, Any]) -> str:
    """The name of the weights that `--pretrained` initialises a multi-expert network from.

    Args:
        model: The architecture, with a tag or without.
        model_kwargs: Its arguments.
    """
    if model == 'ride':
        return str(model_kwargs.get('backbone'))
    return model if default_tag(model.partition('.')[0]) else backbone_of(model) or model


def counterpart(name: str) -> str:
    """The network with three experts that a plain one seeds, itself where there is none."""
    return f'ride_{name}_3e' if timm.is_model(f'ride_{name}_3e') else name


def load_initial(model: Any, init: TrainedNet, keep_heads: bool, noise: float = 0.0, seed: int = 0) -> None:
    """Copy the weights into a network; a router that only the network has stays as it was drawn.

    Args:
        model: The network to train; its `pretrained_cfg` learns how the images were prepared.
        init: The weights to initialise from; a plain backbone's seed the trunk and every expert.
        keep_heads: Copy the classification heads too.
        noise: Relative size of what sets experts with the same weights apart.
        seed: Of that noise.

    Raises:
        RideError: The weights do not fit the network.
    """
    state = init.model.state_dict()
    own = model.state_dict()
    first: Any = init.model.pretrained_cfg.get('first_conv')
    for name in _names(first):
        stem = state.get(f'{name}.weight')
        if stem is not None and stem.shape[1] != model.in_chans:
            state[f'{name}.weight'] = adapt_input_conv(model.in_chans, stem)
    try:
        if count_experts(model):
            state = checkpoint_filter_fn(state, model)
        if not keep_heads:
            state = {key: value for key, value in state.items() if not _is_head(key, model)}
            state |= {key: value for key, value in own.items() if _is_head(key, model)}
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RideError(
            f'The weights of --init {init.source} do not fit the network ({misfit(error)}); keep its options.'
        ) from None
    if count_experts(model) and not count_experts(init.model):
        perturb_experts(model.experts, noise, seed)
    known = init.model.pretrained_cfg
    model.pretrained_cfg.update({key: known[key] for key in DATA_CONFIG_KEYS if key in known})


def _is_head(key: str, model: nn.Module) -> bool:
    config: Any = model.pretrained_cfg
    return any(key.startswith(f'{name}.') for name in _names(config.get('classifier')))


def _names(value: str | tuple[str, ...] | list[str] | None) -> tuple[str, ...]:
    """What a cfg of timm's says of the names of modules: one, several, or none."""
    return (value,) if isinstance(value, str) else tuple(value or ())
