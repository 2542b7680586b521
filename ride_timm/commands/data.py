"""`ride-timm data`: what a data set holds and what a training would make of it, before anything is trained."""

import argparse
import json
import logging
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ride_timm.commands.options import add_options, chosen
from ride_timm.commands.parser import Parser
from ride_timm.data import imbalance_factor
from ride_timm.data.form import check_form, data_name
from ride_timm.data.sources.reading import is_package
from ride_timm.data.survey import Side, Survey, survey
from ride_timm.errors import RideError
from ride_timm.files import check_writable, writing
from ride_timm.installation import require
from ride_timm.logs import interactive, setup_logging
from ride_timm.options import DataForm, filled, flag, options_of
from ride_timm.pages.survey import render
from ride_timm.values import check_values

__all__ = ['build_parser', 'main', 'to_json']


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm data`."""
    parser = Parser(
        prog='ride-timm data',
        description='Check a data set before training: classes, their tail, and every image. The exit '
        'status is 1 if training would fail on the data.',
    )
    parser.add_argument('place', nargs='?', metavar='DIR|FILE', help='as --data-dir, or a file as --table')
    add_options(parser, DataForm)
    parser.add_argument('--counts-only', action='store_true', help='do not open the images')
    parser.add_argument('--all', action='store_true', help='list every class, and every example of what was found')
    parser.add_argument('--plot', metavar='FILE', help='draw the tail as a PNG (needs matplotlib)')
    parser.add_argument('--json', action='store_true', help='print JSON instead of text')
    parser.add_argument('--threads', type=int, default=4, metavar='N', help='threads that read images (default: 4)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Report on a data set from a command line; exit status 1 when a training would refuse the data."""
    args = build_parser().parse_args(argv)
    setup_logging()
    _place(args)
    form = chosen(args, DataForm)
    _check(args, form)
    form, found = _survey(args, form)
    if args.json:
        print(json.dumps(to_json(found), indent=2))
    else:
        _print(args, form, found)
    if args.plot and found.train is not None and found.groups is not None:
        from ride_timm.pages.figures import counts_figure

        with writing(args.plot, '--plot'):
            groups = {name: members.tolist() for name, members in found.groups.groups.items()}
            counts_figure(found.train.counts, groups, Path(args.plot), data_name(filled(form)))
        logging.getLogger(__name__).info(f'Plot written to {args.plot}')
    return 0 if found.trainable else 1


def _place(args: argparse.Namespace) -> None:
    """Take the place for the option that it stands for."""
    if args.place is None:
        return
    table = Path(args.place).is_file() or is_package(args.place)
    name = 'table' if table else 'data_dir'
    if getattr(args, name) is not None:
        raise RideError(f'{args.place} and {flag(name)} {getattr(args, name)} were given; leave one of them out.')
    setattr(args, name, args.place)


def to_json(found: Survey) -> dict[str, Any]:
    """The findings as plain values.

    Returns:
        `trainable`, `form`, both sides, `groups`, all `classes` with their images, and `findings` with all examples.
    """
    groups = {} if found.groups is None else found.groups.groups
    group_of = {int(index): name for name, members in groups.items() for index in members}
    counts = {} if found.train is None else found.train.counts
    tested = {} if found.val is None else found.val.counts
    classes = [
        {'name': name, 'training': count, 'evaluation': tested.get(name, 0), 'group': group_of.get(index)}
        for index, (name, count) in enumerate(counts.items())
    ]
    return {
        'trainable': found.trainable,
        'form': found.form,
        'training': _side(found.train),
        'evaluation': _side(found.val),
        'groups': None if found.groups is None else {'rule': found.groups.rule, 'limits': found.groups.text},
        'classes': classes,
        'findings': [vars(finding) for finding in found.findings],
    }


def _side(side: Side | None) -> dict[str, Any] | None:
    if side is None:
        return None
    sizes = [count for count in side.counts.values() if count]
    pixels = sorted((fact.size for fact in side.facts if fact.size), key=lambda size: size[0] * size[1])
    modes = [fact.mode for fact in side.facts if fact.size]
    return {
        'source': side.text,
        'images': len(side.labels),
        'classes': len(sizes),
        'largest': max(sizes, default=0),
        'median': float(np.median(sizes)) if sizes else 0.0,
        'smallest': min(sizes, default=0),
        'imbalance_factor': imbalance_factor(sizes) if sizes else None,
        'smallest_image': pixels[0] if pixels else None,
        'largest_image': pixels[-1] if pixels else None,
        'modes': {mode: modes.count(mode) for mode in sorted(set(modes))},
    }


def _check(args: argparse.Namespace, form: DataForm) -> None:
    """Refuse what would be no report at all."""
    check_values(vars(args))
    check_form(filled(form))
    if args.data_dir and '/' not in (args.dataset or '') and not Path(args.data_dir).is_dir():
        raise RideError(f'The data folder {args.data_dir} does not exist; give a folder of images.')
    check_writable(args.plot, '--plot')
    if args.plot:
        require('--plot', 'ride-timm[quickstart]', 'matplotlib')


def _survey(args: argparse.Namespace, form: DataForm) -> tuple[DataForm, Survey]:
    """Survey the data; a folder without class folders is read as what its files are."""
    options = {'counts_only': args.counts_only, 'threads': args.threads}
    with tqdm(unit='image', desc='Looking', disable=not interactive(), leave=False) as bar:
        found = survey(filled(form), bar.update, **options)
        if found.train is None and found.dataset and not form.dataset and not form.train_list and not form.table:
            form = replace(form, dataset=found.dataset)
            found = survey(filled(form), bar.update, **options)
    return form, found


def _print(args: argparse.Namespace, form: DataForm, found: Survey) -> None:
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    print(render(found, every_class=args.all, width=width, blocks=_shows_blocks()))
    if found.trainable:
        form = replace(form, val_fraction=form.val_fraction or found.set_apart)
        print(f'\nReady to train:\n  {_command(form)}')
    else:
        print('\nTraining would fail on this data; fix the items marked "error".')


def _shows_blocks() -> bool:
    try:
        '█│'.encode(sys.stdout.encoding or 'ascii')
    except (LookupError, UnicodeEncodeError):
        return False
    return True


def _command(form: DataForm) -> str:
    """The training on this data, with the options that were given here."""
    words = ['ride-timm', 'train']
    for name, entry in options_of(DataForm).items():
        value = getattr(form, name)
        if value is not None and value != entry.default and name != 'dataset_download':
            words += [flag(name), f'{value:g}' if isinstance(value, float) else str(value)]
    return shlex.join(words)
