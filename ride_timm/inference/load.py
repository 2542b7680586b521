"""The one loader of trained networks: from a checkpoint, a folder, the Hub, or by a registered name."""

import logging
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import adapt_input_conv, clean_state_dict

from ride_timm.errors import RideError, did_you_mean, reason_of
from ride_timm.inference.hub import UnreachableError, fetch, is_unreachable, split_revision, without_retries
from ride_timm.inference.network import DATA_CONFIG_KEYS, check_architecture, is_fetched
from ride_timm.records.checkpoint import misfit, read_checkpoint
from ride_timm.records.kinds import CONFIG_SCHEMA, check_sizes
from ride_timm.records.published import SHARD_INDEX, PretrainedError, published_weights
from ride_timm.records.schema import read_object
from ride_timm.records.shards import read_shards, tensors_file
from ride_timm.records.tensors import read_safetensors, read_shapes
from ride_timm.records.training_record import TrainingRecord

__all__ = ['FILE_SUFFIXES', 'TrainedNet', 'is_name', 'load']

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
        name: timm's name of it, or `hf-hub:ORG/NAME`.
        class_names: Names of its C classes, None if unknown.
        class_counts: (C,) training images of each, None if unknown.
        record: What its file says of the training: loss, `tau`, held-out images.
        settings: Options of the training, empty if its file has none.
        source: Where it was loaded from: a file, a folder or a name.
    """

    model: Any
    name: str
    class_names: tuple[str, ...] | None = None
    class_counts: tuple[int, ...] | None = None
    record: TrainingRecord = field(default_factory=TrainingRecord)
    settings: dict[str, Any] = field(default_factory=dict)
    source: str = ''

    @property
    def architecture(self) -> str:
        """The registered architecture, without a tag."""
        return str(self.model.pretrained_cfg['architecture'])

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of its C classes, or their indices where no names are known."""
        return self.class_names or tuple(map(str, range(self.model.num_classes)))

    @property
    def temperatures(self) -> tuple[float, ...] | None:
        """What the mean logits of the first n experts are divided by, n = 1..K; None where it is not calibrated."""
        calibration = self.record.calibration
        return None if calibration is None else calibration.temperatures


@dataclass(frozen=True)
class _Request:
    """What was asked for, apart from the source."""

    architecture: str | None
    use_ema: bool | None
    num_classes: int | None
    model_kwargs: Mapping[str, Any]


