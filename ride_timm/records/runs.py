"""The results of a training run: made when it ends, and read again, also where an earlier version wrote them."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ride_timm.errors import RideError
from ride_timm.escaping import from_csv_cell
from ride_timm.records.fields import to_json
from ride_timm.records.kinds import RUN_SCHEMA
from ride_timm.records.results import SEED_RESULTS, Results
from ride_timm.records.schema import OBJECT, check_record, read_object
from ride_timm.records.upgrade import evaluated_on, threshold_choice

__all__ = ['data_name', 'join_stages', 'plain', 'read_per_class', 'read_run', 'run_results']

_MEASURED = ('accuracy', 'accuracy_low', 'accuracy_high', 'predicted', 'precision')


def run_results(
    folder: Path,
    args: Mapping[str, Any],
    facts: Mapping[str, Any],
    last: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
) -> Results:
    """The results of a run, without what is known of its network.

    Args:
        folder: The run's folder, for the time that its `summary.csv` tells.
        args: The run's arguments.
        facts: `method`, `evaluated_on`, `source`, `own_epochs`, `segments`, `environment` and `image_groups`; of a
            router's stage also `sweep` and `threshold`, `by_hand`, `rule_threshold` and `rule`, or `all_experts`.
        last: Results of the last epoch, routed in the router's stage.
        rows: The table of the classes, routed in the router's stage.

    Raises:
        RideError: The results of all experts are missing.
    """
    router = args['stage'] == 'router'
    environment = dict(facts.get('environment') or {})
    counts = [int(row['train_images']) for row in rows]
    groups: dict[str, list[int]] = {}
    for row in rows:
        if row['group']:
            groups.setdefault(row['group'], []).append(row['label'])
    stage = _stage(folder, args, facts, facts.get('train_images', sum(counts)))
    everything = _all_experts(facts) if router else dict(last)
    groups_found = facts.get('image_groups')
    content = {
        'format': 2,
        'architecture': str(args.get('model') or '').partition('.')[0],
        'recipe': stage['recipe'],
        'method': facts.get('method'),
        'data': {
            'name': data_name(args),
            'num_classes': len(rows),
            'train_images': sum(counts),
            'imbalance_factor': max(counts, default=0) / max(min(counts, default=0), 1),
            'test_images': int(last.get('num_images', sum(row['test_images'] for row in rows))),
            'evaluated_on': facts['evaluated_on'],
            'source': facts.get('source'),
            'dataset': args.get('dataset') or None,
        },
        'training': [stage],
        'choices': _choices(args, facts, stage, rows) if 'sweep' in facts else None,
        'test': {
            'all_experts': everything,
            'routed': dict(last) if router else None,
            'sweep': None,
            'groups': groups,
            'per_class': [{**row, **(dict.fromkeys(_MEASURED) if router else {})} for row in rows],
            'environment': environment,
            'image_groups': None if groups_found is None else to_json(groups_found),
        },
        'seeds': [{'seed': args.get('seed'), **{key: everything.get(key) for key in SEED_RESULTS}, 'published': True}],
    }
    return Results.from_json(plain(content), str(folder / 'results.json'))


def read_run(folder: Path) -> Results:
    """What a finished run wrote into its `results.json`.

    Raises:
        RideError: There is none, or it is of another program.
    """
    path = folder / 'results.json'
    if not folder.exists():
        raise RideError(f'There is no folder {folder}; name that of a finished run.')
    if not path.is_file():
        raise RideError(
            f'{folder} holds no results.json, which a training writes at its end; finish the run with --resume auto, '
            'or name the folder of another.'
        )
    content = read_object(path, RUN_SCHEMA, needed=('args', 'args.stage'))
    if 'format' in content:
        return Results.from_json(content, str(path))
    check_record(content, {'last': OBJECT}, str(path), needed=('last',))
    args, rule = content['args'], content.get('threshold_rule')
    command = str(args.get('command') or '')
    facts: dict[str, Any] = {
        **{key: content[key] for key in ('train_images', 'all_experts', 'sweep', 'held_out_images') if key in content},
        'method': args.get('loss'),
        'segments': content.get('segments') or (),
        'environment': content.get('environment'),
        'source': content.get('evaluated_on'),
        'evaluated_on': evaluated_on(content.get('evaluated_on')),
        'own_epochs': '--epochs' in command,
        'threshold': content.get('router_threshold'),
        **threshold_choice(rule, content.get('router_threshold')),
    }
    table = folder / 'per_class.csv'
    results = run_results(folder, args, facts, content['last'], read_per_class(table) if table.is_file() else ())
    kept: dict[str, Any] = {
        key: content.get(key) for key in ('last_epoch', 'last', 'best_on_evaluation_images', 'args')
    }
    return replace(results, **kept)


def join_stages(folder: Path) -> Results:
    """The results of a run, with the stages that it was initialised from, as far as these still lie where they lay.

    A router's stage measures all experts together only; where the stage before was evaluated on the same images, its
    results of each class and each expert are those of this network too.

    Raises:
        RideError: The run is not finished.
    """
    results = read_run(folder)
    seen, current = {folder.resolve()}, results
    before: Results | None = None
    while current.training[0].stage != 'experts' and current.training[0].init:
        place = Path(current.training[0].init).parent
        try:
            current = read_run(place)
        except RideError:
            break
        if current.architecture != results.architecture or place.resolve() in seen:
            break
        seen.add(place.resolve())
        before = before or current
        results = replace(results, training=(*current.training, *results.training))
    first = results.training[0]
    results = replace(
        results,
        method=results.method or current.method,
        recipe=first.recipe,
        choices=None if results.choices is None else replace(results.choices, training=results.training),
        seeds=tuple(replace(row, seed=first.seed) for row in results.seeds),
    )
    test = results.test
    if before is None or test.routed is None or not _same_images(before, results):
        return results
    joined = {**before.test.all_experts, **test.all_experts}
    return replace(results, test=replace(test, all_experts=joined, per_class=before.test.per_class))


def data_name(args: Mapping[str, Any]) -> str:
    """What to call the data of a run: the data set's name or the folder's."""
    name = (args.get('dataset') or '').rpartition('/')[2] or Path(args.get('data_dir') or 'data').resolve().name
    return f'{name}-LT' if args.get('imb_factor') else name


def read_per_class(path: Path) -> list[dict[str, Any]]:
    """Read a `per_class.csv`.

    Returns:
        A row a class: `label`, `name`, `group`, `train_images`, `test_images`, `accuracy` (percent, or None).

    Raises:
        RideError: It cannot be read.
    """
    try:
        with path.open(newline='', encoding='utf-8') as file:
            return [_class_row(row) for row in csv.DictReader(file)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RideError(f'{path} cannot be read ({error!r}); finish the run with --resume auto.') from error


def _class_row(row: Mapping[str, str]) -> dict[str, Any]:
    return {
        'label': int(row['label']),
        'name': from_csv_cell(row['name']),
        'group': row['group'],
        'train_images': int(row['train_images']),
        'test_images': int(row['test_images']),
        'accuracy': float(row['accuracy']) if row['accuracy'] else None,
    }


def _stage(folder: Path, args: Mapping[str, Any], facts: Mapping[str, Any], images: int) -> dict[str, Any]:
    environment = dict(facts.get('environment') or {})
    commit = environment.pop('commit', None)
    command, segments = args.get('command'), facts['segments']
    if len(segments) > 1:
        where = [str(segment['environment'].get('hardware')) for segment in segments]
        if len(set(where)) > 1:
            later = zip(segments[1:], where[1:], strict=True)
            parts = [where[0], *(f'from epoch {segment["epoch"] + 1} on {name}' for segment, name in later)]
            environment['hardware'] = '; '.join(parts)
        lines = []
        for segment in segments:
            lines += [f'# from epoch {segment["epoch"] + 1} on:'] if segment['epoch'] else []
            lines += [segment['command']] if segment['command'] else []
        command = '\n'.join(lines)
    return {
        'stage': args['stage'],
        'command': command,
        'recipe': args.get('recipe') or None,
        'seed': args.get('seed'),
        'epochs': args.get('epochs'),
        'own_epochs': facts.get('own_epochs', False),
        'images': images,
        'seconds': _seconds(folder, images),
        'amp': (args.get('amp_dtype') or 'float16') if args.get('amp') else None,
        'init': args.get('init') or (args.get('model') if args.get('pretrained') else None),
        'holdout': args.get('holdout') or None,
        'commit': commit,
        'environment': environment,
    }


def _choices(
    args: Mapping[str, Any], facts: Mapping[str, Any], stage: dict[str, Any], rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """How the threshold of a router was chosen on held-out images."""
    return {
        'held_out': {
            'fraction': args.get('holdout'),
            'images': facts.get('held_out_images', sum(row['test_images'] for row in rows)),
            'seed': args.get('holdout_seed', args.get('seed')),
        },
        'training': [stage],
        **{key: facts.get(key) for key in ('threshold', 'rule', 'rule_threshold', 'sweep')},
        'by_hand': facts.get('by_hand', False),
    }


def _all_experts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The results of all experts of a router's stage: of their own, or threshold 0 of the sweep, where all are used."""
    if facts.get('all_experts'):
        return dict(facts['all_experts'])
    row = next((row for row in facts.get('sweep') or () if row['threshold'] == 0.0), None)
    if row is None:
        raise RideError('The results.json of the router has no results of all experts; train it again.')
    left_out = ('threshold', 'mean_experts')
    return {key: value for key, value in row.items() if key not in left_out and not key.startswith('share_')}


def _same_images(before: Results, results: Results) -> bool:
    """Whether the stage before was evaluated on the same images, to the same accuracy."""
    own, other = results.test.all_experts['top1'], before.test.all_experts['top1']
    return before.data.source == results.data.source and math.isclose(own, other, abs_tol=1e-6)


def _seconds(folder: Path, images: int | None) -> float | None:
    """Time of all training steps, from the speeds in `summary.csv`, which outlast interruptions."""
    path = folder / 'summary.csv'
    if images is None or not path.is_file():
        return None
    try:
        with path.open(newline='', encoding='utf-8') as file:
            return sum(images / float(row['train_images_per_second']) for row in csv.DictReader(file))
    except (OSError, KeyError, TypeError, ValueError, ZeroDivisionError, csv.Error):  # cut short, or of another program
        return None


def plain(value: Any) -> Any:
    """What JSON can hold: lists for tuples, None for what is not a number."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
