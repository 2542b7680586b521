"""Without a way to the Hub: what lies in the cache is used, and the rest is one sentence, both at once."""

import threading
import time

import pytest
import timm
import torch
from fake_hub import httpx
from published import REPO, make_weight
from safetensors.torch import save_file

from ride_timm import RideError, from_pretrained
from ride_timm.commands.publish import main as publish_main
from ride_timm.inference import hub as hub_module
from ride_timm.training.initial import read_initial


@pytest.fixture
def gone(hub):
    """From here on nothing listens where the Hub was."""

    def go():
        def refuse(request):
            raise httpx.ConnectError('refused', request=request)

        hub.before = refuse

    return go


def test_the_cache_is_used_at_once(hub, hub_login, gone, client_naps, tmp_path):
    publish_main([str(make_weight(tmp_path / 'weights')), REPO])
    state = from_pretrained(f'hf-hub:{REPO}').state_dict()
    gone()
    again = from_pretrained(f'hf-hub:{REPO}').state_dict()
    assert all(torch.equal(again[key], value) for key, value in state.items())
    assert client_naps == []


def test_what_is_not_there_is_told_at_once(gone, client_naps):
    gone()
    with pytest.raises(RideError, match='the Hub cannot be reached; connect once'):
        from_pretrained('hf-hub:me/nothing')
    assert client_naps == []


@pytest.mark.parametrize(
    'name, model, wanted',
    [
        ('resnet18.a1_in1k', None, 'ride_resnet18_3e'),
        ('resnet18.a1_in1k', 'ride_resnet18_2e', 'ride_resnet18_2e'),
        ('efficientnet_b0.ra_in1k', None, 'ride_efficientnet_b0_3e'),
    ],
)
def test_weights_to_initialise_from_name_the_way_by_a_file(gone, client_naps, name, model, wanted):
    gone()
    with pytest.raises(RideError, match='cannot be reached') as caught:
        read_initial(name, model)
    assert str(caught.value).endswith(f'give that file: --init FILE --model {wanted}.')
    assert client_naps == []


@pytest.mark.parametrize('model', ['ride_resnet18_3e', 'resnet18'])
def test_the_way_by_a_file(tmp_path, model):
    save_file(timm.create_model('resnet18').state_dict(), tmp_path / 'model.safetensors')
    found = read_initial(tmp_path / 'model.safetensors', model)
    assert 'layer4.1.conv2.weight' in found.model.state_dict()


def test_the_client_is_as_before_after_that(gone):
    from huggingface_hub import constants

    gone()
    with hub_module.without_retries():
        assert constants.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE


def test_a_lookup_that_never_ends(hub, monkeypatch):
    over = threading.Event()
    monkeypatch.setattr(hub_module, '_PATIENCE', 0.1)
    hub.before = lambda request: over.wait(30) and None
    began = time.monotonic()
    assert not hub_module._is_reachable('https://huggingface.co')
    assert time.monotonic() - began < 5
    over.set()
