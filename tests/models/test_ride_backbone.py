"""RIDE on small timm backbones of many families: each expert is the backbone, and the whole is a network of ours."""

import copy
import functools
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from routed_nets import expected_experts
from timm.models import group_parameters
from timm.utils import ModelEmaV3
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))
import construction

import ride_timm
from ride_timm import RideError
from ride_timm.models.ride_zoo import BACKBONES

SWIN = {'img_size': 64, 'embed_dim': 16, 'depths': (1, 1, 2, 1), 'num_heads': (1, 1, 2, 2), 'drop_path_rate': 0.0}
VIT = {'img_size': 64, 'depth': 4, 'embed_dim': 48, 'num_heads': 4}
# name, arguments that make it small, and a module within a stage after which it can be cut
HOSTS = {
    'test_vit': ({}, 'blocks.2'),
    'test_convnext': ({}, 'stages.2.blocks.0'),
    'test_efficientnet': ({}, 'blocks.4.0'),
    'test_resnet': ({}, 'layer4.0'),
    'mobilenetv3_small_050': ({}, 'blocks.4.1'),
    'vit_tiny_patch16_dinov3_qkvb': (VIT, 'blocks.0'),
    'swin_tiny_patch4_window7_224': (SWIN | {'window_size': 2}, 'layers.2.blocks.0'),
}
MORE = {
    'convnextv2_atto': {},
    'eva02_tiny_patch14_224': {'img_size': 56, 'depth': 4, 'embed_dim': 48, 'num_heads': 4},
    'regnety_002': {},
    'swinv2_tiny_window8_256': SWIN | {'window_size': 2},
    'vit_small_patch14_dinov2': VIT | {'img_size': 56},
    'vit_base_patch16_clip_224': VIT,
    'vit_base_patch16_siglip_224': VIT,
    'deit3_small_patch16_224': VIT,
    'pvt_v2_b0': {},
}

# one model of each family of timm's
FAMILIES = [
    'beit_base_patch16_224', 'caformer_s18', 'cait_xxs24_224', 'coat_tiny', 'convit_tiny', 'convmixer_768_32',
    'convnext_atto', 'convnext_tiny', 'convnextv2_atto', 'cpubone_nano', 'crossvit_tiny_240',
    'cs3darknet_focus_s', 'csatv2', 'cspnext_tiny', 'davit_tiny', 'deit3_small_patch16_224',
    'deit_tiny_distilled_patch16_224', 'deit_tiny_patch16_224', 'densenet121', 'dla46x_c', 'dpn48b',
    'edgenext_small', 'edgenext_xx_small', 'efficientformer_l1', 'efficientformerv2_s0', 'efficientnet_b0',
    'efficientvim_m1', 'efficientvit_b0', 'efficientvit_m0', 'ese_vovnet19b_slim_dw', 'eva02_tiny_patch14_224',
    'fasternet_t0', 'fastvit_t8', 'focalnet_tiny_srf', 'gcvit_xxtiny', 'ghostnet_050', 'gmlp_ti16_224',
    'halonet_h1', 'hardcorenas_b', 'hgnetv2_b0', 'hiera_tiny_224', 'hrnet_w18_small', 'iformer_t',
    'inception_next_atto', 'inception_resnet_v2', 'inception_v3', 'inception_v4', 'lcnetv2_small',
    'legacy_seresnet18', 'legacy_xception', 'levit_128s', 'lowformer_b0', 'maxvit_tiny_tf_224',
    'mobilenetv3_small_050', 'mobilenetv4_conv_small', 'mobilenetv5_base', 'mobilevit_s', 'mobilevit_xxs',
    'mvitv2_tiny', 'naflexvit_base_patch16_parfac_gap', 'nest_tiny', 'nextvit_small', 'pit_ti_224',
    'poolformerv2_s12', 'pvt_v2_b0', 'qwen3_vit_88m', 'rdnet_tiny', 'regnetx_002', 'regnety_008',
    'repghostnet_050', 'repvit_m1', 'res2next50', 'resnest14d', 'resnet50', 'resnetv2_18', 'rexnet_100',
    'samvit_base_patch16_224', 'selecsls42', 'sequencer2d_s', 'shvit_s1', 'skresnet18', 'starnet_s050',
    'swiftformer_xs', 'swin_tiny_patch4_window7_224', 'swinv2_cr_tiny_224', 'swinv2_tiny_window8_256',
    'test_byobnet', 'test_coatnet', 'test_convnext', 'test_efficientnet', 'test_mambaout', 'test_nfnet',
    'test_resnet', 'test_vit', 'test_vit_relpos', 'tiny_vit_5m_224', 'tnt_s_legacy_patch16_224', 'tresnet_m',
    'twins_svt_small', 'vgg11', 'visformer_tiny', 'vit_base_patch16_clip_224', 'vit_small_patch14_dinov2',
    'vit_small_patch16_224', 'vit_small_patch16_dinov3', 'vit_small_patch16_rope_224',
    'vit_small_patch16_rope_mixed_224', 'vit_tiny_patch16_dinov3_qkvb', 'vit_tiny_r_s16_p8_224',
    'vitamin_small_224', 'volo_d1_224', 'xception41p', 'xcit_nano_12_p8_224',
]  # fmt: skip


