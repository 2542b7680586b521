"""Files that are there whole or not at all, whenever the process is killed."""

import contextlib
import os
from pathlib import Path

__all__ = ['sync_folder', 'write_whole']


def write_whole(path: Path, text: str) -> None:
    """Write a text file in one step: a reader, or a process after a kill, finds the old one or the new one.

    Args:
        path: The file; `<path>.tmp` is used on the way.
        text: Its content, with the line ends it should have.
    """
    temporary = path.with_name(path.name + '.tmp')
    try:
        with temporary.open('w', encoding='utf-8', newline='') as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames in a folder last through a loss of power, where the system can."""
    if os.name == 'nt':  # Windows opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    with contextlib.suppress(OSError):  # some network file systems refuse it
        os.fsync(descriptor)
    os.close(descriptor)
