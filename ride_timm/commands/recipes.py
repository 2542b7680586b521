"""`ride-timm recipes`: list the named training settings, or print one."""

import argparse
from collections.abc import Sequence

from ride_timm.commands.parser import Parser
from ride_timm.escaping import printable
from ride_timm.recipes import list_recipes, load_recipe, recipe_text

__all__ = ['build_parser', 'main']


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm recipes`."""
    parser = Parser(
        prog='ride-timm recipes', description='List the named training settings, or print one with its commands.'
    )
    parser.add_argument('name', nargs='?', metavar='NAME', help='the recipe to print')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """`ride-timm recipes`: list the recipes, or print one."""
    name = build_parser().parse_args(argv).name
    if name is not None:
        print('\n'.join(map(printable, recipe_text(name).splitlines())))
        return 0
    width = max(map(len, list_recipes()))
    for recipe in list_recipes():
        print(f'{recipe:<{width}}  {load_recipe(recipe).title}')
    print('\nride-timm recipes NAME prints one, with its commands and reference results.')
    return 0
