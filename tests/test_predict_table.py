"""The width of `ride-timm predict`'s table."""

import sys

import pytest
import timm
import torch
from PIL import Image
from tiny_runs import CIFAR

from ride_timm.commands.predict import main
from ride_timm.publishing.folder import save_folder


@pytest.fixture(scope='module')
def net(tmp_path_factory):
    """A packaged folder with long names of classes, and an image in it."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('weights')
    names = [f'a class of trees with a rather long name {k} of them' for k in range(3)]
    save_folder(timm.create_model(CIFAR, num_classes=3), folder, names, [3, 2, 1])
    Image.effect_noise((40, 30), 90).save(folder / 'a photograph with a long name, too.png')
    return folder


@pytest.fixture
def lines(net, capsys, monkeypatch):
    """The lines that a terminal of this many columns shows, or a pipe."""

    def call(columns=None, *options):
        if columns is not None:
            monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
            monkeypatch.setenv('COLUMNS', str(columns))
        assert main([str(net), *map(str, net.glob('*.png')), '--device', 'cpu', *options]) == 0
        return capsys.readouterr().out.splitlines()

    return call


def test_a_pipe_gets_all_of_it(lines):
    table = lines()
    assert len(table[-1]) > 250
    assert lines(len(table[-1])) == table


@pytest.mark.parametrize(('columns', 'votes'), [(240, 6), (170, 4), (120, 4), (72, 1), (20, None)])
def test_lines_fit_the_terminal(lines, columns, votes):
    found = lines(columns)
    assert max(map(len, found)) <= columns
    if votes is not None:  # the answer, its runners-up, and those of three experts
        assert found[-1].count(' %') == votes
        assert ('#2' in found[-2], 'expert 2' in found[-2]) == (votes == 6, votes > 1)


def test_a_file_gets_all_of_it(lines, tmp_path):
    whole = lines()
    assert lines(60, '--output', str(tmp_path / 'table.txt')) == []
    assert (tmp_path / 'table.txt').read_text().splitlines() == whole
