"""What a run or an evaluation leaves behind for people and programs."""

import csv
import io
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from numpy.typing import ArrayLike

from ride_timm.engine.files import write_whole
from ride_timm.engine.provenance import source_commit
from ride_timm.errors import RideError
from ride_timm.escaping import csv_cell, from_csv_cell
from ride_timm.metrics import ClassResult, accuracy_labels
from ride_timm.version import __version__

__all__ = ['environment', 'format_metrics', 'read_per_class', 'write_json', 'write_per_class', 'write_results']

SHOWN = ('many', 'medium', 'few', 'worst_class', 'ece', 'mean_experts')


def environment() -> dict[str, Any]:
    """Versions, commit of the source and hardware, as they stand beside every figure."""
    versions = {name: metadata.version(name) for name in ('torch', 'torchvision', 'timm')}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        'ride_timm': __version__,
        'python': platform.python_version(),
        **versions,
        'commit': source_commit(),
        'hardware': ', '.join(gpus) or f'{os.cpu_count()} CPU cores ({platform.machine()})',
    }


def format_metrics(metrics: Mapping[str, float], images: ArrayLike) -> str:
    """The results that matter most, on one line, in percent, the leading accuracy first.

    Args:
        metrics: Of `LongTailEvaluator`.
        images: (C,) evaluation images per class.
    """
    names = (*accuracy_labels(images).values(), *SHOWN)
    return ', '.join(f'{name} {metrics[name]:.2f}' for name in names if name in metrics)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON in one step; what is not a number becomes null, which JSON has and NaN it has not."""
    write_whole(path, json.dumps(_plain(content), indent=2, allow_nan=False) + '\n')


def write_per_class(path: Path, table: Sequence[ClassResult]) -> None:
    """Write the per-class table as CSV; what is not known of a class without images is left empty."""
    text = io.StringIO(newline='')
    writer = csv.writer(text)
    writer.writerow(ClassResult._fields)
    writer.writerows(map(csv_cell, row.plain().values()) for row in table)
    write_whole(path, text.getvalue())


def read_per_class(path: Path) -> list[dict[str, Any]]:
    """Read a `per_class.csv`.

    Args:
        path: The file.

    Returns:
        A row a class: `label`, `name`, `group`, `train_images`, `test_images`, `accuracy` (percent, or None).

    Raises:
        RideError: It cannot be read.
    """
    try:
        with path.open(newline='', encoding='utf-8') as file:
            return [_class_row(row) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RideError(f'{path} cannot be read ({error!r}); finish the run with --resume auto.') from error


def _class_row(row: Mapping[str, str]) -> dict[str, Any]:
    return {
        'label': int(row['label']),
        'name': from_csv_cell(row['name']),
        'group': row['group'],
        'train_images': int(row['train_images']),
        'test_images': int(row['test_images']),
        'accuracy': float(row['accuracy']) if row['accuracy'] else None,
    }


def write_results(
    path: Path,
    settings: Mapping[str, Any],
    last: Mapping[str, float],
    best: float | None,
    best_epoch: int | None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write a training run's results: the last epoch first, the best one named as what it is.

    Args:
        path: The JSON file.
        settings: The run's options.
        last: Figures of the last epoch.
        best: Best value of the ranking metric over all evaluated epochs.
        best_epoch: The epoch of it, from 0.
        more: What else was found, such as the router's `sweep`.
    """
    write_json(
        path,
        {
            'model': settings['model'],
            'last_epoch': settings['epochs'] - 1,
            'last': dict(last),
            **(more or {}),
            'best_on_evaluation_images': {settings['eval_metric']: best, 'epoch': best_epoch},
            'recipe': settings['recipe'],
            'seed': settings['seed'],
            'epochs': settings['epochs'],
            'environment': environment(),
            'args': dict(settings),
        },
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
