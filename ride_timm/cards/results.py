"""Reading `results.json`, the figures of a published weight, so that whatever is missing is named before it is used."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from ride_timm.errors import RideError
from ride_timm.records.kinds import CONFIG_SCHEMA
from ride_timm.records.schema import FLAG, OBJECT, TEXT, Schema, check_record, list_of, nullable, read_object, shown

__all__ = [
    'FORMAT',
    'SEED_FIGURES',
    'Results',
    'accuracies',
    'check_results',
    'comparable',
    'figures_only',
    'images_name',
    'is_plain',
    'is_registered',
    'range_of_images',
    'read_json',
    'read_results',
]  # fmt: skip

Results: TypeAlias = dict[str, Any]
"""Content of a `results.json`, as `ride-timm export` writes it: accuracies in percent, GMACs of an image."""

FORMAT = 1
"""The layout of `results.json` that is understood here."""

SEED_FIGURES = ('top1', 'balanced', 'many', 'medium', 'few', 'ece')
"""What is kept of each seed."""

_KINDS: dict[str, tuple[type, ...]] = {
    'a text': (str,),
    'a whole number': (int,),
    'a number': (int, float),
    'true or false': (bool,),
    'an object': (dict,),
    'a list': (list,),
}
_NEEDED = {
    'name': 'a text',
    'architecture': 'a text',
    'method': 'a text or null',
    'data': 'an object',
    'data.name': 'a text',
    'data.num_classes': 'a whole number',
    'data.train_images': 'a whole number',
    'data.imbalance_factor': 'a number or null',
    'data.test_images': 'a whole number',
    'network': 'an object',
    'network.parameters': 'a whole number',
    'network.gmacs': 'a number',
    'network.gmacs_by_experts': 'a list or null',
    'network.num_experts': 'a whole number',
    'network.router': 'true or false',
    'network.input_size': 'a list',
    'network.bytes': 'a whole number or null',
    'training': 'a list',
    'choices': 'an object or null',
    'test': 'an object',
    'test.all_experts': 'an object',
    'test.all_experts.top1': 'a number',
    'test.routed': 'an object or null',
    'test.sweep': 'a list or null',
    'test.groups': 'an object',
    'test.per_class': 'a list',
    'seeds': 'a list',
}
_ROUTED = dict.fromkeys(('top1', 'mean_experts', 'gmacs', 'threshold'), 'a number')
_CHOICES = {
    'held_out': 'an object',
    'held_out.images': 'a whole number or null',
    'held_out.fraction': 'a number or null',
    'training': 'a list',
    'threshold': 'a number',
}
_STAGE = {
    'stage': 'a text',
    'command': 'a text or null',
    'recipe': 'a text or null',
    'epochs': 'a whole number or null',
    'images': 'a whole number or null',
    'seconds': 'a number or null',
    'commit': 'a text or null',
}
_CLASS = {
    'label': 'a whole number',
    'name': 'a text',
    'train_images': 'a whole number',
    'test_images': 'a whole number',
    'accuracy': 'a number or null',
}
_SEED = {'seed': 'a whole number or null', 'top1': 'a number'}
_OPTIONAL: Schema = {
    'note': nullable(TEXT),
    'base_model': nullable(TEXT),
    'figures_only': nullable(FLAG),
    'data.source': nullable(TEXT),
    'data.datasets': nullable(list_of(TEXT)),
    'choices.rule': nullable(TEXT),
    'test.environment': nullable(OBJECT),
    'test.environment.commit': nullable(TEXT),
}
_OPTIONAL_OF_STAGE: Schema = {'environment': nullable(OBJECT)}


def read_results(path: str | Path) -> Results:
    """Read and check a `results.json`.

    Args:
        path: The file, or the folder of the weight that it lies in.

    Returns:
        Its content.

    Raises:
        RideError: It cannot be read, or a key is missing or holds something else.
    """
    file = Path(path)
    file = file / 'results.json' if file.is_dir() else file
    content = read_json(file)
    check_results(content, str(file))
    return content


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        file: The file.

    Returns:
        Its content.

    Raises:
        RideError: There is none, or it is not such a file.
    """
    return read_object(file, CONFIG_SCHEMA if file.name == 'config.json' else None)


def check_results(content: Mapping[str, Any], source: str = 'results.json') -> None:
    """Check that everything a card needs is there.

    Args:
        content: Of a `results.json`.
        source: What to call it in the message.

    Raises:
        RideError: A key is missing or holds something else.
    """
    if content.get('format') != FORMAT:
        raise RideError(
            f'{source} has "format" {content.get("format")!r} and this ride-timm reads {FORMAT}; '
            'write it again with `ride-timm export`, or install the ride-timm that wrote it.'
        )
    _check(content, _NEEDED, '', source)
    check_record(content, _OPTIONAL, source)
    test = content['test']
    if test['routed'] is not None:
        _check(test['routed'], _ROUTED, 'test.routed.', source)
    if content['choices'] is not None:
        _check(content['choices'], _CHOICES, 'choices.', source)
        _check_stages(content['choices']['training'], 'choices.training', source)
    _check_stages(content['training'], 'training', source)
    _check_rows(test['sweep'] or [], _ROUTED, 'test.sweep', source)
    _check_rows(test['per_class'], _CLASS, 'test.per_class', source)
    _check_rows(content['seeds'], _SEED, 'seeds', source)
    for key, rows in (('training', content['training']), ('seeds', content['seeds'])):
        if not rows:
            raise _wrong(source, key, 'holds nothing', 'a list with an entry')
    _check_classes(content, source)
    for key in ('all_experts', 'routed'):
        _check_numbers(test[key] or {}, f'test.{key}.', source)
    for index, row in enumerate(test['sweep'] or []):
        _check_numbers(row, f'test.sweep[{index}].', source)
    for key in ('gmacs_by_experts', 'input_size'):
        _check_numbers(dict(enumerate(content['network'][key] or [])), f'network.{key}.', source)


