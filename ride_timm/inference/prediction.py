"""Predictions of a network and its experts for image files, which are prepared as for an evaluation."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset
from torch import Tensor

from ride_timm.data import DataSplit, ImageSet, create_eval_loader
from ride_timm.data.images import failure_reason, image_mode, read_pixels
from ride_timm.data.sources.lists import ListReader
from ride_timm.errors import RideError
from ride_timm.evaluation.memory import FittingForward, place_of
from ride_timm.inference.abstention import Abstention
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.network import DATA_CONFIG_KEYS, data_config
from ride_timm.inference.taxonomy import Taxonomy
from ride_timm.inference.temperature import tempered
from ride_timm.models import count_experts, expert_logits
from ride_timm.models.routing import check_threshold, expert_steps, logit

__all__ = [
    'UNKNOWN', 'Prediction', 'Skipped', 'Vote', 'VotedBatch', 'Votes', 'eval_loader', 'forward_votes', 'named_images',
    'predict', 'vote',
]  # fmt: skip


UNKNOWN = 'unknown'
"""What stands in the place of an answer that is not said."""


class Vote(NamedTuple):
    """A class that a network or one of its experts names; `confidence` is its softmax probability, 0..1."""

    label: str
    class_index: int
    confidence: float


class Prediction(NamedTuple):
    """The prediction for an image.

    `top` holds the likeliest classes, the first being the answer; `experts` each expert's own likeliest class, None
    where the image did not pass the expert. A plain network has no experts, and `num_experts` None. `go_on` holds for
    each expert but the last the probability, 0..1, of the router that another is needed; None where it was not asked.
    `said` is False where the answer is not confident enough to be said. `group` names the images that were answered
    together, `top` being of all of them and `experts` of this one; None where each was answered alone.
    `broader` is the ancestor of the likeliest class that is sure enough where the class is not, and its probability.
    """

    path: str
    top: tuple[Vote, ...]
    experts: tuple[Vote | None, ...]
    num_experts: int | None
    go_on: tuple[float | None, ...] = ()
    said: bool = True
    group: str | None = None
    broader: tuple[str, float] | None = None

    @property
    def answer(self) -> str:
        """The likeliest class, or what it is part of, or `UNKNOWN` where neither is sure enough to be said."""
        return self.top[0].label if self.said else UNKNOWN if self.broader is None else self.broader[0]


class Skipped(NamedTuple):
    """An image without a prediction, and one clause on why."""

    path: str
    reason: str


class Votes(NamedTuple):
    """Logits of a network and of its experts; a plain network has K = 0 and counts 0 experts."""

    logits: Tensor
    """The network's, shape (B, C)."""
    expert_logits: Tensor
    """Each expert's, shape (B, K, C); NaN where the image did not pass the expert."""
    num_experts: Tensor
    """How many experts each image passed, shape (B,), int64."""
    router_logits: Tensor
    """Logit of "go on" after each expert but the last, shape (B, K - 1); NaN where the router was not asked."""


def predict(
    trained: TrainedNet,
    images: Sequence[str | Image.Image] | ListReader,
    *,
    top_k: int = 3,
    threshold: float | None = None,
    abstention: Abstention | None = None,
    groups: Sequence[str] | None = None,
    taxonomy: Taxonomy | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = 'cpu',
) -> Iterator[Prediction | Skipped]:
    """Predict image files, in order and a batch at a time.

    Args:
        trained: Of `ride_timm.load`; `ride_timm.inference.prior.apply_prior` may have changed it.
        images: Files, of any type that Pillow reads, or Pillow images; or files with names of their own, or parts of
            files, as of a table.
        top_k: How many classes to name, at most all.
        threshold: Route with it; None: every image passes all experts.
        abstention: From which confidence on an answer is given; None: every one is.
        groups: What each image belongs to, such as a burst: images of one group get one answer, of the mean of their
            logits, after all have been computed. None: each its own.
        taxonomy: With `abstention`: ancestors to name where a class is not sure enough.
        batch_size: Images a batch.
        workers: Loading processes.
        device: Where to compute.

    Yields:
        A prediction for each image, or why there is none.

    Raises:
        RideError: Groups are to be answered with the promise of single images.
    """
    if groups is not None and abstention is not None:
        raise RideError(
            'Groups and abstention were asked for, and abstention is calibrated on single images; leave one out.'
        )
    names = trained.labels
    batches = vote(trained, images, threshold=threshold, batch_size=batch_size, workers=workers, device=device)
    if groups is not None:
        yield from _together(batches, names, top_k, groups)
        return
    least = 0.0 if abstention is None else abstention.limit
    for voted in batches:
        broader: Sequence[tuple[str, float] | None] = [None] * len(voted.paths)
        if taxonomy is not None:
            broader = taxonomy.broader(voted.votes.logits.float().softmax(dim=1), least)
        for prediction, above in zip(_answers(voted, names, top_k), broader, strict=True):
            if isinstance(prediction, Prediction):
                said = prediction.top[0].confidence >= least
                prediction = prediction._replace(said=said, broader=None if said else above)
            yield prediction


