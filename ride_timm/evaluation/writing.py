"""What a run or an evaluation leaves behind for people and programs."""

import csv
import dataclasses
import io
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, SupportsInt

import torch

from ride_timm.escaping import csv_cell
from ride_timm.evaluation.metrics import ClassResult
from ride_timm.evaluation.one_pass import Measured
from ride_timm.evaluation.sweep import TOLERANCE, choose_threshold
from ride_timm.files import write_whole
from ride_timm.records.headline import accuracy_labels
from ride_timm.records.provenance import source_commit
from ride_timm.records.runs import plain, run_results
from ride_timm.version import __version__

__all__ = ['as_record', 'environment', 'format_metrics', 'write_json', 'write_per_class', 'write_results']

_WHERE = 'on held-out images, over images and over classes'
SHOWN = ('many', 'medium', 'few', 'worst_class', 'ece', 'mean_experts')


def environment() -> dict[str, Any]:
    """Versions, commit of the source and hardware, as they stand next to every result."""
    versions = {name: metadata.version(name) for name in ('torch', 'torchvision', 'timm')}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        'ride_timm': __version__,
        'python': platform.python_version(),
        **versions,
        'commit': source_commit(),
        'hardware': ', '.join(gpus) or f'{os.cpu_count()} CPU cores ({platform.machine()})',
    }


def as_record(found: Measured) -> dict[str, Any]:
    """What was measured, as `results.json` holds it."""
    groups = found.groups.groups if found.groups else {}
    return {
        'all_experts': dict(found.metrics),
        'routed': dict(found.routed) if found.routed is not None else None,
        'sweep': found.sweep,
        'groups': {name: [int(index) for index in members] for name, members in groups.items()},
        'per_class': [row.plain() for row in found.per_class],
        'environment': environment(),
    }


def format_metrics(metrics: Mapping[str, float], images: Iterable[SupportsInt]) -> str:
    """The results that matter most, on one line, in percent, the leading accuracy first.

    Args:
        metrics: Of `LongTailEvaluator`.
        images: (C,) evaluation images per class.
    """
    leading = list(accuracy_labels(images).values())
    names = (*leading, *(['macro_f1'] if len(leading) > 1 else []), *SHOWN)
    return ', '.join(f'{name} {metrics[name]:.2f}' for name in names if name in metrics)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write JSON in one step; what is not a number becomes null, which JSON has and NaN it has not."""
    write_whole(path, json.dumps(plain(content), indent=2, allow_nan=False) + '\n')


def write_per_class(path: Path, table: Sequence[ClassResult]) -> None:
    """Write the per-class table as CSV; what is not known of a class without images is left empty."""
    text = io.StringIO(newline='')
    writer = csv.writer(text)
    rows = [row.plain() for row in table]
    writer.writerow(rows[0])
    writer.writerows(map(csv_cell, row.values()) for row in rows)
    write_whole(path, text.getvalue())


def write_results(
    folder: Path,
    settings: Mapping[str, Any],
    record: Mapping[str, Any],
    last: Mapping[str, float],
    best: tuple[float | None, int | None],
    table: Sequence[ClassResult],
    found: Mapping[str, Any],
) -> None:
    """Write a run's `results.json`.

    Args:
        folder: The run's folder, with its `summary.csv`.
        settings: The run's options.
        record: What its checkpoints hold as `ride`.
        last: Results of the last epoch, routed in the router's stage.
        best: Best value of the ranking metric over all evaluated epochs, and the epoch of it, from 0.
        table: The results of each class in the last epoch.
        found: `source` of the images evaluated on, `own_epochs`, and in the router's stage `sweep` or `all_experts`.
    """
    facts = {
        'method': record.get('loss'),
        'evaluated_on': 'held_out' if record.get('holdout') else 'val_fraction' if record.get('val_part') else 'test',
        **_choice(settings, found),
        'segments': record.get('segments') or (),
        'environment': environment(),
        **found,
    }
    results = run_results(folder, settings, facts, last, [row.plain() for row in table])
    value, epoch = best
    ranked = {settings['eval_metric']: value, 'epoch': epoch}
    content = dataclasses.replace(
        results, last_epoch=settings['epochs'] - 1, last=dict(last), best_on_evaluation_images=ranked, args=settings
    )
    write_json(folder / 'results.json', content.to_json())


def _choice(settings: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """The threshold of a router, and what the rule takes on the images that were held out."""
    if 'sweep' not in found:
        return {}
    return {
        'threshold': settings['model_kwargs']['router_threshold'],
        'rule': f'fewest GMACs at most {TOLERANCE} points below all experts {_WHERE}',
        'rule_threshold': choose_threshold(found['sweep']),
        'by_hand': settings['router_threshold'] is not None,
    }
