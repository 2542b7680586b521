"""Classify images in one call: `ride_timm.predict`."""

import os
from collections.abc import Sequence
from typing import Any, TypeAlias

from PIL import Image
from timm.utils import unwrap_model
from torch import nn

from ride_timm.data.sources.lists import ListReader
from ride_timm.errors import RideError
from ride_timm.evaluation.one_pass import in_eval_mode
from ride_timm.inference.abstention import choose_abstention
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.prediction import Prediction, Skipped
from ride_timm.inference.prediction import predict as iterate
from ride_timm.inference.taxonomy import Taxonomy

__all__ = ['Predictions', 'predict']

ImageLike: TypeAlias = str | os.PathLike[str] | Image.Image


class Predictions(list[Prediction | Skipped]):
    """One `Prediction` an image, or `Skipped` where it cannot be read, in order; prints as a line each."""

    def __str__(self) -> str:
        return '\n'.join(map(_line, self))


def predict(
    net: TrainedNet | nn.Module,
    images: ImageLike | Sequence[ImageLike] | ListReader,
    *,
    top_k: int = 3,
    threshold: float | None = None,
    abstain: float | None = None,
    confidence: float = 0.95,
    groups: Sequence[str] | None = None,
    taxonomy: Taxonomy | None = None,
    batch_size: int = 64,
) -> Predictions:
    """Classify images, preprocessed as for evaluation, on the network's device.

    Args:
        net: Of `load` or `from_pretrained`, or any timm classifier.
        images: Paths of files, Pillow images, or one of these; or those that a table names, of
            `ride_timm.data.open_unlabelled`.
        top_k: How many classes to name, at most all.
        threshold: Threshold to route with. None: as the network is set, which sends images through all experts unless
            `set_routing` was called.
        abstain: Leave unsure answers out (`said` is False) so that at most this share of the others is wrong, such as
            0.05, on images like those that the network was calibrated on, see `ride_timm.calibrate`.
        confidence: Probability, over the draw of those images, that this holds.
        groups: What each image belongs to, such as a burst or an animal: the images of one group get one answer, of the
            mean of their logits. None: each image its own.
        taxonomy: Of `ride_timm.inference.taxonomy.read_taxonomy`; with `abstain`, what a class is part of is named
            where that is sure enough and the class is not (`broader`).
        batch_size: Images a batch.

    Returns:
        A prediction for each image: the likeliest classes with their probabilities, the vote of each expert, and how
        many experts the image passed; for one that cannot be read, the reason.

    Raises:
        RideError: Something is neither a path nor a Pillow image, or routing is asked for and there is no router, or
            the calibration does not allow `abstain`, or there is not one group for each image.

    Example:
        >>> import timm, ride_timm as rt
        >>> from PIL import Image
        >>> model = timm.create_model('test_ride_resnet_cifar_3e', num_classes=3)
        >>> found = rt.predict(model, [Image.new('RGB', (40, 40)), 'no_such_file.jpg'])
        >>> len(found[0].top), len(found[0].experts), found[1].path
        (3, 3, 'no_such_file.jpg')
    """
    trained = net if isinstance(net, TrainedNet) else _as_trained(net)
    files = images if isinstance(images, ListReader) else _files(images)
    if top_k < 1:
        raise RideError(f'top_k={top_k} was given; it is a whole number of at least 1.')
    if groups is not None and len(groups) != len(files):
        raise RideError(f'{len(groups)} groups were given for {len(files)} images; give one for each.')
    model: Any = trained.model
    if threshold is None:
        threshold = getattr(model, 'routing_threshold', None)
    elif getattr(model, 'router', None) is None:
        raise RideError(f'threshold={threshold:g} was given, but the network has no router; call train_router first.')
    abstention = None if abstain is None else choose_abstention(trained, abstain, confidence, threshold)
    device = next(model.parameters()).device
    with in_eval_mode(model):
        found = iterate(
            trained, files, top_k=top_k, threshold=threshold, abstention=abstention, groups=groups, taxonomy=taxonomy,
            batch_size=batch_size, device=device,
        )  # fmt: skip
        return Predictions(found)


def _files(images: ImageLike | Sequence[ImageLike]) -> list[str | Image.Image]:
    given = [images] if isinstance(images, (str, os.PathLike, Image.Image)) else list(images)
    for image in given:
        if not isinstance(image, (str, os.PathLike, Image.Image)):
            raise RideError(f'A {type(image).__name__} was given to predict; give paths of files or Pillow images.')
    return [image if isinstance(image, Image.Image) else os.fspath(image) for image in given]


def _as_trained(model: Any) -> TrainedNet:
    model = unwrap_model(model)
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    names = tuple(cfg.get('label_names') or ())
    return TrainedNet(model, str(cfg.get('architecture', '')), names if len(names) == model.num_classes else None, None)


def _line(found: Prediction | Skipped) -> str:
    if isinstance(found, Skipped):
        return f'{found.path}: {found.reason}'
    likeliest = ', '.join(f'{vote.label} {100 * vote.confidence:.1f} %' for vote in found.top)
    votes = ', '.join('-' if vote is None else vote.label for vote in found.experts)
    likeliest = likeliest if found.said else f'{found.answer} ({likeliest})'
    return f'{found.path}: {likeliest}' + (f' (experts: {votes})' if votes else '')
