import numpy as np
import pytest
import timm
import torch

from ride_timm.models import ExpertRouter


def router_logit(router, index, features, mean_logits):
    """The router's formula, in float64."""
    tensors = {key: value.double().numpy() for key, value in router.state_dict().items()}
    features, mean_logits = features.astype(np.float64), mean_logits.astype(np.float64)
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    hidden = features @ tensors[f'hidden.{index}.weight'].T + tensors[f'hidden.{index}.bias']
    top = -np.sort(-mean_logits, axis=1)[:, : router.top_k]
    joint = np.concatenate([top, np.maximum(hidden, 0)], axis=1)
    return (joint @ tensors['out.weight'].T + tensors['out.bias'])[:, 0]


@pytest.mark.parametrize('index', [0, 1, 2])
def test_formula(index):
    router = ExpertRouter(num_experts=4, in_features=6, top_k=5)
    router.out.reset_parameters()  # a new one does not look at the features yet
    features, logits = 7 * torch.randn(8, 6), 10 * torch.randn(8, 9)
    found = router(index, features, logits)
    assert found.shape == (8,)
    expected = router_logit(router, index, features.numpy(), logits.numpy())
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('classes', [1, 2, 9])
def test_a_new_router_goes_on_where_the_two_largest_logits_are_close(classes):
    router = ExpertRouter(num_experts=3, in_features=6, top_k=min(5, classes))
    logits = 10 * torch.randn(8, classes)
    top = logits.topk(min(2, classes), dim=1).values
    expected = 1 - (top[:, 0] - (top[:, 1] if classes > 1 else 0))
    for index in (0, 1):
        torch.testing.assert_close(router(index, torch.randn(8, 6), logits), expected)


def test_sizes():
    router = ExpertRouter(num_experts=4, in_features=6, top_k=5)
    shapes = {key: tuple(value.shape) for key, value in router.state_dict().items()}
    expected = {'out.weight': (1, 5 + 16), 'out.bias': (1,)}
    for i in range(3):
        expected |= {f'hidden.{i}.weight': (16, 6), f'hidden.{i}.bias': (16,)}
    assert shapes == expected


@pytest.mark.parametrize('num_classes, asked, expected', [(9, None, 9), (9, 4, 4), (100, None, 30), (100, 200, 100)])
def test_top_k_is_at_most_the_number_of_classes(num_classes, asked, expected):
    arguments = {} if asked is None else {'router_top_k': asked}
    model = timm.create_model('test_ride_resnet_cifar_3e', num_classes=num_classes, router=True, **arguments)
    assert model.router.top_k == expected
    assert model.router.out.in_features == expected + 16


def capture(model):
    """Collect what each call of the router got and gave."""
    calls = []
    model.router.register_forward_hook(lambda module, args, output: calls.append((*args, output)))
    return calls


@pytest.mark.parametrize('how', ['autocast', 'bfloat16'])
def test_decision_is_computed_in_float32(how):
    model = timm.create_model('test_ride_resnet_cifar_3e', num_classes=9, router=True).eval()
    x = torch.randn(8, 3, 32, 32)
    if how == 'bfloat16':
        model, x = model.bfloat16(), x.bfloat16()
    calls = capture(model)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16, enabled=how == 'autocast'):
        assert model.forward_router(x).router_logits.dtype == torch.float32
    assert [call[0] for call in calls] == [0, 1]
    for index, features, logits, found in calls:
        assert found.dtype == torch.float32
        expected = router_logit(model.router, index, features.float().numpy(), logits.float().numpy())
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_layers_that_a_quantiser_put_in_place_of_linear_ones():
    class Layer(torch.nn.Module):
        def __init__(self, linear):
            super().__init__()
            self.linear = linear

        def weight(self):  # as of torch.ao.nn.quantized.Linear
            raise AssertionError

        def forward(self, x):
            return self.linear(x)

    router = ExpertRouter(num_experts=3, in_features=6, top_k=5)
    router.out.reset_parameters()
    features, logits = torch.randn(8, 6), torch.randn(8, 9)
    wanted = router(1, features, logits)
    router.hidden[1], router.out = Layer(router.hidden[1]), Layer(router.out)
    assert torch.equal(router(1, features, logits), wanted)
