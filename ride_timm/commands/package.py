"""`ride-timm package`: from finished runs to the folder of a published checkpoint, measured on the way.

The folder holds what is uploaded: `model.safetensors`, `config.json`, `results.json` with every figure, and the card
with its pictures. If an `index.json` lies next to the folder, the checkpoint is entered there with its hashes. What is
measured is the network as it is stored: in the precision of `--dtype`.
"""

import argparse
import itertools
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ride_timm.commands.parser import Parser
from ride_timm.data import DataSplit, check_images, open_eval_split
from ride_timm.data.sources.folders import find_split_folder
from ride_timm.errors import RideError
from ride_timm.evaluation.cost import describe_network
from ride_timm.evaluation.one_pass import measure_split
from ride_timm.evaluation.sweep import THRESHOLDS
from ride_timm.evaluation.writing import as_record, format_metrics, write_json
from ride_timm.files import check_folder
from ride_timm.inference.load import TrainedNet, load
from ride_timm.inference.network import data_config
from ride_timm.inference.prior import fold_logit_adjustment, remaining_adjustment
from ride_timm.installation import require
from ride_timm.logs import setup_logging
from ride_timm.publishing.folder import save_folder, tensor_bytes
from ride_timm.publishing.index import renew_entry
from ride_timm.publishing.precision import DTYPES, round_network
from ride_timm.records.fields import to_json
from ride_timm.records.provenance import base_model, hub_datasets
from ride_timm.records.results import FORMAT, SEED_RESULTS, Choices, Results, read_results
from ride_timm.records.runs import read_per_class, read_run
from ride_timm.training.run_data import MAX_CHECKED
from ride_timm.training.run_folder import checkpoints_in
from ride_timm.values import check_values

__all__ = ['build_parser', 'main', 'package', 'seed_rows']

