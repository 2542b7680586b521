"""ONNX graphs that compute in 8-bit integers: static quantisation, calibrated on images (onnxruntime)."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

__all__ = ['quantized']

_QUANTISED = ['Conv', 'MatMul', 'Add', 'Mul', 'Relu', 'Clip', 'Concat', 'MaxPool', 'AveragePool', 'GlobalAveragePool']
"""Not Gemm: heads and routers cost little, and rounding would move decisions that lie close to the threshold."""

Feeds = Sequence[Mapping[str, NDArray[Any]]]


class _Batches(CalibrationDataReader):
    def __init__(self, feeds: Feeds) -> None:
        self.feeds = iter(feeds)

    def get_next(self) -> Mapping[str, NDArray[Any]] | None:
        return next(self.feeds, None)


def quantized(pieces: Sequence[onnx.ModelProto], batches: Sequence[NDArray[np.float32]]) -> list[onnx.ModelProto]:
    """Quantise graphs that follow each other: 8-bit weights with one scale a channel, 8-bit activations.

    Args:
        pieces: Of float32, without branches; each takes the outputs of those before it by name. Outputs whose names
            start with `active` are the places in the batch of the images that go on. For calibration all of them do,
            so that the ranges of each expert come from all images.
        batches: Images for calibration, each of shape (B, channels, H, W).
    """
    known: list[dict[str, NDArray[Any]]] = [{'images': batch} for batch in batches]
    found = []
    for i, piece in enumerate(pieces):
        names = [value.name for value in piece.graph.input]
        feeds = [{name: values[name] for name in names} for values in known]
        found.append(_quantized(piece, feeds))
        if i == len(pieces) - 1:
            break  # nothing takes its outputs
        outputs = [value.name for value in piece.graph.output]
        session = InferenceSession(piece.SerializeToString(), providers=['CPUExecutionProvider'])
        for values, feed in zip(known, feeds, strict=True):
            values.update(zip(outputs, session.run(outputs, feed), strict=True))
            everywhere = np.arange(len(values['images']))
            values.update((name, everywhere) for name in outputs if name.startswith('active'))
    return found


def _quantized(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    own = onnx.ModelProto()
    own.CopyFrom(model)  # quantize_static changes the model that it is given
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'int8.onnx')
        quantize_static(
            own, path, _Batches(feeds),
            quant_format=QuantFormat.QDQ, op_types_to_quantize=_QUANTISED, per_channel=True,
            weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
        )  # fmt: skip
        return onnx.load(path)
