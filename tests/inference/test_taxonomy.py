"""Taxonomies: what a file says, how often answers have the right ancestor, and the level that is sure enough."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from tiny_runs import CIFAR, write_images

from ride_timm.commands.predict import main as predict_command
from ride_timm.commands.validate import build_parser, validate
from ride_timm.errors import RideError
from ride_timm.inference.abstention import Abstention
from ride_timm.inference.load import TrainedNet
from ride_timm.inference.prediction import predict
from ride_timm.inference.taxonomy import read_taxonomy
from ride_timm.publishing.folder import save_folder

NAMES = ('lion', 'tiger', 'wolf', 'oak')
TREE = 'label,parent\nlion,cat\ntiger, cat\nwolf,dog\ncat,animal\ndog,animal\n'


@pytest.fixture
def tree(tmp_path):
    path = tmp_path / 'tree.csv'
    path.write_text(TREE)
    return read_taxonomy(path, NAMES)


def test_levels_of_an_uneven_tree(tree):
    assert tree.levels == [['cat', 'cat', 'dog', 'oak'], ['animal', 'animal', 'animal', 'oak']]
    confusion = [[5, 3, 1, 1, 0], [0, 10, 0, 0, 0], [2, 0, 6, 2, 0], [0, 0, 1, 7, 2]]
    assert tree.accuracies(confusion) == pytest.approx([100 * (8 + 10 + 6 + 7) / 40, 100 * (9 + 10 + 8 + 7) / 40])


def test_the_nearest_ancestor_that_two_share(tmp_path):
    path = tmp_path / 'tree.csv'
    path.write_text(TREE + 'oak,plant\nplant,thing\nanimal,thing\n')
    tree = read_taxonomy(path, (*NAMES, 'fog'))
    pairs = [(0, 1), (0, 2), (2, 1), (0, 3), (3, 0), (0, 4), (4, 0)]
    assert [tree.in_common(*pair) for pair in pairs] == ['cat', 'animal', 'animal', 'thing', 'thing', None, None]


def test_the_nearest_ancestor_that_is_sure_enough(tree):
    shares = torch.tensor([[0.5, 0.4, 0.1, 0.0], [0.4, 0.2, 0.35, 0.05], [0.3, 0.1, 0.2, 0.4]])
    found = tree.broader(shares, 0.85)
    assert found[0] == ('cat', pytest.approx(0.9))
    assert found[1] == ('animal', pytest.approx(0.95))
    assert found[2] is None


@pytest.mark.parametrize(
    'text', ['lion\n', 'lion,cat,1\n', 'lion,cat\nlion,dog\n', 'lion,cat\ncat,lion\n', 'pine,tree\n', '']
)
def test_files_that_are_no_taxonomy(tmp_path, text):
    path = tmp_path / 'tree.csv'
    path.write_text(text)
    with pytest.raises(RideError, match=r'tree\.csv'):
        read_taxonomy(path, NAMES)


def test_predictions_name_it(tree):
    torch.manual_seed(0)
    net = TrainedNet(timm.create_model(CIFAR, num_classes=4).eval(), CIFAR, NAMES)
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)) for _ in range(4)]
    for limit in (0.0, 0.5, 0.9, 1.0):
        promise = Abstention(limit=limit, rate=0.1, confidence=0.9, images=1, said=1, wrong=0)
        for found in predict(net, images, top_k=4, abstention=promise, taxonomy=tree):
            shares = torch.zeros(1, 4)
            for vote in found.top:
                shares[0, vote.class_index] = vote.confidence
            (wanted,) = tree.broader(shares, limit)
            assert found.said == (found.top[0].confidence >= limit)
            if found.said:
                assert found.answer == found.top[0].label
            else:
                assert found.answer == ('unknown' if wanted is None else wanted[0])


def test_accuracy_at_each_level(tmp_path):
    images = write_images(tmp_path / 'images', {'ant': 6, 'bee': 4, 'cat': 2}, val=4)
    torch.manual_seed(0)
    save_folder(timm.create_model(CIFAR, num_classes=3), tmp_path / 'net', ['ant', 'bee', 'cat'], [6, 4, 2])
    (tmp_path / 'tree.csv').write_text('ant,insect\nbee,insect\ninsect,animal\ncat,animal\n')
    taxonomy = str(tmp_path / 'tree.csv')
    words = [str(tmp_path / 'net'), '--data-dir', str(images), '--taxonomy', taxonomy, '--device', 'cpu']
    found = validate(build_parser().parse_args(words))
    assert found['level2_top1'] == 100.0
    assert found['top1'] - 1e-9 <= found['level1_top1'] <= 100.0
    with pytest.raises(RideError, match='--abstain'):
        predict_command([str(tmp_path / 'net'), str(images / 'val'), '--taxonomy', taxonomy])
