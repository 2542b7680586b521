"""Hugging Face datasets, opened by timm's reader: from the Hub, a local folder of files, or a saved data set."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from timm.data import create_dataset

from ride_timm._compat import Reader
from ride_timm.data.sources.base import TRAIN_NAMES, Source, split_names, wrap_reader
from ride_timm.errors import RideError, reason_of
from ride_timm.installation import require
from ride_timm.logs import interactive

__all__ = ['read_hugging_face']

_SAVED = 'state.json'  # what `Dataset.save_to_disk` leaves in its folder


class _RowReader(Reader):
    """Another reader's rows, named by number, since images in tables have no names that tell them apart."""

    def __init__(self, reader: Any, text: str) -> None:
        super().__init__()
        self.reader = reader
        self.text = text

    def __getitem__(self, index: int) -> Any:
        return self.reader[index]

    def __len__(self) -> int:
        return len(self.reader)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        return f'row {index} of {self.text}' if absolute else f'row {index}'


class _SavedReader:
    """A single `Dataset` that was saved to disk, which timm's reader does not open; attributes as timm's has them."""

    def __init__(self, folder: str, input_key: str) -> None:
        import datasets

        self.image_key = input_key
        self.dataset: Any = datasets.load_from_disk(folder).cast_column(input_key, datasets.Image(decode=False))

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.dataset[index][self.image_key]
        return (io.BytesIO(image['bytes']) if image['bytes'] else Path(image['path']).open('rb')), -1

    def __len__(self) -> int:
        return len(self.dataset)


def read_hugging_face(
    data_dir: str | Path | None,
    dataset: str,
    split: str,
    names: Sequence[str] | None = None,
    *,
    input_key: str | None = None,
    target_key: str | None = None,
    tell: bool = True,
) -> Source:
    """Open a split of a Hugging Face data set.

    Args:
        data_dir: The library's cache; with `dataset='hfds'` the local data set itself (a folder of Parquet files, of
            images, or one written by `save_to_disk`).
        dataset: `hfds/<name on the Hub or path>`, or `hfds`.
        split: `train`, `val` (any of timm's names for it, or `test` where there is none of them), or the library's own
            notation, such as `train[:80%]`.
        names: What numbers stand for, where the data names no classes; see `name_labels`.
        input_key: Column of images; by default `image`, or the only one that holds images.
        target_key: Column of labels; by default `label`, or the only one that holds classes.
        tell: As in `name_labels`.

    Returns:
        Its rows, with the class names of the label column where it has some.

    Raises:
        RideError: If `datasets` is not installed, the data or the split is not there, or a column is missing or holds
            no labels.
    """
    require('A Hugging Face data set (hfds)', 'datasets', 'datasets')
    path = dataset.partition('/')[2] or str(data_dir or '')
    if not path:
        raise RideError(
            '--dataset hfds was given without a data set; use hfds/NAME, or --data-dir with a local folder.'
        )
    cache = str(data_dir) if data_dir is not None and '/' in dataset else None
    with _quiet_where_nobody_watches():
        features, found = _look(path, cache, split)
        text = f'hfds/{path} ({found})'
        image = _column(features, 'image', 'Image', input_key, '--input-key', text)
        target = _column(features, 'label', 'ClassLabel', target_key, '--target-key', text)
        reader = _open(path, cache, found, image, target)
    declared = getattr(features[target], 'names', None)
    if names is not None and declared is not None:
        raise RideError(f'--class-names is for labels that are numbers, and {text} names its classes; leave it out.')
    values = reader.dataset.select_columns([target])[:][target]
    labels = [_label(value, declared, row, text) for row, value in enumerate(values)]
    return wrap_reader(
        _RowReader(reader, text), labels, text,
        names=names if declared is None else tuple(declared), tell=tell, numbered=declared is None,
    )  # fmt: skip


@contextmanager
def _quiet_where_nobody_watches() -> Iterator[None]:
    """The library's progress bars are for terminals only."""
    import datasets

    silence = not interactive() and not datasets.are_progress_bars_disabled()
    if silence:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if silence:
            datasets.enable_progress_bars()


def _look(path: str, cache: str | None, split: str) -> tuple[Any, str]:
    """The columns, and the split that the data has under the asked name; timm's reader would invent missing columns."""
    import datasets

    if Path(path, _SAVED).is_file():
        if split not in TRAIN_NAMES:
            raise RideError(f'{path} is one saved data set without splits; take a part of it with --val-fraction 0.2.')
        return datasets.load_from_disk(path).features, split
    missing: Exception | None = None
    for name in split_names(split):
        try:
            return datasets.load_dataset(path, split=name, cache_dir=cache).features, name
        except ValueError as error:
            if 'Unknown split' not in str(error):
                raise _unopened(path, error) from error
            missing = missing or error  # of the name that was asked for
        except Exception as error:  # the library's and its file systems' own, without a common type
            raise _unopened(path, error) from error
    assert missing is not None
    raise RideError(
        f'The split "{split}" of hfds/{path} cannot be opened ({reason_of(missing)}); name another with --train-split '
        'or --val-split, or take a part of the training images with --val-fraction 0.2.'
    ) from missing


def _open(path: str, cache: str | None, split: str, image: str, target: str) -> Any:
    if Path(path, _SAVED).is_file():
        return _SavedReader(path, image)
    try:
        return create_dataset(f'hfds/{path}', root=cache, split=split, input_key=image, target_key=target).reader
    except Exception as error:  # as above; a column that holds no images
        raise _unopened(path, error) from error


def _unopened(path: str, error: Exception) -> RideError:
    return RideError(
        f'The Hugging Face data set {path} cannot be opened ({reason_of(error)}); check the name or give a folder.'
    )


def _column(features: Any, usual: str, kind: str, wanted: str | None, option: str, text: str) -> str:
    """The column that is asked for, the usual one, or the only one of its kind."""
    if wanted is None and usual not in features:
        alike = [name for name, feature in features.items() if type(feature).__name__ == kind]
        wanted = alike[0] if len(alike) == 1 else None
    column = wanted or usual
    if column not in features:
        raise RideError(f'{text} has no column "{column}" but {", ".join(features)}; choose one of them with {option}.')
    return column


def _label(value: Any, names: Sequence[str] | None, row: int, text: str) -> str:
    if isinstance(value, str) and value.strip():
        return value.strip()
    if isinstance(value, int) and 0 <= value < (len(names) if names is not None else value + 1):
        return str(int(value)) if names is None else names[value]
    raise RideError(
        f'Row {row} of {text} has the label {value!r}; every image needs one class, a name or a number from 0.'
    )
