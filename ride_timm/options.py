"""Options as fields of frozen dataclasses: one definition for the command line, recipes and Python.

Nothing here needs torch, so that a command line is parsed before that is loaded.
"""

import copy
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

__all__ = [
    'AUGMENTATIONS', 'DataForm', 'Option', 'base_of', 'duration', 'filled', 'flag', 'kinds_of', 'option', 'options_of',
    'typed',
]  # fmt: skip

AUGMENTATIONS = ('timm', 'cifar', 'cifar_aa', 'flip')

_Config = TypeVar('_Config')


@dataclass(frozen=True)
class Option:
    """What the command line says of a field.

    Attributes:
        default: What holds where nobody says anything; None is decided later, from the data or the hardware.
        group: Heading of the option in the help.
        help: What it does.
        metavar: Its value in the help.
        choices: What it may be.
        flags: Further names of the option.
        negatable: Whether there is a `--no-NAME` too.
        read: Parses a text; raises a ValueError if it cannot.
    """

    default: Any
    group: str
    help: str
    metavar: str | None = None
    choices: Sequence[str] | None = None
    flags: tuple[str, ...] = ()
    negatable: bool = False
    read: Callable[[str], Any] | None = None


def option(default: Any, group: str, text: str, metavar: str | None = None, **more: Any) -> Any:
    """A field for an option, None as long as nobody says anything.

    Args:
        default: As in `Option`.
        group: As in `Option`.
        text: As `help` in `Option`.
        metavar: As in `Option`.
        **more: Further attributes of `Option`.
    """
    return dataclasses.field(default=None, metadata={'option': Option(default, group, text, metavar, **more)})


def duration(text: str) -> float:
    """Seconds of a text such as `90`, `90s`, `30m`, `2h` or `1h30m`.

    Raises:
        ValueError: It has another form.
    """
    match = re.fullmatch(r'(?:([\d.]+)h)?(?:([\d.]+)m)?(?:([\d.]+)s?)?', text.strip())
    if not text.strip() or match is None:
        raise ValueError(text)
    hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def options_of(config: type) -> Mapping[str, Option]:
    """The options of a dataclass, by the names of their fields.

    Args:
        config: A dataclass with fields of `option`.
    """
    return _read(config)[0]


def kinds_of(config: type) -> Mapping[str, Any]:
    """The annotations of a dataclass, by the names of its fields."""
    return _read(config)[1]


@functools.cache  # resolving annotations takes milliseconds, and every change of a configuration checks all values
def _read(config: type) -> tuple[Mapping[str, Option], Mapping[str, Any]]:
    fields: Sequence[dataclasses.Field[Any]] = dataclasses.fields(config)
    options = {field.name: field.metadata['option'] for field in fields if 'option' in field.metadata}
    return MappingProxyType(options), MappingProxyType(get_type_hints(config))


def flag(name: str) -> str:
    """The option of a field, as a person types it."""
    return '--' + name.replace('_', '-')


def filled(config: _Config) -> _Config:
    """The same with the defaults of all fields that are None.

    Args:
        config: A dataclass with fields of `option`.
    """
    open_ = {name: entry.default for name, entry in options_of(type(config)).items() if getattr(config, name) is None}
    return dataclasses.replace(config, **copy.deepcopy(open_))  # type: ignore[type-var]


def base_of(kind: Any) -> tuple[type, int | str | None]:
    """The type of a value, or of each of several, and argparse's `nargs` of it.

    Args:
        kind: The annotation of a field.
    """
    if isinstance(kind, UnionType):
        (kind,) = (part for part in get_args(kind) if part is not type(None))
    origin, parts = get_origin(kind), get_args(kind)
    if origin is list:
        return parts[0], '+'
    if origin is tuple:
        return parts[0], len(parts)
    return (dict if origin is dict else kind), None


def typed(config: type, name: str, value: Any) -> Any:
    """A value as its field has it: a number that YAML reads as text, such as `5e-4`, is a number.

    Args:
        config: A dataclass with fields of `option`.
        name: A field's name.
        value: From a file, or of a caller.

    Raises:
        ValueError: The field does not take it; the message says what it takes.
    """
    if value is None:
        return None
    entry, (base, number) = options_of(config)[name], base_of(kinds_of(config)[name])
    if number is None:
        values = [value]
    elif isinstance(value, (list, tuple)) and number in ('+', len(value)):
        values = list(value)
    else:
        raise ValueError(_wanted(base, number, entry))
    try:
        found = [_scalar(base, item, entry) for item in values]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(_wanted(base, number, entry)) from None
    return found[0] if number is None else found


