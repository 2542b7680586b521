"""A trained network with its class names, from a checkpoint, an exported folder, the Hub or published weights."""

import argparse
import difflib
import logging
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv, clean_state_dict

from ride_timm.engine.checkpoint import misfit, read_checkpoint
from ride_timm.errors import RideError
from ride_timm.hub import UnreachableError, fetch, is_unreachable, split_revision, without_retries
from ride_timm.inference.network import DATA_CONFIG_KEYS, check_architecture, is_fetched
from ride_timm.published import SHARD_INDEX, WEIGHTS, PretrainedError, published_weights
from ride_timm.publishing.shards import read_shards, tensors_file
from ride_timm.records.kinds import CONFIG_SCHEMA, check_sizes
from ride_timm.records.schema import read_object
from ride_timm.records.tensors import read_safetensors, read_shapes

__all__ = ['FILE_SUFFIXES', 'TrainedNet', 'file_in_folder', 'load_model', 'load_trained']

_logger = logging.getLogger(__name__)
# how architectures refuse options that they do not take; most only trip over them
_MISFITS = (TypeError, ValueError, RuntimeError, OSError, AssertionError, LookupError, AttributeError, ArithmeticError)
FILE_SUFFIXES = ('.tar', '.pth', '.pt', '.bin', '.safetensors')
_LAST = 'last.pth.tar'  # by which a folder is known as a run's


@dataclass
class TrainedNet:
    """A network, and what is known of its training.

    Attributes:
        model: The network, in eval mode.
        name: What it was called by.
        class_names: Names of its C classes, None if unknown.
        class_counts: (C,) training images of each, None if unknown.
        about: The `ride` entry of its file: loss, `tau`, threshold; empty if it has none.
    """

    model: torch.nn.Module
    name: str
    class_names: tuple[str, ...] | None
    class_counts: tuple[int, ...] | None
    about: Mapping[str, Any] = field(default_factory=dict)


def load_model(
    source: str | Path,
    *,
    use_ema: bool = False,
    num_classes: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    **hub: Any,
) -> TrainedNet:
    """Load a trained network, with the names of its classes and their training images, from wherever it lies.

    Args:
        source: A checkpoint (`last.pth.tar`, `model.safetensors`), the folder of a run, an exported folder,
            `local-dir:DIR`, `hf-hub:ORG/NAME[@REVISION]`, or the registered name of a published weight.
        use_ema: The moving average in a checkpoint. Of a run's folder it is taken anyway where there is one: the
            figures of the run are its.
        num_classes: Another number of classes, with new heads.
        model_kwargs: Further arguments of the architecture.
        **hub: `cache_dir`, `token` and `sha256` of `ride_timm.hub.fetch`.

    Returns:
        The network, in eval mode on the CPU, and what is known of its training.

    Raises:
        RideError: It cannot be found or read, or its parts do not fit each other.

    Example:
        >>> import ride_timm
        >>> net = ride_timm.load('ride_resnet32_3e.ride_cifar100lt')
        >>> net.model.num_classes, net.class_names[:2], net.class_counts[:2]
        (100, ('apple', 'aquarium_fish'), (500, 477))
    """
    text, path = str(source), Path(source)
    options = argparse.Namespace(
        model=None, checkpoint=None, pretrained=True, use_ema=use_ema, num_classes=num_classes,
        model_kwargs=dict(model_kwargs or {}),
    )  # fmt: skip
    if text.startswith('hf-hub:'):
        repo_id, revision = split_revision(text)
        options.model = f'local-dir:{fetch(repo_id, revision, **hub)}'
        return replace(load_trained(options), name=text)
    if path.is_dir() and (path / _LAST).is_file():
        options.checkpoint = text
    elif path.is_dir():
        if not (path / 'config.json').is_file():
            raise RideError(
                f'{path} holds neither the {_LAST} of a run nor the config.json of an exported network; name '
                'another folder, or a checkpoint.'
            )
        options.model = f'local-dir:{path}'
    elif path.is_file() or path.suffix in FILE_SUFFIXES:
        options.checkpoint = text
    elif ':' not in text and (len(path.parts) > 1 or not timm.is_model(text.partition('.')[0])):
        close = difflib.get_close_matches(text.partition('.')[0], timm.list_models(), n=1, cutoff=0.8)
        hint = f', did you mean {close[0]}? Name' if close else '; name'
        raise RideError(f'There is no {text}{hint} a checkpoint, a folder, a published weight or hf-hub:ORG/NAME.')
    else:
        options.model = text
        if hub.get('cache_dir') is not None:
            options.model_kwargs['cache_dir'] = hub['cache_dir']
    if options.checkpoint is None or num_classes is None:
        return load_trained(options)
    options.num_classes = None  # a checkpoint has its heads; load_trained takes the number for a check of them
    found = load_trained(options)
    if found.model.num_classes == num_classes:
        return found
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that the router goes with its heads, as it does silently for a folder
        found.model.reset_classifier(num_classes)  # type: ignore[operator]
    return replace(found, class_names=None, class_counts=None, about={})


