"""`ride-timm report RUN`: one HTML page on what a network can and cannot do, to look at, send and print.

RUN is the folder of a run of `ride-timm train`, or a checkpoint in it: the evaluation images are those that its
`args.yaml` names. Any other model that `ride-timm predict` takes needs `--data-dir`, and has no training curves. The
page holds its pictures and loads nothing; it shows small copies of the images with the most confident wrong answers.
"""

import argparse
import csv
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import timm

from ride_timm.commands.options import add_loading_options, add_options, add_taxonomy_option, chosen
from ride_timm.commands.parser import Parser
from ride_timm.commands.run_images import TrainedRun, find_run, form_of, names_images
from ride_timm.commands.validate import open_images
from ride_timm.data import DataSplit
from ride_timm.data.form import data_name
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.evaluation.by_group import said_by_group
from ride_timm.evaluation.cost import describe_network
from ride_timm.evaluation.one_pass import Measured, measure_split
from ride_timm.evaluation.sweep import THRESHOLDS
from ride_timm.evaluation.writing import as_record, environment
from ride_timm.files import check_writable, write_whole, writing
from ride_timm.inference.abstention import promises
from ride_timm.inference.load import TrainedNet, load
from ride_timm.inference.network import data_config
from ride_timm.inference.taxonomy import Taxonomy, read_taxonomy
from ride_timm.installation import require
from ride_timm.logs import setup_logging
from ride_timm.options import DataForm
from ride_timm.pages.figures import (
    as_bytes,
    draw_calibration,
    draw_curves,
    read_curves,
    routing_figure,
    tail_figure,
    thumbnail,
)
from ride_timm.pages.report import Content, Example, render
from ride_timm.records.fields import from_json
from ride_timm.records.results import Data, Network, Results
from ride_timm.records.results import Measured as Figures
from ride_timm.records.runs import plain
from ride_timm.values import check_values, choose_device

__all__ = ['build_parser', 'main', 'write_report']

