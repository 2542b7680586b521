"""webdataset shards: tar files whose members `KEY.jpg` and `KEY.cls` (or a field of `KEY.json`) make one sample.

timm's parser says which shards make a split. Its reader then streams them and passes over samples that it cannot read,
so nothing could be counted, sampled by class, split or checked; here the members are listed once, and read by position.
"""

import io
import json
import logging
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from timm.data import create_dataset

from ride_timm._compat import Reader, quiet_shards, shard_names
from ride_timm.data.sources.base import Source, split_names, wrap_reader
from ride_timm.data.sources.lists import read_class_names
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.installation import require

__all__ = ['ShardReader', 'read_shards']

_logger = logging.getLogger(__name__)

_NAMES_FILE = 'classnames.txt'  # where CLIP's benchmark data sets have them
_IMAGES = 'jpg;jpeg;png;webp'  # timm's default, which leaves jpeg out


class _Member(NamedTuple):
    """A file in a shard: its name there, where its bytes begin, and how many they are."""

    shard: str
    name: str
    start: int
    size: int


class ShardReader(Reader):
    """timm reader of images that lie at known places in tar files.

    Args:
        members: Place of each image.
    """

    def __init__(self, members: Sequence[_Member]) -> None:
        super().__init__()
        self.members = list(members)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        return io.BytesIO(_read(self.members[index])), -1

    def __len__(self) -> int:
        return len(self.members)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        member = self.members[index]
        if basename:
            return Path(member.name).name
        return f'{member.shard if absolute else Path(member.shard).name}/{member.name}'


def read_shards(
    data_dir: str | Path | None,
    dataset: str,
    split: str,
    names: Sequence[str] | None = None,
    *,
    input_key: str | None = None,
    target_key: str | None = None,
    tell: bool = True,
) -> Source:
    """Open the shards of a split.

    Args:
        data_dir: Folder of the shards, with or without an `_info.json` in timm's form.
        dataset: `wds` or `wds/<anything>`.
        split: A name in `_info.json`; `train` or `val` for files that begin with it or with another name for it, or
            lie in a folder of that name; or the files themselves (`train-{0000..0015}.tar`).
        names: What numbers stand for, see `name_labels`; by default the lines of a `classnames.txt` in the folder.
        input_key: Suffixes of images, separated by `;`.
        target_key: Field of `KEY.json` that holds the label; without it the text of `KEY.cls` is the label.
        tell: As in `name_labels`.

    Returns:
        The samples in the order of the shards.

    Raises:
        RideError: If `webdataset` is not installed, there are no shards, one cannot be read, or a sample lacks an image
            or a label.
    """
    require('A data set in shards (wds)', 'webdataset', 'webdataset')
    if data_dir is None or not Path(data_dir).is_dir():
        raise RideError(f'The folder of shards {data_dir} does not exist; give it with --data-dir.')
    written = Path(data_dir, _NAMES_FILE)
    if names is None and written.is_file():
        names = read_class_names(written)
    suffixes = (input_key or _IMAGES).split(';')
    members: list[_Member] = []
    labels: list[str] = []
    skipped = 0
    shards = _find_shards(Path(data_dir), dataset, split)
    for shard in shards:
        for key, files in _samples(shard):
            member, label = _image(files, suffixes, shard, key), _label(files, target_key, shard, key)
            skipped += label is None
            if label is not None:
                members.append(member)
                labels.append(label)
    text = f'{len(shards)} shards of {data_dir} ({split})' if len(shards) > 1 else shards[0]
    if not members:
        raise RideError(f'{text} holds no labelled image; it needs KEY.jpg and KEY.cls, or --target-key and KEY.json.')
    if skipped:
        _logger.warning('%d samples of %s are marked as unlabelled (-1) and left out', skipped, text)
    return wrap_reader(ShardReader(members), labels, text, names=names, tell=tell)