def load_trained(args: argparse.Namespace) -> TrainedNet:
    """Load the network that `--model`, `--checkpoint`, `--pretrained`, `--num-classes` and `--model-kwargs` name.

    Args:
        args: Parsed arguments with these names, and `use_ema`.

    Raises:
        RideError: It cannot be found or read, or its parts do not fit each other.
    """
    if args.checkpoint:
        return _from_file(args)
    if not args.model:
        raise RideError('Neither --model nor --checkpoint was given; name a checkpoint, or a model and --pretrained.')
    check_architecture(args.model)
    if args.model.startswith('hf-hub:'):
        return load_model(args.model, num_classes=args.num_classes, model_kwargs=args.model_kwargs)
    local = args.model.partition(':')[2] if args.model.startswith('local-dir:') else None
    if local is not None and not Path(local).exists():
        raise RideError(f'There is no folder {local}; name one that `ride-timm export` or timm wrote.')
    if local is not None and not Path(local, 'config.json').is_file():
        raise RideError(f'{local} holds no config.json; name a folder that `ride-timm export` or timm wrote.')
    config = {} if local is None else _read_config(Path(local))
    pretrained = args.pretrained or ':' in args.model
    if not pretrained:
        _logger.warning(f'{args.model} has random weights; add --pretrained or --checkpoint FILE for trained ones.')
    model: Any = _create(args.model, pretrained, args.num_classes, {**args.model_kwargs, **_merged(local, config)})
    model.pretrained_cfg.pop('state_dict', None)
    names = model.pretrained_cfg.get('label_names') if pretrained else None
    about = (_about(model) if local is None else config.get('ride', {})) if pretrained else {}
    if model.num_classes != model.pretrained_cfg.get('num_classes'):  # new heads
        return _checked(model, args.model, None, None)
    if 'transformers_version' in config and names is not None and len(names) != model.num_classes:
        # transformers saves a fine-tuned network with the entries of the one that it was made of
        _logger.warning(
            f'{args.model} names {len(names)} classes of another network; its {model.num_classes} are numbered.'
        )
        return _checked(model, args.model, None, None)
    return _checked(model, args.model, names, about.get('class_counts'), about)


def _read_config(folder: Path) -> dict[str, Any]:
    """The checked `config.json` of a folder that timm is to load; its architecture is a registered one."""
    path = folder / 'config.json'
    config = read_object(path, CONFIG_SCHEMA, needed=('architecture',))
    architecture = config['architecture']
    if not timm.is_model(architecture.partition('.')[0]):
        raise RideError(
            f'{path} is of the architecture {architecture}, which neither timm nor this version of ride-timm has; '
            'import the package that registers it, or `pip install -U ride-timm timm`.'
        )
    return config


def _merged(local: str | None, config: Mapping[str, Any]) -> dict[str, Any]:
    """What has timm take the tensors of a folder that holds them in several files, which it does not read itself."""
    if local is None:
        return {}
    file = tensors_file(Path(local))
    sizes = {**config.get('model_args', {}), 'num_classes': config.get('num_classes', 0)}
    if file.name != SHARD_INDEX:
        if file.is_file():
            check_sizes(read_shapes(file), sizes, str(file.with_name('config.json')))
        return {}
    state = read_shards(Path(local))
    check_sizes({key: tuple(value.shape) for key, value in state.items()}, sizes, str(file.with_name('config.json')))
    return {'pretrained_cfg_overlay': {'source': '', 'state_dict': state}}


def _about(model: Any) -> Mapping[str, Any]:
    """The `ride` entry of the published weights that a network was created from."""
    cfg = model.pretrained_cfg
    weight = published_weights().get(f'{cfg.get("architecture")}.{cfg.get("tag")}')
    about: Mapping[str, Any] = {} if weight is None else weight.config.get('ride') or {}
    return about


