"""The command line: help, and one clear line for whatever a user can fix."""

import shutil
import subprocess
import sys

import pytest
import torch
from crash_tools import load, options, run_command
from tiny_runs import write_images

from ride_timm.cli import COMMANDS, main, module_of
from ride_timm.version import __version__

# a machine with a single core: two loading processes are still two
pytestmark = pytest.mark.filterwarnings('ignore:This DataLoader will create')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('images'))


@pytest.fixture(scope='module')
def run(data, tmp_path_factory):
    output = tmp_path_factory.mktemp('output')
    assert run_command(options(data, output, 'run', '--epochs', '1')) == 0
    return output / 'run'


@pytest.fixture
def fails(capsys):
    """Run a command that must fail: status 2 and one line, which is returned without its prefix."""

    def check(argv):
        capsys.readouterr()
        argv = [str(word) for word in argv]
        status = main(argv)
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if line.startswith(f'ride-timm {argv[0]}: error: ')]
        assert status == 2, said
        assert len(lines) == 1, said
        assert said.splitlines()[-1] == lines[0]
        assert 'Traceback' not in said
        return lines[0].partition('error: ')[2]

    return check


def without(argv, *names):
    """A command line without some of its options."""
    argv = list(argv)
    for name in names:
        place = argv.index(name)
        del argv[place : place + 2]
    return argv


def measuring(run, data, *more):
    return ['validate', '--checkpoint', run / 'last.pth.tar', '--data-dir', data, '--device', 'cpu', *more]


# help


@pytest.mark.parametrize('argv', [[], ['--help'], ['-h']])
def test_usage_names_every_command(argv, capsys):
    assert main(argv) == (0 if argv else 2)
    said = capsys.readouterr().out
    assert all(f'  {name} ' in said for name in COMMANDS)


def test_version(capsys):
    assert main(['--version']) == 0
    assert capsys.readouterr().out == f'ride-timm {__version__}\n'


@pytest.mark.parametrize('name', COMMANDS)
def test_help_of_every_command(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, '--help'])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(('usage: ride-timm ', 'usage: python -m ride_timm'))
    flags = [flag for action in module_of(name).build_parser()._actions for flag in action.option_strings]
    assert flags
    assert all(flag in said for flag in flags)


@pytest.mark.parametrize(('wrong', 'right'), [('trian', 'train'), ('val', 'validate'), ('quick', 'quickstart')])
def test_unknown_command_with_the_closest_name(wrong, right, capsys):
    assert main([wrong]) == 2
    assert f'There is no command {wrong}, did you mean {right}?' in capsys.readouterr().err
    assert main(['zzzzzz']) == 2
    assert 'see ride-timm --help' in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_process(tmp_path):
    command = [sys.executable, '-m', 'ride_timm', 'train', '--data-dir', str(tmp_path / 'none'), '--device', 'cpu']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1
    assert 'does not exist' in done.stderr


# data


def test_missing_folder(tmp_path, fails, run):
    assert 'none does not exist' in fails(options(tmp_path / 'none', tmp_path, 'x'))
    assert 'none does not exist' in fails(measuring(run, tmp_path / 'none'))


def test_no_data(tmp_path, fails, run):
    assert 'No --data-dir was given' in fails(without(options('x', tmp_path, 'x'), '--data-dir'))
    alone = shutil.copy(run / 'last.pth.tar', tmp_path / 'alone.pth.tar')  # not next to the args.yaml of its run
    assert 'No --data-dir was given' in fails(['validate', '--checkpoint', alone])


def test_one_class_alone(tmp_path, fails):
    data = write_images(tmp_path / 'images', {'ant': 6})
    assert 'has only one class, ant' in fails(options(data, tmp_path, 'x'))
    assert main(['data', str(data)]) == 1


def test_empty_class(tmp_path, fails):
    data = write_images(tmp_path / 'images', {'ant': 3, 'bee': 0, 'cat': 3})
    assert f'class folder {data}/train/bee holds no image' in fails(options(data, tmp_path, 'x'))


def test_a_class_that_only_evaluation_has(data, tmp_path, fails, run):
    other = shutil.copytree(data, tmp_path / 'images')
    shutil.copytree(other / 'val/cat', other / 'val/catt')
    for said in (fails(options(other, tmp_path, 'x', '--val-split', 'val')), fails(measuring(run, other))):
        assert 'has the class "catt", which is not one of the 3 classes' in said
        assert 'did you mean cat?' in said


