"""`ride-timm backbones`: what experts on timm's models cost."""

import re
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from ride_timm.cli import main
from ride_timm.commands.backbones import backbone_cost
from ride_timm.models.ride_zoo import BACKBONES

PAGE = (Path(__file__).parents[2] / 'docs' / 'backbones.md').read_text()


@pytest.mark.parametrize('name', ['test_convnext', 'test_efficientnet'])
def test_one_expert_is_the_plain_backbone(name):
    cost = backbone_cost(name)
    plain = timm.create_model(name, num_classes=0, device='meta').eval()
    with FlopCounterMode(display=False) as counter:
        plain(torch.empty(1, 3, cost.size, cost.size, device='meta'))
    parameters, macs = cost.total(1)
    assert macs == pytest.approx(counter.get_total_flops() / 2e9)
    assert parameters == pytest.approx(sum(p.numel() for p in plain.parameters()) / 1e6)
    assert cost.total(3)[1] == pytest.approx(macs + 2 * cost.expert[1])


def test_what_it_prints_is_in_the_page(capsys):
    assert main(['backbones', 'convnext_nano', 'vit_small_patch16_dinov3', 'tf_efficientnet_lite0']) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith('|')]
    assert len(rows) == 5
    assert all(row in PAGE for row in rows)


def test_the_page_has_every_named_backbone():
    assert set(re.findall(r'^\| (\w+) \|', PAGE, re.MULTILINE)) == {
        'backbone', *(name.partition('.')[0] for name in BACKBONES)
    }  # fmt: skip


def test_one_that_cannot_be_cut_is_named(capsys):
    assert main(['backbones', 'crossvit_9_240', 'test_vit']) == 0
    said = capsys.readouterr().out
    assert '1 of 2 can be cut' in said
    assert 'crossvit_9_240: CrossVit.forward_head' in said


def test_a_name_that_timm_does_not_know(capsys):
    assert main(['backbones', 'not_there']) == 2
    assert "'not_there'" in capsys.readouterr().err
