"""What a run leaves behind, whose word counts, and that the parts add up."""

import csv
import json
from pathlib import Path

import pytest
import timm
import torch
import yaml
from configs import resolved
from crash_tools import load, options, rows, run_command
from timm.models import load_checkpoint
from tiny_runs import CIFAR, COUNTS, write_images

from ride_timm.commands.train import main
from ride_timm.commands.validate import build_parser, validate


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    output = tmp_path_factory.mktemp('output')
    assert run_command(options(data, output, 'run', '--resume', '', '--model-ema', '--model-ema-decay', '0.5')) == 0
    return output / 'run'


FILES = {
    'args.yaml', 'last.pth.tar', 'model_best.pth.tar', 'per_class.csv', 'results.json', 'summary.csv',
}  # fmt: skip


def test_files_of_a_run(run):
    names = {path.name for path in run.iterdir()}
    assert names - {name for name in names if name.startswith('checkpoint-')} == FILES
    settings = yaml.safe_load((run / 'args.yaml').read_text())
    assert settings['experiment'] == 'run'
    assert settings['loss'] == 'balpoe'
    results = json.loads((run / 'results.json').read_text())
    last = rows(run)[-1]
    assert results['last_epoch'] == 2
    for name, value in results['last'].items():
        assert float(last[f'eval_{name}']) == value
    with (run / 'per_class.csv').open() as file:
        table = list(csv.DictReader(file))
    assert [(row['name'], int(row['train_images'])) for row in table] == list(COUNTS.items())


def test_checkpoint_says_what_it_is(run):
    state = load(run / 'last.pth.tar')
    assert (state['epoch'], state['arch'], state['version']) == (2, CIFAR, 2)
    assert state['ride']['class_names'] == list(COUNTS)
    assert state['ride']['class_counts'] == list(COUNTS.values())


def test_best_is_that_of_the_table(run):
    scores = [float(row['eval_top1']) for row in rows(run)]
    best = load(run / 'model_best.pth.tar')
    assert best['epoch'] == scores.index(max(scores))
    found = json.loads((run / 'results.json').read_text())['best_on_evaluation_images']
    assert found == {'top1': max(scores), 'epoch': best['epoch']}


@pytest.mark.parametrize(('metric', 'choose'), [('loss', min), ('ece', min), ('expert1_top1', max), ('few', max)])
def test_other_figures_rank_too(data, tmp_path, metric, choose):
    assert run_command(options(data, tmp_path, 'run', '--eval-metric', metric)) == 0
    scores = [float(row[f'eval_{metric}']) for row in rows(tmp_path / 'run')]
    assert load(tmp_path / 'run/model_best.pth.tar')['epoch'] == scores.index(choose(scores))


@pytest.fixture(scope='module')
def unbalanced(tmp_path_factory):
    """Images whose evaluation part has 9, 4 and 2 of a class."""
    root = write_images(tmp_path_factory.mktemp('unbalanced'), val=9)
    for name, kept in (('bee', 4), ('cat', 2)):
        for path in sorted((root / 'val' / name).iterdir())[kept:]:
            path.unlink()
    return root


def test_the_mean_over_classes_ranks_on_unbalanced_images(unbalanced, tmp_path, caplog):
    assert run_command(options(unbalanced, tmp_path, 'run')) == 0
    found = rows(tmp_path / 'run')
    scores = [float(row['eval_balanced']) for row in found]
    assert scores != [float(row['eval_top1']) for row in found]
    results = json.loads((tmp_path / 'run/results.json').read_text())
    assert results['best_on_evaluation_images'] == {'balanced': max(scores), 'epoch': scores.index(max(scores))}
    assert next(iter(results['last'])) == 'balanced'
    classes = results['test']['per_class']
    assert sum(row['predicted'] for row in classes) == results['last']['num_images']
    assert all(0 <= row['accuracy_low'] <= row['accuracy'] + 1e-9 for row in classes)
    assert all(row['accuracy'] <= row['accuracy_high'] + 1e-9 for row in classes)
    assert load(tmp_path / 'run/model_best.pth.tar')['epoch'] == scores.index(max(scores))
    assert yaml.safe_load((tmp_path / 'run/args.yaml').read_text())['eval_metric'] == 'balanced'
    assert '2 to 9 per class' in caplog.text
    assert f'images/s; balanced {scores[0]:.2f}, top1 {float(found[0]["eval_top1"]):.2f}, ' in caplog.text
    with (tmp_path / 'run/per_class.csv').open() as file:
        table = list(csv.DictReader(file))
    assert sum(int(row['correct']) for row in table) == round(results['last']['top1'] * 15 / 100)
    assert sum(float(row['accuracy']) for row in table) / 3 == pytest.approx(scores[-1])


