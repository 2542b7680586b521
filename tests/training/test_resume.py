"""N epochs in one go are, bit by bit, k epochs, a kill, and the same command again."""

import pytest
import torch
from crash_tools import Killed, assert_same_run, kill_at, load, options, rows, run_command
from tiny_runs import write_images

from ride_timm.training.resume import _check_state
from ride_timm.training.saver import RunSaver

# a machine with a single core: two loading processes are still two
pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')

CASES = {
    # the classes are re-weighted from epoch 2 on, which the second part alone reaches
    'reweighting': ['--loss', 'ride', '--reweight-epoch', '2', '--opt-kwargs', 'nesterov=True'],
    'moving average': ['--model-ema', '--model-ema-decay', '0.9', '--model-ema-warmup', '--sched-on-updates'],
    'bfloat16': ['--amp', '--amp-dtype', 'bfloat16', '--clip-grad', '1', '--checkpoint-hist', '3'],
    'float16': ['--amp', '--amp-dtype', 'float16', '--clip-grad', '5'],
    'balanced': ['--sampler', 'balanced', '--grad-accum-steps', '2', '--opt', 'adamw'],
    'progressive': [
        '--sampler',
        'progressive',
        '--eval-metric',
        'loss',
        '--sched',
        'multistep',
        '--decay-milestones',
        '2',
    ],
    'mixup': ['--loss', 'balpoe', '--mixup', '0.5', '--cutmix', '0.5', '--smoothing', '0.1', '--mixup-off-epoch', '2'],
    'workers': ['-j', '2', '--augmentation', 'timm', '--reprob', '0.5', '--drop', '0.2', '--val-interval', '2'],
    'on the device': ['--data-on-device', '--loss', 'balpoe'],
    'mean over epochs': ['--average-epochs', '2', '--loss', 'balpoe', '--amp', '--amp-dtype', 'bfloat16'],
    'AutoAugment on the device': ['--data-on-device', '--augmentation', 'cifar_aa'],
    'crops on the device': ['--data-on-device', '--augmentation', 'timm', '--interpolation', 'bilinear'],
    'class accuracy': ['--loss', 'balpoe', '--mutual-gated', '1', '--soft-suppression', '0.02', '--mixup', '0.4'],
    'heavy augmentation': ['--augmentation', 'timm', '--aa', 'rand-m9-mstd0.5', '--opt', 'lamb'],
}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


def forget_random_state():
    torch.manual_seed(123)


@pytest.mark.parametrize('more', CASES.values(), ids=CASES.keys())
def test_resumed_is_never_interrupted(data, tmp_path, monkeypatch, more):
    assert run_command(options(data, tmp_path, 'straight', *more)) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, epoch=1, batch=3)
        run_command(options(data, tmp_path, 'broken', *more))
    assert load(tmp_path / 'broken/last.pth.tar')['epoch'] == 0
    forget_random_state()
    assert run_command(options(data, tmp_path, 'broken', *more)) == 0
    assert_same_run(tmp_path / 'straight', tmp_path / 'broken')
    assert [row['epoch'] for row in rows(tmp_path / 'broken')] == ['0', '1', '2']


def test_epochs_differ(data, tmp_path):
    """The comparison can fail: without the same seed nothing is the same."""
    for name, seed in (('a', '1'), ('b', '2')):
        assert run_command(options(data, tmp_path, name, '--epochs', '1', '--seed', seed)) == 0
    with pytest.raises(AssertionError):
        assert_same_run(tmp_path / 'a', tmp_path / 'b')


@pytest.mark.parametrize('stage', ['router', 'heads'])
def test_later_stages_resume_too(data, tmp_path, monkeypatch, stage):
    assert run_command(options(data, tmp_path, 'experts', '--epochs', '1', '--holdout', '0.25')) == 0
    more = ['--stage', stage, '--init', str(tmp_path / 'experts/last.pth.tar')]
    assert run_command(options(data, tmp_path, 'straight', *more)) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, epoch=2, batch=0)
        run_command(options(data, tmp_path, 'broken', *more))
    forget_random_state()
    assert run_command(options(data, tmp_path, 'broken', *more)) == 0
    assert_same_run(tmp_path / 'straight', tmp_path / 'broken')


