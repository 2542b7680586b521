"""Configurations of trainings, as a command line makes them."""

import shlex

from ride_timm.commands.train import parse
from ride_timm.training.resolve import start


def resolved(argv):
    """What `ride-timm train` with these arguments resolves to before it looks at the data."""
    return start(parse(argv), shlex.join(['ride-timm', 'train', *argv]))