_logger = logging.getLogger(__name__)


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm package`."""
    parser = Parser(
        prog='ride-timm package',
        description='Package finished runs for publication: tensors, configuration, measured '
        'plots and the card. Thresholds are taken from the runs; nothing is chosen here.',
    )
    parser.add_argument(
        'runs', nargs='+', metavar='RUN',
        help="run folders in training order: the experts', then the router's",
    )  # fmt: skip
    parser.add_argument('--output', required=True, metavar='DIR', help='folder to write, named ARCHITECTURE.TAG')
    parser.add_argument('--data-dir', required=True, metavar='DIR', help='folder with val/, or root of the data set')
    parser.add_argument('--dataset', default='', metavar='NAME', help='torch/cifar100, ...; else a folder')
    parser.add_argument('--data-name', metavar='NAME', help="the data's name on the card (default: the folder's)")
    parser.add_argument(
        '--data-id', metavar='ORG/NAME', help="the data's repository on the Hub (default: known for hfds/ and torch/)"
    )
    parser.add_argument(
        '--choices', nargs='+', default=[], metavar='RUN',
        help='the runs, in the same order, that held out images and chose the threshold on them',
    )  # fmt: skip
    parser.add_argument(
        '--other-seeds', nargs='+', default=[], metavar='DIR',
        help='folders written by this command from runs with other seeds, for mean and spread',
    )  # fmt: skip
    parser.add_argument('--note', metavar='TEXT', help='a note on the training for the card')
    parser.add_argument(
        '--logit-adjustment', type=float, metavar='TAU',
        help='add the post-hoc logit adjustment of `ride-timm validate --logit-adjustment TAU` to the heads, so that '
        'whoever loads the weights has it; for experts without a router, which is to be trained on what this writes',
    )  # fmt: skip
    tensors = parser.add_argument_group('tensors')
    tensors.add_argument(
        '--dtype', default='float32', choices=list(DTYPES),
        help='type of large tensors (default: float32); normalisation, biases and the router stay float32',
    )  # fmt: skip
    tensors.add_argument(
        '--max-shard-size', type=float, metavar='MIB',
        help='split the tensors into files of at most this size, for hosts with a limit (timm reads one '
        'file; ride-timm reads either, and publishes one)',
    )  # fmt: skip
    tensors.add_argument(
        '--results-only', action='store_true',
        help='leave the tensors out, for a network that only serves as a baseline',
    )  # fmt: skip
    parser.add_argument('-b', '--batch-size', type=int, default=256, metavar='N')
    parser.add_argument('-j', '--workers', type=int, default=0, metavar='N')
    parser.add_argument('--device', default='cpu', help='where to measure (default: cpu)')
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Package from a command line."""
    args = build_parser().parse_args(argv)
    setup_logging()
    results = package(args)
    test = results.test
    images = [row.test_images for row in test.per_class]
    print(f'{args.output}: all experts {format_metrics(test.all_experts, images)}')
    if test.routed is not None:
        print(f'{args.output}: routed      {format_metrics(test.routed, images)}, {test.routed["gmacs"]:.4f} GMACs')
    return 0


def package(args: argparse.Namespace) -> Results:
    """Measure a trained network and write its folder.

    Returns:
        The content of `results.json`.

    Raises:
        RideError: A run is not finished or another than it should be, or the folder cannot be written.
    """
    import torch

    from ride_timm.pages.card import write_card

    require('A card', 'ride-timm[quickstart]', 'matplotlib')  # known before anything is measured
    check_values(vars(args))
    check_folder(args.output, '--output')
    output = Path(args.output)
    name = output.resolve().name
    runs = [read_run(Path(run)) for run in args.runs]  # a run that is not finished has no results to say so
    trained = load(args.runs[-1])
    _check(args, name, trained)
    stages, first = [run.training[-1] for run in runs], runs[0].args or {}
    choices = _choices([Path(run) for run in args.choices], trained) if args.choices else None
    split = _open(args, trained)
    counts = _all_counts(Path(args.runs[-1]), trained)
    config = data_config(trained.model)
    if args.logit_adjustment is not None:
        _fold(args, trained, counts)
    dtype = DTYPES[args.dtype]
    round_network(trained.model, dtype)
    measured = measure_split(
        trained.model, split, counts, config,
        batch_size=args.batch_size, workers=args.workers, device=torch.device(args.device),
        routed=getattr(trained.model, 'router', None) is not None, thresholds=THRESHOLDS,
    )  # fmt: skip
    test = as_record(measured)
    trained.model.cpu()
    record = trained.record.for_export
    if dtype != torch.float32 and (record.certificate or record.calibration):
        _logger.warning(
            f'Certificate and calibration are left out, as the tensors are rounded to {args.dtype}; run '
            '`ride-timm route` and `ride-timm calibrate` on the folder again.'
        )
        record = replace(record, certificate=None, calibration=None)
    if args.logit_adjustment is not None:
        record = replace(record, calibration=None, holdout=trained.record.holdout)  # its router is still to be trained
    save_folder(
        trained.model, output, trained.class_names, counts, record.to_json(),
        dtype=dtype, with_tensors=not args.results_only,
        max_shard_size=None if args.max_shard_size is None else int(args.max_shard_size * 2**20),
    )  # fmt: skip
    stored = {'bytes': None} if args.results_only else {'bytes': tensor_bytes(output), 'dtype': args.dtype}
    content = {
        'format': FORMAT,
        'name': name,
        'architecture': trained.architecture,
        'recipe': stages[0].recipe,
        'method': trained.record.loss,
        'data': {
            'name': args.data_name or Path(args.data_dir).resolve().name,
            'num_classes': len(counts),
            'train_images': sum(counts),
            'imbalance_factor': max(counts) / max(min(counts), 1),
            'test_images': len(split.targets),
            'evaluated_on': 'test',
            'source': split.source,
            'dataset': args.dataset or None,
            'datasets': hub_datasets(first) if args.data_id is None else [args.data_id],
        },
        'base_model': base_model(first),
        'network': {**describe_network(trained.model, config['input_size']), **stored},
        'training': [to_json(stage) for stage in stages],
        'choices': None if choices is None else to_json(choices),
        'test': test,
        'seeds': seed_rows(stages[0].seed, test['all_experts'], [Path(folder) for folder in args.other_seeds]),
        'results_only': args.results_only,
        'note': args.note,
    }
    results = Results.from_json(content, str(output / 'results.json'))
    write_json(output / 'results.json', results.to_json())
    write_card(output, others=[])
    if renew_entry(output.resolve()):
        _logger.info(f'{name} is listed in {output.parent / "index.json"}')
    return results


def _check(args: argparse.Namespace, name: str, trained: TrainedNet) -> None:
    architecture = trained.architecture
    if not re.fullmatch(rf'{re.escape(architecture)}\.\w+', name):
        raise RideError(
            f'--output {args.output} was given, but {args.runs[-1]} trained {architecture}; name the folder '
            f'{architecture}.TAG, with a tag of letters, digits and underscores such as ride_cifar100lt.'
        )
    if checkpoints_in(Path(args.output)):
        raise RideError(
            f'--output {args.output} is the folder of a run, whose results.json this would replace; name another '
            'folder.'
        )
    last = read_run(Path(args.runs[-1]))
    if getattr(trained.model, 'router', None) is not None and last.training[0].stage != 'router':
        raise RideError(
            f'{args.runs[-1]} has a router, but is not a run of the router stage; name the run that trained it.'
        )
    for before, run in itertools.pairwise(args.runs):
        begun = read_run(Path(run)).training[0].init
        folder = Path(before).resolve()
        if begun is None or Path(begun).resolve() not in (folder, folder / 'last.pth.tar'):
            raise RideError(
                f'{run} was initialised from {begun}, not from {before}; name the runs in order, each after the '
                'one that it was initialised from.'
            )
    if trained.class_names is None or trained.class_counts is None:
        raise RideError(
            f'{args.runs[-1]} does not name its classes and their counts; package a run of ride-timm train.'
        )


def _all_counts(run: Path, trained: TrainedNet) -> tuple[int, ...]:
    """Training images of each class, with those that were held out: they make a class a frequent or a rare one."""
    assert trained.class_counts is not None
    if not trained.record.holdout:
        return trained.class_counts
    rows = sorted(read_per_class(run / 'per_class.csv'), key=lambda row: int(row['label']))  # of the held-out images
    if [row['name'] for row in rows] != list(trained.class_names or ()):
        raise RideError(f'{run / "per_class.csv"} has other classes than the network; finish the run.')
    return tuple(row['train_images'] + row['test_images'] for row in rows)


def _fold(args: argparse.Namespace, trained: TrainedNet, counts: Sequence[int]) -> None:
    """Add the logit adjustment to the heads, and note it for later users, and what a router may be chosen on."""
    if getattr(trained.model, 'router', None) is not None:
        raise RideError(
            f'--logit-adjustment {args.logit_adjustment:g} was given, but {args.runs[-1]} has a router, trained on the '
            'unadjusted logits; package the run of its experts, then train one with --stage router --init DIR.'
        )
    fold_logit_adjustment(trained.model, counts, remaining_adjustment(trained, args.logit_adjustment))
    trained.record = replace(trained.record, logit_adjustment=args.logit_adjustment)


def _open(args: argparse.Namespace, trained: TrainedNet) -> DataSplit:
    assert trained.class_names is not None
    if trained.record.val_part and not args.dataset and find_split_folder(args.data_dir, 'val') == Path(args.data_dir):
        raise RideError(
            f'{args.data_dir} holds only the images that the network was trained on; give a --data-dir with val/.'
        )
    split = open_eval_split(
        args.data_dir, args.dataset, class_names=trained.class_names, in_chans=trained.model.in_chans
    )  # fmt: skip
    split.dataset.pixel_range = trained.record.pixel_range
    if len(split.targets) <= MAX_CHECKED:
        check_images(split)
    return split


def _choices(runs: list[Path], trained: TrainedNet) -> Choices:
    """Where the threshold comes from; it must be the one that the network routes with."""
    made = [read_run(run) for run in runs]
    last, own = made[-1], trained.model.router_threshold
    if last.choices is None:
        raise RideError(f'{runs[-1]} held no images out and chose nothing; name runs with --holdout, or no --choices.')
    threshold = last.choices.threshold
    if threshold != own:
        raise RideError(
            f'{runs[-1]} chose the threshold {threshold:g}, but the network routes with {own:g}; train its router with '
            f'--router-threshold {threshold:g}, or leave --choices out if `ride-timm route` chose.'
        )
    if last.architecture != trained.architecture:
        raise RideError(f'{runs[-1]} trained {last.architecture}, but the network is {trained.architecture}.')
    return replace(last.choices, training=tuple(run.training[-1] for run in made))


def seed_rows(seed: Any, metrics: Mapping[str, Any], folders: list[Path]) -> list[dict[str, Any]]:
    """The results of every seed, the published one first.

    Args:
        seed: Of the published run.
        metrics: Its results on the test images.
        folders: What `ride-timm package` made of the others.

    Raises:
        RideError: A folder is none of those, or a seed comes twice.
    """

    def row(seed: Any, metrics: Mapping[str, Any], published: bool) -> dict[str, Any]:
        known = {key: metrics.get(key) for key in SEED_RESULTS}
        return {'seed': seed, **known, 'published': published}

    rows = [row(seed, metrics, True)]
    for folder in folders:
        try:
            other = read_results(folder)
            rows.append(row(other.training[0].seed, other.test.all_experts, False))
        except RideError as error:
            raise RideError(f'{folder} is not a folder that ride-timm package wrote ({error}).') from None
    if len({item['seed'] for item in rows}) < len(rows):
        raise RideError('--other-seeds names a run with a seed that is already there; name runs with other seeds.')
    return rows
