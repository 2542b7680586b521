"""`ride-timm package` on runs of a second, and what the folder it writes is good for."""

import json
import shutil

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny_runs import CIFAR, COUNTS, train, write_images

import ride_timm
from ride_timm.commands.package import main
from ride_timm.commands.validate import build_parser, validate
from ride_timm.errors import RideError
from ride_timm.evaluation.sweep import THRESHOLDS
from ride_timm.publishing.index import hash_folder
from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.records.published import read_index

NAME = f'{CIFAR}.tiny_colours'
RIDE = ('--model', CIFAR, '--loss', 'balpoe')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('colours'), val=9)


@pytest.fixture(scope='module')
def runs(tmp_path_factory, data):
    """A: some images held out, with its router; B: all images and A's threshold."""
    output = tmp_path_factory.mktemp('runs')
    first = train(data, output, 'A', *RIDE, '--holdout', '0.25')
    chosen = train(data, output, 'A-router', '--stage', 'router', '--init', str(first / 'last.pth.tar'))
    threshold = json.loads((chosen / 'results.json').read_text())['choices']['threshold']
    second = train(data, output, 'B', *RIDE, '--seed', '5')
    options = ('--stage', 'router', '--init', str(second / 'last.pth.tar'), '--router-threshold', f'{threshold}')
    train(data, output, 'B-router', *options)
    return output


def export(data, runs, output, *options, names=('B', 'B-router')):
    folders = [str(runs / name) for name in names]
    return main([*folders, '--data-dir', str(data), '--output', str(output), *options])


@pytest.fixture(scope='module')
def root(tmp_path_factory, data, runs):
    root = tmp_path_factory.mktemp('weights')
    (root / 'index.json').write_text('{"format": 1, "weights": {}}')
    choices = ('--choices', str(runs / 'A'), str(runs / 'A-router'))
    assert export(data, runs, root / NAME, *choices) == 0
    return root


@pytest.fixture(scope='module')
def results(root):
    return json.loads((root / NAME / 'results.json').read_text())


def validated(root, data, *options):
    model = f'local-dir:{root / NAME}'
    return validate(build_parser().parse_args(['--model', model, '--data-dir', str(data), '--device', 'cpu', *options]))


def test_the_files(root):
    names = {path.name for path in (root / NAME).iterdir()}
    assert {'model.safetensors', 'config.json', 'results.json', 'README.md'} <= names
    assert {name.rpartition('.')[2] for name in names} <= {'safetensors', 'json', 'md', 'png'}


def test_the_index_has_every_file(root):
    weight = read_index(root)[NAME]
    assert weight.is_local
    assert json.loads((root / 'index.json').read_text())['weights'][NAME]['files'] == hash_folder(root / NAME)


def test_the_tensors_are_those_of_the_run(root, runs):
    saved = load_file(root / NAME / 'model.safetensors')
    trained = torch.load(runs / 'B-router' / 'last.pth.tar', weights_only=True)['state_dict']
    assert saved.keys() == trained.keys()
    assert all(torch.equal(saved[key], trained[key]) for key in saved)


def test_the_configuration_holds_labels_prior_loss_and_threshold(root, results):
    config = json.loads((root / NAME / 'config.json').read_text())
    assert config['label_names'] == list(COUNTS)
    assert config['ride']['class_counts'] == list(COUNTS.values())
    assert config['ride']['loss'] == 'balpoe'
    assert config['ride']['tau'] == [0.0, 1.0, 2.0]
    assert config['ride']['router_threshold'] == results['choices']['threshold']
    assert config['model_args']['router_threshold'] == results['choices']['threshold']


def test_the_figures_are_those_of_validate(root, data, results):
    every, routed = validated(root, data), validated(root, data, '--routed')
    for name in ('top1', 'many', 'medium', 'few', 'ece', 'loss', 'expert0_top1', 'gmacs'):
        if name in every:
            assert results['test']['all_experts'][name] == pytest.approx(every[name], abs=1e-6), name
    for name in ('top1', 'mean_experts', 'gmacs', 'ece'):
        assert results['test']['routed'][name] == pytest.approx(routed[name], abs=1e-6), name


def test_the_sweep_agrees_with_both(results):
    test, rows = results['test'], results['test']['sweep']
    assert [row['threshold'] for row in rows] == list(THRESHOLDS)
    assert rows[0]['top1'] == pytest.approx(test['all_experts']['top1'])
    own = next(row for row in rows if row['threshold'] == test['routed']['threshold'])
    assert own['top1'] == pytest.approx(test['routed']['top1'])
    assert own['gmacs'] == pytest.approx(test['routed']['gmacs'])


