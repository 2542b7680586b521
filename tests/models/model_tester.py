"""The contract of every architecture, tested the same way for each: subclass ModelTester and name one."""

import copy
import pickle
from typing import ClassVar

import pytest
import timm
import torch
from timm.models import group_parameters
from torch.testing import assert_close

import ride_timm  # noqa: F401  registers the architectures


class ModelTester:
    """Tests of one architecture.

    Attributes:
        architecture: Its name.
        num_experts: Number K of experts.
        size: Side of the test images.
        channels: Channels of the stem and of each stage of one expert.
        reductions: How much smaller than the image each feature map is.
        trunk_maps: How many feature maps are the trunk's.
        head: The head it has by default.
        arguments: What makes it smaller, and the tests faster.
    """

    architecture: str
    num_experts = 3
    size = 32
    channels: tuple[int, ...]
    reductions: tuple[int, ...]
    trunk_maps: int
    head = 'cosine'
    arguments: ClassVar[dict[str, object]] = {}

    def create(self, num_classes=7, **kwargs):
        return timm.create_model(self.architecture, num_classes=num_classes, **(self.arguments | kwargs)).eval()

    def images(self, batch=2, channels=3):
        return torch.randn(batch, channels, self.size, self.size)

    @property
    def map_channels(self):
        factors = [1] * self.trunk_maps + [self.num_experts] * (len(self.channels) - self.trunk_maps)
        return [channels * factor for channels, factor in zip(self.channels, factors, strict=True)]

    def skip_without_router(self):
        if self.num_experts == 1:
            pytest.skip('one expert has no router')

    # creation

    @pytest.mark.parametrize('num_classes', [1, 10])
    @pytest.mark.parametrize('in_chans', [1, 3, 4])
    def test_sizes_of_input_and_output(self, num_classes, in_chans):
        model = self.create(num_classes, in_chans=in_chans)
        assert model(self.images(2, in_chans)).shape == (2, num_classes)
        assert (model.num_classes, model.in_chans) == (num_classes, in_chans)

    @pytest.mark.parametrize('pool, factor', [('avg', 1), ('max', 1), ('avgmax', 1), ('catavgmax', 2)])
    def test_global_pool(self, pool, factor):
        model = self.create(global_pool=pool)
        x = self.images()
        width = self.map_channels[-1] * factor
        assert model.head_hidden_size == width
        assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, width)
        assert model(x).shape == (2, 7)
        assert_close(model.forward_experts(x), self.experts_by_hand(model, x, pool))

    def experts_by_hand(self, model, x, pool='avg'):
        maps = model.forward_features(x).chunk(self.num_experts, dim=1)
        logits = []
        for features, head in zip(maps, model.get_classifier(), strict=True):
            mean, peak = features.mean((2, 3)), features.flatten(2).max(dim=2).values
            pooled = {'avg': mean, 'max': peak, 'avgmax': (mean + peak) / 2, 'catavgmax': torch.cat([mean, peak], 1)}
            logits.append(head(pooled[pool]))
        return torch.stack(logits, dim=1)

    def test_no_head(self):
        x = self.images()
        pooled = self.create(0)(x)
        assert pooled.shape == (2, self.map_channels[-1])
        unpooled = self.create(0, global_pool='')(x)
        assert unpooled.shape[:2] == (2, self.map_channels[-1])
        assert unpooled.ndim == 4

    def test_arguments_of_the_architecture(self):
        plain = self.create()
        deeper = self.create(layers=(2,) * (len(self.channels) - 1))
        assert len(deeper.layer1) == 2
        wider = self.create(channels=tuple(2 * c for c in self.channels[1:]))
        assert wider.num_features == 2 * plain.num_features
        other = 'linear' if self.head == 'cosine' else 'cosine'
        for head in plain.get_classifier():
            assert (getattr(head, 'bias', None) is None) is (self.head == 'cosine')
        for head in self.create(head=other).get_classifier():
            assert (getattr(head, 'bias', None) is None) is (other == 'cosine')
        for activation in ('silu', 'gelu'):
            changed = self.create(act_layer=activation)
            changed.load_state_dict(plain.state_dict())
            assert not torch.allclose(changed(self.images()), plain(self.images()))

    @pytest.mark.parametrize(
        'arguments, error, sentence',
        [
            ({'layers': (1, 1)}, ValueError, r'layers=\(1, 1\)'),
            ({'channels': (8, 8, 8, 8, 8)}, ValueError, r'channels=\(8, 8, 8, 8, 8\)'),
            ({'head': 'nope'}, ValueError, "head='nope'.*'biased_cosine' or 'linear'"),
            ({'num_experts': 4}, TypeError, 'num_experts=4, which its name fixes'),
            ({'block': 'basic'}, TypeError, "block='basic', which its name fixes"),
            ({'not_an_argument': 1}, TypeError, 'not_an_argument'),
            ({'global_pool': ''}, ValueError, 'num_classes=0'),
            ({'router_threshold': 1.5}, ValueError, 'threshold of 1.5'),
        ],
    )
    def test_wrong_arguments(self, arguments, error, sentence):
        with pytest.raises(error, match=sentence):
            self.create(**arguments)

    def test_meta_device_and_dtype(self):
        model = self.create(device='meta', dtype=torch.bfloat16)
        tensors = [t for t in model.state_dict().values() if t.is_floating_point()]
        assert all(t.device.type == 'meta' and t.dtype == torch.bfloat16 for t in tensors)
        output = model(torch.zeros(2, 3, self.size, self.size, device='meta', dtype=torch.bfloat16))
        assert (output.shape, output.dtype) == ((2, 7), torch.bfloat16)

    # what the calls return

    def test_output_is_the_mean_of_the_experts(self):
        model, x = self.create(), self.images()
        experts = model.forward_experts(x)
        assert experts.shape == (2, self.num_experts, 7)
        assert_close(experts, self.experts_by_hand(model, x))
        assert_close(model(x), experts.mean(dim=1))
        if self.num_experts > 1:
            assert (experts[:, 0] - experts[:, 1]).abs().max() > 0.1

    def test_expert_training(self):
        model, x = self.create().train(), self.images(4)
        mean = model(x)
        assert mean.shape == (4, 7)
        model.set_expert_training(True)
        each = model(x)
        assert isinstance(each, tuple)
        assert [logits.shape for logits in each] == [(4, 7)] * self.num_experts
        assert_close(torch.stack(each).mean(dim=0), mean)
        assert model.eval()(x).shape == (4, 7)
        model.set_expert_training(False)
        assert torch.is_tensor(model.train()(x))

    def test_features(self):
        model, x = self.create(), self.images()
        features = model.forward_features(x)
        side = self.size // self.reductions[-1]
        assert features.shape == (2, model.num_features, side, side) == (2, self.map_channels[-1], side, side)
        pooled = model.forward_head(features, pre_logits=True)
        assert_close(pooled, features.mean((2, 3)))
        assert_close(model.forward_head(features), model(x))

    def test_any_image_size_and_batch(self):
        model = self.create()
        x = torch.randn(3, 3, 33, 47)
        together = model(x)
        assert_close(together, torch.cat([model(image) for image in x.split(1)]), rtol=1e-4, atol=1e-4)
        assert model(x[:0]).shape == (0, 7)

    # other contents of the heads

    def test_reset_classifier(self):
        model, x = self.create(global_pool='max'), self.images()
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        model.reset_classifier(5)
        assert (model.num_classes, model(x).shape) == (5, (2, 5))
        assert_close(model.forward_head(model.forward_features(x), pre_logits=True), features)
        model.reset_classifier(0)
        assert_close(model(x), features)
        model.reset_classifier(0, '')
        assert_close(model(x), model.forward_features(x))
        model.reset_classifier(3, 'avg')
        assert_close(model(x), self.experts_by_hand(model, x).mean(dim=1))

    @pytest.mark.parametrize('training', [True, False])
    def test_new_heads_follow_the_network(self, training):
        model = self.create().to(device='meta', dtype=torch.float64).train(training)
        model.reset_classifier(5)
        for head in model.get_classifier():
            assert head.training is training
            assert (head.weight.device.type, head.weight.dtype) == ('meta', torch.float64)

    def test_heads_are_drawn_separately(self):
        model = self.create()
        weights = [head.weight.detach().clone() for head in model.get_classifier()]
        model.reset_classifier(7)
        weights += [head.weight.detach() for head in model.get_classifier()]
        assert not any(torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])

    # router, as far as routing is not needed

    def test_router_is_optional_and_frozen(self):
        if self.num_experts == 1:
            with pytest.raises(ValueError, match='at least two experts'):
                self.create(router=True)
            return
        assert self.create().router is None
        assert self.create(router=False).router is None
        model = self.create(router=True)
        assert len(model.router.hidden) == self.num_experts - 1
        assert {n for n, p in model.named_parameters() if not p.requires_grad} == {
            n for n, _ in model.named_parameters() if n.startswith('router.')
        }

    def test_router_goes_with_its_heads(self):
        self.skip_without_router()
        model = self.create(router=True)
        model.reset_classifier(7)
        assert model.router is not None
        model.set_routing(0.5)
        with pytest.warns(UserWarning, match='router belongs to the old heads'):
            model.reset_classifier(5)
        assert model.router is None
        assert model.routing_threshold is None
        assert model(self.images()).shape == (2, 5)

    @pytest.mark.parametrize('expert_training', [True, False])
    @pytest.mark.parametrize('router', [True, False])
    def test_every_trainable_parameter_gets_a_gradient(self, router, expert_training):
        if router:
            self.skip_without_router()
        model = self.create(router=router).train()
        model.set_expert_training(expert_training)
        output = model(self.images())
        loss = sum(logits.square().mean() for logits in output) if expert_training else output.square().mean()
        loss.backward()
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not [n for n, p in model.named_parameters() if not p.requires_grad and p.grad is not None]

    # feature maps

    def test_features_only(self):
        model = self.create(features_only=True)
        maps = model(self.images())
        assert model.feature_info.channels() == self.map_channels == [m.shape[1] for m in maps]
        assert model.feature_info.reduction() == list(self.reductions)
        assert [self.size // m.shape[2] for m in maps] == list(self.reductions)
        some = self.create(features_only=True, out_indices=(1, 2))
        assert [m.shape[1] for m in some(self.images())] == self.map_channels[1:3]

    def test_forward_intermediates(self):
        model, x = self.create(), self.images()
        final, maps = model.forward_intermediates(x)
        assert_close(final, model.forward_features(x))
        assert_close(maps[-1], final)
        assert [m.shape[1] for m in maps] == self.map_channels
        for i, expected in enumerate(maps):
            end, (found,) = model.forward_intermediates(x, indices=[i], stop_early=True)
            assert_close(found, expected)
            if i > 0:  # after the stem's map comes its pooling
                assert_close(end, expected)
        last_two = model.forward_intermediates(x, indices=2, intermediates_only=True)
        assert_close(last_two, maps[-2:])
        with pytest.raises(ValueError, match="'NCHW'"):
            model.forward_intermediates(x, output_fmt='NHWC')

    def test_prune(self):
        model, x = self.create(), self.images()
        maps = model.forward_intermediates(x, intermediates_only=True)
        for i, expected in enumerate(maps):
            pruned = copy.deepcopy(model)
            assert pruned.prune_intermediate_layers([i]) == [i]
            assert_close(pruned.forward_intermediates(x, indices=[i], intermediates_only=True)[0], expected)
            assert pruned.num_features == expected.shape[1]
            assert len(pruned.experts) == (0 if i < self.trunk_maps else self.num_experts)
            if i < self.trunk_maps:
                with pytest.raises(ValueError, match='no experts'):
                    pruned.reset_classifier(5)
        kept = copy.deepcopy(model)
        kept.prune_intermediate_layers([len(maps) - 1], prune_head=False)
        assert_close(kept(x), model(x))

    # how it is run

    def test_channels_last(self):
        model, x = self.create(), self.images()
        expected = model(x)
        found = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
        assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def test_bfloat16(self):
        model, x = self.create(), self.images()
        expected = model(x)
        found = model.bfloat16()(x.bfloat16())
        assert found.dtype == torch.bfloat16
        assert (found - expected).norm() < 0.05 * expected.norm()

    def test_autocast(self):
        model, x = self.create(), self.images()
        expected = model(x)
        with torch.autocast('cpu', torch.bfloat16):
            found = model(x)
        assert found.dtype == (torch.float32 if self.head == 'cosine' else torch.bfloat16)
        assert (found - expected).norm() < 0.05 * expected.norm()

    def test_gradient_checkpointing(self):
        x, model = self.images(), self.create().train()
        convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
        calls = []
        for convolution in convolutions:
            convolution.register_forward_hook(lambda *_: calls.append(1))
        gradients = []
        for enable, times in ((False, 1), (True, 2)):
            calls.clear()
            model.zero_grad()
            model.set_grad_checkpointing(enable)
            model(x).square().mean().backward()
            # all but the stem's are computed again in the backward pass
            assert len(calls) == times * (len(convolutions) - 1) + 1
            gradients.append([p.grad for p in model.parameters()])
        assert_close(*gradients)

    def test_stochastic_depth_and_dropout_act_in_training_alone(self):
        x = self.images()
        for argument in ('drop_rate', 'drop_path_rate'):
            plain = self.create()
            dropping = self.create(**{argument: 0.5})
            dropping.load_state_dict(plain.state_dict())
            assert_close(dropping(x), plain(x))
            assert not torch.allclose(dropping.train()(x), dropping(x))

    def test_layer_groups(self):
        model = self.create()
        groups = group_parameters(model, model.group_matcher(), reverse=True)
        assert groups.keys() == dict(model.named_parameters()).keys()
        of_experts = [
            {n: g for n, g in groups.items() if n.startswith(f'experts.{k}.')} for k in range(self.num_experts)
        ]
        for k, expert in enumerate(of_experts):
            assert {n.replace(f'experts.{k}.', 'experts.0.'): g for n, g in expert.items()} == of_experts[0]
        depth = [groups['conv1.weight'], groups['layer1.0.conv1.weight'], min(of_experts[0].values())]
        assert depth == sorted(set(depth))

    def test_copies_are_equal(self):
        model, x = self.create(router=self.num_experts > 1), self.images()
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(x), model(x))

    # programs made of it

    def test_fx(self):
        model, x = self.create(), self.images()
        assert_close(torch.fx.symbolic_trace(model)(x), model(x))

    def test_export(self):
        model, x = self.create(), self.images()
        assert_close(torch.export.export(model, (x,)).module()(x), model(x))

    def test_compile_in_one_graph(self):
        model, x = self.create(router=self.num_experts > 1), self.images()
        compiled = torch.compile(model, fullgraph=True, backend='eager')
        assert_close(compiled(x), model(x))

    @pytest.mark.slow
    def test_compile_with_inductor(self):
        model, x = self.create(), self.images()
        assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-4, atol=1e-4)
