"""`ride-timm card`: the model card of a published weight, written from its `results.json`; nothing is measured."""

import argparse
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ride_timm.cards.figures import routing_figure, tail_figure
from ride_timm.cards.markdown import count, escape, gmacs, percent, table
from ride_timm.cards.origin import began_with, held_out
from ride_timm.cards.results import (
    Results,
    accuracies,
    check_results,
    comparable,
    images_name,
    is_plain,
    read_json,
    read_results,
)
from ride_timm.cards.text import body_sections, summary
from ride_timm.cards.usage import checking_section, usage_section
from ride_timm.engine.files import write_whole
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.parser import Parser
from ride_timm.publishing.index import renew_entry

__all__ = ['build_parser', 'main', 'models_table', 'render_card', 'update_model_card', 'write_card']

FIGURES = ('tail.png', 'routing.png')
BEGIN, END = '<!-- models: begin -->', '<!-- models: end -->'


def render_card(
    results: Results,
    config: Mapping[str, Any],
    *,
    repo_id: str | None = None,
    others: Sequence[Results] = (),
    figures: Sequence[str] | None = None,
) -> str:
    """Write the model card of a weight.

    Args:
        results: Content of its `results.json`.
        config: Content of its `config.json`.
        repo_id: Repository on the Hub; its card loads the weights from there, others by their name.
        others: Content of the `results.json` of other weights; those of the same data are compared with.
        figures: Files of the figure along the tail and that over cost; those that `write_card` writes by default.

    Returns:
        The text of `README.md`, with the Hub's metadata at its head.

    Raises:
        RideError: A key of the results is missing, or `config` is of another network.
    """
    check_results(results)
    if config.get('architecture', results['architecture']) != results['architecture']:
        raise RideError(
            f'config.json is of {config["architecture"]} and results.json of {results["architecture"]}; '
            'write the folder again with `ride-timm export`.'
        )
    beside = comparable(results, others)
    sections = body_sections(results, config, _figures(results, others) if figures is None else figures)
    body = [
        summary(results, config),
        usage_section(results, config, repo_id),
        sections['results'],
        _comparison(results, beside),
        sections['routing'],
        sections['choices'],
        sections['training'],
        checking_section(results, repo_id),
        sections['limits'],
        sections['terms'],
    ]
    text = '\n\n'.join(part for part in body if part)
    return str(ModelCard(f'---\n{_metadata(results).to_yaml()}\n---\n\n{text}\n'))


def write_card(folder: str | Path, others: Sequence[Results] = (), *, repo_id: str | None = None) -> None:
    """Write `README.md` and its figures into the folder of a weight; that over cost if it has two points to compare.

    Args:
        folder: With `results.json` and `config.json`.
        others: As of `render_card`.
        repo_id: As of `render_card`.

    Raises:
        RideError: A file cannot be read or written, a key is missing, or matplotlib is not installed.
    """
    folder = Path(folder)
    results = read_results(folder)
    card = render_card(results, read_json(folder / 'config.json'), repo_id=repo_id, others=others)
    try:
        tail_figure(results, folder / FIGURES[0])
        if FIGURES[1] in _figures(results, others):
            routing_figure(results, folder / FIGURES[1], others)
        else:  # it would show one point
            (folder / FIGURES[1]).unlink(missing_ok=True)
        write_whole(folder / 'README.md', card)
    except OSError as error:
        raise RideError(f'{folder} cannot be written ({error}); make room or change its permissions.') from error


def models_table(all_results: Sequence[Results]) -> str:
    """The table of all weights, for the page beside the folder `weights/`.

    Args:
        all_results: Content of the `results.json` of each.

    Returns:
        A table in Markdown, sorted by data and name, plain networks first: accuracies in percent, GMACs of an image.

    Raises:
        RideError: A key of the results is missing.
    """
    if not all_results:
        return 'No weights are published yet.\n'
    for results in all_results:
        check_results(results, f'results.json of {results.get("name")}')
    ordered = sorted(all_results, key=lambda net: (net['data']['name'], not is_plain(net), net['name']))
    header = [
        'weights', 'data', 'overall', 'many', 'medium', 'few', 'ECE', 'GMACs', 'routed: overall', 'experts', 'GMACs',
        'parameters (M)', 'MB', 'epochs', 'seeds',
    ]  # fmt: skip
    return table(header, [_model_row(results) for results in ordered])


def update_model_card(path: str | Path, all_results: Sequence[Results]) -> None:
    """Replace the table of all weights in a page, between two marks that stay.

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
        raise RideError(f'{file} cannot be read ({error}); name the page with the table of all weights.') from error
    if before.count(BEGIN) != 1 or before.count(END) != 1 or before.index(BEGIN) > before.index(END):
        raise RideError(f'{file} must have one line {BEGIN} and after it one line {END}; put the table between them.')
    head, rest = before.split(BEGIN)
    tail = rest.split(END)[1]
    try:
        write_whole(file, f'{head}{BEGIN}\n\n{models_table(all_results)}\n\n{END}{tail}')
    except OSError as error:
        raise RideError(f'{file} cannot be written ({error}); make room or change its permissions.') from error


def build_parser() -> argparse.ArgumentParser:
    """The parser of `ride-timm card`."""
    parser = Parser(
        prog='ride-timm card',
        description='Write the cards of weights again from their results.json, with figures that compare those of the '
        'same data, and enter their hashes into the index beside them; nothing is measured.',
    )
    parser.add_argument('folders', nargs='+', metavar='DIR', help='folders that ride-timm export wrote')
    parser.add_argument(
        '--model-card', metavar='FILE', help='also renew the table in this page, which lies beside the folder weights/'
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Write cards from a command line.

    Args:
        argv: The arguments; None means those of the process.

    Returns:
        The exit status, 0.

    Raises:
        RideError: As `write_card` and `update_model_card`; nothing is written if a folder cannot be read.
    """
    args = build_parser().parse_args(argv)
    folders = [Path(folder) for folder in args.folders]
    everything = [read_results(folder) for folder in folders]
    names = [results['name'] for results in everything]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise RideError(f'Two of the folders hold {twice}; name each once.')
    for folder, results in zip(folders, everything, strict=True):
        write_card(folder, everything)
        listed = ', its hashes entered into the index' if renew_entry(folder.resolve()) else ''
        print(printable(f'{folder / "README.md"}: {results["name"]}{listed}'))
    if args.model_card:
        page = Path(args.model_card)
        update_model_card(page, everything)
        print(f'{page}: {len(everything)} weights')
    return 0


