"""Serving other class frequencies than a network was trained for: `--prior`, `--logit-adjustment`.

Experts trained with a tau list (`ride_timm.losses.LogitAdjustedLoss`) learn z_k + tau_k log pi = log p(y|x) under the
class prior pi of the training images, up to a constant. So z_k + (tau_k - 1) log pi + log q is the answer of expert k
where the classes come with the frequencies q. This is linear: the mean over any experts is corrected by the mean tau
of the same experts, and it is enough to correct each expert alone, wherever its logits go.

In routed inference an image that passes n experts gets the mean of the first n, whose mean tau is another for every n.
With tau (0, 1, 2) a uniform prior therefore changes no answer of all three experts, but does change those of the
images that only pass the first one or two: the first expert alone still expects the training prior. The router reads
the logits as it was trained on them, so that every image passes as many experts as without correction.

Other losses leave the training prior in the logits, wholly (cross-entropy) or in a part that nobody knows (LDAM, RIDE).
Post-hoc logit adjustment takes z - tau log pi with a tau that the user gives: 1 is consistent for the balanced error
after cross-entropy, and where a part is gone already the best overall accuracy lies below that. Nothing is trained, and
one network serves every point between its best head and its best tail. It is the correction above for experts trained
with 1 - tau, up to a constant.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ride_timm._compat import get_forward_hooks, update_model_args
from ride_timm.data.sources.base import known_names
from ride_timm.errors import RideError
from ride_timm.inference.load import TrainedNet
from ride_timm.losses import ClassCounts, class_prior, prior_correction
from ride_timm.models import CosineLinear, count_experts
from ride_timm.records.schema import check_record, number, read_object, read_text

__all__ = [
    'apply_options',
    'apply_prior',
    'fold_logit_adjustment',
    'is_corrected',
    'logit_adjustment',
    'parse_prior',
    'remaining_adjustment',
    'serve_prior',
]

_logger = logging.getLogger(__name__)
_NEVER = 1e-30  # of a class that does not occur: no logit makes up for it, and its logarithm is finite


def serve_prior(
    model: nn.Module,
    tau: float | Sequence[float],
    class_counts: ClassCounts,
    target: ClassCounts,
    temperatures: Sequence[float] | None = None,
) -> None:
    """Make a network answer for other class frequencies; its state dict stays as it is.

    From then on `model(x)`, `forward_experts` and `forward_routed` are corrected, and with them every command and
    evaluation. A second call, or one of `logit_adjustment`, replaces the first.

    Args:
        model: A multi-expert network, or a plain one that counts as a single expert.
        tau: What its experts were trained with: one number for each of the K, or one for all.
        class_counts: Training images per class, shape (C,); below 1 counts as 1.
        target: Class frequencies q to expect, shape (C,), of any sum.
        temperatures: What the mean logits of the first n experts are divided by afterwards, n = 1..K, which log q must
            not be; None: nothing.

    Raises:
        RideError: tau is not of K experts, or the lengths do not fit.
    """
    experts = max(count_experts(model), 1)
    taus = [float(tau)] * experts if isinstance(tau, (int, float)) else list(tau)
    if len(taus) != experts:
        raise RideError(
            f'The network has {experts} expert(s) and tau has {len(taus)} numbers; it must have one for each.'
        )
    zero = torch.zeros(1, int(model.num_classes), dtype=torch.float64)  # type: ignore[arg-type]
    offset = torch.cat([prior_correction(zero, class_counts, one, target) for one in taus])
    if temperatures is not None:
        # shares of log q whose mean over the first n experts is the temperature of these n
        sums = torch.tensor([0.0, *(n * value for n, value in enumerate(temperatures, start=1))], dtype=torch.float64)
        served = prior_correction(zero, class_counts, 1.0, target)
        offset = offset + (sums.diff() - 1.0)[:, None] * served
    _set_offset(model, offset)


def logit_adjustment(model: nn.Module, counts: ClassCounts, *, tau: float) -> None:
    """Make a network output z - tau log pi, up to a constant; its state dict does not change.

    Calls do not add up: a second call, or one of `serve_prior`, replaces the first, and tau = 0 undoes it. Each image
    passes as many experts as before.

    Source: Menon et al., arXiv:2007.07314, section 4.1 (post-hoc logit adjustment).

    Args:
        model: A multi-expert network, or any timm classifier of C classes, trained on a loss that leaves the class
            prior pi in its logits: not `balanced_softmax`, `balpoe` or `logit_adjusted`.
        counts: Training images per class, shape (C,); below 1 counts as 1.
        tau: How much of the training prior is taken out: 0 nothing, 1 all that cross-entropy leaves in.

    Raises:
        RideError: The lengths do not fit.

    Example:
        >>> import timm, torch, ride_timm as rt
        >>> model = timm.create_model('test_ride_resnet_cifar_3e', num_classes=3).eval()
        >>> x = torch.zeros(2, 3, 32, 32)
        >>> before = model(x)
        >>> rt.logit_adjustment(model, [100, 10, 1], tau=0.5)
        >>> bool((model(x) - before)[0].argmax() == 2)  # the rarest class gains most
        True
        >>> rt.logit_adjustment(model, [100, 10, 1], tau=0)
        >>> torch.equal(model(x), before)
        True
    """
    counts = counts if isinstance(counts, (Tensor, Mapping)) else list(counts)
    serve_prior(model, 1.0 - tau, counts, [1.0] * len(class_prior(counts)))
    if tau == 0.0:
        _set_offset(model, None)


def _set_offset(model: nn.Module, offset: Tensor | None) -> None:
    """Add an offset (K, C) to the logits of a network's experts, or take it back."""
    net: Any = model
    if count_experts(model):
        net.set_logit_offset(offset)
        return
    hooks = get_forward_hooks(net)  # a copy of a plain network has its hook too, and no handle
    for key in [key for key, hook in hooks.items() if isinstance(hook, _Shift)]:
        del hooks[key]
    if offset is not None:
        net.register_forward_hook(_Shift(offset[0]))


