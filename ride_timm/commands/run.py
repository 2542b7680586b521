"""Run a timm script with our models registered: `ride-timm run validate.py --model ride_resnet50_4e ...`.

timm has no plugin mechanism, so its scripts (`train.py`, `validate.py`, `benchmark.py`, ...) do not know our models
until something imports this package. This does, and then runs the script unchanged, as `python SCRIPT ARGS` would.
Under torchrun: `torchrun --nproc_per_node 2 -m ride_timm run train.py ...`.

One thing differs from `python SCRIPT`. timm's scripts lie in the root of its repository next to a folder `timm`, which
would win over the installed timm. The script's folder is therefore put on the import path only where it holds no
`timm`, and the script sees the timm that this package runs on. `python -m ride_timm run` itself takes a `timm` from
the current folder, as Python does with `-m`; a note on standard error says so, `ride-timm run` does not have this.
"""

import argparse
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

import timm

from ride_timm.commands.parser import Parser
from ride_timm.errors import RideError

__all__ = ['build_parser', 'main']


def build_parser() -> argparse.ArgumentParser:
    """The options of `ride-timm run`."""
    parser = Parser(
        prog='ride-timm run', description='Run a timm script, such as validate.py, with the ride_* models registered.'
    )
    parser.add_argument('script', metavar='SCRIPT', help='path of the script')
    parser.add_argument('args', metavar='ARGS', nargs=argparse.REMAINDER, help='its arguments, passed on as they are')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a script as `__main__`.

    Args:
        argv: The script and its arguments; None means the arguments of the process.

    Returns:
        The exit status 0; a script that exits by itself raises its SystemExit through this.

    Raises:
        RideError: There is no such script.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    # what follows the script is its own, also --help and --, which a parser would take
    script = Path(build_parser().parse_args(arguments[:1]).script)
    if not script.is_file():
        found = 'is a folder' if script.is_dir() else 'does not exist'
        raise RideError(f"{script} {found}; give the path of a script, such as timm's validate.py.")
    folder = script.resolve().parent
    if Path(timm.__file__).resolve().parent.parent in (folder, Path.cwd()):
        print(f'ride-timm run: note: timm {timm.__version__} is imported from {timm.__path__[0]}', file=sys.stderr)
    old_argv, old_path = sys.argv, sys.path
    sys.argv = [str(script), *arguments[1:]]
    sys.path = [*old_path] if (folder / 'timm').is_dir() else [str(folder), *old_path]
    try:
        runpy.run_path(str(script), run_name='__main__')
    finally:
        sys.argv, sys.path = old_argv, old_path
    return 0
