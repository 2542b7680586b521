"""How images are prepared for a network of other channels than the weights that its architecture is known for."""

import pytest
import timm
import torch
from tiny_runs import train, write_images

import ride_timm  # noqa: F401  registers the networks
from ride_timm.inference.load import load
from ride_timm.inference.network import data_config
from ride_timm.inference.prediction import predict
from ride_timm.records.checkpoint import read_checkpoint


@pytest.mark.parametrize(('channels', 'side'), [(1, None), (3, None), (1, 16)])
def test_size_and_normalisation_have_the_channels_of_the_network(channels, side):
    net = timm.create_model('ride_resnet32_3e', in_chans=channels)
    known = net.pretrained_cfg
    config = data_config(net, {'img_size': side})
    assert config['input_size'] == (channels, side or 32, side or 32)
    for key in ('mean', 'std'):
        wanted = known[key] if channels == 3 else (sum(known[key]) / 3,)
        assert config[key] == pytest.approx(wanted)


def test_a_grey_network_is_trained_and_called(tmp_path):
    data = write_images(tmp_path / 'data', {'ant': 8, 'bee': 4}, size=32)
    common = ('--model', 'test_ride_resnet_cifar_3e', '--in-chans', '1')
    run = train(data, tmp_path, 'run', *common, size=32)
    kept = read_checkpoint(run / 'last.pth.tar')['args']['data_config']
    assert (kept['input_size'][0], len(kept['mean']), len(kept['std'])) == (1, 1, 1)
    found = list(predict(load(run), [str(path) for path in sorted((data / 'val').glob('*/*'))]))
    assert len(found) == 8
    assert torch.tensor([row.top[0].confidence for row in found]).isfinite().all()
