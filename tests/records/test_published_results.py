"""Whatever stands in a `results.json`, a card is made of it or one sentence says what is wrong."""

import copy
import json
import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ride_timm.errors import RideError
from ride_timm.pages.card import render_card
from ride_timm.publishing.staging import _others
from ride_timm.records.results import Results, read_results

ROOT = Path(__file__).resolve().parents[2] / 'weights'
NAME = 'resnet50.ce_tinyimagenetlt'
ODD = [None, True, 'x', '', [], {}, [None], ['x'], [{}], [[[1]]], {'a': 1}, 0, -1, 10**12, 0.5, math.nan, math.inf]


def places(value, path=()):
    """The path of every value in nested objects; of lists the first item alone."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


CONTENT = json.loads((ROOT / NAME / 'results.json').read_text())
PLACES = [path for path in places(CONTENT) if path]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.sampled_from(PLACES), st.sampled_from(ODD))
def test_values_of_other_types(path, odd):
    content = copy.deepcopy(CONTENT)
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = odd
    try:
        render_card(Results.from_json(content), {})
    except RideError as error:
        assert len(str(error).splitlines()) == 1


def test_a_number_of_classes_that_no_table_has():
    content = copy.deepcopy(CONTENT)
    content['data']['num_classes'] = 10**9
    with pytest.raises(RideError, match=r'test\.per_class'):
        Results.from_json(content)


def test_names_in_an_index_lead_nowhere_else(tmp_path):
    outside, weights = tmp_path / 'outside', tmp_path / 'weights'
    for folder in (outside, weights / NAME):
        folder.mkdir(parents=True)
        (folder / 'results.json').write_text(json.dumps(CONTENT))
        (folder / 'config.json').write_text('{}')
    (weights / 'index.json').write_text(json.dumps({'weights': {'../outside': {}, str(outside): {}, NAME: {}}}))
    assert _others(weights / NAME) == []
    assert read_results(weights / NAME).name == NAME


def test_facts_that_version_1_told_in_sentences():
    stage = {
        **CONTENT['training'][0],
        'command': 'ride-timm train --init=resnet50.a1_in1k --holdout 0.1 --epochs 3',
    }
    for key in ('init', 'holdout', 'own_epochs'):
        del stage[key]
    old = {**CONTENT, 'format': 1, 'training': [stage], 'network': {**CONTENT['network'], 'gmacs_by_experts': [1.0]}}
    old['data'] = {**CONTENT['data'], 'source': '5 of 9 training images of torch/cifar100 (train), held out'}
    results = Results.from_json(old)
    (found,) = results.training
    assert (found.init, found.holdout, found.own_epochs) == ('resnet50.a1_in1k', 0.1, True)
    assert results.net.multi_expert
    assert results.data.evaluated_on == 'held_out'
    old['data']['source'] = 'torch/cifar100 (val)'
    assert Results.from_json(old).data.dataset == 'torch/cifar100'