def test_how_it_was_made(results, runs):
    stages = results['training']
    assert [stage['stage'] for stage in stages] == ['experts', 'router']
    assert [stage['images'] for stage in stages] == [sum(COUNTS.values())] * 2
    assert stages[0]['command'].startswith('ride-timm train ')
    assert stages[0]['seed'] == 5
    assert stages[0]['seconds'] > 0
    assert stages[0]['environment']['torch'] == torch.__version__.partition('+')[0]
    choices = results['choices']
    assert choices['held_out']['fraction'] == 0.25
    assert choices['held_out']['images'] + choices['training'][0]['images'] == sum(COUNTS.values())
    assert choices['threshold'] == json.loads((runs / 'A-router' / 'results.json').read_text())['choices']['threshold']


def test_what_the_network_is(results):
    net = timm.create_model(CIFAR, num_classes=3, router=True)
    assert results['network']['parameters'] == sum(p.numel() for p in net.parameters())
    assert len(results['network']['gmacs_by_experts']) == 3
    assert results['seeds'] == [
        {'seed': 5, 'published': True}
        | {key: results['test']['all_experts'].get(key) for key in ('top1', 'balanced', 'many', 'medium', 'few', 'ece')}
    ]


def test_the_card_parses(root):
    from huggingface_hub import ModelCard

    assert ModelCard.load(root / NAME / 'README.md').data.library_name == 'timm'


def test_an_export_can_be_repeated(root, data, runs):
    before = hash_folder(root / NAME)
    choices = ('--choices', str(runs / 'A'), str(runs / 'A-router'))
    export(data, runs, root / NAME, *choices)
    assert hash_folder(root / NAME) == before


def test_without_router_and_with_another_seed(data, runs, tmp_path):
    train(data, runs, 'C', *RIDE, '--seed', '6')
    assert export(data, runs, tmp_path / 'six' / NAME, names=['C']) == 0
    assert export(data, runs, tmp_path / 'five' / NAME, '--other-seeds', str(tmp_path / 'six' / NAME), names=['B']) == 0
    results = json.loads((tmp_path / 'five' / NAME / 'results.json').read_text())
    assert [row['seed'] for row in results['seeds']] == [5, 6]
    assert [row['published'] for row in results['seeds']] == [True, False]
    assert results['test']['routed'] is None
    with pytest.raises(RideError, match='seed that is already there'):
        export(data, runs, tmp_path / 'again' / NAME, '--other-seeds', str(tmp_path / 'five' / NAME), names=['B'])


def test_of_a_run_with_a_moving_average_the_average(data, runs, tmp_path):
    run = train(data, runs, 'ema', *RIDE, '--model-ema', '--model-ema-decay', '0.5')
    assert export(data, runs, tmp_path / NAME, names=['ema']) == 0
    saved = read_checkpoint(run / 'last.pth.tar')
    stored = load_file(tmp_path / NAME / 'model.safetensors')
    assert torch.equal(stored['conv1.weight'], saved['state_dict_ema']['conv1.weight'])
    assert not torch.equal(stored['conv1.weight'], saved['state_dict']['conv1.weight'])
    figures = json.loads((tmp_path / NAME / 'results.json').read_text())['test']['all_experts']
    measured = json.loads((run / 'results.json').read_text())['last']
    assert figures['loss'] == pytest.approx(measured['loss'], rel=1e-5)


def test_three_stages_in_a_row_and_a_note(data, runs, tmp_path):
    begun = ('--init', str(runs / 'A' / 'last.pth.tar'), '--train-only', 'experts.1')
    part = train(data, runs, 'part', *begun, '--loss', 'balpoe', '--holdout', '0.25')
    train(data, runs, 'part-router', '--stage', 'router', '--init', str(part / 'last.pth.tar'))
    names = ['A', 'part', 'part-router']
    note = 'Expert 2 was trained once more: <see> the *second* command.'
    assert export(data, runs, tmp_path / NAME, '--note', note, names=names) == 0
    results = json.loads((tmp_path / NAME / 'results.json').read_text())
    assert [stage['stage'] for stage in results['training']] == ['experts', 'experts', 'router']
    assert '--train-only experts.1' in results['training'][1]['command']
    assert results['note'] == note
    card = (tmp_path / NAME / 'README.md').read_text()
    assert 'Expert 2 was trained once more: &lt;see&gt; the \\*second\\* command.' in card
    with pytest.raises(RideError, match='name the runs in order'):
        export(data, runs, tmp_path / NAME, names=['A', 'part-router'])