def is_corrected(model: nn.Module) -> bool:
    """Whether a network answers for other class frequencies, or with a logit adjustment."""
    if count_experts(model):
        return getattr(model, 'logit_offset', None) is not None
    return any(isinstance(hook, _Shift) for hook in get_forward_hooks(model).values())


class _Shift:
    """Forward hook that adds a shift (C,) to the logits (B, C) of a network that is not of this package."""

    def __init__(self, shift: Tensor) -> None:
        self.shift = shift

    def __call__(self, module: nn.Module, inputs: Any, logits: Tensor) -> Tensor:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return logits.to(dtype) + self.shift.to(logits.device, dtype)


def apply_prior(trained: TrainedNet, prior: str | Sequence[float]) -> tuple[float, ...]:
    """Make a loaded network answer for other class frequencies.

    Args:
        trained: Of `load`; its model is changed, see `serve_prior`.
        prior: As for `parse_prior`, or C frequencies in label order, of any sum.

    Returns:
        The frequencies, in label order, of sum 1.

    Raises:
        RideError: The network does not allow a correction, and why; or the prior cannot be read.
    """
    tau, counts = trained.record.tau, trained.class_counts
    asked = f'--prior {prior}' if isinstance(prior, str) else 'Other class frequencies'
    given = 'was given' if isinstance(prior, str) else 'were asked for'
    if tau is None:
        loss = trained.record.loss
        raise RideError(
            f'{asked} {given}, but {trained.name}{f" (loss {loss})" if loss else ""} has no tau list, so the '
            'class prior in its logits is unknown; give --logit-adjustment TAU instead, or take a network trained with '
            '--loss balanced_softmax, balpoe or logit_adjusted.'
        )
    if counts is None:
        raise RideError(
            f'{asked} {given}, but {trained.name} does not say how many training images each class had, which '
            'the correction needs; take a checkpoint or a packaged folder of ride-timm, or leave --prior out.'
        )
    target = parse_prior(prior, trained.labels, counts) if isinstance(prior, str) else tuple(prior)
    serve_prior(trained.model, tau, counts, target, trained.temperatures)
    return target


def fold_logit_adjustment(model: nn.Module, class_counts: ClassCounts, tau: float = 1.0) -> None:
    """Add -tau log pi to the biases of a network's heads: `logit_adjustment` for whoever loads the weights.

    A cosine head, which has no bias, becomes a `biased_cosine` one; `save_folder` writes that down.

    Source: Menon et al., arXiv:2007.07314, section 4.1 (post-hoc logit adjustment).

    Args:
        model: A multi-expert network, or a plain one, trained without a tau list; changed in place. A router goes,
            since it knows the logits as they were.
        class_counts: Training images per class, shape (C,); below 1 counts as 1.
        tau: How much of the training prior is taken out.

    Raises:
        RideError: The lengths do not fit, or a head is none that has or takes a bias.
    """
    classes = int(model.num_classes)  # type: ignore[arg-type]
    shift = prior_correction(torch.zeros(1, classes, dtype=torch.float64), class_counts, 1.0 - tau)[0]
    net: Any = model
    heads = list(net.get_classifier()) if count_experts(model) else [net.get_classifier()]
    for head in heads:
        if getattr(head, 'bias', None) is None and not isinstance(head, CosineLinear):
            raise RideError(
                f'The head {type(head).__name__} has no bias for a logit adjustment; give --logit-adjustment to '
                'validate, predict or demo instead.'
            )
    for head in heads:
        if head.bias is None:
            head.bias = nn.Parameter(torch.zeros_like(head.weight[:, 0], dtype=torch.float32))
        with torch.no_grad():
            head.bias += (shift - shift.mean()).to(head.bias.device, head.bias.dtype)
    if count_experts(model):
        net._drop_router()
        if net.head == 'cosine':
            net.head = 'biased_cosine'
            update_model_args(net, head=net.head)


