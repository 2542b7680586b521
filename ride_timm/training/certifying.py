"""Entering the threshold that a finished network routes with, and its certificate, into its checkpoint."""

import io
from pathlib import Path

import torch

from ride_timm.errors import RideError
from ride_timm.files import write_whole
from ride_timm.records.certificate import Certificate
from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.records.fields import to_json
from ride_timm.training.run_folder import locked

__all__ = ['checkpoint_of', 'enter_threshold']


def checkpoint_of(source: str | Path) -> Path | None:
    """The training checkpoint that the source of a network leads to; None for a folder of weights and for a name.

    Args:
        source: As of `ride_timm.load`.
    """
    path = Path(source)
    path = path / 'last.pth.tar' if path.is_dir() else path
    return path if path.is_file() and path.suffix == '.tar' else None


def enter_threshold(checkpoint: Path, threshold: float, certificate: Certificate | None) -> None:
    """Rewrite a checkpoint with another threshold, and with what was certified of it; its tensors stay.

    Args:
        checkpoint: Of a network with a router.
        threshold: In [0, 1].
        certificate: None takes out what was certified of another threshold.

    Raises:
        RideError: It cannot be read or written, or a training writes to its folder.
    """
    with locked(checkpoint.parent):
        content = read_checkpoint(checkpoint)
        certified = None if certificate is None else to_json(certificate)
        content['ride'] = {**(content.get('ride') or {}), 'router_threshold': threshold, 'certificate': certified}
        args = content.get('args') or {}
        content['args'] = {
            **args, 'model_kwargs': {**(args.get('model_kwargs') or {}), 'router_threshold': threshold}
        }  # fmt: skip
        data = io.BytesIO()
        torch.save(content, data)
        try:
            write_whole(checkpoint, data.getvalue())
        except OSError as error:
            raise RideError(
                f'{checkpoint} cannot be written ({error.strerror}); make room, or give --output DIR.'
            ) from error