def test_no_evaluation_images(data, tmp_path, fails, run):
    other = shutil.copytree(data, tmp_path / 'images')
    shutil.rmtree(other / 'val')
    for said in (fails(options(other, tmp_path, 'x', '--val-split', 'val')), fails(measuring(run, other))):
        assert 'none for evaluation; add one named val' in said


@pytest.mark.parametrize('more', [[], ['--no-check-images'], ['--no-check-images', '-j', '2']], ids=' '.join)
def test_unreadable_image(data, tmp_path, fails, run, more):
    other = shutil.copytree(data, tmp_path / 'images')
    for split in ('train', 'val'):
        (other / split / 'bee/0.png').write_bytes(b'no image')
    assert f'{other}/train/bee/0.png' in fails(options(other, tmp_path, 'x', *more))
    if not more:
        assert f'{other}/val/bee/0.png' in fails(measuring(run, other))
    assert not (tmp_path / 'x/last.pth.tar').exists()


def test_number_of_classes(data, tmp_path, fails, run):
    assert '--num-classes 7 was given, but' in fails(options(data, tmp_path, 'x', '--num-classes', '7'))
    assert '--num-classes 7 was given, but' in fails(measuring(run, data, '--num-classes', '7'))


# model and recipe


def test_unknown_model(data, tmp_path, fails, run):
    wanted = 'There is no architecture ride_resnet32_4, did you mean ride_resnet32_4e?'
    assert wanted in fails(options(data, tmp_path, 'x', '--model', 'ride_resnet32_4'))
    assert wanted in fails(measuring(run, data, '--model', 'ride_resnet32_4'))


def test_unknown_recipe(data, tmp_path, fails):
    said = fails(options(data, tmp_path, 'x', '--recipe', 'cifar100lt_rid'))
    assert 'There is no recipe cifar100lt_rid, did you mean cifar100lt_ride?' in said


@pytest.mark.parametrize(
    ('text', 'wanted'),
    [
        (b'batchsize: 4', 'has the key batchsize, which is not a training option, did you mean batch_size?'),
        (b'momentum: much', 'momentum must be'),
        (b'- momentum', 'holds no `argument: value` lines'),
        (b'momentum: [', 'not valid YAML'),
        (b'\xff\xfe', 'not text in UTF-8'),
    ],
)
def test_bad_recipe(data, tmp_path, fails, text, wanted):
    (tmp_path / 'recipe.yaml').write_bytes(text)
    assert wanted in fails(options(data, tmp_path, 'x', '--recipe', tmp_path / 'recipe.yaml'))


# checkpoints


