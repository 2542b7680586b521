"""Cut a timm model in two after any of its stages or blocks.

Only the top level of the model's own `forward_features` and `forward_head` is traced; stages and blocks stay whole
modules, with their own Python. The three pieces are plain `torch.fx.GraphModule`s, so parameters keep the host's names,
and deepcopy, pickle, TorchScript, export and compile work as for any module.
"""

import difflib
import inspect
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import get_notrace_functions, resample_abs_pos_embed
from timm.models import get_model_traits
from torch import fx, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from ride_timm import _compat
from ride_timm.errors import RideError

__all__ = ['Cut', 'StageTracer', 'cut', 'default_split', 'end_at', 'extract', 'splits']

_BATCH = 1_000_003  # on the meta device; no table of positions is as long


class Cut(NamedTuple):
    """The three graphs of a host; `fx.GraphModule(host, graph)` makes a module of each."""

    trunk: fx.Graph
    """Images to what an expert needs: a list of tensors, usually of one; rotary tables may be others."""
    body: fx.Graph
    """From there to the result of the host's `forward_features`."""
    pool: fx.Graph
    """From there to that of the host's `forward_head(pre_logits=True)`."""
    per_image: tuple[bool, ...]
    """Which of the tensors that cross have one entry an image."""
    shapes: tuple[tuple[int, ...], ...]
    """Their shapes, without the axis of images."""
    channel_dim: int
    """Where the features have their channels: 1 or -1."""
    width: int
    """Channels of the pre-logits."""


class StageTracer(fx.Tracer):
    """Enters only what lies around the given modules; every other module is one call.

    It can be made without arguments, since a graph module that is unpickled traces its own code again.

    Args:
        paths: The modules that must appear as calls.
    """

    def __init__(self, paths: Sequence[str] = ()) -> None:
        super().__init__(autowrap_functions=(*get_notrace_functions(), resample_abs_pos_embed))
        self.paths = paths

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays one call."""
        return not any(path.startswith(f'{module_qualified_name}.') for path in self.paths)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A rotary embedding stays an object of the graph: its tables depend on device and image size."""
        if hasattr(attr_val, 'get_embed'):
            return self.create_proxy('get_attr', self.path_of_module(attr_val), (), {})
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def end_at(graph: fx.Graph, path: str) -> fx.Node | None:
    """The last call of the module `path`, or of a module inside of it."""
    calls = [node for node in graph.nodes if node.op == 'call_module' and f'{node.target}.'.startswith(f'{path}.')]
    return calls[-1] if calls else None


def extract(graph: fx.Graph, inputs: fx.Node | list[fx.Node], output: fx.Node | list[fx.Node]) -> fx.Graph:
    """What `output` needs, computed from `inputs`.

    Args:
        graph: Where both are.
        inputs: A node, or a list of nodes, which makes the input a list of tensors.
        output: A node, or a list of nodes, which makes the output a list of tensors.
    """
    new = fx.Graph(tracer_cls=StageTracer)
    x = new.placeholder('x', type_expr=list[torch.Tensor] if isinstance(inputs, list) else inputs.type)
    env: dict[fx.Node, fx.Node] = {}
    if isinstance(inputs, list):
        env |= {node: new.call_function(operator.getitem, (x, i)) for i, node in enumerate(inputs)}
    else:
        env[inputs] = x
    needed: set[fx.Node] = set()
    todo = list(output) if isinstance(output, list) else [output]
    while todo:
        node = todo.pop()
        if node not in env and node not in needed:
            needed.add(node)
            todo += node.all_input_nodes
    for node in graph.nodes:
        if node in needed:
            env[node] = new.node_copy(node, env.__getitem__)
    new.output(fx.map_arg(output, env.__getitem__))
    new.lint()
    return new


