"""Draw docs/results.png, the README's picture: accuracy over cost of the published networks.

    python benchmarks/results_picture.py

Reads weights/*/results.json and weights/index.json. Lines are the thresholds of the router that `results.json` lists.
"""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
LABELS = {
    'ride_resnet32_1e.ce_cifar100lt': ('plain, cross-entropy', '#6B6B6B'),
    'ride_resnet32_3e.ride_cifar100lt': ('RIDE, 3 experts', '#0072B2'),
    'ride_resnet32_3e.balpoe_cifar100lt': ('BalPoE, 3 experts', '#D55E00'),
    'ride_resnet32_4e.ride_cifar100lt': ('RIDE, 4 experts', '#009E73'),
    'resnet50.ce_tinyimagenetlt': ('plain, cross-entropy', '#6B6B6B'),
    'resnet50.balanced_softmax_tinyimagenetlt': ('plain, balanced softmax', '#CC79A7'),
    'ride_resnet50_4e.ride_tinyimagenetlt': ('RIDE, 4 experts', '#009E73'),
}
"""Legend and colour of each network."""


def draw(path: Path) -> None:
    """Draw the picture.

    Args:
        path: The PNG file to write.
    """
    published = [json.loads((ROOT / 'weights' / name / 'results.json').read_text()) for name in LABELS]
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    data_names = list(dict.fromkeys(results['data']['name'] for results in published))
    for axes, data in zip(figure.subplots(1, len(data_names)), data_names, strict=True):
        of_this_data = [results for results in published if results['data']['name'] == data]
        for results in of_this_data:
            _draw_network(axes, results)
        depth = 'ResNet-32' if data.startswith('CIFAR') else 'ResNet-50, 64 pixels'
        axes.set_title(f'{data}, {depth}', loc='left', fontsize=11)
        axes.set(xlabel='GMACs per image', ylabel='test accuracy (%)')
        axes.grid(color='#E4E4E4', linewidth=0.7)
        axes.spines[['top', 'right']].set_visible(False)
        axes.legend(fontsize=8.5, frameon=False, loc='lower right')
        axes.margins(0.08, 0.12)
    figure.savefig(path, dpi=110)
    with Image.open(path) as image:
        image.convert('RGB').quantize(64).save(path, optimize=True)


def _draw_network(axes: Any, results: dict[str, Any]) -> None:
    label, colour = LABELS[results['name']]
    test, gmacs = results['test'], results['network']['gmacs']
    kind = {'color': colour, 'markersize': 8, 'linestyle': 'none'}
    axes.plot(gmacs, test['all_experts']['top1'], marker='s' if test['routed'] is None else 'o', label=label, **kind)
    if test['routed']:
        rows = sorted(test['sweep'], key=lambda row: row['gmacs'])
        axes.plot([r['gmacs'] for r in rows], [r['top1'] for r in rows], color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(test['routed']['gmacs'], test['routed']['top1'], marker='o', markerfacecolor='white', **kind)


if __name__ == '__main__':
    draw(ROOT / 'docs' / 'results.png')
