"""`results.json` and `config.json` of weights that nobody trained: realistic in form, deterministic, consistent.

    results = make_results()                                   # three experts with a router, CIFAR-100-LT
    results = make_results(router=False, method='balpoe')
    results = make_results(experts=1, method='ce')             # the plain net beside them
    folder = write_folder(tmp_path, results)                   # tmp_path/<name>/{results,config}.json

Each is what `Results.from_json` takes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

THRESHOLD = 0.65
GMACS = {1: [0.0689], 2: [0.0491, 0.0749], 3: [0.0491, 0.0748, 0.1004], 4: [0.0491, 0.0748, 0.1004, 0.1258]}
PARAMETERS = {1: 469_636, 2: 531_000, 3: 784_432, 4: 1_037_000}
TEST_IMAGES = 100  # of each class
RULE = 'fewest GMACs at most 0.3 points below all experts on held-out images, over images and over classes'
COMMIT = '0123456789abcdef0123456789abcdef01234567'


def make_results(
    *,
    router: bool = True,
    method: str = 'ride',
    experts: int = 3,
    classes: int = 100,
    largest: int = 500,
    factor: float = 100.0,
    name: str | None = None,
    class_names: Sequence[str] | None = None,
    seeds: int = 1,
    held_out: bool = False,
    level: float = 48.0,
) -> dict[str, Any]:
    """Content of the `results.json` of a weight.

    Args:
        router: Whether it has a router; a network of one expert never has.
        method: The experts' loss.
        experts: K.
        classes: C.
        largest: Training images of the first class.
        factor: Imbalance factor.
        name: By default after K and the method.
        class_names: C names.
        seeds: Number of trained seeds.
        held_out: Whether the published run itself held a tenth of the images out.
        level: Accuracy about which the classes lie, percent.
    """
    router = router and experts > 1
    counts = [int(largest * factor ** (-i / max(classes - 1, 1))) for i in range(classes)]
    architecture = f'ride_resnet32_{experts}e'
    gmacs = GMACS[experts]
    per_class = _classes(counts, class_names or [f'class_{i:02d}' for i in range(classes)], level)
    groups: dict[str, list[int]] = {}
    for row in per_class:
        groups.setdefault(row['group'], []).append(row['label'])
    sweep = _sweep(per_class, groups, gmacs) if router else None
    images = sum(counts) - sum(counts) // 10 if held_out else sum(counts)
    stages = [_stage('experts', method, experts, images, held_out)]
    if router:
        stages.append(_stage('router', method, experts, images, held_out))
    everything = {**_accuracies(per_class, groups), 'ece': 12.345, 'loss': 2.1, 'top5': 77.7, 'gmacs': gmacs[-1]}
    everything |= {f'expert{k}_top1': everything['top1'] - 2.5 - k / 4 for k in range(experts)} if experts > 1 else {}
    return {
        'format': 2,
        'name': name or f'{architecture}.{method}_cifar100lt',
        'architecture': architecture,
        'recipe': f'cifar100lt_{method}',
        'method': method,
        'data': {
            'name': 'CIFAR-100-LT', 'num_classes': classes, 'train_images': sum(counts),
            'imbalance_factor': max(counts) / min(counts), 'test_images': TEST_IMAGES * classes,
            'source': 'torch/cifar100 (val)', 'dataset': 'torch/cifar100', 'evaluated_on': 'test',
        },
        'network': {
            'parameters': PARAMETERS[experts], 'gmacs': gmacs[-1], 'gmacs_by_experts': gmacs, 'num_experts': experts,
            'multi_expert': True, 'router': router, 'input_size': [3, 32, 32], 'bytes': 4 * PARAMETERS[experts] + 9000,
        },
        'training': stages,
        'choices': _choices(method, experts, sum(counts), sweep) if router and not held_out else None,
        'test': {
            'all_experts': everything,
            'routed': _routed(sweep) if sweep else None,
            'sweep': sweep,
            'groups': groups,
            'per_class': per_class,
            'environment': _environment() | {'commit': COMMIT},
        },
        'seeds': [
            {
                'seed': 42 + k, **{key: everything[key] + 0.37 * k for key in ('top1', *groups)},
                'ece': 12.345, 'published': not k,
            }
            for k in range(seeds)
        ],
    }  # fmt: skip


def make_config(results: dict[str, Any]) -> dict[str, Any]:
    """Content of the `config.json` beside it."""
    rows = results['test']['per_class']
    network = results['network']
    return {
        'architecture': results['architecture'],
        'num_classes': results['data']['num_classes'],
        'model_args': {'router_threshold': THRESHOLD} if network['router'] else {},
        'pretrained_cfg': {
            'input_size': network['input_size'],
            'mean': [0.4914, 0.4822, 0.4465],
            'std': [0.2023, 0.1994, 0.201],
            'crop_pct': 1.0,
            'interpolation': 'bilinear',
        },
        'label_names': [row['name'] for row in rows],
        'ride': {
            'num_experts': network['num_experts'],
            'router': network['router'],
            'router_threshold': THRESHOLD,
            'class_counts': [row['train_images'] for row in rows],
            'loss': results['method'],
        },
    }


def write_folder(root: Path, results: dict[str, Any]) -> Path:
    """Write both files into `root/<name>`, which is returned."""
    folder = root / results['name']
    folder.mkdir(parents=True)
    (folder / 'results.json').write_text(json.dumps(results), encoding='utf-8')
    (folder / 'config.json').write_text(json.dumps(make_config(results)), encoding='utf-8')
    return folder


def _classes(counts: list[int], names: Sequence[str], level: float) -> list[dict[str, Any]]:
    rng = np.random.default_rng(7)
    rows = []
    for label, (name, count) in enumerate(zip(names, counts, strict=True)):
        group = 'many' if count > 100 else 'medium' if count >= 20 else 'few'
        easy = level + 9.0 * (np.log(count) - np.log(50)) + rng.normal(0, 9)
        row = {'label': label, 'name': name, 'group': group, 'train_images': count, 'test_images': TEST_IMAGES}
        rows.append(row | {'accuracy': float(np.clip(round(easy), 1, 97))})
    return rows


def _accuracies(per_class: list[dict[str, Any]], groups: dict[str, list[int]]) -> dict[str, float]:
    accuracy = np.array([row['accuracy'] for row in per_class])
    means = {name: float(accuracy[members].mean()) for name, members in groups.items()}
    extremes = {'worst_class': float(accuracy.min()), 'harmonic': float(1 / (1 / accuracy).mean())}
    return {'top1': float(accuracy.mean()), **means, **extremes}


def _sweep(per_class: list[dict[str, Any]], groups: dict[str, list[int]], gmacs: list[float]) -> list[dict[str, float]]:
    """21 thresholds: the higher, the fewer experts and the less accurate."""
    full, rows = _accuracies(per_class, groups), []
    for step in range(21):
        threshold = step / 20
        shares = np.ones(len(gmacs))
        for k in range(1, len(gmacs)):  # the share that goes on shrinks faster and faster
            shares[k] = shares[k - 1] * (1 - threshold ** (4 - k / 2))
        shares[:-1] -= shares[1:]
        experts = float((shares * np.arange(1, len(gmacs) + 1)).sum())
        lost = 2.5 * threshold**6 - 0.4 * threshold * (1 - threshold)
        row = {'threshold': threshold, 'top1': full['top1'] - lost, 'balanced': full['top1'] - lost}
        row |= {name: full[name] - lost * weight for name, weight in zip(groups, (0.2, 1.0, 1.9), strict=False)}
        row |= {'mean_experts': experts, 'gmacs': float((shares * gmacs).sum())}
        rows.append(row | {f'share_{k}': float(share) for k, share in enumerate(shares, start=1)})
    return rows


def _routed(sweep: list[dict[str, float]]) -> dict[str, float]:
    row = next(row for row in sweep if row['threshold'] == THRESHOLD)
    return {**row, 'worst_class': 2.0, 'ece': 13.579, 'loss': 2.2}


def _environment() -> dict[str, str]:
    return {
        'ride_timm': '0.1.0', 'python': '3.11.9', 'torch': '2.15.0', 'torchvision': '0.30.0', 'timm': '1.0.31',
        'hardware': '2 CPU cores (x86_64)',
    }  # fmt: skip


def _stage(stage: str, method: str, experts: int, images: int, held_out: bool) -> dict[str, Any]:
    recipe = f'cifar100lt_{method}' if stage == 'experts' else 'cifar100lt_router'
    data = '--dataset torch/cifar100 --data-dir data --imb-factor 100 --seed 42'
    more = '' if stage == 'experts' else ' --init output/experts/last.pth.tar'
    return {
        'stage': stage,
        'command': f'ride-timm train --recipe {recipe} --model ride_resnet32_{experts}e {data}{more}'
        + (' --holdout 0.1' if held_out else ''),
        'recipe': recipe,
        'init': None if stage == 'experts' else 'output/experts/last.pth.tar',
        'holdout': 0.1 if held_out else None,
        'seed': 42,
        'epochs': 200 if stage == 'experts' else 5,
        'images': images,
        'seconds': 8123.4 if stage == 'experts' else 97.2,
        'amp': 'bfloat16' if stage == 'experts' else None,
        'commit': COMMIT,
        'environment': _environment(),
    }


def _choices(method: str, experts: int, images: int, sweep: list[dict[str, float]] | None) -> dict[str, Any]:
    kept = images // 10
    return {
        'held_out': {'fraction': 0.1, 'images': kept, 'seed': 42},
        'training': [_stage(stage, method, experts, images - kept, True) for stage in ('experts', 'router')],
        'threshold': THRESHOLD,
        'rule': RULE,
        'rule_threshold': THRESHOLD,
        'sweep': sweep,
    }
