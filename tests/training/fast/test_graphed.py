"""Steps as CUDA graphs: refusals everywhere, and on a GPU the same numbers as eager steps."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from configs import resolved
from timm.data.mixup import mixup_target
from tiny_runs import write_images

from ride_timm.commands.train import main
from ride_timm.errors import RideError
from ride_timm.losses import create_loss
from ride_timm.tasks import RideTask, RouterTask
from ride_timm.training.fast.expert_streams import expert_streams
from ride_timm.training.fast.graphed import GraphedStep, _settings, check_cuda_graph

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
COUNTS = [int(50 * 0.1 ** (i / 9)) for i in range(10)]
CUDA, CPU = torch.device('cuda'), torch.device('cpu')


def make_task(loss='ride', device=CUDA, **net):
    torch.manual_seed(0)
    model = timm.create_model('ride_resnet32_2e', layers=(1, 1, 1), num_classes=10, **net)
    model = model.to(device).to(memory_format=torch.channels_last).train()
    options = {'reweight_epoch': 1} if loss == 'ride' else {'tau': (0.0, 2.0)}
    return RideTask(model, create_loss(loss, COUNTS, **options), device=device, verbose=False)


def arguments(*given):
    return resolved(['--model', 'ride_resnet32_3e', '--data-dir', 'x', *given])


@pytest.mark.parametrize(
    ('given', 'device', 'named'),
    [
        ((), CPU, '--device cpu'),
        (('--amp', '--amp-dtype', 'float16'), CUDA, '--amp-dtype float16'),
        (('--grad-accum-steps', '2'), CUDA, '--grad-accum-steps'),
        (('--grad-checkpointing',), CUDA, '--grad-checkpointing'),
    ],
)
def test_what_no_graph_holds_is_refused(given, device, named):
    args = arguments('--cuda-graph', *given)
    with pytest.raises(RideError, match=f'--cuda-graph does not go with {named}; leave one of them out'):
        check_cuda_graph(args, device)


def test_several_processes_are_refused():
    args = arguments('--cuda-graph').but(distributed=True)
    with pytest.raises(RideError, match='does not go with several processes'):
        check_cuda_graph(args, CUDA)
    check_cuda_graph(args.but(distributed=False), CUDA)


def test_a_changed_setting_is_seen():
    task = make_task(device=CPU)
    task.set_epoch(0)
    before = _settings(task)
    task.set_epoch(0)
    assert _settings(task) == before
    task.set_epoch(1)  # the loss re-weights from here on
    assert _settings(task) != before
    task.set_epoch(0)
    task.get_trainable_module().drop_rate = 0.5
    assert _settings(task) != before


def eager(task, autocast, images, target):
    for parameter in task.parameters():
        parameter.grad = None
    with autocast():
        result = task(images, target)
    result['loss'].backward()
    return {name: value.detach() for name, value in result.items() if name != 'output'}


@needs_gpu
@pytest.mark.parametrize('side_by_side', [False, True])
@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('loss', ['ride', 'balpoe'])
def test_training_is_that_of_eager_steps(loss, amp, side_by_side):
    autocast = partial(torch.autocast, 'cuda', torch.bfloat16, enabled=amp)
    tasks = [make_task(loss), make_task(loss)]
    graphed = GraphedStep(tasks[1], autocast, side_by_side)
    optimizers = [torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.05, momentum=0.9) for task in tasks]
    torch.manual_seed(1)
    for epoch in (0, 1):
        for task in tasks:
            task.set_epoch(epoch)
        graphed.start_epoch()
        for _ in range(3):
            images = torch.randn(16, 3, 32, 32, device=CUDA).contiguous(memory_format=torch.channels_last)
            target = torch.randint(10, (16,), device=CUDA)
            if loss == 'balpoe':
                target = mixup_target(target, 10, lam=0.7)
            found = [eager(tasks[0], autocast, images, target), graphed(images, target)]
            assert found[0].keys() == found[1].keys()
            for name in found[0]:
                torch.testing.assert_close(found[1][name], found[0][name], rtol=0.02 if amp else 1e-3, atol=1e-3)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    for mine, theirs in zip(tasks[1].state_dict().values(), tasks[0].state_dict().values(), strict=True):
        difference = (mine.double() - theirs.double()).norm() / theirs.double().norm().clamp(min=1e-9)
        assert difference < (0.05 if amp else 0.005)
        if not mine.is_floating_point():
            assert torch.equal(mine, theirs)  # the batches that BatchNorm has counted


@needs_gpu
def test_capture_leaves_no_trace():
    task = make_task(drop_rate=0.5)
    before = {name: value.clone() for name, value in task.state_dict().items()}
    graphed = GraphedStep(task, partial(torch.autocast, 'cuda', torch.bfloat16))
    images = torch.randn(16, 3, 32, 32, device=CUDA).contiguous(memory_format=torch.channels_last)
    target = torch.randint(10, (16,), device='cuda')
    state = torch.cuda.get_rng_state()
    graphed._capture(images, target)
    assert torch.equal(torch.cuda.get_rng_state(), state)
    for name, value in task.state_dict().items():
        assert torch.equal(value, before[name]), name


@needs_gpu
def test_dropout_differs_from_step_to_step():
    task = make_task(drop_rate=0.5)
    graphed = GraphedStep(task, partial(torch.autocast, 'cuda', enabled=False))
    images = torch.randn(16, 3, 32, 32, device=CUDA).contiguous(memory_format=torch.channels_last)
    target = torch.randint(10, (16,), device=CUDA)
    losses = [graphed(images, target)['loss'].item() for _ in range(3)]
    assert len(set(losses)) == 3


@needs_gpu
def test_what_reads_a_number_is_refused_in_a_sentence():
    """In a process of its own: after a capture that failed torch draws no more random numbers in one."""
    code = """
