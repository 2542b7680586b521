"""`ride-timm validate`: overall, many, medium, few, each expert and calibration of a trained network."""

import argparse
import logging
import shutil
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ride_timm.commands.options import (
    KeyValues,
    add_loading_options,
    add_model_argument,
    add_options,
    add_prior_option,
    add_routing_options,
    add_taxonomy_option,
    chosen,
    routing_threshold,
)
from ride_timm.commands.parser import Parser
from ride_timm.commands.run_images import TrainedRun, find_run, form_of, names_images
from ride_timm.data import DataSplit, check_images, hold_out
from ride_timm.data.form import has_eval_images, open_eval, open_train
from ride_timm.data.splits import for_groups_of, open_val_part
from ride_timm.errors import RideError
from ride_timm.evaluation.by_group import group_lines, said_by_group
from ride_timm.evaluation.one_pass import measure_split
from ride_timm.evaluation.writing import environment, format_metrics, write_json, write_per_class
from ride_timm.files import check_writable, writing
from ride_timm.inference.load import TrainedNet, load
from ride_timm.inference.network import check_architecture, data_config
from ride_timm.inference.prior import apply_options
from ride_timm.inference.taxonomy import Taxonomy, read_taxonomy
from ride_timm.logs import setup_logging
from ride_timm.options import DataForm
from ride_timm.records.certificate import Certificate
from ride_timm.records.fields import from_json, to_json
from ride_timm.records.results import ImageGroups
from ride_timm.training.run_data import MAX_CHECKED
from ride_timm.values import check_values, choose_device

__all__ = ['build_parser', 'main', 'open_images', 'validate']

_logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm validate`."""
    parser = Parser(prog='ride-timm validate', description='Evaluate a trained network on images it has not seen.')
    add_model_argument(parser, 'source', nargs='?')
    parser.add_argument('--model', metavar='NAME', help='architecture of a file that does not name its own')
    parser.add_argument('--checkpoint', metavar='FILE', help='the same as MODEL')
    parser.add_argument('--pretrained', action='store_true', help='with --model alone: its pretrained weights')
    parser.add_argument(
        '--use-ema',
        action='store_true',
        help="use the moving average in the checkpoint (the default for a run's folder)",
    )
    parser.add_argument('--num-classes', type=int, metavar='N', help='refuse a network with another number of classes')
    parser.add_argument('--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='K=V')
    add_options(parser, DataForm, leave_out=('val_split', 'val_fraction', 'val_seed'))
    images = parser.add_mutually_exclusive_group()
    images.add_argument('--split', metavar='NAME', help='which images (default: val)')
    images.add_argument(
        '--holdout', type=float, metavar='P',
        help='instead of a split, the training images that `train --holdout P` held out (to choose settings)',
    )  # fmt: skip
    parser.add_argument('--seed', type=int, metavar='N', help="that training's --seed (default: 42)")
    add_routing_options(parser)
    parser.add_argument(
        '--tta', choices=('flip',),
        help='also measure the mean logits of each image and its mirror image, as tta_flip_...',
    )  # fmt: skip
    add_prior_option(parser)
    add_taxonomy_option(parser, 'also measure accuracy at each level above the classes, as level1_top1, ...')
    parser.add_argument('--img-size', type=int, metavar='N')
    parser.add_argument('--crop-pct', type=float, metavar='P')
    parser.add_argument('--interpolation', default='', metavar='NAME')
    parser.add_argument('--mean', type=float, nargs='+', metavar='M')
    parser.add_argument('--std', type=float, nargs='+', metavar='S')
    add_loading_options(parser)
    parser.add_argument('--amp', action='store_true', help='mixed precision, bfloat16')
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--results-file', metavar='FILE', help='write the results as JSON')
    parser.add_argument('--per-class-file', metavar='FILE', help='write the per-class table as CSV')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure from a command line."""
    args = build_parser().parse_args(argv)
    setup_logging()
    results = validate(args)
    width = max(map(len, results))
    for name, value in results.items():
        if isinstance(value, (int, float)):
            print(f'{name:<{width}}  {value:.4g}' if isinstance(value, float) else f'{name:<{width}}  {value}')
    if 'image_groups' in results:
        found = from_json(ImageGroups, results['image_groups'], 'the results')
        print('', *group_lines(found, shutil.get_terminal_size((100, 24)).columns), sep='\n')
    if args.results_file:
        with writing(args.results_file, '--results-file'):
            write_json(Path(args.results_file), results)
    return 0


def validate(args: argparse.Namespace) -> OrderedDict[str, Any]:
    """Measure a network.

    Returns:
        Results in percent, counts, GMACs, and what they were measured on.

    Raises:
        RideError: Something the user can fix.
    """
    check_values(vars(args))
    given = chosen(args, DataForm)
    run = TrainedRun() if names_images(given) else find_run(args.source or args.checkpoint or '')
    form = form_of(run, given)
    if args.seed is not None and args.holdout is None:
        raise RideError(f'--seed {args.seed} has no effect without --holdout; add --holdout, or leave --seed out.')
    for name in ('results_file', 'per_class_file'):
        check_writable(getattr(args, name), f'--{name.replace("_", "-")}')
    device = choose_device(args.device)
    trained = _load(args)
    prior = apply_options(trained, args.prior, args.logit_adjustment)
    name = args.split or run.val_split(trained)
    split, counts = open_images(form, trained, split=name, holdout=args.holdout, seed=args.seed)
    model: Any = trained.model.to(device)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last)
    config = data_config(model, vars(args))
    results: OrderedDict[str, Any] = OrderedDict(
        model=trained.name, checkpoint=trained.source if Path(trained.source).exists() else None
    )
    taxonomy = None if args.taxonomy is None else read_taxonomy(args.taxonomy, split.class_names)
    results.update(_measure(args, trained, split, counts, config, device, taxonomy))
    results['num_classes'] = split.num_classes
    results['data'] = split.source
    if prior is not None:
        results['prior'] = {'target': args.prior, 'frequencies': prior}
    if trained.temperatures is not None:
        results['temperatures'] = trained.temperatures
    if args.logit_adjustment is not None:
        results['logit_adjustment'] = args.logit_adjustment
    certificate = _certificate(args, trained)
    if certificate is not None:
        results['certificate'] = to_json(certificate)
        _logger.info(f'Certified: {certificate}; measured here, {results["changed"]:.2f} % of the answers differ')
    results['environment'] = environment()
    _logger.info(format_metrics(results, split.class_counts))
    return results


def _certificate(args: argparse.Namespace, trained: TrainedNet) -> Certificate | None:
    """What was certified of what is measured here; None where the network answers or routes in another way."""
    certificate, model = trained.record.certificate, trained.model
    if certificate is None or not args.routed or args.prior or args.logit_adjustment is not None:
        return None
    return certificate if certificate.threshold == model.router_threshold else None


def _load(args: argparse.Namespace) -> TrainedNet:
    """The network that MODEL names, or that `--checkpoint`, `--model` and `--pretrained` did before there was MODEL."""
    if args.source and args.checkpoint:
        raise RideError(f'{args.source} and --checkpoint {args.checkpoint} both name a network; leave one of them out.')
    file = args.source or args.checkpoint
    if not file and not args.model:
        raise RideError('No network was given; name a MODEL: a run, a checkpoint, a folder, hf-hub:ORG/NAME or a name.')
    if not file and not args.pretrained and ':' not in args.model:
        check_architecture(args.model)
        raise RideError(
            f'--model {args.model} alone names an untrained network; add --pretrained or --checkpoint FILE.'
        )
    trained = load(
        file or args.model, architecture=args.model if file else None, use_ema=args.use_ema or None,
        model_kwargs=args.model_kwargs,
    )  # fmt: skip
    if args.num_classes not in (None, trained.model.num_classes):
        raise RideError(
            f'--num-classes {args.num_classes} was given, but {trained.source} has {trained.model.num_classes} '
            'classes; leave it out.'
        )
    return trained


def _measure(
    args: argparse.Namespace,
    trained: TrainedNet,
    split: DataSplit,
    counts: Any,
    config: Any,
    device: torch.device,
    taxonomy: Taxonomy | None,
) -> OrderedDict[str, Any]:
    model: Any = trained.model
    routed = routing_threshold(args, trained) is not None
    if routed and args.tta:
        raise RideError(f'--tta {args.tta} measures all experts, but routing was asked for; leave one of them out.')
    found = measure_split(
        model, split, counts, config, batch_size=args.batch_size, workers=args.workers, device=device,
        routed=routed, threshold=args.threshold, mirror=bool(args.tta), temperatures=trained.temperatures,
        channels_last=args.channels_last,
        autocast=partial(torch.autocast, device.type, torch.bfloat16) if args.amp else nullcontext,
    )  # fmt: skip
    metrics: OrderedDict[str, Any] = found.routed or found.metrics
    if taxonomy is not None:
        levels = taxonomy.accuracies(found.confusion if found.routed_confusion is None else found.routed_confusion)
        metrics.update({f'level{level}_top1': accuracy for level, accuracy in enumerate(levels, start=1)})
    if args.per_class_file:
        with writing(args.per_class_file, '--per-class-file'):
            write_per_class(Path(args.per_class_file), found.routed_per_class or found.per_class)
    if found.mirrored is not None:
        shown = [
            name
            for name in ('top1', 'balanced', *(found.groups.groups if found.groups else ()), 'ece')
            if name in found.mirrored
        ]
        metrics.update({f'tta_flip_{name}': found.mirrored[name] for name in shown})
        metrics['tta_flip_gmacs'] = 2 * metrics['gmacs']
    groups = said_by_group(found.answers, split.image_groups)
    if groups is not None:
        metrics['image_groups'] = to_json(groups)
    return metrics


def open_images(
    form: DataForm, trained: TrainedNet, *, split: str = 'val', holdout: float | None = None, seed: int | None = None
) -> tuple[DataSplit, Any]:
    """The images to measure on, labelled by the names the network was trained with.

    Args:
        form: The options of the data.
        trained: The network.
        split: Name of the split.
        holdout: Instead of a split, the training images that `train --holdout` with this fraction held out.
        seed: Of that; by default that of the network's training.

    Returns:
        The images, and the training images (C,) of each class, None if unknown.

    Raises:
        RideError: The images cannot be opened or decoded, or are of other classes.
    """
    model: Any = trained.model
    names, counts = trained.class_names, trained.class_counts
    if names is None or counts is None:
        names, counts = _from_training_images(form, names, model.in_chans)
    part = trained.record.val_part
    if holdout is not None:
        images = _held_out(form, trained, names, holdout, seed)
    elif part and split == 'val' and (form.dataset not in ('', 'folder') or not has_eval_images(form, 'val')):
        images = open_val_part(form, names, model.in_chans, part)[1]
    else:
        images = open_eval(form, model.in_chans, names, split)
    if images.num_classes != model.num_classes:
        raise RideError(
            f'{trained.name} has {model.num_classes} classes and {images.source} {images.num_classes}; evaluate it on '
            'the classes that it was trained on.'
        )
    images.dataset.pixel_range = trained.record.pixel_range
    if len(images.targets) <= MAX_CHECKED:
        check_images(images)
    return images, counts


def _held_out(
    form: DataForm, trained: TrainedNet, names: tuple[str, ...], fraction: float, seed: int | None
) -> DataSplit:
    """The training images that a training held out."""
    model: Any = trained.model
    part, plan = trained.record.val_part, trained.record.holdout
    grouped = plan is None or plan.grouped
    if grouped:
        form = for_groups_of(form, plan)
    if seed is None:
        seed = 42 if plan is None else plan.seed
    train = open_val_part(form, names, model.in_chans, part)[0] if part else open_train(form, model.in_chans, names)
    parts = hold_out(train, fraction, seed, grouped=grouped)
    these = f'--holdout {fraction:g}, seed {seed}'
    if plan is None:
        _logger.warning(
            f'{trained.name} does not say which images its training held out; if not these ({these}), it has seen them.'
        )
    elif plan.digest != parts.digest:
        _logger.warning(
            f'{trained.name} held out other images (--holdout {plan.fraction:g}, seed {plan.seed}) than these '
            f'({these}), and has seen some of them.'
        )
    return parts.held


def _from_training_images(form: DataForm, names: tuple[str, ...] | None, in_chans: int) -> tuple[tuple[str, ...], Any]:
    """Class names and counts of the training images next to the ones to measure, where the network names none."""
    if form.dataset or form.train_list or form.table or Path(form.data_dir or '.', 'train').is_dir():
        train = open_train(form, in_chans, names)
        return train.class_names, train.class_counts
    if names is not None:
        _logger.warning('Without training counts there are no many / medium / few groups; put train/ next to val/.')
        return names, None
    raise RideError(
        f'The checkpoint names no classes and {form.data_dir} has no train folder to read them from; use a '
        'checkpoint of ride-timm, which names them, or put train/ next to val/.'
    )
