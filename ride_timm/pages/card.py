"""The model card of a published network, written from its `results.json`; nothing is measured."""

import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ride_timm.data.descriptions import readable_label
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.evaluation.metrics import accuracy_interval
from ride_timm.files import write_whole
from ride_timm.losses import list_losses
from ride_timm.pages.figures import FEW_IMAGES, routing_figure, tail_figure
from ride_timm.pages.markdown import NONE, Markdown, code, count, duration, escape, fence, gmacs, percent, render, table
from ride_timm.records.certificate import Certificate
from ride_timm.records.fields import from_json
from ride_timm.records.kinds import CONFIG_SCHEMA
from ride_timm.records.results import ClassRow, Results, Stage, comparable, read_results
from ride_timm.records.schema import read_object

__all__ = ['FIGURES', 'models_table', 'render_card', 'update_model_card', 'write_card']

FIGURES = ('tail.png', 'routing.png')
BEGIN, END = '<!-- models: begin -->', '<!-- models: end -->'
_ALTS = {
    'tail.png': 'Accuracy of every class, sorted by its training images',
    'routing.png': 'Accuracy over GMACs per image',
}
_METHODS = {
    'balanced_softmax': 'balanced softmax',
    'balpoe': Markdown('the BalPoE loss ([arXiv:2206.05260](https://arxiv.org/abs/2206.05260))'),
    'ce': 'cross-entropy',
    'focal': 'the focal loss',
    'ldam': 'the LDAM loss',
    'logit_adjusted': 'logit-adjusted cross-entropy',
    'ride': 'the RIDE loss',
    'sade': Markdown('the SADE loss ([arXiv:2107.09249](https://arxiv.org/abs/2107.09249))'),
}
_PAPERS = {
    'ride': 'wang2020ride', 'balpoe': 'aimar2022balpoe', 'sade': 'zhang2021sade', 'balanced_softmax': 'ren2020balanced',
    'focal': 'lin2017focal', 'ldam': 'cao2019ldam', 'logit_adjusted': 'menon2020longtail',
}  # fmt: skip
WORST_SHOWN = 5
SWEEP_SHOWN = 8
_VERSIONS = ('hardware', 'ride_timm', 'torch', 'torchvision', 'timm', 'python')


def render_card(
    results: Results,
    config: Mapping[str, Any],
    *,
    repo_id: str | None = None,
    others: Sequence[Results] = (),
    figures: Sequence[str] | None = None,
) -> str:
    """Write a model card.

    Args:
        results: Of the network.
        config: Content of its `config.json`.
        repo_id: Repository on the Hub; its card loads the checkpoint from there, others by their name.
        others: Results of other networks; those on the same images are compared with.
        figures: File names of the figures; those that `write_card` writes by default.

    Returns:
        The text of `README.md`, with the Hub's metadata at its head.

    Raises:
        RideError: `config` is of another network.
    """
    if config.get('architecture', results.architecture) != results.architecture:
        raise RideError(
            f'config.json is of {config["architecture"]} and results.json of {results.architecture}; '
            'write the folder again with `ride-timm package`.'
        )
    network, test = results.net, results.test
    name = results.name or results.architecture
    source = f'hf-hub:{repo_id}' if repo_id else name if network.multi_expert else f'local-dir:{name}'
    check = f'ride-timm validate --model {shlex.quote(source)} --pretrained --data-dir DIR'
    if results.data.dataset:
        check += f' --dataset {shlex.quote(results.data.dataset)}'
    beside, worst = comparable(results, others), _worst(results)
    papers = dict.fromkeys(['ride'] * network.multi_expert + [results.method or ''])
    text = render(
        'card.md.j2',
        r=results, cfg=_config(config), source=repr(source), quoted=shlex.quote(source), repo_id=repo_id,
        named=bool(config.get('label_names')), check=check,
        where=Markdown(
            "`DIR` is torchvision's folder for the data (`--dataset-download` fetches it)"
            if (results.data.dataset or '').startswith('torch/')
            else '`DIR` is the folder that holds the test images in `val/`, one folder per class'
        ),
        method=_method(results, config), loss=results.method if results.method in list_losses() else 'ride',
        adjustment=_ride(config).get('logit_adjustment'), certificate=_certificate(config, results),
        leading=_leading(results), accuracies=results.accuracies,
        counts=[row.train_images for row in test.per_class], seen=_seen(results), part=_part(results),
        results_table=_results_table(results), group_texts=_group_texts(results),
        images_a_class=_range([row.test_images for row in test.per_class if row.test_images]),
        seeds_table=_seeds_table(results) if len(results.seeds) > 1 else '',
        figures=_figures(results, others) if figures is None else figures, alts=_ALTS,
        others=beside, comparison=_comparison(results, beside), sweep_table=_sweep_table(results),
        recipes=_joined(code(name) for name in dict.fromkeys(stage.recipe for stage in results.training) if name),
        own_epochs=_joined(
            f'`--epochs {stage.epochs}` ({escape(stage.stage)})'
            for stage in results.training if stage.recipe and stage.own_epochs and stage.epochs is not None
        ),
        held_out_facts=_held_out_facts(results), training_table=_training_table(results), commands=_commands,
        worst=worst, worst_table=_worst_table(worst), intervals=any(map(_interval, worst)),
        tiny=re.search(r'tiny[-_ ]?imagenet', results.data.name.lower()) is not None,
        papers=[_paper(_PAPERS[method]) for method in papers if method in _PAPERS],
    )  # fmt: skip
    return str(ModelCard(f'---\n{_metadata(results).to_yaml()}\n---\n\n{text}'))


