"""The HTML of a report: one page without scripts that loads nothing; every text that comes from outside is escaped."""

import base64
import html
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import Template
from typing import NamedTuple

import numpy as np

from ride_timm.data.descriptions import readable_label
from ride_timm.escaping import printable
from ride_timm.evaluation.one_pass import Measured
from ride_timm.metrics import ClassResult, accuracy_labels, wilson_interval
from ride_timm.pages.figures import GREY, GROUP_COLOURS
from ride_timm.reports.measure import agreement, worst_pairs
from ride_timm.reports.style import PAGE, STYLE
from ride_timm.tables import counted

__all__ = ['Content', 'Example', 'render']

MOST_PAIRS = 15
TINY = 64  # pixels
NOTHING = '&ndash;'
SPACE = '&nbsp;'
NO_ANSWER = 'no finite answer'


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
        measured: The figures.
        about: Further lines of the header: what, and its value.
        pictures: PNG files of `tail`, `calibration`, `routing` and `curves`, as far as there are any.
        examples: Wrong answers, the most confident first.
        curves_note: A sentence on the training curves.
    """

    name: str
    model: str
    data: str
    measured: Measured
    about: Mapping[str, str]
    pictures: Mapping[str, bytes]
    examples: Sequence[Example] = ()
    curves_note: str = ''
    class_names: Sequence[str] = field(init=False)

    def __post_init__(self) -> None:
        self.class_names = [row.name for row in self.measured.per_class] + [NO_ANSWER]


def render(content: Content) -> str:
    """Write the page.

    Args:
        content: What it shows.

    Returns:
        HTML that can be encoded in UTF-8, whatever bytes names of files are of.
    """
    sections = [(name, title, body) for name, title, body in _sections(content) if body]
    links = ''.join(f'<li><a href="#{name}">{title}</a></li>' for name, title, _ in sections)
    body = ''.join(f'<section id="{name}"><h2>{title}</h2>{text}</section>\n' for name, title, text in sections)
    title = _text(f'{content.name} on {content.data}')
    return Template(PAGE).substitute(
        title=title, style=STYLE, header=_header(content), tiles=_tiles(content.measured), links=links, sections=body
    )


def _sections(content: Content) -> Iterator[tuple[str, str, str]]:
    """Identifier, title and HTML of each section; those without anything to show are empty."""
    yield 'accuracy', 'Accuracy', _accuracy(content.measured)
    yield 'tail', 'Along the tail', _tail(content)
    yield 'confusions', 'What is taken for what', _confusions(content)
    yield 'calibration', 'Calibration', _calibration(content)
    yield 'experts', 'Do the experts agree?', _experts(content.measured)
    yield 'routing', 'Routing', _routing(content)
    yield 'training', 'Training', _training(content)
    yield 'errors', 'Most confident wrong answers', _errors(content)
    yield 'classes', 'Every class', _classes(content.measured)


def _header(content: Content) -> str:
    lines = {'Model': content.model, 'Data': content.data, **content.about}
    rows = ''.join(f'<dt>{_text(name)}</dt><dd>{_text(value)}</dd>' for name, value in lines.items() if value)
    return f'<p class="kind">Report of a network</p><h1>{_name(content.name)}</h1><dl>{rows}</dl>'


def _tiles(measured: Measured) -> str:
    """The figures that matter most, large."""
    figures = measured.metrics
    shown = {**_accuracies(measured), **_groups(measured), 'worst class': 'worst_class'}
    tiles = [(label, f'{_number(figures.get(key))} %') for label, key in shown.items()]
    tiles.append(('calibration error', f'{_number(figures.get("ece"))} %'))
    return ''.join(
        f'<li{_tint(label)}><span>{_text(label)}</span> <strong>{value}</strong></li>' for label, value in tiles
    )


def _accuracy(measured: Measured) -> str:
    figures, routed = measured.metrics, measured.routed
    top5 = {'top 5': 'top5'} if len(measured.per_class) > 5 else {}
    rows = {
        **_accuracies(measured), **top5, **_groups(measured), 'worst class': 'worst_class',
        'harmonic mean of the classes': 'harmonic', 'macro F1': 'macro_f1', 'calibration error (ECE)': 'ece',
    }  # fmt: skip
    together = f'all {measured.num_experts} experts' if measured.num_experts > 1 else 'network'
    heads = ['percent', together] + ([f'routed, threshold {routed["threshold"]:g}'] if routed else [])
    columns = [figures] + ([routed] if routed else [])
    table = [[_text(label), *(_number(column.get(key)) for column in columns)] for label, key in rows.items()]
    over = ', over images' * (len(_accuracies(measured)) > 1)
    table += [
        [f'expert {k} alone{over}', _number(figures[f'expert{k}_top1']), *([NOTHING] if routed else [])]
        for k in range(measured.num_experts if measured.num_experts > 1 else 0)
    ]
    if measured.groups is None:
        note = 'The training images of the classes are not known, so there are no groups.'
    else:
        thirds = 'are thirds of the classes ' if measured.groups.rule == 'quantile' else ''
        note = f'Groups {thirds}by training images a class: {measured.groups.text}; the figure of a group is the mean '
        note += "of its classes' accuracies."
    tested = [row.test_images for row in measured.per_class if row.test_images]
    if len(_accuracies(measured)) > 1:
        note += f' The images are not balanced, {min(tested):,} to {max(tested):,} a class, so the mean over the '
        note += 'classes leads; the accuracy over images is mostly that of the classes with the most images here.'
    untested = int(figures['num_classes_without_images'])
    note += f' {counted(untested, "class has", "classes have")} no images here and are left out.' if untested else ''
    cost = _table(['cost of an image', *heads[1:]], _cost(measured))
    meaning = '<p>A GMAC is a billion multiplications, each with an addition.</p>'
    return f'<p>{_text(note)}</p>{_table(heads, table)}{cost}{meaning}'


def _cost(measured: Measured) -> list[list[str]]:
    columns = [column for column in (measured.metrics, measured.routed) if column is not None]
    rows = [['GMACs, mean', *(f'{column["gmacs"]:.4g}' for column in columns)]]
    if measured.routed is not None:
        rows.append(['experts, mean', str(measured.num_experts), f'{measured.routed["mean_experts"]:.2f}'])
    return rows


def _tail(content: Content) -> str:
    if 'tail' not in content.pictures:
        return ''
    alt = 'Accuracy of every class, sorted by training images, under the number of its training images'
    return _figure(content.pictures['tail'], alt, 'Each point is a class, each line the mean of a group.')


def _confusions(content: Content) -> str:
    measured = content.measured
    pairs = worst_pairs(measured.confusion, MOST_PAIRS)
    if not pairs:
        return '<p>No image was taken for another class.</p>'
    names, rows = content.class_names, measured.per_class
    table = []
    for true, taken, times, images in pairs:
        cells = [
            _label(names[true]),
            _label(names[taken]),
            f'{times:,}',
            f'{images:,}',
            f'{100 * times / images:.0f} %',
        ]
        if measured.groups is not None:
            other = f'{rows[taken].train_images:,}' if taken < len(rows) else NOTHING
            cells.append(f'{rows[true].train_images:,} → {other}')
        table.append(cells)
    heads = ['true class', 'taken for', 'times', 'of images', 'share']
    heads += ['training images of both'] if measured.groups is not None else []
    return '<p>The pairs that are mistaken most often.</p>' + _table(heads, table, words=2)


def _calibration(content: Content) -> str:
    figures = content.measured.metrics
    mean = 100 * float(content.measured.answers.confidence.mean())
    lean = 'more confident than right' if mean > figures['top1'] else 'less confident than right'
    text = (
        f'The confidence of an answer should be how often such answers are right. Its mean is {mean:.1f} % and '
        f'{figures["top1"]:.1f} % are right: on the whole the network is {lean}. The expected calibration error over '
        f'15 bins is {figures["ece"]:.2f} %.'
    )
    alt = 'Reliability diagram: accuracy over confidence, and the number of images at each confidence'
    caption = (
        'Left: of the answers with a confidence in the range of a bar, how many are right; a point marks their mean '
        'confidence, and lies on the dashed line where the two agree.'
    )
    return f'<p>{_prose(text)}</p>' + _figure(content.pictures['calibration'], alt, caption)


def _experts(measured: Measured) -> str:
    if measured.num_experts < 2:
        return ''
    matrix = agreement(measured.answers)
    heads = ['images with the same answer', *(f'expert {k}' for k in range(measured.num_experts))]
    rows = ''.join(
        f'<tr><th scope="row">expert {i}</th>' + ''.join(_shade(value) for value in row) + '</tr>'
        for i, row in enumerate(matrix)
    )
    votes = measured.answers.experts
    same = (votes == votes[:, :1]).all(1)
    right = measured.answers.answers == measured.answers.targets
    table = []
    for label, chosen in (('all experts agree', same), ('they differ', ~same)):
        share = f'{100 * chosen.mean():.1f} %'
        accuracy = f'{_number(_percent(right[chosen]))} %' if chosen.any() else NOTHING
        table.append([label, f'{chosen.sum():,}', share, accuracy])
    return (
        f'{_scroll(f"<thead>{_head(heads)}</thead><tbody>{rows}</tbody>")}'
        '<p>How often the answer of all together is right:</p>' + _table(['', 'images', 'share', 'accuracy'], table)
    )


def _routing(content: Content) -> str:
    routed, measured = content.measured.routed, content.measured
    if routed is None or 'routing' not in content.pictures:
        return ''
    shares = ', '.join(
        f'{100 * routed[f"share_{k}"]:.1f} % pass {counted(k, "expert", "experts")}'
        for k in range(1, measured.num_experts + 1)
    )
    text = (
        'After each expert but the last the router says how likely an image needs another one; it goes on to the next '
        "while that is above the threshold: 0 means all experts, 1 the first alone. Of the images, at the network's "
        f'own threshold of {routed["threshold"]:g}, {shares}.'
    )
    alt = 'Accuracy over the mean cost of an image at every threshold of the router'
    return f'<p>{_prose(text)}</p>' + _figure(content.pictures['routing'], alt)


def _training(content: Content) -> str:
    note = f'<p>{_text(content.curves_note)}</p>' if content.curves_note else ''
    if 'curves' not in content.pictures:
        return note
    caption = 'The training loss is the one that was minimised, the evaluation loss plain cross entropy.'
    return note + _figure(content.pictures['curves'], 'Loss, accuracy and learning rate over the epochs', caption)


def _errors(content: Content) -> str:
    answers = content.measured.answers
    wrong = int((answers.answers != answers.targets).sum())
    if not wrong:
        return '<p>Every answer is right.</p>'
    shown = len(content.examples)
    first = f'{wrong:,} of {counted(len(answers.targets), "answer", "answers")} {"is" if wrong == 1 else "are"} wrong'
    note = f'{first}; the {shown} with the highest confidence:' if shown < wrong else f'{first}:'
    return f'<p>{note}</p><ul class="errors">{"".join(map(_example, content.examples))}</ul>'


def _example(example: Example) -> str:
    votes = ''.join(
        f'<li{"" if label == example.truth else _class("off")}>expert {k}: {_vote(label, share)}</li>'
        for k, (label, share) in enumerate(example.votes)
    )
    return (
        f'<li>{_image(example.picture, f"Image of {readable_label(example.truth)}")}<div>'
        f'<p>true class: <b>{_label(example.truth)}</b></p><p>answer: {_vote(example.answer, example.confidence)}</p>'
        + (f'<ol>{votes}</ol>' if len(example.votes) > 1 else '')
        + f'<p class="file">{_name(example.file)}</p></div></li>'
    )


def _vote(label: str, share: float) -> str:
    return f'<b>{_label(label)}</b>, {100 * share:.0f}{SPACE}%'


def _classes(measured: Measured) -> str:
    known = measured.groups is not None
    order = sorted(measured.per_class, key=lambda row: (-row.train_images if known else 0, row.label))
    heads = ['class', *(['group', 'training images'] if known else []), 'images here', 'accuracy (%)']
    heads += ['95 % interval', 'precision (%)', 'taken for it']
    note = (
        'Accuracy: of the images of a class, how many are recognised, with the interval (Wilson, 95 %) that few images '
        'leave it in. Precision: of the images that are taken for a class, how many are of it.'
    )
    return f'<p>{_prose(note)}</p>' + _table(
        heads, [_class_row(row, known) for row in order], words=2 if known else 1, kind='classes'
    )


def _class_row(row: ClassResult, known: bool) -> list[str]:
    group = f'<span class="group"{_tint(row.group)}>{_text(row.group)}</span>' if row.group else NOTHING
    width = 0.0 if math.isnan(row.accuracy) else row.accuracy
    bar = f'<span class="bar"{_tint(row.group, f";--part:{width:.1f}%")}></span>{_number(row.accuracy)}'
    interval = NOTHING
    if row.test_images:
        interval = '{:.0f} to {:.0f}'.format(*wilson_interval(row.correct, row.test_images))
    counts = [group, f'{row.train_images:,}'] if known else []
    return [
        _label(row.name), *counts, f'{row.test_images:,}', bar, interval, _number(row.precision), f'{row.predicted:,}'
    ]  # fmt: skip


def _accuracies(measured: Measured) -> dict[str, str]:
    return accuracy_labels([row.test_images for row in measured.per_class])


def _groups(measured: Measured) -> dict[str, str]:
    return {name: name for name in (measured.groups.groups if measured.groups else ())}


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1, kind: str = '') -> str:
    """A table of cells that are HTML already under heads that are text; the first `words` columns are no numbers."""
    lines = []
    for row in rows:
        cells = ''.join(f'<td{_class("word") if i < words else ""}>{cell}</td>' for i, cell in enumerate(row))
        lines.append(f'<tr>{cells}</tr>\n')
    return _scroll(f'<thead>{_head(heads, words)}</thead><tbody>{"".join(lines)}</tbody>', kind)


def _head(heads: Sequence[str], words: int = 1) -> str:
    cells = (f'<th scope="col"{_class("word") if i < words else ""}>{_text(head)}</th>' for i, head in enumerate(heads))
    return f'<tr>{"".join(cells)}</tr>'


def _scroll(table: str, kind: str = '') -> str:
    return f'<div class="scroll"><table{_class(kind) if kind else ""}>{table}</table></div>'


def _shade(percent: float) -> str:
    """A cell that is darker the higher its percentage is."""
    return f'<td style="background:rgb(0 114 178/{0.5 * percent / 100:.2f})">{_number(percent)} %</td>'


def _figure(picture: bytes, alt: str, caption: str = '') -> str:
    below = f'<figcaption>{_text(caption)}</figcaption>' if caption else ''
    return f'<figure><div class="scroll">{_image(picture, alt)}</div>{below}</figure>'


def _image(picture: bytes, alt: str) -> str:
    """An image inside the page; its size is in the header of a PNG."""
    width, height = struct.unpack('>II', picture[16:24])
    encoded = base64.b64encode(picture).decode('ascii')
    kind = _class('tiny') if max(width, height) <= TINY else ''  # enlarged, so let its pixels be seen
    return f'<img{kind} src="data:image/png;base64,{encoded}" alt="{_text(alt)}" width="{width}" height="{height}">'


def _tint(group: str, more: str = '') -> str:
    """A style attribute with the colour of a group."""
    return f' style="--tint:{GROUP_COLOURS.get(group, GREY)}{more}"'


def _class(name: str) -> str:
    return f' class="{name}"'


def _name(text: str) -> str:
    """A name from outside, whose direction of writing stays its own."""
    return f'<bdi>{_text(text)}</bdi>'


def _label(name: str) -> str:
    """The name of a class."""
    return _name(readable_label(name))


def _text(text: str) -> str:
    """Text for HTML, also between quotes; what cannot be shown or encoded is written as an escape."""
    return html.escape(printable(text))


def _prose(text: str) -> str:
    """Text whose percentages keep their sign on the same line."""
    return _text(text).replace(' %', f'{SPACE}%')


def _number(value: float | None) -> str:
    return NOTHING if value is None or math.isnan(value) else f'{value:.2f}'


def _percent(right: np.ndarray) -> float:
    return 100 * float(right.mean()) if len(right) else math.nan
