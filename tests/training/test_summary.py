import csv
import json
import os

import pytest
from tiny_runs import CIFAR, train, write_images

from ride_timm.commands.validate import build_parser, validate
from ride_timm.files import write_whole
from ride_timm.training.summary import write_row


def read(path):
    with path.open(newline='') as file:
        reader = csv.DictReader(file)
        return reader.fieldnames, list(reader)


def test_one_row_an_epoch_in_timms_layout(tmp_path):
    from timm.utils import update_summary

    for epoch in range(3):
        figures = {'loss': 3.0 - epoch}, {'top1': 10.0 * epoch, 'few': 0.1}
        write_row(tmp_path / 'ours.csv', epoch, *figures, lr=0.1)
        update_summary(epoch, *figures, tmp_path / 'timms.csv', lr=0.1)
    assert (tmp_path / 'ours.csv').read_bytes() == (tmp_path / 'timms.csv').read_bytes()


def test_epochs_without_an_evaluation_have_empty_fields(tmp_path):
    path = tmp_path / 'summary.csv'
    for epoch in range(5):
        write_row(path, epoch, {'loss': 1.0}, {'top1': 50.0} if epoch in (1, 4) else None, lr=0.1)
        names, rows = read(path)
        assert [row['epoch'] for row in rows] == [str(e) for e in range(epoch + 1)]
    assert names == ['epoch', 'train_loss', 'eval_top1', 'lr']
    assert [row['eval_top1'] for row in rows] == ['', '50.0', '', '', '50.0']
    assert [row['lr'] for row in rows] == ['0.1'] * 5


def test_a_repeated_epoch_replaces_its_row_and_later_ones(tmp_path):
    path = tmp_path / 'summary.csv'
    for epoch in range(12):
        write_row(path, epoch, {'loss': float(epoch)}, None, lr=0.1)
    write_row(path, 2, {'loss': -1.0}, None, lr=0.1)
    assert [row['train_loss'] for row in read(path)[1]] == ['0.0', '1.0', '-1.0']


def test_a_new_run_takes_no_column_from_an_old_one(tmp_path):
    path = tmp_path / 'summary.csv'
    write_row(path, 0, {'old': 1.0}, None, lr=0.1)
    write_row(path, 0, {'loss': 1.0}, None, lr=0.1)
    assert read(path)[0] == ['epoch', 'train_loss', 'lr']


WHOLE = 'epoch,train_loss,lr\r\n0,1.0,0.1\r\n'


@pytest.mark.parametrize('torn', [WHOLE + '1', WHOLE + '1,2.0,0.1,9\r\n', '', '\x00'])
def test_damaged_files_are_no_obstacle(tmp_path, torn):
    path = tmp_path / 'summary.csv'
    path.write_text(torn, newline='')
    write_row(path, 1, {'loss': 5.0}, None, lr=0.1)
    rows = read(path)[1]
    assert rows[-1] == {'epoch': '1', 'train_loss': '5.0', 'lr': '0.1'}
    assert len(rows) <= 2


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / 'file'
    write_whole(path, 'old')

    def full(descriptor):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='No space left'):
        write_whole(path, 'new')
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_the_results_are_those_of_validate(tmp_path):
    """In float32, whatever the training computed in."""
    data = write_images(tmp_path / 'data', {'ant': 40, 'bee': 30}, val=20)
    run = train(data, tmp_path, 'run', '--model', CIFAR, '--amp')
    last = json.loads((run / 'results.json').read_text())['last']
    found = validate(build_parser().parse_args([str(run), '--device', 'cpu']))
    for name in ('top1', 'ece', 'loss'):
        assert last[name] == pytest.approx(found[name], abs=1e-4)
