import argparse
import json
import os
import re
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

import ride_timm.commands.convert as convert_module
from ride_timm.commands.convert import build_parser, convert, main
from ride_timm.errors import RideError
from ride_timm.publishing.folder import save_folder
from ride_timm.publishing.official import from_official, load_official

GOLDEN = Path(__file__).parents[1] / 'golden'
NAMES = ('resnet32_3e', 'resnet32_3e_ea', 'bottleneck_2e')


def golden(name):
    """The architecture with its arguments, the official file, and what the reference computed."""
    about = json.loads((GOLDEN / f'{name}.json').read_text())
    return about['arch'], about.get('kwargs', {}), GOLDEN / f'{name}.official.safetensors', load_file(
        GOLDEN / f'{name}.io.safetensors'
    )  # fmt: skip


@torch.no_grad()
def assert_computes(model, io):
    model = model.eval()
    x = io['x'].float()
    if 'num_experts_used' in io:
        routed = model.forward_routed(x)
        assert torch.equal(routed.num_experts, io['num_experts_used'])
        assert len(routed.num_experts.unique()) > 1, 'these images do not test the router'
        torch.testing.assert_close(routed.logits, io['logits'], rtol=0, atol=1e-4)
        model.set_routing(0.5)
    else:
        torch.testing.assert_close(model.forward_experts(x), io['expert_logits'], rtol=0, atol=1e-4)
    torch.testing.assert_close(model(x), io['logits'], rtol=0, atol=1e-4)


def published(path, state_dict):
    """Write a state dict as the trainer does after training on several GPUs, objects of its own classes included."""
    module = types.ModuleType('parse_config')
    config_parser = type('ConfigParser', (), {'__module__': 'parse_config'})
    module.ConfigParser = config_parser
    config = config_parser()
    config.__dict__.update(save_dir=Path('/somewhere'), log_levels={0: 30}, config=OrderedDict(n_gpu=8))
    sys.modules['parse_config'] = module
    try:
        state_dict = OrderedDict((f'module.{key}', value) for key, value in state_dict.items())
        torch.save(
            {
                'arch': 'Model', 'epoch': 200, 'state_dict': state_dict, 'optimizer': {'state': {}, 'param_groups': []},
                'monitor_best': np.float64(0.5), 'config': config, 'criterion': torch.nn.CrossEntropyLoss(),
            },
            path,
        )  # fmt: skip
    finally:
        del sys.modules['parse_config']
    return path


@pytest.mark.parametrize('name', NAMES)
def test_converted_weights_compute_what_the_reference_does(tmp_path, name):
    arch, kwargs, file, io = golden(name)
    model = convert(file, tmp_path / 'out', arch, **kwargs)
    assert model.training
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32, torch.int64}
    assert_computes(model, io)
    again = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    assert again.routing_threshold is None
    assert_computes(again, io)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize('name', NAMES)
def test_command_on_a_published_file(tmp_path, capsys, name):
    arch, kwargs, file, io = golden(name)
    source = published(tmp_path / 'model_best.pth', load_file(file))
    output = tmp_path / 'new' / 'out'
    extra = ['--model-kwargs', *(f'{key}={value}' for key, value in kwargs.items())] if kwargs else []
    assert main([str(source), '--model', arch, '--output', str(output), *extra]) == 0
    text = capsys.readouterr().out
    for part in (arch, f'{io["logits"].shape[1]}, in the order', 'cosine heads', 'import ride_timm'):
        assert part in text
    assert ('sees the top 30 logits, threshold 0.5' in text) == name.endswith('_ea')
    line = re.search(r'timm\.create_model\(.*\)', text)[0]
    assert_computes(eval(line, {'timm': timm}), io)
    assert sorted(path.name for path in output.iterdir()) == ['config.json', 'model.safetensors']


def test_config(tmp_path):
    convert(GOLDEN / 'resnet32_3e_ea.official.safetensors', tmp_path, mean=(0.1, 0.2, 0.3))
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['architecture'] == 'ride_resnet32_3e'
    assert config['num_classes'] == 100
    assert config['ride'] == {'num_experts': 3, 'router': True, 'router_threshold': 0.5}
    # transformers passes num_classes itself and fails on a second one
    assert 'num_classes' not in config['model_args']
    assert config['model_args']['router'] == 100  # classes of the heads that it belongs to
    assert config['model_args']['router_top_k'] == 30
    cfg = config['pretrained_cfg']
    assert cfg['mean'] == [0.1, 0.2, 0.3]
    assert cfg['std'] == [0.2023, 0.1994, 0.2010]
    assert cfg['input_size'] == [3, 32, 32]
    assert cfg['num_classes'] == 100
    assert cfg['classifier'] == ['experts.0.fc', 'experts.1.fc', 'experts.2.fc']
    # nothing that only the owner of the weights can say
    assert not cfg.keys() & {'tag', 'license', 'label_names', 'description', 'hf_hub_id', 'url'}


