"""A network in the formats of other programs: ONNX, and the programs of `torch.export`.

Both carry what a prediction needs apart from the tensors: labels, how images are prepared, threshold and temperatures.
"""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import Dim

from ride_timm.files import write_whole
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.network import DATA_CONFIG_KEYS, data_config
from ride_timm.installation import require
from ride_timm.models import count_experts

__all__ = ['METADATA', 'describe', 'write_onnx', 'write_program']

METADATA = 'ride_timm'  # as of ride_timm.inference.onnx


def describe(trained: TrainedNet, threshold: float | None) -> dict[str, Any]:
    """What a prediction needs apart from the tensors.

    Args:
        trained: The network.
        threshold: What it routes with; None: not at all.
    """
    config = data_config(trained.model)
    return {
        'name': trained.name,
        'labels': list(trained.labels),
        'num_experts': count_experts(trained.model),
        'threshold': threshold,
        'temperatures': trained.temperatures,
        'pixel_range': trained.record.pixel_range,
        **{key: config[key] for key in DATA_CONFIG_KEYS},
    }


def write_onnx(
    trained: TrainedNet,
    path: Path,
    threshold: float | None = None,
    calibration: Sequence[NDArray[np.float32]] | None = None,
) -> None:
    """Write an ONNX file.

    It takes normalised `images` (B, channels, H, W) and gives `logits` (B, C) and, if routed, `num_experts` (B,).

    Args:
        trained: The network, on the CPU.
        path: The file.
        threshold: Route with it, and compute an expert only for the images that reach it; None: all experts.
        calibration: Batches of prepared images, (B, channels, H, W), by which to compute in 8-bit integers; None: in
            float32.

    Raises:
        RideError: onnx or onnxscript are missing.
    """
    require('An ONNX file', 'ride-timm[onnx]', 'onnx', 'onnxscript')
    from ride_timm.publishing.early_exit import export_graph, joined, quiet, routed_pieces

    images = _examples(trained)
    if threshold is None:
        pieces = [export_graph(trained.model, (images,), ({0: Dim('batch')},), ['images'], ['logits'])]
    else:
        pieces = routed_pieces(trained.model, images, threshold)
    if calibration is not None:
        from ride_timm.publishing.int8 import quantized

        with quiet():
            pieces = quantized(pieces, calibration)
    model = pieces[0] if threshold is None else joined(pieces, trained.model.num_classes)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(describe(trained, threshold))
    write_whole(path, model.SerializeToString())


def write_program(trained: TrainedNet, path: Path) -> None:
    """Write what `torch.export.load(path).module()` takes: images (B, channels, H, W) to logits (B, C).

    Args:
        trained: The network, on the CPU.
        path: The file, of the suffix `.pt2`.
    """
    program = torch.export.export(trained.model, (_examples(trained),), dynamic_shapes=({0: Dim('batch')},))
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={f'{METADATA}.json': json.dumps(describe(trained, None))})
    write_whole(path, file.getvalue())


def _examples(trained: TrainedNet) -> torch.Tensor:
    return torch.zeros(2, *data_config(trained.model)['input_size'])
