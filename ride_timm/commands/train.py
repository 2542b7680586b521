"""`ride-timm train`, under torchrun `python -m ride_timm train`."""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence

from ride_timm.commands.options import add_options, chosen
from ride_timm.commands.parser import Parser
from ride_timm.training.config import LOSSES, TrainConfig

__all__ = ['build_parser', 'main', 'parse']

_NO_SUCH_LOSS = f'the losses here are --loss {", ".join(LOSSES)}, and --smoothing goes with ce and focal'
_OF_TIMM = dict.fromkeys(
    ('--bce-loss', '--bce-sum', '--bce-target-thresh', '--bce-pos-weight', '--jsd-loss'), _NO_SUCH_LOSS
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm train`; what is not given is None, and picked later."""
    parser = Parser(
        prog='ride-timm train',
        usage='%(prog)s --data-dir DIR [options]',
        description='Train a RIDE network, or any timm classifier, on long-tailed images.',
    )
    add_options(parser, TrainConfig)
    parser.foreign = _OF_TIMM
    return parser


def parse(argv: Sequence[str] | None = None) -> TrainConfig:
    """What a command line asks for."""
    return chosen(build_parser().parse_args(argv), TrainConfig)


def main(argv: Sequence[str] | None = None) -> int:
    """Train from a command line; exit status 143 and 130 after SIGTERM and SIGINT."""
    config = parse(argv)
    command = shlex.join(['ride-timm', 'train', *(sys.argv[1:] if argv is None else argv)])

    from ride_timm.logs import setup_logging
    from ride_timm.training.interrupt import Interrupted  # torch: not for --help
    from ride_timm.training.run import train

    setup_logging(logging.WARNING if config.quiet else logging.INFO)
    try:
        train(config, command)
    except Interrupted as stopped:
        logging.getLogger(__name__).warning(str(stopped))
        return stopped.status
    except KeyboardInterrupt:
        return 130
    return 0
