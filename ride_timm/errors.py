"""The error that a user can act on."""

__all__ = ['RideError', 'one_line']


class RideError(Exception):
    """Something the user can put right: what was found, what is allowed, what to do, in one sentence.

    The command line prints the message as one line and exits with status 2; from Python it is an ordinary exception.
    """


def one_line(error: BaseException) -> str:
    """The sentence of an error as one line, also when the error comes out of a data-loading worker process.

    PyTorch raises a worker's error again in the main process with the worker's whole traceback as its message; the
    sentence is then what stands after the last mention of the error's type.

    Args:
        error: Any exception; meant for `RideError`.

    Returns:
        The message without line breaks.
    """
    marker = f'{type(error).__module__}.{type(error).__qualname__}: '
    return ' '.join(str(error).rpartition(marker)[2].split())