def test_balanced_images_rank_the_same_by_either(data, run, tmp_path):
    assert yaml.safe_load((run / 'args.yaml').read_text())['eval_metric'] == 'top1'
    assert run_command(options(data, tmp_path, 'run', '--eval-metric', 'balanced')) == 0
    table = rows(tmp_path / 'run')
    assert [float(row['eval_balanced']) for row in table] == pytest.approx([float(row['eval_top1']) for row in table])
    assert list(table[0]).index('eval_top1') < list(table[0]).index('eval_balanced')


@pytest.mark.parametrize('given', ['top1', 'few'])
def test_a_resumed_run_ranks_as_before(unbalanced, tmp_path, given, caplog):
    assert run_command(options(unbalanced, tmp_path, 'run', '--epochs', '1', '--eval-metric', given)) == 0
    assert run_command(options(unbalanced, tmp_path, 'run', '--epochs', '2')) == 0
    assert yaml.safe_load((tmp_path / 'run/args.yaml').read_text())['eval_metric'] == given
    assert 'eval_metric' not in caplog.text
    assert run_command(options(unbalanced, tmp_path, 'run', '--epochs', '3', '--eval-metric', 'balanced')) == 0
    assert f'eval_metric {given} -> balanced' in caplog.text


def test_held_out_images_and_the_router_rank_by_the_mean_over_classes(data, tmp_path):
    holdout = ['--holdout', '0.3', '--epochs', '1']
    assert run_command(options(data, tmp_path, 'experts', *holdout)) == 0
    init = ['--stage', 'router', '--init', str(tmp_path / 'experts/last.pth.tar')]
    assert run_command(options(data, tmp_path, 'router', *holdout, *init)) == 0
    for name in ('experts', 'router'):
        found = json.loads((tmp_path / name / 'results.json').read_text())
        assert found['best_on_evaluation_images'] == {'balanced': found['last']['balanced'], 'epoch': 0}


@pytest.mark.parametrize('ema', [False, True])
def test_timms_tools_read_the_checkpoint(run, ema):
    net = timm.create_model(CIFAR, num_classes=3)
    load_checkpoint(net, str(run / 'last.pth.tar'), use_ema=ema)
    saved = load(run / 'last.pth.tar')['state_dict_ema' if ema else 'state_dict']
    assert all(torch.equal(value, saved[name]) for name, value in net.state_dict().items())
    again = timm.create_model(CIFAR, num_classes=3, checkpoint_path=str(run / 'model_best.pth.tar'))
    assert not torch.equal(again.conv1.weight, timm.create_model(CIFAR, num_classes=3).conv1.weight)


def measure(data, path, *more):
    argv = ['--checkpoint', str(path), '--data-dir', str(data), '--device', 'cpu', '-b', '8', *more]
    return validate(build_parser().parse_args(argv))


@pytest.mark.parametrize('more', [[], ['--model-ema', '--model-ema-decay', '0.5'], ['--amp']], ids=' '.join)
def test_validate_gives_the_figures_of_the_table(data, tmp_path, more):
    assert run_command(options(data, tmp_path, 'run', *more)) == 0
    last = rows(tmp_path / 'run')[-1]
    use = ['--use-ema'] if '--model-ema' in more else []  # in float32, also after --amp
    figures = {name.removeprefix('eval_'): float(value) for name, value in last.items() if name.startswith('eval_')}
    for found in (
        measure(data, tmp_path / 'run/last.pth.tar', *use),
        measure(data, tmp_path / 'run', *({*use} - {'--use-ema'})),  # the folder stands for what the run measured
    ):
        assert figures == {name: found[name] for name in figures}


@pytest.mark.parametrize(('metric', 'mode'), [('top1', 'max'), ('ece', 'min'), ('loss', 'min')])
def test_a_plateau_is_one_of_the_figure_that_ranks(data, tmp_path, monkeypatch, metric, mode):
    import ride_timm.training.run as module

    create, found = module.create_scheduler_v2, []

    def noted(*args, **kwargs):
        scheduler, epochs = create(*args, **kwargs)
        found.append(scheduler.lr_scheduler.mode)
        return scheduler, epochs

    monkeypatch.setattr(module, 'create_scheduler_v2', noted)
    with pytest.warns(FutureWarning, match='PlateauLRScheduler'):
        run_command(options(data, tmp_path, 'run', '--sched', 'plateau', '--epochs', '1', '--eval-metric', metric))
    assert found == [mode]


def test_a_second_run_is_refused(data, run, capsys):
    before = (run / 'last.pth.tar').read_bytes()
    assert run_command(options(data, run.parent, 'run', '--resume', '')) == 2
    assert 'holds a run already; add --resume auto' in capsys.readouterr().err
    assert (run / 'last.pth.tar').read_bytes() == before


def test_anothers_checkpoint_does_not_replace_a_run(data, run, tmp_path, capsys):
    assert run_command(options(data, tmp_path, 'run', '--epochs', '1')) == 0
    before = (tmp_path / 'run/last.pth.tar').read_bytes()
    capsys.readouterr()
    assert run_command(options(data, tmp_path, 'run', '--resume', str(run / 'last.pth.tar'))) == 2
    assert 'holds a run of its own' in capsys.readouterr().err
    assert (tmp_path / 'run/last.pth.tar').read_bytes() == before