def write_card(folder: str | Path, others: Sequence[Results] = ()) -> None:
    """Write `README.md` and its figures into the folder of a network; that over cost if it has two points to compare.

    Args:
        folder: With `results.json` and `config.json`.
        others: As of `render_card`.

    Raises:
        RideError: A file cannot be read or written, or matplotlib is not installed.
    """
    folder = Path(folder)
    results = read_results(folder)
    config = read_object(folder / 'config.json', CONFIG_SCHEMA)
    card = render_card(results, config, others=others)
    try:
        tail_figure(results, folder / FIGURES[0])
        if FIGURES[1] in _figures(results, others):
            routing_figure(results, folder / FIGURES[1], others)
        else:  # it would show one point
            (folder / FIGURES[1]).unlink(missing_ok=True)
        write_whole(folder / 'README.md', card)
    except OSError as error:
        raise RideError(f'{folder} cannot be written ({error}); free disk space or change its permissions.') from error


def models_table(all_results: Sequence[Results]) -> str:
    """The table of all published networks, for the page next to the folder `weights/`.

    Returns:
        A table in Markdown, sorted by data and name, plain networks first: accuracies in percent, GMACs per image.
    """
    if not all_results:
        return 'No checkpoints are published yet.\n'
    ordered = sorted(all_results, key=lambda net: (net.data.name, not net.is_plain, str(net.name)))
    header = [
        'checkpoint', 'data', 'overall', 'many', 'medium', 'few', 'ECE', 'GMACs', 'routed: overall', 'experts', 'GMACs',
        'parameters (M)', 'MB', 'epochs', 'seeds',
    ]  # fmt: skip
    return table(header, [_model_row(results) for results in ordered])


def update_model_card(path: str | Path, all_results: Sequence[Results]) -> None:
    """Replace the table of all published networks in a page, between two marks that stay.

    Args:
        path: The page, such as `MODEL_CARD.md`.
        all_results: As of `models_table`.

    Raises:
        RideError: The page cannot be read or written, or lacks the marks.
    """
    file = Path(path)
    try:
        with file.open(encoding='utf-8', newline='') as stream:
            before = stream.read()
    except (OSError, UnicodeDecodeError) as error:
        raise RideError(f'{file} cannot be read ({error}); name the page with the table of all networks.') from error
    if before.count(BEGIN) != 1 or before.count(END) != 1 or before.index(BEGIN) > before.index(END):
        raise RideError(f'{file} must have one line {BEGIN} and after it one line {END}; put the table between them.')
    head, rest = before.split(BEGIN)
    tail = rest.split(END)[1]
    try:
        write_whole(file, f'{head}{BEGIN}\n\n{models_table(all_results)}\n\n{END}{tail}')
    except OSError as error:
        raise RideError(f'{file} cannot be written ({error}); free disk space or change its permissions.') from error


def _figures(results: Results, others: Sequence[Results]) -> tuple[str, ...]:
    several = results.test.routed is not None or comparable(results, others)
    return FIGURES if several else FIGURES[:1]


