import re
import subprocess

import pytest

from ride_timm.evaluation.writing import environment
from ride_timm.records.provenance import add_segment, base_model, hub_datasets, source_commit


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