def test_cfg_of_a_published_weight_does_not_get_in(tmp_path, monkeypatch):
    """The default cfg of an architecture is that of its first weight, with that weight's labels and normalisation."""
    registry = sys.modules['timm.models._registry']
    name = 'ride_resnet32_3e'
    foreign = timm.models.PretrainedCfg(
        hf_hub_id='x/y', tag='other', label_names=['a'] * 100, mean=(0, 0, 0), num_classes=100, input_size=(3, 64, 64)
    )
    monkeypatch.setitem(registry._model_pretrained_cfgs, name, foreign)
    convert(GOLDEN / 'resnet32_3e.official.safetensors', tmp_path, name)
    text = (tmp_path / 'config.json').read_text()
    assert 'label_names' not in text
    assert 'other' not in text
    assert json.loads(text)['pretrained_cfg']['mean'] == [0.4914, 0.4822, 0.4465]
    assert json.loads(text)['pretrained_cfg']['input_size'] == [3, 32, 32]


def test_fine_tuning_on_other_classes(tmp_path):
    convert(GOLDEN / 'resnet32_3e.official.safetensors', tmp_path)
    model = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=7)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 7)


@pytest.mark.parametrize('umask', [0o022, 0o002, 0o077])
def test_files_have_ordinary_modes(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_folder(timm.create_model('test_ride_resnet_cifar_3e'), tmp_path / 'out')
    finally:
        os.umask(before)
    for name in ('model.safetensors', 'config.json'):
        assert (tmp_path / 'out' / name).stat().st_mode & 0o777 == 0o666 & ~umask
    assert (tmp_path / 'out').stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize('step', ['save_config_for_hf', 'json.dumps', 'save_torch_state_dict', 'os.fsync'])
def test_a_failure_leaves_nothing_that_loads(tmp_path, monkeypatch, step):
    model = timm.create_model('test_ride_resnet_cifar_3e')

    def fail(*args, **kwargs):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(f'ride_timm.publishing.folder.{step}', fail)
    with pytest.raises(RideError, match='No space left on device'):
        save_folder(model, tmp_path / 'out')
    assert not list(tmp_path.glob('out/*'))


def test_weights_come_before_the_config(tmp_path, monkeypatch):
    """A process that is killed in between leaves a folder that timm refuses."""
    model = timm.create_model('test_ride_resnet_cifar_3e')
    replace = Path.replace

    def killed(path, target):
        if target.name == 'config.json':
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, 'replace', killed)
    with pytest.raises(KeyboardInterrupt):
        save_folder(model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ['model.safetensors']
    with pytest.raises(FileNotFoundError):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True)


def single_expert():
    """The official state dict of a plain ResNet-32, from our network of the same kind."""
    model = timm.create_model('ride_resnet32_1e', num_classes=10)
    return {
        key.replace('experts.0.fc', 'linear').removeprefix('experts.0.'): value
        for key, value in model.state_dict().items()
    }, model


def test_single_expert_with_linear_head(tmp_path):
    official, model = single_expert()
    converted = convert(published(tmp_path / 'a.pth', official), tmp_path / 'out')
    assert converted.pretrained_cfg['architecture'] == 'ride_resnet32_1e'
    assert converted.head == 'linear'
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(converted.eval()(x), model.eval()(x))


def refusal(*args, **kwargs):
    with pytest.raises(RideError) as info:
        convert(*args, **kwargs)
    sentence = str(info.value)
    assert '\n' not in sentence
    return sentence


