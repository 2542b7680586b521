"""`--tail`: what is done for rare classes, in one word, for users of other tools."""

import logging
from collections.abc import Mapping
from typing import Any

from ride_timm.errors import RideError
from ride_timm.options import flag

__all__ = ['fitting_loss', 'with_tail']

_logger = logging.getLogger(__name__)

_WORDS: dict[str, tuple[dict[str, Any], str]] = {
    'none': ({'loss': 'ce', 'sampler': 'instance', 'reweight_epoch': -1}, 'plain cross-entropy'),
    'weights': (
        {'loss': 'ce', 'sampler': 'instance', 'reweight_epoch': 0},
        'cross-entropy weighted by the effective number of images per class',
    ),
    'sampler': ({'loss': 'ce', 'sampler': 'balanced', 'reweight_epoch': -1}, 'every class equally often'),
    'loss': ({'sampler': 'instance'}, 'the loss that fits the network'),
}
"""What each word sets, and what that means."""

_SET = ('loss', 'loss_kwargs', 'reweight_epoch', 'sampler')


def with_tail(said: Mapping[str, Any], recipe: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What was said, and the recipe, with what `--tail` stands for.

    Args:
        said: Options that somebody set.
        recipe: Those of the recipe; what it says of loss and sampling gives way.

    Raises:
        RideError: Another option says the same.
    """
    word = said.get('tail', recipe.get('tail', 'auto'))
    if word == 'auto':
        return dict(said), dict(recipe)
    values, meaning = _WORDS[word]
    other = next((name for name in _SET if name in said), None)
    if other is not None:
        raise RideError(
            f'--tail {word} and {flag(other)} {said[other]} both say what is done for rare classes; leave one of them '
            'out.'
        )
    set_to = ' '.join(f'{flag(name)} {value}' for name, value in values.items())
    _logger.info(f'--tail {word} is {set_to} ({meaning})')
    return {**said, **values}, {name: value for name, value in recipe.items() if name not in _SET}


def fitting_loss(experts: int) -> tuple[str, str]:
    """The tail-aware loss for a network, and the reason.

    Args:
        experts: How many it has, 1 for a plain one.
    """
    if experts > 1:
        return 'balpoe', 'each expert learns for a different class balance'
    return 'balanced_softmax', 'the logits learn for balanced classes'
