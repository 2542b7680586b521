"""What WordNet ids mean, as which the classes of ImageNet and of its parts and long tails are named."""

import functools
import re
from collections.abc import Iterable

from timm.data import ImageNetInfo

from ride_timm.escaping import printable

__all__ = ['label_descriptions', 'readable_label']

_WORDNET_ID = re.compile(r'n\d{8}')


def label_descriptions(names: Iterable[str]) -> dict[str, str]:
    """The descriptions of classes, as timm's Hub configuration holds them under `label_descriptions`.

    Source: the WordNet lemmas that timm carries (`timm.data.ImageNetInfo`).

    Returns:
        From name to description, such as `{'n01443537': 'goldfish, Carassius auratus'}`, for those names alone that are
        WordNet ids of ImageNet's 21,844 classes.
    """
    found = {name: _describe(name) for name in names}
    return {name: text for name, text in found.items() if text is not None}


def readable_label(name: str) -> str:
    """A class name for people.

    Returns:
        For a WordNet id its first lemma before it, `goldfish (n01443537)`, as several ids share a lemma; any other name
        as it is, control characters as escapes.
    """
    description = _describe(name)
    return printable(name) if description is None else f'{description.split(",")[0]} ({name})'


def _describe(name: str) -> str | None:
    if not _WORDNET_ID.fullmatch(name):
        return None
    try:
        return _wordnet().label_name_to_description(name)
    except KeyError:  # an id of which ImageNet has no class
        return None


@functools.cache
def _wordnet() -> ImageNetInfo:
    """Read only if a class is named by an id."""
    return ImageNetInfo('imagenet-22k')
