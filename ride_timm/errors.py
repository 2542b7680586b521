"""The error that a user can act on."""

from ride_timm.escaping import printable

__all__ = ['InstallationError', 'RideError', 'one_line']


class RideError(Exception):
    """Something the user can put right: what was found, what is allowed, what to do, in one sentence.

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