def load(
    source: str | Path,
    *,
    architecture: str | None = None,
    use_ema: bool | None = None,
    num_classes: int | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    cache_dir: str | Path | None = None,
    token: str | bool | None = None,
    sha256: Mapping[str, str] | None = None,
) -> TrainedNet:
    """Load a trained network, with the names of its classes and their training images.

    | source | which network |
    |---|---|
    | `hf-hub:ORG/NAME[@REVISION]` | from a repository on the Hub, by ride-timm, timm or transformers |
    | `local-dir:DIR`, a packaged folder | the same from a local copy |
    | folder of a run | its last checkpoint |
    | `.pth.tar` of a run | as it says |
    | `.safetensors` | as `config.json` next to it says, else `architecture` |
    | `ride_resnet32_3e.ride_cifar100lt`, `resnet50.a1_in1k` | pretrained, by its registered name |

    Args:
        source: One of these.
        architecture: For a file that does not name its own.
        use_ema: Take the moving average of the weights, or not; None takes it from the folder of a run that keeps one,
            whose results are its, and from no checkpoint.
        num_classes: Another number of classes C, with new heads (C features each); None keeps them.
        model_kwargs: Further arguments of the architecture, over those on record.
        cache_dir: Folder of the Hub's cache, the client's by default.
        token: For private repositories; the one of `hf auth login` by default.
        sha256: Hash by file name (`model.safetensors`, `config.json`), which the Hub's files must have.

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
    asked = _Request(architecture, use_ema, num_classes, dict(model_kwargs or {}))
    if text.startswith('hf-hub:'):
        repo_id, revision = split_revision(text)
        folder = fetch(repo_id, revision, cache_dir=cache_dir, token=token, sha256=sha256)
        found = _from_folder(Path(folder), asked, name=text)
    elif text.startswith('local-dir:'):
        found = _from_folder(Path(text.partition(':')[2]), asked)
    elif path.is_dir():
        found = _from_run_or_folder(path, asked)
    elif path.is_file() or path.suffix in FILE_SUFFIXES:
        found = _from_file(path, asked)
    elif is_name(text):
        kwargs = {} if cache_dir is None else {'cache_dir': cache_dir}
        found = _from_name(text, asked, kwargs)
    else:
        hint = did_you_mean(text.partition('.')[0], timm.list_models(), '.', cutoff=0.8)
        raise RideError(f'There is no {text}{hint} Name a checkpoint, a folder, pretrained weights or hf-hub:ORG/NAME.')
    found.source = text
    for what, values in (('class names', found.class_names), ('class counts', found.class_counts)):
        if values is not None and len(values) != found.model.num_classes:
            raise RideError(
                f'{text} has {found.model.num_classes} classes and {len(values)} {what}; the file is damaged.'
            )
    found.model.eval()
    return found


def is_name(text: str) -> bool:
    """Whether a text names weights rather than a file."""
    if text.startswith(('hf-hub:', 'local-dir:')):
        return True
    return timm.is_model(text.partition('.')[0]) and Path(text).suffix not in FILE_SUFFIXES


def _from_run_or_folder(path: Path, asked: _Request) -> TrainedNet:
    if (path / _LAST).is_file():
        return _from_file(path / _LAST, asked, as_measured=asked.use_ema is None)
    if (path / 'config.json').is_file():
        return _from_folder(path, asked)
    tensors = tensors_file(path)
    if tensors.is_file():
        return _from_file(tensors, asked)
    raise RideError(
        f'{path} holds neither the {_LAST} of a run nor the config.json of a packaged network; name another folder, '
        'or a checkpoint.'
    )


def _from_folder(folder: Path, asked: _Request, name: str | None = None) -> TrainedNet:
    """The network of a folder that `ride-timm package`, timm or transformers wrote."""
    if not folder.exists():
        raise RideError(f'There is no folder {folder}; name one that `ride-timm package` or timm wrote.')
    if not (folder / 'config.json').is_file():
        raise RideError(f'{folder} holds no config.json; name a folder that `ride-timm package` or timm wrote.')
    _refuse_average(asked, folder)
    config = _read_config(folder)
    kwargs = {**asked.model_kwargs, **_merged(folder, config)}
    model = _create(f'local-dir:{folder}', True, asked.num_classes, kwargs)
    model.pretrained_cfg.pop('state_dict', None)
    found = TrainedNet(model, name or config['architecture'])
    if model.num_classes != model.pretrained_cfg.get('num_classes'):  # new heads
        return found
    names = model.pretrained_cfg.get('label_names')
    if 'transformers_version' in config and names is not None and len(names) != model.num_classes:
        # transformers saves a fine-tuned network with the entries of the one that it was made of
        _logger.warning(
            f'{folder} names {len(names)} classes, but the network has {model.num_classes}; classes are numbered.'
        )
        return found
    return _described(found, names, TrainingRecord.from_json(config.get('ride'), str(folder / 'config.json')))


def _from_name(name: str, asked: _Request, kwargs: Mapping[str, Any]) -> TrainedNet:
    """The pretrained network of a registered name."""
    check_architecture(name)
    _refuse_average(asked, name)
    model = _create(name, True, asked.num_classes, {**asked.model_kwargs, **kwargs})
    found = TrainedNet(model, name)
    cfg = model.pretrained_cfg
    if model.num_classes != cfg.get('num_classes'):  # new heads
        return found
    checkpoint = published_weights().get(f'{cfg.get("architecture")}.{cfg.get("tag")}')
    record = {} if checkpoint is None else checkpoint.config.get('ride')
    return _described(found, cfg.get('label_names'), TrainingRecord.from_json(record, name))


def _described(found: TrainedNet, names: Any, record: TrainingRecord) -> TrainedNet:
    found.class_names = tuple(names) if names else None
    found.class_counts = record.class_counts or None
    found.record = record
    return found


def _refuse_average(asked: _Request, source: str | Path) -> None:
    if asked.use_ema:
        raise RideError(f'{source} holds no moving average, only one set of weights; ask for those.')


def _from_file(path: Path, asked: _Request, as_measured: bool = False) -> TrainedNet:
    """The network of a checkpoint, or of a file of tensors."""
    if path.suffix == '.safetensors' or path.name == SHARD_INDEX:
        _refuse_average(asked, path)
        state, known, settings = _read_with_config(path)
        recorded, options = known.get('arch'), dict[str, Any]()
    else:
        checkpoint = read_checkpoint(path)
        key = 'state_dict_ema' if asked.use_ema or (as_measured and 'state_dict_ema' in checkpoint) else 'state_dict'
        if key not in checkpoint:
            raise RideError(f'{path} holds no moving average ({key}); ask for its weights themselves.')
        state = clean_state_dict(checkpoint[key])
        known, settings = checkpoint.get('ride') or {}, checkpoint.get('args') or {}
        recorded, options = checkpoint.get('arch'), settings
    record = TrainingRecord.from_json(known, str(path))
    name = asked.architecture or recorded
    if not name:
        raise RideError(f'{path} does not say which architecture it is of; add --model NAME.')
    check_architecture(name)
    recorded_kwargs = settings.get('model_kwargs') or {}
    sizes = {**recorded_kwargs, **{key: settings[key] for key in ('num_classes', 'in_chans') if settings.get(key)}}
    check_sizes({key: tuple(value.shape) for key, value in state.items()}, sizes, str(path))
    kwargs = {**recorded_kwargs, **asked.model_kwargs}
    if settings.get('in_chans'):
        kwargs.setdefault('in_chans', settings['in_chans'])
    if any(key.startswith('router.') for key in state) and not kwargs.setdefault('router', True):
        state = {key: value for key, value in state.items() if not key.startswith('router.')}
    classes = settings.get('num_classes') or len(record.class_names or ()) or _count_classes(name, state)
    model = _create(name, False, classes, kwargs)
    stem = state.get('conv1.weight')
    if 'in_chans' in asked.model_kwargs and stem is not None and stem.shape[1] != kwargs['in_chans']:
        state['conv1.weight'] = adapt_input_conv(kwargs['in_chans'], stem)  # as timm adapts pretrained weights
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise RideError(f'{path} does not fit {name} ({misfit(error)}); check --model.') from None
    model.pretrained_cfg.update(settings.get('data_config') or {})
    found = TrainedNet(model, name, settings=dict(options))
    if asked.num_classes in (None, model.num_classes):
        return _described(found, record.class_names, record)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that the router goes with its heads, as it does silently for a folder
        model.reset_classifier(asked.num_classes)
    return found


def _count_classes(architecture: str, state: Mapping[str, torch.Tensor]) -> int | None:
    """How many classes the head of a file has that does not say it otherwise."""
    cfg = timm.get_pretrained_cfg(architecture, allow_unregistered=True)
    head = cfg.classifier if cfg is not None else None
    weight = state.get(f'{head[0] if isinstance(head, tuple) else head}.weight')
    return None if weight is None else len(weight)


def _read_with_config(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """The tensors, and what the `config.json` next to them says of the network and of how it was made."""
    if not path.is_file():
        raise RideError(f'There is no file {path}; give the path of a model.safetensors.')
    state = read_shards(path.parent) if path.name == SHARD_INDEX else read_safetensors(path)
    beside = path.with_name('config.json')
    if not beside.is_file():
        return state, {}, {}
    config = read_object(beside, CONFIG_SCHEMA)
    images = config.get('pretrained_cfg', {})
    known = {
        **config.get('ride', {}),
        'arch': config.get('architecture'),
        'class_names': config.get('label_names') or images.get('label_names'),
    }
    settings = {
        'num_classes': config.get('num_classes'),
        'model_kwargs': {key: value for key, value in config.get('model_args', {}).items() if key != 'num_classes'},
        'data_config': {key: value for key, value in images.items() if key in DATA_CONFIG_KEYS},
    }
    return state, known, settings


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


def _merged(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """What has timm take the tensors of a folder that holds them in several files, which it does not read itself."""
    file = tensors_file(folder)
    sizes = {**config.get('model_args', {}), 'num_classes': config.get('num_classes', 0)}
    if file.name != SHARD_INDEX:
        if file.is_file():
            check_sizes(read_shapes(file), sizes, str(folder / 'config.json'))
        return {}
    state = read_shards(folder)
    check_sizes({key: tuple(value.shape) for key, value in state.items()}, sizes, str(folder / 'config.json'))
    return {'pretrained_cfg_overlay': {'source': '', 'state_dict': state}}


def _create(name: str, pretrained: bool, num_classes: int | None, kwargs: dict[str, Any]) -> Any:
    if kwargs.get('features_only'):
        raise RideError(
            f'features_only was given for {name}, whose classifier is asked for here; feature maps come from '
            'timm.create_model(NAME, pretrained=True, features_only=True).'
        )
    try:
        with without_retries() if pretrained and is_fetched(name) else nullcontext():
            model = timm.create_model(name, pretrained=pretrained, num_classes=num_classes, **kwargs)
    except PretrainedError as error:
        raise RideError(str(error)) from error
    except _MISFITS as error:
        if is_unreachable(error):
            raise UnreachableError(
                f'The weights {name} are not in the cache and the Hugging Face Hub cannot be reached; connect once '
                '(without HF_HUB_OFFLINE=1) to fill the cache.'
            ) from None
        raise RideError(f'{name} cannot be created: {reason_of(error)}.') from error
    return model