@pytest.fixture
def bad_files(run, tmp_path):
    whole = (run / 'last.pth.tar').read_bytes()
    (tmp_path / 'text').write_text('no checkpoint')
    (tmp_path / 'empty').touch()
    (tmp_path / 'cut').write_bytes(whole[: len(whole) // 2])
    (tmp_path / 'folder').mkdir()
    names = dict.fromkeys(('text', 'empty', 'cut'), 'is not a training checkpoint, or a damaged one')
    return {tmp_path / name: text for name, text in (names | dict.fromkeys(('none', 'folder'), 'There is no')).items()}


def test_files_that_are_no_checkpoints(data, tmp_path, fails, bad_files):
    for path, wanted in bad_files.items():
        assert wanted in fails(options(data, tmp_path, 'x', '--resume', path))
        measured = 'holds neither the last.pth.tar of a run' if path.name == 'folder' else wanted
        assert measured in fails(['validate', '--checkpoint', path, '--data-dir', data, '--device', 'cpu'])
        if path.name != 'folder':
            assert wanted in fails(options(data, tmp_path, 'x', '--resume', '', '--init', path))
    (tmp_path / 'model.safetensors').write_text('no weights')
    said = fails(['validate', '--checkpoint', tmp_path / 'model.safetensors', '--data-dir', data, '--device', 'cpu'])
    assert 'not a complete safetensors file' in said


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(data, run, capsys):
    printed = []
    for named in ([run], [run / 'last.pth.tar'], ['--checkpoint', run]):
        assert main(['validate', *map(str, named), '--data-dir', str(data), '--device', 'cpu']) == 0
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1] == printed[2] != ''


def test_checkpoint_without_a_training_state(data, run, tmp_path, fails):
    state = load(run / 'last.pth.tar')
    del state['optimizer']
    torch.save(state, tmp_path / 'weights.pth.tar')
    said = fails(options(data, tmp_path, 'x', '--resume', tmp_path / 'weights.pth.tar'))
    assert 'without a training state' in said


@pytest.mark.parametrize(
    ('more', 'wanted'),
    [
        (['--model', 'test_ride_resnet_3e'], 'is of test_ride_resnet_cifar_3e and --model is test_ride_resnet_3e'),
        (['--opt', 'adamw'], 'was trained with --opt sgd and --opt is adamw'),
        (['--model-kwargs', 'channels=(8,8,8)'], 'does not fit the network or the optimizer (size mismatch'),
        (['--weight-decay', '0'], 'does not fit the network or the optimizer'),
    ],
)
def test_checkpoint_of_another_run(data, run, tmp_path, fails, more, wanted):
    assert wanted in fails(options(data, tmp_path, 'x', '--resume', run / 'last.pth.tar', *more))


def test_checkpoint_of_other_classes(run, tmp_path, fails):
    other = write_images(tmp_path / 'images', {'ant': 24, 'bee': 12, 'dog': 5})
    said = fails(options(other, tmp_path, 'x', '--resume', run / 'last.pth.tar'))
    assert 'was trained on other classes (3)' in said
    assert 'class 2 is cat there and dog here' in said
    fewer = write_images(tmp_path / 'fewer', {'ant': 24, 'bee': 12})
    assert 'has (2)' in fails(options(fewer, tmp_path, 'x', '--resume', run / 'last.pth.tar'))
    assert '"dog", which is not one of the 3 classes' in fails(measuring(run, other))


def test_weights_of_another_architecture(data, run, fails):
    for model in ('test_ride_resnet_3e', 'resnet18'):
        assert f'does not fit {model}' in fails(measuring(run, data, '--model', model))


def test_a_moving_average_that_is_not_there(data, run, fails):
    assert 'state_dict_ema' in fails(measuring(run, data, '--use-ema'))


def test_nothing_to_measure(data, fails):
    assert 'name a MODEL' in fails(['validate', '--data-dir', data])
    assert '--model resnet18' in fails(['validate', '--model', 'resnet18', '--data-dir', data])  # it is untrained
    assert '--checkpoint b' in fails(['validate', 'a', '--checkpoint', 'b', '--data-dir', data])


# values


@pytest.mark.parametrize('device', ['tpu', 'gpu', 'cuda:99', 'meta', 'mps:7'])
def test_device(data, tmp_path, fails, run, device):
    for said in (
        fails(options(data, tmp_path, 'x', '--device', device)),
        fails(measuring(run, data, '--device', device)),
    ):
        assert said.startswith(f'--device {device} was given, but PyTorch ')


VALUES = [
    (['-b', '0'], '--batch-size 0 was given; it is a whole number of at least 1'),
    (['-b', '-3'], '--batch-size -3'),
    (['--epochs', '0'], '--epochs 0'),
    (['--val-interval', '0'], '--val-interval 0'),
    (['--grad-accum-steps', '0'], '--grad-accum-steps 0'),
    (['--checkpoint-hist', '0'], '--checkpoint-hist 0'),
    (['-j', '-1'], '--workers -1'),
    (['--img-size', '0'], '--img-size 0'),
    (['--seed', '-1'], '--seed -1 was given; it is a whole number from 0 to 4294967295'),
    (['--lr', '-1'], '--lr -1 was given; it is a number of at least 0'),
    (['--lr', 'nan'], '--lr nan'),
    (['--lr', 'inf'], '--lr inf'),
    (['--weight-decay', '-1'], '--weight-decay -1'),
    (['--init-noise', 'nan'], '--init-noise nan was given; it is a number of at least 0'),
    (['--layer-decay', '1.5'], '--layer-decay 1.5 was given; it is above 0 and at most 1'),
    (['--layer-decay', '0'], '--layer-decay 0 was given; it is above 0 and at most 1'),
    (['--drop', '2'], '--drop 2 was given; it is from 0 to 1'),
    (['--model-ema', '--model-ema-decay', '5'], '--model-ema-decay 5'),
    (['--clip-grad', '0'], '--clip-grad 0 was given; it is a number above 0'),
    (['--opt', 'sgdd'], '--opt sgdd is not known to timm, did you mean sgd?'),
    (['--opt-kwargs', 'foo=1'], '--opt sgd cannot be created'),
    (['--sched', 'cosin'], 'did you mean cosine?'),
    (['--interpolation', 'bicubicc'], 'did you mean bicubic?'),
    (['--augmentation', 'timm', '--aa', 'foo'], "--aa foo is not one of timm's policies"),
    (['--mean', '0.5', '0.5'], '--mean was given 2 numbers; it takes 1 or 3'),
    (['--color-jitter', '1', '1'], '--color-jitter was given 2 numbers'),
    (['--in-chans', '4'], 'give their number with --in-chans'),
    (['--imb-factor', '10'], 'already imbalanced'),
    (['--loss-kwargs', 'foo=1'], "The loss 'ride' has no option 'foo'"),
    (['--loss-kwargs', 'rho=7'], 'rho'),
    (['--model-kwargs', 'foo=1'], 'cannot be created'),
    (['--loss', 'ride', '--mixup', '0.5'], 'soft'),
    (['--pretrained'], 'has no published weights'),
    (['--eval-metric', 'top3'], 'There is no --eval-metric top3; choose one of loss, top1, top5, many, medium, few'),
    (['--val-split', 'tst'], 'tst'),
    (['--dataset', 'torch/foo'], 'timm knows no data set torch/foo'),
    (['--stage', 'router'], 'no --init was given'),
    (['--stage', 'router', '--router-threshold', '1.5'], '--router-threshold 1.5 was given; it is a probability'),
]


@pytest.mark.parametrize(('more', 'wanted'), VALUES, ids=[' '.join(more) for more, _ in VALUES])
def test_values_of_train(data, tmp_path, fails, more, wanted):
    assert wanted in fails(options(data, tmp_path, 'x', *more))
    assert not (tmp_path / 'x/last.pth.tar').exists()


@pytest.mark.parametrize(
    ('more', 'wanted'),
    [
        (['--threshold', '1.5'], '--threshold 1.5 was given; it is a probability from 0 to 1'),
        (['--threshold', '-0.1'], '--threshold -0.1'),
        (['--threshold', 'nan'], '--threshold nan'),
        (['--threshold', '0.5'], 'has no router'),
        (['--routed'], 'has no router'),
        (['-b', '0'], '--batch-size 0'),
        (['--img-size', '0'], '--img-size 0'),
        (['--model-kwargs', 'foo=1'], 'cannot be created'),
        (['--split', 'tst'], 'tst'),
    ],
)
def test_values_of_validate(data, run, fails, more, wanted):
    assert wanted in fails(measuring(run, data, *more))


@pytest.mark.parametrize('flag', ['--results-file', '--per-class-file'])
def test_files_that_cannot_be_written(data, run, tmp_path, fails, flag, monkeypatch):
    """Found before the evaluation, not after it."""

    def never(*args):
        raise AssertionError('evaluated first')

    monkeypatch.setattr('ride_timm.commands.validate._measure', never)
    assert 'there is no folder' in fails(measuring(run, data, flag, tmp_path / 'none/file'))
    assert 'cannot be written' in fails(measuring(run, data, flag, tmp_path))


def test_output_that_cannot_be_written(data, tmp_path, fails):
    (tmp_path / 'file').touch()
    said = fails(options(data, tmp_path / 'file', 'x'))
    assert f'The run cannot be written to {tmp_path}/file/x (Not a directory); choose another --output' in said


def test_a_group_without_images_ranks_nothing(data, tmp_path, fails):
    """`few` is no figure of a run whose few-shot classes have no evaluation images."""
    other = shutil.copytree(data, tmp_path / 'images')
    shutil.rmtree(other / 'val/cat')
    said = fails(options(other, tmp_path, 'x', '--eval-metric', 'few'))
    assert 'There is no --eval-metric few; choose one of loss, top1, top5, many, medium, worst_class' in said


@pytest.mark.parametrize('command', ['train', 'validate', 'quickstart'])
def test_unknown_flag(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, '--no-such-flag'])
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'ride-timm {command}: error: there is no option --no-such-flag')


@pytest.mark.parametrize(
    ('argv', 'right'),
    [
        (['train', '--epcohs', '3'], '--epochs'),
        (['validate', '--results-file=x', '--chekpoint', 'x'], '--checkpoint'),
        (['predict', 'model', '--jsn', 'image'], '--json'),
        (['data', 'images', '--polt', 'x.png'], '--plot'),
    ],
)
def test_a_misspelled_flag_with_the_closest_one(argv, right, capsys):
    with pytest.raises(SystemExit) as end:
        main(argv)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f', did you mean {right}?' in line


@pytest.mark.parametrize('flag', ['--loss-kwargs', '--model-kwargs', '--opt-kwargs'])
def test_pairs_without_an_equals_sign(flag, capsys):
    with pytest.raises(SystemExit) as end:
        main(['train', flag, 'rho'])
    assert end.value.code == 2
    assert f"argument {flag}: 'rho' is not of the form KEY=VALUE" in capsys.readouterr().err
