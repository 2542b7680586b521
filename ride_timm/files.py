"""Files that are there whole or not at all, whenever the process is killed; and what a user names as an output."""

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from ride_timm.errors import RideError
from ride_timm.escaping import shortened

__all__ = ['check_folder', 'check_writable', 'sync_folder', 'write_whole', 'writing']


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file in one step: a reader, or a process after a kill, finds the old one or the new one.

    A symbolic link stays and what it points to is replaced. A device or a pipe, and what this process writes its
    standard output to, is written into.

    Args:
        path: The file; `<path>.tmp` is used on the way.
        content: Bytes, or text with the line ends it should have, to be written as UTF-8.

    Raises:
        OSError: It cannot be written.
    """
    data = content.encode() if isinstance(content, str) else content
    stream = _stream(path)
    if stream is not None:
        _write_into(stream, data)
        return
    path = _target(path)
    temporary = path.with_name(path.name + '.tmp')
    temporary.unlink(missing_ok=True)
    try:
        with temporary.open('xb') as file:
            with contextlib.suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))  # a file that is private stays so
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def writing(path: str | Path, option: str) -> Iterator[None]:
    """Say in one sentence that a file that the user named cannot be written.

    Args:
        path: The file.
        option: What it was named with, for the message, such as `--output`.

    Raises:
        RideError: An OSError was raised, other than that of a reader that has gone.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise _refusal(path, option, error) from error


def check_writable(path: str | Path | None, option: str) -> None:
    """Refuse a file that cannot be written, before what it is for is computed.

    Args:
        path: The file; None and '' pass.
        option: The argument's name, for the message.

    Raises:
        RideError: Its folder is missing or cannot be written to, it is a folder itself, or its name is too long.
    """
    if not path:
        return
    with writing(path, option):
        if _stream(Path(path)) is not None:
            writable = os.access(path, os.W_OK)
        else:
            target = _target(Path(path))
            target.with_name(target.name + '.tmp').exists()  # an error where the name is too long
            if not target.parent.is_dir():
                raise RideError(f'{option} {path} was given, but there is no folder {target.parent}; create it first.')
            writable = not target.is_dir() and os.access(target.parent, os.W_OK)
            writable = writable and (not target.exists() or os.access(target, os.W_OK))
    if not writable:
        raise RideError(f'{option} {path} cannot be written; choose another file.')


def check_folder(path: str | Path, option: str) -> None:
    """Refuse a folder that cannot be made or written to, before what it is for is computed.

    Args:
        path: The folder; it need not be there yet.
        option: The argument's name, for the message.

    Raises:
        RideError: It, or the next folder above it that is there, is none or cannot be written to.
    """
    with writing(path, option):
        place = next(place for place in (Path(path), *Path(path).absolute().parents) if place.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        found = 'cannot be written to' if place.is_dir() else 'is not a folder'
        raise RideError(f'{option} {path} was given, but {place} {found}; choose another folder.')


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a loss of power, where the system can."""
    if os.name == 'nt':  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # some network file systems refuse it
        os.fsync(descriptor)
    os.close(descriptor)


def _stream(path: Path) -> Path | int | None:
    """What is written into instead of being replaced: the path of a device or pipe, or a descriptor of ours."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # closed
            if os.path.samestat(found, os.fstat(descriptor)):
                return descriptor
    return None if stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) else path


def _target(path: Path) -> Path:
    """The file itself, where the path is a symbolic link."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path  # Path.resolve has other errors for circles


def _write_into(stream: Path | int, data: bytes) -> None:
    if isinstance(stream, int):
        (sys.stdout if stream == 1 else sys.stderr).flush()  # what was printed before comes before
    with open(stream, 'wb', closefd=isinstance(stream, Path)) as file:
        file.write(data)


def _refusal(path: str | Path, option: str, error: OSError) -> RideError:
    reason = error.strerror or type(error).__name__
    return RideError(f'{option} {shortened(path)} cannot be written ({reason}); choose another file or free space.')