MOST_ERRORS = 24
_OF_THE_RUN = ('data_dir', 'train_split', 'val_split', 'imb_factor', 'val_fraction', 'val_seed')


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm report`."""
    parser = Parser(
        prog='ride-timm report',
        description='Write an HTML report on what a network can and cannot do, with plots and wrong answers.',
    )
    parser.add_argument(
        'run', metavar='RUN',
        help='folder of a run, or any model that predict takes: checkpoint, packaged folder, hf-hub:ORG/NAME, ...',
    )  # fmt: skip
    parser.add_argument('--data-dir', metavar='DIR', help="folder with val/ (default: the run's)")
    add_options(parser, DataForm, leave_out=_OF_THE_RUN)
    parser.add_argument('--train-split', metavar='NAME', help="training split (default: the run's, or train)")
    add_taxonomy_option(parser, 'also show accuracy at each level above the classes, and what confused classes share')
    parser.add_argument('--output', metavar='FILE', help='default: report.html in the folder of the run, or here')
    add_loading_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write a report from a command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(arguments)
    setup_logging(logging.WARNING)  # not where timm finds each file
    path = write_report(args, shlex.join(['ride-timm', 'report', *arguments]))
    print(f'Written to {path} ({path.stat().st_size / 1e6:.1f} MB)')
    return 0


def write_report(args: argparse.Namespace, command: str = '') -> Path:
    """Measure a network once and write its report.

    Args:
        args: Of `build_parser()`.
        command: What the page says it was made with.

    Returns:
        The page.

    Raises:
        RideError: Something the user can fix.
    """
    check_values(vars(args))
    require('A report', 'ride-timm[quickstart]', 'matplotlib')
    run = find_run(args.run)
    given = chosen(args, DataForm)
    if run.folder is None and not names_images(given):
        _refuse_without_images(args.run)
    path = Path(args.output) if args.output else (run.folder or Path()) / 'report.html'
    check_writable(str(path), '--output')
    form = form_of(run, given)
    trained = load(args.run)
    split, counts = open_images(form, trained, split=run.val_split(trained))
    taxonomy = None if args.taxonomy is None else read_taxonomy(args.taxonomy, split.class_names)
    device = choose_device(args.device)
    model: Any = trained.model
    config = data_config(model)
    routed = getattr(model, 'router', None) is not None
    measured = measure_split(
        model, split, counts, config, batch_size=args.batch_size, workers=args.workers, device=device,
        routed=routed, rules=routed, thresholds=THRESHOLDS, temperatures=trained.temperatures,
        progress=True,
    )  # fmt: skip
    content = _content(args, run, trained, split, measured, data_name(form), command, taxonomy)
    with writing(path, '--output'):
        write_whole(path, render(content))
    return path


def _refuse_without_images(source: str) -> None:
    """Say what is missing where neither a run nor the command line names images."""
    if Path(source).exists() or ':' in source or timm.is_model(source.partition('.')[0]):
        raise RideError(f'{source} is not a run folder, so it is not known where its images are; add --data-dir.')
    raise RideError(f'There is no {source}; name the folder of a run, or another network and --data-dir.')


def _content(
    args: argparse.Namespace,
    run: TrainedRun,
    trained: TrainedNet,
    split: DataSplit,
    measured: Measured,
    data: str,
    command: str,
    taxonomy: Taxonomy | None,
) -> Content:
    """What the page shows."""
    curves = _read_summary(run)
    pictures = {'calibration': draw_calibration(measured.answers, measured.metrics['ece'])}
    results = _results(measured, trained, data, split)
    if measured.groups is not None:
        pictures['tail'] = as_bytes(lambda path: tail_figure(results, path))
    if measured.sweep is not None:
        pictures['routing'] = as_bytes(lambda path: routing_figure(results, path, rules=measured.rules))
    if curves and len(curves['epoch']) > 1:  # a single one makes no curve
        pictures['curves'] = draw_curves(curves)
    return Content(
        name=(run.folder or Path()).resolve().name if run.folder else args.run,
        model=trained.name,
        data=data,
        measured=measured,
        about=_about(run, trained, split, measured, command),
        pictures=pictures,
        examples=_examples(split, measured),
        curves_note=_curves_note(run, curves),
        said=[] if trained.record.calibration is None else promises(trained.record.calibration),
        image_groups=said_by_group(measured.answers, split.image_groups),
        taxonomy=taxonomy,
    )


def _results(measured: Measured, trained: TrainedNet, data: str, split: DataSplit) -> Results:
    """What was measured, as the plots take it."""
    network = describe_network(trained.model, measured.input_size)
    return Results(
        name=printable(trained.name),
        architecture=trained.name,
        method=None,
        data=Data(
            name=printable(data),
            num_classes=split.num_classes,
            train_images=sum(row.train_images for row in measured.per_class),
            test_images=len(measured.answers.targets),
            evaluated_on='val_fraction' if trained.record.val_part else 'test',
        ),
        network=from_json(Network, network, trained.name),
        training=(),
        test=from_json(Figures, plain(as_record(measured)), trained.name),
        seeds=(),
    )


def _about(
    run: TrainedRun, trained: TrainedNet, split: DataSplit, measured: Measured, command: str
) -> dict[str, str]:  # fmt: skip
    """Lines of the header."""
    made = environment()
    counts = trained.class_counts
    total = f', {sum(counts):,} images, {max(counts):,} to {min(counts):,} per class' if counts else ''
    now = datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC')
    return {
        'Measured on': f'{len(split.targets):,} images of {split.num_classes:,} classes: {split.source}',
        'Training': f'loss {trained.record.loss or run.args.get("loss") or "not known"}{total}',
        'Measured': f'{now}, float32, ride-timm {made["ride_timm"]}, torch {made["torch"]}, {made["hardware"]}',
        'Trained with': str(run.args.get('command') or ''),
        'Report made with': command,
    }


def _examples(split: DataSplit, measured: Measured) -> list[Example]:
    """The most confident wrong answers."""
    said = measured.answers
    names = (*split.class_names, 'no finite answer')
    wrong = np.flatnonzero(said.answers != said.targets)
    found = []
    for row in wrong[np.argsort(-said.confidence[wrong], kind='stable')][:MOST_ERRORS].tolist():
        votes = zip(said.experts[row].tolist(), said.expert_confidence[row].tolist(), strict=True)
        found.append(
            Example(
                file=split.dataset.filename(row),
                picture=thumbnail(split.dataset.load(row)),
                truth=names[said.targets[row]],
                answer=names[said.answers[row]],
                confidence=float(said.confidence[row]),
                votes=[(names[index], share) for index, share in votes],
            )
        )
    return found


def _read_summary(run: TrainedRun) -> dict[str, list[float]]:
    """The metrics of every epoch, if a run wrote them."""
    path = None if run.folder is None else run.folder / 'summary.csv'
    if path is None or not path.is_file():
        return {}
    try:
        return read_curves(path.read_text(encoding='utf-8', errors='replace'))
    except (OSError, csv.Error) as error:
        raise RideError(f'{path} cannot be read ({error}); remove it to get the report without curves.') from None


def _curves_note(run: TrainedRun, curves: Mapping[str, Sequence[float]]) -> str:
    if not curves:
        return ''
    epochs = len(curves['epoch'])
    planned = run.args.get('epochs', epochs)
    note = f'{epochs} of {planned} {"epoch" if planned == 1 else "epochs"}.'
    if run.args.get('stage') == 'router':
        note += ' Only the router was trained; the accuracy is that of routed inference.'
    if run.args.get('holdout'):
        note += ' During training the accuracy was measured on held-out training images, here on the evaluation images.'
    return note