def test_killed_in_the_first_epoch(data, tmp_path, monkeypatch):
    assert run_command(options(data, tmp_path, 'straight')) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, epoch=0, batch=2)
        run_command(options(data, tmp_path, 'broken'))
    assert load(tmp_path / 'broken/last.pth.tar')['epoch'] == -1
    assert run_command(options(data, tmp_path, 'broken')) == 0
    assert_same_run(tmp_path / 'straight', tmp_path / 'broken')


def test_killed_before_the_results_are_written(data, tmp_path, monkeypatch):
    def killed(*args):
        raise Killed

    assert run_command(options(data, tmp_path, 'straight')) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr('ride_timm.training.run.write_results', killed)
        run_command(options(data, tmp_path, 'broken'))
    assert not (tmp_path / 'broken/results.json').exists()
    assert run_command(options(data, tmp_path, 'broken')) == 0
    assert_same_run(tmp_path / 'straight', tmp_path / 'broken')


@pytest.mark.parametrize('when', ['before', 'after'])
def test_killed_between_the_row_and_the_checkpoint(data, tmp_path, monkeypatch, when):
    save = RunSaver.save_checkpoint

    def killed(self, epoch, metric=None):
        if epoch == 1 and when == 'before':
            raise Killed
        best = save(self, epoch, metric)
        if epoch == 1:
            raise Killed
        return best

    assert run_command(options(data, tmp_path, 'straight')) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunSaver, 'save_checkpoint', killed)
        run_command(options(data, tmp_path, 'broken'))
    assert load(tmp_path / 'broken/last.pth.tar')['epoch'] == (0 if when == 'before' else 1)
    assert run_command(options(data, tmp_path, 'broken')) == 0
    assert_same_run(tmp_path / 'straight', tmp_path / 'broken')


def test_a_finished_run_is_left_alone(data, tmp_path):
    command = options(data, tmp_path, 'run', '--epochs', '1')
    assert run_command(command) == 0
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'run').iterdir() if path.name != 'args.yaml'}
    assert run_command(command) == 0
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'run').iterdir() if path.name != 'args.yaml'}
    assert before == after


def test_more_epochs_go_on_where_it_ended(data, tmp_path):
    constant = ['--sched', 'constant', '--reweight-epoch', '-1']
    assert run_command(options(data, tmp_path, 'straight', *constant)) == 0
    assert run_command(options(data, tmp_path, 'longer', *constant, '--epochs', '2')) == 0
    assert run_command(options(data, tmp_path, 'longer', *constant)) == 0
    assert_same_run(tmp_path / 'straight', tmp_path / 'longer')


def test_another_learning_rate_holds_and_is_named(data, tmp_path, caplog):
    constant = ['--sched', 'none', '--momentum', '0.5', '--weight-decay', '0.1']
    assert run_command(options(data, tmp_path, 'run', *constant, '--epochs', '1')) == 0
    constant = ['--sched', 'none', '--momentum', '0.25', '--weight-decay', '0.5']
    assert run_command(options(data, tmp_path, 'run', *constant, '--lr', '0.007', '--epochs', '2')) == 0
    assert 'lr 0.02 -> 0.007' in caplog.text
    assert [float(row['lr']) for row in rows(tmp_path / 'run')] == [0.02, 0.007]
    group = load(tmp_path / 'run/last.pth.tar')['optimizer']['param_groups'][-1]
    assert (group['lr'], group['momentum'], group['weight_decay']) == (0.007, 0.25, 0.5)


