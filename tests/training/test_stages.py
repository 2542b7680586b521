"""The stages through the real command, on tiny images."""

import csv
import json
import logging
import pickle

import pytest
import torch
from safetensors.torch import save_file
from tiny_runs import CIFAR, COUNTS, fails, train, write_images

from ride_timm.commands.validate import main as validate
from ride_timm.errors import RideError
from ride_timm.evaluation.sweep import THRESHOLDS, choose_threshold
from ride_timm.inference.load import load
from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.training.loop import train_epoch

MODEL = ('--model', CIFAR)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp('runs')


@pytest.fixture(scope='module')
def experts(data, runs):
    """Experts trained with some images held out."""
    options = ('--loss', 'balpoe', '--holdout', '0.25', '--lr', '0.05', '--weight-decay', '5e-4')
    return train(data, runs, 'experts', *MODEL, *options) / 'last.pth.tar'


@pytest.fixture(scope='module')
def router(data, runs, experts):
    return train(data, runs, 'router', '--stage', 'router', '--init', str(experts), '--seed', '7')


def loaded(path):
    return load(path, use_ema=False)


def same(one, other, keep=lambda name: True):
    return all(torch.equal(value, other[name]) for name, value in one.items() if keep(name))


def test_held_out_images_are_evaluated_on(experts):
    entry = read_checkpoint(experts)['ride']
    assert entry['class_counts'] == [24 - 6, 12 - 3, 5 - 1]
    assert entry['stage'] == 'experts'
    assert entry['tau'] == (0.0, 1.0, 2.0)
    assert (entry['holdout']['fraction'], entry['holdout']['seed']) == (0.25, 42)
    results = json.loads(experts.with_name('results.json').read_text())
    assert results['last']['num_images'] == 10
    assert (results['data']['evaluated_on'], results['data']['test_images']) == ('held_out', 10)


def test_router_stage_changes_the_router_alone(experts, router):
    before, after = read_checkpoint(experts)['state_dict'], read_checkpoint(router / 'last.pth.tar')['state_dict']
    assert same(before, after)
    assert {name.split('.')[0] for name in after.keys() - before.keys()} == {'router'}


def test_router_stage_holds_out_what_the_experts_did_not_see(experts, router):
    seen, again = read_checkpoint(experts)['ride'], read_checkpoint(router / 'last.pth.tar')['ride']
    assert again['holdout'] == seen['holdout']  # with another --seed
    assert (again['stage'], again['loss'], again['tau']) == ('router', 'balpoe', (0.0, 1.0, 2.0))
    assert again['class_counts'] == seen['class_counts']


def test_router_stage_sweeps_and_stores_the_threshold(router):
    results = json.loads((router / 'results.json').read_text())
    sweep = results['choices']['sweep']
    assert [row['threshold'] for row in sweep] == list(THRESHOLDS)
    assert (sweep[0]['mean_experts'], sweep[-1]['mean_experts']) == (3.0, 1.0)
    chosen = results['choices']['threshold']
    assert results['last']['threshold'] == chosen
    at_chosen = next(row for row in sweep if row['threshold'] == chosen)
    for name in ('top1', 'mean_experts', 'gmacs'):
        assert results['last'][name] == pytest.approx(at_chosen[name])
    assert results['last']['num_images'] == 10
    with (router / 'sweep.csv').open(newline='') as file:
        assert len(list(csv.DictReader(file))) == len(THRESHOLDS)


def test_later_users_find_the_threshold(router, data, tmp_path):
    chosen = json.loads((router / 'results.json').read_text())['choices']['threshold']
    checkpoint = read_checkpoint(router / 'last.pth.tar')
    assert checkpoint['ride']['router_threshold'] == chosen
    assert checkpoint['args']['model_kwargs']['router_threshold'] == chosen
    assert loaded(router / 'last.pth.tar').model.router_threshold == chosen
    figures = tmp_path / 'figures.json'
    options = ['--checkpoint', str(router / 'last.pth.tar'), '--data-dir', str(data), '--routed']
    assert validate([*options, '--results-file', str(figures)]) == 0
    assert json.loads(figures.read_text())['threshold'] == chosen