def test_other_architecture_is_refused_and_the_right_one_named(tmp_path):
    file, out = GOLDEN / 'resnet32_3e.official.safetensors', tmp_path / 'out'
    sentence = refusal(file, out, 'ride_resnet32_4e')
    assert 'it has 3 expert(s) and the architecture 4' in sentence
    assert 'convert it as ride_resnet32_3e, which fits' in sentence
    sentence = refusal(file, out, 'ride_resnet50_3e')
    assert 'it lacks' in sentence or 'and that of the architecture' in sentence
    assert 'convert it as ride_resnet32_3e, which fits' in sentence
    sentence = refusal(file, out, 'test_ride_resnet_cifar_3e')
    assert 'the architecture has no layer1.1.' in sentence
    sentence = refusal(file, out, 'ride_resnet32_3e', channels=(16, 32, 64))
    assert 'experts.0.layer2.0.conv1.weight is 24x16x3x3 and that of the architecture 32x16x3x3' in sentence
    assert not out.exists()


def test_a_width_that_no_architecture_has(tmp_path):
    file = GOLDEN / 'bottleneck_2e.official.safetensors'
    assert 'state its channels= and layers=' in refusal(file, tmp_path / 'out', 'ride_resnet50_2e')
    assert 'fits no architecture as it stands' in refusal(file, tmp_path / 'out')


def test_other_number_of_classes_is_refused(tmp_path):
    file = GOLDEN / 'resnet32_3e.official.safetensors'
    assert 'has 100 classes, not 10' in refusal(file, tmp_path / 'out', num_classes=10)
    convert(file, tmp_path / 'out', num_classes=100)


@pytest.mark.parametrize('name', ['ride_resnet33_3e', 'resnet18', 'hf-hub:a/b'])
def test_unknown_architecture(tmp_path, name):
    sentence = refusal(GOLDEN / 'resnet32_3e.official.safetensors', tmp_path / 'out', name)
    assert f'no RIDE architecture {name}' in sentence


def test_wrong_arguments_of_the_architecture(tmp_path):
    file = GOLDEN / 'resnet32_3e.official.safetensors'
    assert 'unheard_of' in refusal(file, tmp_path / 'out', 'ride_resnet32_3e', unheard_of=1)
    assert 'channels=(1, 2)' in refusal(file, tmp_path / 'out', 'ride_resnet32_3e', channels=(1, 2))


def test_incomplete_checkpoint(tmp_path):
    official = load_file(GOLDEN / 'resnet32_3e_ea.official.safetensors')
    for missing in ('backbone.layer3s.1.4.bn2.bias', 'backbone.linears.2.weight', 'backbone.expert_help_pred_fc.bias'):
        state_dict = {key: value for key, value in official.items() if key != missing}
        sentence = refusal(published(tmp_path / 'a.pth', state_dict), tmp_path / 'out', 'ride_resnet32_3e')
        assert 'it lacks' in sentence


def test_output_that_exists(tmp_path):
    file = GOLDEN / 'resnet32_3e.official.safetensors'
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'notes.txt').write_text('mine')
    assert 'is not an empty folder' in refusal(file, tmp_path / 'full')
    assert 'is not an empty folder' in refusal(file, tmp_path / 'full' / 'notes.txt')
    assert [path.name for path in (tmp_path / 'full').iterdir()] == ['notes.txt']
    sentence = refusal(file, tmp_path / 'full' / 'notes.txt' / 'out')
    assert 'cannot be written' in sentence


def test_output_is_checked_before_the_file_is_read(tmp_path, monkeypatch):
    (tmp_path / 'a').touch()
    monkeypatch.setattr(convert_module, 'load_official', lambda path: pytest.fail('read in vain'))
    refusal('unread', tmp_path)


def test_parser():
    assert isinstance(build_parser(), argparse.ArgumentParser)
    args = build_parser().parse_args(['f', '--output', 'd', '--mean', '0.466', '0.471', '0.380'])
    assert args.mean == [0.466, 0.471, 0.380]
    assert args.model is None
    with pytest.raises(SystemExit):
        build_parser().parse_args(['f'])
    with pytest.raises(SystemExit):  # argparse's own one line
        main(['f', '--output', 'd', '--model-kwargs', 'channels'])


def test_reader_and_renaming_are_part_of_the_api():
    converted = from_official(load_official(GOLDEN / 'bottleneck_2e.official.safetensors'))
    assert converted['experts.1.fc.weight'].shape == (10, 192)
    assert converted['experts.1.fc.weight'].dtype == torch.float16


def test_threshold_set_after_creation_is_saved(tmp_path):
    model = timm.create_model('test_ride_resnet_cifar_3e', num_classes=4, router=True)
    model.router_threshold = 0.3
    save_folder(model, tmp_path / 'net')
    assert timm.create_model(f'local-dir:{tmp_path / "net"}', pretrained=True).router_threshold == 0.3
