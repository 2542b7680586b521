"""Our folders in transformers: what a user does there after having trained here."""

import pytest
import timm
import torch
from tiny_runs import CIFAR

from ride_timm.inference.load import load
from ride_timm.publishing.folder import save_folder

transformers = pytest.importorskip('transformers')
CLASSES = 5


@pytest.fixture(scope='module')
def net():
    return timm.create_model(CIFAR, num_classes=CLASSES, router=True).eval()


@pytest.fixture(scope='module')
def folder(net, tmp_path_factory):
    path = tmp_path_factory.mktemp('published')
    save_folder(net, path, [f'class {i}' for i in range(CLASSES)], [5, 4, 3, 2, 1])
    return str(path)


@torch.inference_mode()
def test_features(net, folder):
    images = torch.randn(2, 3, 32, 32)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    pooled = net.forward_head(net.forward_features(images), pre_logits=True)
    torch.testing.assert_close(model(images).pooler_output, pooled)


@pytest.mark.filterwarnings('ignore:The router belongs')
def test_new_heads_are_drawn(folder):
    """And not left as the memory happened to be."""
    held = [torch.full((7, 72), torch.nan) for _ in range(200)]
    del held
    model = transformers.AutoModelForImageClassification.from_pretrained(
        folder, num_labels=7, ignore_mismatched_sizes=True
    )
    heads = [expert.fc.weight for expert in model.timm_model.experts]
    assert all(head.shape[0] == 7 for head in heads)
    assert all(0.01 < head.std() < 0.6 for head in heads)
    assert not torch.equal(heads[0], heads[1])
    assert model(torch.randn(2, 3, 32, 32)).logits.isfinite().all()


@pytest.mark.filterwarnings('default:The router belongs')
def test_a_router_of_other_heads_is_dropped(folder, tmp_path):
    """Its output layer would be drawn anew, and with the old threshold send every image through one expert."""
    with pytest.warns(UserWarning, match='router'):
        model = transformers.AutoModelForImageClassification.from_pretrained(
            folder, num_labels=7, ignore_mismatched_sizes=True
        )
    assert model.timm_model.router is None
    model.save_pretrained(tmp_path)
    found = load(tmp_path)
    assert found.model.num_classes == 7
    assert found.model.router is None
    assert found.class_names is None or len(found.class_names) == 7
    kept = transformers.AutoModelForImageClassification.from_pretrained(folder)
    assert kept.timm_model.router is not None
