"""Temperatures: found again where they are known, and never a reason for certainty."""

import pytest
import torch

from ride_timm.inference.temperature import fit_temperature, tempered


@pytest.mark.parametrize('scale', [0.2, 1.0, 4.0])
def test_a_known_temperature_is_found(scale):
    logits = 2 * torch.randn(20000, 8, generator=torch.Generator().manual_seed(0))
    labels = logits.softmax(1).multinomial(1, generator=torch.Generator().manual_seed(1))[:, 0]
    assert fit_temperature(scale * logits, labels) == pytest.approx(scale, rel=0.03)


def test_right_answers_alone_give_no_certainty():
    labels = torch.arange(40) % 4
    logits = 3 * torch.nn.functional.one_hot(labels, 4).float()
    found = (logits / fit_temperature(logits, labels)).softmax(1).amax(1)
    assert 0.9 < found.max() < 0.99  # as one image of 41 that may be anything


def test_each_image_has_the_temperature_of_its_number_of_experts():
    logits = torch.ones(4, 2)
    found = tempered(logits, (1.0, 2.0, 4.0), torch.tensor([1, 3, 2, 0]))
    assert found[:, 0].tolist() == [1.0, 0.25, 0.5, 1.0]  # a plain network counts 0 experts
    assert tempered(logits, (1.0, 2.0, 4.0)).tolist() == (logits / 4).tolist()
    assert tempered(logits, None) is logits
