"""Abstention: unsure answers are left out, and the others wrong no more often than asked for: `predict --abstain RATE`.

An answer is given where its confidence reaches a limit. Which limit keeps the promise is tested on held-out images,
from the highest limit to the lowest: at each the hypothesis is that more than RATE of the answers given are wrong. Of n
answers given, k wrong ones refute it at the level delta if P[Binomial(n, RATE) <= k] <= delta, which is exact for the n
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
from ride_timm.records.calibration import Calibration, ConfidenceCurve

__all__ = ['Abstention', 'choose_abstention', 'choose_limit', 'curves_of', 'images_for', 'promises']

_MOST_IMAGES = 10**6
RATES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""What tables show of `--abstain`."""


@dataclass(frozen=True)
class Abstention:
    """From which confidence on a network answers, and what was promised with it.

    Attributes:
        limit: Least confidence of an answer that is given, from 0 to 1.
        rate: The share of the answers given that is wrong at most.
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
            f'at most {100 * self.rate:g} % of the answers given are wrong, with {100 * self.confidence:g} % '
            f'confidence ({self.wrong:,} of {self.said:,} answers on {self.images:,} held-out images); they have a '
            f'probability of {100 * self.limit:.1f} % or more'
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
        The limit, and the counts that certify it.

    Raises:
        RideError: The network is not calibrated, or answers in another way than it was calibrated for, or no limit
            can be certified on the held-out images.
    """
    name, calibration = trained.source or trained.name, trained.record.calibration
    asked = f'Answers wrong at most {100 * rate:g} % of the time were asked for'
    if calibration is None:
        raise RideError(f'{asked}, but {name} is not calibrated; run `ride-timm calibrate {name} --data-dir DIR`.')
    if is_corrected(trained.model):
        raise RideError(
            f'{asked} together with other class frequencies or a logit adjustment, for which {name} was not '
            'calibrated; leave one of them out.'
        )
    curve = calibration.full if threshold is None else calibration.routed
    if curve is None or threshold != curve.threshold:
        known = 'without routing' if curve is None else f'with the routing threshold {curve.threshold:g}'
        raise RideError(
            f'{asked} with the routing threshold {threshold:g}, but {name} was calibrated {known}; run `ride-timm '
            'calibrate` again, or answer as it was calibrated.'
        )
    found = choose_limit(curve, rate, confidence)
    if found is None:
        needed = images_for(curve, rate, confidence)
        cure = (
            'too many even of the most confident answers are wrong, so only a higher rate helps'
            if needed is None
            else f'it takes at least {needed:,}, or a higher rate'
        )
        raise RideError(f'{asked}, which {curve.images:,} held-out images cannot certify for {name}: {cure}.')
    return found


def choose_limit(curve: ConfidenceCurve, rate: float, confidence: float = 0.95) -> Abstention | None:
    """The lowest confidence from which on answers keep a promise.

    Args:
        curve: Of the network's calibration.
        rate: The share of the answers given that may be wrong, above 0 and below 1.
        confidence: Probability that the promise holds, above 0 and below 1.

    Returns:
        The limit, and the counts that certify it; None where no limit can be certified, see `images_for`.

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
    """How many held-out images certify a limit at least, if answers are as good as on the images there are.

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
    needed = []
    for said, wrong, also_said, also_wrong in zip(
        fitted.said, fitted.wrong, measured.said, measured.wrong, strict=True
    ):
        both, bad = said + also_said, wrong + also_wrong
        answers = _answers_for(bad / both, rate, 1.0 - confidence) if both and bad / both < rate else None
        if answers is not None:
            needed.append(math.ceil(answers * curve.images**2 / (both * measured.images)))
    return min(needed, default=None)


def curves_of(calibration: Calibration) -> dict[str, ConfidenceCurve]:
    """The curves of a network by what they are of, for people."""
    curves = {'all experts' if len(calibration.temperatures) > 1 else 'network': calibration.full}
    if calibration.routed is not None:
        curves[f'routed, threshold {calibration.routed.threshold:g}'] = calibration.routed
    return curves


def promises(calibration: Calibration) -> list[list[str]]:
    """What a network can promise of its answers at 95 % confidence, as a table.

    Returns:
        The heading, and a row for each of some shares of wrong answers: the share, which answers are said of all
        experts, and which of the network as it routes, if it does.
    """
    curves = curves_of(calibration)
    rows = [[f'{100 * rate:g} %', *(_promise(curve, rate) for curve in curves.values())] for rate in RATES]
    return [['wrong at most', *curves], *rows]


def _promise(curve: ConfidenceCurve, rate: float) -> str:
    limit = choose_limit(curve, rate)
    if limit is not None:
        return f'{100 * limit.said / limit.images:.1f} %, from confidence {100 * limit.limit:.1f} % on'
    needed = images_for(curve, rate)
    return 'none: too many are wrong' if needed is None else f'none: it takes at least {_rounded(needed):,} images'


def _rounded(number: int) -> int:
    """Two digits of a number, rounded up."""
    unit = 10 ** max(len(str(number)) - 2, 0)
    return -(-number // unit) * unit


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
