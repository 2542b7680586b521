"""The sections of a model card that report: what the network is, its figures, its limits."""

from collections.abc import Mapping, Sequence
from typing import Any

from ride_timm.cards.markdown import code, count, escape, fence, gmacs, percent, table
from ride_timm.cards.notes import data_limits, data_terms
from ride_timm.cards.origin import began_with, choices_section, held_out, seeds_text, seen_images, training_section
from ride_timm.cards.results import Results, accuracies, images_name, is_plain, is_registered, range_of_images
from ride_timm.data.descriptions import readable_label
from ride_timm.metrics import wilson_interval

__all__ = ['body_sections', 'result_rows', 'summary']

_RIDE = '[arXiv:2010.01809](https://arxiv.org/abs/2010.01809)'
_METHODS = {
    'balanced_softmax': 'balanced softmax',
    'balpoe': 'the BalPoE loss ([arXiv:2206.05260](https://arxiv.org/abs/2206.05260))',
    'ce': 'cross-entropy',
    'focal': 'the focal loss',
    'ldam': 'the LDAM loss',
    'logit_adjusted': 'logit-adjusted cross-entropy',
    'ride': 'the RIDE loss',
    'sade': 'the SADE loss ([arXiv:2107.09249](https://arxiv.org/abs/2107.09249))',
}
_PAPERS = {
    'ride': (
        'wang2020ride', 'Long-tailed Recognition by Routing Diverse Distribution-Aware Experts',
        'Xudong Wang and Long Lian and Zhongqi Miao and Ziwei Liu and Stella X. Yu', 2020, '2010.01809',
    ),
    'balpoe': (
        'aimar2022balpoe', 'Balanced Product of Calibrated Experts for Long-Tailed Recognition',
        'Emanuel Sanchez Aimar and Arvi Jonnarth and Michael Felsberg and Marco Kuhlmann', 2022, '2206.05260',
    ),
    'sade': (
        'zhang2021sade', 'Self-Supervised Aggregation of Diverse Experts for Test-Agnostic Long-Tailed Recognition',
        'Yifan Zhang and Bryan Hooi and Lanqing Hong and Jiashi Feng', 2021, '2107.09249',
    ),
    'balanced_softmax': (
        'ren2020balanced', 'Balanced Meta-Softmax for Long-Tailed Visual Recognition',
        'Jiawei Ren and Cunjun Yu and Shunan Sheng and Xiao Ma and Haiyu Zhao and Shuai Yi and Hongsheng Li',
        2020, '2007.10740',
    ),
    'focal': (
        'lin2017focal', 'Focal Loss for Dense Object Detection',
        'Tsung-Yi Lin and Priya Goyal and Ross Girshick and Kaiming He and Piotr Dollár', 2017, '1708.02002',
    ),
    'ldam': (
        'cao2019ldam', 'Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss',
        'Kaidi Cao and Colin Wei and Adrien Gaidon and Nikos Arechiga and Tengyu Ma', 2019, '1906.07413',
    ),
    'logit_adjusted': (
        'menon2020longtail', 'Long-tail learning via logit adjustment',
        'Aditya Krishna Menon and Sadeep Jayasumana and Ankit Singh Rawat and Himanshu Jain and Andreas Veit and '
        'Sanjiv Kumar', 2020, '2007.07314',
    ),
}  # fmt: skip
_ALTS = {
    'tail.png': 'Accuracy of every class, sorted by its training images',
    'routing.png': 'Accuracy over GMACs of an image',
}
WORST_SHOWN = 5
SWEEP_SHOWN = 8
FEW_IMAGES = 30
"""Test images of a class; with fewer its accuracy stands with an interval."""


def summary(results: Results, config: Mapping[str, Any]) -> str:
    """Two sentences on what it is, a warning where it saw only a part of the data, and its size.

    Args:
        results: Content of `results.json`.
        config: Content of `config.json`.
    """
    data, network, test = results['data'], results['network'], results['test']
    experts, everything, routed = network['num_experts'], test['all_experts'], test['routed']
    counts = [row['train_images'] for row in test['per_class']]
    learnt = (
        f'{_kind(results)}, trained with {_method(results, config)} on {escape(data["name"])}: '
        f'{_amount(results)} images of {data["num_classes"]} classes, {count(max(counts))} of the most frequent class '
        f'and {count(min(counts))} of the rarest.'
    )
    who = 'Together the experts recognise' if experts > 1 else 'It recognises'
    first, *more = accuracies(results).values()
    whole = f'the {count(data["test_images"])} {images_name(results)}'
    of = f' of {whole}' if first == 'top1' else ' in the mean over classes'
    reached = f'{who} {percent(everything[first], 1)} %{of}'
    reached += ''.join(f' ({percent(everything[key], 1)} % of {whole})' for key in more)
    reached += f' at {gmacs(network["gmacs"])} GMACs an image'
    if routed is not None:
        mean = '' if first == 'top1' else of
        reached += (
            f'; routed, they recognise {percent(routed[first], 1)} %{mean} at {gmacs(routed["gmacs"])} GMACs, with '
            f'{routed["mean_experts"]:.2f} experts on average'
        )
    parts = [f'# Model card for {escape(results["name"])}', f'{learnt} {reached}.']
    adjustment = config.get('ride', {}).get('logit_adjustment')
    if adjustment:
        parts.append(
            f'**A logit adjustment of {adjustment:g} is in its heads**: after the training, {adjustment:g} times the '
            'log of the class frequencies was taken out of the logits (arXiv:2007.07314), for a better tail. '
            '`ride-timm validate --logit-adjustment 0`, as `predict` and `demo`, shows it without.'
        )
    initial = began_with(results)
    if initial is not None:
        parts.append(
            f'**It began with trained weights**, {code(initial)}: their training comes before what is told here.'
        )
    if held_out(results):
        parts.append(f'**It saw only a part of the training images**: {seen_images(results)}.')
    return '\n\n'.join([*parts, _network(results, config)])


