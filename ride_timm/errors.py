"""The error that a user can act on."""

__all__ = ['RideError']


class RideError(Exception):
    """Something the user can put right: what was found, what is allowed, what to do, in one sentence.

    The command line prints the message as one line and exits with status 2; from Python it is an ordinary exception.
    """