def create_host(name, **kwargs):
    arguments = HOSTS[name][0] if name in HOSTS else MORE.get(name, {})
    torch.manual_seed(0)
    host = timm.create_model(name, **{'num_classes': 5} | arguments | kwargs).eval()
    for parameter in host.parameters():  # layer scales and new heads of nearly zero would hide an error
        if parameter.ndim < 2 or parameter.abs().max() < 1e-4:
            parameter.data += 0.1 * torch.randn_like(parameter)
    return host


def images_of(host, batch=2):
    size = getattr(host, '_traits', {}).get('img_size') or (64, 64)
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


@functools.cache
def _pair(name):
    host = create_host(name)
    return host, ride_timm.rideify(host, 2, router=True).eval()


@pytest.fixture(params=HOSTS)
def host(request):
    return _pair(request.param)[0]


@pytest.fixture
def net(host):
    return copy.deepcopy(_pair(host.pretrained_cfg['architecture'])[1])


def assert_experts_are(host, net, training):
    """Pre-logits, and with the backbone's own head its logits, of every expert."""
    x = images_of(host, 4)
    with torch.no_grad():
        host.train(training)
        net.train(training)
        trunk = copy.deepcopy(host).forward_head(copy.deepcopy(host).forward_features(x), pre_logits=True)
        logits = copy.deepcopy(host)(x)
        for part in net.forward_head(net.forward_features(x), pre_logits=True).chunk(net.num_experts, dim=1):
            assert_close(part, trunk, rtol=1e-4, atol=1e-4)
        head = host.get_classifier()
        if isinstance(head, nn.Linear):
            for expert in net.experts:
                expert.fc = head
            for k in range(net.num_experts):
                assert_close(net.forward_experts(x)[:, k], logits, rtol=1e-4, atol=1e-4)


