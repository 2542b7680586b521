"""What the cards say of data that others own: what a network that was trained on them is not, and their terms."""

import re

from ride_timm.cards.markdown import escape, fence
from ride_timm.cards.results import Results, is_registered

__all__ = ['data_limits', 'data_terms']

_TINY = re.compile(r'tiny[-_ ]?imagenet')


def data_limits(results: Results) -> str:
    """What a network that was trained on these data must not be taken for, and how to get that; empty for most data.

    Args:
        results: Content of `results.json`.
    """
    if not _is_tiny(results):
        return ''
    size = results['network']['input_size'][-1]
    shown = '' if size == 64 else f', enlarged to {size} for this network'
    parts = [
        f'It is not a network of ImageNet-LT (1,000 classes, images of 224 pixels), and its figures cannot be compared '
        f'with those of one: Tiny ImageNet has 200 classes and photographs shrunk to 64 pixels{shown}. Larger pictures '
        f"have to be shrunk to {size} pixels, which timm's transform for it does."
    ]
    if is_registered(results):
        commands = [
            f'ride-timm train --recipe imagenetlt_ride_r50 --model {results["architecture"]} --data-dir '
            'data/imagenet_lt --amp',
            'ride-timm convert CHECKPOINT.pth --output converted',
        ]
        parts += [
            'Weights of ImageNet-LT: the first command trains them where `data/imagenet_lt` holds its images in '
            "`train/` and `val/`; the second turns a checkpoint of RIDE's authors into weights that timm loads.",
            fence('\n'.join(commands), 'bash'),
        ]
    return '\n\n'.join(parts)


def data_terms(results: Results) -> str:
    """Whose the training data are and what that means for the weights.

    Args:
        results: Content of `results.json`.
    """
    name = escape(results['data']['name'])
    if 'cifar' in results['data']['name'].lower():
        return (
            f'{name} is made of CIFAR images, for which their authors state no licence; they ask to cite their '
            'technical report (Alex Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009). The '
            'weights are therefore meant for research.'
        )
    if _is_tiny(results):
        return (
            f'{name} is made of Tiny ImageNet (a challenge of the course CS231n at Stanford), whose images are those '
            'of ImageNet: given for non-commercial research and education only, with the request to cite Jia Deng and '
            'others, *ImageNet: A Large-Scale Hierarchical Image Database*, CVPR 2009. The weights are therefore meant '
            'for research and education that are not commercial.'
        )
    return (
        f'The training data, {name}, has terms of its own, which this licence does not replace: read them before you '
        'use the weights for more than research.'
    )


def _is_tiny(results: Results) -> bool:
    return _TINY.search(results['data']['name'].lower()) is not None
