"""Named training settings, one YAML file each."""

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ride_timm.errors import RideError

__all__ = ['list_recipes', 'load_recipe', 'recipe_text']


def list_recipes() -> list[str]:
    """Names of the recipes that come with the package, sorted."""
    files = resources.files(__package__).iterdir()
    return sorted(file.name.removesuffix('.yaml') for file in files if file.name.endswith('.yaml'))


def recipe_text(name: str) -> str:
    """The text of a recipe.

    Args:
        name: A name of `list_recipes()`, or the path of a YAML file.

    Raises:
        RideError: There is no such recipe.
    """
    if name in list_recipes():
        return resources.files(__package__).joinpath(f'{name}.yaml').read_text(encoding='utf-8')
    if Path(name).is_file():
        return Path(name).read_text(encoding='utf-8')
    close = difflib.get_close_matches(name, list_recipes(), n=1)
    hint = f', did you mean {close[0]}?' if close else ''
    raise RideError(f'There is no recipe {name}{hint}; choose one of `ride-timm recipes` or the path of a YAML file.')


def load_recipe(name: str) -> dict[str, Any]:
    """The arguments that a recipe sets, by their Python names (`batch_size`, not `--batch-size`).

    Args:
        name: A name of `list_recipes()`, or the path of a YAML file.

    Raises:
        RideError: There is no such recipe, or it is not a YAML mapping.
    """
    try:
        recipe = yaml.safe_load(recipe_text(name))
    except yaml.YAMLError as error:
        raise RideError(
            f'The recipe {name} is not valid YAML ({" ".join(str(error).split())}); mend the file.'
        ) from None
    if not isinstance(recipe, dict):
        raise RideError(f'The recipe {name} holds no `argument: value` lines; write some, as in `ride-timm recipes`.')
    return {str(key).replace('-', '_'): value for key, value in recipe.items()}
