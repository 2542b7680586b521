"""No text of `results.json` reaches a card with its control characters."""

import copy

from weight_results import make_results

from ride_timm.errors import RideError
from ride_timm.pages.card import models_table, render_card
from ride_timm.records.results import Results

EVIL = 'X\x1b]0;owned\x07\x1b[31m\u202e'
CONFIG = {
    'num_classes': 100,
    'pretrained_cfg': {
        'input_size': [3, 32, 32], 'mean': [0.5] * 3, 'std': [0.5] * 3, 'interpolation': 'bilinear', 'crop_pct': 1.0,
    },
    'label_names': [f'{EVIL}{label}' for label in range(100)],
}  # fmt: skip


def places(content, path=()):
    """Where strings stand, one for each kind of entry."""
    if isinstance(content, str):
        yield path
        return
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, item in items:
        if not isinstance(key, int) or key == 0:
            yield from places(item, (*path, key))


def test_every_text():
    results = make_results()
    rendered = 0
    for path in places(results):
        evil = copy.deepcopy(results)
        entry = evil
        for key in path[:-1]:
            entry = entry[key]
        entry[path[-1]] += EVIL
        try:
            found = Results.from_json(evil)
        except RideError:  # one of a few words
            continue
        pages = [render_card(found, CONFIG, repo_id=None, others=[]), models_table([found])]
        for page in pages:
            assert not {'\x1b', '\x07', '\u202e'} & set(page), path
        rendered += 1
    assert rendered > 10
