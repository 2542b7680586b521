"""The error that a user can act on."""

import difflib
from collections.abc import Iterable

from ride_timm.escaping import printable

__all__ = ['InstallationError', 'RideError', 'did_you_mean', 'one_line', 'reason_of']


class RideError(Exception):
    """Something the user can fix: what was found, what is allowed, what to do, in one sentence.

    The command line prints the message as one line and exits with status 2; from Python it is an ordinary exception.
    """


class InstallationError(RideError, ImportError):
    """torch, torchvision, timm or this package cannot be imported: why, and the command that repairs it."""


def one_line(error: BaseException) -> str:
    """The sentence of an error as one printable line, also when it comes out of a data-loading worker process.

    PyTorch raises a worker's error again in the main process with the worker's whole traceback as its message; the
    sentence is then what stands after the last mention of the error's type.

    Args:
        error: Any exception; meant for `RideError`.

    Returns:
        The message without line breaks and control characters.
    """
    marker = f'{type(error).__module__}.{type(error).__qualname__}: '
    return printable(' '.join(str(error).rpartition(marker)[2].split()))


def reason_of(error: BaseException, longest: int = 500) -> str:
    """Another library's error as a clause: one line without its full stop.

    Args:
        error: Any exception; without words its type stands for it.
        longest: Characters to keep.
    """
    return ' '.join(str(error).split())[:longest].rstrip('.') or type(error).__name__


def did_you_mean(name: str, known: Iterable[str], otherwise: str = '', cutoff: float = 0.6) -> str:
    """The end of a clause that refuses a name: `, did you mean NAME?` where a known one is close.

    Args:
        name: What was given.
        known: What there is; the first that starts with the name, else the most similar one, is meant.
        otherwise: The end of the clause where none is close.
        cutoff: How similar a name must be, from 0 to 1.
    """
    names = list(known)
    begun = [candidate for candidate in names if name and candidate.startswith(name)]
    close = begun or difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f', did you mean {close[0]}?' if close else otherwise
