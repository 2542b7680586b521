"""The argument parser of every command: an error is one line, with the option that was probably meant."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from ride_timm.errors import did_you_mean
from ride_timm.escaping import printable

__all__ = ['Parser']


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser` whose errors do not hide below a page of usage, and name the closest option.

    Attributes:
        foreign: Options of other tools, and what there is here instead.
    """

    foreign: Mapping[str, str] = {}

    def __init__(self, **options: Any) -> None:
        """Options are named in full: `--split` is not `--split-column`."""
        super().__init__(allow_abbrev=False, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """As argparse does; an unknown option ends the program with the closest known one."""
        parsed, unknown = self.parse_known_args(args, namespace)
        self._refuse(unknown)
        return parsed

    def parse_intermixed_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """The same where options and positional arguments alternate."""
        parsed, unknown = self.parse_known_intermixed_args(args, namespace)
        self._refuse(unknown)
        return parsed

    def error(self, message: str) -> NoReturn:
        """End the program with status 2 and one line on standard error."""
        end = '' if message.endswith('?') else '.'
        self.exit(2, f'{self.prog}: error: {printable(message)}{end} See {self.prog} --help.\n')

    def _refuse(self, unknown: Sequence[str]) -> None:
        if not unknown:
            return
        option = next((word for word in unknown if word.startswith('-')), None)
        if option is None:
            self.error(f'unexpected argument: {" ".join(unknown)}')
        name = option.partition('=')[0]
        if name in self.foreign:
            self.error(f'there is no option {name}; {self.foreign[name]}')
        self.error(f'there is no option {name}{did_you_mean(name, self._option_string_actions)}')
