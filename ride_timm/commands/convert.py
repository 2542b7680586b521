"""Turn a checkpoint of the RIDE authors' trainer into a folder that timm loads.

`ride-timm convert FILE --output DIR` writes `DIR/model.safetensors` and `DIR/config.json`, which
`timm.create_model('local-dir:DIR', pretrained=True)` takes and the Hub shows.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch

from ride_timm.commands.options import KeyValues
from ride_timm.commands.parser import Parser
from ride_timm.errors import RideError, reason_of
from ride_timm.files import check_folder
from ride_timm.models import MultiExpertNet
from ride_timm.models.ride_resnet import resnet_cfg
from ride_timm.models.ride_resnet_cifar import cifar_cfg
from ride_timm.models.router import HIDDEN_FEATURES
from ride_timm.publishing.folder import save_folder
from ride_timm.publishing.official import from_official, load_official
from ride_timm.values import check_values

__all__ = ['build_parser', 'convert', 'main']

StateDict = dict[str, torch.Tensor]
Floats = Sequence[float]


class _Found(NamedTuple):
    """What the tensors say about their network."""

    num_experts: int
    num_classes: int
    head: str
    router_top_k: int | None
    four_stages: bool


def _look(tensors: StateDict) -> _Found:
    out = tensors.get('router.out.weight')
    return _Found(
        num_experts=len({key.split('.')[1] for key in tensors if key.startswith('experts.')}),
        num_classes=tensors['experts.0.fc.weight'].shape[0],
        head='linear' if 'experts.0.fc.bias' in tensors else 'cosine',
        router_top_k=None if out is None else out.shape[-1] - HIDDEN_FEATURES,
        four_stages=any(key.startswith('experts.0.layer4.') for key in tensors),
    )


def convert(
    path: str | Path,
    output: str | Path,
    model_name: str | None = None,
    *,
    num_classes: int | None = None,
    mean: Floats | None = None,
    std: Floats | None = None,
    **model_kwargs: Any,
) -> MultiExpertNet:
    """Convert an official checkpoint to a folder for `timm.create_model('local-dir:FOLDER', pretrained=True)`.

    Number of classes, kind of heads, router and its top-k are read off the tensors.

    Args:
        path: The official checkpoint.
        output: Folder to write; it must not exist, or be empty.
        model_name: The architecture; None finds the one that fits.
        num_classes: Number of classes that the file is expected to have.
        mean: Mean of the training images per channel, in [0, 1]; None means CIFAR-100's or ImageNet's, as the family.
        std: Their standard deviation, likewise.
        **model_kwargs: Further arguments of the architecture, such as `channels` for another width.

    Returns:
        The network, with the weights loaded.

    Raises:
        RideError: The file cannot be read or does not fit the architecture, or the folder cannot be written.
    """
    output = Path(output)
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise RideError(f'{output} exists and is not an empty folder; remove it or choose another one.')
    tensors = from_official(load_official(path))
    found = _look(tensors)
    if num_classes not in (None, found.num_classes):
        raise RideError(
            f'{path} has {found.num_classes} classes, not {num_classes}; leave the number out to keep its heads, '
            'and fine-tune the converted network for others.'
        )
    name = model_name or _find_architecture(path, tensors, model_kwargs)
    if name.partition('.')[0] not in timm.list_models(['ride_*', 'test_ride_*']):
        raise RideError(f"There is no RIDE architecture {name}; timm.list_models('ride_*') lists them.")
    try:
        model = _create(name, found, mean, std, **model_kwargs)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RideError(f'{name} cannot be created from {path} and the arguments: {reason_of(error)}.') from error
    misfit = _misfit(tensors, model)
    if misfit:
        fitting = _fitting(tensors, {})
        advice = (
            f'convert it as {fitting[0]}, which fits' if fitting else 'state its channels= and layers= (--model-kwargs)'
        )
        raise RideError(f'{path} does not fit {name}: {misfit}; {advice}.')
    model.load_state_dict(tensors)
    save_folder(model, output)
    return model


def _create(
    name: str, found: _Found, mean: Floats | None = None, std: Floats | None = None, **kwargs: Any
) -> MultiExpertNet:
    """A network as found; its cfg is given whole, so that nothing of a published checkpoint's cfg (labels!) gets in."""
    cfg = (resnet_cfg if found.four_stages else cifar_cfg)(found.num_experts, num_classes=found.num_classes)
    del cfg['license']  # of our weights
    cfg |= {key: tuple(value) for key, value in (('mean', mean), ('std', std)) if value is not None}
    args: dict[str, Any] = {'num_classes': found.num_classes, 'head': found.head}
    if found.router_top_k is not None:
        args |= {'router': True, 'router_top_k': found.router_top_k}
    model: Any = timm.create_model(name, pretrained_cfg=cfg, **(args | kwargs))
    return model