import torch
from test_graphed import CUDA, GraphedStep, make_task, partial
task = make_task()
forward = task.forward
task.forward = lambda images, target: forward(images, target) if target.sum().item() > -1 else None
images, target = torch.randn(16, 3, 32, 32, device=CUDA), torch.randint(10, (16,)).cuda()
GraphedStep(task, partial(torch.autocast, 'cuda', enabled=False))(images, target)
"""
    done = subprocess.run([sys.executable, '-c', code], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert 'RideError: This step cannot be captured as a CUDA graph' in done.stderr


@needs_gpu
def test_a_router_trains_as_a_graph():
    torch.manual_seed(0)
    net = timm.create_model('ride_resnet32_2e', layers=(1, 1, 1), num_classes=10, router=True).to(CUDA)
    task = RouterTask(net, device=CUDA, verbose=False)
    task.get_trainable_module().train()
    images, target = torch.randn(16, 3, 32, 32, device=CUDA), torch.randint(10, (16,), device=CUDA)
    wanted = eager(task, partial(torch.autocast, 'cuda', enabled=False), images, target)
    gradients = [p.grad.clone() for p in task.parameters() if p.requires_grad]
    found = GraphedStep(task, partial(torch.autocast, 'cuda', enabled=False))(images, target)
    torch.testing.assert_close(found['loss'], wanted['loss'], rtol=1e-3, atol=1e-4)
    for parameter, gradient in zip((p for p in task.parameters() if p.requires_grad), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-2, atol=1e-4)


@needs_gpu
def test_side_streams_are_left_again():
    task = make_task()
    before = torch.cuda.current_stream()
    with expert_streams(task, CUDA):
        task(torch.randn(4, 3, 32, 32, device=CUDA), torch.randint(10, (4,), device=CUDA))
    assert torch.cuda.current_stream() == before
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in task.modules())


@needs_gpu
def test_a_whole_run_on_the_gpu(tmp_path):
    """Both options together, from the command line, and resumed; then its router."""
    data = write_images(tmp_path / 'data', {'a': 9, 'b': 6, 'c': 4}, size=32)
    common = ['--data-dir', str(data), '--cuda-graph', '--data-on-device', '--amp', '--output', str(tmp_path)]
    common += ['--lr', '0.01', '--warmup-epochs', '0', '-b', '4']
    experts = [*common, '--model', 'ride_resnet32_2e', '--model-kwargs', 'layers=(1,1,1)', '--channels-last']
    experts += ['--experiment', 'experts']
    assert main([*experts, '--epochs', '2']) == 0
    assert main([*experts, '--epochs', '3', '--resume', 'auto']) == 0
    assert len((tmp_path / 'experts' / 'summary.csv').read_text().splitlines()) == 4
    weights = str(tmp_path / 'experts' / 'last.pth.tar')
    assert main([*common, '--stage', 'router', '--init', weights, '--epochs', '2', '--experiment', 'router']) == 0
    assert (tmp_path / 'router' / 'results.json').is_file()
