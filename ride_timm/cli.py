"""The console command `ride-timm`: one subcommand a module, imported only when it is called."""

import contextlib
import errno
import importlib
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from ride_timm.errors import RideError, did_you_mean, one_line
from ride_timm.escaping import printable, shortened
from ride_timm.registration import explained
from ride_timm.version import __version__

__all__ = ['COMMANDS', 'guarded', 'main', 'module_of']

COMMANDS = {
    'quickstart': 'train a small model on a long tail of handwritten digits and show what it has learned',
    'data': 'check images before training: class counts, unreadable and duplicate images',
    'train': 'train a model',
    'backbones': 'list the timm models that can be a backbone, and the cost of experts on them',
    'recipes': 'list the named training settings, or print one',
    'validate': 'evaluate a model: overall and many, medium and few-shot accuracy',
    'calibrate': 'calibrate confidences on held-out images, and measure which answers can be trusted',
    'route': 'choose a routing threshold, certified on images or for a budget',
    'report': 'write an HTML report on what a model can and cannot do',
    'predict': 'classify images and show the prediction of each expert',
    'demo': 'try a model in the browser',
    'weights': 'list the published checkpoints',
    'export': 'write a model as ONNX, with early exit, or for torch.export',
    'package': 'evaluate a finished run and package it with a model card',
    'card': 'rewrite the model cards of packaged folders',
    'publish': 'upload a run or a packaged folder to the Hugging Face Hub',
    'convert': 'convert a checkpoint of the RIDE authors for timm',
    'run': 'run a timm script with the RIDE models registered',
    'env': 'print versions and check the installation',
}

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `ride-timm COMMAND ...`.

    Returns:
        The exit status: 0, or 2 after an error of the user's.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ''
    if name in COMMANDS:
        return guarded(name, lambda: module_of(name).main(arguments[1:]))
    return guarded('', lambda: _without_command(name))


def _without_command(name: str) -> int:
    if name in ('', '-h', '--help'):
        print(_usage())
        return 0 if name else 2
    if name == '--version':
        print(f'ride-timm {__version__}')
        return 0
    raise RideError(f'There is no command {shortened(name)}{did_you_mean(name, COMMANDS, ";")} see ride-timm --help.')


def module_of(name: str) -> Any:
    """The module of a command, with `build_parser()` and `main(argv)`.

    Raises:
        InstallationError: torch, torchvision or timm cannot be imported.
    """
    with explained():
        return importlib.import_module(f'ride_timm.commands.{name}')


def guarded(name: str, command: Callable[[], int]) -> int:
    """Run a command; an error of the user's is one line on standard error.

    What the system refused and no code foresaw is such a line too: a file that may not be read, a full disk.
    A bug keeps its traceback.

    Args:
        name: The command's name, for the message.
        command: Returns the exit status.
    """
    program = f'ride-timm {name}'.rstrip()
    if isinstance(sys.stdout, io.TextIOWrapper):
        with contextlib.suppress(OSError):  # what was printed before cannot be written
            sys.stdout.reconfigure(errors='backslashreplace')  # not every terminal knows every letter of a class name
    try:
        return _flushed(command)
    except RideError as error:
        _complain(program, one_line(error))
        # PyTorch's error out of a loading process keeps itself alive, and with it the iterator: freed by a later
        # collection of garbage its processes are waited for in vain, ten seconds
        traceback.clear_frames(error.__traceback__)
        return 2
    except BrokenPipeError:
        _drop_output()
        return 1
    except OSError as error:
        sentence = _of_the_system(error)
        if sentence is None:
            raise
        if error.filename is None:
            _drop_output()
        _complain(program, sentence)
        return 2
    except MemoryError:
        _complain(program, 'Out of memory; use a smaller --batch-size, fewer --workers or smaller images.')
        return 2
    except KeyboardInterrupt:
        return 130


def _flushed(command: Callable[[], int]) -> int:
    """Run a command to the last letter of its output, while a reader that has gone can still be answered for."""
    try:
        status = command()
    except SystemExit:  # of the parser, after --help
        print(end='', flush=True)
        raise
    print(end='', flush=True)
    return status


def _of_the_system(error: OSError) -> str | None:
    """What the system refused, as a sentence; None where nobody can tell what it was about."""
    if error.strerror and isinstance(error.filename, (str, bytes)):
        path = shortened(os.fsdecode(error.filename))
        return f'{path} cannot be read or written ({error.strerror}); check its name, its permissions and the disk.'
    if error.errno in _FULL:
        return f'The output cannot be written ({error.strerror}); free disk space, or write it elsewhere.'
    return None


def _complain(program: str, text: str) -> None:
    with contextlib.suppress(OSError):  # standard error may be full too
        print(f'{program}: error: {printable(text)}', file=sys.stderr)


def _drop_output() -> None:
    """Let what nobody reads go nowhere, or Python complains of it when it ends."""
    with contextlib.suppress(OSError, ValueError):  # no file of the system's, or closed
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f'  {name:<{width}}  {text}' for name, text in COMMANDS.items()]
    return (
        'usage: ride-timm COMMAND [options]\n\n'
        + '\n'.join(lines)
        + '\n\nRun `ride-timm COMMAND --help` for the options.'
    )


if __name__ == '__main__':
    sys.exit(main())
