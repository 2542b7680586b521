import csv
import json
import re
import subprocess

import pytest

from ride_timm.engine.provenance import add_segment, base_model, hub_datasets, source_commit, stage_record
from ride_timm.engine.results import environment
from ride_timm.errors import RideError


def git(folder, *command):
    identity = ['-c', 'user.name=x', '-c', 'user.email=x@y']
    subprocess.run(['git', *identity, *command], cwd=folder, check=True, capture_output=True)


def test_the_commit_of_a_checkout(tmp_path):
    package = tmp_path / 'package'
    package.mkdir()
    assert source_commit(package) is None
    git(tmp_path, 'init', '-q')
    (package / 'a.py').write_text('a = 1\n')
    assert source_commit(package) is None  # nothing is committed
    git(tmp_path, 'add', '.')
    git(tmp_path, 'commit', '-q', '-m', 'x')
    commit = source_commit(package)
    assert re.fullmatch('[0-9a-f]{40}', commit)
    (tmp_path / 'notes.txt').write_text('beside the source')
    assert source_commit(package) == commit
    (package / 'a.py').write_text('a = 2\n')
    assert source_commit(package) == f'{commit}-dirty'


def test_a_package_inside_someone_elses_checkout(tmp_path):
    package = tmp_path / 'venv' / 'package'
    package.mkdir(parents=True)
    git(tmp_path, 'init', '-q')
    assert source_commit(package) is None


def test_the_environment_names_it():
    assert environment()['commit'] == source_commit()


@pytest.mark.parametrize(
    'dataset, wanted',
    [
        ('', None),
        ('torch/cifar100', ['uoft-cs/cifar100']),
        ('hfds/org/photos', ['org/photos']),
        ('hfds', None),
        ('wds', None),
        ('torch/svhn', None),
    ],
)
def test_data_on_the_hub(dataset, wanted):
    assert hub_datasets({'dataset': dataset}) == wanted


@pytest.mark.parametrize(
    'init, wanted',
    [
        (None, None),
        ('', None),
        ('hf-hub:org/name', 'org/name'),
        ('hf-hub:org/name@' + 'a' * 40, 'org/name'),
        ('resnet50.a1_in1k', 'timm/resnet50.a1_in1k'),
        ('output/run/last.pth.tar', None),
    ],
)
def test_the_weights_that_a_run_began_with(init, wanted):
    assert base_model({'init': init}) == wanted


def write_run(folder, **more):
    content = {
        'recipe': 'r', 'seed': 3, 'epochs': 2, 'train_images': 100,
        'environment': {'torch': '2', 'commit': 'c'},
        'args': {'stage': 'experts', 'command': 'ride-timm train', 'amp': True, 'amp_dtype': 'bfloat16'}, **more,
    }  # fmt: skip
    (folder / 'results.json').write_text(json.dumps(content))
    with (folder / 'summary.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerows([['epoch', 'train_images_per_second'], [0, 50.0], [1, 20.0]])


def test_a_stage(tmp_path):
    write_run(tmp_path)
    assert stage_record(tmp_path) == {
        'stage': 'experts', 'command': 'ride-timm train', 'recipe': 'r', 'seed': 3, 'epochs': 2, 'images': 100,
        'seconds': 2.0 + 5.0, 'amp': 'bfloat16', 'commit': 'c', 'environment': {'torch': '2'},
    }  # fmt: skip


def test_what_a_run_did_not_write_down_is_none(tmp_path):
    write_run(tmp_path, train_images=None, environment=None)
    record = stage_record(tmp_path)
    assert record['seconds'] is record['images'] is record['commit'] is None


@pytest.mark.parametrize('content', [None, '', '[]', '{"args": {}}'])
def test_a_folder_of_no_run(tmp_path, content):
    if content is not None:
        (tmp_path / 'results.json').write_text(content)
    with pytest.raises(RideError, match=r'results\.json'):
        stage_record(tmp_path)


HERE, THERE = {'hardware': 'one GPU', 'torch': '2.11.0'}, {'hardware': '2 CPU cores', 'torch': '2.14.1'}


def test_a_segment_for_each_change():
    first = add_segment([], 0, 'ride-timm train --lr 0.1', HERE)
    assert first == [{'epoch': 0, 'command': 'ride-timm train --lr 0.1', 'environment': HERE}]
    for resumed in ('ride-timm train --lr 0.1 --resume auto', 'ride-timm train --resume=auto --lr 0.1'):
        assert add_segment(first, 3, resumed, HERE) == first
    second = add_segment(first, 3, 'ride-timm train --lr 0.1 --resume auto', THERE)
    assert [segment['epoch'] for segment in second] == [0, 3]
    assert add_segment(second, 3, 'ride-timm train --lr 0.1 --resume auto', HERE) == first  # epoch 3 was never trained
    assert len(add_segment(second, 5, 'ride-timm train --lr 0.2', THERE)) == 3


def test_a_stage_tells_where_it_ran(tmp_path):
    segments = add_segment([], 0, 'ride-timm train --cuda-graph', HERE)
    segments = add_segment(segments, 72, 'ride-timm train --torchcompile', THERE)
    run = {
        'args': {'stage': 'experts', 'command': 'ride-timm train --torchcompile --resume auto'},
        'environment': THERE,
    }
    (tmp_path / 'results.json').write_text(json.dumps({**run, 'segments': segments}))
    record = stage_record(tmp_path)
    assert record['environment']['hardware'] == 'one GPU; from epoch 73 on 2 CPU cores'
    assert record['command'].splitlines() == [
        'ride-timm train --cuda-graph',
        '# from epoch 73 on:',
        'ride-timm train --torchcompile',
    ]
