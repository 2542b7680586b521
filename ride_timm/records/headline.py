"""Which accuracy leads: that over images, or the mean over classes."""

from collections.abc import Iterable
from typing import SupportsInt

__all__ = ['accuracy_labels', 'leading_accuracy']


def leading_accuracy(images: Iterable[SupportsInt]) -> str:
    """Which accuracy leads and ranks: over the images where they are balanced, over the classes where they are not.

    Images are balanced if every class that has any has the same number; both accuracies are equal then.

    Args:
        images: (C,) evaluation images per class.

    Returns:
        `top1` or `balanced`, as `LongTailEvaluator` names its results.
    """
    tested = {int(number) for number in images} - {0}
    return 'balanced' if len(tested) > 1 else 'top1'


def accuracy_labels(images: Iterable[SupportsInt]) -> dict[str, str]:
    """What accuracies are called for people, the leading one first, and their names in `LongTailEvaluator`.

    Args:
        images: (C,) evaluation images per class.
    """
    if leading_accuracy(images) == 'top1':
        return {'overall': 'top1'}
    return {'mean over classes': 'balanced', 'over images': 'top1'}
