"""Checks of the options that losses are made with."""

import math
from numbers import Integral, Real

from ride_timm.errors import RideError


def check_epoch(epoch: int) -> None:
    """Checks that an epoch index is counted from 0.

    Args:
        epoch: The index.

    Raises:
        ValueError: If it is negative.
    """
    if epoch < 0:
        raise ValueError(f'The epoch is {epoch}, but epochs are counted from 0.')


def check_number(
    name: str, value: object, low: float = -math.inf, high: float = math.inf, exclusive: bool = False
) -> None:
    """Checks a numeric option of a loss.

    Args:
        name: The option as the user spells it.
        value: Its value.
        low: The least allowed value.
        high: The largest allowed value.
        exclusive: Whether the limits themselves are refused.

    Raises:
        RideError: If the value is no finite number within the limits.
    """
    # a number written 5e-4 in YAML arrives as text, hence the check of the type
    if isinstance(value, Real) and math.isfinite(value):
        number = float(value)
        if low < number < high or (number in (low, high) and not exclusive):
            return
    allowed = 'a finite number'
    if math.isfinite(low):
        allowed += f' {"above" if exclusive else "of at least"} {low:g}'
    if math.isfinite(high):
        allowed += f' and {"below" if exclusive else "at most"} {high:g}'
    raise RideError(f'{name} is {value!r}, but must be {allowed}.')


def check_integer(name: str, value: object, low: int) -> None:
    """Checks an option that is a whole number.

    Args:
        name: The option as the user spells it.
        value: Its value.
        low: The least allowed value.

    Raises:
        RideError: If the value is not an integer of at least `low`.
    """
    if not isinstance(value, Integral) or int(value) < low:
        raise RideError(f'{name} is {value!r}, but must be a whole number of at least {low}.')


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Checks an option that takes one of a few words.

    Args:
        name: The option as the user spells it.
        value: Its value.
        choices: The allowed values.

    Raises:
        RideError: If the value is not one of the choices.
    """
    if value not in choices:
        raise RideError(f'{name} is {value!r}, but must be one of {", ".join(map(repr, choices))}.')