class TestBackbone:
    @pytest.mark.parametrize('training', [False, True])
    @pytest.mark.parametrize('inside', [False, True])
    def test_every_expert_is_the_backbone(self, host, inside, training):
        name = host.pretrained_cfg['architecture']
        split = HOSTS[name][1] if inside else None
        net = ride_timm.rideify(host, 2, split=split)
        assert split in (None, net.split)
        assert_experts_are(copy.deepcopy(host), net, training)

    def test_heads_are_drawn_separately(self, net):
        one, other = (head.weight for head in net.get_classifier())
        assert not torch.equal(one, other)

    def test_every_parameter_gets_a_gradient(self, host, net):
        net.train().set_expert_training(True)
        sum(logits.square().mean() for logits in net(images_of(host))).backward()
        assert not [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]
        assert len({p.data_ptr() for p in net.parameters()}) == len(list(net.parameters()))

    def test_trunk_and_experts_run_once(self, host, net):
        calls = []
        for part in (net.trunk, *(expert.body for expert in net.experts)):
            part.register_forward_hook(lambda module, *_: calls.append(module))
        x = images_of(host)
        for run in (net, net.forward_experts, net.forward_router):
            calls.clear()
            run(x)
            assert calls == [net.trunk, *(expert.body for expert in net.experts)]

    def test_an_expert_leaves_the_trunk_as_it_is(self, host, net):
        with torch.no_grad():
            z = net.forward_trunk(images_of(host))
            before = [value.clone() for value in z]
            net.experts[0](z)
        assert all(torch.equal(a, b) for a, b in zip(z, before, strict=True))

    @torch.inference_mode()
    def test_an_expert_sees_only_the_images_that_reach_it(self, host, net):
        shared = [v for v, own in zip(net.forward_trunk(images_of(host)), net.per_image, strict=True) if not own]
        x = images_of(host, batch=max([6, *(value.shape[0] for value in shared)]))  # a table as long as the batch
        x = x + torch.randn(len(x), 3, 1, 1)
        decisions = net.forward_router(x).router_logits
        ranked = decisions.flatten().sort().values
        middle = (ranked[len(x) // 2 - 1] + ranked[len(x) // 2]) / 2
        threshold = float(middle.double().sigmoid())
        counts = expected_experts(decisions, threshold)
        assert set(counts.tolist()) == {1, 2}
        seen = []
        for expert in net.experts:
            expert.pool.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        logits, passed = net.forward_routed(x, threshold)
        assert seen == [len(x), (counts > 1).sum()]
        assert passed.tolist() == counts.tolist()
        experts = net.forward_experts(x)
        means = torch.stack([experts[i, :n].mean(0) for i, n in enumerate(counts)])
        assert_close(logits, means, rtol=1e-4, atol=1e-4)
        assert_close(net.forward_routed(x, 0.0).logits, net(x))

    def test_copies_are_equal(self, host, net):
        x = images_of(host)
        again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(net))))
        for twin in (copy.deepcopy(net), again):
            assert torch.equal(twin(x), net(x))

    @torch.inference_mode()
    def test_channels_last_and_bfloat16(self, host, net):
        x = images_of(host)
        expected = net(x)
        assert_close(net.to(memory_format=torch.channels_last)(x), expected, rtol=1e-4, atol=1e-4)
        found = net.bfloat16()(x.bfloat16())
        assert found.dtype == torch.bfloat16
        assert (found - expected).norm() < 0.1 * expected.norm()

    def test_compile_in_one_graph(self, host, net):
        x = images_of(host)
        assert_close(torch.compile(net, fullgraph=True, backend='eager')(x), net(x))

    def test_export_with_a_dynamic_batch(self, host, net):
        batch = {0: torch.export.Dim('batch', min=1, max=64)}
        program = torch.export.export(net, (images_of(host, 3),), dynamic_shapes=(batch,)).module()
        x = images_of(host, 5)
        assert_close(program(x), net(x), rtol=1e-4, atol=1e-4)

    def test_gradient_checkpointing(self, host, net):
        x, gradients, kept = images_of(host), [], []

        def keep(tensor):
            kept[-1] += tensor.nbytes
            return tensor

        for enable in (False, True):
            net.zero_grad()
            net.set_grad_checkpointing(enable)
            kept.append(0)
            with saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = net(x).square().mean()
            loss.backward()
            gradients.append([p.grad for p in net.parameters() if p.requires_grad])
        assert_close(*gradients)
        assert kept[1] < 0.5 * kept[0]

    def test_moving_average(self, host, net):
        average = ModelEmaV3(net, decay=0.75)
        start = copy.deepcopy(net.state_dict())
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(1.0)
        average.update(net)
        for name, parameter in net.named_parameters():
            assert_close(average.module.state_dict()[name], start[name] * 0.75 + parameter * 0.25)
        assert not torch.equal(average(images_of(host)), net(images_of(host)))

    def test_feature_maps_are_the_backbones(self, host, net):
        x = images_of(host)
        with torch.no_grad():
            wanted = host.forward_intermediates(x, intermediates_only=True)
            final, maps = net.forward_intermediates(x)
            assert_close(final, net.forward_features(x))
            for i, (found, expected) in enumerate(zip(maps, wanted, strict=True)):
                times = found.shape[1] // expected.shape[1]
                assert times == (2 if net.feature_info[i]['module'].startswith('experts.') else 1)
                assert found.shape[1] == net.feature_info[i]['num_chs']
                for part in found.chunk(times, dim=1):
                    assert_close(part, expected, rtol=1e-4, atol=1e-4)
                pruned = copy.deepcopy(net)
                pruned.prune_intermediate_layers([i])
                (again,) = pruned.forward_intermediates(x, [i], stop_early=True, intermediates_only=True)
                assert_close(again, found)

    def test_layers_are_grouped_as_the_backbones(self, host, net):
        wanted = group_parameters(host, host.group_matcher(), reverse=True)
        found = group_parameters(net, net.group_matcher(), reverse=True)
        for name, _ in net.named_parameters():
            plain = re.sub(r'^(trunk|experts.\d.(body|pool))\.', '', name)
            assert plain == name or found[name] == wanted[plain]
        kept = getattr(host, 'no_weight_decay', set)() & dict(host.named_parameters()).keys()
        assert {re.sub(r'^(trunk|experts.\d.(body|pool))\.', '', name) for name in net.no_weight_decay()} == kept

    def test_features_only_has_the_backbones_levels(self, host):
        name = host.pretrained_cfg['architecture']
        wanted = timm.create_model(name, features_only=True, **HOSTS[name][0]).feature_info.reduction()
        kwargs = {'backbone': name, 'num_experts': 2, **HOSTS[name][0]}
        assert timm.create_model('ride', features_only=True, **kwargs).feature_info.reduction() == wanted

    def test_it_is_saved_and_made_again(self, host, net, tmp_path):
        timm.models.save_for_hf(net, tmp_path)
        x = images_of(host)
        twin = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
        assert torch.equal(twin(x), net(x))
        assert twin.router is not None
        other = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=9, in_chans=1).eval()
        assert other(x[:, :1]).shape == (2, 9)
        maps = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, features_only=True).eval()
        assert_close(maps(x)[-1], net.forward_intermediates(x, 1, intermediates_only=True)[0])


