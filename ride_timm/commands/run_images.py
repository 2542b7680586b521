"""The images that a run was trained with, for commands that are given no others."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ride_timm.data.form import check_form
from ride_timm.data.image_groups import GROUPED_BY, is_grouped
from ride_timm.errors import RideError
from ride_timm.inference.load import TrainedNet
from ride_timm.options import DataForm, filled
from ride_timm.records.kinds import ARGS_SCHEMA
from ride_timm.records.schema import read_object

__all__ = ['TrainedRun', 'find_run', 'form_of', 'names_images']

_FORM = (
    'dataset', 'train_list', 'val_list', 'table', 'image_column', 'label_column', 'split_column', 'crop',
    'crop_confidence', 'class_names', 'input_key', 'target_key',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """The folder of a training run and its arguments; a model that is none has neither."""

    folder: Path | None = None
    args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def val_split(self, trained: TrainedNet) -> str:
        """Name of the split that it was evaluated on."""
        return 'val' if trained.record.val_part else self.args.get('val_split') or 'val'


def find_run(source: str) -> TrainedRun:
    """The run that a name belongs to, if it is one: its folder, or a checkpoint in it.

    Raises:
        RideError: The run has no checkpoint yet.
    """
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    settings = folder / 'args.yaml'
    if not path.exists() or not settings.is_file():
        return TrainedRun()
    if path.is_dir() and not (path / 'last.pth.tar').is_file():
        raise RideError(
            f'{path} holds no last.pth.tar, which a training writes after its first epoch; wait for it, or name the '
            'folder of another run.'
        )
    return TrainedRun(folder, read_object(settings, ARGS_SCHEMA))


def names_images(form: DataForm) -> bool:
    """Whether options say which images are meant."""
    return bool(form.data_dir or any(getattr(form, name) for name in _FORM))


def form_of(run: TrainedRun, given: DataForm) -> DataForm:
    """Where the images are: what the run says, as far as the command line says nothing else.

    Args:
        run: Of `find_run`.
        given: The options of the command line.

    Raises:
        RideError: The options do not go together, or the folder is not there.
    """
    other = any(getattr(given, name) for name in _FORM)  # the images have another form now
    grouped_by = () if other or is_grouped(given) else GROUPED_BY
    names = (
        'imb_factor', 'train_split', *grouped_by, *(() if other else _FORM), *(() if given.data_dir else ('data_dir',)),
    )  # fmt: skip
    known = {name: run.args[name] for name in names if run.args.get(name) is not None}
    form = filled(
        dataclasses.replace(given, **{name: value for name, value in known.items() if getattr(given, name) is None})
    )
    check_form(form)
    kept_elsewhere = form.dataset.lower().startswith('hfds/') or form.dataset_download  # so it is a cache
    if run.folder and form.data_dir and not kept_elsewhere and not Path(form.data_dir).is_dir():
        if given.data_dir:
            raise RideError(f'--data-dir {given.data_dir} was given, but there is no such folder; name another.')
        raise RideError(
            f'The images of {run.folder} were in {form.data_dir}, which no longer exists; say where they are with '
            '--data-dir.'
        )
    return form
