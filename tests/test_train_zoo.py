"""The command that trains the published networks: the order of the runs, and once for real on tiny images."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import write_images

from ride_timm.recipes import load_recipe

SCRIPT = Path(__file__).resolve().parents[1] / 'benchmarks' / 'train_zoo.py'
RIDE = 'ride_resnet32_3e.ride_cifar100lt'
TINY = ('--plan', 'tinyimagenetlt', '--data-dir', 'data', '--dry-run')
TINY_RIDE, TINY_PLAIN = 'ride_resnet50_4e.ride_tinyimagenetlt', 'resnet50.ce_tinyimagenetlt'


def run(*arguments, cwd=None):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=280, cwd=cwd, check=False,
        env=environment,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def no_runs_of_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_the_commands():
    done = run('--data-dir', 'data', '--dry-run', '--options=--amp', '--only', 'ride_resnet32_1e.ce_cifar100lt')
    assert done.stdout.splitlines() == [
        'ride-timm train --recipe cifar100lt_ce --val-interval 100000 --seed 42 --data-dir data --output output/zoo '
        '--experiment ride_resnet32_1e.ce_cifar100lt.B-42 --resume auto --amp'
    ]


def test_run_a_holds_images_out_and_comes_first():
    first, router = run('--data-dir', 'data', '--dry-run', '--only', RIDE).stdout.splitlines()[:2]
    assert '--recipe cifar100lt_ride --holdout 0.1' in first
    assert '--recipe cifar100lt_router' in router
    assert f'--init output/zoo/{RIDE}.A-42/last.pth.tar' in router


def test_a_recorded_choice_is_taken(tmp_path):
    record = tmp_path / 'benchmarks' / 'results' / 'runs' / f'{RIDE}.A-42-router'
    record.mkdir(parents=True)
    (record / 'results.json').write_text('{"router_threshold": 0.7}')
    experts, router = run('--data-dir', 'data', '--dry-run', '--only', RIDE, cwd=tmp_path).stdout.splitlines()
    assert '--holdout' not in experts
    assert '--router-threshold 0.7' in router
    assert f'--init output/zoo/{RIDE}.B-42/last.pth.tar' in router


def test_what_was_published_elsewhere_is_left_alone(tmp_path):
    weight = tmp_path / 'weights' / 'ride_resnet32_6e.ride_cifar100lt'
    weight.mkdir(parents=True)
    (weight / 'results.json').write_text('{"seeds": [{"seed": 42}], "choices": null}')
    distilled = 'ride_resnet32_3e.ride_distill_cifar100lt'
    lines = run('--data-dir', 'data', '--dry-run', '--only', weight.name, distilled, cwd=tmp_path).stdout.splitlines()
    assert not any('ride_teacher' in line for line in lines)
    assert f'--teacher {weight.name} ' in lines[0]
    (tmp_path / 'output' / 'zoo' / f'{weight.name}.B-42').mkdir(parents=True)  # trained here: it goes on here
    lines = run('--data-dir', 'data', '--dry-run', '--only', weight.name, distilled, cwd=tmp_path).stdout.splitlines()
    assert '--recipe cifar100lt_ride_teacher' in lines[0]
    assert f'--teacher output/zoo/{weight.name}.B-42/last.pth.tar ' in lines[1]


def test_other_seeds_of_what_was_published_elsewhere(tmp_path):
    weight = tmp_path / 'weights' / RIDE
    weight.mkdir(parents=True)
    (weight / 'results.json').write_text('{"seeds": [{"seed": 42}], "choices": {"threshold": 0.7}}')
    lines = run('--data-dir', 'data', '--dry-run', '--only', RIDE, '--seeds', '42', '43').stdout.splitlines()
    assert [line.partition('--experiment ')[2].split()[0] for line in lines] == [f'{RIDE}.B-43', f'{RIDE}.B-43-router']
    assert '--router-threshold 0.7' in lines[1]
    (weight / 'results.json').write_text('{"seeds": [{"seed": 42}, {"seed": 43}], "choices": {"threshold": 0.7}}')
    assert run('--data-dir', 'data', '--dry-run', '--only', RIDE, '--seeds', '43', '42').stdout == ''
    refused = run('--data-dir', 'data', '--dry-run', '--only', RIDE, '--seeds', '42', '44')
    assert refused.returncode == 2
    assert 'is published with the median of the seeds 42, 43, of which only one is there' in refused.stderr


def test_one_seed_of_all_networks_comes_before_the_next():
    names = ('ride_resnet32_1e.ce_cifar100lt', RIDE)
    lines = run('--data-dir', 'data', '--dry-run', '--only', *names, '--seeds', '1', '2').stdout.splitlines()
    order = [line.partition('--experiment ')[2].split()[0] for line in lines if 'router' not in line]
    plain = names[0]
    assert order == [f'{plain}.B-1', f'{RIDE}.A-1', f'{RIDE}.B-1', f'{plain}.B-2', f'{RIDE}.B-2']


def test_run_a_that_is_published_itself_is_trained(tmp_path):
    record = tmp_path / 'benchmarks' / 'results' / 'runs' / f'{TINY_RIDE}.A-42-router'
    record.mkdir(parents=True)
    (record / 'results.json').write_text('{"router_threshold": 0.7}')
    assert len(run(*TINY, '--one-run', '--only', TINY_RIDE, cwd=tmp_path).stdout.splitlines()) == 2


def test_the_plan_of_tiny_imagenet():
    lines = run(*TINY).stdout.splitlines()
    trained = [line.partition('--recipe ')[2].split()[0] for line in lines]
    ride, router = 'tinyimagenetlt_ride', 'tinyimagenetlt_router'
    # run B's router waits for the choice of run A, which a dry run has not
    assert trained == [
        ride, router, ride, 'tinyimagenetlt_ce', 'tinyimagenetlt_balanced_softmax', 'tinyimagenetlt_balpoe', ride, ride
    ]  # fmt: skip
    assert ['--holdout 0.1' in line for line in lines] == [True] + [False] * 7
    others = [line.partition('--model ')[2].partition(' ')[0] for line in lines if '--model ' in line]
    assert others == ['ride_resnet50_3e', 'ride_resnet50_2e']


def test_one_run_holds_the_same_images_out_everywhere():
    lines = run(*TINY, '--one-run', '--epochs', '40', '--only', TINY_RIDE, TINY_PLAIN).stdout.splitlines()
    assert len(lines) == 3
    experts, router, plain = lines
    for line in (experts, plain):
        assert '--epochs 40 --holdout 0.1' in line
        assert '--warmup-epochs' not in line
        assert '.A-42 ' in line
    assert '--epochs' not in router
    assert f'--init output/zoo/{TINY_RIDE}.A-42/last.pth.tar' in router
    assert '--router-threshold' not in router
    assert '--epochs 8 --warmup-epochs 1 ' in run(*TINY, '--epochs', '8', '--only', TINY_PLAIN).stdout


def test_milestones_that_do_not_scale():
    done = run('--data-dir', 'data', '--dry-run', '--epochs', '40', '--only', RIDE)
    assert done.returncode == 2
    assert 'The schedule of cifar100lt_ride has fixed milestones' in done.stderr


def test_plans_agree_with_the_recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from zoo_plans import PLANS

    for name, plan in PLANS.items():
        assert load_recipe(plan.router_recipe).options['stage'] == 'router'
        for net in plan.nets:
            recipe = load_recipe(net.recipe).options
            model = net.options[1] if net.options else recipe['model']
            assert net.name == f'{model}.{net.name.partition(".")[2]}'
            assert net.name.endswith(f'_{name}')


def test_an_unknown_network():
    done = run('--data-dir', 'data', '--only', 'resnet50')
    assert done.returncode == 2
    assert 'There is no network resnet50' in done.stderr


@pytest.mark.slow
def test_two_seeds_of_one_network(tmp_path):
    """Eight trainings of one epoch in processes of their own, two exports: about two minutes."""
    data = write_images(tmp_path / 'data', {'ant': 40, 'bee': 30, 'cat': 20}, val=6, size=32)
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'weights' / 'index.json').write_text('{"format": 1, "weights": {}}')
    options = ['--data-dir', str(data), '--only', RIDE, '--seeds', '1', '2', '--options', '--epochs 1 -b 16']
    done = run(*options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / 'weights' / RIDE / 'results.json').read_text())
    assert {row['seed'] for row in results['seeds']} == {1, 2}
    assert results['choices']['threshold'] == results['test']['routed']['threshold']
    assert '--holdout 0.1' in results['choices']['training'][0]['command']
    assert RIDE in json.loads((tmp_path / 'weights' / 'index.json').read_text())['weights']
    measured = sorted((tmp_path / 'output' / 'zoo' / 'exported').glob('*/*/results.json'))
    before = [path.stat().st_mtime_ns for path in measured]
    assert len(before) == 2
    again = run(*options, cwd=tmp_path)  # nothing is left to train or to measure
    assert again.returncode == 0
    assert [path.stat().st_mtime_ns for path in measured] == before
    assert json.loads((tmp_path / 'weights' / RIDE / 'results.json').read_text()) == results
    records = tmp_path / 'benchmarks' / 'results' / 'runs'
    assert len(list(records.glob('*/results.json'))) == 6
    shutil.rmtree(tmp_path / 'output')  # another machine
    elsewhere = run(*options, cwd=tmp_path)
    assert elsewhere.returncode == 0, elsewhere.stderr
    assert not (tmp_path / 'output').exists()
    assert f'top1 {results["test"]["routed"]["top1"]:.2f}' in elsewhere.stdout


@pytest.mark.slow
def test_a_seed_beside_a_published_one(tmp_path):
    """Six trainings of one epoch, three exports: two minutes."""
    data = write_images(tmp_path / 'data', {'ant': 40, 'bee': 30, 'cat': 20}, val=6, size=32)
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'weights' / 'index.json').write_text('{"format": 1, "weights": {}}')
    options = ['--data-dir', str(data), '--only', RIDE, '--options', '--epochs 1 -b 16', '--seeds']
    assert run(*options, '1', cwd=tmp_path).returncode == 0
    shutil.rmtree(tmp_path / 'output')
    done = run(*options, '2', cwd=tmp_path)  # that of what is published counts without being named
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / 'weights' / RIDE / 'results.json').read_text())
    rows = {row['seed']: row['top1'] for row in results['seeds']}
    assert set(rows) == {1, 2}
    published = results['seeds'][0]
    assert published['published']
    assert published['top1'] == min(rows.values()) == results['test']['all_experts']['top1']
    assert not (tmp_path / 'output' / 'zoo' / f'{RIDE}.A-1').exists()
    card = (tmp_path / 'weights' / RIDE / 'README.md').read_text()
    assert f'{sum(rows.values()) / 2:.2f}' in card


@pytest.mark.slow
def test_a_recorded_checkpoint_is_gone_on_from(tmp_path):
    """Two trainings of a network, one of them moved between two epochs: a minute."""
    data = write_images(tmp_path / 'data', {'ant': 40, 'bee': 30, 'cat': 20}, val=6, size=32)
    plain = 'ride_resnet32_1e.ce_cifar100lt'
    options = ['--data-dir', str(data), '--only', plain, '--no-export', '--options']
    short = run(*options, '--epochs 1 -b 16', cwd=tmp_path)
    assert short.returncode == 0, short.stderr
    begun = tmp_path / 'output' / 'zoo' / f'{plain}.B-42'
    record = tmp_path / 'benchmarks' / 'results' / 'runs' / begun.name
    (record / 'results.json').unlink()
    shutil.copy(begun / 'last.pth.tar', record)
    shutil.rmtree(tmp_path / 'output')
    done = run(*options, '--epochs 2 -b 16', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'epoch 1:' in begun.with_name(f'{begun.name}.log').read_text()
    assert 'epoch 0:' not in begun.with_name(f'{begun.name}.log').read_text()
    assert json.loads((record / 'results.json').read_text())['last_epoch'] == 1
    assert not (record / 'last.pth.tar').exists()


@pytest.mark.slow
def test_one_run_is_published_beside_a_plain_network(tmp_path):
    """Three trainings of one epoch, two exports: about two minutes."""
    data = write_images(tmp_path / 'data', {'ant': 40, 'bee': 30, 'cat': 20}, val=6, size=64)
    (tmp_path / 'weights').mkdir()
    (tmp_path / 'weights' / 'index.json').write_text('{"format": 1, "weights": {}}')
    (tmp_path / 'MODEL_CARD.md').write_text('<!-- models: begin -->\n<!-- models: end -->\n')
    small = '-b 16 -j 0 --model-kwargs layers=(1,1,1,1) channels=(8,8,12,12)'
    options = ['--plan', 'tinyimagenetlt', '--one-run', '--epochs', '1', '--only', TINY_RIDE, TINY_PLAIN]
    done = run('--data-dir', str(data), *options, '--options', small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / 'weights' / TINY_RIDE / 'results.json').read_text())
    assert results['choices']['training'] == results['training']
    assert results['training'][0]['epochs'] == 1
    assert results['training'][0]['images'] == 81
    assert results['data'] | {'source': None} == {
        'name': 'Tiny-ImageNet-LT', 'num_classes': 3, 'train_images': 90, 'imbalance_factor': 2.0, 'test_images': 18,
        'source': None, 'datasets': ['zh-plus/tiny-imagenet'], 'evaluated_on': 'test', 'dataset': None,
    }  # fmt: skip
    plain = json.loads((tmp_path / 'weights' / TINY_PLAIN / 'results.json').read_text())
    assert plain['training'][0]['images'] == 81
    assert plain['results_only']
    table = (tmp_path / 'MODEL_CARD.md').read_text()
    assert table.count('Tiny-ImageNet-LT (90 % of the images)') == 2
    index = json.loads((tmp_path / 'weights' / 'index.json').read_text())['weights']
    assert 'model.safetensors' in index[TINY_RIDE]['files']
    assert not any(name.endswith('.safetensors') for name in index[TINY_PLAIN]['files'])
