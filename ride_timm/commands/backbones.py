"""`ride-timm backbones`: which of timm's models can be a backbone, where they are cut, and what experts cost."""

import argparse
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import timm
import torch
from timm.layers import set_fused_attn, use_fused_attn

from ride_timm.commands.parser import Parser
from ride_timm.errors import RideError
from ride_timm.evaluation.cost import gmacs_by_experts
from ride_timm.models.ride_backbone import rideify
from ride_timm.models.ride_zoo import BACKBONES

__all__ = ['BackboneCost', 'backbone_cost', 'build_parser', 'main']


class BackboneCost(NamedTuple):
    """What experts on a backbone cost, without heads; parameters in millions, GMACs an image of `size` pixels."""

    name: str
    """timm's name."""
    split: str
    """The last module of the trunk."""
    size: int
    """Side of the image."""
    trunk: tuple[float, float]
    """Parameters and GMACs of the trunk."""
    expert: tuple[float, float]
    """Parameters and GMACs of one expert."""

    def total(self, experts: int) -> tuple[float, float]:
        """Parameters and GMACs of the trunk with this many experts; with one it is the plain backbone.

        That is what an image costs that leaves after the first expert, too.
        """
        parameters, macs = (a + experts * b for a, b in zip(self.trunk, self.expert, strict=True))
        return parameters, macs


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm backbones`."""
    parser = Parser(
        prog='ride-timm backbones',
        description='Print whether and where timm models are cut into trunk and experts, and the cost: parameters in '
        'millions / GMACs per image, without heads. The first exit costs as much as the plain backbone.',
    )
    parser.add_argument(
        'filter',
        nargs='*',
        metavar='FILTER',
        help="timm names or patterns, such as convnext_tiny or '*dinov3*' (default: those with a ride_* architecture)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """`ride-timm backbones`: print a table of backbones."""
    filters = build_parser().parse_args(argv).filter
    ours = {name for name in timm.list_models() if _is_ours(name)}
    names = list(dict.fromkeys(name.partition('.')[0] for name in BACKBONES))
    if filters:
        found = {each: [name for name in timm.list_models(each) if name not in ours] for each in filters}
        for each, matches in found.items():
            if not matches:
                raise RideError(f"timm has no model {each!r}; see timm.list_models(), and quote patterns like '*vit*'.")
        names = list(dict.fromkeys(name for matches in found.values() for name in matches))
    refused = []
    print('| backbone | size | cut after | trunk | one expert | plain, first exit | K = 2 | K = 3 | ratio at K = 3 |')
    print('|---|---:|---|---:|---:|---:|---:|---:|---:|')
    for name in names:
        try:
            print(_row(backbone_cost(name)), flush=True)
        except RideError as error:
            refused.append(f'{name}: {error}')
    print(f'\n{len(names) - len(refused)} of {len(names)} can be cut.')
    print('\n'.join(refused))
    return 0


def backbone_cost(name: str) -> BackboneCost:
    """Count what experts on a backbone cost, on the meta device.

    Raises:
        RideError: It cannot be cut.
    """
    fused = use_fused_attn()
    set_fused_attn(False)  # the counter knows matrix products alone
    try:
        with warnings.catch_warnings(), torch.device('meta'):
            warnings.simplefilter('ignore')  # on initialisation, which the meta device has none of
            net = rideify(timm.create_model(name), 2, num_classes=0)
    except RideError:
        raise
    except Exception as error:  # whatever a model of timm's says to the meta device or to missing packages
        raise RideError(f'{name} cannot be built here ({type(error).__name__}: {error}).') from error
    finally:
        set_fused_attn(bool(fused))
    images: Any = net.pretrained_cfg
    size = images['input_size']
    one, two = gmacs_by_experts(net, size)
    expert = sum(parameter.numel() for parameter in net.experts[0].parameters()) / 1e6
    trunk = sum(parameter.numel() for parameter in net.trunk.parameters()) / 1e6
    return BackboneCost(name, net.split, size[-1], (trunk, 2 * one - two), (expert, two - one))


def _is_ours(name: str) -> bool:
    return timm.model_entrypoint(name).__module__.startswith('ride_timm.')


def _row(cost: BackboneCost) -> str:
    cells = [f'{parameters:.1f} / {macs:.3f}' for parameters, macs in (cost.trunk, cost.expert)]
    cells += ['{:.1f} / {:.3f}'.format(*cost.total(experts)) for experts in (1, 2, 3)]
    ratio = cost.total(3)[1] / cost.total(1)[1]
    return f'| {cost.name} | {cost.size} | {cost.split} | ' + ' | '.join(cells) + f' | {ratio:.2f} |'
