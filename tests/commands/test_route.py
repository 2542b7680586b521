"""`ride-timm route`, from the folder of images to the card."""

import dataclasses
import json
import shutil

import pytest
import torch
from tiny_runs import CIFAR, train, write_images

from ride_timm.commands.package import main as package
from ride_timm.commands.route import main as route
from ride_timm.commands.train import main as train_main
from ride_timm.commands.validate import build_parser, main, validate
from ride_timm.errors import RideError
from ride_timm.inference.load import load
from ride_timm.records.checkpoint import read_checkpoint
from ride_timm.records.training_record import TrainingRecord

WISH = ('--max-loss', '0.6', '--confidence', '0.9')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp('data'), val=12)


@pytest.fixture(scope='module')
def trained(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp('runs')
    train(data, folder, 'experts', '--model', CIFAR, '--holdout', '0.25')
    return train(data, folder, 'router', '--stage', 'router', '--init', str(folder / 'experts'))


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / 'run')


def test_the_images_held_out_certify_and_the_checkpoint_keeps_it(run, data, capsys):
    before = read_checkpoint(run / 'last.pth.tar')
    assert route([str(run), '--data-dir', str(data), *WISH]) == 0
    record = load(run).record
    certificate = record.certificate
    assert (certificate.images, certificate.max_loss, certificate.loss) == (10, 0.6, 'disagreement')
    assert certificate.confidence == 0.9
    assert certificate.threshold == record.router_threshold == load(run).model.router_threshold
    assert f'{certificate.threshold:g}' in capsys.readouterr().out
    after = read_checkpoint(run / 'last.pth.tar')
    assert all(torch.equal(after['state_dict'][key], value) for key, value in before['state_dict'].items())
    assert {key for key in before if key not in after} == set()
    assert TrainingRecord.from_json(json.loads(json.dumps(record.to_json())), 'x').certificate == certificate


def test_folders_without_classes(run, data, tmp_path):
    for i, path in enumerate(sorted((data / 'val').rglob('*.png'))):
        target = tmp_path / 'camera' / f'day{i % 2}' / f'{i}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (tmp_path / 'camera' / 'broken.png').write_bytes(b'no image')
    route([str(run), '--data-dir', str(tmp_path / 'camera'), *WISH])
    here = load(run).record.certificate
    assert here.images == 36
    route([str(run), '--data-dir', str(data / 'val'), *WISH])  # the same images elsewhere, by class
    there = load(run).record.certificate
    assert dataclasses.replace(here, date=there.date) == there
    with pytest.raises(RideError, match='labels'):
        route([str(run), '--data-dir', str(tmp_path / 'camera'), *WISH, '--loss', 'accuracy'])
    route([str(run), '--data-dir', str(data / 'val'), *WISH, '--loss', 'accuracy'])
    assert load(run).record.certificate.loss == 'accuracy'


def test_other_rules_on_the_same_images(run, data, capsys):
    route([str(run), '--data-dir', str(data), *WISH])
    assert 'oracle' not in capsys.readouterr().out
    route([str(run), '--data-dir', str(data), *WISH, '--compare'])
    rows = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    assert {'softmax', 'margin', 'entropy', 'agreement', 'oracle'} <= set(rows)
    assert '0.00 %' in rows['oracle']


def test_images_of_the_training_are_refused(data, tmp_path):
    alone = train(data, tmp_path, 'alone', '--model', CIFAR)
    run = train(data, tmp_path, 'router', '--stage', 'router', '--init', str(alone))
    for folder in (data, data / 'train'):
        with pytest.raises(RideError, match='trained on'):
            route([str(run), '--data-dir', str(folder), *WISH])
    route([str(run), '--data-dir', str(data / 'val'), *WISH])