def _figures(results: Results, others: Sequence[Results]) -> tuple[str, ...]:
    several = results['test']['routed'] is not None or comparable(results, others)
    return FIGURES if several else FIGURES[:1]


def _metadata(results: Results) -> ModelCardData:
    """What the Hub reads: licence, library, task, tags, and the figures as its model index."""
    several = results['network']['num_experts'] > 1
    tags = ['timm', 'ride-timm', 'image-classification', 'long-tailed-recognition', 'class-imbalance']
    datasets = results['data'].get('datasets') or None
    return ModelCardData(
        license='apache-2.0',
        library_name='timm',
        pipeline_tag='image-classification',
        tags=tags + ['mixture-of-experts'] * several,
        datasets=datasets,
        metrics=['accuracy'],
        model_name=printable(results['name']),
        base_model=results.get('base_model'),
        eval_results=_eval_results(results, datasets[0] if datasets else _slug(results['data']['name'])),
    )


def _eval_results(results: Results, dataset: str) -> list[EvalResult]:
    test = results['test']
    experts = results['network']['num_experts']
    measured = [(f' (all {experts} experts)' if experts > 1 else '', test['all_experts'])]
    if test['routed'] is not None:
        measured.append((' (routed)', test['routed']))
    labels = {'overall': 'Accuracy', 'mean over classes': 'Balanced accuracy', 'over images': 'Accuracy over images'}
    metrics = {key: ('accuracy', labels[name]) for name, key in accuracies(results).items()}
    metrics |= {name: ('accuracy', f'Accuracy, {name} classes') for name in test['groups']}
    metrics['ece'] = ('expected_calibration_error', 'Expected calibration error')
    return [
        EvalResult(
            task_type='image-classification',
            task_name='Image classification',
            dataset_type=dataset,
            dataset_name=printable(results['data']['name']),
            dataset_split='test' if images_name(results) == 'test images' else 'held out',
            metric_type=kind,
            metric_name=f'{name}{how}',
            metric_value=round(figures[key], 2),
        )
        for how, figures in measured
        for key, (kind, name) in metrics.items()
        if figures.get(key) is not None
    ]


def _slug(name: str) -> str:
    """A name of data as an identifier of the Hub's form."""
    return re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-') or 'unnamed'


def _comparison(results: Results, others: Sequence[Results]) -> str:
    """A table of the other weights, which the figure shows as points."""
    if not others:
        return ''
    names, rows = accuracies(results), []
    for net in (results, *others):
        name = escape(net['name']) + (' (plain)' if is_plain(net) else '') + _part_seen(net)
        everything = net['test']['all_experts']
        cells = [percent(everything.get(key)) for key in (*names.values(), *results['test']['groups'], 'ece')]
        rows.append([f'**{name}**' if net is results else name, *cells, gmacs(net['network']['gmacs'])])
    header = ['all experts', *names, *map(escape, results['test']['groups']), 'ECE', 'GMACs']
    return '\n\n'.join(['### Beside other weights of the same data', table(header, rows)])


def _model_row(results: Results) -> list[str]:
    network, test = results['network'], results['test']
    everything, routed = test['all_experts'], test['routed'] or {}
    name = escape(results['name'])
    experts = routed.get('mean_experts')
    label, leading = next(iter(accuracies(results).items()))
    size, epochs = network['bytes'], results['training'][0]['epochs']
    return [
        f'[{name}](weights/{quote(results["name"])}/README.md)',
        escape(results['data']['name']) + _part_seen(results) + f' ({label})' * (label != 'overall'),
        *(percent(everything.get(key), 1) for key in (leading, 'many', 'medium', 'few', 'ece')),
        gmacs(network['gmacs']),
        percent(routed.get(leading), 1),
        '-' if experts is None else f'{experts:.2f}',
        gmacs(routed.get('gmacs')),
        f'{network["parameters"] / 1e6:.3f}',
        '-' if size is None else f'{size / 1e6:.1f}',
        '-' if epochs is None else count(epochs) + ' (fine-tuned)' * (began_with(results) is not None),
        _seeds(results),
    ]


def _part_seen(results: Results) -> str:
    """How much of the data it saw, where that is less than all."""
    seen, total = results['training'][0]['images'], results['data']['train_images']
    return f' ({100 * seen / total:.0f} % of the images)' if held_out(results) and seen not in (None, total) else ''


def _seeds(results: Results) -> str:
    """Number of seeds, and where there are several the leading accuracy's mean and standard deviation."""
    key = next(iter(accuracies(results).values()))
    values = [row[key] for row in results['seeds'] if row.get(key) is not None]
    if len(results['seeds']) == 1 or len(values) < len(results['seeds']):
        return count(len(results['seeds']))
    return f'{count(len(values))} ({statistics.mean(values):.1f} ± {statistics.stdev(values):.1f})'


if __name__ == '__main__':
    from ride_timm.cli import guarded

    sys.exit(guarded('card', main))
