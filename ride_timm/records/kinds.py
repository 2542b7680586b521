"""The fields of the files that we read, and what each may hold: `config.json`, checkpoints, `results.json` of a run."""

from collections.abc import Mapping
from typing import Any

from ride_timm.errors import RideError
from ride_timm.records.schema import (
    FLAG,
    OBJECT,
    TEXT,
    Kind,
    Schema,
    check_record,
    list_of,
    nullable,
    number,
    one_of,
    shown,
    text,
    whole,
)

__all__ = ['ARGS_SCHEMA', 'CONFIG_SCHEMA', 'RUN_SCHEMA', 'TRAINING_SCHEMA', 'check_checkpoint', 'check_sizes']

_NAME = text(r'\w{1,100}(\.\w{1,100})?', 'the name of an architecture, without path or host')
_CLASSES = whole(0, 1_000_000)
_CHANNELS = whole(1, 1024)
_PIXELS = list_of(number(-1e6, 1e6), 1, 1024)
_SPREADS = list_of(number(1e-6, 1e6), 1, 1024)
_SIZE = Kind(
    'a list of channels (1 to 1,024), height and width (1 to 8,192 pixels)',
    lambda value: list_of(whole(1, 8192), 3, 3).fits(value) and _CHANNELS.fits(value[0]),
)
_NAMES = list_of(TEXT)
_COUNTS = list_of(whole(0, 10**12))
_TAU = number(-1e6, 1e6)
_NUMBER = number(-1e300, 1e300)
_COUNT = whole(0, 10**15)
_OPTION = Kind(
    'null, true or false, a number, a text, or a short list of such',
    lambda value: (
        _is_plain(value) or (isinstance(value, (list, tuple)) and len(value) <= 64 and all(map(_is_plain, value)))
    ),
)
_MODEL_ARGS = Kind(
    'an object of options of the architecture (numbers, texts, short lists)',
    lambda value: OBJECT.fits(value) and all(_OPTION.fits(item) or OBJECT.fits(item) for item in value.values()),
)
_ROUTER = Kind(
    'true, false, null or a number of classes',
    lambda value: value is None or isinstance(value, bool) or whole(0, 10**9).fits(value),
)
_RANGE = Kind(
    'two rising numbers from 0 to 65,535',
    lambda value: list_of(whole(0, 65535), 2, 2).fits(value) and value[0] < value[1],
)
_PLAN = {
    'fraction': number(0.0, 1.0),
    'seed': whole(0, 2**64),
    **{name: nullable(TEXT) for name in ('digest', 'group_column', 'group_pattern')},
    'grouped': FLAG,
}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and len(value) <= 1000)


def _inside(prefix: str, schema: Schema) -> dict[str, Kind]:
    return {f'{prefix}.{key}': kind for key, kind in schema.items()}


