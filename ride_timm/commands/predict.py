"""`ride-timm predict MODEL IMAGES...`: classify images, and show how the experts voted.

IMAGES are files, folders (searched recursively for timm's types of images, hidden ones left out), globs that the shell
left as they are, and `-` for a list of paths on standard input, one a line. They are taken in the order given, what a
folder or a glob holds in natural order, and each once. Instead of them `--table` takes the images that a file names, of
any form that training reads; labels are not needed, and images are called as the file calls them. Images are read and
prepared as `ride-timm validate` does it; size, crop, mean, std, interpolation and the labels are the network's own.

`--json` prints one list with an object for each image, `--csv` a row for each (in UTF-8), both with exact numbers.
In the CSV an apostrophe stands before a path or label that spreadsheets would run as a formula, such as one with =.
Class indices and experts (K) count from 0, ranks (R) from 1; a confidence is a softmax probability from 0 to 1.

| JSON | CSV | content |
|---|---|---|
| `path` | `path` | the image, as it was named or found |
| `label` `class_index` `confidence` | the same | the likeliest class |
| `top` | `topR_label` `topR_class_index` `topR_confidence` | the `--top-k` likeliest classes, from the first on |
| `experts` | `expertK_label` `expertK_class_index` `expertK_confidence` | each expert's own likeliest class |
| `num_experts` | `num_experts` | how many experts the image passed |

With `--group-pattern` or `--group-column` the images of a group, such as a burst, get one answer, that of the mean of
their logits; `group` names it. The experts' votes are those on each image.

With `--abstain` an answer that is not confident enough is `unknown`, without an index; `top` keeps what it would be.
With `--taxonomy` it is what the class is part of, and the probability of that, where this is confident enough.

The table shows WordNet ids, the names of ImageNet's classes, with what they mean; both forms above keep the names. On a
terminal it fits the width: long names are cut in their middle, then the runners-up are left out, then the experts.

Routing is off, and every image passes all experts, unless `--routed` or `--threshold` is given; an expert that an image
did not pass has no vote (`null`, or empty). A plain network has no experts: `[]` or no columns, and `num_experts` is
`null` or empty. The exit status is 1 if an image could not be read or a name led to none: each of these is one line on
standard error and has no row. In Python: `ride_timm.inference.prediction.predict`.
"""

import argparse
import csv
import io
import json
import logging
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ride_timm.commands.options import (
    add_abstain_option,
    add_loading_options,
    add_model_argument,
    add_options,
    add_prior_option,
    add_routing_options,
    broader_taxonomy,
    chosen,
    routing_threshold,
)
from ride_timm.commands.parser import Parser
from ride_timm.data.descriptions import readable_label
from ride_timm.data.finding import find_images
from ride_timm.data.form import columns_of, crop_of
from ride_timm.data.image_groups import is_grouped, with_groups
from ride_timm.data.sources.lists import ListReader, open_unlabelled
from ride_timm.errors import RideError
from ride_timm.escaping import csv_cell, printable
from ride_timm.files import check_writable, write_whole, writing
from ride_timm.inference.abstention import Abstention, choose_abstention
from ride_timm.inference.load import TrainedNet, load
from ride_timm.inference.prediction import Prediction, Skipped, Vote, named_images, predict
from ride_timm.inference.prior import apply_options
from ride_timm.inference.prior_estimation import serve_estimated_prior
from ride_timm.inference.taxonomy import Taxonomy
from ride_timm.logs import interactive, setup_logging
from ride_timm.models import count_experts
from ride_timm.options import DataForm, filled, flag, options_of
from ride_timm.tables import counted, lay_out, padded, shortened_to, text_width
from ride_timm.values import check_values, choose_device

__all__ = ['build_parser', 'main']

LONGEST = 48  # columns of a path or label in the table
_LAYOUTS = ((LONGEST, True, True), (24, True, True), (24, False, True), (14, False, True), (24, False, False))
"""Longest name, whether runners-up and whether experts are shown: the first that fits the terminal is taken."""