def _ride(config: Mapping[str, Any]) -> Mapping[str, Any]:
    ride: Mapping[str, Any] = config.get('ride') or {}
    return ride


def _certificate(config: Mapping[str, Any], results: Results) -> Certificate | None:
    """What was certified of the threshold that the results are of."""
    known, routed = _ride(config).get('certificate'), results.test.routed
    if known is None or routed is None:
        return None
    certificate = from_json(Certificate, known, 'config.json', 'ride.certificate.')
    return certificate if certificate.threshold == routed.get('threshold') else None


def _config(config: Mapping[str, Any]) -> dict[str, Any]:
    return {'mean': None, 'std': None, **(config.get('pretrained_cfg') or {})}


def _method(results: Results, config: Mapping[str, Any]) -> Markdown:
    name = escape(_METHODS.get(results.method or '', results.method or 'an unnamed loss'))
    tau = _ride(config).get('tau')
    if not isinstance(tau, list) or not tau:
        return name
    return Markdown(f'{name}, tau = ({", ".join(f"{value:g}" for value in tau)})')


def _joined(texts: Iterable[str]) -> Markdown:
    return Markdown(' and '.join(texts))


def _leading(results: Results) -> str:
    """Key of the accuracy that leads."""
    return next(iter(results.accuracies.values()))


def _seen(results: Results) -> str:
    total, seen = results.data.train_images, results.training[0].images
    return count(total) if seen in (None, total) else f'{count(seen)} of the {count(total)}'


def _part(results: Results) -> str:
    """How many of the training images the published experts saw."""
    seen, total = results.training[0].images, results.data.train_images
    return f'the number is not recorded; there are {count(total)}' if seen is None else (
        f'{count(seen)} of {count(total)}' if seen != total else count(seen)
    )  # fmt: skip


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts, default=0), max(counts, default=0)
    return count(low) if low == high else f'{count(low)} to {count(high)}'


def _group_texts(results: Results) -> list[str]:
    counts = {row.label: row.train_images for row in results.test.per_class}
    texts = []
    for name, members in results.test.groups.items():
        own = [counts[label] for label in members]
        between = f' with {_range(own)} training images' if own else ''
        texts.append(f'{name}, {len(own)} {"class" if len(own) == 1 else "classes"}{between}')
    return texts


def _results_table(results: Results) -> Markdown:
    """All experts, routed, and each expert alone."""
    network, test = results.net, results.test
    several = network.num_experts > 1
    rows: list[tuple[str, Mapping[str, Any]]] = [
        (
            f'all {network.num_experts} experts' if several else 'the network',
            {**test.all_experts, 'gmacs': network.gmacs},
        )
    ]
    if test.routed is not None:
        rows.append((f'routed, threshold {test.routed["threshold"]:g}', test.routed))
    first = network.gmacs_by_experts[0] if network.gmacs_by_experts else None
    for expert in range(network.num_experts if several else 0):
        alone = test.all_experts.get(f'expert{expert}_top1')
        if alone is not None:
            rows.append((f'expert {expert} alone', {'top1': alone, 'gmacs': first}))
    names, groups = results.accuracies, list(test.groups)
    columns = {
        **names, **({'macro F1': 'macro_f1'} if len(names) > 1 else {}), **{group: group for group in groups},
        'worst class': 'worst_class', 'ECE': 'ece',
    }  # fmt: skip
    cells = [[name, *(percent(row.get(key)) for key in columns.values()), gmacs(row['gmacs'])] for name, row in rows]
    return table([results.data.name, *columns, 'GMACs'], cells)


def _seeds_table(results: Results) -> Markdown:
    """The results of every seed with mean and standard deviation."""
    groups, names = list(results.test.groups), results.accuracies
    keys = [*names.values(), *groups]
    rows = []
    for row in results.seeds:
        seed = NONE if row.seed is None else row.seed
        mark = ', published' if row.published else ''
        rows.append([f'seed {seed}{mark}', *(percent(getattr(row, key, None)) for key in keys)])
    spread = []
    for key in keys:
        values = [value for row in results.seeds if (value := getattr(row, key, None)) is not None]
        known = len(values) == len(results.seeds)
        spread.append(f'{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}' if known else NONE)
    rows.append([f'mean ± standard deviation, {len(results.seeds)} seeds', *spread])
    experts = results.net.num_experts
    return table([f'all {experts} experts' if experts > 1 else 'seeds', *names, *groups], rows)


