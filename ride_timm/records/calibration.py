"""Calibration of a network's confidences on held-out images: the entry `calibration` of its record."""

from __future__ import annotations

import dataclasses

from ride_timm.errors import RideError
from ride_timm.records.fields import item, part
from ride_timm.records.schema import list_of, nullable, number, whole

__all__ = ['AnswerCounts', 'Calibration', 'ConfidenceCurve']

_COUNT = whole(0, 10**12)
_COUNTS = list_of(_COUNT, 1, 1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerCounts:
    """How many answers reach each of the limits of a curve, and how many of those are wrong.

    Attributes:
        images: N, the images there are.
        said: (G,) answers whose confidence is at least the limit.
        wrong: (G,) wrong ones among them.
    """

    images: int = item(whole(1, 10**12))
    said: tuple[int, ...] = item(_COUNTS)
    wrong: tuple[int, ...] = item(_COUNTS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfidenceCurve:
    """How often the answers of a network are right, by their confidence.

    One part of the held-out images fitted the temperatures and drew the limits; the other part, which had no influence
    on either, is what limits are chosen with.

    Attributes:
        threshold: What the answers were routed with; None: all experts.
        limits: (G,) confidences from 0 to 1, falling; 0 says every answer.
        fitted: The counts of the images that fitted.
        measured: The counts of the others.
        ece_before: Expected calibration error without temperatures on those, in percent.
        ece_after: With them.
    """

    threshold: float | None = item(nullable(number(0.0, 1.0)), None)
    limits: tuple[float, ...] = item(list_of(number(0.0, 1.0), 1, 1000))
    fitted: AnswerCounts = part(AnswerCounts)
    measured: AnswerCounts = part(AnswerCounts)
    ece_before: float = item(number(0.0, 100.0))
    ece_after: float = item(number(0.0, 100.0))

    def __post_init__(self) -> None:
        """Refuse counts of another length than the limits have."""
        lengths = {len(row) for counts in (self.fitted, self.measured) for row in (counts.said, counts.wrong)}
        if lengths != {len(self.limits)}:
            raise RideError(
                f'The calibration has {len(self.limits)} limits and other numbers of counts; calibrate the network '
                'again.'
            )

    @property
    def images(self) -> int:
        """All held-out images."""
        return self.fitted.images + self.measured.images


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Temperatures of a network, and how often its answers are right, by their confidence.

    Attributes:
        temperatures: What the mean logits of the first n experts are divided by, n = 1..K; one for a plain network.
        full: The curve of all experts together.
        routed: That of the network as it routes; None without a router.
    """

    temperatures: tuple[float, ...] = item(list_of(number(1e-3, 1e3), 1, 1000))
    full: ConfidenceCurve = part(ConfidenceCurve)
    routed: ConfidenceCurve | None = part(ConfidenceCurve, None)