_JOINT = '* no expert names this class first, but all together do'


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm predict`."""
    parser = Parser(
        prog='ride-timm predict',
        description="Classify images and show each expert's prediction. Labels and preprocessing are the network's.",
    )
    add_model_argument(parser)
    parser.add_argument(
        'images', nargs='*', metavar='IMAGES', help='files, folders, globs; - reads a list of paths, one per line'
    )
    shared = ('data_dir', 'table', 'image_column', 'crop', 'crop_confidence')
    add_options(parser, DataForm, leave_out=[name for name in options_of(DataForm) if name not in shared])
    together = parser.add_mutually_exclusive_group()
    together.add_argument(
        '--group-pattern', metavar='REGEX',
        help='give all images of a group (a burst, an animal) one answer; the group is what this regular expression, '
        "or its first parentheses, finds in the path: '([^/]+)_'",
    )  # fmt: skip
    together.add_argument('--group-column', metavar='NAME', help='the same, with the groups in a column of --table')
    parser.add_argument('--top-k', type=int, default=3, metavar='N', help='how many classes to name (default: 3)')
    form = parser.add_mutually_exclusive_group()
    form.add_argument('--json', action='store_true', help='a JSON list with one object per image')
    form.add_argument('--csv', action='store_true', help='CSV with one row per image')
    parser.add_argument('--output', metavar='FILE', help='write to a file; .json and .csv choose the format')
    add_routing_options(parser)
    add_prior_option(parser, 'estimated (from the images themselves), ')
    add_abstain_option(parser)
    add_loading_options(parser, batch_size=64)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Predict from a command line; exit status 1 if an image could not be read or a name led to none."""
    args = build_parser().parse_intermixed_args(argv)
    check_values(vars(args))
    check_writable(args.output, '--output')
    setup_logging(logging.WARNING)  # not where timm finds each file
    images, problems = _images(args)
    for problem in problems:
        _complain(problem)
    trained = load(args.model)
    threshold = routing_threshold(args, trained)
    device = choose_device(args.device)
    if args.prior == 'estimated':
        options: dict[str, Any] = {'batch_size': args.batch_size, 'workers': args.workers, 'device': device}
        frequencies = serve_estimated_prior(trained, images, threshold=threshold, **options)
        args.prior = f'estimated ({_likeliest(frequencies, trained)})'
    else:
        apply_options(trained, args.prior, args.logit_adjustment)
    if trained.class_names is None:
        _complain(f'{trained.name} names no classes, so labels are class indices')
    abstention = args.abstain and choose_abstention(trained, args.abstain, args.confidence, threshold)
    taxonomy = broader_taxonomy(args, trained)
    rows = _predict(args, trained, images, threshold, abstention, _groups(args, trained, images), taxonomy)
    _write(args, trained, threshold, abstention, rows)
    return 1 if len(rows) < len(images) or problems else 0


def _images(args: argparse.Namespace) -> tuple[Sequence[str] | ListReader, Sequence[str]]:
    """The images that the command line names, and what is wrong with some of these names."""
    form = filled(chosen(args, DataForm))
    if args.table and args.images:
        raise RideError(f'--table {args.table} and {args.images[0]} both name images; leave one of them out.')
    if args.table:
        return open_unlabelled(args.table, args.data_dir, columns=columns_of(form), crop=crop_of(form)), ()
    extra = next((name for name in ('data_dir', 'image_column', 'crop', 'group_column') if getattr(args, name)), None)
    if extra or not args.images:
        what = f'{flag(extra)} is for a table of images' if extra else 'No images were given'
        raise RideError(f'{what}; name files or folders, or a file that names images with --table.')
    found = find_images(args.images, sys.stdin.buffer if '-' in args.images else None)
    if not found.paths:
        raise RideError(f'Nothing to predict: {found.problems[0] if found.problems else "the list of paths is empty"}.')
    return found.paths, found.problems


def _groups(args: argparse.Namespace, trained: TrainedNet, images: Sequence[str] | ListReader) -> Sequence[str] | None:
    """What each image belongs to, where images are to be answered together."""
    form = chosen(args, DataForm)
    if not is_grouped(form):
        return None
    return with_groups(replace(named_images(trained, images), source=str(args.table)), form).image_groups


def _likeliest(frequencies: Sequence[float], trained: TrainedNet) -> str:
    """The most frequent classes."""
    ranked = sorted(zip(frequencies, trained.labels, strict=True), key=lambda pair: -pair[0])[:5]
    return ', '.join(f'{readable_label(name)} {100 * share:.0f} %' for share, name in ranked)


def _predict(
    args: argparse.Namespace,
    trained: TrainedNet,
    images: Sequence[str] | ListReader,
    threshold: float | None,
    abstention: Abstention | None,
    groups: Sequence[str] | None,
    taxonomy: Taxonomy | None,
) -> list[Prediction]:
    """Predict all images, and complain of those that cannot be."""
    rows: list[Prediction] = []
    found = predict(
        trained, images,
        top_k=args.top_k, threshold=threshold, abstention=abstention, groups=groups, taxonomy=taxonomy,
        batch_size=args.batch_size, workers=args.workers, device=choose_device(args.device),
    )  # fmt: skip
    for item in tqdm(found, total=len(images), leave=False, disable=not interactive()):
        if isinstance(item, Skipped):
            _complain(item.reason)
        else:
            rows.append(item)
    return rows


def _complain(text: str) -> None:
    """One line on standard error, which may have a progress bar."""
    tqdm.write(f'ride-timm predict: {printable(text)}', file=sys.stderr)


def _write(
    args: argparse.Namespace,
    trained: TrainedNet,
    threshold: float | None,
    abstention: Abstention | None,
    rows: Sequence[Prediction],
) -> None:
    suffix = Path(args.output).suffix.lower() if args.output and not (args.json or args.csv) else ''
    machine = args.csv or suffix == '.csv'
    if args.json or suffix == '.json':
        text = _json(rows)
    elif machine:
        text = _csv(rows, trained.model, args.top_k)
    else:
        columns = shutil.get_terminal_size().columns if not args.output and sys.stdout.isatty() else None
        text = _for_people(_heading(args, trained, threshold, abstention, rows), rows, threshold is not None, columns)
    text = text.encode('utf-8', 'backslashreplace').decode()  # names of files can be other bytes than UTF-8
    if args.output:
        with writing(args.output, '--output'):
            write_whole(Path(args.output), text)
        return
    if isinstance(sys.stdout, io.TextIOWrapper):  # tables show what the terminal can, other programs read UTF-8
        sys.stdout.reconfigure(encoding='utf-8' if machine else None, errors='backslashreplace')
    sys.stdout.write(text)


def _answer(row: Prediction) -> Any:
    """The likeliest class; where it is not said, a label that is none of the classes."""
    if row.said:
        return row.top[0]
    confidence = row.top[0].confidence if row.broader is None else row.broader[1]
    return row.top[0]._replace(label=row.answer, class_index=None, confidence=confidence)  # type: ignore[arg-type]


def _json(rows: Sequence[Prediction]) -> str:
    entries = [
        {
            'path': row.path,
            **({} if row.group is None else {'group': row.group}),
            **_answer(row)._asdict(),
            'top': [vote._asdict() for vote in row.top],
            'experts': [vote and vote._asdict() for vote in row.experts],
            'num_experts': row.num_experts,
        }
        for row in rows
    ]
    return json.dumps(entries, indent=2) + '\n'


def _csv(rows: Sequence[Prediction], model: Any, top_k: int) -> str:
    experts = count_experts(model)
    names = [f'top{rank}' for rank in range(1, min(top_k, model.num_classes) + 1)]
    names += [f'expert{k}' for k in range(experts)]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator='\n')
    columns = [f'{name}_{field}' for name in names for field in Vote._fields]
    grouped = any(row.group is not None for row in rows)
    writer.writerow(['path', *(['group'] if grouped else []), *Vote._fields, 'num_experts', *columns])
    for row in rows:
        votes = [vote or ('',) * len(Vote._fields) for vote in (*row.top, *row.experts)]
        cells = [
            row.path,
            *([row.group] if grouped else []),
            *_answer(row),
            row.num_experts,
            *(field for vote in votes for field in vote),
        ]
        writer.writerow(map(csv_cell, cells))
    return file.getvalue()


def _heading(
    args: argparse.Namespace,
    trained: TrainedNet,
    threshold: float | None,
    abstention: Abstention | None,
    rows: Sequence[Prediction],
) -> str:
    """What was predicted with."""
    model: Any = trained.model
    parts = [f'{args.model}: {model.num_classes} classes']
    if count_experts(model) and threshold is not None:
        parts.append(f'routed with threshold {threshold:g} through 1 to {model.num_experts} experts')
    elif count_experts(model):
        off = ' (routing is off; --routed turns it on)' if model.router is not None else ''
        parts.append(f'all {model.num_experts} experts{off}')
    if args.prior:
        parts.append(f'class frequencies {args.prior}')
    if args.logit_adjustment is not None:
        parts.append(f'logits adjusted with tau {args.logit_adjustment:g}')
    if trained.temperatures is not None:
        parts.append('confidences calibrated')
    groups = {row.group for row in rows if row.group is not None}
    if groups:
        parts.append(f'{counted(len(groups), "group")} answered together')
    if abstention is not None:
        unknown = sum(not row.said and row.broader is None for row in rows)
        parts.append(f'{unknown} of {counted(len(rows), "answer")} unknown: {abstention}')
    if getattr(model, 'num_experts', 1) > 1:
        parts.append('= where an expert agrees')
    return printable(', '.join(parts))


def _for_people(heading: str, rows: Sequence[Prediction], routed: bool, columns: int | None) -> str:
    """Heading and table, of lines that fit a terminal of this many columns; None: that need not."""
    for layout in _LAYOUTS:
        table = _table(rows, routed, *layout)
        if columns is None or all(text_width(line) <= columns for line in table):
            break
    else:
        table = [line[:columns] for line in table]
    alone = [_JOINT] if any(map(_is_joint, rows)) else []
    above, below = ([*part] if columns is None else _wrapped(part, columns) for part in ([heading], alone))
    return '\n'.join([*above, *table, *below]) + '\n'


def _wrapped(lines: Sequence[str], columns: int) -> list[str]:
    return [part for line in lines for part in textwrap.wrap(line, columns)]


def _is_joint(row: Prediction) -> bool:
    """Whether an answer is one that no expert gives alone."""
    votes = [vote for vote in row.experts if vote is not None]
    return (
        row.said
        and row.group is None
        and bool(votes)
        and all(vote.class_index != row.top[0].class_index for vote in votes)
    )


def _table(rows: Sequence[Prediction], routed: bool, longest: int, runners_up: bool, experts: bool) -> list[str]:
    """The lines of the table."""
    if not rows:
        return []
    columns = [['image', *(shortened_to(longest, row.path) for row in rows)]]
    for rank in range(len(rows[0].top) if runners_up else 1):
        votes = [row.top[rank] if rank else _first(row) for row in rows]
        columns.append(_column(f'#{rank + 1}' if rank else 'label', votes, longest))
    for k in range(len(rows[0].experts) if experts and len(rows[0].experts) > 1 else 0):
        answers = [row.top[0].class_index if row.said else None for row in rows]
        columns.append(_column(f'expert {k}', [row.experts[k] for row in rows], longest, answers))
    if routed:
        columns.append(['experts', *(str(row.num_experts) for row in rows)])
    return lay_out(columns, gap=3)


def _first(row: Prediction) -> Vote:
    """The answer as the table names it."""
    if not row.said:
        answer: Vote = _answer(row)
        return answer
    vote = row.top[0]
    return vote._replace(label=f'{readable_label(vote.label)} *') if _is_joint(row) else vote


def _column(name: str, votes: Sequence[Vote | None], longest: int, answers: Sequence[int | None] = ()) -> list[str]:
    """Labels and percentages below each other, `=` for a label that is the answer already, `-` for no vote."""
    labels = ['-' if vote is None else shortened_to(longest, readable_label(vote.label)) for vote in votes]
    for row, answer in enumerate(answers):
        vote = votes[row]
        if vote is not None and vote.class_index == answer:
            labels[row] = '='
    width = max(map(text_width, labels))
    shares = ['' if vote is None else f'{100 * vote.confidence:5.1f} %' for vote in votes]
    return [name, *(f'{padded(label, width)} {share}' for label, share in zip(labels, shares, strict=True))]