def _answers(voted: 'VotedBatch', names: Sequence[str], top_k: int) -> Iterator[Prediction | Skipped]:
    """A prediction for each image of a batch, or why there is none."""
    found = _predictions(voted.votes, names, top_k)
    for path, problem, prediction in zip(voted.paths, voted.problems, found, strict=True):
        if prediction is None or problem is not None:
            yield Skipped(path, problem or f'The network gives the image {path} no finite logits.')
        else:
            yield prediction._replace(path=path)


def _together(
    batches: Iterable['VotedBatch'], names: Sequence[str], top_k: int, groups: Sequence[str]
) -> Iterator[Prediction | Skipped]:
    """A prediction for each image, with the answer of its group."""
    found: list[Prediction | Skipped] = []
    totals: dict[Any, Tensor] = {}
    for voted in batches:
        logits = voted.votes.logits.double().cpu()
        for row, prediction in enumerate(_answers(voted, names, top_k)):
            if isinstance(prediction, Prediction):
                group = groups[len(found)]
                prediction = prediction._replace(group=group)
                totals[group] = totals[group] + logits[row] if group in totals else logits[row]
            found.append(prediction)
    images = Counter(row.group for row in found if isinstance(row, Prediction))
    means = [total / images[group] for group, total in totals.items()]
    tops = dict(zip(totals, _ranked(torch.stack(means), names, top_k) if means else [], strict=True))
    for prediction in found:
        top = tops[prediction.group] if isinstance(prediction, Prediction) else None
        yield prediction._replace(top=top) if isinstance(prediction, Prediction) and top else prediction


class VotedBatch(NamedTuple):
    """Votes on a batch of B images."""

    paths: list[str]
    problems: list[str | None]
    """Why an image cannot be read; None where it can."""
    votes: Votes
    """Logits divided by the network's temperatures, where it is calibrated."""


def vote(
    trained: TrainedNet,
    images: Sequence[str | Image.Image] | ListReader,
    *,
    threshold: float | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = 'cpu',
) -> Iterator[VotedBatch]:
    """The votes of a network and its experts, in order and a batch at a time; arguments as of `predict`."""
    device = torch.device(device)
    model: Any = trained.model.to(device).eval()
    split = named_images(trained, images)
    dataset: Any = split.dataset
    loader = eval_loader(model, split, batch_size=batch_size, workers=workers, device=device)
    forward = FittingForward(partial(forward_votes, model, threshold=threshold))
    alone = None if trained.temperatures is None else trained.temperatures[:1]
    first = 0
    for batch, target in loader:
        votes = forward(batch.to(*place_of(model)))
        votes = votes._replace(
            logits=tempered(votes.logits, trained.temperatures, votes.num_experts),
            expert_logits=tempered(votes.expert_logits, alone),
        )
        places = range(first, first + len(target))
        problems = [
            None if label >= 0 else dataset.reason(place) for place, label in zip(places, target.tolist(), strict=True)
        ]
        yield VotedBatch([dataset.filename(place) for place in places], problems, votes)
        first += len(target)


def named_images(trained: TrainedNet, images: Sequence[str | Image.Image] | ListReader) -> DataSplit:
    """Images without labels as a split: the label of each is its place, and -1 where it cannot be read.

    Args:
        trained: Whose classes, channels and range of 16-bit pixels they have.
        images: As of `predict`.
    """
    model: Any = trained.model
    rows = np.arange(len(images), dtype=np.int64)
    if isinstance(images, ListReader):
        reader, pictures = images, dict[int, Image.Image]()
    else:
        named = [image if isinstance(image, str) else f'number {row}' for row, image in enumerate(images)]
        reader = ListReader(named, named)
        pictures = {row: image for row, image in enumerate(images) if not isinstance(image, str)}
    base = ImageDataset('', reader=reader)
    dataset = _LenientSet(base, rows, rows, image_mode(model.in_chans), trained.record.pixel_range)
    dataset.decoded = pictures
    return DataSplit(dataset, trained.labels, rows, 'the named images', dataset.groups)