def _gradients_of_half(rank, name, folder):
    torch.set_num_threads(1)  # a forked process must not use its parent's thread pool
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    host, net = _pair(name)
    net.set_expert_training(True)
    shared = DistributedDataParallel(net.train())
    sum(each.square().mean() for each in shared(images_of(host, 4)[2 * rank : 2 * rank + 2])).backward()
    torch.save({n: p.grad for n, p in net.named_parameters() if p.requires_grad}, folder / f'{rank}.pth')
    dist.destroy_process_group()


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')  # Python 3.12 warns if there are threads
@pytest.mark.filterwarnings('ignore:Grad strides do not match')  # as of any depthwise convolution
@pytest.mark.parametrize('name', ['test_convnext', 'vit_tiny_patch16_dinov3_qkvb'])
def test_two_processes_have_the_gradients_of_one(name, tmp_path):
    host, net = _pair(name)
    mp.start_processes(_gradients_of_half, (name, tmp_path), nprocs=2, start_method='fork')
    net = copy.deepcopy(net).train()
    net.set_expert_training(True)
    sum(each.square().mean() for each in net(images_of(host, 4))).backward()
    wanted = {n: p.grad for n, p in net.named_parameters() if p.requires_grad}
    for rank in range(2):
        assert_close(torch.load(tmp_path / f'{rank}.pth'), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    'name',
    ['tf_efficientnet_lite0', 'vit_tiny_patch16_224', 'convnext_nano', 'resnet18d', 'swin_tiny_patch4_window7_224'],
)
def test_construction_costs_little_more_than_its_parts(name):
    found = construction.ratios(name)
    assert max(found['ratio_2e'], found['ratio_3e']) <= 1.3


@pytest.mark.parametrize('name, layer', [('test_convnext', 'stages.3'), ('test_vit', 'blocks.5.norm1')])
def test_grad_cam_of_an_expert(name, layer):
    pytest.importorskip('pytorch_grad_cam')
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    host, net = _pair(name)
    net = copy.deepcopy(net)
    x = images_of(host)
    level = len(net.feature_info) - 1
    for expert in net.experts:
        layers = [expert.body.get_submodule(layer)]
        with GradCAM(net, layers, reshape_transform=lambda t: net.as_map(t, level, x.shape[-2:])) as cam:
            heat = cam(x, [ClassifierOutputTarget(2)] * len(x))
        assert heat.shape == (len(x), *x.shape[-2:])
        assert all(each.max() > 0.9 > each.min() for each in heat)