def test_the_folder_is_taken_from_the_start(data, tmp_path, monkeypatch):
    """A second run that starts during the first epoch of one must not share its folder."""
    import ride_timm.training.run as module

    epoch = module.train_epoch
    found = []

    def watched(*args):
        found.append(load(tmp_path / 'run/last.pth.tar')['epoch'])
        return epoch(*args)

    monkeypatch.setattr(module, 'train_epoch', watched)
    assert run_command(options(data, tmp_path, 'run')) == 0
    assert found == [-1, 0, 1]


def test_precedence(data, tmp_path, caplog):
    """Explicit flag > recipe > picked from the data > timm's default."""
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text('momentum: 0.5\nweight_decay: 0.25\nloss: balpoe\naugmentation: timm\nmodel: ' + CIFAR)
    argv = ['--recipe', str(recipe), '--data-dir', str(data), '--img-size', '8', '-b', '8', '--epochs', '1']
    more = ['--lr', '0.01', '--momentum', '0.75', '--device', 'cpu', '--output', str(tmp_path), '--experiment', 'run']
    caplog.set_level('INFO')
    assert main([*argv, *more]) == 0
    used = yaml.safe_load((tmp_path / 'run/args.yaml').read_text())
    assert used['momentum'] == 0.75  # the flag
    assert used['weight_decay'] == 0.25  # the recipe
    assert (used['loss'], used['augmentation']) == ('balpoe', 'timm')  # the recipe, over what would be picked
    assert used['workers'] == 0  # picked, for images of 8 pixels; timm's default is 4
    assert '--workers 0' in caplog.text
    assert used['opt'] == 'sgd'  # timm's default
    assert '--loss' not in caplog.text


def test_an_explicit_default_wins_over_the_recipe(tmp_path):
    (tmp_path / 'recipe.yaml').write_text('momentum: 0.5\n')
    assert resolved(['--recipe', str(tmp_path / 'recipe.yaml')]).momentum == 0.5
    assert resolved(['--recipe', str(tmp_path / 'recipe.yaml'), '--momentum', '0.9']).momentum == 0.9


def test_default_folder(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ['--data-dir', str(data), '--model', CIFAR, '--img-size', '8', '-b', '8', '--epochs', '1', '--device', 'cpu']
    assert main(argv) == 0
    assert Path('output', f'{CIFAR}-{data.name}-balpoe', 'last.pth.tar').exists()


def test_the_same_seed_is_the_same_run(data, tmp_path):
    for name in 'ab':
        assert run_command(options(data, tmp_path, name, '--epochs', '1', '--seed', '5')) == 0
        torch.manual_seed(len(name))
    states = [load(tmp_path / name / 'last.pth.tar')['state_dict'] for name in 'ab']
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_learning_rate_at_the_start_of_each_epoch(data, tmp_path):
    """Warm-up of 2 epochs from 0.01 to 0.05, then a tenth from epoch 3 (timm applies milestone m at index m - 1)."""
    schedule = ['--sched', 'multistep', '--decay-milestones', '4', '--decay-rate', '0.1', '--lr', '0.05']
    warm = ['--warmup-epochs', '2', '--warmup-lr', '0.01', '--epochs', '5']
    assert run_command(options(data, tmp_path, 'run', *schedule, *warm)) == 0
    found = [float(row['lr']) for row in rows(tmp_path / 'run')]
    assert found == pytest.approx([0.01, 0.03, 0.05, 0.005, 0.005])


def test_clipping_spares_no_head_but_for_agc(data, tmp_path):
    """Adaptive clipping leaves all K heads alone; timm's own rule would spare the last two parameters."""
    from ride_timm.losses import create_loss
    from ride_timm.tasks import RideTask

    net = timm.create_model(CIFAR, num_classes=3)
    task = RideTask(net, create_loss('ce'))
    heads = {id(expert.fc.weight) for expert in net.experts}
    assert heads <= {id(p) for p in task.get_clip_parameters()}
    spared = {id(p) for p in net.parameters()} - {id(p) for p in task.get_clip_parameters(exclude_head=True)}
    assert spared == heads
    for mode in ('norm', 'value', 'agc'):
        more = ['--epochs', '1', '--clip-grad', '0.1', '--clip-mode', mode]
        assert run_command(options(data, tmp_path, mode, *more)) == 0


def test_clipping_is_that_of_torch(data, tmp_path, monkeypatch):
    """Every step is taken with gradients of at most the given norm."""
    norms = []
    step = torch.optim.SGD.step

    def noted(self, *args, **kwargs):
        norms.append(torch.nn.utils.get_total_norm([p.grad for g in self.param_groups for p in g['params']]).item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.SGD, 'step', noted)
    assert run_command(options(data, tmp_path, 'run', '--epochs', '1', '--clip-grad', '0.5')) == 0
    assert max(norms) == pytest.approx(0.5, rel=1e-4)
