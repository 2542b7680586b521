"""What is known of a trained network: the entry `ride` of a checkpoint and of a `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from ride_timm.records.calibration import Calibration
from ride_timm.records.certificate import Certificate
from ride_timm.records.fields import from_json, item, part, to_json
from ride_timm.records.kinds import TRAINING_SCHEMA as _KINDS
from ride_timm.records.schema import FLAG, TEXT, nullable, number, whole

__all__ = ['SplitPlan', 'TrainingRecord']


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """Which training images are set aside.

    Attributes:
        fraction: Their share of every class.
        seed: What draws them.
        digest: Of their names, None before they are drawn.
        grouped: Whether images that belong together stay together.
        group_column: Column of the table that tells which do, None where its form does.
        group_pattern: What tells so in their names.
    """

    fraction: float = item(number(0.0, 1.0))
    seed: int = item(whole(0, 2**64))
    digest: str | None = item(nullable(TEXT), None)
    grouped: bool = item(FLAG, False)
    group_column: str | None = item(nullable(TEXT), None)
    group_pattern: str | None = item(nullable(TEXT), None)

    def to_json(self) -> dict[str, Any]:
        """The entry; without groups it is that of earlier versions."""
        return {
            key: value
            for key, value in to_json(self).items()
            if key == 'digest' or (value is not None and value is not False)
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What later users of a network need to know of its training; None for what is not known.

    Attributes:
        stage: Last stage of the training.
        num_experts, router, router_threshold: Of the network.
        certificate: What was certified of the routing with `router_threshold`.
        class_names: Names of the C classes, in label order.
        class_counts: (C,) training images of each.
        loss: Name of the experts' loss.
        loss_kwargs: Its options.
        tau: Strength of the logit adjustment that the loss trained the experts with, one for each expert or for all.
        logit_adjustment: Strength of the post-hoc logit adjustment that is in the heads.
        pixel_range: Of 16-bit images, lowest and highest value.
        calibration: Temperatures, and how often answers are right by their confidence; of these very tensors.
        holdout: Training images held out for choices.
        val_part: Training images evaluated on, where the data have no others.
        train_digest: Of the names of the training images.
        teacher: Digest of the teacher's tensors.
        segments: `epoch`, `command` and `environment` from each place on where the run was continued.
    """

    stage: str | None = item(nullable(_KINDS['stage']), None)
    num_experts: int | None = item(nullable(_KINDS['num_experts']), None)
    router: bool | None = item(nullable(_KINDS['router']), None)
    router_threshold: float | None = item(_KINDS['router_threshold'], None)
    certificate: Certificate | None = part(Certificate, None)
    class_names: tuple[str, ...] | None = item(_KINDS['class_names'], None)
    class_counts: tuple[int, ...] | None = item(_KINDS['class_counts'], None)
    loss: str | None = item(_KINDS['loss'], None)
    loss_kwargs: Mapping[str, Any] | None = item(_KINDS['loss_kwargs'], None)
    tau: float | tuple[float, ...] | None = item(_KINDS['tau'], None)
    logit_adjustment: float | None = item(_KINDS['logit_adjustment'], None)
    pixel_range: tuple[int, int] | None = item(_KINDS['pixel_range'], None)
    calibration: Calibration | None = part(Calibration, None)
    holdout: SplitPlan | None = part(SplitPlan, None)
    val_part: SplitPlan | None = part(SplitPlan, None)
    train_digest: str | None = item(nullable(TEXT), None)
    teacher: str | None = item(nullable(TEXT), None)
    segments: tuple[Mapping[str, Any], ...] = item(_KINDS['segments'], ())

    @classmethod
    def from_json(cls, content: Mapping[str, Any] | None, source: str) -> TrainingRecord:
        """Check the entry `ride` of a file; one that an earlier version wrote has fewer fields.

        Args:
            content: The entry, None for a file without one.
            source: The file, for the message.

        Raises:
            RideError: A field holds something else.
        """
        return from_json(cls, content or {}, source, 'ride.')

    def to_json(self) -> dict[str, Any]:
        """The entry; what is not known is left out."""
        plans = {name: plan.to_json() for name in ('holdout', 'val_part') if (plan := getattr(self, name)) is not None}
        return {key: value for key, value in {**to_json(self), **plans}.items() if value not in (None, ())}

    @property
    def for_later_users(self) -> TrainingRecord:
        """What a later stage takes over: how the experts were trained."""
        names = ('loss', 'loss_kwargs', 'tau', 'logit_adjustment', 'pixel_range')
        return TrainingRecord(**{name: getattr(self, name) for name in names})

    @property
    def for_export(self) -> TrainingRecord:
        """What a copy of the network keeps: also what was measured of its tensors, and what was certified."""
        return dataclasses.replace(self.for_later_users, calibration=self.calibration, certificate=self.certificate)
