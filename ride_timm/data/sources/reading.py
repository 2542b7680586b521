"""Which form a file that names images has, by its content, and its rows."""

import functools
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ride_timm.data.sources.camtrap import read_camtrap
from ride_timm.data.sources.coco import read_coco
from ride_timm.data.sources.list_lines import parse_lines, read_text
from ride_timm.data.sources.megadetector import read_megadetector
from ride_timm.data.sources.rows import GUESS, Columns, Listed
from ride_timm.data.sources.tables import divide, from_records, read_table
from ride_timm.errors import RideError, reason_of

__all__ = ['is_package', 'read_rows']

_logger = logging.getLogger(__name__)

_PACKAGE = 'datapackage.json'
_FORMS: tuple[tuple[frozenset[str], Callable[[dict[str, Any], str, bool], Listed]], ...] = (
    (frozenset({'images', 'annotations', 'categories'}), read_coco),
    (frozenset({'images', 'detection_categories'}), read_megadetector),
    (frozenset({'resources'}), read_camtrap),
)
"""The keys that tell what a JSON object is, and its reader."""


def is_package(folder: str | Path) -> bool:
    """Whether a folder is a data package, such as a Camtrap DP."""
    return Path(folder, _PACKAGE).is_file()


def read_rows(file: str | Path, columns: Columns = GUESS, labelled: bool = True) -> Listed:
    """Read the images that a file names, of whatever form it is.

    `path label` lines; CSV, TSV, JSON or JSON lines with named columns; ISIC's one-hot and EcoTaxa's tables; COCO and
    COCO Camera Traps; MegaDetector's results; Camtrap DP, by its `datapackage.json` or its folder.

    Args:
        file: The file.
        columns: Names of a table's columns; those that are None are guessed.
        labelled: Labels are needed; without them images that have none are taken too.

    Returns:
        A row for each image, or for each annotation.

    Raises:
        RideError: It cannot be read or is of no such form, or a row lacks an image or a label; names the line.
    """
    path = Path(file, _PACKAGE) if is_package(file) else Path(file)
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return _read(str(path), columns, labelled)  # which has the sentence
    return _known(str(path), columns, labelled, (facts.st_mtime_ns, facts.st_size, os.fspath(path.resolve())))


@functools.lru_cache(maxsize=2)  # a training asks for the splits, the training and the evaluation images of a file
def _known(file: str, columns: Columns, labelled: bool, state: tuple[int, int, str]) -> Listed:
    listed = _read(file, columns, labelled)
    if listed.notes or listed.contained:
        _logger.info('%s is read as %s', file, '; '.join((f'{listed.form} of {len(listed.rows)} rows', *listed.notes)))
    return listed


def _read(file: str, columns: Columns, labelled: bool) -> Listed:
    text = read_text(file, 'The list')
    if text.lstrip()[:1] in ('{', '['):
        found = _read_json(text, file, columns, labelled)
        if found is not None:
            return found
    table = divide(text, file, columns)
    listed = None if table is None else read_table(table, file, columns, labelled)
    if listed is not None:
        return listed
    if any(columns):
        raise RideError(
            f'{file} has no first line that names columns; leave --image-column, --label-column and the like out.'
        )
    return parse_lines(text, file, labelled)


def _read_json(text: str, file: str, columns: Columns, labelled: bool) -> Listed | None:
    """The rows of a JSON file; None where it is none and its name does not say so either."""
    try:
        content = _parse(text)
    except RecursionError:
        raise RideError(f'{file} is nested too deeply for a list of images; give another file.') from None
    except ValueError as error:
        if Path(file).suffix.lower() not in ('.json', '.jsonl'):
            return None
        raise RideError(f'{file} is not valid JSON ({reason_of(error, 200)}); correct it.') from None
    if isinstance(content, list) and content and all(isinstance(item, dict) for item in content):
        listed = read_table(from_records(content), file, columns, labelled)
        if listed is not None:
            return listed
    elif isinstance(content, dict):
        for keys, read in _FORMS:
            if keys <= content.keys():
                if any(columns):
                    named = ' and '.join(f'--{name}-column' for name, value in columns._asdict().items() if value)
                    raise RideError(f'{file} says itself which image has which label and group; leave {named} out.')
                return read(content, file, labelled)
    raise RideError(
        f'{file} is JSON of no form that is read: give a list of objects such as {{"image": "a.jpg", "label": "cat"}}, '
        'COCO, a Camtrap DP datapackage.json, or results of MegaDetector.'
    )


def _parse(text: str) -> Any:
    """The content of a JSON text, or the objects of JSON lines."""
    try:
        return json.loads(text)
    except ValueError:
        lines = [line for line in text.split('\n') if line.strip()]
        if len(lines) < 2 or not lines[0].rstrip().endswith('}'):
            raise
        return [json.loads(line) for line in lines]
