"""Results of earlier versions in today's form: the one place that reads facts out of sentences and commands."""

import re
import shlex
from collections.abc import Mapping
from typing import Any

__all__ = ['evaluated_on', 'threshold_choice', 'upgrade_results', 'upgrade_stage']


def upgrade_results(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `results.json` of version 1 in the layout of version 2.

    Args:
        content: The entries, not checked yet; what is no object stays what it is.
    """
    new = {**content, 'format': 2}
    data, network, choices = (content.get(key) for key in ('data', 'network', 'choices'))
    if isinstance(data, Mapping):
        source = data.get('source')
        found = re.match(r'(torch/[\w.-]+) \(', source) if isinstance(source, str) else None
        new['data'] = {**data, 'evaluated_on': evaluated_on(source), 'dataset': found[1] if found else None}
    if isinstance(network, Mapping):
        new['network'] = {**network, 'multi_expert': network.get('gmacs_by_experts') is not None}
    if isinstance(content.get('training'), list):
        new['training'] = [upgrade_stage(stage) for stage in content['training']]
    if isinstance(choices, Mapping):
        rows = choices.get('training')
        stages = [upgrade_stage(stage) for stage in rows] if isinstance(rows, list) else rows
        given = {} if stages is None else {'training': stages}
        new['choices'] = {**choices, **given, **threshold_choice(choices.get('rule'), choices.get('threshold'))}
    new['results_only'] = bool(content.get('figures_only'))
    return new


def upgrade_stage(stage: Any) -> Any:
    """A stage of a training with the facts that only its command told."""
    command = stage.get('command') if isinstance(stage, Mapping) else None
    if not isinstance(command, str):
        return stage
    share = _option(command, '--holdout')
    return {
        **stage,
        'init': _option(command, '--init'),
        'holdout': float(share) if re.fullmatch(r'0?\.\d+', share or '') and share else None,
        'own_epochs': _option(command, '--epochs') is not None,
    }


def evaluated_on(source: Any) -> str:
    """Which images the results are of, from where they were."""
    ends = {'held out': 'held_out', 'set apart': 'val_fraction'}
    return next((kind for end, kind in ends.items() if isinstance(source, str) and source.endswith(end)), 'test')


def threshold_choice(rule: Any, threshold: Any) -> dict[str, Any]:
    """Whether a threshold was given by hand, from the rule in words."""
    by_hand = re.fullmatch(r'--router-threshold \(([\d.]+) has the (.*)\)', rule) if isinstance(rule, str) else None
    if by_hand is None:
        return {'rule': rule, 'rule_threshold': None if rule is None else threshold, 'by_hand': False}
    return {'rule': by_hand[2], 'rule_threshold': float(by_hand[1]), 'by_hand': True}


def _option(command: str, name: str) -> str | None:
    """What a command gives an option, None where it does not name it."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:  # a quote that is not closed
        words = command.split()
    for place, word in enumerate(words):
        if word == name:
            return ''.join(words[place + 1 : place + 2]) or None
        if word.startswith(f'{name}='):
            return word.removeprefix(f'{name}=')
    return None
