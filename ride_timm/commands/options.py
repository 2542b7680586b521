"""Options of the command line: made from the fields of dataclasses, and those that several commands share."""

import argparse
import ast
from collections.abc import Sequence
from typing import Any, TypeVar

from ride_timm.errors import RideError
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.taxonomy import Taxonomy, read_taxonomy
from ride_timm.options import Option, base_of, flag, kinds_of, options_of

__all__ = [
    'KeyValues',
    'add_abstain_option',
    'add_device_option',
    'add_loading_options',
    'add_model_argument',
    'add_options',
    'add_prior_option',
    'add_routing_options',
    'add_taxonomy_option',
    'broader_taxonomy',
    'chosen',
    'routing_threshold',
]  # fmt: skip

_Config = TypeVar('_Config')


class KeyValues(argparse.Action):
    """Collects `K=V ...` into a dict; values are Python literals, or else text."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: Any = None) -> None:
        """Set the dict, or end with argparse's message."""
        pairs = {}
        for pair in values:
            key, equals, value = pair.partition('=')
            if not equals:
                raise argparse.ArgumentError(self, f'{pair!r} is not of the form KEY=VALUE')
            try:
                pairs[key] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                pairs[key] = value
        setattr(namespace, self.dest, pairs)


def add_options(parser: argparse.ArgumentParser, config: type, *, leave_out: Sequence[str] = ()) -> None:
    """Add the options of a dataclass to a parser, in their groups; what is not given is None.

    Args:
        parser: Gets them.
        config: A dataclass with fields of `option`.
        leave_out: Fields without an option.
    """
    kinds, groups = kinds_of(config), dict[str, Any]()
    for name, entry in options_of(config).items():
        if name in leave_out:
            continue
        if entry.group not in groups:
            groups[entry.group] = parser.add_argument_group(entry.group)
        groups[entry.group].add_argument(*entry.flags, flag(name), dest=name, **_action(kinds[name], entry))


def chosen(args: argparse.Namespace, config: type[_Config]) -> _Config:
    """The dataclass with what a command line says.

    Args:
        args: Of a parser with `add_options`; fields that it lacks stay None.
        config: The dataclass.
    """
    return config(**{name: getattr(args, name) for name in options_of(config) if getattr(args, name, None) is not None})


def _action(kind: Any, entry: Option) -> dict[str, Any]:
    """What argparse has to know of an option."""
    text = entry.help
    shown = entry.default not in (None, False, '') and not isinstance(entry.default, dict) and 'default' not in text
    if shown:
        value = ' '.join(map(str, entry.default)) if isinstance(entry.default, list) else entry.default
        text += f' (default: {value})'
    common: dict[str, Any] = {'default': None, 'help': text}
    base, number = base_of(kind)
    if base is bool:
        return {**common, 'action': argparse.BooleanOptionalAction if entry.negatable else 'store_true'}
    if base is dict:
        return {**common, 'action': KeyValues, 'nargs': '*', 'metavar': 'K=V'}
    return {
        **common,
        'type': entry.read or base,
        **({} if number is None else {'nargs': number}),
        **({} if entry.choices is None else {'choices': entry.choices}),
        **({} if entry.metavar is None else {'metavar': entry.metavar}),
    }


def add_model_argument(parser: argparse.ArgumentParser, dest: str = 'model', **more: Any) -> None:
    """Add MODEL.

    Args:
        parser: Gets the argument, as `ride_timm.load` takes it.
        dest: Its name in the parsed arguments.
        **more: Further arguments of `add_argument`.
    """
    parser.add_argument(
        dest, metavar='MODEL', **more,
        help='checkpoint, folder of a run or of `ride-timm package`, local-dir:DIR, hf-hub:ORG/NAME, or published name',
    )  # fmt: skip


