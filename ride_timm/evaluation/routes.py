"""What routing would do to a set of images at any threshold: one pass, in which all experts see every image."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ride_timm.data.batches import read_batch
from ride_timm.errors import RideError
from ride_timm.evaluation.cost import gmacs_by_experts
from ride_timm.evaluation.memory import FittingForward, place_of
from ride_timm.evaluation.rules import RULES, rule_logits
from ride_timm.evaluation.sweep import passed_experts
from ride_timm.logs import interactive
from ride_timm.models.routing import prefix_means

__all__ = ['Routes', 'find_routes']


@dataclass(frozen=True, eq=False)
class Routes:
    """What the router and the experts say of N images, on the CPU; an image that was given several times counts once.

    Attributes:
        router_logits: (N, K - 1) of the routers after all experts but the last.
        answers: (N, K) class that experts 0..k together name.
        labels: (N,) what was given next to the images, int64; None where nothing was.
        rules: What each rule of `ride_timm.evaluation.rules` says in place of the routers, by name, (N, K - 1) each.
        costs: (K,) GMACs of an image by the number of experts it passes.
        input_size: (channels, height, width) of the images.
        digest: SHA-256 of the images' pixels, as prepared for the network, in any order.
    """

    router_logits: Tensor
    answers: Tensor
    labels: Tensor | None
    rules: Mapping[str, Tensor]
    costs: tuple[float, ...]
    input_size: tuple[int, ...]
    digest: str

    def __len__(self) -> int:
        return len(self.answers)

    def by(self, rule: str) -> 'Routes':
        """The same images, routed by a rule instead of by the router."""
        return replace(self, router_logits=self.rules[rule])

    def passed(self, threshold: float) -> Tensor:
        """How many experts each image passes, (N,) from 1 to K."""
        return passed_experts(self.router_logits, threshold)

    def routed(self, threshold: float) -> Tensor:
        """The class that each image gets, (N,)."""
        return self.answers.gather(1, self.passed(threshold).unsqueeze(1) - 1).squeeze(1)

    @property
    def full(self) -> Tensor:
        """The class that all experts name, (N,)."""
        return self.answers[:, -1]

    def lost(self, threshold: float, loss: str) -> Tensor:
        """Which images lose by routing, (N,) bool.

        Args:
            threshold: In [0, 1].
            loss: A name of `ride_timm.records.certificate.LOSSES`; `accuracy` needs labels.
        """
        routed = self.routed(threshold)
        if loss == 'disagreement':
            return routed != self.full
        assert self.labels is not None
        return (self.full == self.labels) & (routed != self.labels)

    def gmacs(self, threshold: float) -> Tensor:
        """GMACs of each image, (N,) float64."""
        return torch.tensor(self.costs, dtype=torch.float64)[self.passed(threshold) - 1]


@torch.inference_mode()
def find_routes(model: Any, loader: Iterable[Any], *, progress: bool = False) -> Routes:
    """Run all experts and routers over a loader once.

    Args:
        model: A multi-expert network with a router, in eval mode and where it is to compute.
        loader: Batches of images (B, channels, H, W), or of such and labels (B,); an image with a negative label is
            left out.
        progress: Show a bar in a terminal.

    Raises:
        RideError: There are no images.
    """
    device, dtype = place_of(model)
    forward = FittingForward(partial(_forward, model))
    seen: set[bytes] = set()
    parts: list[tuple[Tensor, ...]] = []
    labelled, size = False, tuple[int, ...]()
    for batch in tqdm(loader, desc='Routing', leave=False, disable=not (progress and interactive())):
        images, given = read_batch(batch)
        labelled = given is not None
        labels = torch.zeros(len(images), dtype=torch.int64) if given is None else given.cpu()
        size = tuple(images.shape[1:])
        new = [row for row in range(len(images)) if labels[row] >= 0 and _is_new(images[row], seen)]
        if new:
            parts.append((labels[new], *(part.cpu() for part in forward(images[new].to(device, dtype)))))
    if not parts:
        raise RideError('There are no images to route; the loader is empty.')
    targets, routers, answers, *others = (torch.cat(part) for part in zip(*parts, strict=True))
    rules = dict(zip(RULES, others, strict=True))
    digest = hashlib.sha256(b''.join(sorted(seen))).hexdigest()
    costs = tuple(gmacs_by_experts(model, size))
    return Routes(routers, answers, targets if labelled else None, rules, costs, size, digest)


def _forward(model: Any, images: Tensor) -> tuple[Tensor, ...]:
    routers, experts = model.forward_router(images)
    rules = rule_logits(experts)
    return routers.float(), prefix_means(experts).argmax(-1), *(rules[name] for name in RULES)


def _is_new(image: Tensor, seen: set[bytes]) -> bool:
    """Whether no such image was met before; from now on it was."""
    pixels = image.detach().cpu().float().contiguous()
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.numpy().tobytes()).digest()
    new = digest not in seen
    seen.add(digest)
    return new
