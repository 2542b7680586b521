"""Named training settings, one YAML file each."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ride_timm.errors import RideError, did_you_mean
from ride_timm.escaping import shortened
from ride_timm.records.schema import FLAG, OBJECT, TEXT, check_record, list_of, parse_object, read_text

__all__ = ['Recipe', 'list_recipes', 'load_recipe', 'recipe_text']


_FACTS = {'title': TEXT, 'reference': list_of(OBJECT), 'measured': list_of(TEXT), 'pick_rest': FLAG}


@dataclass(frozen=True)
class Recipe:
    """Named settings of a training.

    Attributes:
        title: What it is, in a line.
        reference: Results that others report: `overall` accuracy in percent and its `spread`, or `mean_experts` and
            `gmacs` of a router, the `source`, and a `note` on what differs.
        measured: Names of the published results of this recipe.
        pick_rest: Whether what it leaves out is picked from the images and the machine, as without a recipe.
        options: By their Python names (`batch_size`, not `--batch-size`).
    """

    title: str
    reference: tuple[Mapping[str, Any], ...]
    measured: tuple[str, ...]
    pick_rest: bool
    options: Mapping[str, Any]


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
    hint = did_you_mean(name, list_recipes(), '.')
    raise RideError(
        f'There is no recipe {shortened(name)}{hint} Choose one of `ride-timm recipes` or the path of a YAML file.'
    )


def load_recipe(name: str) -> Recipe:
    """Read a recipe.

    Args:
        name: A name of `list_recipes()`, or the path of a YAML file.

    Raises:
        RideError: There is no such recipe, it is not a YAML mapping, or its title or results are damaged.
    """
    content = parse_object(recipe_text(name), f'The recipe {name}', 'YAML')
    facts = {key: content.pop(key) for key in _FACTS if content.get(key) is not None}
    check_record(facts, _FACTS, f'The recipe {name}')
    return Recipe(
        title=facts.get('title', ''),
        reference=tuple(facts.get('reference', ())),
        measured=tuple(facts.get('measured', ())),
        pick_rest=facts.get('pick_rest', False),
        options={key.replace('-', '_'): value for key, value in content.items()},
    )
