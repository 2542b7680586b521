"""The results of a network, as one type: what a training writes at its end, and what is published of it.

Accuracies and calibration errors are in percent, costs in GMACs an image.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ride_timm.errors import RideError
from ride_timm.records.fields import from_json, item, part, parts, to_json
from ride_timm.records.headline import accuracy_labels
from ride_timm.records.schema import FLAG, OBJECT, TEXT, Kind, list_of, nullable, number, one_of, read_object, whole
from ride_timm.records.upgrade import upgrade_results

__all__ = [
    'FORMAT', 'SEED_RESULTS', 'Choices', 'ClassRow', 'Data', 'HeldOut', 'ImageGroupRow', 'ImageGroups', 'Measured',
    'Network', 'Results', 'SeedRow', 'Stage', 'comparable', 'read_results',
]  # fmt: skip

FORMAT = 2
"""Version of the layout of `results.json`; files of version 1 are upgraded when they are read."""
SEED_RESULTS = ('top1', 'balanced', 'many', 'medium', 'few', 'ece')
"""What is kept of each seed."""

_COUNT = whole(0, 10**15)
_NUMBER = number(-1e300, 1e300)
_LABEL = whole(0, 1_000_000)


def _numbers(*needed: str) -> Kind:
    """An object of numbers by name, some of which have to be there."""

    def fits(value: Any) -> bool:
        if not OBJECT.fits(value) or not all(_NUMBER.fits(value.get(name)) for name in needed):
            return False
        return all(number is None or _NUMBER.fits(number) for number in value.values())

    return Kind(f'an object of numbers or nulls, with numbers for {", ".join(needed)}', fits)


_METRICS = _numbers('top1')
_ROUTED = _numbers('top1', 'mean_experts', 'gmacs', 'threshold')
_GROUPS = Kind(
    'an object of lists of labels', lambda value: OBJECT.fits(value) and all(map(list_of(_LABEL).fits, value.values()))
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What a network was trained on and which images its results are of.

    Attributes:
        evaluated_on: `test` images; training images `held_out` for choices; or those that were set aside where the data
            have no test images (`val_fraction`).
        source: Where these images were, in words.
        dataset: What `--dataset` names, None for a folder or lists.
        datasets: Repositories on the Hugging Face Hub.
    """

    name: str = item(TEXT)
    num_classes: int = item(_COUNT)
    train_images: int = item(_COUNT)
    imbalance_factor: float | None = item(nullable(_NUMBER), None)
    test_images: int = item(_COUNT)
    source: str | None = item(nullable(TEXT), None)
    datasets: tuple[str, ...] | None = item(nullable(list_of(TEXT)), None)
    evaluated_on: str = item(one_of('test', 'held_out', 'val_fraction'), 'test')
    dataset: str | None = item(nullable(TEXT), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Size and cost of a network.

    Attributes:
        multi_expert: Whether it is one of this package's; timm's own know nothing of experts.
        gmacs: Of all experts.
        gmacs_by_experts: Of the first, the first two, ... experts, with the router; None for a network of timm's.
        bytes: Of its tensors, None where they are not kept.
        dtype: Of the large tensors in the file.
    """

    parameters: int = item(_COUNT)
    gmacs: float = item(_NUMBER)
    gmacs_by_experts: tuple[float, ...] | None = item(nullable(list_of(_NUMBER)))
    num_experts: int = item(whole(1, 1000))
    router: bool = item(FLAG)
    input_size: tuple[int, ...] = item(list_of(whole(1, 8192), 3, 3))
    bytes: int | None = item(nullable(_COUNT), None)
    dtype: str = item(TEXT, 'float32')
    multi_expert: bool = item(FLAG)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a training; None for what a run did not write down.

    Attributes:
        command: A line for each command that the run was continued with.
        own_epochs: Whether the user and not the recipe chose the number of epochs.
        images: Number of training images.
        seconds: Of the training steps, without evaluation.
        amp: Type of mixed precision, None without it.
        init: Checkpoint or name that the network was initialised from, None for random numbers.
        holdout: Share of the training images that was held out.
        commit: Of the source.
        environment: Versions and hardware.
    """

    stage: str = item(TEXT)
    command: str | None = item(nullable(TEXT))
    recipe: str | None = item(nullable(TEXT))
    seed: int | None = item(nullable(whole(-(2**64), 2**64)), None)
    epochs: int | None = item(nullable(_COUNT))
    images: int | None = item(nullable(_COUNT))
    seconds: float | None = item(nullable(_NUMBER))
    amp: str | None = item(nullable(TEXT), None)
    commit: str | None = item(nullable(TEXT))
    environment: Mapping[str, Any] | None = item(nullable(OBJECT), None)
    own_epochs: bool = item(FLAG, False)
    init: str | None = item(nullable(TEXT), None)
    holdout: float | None = item(nullable(number(0.0, 1.0)), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Training images that choices were made on."""

    fraction: float | None = item(nullable(number(0.0, 1.0)))
    images: int | None = item(nullable(_COUNT))
    seed: int | None = item(nullable(whole(-(2**64), 2**64)), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choices:
    """How the router's threshold was chosen.

    Attributes:
        training: The stages of the run that chose it.
        rule: In words.
        rule_threshold: What the rule takes; another than `threshold` where that was given by hand.
        by_hand: Whether `threshold` was given.
        sweep: Results by threshold on the held-out images.
    """

    held_out: HeldOut = part(HeldOut)
    training: tuple[Stage, ...] = parts(Stage)
    threshold: float = item(number(0.0, 1.0))
    rule: str | None = item(nullable(TEXT), None)
    rule_threshold: float | None = item(nullable(number(0.0, 1.0)), None)
    by_hand: bool = item(FLAG, False)
    sweep: tuple[Mapping[str, float], ...] | None = item(nullable(list_of(_ROUTED)), None)


_LATER = ('accuracy_low', 'accuracy_high', 'predicted', 'precision')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassRow:
    """The results of a class, with all experts, None where they are not known.

    Attributes:
        accuracy: Of its test images, None without any; `accuracy_low` and `accuracy_high` end its 95 % interval.
        predicted: Images of any class that are taken for it.
        precision: Percentage of those that are of it, None without any.
    """

    label: int = item(_LABEL)
    name: str = item(TEXT)
    group: str = item(TEXT, '')
    train_images: int = item(_COUNT)
    test_images: int = item(_COUNT)
    accuracy: float | None = item(nullable(_NUMBER))
    accuracy_low: float | None = item(nullable(_NUMBER), None)
    accuracy_high: float | None = item(nullable(_NUMBER), None)
    predicted: int | None = item(nullable(_COUNT), None)
    precision: float | None = item(nullable(_NUMBER), None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageGroupRow:
    """The accuracy over the images of a group in percent, with Wilson's 95 % interval."""

    name: str = item(TEXT)
    images: int = item(_COUNT)
    accuracy: float = item(_NUMBER)
    interval: tuple[float, ...] = item(list_of(_NUMBER, 2, 2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageGroups:
    """Results over groups of images (places, patients); accuracies in percent.

    Attributes:
        groups: Their number.
        resamples: Draws of groups that the intervals are made of.
        seed: Of the draws.
        top1: Accuracy over images.
        top1_interval: Its 95 % interval; None of a single group.
        balanced: Mean over classes.
        balanced_interval: Likewise.
        worst: The groups with the least accuracy, the worst first.
    """

    groups: int = item(_COUNT)
    resamples: int = item(_COUNT)
    seed: int = item(whole(0, 2**64))
    top1: float = item(_NUMBER)
    top1_interval: tuple[float, ...] | None = item(nullable(list_of(_NUMBER, 2, 2)), None)
    balanced: float = item(_NUMBER)
    balanced_interval: tuple[float, ...] | None = item(nullable(list_of(_NUMBER, 2, 2)), None)
    worst: tuple[ImageGroupRow, ...] = parts(ImageGroupRow)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured on the images of `Data.evaluated_on`.

    Attributes:
        all_experts: Results by name, as `LongTailEvaluator` names them.
        routed: Likewise with the router, and `threshold`, `mean_experts`, `gmacs`; None without one.
        sweep: Likewise by threshold.
        groups: Labels of the classes of each group.
        image_groups: Results over groups of images, with the router where there is one; None where they are not known.
        environment: Versions and hardware of the measurement.
    """

    all_experts: Mapping[str, float] = item(_METRICS)
    routed: Mapping[str, float] | None = item(nullable(_ROUTED))
    sweep: tuple[Mapping[str, float], ...] | None = item(nullable(list_of(_ROUTED)))
    groups: Mapping[str, Sequence[int]] = item(_GROUPS)
    per_class: tuple[ClassRow, ...] = parts(ClassRow)
    environment: Mapping[str, Any] | None = item(nullable(OBJECT), None)
    image_groups: ImageGroups | None = part(ImageGroups, None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedRow:
    """The results of all experts, trained with one seed."""

    seed: int | None = item(nullable(whole(-(2**64), 2**64)))
    top1: float = item(_NUMBER)
    balanced: float | None = item(nullable(_NUMBER), None)
    many: float | None = item(nullable(_NUMBER), None)
    medium: float | None = item(nullable(_NUMBER), None)
    few: float | None = item(nullable(_NUMBER), None)
    ece: float | None = item(nullable(_NUMBER), None)
    published: bool = item(FLAG, False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """The results of a network.

    Attributes:
        name: `<architecture>.<tag>`, None for a run.
        recipe: Of the first stage.
        method: The experts' loss.
        network: None for a run, whose checkpoint tells.
        choices: None without a router, or where nothing was chosen.
        seeds: The published one first.
        base_model: Repository on the Hub that the network was initialised from.
        results_only: Whether its tensors are left out: a network that others are only compared with.
        note: What else the card says of the training.
        last_epoch, last, best_on_evaluation_images, args: Of a run: the index of its last epoch, the results of it, the
            best of all epochs, and the arguments.
    """

    name: str | None = item(nullable(TEXT), None)
    architecture: str = item(TEXT)
    recipe: str | None = item(nullable(TEXT), None)
    method: str | None = item(nullable(TEXT))
    data: Data = part(Data)
    base_model: str | None = item(nullable(TEXT), None)
    network: Network | None = part(Network, None)
    training: tuple[Stage, ...] = parts(Stage, shortest=1)
    choices: Choices | None = part(Choices, None)
    test: Measured = part(Measured)
    seeds: tuple[SeedRow, ...] = parts(SeedRow, shortest=1)
    results_only: bool = item(FLAG, False)
    note: str | None = item(nullable(TEXT), None)
    last_epoch: int | None = item(nullable(whole(-1, 10**9)), None)
    last: Mapping[str, float] | None = item(nullable(OBJECT), None)
    best_on_evaluation_images: Mapping[str, Any] | None = item(nullable(OBJECT), None)
    args: Mapping[str, Any] | None = item(nullable(OBJECT), None)

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: str = 'results.json') -> Results:
        """Check the content of a `results.json`, of this version or an earlier one.

        Args:
            content: The entries.
            source: The file, for the message.

        Raises:
            RideError: An entry is missing or holds something else, or the file is of another version.
        """
        version = content.get('format')
        if version not in (1, FORMAT) or isinstance(version, bool):
            raise RideError(
                f'{source} has "format" {version!r}, but this ride-timm reads 1 and {FORMAT}; write it again with '
                '`ride-timm package`, or install the ride-timm that wrote it.'
            )
        results = from_json(cls, content if version == FORMAT else upgrade_results(content), source)
        _check_classes(results, source)
        return results

    def to_json(self) -> dict[str, Any]:
        """The content of a `results.json`; the entries of a run are left out of that of a published network.

        A table of the classes from before intervals and precision were kept stays as it was.
        """
        content = {'format': FORMAT, **to_json(self)}
        if self.test.image_groups is None:
            del content['test']['image_groups']
        if all(row.predicted is None for row in self.test.per_class):
            rows = content['test']['per_class']
            content['test']['per_class'] = [{key: row[key] for key in row if key not in _LATER} for row in rows]
        of_a_run = ('last_epoch', 'last', 'best_on_evaluation_images', 'args')
        return {key: value for key, value in content.items() if key not in of_a_run or value is not None}

    @property
    def net(self) -> Network:
        """Size and cost, which all published results have.

        Raises:
            RideError: These are the results of a run.
        """
        if self.network is None:
            raise RideError(
                'These results are of a run and do not describe its network; use `ride-timm package` first.'
            )
        return self.network

    @property
    def accuracies(self) -> dict[str, str]:
        """What its accuracies are called, the leading one first, and their keys in its results.

        Results that were written before the mean over classes was kept have the accuracy over images only.
        """
        columns = [self.test.all_experts, *(self.test.sweep or ()), *([self.test.routed] if self.test.routed else [])]
        known = all(column.get('balanced') is not None for column in columns)
        return accuracy_labels([row.test_images for row in self.test.per_class] if known else ())

    @property
    def images_name(self) -> str:
        """What the images are that the results were measured on."""
        return 'test images' if self.data.evaluated_on == 'test' else 'held-out training images'

    @property
    def is_plain(self) -> bool:
        """Whether it is a baseline: one expert, trained with cross-entropy."""
        return self.net.num_experts == 1 and self.method == 'ce'

    @property
    def saw_part(self) -> bool:
        """Whether the published experts saw only a part of the training images."""
        first = self.training[0]
        return first.holdout is not None or first.images not in (None, self.data.train_images)


def read_results(path: str | Path) -> Results:
    """Read and check a `results.json`.

    Args:
        path: The file, or the folder of the published network that it lies in.

    Raises:
        RideError: It cannot be read, or an entry is missing or holds something else.
    """
    file = Path(path)
    file = file / 'results.json' if file.is_dir() else file
    return Results.from_json(read_object(file), str(file))


def comparable(results: Results, others: Sequence[Results]) -> list[Results]:
    """The results of other networks on the same images, sorted by name."""
    data = (results.data.name, results.data.evaluated_on)
    same = [
        other for other in others if (other.data.name, other.data.evaluated_on) == data and other.name != results.name
    ]
    return sorted(same, key=lambda other: str(other.name))


def _check_classes(results: Results, source: str) -> None:
    """Every class once in the table, and groups of classes that there are."""
    classes, labels = results.data.num_classes, sorted(row.label for row in results.test.per_class)
    known = labels or results.network is None  # an old run may have lost its table
    if not known or len(labels) != classes or labels != list(range(classes)):
        raise RideError(
            f'{source}: "test.per_class" has {len(labels)} rows and must have one for each of the {classes} classes; '
            'write the file again.'
        )
    for name, members in results.test.groups.items():
        if not all(label < classes for label in members):
            raise RideError(
                f'{source}: "test.groups.{name}" names other classes than the {classes} there are; write the file '
                'again.'
            )
