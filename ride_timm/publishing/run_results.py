"""What a finished run measured itself, in the form of a published weight's `results.json`; nothing is measured anew.

A run that held training images out was evaluated on those, and `data.source` says so.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ride_timm.cards.results import FORMAT, SEED_FIGURES, check_results
from ride_timm.engine.measure import describe_network
from ride_timm.engine.provenance import base_model, hub_datasets, read_run, stage_record
from ride_timm.engine.results import read_per_class
from ride_timm.errors import RideError
from ride_timm.inference.load import TrainedNet
from ride_timm.records.schema import OBJECT, check_record

__all__ = ['run_results']


class _Run(NamedTuple):
    """A run: its folder and its `results.json`."""

    folder: Path
    run: Mapping[str, Any]


def run_results(folder: Path, trained: TrainedNet, *, name: str, data_name: str, num_bytes: int) -> dict[str, Any]:
    """Turn the files of a run into a `results.json` of format 1.

    Args:
        folder: The run's folder; the runs of earlier stages are read too where they still lie at `--init`.
        trained: The network, as `read_initial` gives it.
        name: What the weight is called, `<architecture>.<tag>`.
        data_name: What the data are called.
        num_bytes: Size of the file of tensors.

    Returns:
        The content. `data.source` says which images it was evaluated on. Figures that the run did not write down are
        None or absent: the accuracies of the classes with all experts, where only the routed ones are known.

    Raises:
        RideError: The run is not finished, or its files do not fit each other.
    """
    stages = _stages(folder)
    run = stages[-1].run
    check_record(run, {'last': OBJECT}, str(folder / 'results.json'), needed=('last',))
    counts = trained.class_counts or ()
    network = {**describe_network(trained.model, trained.model.pretrained_cfg['input_size']), 'bytes': num_bytes}
    test = _test(stages, network['gmacs'])
    everything = test['all_experts']
    training = [stage_record(stage.folder) for stage in stages]
    seed = training[0]['seed']
    results = {
        'format': FORMAT,
        'name': name,
        'architecture': trained.architecture,
        'recipe': training[0]['recipe'],
        'method': trained.about.get('loss'),
        'data': {
            'name': data_name,
            'num_classes': len(counts),
            'train_images': sum(counts),
            'imbalance_factor': max(counts) / max(min(counts), 1),
            'test_images': int(run['last'].get('num_images', sum(row['test_images'] for row in test['per_class']))),
            'source': run.get('evaluated_on'),
            'datasets': hub_datasets(stages[0].run['args']),
        },
        'base_model': base_model(stages[0].run['args']),
        'network': network,
        'training': training,
        'choices': _choices(run, training),
        'test': test,
        'seeds': [{'seed': seed, **{key: everything.get(key) for key in SEED_FIGURES}, 'published': True}],
    }
    check_results(results, str(folder))
    return results


def _stages(folder: Path) -> list[_Run]:
    """The run, after those of the earlier stages that it began with, as far as they still lie where they lay."""
    runs = [_Run(folder, read_run(folder))]
    while runs[0].run['args']['stage'] != 'experts' and runs[0].run['args'].get('init'):
        earlier = Path(runs[0].run['args']['init']).parent
        try:
            found = read_run(earlier)
        except RideError:
            break
        if found.get('model') != runs[0].run.get('model') or any(earlier.samefile(run.folder) for run in runs):
            break
        runs.insert(0, _Run(earlier, found))
    return runs


def _test(stages: list[_Run], gmacs: float) -> dict[str, Any]:
    folder, run = stages[-1]
    table = read_per_class(folder / 'per_class.csv')
    groups: dict[str, list[int]] = {}
    for row in table:
        if row['group']:
            groups.setdefault(row['group'], []).append(row['label'])
    everything, routed = dict(run['last']), None
    if run['args']['stage'] == 'router':
        everything, routed = _all_experts(run), dict(run['last'])
        table = [row | {'accuracy': None} for row in table]  # these are routed
        before = stages[-2] if len(stages) > 1 else None
        if before is not None and _same_images(before.run, run, everything['top1']):
            everything = dict(before.run['last']) | everything
            table = read_per_class(before.folder / 'per_class.csv')
    everything.setdefault('gmacs', gmacs)
    return {
        'all_experts': everything,
        'routed': routed,
        'sweep': None,
        'groups': groups,
        'per_class': table,
        'environment': run.get('environment') or {},
    }


def _all_experts(run: Mapping[str, Any]) -> dict[str, Any]:
    """All experts' figures in the run of a router: of their own, or threshold 0 of the sweep, where all are used."""
    if run.get('all_experts'):
        return dict(run['all_experts'])
    row = next((row for row in run.get('sweep') or () if row['threshold'] == 0.0), None)
    if row is None:
        raise RideError('The results.json of the router has no figures of all experts; train it again.')
    left_out = ('threshold', 'mean_experts')
    return {key: value for key, value in row.items() if key not in left_out and not key.startswith('share_')}


def _same_images(before: Mapping[str, Any], run: Mapping[str, Any], top1: float) -> bool:
    """Whether the run before was evaluated on the same images, to the same accuracy."""
    own = before['last'].get('top1')
    same = before.get('evaluated_on') == run.get('evaluated_on')
    return same and own is not None and math.isclose(own, top1, abs_tol=1e-6)


def _choices(run: Mapping[str, Any], training: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Where a router's threshold comes from, if the run chose it on held-out images."""
    if 'sweep' not in run:
        return None
    held_out = {
        'fraction': run['args'].get('holdout'),
        'images': run.get('held_out_images'),
        'seed': run['args'].get('holdout_seed', training[0]['seed']),
    }
    return {
        'held_out': held_out,
        'training': training,
        'threshold': run.get('router_threshold'),
        'rule': run.get('threshold_rule'),
        'sweep': run['sweep'],
    }