def _scalar(base: type, value: Any, entry: Option) -> Any:
    if base in (bool, dict):
        if not isinstance(value, base):
            raise TypeError
        return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else value
    if base is str and isinstance(value, os.PathLike):
        value = os.fspath(value)
    if isinstance(value, (bool, dict, list, tuple)) or (base is str and not isinstance(value, str)):
        raise TypeError
    found = entry.read(value) if entry.read is not None and isinstance(value, str) else base(value)
    if base is int and found != float(value):
        raise ValueError
    if entry.choices is not None and found not in entry.choices:
        raise ValueError
    return found


def _wanted(base: type, number: int | str | None, entry: Option) -> str:
    if base is dict:
        return 'a mapping, {option: value}'
    if base is bool:
        return 'true or false'
    if entry.choices is not None:
        return f'one of {", ".join(entry.choices)}'
    kind = {float: 'number', int: 'whole number'}.get(base, 'text')
    if isinstance(number, int):
        return f'a list of {number} {kind}s'
    return f'a list of {kind}s' if number is not None else f'a {kind}'


DATA = 'data'


@dataclass(frozen=True, kw_only=True)
class DataForm:
    """Where images are and what form they have: options that many commands share.

    Every attribute is an option of the command line; None means that nobody said anything.
    """

    data_dir: str | None = option(None, DATA, 'image folder with train/ and val/, or root of the data set', 'DIR')
    dataset: str = option(
        '', DATA,
        'torch/cifar100, torch/cifar10, ... (torchvision); hfds/NAME (Hugging Face), or hfds for a local one in '
        '--data-dir; wds (webdataset shards in --data-dir); else a folder of images or lists', 'NAME',
    )  # fmt: skip
    dataset_download: bool = option(False, DATA, 'let torchvision download what is missing')
    train_list: str | None = option(
        None, DATA,
        'training images, one "path label" or "path,label" per line, with paths relative to --data-dir; or a table '
        'or JSON as for --table', 'FILE',
    )  # fmt: skip
    val_list: str | None = option(None, DATA, 'the same for the evaluation images', 'FILE')
    table: str | None = option(
        None, DATA,
        'a file that names all images: CSV, TSV or JSON with a column of images (ids without a suffix find their .jpg, '
        '.png, ...) and one of labels or one for each class (0/1); EcoTaxa, COCO, Camtrap DP (datapackage.json); '
        'paths are relative to --data-dir, or else to the file', 'FILE',
    )  # fmt: skip
    image_column: str | None = option(
        None, DATA, 'column of images in tables (default: path, file, image, image_id, ..., whichever is there)', 'NAME'
    )
    label_column: str | None = option(
        None, DATA, 'column of labels (default: label, class, species, dx, ..., whichever is there)', 'NAME'
    )
    split_column: str | None = option(
        None, DATA,
        'column that says which images are train, val, test, ... (default in --table: split, set, ..., with train in '
        'it)', 'NAME',
    )  # fmt: skip
    crop: str | None = option(
        None, DATA,
        'an image for each box: "boxes" for those of the table (COCO, Camtrap DP), or a file with boxes, such as '
        "MegaDetector's results", 'boxes|FILE',
    )  # fmt: skip
    crop_confidence: float = option(0.2, DATA, 'leave out detected boxes below this confidence', 'F')
    class_names: str | None = option(
        None, DATA,
        'class names, one per line, for numeric labels: the first line names class 0 (default: the numbers)', 'FILE',
    )  # fmt: skip
    input_key: str | None = option(None, DATA, 'hfds: column of images; wds: their suffixes (jpg;png)', 'KEY')
    target_key: str | None = option(None, DATA, 'hfds: column of labels; wds: field of the json with them', 'KEY')
    group_column: str | None = option(
        None, DATA,
        'column of a table with the group of each image (its place, patient, specimen, burst): --val-fraction and '
        '--holdout keep a group on one side, and results are also given by group', 'NAME',
    )  # fmt: skip
    group_pattern: str | None = option(
        None, DATA,
        'regular expression that finds the group in the path of an image below its split (CLASS/NAME.jpg), or as a '
        'list has it: the first parentheses, or else the whole match', 'REGEX',
    )  # fmt: skip
    train_split: str = option('train', DATA, 'training split', 'NAME')
    val_split: str = option('val', DATA, 'evaluation split', 'NAME')
    imb_factor: float | None = option(None, DATA, 'cut the training images to this imbalance factor', 'N')
    val_fraction: float | None = option(
        None, DATA,
        'for data without evaluation images: evaluate on this fraction of every class and train on the rest (the same '
        'images in every run and stage, whatever --seed; --holdout takes further ones, for choices)', 'F',
    )  # fmt: skip
    val_seed: int = option(0, DATA, 'seed of the --val-fraction split', 'N')
