"""Where a command notes what it has measured of a network: in the network's own file, or in a copy of the network."""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from ride_timm.files import check_folder, writing
from ride_timm.inference.load import TrainedNet
from ride_timm.publishing.folder import save_folder
from ride_timm.records.amending import amend_record, record_file
from ride_timm.training.run_folder import locked

__all__ = ['find_target', 'keep']


def find_target(model: str, output: str | None) -> Path:
    """Where to note it, which can be written: the file with the network's record, or the folder of a copy.

    Args:
        model: MODEL.
        output: `--output`, if it was given.

    Raises:
        RideError: It cannot be written, or MODEL is no file of the user's and there is no `--output`.
    """
    if not output:
        return record_file(model)
    check_folder(output, '--output')
    return Path(output)


def keep(
    trained: TrainedNet,
    target: Path,
    entries: Mapping[str, Any],
    model_args: Mapping[str, Any] | None = None,
) -> None:
    """Note it.

    Args:
        trained: The network, with the record that a copy is to have.
        target: Of `find_target`.
        entries: As of `amend_record`.
        model_args: Likewise.

    Raises:
        RideError: The file cannot be read or written.
    """
    if not target.is_file():
        record = trained.record.for_export.to_json()
        save_folder(trained.model.cpu(), target, trained.class_names, trained.class_counts, record)
        return
    busy = locked(target.parent) if target.suffix == '.tar' else nullcontext()
    with busy, writing(target, 'MODEL'):
        amend_record(target, entries, model_args)
