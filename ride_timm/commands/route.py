"""`ride-timm route MODEL --data-dir DIR`: how far a network may route, certified on images or for a budget.

DIR is a folder of images that the network was not trained on, such as those of the place where it is to work; labels
are not needed. Folders in it that have the names of the classes, or the labels of `--table FILE`, label the images, and
the change in accuracy is printed too. If these are the training images, those that `train --holdout` held out are used.

Threshold and certificate are noted in the checkpoint or folder of the network, or with `--output` in a new folder;
`package` and `publish` hand them on. In Python: `ride_timm.choose_threshold`.
"""

import argparse
import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ride_timm.commands.keeping import find_target, keep
from ride_timm.commands.options import add_loading_options, add_model_argument, add_options, chosen
from ride_timm.commands.parser import Parser
from ride_timm.commands.run_images import find_run, form_of
from ride_timm.data import DataSplit, as_eval_split, open_source, open_unlabelled
from ride_timm.data.finding import find_images
from ride_timm.data.form import check_form, columns_of, crop_of, open_train
from ride_timm.data.holdout import hold_out, split_digest
from ride_timm.data.image_groups import with_groups
from ride_timm.data.sources.base import TRAIN_NAMES
from ride_timm.data.sources.folders import has_split
from ride_timm.data.splits import for_groups_of, open_val_part
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.evaluation.routes import Routes, find_routes
from ride_timm.evaluation.rules import RULES
from ride_timm.evaluation.thresholds import ThresholdChoice, choose_from, in_gmacs, set_threshold
from ride_timm.inference.load import TrainedNet, load
from ride_timm.inference.prediction import eval_loader, named_images
from ride_timm.logs import setup_logging
from ride_timm.options import DataForm, filled
from ride_timm.records.certificate import LOSSES
from ride_timm.records.fields import to_json
from ride_timm.tables import counted, lay_out
from ride_timm.values import check_values, choose_device

__all__ = ['build_parser', 'main', 'route']

_logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm route`."""
    parser = Parser(
        prog='ride-timm route',
        description='Choose a routing threshold: certified on images that were not trained on, or for a budget.',
    )
    add_model_argument(parser)
    add_options(
        parser, DataForm, leave_out=('val_list', 'val_split', 'val_fraction', 'val_seed', 'input_key', 'target_key')
    )
    wish = parser.add_argument_group('target')
    wish.add_argument(
        '--max-loss', type=float, metavar='SHARE',
        help='choose the cheapest threshold that loses on at most this share of the images (default: 0.005)',
    )  # fmt: skip
    wish.add_argument(
        '--confidence', type=float, default=0.95, metavar='P', help='confidence level of --max-loss (default: 0.95)'
    )
    wish.add_argument(
        '--loss', choices=list(LOSSES),
        help='what counts as a loss: an answer other than that of all experts (default), or a wrong one where that is '
        'right, which needs labels',
    )  # fmt: skip
    wish.add_argument(
        '--budget',
        metavar='B',
        help='instead: mean cost per image, in GMACs or relative to the plain network (0.9x)',
    )
    wish.add_argument(
        '--threshold', type=float, metavar='T',
        help='instead: keep this threshold (such as the current one), and print what can be certified for it',
    )  # fmt: skip
    parser.add_argument(
        '--compare', action='store_true', help='also print what rules without training would reach on the same images'
    )
    parser.add_argument('--output', metavar='DIR', help='write the network with its threshold to this folder')
    add_loading_options(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Choose and write a threshold from a command line."""
    args = build_parser().parse_args(argv)
    setup_logging()
    choice, others = route(args)
    print(choice)
    if others:
        rows = [('rule', 'GMACs', 'experts', 'answers changed')]
        for name, found in {'this router': choice, **others}.items():
            share = f'{100 * found.changed / found.num_images:.2f} %'
            rows.append((name, f'{found.gmacs:.4g}', f'{found.mean_experts:.2f}', share))
        print('\n' + '\n'.join(lay_out(list(zip(*rows, strict=True)), right=range(1, 4))))
    return 0


def route(args: argparse.Namespace) -> tuple[ThresholdChoice, dict[str, ThresholdChoice]]:
    """Choose a threshold, and write it.

    Returns:
        The choice, and with --compare what other rules come to, by their names.

    Raises:
        RideError: Nothing can be certified, the network has no router, or the images are none that may certify.
    """
    form = filled(chosen(args, DataForm))
    check_form(form)
    check_values(vars(args))
    if args.budget is not None and (args.max_loss is not None or args.loss is not None):
        raise RideError('--budget was given together with --max-loss or --loss; give a budget or a loss.')
    if args.threshold is not None and (args.budget is not None or args.max_loss is not None):
        raise RideError('--threshold was given together with --budget or --max-loss; give one of them.')
    device = choose_device(args.device)
    trained = load(args.model)
    model: Any = trained.model
    if getattr(model, 'router', None) is None:
        raise RideError(
            f'{args.model} has no router; train one with `ride-timm train --stage router --init {args.model}`.'
        )
    target = find_target(args.model, args.output)
    images = _images(form, trained)
    _refuse_known(images.split, args.model, trained)
    _logger.info(f'Routing is measured on {images.source}')
    if images.split.image_groups is not None and args.budget is None:
        number = counted(len(set(images.split.image_groups)), 'group')
        _logger.warning(
            'The images are of %s; a certificate assumes independent images, so it may not hold for images '
            'of other groups', number,
        )  # fmt: skip
    routes = _find_routes(args, model.to(device), images, device)
    max_loss = 0.005 if args.max_loss is None else args.max_loss
    wish = {
        'max_loss': max_loss, 'confidence': args.confidence, 'budget': in_gmacs(args.budget, model, routes),
        'threshold': args.threshold, 'loss': args.loss or 'disagreement',
    }  # fmt: skip
    choice = choose_from(routes, trained.class_counts, **wish)
    if choice.reason:
        raise RideError(
            f'No threshold can be certified at --max-loss {max_loss:g} and --confidence {args.confidence:g} '
            f'({choice.reason}); give more images, a larger --max-loss, or a better trained router.'
        )
    set_threshold(model, choice.threshold)
    trained.record = dataclasses.replace(trained.record, certificate=choice.certificate)
    threshold = {'router_threshold': choice.threshold}
    certified = None if choice.certificate is None else to_json(choice.certificate)
    keep(trained, target, {**threshold, 'certificate': certified}, threshold)
    _logger.info(f'Stored in {target}')
    return choice, {name: choose_from(routes.by(name), **wish) for name in (RULES if args.compare else ())}


class _Images(NamedTuple):
    """Images to certify on; `labels` gives the class (N,) of each by its place, None where their split labels them."""

    split: DataSplit
    source: str
    labels: torch.Tensor | None
    labelled: bool


def _images(form: DataForm, trained: TrainedNet) -> _Images:
    """The images that the options name: those held out of a training's, or any others."""
    plans = (trained.record.holdout, trained.record.val_part)
    # not within `try`: groups that the training did not have do not make its images others
    own = for_groups_of(form, *(plan for plan in plans if plan is not None and plan.grouped))
    folder = Path(form.data_dir or '.')
    named = not form.table and any(has_split(folder, name) for name in TRAIN_NAMES)
    if form.dataset not in ('', 'folder') or form.train_list or named:
        held = _held_out(trained, _trained_on(own, trained))
        if held is None:
            raise RideError(
                f'{trained.source} does not say which images of {form.data_dir or form.train_list or form.dataset} its '
                'training held out, or held out others; give a folder of images that it was not trained on.'
            )
        return _Images(held, held.source, None, True)
    try:
        train = _trained_on(own, trained)
    except RideError:  # no folders or labels of these classes, so not what it was trained on
        return _others(form, trained)
    held = _held_out(trained, train)
    if held is not None:
        return _Images(held, held.source, None, True)
    if split_digest(train) == trained.record.train_digest:
        raise RideError(
            f'{form.table or form.data_dir} holds the images that {trained.source} was trained on; give others, or '
            'train experts and router with --holdout 0.1.'
        )
    return _others(form, trained)


def _refuse_known(split: DataSplit, source: str, trained: TrainedNet) -> None:
    """Refuse images whose files a run was trained on, as far as they still lie where its `args.yaml` says."""
    run = find_run(source)
    if run.folder is None:
        return
    plan = trained.record.holdout
    try:
        train = _trained_on(form_of(run, DataForm()), trained)
        if plan is not None:
            train = hold_out(train, plan.fraction, plan.seed, grouped=plan.grouped).train
    except RideError:  # they were moved
        return
    seen = len(_files(split) & _files(train))
    if seen:
        raise RideError(
            f'{seen:,} of the {len(split.targets):,} images are of those that {source} was trained on; give others, or '
            "the training's own --table or --data-dir, of which the held-out images are taken."
        )


def _files(split: DataSplit) -> set[str]:
    """The files of a split's images, links resolved; none where they are not files."""
    return {os.path.realpath(name) for name in split.dataset.filenames(absolute=True) if Path(name).is_file()}


def _trained_on(form: DataForm, trained: TrainedNet) -> DataSplit:
    """The images of the options as a training would take them."""
    if trained.class_names is None:
        raise RideError(f'{trained.source} names no classes, so the images of {form.data_dir} cannot be labelled.')
    part, channels = trained.record.val_part, trained.model.in_chans
    if part is not None:
        return open_val_part(form, trained.class_names, channels, part)[0]
    return open_train(form, channels, trained.class_names)


def _held_out(trained: TrainedNet, train: DataSplit) -> DataSplit | None:
    """Those of the images that the network's training held out; None where these are not its images."""
    plan = trained.record.holdout
    if plan is None:
        return None
    parts = hold_out(train, plan.fraction, plan.seed, grouped=plan.grouped)
    if parts.digest != plan.digest:
        return None
    parts.held.dataset.pixel_range = trained.record.pixel_range
    return parts.held


def _others(form: DataForm, trained: TrainedNet) -> _Images:
    """Images that the network was not trained on."""
    found = _from_table(form, trained) if form.table else _from_folder(form, trained)
    return found._replace(split=with_groups(found.split, form))


def _from_table(form: DataForm, trained: TrainedNet) -> _Images:
    """The images of a table, with its labels if all of them are of the network's classes."""
    where: dict[str, Any] = {'columns': columns_of(form), 'crop': crop_of(form)}
    try:
        source = open_source(form.data_dir, list_file=form.table, names_file=form.class_names, **where)
        split = as_eval_split(source, trained.class_names or (), trained.model.in_chans)
    except RideError as error:
        _logger.warning(f'The images are used without labels ({error})')
        images = open_unlabelled(str(form.table), form.data_dir, **where)
        return _Images(
            named_images(trained, images), f'{len(images):,} images of {form.table}, unlabelled', None, False
        )
    split.dataset.pixel_range = trained.record.pixel_range
    return _Images(split, split.source, None, True)


def _from_folder(form: DataForm, trained: TrainedNet) -> _Images:
    """All images below a folder, of the classes that its folders name if all of them name one."""
    found = find_images([str(form.data_dir)])
    for problem in found.problems:
        _logger.warning(printable(problem))
    if not found.paths:
        raise RideError(f'There are no images in {form.data_dir}; name a folder with images.')
    split = named_images(trained, found.paths)
    places = {name: label for label, name in enumerate(trained.class_names or ())}
    folders = [Path(path).relative_to(str(form.data_dir)).parts[:-1] for path in found.paths]
    labels = [places.get(parts[0], -1) if parts else -1 for parts in folders]
    labelled = min(labels) >= 0
    source = f'{len(labels):,} images of {form.data_dir}, ' + (
        'labelled by their folders' if labelled else 'unlabelled'
    )
    return _Images(split, source, torch.tensor(labels) if labelled else None, labelled)


def _find_routes(args: argparse.Namespace, model: Any, images: _Images, device: torch.device) -> Routes:
    loader = eval_loader(model, images.split, batch_size=args.batch_size, workers=args.workers, device=device)
    routes = find_routes(model, _readable(loader, images.split), progress=True)
    if not images.labelled:
        return dataclasses.replace(routes, labels=None)
    if images.labels is None or routes.labels is None:
        return routes
    return dataclasses.replace(routes, labels=images.labels[routes.labels])


def _readable(loader: Any, split: DataSplit) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches, with a warning for each image that cannot be read."""
    dataset: Any = split.dataset
    first = 0
    for batch, targets in loader:
        for row in (targets < 0).nonzero().flatten().tolist():
            _logger.warning(printable(f'Left out: {dataset.reason(first + row)}'))
        first += len(targets)
        yield batch, targets
