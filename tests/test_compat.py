"""What breaks where another package moves a private name; see `ride_timm/_compat.py`."""

import ast
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from timm.data import ImageDataset, Mixup
from timm.models.resnet import BasicBlock
from torch import nn

from ride_timm import _compat
from ride_timm.data.sources.lists import ListReader

PACKAGE = Path(_compat.__file__).parent


@pytest.mark.parametrize('path', sorted(PACKAGE.rglob('*.py')), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_module_imports_a_private_name(path):
    if path.name == '_compat.py':
        return
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and not node.level and not (node.module or '').startswith('ride_timm'):
            parts = [*(node.module or '').split('.'), *(alias.name for alias in node.names)]
            private = [part for part in parts if part.startswith('_') and part != '__future__']
            assert not private, f'line {node.lineno}: import {private[0]} through ride_timm._compat'


def test_targets_of_batches_that_are_not_mixed():
    found = _compat.mixup_target(torch.tensor([1, 0]), 3, smoothing=0.3)
    assert torch.allclose(found, torch.tensor([[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]]))
    mixed = Mixup(mixup_alpha=1.0, label_smoothing=0.3, num_classes=3)(torch.rand(2, 3, 4, 4), torch.tensor([1, 1]))[1]
    assert torch.allclose(mixed, found[:1].expand(2, 3))


def test_data_sets_of_timm_ask_a_reader_for_items_and_names(tmp_path):
    path = tmp_path / 'a.png'
    path.write_bytes(b'x')
    data = ImageDataset('', reader=ListReader([str(path)], ['a.png']))
    assert isinstance(data.reader, _compat.Reader)
    assert data.filename(0) == 'a.png'


def test_indices_of_intermediate_features():
    assert _compat.feature_take_indices(4, 2) == ([2, 3], 3)
    assert _compat.feature_take_indices(4, [0, -1]) == ([0, 3], 3)


def test_an_export_has_the_arguments_of_the_network(tmp_path):
    net = timm.create_model('test_resnet', num_classes=3)
    _compat.update_model_args(net, head='cosine')
    _compat.save_config_for_hf(net, str(tmp_path / 'config.json'), model_config={'ride': {'a': 1}})
    text = (tmp_path / 'config.json').read_text()
    assert timm.models.get_model_args(net)['head'] == 'cosine'
    assert '"head": "cosine"' in text
    assert '"ride"' in text


def test_a_family_has_a_filter_for_checkpoints():
    small, large = (timm.create_model('test_vit', img_size=size) for size in (64, 96))
    state = _compat.filter_checkpoint(small.state_dict(), large)
    large.load_state_dict(state)
    net = timm.create_model('test_resnet')
    assert _compat.filter_checkpoint(net.state_dict(), net).keys() == net.state_dict().keys()


def test_writing_in_place_is_counted():
    tensor = torch.zeros(2, device='meta')
    before = _compat.get_version(tensor)
    tensor + 1
    assert _compat.get_version(tensor) == before
    tensor[:1].relu_()
    assert _compat.get_version(tensor) > before


def test_stages_of_a_resnet():
    stages, info = _compat.make_blocks((BasicBlock,) * 4, (8, 8, 16, 16), (1, 1, 1, 1), 8, cardinality=1, base_width=64)
    assert [name for name, _ in stages] == ['layer1', 'layer2', 'layer3', 'layer4']
    assert [each['num_chs'] for each in info] == [8, 8, 16, 16]


def test_the_evaluator_drops_padding_and_adds_losses():
    evaluator = _compat.Evaluator(max_samples=2)
    output, target = evaluator.prepare(torch.ones(3, 3, dtype=torch.float16), torch.tensor([1, 2, 0]))
    assert (output.dtype, output.shape, target.tolist()) == (torch.float32, (2, 3), [1, 2])
    evaluator.add_loss(torch.tensor(2.0), 3)
    evaluator.add_loss(torch.tensor(5.0), 1)
    assert float(evaluator.loss_sum) == 11.0


def test_buffers_stay_float32():
    class Module(_compat.Float32Buffers):
        def __init__(self):
            super().__init__()
            self.register_buffer('prior', torch.ones(1))
            self.weight = nn.Parameter(torch.ones(1))

    module = nn.Sequential(Module()).half()[0]
    assert (module.prior.dtype, module.weight.dtype) == (torch.float32, torch.float16)


def test_what_the_cpu_multiplies():
    assert all('bf16' in name for name in _compat.bfloat16_on_cpu())
    flags = Path('/proc/cpuinfo')
    if flags.is_file() and 'avx512_bf16' in flags.read_text():
        assert 'avx512_bf16' in _compat.bfloat16_on_cpu()


def test_the_module_within_a_wrapper():
    net = nn.Linear(1, 1)
    assert _compat.get_inner(torch.compile(net)) is net
    assert _compat.get_inner(nn.DataParallel(net)) is net
    assert _compat.get_inner(net) is None


def test_a_hook_can_be_found_and_taken_off():
    net = nn.Identity()
    net.register_forward_hook(lambda module, inputs, output: output + 1)
    assert net(torch.zeros(1)) == 1
    _compat.get_forward_hooks(net).clear()
    assert net(torch.zeros(1)) == 0


def test_batches_of_a_loader():
    data = [(np.zeros((3, 4, 4), np.uint8), 0)] * 2
    loader = timm.data.create_loader(
        ImageDataset('', reader=data), (3, 4, 4), 2, use_prefetcher=True, device=torch.device('cpu'), num_workers=0
    )
    assert isinstance(_compat.get_batches(loader), torch.utils.data.DataLoader)
    _compat.set_batches(loader, [(torch.full((1, 3, 4, 4), 255, dtype=torch.uint8), torch.tensor([7]))])
    ((_, target),) = loader
    assert target.tolist() == [7]


def test_shards_of_a_split(tmp_path):
    pytest.importorskip('webdataset')
    with _compat.quiet_shards(True):
        assert logging.getLogger('timm.data.readers.reader_wds').disabled
        data = timm.data.create_dataset('wds/x', root=str(tmp_path), split='a-{00..02}.tar')
    assert _compat.shard_names(data) == ['a-00.tar', 'a-01.tar', 'a-02.tar']
    assert not logging.getLogger('timm.data.readers.reader_wds').disabled


def test_it_may_be_the_first_to_import_timm():
    code = 'import ride_timm._compat, timm; assert timm.is_model("ride_resnet50_4e")'
    subprocess.run([sys.executable, '-c', code], check=True, cwd=PACKAGE.parent)
