"""Class frequencies of images without labels, such as those of a place: `predict --prior estimated`.

Where the images of a class look as they did in training and only the frequencies q of the classes are others, q is the
maximum of the likelihood sum_i log sum_y q_y p_i(y), with p_i(y) the probabilities of the network for equal
frequencies. Expectation maximization finds it: q becomes the mean of the answers for q.

Source: Saerens, Latinne and Decaestecker, doi:10.1162/089976602753284446; on calibrated probabilities, without which
the estimate is off: Alexandari, Kundaje and Shrikumar, arXiv:1901.06852.
"""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from ride_timm.data.sources.lists import ListReader
from ride_timm.errors import RideError
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.prediction import vote
from ride_timm.inference.prior import apply_prior

__all__ = ['estimate_prior', 'serve_estimated_prior']

_STEPS, _CLOSE = 10_000, 1e-6


def estimate_prior(logits: Tensor) -> Tensor:
    """The class frequencies with which answers are likeliest.

    One image is added that is of every class in equal parts, so that no class is ruled out for ever.

    Args:
        logits: Of the network for equal class frequencies, divided by its temperature, shape (N, C).

    Returns:
        Shape (C,), of sum 1, in float64.
    """
    likelihood = (logits.double() - logits.double().amax(dim=1, keepdim=True)).exp()
    number, classes = likelihood.shape
    prior = torch.full((classes,), 1 / classes, dtype=torch.float64, device=logits.device)
    for _ in range(_STEPS):
        joint = likelihood * prior
        found = ((joint / joint.sum(dim=1, keepdim=True)).sum(dim=0) + 1 / classes) / (number + 1)
        change = (found - prior).abs().sum()
        prior = found
        if change < _CLOSE:
            break
    return prior


def serve_estimated_prior(
    trained: TrainedNet,
    images: Sequence[str | Image.Image] | ListReader,
    *,
    threshold: float | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: torch.device | str = 'cpu',
) -> tuple[float, ...]:
    """Estimate the class frequencies of images, and make a loaded network answer for them.

    Args:
        trained: Of `load`; its model is changed, see `ride_timm.inference.prior.serve_prior`.
        images: Files or Pillow images; what cannot be read is passed over.
        threshold: Route with it; None: every image passes all experts.
        batch_size: Images a batch.
        workers: Loading processes.
        device: Where to compute.

    Returns:
        The frequencies, in label order, of sum 1.

    Raises:
        RideError: The network does not allow a correction, and why; or no image can be read.
    """
    apply_prior(trained, [1.0] * int(trained.model.num_classes))
    found = []
    for voted in vote(trained, images, threshold=threshold, batch_size=batch_size, workers=workers, device=device):
        logits = voted.votes.logits.double().cpu()
        usable = torch.tensor([problem is None for problem in voted.problems])
        found.append(logits[usable & logits.isfinite().all(dim=1)])
    logits = torch.cat(found) if found else torch.empty(0, 1)
    if not len(logits):
        raise RideError('No image can be read, so no class frequencies can be estimated; name other images.')
    prior = tuple(estimate_prior(logits).tolist())
    apply_prior(trained, prior)
    return prior
