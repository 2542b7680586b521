"""The options that say where images are and what form they have, the same in every command."""

from pathlib import Path

from ride_timm.data import Columns, Crop, DataSplit, Source, as_eval_split, as_train_split, open_source
from ride_timm.data.image_groups import with_groups
from ride_timm.data.sources.base import TRAIN_NAMES, split_names
from ride_timm.data.sources.lists import has_split
from ride_timm.errors import RideError
from ride_timm.options import DataForm, flag

__all__ = [
    'check_form',
    'columns_of',
    'crop_of',
    'data_name',
    'has_eval_images',
    'open_eval',
    'open_eval_source',
    'open_train',
    'open_train_source',
]

_OF_LISTS = ('image_column', 'label_column', 'split_column', 'group_column', 'crop')


def columns_of(form: DataForm) -> Columns:
    """The columns of tables that the options name."""
    return Columns(form.image_column, form.label_column, form.split_column, form.group_column)


def crop_of(form: DataForm) -> Crop | None:
    """The parts of images that the options ask for."""
    return Crop(form.crop, form.crop_confidence) if form.crop else None


def check_form(form: DataForm) -> None:
    """Refuse options of the data that contradict each other or miss one.

    Raises:
        RideError: Naming the options.
    """
    lists = [option for option in ('table', 'train_list', 'val_list') if getattr(form, option)]
    if form.table and len(lists) == 2:
        raise RideError(
            f'--table {form.table} names the images of both sides and {flag(lists[1])} those of one; leave one out.'
        )
    for_lists = next((name for name in _OF_LISTS if getattr(form, name)), None)
    if for_lists and not lists:
        raise RideError(f'{flag(for_lists)} is for tables of images; name one with --table.')
    if form.data_dir and not form.dataset and Path(form.data_dir).is_file():
        raise RideError(
            f'--data-dir {form.data_dir} is a file; name it with --table, and the folder of its images with --data-dir.'
        )
    if not form.data_dir and not lists and not form.dataset.lower().startswith('hfds/'):
        raise RideError('No --data-dir was given; name a folder with train/ and val/, one folder of images per class.')
    if form.group_column is not None and form.group_pattern is not None:
        raise RideError(
            f"--group-column {form.group_column} and --group-pattern '{form.group_pattern}' both define the "
            'groups; leave one out.'
        )
    if lists and form.dataset:
        raise RideError(f'{flag(lists[0])} and --dataset {form.dataset} both say what the images are; leave one out.')
    if len(lists) == 2 and Path(str(form.train_list)).resolve() == Path(str(form.val_list)).resolve():
        raise RideError(
            f'--train-list and --val-list are the same file {form.val_list}; give another list to evaluate on, or '
            '--val-fraction 0.2 instead of --val-list.'
        )


def open_train_source(form: DataForm) -> Source:
    """Open the training images that the options name, as they are stored.

    Raises:
        RideError: They cannot be opened.
    """
    return _open(form, form.train_split, form.table or form.train_list, training=True)


def open_eval_source(form: DataForm, split: str) -> Source:
    """Open the evaluation images that the options name, as they are stored.

    Raises:
        RideError: They cannot be opened.
    """
    return _open(form, split, form.table or (form.train_list if split in TRAIN_NAMES else form.val_list))


def open_train(form: DataForm, in_chans: int, class_names: tuple[str, ...] | None = None) -> DataSplit:
    """Open and label the training images that the options name.

    Args:
        form: The options of the data.
        in_chans: Channels to read.
        class_names: Order of the classes, which must be the data's.

    Raises:
        RideError: They cannot be opened, or a class has none.
    """
    source = open_train_source(form)
    return with_groups(as_train_split(source, class_names, imb_factor=form.imb_factor, in_chans=in_chans), form)


def open_eval(form: DataForm, in_chans: int, class_names: tuple[str, ...], split: str) -> DataSplit:
    """Open and label the evaluation images that the options name.

    Args:
        form: The options of the data.
        in_chans: Channels to read.
        class_names: Of the training images, in label order.
        split: Name of the split.

    Raises:
        RideError: They cannot be opened, or have a class of their own.
    """
    return with_groups(as_eval_split(open_eval_source(form, split), class_names, in_chans), form)


def has_eval_images(form: DataForm, split: str) -> bool:
    """Whether there are images to evaluate on next to those to train on; a named data set counts as having some."""
    if form.table:
        return has_split(form.table, split, columns_of(form))
    if form.val_list or form.dataset not in ('', 'folder'):
        return True
    root = Path(form.data_dir) if form.data_dir else Path(str(form.train_list)).parent
    return any((root / name).is_dir() for name in split_names(split))


def data_name(form: DataForm) -> str:
    """A short name of the data, for the name of a run."""
    named = form.dataset.partition('/')[2].rstrip('/')
    if named and form.dataset.partition('/')[0].lower() != 'wds':  # where anything may follow
        return str(named.rpartition('/')[2])
    file = form.table or form.train_list or form.val_list
    return Path(form.data_dir).resolve().name if form.data_dir else Path(str(file)).stem


def _open(form: DataForm, split: str, list_file: str | None, training: bool = False) -> Source:
    # where one side is a list, a folder on the other has its names already
    numbered = list_file is not None or not (form.train_list or form.val_list)
    return open_source(
        form.data_dir, form.dataset, split, list_file=list_file, names_file=form.class_names if numbered else None,
        columns=columns_of(form), divided=bool(form.table or form.split_column), crop=crop_of(form),
        input_key=form.input_key, target_key=form.target_key, download=form.dataset_download, training=training,
    )  # fmt: skip
