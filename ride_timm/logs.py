"""Log lines and progress bars that do not disturb each other."""

import logging
import sys
import warnings

from PIL import Image

from ride_timm.escaping import printable

__all__ = ['clock', 'interactive', 'setup_logging']


def setup_logging(level: int = logging.INFO) -> None:
    """Send log lines to standard error, once, however often a command is called in a process."""
    if not logging.getLogger().handlers:
        logging.basicConfig()
        for handler in logging.getLogger().handlers:
            handler.setFormatter(_Printable())
    # not the root: other libraries would talk as well; __main__ is a command of ours run by `python -m`
    for package in ('ride_timm', 'timm', '__main__'):
        logging.getLogger(package).setLevel(level)
    logging.getLogger('huggingface_hub').propagate = False  # it has a handler of its own, and would say all twice
    # large images are what some data consist of; those beyond twice Pillow's limit are errors, with a sentence of ours
    warnings.filterwarnings('ignore', category=Image.DecompressionBombWarning)


class _Printable(logging.Formatter):
    """The message alone, in which names of files and classes command no terminal; tables keep their lines."""

    def format(self, record: logging.LogRecord) -> str:
        return '\n'.join(map(printable, super().format(record).split('\n')))


def interactive() -> bool:
    """Whether a person watches: progress bars are for terminals only."""
    return sys.stderr.isatty()


def clock(seconds: float) -> str:
    """A duration as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    return f'{minutes // 60}:{minutes % 60:02d}:{second:02d}'
