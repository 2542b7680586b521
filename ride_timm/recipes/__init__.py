"""Named training settings, one YAML file each, and `ride-timm recipes`, which shows them."""

import argparse
import difflib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from ride_timm.errors import RideError
from ride_timm.escaping import printable, shortened
from ride_timm.parser import Parser
from ride_timm.records.schema import parse_object, read_text

__all__ = ['build_parser', 'list_recipes', 'load_recipe', 'main', 'recipe_text', 'recipe_title']


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    files = resources.files(__package__).iterdir()
    return sorted(file.name.removesuffix('.yaml') for file in files if file.name.endswith('.yaml'))


def recipe_text(name: str) -> str:
    """The text of a recipe.

    Args:
        name: A name of `list_recipes()`, or the path of a YAML file.

    Raises:
        RideError: There is no such recipe, or it cannot be read.
    """
    if name in list_recipes():
        return resources.files(__package__).joinpath(f'{name}.yaml').read_text(encoding='utf-8')
    try:
        is_file = Path(name).is_file()
    except OSError:  # a name that no file can have
        is_file = False
    if is_file:
        return read_text(Path(name), limit=2**20)
    close = difflib.get_close_matches(name, list_recipes(), n=1)
    hint = f', did you mean {close[0]}?' if close else '.'
    raise RideError(
        f'There is no recipe {shortened(name)}{hint} Choose one of `ride-timm recipes` or the path of a YAML file.'
    )


def recipe_title(name: str) -> str:
    """What a recipe is, in a line: the first comment of its file.

    Args:
        name: A name of `list_recipes()`, or the path of a YAML file.

    Raises:
        RideError: There is no such recipe, or it cannot be read.
    """
    lines = recipe_text(name).splitlines()
    return lines[0].lstrip('# ').rstrip('.') if lines and lines[0].startswith('#') else ''


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm recipes`."""
    parser = Parser(
        prog='ride-timm recipes', description='List the named training settings, or print one with its commands.'
    )
    parser.add_argument('name', nargs='?', metavar='NAME', help='the recipe to print')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """`ride-timm recipes`: list the recipes, or print one.

    Args:
        argv: The arguments; None means those of the process.

    Returns:
        The exit status, 0.

    Raises:
        RideError: There is no such recipe, or it cannot be read.
    """
    name = build_parser().parse_args(argv).name
    if name is not None:
        print('\n'.join(map(printable, recipe_text(name).splitlines())))
        return 0
    width = max(map(len, list_recipes()))
    for recipe in list_recipes():
        print(f'{recipe:<{width}}  {recipe_title(recipe)}')
    print('\nride-timm recipes NAME prints one, with its commands and what to expect of it.')
    return 0


def load_recipe(name: str) -> dict[str, Any]:
    """The arguments that a recipe sets, by their Python names (`batch_size`, not `--batch-size`).

    Args:
        name: A name of `list_recipes()`, or the path of a YAML file.

    Raises:
        RideError: There is no such recipe, or it is not a YAML mapping.
    """
    recipe = parse_object(recipe_text(name), f'The recipe {name}', 'YAML')
    return {key.replace('-', '_'): value for key, value in recipe.items()}
