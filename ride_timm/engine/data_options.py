"""The options that say where images are and what form they have, the same in every command."""

import argparse
from pathlib import Path
from typing import Any

from ride_timm.data import DataSplit, Source, as_eval_split, as_train_split, open_source
from ride_timm.data.sources import TRAIN_NAMES, split_names
from ride_timm.errors import RideError

__all__ = [
    'add_form_options',
    'check_form',
    'data_name',
    'has_eval_images',
    'open_eval',
    'open_eval_source',
    'open_train',
    'open_train_source',
]


def add_form_options(group: Any) -> None:
    """Add the options to an argument parser or a group of one.

    Args:
        group: Gets `--dataset`, `--dataset-download`, the lists, and the keys of tables and shards.
    """
    group.add_argument(
        '--dataset', default='', metavar='NAME',
        help='torch/cifar100, torch/cifar10, ... (torchvision); hfds/NAME (Hugging Face), or hfds for a local one in '
        '--data-dir; wds (webdataset shards in --data-dir); else a folder of images or lists',
    )  # fmt: skip
    group.add_argument('--dataset-download', action='store_true', help='let torchvision download what is missing')
    group.add_argument(
        '--train-list', metavar='FILE',
        help='training images, one "path label" or "path,label" a line, with paths relative to --data-dir, or a CSV or '
        'TSV file whose header names a column path, file, image, image_id, ... and one label, class, species, ...; '
        'other columns are ignored, and ids without a suffix find their .jpg, .png, ...',
    )  # fmt: skip
    group.add_argument('--val-list', metavar='FILE', help='the same for the evaluation images')
    group.add_argument(
        '--class-names', metavar='FILE',
        help='one name a line, for labels that are numbers: the first line names class 0 (default: the numbers)',
    )  # fmt: skip
    group.add_argument('--input-key', metavar='KEY', help='hfds: column of images; wds: their suffixes (jpg;png)')
    group.add_argument('--target-key', metavar='KEY', help='hfds: column of labels; wds: field of the json with them')


def check_form(args: argparse.Namespace) -> None:
    """Refuse options of the data that contradict each other or miss one.

    Args:
        args: Of a parser with `add_form_options`, and `data_dir`.

    Raises:
        RideError: Naming the options.
    """
    lists = [option for option in ('train_list', 'val_list') if getattr(args, option)]
    if not args.data_dir and not lists and not args.dataset.lower().startswith('hfds/'):
        raise RideError('No --data-dir was given; name a folder with train/ and val/, one folder of images a class.')
    if lists and args.dataset:
        raise RideError(
            f'--{lists[0].replace("_", "-")} and --dataset {args.dataset} both say what the images are; leave one out.'
        )
    if len(lists) == 2 and Path(args.train_list).resolve() == Path(args.val_list).resolve():
        raise RideError(
            f'--train-list and --val-list are the same file {args.val_list}; give another list to evaluate on, or '
            '--val-fraction 0.2 instead of --val-list.'
        )


def open_train_source(args: argparse.Namespace) -> Source:
    """Open the training images that the options name, as they are stored.

    Args:
        args: With the options, `data_dir`, and `train_split` where the command has it.

    Raises:
        RideError: They cannot be opened.
    """
    return _open(args, getattr(args, 'train_split', 'train'), args.train_list, training=True)


def open_eval_source(args: argparse.Namespace, split: str) -> Source:
    """Open the evaluation images that the options name, as they are stored.

    Args:
        args: With the options and `data_dir`.
        split: Name of the split.

    Raises:
        RideError: They cannot be opened.
    """
    return _open(args, split, args.train_list if split in TRAIN_NAMES else args.val_list)


def open_train(args: argparse.Namespace, in_chans: int, class_names: tuple[str, ...] | None = None) -> DataSplit:
    """Open and label the training images that the options name.

    Args:
        args: As in `open_train_source`, and `imb_factor`.
        in_chans: Channels to read.
        class_names: Order of the classes, which must be the data's.

    Raises:
        RideError: They cannot be opened, or a class has none.
    """
    return as_train_split(open_train_source(args), class_names, imb_factor=args.imb_factor, in_chans=in_chans)


def open_eval(args: argparse.Namespace, in_chans: int, class_names: tuple[str, ...], split: str) -> DataSplit:
    """Open and label the evaluation images that the options name.

    Args:
        args: With the options and `data_dir`.
        in_chans: Channels to read.
        class_names: Of the training images, in label order.
        split: Name of the split.

    Raises:
        RideError: They cannot be opened, or have a class of their own.
    """
    return as_eval_split(open_eval_source(args, split), class_names, in_chans)


def has_eval_images(args: argparse.Namespace, split: str) -> bool:
    """Whether a folder or lists have images to evaluate on beside those to train on; other forms count as having some.

    Args:
        args: With the options and `data_dir`.
        split: Name of the split.
    """
    if args.val_list or args.dataset not in ('', 'folder'):
        return True
    root = Path(args.data_dir) if args.data_dir else Path(args.train_list).parent
    return any((root / name).is_dir() for name in split_names(split))


def data_name(args: argparse.Namespace) -> str:
    """A short name of the data, for the name of a run.

    Args:
        args: With the options and `data_dir`.
    """
    named = args.dataset.partition('/')[2].rstrip('/')
    if named and args.dataset.partition('/')[0].lower() != 'wds':  # where anything may follow
        return str(named.rpartition('/')[2])
    return Path(args.data_dir).resolve().name if args.data_dir else Path(args.train_list or args.val_list).stem


def _open(args: argparse.Namespace, split: str, list_file: str | None, training: bool = False) -> Source:
    # where one side is a list, a folder on the other has its names already
    numbered = list_file is not None or not (args.train_list or args.val_list)
    return open_source(
        args.data_dir, args.dataset, split, list_file=list_file, names_file=args.class_names if numbered else None,
        input_key=args.input_key, target_key=args.target_key, download=args.dataset_download, training=training,
    )  # fmt: skip
