"""Starting a multi-expert network from a plain ResNet: which channels an expert of reduced width takes over."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

__all__ = ['perturb_experts', 'seed_from_plain']

StateDict = dict[str, torch.Tensor]
_READERS_NORM_DIMS = {2: (0,), 4: (0, 2, 3)}


def seed_from_plain(
    state_dict: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], expert_stages: Sequence[str]
) -> StateDict:
    """Give the trunk and every expert the weights of a plain timm (or torchvision) ResNet or ResNeXt.

    The trunk is copied. So is each stage of an expert of full width. An expert of reduced width takes the channels of
    largest importance, in their order: the norm of a channel's BatchNorm scales times the norm of the weights that read
    the channel. This product does not change when a scale is moved from one to the other, which the network's function
    does not see either (BatchNorm scales as importance: arXiv:1708.06519; weight norms: arXiv:1608.08710). Within a
    stage all blocks add to the same channels, which are picked once, from all their scales; inside a block channels are
    picked for that block alone, in a ResNeXt the same number of each group.

    Args:
        state_dict: Tensors of the plain network, `conv1 bn1 layer1 .. layer4 fc`.
        own: State dict of the multi-expert network, for its shapes; the heads are taken from here.
        expert_stages: Stages that each expert has for itself, in order.

    Returns:
        Tensors for the multi-expert network; what does not fit is passed on as it is, for the caller to refuse.
    """
    bodies: StateDict = {}
    reading = None  # channels that the next stage finds in its input; None means all
    for stage, following in zip(expert_stages, (*expert_stages[1:], None), strict=True):
        part = {key: value for key, value in state_dict.items() if key.startswith(f'{stage}.')}
        shapes = {key: own[f'experts.0.{key}'].shape for key in part if f'experts.0.{key}' in own}
        stream = _pick_stream(state_dict, shapes, stage, following)
        bodies |= _slice_stage(part, shapes, stage, reading, stream)
        reading = stream
    experts = {int(key.split('.')[1]) for key in own if key.startswith('experts.')}
    seeded = {key: value for key, value in state_dict.items() if key.split('.')[0] not in (*expert_stages, 'fc')}
    for k in sorted(experts):
        seeded |= {f'experts.{k}.{key}': value for key, value in bodies.items()}
    heads = {key: value for key, value in own.items() if re.match(r'experts\.\d+\.fc\.', key)}
    return seeded | heads if bodies else seeded


@torch.no_grad()
def perturb_experts(experts: Any, scale: float = 0.01, seed: int = 0) -> None:
    """Set experts with equal bodies apart: multiply weights by 1 + `scale` * N(0, 1), but for the first's and heads.

    Args:
        experts: The network's experts, a ModuleList.
        scale: Relative size of the noise; 0 leaves all as they are.
        seed: Of the noise.
    """
    generator = torch.Generator().manual_seed(seed)
    for expert in list(experts)[1:]:
        for name, parameter in expert.named_parameters():
            if parameter.ndim > 1 and not name.startswith('fc.') and scale:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.mul_(1 + scale * noise.to(parameter))


def _pick_stream(
    state: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size], stage: str, following: str | None
) -> torch.Tensor | None:
    """The channels that a stage puts out, None for all."""
    writers = [
        value for key, value in state.items()
        if re.fullmatch(rf'{stage}\.\d+\.(downsample\.1|{_last_norm(state, stage)})\.weight', key)
    ]  # fmt: skip
    readers = [
        value for key, value in state.items()
        if re.fullmatch(rf'{stage}\.[1-9]\d*\.conv1\.weight', key)
        or (following is None and key == 'fc.weight')
        or (following is not None and re.fullmatch(rf'{following}\.0\.(conv1|downsample\.0)\.weight', key))
    ]  # fmt: skip
    wanted = shapes.get(f'{stage}.0.{_last_norm(state, stage)}.weight')
    if not writers or wanted is None or wanted[0] >= len(writers[0]):
        return None
    scales = torch.stack([writer.float().square() for writer in writers]).sum(0)
    read = sum((_read_norms(reader) for reader in readers), torch.zeros_like(scales)) if readers else 1.0
    return _largest(scales * read, wanted[0])


def _last_norm(state: Mapping[str, torch.Tensor], stage: str) -> str:
    return 'bn3' if f'{stage}.0.bn3.weight' in state else 'bn2'


def _read_norms(weight: torch.Tensor) -> torch.Tensor:
    """Squared norm of the weights that read each input channel (I,) of a weight (O, I) or (O, I, H, W)."""
    return weight.float().square().sum(_READERS_NORM_DIMS[weight.ndim])


def _largest(importance: torch.Tensor, number: int) -> torch.Tensor:
    """Indices of the `number` largest, ascending; of equal ones the first."""
    order = importance.argsort(descending=True, stable=True)[:number]
    return order.sort().values


def _slice_stage(
    part: Mapping[str, torch.Tensor],
    shapes: Mapping[str, torch.Size],
    stage: str,
    reading: torch.Tensor | None,
    stream: torch.Tensor | None,
) -> StateDict:
    sliced: StateDict = {}
    for number in sorted({int(key.split('.')[1]) for key in part}):
        prefix = f'{stage}.{number}.'
        block = {key.removeprefix(prefix): value for key, value in part.items() if key.startswith(prefix)}
        wanted = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        found = _slice_block(block, wanted, reading if number == 0 else stream, stream)
        sliced |= {f'{prefix}{key}': value for key, value in found.items()}
    return sliced


def _slice_block(
    block: StateDict, wanted: Mapping[str, torch.Size], reading: torch.Tensor | None, stream: torch.Tensor | None
) -> StateDict:
    """A residual block with fewer channels: what it reads, its own in between, what it adds to the stream."""
    convolutions = sorted(key.removesuffix('.weight') for key in block if re.fullmatch(r'conv\d\.weight', key))
    made = dict(block)
    entering = reading
    for conv in convolutions:
        norm, weight = conv.replace('conv', 'bn'), block[f'{conv}.weight']
        last = conv == convolutions[-1]
        leaving = stream if last else _pick_inner(block, wanted, conv)
        made[f'{conv}.weight'] = _slice_conv(weight, leaving, entering, len(block[f'{norm}.weight']))
        made |= _slice_norm(block, norm, leaving)
        entering = leaving
    if 'downsample.0.weight' in block:
        weight = block['downsample.0.weight']
        made['downsample.0.weight'] = _slice_conv(weight, stream, reading, len(weight))
        made |= _slice_norm(block, 'downsample.1', stream)
    return made


def _pick_inner(block: StateDict, wanted: Mapping[str, torch.Size], conv: str) -> torch.Tensor | None:
    norm, reader = conv.replace('conv', 'bn'), f'conv{int(conv[-1]) + 1}.weight'
    scales = block[f'{norm}.weight'].float().square()
    size = wanted.get(f'{norm}.weight')
    if size is None or size[0] >= len(scales):
        return None
    groups = _groups(block)
    reads = block[reader]
    if reads.shape[1] == len(scales):  # an ordinary convolution reads every channel
        norms = _read_norms(reads)
    else:  # each group of output channels reads its own
        norms = torch.cat([_read_norms(group) for group in reads.chunk(groups)])
    importance = scales * norms
    if groups == 1:
        return _largest(importance, size[0])
    if size[0] % groups:
        return None
    width = len(scales) // groups
    return torch.cat(
        [_largest(part, size[0] // groups) + number * width for number, part in enumerate(importance.chunk(groups))]
    )


def _groups(block: StateDict) -> int:
    """Groups of a bottleneck's middle convolution."""
    if 'conv3.weight' not in block:
        return 1
    return block['conv1.weight'].shape[0] // block['conv2.weight'].shape[1]