@pytest.fixture(scope='module')
def held_out(tmp_path_factory, data, runs):
    """The run that held images out, published itself, in half precision and in parts."""
    root = tmp_path_factory.mktemp('held_out')
    names = ('A', 'A-router')
    options = ('--dtype', 'float16', '--max-shard-size', '0.05', '--choices', *(str(runs / name) for name in names))
    assert export(data, runs, root / NAME, *options, names=names) == 0
    return root


def test_held_out_images_count_for_the_groups_and_not_as_seen(held_out):
    results = json.loads((held_out / NAME / 'results.json').read_text())
    config = json.loads((held_out / NAME / 'config.json').read_text())
    assert config['ride']['class_counts'] == list(COUNTS.values())
    assert [row['train_images'] for row in results['test']['per_class']] == list(COUNTS.values())
    assert results['data']['train_images'] == sum(COUNTS.values())
    seen = results['training'][0]['images']
    assert seen + results['choices']['held_out']['images'] == sum(COUNTS.values())
    assert (
        f'**Trained on a part of the training images**: {seen} of {sum(COUNTS.values())}.'
        in (held_out / NAME / 'README.md').read_text()
    )


def test_what_is_measured_is_what_is_stored(held_out, data):
    results = json.loads((held_out / NAME / 'results.json').read_text())
    stored = {path.name for path in (held_out / NAME).glob('*.safetensors')}
    assert len(stored) > 1
    assert results['network']['dtype'] == 'float16'
    assert results['network']['bytes'] == sum((held_out / NAME / name).stat().st_size for name in stored)
    every, routed = validated(held_out, data), validated(held_out, data, '--routed')
    for name in ('top1', 'ece', 'loss'):
        assert results['test']['all_experts'][name] == pytest.approx(every[name], abs=1e-6), name
        assert results['test']['routed'][name] == pytest.approx(routed[name], abs=1e-6), name


def test_results_alone(data, runs, tmp_path):
    assert export(data, runs, tmp_path / NAME, '--results-only', names=['B']) == 0
    assert {path.suffix for path in (tmp_path / NAME).iterdir()} == {'.json', '.md', '.png'}
    results = json.loads((tmp_path / NAME / 'results.json').read_text())
    assert results['results_only']
    assert results['network']['bytes'] is None
    assert 'only its results' in (tmp_path / NAME / 'README.md').read_text()


class TestRefusals:
    def test_a_size_that_is_none(self, data, runs, tmp_path):
        with pytest.raises(RideError, match='--max-shard-size 0 was given'):
            export(data, runs, tmp_path / NAME, '--max-shard-size', '0')

    def test_a_name_of_another_architecture(self, data, runs, tmp_path):
        with pytest.raises(RideError, match=f'name the folder {CIFAR}.TAG'):
            export(data, runs, tmp_path / 'ride_resnet32_3e.tiny')

    def test_the_folder_of_a_run(self, data, runs, tmp_path):
        run = shutil.copytree(runs / 'B', tmp_path / NAME)
        before = {path.name: path.read_bytes() for path in run.iterdir()}
        with pytest.raises(RideError, match='is the folder of a run'):
            export(data, runs, run, names=('B',))
        assert {path.name: path.read_bytes() for path in run.iterdir()} == before

    def test_an_unfinished_run(self, data, runs, tmp_path):
        with pytest.raises(RideError, match='nothing'):
            export(data, runs, tmp_path / NAME, names=['nothing'])

    def test_a_router_of_other_experts(self, data, runs, tmp_path):
        with pytest.raises(RideError, match='name the runs in order, each after the one that it was initialised from'):
            export(data, runs, tmp_path / NAME, names=['A', 'B-router'])

    def test_choices_of_a_run_that_chose_nothing(self, data, runs, tmp_path):
        with pytest.raises(RideError, match='held no images out'):
            export(data, runs, tmp_path / NAME, '--choices', str(runs / 'B'), str(runs / 'B-router'))

    def test_another_threshold_than_the_chosen_one(self, data, runs, tmp_path):
        init = ('--stage', 'router', '--init', str(runs / 'B' / 'last.pth.tar'))
        train(data, runs, 'D-router', *init, '--router-threshold', '0.123')
        with pytest.raises(RideError, match=r'the network routes with 0\.123; train its router with'):
            export(data, runs, tmp_path / NAME, '--choices', str(runs / 'A-router'), names=['B', 'D-router'])

    def test_images_of_other_classes(self, runs, tmp_path):
        other = write_images(tmp_path / 'other', {'dog': 3, 'elk': 3, 'fox': 3})
        with pytest.raises(RideError):
            export(other, runs, tmp_path / NAME)


def test_the_folder_is_what_timm_loads(root, data):
    assert ride_timm.__version__
    net = timm.create_model(f'local-dir:{root / NAME}', pretrained=True).eval()
    assert net.router is not None
    assert net(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
