"""The sections of a model card on where the weights come from: seeds, choices, training."""

import re
import statistics
from collections.abc import Callable
from typing import Any

from ride_timm.cards.markdown import NONE, code, count, duration, escape, fence, percent, table
from ride_timm.cards.results import Results, accuracies, images_name

__all__ = ['began_with', 'choices_section', 'held_out', 'seeds_text', 'seen_images', 'training_section']

_STAGE_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    ('seed', 'seed', str),
    ('epochs', 'epochs', count),
    ('images', 'training images', count),
    ('seconds', 'time of the training steps', duration),
    ('amp', 'mixed precision', str),
)
_VERSIONS = ('hardware', 'ride_timm', 'torch', 'torchvision', 'timm', 'python')


def began_with(results: Results) -> str | None:
    """The trained weights that the first stage began with, as its `--init` names them; None if it began at random.

    Args:
        results: Content of `results.json`.
    """
    return _option(results['training'][0]['command'], '--init') or None


def held_out(results: Results) -> bool:
    """Whether the published experts saw a part of the training images only.

    Args:
        results: Content of `results.json`.
    """
    stage = results['training'][0]
    return _option(stage['command'], '--holdout') is not None or stage['images'] not in (
        None,
        results['data']['train_images'],
    )


def seen_images(results: Results) -> str:
    """How many of the training images the published experts saw, where some were held out.

    Args:
        results: Content of `results.json`.
    """
    seen, total = results['training'][0]['images'], results['data']['train_images']
    rest = 'the others were held out for choices to be made on'
    if seen is None:
        return 'a part was held out for choices to be made on'
    return f'{count(seen)} of {count(total)}; {rest}' if seen != total else f'{count(seen)}; {rest}'


def seeds_text(results: Results) -> str:
    """The figures of every seed with mean and standard deviation, or that there is one seed only.

    Args:
        results: Content of `results.json`.
    """
    groups = list(results['test']['groups'])
    names = accuracies(results)
    seeds, keys = results['seeds'], [*names.values(), *groups]
    if len(seeds) == 1:
        own = '' if seeds[0]['seed'] is None else f' ({seeds[0]["seed"]})'
        return f'One seed{own} was trained: how far the figures vary from seed to seed is not known.'
    rows = []
    for row in seeds:
        mark = ', published' if row.get('published') else ''
        seed = NONE if row['seed'] is None else row['seed']
        rows.append([f'seed {seed}{mark}', *(percent(row.get(key)) for key in keys)])
    spread = []
    for key in keys:
        values = [row[key] for row in seeds if row.get(key) is not None]
        known = len(values) == len(seeds)
        spread.append(f'{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}' if known else percent(None))
    rows.append([f'mean ± standard deviation, {len(seeds)} seeds', *spread])
    name = f'all {results["network"]["num_experts"]} experts' if results['network']['num_experts'] > 1 else 'seeds'
    return table([name, *names, *map(escape, groups)], rows)


def choices_section(results: Results) -> str:
    """How settings, weights and threshold were chosen, and on what.

    Args:
        results: Content of `results.json`.
    """
    points = ['The weights are those of the last epoch; no epoch was picked.']
    recipes = dict.fromkeys(stage['recipe'] for stage in results['training'] if stage.get('recipe'))
    if recipes:
        names = ' and '.join(code(name) for name in recipes)
        points.append(f'Settings: {names}, which `ride-timm recipes NAME` prints{_other_epochs(results)}.')
    if results['test']['routed'] is not None:
        points.append(_threshold(results))
    if images_name(results) == 'test images':
        points.append(
            'Nothing was chosen on the test images: every figure here is of one measurement of the finished network.'
        )
    else:
        points.append(
            'The figures are of training images that were held out, not of test images.'
            + ' The threshold was chosen on the same images, so those with routing may be a little too good.'
            * (results['choices'] is not None)
        )
    return '## How each choice was made\n\n' + '\n'.join(f'- {point}' for point in points)


def _other_epochs(results: Results) -> str:
    """That a stage was trained for another number of epochs than its recipe says, where its command says so."""
    stages = [stage for stage in results['training'] if stage.get('recipe') and stage['epochs'] is not None]
    changed = [
        f'`--epochs {stage["epochs"]}` ({stage["stage"]})'
        for stage in stages
        if _option(stage['command'], '--epochs') is not None
    ]
    return f', but for {" and ".join(changed)}' if changed else ''


def _option(command: str | None, name: str) -> str | None:
    """What a command gives an option, the first word of it; None where it does not name the option."""
    words = (command or '').split()
    for place, word in enumerate(words):
        if word == name:
            return ''.join(words[place + 1 : place + 2])
        if word.startswith(f'{name}='):
            return word.removeprefix(f'{name}=')
    return None


def _rule(text: str) -> str:
    """By which the threshold was chosen; where it was given by hand, what the rule would have taken."""
    by_hand = re.fullmatch(r'--router-threshold \((\S+) has the (.*)\)', text)
    if by_hand is None:
        return f' The rule: {escape(text)}.'
    return f' It was given by hand; the rule ({escape(by_hand[2])}) would have taken {escape(by_hand[1])}.'


def _threshold(results: Results) -> str:
    choices = results['choices']
    if choices is None:
        threshold = results['test']['routed']['threshold']
        return f"The router's threshold is {threshold:g}; there is no record of how it was chosen."
    held = choices['held_out']
    known = [] if held['fraction'] is None else [f'{100 * held["fraction"]:g} %']
    known += [] if held.get('seed') is None else [f'seed {held["seed"]}']
    about = f' ({", ".join(known)})' if known else ''
    number = 'training images' if held['images'] is None else f'{count(held["images"])} training images'
    rule = _rule(choices['rule']) if choices.get('rule') else ''
    own = choices['training'] == results['training']
    who = 'this training' if own else 'a run of its own'
    after = '' if own or held_out(results) else ' Then it was frozen, and the network trained on all training images.'
    return (
        f"The router's threshold, {choices['threshold']:g}, was chosen on {number}{about} "
        f'that {who} held out, never on test images.{rule}{after}'
    )


def training_section(results: Results) -> str:
    """Seeds, time, versions and hardware of each stage and of the measurement, and the commands.

    Args:
        results: Content of `results.json`.
    """
    environment = results['test'].get('environment') or {}
    columns = [(stage['stage'], stage, stage.get('environment') or {}) for stage in results['training']]
    columns.append(('test', {'commit': environment.get('commit')}, environment))
    rows = []
    for key, title, show in _STAGE_ROWS:
        values = [stage.get(key) for _, stage, _ in columns]
        rows.append([title, *(NONE if value is None else escape(show(value)) for value in values)])
    for key in _VERSIONS:
        versions = [about.get(key) for _, _, about in columns]
        rows.append([key.replace('_', '-'), *(NONE if value is None else escape(str(value)) for value in versions)])
    commits = [stage.get('commit') for _, stage, _ in columns]
    rows.append(['commit', *(NONE if commit is None else code(commit) for commit in commits)])
    parts = ['## Training', table(['', *(escape(name) for name, _, _ in columns)], rows, numbers=False)]
    parts += _commands(results['training'])
    if results.get('note'):
        parts.append(escape(results['note']))
    if results['choices'] is not None and results['choices']['training'] != results['training']:
        parts += ['The run that chose the threshold:', *_commands(results['choices']['training'])]
    return '\n\n'.join(parts)


def _commands(stages: list[dict[str, Any]]) -> list[str]:
    commands = [stage['command'] for stage in stages if stage['command']]
    return [fence('\n'.join(commands), 'bash')] if commands else []
