"""What a data set holds and what a training would make of it, found before anything is trained."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ride_timm.data import (
    DataSplit,
    GroupChoice,
    ImageSet,
    Source,
    as_eval_split,
    as_train_split,
    check_apart,
    choose_groups,
    hold_out,
)
from ride_timm.data.form import has_eval_images, open_eval_source, open_train_source
from ride_timm.data.forms import OtherFormError
from ride_timm.data.holdout import VAL_FRACTION
from ride_timm.data.image_groups import with_groups
from ride_timm.data.leaks import check_groups, check_looks, check_shots
from ride_timm.data.scan import find_repeats, scan_images
from ride_timm.data.sides import ERROR, OK, WARNING, Finding, Side
from ride_timm.data.splits import val_plan
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.options import DataForm
from ride_timm.tables import counted

__all__ = ['Finding', 'Side', 'Survey', 'survey']

_SET_APART = (
    f'there are no evaluation images: shown is the split of --val-fraction {VAL_FRACTION:g}, which a training '
    'without --model and --recipe uses by default'
)


@dataclass
class Survey:
    """All that was found; sides and groups that could not be opened are None.

    `set_apart` is the fraction of the training images that stand in for evaluation images without being asked for,
    `dataset` what opens images that are stored in another form than the options say.
    """

    form: str
    root: str
    train: Side | None = None
    val: Side | None = None
    groups: GroupChoice | None = None
    looked: bool = False
    set_apart: float | None = None
    dataset: str | None = None
    findings: list[Finding] = field(default_factory=list)

    def add_error(self, error: RideError) -> None:
        """Note what a training would refuse."""
        self.findings.append(Finding(ERROR, str(error)))
        if isinstance(error, OtherFormError):
            self.dataset = error.dataset

    @property
    def trainable(self) -> bool:
        """Whether a training would take the data."""
        return all(finding.level != ERROR for finding in self.findings)


def survey(
    form: DataForm, progress: Callable[[int], object] | None = None, *, counts_only: bool = False, threads: int = 4
) -> Survey:
    """Open the data as a training would, and look at every image.

    Args:
        form: Where the images are and what form they have.
        progress: Called with numbers of images looked at.
        counts_only: Do not open the images.
        threads: Threads that read images.

    Returns:
        What was found; whatever a training would refuse is an error among the findings.
    """
    found = Survey(_form(form), f'{form.data_dir.rstrip(os.sep)}{os.sep}' if form.data_dir else '')
    if form.val_fraction is None and not has_eval_images(form, form.val_split):
        found.set_apart = VAL_FRACTION
        form = replace(form, val_fraction=VAL_FRACTION)
    train = _open_sides(form, found)
    if found.train is not None:
        _check_classes(found, train)
    if found.train is not None and found.val is not None and train is not None:
        found.findings += check_groups(found.train, found.val, drawn=bool(form.val_fraction))
    if not counts_only:
        for side in filter(None, (found.train, found.val)):
            side.facts = scan_images(side.images, threads, progress)
        found.looked = True
        _check_files(found)
        _check_repeats(found)
        if found.train is not None and found.val is not None:
            found.findings += [*check_looks(found.train, found.val), *check_shots(found.train, found.val)]
    return found


def _open_sides(form: DataForm, found: Survey) -> DataSplit | None:
    """Open both sides as they are stored, and label them as a training does; returns the training images if it can."""
    try:
        plan = val_plan(form)
        source = open_train_source(form)
    except RideError as error:
        found.add_error(error)
        return None
    found.train = _side(source, found.root)
    train, val = None, None
    try:
        train = with_groups(as_train_split(source, imb_factor=form.imb_factor), form)
        found.train = _labelled(train, found.root)
        if plan is not None:
            parts = hold_out(train, plan.fraction, plan.seed, '--val-fraction')
            train, val = parts.train, parts.held
            found.train, found.val = _labelled(train, found.root), _labelled(val, found.root)
            if found.set_apart:
                found.findings.append(Finding(WARNING, _SET_APART))
    except RideError as error:
        found.add_error(error)
    if plan is None:
        val = _open_val(form, found, source, train)
    if train is not None and val is not None:
        try:
            check_apart(train, val)
        except RideError as error:
            found.add_error(error)
    return train


def _open_val(form: DataForm, found: Survey, train: Source, split: DataSplit | None) -> DataSplit | None:
    try:
        source = open_eval_source(form, form.val_split)
        found.val = _side(source, found.root)
        # in the training's own order, also where that could not be made
        names = split.class_names if split is not None else train.names
        val = with_groups(as_eval_split(source, names), form)
        found.val = _labelled(val, found.root)
        return val
    except RideError as error:
        found.add_error(error)
        return None


def _side(source: Source, root: str) -> Side:
    images = ImageSet(source.base, source.labels, source.rows)
    return Side(source.text, images, source.names, source.labels, root)


def _labelled(split: DataSplit, root: str) -> Side:
    return Side(split.source, split.dataset, split.class_names, split.targets, root, split.image_groups)


def _form(form: DataForm) -> str:
    """What form the data has, in words."""
    if form.table:
        return 'a table of images'
    if form.train_list:
        return 'lists of images' if form.val_list else 'a list of images'
    known = {'torch': 'torchvision', 'hfds': 'Hugging Face dataset', 'wds': 'webdataset shards'}
    return known.get(form.dataset.partition('/')[0].lower(), 'image folders')


def _check_classes(found: Survey, train: DataSplit | None) -> None:
    assert found.train is not None
    counts = found.train.counts
    found.groups = choose_groups(list(counts.values()))
    if len(counts) < 2:
        text = 'there is only one class; give images of two or more, or the file that has their labels with --table'
        found.findings.append(Finding(ERROR, text))
    single = [name for name, count in counts.items() if count == 1]
    if single:
        text = f'{counted(len(single), "class has", "classes have")} a single training image'
        found.findings.append(Finding(WARNING, text, _listed(single)))
    if found.val is None or train is None:
        return
    tested = {name for name, count in found.val.counts.items() if count}
    untested = [name for name in counts if name not in tested]
    if untested:
        text = f'{counted(len(untested), "class has", "classes have")} no evaluation image, so no accuracy'
        found.findings.append(Finding(WARNING, text, _listed(untested)))
    elif not set(found.val.names) - set(counts):
        found.findings.append(Finding(OK, f'both sides have the same {counted(len(counts), "class", "classes")}'))


def _check_files(found: Survey) -> None:
    """Report the images that cannot be read, and those that are read in a way worth knowing."""
    broken, modes, animated = [], Counter[str](), 0
    for side in filter(None, (found.train, found.val)):
        counts = side.counts
        for index, fact in enumerate(side.facts):
            modes[fact.mode] += fact.problem is None
            animated += fact.animated
            if fact.problem is not None:
                only = ', the only image of its class' if counts[side.names[int(side.labels[index])]] == 1 else ''
                broken.append(f'{side.place(index)} ({fact.problem}{only})')
    number = modes.total() + len(broken)
    if broken:
        text = f'{len(broken)} of {number:,} images cannot be read; remove or replace them'
        found.findings.append(Finding(ERROR, text, broken))
    elif number:
        found.findings.append(Finding(OK, f'all {number:,} images can be read'))
    deep = sum(count for mode, count in modes.items() if mode.startswith('I'))
    if deep:
        text = f'{counted(deep, "image has", "images have")} 16 bits; a training scales them to the range of its images'
        found.findings.append(Finding(WARNING, text))
    if animated:
        found.findings.append(
            Finding(WARNING, f'{counted(animated, "image is", "images are")} animated; the first frame is used')
        )


def _check_repeats(found: Survey) -> None:
    """Report files that occur twice: within the training images, under two classes, or on both sides."""
    sides = [side for side in (found.train, found.val) if side is not None]
    places = [(side, index) for side in sides for index in range(len(side.facts))]
    kinds: dict[str, list[str]] = {'classes': [], 'sides': [], 'train': [], 'val': []}
    for repeat in find_repeats(fact for side in sides for fact in side.facts):
        members = [places[position] for position in repeat]
        both = len({id(side) for side, _ in members}) > 1
        mixed = len({side.name(index) for side, index in members}) > 1
        text = ' = '.join(side.place(index) for side, index in members)
        if mixed:
            kinds['classes'].append(text)
        if both:
            kinds['sides'].append(text)
        if not mixed and not both:
            kinds['train' if members[0][0] is found.train else 'val'].append(text)
    texts = {
        'classes': 'the same file is in different classes',
        'sides': 'a training image is an evaluation image too, which inflates the accuracy',
        'train': 'a training image is there more than once',
        'val': 'an evaluation image is there more than once',
    }
    for kind, repeats in kinds.items():
        if repeats:
            times = f' ({len(repeats)} times)' if len(repeats) > 1 else ''
            found.findings.append(Finding(WARNING, texts[kind] + times, repeats))
    if places and not any(kinds.values()):
        found.findings.append(Finding(OK, 'no file is there twice'))


def _listed(names: Sequence[str]) -> list[str]:
    return [printable(name) for name in names]
