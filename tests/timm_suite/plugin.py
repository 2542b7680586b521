"""pytest plugin that turns timm's own model tests, unmodified, to the architectures of this package.

timm's test file asks `timm.list_models` what to test while it is imported; this plugin narrows the answer before that,
and deselects the tests that are written for one model of timm's.
"""

import fnmatch
import inspect
from collections.abc import Callable

import pytest
import timm

import ride_timm  # noqa: F401  registers the architectures

MODULES = ('ride_resnet', 'ride_resnet_cifar')
SMALL = ('test_ride_*', 'ride_resnet32_*', 'ride_resnet10_*', 'ride_resnet18_*')
# compares with reference files that only the Hub repositories of timm's own tiny weights have
NOT_FOR_US = ('test_model_inference',)

OURS = timm.list_models(module=MODULES)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that the runner passes on."""
    parser.addoption('--ride-all', action='store_true', help='test every architecture instead of the small ones')


def pytest_configure(config: pytest.Config) -> None:
    """Narrow timm's lists, before any test file is imported."""
    patterns = ('*',) if config.getoption('--ride-all') else SMALL
    chosen = {name for name in OURS if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    timm.list_models = _narrowed(timm.list_models, chosen)
    timm.list_pretrained = _narrowed(timm.list_pretrained, chosen)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that were given one of our architectures."""
    kept = [item for item in items if _is_ours(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _narrowed(function: Callable[..., list[str]], chosen: set[str]) -> Callable[..., list[str]]:
    signature = inspect.signature(function)

    def narrowed(*args: object, **kwargs: object) -> list[str]:
        arguments = signature.bind(*args, **kwargs).arguments
        arguments.pop('module', None)  # some tests ask for timm's own modules by name
        return [name for name in function(**arguments) if name.partition('.')[0] in chosen]

    return narrowed


def _is_ours(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or item.originalname in NOT_FOR_US or not hasattr(item, 'callspec'):
        return False
    name = item.callspec.params.get('model_name')
    return isinstance(name, str) and name.partition('.')[0] in OURS