def _comparison(results: Results, others: Sequence[Results]) -> Markdown:
    names, groups, rows = results.accuracies, list(results.test.groups), []
    for net in (results, *others):
        name = Markdown(escape(net.name) + (' (plain)' if net.is_plain else '') + _part_seen(net))
        own = Markdown(f'**{name}**') if net is results else name
        cells = [percent(net.test.all_experts.get(key)) for key in (*names.values(), *groups, 'ece')]
        rows.append([own, *cells, gmacs(net.net.gmacs)])
    return table(['all experts', *names, *groups, 'ECE', 'GMACs'], rows)


def _sweep_table(results: Results) -> Markdown:
    """A selection of the thresholds: the ends, the default, and between them steps in cost that can be told apart."""
    routed = results.test.routed
    if not results.test.sweep or routed is None:
        return Markdown()
    rows = sorted(results.test.sweep, key=lambda row: row['threshold'])
    step = (max(row['gmacs'] for row in rows) - min(row['gmacs'] for row in rows)) / SWEEP_SHOWN
    shown: list[Mapping[str, float]] = []
    for row in rows:
        far = not shown or abs(shown[-1]['gmacs'] - row['gmacs']) >= step
        if far or row is rows[-1] or row['threshold'] == routed['threshold']:
            shown.append(row)
    groups, names = list(results.test.groups), results.accuracies
    cells = [
        [
            f'{row["threshold"]:g}' + (' (default)' if row['threshold'] == routed['threshold'] else ''),
            *(percent(row.get(key)) for key in (*names.values(), *groups)),
            f'{row["mean_experts"]:.2f}', gmacs(row['gmacs']),
        ]
        for row in shown
    ]  # fmt: skip
    return table(['threshold', *names, *groups, 'experts', 'GMACs'], cells)


def _held_out_facts(results: Results) -> str:
    if results.choices is None:
        return ''
    held = results.choices.held_out
    known = [] if held.fraction is None else [f'{100 * held.fraction:g} %']
    known += [] if held.seed is None else [f'seed {held.seed}']
    return f' ({", ".join(known)})' if known else ''


def _training_table(results: Results) -> Markdown:
    """Seeds, time, versions and hardware of each stage and of the measurement."""
    measured = results.test.environment or {}
    stages = results.training
    rows: list[list[object]] = [
        ['seed', *(NONE if stage.seed is None else stage.seed for stage in stages), NONE],
        ['epochs', *(count(stage.epochs) for stage in stages), NONE],
        ['training images', *(count(stage.images) for stage in stages), NONE],
        ['time of the training steps', *(duration(stage.seconds) for stage in stages), NONE],
        ['mixed precision', *(stage.amp or NONE for stage in stages), NONE],
    ]
    environments = [*((stage.environment or {}) for stage in stages), measured]
    for key in _VERSIONS:
        rows.append(
            [key.replace('_', '-'), *(NONE if about.get(key) is None else about[key] for about in environments)]
        )
    commits = [*(stage.commit for stage in stages), measured.get('commit')]
    rows.append(['commit', *(NONE if commit is None else code(str(commit)) for commit in commits)])
    return table(['', *(stage.stage for stage in stages), 'test'], rows, numbers=False)


def _commands(stages: Sequence[Stage]) -> Markdown:
    commands = [stage.command for stage in stages if stage.command]
    return fence('\n'.join(commands), 'bash') if commands else Markdown()


def _worst(results: Results) -> list[ClassRow]:
    missed = [row for row in results.test.per_class if row.accuracy is not None and row.accuracy < 100]
    return sorted(missed, key=lambda row: (row.accuracy or 0.0, row.label))[:WORST_SHOWN]


def _worst_table(worst: Sequence[ClassRow]) -> Markdown:
    known = any(row.predicted is not None for row in worst)
    rows = [
        [
            readable_label(row.name), count(row.train_images), count(row.test_images),
            percent(row.accuracy, 1) + _interval(row), *([percent(row.precision, 1)] if known else []),
        ]
        for row in worst
    ]  # fmt: skip
    return table(
        ['class', 'training images', 'measured on', 'accuracy (%)', *(['precision (%)'] if known else [])], rows
    )