def add_prior_option(parser: argparse.ArgumentParser, more: str = '') -> None:
    """Add `--prior` and `--logit-adjustment`, one of which may be given.

    Args:
        parser: Gets them, as `ride_timm.inference.prior.apply_options` takes them.
        more: What else `--prior` takes, for its help.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        '--prior', metavar='Q',
        help=f'adapt to other class frequencies: uniform, train, {more}a text file that lists the classes that occur '
        '(and their weights, after a comma), or a JSON file {class name: frequency}; for losses with a tau list',
    )  # fmt: skip
    group.add_argument(
        '--logit-adjustment', type=float, metavar='TAU',
        help='subtract TAU times the log class prior from the logits, for a better tail at the cost of the head: 0 to '
        'about 1; for losses without a tau list',
    )  # fmt: skip


def add_abstain_option(parser: argparse.ArgumentParser) -> None:
    """Add `--abstain`, `--confidence` and `--taxonomy`.

    Args:
        parser: Gets them, as `ride_timm.inference.abstention.choose_abstention` and `broader_taxonomy` take them.
    """
    parser.add_argument(
        '--abstain', type=float, metavar='RATE',
        help='answer "unknown" if the network is not sure, so that at most this share of the other answers is wrong '
        '(such as 0.05); run `ride-timm calibrate` first',
    )  # fmt: skip
    parser.add_argument(
        '--confidence', type=float, default=0.95, metavar='P', help='confidence level of --abstain (default: 0.95)'
    )
    add_taxonomy_option(parser, 'with --abstain, answer with the genus if it is sure enough and the species is not')


def add_routing_options(parser: argparse.ArgumentParser) -> None:
    """Add `--threshold` and `--routed`, one of which may be given.

    Args:
        parser: Gets them, as `routing_threshold` reads them.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument('--threshold', type=float, metavar='T', help='route with this threshold; needs a router')
    group.add_argument('--routed', action='store_true', help="route with the network's own threshold")


def routing_threshold(args: argparse.Namespace, trained: TrainedNet) -> float | None:
    """What to route with; None: not at all.

    Args:
        args: Of a parser with `add_routing_options`.
        trained: The network.

    Raises:
        RideError: It has no router.
    """
    if not args.routed and args.threshold is None:
        return None
    if getattr(trained.model, 'router', None) is None:
        name = trained.source or trained.name
        raise RideError(f'Routing was asked for, but {name} has no router; train one first.')
    return float(trained.model.router_threshold if args.threshold is None else args.threshold)


def add_taxonomy_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Add `--taxonomy`.

    Args:
        parser: Gets it, as `ride_timm.inference.taxonomy.read_taxonomy` takes it.
        what: What it does.
    """
    parser.add_argument('--taxonomy', metavar='FILE', help=f'CSV of label,parent lines (species,genus): {what}')


def broader_taxonomy(args: argparse.Namespace, trained: TrainedNet) -> Taxonomy | None:
    """What classes are part of, to answer with where a class is not sure enough.

    Args:
        args: Of a parser with `add_abstain_option`.
        trained: The network.

    Raises:
        RideError: The file is no taxonomy, or there is no `--abstain`.
    """
    if args.taxonomy is None:
        return None
    if args.abstain is None:
        raise RideError(f'--taxonomy {args.taxonomy} was given without --abstain RATE; add it.')
    return read_taxonomy(args.taxonomy, trained.class_names or ())


def add_device_option(parser: argparse.ArgumentParser) -> None:
    """Add `--device`.

    Args:
        parser: Gets `--device`; `ride_timm.values.check_values` refuses one that is not there.
    """
    parser.add_argument('--device', help='cpu, cuda, ... (default: cuda if available)')


def add_loading_options(parser: argparse.ArgumentParser, batch_size: int = 256) -> None:
    """Add `--batch-size`, `--workers` and `--device`."""
    parser.add_argument(
        '-b', '--batch-size', type=int, default=batch_size, metavar='N', help=f'batch size (default: {batch_size})'
    )
    parser.add_argument('-j', '--workers', type=int, default=0, metavar='N', help='loading processes (default: none)')
    add_device_option(parser)