def test_a_threshold_of_ones_own_stays(data, runs, experts):
    options = ('--stage', 'router', '--init', str(experts), '--router-threshold', '0.37')
    folder = train(data, runs, 'own', *options)
    results = json.loads((folder / 'results.json').read_text())
    choices = results['choices']
    assert choices['threshold'] == results['last']['threshold'] == 0.37
    assert choices['by_hand']
    assert choices['rule_threshold'] == choose_threshold(choices['sweep'])
    assert loaded(folder / 'last.pth.tar').model.router_threshold == 0.37
    # a later router stage takes it over, where nothing chooses another
    options = ('--stage', 'router', '--init', str(folder / 'last.pth.tar'), '--holdout', '0')
    again = train(data, runs, 'kept', *options)
    assert json.loads((again / 'results.json').read_text())['test']['routed']['threshold'] == 0.37


def test_without_held_out_images_there_is_no_choice(data, runs, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    whole = train(data, tmp_path, 'whole', *MODEL) / 'last.pth.tar'
    folder = train(data, tmp_path, 'router', '--stage', 'router', '--init', str(whole))
    assert "no threshold is chosen and the network's one stays" in caplog.text
    results = json.loads((folder / 'results.json').read_text())
    assert results['choices'] is None
    assert results['test']['routed']['threshold'] == 0.5
    assert results['last']['num_images'] == 12  # of val/
    assert results['test']['all_experts']['num_images'] == 12
    assert not (folder / 'sweep.csv').exists()
    fails(
        'its experts have seen the images', data, tmp_path, 'no',
        '--stage', 'router', '--init', str(whole), '--holdout', '0.25',
    )  # fmt: skip


def test_other_held_out_images_are_refused(data, experts, tmp_path):
    stage = ('--stage', 'router', '--init', str(experts))
    fails('trained with 0.25', data, tmp_path, 'a', *stage, '--holdout', '0.5')
    other = write_images(tmp_path / 'other', {**COUNTS, 'ant': 60})
    fails('holds out other images', other, tmp_path, 'b', *stage)


@pytest.mark.parametrize('stage', ['router', 'heads'])
def test_a_stage_resumes_to_the_same_bits(stage, data, experts, tmp_path, monkeypatch):
    options = ('--stage', stage, '--init', str(experts), '--epochs', '3', '--resume', 'auto')
    straight = train(data, tmp_path, 'straight', *options)

    def cut_off(trainer, epoch):
        if epoch == 2:
            raise RideError('cut off')
        return train_epoch(trainer, epoch)

    with monkeypatch.context() as patch:
        patch.setattr('ride_timm.training.run.train_epoch', cut_off)
        fails('cut off', data, tmp_path, 'cut', *options)
    assert read_checkpoint(tmp_path / 'cut' / 'last.pth.tar')['epoch'] == 1
    cut = train(data, tmp_path, 'cut', *options)
    ends = [read_checkpoint(folder / 'last.pth.tar') for folder in (straight, cut)]
    assert same(ends[0]['state_dict'], ends[1]['state_dict'])
    for end in ends:
        del end['ride']['segments']  # they hold the command
    assert ends[0]['ride'] == ends[1]['ride']
    results = [json.loads((folder / 'results.json').read_text()) for folder in (straight, cut)]
    for key in ('last', 'sweep', 'router_threshold'):
        assert results[0].get(key) == results[1].get(key)


def test_heads_stage_changes_the_heads_alone(data, experts, tmp_path):
    options = ('--stage', 'heads', '--init', str(experts), '--lr', '0.1')
    before = read_checkpoint(experts)['state_dict']
    is_body = lambda name: '.fc.' not in name  # noqa: E731
    for name, more in (('new', ()), ('kept', ('--keep-heads', '--lr', '1e-9', '--weight-decay', '0'))):
        folder = train(data, tmp_path, name, *options, *more)
        checkpoint = read_checkpoint(folder / 'last.pth.tar')
        assert same(before, checkpoint['state_dict'], is_body)
        heads = 'experts.0.fc.weight'
        near = torch.allclose(before[heads], checkpoint['state_dict'][heads], atol=1e-5)
        assert near == (name == 'kept')
        assert checkpoint['ride']['holdout'] == read_checkpoint(experts)['ride']['holdout']
        assert checkpoint['args']['sampler'] == 'balanced'
        assert (checkpoint['ride']['loss'], checkpoint['ride']['tau']) == ('ce', None)


def test_heads_stage_drops_a_router_and_takes_other_classes(router, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    other = write_images(tmp_path / 'other', {'dog': 12, 'eel': 9})
    options = ('--stage', 'heads', '--init', str(router / 'last.pth.tar'), '--holdout', '0')
    folder = train(other, tmp_path, 'heads', *options)
    assert 'new heads, without its router' in caplog.text
    state = read_checkpoint(folder / 'last.pth.tar')['state_dict']
    assert not any(name.startswith('router.') for name in state)
    assert state['experts.0.fc.weight'].shape[0] == 2
    fails('needs the same classes', other, tmp_path, 'no', *options, '--keep-heads')


def test_fine_tuning_begins_with_the_weights(data, experts, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    still = ('--lr', '1e-12', '--warmup-epochs', '0', '--weight-decay', '0')
    folder = train(data, tmp_path, 'tuned', '--init', str(experts), *still)
    before, after = read_checkpoint(experts)['state_dict'], read_checkpoint(folder / 'last.pth.tar')['state_dict']
    weights = [name for name in before if name.endswith('weight')]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in weights)
    other = write_images(tmp_path / 'other', {'dog': 12, 'eel': 9})
    caplog.clear()
    train(other, tmp_path, 'moved', '--init', str(experts))
    assert 'new heads' in caplog.text


@pytest.mark.parametrize(('seed', 'seen'), [('42', False), ('43', True)])
def test_held_out_images_that_the_weights_may_have_seen(data, experts, tmp_path, caplog, seed, seen):
    caplog.set_level(logging.WARNING)
    train(data, tmp_path, 'tuned', '--init', str(experts), '--holdout', '0.25', '--seed', seed)
    assert ('may have seen the held-out images' in caplog.text) == seen


def test_runs_of_several_seeds_hold_out_the_same_images(data, experts, tmp_path):
    of_first = read_checkpoint(experts)['ride']['holdout']
    options = ('--loss', 'balpoe', '--holdout', '0.25', '--seed', '7')
    folder = train(data, tmp_path, 'seventh', *MODEL, *options, '--holdout-seed', '42')
    other = train(data, tmp_path, 'other', *MODEL, *options)
    last = folder / 'last.pth.tar'
    assert read_checkpoint(last)['ride']['holdout'] == of_first
    assert read_checkpoint(other / 'last.pth.tar')['ride']['holdout']['digest'] != of_first['digest']
    stage = ('--stage', 'router', '--init', str(last))
    routed = train(data, tmp_path, 'routed', *stage)
    assert json.loads((routed / 'results.json').read_text())['args']['holdout_seed'] == 42
    fails('--holdout-seed 7 was given, but .* was trained with 42', data, tmp_path, 'a', *stage, '--holdout-seed', '7')


def test_classes_are_matched_by_name(experts, data, tmp_path):
    """Folders whose order differs from that of the weights, as other sources' may."""
    checkpoint = read_checkpoint(experts)
    turn = [2, 0, 1]
    for k in range(3):
        heads = checkpoint['state_dict'][f'experts.{k}.fc.weight']
        checkpoint['state_dict'][f'experts.{k}.fc.weight'] = heads[turn].clone()
    for key in ('class_names', 'class_counts'):
        checkpoint['ride'][key] = [checkpoint['ride'][key][i] for i in turn]
    turned = tmp_path / 'turned.pth.tar'
    torch.save(checkpoint, turned)
    folder = train(data, tmp_path, 'router', '--stage', 'router', '--init', str(turned), '--router-threshold', '0')
    assert read_checkpoint(folder / 'last.pth.tar')['ride']['class_names'] == ['cat', 'ant', 'bee']
    straight = train(data, tmp_path, 'plain', '--stage', 'router', '--init', str(experts), '--router-threshold', '0')
    last = [json.loads((f / 'results.json').read_text())['last'] for f in (folder, straight)]
    assert last[0]['top1'] == last[1]['top1']


def test_init_takes_exported_weights(experts, data, tmp_path):
    folder = tmp_path / 'exported'
    folder.mkdir()
    checkpoint = read_checkpoint(experts)
    save_file(checkpoint['state_dict'], folder / 'model.safetensors')
    config = {
        'architecture': CIFAR,
        'num_classes': 3,
        'label_names': checkpoint['ride']['class_names'],
        'pretrained_cfg': {'mean': [0.4, 0.4, 0.4], 'std': [0.3, 0.3, 0.3]},
        'ride': {key: checkpoint['ride'][key] for key in ('class_counts', 'holdout', 'loss', 'tau')},
    }
    (folder / 'config.json').write_text(json.dumps(config))
    for name, init in (('file', folder / 'model.safetensors'), ('folder', folder)):
        done = read_checkpoint(train(data, tmp_path, name, '--stage', 'router', '--init', str(init)) / 'last.pth.tar')
        assert same(checkpoint['state_dict'], done['state_dict'])
        assert tuple(done['args']['data_config']['mean']) == (0.4, 0.4, 0.4)
        assert done['ride']['loss'] == 'balpoe'


def test_init_takes_the_moving_average(data, tmp_path, caplog):
    decay = ('--model-ema', '--model-ema-decay', '0.5')
    source = train(data, tmp_path, 'ema', *MODEL, *decay, '--lr', '0.5', '--warmup-epochs', '0') / 'last.pth.tar'
    saved = read_checkpoint(source)
    assert not same(saved['state_dict'], saved['state_dict_ema'])
    for key, more in (('state_dict', ()), ('state_dict_ema', ('--init-ema',))):
        caplog.clear()
        done = train(data, tmp_path, key, '--stage', 'router', '--init', str(source), *more)
        assert same(saved[key], read_checkpoint(done / 'last.pth.tar')['state_dict'])
        assert ('holds averaged weights too' in caplog.text) == (not more)


class Foreign:
    """A class that no checkpoint of ours holds."""


@pytest.mark.parametrize('stage', ['experts', 'router', 'heads'])
def test_foreign_files_are_refused(stage, data, tmp_path):
    path = tmp_path / 'foreign.pth.tar'
    torch.save({'state_dict': {}, 'config': Foreign()}, path)
    fails('names Python classes', data, tmp_path, 'a', '--stage', stage, '--init', str(path))
    path.write_bytes(pickle.dumps({'state_dict': {}}))
    fails('is not a training checkpoint', data, tmp_path, 'a', '--stage', stage, '--init', str(path))
    fails('There is no checkpoint', data, tmp_path, 'a', '--stage', stage, '--init', str(tmp_path / 'none.pth.tar'))


def test_what_does_not_fit_is_one_sentence(data, experts, tmp_path):
    fails('does not fit', data, tmp_path, 'a', '--init', str(experts), '--model', 'ride_resnet32_3e')
    wider = ('--model-kwargs', 'channels=8,8,8')
    fails('does not fit', data, tmp_path, 'b', '--init', str(experts), *wider)
    fails('--init and --pretrained', data, tmp_path, 'c', '--init', str(experts), '--pretrained')
    fails('builds on a trained network and no --init', data, tmp_path, 'd', '--stage', 'router')
    fails('holds no moving average', data, tmp_path, 'e', '--init', str(experts), '--init-ema')
    fails('from 0 to 1', data, tmp_path, 'f', '--stage', 'router', '--init', str(experts), '--router-threshold', '2')


def test_a_single_expert_needs_no_router(data, tmp_path):
    single = ('--model', 'ride_resnet32_1e', '--model-kwargs', 'layers=1,1,1')
    checkpoint = train(data, tmp_path, 'single', *single) / 'last.pth.tar'
    fails('needs at least two', data, tmp_path, 'router', '--stage', 'router', '--init', str(checkpoint))
    train(data, tmp_path, 'heads', '--stage', 'heads', '--init', str(checkpoint))


def test_a_run_of_another_stage_is_not_resumed(data, experts, tmp_path):
    folder = train(data, tmp_path, 'run', *MODEL, '--epochs', '2')
    stage = ('--stage', 'heads', '--init', str(experts), '--holdout', '0', '--resume', str(folder / 'last.pth.tar'))
    fails('is of the stage experts and --stage is heads', data, tmp_path, 'other', *stage)
    fails(
        'held out other images',
        data,
        tmp_path,
        'third',
        *MODEL,
        '--holdout',
        '0.25',
        '--resume',
        str(folder / 'last.pth.tar'),
    )


def test_margins_refuse_mixup_before_the_training(data, tmp_path):
    for options in (('--mixup', '0.4'), ('--cutmix', '1.0'), ('--smoothing', '0.1')):
        fails('takes no soft targets', data, tmp_path, 'a', *MODEL, '--loss', 'ride', *options)
    assert not (tmp_path / 'a').exists()
    train(data, tmp_path, 'b', *MODEL, '--loss', 'balpoe', '--mixup', '0.4')


def test_distillation(data, experts, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    before = experts.read_bytes()
    folder = train(data, tmp_path, 'student', *MODEL, '--teacher', str(experts), '--distill-weight', '0.5')
    assert 'Distilling' in caplog.text
    assert 'weight 0.5, temperature 1.5' in caplog.text
    assert experts.read_bytes() == before
    checkpoint = read_checkpoint(folder / 'last.pth.tar')
    assert checkpoint['state_dict'].keys() == read_checkpoint(experts)['state_dict'].keys()
    with (folder / 'summary.csv').open(newline='') as file:
        row = next(csv.DictReader(file))
    assert float(row['train_loss']) > float(row['train_distillation']) * 0.5 > 0.0


def test_a_teacher_of_other_classes_is_refused(experts, tmp_path):
    other = write_images(tmp_path / 'other', {'ant': 12, 'eel': 9})
    fails('was trained on the same classes', other, tmp_path, 'a', *MODEL, '--teacher', str(experts))
    fails('There is no checkpoint', other, tmp_path, 'a', *MODEL, '--teacher', str(tmp_path / 'no.pth.tar'))
    nameless = tmp_path / 'model.safetensors'
    save_file(read_checkpoint(experts)['state_dict'], nameless)
    nameless.with_name('config.json').write_text(json.dumps({'architecture': CIFAR, 'num_classes': 3}))
    fails('does not name its classes', other, tmp_path, 'a', *MODEL, '--teacher', str(nameless))


def test_a_schedule_that_is_cut_off_is_named(data, tmp_path, caplog):
    train(data, tmp_path, 'cut', '--recipe', 'cifar100lt_ride', *MODEL)
    assert '--epochs 1 ends the run before milestone 161, milestone 181, re-weighting epoch 160' in caplog.text


@pytest.mark.parametrize('parts', [('experts.1',), ('experts.0.layer3', 'experts.2.fc')])
def test_train_only_changes_these_parts_alone(data, experts, tmp_path, parts):
    """Statistics of BatchNorm included, and the other experts' heads."""
    options = ('--init', str(experts), '--train-only', *parts, '--loss', 'ride', '--holdout', '0.25', '--lr', '0.1')
    folder = train(data, tmp_path, 'parts', *options, '--warmup-epochs', '0', '--weight-decay', '0.1')
    before, after = (read_checkpoint(path) for path in (experts, folder / 'last.pth.tar'))
    named = tuple(f'{part}.' for part in parts)
    changed = {
        name for name, value in before['state_dict'].items() if not torch.equal(value, after['state_dict'][name])
    }
    assert changed == {name for name in before['state_dict'] if name.startswith(named)}
    assert after['ride']['stage'] == 'experts'
    assert after['ride']['holdout'] == before['ride']['holdout']


def test_balpoe_spreads_its_priors_over_any_number_of_experts(data, tmp_path):
    four = ('--model', 'ride_resnet32_4e', '--model-kwargs', 'layers=(1,1,1)', 'channels=(4,4,4)', '--loss', 'balpoe')
    folder = train(data, tmp_path, 'four', *four)
    checkpoint = read_checkpoint(folder / 'last.pth.tar')
    assert checkpoint['ride']['tau'] == pytest.approx((0.0, 2 / 3, 4 / 3, 2.0))
    assert list(checkpoint['args']['loss_kwargs']['tau']) == list(checkpoint['ride']['tau'])
    folder = train(data, tmp_path, 'given', *four, '--loss-kwargs', 'tau=(1.0,1.0,1.0,1.0)')
    assert list(read_checkpoint(folder / 'last.pth.tar')['ride']['tau']) == [1.0] * 4


def test_train_only_says_what_it_needs(data, experts, tmp_path):
    fails('give --init, or --pretrained', data, tmp_path, 'no', *MODEL, '--train-only', 'experts')
    begun = ('--init', str(experts), '--train-only')
    fails('did you mean experts.0.layer3', data, tmp_path, 'no', *begun, 'experts.0.layer33')
    fails('--train-only', data, tmp_path, 'no', *begun, 'experts', '--stage', 'heads')


def test_a_network_of_one_size_is_built_for_the_size_of_the_images(tmp_path):
    """Each stage on a ViT, and one on its weights at another size."""
    data = write_images(tmp_path / 'data')
    small = [
        '--model-kwargs',
        'backbone=vit_tiny_patch16_224',
        'num_experts=2',
        'embed_dim=16',
        'depth=2',
        'num_heads=2',
    ]
    run = train(data, tmp_path, 'vit', '--model', 'ride', *small, size=32)
    router = train(data, tmp_path, 'router', '--stage', 'router', '--init', str(run), size=32)
    larger = train(data, tmp_path, 'larger', '--init', str(run), size=48)
    tables = [load(path).model.state_dict()['trunk.pos_embed'].shape[1] for path in (run, router, larger)]
    assert tables == [5, 5, 10]
