"""Everything that is published of a network's accuracy, in one go: all experts, routed, over thresholds, by class."""

from collections.abc import Sequence
from typing import Any

import torch

from ride_timm.data import DataSplit
from ride_timm.evaluation.cost import gmacs, gmacs_by_experts
from ride_timm.evaluation.one_pass import Measured, measure_split
from ride_timm.evaluation.sweep import THRESHOLDS
from ride_timm.evaluation.writing import environment
from ride_timm.models import count_experts

__all__ = ['as_record', 'describe_network', 'measure']


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
    found = measure_split(
        model, split, class_counts, config, batch_size=batch_size, workers=workers, device=device,
        routed=getattr(model, 'router', None) is not None, thresholds=THRESHOLDS,
    )  # fmt: skip
    return as_record(found)


def as_record(found: Measured) -> dict[str, Any]:
    """What was measured, as `results.json` holds it; see `measure`."""
    groups = found.groups.groups if found.groups else {}
    return {
        'all_experts': dict(found.metrics),
        'routed': dict(found.routed) if found.routed is not None else None,
        'sweep': found.sweep,
        'groups': {name: [int(index) for index in members] for name, members in groups.items()},
        'per_class': [row.plain() for row in found.per_class],
        'environment': environment(),
    }


def describe_network(model: Any, input_size: Sequence[int]) -> dict[str, Any]:
    """Size and cost of a network.

    Args:
        model: Any network of timm's.
        input_size: (channels, height, width).

    Returns:
        `parameters`, `gmacs` of all experts, `gmacs_by_experts` (None for a plain network), `num_experts`,
        `multi_expert`, `router`, `input_size`.
    """
    experts = count_experts(model)
    return {
        'parameters': sum(parameter.numel() for parameter in model.parameters()),
        'gmacs': gmacs(model, input_size),
        'gmacs_by_experts': gmacs_by_experts(model, input_size) if experts else None,
        'num_experts': experts or 1,
        'multi_expert': experts > 0,
        'router': getattr(model, 'router', None) is not None,
        'input_size': list(input_size),
    }