def _from_file(args: argparse.Namespace) -> TrainedNet:
    path = Path(args.checkpoint)
    as_measured = path.is_dir()
    if as_measured:
        path = file_in_folder(path)
    known: dict[str, Any] = {}
    if path.suffix == '.safetensors' or path.name == SHARD_INDEX:
        state, known = _read_with_config(path)
        name = args.model or known.get('arch')
        settings = known.get('args', {})
    else:
        checkpoint = read_checkpoint(path)
        averaged = args.use_ema or (as_measured and 'state_dict_ema' in checkpoint)
        key = 'state_dict_ema' if averaged else 'state_dict'
        if key not in checkpoint:
            raise RideError(f'{path} holds no {key}; leave --use-ema out.')
        state = clean_state_dict(checkpoint[key])
        known, settings = checkpoint.get('ride') or {}, checkpoint.get('args') or {}
        name = args.model or checkpoint.get('arch')
    if not name:
        raise RideError(f'{path} does not say which architecture it is of; add --model NAME.')
    check_architecture(name)
    recorded = settings.get('model_kwargs') or {}
    sizes = {**recorded, **{key: settings[key] for key in ('num_classes', 'in_chans') if settings.get(key)}}
    check_sizes({key: tuple(value.shape) for key, value in state.items()}, sizes, str(path))
    kwargs = {**recorded, **args.model_kwargs}
    if settings.get('in_chans'):
        kwargs.setdefault('in_chans', settings['in_chans'])
    if any(key.startswith('router.') for key in state) and not kwargs.setdefault('router', True):
        state = {key: value for key, value in state.items() if not key.startswith('router.')}
    classes = args.num_classes or settings.get('num_classes') or len(known.get('class_names') or ()) or None
    model: Any = _create(name, False, classes, kwargs)
    stem = state.get('conv1.weight')
    if 'in_chans' in args.model_kwargs and stem is not None and stem.shape[1] != kwargs['in_chans']:
        state['conv1.weight'] = adapt_input_conv(kwargs['in_chans'], stem)  # as timm adapts pretrained weights
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RideError(f'{path} does not fit {name} ({misfit(error)}); check --model and --num-classes.') from None
    model.pretrained_cfg.update(settings.get('data_config') or {})
    return _checked(model, name, known.get('class_names'), known.get('class_counts'), known)


def file_in_folder(folder: Path) -> Path:
    """The file that stands for the folder of a run or of an exported network.

    Args:
        folder: The folder.

    Raises:
        RideError: It is of neither kind.
    """
    for name in (_LAST, WEIGHTS, SHARD_INDEX):
        if (folder / name).is_file():
            return folder / name
    raise RideError(
        f'{folder} holds neither the {_LAST} of a run nor the {WEIGHTS} of an exported network; name another folder, '
        'or a file.'
    )


def _read_with_config(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors, and what the `config.json` beside them says."""
    if not path.is_file():
        raise RideError(f'There is no file {path}; give the path of a model.safetensors.')
    state = read_shards(path.parent) if path.name == SHARD_INDEX else read_safetensors(path)
    beside = path.with_name('config.json')
    if not beside.is_file():
        return state, {}
    config = read_object(beside, CONFIG_SCHEMA)
    ride = config.get('ride', {})
    names = config.get('label_names') or config.get('pretrained_cfg', {}).get('label_names')
    prepared = {key: value for key, value in config.get('pretrained_cfg', {}).items() if key in DATA_CONFIG_KEYS}
    settings = {
        'num_classes': config.get('num_classes'),
        'model_kwargs': config.get('model_args', {}),
        'data_config': prepared,
    }
    settings['model_kwargs'].pop('num_classes', None)
    known = {**ride, 'arch': config.get('architecture'), 'class_names': names, 'class_counts': ride.get('class_counts')}
    return state, {**known, 'args': settings}


def _create(name: str, pretrained: bool, num_classes: int | None, kwargs: dict[str, Any]) -> torch.nn.Module:
    if kwargs.get('features_only'):
        raise RideError(
            f'features_only was given for {name}, whose classifier is asked for here; feature maps come from '
            'timm.create_model(NAME, pretrained=True, features_only=True).'
        )
    try:
        with without_retries() if pretrained and is_fetched(name) else nullcontext():
            model: torch.nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    except PretrainedError as error:
        raise RideError(str(error)) from error
    except _MISFITS as error:
        if is_unreachable(error):
            raise UnreachableError(
                f'The weights {name} are not in the cache and the Hugging Face Hub cannot be reached; connect once '
                '(without HF_HUB_OFFLINE=1) to fill the cache.'
            ) from None
        reason = ' '.join(str(error).split())[:500] or type(error).__name__
        raise RideError(f'{name} cannot be created: {reason}') from error
    return model


def _checked(model: Any, name: str, names: Any, counts: Any, about: Mapping[str, Any] | None = None) -> TrainedNet:
    for what, values in (('class names', names), ('class counts', counts)):
        if values is not None and len(values) != model.num_classes:
            raise RideError(f'{name} has {model.num_classes} classes and {len(values)} {what}; the file is damaged.')
    return TrainedNet(
        model.eval(), name, tuple(names) if names else None, tuple(counts) if counts else None, about or {}
    )