def cut(host: nn.Module, split: str, levels: Sequence[str] = ()) -> Cut:
    """Cut a timm model after one of its modules.

    Args:
        host: The model, in any mode; it is not changed.
        split: Path of the last module of the trunk, as `stages.1`, `layers.2.blocks.3` or `blocks.8`.
        levels: Paths of modules that shall be calls of the graphs as well.

    Raises:
        RideError: The model cannot be cut, or not there.
    """
    name = type(host).__name__
    if split not in dict(host.named_modules()):
        close = difflib.get_close_matches(split, splits(host), n=4, cutoff=0.0)
        hint = ', '.join(close) or 'another path of named_modules()'
        raise RideError(f'{name} has no module {split!r} to be cut after; did you mean {hint}?')
    graph = _trace(host, 'forward_features', (split, *levels))
    last = end_at(graph, split)
    if last is None:
        calls = ', '.join(dict.fromkeys(str(node.target) for node in graph.nodes if node.op == 'call_module'))
        raise RideError(f'{name} does not call {split!r} in forward_features, so it cannot be cut there; use {calls}.')
    nodes = list(graph.nodes)
    image = next(node for node in nodes if node.op == 'placeholder')
    before = set(nodes[: nodes.index(last) + 1])
    crossing = [
        node for node in nodes if node in before and node.op != 'get_attr' and not before.issuperset(node.users)
    ]
    if image in crossing:
        raise RideError(f'{name} reads the images again after {split!r}, so it cannot be cut there.')
    head = _trace(host, 'forward_head', (), pre_logits=True)
    features = next(node for node in head.nodes if node.op == 'placeholder')
    trunk = extract(graph, image, crossing)
    body = extract(graph, crossing, _result(host, graph))
    pool = extract(head, features, _result(host, head))
    found = _measure(host, split, *(fx.GraphModule(host, piece) for piece in (trunk, body, pool)))
    return Cut(trunk, body, pool, *found)