def eval_loader(model: Any, split: DataSplit, **options: Any) -> Any:
    """Batches of a split, prepared as the network's data configuration says.

    Args:
        model: Any timm classifier.
        split: The images.
        **options: `batch_size`, `workers` and `device` of `create_eval_loader`.
    """
    config = data_config(model)
    return create_eval_loader(split, **{key: config[key] for key in DATA_CONFIG_KEYS}, **options)


@torch.inference_mode()
def forward_votes(model: Any, images: Tensor, threshold: float | None = None) -> Votes:
    """Run a network in eval mode and keep what each expert says.

    Args:
        model: Any network of timm's.
        images: Shape (B, channels, H, W).
        threshold: Route with it, and compute no expert for an image that does not pass it; None: no routing.

    Returns:
        The logits.
    """
    count = count_experts(model)
    if threshold is None:
        experts = expert_logits(model, images)
        passed = torch.full((len(experts),), count, dtype=torch.int64, device=experts.device)
        return Votes(experts.mean(dim=1), experts[:, :count], passed, torch.full_like(experts[:, 1:, 0], torch.nan))
    steps = list(expert_steps(model, images, logit(check_threshold(threshold))))
    batch, classes = steps[0].logits.shape
    experts = steps[0].logits.new_full((batch, count, classes), torch.nan)
    logits = steps[0].mean_logits.clone()
    router = experts.new_full((batch, count - 1), torch.nan, dtype=torch.float32)
    passed = torch.zeros(batch, dtype=torch.int64, device=experts.device)
    for index, step in enumerate(steps):
        experts[step.images, index] = step.logits
        logits[step.images] = step.mean_logits
        passed[step.images] = index + 1
        if step.router_logits is not None:
            router[step.images, index] = step.router_logits.float()
    return Votes(logits, experts, passed, router)


def _predictions(votes: Votes, names: Sequence[str], top_k: int) -> Iterator[Prediction | None]:
    """For each image of a batch a prediction without its path; None where the largest logit is not finite."""
    tops = _ranked(votes.logits, names, top_k)
    firsts = _ranked(votes.expert_logits.flatten(0, 1), names, 1)
    experts = votes.expert_logits.shape[1]
    go_on = votes.router_logits.sigmoid().tolist()
    for row, (top, passed) in enumerate(zip(tops, votes.num_experts.tolist(), strict=True)):
        own = [None if vote is None else vote[0] for vote in firsts[row * experts : (row + 1) * experts]]
        asked = tuple(None if math.isnan(share) else share for share in go_on[row])
        yield None if top is None else Prediction('', top, tuple(own), passed or None, asked)


def _ranked(logits: Tensor, names: Sequence[str], top_k: int) -> list[tuple[Vote, ...] | None]:
    """The likeliest classes of each row of (N, C); equal logits rank by class index, as where accuracy is measured."""
    order = logits.argsort(dim=1, descending=True, stable=True)[:, :top_k]
    shares = logits.float().softmax(dim=1).gather(1, order)
    rows = zip(order.tolist(), shares.tolist(), logits.amax(dim=1).isfinite().tolist(), strict=True)
    return [
        tuple(Vote(names[c], c, share) for c, share in zip(classes, row, strict=True)) if finite else None
        for classes, row, finite in rows
    ]


class _LenientSet(ImageSet):
    """A blank image and the target -1 stand in the place of an image that cannot be read.

    `decoded` holds by row what is no file but a Pillow image.
    """

    decoded: Mapping[int, Image.Image]

    def _decode(self, index: int) -> Image.Image | torch.Tensor:
        image = self.decoded.get(index)
        return super()._decode(index) if image is None else read_pixels(image, self.mode, self.pixel_range)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        try:
            return super().__getitem__(index)
        except Exception:  # Pillow's decoders raise many types for a broken file
            blank: Any = (
                Image.new(self.mode, (32, 32)) if isinstance(self.mode, str) else torch.zeros(self.mode, 32, 32).byte()
            )
            return blank if self.transform is None else self.transform(blank), -1

    def reason(self, index: int) -> str:
        """Why an item cannot be read, found out by trying again: a loading process cannot tell."""
        name = self.filename(index)
        try:
            super().__getitem__(index)
        except RideError as error:
            return str(error)
        except Exception as error:
            return f'The image {name} cannot be prepared ({failure_reason(error)}).'
        return f'The image {name} could not be read, but can be now; something is writing it.'