@pytest.mark.parametrize('architecture', ['ride_convnext_nano_2e', 'ride_tf_efficientnet_lite0_2e', 'ride_resnet18_3e'])
def test_encoder_of_segmentation_models(architecture):
    smp = pytest.importorskip('segmentation_models_pytorch')
    net = smp.Unet(f'tu-{architecture}', encoder_weights=None, classes=4)
    net(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert net.encoder.model.model.num_experts in (2, 3)
    assert not [n for n, p in net.named_parameters() if p.grad is None]


def test_a_fresh_process_makes_it_again(tmp_path):
    net = copy.deepcopy(_pair('vit_tiny_patch16_dinov3_qkvb')[1])
    x = images_of(net)
    timm.models.save_for_hf(net, tmp_path / 'saved')
    torch.save({'images': x, 'logits': net(x)}, tmp_path / 'said.pt')
    program = f"""
import timm, torch, ride_timm
said = torch.load({str(tmp_path / 'said.pt')!r})
for net in (timm.create_model('local-dir:{tmp_path / 'saved'}', pretrained=True).eval(),
            ride_timm.from_pretrained({str(tmp_path / 'saved')!r})):
    assert torch.equal(net(said['images']), said['logits']) and net.router is not None
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('name', MORE)
def test_more_families(name, training):
    host = create_host(name)
    assert_experts_are(host, ride_timm.rideify(host, 2), training)


@pytest.mark.slow
@pytest.mark.parametrize('name', BACKBONES)
def test_every_named_backbone(name):
    architecture = name.partition('.')[0]
    host = create_host(architecture)
    assert_experts_are(host, ride_timm.rideify(host, 2), False)
    assert timm.create_model(f'ride_{architecture}_3e', device='meta').split


@pytest.mark.slow
@pytest.mark.parametrize('name', FAMILIES)
def test_a_family_is_right_or_refused(name):
    torch.manual_seed(0)
    host = timm.create_model(name, num_classes=5).eval()
    try:
        net = ride_timm.rideify(host, 2).eval()
    except RideError as error:
        pytest.skip(str(error))
    x = torch.randn(2, *host.pretrained_cfg['input_size'])
    with torch.inference_mode():
        wanted = host.forward_head(host.forward_features(x), pre_logits=True)
        for found in net.forward_head(net.forward_features(x), pre_logits=True).chunk(2, dim=1):
            assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', ['convnext_nano', 'vit_small_patch16_dinov3', 'tf_efficientnet_lite0'])
def test_a_named_architecture(name):
    net = timm.create_model(f'ride_{name}_3e', num_classes=4, device='meta').eval()
    config = timm.get_pretrained_cfg(f'ride_{name}_3e')
    plain = timm.get_pretrained_cfg(name)
    assert (config.input_size, config.mean) == (plain.input_size, plain.mean)
    assert net(torch.empty(1, *config.input_size, device='meta')).shape == (1, 4)
    assert timm.model_entrypoint(f'ride_{name}_3e').__module__ == 'ride_timm.models.ride_zoo'
    with pytest.raises(TypeError, match='backbone='):
        timm.create_model(f'ride_{name}_3e', backbone='resnet18')


def test_pretrained_is_the_backbones_own(tmp_path):
    host = create_host('test_vit')
    torch.save(host.state_dict(), tmp_path / 'plain.pth')
    overlay = {'file': str(tmp_path / 'plain.pth')}
    kwargs = {'backbone': 'test_vit', 'num_experts': 2, 'num_classes': 5, 'pretrained': True}
    net = timm.create_model('ride', **kwargs, pretrained_cfg_overlay=overlay).eval()
    assert_experts_are(host, net, False)
    other = timm.create_model('ride', **kwargs, pretrained_cfg_overlay=overlay, img_size=96, in_chans=1)
    inside = 'blocks.5.mlp.fc1.weight'
    assert torch.equal(other.state_dict()[f'experts.1.body.{inside}'], host.state_dict()[inside])
    assert other(torch.randn(1, 1, 96, 96)).shape == (1, 5)


@pytest.mark.parametrize('from_timm', [True, False])
def test_experts_may_be_shallower_than_the_backbone(tmp_path, monkeypatch, from_timm):
    """They are then the backbone without its last blocks, and another process makes them again."""
    host, new = create_host('test_convnext'), timm.create_model
    less = new('test_convnext', num_classes=5, depths=(1, 2, 4, 1)).eval()
    less.load_state_dict({name: value for name, value in host.state_dict().items() if name in less.state_dict()})
    torch.save(host.state_dict(), tmp_path / 'plain.pth')
    more = {} if from_timm else {'pretrained_cfg_overlay': {'file': str(tmp_path / 'plain.pth')}}
    kwargs = {'backbone': 'test_convnext', 'num_experts': 2, 'expert_kwargs': {'depths': (1, 2, 4, 1)}}
    with monkeypatch.context() as patch:
        patch.setattr(
            timm, 'create_model', lambda name, pretrained=False, **kw: host if pretrained else new(name, **kw)
        )
        net = new('ride', pretrained=True, num_classes=5, **kwargs, **more).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = less.forward_head(less.forward_features(x), pre_logits=True)
        for part in net.forward_pooled(net.forward_trunk(x)):
            assert_close(part, expected)
    timm.models.save_for_hf(net, tmp_path / 'saved')
    again = ride_timm.from_pretrained(tmp_path / 'saved')
    assert torch.equal(again(x), net(x))


def test_experts_may_be_narrower_than_the_backbone():
    host = create_host('test_convnext')
    kwargs = {'num_experts': 2, 'num_classes': 5, 'expert_kwargs': {'dims': (24, 32, 48, 32)}}
    net = timm.create_model('ride', backbone='test_convnext', **kwargs).eval()
    own, seeded = net.state_dict(), net.seeds(host.state_dict())
    assert (net.expert_width, net.num_features) == (32, 64)
    assert net.forward_experts(torch.randn(2, 3, 64, 64)).shape == (2, 2, 5)
    norm, inside = (f'experts.1.body.stages.3.{name}' for name in ('downsample.0.weight', 'blocks.0.mlp.fc1.weight'))
    assert torch.equal(seeded[norm], host.state_dict()[norm.removeprefix('experts.1.body.')])
    assert torch.equal(seeded[inside], own[inside])
    assert not torch.equal(own[inside], own[inside.replace('experts.1', 'experts.0')]), 'each is drawn for itself'
    net.load_state_dict(seeded)


def test_from_random_weights_the_experts_differ():
    net = timm.create_model('ride', backbone='test_convnext', num_experts=2)
    one, other = (expert.body.state_dict() for expert in net.experts)
    assert any(not torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(
    'arguments, words',
    [
        ({}, 'no backbone'),
        ({'backbone': 'not_there'}, "'not_there'"),
        ({'backbone': 'test_vit', 'split': 'block.3'}, r'block\.3.*blocks\.3'),
        ({'backbone': 'test_vit', 'split': 'head'}, r"'head'.*blocks\.5"),
        ({'backbone': 'crossvit_9_240'}, 'CrossVit'),
        ({'backbone': 'hrnet_w18_small'}, 'HighResolutionNet'),
        ({'backbone': 'test_vit', 'expert_kwargs': {'embed_dim': 32}}, r'expert_kwargs take .*32.* gives .*64'),
        ({'backbone': 'test_vit', 'expert_kwargs': {'depths': 3}}, r"test_vit cannot .*expert_kwargs=.*'depths'"),
    ],
)
def test_what_cannot_be_cut(arguments, words):
    with pytest.raises(RideError, match=words):
        timm.create_model('ride', **arguments)


def test_the_pooling_stays():
    net = ride_timm.rideify(create_host('test_vit'), 2)
    with pytest.raises(ValueError, match="global_pool='max'"):
        net.reset_classifier(3, 'max')
    with pytest.raises(TypeError, match='not_an_argument'):
        ride_timm.rideify('test_vit', 2, not_an_argument=1)
    with pytest.raises(ValueError, match='num_experts=0'):
        ride_timm.rideify('test_vit', 0)


def test_equal_experts_part_in_training():
    torch.manual_seed(0)
    counts = [24, 12, 5]
    net = ride_timm.rideify(create_host('test_convnext', num_classes=3), 2).train()
    net.set_expert_training(True)
    loss = ride_timm.create_loss('balpoe', counts, tau=[0.0, 1.0])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    targets = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    images = torch.randn(len(targets), 3, 32, 32) + targets.view(-1, 1, 1, 1)
    for _ in range(50):
        batch = torch.randperm(len(targets))[:8]
        optimizer.zero_grad()
        loss(torch.stack(net(images[batch]), dim=1), targets[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        one, other = net.eval().forward_experts(images).log_softmax(-1).unbind(1)
        start = (expert.state_dict() for expert in net.experts)
    assert (one.exp() * (one - other)).sum(-1).mean() > 1e-3
    first, second = start
    assert any(not torch.equal(first[key], second[key]) for key in first if key.startswith('body.'))
