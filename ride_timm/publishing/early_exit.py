"""A routed network as one ONNX graph that computes an expert only for the images that reach it.

Trunk and first expert come first; each further expert is the branch of an `If` that runs where any image goes on. It
gathers these images, so a batch costs what its images need, in every language that onnxruntime has.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import onnx
import torch
from onnx import TensorProto, compose, helper
from torch import nn
from torch.export import Dim

from ride_timm.models.multi_expert import MultiExpertNet
from ride_timm.models.routing import check_threshold, logit, run_expert

__all__ = ['export_graph', 'joined', 'quiet', 'routed_pieces']


def export_graph(
    module: nn.Module, args: tuple[Any, ...], shapes: tuple[Any, ...], inputs: Sequence[str], outputs: Sequence[str]
) -> onnx.ModelProto:
    """A module as an ONNX model.

    Args:
        module: In eval mode.
        args: Example inputs, with at least two entries along every axis that varies.
        shapes: Of each, by axis, the `torch.export.Dim` that varies.
        inputs: Names of the input tensors.
        outputs: Names of the output tensors.
    """
    with quiet():
        program = torch.onnx.export(
            module.eval(), args,
            dynamo=True, dynamic_shapes=shapes, input_names=inputs, output_names=outputs, external_data=False,
            verbose=False,
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # lines and paths of the source
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters remark on axes that share a name, and on their own work."""
    before = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)


class _First(nn.Module):
    """Trunk and first expert."""

    def __init__(self, net: MultiExpertNet, limit: float) -> None:
        super().__init__()
        self.net, self.limit = net, limit

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """As `_Next`, and after it what crosses the cut."""
        z = self.net.forward_trunk(images)
        _, _, mean, decision = run_expert(self.net, 0, z, None)
        assert decision is not None
        return [mean, torch.ones_like(decision, dtype=torch.int64), _places(decision > self.limit), *z]


class _Next(nn.Module):
    """A further expert, for the images that go on."""

    def __init__(self, net: MultiExpertNet, index: int, limit: float) -> None:
        super().__init__()
        self.net, self.index, self.limit = net, index, limit

    def forward(
        self, logits: torch.Tensor, num_experts: torch.Tensor, active: torch.Tensor, z: list[torch.Tensor]
    ) -> list[torch.Tensor]:
        """The first three anew; without `active` after the last expert.

        Args:
            logits: Answers for all images so far, (B, C).
            num_experts: Experts that they passed so far, (B,).
            active: Places in the batch of the images that go on, (n,).
            z: What crosses the cut, of all images.
        """
        mean, offset = logits[active], self.net.logit_offset
        if offset is not None:
            mean = mean - offset[: self.index].mean(dim=0).to(mean.dtype)
        total = mean * self.index
        _, _, mean, decision = run_expert(self.net, self.index, self.net.take(z, active), total)
        logits = logits.index_put((active,), mean)
        num_experts = num_experts.index_put((active,), torch.full_like(active, self.index + 1))
        return [logits, num_experts] + ([] if decision is None else [active[_places(decision > self.limit)]])


def _places(chosen: torch.Tensor) -> torch.Tensor:
    return chosen.nonzero().squeeze(1)


def routed_pieces(net: MultiExpertNet, images: torch.Tensor, threshold: float) -> list[onnx.ModelProto]:
    """The graphs of a routed network, for `joined`: trunk and first expert, and one for each further expert.

    Args:
        net: In eval mode, with a router.
        images: Examples, at least two.
        threshold: In [0, 1]: an image goes on while the router's probability is above it.

    Raises:
        RuntimeError: The network has no router.
        ValueError: The threshold is outside [0, 1].
    """
    net.require_router()
    limit = logit(check_threshold(threshold))
    batch, some = Dim('batch'), Dim('some')
    with torch.no_grad():
        logits, num_experts, _, *z = _First(net, limit)(images)
    crossing = [f'z{i}' for i in range(len(z))]
    pieces = [export_graph(_First(net, limit), (images,), ({0: batch},), ['images'], [*_names(0), *crossing])]
    for i in range(1, net.num_experts):
        piece = export_graph(
            _Next(net, i, limit),
            (logits, num_experts, torch.arange(2), z),
            (
                {0: batch}, {0: batch}, {0: some},
                [{0: batch} if own else {} for own in getattr(net, 'per_image', (True,) * len(z))],
            ),
            [*_names(i - 1), *crossing], _names(i)[: 2 if i == net.num_experts - 1 else 3],
        )  # fmt: skip
        pieces.append(piece)
    return pieces


def joined(pieces: Sequence[onnx.ModelProto], num_classes: int) -> onnx.ModelProto:
    """One model of these graphs: `images` (B, in_chans, H, W) to `logits` (B, C) and `num_experts` (B,).

    Args:
        pieces: Of `routed_pieces`; the first is changed.
        num_classes: Number C of classes.
    """
    model = pieces[0]
    further = [
        compose.add_prefix_graph(piece.graph, f'expert_{i}/', rename_inputs=False, rename_outputs=False)
        for i, piece in enumerate(pieces[1:], 1)
    ]
    _join([model.graph, *further], ['batch', num_classes])
    onnx.checker.check_model(model)
    return model


def _names(index: int) -> list[str]:
    """What an expert hands on, as of `_Next`."""
    return [f'{name}_{index}' for name in ('logits', 'num_experts', 'active')]


def _join(graphs: Sequence[onnx.GraphProto], shape: Sequence[int | str]) -> None:
    """Make each graph but the first a branch of the one before it, whose values it sees by name."""
    branch: onnx.GraphProto | None = None
    for i, graph in reversed(list(enumerate(graphs))):
        *found, active = _names(i)
        if branch is not None:
            copies = [f'same_{name}' for name in found]
            same = [helper.make_node('Identity', [name], [copy]) for name, copy in zip(found, copies, strict=True)]
            otherwise = helper.make_graph(same, f'without_{i + 1}', [], _outputs(copies, shape))
            found = [f'after_{name}' for name in found] if i else ['logits', 'num_experts']
            graph.node.extend([
                helper.make_node('Size', [active], [f'count_{i}']),
                helper.make_node('Cast', [f'count_{i}'], [f'any_{i}'], to=TensorProto.BOOL),
                helper.make_node('If', [f'any_{i}'], found, then_branch=branch, else_branch=otherwise),
            ])  # fmt: skip
        del graph.value_info[:], graph.output[:]
        if i:
            del graph.input[:]
        graph.output.extend(_outputs(found, shape))
        branch = graph


def _outputs(names: Sequence[str], shape: Sequence[int | str]) -> list[onnx.ValueInfoProto]:
    return [
        helper.make_tensor_value_info(names[0], TensorProto.FLOAT, shape),
        helper.make_tensor_value_info(names[1], TensorProto.INT64, shape[:1]),
    ]
