"""The HTML of a report: one page without scripts that loads nothing; every text that comes from outside is escaped."""

import base64
import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ride_timm.data.descriptions import readable_label
from ride_timm.escaping import printable
from ride_timm.evaluation.metrics import ClassResult, accuracy_interval
from ride_timm.evaluation.one_pass import Measured
from ride_timm.inference.taxonomy import Taxonomy
from ride_timm.pages.answers import agreement, worst_pairs
from ride_timm.pages.figures import FEW_IMAGES, GREY, GROUP_COLOURS
from ride_timm.records.headline import accuracy_labels
from ride_timm.records.results import ImageGroups
from ride_timm.tables import counted

__all__ = ['Content', 'Example', 'render']

NOTHING = '\N{EN DASH}'
NO_ANSWER = 'no finite answer'
FEW_NAMES = 3  # of a level of a taxonomy


class Example(NamedTuple):
    """A wrong answer with its picture; classes by name, confidences 0..1."""

    file: str
    picture: bytes
    truth: str
    answer: str
    confidence: float
    votes: Sequence[tuple[str, float]]


@dataclass
class Content:
    """What a page shows.

    Attributes:
        name: What was measured, as the user named it.
        model: The architecture.
        data: What the data are called.
        measured: The results.
        about: Further lines of the header: what, and its value.
        pictures: PNG files of `tail`, `calibration`, `routing` and `curves`, as far as there are any.
        examples: Wrong answers, the most confident first.
        curves_note: A sentence on the training curves.
        said: For each rate of wrong answers what the network promises with all experts and, with a router, routed; the
            heading is first. Empty where it is not calibrated.
        image_groups: Results over groups of images; None where they are not known.
        taxonomy: What the classes are part of; None where that is not known.
    """

    name: str
    model: str
    data: str
    measured: Measured
    about: Mapping[str, str]
    pictures: Mapping[str, bytes]
    examples: Sequence[Example] = ()
    curves_note: str = ''
    said: Sequence[Sequence[str]] = ()
    image_groups: ImageGroups | None = None
    taxonomy: Taxonomy | None = None
    class_names: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        self.class_names = [row.name for row in self.measured.per_class] + [NO_ANSWER]


