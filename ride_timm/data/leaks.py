"""What training and evaluation images have in common: groups, moments, and nearly the same pictures."""

import os
from collections.abc import Sequence

import numpy as np

from ride_timm.data.image_groups import classes_of_one_group
from ride_timm.data.likely_groups import likely_groups
from ride_timm.data.near_duplicates import CORRELATION, DISTANCE, near_duplicates
from ride_timm.data.shots import BURST_SECONDS, same_bursts
from ride_timm.data.sides import OK, WARNING, Finding, Side
from ride_timm.escaping import printable
from ride_timm.tables import counted

__all__ = ['check_groups', 'check_looks', 'check_shots']

_FLATTERS = 'which inflates the accuracy'
_FEWEST_CAMERAS = 3


def check_groups(train: Side, val: Side, drawn: bool) -> list[Finding]:
    """Report groups of images on both sides, and classes of one group; without groups, those that names suggest.

    Args:
        train: The training images.
        val: The evaluation images, labelled alike.
        drawn: Whether they are a part of the training images that is set apart, and not given.
    """
    if train.groups is None or val.groups is None:
        return _check_names(train, val, drawn)
    labels = np.concatenate([train.labels, val.labels])
    groups = (*train.groups, *val.groups)
    alone = classes_of_one_group(groups, labels, train.names)
    findings = [_crossing(train.groups, val.groups)]
    if alone:
        text = f'{counted(len(alone), "class is", "classes are")} in a single group of images'
        learnt = 'so it is not measured' if drawn else 'so accuracy on other groups is unknown'
        findings.append(Finding(WARNING, f'{text}, {learnt}', [printable(name) for name in alone]))
    return findings


def check_looks(train: Side, val: Side) -> list[Finding]:
    """Report evaluation images that look nearly like a training image and are not the same file.

    Args:
        train: The training images, with their facts.
        val: The evaluation images, likewise.
    """
    known = {fact.digest for fact in train.facts}
    looks = [None if fact.digest in known else fact.looks for fact in val.facts]
    found = near_duplicates([fact.looks for fact in train.facts], looks)
    if not found:
        return [Finding(OK, 'no evaluation image looks nearly like a training image')]
    number = f'{counted(len(found), "evaluation image looks", "evaluation images look")} nearly like a training image'
    how = f'hashes within {DISTANCE} of 64 bits, correlation of {CORRELATION:g} or more'
    return [Finding(WARNING, f'{number}, {_FLATTERS} ({how})', _pairs(train, val, found))]


def check_shots(train: Side, val: Side) -> list[Finding]:
    """Report photographs that were taken together, and cameras, where their EXIF data tell of both sides.

    Args:
        train: The training images, with their facts.
        val: The evaluation images, likewise.
    """
    shots = [[fact.shot for fact in side.facts] for side in (train, val)]
    findings = []
    found = same_bursts(*shots)
    if found:
        number = counted(len(found), 'evaluation image was', 'evaluation images were')
        text = f'{number} taken within {BURST_SECONDS} seconds of a training image by the same camera, {_FLATTERS}'
        findings.append(Finding(WARNING, text, _pairs(train, val, found)))
    cameras = [{f'{shot.camera} {shot.serial}' for shot in side if shot is not None and shot.serial} for side in shots]
    every, both = cameras[0] | cameras[1], sorted(cameras[0] & cameras[1])
    if len(every) >= _FEWEST_CAMERAS and both:
        text = f'{len(both)} of {len(every)} cameras (serial numbers in EXIF) took images of both sides'
        advice = 'if a camera stands for a place, name the places with --group-column or --group-pattern'
        findings.append(Finding(WARNING, f'{text}: {advice}', [printable(camera) for camera in both]))
    return findings


def _check_names(train: Side, val: Side, drawn: bool) -> list[Finding]:
    """Report groups that the names of the images suggest."""
    names = [name.replace(os.sep, '/') for side in (train, val) for name in side.images.filenames()]
    likely = likely_groups(names, np.concatenate([train.labels, val.labels]).tolist())
    if likely is None:
        return []
    here = len(train.labels)
    both = set(likely.groups[:here]) & set(likely.groups[here:])
    if not both:
        return []
    what = f'{likely.images:,} images in {counted(likely.number, "group")}, of which {len(both):,} are on both sides'
    option = f"--group-pattern '{likely.pattern}'"
    advice = f'add {option}' if drawn else f'join both sides and divide them with --val-fraction 0.2 {option}'
    shown = [f'{printable(name)} is of {printable(group)}' for name, group in zip(names, likely.groups, strict=True)]
    return [Finding(WARNING, f'names suggest {what}, {_FLATTERS}: {advice}', shown[:3])]


def _crossing(train: Sequence[str], val: Sequence[str]) -> Finding:
    every, both = {*train, *val}, sorted(set(train) & set(val))
    if not both:
        return Finding(OK, f'none of the {counted(len(every), "group")} of images is on both sides')
    text = (
        f'{len(both):,} of {counted(len(every), "group")} of images {"is" if len(both) == 1 else "are"} on both sides'
    )
    return Finding(WARNING, f'{text}, {_FLATTERS}', [printable(name) for name in both])


def _pairs(train: Side, val: Side, found: dict[int, int]) -> list[str]:
    return [f'{val.place(own)} ~ {train.place(other)}' for own, other in found.items()]