def test_the_same_options_are_not_remarked_on(data, tmp_path, caplog):
    assert run_command(options(data, tmp_path, 'run', '--epochs', '1', '--loss-kwargs', 'rho=0.1')) == 0
    assert run_command(options(data, tmp_path, 'run', '--epochs', '1', '--loss-kwargs', 'rho=0.1')) == 0
    assert 'Different from the checkpoint' not in caplog.text


def test_going_back_to_an_earlier_checkpoint(data, tmp_path):
    hist = ['--checkpoint-hist', '3', '--eval-metric', 'loss']
    assert run_command(options(data, tmp_path, 'straight', *hist)) == 0
    assert run_command(options(data, tmp_path, 'back', *hist)) == 0
    earlier = str(tmp_path / 'back/checkpoint-0.pth.tar')
    assert run_command(options(data, tmp_path, 'back', *hist, '--resume', earlier)) == 0
    assert rows(tmp_path / 'straight') == rows(tmp_path / 'back')
    best = [load(tmp_path / name / 'model_best.pth.tar') for name in ('straight', 'back')]
    assert best[0]['epoch'] == best[1]['epoch']
    assert load(tmp_path / 'back/last.pth.tar')['epoch'] == 2


def test_ranking_by_another_figure_starts_anew(data, tmp_path):
    """A loss of 1 is not better than an accuracy of 50, and 50 % no better than a loss of 1."""
    constant = ['--sched', 'constant', '--reweight-epoch', '-1', '--checkpoint-hist', '2']
    for first, second, choose in (('top1', 'loss', min), ('loss', 'top1', max)):
        assert run_command(options(data, tmp_path, first, *constant, '--epochs', '2', '--eval-metric', first)) == 0
        assert run_command(options(data, tmp_path, first, *constant, '--epochs', '4', '--eval-metric', second)) == 0
        scores = [float(row[f'eval_{second}']) for row in rows(tmp_path / first)][2:]
        best = load(tmp_path / first / 'model_best.pth.tar')
        assert best['epoch'] == 2 + scores.index(choose(scores))


def test_going_on_in_another_folder(data, tmp_path):
    assert run_command(options(data, tmp_path, 'straight')) == 0
    assert run_command(options(data, tmp_path, 'first', '--checkpoint-hist', '3')) == 0
    source = str(tmp_path / 'first/checkpoint-1.pth.tar')
    assert run_command(options(data, tmp_path, 'second', '--resume', source)) == 0
    states = [load(tmp_path / name / 'last.pth.tar')['state_dict'] for name in ('straight', 'second')]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert [row['epoch'] for row in rows(tmp_path / 'second')] == ['2']


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(data, tmp_path):
    assert run_command(options(data, tmp_path, 'first')) == 0
    assert run_command(options(data, tmp_path, 'second', '--epochs', '4', '--resume', str(tmp_path / 'first'))) == 0
    assert [row['epoch'] for row in rows(tmp_path / 'second')] == ['3']
    first = str(tmp_path / 'first')
    assert run_command(options(data, tmp_path, 'first', '--epochs', '4', '--resume', first)) == 0
    states = [load(tmp_path / name / 'last.pth.tar')['state_dict'] for name in ('first', 'second')]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_a_folder_without_a_run_is_refused(data, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    assert run_command(options(data, tmp_path, 'run', '--resume', str(tmp_path / 'empty'))) != 0
    missing = tmp_path / 'empty/last.pth.tar'
    assert f'There is no checkpoint {missing}; give the path of a last.pth.tar' in capsys.readouterr().err


def test_an_optimizer_state_in_another_order_is_refused():
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 2), (4,))]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    state = optimizer.state_dict()
    _check_state(optimizer)
    state['state'][0], state['state'][1] = state['state'][1], state['state'][0]
    optimizer.load_state_dict(state)  # PyTorch takes it
    with pytest.raises(ValueError, match='momentum_buffer'):
        _check_state(optimizer)