def render(content: Content) -> str:
    """Write the page.

    Returns:
        HTML that can be encoded in UTF-8, whatever bytes names of files are of.
    """
    environment = Environment(
        loader=PackageLoader('ride_timm', 'pages/templates'), undefined=StrictUndefined, finalize=_shown,
        autoescape=True, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters['number'] = _number
    measured = content.measured
    known, metrics, answers = measured.groups is not None, measured.metrics, measured.answers
    tested = [row.test_images for row in measured.per_class if row.test_images]
    untested = int(metrics['num_classes_without_images'])
    return environment.get_template('report.html.j2').render(
        c=content, m=measured, sections=_sections(content), colours=GROUP_COLOURS, grey=GREY,
        about={'Model': content.model, 'Data': content.data, **content.about},
        tiles=[(name, metrics.get(key)) for name, key in _tiles(measured).items()],
        few=min(tested, default=FEW_IMAGES) < FEW_IMAGES,
        tested=f'{min(tested):,} to {max(tested):,}' if len(_accuracies(measured)) > 1 else '',
        untested=counted(untested, 'class has', 'classes have') if untested else '',
        columns=_columns(measured), accuracy=_accuracy(measured), cost=_cost(measured),
        pairs=worst_pairs(measured.confusion),
        train_images=lambda label: _training_images(measured, label),
        confidence=100 * float(answers.confidence.mean()),
        experts=[f'expert {k}' for k in range(measured.num_experts)], agreement=agreement(answers).tolist(),
        votes=_votes(measured), wrong=_wrong(content), places=_places(content.image_groups),
        levels=_levels(content), in_common=lambda own, taken: _in_common(content, own, taken) or NOTHING,
        classes=sorted(measured.per_class, key=lambda row: (-row.train_images if known else 0, row.label)),
        interval=_interval, readable=readable_label, size=_size, base64=_base64,
    )  # fmt: skip


def _sections(content: Content) -> dict[str, str]:
    """Titles of the sections that have anything to show, by identifier."""
    measured, pictures = content.measured, content.pictures
    titles = {
        'accuracy': 'Accuracy',
        'places': 'By group of images' if content.image_groups is not None else '',
        'levels': 'At each level of the taxonomy' if content.taxonomy is not None else '',
        'tail': 'Along the tail' if 'tail' in pictures else '',
        'confusions': 'Confusions',
        'calibration': 'Calibration',
        'experts': 'Do the experts agree?' if measured.num_experts > 1 else '',
        'routing': 'Routing' if measured.routed is not None and 'routing' in pictures else '',
        'training': 'Training' if content.curves_note or 'curves' in pictures else '',
        'errors': 'Most confident wrong answers',
        'classes': 'Every class',
    }
    return {name: title for name, title in titles.items() if title}


def _tiles(measured: Measured) -> dict[str, str]:
    """The results that matter most, and their keys."""
    return {
        **_accuracies(measured), **_groups(measured), 'worst class': 'worst_class', 'calibration error': 'ece'
    }  # fmt: skip


def _columns(measured: Measured) -> list[str]:
    together = f'all {measured.num_experts} experts' if measured.num_experts > 1 else 'network'
    return [together] + ([f'routed, threshold {measured.routed["threshold"]:g}'] if measured.routed else [])


def _accuracy(measured: Measured) -> list[list[str]]:
    top5 = {'top 5': 'top5'} if len(measured.per_class) > 5 else {}
    rows = {
        **_accuracies(measured), **top5, **_groups(measured), 'worst class': 'worst_class',
        'harmonic mean of the classes': 'harmonic', 'macro F1': 'macro_f1', 'calibration error (ECE)': 'ece',
    }  # fmt: skip
    columns = [column for column in (measured.metrics, measured.routed) if column is not None]
    table = [[label, *(_number(column.get(key)) for column in columns)] for label, key in rows.items()]
    over = ', over images' * (len(_accuracies(measured)) > 1)
    for k in range(measured.num_experts if measured.num_experts > 1 else 0):
        alone = _number(measured.metrics[f'expert{k}_top1'])
        table.append([f'expert {k} alone{over}', alone, *[NOTHING] * (len(columns) - 1)])
    return table


def _cost(measured: Measured) -> list[list[str]]:
    columns = [column for column in (measured.metrics, measured.routed) if column is not None]
    rows = [['GMACs, mean', *(f'{column["gmacs"]:.4g}' for column in columns)]]
    if measured.routed is not None:
        rows.append(['experts, mean', str(measured.num_experts), f'{measured.routed["mean_experts"]:.2f}'])
    return rows


def _places(found: ImageGroups | None) -> dict[str, list[list[str]]]:
    """Rows of the tables over groups of images: of all of them, and of the worst."""
    if found is None:
        return {}
    return {
        'whole': [
            ['mean over classes', _number(found.balanced), _span(found.balanced_interval)],
            ['over images', _number(found.top1), _span(found.top1_interval)],
        ],
        'worst': [[row.name, f'{row.images:,}', _number(row.accuracy), _span(row.interval)] for row in found.worst],
    }


def _levels(content: Content) -> list[list[str]]:
    """Accuracy of the classes and of each level above them."""
    measured, taxonomy = content.measured, content.taxonomy
    if taxonomy is None:
        return []
    names = [content.class_names[:-1], *taxonomy.levels]
    found = [
        [metrics['top1'], *taxonomy.accuracies(confusion)]
        for metrics, confusion in (
            (measured.metrics, measured.confusion),
            (measured.routed, measured.routed_confusion),
        )
        if metrics is not None and confusion is not None
    ]
    rows = []
    for level, here in enumerate(names):
        counts = Counter(here)
        largest = ', '.join(readable_label(name) for name, _ in counts.most_common(FEW_NAMES))
        such_as = f'{largest}, ...' if len(counts) > FEW_NAMES else largest
        numbers = [_number(column[level]) for column in found]
        rows.append([f'level {level}' if level else 'classes', such_as, f'{len(counts):,}', *numbers])
    return rows


def _in_common(content: Content, own: int, taken: int) -> str | None:
    """What a class and the one that it is taken for are both part of."""
    if content.taxonomy is None or taken == len(content.measured.per_class):
        return None
    return content.taxonomy.in_common(own, taken)


def _span(interval: Sequence[float] | None) -> str:
    return NOTHING if interval is None else '{:.1f} to {:.1f}'.format(*interval)


def _votes(measured: Measured) -> list[list[str]]:
    """How often the experts agree, and how often the joint answer is right then."""
    answers = measured.answers
    same = (answers.experts == answers.experts[:, :1]).all(1)
    right = answers.answers == answers.targets
    table = []
    for label, chosen in (('all experts agree', same), ('they differ', ~same)):
        accuracy = f'{100 * right[chosen].mean():.2f} %' if chosen.any() else NOTHING
        table.append([label, f'{chosen.sum():,}', f'{100 * chosen.mean():.1f} %', accuracy])
    return table


def _wrong(content: Content) -> str:
    answers = content.measured.answers
    wrong, shown = int((answers.answers != answers.targets).sum()), len(content.examples)
    if not wrong:
        return ''
    first = f'{wrong:,} of {counted(len(answers.targets), "answer", "answers")} {"is" if wrong == 1 else "are"} wrong'
    return f'{first}; the {shown} with the highest confidence:' if shown < wrong else f'{first}:'


def _training_images(measured: Measured, label: int) -> str:
    rows = measured.per_class
    return f'{rows[label].train_images:,}' if label < len(rows) else NOTHING


def _interval(row: ClassResult) -> str:
    ends = accuracy_interval(row.accuracy, row.test_images)
    return NOTHING if ends is None else '{:.0f} to {:.0f}'.format(*ends)


def _accuracies(measured: Measured) -> dict[str, str]:
    return accuracy_labels([row.test_images for row in measured.per_class])


def _groups(measured: Measured) -> dict[str, str]:
    return {name: name for name in (measured.groups.groups if measured.groups else ())}


def _size(picture: bytes) -> tuple[int, int]:
    """Width and height, which are in the header of a PNG."""
    width, height = struct.unpack('>II', picture[16:24])
    return width, height


def _base64(picture: bytes) -> str:
    return base64.b64encode(picture).decode('ascii')


def _shown(value: Any) -> Any:
    """A value in the template: of a text, what cannot be shown or encoded is written as an escape."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _number(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f'{value:.2f}'
