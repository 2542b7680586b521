"""`summary.csv`: one row an epoch, in timm's layout."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ride_timm.files import write_whole

__all__ = ['prefixed', 'write_row']


def prefixed(kind: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics named as in `summary.csv`: `train_<name>`, `eval_<name>`."""
    return {f'{kind}_{name}': value for name, value in metrics.items()}


def write_row(
    path: Path, epoch: int, train: Mapping[str, float], evaluation: Mapping[str, float] | None, lr: float
) -> None:
    """Put an epoch's metrics after those of the epochs before it.

    Rows of the same and of later epochs go: a run that was killed between this row and its checkpoint repeats the
    epoch. timm's `update_summary` appends instead, which leaves such rows, halves of rows, and rows longer than the
    header where only some epochs are evaluated; here they have empty fields.

    Args:
        path: The CSV file, made where there is none.
        epoch: Index of the epoch, from 0.
        train: Metrics of the training, written as `train_<name>`.
        evaluation: Metrics of the evaluation, written as `eval_<name>`; None if there was none.
        lr: Learning rate at the start of the epoch.
    """
    row: dict[str, Any] = {'epoch': epoch}
    row.update(prefixed('train', train) | prefixed('eval', evaluation or {}))
    row['lr'] = lr
    rows = [*_rows_before(path, epoch), row]
    text = io.StringIO(newline='')
    writer = csv.DictWriter(text, fieldnames=_columns(rows), restval='')
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def _rows_before(path: Path, epoch: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    try:
        with path.open(newline='', encoding='utf-8') as file:
            rows = [{name: value for name, value in row.items() if name} for row in csv.DictReader(file)]
        return [row for row in rows if (row.get('epoch') or '').isdigit() and int(row['epoch']) < epoch]
    except (csv.Error, ValueError):  # no file of ours
        return []


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """Every name once, those of the fullest row first and in its order."""
    fullest = max(rows, key=len)
    return list(dict.fromkeys([*fullest, *(name for row in rows for name in row)]))
