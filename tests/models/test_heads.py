import numpy as np
import pytest
import timm
import torch
from timm.layers import apply_test_time_pool

from ride_timm.models import CosineLinear


def cosine_logits(x, weight, scale=30.0):
    x, weight = x.astype(np.float64), weight.astype(np.float64)
    return scale * (x / np.linalg.norm(x, axis=1)[:, None]) @ (weight / np.linalg.norm(weight, axis=1)[:, None]).T


def test_cosine_logits():
    head = CosineLinear(5, 3)
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[0.1], [1.0], [50.0]]))  # norms have no say
    x = 3 * torch.randn(4, 5)
    expected = cosine_logits(x.numpy(), head.weight.detach().numpy())
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-5, atol=1e-5)
    assert head(1000 * x).abs().max() <= 30


def test_who_draws_linear_heads_draws_this_one():
    assert isinstance(CosineLinear(5, 3), torch.nn.Linear)


def test_scale():
    head, x = CosineLinear(5, 3, scale=2.0), torch.randn(4, 5)
    expected = cosine_logits(x.numpy(), head.weight.detach().numpy(), scale=2.0)
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert 'scale=2' in repr(head)


def test_class_vectors_are_drawn_from_a_cube_and_scaled_to_norm_one():
    head = CosineLinear(64, 500)
    weight = head.weight.detach()
    assert weight.shape == (500, 64)
    assert [name for name, _ in head.named_parameters()] == ['weight']
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(500))
    # uniform(-1, 1) has a fourth moment of 1.8 squared variances, a normal distribution 3
    assert (weight**4).mean() / (weight**2).mean() ** 2 == pytest.approx(1.8, abs=0.05)
    assert weight.mean().abs() < 3 * weight.std() / weight.numel() ** 0.5


def test_float32_under_autocast():
    head, x = CosineLinear(64, 10), torch.randn(8, 64)
    expected = head(x)
    with torch.autocast('cpu', torch.bfloat16):
        found = head(x.bfloat16())
        exact = head(x)
    assert found.dtype == exact.dtype == torch.float32
    assert torch.equal(exact, expected)
    assert torch.equal(found, head(x.bfloat16().float()))


def test_narrow_weights_are_computed_with_in_float32():
    head, x = CosineLinear(64, 10).bfloat16(), torch.randn(8, 64).bfloat16()
    expected = cosine_logits(x.float().numpy(), head.weight.detach().float().numpy())
    found = head(x)
    assert found.dtype == torch.bfloat16
    # one rounding to 8 bits at the end, of values below 30
    np.testing.assert_allclose(found.detach().float().numpy(), expected, rtol=2**-8, atol=1e-4)


def test_float64_stays():
    head, x = CosineLinear(5, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    expected = cosine_logits(x.numpy(), head.weight.detach().numpy())
    np.testing.assert_allclose(head(x).detach().numpy(), expected, rtol=1e-13)


def test_zero_features_give_no_nan():
    head = CosineLinear(5, 3)
    x = torch.zeros(2, 5, requires_grad=True)
    head(x).sum().backward()
    assert head(x).eq(0).all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize('architecture', ['test_ride_resnet_3e', 'test_ride_resnet_cifar_3e'])
def test_heads_of_a_network(architecture):
    model = timm.create_model(architecture, num_classes=9)
    for head in model.get_classifier():
        assert isinstance(head, CosineLinear)
        assert head.scale == 30
        assert head.weight.shape == (9, 48)
        torch.testing.assert_close(head.weight.detach().norm(dim=1), torch.ones(9))


def test_new_heads_need_a_pooling():
    net = timm.create_model('test_ride_resnet_cifar_3e', num_classes=0, global_pool='')
    with pytest.raises(ValueError, match="global_pool='' leaves nothing to classify"):
        net.reset_classifier(5, '')
    with pytest.raises(ValueError, match="global_pool='' leaves nothing to classify"):
        timm.create_model('test_ride_resnet_cifar_3e', num_classes=5, global_pool='')
    net.reset_classifier(5)  # as timm's own: the pooling stays off, and what the heads are put on is the caller's
    net.reset_classifier(5, 'avg')
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_a_bias_is_added_to_the_scaled_cosine():
    torch.manual_seed(0)
    head, x = CosineLinear(5, 3, bias=True), torch.randn(4, 5)
    assert not head.bias.any()
    plain = head(x)
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, -2.0, 0.5]))
    torch.testing.assert_close(head(x), plain + torch.tensor([1.0, -2.0, 0.5]))
    assert 'bias=True' in repr(head)
    head.reset_parameters()
    assert not head.bias.any()
    low = CosineLinear(5, 3, bias=True).bfloat16()
    assert low(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.filterwarnings('ignore:`torch.jit:DeprecationWarning', 'ignore:`torch.jit:FutureWarning')
@pytest.mark.parametrize('bias', [False, True])
def test_scripted_traced_and_exported(bias):
    torch.manual_seed(0)
    head, x = CosineLinear(5, 3, bias=bias).eval(), torch.randn(4, 5)
    if bias:
        torch.nn.init.normal_(head.bias)
    for other in (torch.jit.script(head), torch.fx.symbolic_trace(head), torch.export.export(head, (x,)).module()):
        torch.testing.assert_close(other(x), head(x))


class Quantised(torch.Tensor):
    """A weight as a quantiser's: it knows its values and no arithmetic."""

    @staticmethod
    def __new__(cls, values):
        return torch.Tensor._make_wrapper_subclass(cls, values.shape, dtype=values.dtype)

    def __init__(self, values):
        self.values = values

    def dequantize(self):
        return self.values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        assert func is torch.ops.aten.detach.default, func
        return cls(args[0].values)


def test_a_weight_of_a_quantisers_own_type():
    head, x = CosineLinear(5, 3), torch.randn(4, 5)
    wanted = head(x)
    head.weight = torch.nn.Parameter(Quantised(head.weight.detach()), requires_grad=False)
    assert torch.equal(head(x), wanted)


class Conditional(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.head = CosineLinear(4, 3)

    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: self.head(x), lambda x: x.new_zeros(1, 3), (x,))


@pytest.mark.filterwarnings('ignore::DeprecationWarning', 'ignore::FutureWarning', 'ignore::UserWarning')
@pytest.mark.parametrize('strict', [False, True])
def test_a_branch_of_torch_cond_is_exported(strict):
    net, x = Conditional().eval(), torch.ones(1, 4)
    program = torch.export.export(net, (x,), strict=strict).module()
    assert torch.allclose(program(x), net.head(x))
    assert not program(-x).any()


@pytest.mark.parametrize('head', ['cosine', 'linear'])
def test_test_time_pooling(head):
    model = timm.create_model('test_ride_resnet_cifar_3e', head=head).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(images[..., :32, :32])
        heads = model.get_classifier()
        pooled = model.forward_head(model.forward_features(images[..., :32, :32]), pre_logits=True)
        assert torch.allclose(heads(pooled[..., None, None])[..., 0, 0], expected)
        pooled, used = apply_test_time_pool(model, {'input_size': (3, 64, 64)})
        assert used
        assert pooled(images).shape == expected.shape
