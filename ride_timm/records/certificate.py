"""What was certified of a network's routing: the entry `certificate` of its record."""

from __future__ import annotations

import dataclasses

from ride_timm.records.fields import item
from ride_timm.records.schema import Kind, number, one_of, text, whole

__all__ = ['LOSSES', 'Certificate']

LOSSES = {
    'disagreement': 'the routed answer differs from that of all experts',
    'accuracy': 'the routed answer is wrong and that of all experts right',
}
"""What an image can lose by routing: 1 where this holds and 0 elsewhere."""
_SHARE = number(0.0, 1.0)
_BELOW_1 = Kind('a number from 0 to below 1', lambda value: _SHARE.fits(value) and value < 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Certificate:
    """With probability `confidence`, routing with `threshold` loses on at most `max_loss` of images like those used.

    Attributes:
        threshold: The router's.
        max_loss: Share of the images.
        confidence: Over the draw of the images.
        loss: A name of `LOSSES`.
        losses: On how many of the images it lost.
        images: How many there were, copies counted once.
        digest: SHA-256 of the pixels of the images, in any order.
        date: When, as YYYY-MM-DD.
    """

    threshold: float = item(_SHARE)
    max_loss: float = item(_SHARE)
    confidence: float = item(_BELOW_1)
    loss: str = item(one_of(*LOSSES))
    losses: int = item(whole(0, 10**12))
    images: int = item(whole(1, 10**12))
    digest: str = item(text(r'[0-9a-f]{64}', 'a SHA-256 in hexadecimal digits'))
    date: str = item(text(r'\d{4}-\d\d-\d\d', 'a date, YYYY-MM-DD'))

    def __str__(self) -> str:
        return (
            f'{LOSSES[self.loss]} for at most {100 * self.max_loss:g} % of such images, with '
            f'{100 * self.confidence:g} % confidence ({self.losses:,} of {self.images:,} images, {self.date})'
        )
