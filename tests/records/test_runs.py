"""The results of runs, as they are written today and as earlier versions wrote them."""

import csv
import json
from pathlib import Path

import pytest

from ride_timm.errors import RideError
from ride_timm.records.provenance import add_segment
from ride_timm.records.results import Results, Stage, read_results
from ride_timm.records.runs import join_stages, read_run

RECORDS = Path(__file__).resolve().parents[2] / 'benchmarks' / 'results' / 'runs'
RIDE = 'ride_resnet32_4e.ride_cifar100lt'


def write_run(folder, **more):
    """A run as version 0.1.0 wrote it."""
    content = {
        'model': 'm', 'recipe': 'r', 'seed': 3, 'epochs': 2, 'last': {'top1': 50.0}, 'train_images': 100,
        'environment': {'torch': '2', 'commit': 'c'},
        'args': {
            'stage': 'experts', 'command': 'ride-timm train', 'amp': True, 'amp_dtype': 'bfloat16', 'seed': 3,
            'epochs': 2, 'recipe': 'r',
        }, **more,
    }  # fmt: skip
    (folder / 'results.json').write_text(json.dumps(content))
    with (folder / 'summary.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerows([['epoch', 'train_images_per_second'], [0, 50.0], [1, 20.0]])


def test_a_stage(tmp_path):
    write_run(tmp_path)
    assert read_run(tmp_path).training == (
        Stage(
            stage='experts', command='ride-timm train', recipe='r', seed=3, epochs=2, images=100, seconds=2.0 + 5.0,
            amp='bfloat16', commit='c', environment={'torch': '2'},
        ),
    )  # fmt: skip


def test_what_a_run_did_not_write_down_is_none(tmp_path):
    write_run(tmp_path, train_images=None, environment=None)
    (stage,) = read_run(tmp_path).training
    assert stage.seconds is stage.images is stage.commit is None


@pytest.mark.parametrize('content', [None, '', '[]', '{"args": {}}'])
def test_a_folder_of_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / 'results.json').write_text(content)
    with pytest.raises(RideError, match=r'results\.json'):
        read_run(tmp_path)


def test_a_stage_tells_where_it_ran(tmp_path):
    here, there = {'hardware': 'one GPU', 'torch': '2.11.0'}, {'hardware': '2 CPU cores', 'torch': '2.14.1'}
    segments = add_segment([], 0, 'ride-timm train --cuda-graph', here)
    segments = add_segment(segments, 72, 'ride-timm train --torchcompile', there)
    write_run(tmp_path, environment=there, segments=segments)
    (stage,) = read_run(tmp_path).training
    assert stage.environment['hardware'] == 'one GPU; from epoch 73 on 2 CPU cores'
    assert stage.command.splitlines() == [
        'ride-timm train --cuda-graph',
        '# from epoch 73 on:',
        'ride-timm train --torchcompile',
    ]


def test_facts_that_older_runs_told_in_sentences():
    held_out, router = read_run(RECORDS / f'{RIDE}.A-42'), read_run(RECORDS / f'{RIDE}.A-42-router')
    assert (held_out.data.evaluated_on, held_out.data.test_images) == ('held_out', 1095)
    assert (held_out.training[0].init, held_out.training[0].holdout) == (None, 0.1)
    assert router.training[0].init == f'output/zoo/{RIDE}.A-42/last.pth.tar'
    choices = router.choices
    assert (choices.threshold, choices.by_hand, choices.rule_threshold) == (0.8, True, 0.05)
    assert (choices.held_out.images, choices.held_out.fraction) == (1095, 0.1)
    whole = read_run(RECORDS / f'{RIDE}.B-42')
    assert (whole.data.evaluated_on, whole.training[0].holdout, whole.choices) == ('test', None, None)


def test_stages_are_joined_where_the_earlier_run_still_lies(tmp_path):
    for name in ('A-42', 'A-42-router'):
        folder = tmp_path / f'{RIDE}.{name}'
        folder.mkdir()
        for file in (RECORDS / f'{RIDE}.{name}').iterdir():
            text = file.read_text(encoding='utf-8').replace('output/zoo/', f'{tmp_path}/')
            (folder / file.name).write_text(text, encoding='utf-8')
    joined = join_stages(tmp_path / f'{RIDE}.A-42-router')
    assert [stage.stage for stage in joined.training] == ['experts', 'router']
    assert joined.recipe == 'cifar100lt_ride'
    assert joined.choices.training == joined.training
    assert 'expert3_top1' in joined.test.all_experts
    assert all(row.accuracy is not None for row in joined.test.per_class)


@pytest.mark.parametrize('folder', sorted(RECORDS.iterdir()), ids=lambda folder: folder.name)
def test_every_record_of_the_repository_can_be_read(folder):
    if not (folder / 'results.json').is_file():
        pytest.skip('a run that is not finished')
    results = read_run(folder)
    assert Results.from_json(json.loads(json.dumps(results.to_json()))).to_json() == results.to_json()


def test_published_results_are_the_same_after_a_round():
    for path in sorted((RECORDS.parents[2] / 'weights').glob('*/results.json')):
        results = read_results(path)
        assert json.loads(json.dumps(results.to_json())) == json.loads(path.read_text(encoding='utf-8'))