def default_split(host: nn.Module) -> str:
    """The end of the last stage but one; where all stages have one resolution, the experts have a quarter of them.

    Raises:
        RideError: The model does not say what its stages are.
    """
    infos: Any = getattr(host, 'feature_info', None)
    if not infos or len(infos) < 2:
        raise RideError(f'{type(host).__name__} does not say what its stages are; name the split=, a path of a module.')
    levels = [(info['reduction'], str(info['module'])) for info in infos]
    shared = [path for reduction, path in levels if reduction < levels[-1][0]]
    return shared[-1] if shared else levels[-1 - max(1, len(levels) // 4)][1]


def splits(host: nn.Module) -> list[str]:
    """Where a model may be cut: the ends of its stages and of the blocks in them."""
    modules = dict(host.named_modules())
    infos = getattr(host, 'feature_info', None) or ()
    levels = [str(info['module']) for info in infos if info['module'] in modules]  # some of timm's are not there
    roots = {level.partition('.')[0] for level in levels} or {path.partition('.')[0] for path in modules}
    numbered = [
        path
        for path in modules
        if path.rpartition('.')[2].isdecimal() and path.partition('.')[0] in roots and path.count('.') < 4
    ]
    return list(dict.fromkeys([*levels, *numbered]))


def _like(input: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return torch.empty_like(input)


def _hardtanh(input: torch.Tensor, *_: Any, inplace: bool = False, **__: Any) -> torch.Tensor:
    return F.relu(input, inplace)


def _linear(input: torch.Tensor, weight: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return input.new_empty((*input.shape[:-1], len(weight)))


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return query.new_empty((*query.shape[:-1], value.shape[-1]))


# what takes most of the time on the meta device, as it is written in Python there
_SHAPES: dict[Callable[..., Any], Callable[..., torch.Tensor]] = {
    F.batch_norm: _like,
    F.layer_norm: _like,
    F.gelu: _like,
    F.hardtanh: _hardtanh,
    F.linear: _linear,
    F.scaled_dot_product_attention: _attention,
}


class _ShapesAlone(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return _SHAPES.get(func, func)(*args, **(kwargs or {}))


def _measure(
    host: nn.Module, split: str, trunk: nn.Module, body: nn.Module, pool: nn.Module
) -> tuple[tuple[bool, ...], tuple[tuple[int, ...], ...], int, int]:
    """Run the pieces on the meta device, to see that they run and what crosses."""
    net: Any = host
    name = type(host).__name__
    images = meta_images(host, _BATCH)
    crossing = on_meta(trunk, images)
    if not all(isinstance(value, torch.Tensor) for value in crossing):
        raise RideError(f'{name} passes on more than tensors after {split!r}, so it cannot be cut there.')
    versions = [_compat.get_version(value) for value in crossing]
    features = on_meta(body, crossing)
    if versions != [_compat.get_version(value) for value in crossing]:
        raise RideError(f'{name} overwrites what comes from {split!r}, which experts share, so it cannot be cut there.')
    layout = getattr(net, 'output_fmt', 'NCHW')
    channel_dim = 1 if features.ndim == 4 and getattr(layout, 'value', layout) == 'NCHW' else -1
    if features.shape[channel_dim] != net.num_features:
        raise RideError(f'{name} has features of an unknown layout, {tuple(features.shape)}.')
    pooled = on_meta(pool, features)
    width = pooled.shape[1 if pooled.ndim == 2 else channel_dim]
    per_image = tuple(value.shape[:1] == (_BATCH,) for value in crossing)
    shapes = tuple(tuple(value.shape[own:]) for value, own in zip(crossing, per_image, strict=True))
    return per_image, shapes, channel_dim, int(width)


def meta_images(host: nn.Module, count: int) -> torch.Tensor:
    """Images of the size that a model is made for, (count, channels, H, W), on the meta device."""
    net: Any = host
    config = getattr(net, 'default_cfg', None) or {'input_size': (3, 224, 224)}
    size = get_model_traits(host).get('img_size') or config['input_size'][-2:]
    return torch.zeros(count, net.in_chans, *size, dtype=next(net.parameters()).dtype, device='meta')


def on_meta(module: nn.Module, x: Any) -> Any:
    state = {name: t.to('meta') for name, t in [*module.named_parameters(), *module.named_buffers()]}
    with torch.no_grad(), _ShapesAlone():
        return functional_call(module, state, (x,))


def _trace(host: nn.Module, method: str, paths: Sequence[str], **fixed: Any) -> fx.Graph:
    """Trace a method of one tensor; its other arguments have their defaults or are `fixed`."""
    name = f'{type(host).__name__}.{method}'
    training, graphs = host.training, []
    try:
        parameters = list(inspect.signature(getattr(host, method)).parameters.values())[1:]
        defaults = {each.name: each.default for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD}
        for mode in (False, True):
            tracer = StageTracer(paths)
            tracer.traced_func_name = method  # the host's module is where names are looked up
            graphs.append(tracer.trace(host.train(mode), concrete_args=defaults | fixed))
    except Exception as error:  # whatever the host's own Python says to a proxy
        reason = str(error).split('\n')[0].split('. ')[0]
        raise RideError(f'{name} cannot be traced, so this backbone cannot be cut: {reason}.') from error
    finally:
        host.train(training)
    if method == 'forward_head':  # the dropout before the head belongs to whoever owns the head
        for node in [node for graph in graphs for node in graph.nodes if node.target is F.dropout]:
            node.replace_all_uses_with(node.args[0])
            node.graph.erase_node(node)
    evaluated, trained = graphs
    if evaluated.python_code('self').src != trained.python_code('self').src:
        raise RideError(f'{name} differs between train and eval mode, so this backbone cannot be cut.')
    for node in evaluated.nodes:
        if str(node.target).startswith('_tensor_constant') or any(isinstance(arg, torch.device) for arg in node.args):
            raise RideError(f'{name} fixes a tensor or a device ({node.name}), so this backbone cannot be cut.')
    return evaluated


def _result(host: nn.Module, graph: fx.Graph) -> fx.Node:
    (result,) = next(node for node in graph.nodes if node.op == 'output').args
    if not isinstance(result, fx.Node):
        raise RideError(f'{type(host).__name__} has more than one result, so this backbone cannot be cut.')
    return result