def _misfit(tensors: StateDict, model: MultiExpertNet) -> str | None:
    """The first reason why the tensors are not those of the network."""
    experts = _look(tensors).num_experts
    if experts != model.num_experts:
        return f'it has {experts} expert(s) and the architecture {model.num_experts}'
    own = model.state_dict()
    for key in own:
        if key not in tensors:
            return f'it lacks {key}'
        if own[key].shape != tensors[key].shape:
            return f'its {key} is {_size(tensors[key])} and that of the architecture {_size(own[key])}'
    extra = next((key for key in tensors if key not in own), None)
    return None if extra is None else f'the architecture has no {extra}'


def _size(tensor: torch.Tensor) -> str:
    return 'x'.join(map(str, tensor.shape)) or 'a scalar'


def _fitting(tensors: StateDict, model_kwargs: dict[str, Any]) -> list[str]:
    """The architectures whose tensors have exactly these names and shapes."""
    found = _look(tensors)
    module = 'ride_resnet' if found.four_stages else 'ride_resnet_cifar'
    fitting = []
    for name in timm.list_models(f'ride_*_{found.num_experts}e', module=module):
        try:
            model = _create(name, found, **(model_kwargs | {'device': 'meta'}))
        except (TypeError, ValueError, RuntimeError):
            continue  # these arguments are not for this one
        if _misfit(tensors, model) is None:
            fitting.append(name)
    return fitting


def _find_architecture(path: str | Path, tensors: StateDict, model_kwargs: dict[str, Any]) -> str:
    fitting = _fitting(tensors, model_kwargs)
    if len(fitting) == 1:
        return fitting[0]
    experts = _look(tensors).num_experts
    raise RideError(
        f'{path} has {experts} expert(s) and fits no architecture as it stands; name the nearest of '
        f"timm.list_models('ride_*') and state its channels= and layers= (--model-kwargs)."
    )


def build_parser() -> argparse.ArgumentParser:
    """The options of `ride-timm convert`."""
    parser = Parser(
        prog='ride-timm convert',
        description="Turn a checkpoint of the RIDE authors' trainer into a folder that timm loads. Nothing that the "
        'file holds next to tensors is run.',
    )
    parser.add_argument('file', metavar='FILE', help='official checkpoint (.pth), or its state dict in safetensors')
    parser.add_argument('--output', required=True, metavar='DIR', help='folder to write, new or empty')
    parser.add_argument('--model', metavar='NAME', help='architecture (default: the one that fits)')
    parser.add_argument('--num-classes', type=int, metavar='N', help='refuse a file with another number of classes')
    for name, text in (('mean', 'mean'), ('std', 'standard deviation')):
        parser.add_argument(
            f'--{name}', type=float, nargs=3, metavar=('R', 'G', 'B'),
            help=f"{text} of the training images (default: CIFAR-100's for 32x32 networks, ImageNet's for the others)",
        )  # fmt: skip
    parser.add_argument(
        '--model-kwargs', nargs='*', default={}, action=KeyValues, metavar='KEY=VALUE',
        help='further arguments of the architecture, such as channels=(64,128,256,512)',
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Convert from a command line."""
    try:
        args = build_parser().parse_args(argv)
    except ValueError as error:  # timm's parser of pairs
        raise RideError('--model-kwargs was given a word without =; it takes KEY=VALUE pairs.') from error
    check_values(vars(args))
    check_folder(args.output, '--output')
    model = convert(
        args.file, args.output, args.model,
        num_classes=args.num_classes, mean=args.mean, std=args.std, **args.model_kwargs,
    )  # fmt: skip
    print(_report(args.file, Path(args.output), model))
    return 0


def _report(source: str, output: Path, model: MultiExpertNet) -> str:
    cfg: Any = model.pretrained_cfg
    router = 'none'
    if model.router is not None:
        router = f'yes, sees the top {model.router_top_k} logits, threshold {model.router_threshold:g}'
    size = (output / 'model.safetensors').stat().st_size
    size_of_image = (model.in_chans, *cfg['input_size'][1:])
    lines = {
        'architecture': f'{cfg["architecture"]}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters',
        'experts': f'{model.num_experts}, {model.head} heads',
        'classes': f'{model.num_classes}, in the order of the file (it does not name them)',
        'router': router,
        'images': f'{"x".join(map(str, size_of_image))}, mean {_numbers(cfg["mean"])}, std {_numbers(cfg["std"])}',
        'files': f'{output / "model.safetensors"} ({size / 1e6:.1f} MB), {output / "config.json"}',
    }
    table = '\n'.join(f'  {name:<13} {text}' for name, text in lines.items())
    load = f'timm.create_model({f"local-dir:{output}"!r}, pretrained=True)'
    return f'Converted {source}\n{table}\nLoad it, after `import ride_timm`, with\n  {load}'


def _numbers(values: Floats) -> str:
    return ' '.join(f'{value:g}' for value in values)
