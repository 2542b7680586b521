"""Everything that is published of a network's accuracy, in one go: all experts, routed, over thresholds, by class."""

from collections.abc import Sequence
from typing import Any

import torch

from ride_timm.data import DataSplit, choose_groups, create_eval_loader
from ride_timm.engine.cost import gmacs, gmacs_by_experts
from ride_timm.engine.loop import evaluate
from ride_timm.engine.results import environment
from ride_timm.engine.router_stage import evaluate_routed
from ride_timm.engine.sweep import sweep_thresholds
from ride_timm.metrics import LongTailEvaluator
from ride_timm.models import MultiExpertNet

__all__ = ['describe_network', 'measure']


def measure(
    model: Any,
    split: DataSplit,
    class_counts: Sequence[int],
    config: dict[str, Any],
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Measure a network in float32.

    Args:
        model: Any network of timm's; with a router it is measured routed as well.
        split: The images, labelled as the network's classes.
        class_counts: (C,) training images of each class.
        config: Data configuration of the network, timm's `resolve_data_config`.
        batch_size: Images a batch.
        workers: Loading processes.
        device: Where to compute.

    Returns:
        `all_experts`, `routed` and `sweep` (None without a router), `groups`, `per_class`, `environment`; accuracies
        in percent.
    """
    device = device or torch.device('cpu')
    model = model.to(device).eval()
    loader = create_eval_loader(
        split,
        **{key: config[key] for key in ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')},
        batch_size=batch_size, workers=workers, device=device,
    )  # fmt: skip
    groups = choose_groups(class_counts).groups
    experts = model.num_experts if isinstance(model, MultiExpertNet) else 0
    evaluator = _evaluator(split, class_counts, groups, experts, device)
    everything = evaluate(model, loader, evaluator)
    everything['gmacs'] = gmacs(model, config['input_size'])
    routed = sweep = None
    if getattr(model, 'router', None) is not None:
        plain = _evaluator(split, class_counts, groups, 0, device)
        routed = dict(evaluate_routed(model, loader, plain, None, config['input_size']))
        sweep = sweep_thresholds(model, loader, groups, input_size=config['input_size'], device=device)
    return {
        'all_experts': dict(everything),
        'routed': routed,
        'sweep': sweep,
        'groups': {name: [int(index) for index in members] for name, members in groups.items()},
        'per_class': [row.plain() for row in evaluator.per_class()],
        'environment': environment(),
    }


def describe_network(model: Any, input_size: Sequence[int]) -> dict[str, Any]:
    """Size and cost of a network.

    Args:
        model: Any network of timm's.
        input_size: (channels, height, width).

    Returns:
        `parameters`, `gmacs` of all experts, `gmacs_by_experts` (None for a plain network), `num_experts`, `router`,
        `input_size`.
    """
    multi = isinstance(model, MultiExpertNet)
    return {
        'parameters': sum(parameter.numel() for parameter in model.parameters()),
        'gmacs': gmacs(model, input_size),
        'gmacs_by_experts': gmacs_by_experts(model, input_size) if multi else None,
        'num_experts': model.num_experts if multi else 1,
        'router': getattr(model, 'router', None) is not None,
        'input_size': list(input_size),
    }


def _evaluator(
    split: DataSplit, counts: Sequence[int], groups: Any, experts: int, device: torch.device
) -> LongTailEvaluator:
    return LongTailEvaluator(counts, groups=groups, class_names=split.class_names, num_experts=experts, device=device)