def _interval(row: ClassRow) -> str:
    """The interval of a class's accuracy behind it, where few images make it wide."""
    ends = accuracy_interval(row.accuracy, row.test_images) if row.test_images < FEW_IMAGES else None
    return '' if ends is None else ' ({:.0f} to {:.0f})'.format(*ends)


def _paper(key: str) -> str:
    """The BibTeX entry of a paper."""
    entries = (files('ride_timm') / 'pages' / 'templates' / 'papers.bib').read_text(encoding='utf-8').strip()
    return next(entry for entry in entries.split('\n\n') if entry.startswith(f'@misc{{{key},'))


def _metadata(results: Results) -> ModelCardData:
    """What the Hub reads: licence, library, task, tags, and the results as its model index."""
    tags = ['timm', 'ride-timm', 'image-classification', 'long-tailed-recognition', 'class-imbalance']
    datasets = list(results.data.datasets or ()) or None
    return ModelCardData(
        license='apache-2.0',
        library_name='timm',
        pipeline_tag='image-classification',
        tags=tags + ['mixture-of-experts'] * (results.net.num_experts > 1),
        datasets=datasets,
        metrics=['accuracy'],
        model_name=printable(results.name or results.architecture),
        base_model=results.base_model,
        eval_results=_eval_results(results, datasets[0] if datasets else _slug(results.data.name)),
    )


def _eval_results(results: Results, dataset: str) -> list[EvalResult]:
    test, experts = results.test, results.net.num_experts
    measured = [(f' (all {experts} experts)' if experts > 1 else '', test.all_experts)]
    if test.routed is not None:
        measured.append((' (routed)', test.routed))
    labels = {'overall': 'Accuracy', 'mean over classes': 'Balanced accuracy', 'over images': 'Accuracy over images'}
    metrics = {key: ('accuracy', labels[name]) for name, key in results.accuracies.items()}
    metrics |= {name: ('accuracy', f'Accuracy, {name} classes') for name in test.groups}
    metrics['ece'] = ('expected_calibration_error', 'Expected calibration error')
    return [
        EvalResult(
            task_type='image-classification',
            task_name='Image classification',
            dataset_type=dataset,
            dataset_name=printable(results.data.name),
            dataset_split='test' if results.data.evaluated_on == 'test' else 'held out',
            metric_type=kind,
            metric_name=f'{name}{how}',
            metric_value=round(values[key], 2),
        )
        for how, values in measured
        for key, (kind, name) in metrics.items()
        if values.get(key) is not None
    ]


def _slug(name: str) -> str:
    """A name of data as an identifier of the Hub's form."""
    return re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-') or 'unnamed'


def _model_row(results: Results) -> list[object]:
    network, test, leading = results.net, results.test, _leading(results)
    routed: Mapping[str, float] = test.routed or {}
    experts, label, epochs = routed.get('mean_experts'), next(iter(results.accuracies)), results.training[0].epochs
    own = '' if results.training[0].init is None else ' (fine-tuned)'
    return [
        Markdown(f'[{escape(results.name)}](weights/{quote(results.name or "")}/README.md)'),
        results.data.name + _part_seen(results) + f' ({label})' * (label != 'overall'),
        *(percent(test.all_experts.get(key), 1) for key in (leading, 'many', 'medium', 'few', 'ece')),
        gmacs(network.gmacs),
        percent(routed.get(leading), 1),
        NONE if experts is None else f'{experts:.2f}',
        gmacs(routed.get('gmacs')),
        f'{network.parameters / 1e6:.3f}',
        NONE if network.bytes is None else f'{network.bytes / 1e6:.1f}',
        NONE if epochs is None else count(epochs) + own,
        _seeds(results),
    ]


def _part_seen(results: Results) -> str:
    """How much of the data it saw, where that is less than all."""
    seen, total = results.training[0].images, results.data.train_images
    return f' ({100 * seen / total:.0f} % of the images)' if seen is not None and seen != total else ''


def _seeds(results: Results) -> str:
    """Number of seeds, and where there are several the leading accuracy's mean and standard deviation."""
    key = _leading(results)
    values = [value for row in results.seeds if (value := getattr(row, key)) is not None]
    if len(results.seeds) == 1 or len(values) < len(results.seeds):
        return count(len(results.seeds))
    return f'{count(len(values))} ({statistics.mean(values):.1f} ± {statistics.stdev(values):.1f})'
