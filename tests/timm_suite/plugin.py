"""pytest plugin that turns timm's own model tests, unmodified, to the architectures of this package.

timm's test file asks `timm.list_models` what to test while it is imported; this plugin narrows the answer before that,
and deselects the tests that are written for one model of timm's.
"""

import fnmatch
import functools
import inspect
from collections.abc import Callable

import pytest
import timm
from timm.models import generate_default_cfgs, get_pretrained_cfg

from ride_timm.models._factory import register_entry_point
from ride_timm.models.ride_backbone import backbone_cfg, create_on_backbone
from ride_timm.models.ride_zoo import BACKBONES

MODULES = ('ride_resnet', 'ride_resnet_cifar')
# small backbones of timm's, one a family; they have a network of ours here alone
HOSTS = (
    'mobilenetv3_small_050',
    'swin_tiny_patch4_window7_224',
    'test_convnext',
    'test_efficientnet',
    'test_vit',
    'vit_tiny_patch16_dinov3_qkvb',
)
SMALL = ('test_ride_*', 'ride_resnet32_*', 'ride_resnet10_*', 'ride_resnet18_*')
# compares with reference files that only the Hub repositories of timm's own tiny weights have
NOT_FOR_US = ('test_model_inference',)

default_cfgs = generate_default_cfgs(
    {f'ride_{host}_3e': backbone_cfg(get_pretrained_cfg(host), 3) for host in HOSTS if host not in BACKBONES}
)
for host in HOSTS:
    if not timm.is_model(f'ride_{host}_3e'):
        create = functools.partial(create_on_backbone, backbone=host, num_experts=3)
        register_entry_point(__name__, f'ride_{host}_3e', f'RIDE on {host}.', create)
# name of the backbone, under which timm's lists know what is special about it, of each network of ours
HOST_OF = {f'ride_{host}_3e': host for host in (*HOSTS, *(name.partition('.')[0] for name in BACKBONES))}
OURS = [*timm.list_models(module=MODULES), *HOST_OF]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that the runner passes on."""
    parser.addoption('--ride-all', action='store_true', help='test every architecture instead of the small ones')


def pytest_configure(config: pytest.Config) -> None:
    """Narrow timm's lists, before any test file is imported."""
    patterns = ('*',) if config.getoption('--ride-all') else SMALL
    patterns += tuple(f'ride_{host}_3e' for host in HOSTS)
    chosen = {name for name in OURS if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    timm.list_models = _narrowed(timm.list_models, chosen)
    timm.list_pretrained = _narrowed(timm.list_pretrained, chosen - HOST_OF.keys())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the tests that were given one of our architectures."""
    kept = [item for item in items if _is_ours(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def _narrowed(function: Callable[..., list[str]], chosen: set[str]) -> Callable[..., list[str]]:
    signature = inspect.signature(function)

    def narrowed(*args: object, **kwargs: object) -> list[str]:
        arguments = signature.bind(*args, **kwargs).arguments
        # a backbone's weights are on the Hub alone
        hosts = set() if arguments.get('pretrained') else {name.partition('.')[0] for name in function(**arguments)}
        arguments.pop('module', None)  # some tests ask for timm's own modules by name
        names = [name for name in function(**arguments) if name.partition('.')[0] in chosen - HOST_OF.keys()]
        return names + sorted(name for name in chosen & HOST_OF.keys() if HOST_OF[name] in hosts)

    return narrowed


def _is_ours(item: pytest.Item) -> bool:
    if not isinstance(item, pytest.Function) or item.originalname in NOT_FOR_US or not hasattr(item, 'callspec'):
        return False
    name = item.callspec.params.get('model_name')
    if name in HOST_OF and item.module.__name__.endswith('named_checks'):
        return False  # the named checks are of ResNets, whose pooling may change after creation
    return isinstance(name, str) and name.partition('.')[0] in OURS
