"""Going on where checkpoints are damaged or missing, and what is said of options that are not those of before."""

import os
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from crash_tools import Killed, assert_same, assert_same_run, kill_at, load, options, rows, run_command
from tiny_runs import write_images

from ride_timm.commands.train import build_parser
from ride_timm.training import saver as checkpoints
from ride_timm.training.config import ResolvedConfig
from ride_timm.training.resume import HARMLESS, report_changes

# a machine with a single core: two loading processes are still two
pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')

# losses rank the epochs, so that the best of these runs is neither the first nor the last of all
KEEP = ['--checkpoint-hist', '3', '--eval-metric', 'loss']


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def straight(data, tmp_path_factory):
    output = tmp_path_factory.mktemp('straight')
    assert run_command(options(data, output, 'run', *KEEP)) == 0
    return output / 'run'


@pytest.fixture(scope='module')
def first(data, tmp_path_factory):
    """A run of one epoch of two, which others go on from."""
    output = tmp_path_factory.mktemp('first')
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, epoch=1, batch=0)
        run_command(options(data, output, 'run', '--epochs', '2'))
    return output / 'run'


def replace(path, content):
    """Other bytes in place of a file that may share its own with further names."""
    path.unlink()
    if content is not None:
        path.write_bytes(content)


def damage(path, how):
    whole = path.read_bytes()
    replace(path, {'cut off': whole[: len(whole) // 2], 'empty': b'', 'zeros': bytes(len(whole)), 'missing': None}[how])


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize('how', ['cut off', 'empty', 'zeros', 'missing'])
def test_the_newest_whole_checkpoint_takes_the_place_of_last(data, straight, tmp_path, caplog, how):
    run = shutil.copytree(straight, tmp_path / 'run')
    for name in ('last', 'checkpoint-2'):
        damage(run / f'{name}.pth.tar', how)
    bad = None if how == 'missing' else (run / 'last.pth.tar').read_bytes()
    assert run_command(options(data, tmp_path, 'run', *KEEP)) == 0
    warned = [record.getMessage() for record in caplog.records if record.levelname == 'WARNING']
    assert len(warned) == 1
    for name in ('last', 'checkpoint-1'):
        assert str(run / f'{name}.pth.tar') in warned[0]
    kept = run / 'damaged-last.pth.tar'
    assert (kept.read_bytes() if kept.exists() else None) == bad
    kept.unlink(missing_ok=True)
    assert_same_run(straight, run)


def test_the_best_alone_is_gone_on_from(data, straight, tmp_path):
    (tmp_path / 'run').mkdir()
    shutil.copy(straight / 'model_best.pth.tar', tmp_path / 'run')
    assert run_command(options(data, tmp_path, 'run', *KEEP)) == 0
    assert_same(load(straight / 'last.pth.tar')['state_dict'], load(tmp_path / 'run/last.pth.tar')['state_dict'])


def test_without_a_whole_checkpoint_nothing_is_touched(data, straight, tmp_path, capsys):
    run = shutil.copytree(straight, tmp_path / 'run')
    for path in run.glob('*.pth.tar'):
        damage(path, 'cut off')
    before = files(run)
    assert run_command(options(data, tmp_path, 'run', *KEEP)) == 2
    assert 'last.pth.tar' in capsys.readouterr().err
    assert files(run) == before


REFUSED = [['--eval-metric', 'none_such'], ['--log', 'trackio'], ['--opt', 'adamw'], ['--aa', 'none_such']]


@pytest.mark.parametrize('more', REFUSED, ids=lambda more: more[0])
def test_a_refused_command_leaves_the_run_as_it_was(data, straight, tmp_path, monkeypatch, more):
    """Also where it goes back, which makes an earlier checkpoint the last one."""
    run = shutil.copytree(straight, tmp_path / 'run')
    before = files(run)
    monkeypatch.setitem(sys.modules, 'trackio', None)  # as if it were not installed
    earlier = ['--resume', str(run / 'checkpoint-0.pth.tar'), '--augmentation', 'timm']
    assert run_command(options(data, tmp_path, 'run', *earlier, *more)) == 2
    assert files(run) == before


def test_checkpoints_without_last_are_not_overwritten(data, straight, tmp_path, capsys):
    run = shutil.copytree(straight, tmp_path / 'run')
    (run / 'last.pth.tar').unlink()
    before = files(run)
    assert run_command(options(data, tmp_path, 'run', '--resume', '')) == 2
    assert '--resume auto' in capsys.readouterr().err
    other = shutil.copytree(straight, tmp_path / 'other') / 'last.pth.tar'
    assert run_command(options(data, tmp_path, 'run', '--resume', str(other))) == 2
    assert '--resume auto' in capsys.readouterr().err
    assert files(run) == before


@pytest.mark.parametrize('how', ['cut off', 'missing'])
@pytest.mark.parametrize('named', ['folder', 'file'])
def test_a_named_checkpoint_is_not_silently_another(data, straight, tmp_path, capsys, how, named):
    run = shutil.copytree(straight, tmp_path / 'run')
    damage(run / 'last.pth.tar', how)
    before = files(run)
    source = run if named == 'folder' else run / 'last.pth.tar'
    assert run_command(options(data, tmp_path, 'run', '--resume', str(source))) == 2
    assert f'--resume {run}/checkpoint-2.pth.tar' in capsys.readouterr().err
    assert files(run) == before


def test_a_file_that_cannot_be_read_is_not_taken_for_a_damaged_one(data, straight, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(straight, tmp_path / 'run')
    read = torch.load

    def fail(path, **kwargs):
        if os.fspath(path).endswith('last.pth.tar'):
            raise OSError(5, 'Input/output error')
        return read(path, **kwargs)

    before = files(run)
    monkeypatch.setattr(checkpoints.torch, 'load', fail)
    assert run_command(options(data, tmp_path, 'run', *KEEP)) == 2
    assert 'Input/output error' in capsys.readouterr().err
    assert files(run) == before


def test_results_of_an_earlier_end_go_with_its_weights(data, tmp_path, monkeypatch):
    constant = ['--sched', 'constant', '--reweight-epoch', '-1']
    assert run_command(options(data, tmp_path, 'run', *constant, '--epochs', '1')) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, epoch=1, batch=1)
        run_command(options(data, tmp_path, 'run', *constant))
    assert (tmp_path / 'run/results.json').exists()  # those of `last` as it still is
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, epoch=2, batch=1)
        run_command(options(data, tmp_path, 'run', *constant))
    assert load(tmp_path / 'run/last.pth.tar')['epoch'] == 1
    for name in ('results.json', 'per_class.csv'):
        assert not (tmp_path / 'run' / name).exists()
    assert run_command(options(data, tmp_path, 'straight', *constant)) == 0
    assert run_command(options(data, tmp_path, 'run', *constant)) == 0
    assert_same_run(tmp_path / 'straight', tmp_path / 'run')


def test_results_of_an_earlier_end_do_not_outlive_a_kill_at_the_next(data, tmp_path, monkeypatch):
    def killed(*args):
        raise Killed

    constant = ['--sched', 'constant', '--reweight-epoch', '-1']
    assert run_command(options(data, tmp_path, 'straight', *constant)) == 0
    assert run_command(options(data, tmp_path, 'run', *constant, '--epochs', '2')) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr('ride_timm.training.run.write_results', killed)
        run_command(options(data, tmp_path, 'run', *constant))
    assert run_command(options(data, tmp_path, 'run', *constant)) == 0
    assert_same_run(tmp_path / 'straight', tmp_path / 'run')


def named(caplog):
    return ' '.join(line for line in caplog.messages if 'Different from the checkpoint' in line)


CHANGES = {
    'workers': ['-j', '2'],
    'teacher': ['--teacher', 'RUN'],
    'model_kwargs.head': ['--model-kwargs', 'head=cosine', 'layers=(1,1,1)'],
    'loss_kwargs.rho': ['--loss-kwargs', 'rho=0.3'],
    'data_config.mean': ['--mean', '0.5', '0.5', '0.5'],
    'hflip': ['--hflip', '0'],
    'seed': ['--seed', '7'],
}


@pytest.mark.parametrize(('option', 'more'), CHANGES.items(), ids=CHANGES.keys())
def test_an_option_that_changes_the_weights_is_named(data, first, tmp_path, caplog, option, more):
    run = shutil.copytree(first, tmp_path / 'run')
    more = [str(first) if word == 'RUN' else word for word in more]
    run_command(options(data, tmp_path, 'run', '--epochs', '2', *more))  # another head's weights do not fit
    assert f'{option} ' in named(caplog)
    assert run.exists()


SAME = {'train_digest': '', 'teacher': None}


@pytest.mark.parametrize(
    ('before', 'now', 'told'),
    [
        ({'device': 'cpu'}, {'device': 'cuda'}, 'device cpu -> cuda'),
        ({'device': 'cuda:0'}, {'device': 'cuda:1'}, ''),
        ({'workers': 2, 'data_on_device': True}, {'workers': 4, 'data_on_device': True}, ''),
        ({'workers': 2, 'data_on_device': False}, {'workers': 4, 'data_on_device': False}, 'workers 2 -> 4'),
        ({'color_jitter': (0.4,)}, {'color_jitter': [0.4]}, ''),
        ({'model_kwargs': {'router_threshold': 0.5}}, {'model_kwargs': {}}, ''),
        ({'model_kwargs': {'router': True}}, {'model_kwargs': {}}, 'model_kwargs.router True -> None'),
        ({}, {'seed': 1}, ''),  # an option that the version that trained it did not have
    ],
)  # fmt: skip
def test_what_counts_as_another_value(caplog, before, now, told):
    common = {'device': 'cpu'}
    report_changes(ResolvedConfig(**common | now), {'args': common | before}, None, SAME)
    assert named(caplog).partition(': ')[2].removesuffix('.') == told


def without_workers(argv):
    at = argv.index('-j')
    return argv[:at] + argv[at + 2 :]


def test_the_number_of_loading_processes_stays_the_checkpoints(data, tmp_path, monkeypatch, caplog):
    command = [*options(data, tmp_path, 'run', '--epochs', '2'), '-j', '2']
    assert run_command([*options(data, tmp_path, 'straight', '--epochs', '2'), '-j', '2']) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, epoch=1, batch=0)
        run_command(command)
    assert run_command(without_workers(without_workers(command))) == 0
    assert '--workers 2' in caplog.text
    assert named(caplog) == ''
    states = [load(tmp_path / name / 'last.pth.tar')['state_dict'] for name in ('straight', 'run')]
    assert_same(*states)


def test_other_images_of_the_same_classes_are_named(data, first, tmp_path, caplog):
    shutil.copytree(first, tmp_path / 'run')
    other = shutil.copytree(data, tmp_path / 'images')
    (other / 'train/ant/0.png').rename(other / 'train/ant/other.png')
    assert run_command(options(other, tmp_path, 'run', '--epochs', '2')) == 0
    assert 'training images' in named(caplog)


def test_a_teacher_is_known_by_its_weights(data, first, tmp_path, caplog):
    shutil.copytree(first, tmp_path / 'teacher')
    more = ['--teacher', str(tmp_path / 'teacher'), '--sched', 'constant', '--reweight-epoch', '-1']
    assert run_command(options(data, tmp_path, 'run', *more, '--epochs', '1')) == 0
    (tmp_path / 'teacher').rename(tmp_path / 'moved')
    more[1] = str(tmp_path / 'moved')
    assert run_command(options(data, tmp_path, 'run', *more, '--epochs', '2')) == 0
    assert 'teacher' not in named(caplog)
    state = load(tmp_path / 'moved/last.pth.tar')
    state['state_dict']['conv1.weight'] += 0.1
    torch.save(state, tmp_path / 'moved/last.pth.tar')
    caplog.clear()
    assert run_command(options(data, tmp_path, 'run', *more, '--epochs', '3')) == 0
    assert 'teacher ' in named(caplog)


# another value of each option that may differ without a word
OTHERS = {
    'checkpoint_hist': ['3'], 'data_dir': ['DATA'], 'experiment': ['run'], 'init': ['INIT'], 'log': ['trackio'],
    'log_interval': ['1'], 'no_check_images': [], 'output': ['OUTPUT'], 'pin_mem': [], 'quiet': [],
    'recipe': ['RECIPE'], 'resume': ['RESUME'],
}  # fmt: skip
FOR_DOWNLOADS = {'dataset_download'}
NO_OPTIONS = {'command', 'explicit', 'from_recipe', 'local_rank', 'rank', 'model_kwargs.router_threshold'}
INSTEAD_OF_EPOCHS = {'time_budget'}


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # on a machine without a GPU
def test_harmless_options_are_harmless(data, first, tmp_path, monkeypatch, caplog):
    """All at once: the weights are those of a run without any."""
    assert OTHERS.keys() | FOR_DOWNLOADS | NO_OPTIONS | INSTEAD_OF_EPOCHS == HARMLESS
    fixed = ['--loss', 'ride', '--weight-decay', '0.0005', '--reweight-epoch', '1']  # a --recipe picks no others
    began = ['--epochs', '2', '--init', str(first), *fixed]
    assert run_command(options(data, tmp_path, 'straight', *began)) == 0
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_at(patch, epoch=1, batch=0)
        run_command(options(data, tmp_path, 'run', *began))
    run = shutil.move(tmp_path / 'run', tmp_path / 'moved/run')
    (tmp_path / 'recipe.yaml').write_text('epochs: 2\n')
    places = {
        'DATA': shutil.copytree(data, tmp_path / 'images'), 'INIT': tmp_path / 'straight', 'OUTPUT': tmp_path / 'moved',
        'RECIPE': tmp_path / 'recipe.yaml', 'RESUME': run / 'checkpoint-0.pth.tar',
    }  # fmt: skip
    flags = {action.dest: action.option_strings[-1] for action in build_parser()._actions}
    more = [str(places.get(word, word)) for option, words in OTHERS.items() for word in (flags[option], *words)]
    does_nothing = dict.fromkeys(('init', 'log', 'finish'), lambda **_: None) | {'log': lambda _: None}
    monkeypatch.setitem(sys.modules, 'trackio', SimpleNamespace(**does_nothing))
    assert run_command(options(data, tmp_path, 'run', '--epochs', '2', *fixed, *more)) == 0
    assert named(caplog) == ''
    weights = [load(folder / 'last.pth.tar') for folder in (tmp_path / 'straight', run)]
    for key in ('state_dict', 'optimizer'):
        assert_same(weights[0][key], weights[1][key])
    assert rows(tmp_path / 'straight') == rows(run)