def test_a_part_of_the_training_images_is_refused(data, tmp_path):
    """However it is named: a class folder, other folders that link to them, or a run that was trained from a table."""
    held = train(data, tmp_path, 'held', '--model', CIFAR, '--holdout', '0.25')
    run = train(data, tmp_path, 'router', '--stage', 'router', '--init', str(held))
    part = tmp_path / 'part'
    part.mkdir()
    for path in (data / 'train').rglob('*.png'):
        (part / f'{path.parent.name}-{path.name}').symlink_to(path)
    for folder in (data / 'train' / 'ant', part):
        with pytest.raises(RideError, match='trained on'):
            route([str(run), '--data-dir', str(folder), *WISH])
    rows = ''.join(f'{path},{path.parent.name},{path.parts[-3]}\n' for path in sorted(data.rglob('*.png')))
    table = tmp_path / 'table.csv'
    table.write_text(f'image,label,split\n{rows}')
    table_run = tmp_path / 'of_table'
    options = ('--table', str(table), '--epochs', '1', '--device', 'cpu', '--output', str(tmp_path), '-b', '8')
    assert train_main([*options, '--model', CIFAR, '--experiment', 'of_table', '--holdout', '0.25']) == 0
    routed = ('--stage', 'router', '--init', str(table_run), '--experiment', 'of_table_routed')
    assert train_main([*options, *routed]) == 0
    with pytest.raises(RideError, match=r'\d+ of the \d+ images .* trained on'):
        route([str(tmp_path / 'of_table_routed'), '--data-dir', str(data / 'train' / 'ant'), *WISH])
    route([str(tmp_path / 'of_table_routed'), '--data-dir', str(data / 'val'), *WISH])


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        ((), 'at least 598'), (('--max-loss', '0'), 'no number'), (('--max-loss', '2'), 'max-loss'),
        (('--budget', '0.9x', '--max-loss', '0.1'), 'budget'), (('--budget', '1e-9'), 'first expert'),
        (('--confidence', '1'), 'confidence'), (('--threshold', '2'), 'threshold'),
        (('--threshold', '0.5', '--max-loss', '0.1'), 'threshold'),
    ],
)  # fmt: skip
def test_wishes_that_cannot_be_granted_change_nothing(run, data, options, words):
    before = (run / 'last.pth.tar').read_bytes()
    with pytest.raises(RideError, match=words):
        route([str(run), '--data-dir', str(data / 'val'), *options])
    assert (run / 'last.pth.tar').read_bytes() == before


def test_a_threshold_that_was_chosen_before(run, data):
    route([str(run), '--data-dir', str(data), '--threshold', '0.25'])
    certificate = load(run).record.certificate
    assert certificate.threshold == load(run).model.router_threshold == 0.25
    assert certificate.losses / certificate.images < certificate.max_loss <= 1.0


def test_a_network_without_a_router_says_what_to_do(data):
    with pytest.raises(RideError, match='--stage router'):
        route(['ride_resnet32_1e.ce_cifar100lt', '--data-dir', str(data)])


def test_validate_prints_it_next_to_what_it_measures(run, data):
    def results(*options):
        return validate(build_parser().parse_args([str(run), '--data-dir', str(data), *options]))

    assert 'certificate' not in results('--routed')
    route([str(run), '--data-dir', str(data), *WISH])
    found = results('--routed')
    assert found['certificate'] == dataclasses.asdict(load(run).record.certificate)
    assert 0.0 <= found['changed'] <= 100.0
    assert 'certificate' not in results()
    assert 'certificate' not in results('--threshold', '0.123')
    route([str(run), '--data-dir', str(data / 'val'), '--budget', '0.0009'])
    found = results('--routed')
    assert found['gmacs'] <= 0.0009
    assert 'certificate' not in found
    assert main([str(run), '--data-dir', str(data), '--routed']) == 0


def test_package_and_card_have_it(run, data, tmp_path):
    pytest.importorskip('matplotlib')
    route([str(run), '--data-dir', str(data), *WISH])
    certificate = load(run).record.certificate
    folder = tmp_path / f'{CIFAR}.tag'
    package([str(run), '--data-dir', str(data), '--output', str(folder)])
    assert load(folder).record.certificate == certificate
    assert str(certificate) in (folder / 'README.md').read_text()
    rounded = tmp_path / 'other' / f'{CIFAR}.tag'
    package([str(run), '--data-dir', str(data), '--output', str(rounded), '--dtype', 'float16'])
    assert load(rounded).record.certificate is None
    route([str(rounded), '--data-dir', str(data / 'val'), *WISH, '--output', str(tmp_path / 'again')])
    assert load(tmp_path / 'again').record.certificate.images == 36
    assert load(rounded).record.certificate is None
    route([str(rounded), '--data-dir', str(data / 'val'), '--budget', '0.0009'])
    assert load(rounded).model.router_threshold > 0.0
    route([str(rounded), '--data-dir', str(data / 'val'), *WISH])
    kept = load(rounded)
    assert kept.record.certificate.threshold == kept.model.router_threshold


def test_a_table_of_other_images(run, data, tmp_path):
    """With its labels, if they are classes of the network."""
    files = sorted((data / 'val').rglob('*.png'))
    for name in ('bee', 'wasp'):
        rows = ''.join(f'{path};{path.parent.name.replace("bee", name)}\n' for path in files)
        (tmp_path / 'photos.csv').write_text(f'photo;species\n{rows}')
        argv = [str(run), '--table', str(tmp_path / 'photos.csv'), *WISH]
        route(argv)
        assert load(run).record.certificate.images == len(files)
        if name == 'bee':
            route([*argv, '--loss', 'accuracy'])
        else:
            with pytest.raises(RideError, match='label'):
                route([*argv, '--loss', 'accuracy'])
