"""`ride-timm weights`: the published networks, their results, and where they are."""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ride_timm.commands.parser import Parser
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.records.published import (
    PretrainedError,
    PublishedCheckpoint,
    package_root,
    published_weights,
    read_index,
)
from ride_timm.records.results import Results, read_results
from ride_timm.tables import lay_out

__all__ = ['build_parser', 'list_weights', 'main', 'weights_root']

_GROUPS = ('many', 'medium', 'few')


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm weights`."""
    parser = Parser(
        prog='ride-timm weights',
        description='List the published checkpoints: accuracy of all experts in percent (overall, and the mean over '
        'the frequent, medium and rare classes), GMACs per image, size, and location.',
    )
    parser.add_argument('--json', action='store_true', help='print JSON')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """List the weights from a command line."""
    args = build_parser().parse_args(argv)
    rows = list_weights()
    if args.json:
        print(json.dumps(rows, indent=2))
    elif rows:
        print(_table(rows))
    else:
        print('No weights are published with this version; `ride-timm recipes` lists what can be trained.')
    return 0


def list_weights() -> list[dict[str, Any]]:
    """The published weights, in the index's order.

    Returns:
        For each: `name`, `data`, `overall`, `many`, `medium`, `few` in percent, `gmacs` (giga multiply-adds of an
        image), `routed` (`overall` and `gmacs` with its router, or None), `bytes`, and where it is: `path`, or None if
        the tensors are not on this machine, and `hub` (`org/name@commit`), or None. What is not known is None.
    """
    return [_describe(checkpoint) for checkpoint in published_weights().values()]


def weights_root() -> tuple[Path, dict[str, PublishedCheckpoint]]:
    """The folder with the weights' index, and the weights: `RIDE_TIMM_WEIGHTS`, or what came with the package.

    Raises:
        RideError: There is none, or it cannot be understood.
    """
    chosen = os.environ.get('RIDE_TIMM_WEIGHTS')
    root = Path(chosen).expanduser() if chosen else package_root()
    try:
        return root, read_index(root)
    except PretrainedError as error:
        failure = str(error)
    raise RideError(failure)


def _describe(checkpoint: PublishedCheckpoint) -> dict[str, Any]:
    try:
        results: Results | None = read_results(checkpoint.folder)
    except RideError:
        results = None
    everything = {} if results is None else results.test.all_experts
    routed = None if results is None else results.test.routed
    sizes = [checkpoint.files[name].size for name in checkpoint.tensor_files]
    return {
        'name': checkpoint.name,
        'data': None if results is None else results.data.name,
        'overall': everything.get('top1'),
        **{name: everything.get(name) for name in _GROUPS},
        'gmacs': None if results is None or results.network is None else results.network.gmacs,
        'routed': None if routed is None else {'overall': routed['top1'], 'gmacs': routed['gmacs']},
        'bytes': sum(sizes) if sizes else None,
        'path': str(checkpoint.folder) if checkpoint.is_local else None,
        'hub': None if checkpoint.hub is None else f'{checkpoint.hub.repo_id}@{checkpoint.hub.revision}',
    }


def _table(rows: list[dict[str, Any]]) -> str:
    header = ['name', 'data', 'overall', *_GROUPS, 'GMACs', 'MB', 'where']
    cells = [
        [
            row['name'],
            printable(str(row['data'] or '-')),
            *(_number(row[key], 2) for key in ('overall', *_GROUPS)),
            _number(row['gmacs'], 4),
            _number(None if row['bytes'] is None else row['bytes'] / 1e6, 1),
            _where(row),
        ]
        for row in rows
    ]
    return '\n'.join(lay_out(list(zip(header, *cells, strict=True)), right=range(2, 8)))


def _number(value: float | None, places: int) -> str:
    return '-' if value is None else f'{value:.{places}f}'


def _where(row: dict[str, Any]) -> str:
    if row['path'] is not None:
        return printable(str(row['path']))
    if row['hub'] is None:
        return 'results only' if row['bytes'] is None else 'not available'
    repo_id, _, revision = row['hub'].partition('@')
    return f'{repo_id}@{revision[:7]}'
