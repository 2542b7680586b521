"""Files of tensors: looked at before anything of them is inflated or built."""

import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from ride_timm.errors import RideError, reason_of

__all__ = ['check_archive', 'read_safetensors', 'read_shapes']


def check_archive(path: str | Path) -> None:
    """Check that the records of a file of `torch.save` are stored, as torch writes them, and whole.

    A deflated record of a few MB can take GBs of memory, and torch inflates it before it looks at any size.

    Args:
        path: The file; one that is no zip file passes.

    Raises:
        RideError: A record is compressed, or the records promise more bytes than the file has.
        Exception: The archive is damaged; `zipfile` has many errors for it.
    """
    if not zipfile.is_zipfile(path):
        with Path(path).open('rb') as file:
            if file.read(4) == b'PK\x03\x04':  # by which torch knows an archive, and finds its records in other ways
                raise zipfile.BadZipFile('no directory of its records')
        return
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
        if not stored or sum(record.file_size for record in records) > Path(path).stat().st_size:
            raise RideError(
                f'{path} holds compressed records, which torch.save never writes and which may inflate to any size; '
                'load it where it was made, and save it again with torch.save.'
            )
        damaged = archive.testzip()  # torch does not compare the checksums
    if damaged is not None:
        raise zipfile.BadZipFile(f'wrong checksum of {damaged}')


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file.

    Raises:
        RideError: It cannot be read, is none, or is damaged.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RideError(_damaged(path, error)) from None


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors of a safetensors file, from its header, which is compared with the file's size.

    Raises:
        RideError: As `read_safetensors`.
    """
    try:
        with safe_open(path, 'pt') as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise RideError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    return f'{path} is not a complete safetensors file ({reason_of(error, 200)}); get it again.'