def _find_shards(root: Path, dataset: str, split: str) -> list[str]:
    """The shards of a split, by timm's parser where there is an `_info.json` or the files are named outright."""
    info = any((root / name).is_file() for name in ('_info.json', 'info.json'))
    candidates = list(split_names(split)) if info else [split] if '.tar' in split else [_by_name(root, split)]
    for candidate in candidates:
        try:
            with quiet_shards(not info):
                opened = create_dataset(f'wds/{dataset.partition("/")[2]}', root=str(root), split=candidate)
        except RuntimeError:  # the split is not in the file
            continue
        except (KeyError, TypeError, ValueError) as error:
            raise RideError(f'{root}/_info.json is not as timm writes it ({error!r}); fix or remove it.') from error
        files = [str(root / name) for name in shard_names(opened)]
        absent = [file for file in files if not Path(file).is_file()]
        if absent:
            raise RideError(
                f'The shard {absent[0]} of the split "{split}" is not there; shards are read from local folders, so '
                'download it first.'
            )
        return files
    raise RideError(
        f'{root} has no shards of the split "{split}"; name another with --train-split or --val-split, or take a part '
        'of the training images with --val-fraction 0.2.'
    )


def _by_name(root: Path, split: str) -> str:
    """The tar files whose name begins with a name of the split, or in a folder of that name, as timm takes them."""
    for name in split_names(split):
        files = sorted(path for path in root.glob('*.tar') if path.name.startswith(name)) or sorted(
            root.glob(f'{name}/*.tar')
        )
        if files:
            return '::'.join(str(path.relative_to(root)) for path in files)
    raise RideError(
        f'{root} has no {split}*.tar; name the shards with --train-split and --val-split (such as '
        'data-{0000..0015}.tar), or take a part of the training images with --val-fraction 0.2.'
    )


def _samples(shard: str) -> Iterator[tuple[str, dict[str, _Member]]]:
    """The samples of a shard: a key, and its files by suffix; neighbours with the same key belong together."""
    from webdataset.tariterators import base_plus_ext

    key, files = None, dict[str, _Member]()
    try:
        with tarfile.open(shard, 'r:') as tar:
            for info in tar:
                prefix, suffix = base_plus_ext(info.name)
                if not info.isfile() or prefix is None or info.name.startswith('__'):
                    continue
                if key is not None and prefix != key:
                    yield key, files
                    files = {}
                key = prefix
                files[suffix.lower()] = _Member(shard, info.name, info.offset_data, info.size)
    except tarfile.TarError as error:
        raise RideError(f'The shard {shard} cannot be read ({error}); replace it with a plain tar file.') from error
    if key is not None:
        yield key, files


def _image(files: dict[str, _Member], suffixes: Sequence[str], shard: str, key: str) -> _Member:
    found = next((files[suffix] for suffix in suffixes if suffix in files), None)
    if found is None:
        raise RideError(
            f'The sample {printable(key)} of {shard} has {", ".join(sorted(files))} and no image '
            f'({", ".join(suffixes)}); name its suffix with --input-key.'
        )
    return found


def _label(files: dict[str, _Member], target_key: str | None, shard: str, key: str) -> str | None:
    """The label as text; None for a sample that is marked as unlabelled, with -1."""
    wanted = 'cls' if target_key is None else 'json'
    where = f'sample {printable(key)} of {shard}'
    if wanted not in files:
        hint = 'name the field of its json with --target-key' if 'json' in files else 'add it'
        raise RideError(f'The {where} has {", ".join(sorted(files))} and no {wanted} with a label; {hint}.')
    data = _read(files[wanted])
    value: Any = None
    try:
        value = data.decode().strip() if target_key is None else json.loads(data)[target_key]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RideError(f'The label of the {where} cannot be read ({error!r}); fix its {wanted}.') from error
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == '':
        raise RideError(f'The label of the {where} is {value!r}; every image needs one class, a name or a number.')
    return None if str(value) == '-1' else str(value).strip()


def _read(member: _Member) -> bytes:
    with Path(member.shard).open('rb') as file:
        file.seek(member.start)
        return file.read(member.size)