def body_sections(results: Results, config: Mapping[str, Any], figures: Sequence[str]) -> dict[str, str]:
    """The reporting sections by name: `results`, `choices`, `routing` (empty without), `training`, `limits`, `terms`.

    Args:
        results: Content of `results.json`.
        config: Content of `config.json`.
        figures: Names of the files of the figures.
    """
    return {
        'results': _results(results, figures),
        'choices': choices_section(results),
        'routing': _routing(results),
        'training': training_section(results),
        'limits': _limits(results),
        'terms': _terms(results),
    }


def result_rows(results: Results) -> list[tuple[str, dict[str, Any]]]:
    """What was measured on the test images: a name and the figures of all experts, routed, and each expert alone.

    Args:
        results: Content of `results.json`.

    Returns:
        Names and figures in percent, GMACs of an image; an expert alone has `top1` and `gmacs` only.
    """
    network, test = results['network'], results['test']
    everything, routed = test['all_experts'], test['routed']
    experts = network['num_experts']
    rows = [(f'all {experts} experts' if experts > 1 else 'the network', {**everything, 'gmacs': network['gmacs']})]
    if routed is not None:
        rows.append((f'routed, threshold {routed["threshold"]:g}', routed))
    alone = sorted(key for key in everything if key.startswith('expert') and key.endswith('_top1'))
    costs = network['gmacs_by_experts']
    for key in alone if experts > 1 else ():
        name = f'expert {key.removeprefix("expert").removesuffix("_top1")} alone'
        rows.append((name, {'top1': everything[key], 'gmacs': costs[0] if costs else None}))
    return rows


def _kind(results: Results) -> str:
    experts = results['network']['num_experts']
    if experts > 1:
        return f'A timm network of {experts} experts on one shared trunk (RIDE, {_RIDE})'
    return 'A plain timm network, the baseline of the others' if is_plain(results) else 'A timm network'


def _amount(results: Results) -> str:
    total, seen = results['data']['train_images'], results['training'][0]['images']
    return count(total) if seen in (None, total) else f'{count(seen)} of the {count(total)}'


def _method(results: Results, config: Mapping[str, Any]) -> str:
    method = results['method']
    name = _METHODS.get(method) or (escape(method) if method else 'an unnamed loss')
    tau = config.get('ride', {}).get('tau')
    return f'{name}, tau = ({", ".join(f"{value:g}" for value in tau)})' if _is_list_of_numbers(tau) else name


def _is_list_of_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, (int, float)) for item in value)


def _network(results: Results, config: Mapping[str, Any]) -> str:
    network = results['network']
    size = '' if network['bytes'] is None else f', {network["bytes"] / 1e6:.1f} MB'
    if size and network.get('dtype', 'float32') != 'float32':
        size += f' in {network["dtype"]} (normalisation, biases and router in float32)'
    parts = [f'{code(results["architecture"])}, {count(network["parameters"])} parameters{size}']
    if network['num_experts'] > 1:
        parts.append(f'{network["num_experts"]} experts' + (' and a router' if network['router'] else ', no router'))
    shape = 'x'.join(str(side) for side in network['input_size'])
    images = f'images of {shape}'
    for key in ('mean', 'std'):
        values = config.get('pretrained_cfg', {}).get(key)
        images += f', {key} {" ".join(f"{value:g}" for value in values)}' if values else ''
    return '; '.join([*parts, images]) + '.'


def _groups(results: Results) -> list[str]:
    return list(results['test']['groups'])


def _results(results: Results, figures: Sequence[str]) -> str:
    groups = _groups(results)
    names = accuracies(results)
    keys = [*names.values(), *groups, 'worst_class', 'ece']
    header = [
        escape(results['data']['name']), *names, *map(escape, groups), 'worst class', 'ECE', 'GMACs'
    ]  # fmt: skip
    rows = [
        [name, *(percent(figures_.get(key)) for key in keys), gmacs(figures_['gmacs'])]
        for name, figures_ in result_rows(results)
    ]
    parts = ['## Results', table(header, rows), _legend(results), seeds_text(results)]
    parts += [f'![{_ALTS.get(name, "Figure")}]({name})' for name in figures]
    return '\n\n'.join(parts)