def _slice_conv(
    weight: torch.Tensor, leaving: torch.Tensor | None, entering: torch.Tensor | None, outputs: int
) -> torch.Tensor:
    """Output channels `leaving` and input channels `entering` of a convolution (O, I / groups, H, W)."""
    rows = torch.arange(outputs) if leaving is None else leaving
    if entering is None:
        return weight[rows]
    if int(entering.max()) < weight.shape[1]:
        return weight[rows][:, entering]
    return _slice_grouped(weight, rows, entering)


def _slice_grouped(weight: torch.Tensor, rows: torch.Tensor, entering: torch.Tensor) -> torch.Tensor:
    """Of a grouped convolution each row reads the channels of its own group, counted from the group's first."""
    local = weight.shape[1]
    groups = (int(entering.max()) // local) + 1
    per_group = [entering[entering // local == group] - group * local for group in range(groups)]
    width = weight.shape[0] // groups
    return torch.stack([weight[row][per_group[int(row) // width]] for row in rows])


def _slice_norm(block: StateDict, norm: str, channels: torch.Tensor | None) -> StateDict:
    """The parameters and statistics of a normalisation, for these channels."""
    values = {key: value for key, value in block.items() if key.startswith(f'{norm}.')}
    if channels is None:
        return values
    return {key: value[channels] if value.ndim else value for key, value in values.items()}
