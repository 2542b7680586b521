"""Imports run one way through the house."""

import ast
from pathlib import Path

import pytest

import ride_timm

ROOT = Path(ride_timm.__file__).parent
LAYERS = [
    {'errors', 'version', 'escaping', 'tables', 'installation', 'options', 'files', 'values', 'logs', '_compat'},
    {'registration', 'recipes', 'records'},
    {'models'},
    {'losses', 'data'},
    {'tasks'},
    {'evaluation', 'inference'},
    {'training', 'publishing', 'pages'},
    {'commands', 'cli', '__main__', '__init__'},
]
"""From the lowest; a package imports from its own layer and from lower ones."""
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(path):
    """The packages of ours that a module imports, wherever in it."""
    package = path.relative_to(ROOT.parent).with_suffix('').parts[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = [*base, *(node.module or '').split('.')]
        elif isinstance(node, ast.Import):
            module = node.names[0].name.split('.')
        else:
            continue
        module = [part for part in module if part]
        if module[0] == 'ride_timm':
            names = [module[1]] if len(module) > 1 else [alias.name for alias in node.names]
            yield from (name for name in names if name in RANK)


@pytest.mark.parametrize('path', sorted(ROOT.rglob('*.py')), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    own = path.relative_to(ROOT).with_suffix('').parts[0]
    upwards = {name for name in imports(path) if RANK[name] > RANK[own]}
    assert own == '__init__' or not upwards