def _legend(results: Results) -> str:
    counts = {row['label']: row['train_images'] for row in results['test']['per_class']}
    groups = []
    for name, members in results['test']['groups'].items():
        own = [counts[label] for label in members]
        between = f' with {_range(own)} training images' if own else ''
        groups.append(f'{escape(name)}, {len(own)} {"class" if len(own) == 1 else "classes"}{between}')
    text = (
        f'Accuracies in percent on {count(results["data"]["test_images"])} {images_name(results)}.'
        + (f' They are not balanced, {_range(range_of_images(results))} a class, so the mean over classes leads.')
        * (len(accuracies(results)) > 1)
        + (f' A group is the mean of its classes: {"; ".join(groups)}.' if groups else '')
        + ' ECE: expected calibration error over 15 bins, percent. GMACs: of an image, on average.'
    )
    without = results['test']['all_experts'].get('num_classes_without_images')
    return text + (f' Classes without test images, left out: {count(int(without))}.' if without else '')


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return count(low) if low == high else f'{count(low)} to {count(high)}'


def _routing(results: Results) -> str:
    """A selection of the thresholds: the ends, the default, and between them steps in cost that can be told apart."""
    if not results['test']['sweep']:
        return ''
    default = results['test']['routed']['threshold']
    rows = sorted(results['test']['sweep'], key=lambda row: row['threshold'])
    step = (max(row['gmacs'] for row in rows) - min(row['gmacs'] for row in rows)) / SWEEP_SHOWN
    shown: list[dict[str, Any]] = []
    for row in rows:
        far = not shown or abs(shown[-1]['gmacs'] - row['gmacs']) >= step
        if far or row is rows[-1] or row['threshold'] == default:
            shown.append(row)
    groups, names = _groups(results), accuracies(results)
    cells = [
        [
            f'{row["threshold"]:g}' + (' (default)' if row['threshold'] == default else ''),
            *(percent(row.get(key)) for key in (*names.values(), *groups)),
            f'{row["mean_experts"]:.2f}', gmacs(row['gmacs']),
        ]
        for row in shown
    ]  # fmt: skip
    text = (
        "An image goes on to the next expert while the router's probability is above the threshold: 0 means all "
        f'experts, 1 the first alone. Reported on the {images_name(results)}:'
    )
    header = ['threshold', *names, *map(escape, groups), 'experts', 'GMACs']
    return '\n\n'.join(['## Routing', text, table(header, cells)])


def _limits(results: Results) -> str:
    data = escape(results['data']['name'])
    tested = [row for row in results['test']['per_class'] if row['accuracy'] is not None]
    worst = sorted(tested, key=lambda row: (row['accuracy'], row['label']))[:WORST_SHOWN]
    rows = [
        [
            escape(readable_label(row['name'])), count(row['train_images']), count(row['test_images']),
            percent(row['accuracy'], 1) + _interval(row),
        ]
        for row in worst
    ]  # fmt: skip
    together = ', with all experts' if results['network']['num_experts'] > 1 else ''
    return '\n\n'.join(
        [
            '## Intended use and limits',
            'For research on long-tailed recognition, for comparison, and as a start for fine-tuning.',
            f'- Not for images unlike those of {data}: what it says of them means nothing.\n'
            '- It always names one of its classes, also where none is right.\n'
            '- Not for decisions about people.\n'
            '- Classes with few training images stay weak.'
            + (f' Those that it recognises worst{together}:' * bool(rows)),
            *([table(['class', 'training images', 'measured on', 'accuracy (%)'], rows)] if rows else []),
            *['In brackets: the 95 % interval (Wilson) of an accuracy on few images.'] * any(map(_interval, worst)),
            *filter(None, [data_limits(results)]),
        ]
    )


def _interval(row: Mapping[str, Any]) -> str:
    """The interval of a class's accuracy behind it, where few images make it wide."""
    images = row['test_images']
    if not 0 < images < FEW_IMAGES:
        return ''
    low, high = wilson_interval(round(row['accuracy'] * images / 100), images)
    return f' ({low:.0f} to {high:.0f})'


def _terms(results: Results) -> str:
    papers = dict.fromkeys([*['ride'] * is_registered(results), *[results['method']] * (results['method'] in _PAPERS)])
    entries = []
    for name in papers:
        key, title, authors, year, number = _PAPERS[name]
        entries.append(
            f'@misc{{{key},\n  title = {{{title}}},\n  author = {{{authors}}},\n  year = {{{year}}},\n'
            f'  eprint = {{{number}}},\n  archivePrefix = {{arXiv}}\n}}'
        )
    return '\n\n'.join(
        [
            '## Data and licence',
            f'The files of these weights are under the Apache-2.0 licence. {data_terms(results)}',
            *(['## Citation', fence('\n'.join(entries), 'bibtex')] if entries else []),
        ]
    )
