"""Training checkpoints, read without running anything in them."""

import argparse
import errno
import re
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals

from ride_timm.errors import RideError
from ride_timm.records.kinds import check_checkpoint
from ride_timm.records.tensors import check_archive

__all__ = ['NoCheckpointError', 'misfit', 'read_checkpoint']

_REFUSED = ('Unsupported global', 'unsupported GLOBAL', 'Trying to')  # what torch says of code in a file


class NoCheckpointError(RideError):
    """There is no checkpoint where one was looked for, or a damaged one."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a training checkpoint without running anything in it.

    Args:
        path: A file that our training, or timm's, wrote.

    Returns:
        The file's content; `state_dict` is there, and `args`, if it is, is a dict.

    Raises:
        NoCheckpointError: There is no such file, it is no checkpoint, or it is damaged.
        RideError: It cannot be read, names foreign classes, or one of its records holds something else than it should.
    """
    if not Path(path).is_file():
        raise NoCheckpointError(
            f'There is no checkpoint {path}; give the path of a last.pth.tar or model_best.pth.tar.'
        )
    try:
        check_archive(path)
        with safe_globals([argparse.Namespace]):  # timm's training keeps its arguments as one; it holds no code
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except RideError:
        raise
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # how reading beyond the end fails
            raise NoCheckpointError(_no_checkpoint(path)) from None
        raise RideError(f'{path} cannot be read ({error.strerror}); fix that, or name a copy.') from None
    except Exception as error:  # a damaged file fails in any way there is
        if any(words in str(error) for words in _REFUSED):
            raise RideError(
                f'{path} names Python classes next to tensors, which only `ride-timm convert` reads (without running '
                'them); convert an official file first, and do not load one that you do not trust.'
            ) from None
        raise NoCheckpointError(_no_checkpoint(path)) from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get('state_dict'), dict):
        raise NoCheckpointError(_no_checkpoint(path))
    if isinstance(checkpoint.get('args'), argparse.Namespace):
        checkpoint['args'] = vars(checkpoint['args'])
    check_checkpoint(checkpoint, str(path))
    return checkpoint


def misfit(error: Exception) -> str:
    """The last reason why tensors do not fit a network, with the first of its keys only, which can be hundreds.

    Args:
        error: What `load_state_dict` raised.
    """
    reason = str(error).strip().splitlines()[-1].strip().rstrip('.')
    return re.sub(r'(key\(s\) in state_dict: "[^"]*"), .*', r'\1, ...', reason)


def _no_checkpoint(path: str | Path) -> str:
    return f'{path} is not a training checkpoint, or a damaged one; give a last.pth.tar or model_best.pth.tar of a run.'