_IMAGES: dict[str, Kind] = {
    'input_size': _SIZE,
    'mean': _PIXELS,
    'std': _SPREADS,
    'interpolation': one_of('bilinear', 'bicubic', 'nearest', 'lanczos', 'box', 'hamming', 'random', ''),
    'crop_pct': number(0.01, 10.0),
    'crop_mode': one_of('center', 'squash', 'border', ''),
}
_CFG = {
    **_IMAGES,
    'num_classes': _CLASSES,
    'test_input_size': nullable(_SIZE),
    'pool_size': nullable(list_of(whole(1, 8192), 2, 2)),
    'label_names': nullable(_NAMES),
    'label_descriptions': nullable(OBJECT),
    'label_offset': nullable(whole(0, 1)),
    'first_conv': nullable(Kind('a text or a list of texts', lambda value: TEXT.fits(value) or _NAMES.fits(value))),
    'classifier': nullable(Kind('a text or a list of texts', lambda value: TEXT.fits(value) or _NAMES.fits(value))),
    'custom_load': Kind('false', lambda value: value in (False, None)),
}
_PLANS = {name: nullable(OBJECT) for name in ('holdout', 'val_part')}
TRAINING_SCHEMA: dict[str, Kind] = {
    'stage': TEXT,
    'num_experts': whole(1, 1000),
    'router': FLAG,
    'router_threshold': nullable(number(0.0, 1.0)),
    'certificate': nullable(OBJECT),
    'class_names': nullable(_NAMES),
    'class_counts': nullable(_COUNTS),
    'loss': nullable(TEXT),
    'loss_kwargs': nullable(OBJECT),
    'tau': nullable(
        Kind('a number or a list of numbers', lambda value: _TAU.fits(value) or list_of(_TAU, 1, 1000).fits(value))
    ),
    'logit_adjustment': nullable(number(-1e6, 1e6)),
    'pixel_range': nullable(_RANGE),
    'calibration': nullable(OBJECT),
    **_PLANS,
    **{f'{name}.{key}': kind for name in _PLANS for key, kind in _PLAN.items()},
    'segments': list_of(
        Kind(
            'an object with epoch, command and environment',
            lambda value: (
                OBJECT.fits(value)
                and whole(0, 10**9).fits(value.get('epoch'))
                and nullable(TEXT).fits(value.get('command'))
                and OBJECT.fits(value.get('environment'))
            ),
        )
    ),
}
CONFIG_SCHEMA: Schema = {
    'architecture': _NAME,
    'num_classes': _CLASSES,
    'num_features': whole(0, 10**9),
    'global_pool': nullable(TEXT),
    'model_args': _MODEL_ARGS,
    'model_args.features_only': Kind('false', lambda value: value in (False, None)),
    'model_args.pretrained_cfg': Kind('absent', lambda value: value is None),
    'model_args.pretrained_cfg_overlay': Kind('absent', lambda value: value is None),
    'model_args.checkpoint_path': Kind('absent', lambda value: value in (None, '')),
    'model_args.in_chans': _CHANNELS,
    'model_args.global_pool': TEXT,
    'model_args.router': _ROUTER,
    'label_names': nullable(_NAMES),
    'label_descriptions': nullable(OBJECT),
    'pretrained_cfg': OBJECT,
    **_inside('pretrained_cfg', _CFG),
    'ride': OBJECT,
    **_inside('ride', TRAINING_SCHEMA),
}
"""Of a `config.json`."""
_ARGS: dict[str, Kind] = {
    'model': nullable(TEXT),
    'stage': TEXT,
    'num_classes': nullable(_CLASSES),
    'in_chans': nullable(_CHANNELS),
    'model_kwargs': nullable(_MODEL_ARGS),
    'model_kwargs.pretrained_cfg': Kind('absent', lambda value: value is None),
    'model_kwargs.pretrained_cfg_overlay': Kind('absent', lambda value: value is None),
    'model_kwargs.checkpoint_path': Kind('absent', lambda value: value in (None, '')),
    'model_kwargs.router': _ROUTER,
    'data_config': nullable(OBJECT),
    **_inside('data_config', _IMAGES),
    **{
        key: nullable(TEXT)
        for key in (
            'dataset', 'data_dir', 'train_split', 'val_split', 'train_list', 'val_list', 'table', 'image_column',
            'label_column', 'split_column', 'crop', 'class_names', 'input_key',
            'target_key', 'command', 'loss', 'eval_metric', 'opt', 'amp_dtype', 'init', 'teacher', 'recipe',
        )
    },
    'imb_factor': nullable(number(0.0, 1e12)),
    'crop_confidence': nullable(number(0.0, 1.0)),
    'holdout': nullable(number(0.0, 1.0)),
    'epochs': whole(0, 10**9),
}  # fmt: skip
_CHECKPOINT: Schema = {
    'arch': nullable(_NAME),
    'epoch': whole(-1, 10**9),
    'optimizer': OBJECT,
    'metric': nullable(number(-float('inf'), float('inf'))),
    'saver': OBJECT,
    'args': nullable(OBJECT),
    **_inside('args', _ARGS),
    'ride': nullable(OBJECT),
    **_inside('ride', TRAINING_SCHEMA),
}
RUN_SCHEMA: Schema = {
    'model': nullable(TEXT),
    'last_epoch': whole(-1, 10**9),
    'last': OBJECT,
    'last.top1': nullable(_NUMBER),
    'last.num_images': _COUNT,
    'seed': nullable(whole(-(2**64), 2**64)),
    'epochs': nullable(_COUNT),
    'recipe': nullable(TEXT),
    'train_images': nullable(_COUNT),
    'held_out_images': nullable(_COUNT),
    'evaluated_on': nullable(TEXT),
    'router_threshold': nullable(number(0.0, 1.0)),
    'threshold_rule': nullable(TEXT),
    'sweep': nullable(list_of(Kind('an object with a threshold', lambda v: OBJECT.fits(v) and 'threshold' in v))),
    'all_experts': nullable(OBJECT),
    'all_experts.top1': _NUMBER,
    'environment': nullable(OBJECT),
    'segments': TRAINING_SCHEMA['segments'],
    'args': OBJECT,
    **_inside('args', _ARGS),
}
"""Of the `results.json` that a training writes; `args.yaml` holds what `args` holds."""
ARGS_SCHEMA: Schema = _ARGS


def check_checkpoint(content: Mapping[str, Any], source: str) -> None:
    """Compare a checkpoint's records and tensors with what they may be.

    Args:
        content: What `torch.load` gave, with `args` as a dict.
        source: The file.

    Raises:
        RideError: A record holds something else, or a tensor is none that a network has.
    """
    check_record(content, _CHECKPOINT, source)
    for name in ('state_dict', 'state_dict_ema'):
        state = content.get(name, {})
        for key, tensor in state.items() if isinstance(state, dict) else [('', state)]:
            if not isinstance(key, str) or not _is_ordinary(tensor):
                raise RideError(
                    f'{source}: "{name}" holds something else than an ordinary tensor as {shown(key)}; get it again.'
                )


def _is_ordinary(tensor: Any) -> bool:
    """Whether it is a dense tensor with an element in memory for each that its shape promises."""
    import torch  # here: `ride-timm weights` reads records without it

    if not isinstance(tensor, torch.Tensor) or tensor.layout != torch.strided or tensor.device.type != 'cpu':
        return False
    return not tensor.is_quantized and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def check_sizes(shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any], source: str) -> None:
    """Refuse sizes of a network that the tensors next to them do not have, before anything is built.

    Args:
        shapes: Of the file's tensors by name.
        options: Whole numbers and lists of them by name: classes, channels, arguments of the architecture.
        source: The file.

    Raises:
        RideError: A number is larger than any side of the tensors.
    """
    limit = max((side for shape in shapes.values() for side in shape), default=0)
    bounds = {'layers': max(len(shapes), 1)}
    for key, value in options.items():
        numbers = value if isinstance(value, (list, tuple)) else (value,)
        most = bounds.get(key, max(limit, 1024))
        if key == 'num_classes':
            most = limit
        large = next((item for item in numbers if isinstance(item, int) and item > most), None)
        if large is not None:
            raise RideError(
                f'{source}: "{key}" is {shown(large)} and the tensors of the file allow {most:,} at most; get it again.'
            )