def comparable(results: Results, others: Sequence[Results]) -> list[Results]:
    """Those of other weights that were measured on the same data, checked and sorted by name.

    Args:
        results: Content of a `results.json`.
        others: The same of any weights.

    Returns:
        The others that a card or a figure may set beside it.

    Raises:
        RideError: As `check_results`.
    """
    for other in others:
        check_results(other, f'results.json of {other.get("name")}')
    own, data = results['name'], (results['data']['name'], images_name(results))
    same = [other for other in others if (other['data']['name'], images_name(other)) == data and other['name'] != own]
    return sorted(same, key=lambda other: str(other['name']))


def accuracies(results: Results) -> dict[str, str]:
    """What its accuracies are called, the leading one first, and their keys in its figures.

    Results that were written before the mean over classes was kept have the accuracy over images only.

    Args:
        results: Content of a `results.json`.
    """
    test = results['test']
    columns = [test['all_experts'], *(test['sweep'] or ()), *([test['routed']] if test['routed'] else [])]
    known = all(column.get('balanced') is not None for column in columns)
    from ride_timm.metrics import accuracy_labels  # here: `ride-timm weights` lists results without torch

    return accuracy_labels([row['test_images'] for row in test['per_class']] if known else ())


def range_of_images(results: Results) -> tuple[int, int]:
    """Fewest and most test images of a class that has any.

    Args:
        results: Content of a `results.json`.
    """
    images = [row['test_images'] for row in results['test']['per_class'] if row['test_images']]
    return min(images, default=0), max(images, default=0)


def images_name(results: Results) -> str:
    """What the images are that the figures were measured on: a run's own figures may be of held-out ones."""
    source = str(results['data'].get('source') or '')
    return 'held-out training images' if source.endswith('held out') else 'test images'


def figures_only(results: Results) -> bool:
    """Whether its tensors are left out: a network that others are only compared with."""
    return bool(results.get('figures_only', False))


def is_plain(results: Results) -> bool:
    """Whether it is the network that others are compared with: one expert, trained with cross-entropy."""
    return bool(results['network']['num_experts'] == 1 and results['method'] == 'ce')


def is_registered(results: Results) -> bool:
    """Whether the architecture is one of this package's; timm's own know nothing of experts."""
    return results['network']['gmacs_by_experts'] is not None


def _check(content: Any, needed: Mapping[str, str], prefix: str, source: str) -> None:
    for key, kinds in needed.items():
        value = content
        for part in key.split('.'):
            if not isinstance(value, Mapping) or part not in value:
                raise _wrong(source, prefix + key, 'is missing', kinds)
            value = value[part]
        if not any(_is_a(value, kind) for kind in kinds.split(' or ', 1 if 'null' in kinds else 0)):
            raise _wrong(source, prefix + key, f'holds {shown(value)}', kinds)


def _is_a(value: Any, kind: str) -> bool:
    if kind == 'null':
        return value is None
    if isinstance(value, bool):  # a number to Python
        return kind == 'true or false'
    return isinstance(value, _KINDS[kind]) and not (isinstance(value, float) and not math.isfinite(value))


def _check_rows(rows: list[Any], needed: Mapping[str, str], key: str, source: str) -> None:
    for index, row in enumerate(rows):
        _check(row, needed, f'{key}[{index}].', source)


def _check_stages(rows: list[Any], key: str, source: str) -> None:
    _check_rows(rows, _STAGE, key, source)
    for index, row in enumerate(rows):
        check_record(row, _OPTIONAL_OF_STAGE, f'{source}: "{key}[{index}]"')


def _check_numbers(figures: Mapping[Any, Any], prefix: str, source: str) -> None:
    for key, value in figures.items():
        if not _is_a(value, 'a number') and value is not None:
            raise _wrong(source, f'{prefix}{key}', f'holds {shown(value)}', 'a number or null')


def _check_classes(content: Mapping[str, Any], source: str) -> None:
    """Every class once in the table, and groups of classes that there are."""
    number = content['data']['num_classes']
    labels = [row['label'] for row in content['test']['per_class']]
    if not labels or len(labels) != number or sorted(labels) != list(range(number)):
        raise _wrong(source, 'test.per_class', f'has {len(labels)} rows', f'one row for each of the {number} classes')
    for name, members in content['test']['groups'].items():
        labelled = isinstance(members, list) and all(_is_a(label, 'a whole number') for label in members)
        if not labelled or not all(0 <= label < number for label in members):
            raise _wrong(source, f'test.groups.{name}', 'names other classes', f'a list of labels below {number}')


def _wrong(source: str, key: str, found: str, wanted: str) -> RideError:
    return RideError(f'{source}: "{key}" {found} and must be {wanted}; write it again with `ride-timm export`.')
