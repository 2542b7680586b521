"""`--tail`, and names of losses that other tools have."""

import logging

import pytest
from configs import resolved
from tiny_runs import CIFAR, train, write_images

from ride_timm import RideError
from ride_timm.commands.train import parse
from ride_timm.records.checkpoint import read_checkpoint


@pytest.mark.parametrize(
    'word, wanted',
    [
        ('none', ('ce', 'instance', -1)), ('weights', ('ce', 'instance', 0)), ('sampler', ('ce', 'balanced', -1)),
        ('loss', (None, 'instance', None)), ('auto', (None, 'instance', None)),
    ],
)  # fmt: skip
def test_a_word_stands_for_other_options(word, wanted, caplog):
    caplog.set_level(logging.INFO)
    config = resolved(['--data-dir', 'x', '--tail', word])
    assert (config.loss, config.sampler, config.reweight_epoch) == wanted
    assert ('--sampler' in caplog.text) == (word != 'auto')


@pytest.mark.parametrize('word, wanted', [('weights', ('ce', 'instance', 0)), ('loss', (None, 'instance', None))])
def test_a_word_wins_over_a_recipe(word, wanted):
    config = resolved(['--data-dir', 'x', '--recipe', 'cifar100lt_ride', '--tail', word])
    assert (config.loss, config.sampler, config.reweight_epoch) == wanted
    assert config.loss_kwargs == {}


@pytest.mark.parametrize(
    'other', [['--loss', 'focal'], ['--sampler', 'sqrt'], ['--reweight-epoch', '3'], ['--loss-kwargs', 'gamma=1']]
)
def test_what_says_the_same_is_refused(other):
    with pytest.raises(RideError, match=f'--tail weights and {other[0]}'):
        resolved(['--data-dir', 'x', '--tail', 'weights', *other])
    assert resolved(['--data-dir', 'x', '--tail', 'auto', *other]).tail == 'auto'


def test_later_stages_have_no_tail():
    with pytest.raises(RideError, match='--tail is for the stage experts'):
        resolved(['--data-dir', 'x', '--init', 'y', '--stage', 'heads', '--tail', 'loss'])


@pytest.mark.parametrize(
    'model, word, loss',
    [
        ('resnet10t', 'loss', 'balanced_softmax'), (CIFAR, 'loss', 'balpoe'), (CIFAR, 'weights', 'ce'),
        (CIFAR, 'sampler', 'ce'),
    ],
)  # fmt: skip
def test_any_network_trains_with_it(tmp_path, model, word, loss):
    data = write_images(tmp_path / 'data')
    options = ['--model', model, '--tail', word, '--from-scratch']
    checkpoint = read_checkpoint(train(data, tmp_path, 'run', *options, size=32) / 'last.pth.tar')
    assert (checkpoint['ride']['loss'], checkpoint['args']['tail']) == (loss, word)


def test_with_a_recipe_the_loss_fits_the_network(tmp_path):
    recipe = tmp_path / 'mine.yaml'
    recipe.write_text('loss: ride\nloss_kwargs: {rho: 0.05}\nbatch_size: 8\n')
    data = write_images(tmp_path / 'data')
    options = ['--recipe', str(recipe), '--model', CIFAR, '--tail', 'loss']
    assert read_checkpoint(train(data, tmp_path, 'run', *options) / 'last.pth.tar')['ride']['loss'] == 'balpoe'


@pytest.mark.parametrize('name', ['cross_entropy', 'CrossEntropyLoss', 'LabelSmoothingCrossEntropy', 'ce'])
def test_cross_entropy_by_the_names_of_timm(name):
    assert parse(['--data-dir', 'x', '--loss', name]).loss == 'ce'


@pytest.mark.parametrize('options', [['--bce-loss'], ['--jsd-loss'], ['--loss', 'BinaryCrossEntropy']])
def test_losses_of_timm_that_are_not_here_name_those_that_are(options, capsys):
    with pytest.raises(SystemExit):
        parse(['--data-dir', 'x', *options])
    said = capsys.readouterr().err
    assert options[-1] in said and 'balpoe' in said and 'ride' in said