def remaining_adjustment(trained: TrainedNet, tau: float) -> float:
    """What is left to take out of a network's logits: `tau` is the whole, and its heads may hold a part already.

    Args:
        trained: Of `load`.
        tau: How much of the training prior is to be taken out in all.

    Raises:
        RideError: The loss took the prior out already, or the network has no class counts.
    """
    if trained.record.tau is not None:
        loss = trained.record.loss
        raise RideError(
            f'--logit-adjustment {tau:g} was given, but {trained.name}{f" (loss {loss})" if loss else ""} was trained '
            'with a tau list, which takes the class prior out of the logits already; use --prior uniform, or --prior '
            'with a file of the frequencies to expect.'
        )
    if trained.class_counts is None:
        raise RideError(
            f'--logit-adjustment {tau:g} was given, but {trained.name} does not say how many training images each '
            'class had, which the adjustment needs; use a checkpoint or folder of ride-timm, or leave it out.'
        )
    return tau - float(trained.record.logit_adjustment or 0.0)


def apply_options(trained: TrainedNet, prior: str | None, adjustment: float | None) -> tuple[float, ...] | None:
    """Make a loaded network answer as the options of `add_prior_option` ask.

    Args:
        trained: Of `load`; its model is changed.
        prior: As of `apply_prior`.
        adjustment: As of `remaining_adjustment`; one of both at most is given.

    Returns:
        The frequencies of `--prior`, in label order, of sum 1; None without it.

    Raises:
        RideError: As `apply_prior` and `remaining_adjustment`.
    """
    if adjustment is not None:
        rest = remaining_adjustment(trained, adjustment)
        assert trained.class_counts is not None
        logit_adjustment(trained.model, trained.class_counts, tau=rest)
    return None if prior is None else apply_prior(trained, prior)


def parse_prior(text: str, class_names: Sequence[str], class_counts: ClassCounts) -> tuple[float, ...]:
    """Read class frequencies.

    Args:
        text: `uniform`; `train` for those of the training images; a JSON file with an object of class name ->
            frequency, of any sum, that names every class; or a text file with the name of a class a line, and with a
            comma its weight if not all are as frequent. Classes that this does not list do not occur, and names that
            the network does not know are warned of. A file called `train` is `./train`.
        class_names: C names in label order.
        class_counts: Training images per class, shape (C,).

    Returns:
        C frequencies in label order, of sum 1.

    Raises:
        RideError: The file cannot be read, a JSON file does not give every class a frequency from 1e-30 to 1e30, or a
            text file names no class of the network, or one twice, or has a weight that is none.
    """
    if text == 'uniform':
        return (1.0 / len(class_names),) * len(class_names)
    if text == 'train':
        return tuple(class_prior(class_counts).tolist())
    if not Path(text).is_file():
        raise RideError(
            f'--prior {text} was given, but there is no such file; give uniform, train, or a file of classes.'
        )
    known = set(class_names)
    if len(known) < len(class_names):
        raise RideError(f'--prior {text} cannot tell classes of one name apart; give uniform or train.')
    if Path(text).suffix.lower() != '.json':
        return _read_list(text, class_names)
    found = read_object(Path(text))
    found = dict(zip(known_names(list(found), class_names), found.values(), strict=True))
    unknown = next((name for name in found if name not in known), None)
    if unknown is not None:
        raise RideError(f'{text} names the class "{unknown}", which the network does not have; give its classes alone.')
    check_record(found, dict.fromkeys(class_names, number(1e-30, 1e30)), text, needed=tuple(class_names))
    total = math.fsum(found.values())
    return tuple(found[name] / total for name in class_names)


def _read_list(path: str, class_names: Sequence[str]) -> tuple[float, ...]:
    """The frequencies of a list of names, with or without weights."""
    weights: dict[str, float] = {}
    unknown = []
    known = set(class_names)
    lines = [line.strip() for line in read_text(Path(path)).removeprefix('\ufeff').splitlines()]
    lines = known_names([line for line in lines if line], class_names)
    for line in lines:
        name, weight = line, 1.0
        if line not in known:
            head, _, tail = line.rpartition(',')
            (name,) = known_names([head.strip().strip('"')], class_names)
            if name in known:
                weight = _weight(tail, line, path)
        if name in weights:
            raise RideError(f'{path} names the class "{name}" twice; leave one of the lines out.')
        if name in known:
            weights[name] = weight
        else:
            unknown.append(line)
    total = math.fsum(weights.values())
    if not total > 0.0:
        raise RideError(
            f'{path} names no class of the network with a weight above 0; name some of {_some(class_names)}.'
        )
    if unknown:
        _logger.warning(f'{path}: {len(unknown)} of {len(lines)} names are not its classes: {_some(unknown)}')
    return tuple(max(weights.get(name, 0.0) / total, _NEVER) for name in class_names)


def _weight(text: str, line: str, path: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not 0.0 <= weight <= 1e30:
        raise RideError(f'{path} has the line "{line}", whose weight must be a number from 0 to 1e30; correct it.')
    return weight


def _some(names: Sequence[str]) -> str:
    return ', '.join([*names[:5], *(['...'] if len(names) > 5 else [])])
