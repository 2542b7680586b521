"""`ride-timm card`: the model cards of published networks, written from their `results.json`; nothing is measured."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ride_timm.commands.parser import Parser
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.pages.card import update_model_card, write_card
from ride_timm.publishing.index import renew_entry
from ride_timm.records.results import read_results

__all__ = ['build_parser', 'main']


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm card`."""
    parser = Parser(
        prog='ride-timm card',
        description='Rewrite the cards of published networks from their results.json, with plots that compare '
        'those on the same data, and update the hashes in the index next to them; nothing is measured.',
    )
    parser.add_argument('folders', nargs='+', metavar='DIR', help='folders that ride-timm package wrote')
    parser.add_argument(
        '--model-card', metavar='FILE', help='also update the table in this page, next to the folder weights/'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write cards from a command line."""
    args = build_parser().parse_args(argv)
    folders = [Path(folder) for folder in args.folders]
    everything = [read_results(folder) for folder in folders]
    names = [str(results.name) for results in everything]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RideError(f'Two of the folders hold {twice}; name each once.')
    for folder, results in zip(folders, everything, strict=True):
        write_card(folder, everything)
        listed = ', its hashes entered into the index' if renew_entry(folder.resolve()) else ''
        print(printable(f'{folder / "README.md"}: {results.name}{listed}'))
    if args.model_card:
        page = Path(args.model_card)
        update_model_card(page, everything)
        print(f'{page}: {len(everything)} networks')
    return 0
