"""Answers left unsaid, so that those said are wrong no more often than is asked for: `predict --abstain RATE`.

An answer is said where its confidence reaches a limit. Which limit keeps the promise is tested on held-out images, from
the highest limit to the lowest: at each the hypothesis is that more than RATE of the answers said are wrong. Of n
answers said k wrong ones refute it at the level delta if P[Binomial(n, RATE) <= k] <= delta, which is exact for the n
images that reach the limit, whatever n is. The first limit that is not refuted ends the test, and the last one before
it holds: with fixed limits in a fixed order no correction for the number of tests is needed (fixed-sequence testing;
Angelopoulos et al., arXiv:2110.01052, section 4). The limits, and the one that the test begins at, come from the images
that fitted the temperatures, which take no part in the test.

With probability 1 - delta over the draw of the held-out images the promise holds for images like them, which they are
no longer where other class frequencies are served, or another network.
"""

import math
from dataclasses import dataclass

from ride_timm.errors import RideError
from ride_timm.evaluation.bounds import most_losses
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.prior import is_corrected
from ride_timm.records.calibration import ConfidenceCurve

__all__ = ['Abstention', 'choose_abstention', 'choose_limit', 'images_for']

_MOST_IMAGES = 10**6


@dataclass(frozen=True)
class Abstention:
    """From which confidence on a network answers, and what was promised with it.

    Attributes:
        limit: Least confidence of an answer that is said, from 0 to 1.
        rate: The share of the answers said that is wrong at most.
        confidence: Probability, over the draw of the held-out images, that this holds.
        images: Held-out images of the test.
        said: How many of their answers reach the limit.
        wrong: How many of those are wrong.
    """

    limit: float
    rate: float
    confidence: float
    images: int
    said: int
    wrong: int

    def __str__(self) -> str:
        return (
            f'at most {100 * self.rate:g} % of the answers said are wrong, with {100 * self.confidence:g} % confidence '
            f'({self.wrong:,} of {self.said:,} said, of {self.images:,} held-out images): confidence '
            f'{100 * self.limit:.1f} % or more'
        )


def choose_abstention(
    trained: TrainedNet, rate: float, confidence: float = 0.95, threshold: float | None = None
) -> Abstention:
    """From which confidence on a loaded network keeps a promise.

    Args:
        trained: Of `load`.
        rate: As for `choose_limit`.
        confidence: Likewise.
        threshold: What its answers are routed with; None: all experts.

    Returns:
        The limit, and the counts that speak for it.

    Raises:
        RideError: The network is not calibrated, or answers otherwise than it was calibrated, or the held-out images
            do not speak for any limit.
    """
    name, calibration = trained.source or trained.name, trained.record.calibration
    asked = f'Answers wrong at most {100 * rate:g} % of the time were asked for'
    if calibration is None:
        raise RideError(f'{asked} and {name} is not calibrated; run `ride-timm calibrate {name} --data-dir DIR` first.')
    if is_corrected(trained.model):
        raise RideError(
            f'{asked} together with other class frequencies or a logit adjustment, for which {name} was not '
            'calibrated; leave one of them out.'
        )
    curve = calibration.full if threshold is None else calibration.routed
    if curve is None or threshold != curve.threshold:
        known = 'without routing' if curve is None else f'with the routing threshold {curve.threshold:g}'
        raise RideError(
            f'{asked} with the routing threshold {threshold:g} and {name} was calibrated {known}; run `ride-timm '
            'calibrate` again, or answer as it was calibrated.'
        )
    found = choose_limit(curve, rate, confidence)
    if found is None:
        needed = images_for(curve, rate, confidence)
        cure = (
            'too many even of the most confident answers are wrong, so only a higher rate helps'
            if needed is None
            else f'it takes about {needed:,}, or a higher rate'
        )
        raise RideError(f'{asked}, which {curve.images:,} held-out images do not show of {name}: {cure}.')
    return found


def choose_limit(curve: ConfidenceCurve, rate: float, confidence: float = 0.95) -> Abstention | None:
    """The lowest confidence from which on answers keep a promise.

    Args:
        curve: Of the network's calibration.
        rate: The share of the answers said that may be wrong, above 0 and below 1.
        confidence: Probability that the promise holds, above 0 and below 1.

    Returns:
        The limit, and the counts that speak for it; None where no limit can be certified, see `images_for`.

    Raises:
        RideError: A number is out of range.
    """
    _check(rate, confidence)
    measured, found = curve.measured, None
    for index in range(_first(curve, rate), len(curve.limits)):
        said, wrong = measured.said[index], measured.wrong[index]
        if wrong > most_losses(said, rate, 1.0 - confidence):
            break
        found = Abstention(curve.limits[index], rate, confidence, measured.images, said, wrong)
    return found


def images_for(curve: ConfidenceCurve, rate: float, confidence: float = 0.95) -> int | None:
    """About how many held-out images certify a limit, if their answers are as good as those of the images there are.

    Args:
        curve: Of the network's calibration.
        rate: As for `choose_limit`.
        confidence: Likewise.

    Returns:
        The number; None where also the most confident answers are wrong more often than `rate`, and no number helps.

    Raises:
        RideError: A number is out of range.
    """
    _check(rate, confidence)
    fitted, measured = curve.fitted, curve.measured
    counts = [
        (said + also_said, wrong + also_wrong)
        for said, wrong, also_said, also_wrong in zip(
            fitted.said, fitted.wrong, measured.said, measured.wrong, strict=True
        )
        if said + also_said
    ]
    for more in (0.5, 0.0):  # few answers without a wrong one promise little, but some
        risks = [(said, (wrong + more) / (said + 2 * more)) for said, wrong in counts]
        answers = [(said, _answers_for(risk, rate, 1.0 - confidence)) for said, risk in risks if risk < rate]
        needed = [number * curve.images**2 / (said * measured.images) for said, number in answers if number is not None]
        if needed:
            return math.ceil(min(needed))
    return None


def _first(curve: ConfidenceCurve, rate: float) -> int:
    """Where the test begins: at the limit that the other images expect to be refuted most clearly."""
    fitted, images = curve.fitted, curve.measured.images

    def expected(index: int) -> float:
        said = round(images * fitted.said[index] / fitted.images)
        risk = (fitted.wrong[index] + 0.5) / (fitted.said[index] + 1)
        return (rate - risk) * math.sqrt(said / (rate * (1 - rate)))  # standard deviations below the promise

    return max(range(len(curve.limits)), key=expected)


def _answers_for(risk: float, rate: float, delta: float) -> int | None:
    """The fewest answers, `risk` of them wrong, that refute a higher rate; None where it takes too many to count."""
    low, high = 0, 1
    while math.ceil(risk * high) > most_losses(high, rate, delta):
        low, high = high, 2 * high
        if high > _MOST_IMAGES:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if math.ceil(risk * middle) <= most_losses(middle, rate, delta) else (middle, high)
    return high


def _check(rate: float, confidence: float) -> None:
    for name, value in (('abstain', rate), ('confidence', confidence)):
        if not 0.0 < value < 1.0:
            raise RideError(f'{name} is {value:g} and must lie between 0 and 1, such as 0.05 and 0.95.')
