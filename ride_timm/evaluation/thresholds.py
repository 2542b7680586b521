"""How far to route, chosen on images that were held out: `ride_timm.choose_threshold`."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import ArrayLike
from torch import nn

from ride_timm._compat import update_model_args
from ride_timm.errors import RideError
from ride_timm.evaluation.sweep import THRESHOLDS, SweepRow
from ride_timm.evaluation.sweep import choose_threshold as choose

from .one_pass import in_eval_mode, measure
from .scores import check_counts, require_router

__all__ = ['ThresholdChoice', 'choose_threshold', 'set_threshold']


@dataclass(frozen=True)
class ThresholdChoice:
    """The threshold that a network routes with, and what it costs; accuracies are in percent, over the given images.

    Attributes:
        threshold: The router's probability above which an image goes on to the next expert.
        mean_experts: Mean number of experts that an image passes.
        gmacs: Mean multiply-accumulate operations of an image, in 1e9.
        overall: Accuracy over the images.
        balanced: Mean of the class accuracies.
        all_experts: The same of all experts: `top1` (over the images), `balanced`, `mean_experts` and `gmacs`.
        max_loss: The fraction of accuracy that routing was allowed to lose.
        num_images: How many images it was chosen on.
        rows: Accuracy and cost at every threshold that was tried.
    """

    threshold: float
    mean_experts: float
    gmacs: float
    overall: float
    balanced: float
    all_experts: SweepRow
    max_loss: float
    num_images: int
    rows: tuple[SweepRow, ...] = field(default=(), repr=False)

    @property
    def rule(self) -> str:
        """What the threshold was chosen by, in words."""
        return (
            f'the fewest GMACs that lose at most {100 * self.max_loss:g} points of accuracy, over images and over '
            f'classes, on {self.num_images} images'
        )

    def __str__(self) -> str:
        full = self.all_experts
        return (
            f'threshold {self.threshold:g}: {self.rule}\n'
            f'{"":<12}  routed  all experts\n'
            f'overall       {self.overall:6.2f}  {full["top1"]:6.2f} %\n'
            f'balanced      {self.balanced:6.2f}  {full["balanced"]:6.2f} %\n'
            f'mean experts  {self.mean_experts:6.2f}  {full["mean_experts"]:6.2f}\n'
            f'GMACs         {self.gmacs:6.4g}  {full["gmacs"]:6.4g}'
        )


def choose_threshold(
    model: nn.Module, loader: Iterable[Any], counts: ArrayLike, *, max_loss: float = 0.005
) -> ThresholdChoice:
    """Choose how far a network routes, and set its `router_threshold`.

    Of the thresholds that lose at most `max_loss` of the accuracy of all experts, over the images and as a mean over
    the classes, the one with the fewest GMACs; of several, the one with the better balanced accuracy.

    Args:
        model: A multi-expert network of C classes with a trained router; `model.set_routing(model.router_threshold)`
            makes it route from then on.
        loader: Batches of images (B, channels, H, W) and class indices (B,) that neither the experts nor the router
            were trained on, and that are not the test images.
        counts: (C,) training images of each class.
        max_loss: Fraction of accuracy that routing may lose: 0.005 is half a percentage point.

    Returns:
        The choice, which prints well.

    Raises:
        RideError: There is no router, there are no images, or a number is out of range.

    Example:
        >>> import timm, torch, ride_timm as rt
        >>> data = torch.utils.data.TensorDataset(torch.randn(12, 3, 32, 32), torch.arange(12) % 3)
        >>> model = timm.create_model('test_ride_resnet_cifar_3e', num_classes=3, router=True)
        >>> choice = rt.choose_threshold(model, torch.utils.data.DataLoader(data, batch_size=4), [200, 50, 5])
        >>> choice.threshold == model.router_threshold, choice.num_images
        (True, 12)
    """
    if not 0.0 <= max_loss <= 1.0:
        raise RideError(f'max_loss is {max_loss:g} and must be a fraction of accuracy from 0 to 1, such as 0.005.')
    check_counts(model, counts)
    require_router(model)
    with in_eval_mode(model):
        found = measure(model, loader, counts, routed=True, thresholds=THRESHOLDS)
    rows = found.sweep or []
    chosen = choose(rows, 100 * max_loss)
    set_threshold(model, chosen)
    row = next(row for row in rows if row['threshold'] == chosen)
    return ThresholdChoice(
        threshold=chosen,
        mean_experts=row['mean_experts'],
        gmacs=row['gmacs'],
        overall=row['top1'],
        balanced=row['balanced'],
        all_experts={name: rows[0][name] for name in ('top1', 'balanced', 'mean_experts', 'gmacs')},
        max_loss=max_loss,
        num_images=int(found.metrics['num_images']),
        rows=tuple(rows),
    )


def set_threshold(model: Any, threshold: float) -> None:
    """Give a network the threshold that it routes with, and that an export of it writes down.

    Args:
        model: With a router.
        threshold: In [0, 1].
    """
    model.router_threshold = threshold
    update_model_args(model, router_threshold=threshold)
