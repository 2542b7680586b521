"""The parts of a model card that are run: Python and shell, each block for itself."""

import re
import shlex
import textwrap
from collections.abc import Mapping
from typing import Any

from ride_timm.cards.markdown import fence
from ride_timm.cards.results import Results, figures_only, images_name, is_registered
from ride_timm.losses import list_losses

__all__ = ['checking_section', 'usage_section']


def usage_section(results: Results, config: Mapping[str, Any], repo_id: str | None) -> str:
    """How to load the weights, route, fine-tune.

    Args:
        results: Content of `results.json`.
        config: Content of `config.json`.
        repo_id: Repository on the Hub, if the card is for one.
    """
    if figures_only(results):
        return (
            '## Its weights\n\nAre not kept, only its figures, for others to be compared with. The commands under '
            '*Training* make them again.'
        )
    source = _source(results, repo_id)
    parts = [
        '## Use it',
        'The architecture comes with the package `ride-timm` (`pip install ride-timm`); timm does the rest.'
        if is_registered(results)
        else 'The architecture is one of timm itself.',
        _python(_PREDICT, source, results, names=_names(config), classes=results['data']['num_classes']),
    ]
    if results['network']['router']:
        parts += [
            'Routed: each image passes as many experts as the router asks for, and no more is computed.',
            _python(_ROUTE, source, results, threshold=f'{results["test"]["routed"]["threshold"]:g}'),
        ]
    new = 10 if results['data']['num_classes'] != 10 else 5
    parts += [
        'Fine-tuning on other classes, in a loop of your own,',
        _fine_tuning(source, results, new),
        'or with everything that the long tail needs (one folder of images a class, each expert with its own loss, '
        'accuracy by class frequency):',
        fence(f'ride-timm train --init {shlex.quote(source)} --data-dir YOUR_FOLDER', 'bash'),
    ]
    if repo_id is not None:
        parts += ['With transformers:', _python(_TRANSFORMERS, repo_id, results)]
    return '\n\n'.join(parts)


def _fine_tuning(source: str, results: Results, new: int) -> str:
    """A loop with the experts' own losses; with cross-entropy for a network of timm itself, which needs no package."""
    if not is_registered(results):
        return _python(_FINE_TUNE_PLAIN, source, results, new=new)
    loss = results['method'] if results['method'] in list_losses() else 'ride'
    return _python(_FINE_TUNE, source, results, new=new, loss=loss)


def checking_section(results: Results, repo_id: str | None) -> str:
    """The commands that measure the figures of the card again.

    Args:
        results: Content of `results.json`.
        repo_id: Repository on the Hub, if the card is for one.

    Returns:
        The section, empty where the weights are not kept.
    """
    if figures_only(results):
        return ''
    dataset = re.match(r'(torch/[\w.-]+) \(', results['data'].get('source') or '')
    command = f'ride-timm validate --model {shlex.quote(_source(results, repo_id))} --pretrained --data-dir DIR'
    where = 'the folder that holds the test images in `val/`, one folder a class'
    if dataset:
        command += f' --dataset {dataset[1]}'
        where = "torchvision's folder for the data (`--dataset-download` fetches it)"
    commands = [command] + ([f'{command} --routed'] if results['network']['router'] else [])
    rows = 'This prints the first row' if len(commands) == 1 else 'These print the first two rows'
    text = f'{rows} of the results; `DIR` is {where}.'
    if images_name(results) != 'test images':
        text = f'The images above were held out of the training; this measures others. `DIR` is {where}.'
    return '\n\n'.join(['## Check it', text, fence('\n'.join(commands), 'bash')])


def _source(results: Results, repo_id: str | None) -> str:
    """What timm's `create_model` is given."""
    if repo_id is not None:
        return f'hf-hub:{repo_id}'
    return results['name'] if is_registered(results) else f'local-dir:{results["name"]}'


def _names(config: Mapping[str, Any]) -> str:
    return "model.pretrained_cfg['label_names']" if config.get('label_names') else 'range(model.num_classes)'


def _python(template: str, source: str, results: Results, **values: Any) -> str:
    channels, height, width = results['network']['input_size']
    code = template.format(
        source=repr(source),
        ride='import ride_timm  # registers the models\n' if is_registered(results) else '',
        mode='L' if channels == 1 else 'RGB',
        channels=channels,
        height=height,
        width=width,
        experts=results['network']['num_experts'],
        **values,
    )
    return fence(re.sub('\n{3,}', '\n\n', textwrap.dedent(code)), 'python')


_PREDICT = """\
import timm
import torch
from PIL import Image, ImageOps
from timm.data import create_transform, resolve_model_data_config

{ride}
model = timm.create_model({source}, pretrained=True).eval()
transform = create_transform(**resolve_model_data_config(model))
image = Image.new('{mode}', ({width}, {height}))  # yours: Image.open('photo.jpg')
image = ImageOps.exif_transpose(image).convert('{mode}')
with torch.inference_mode():
    probabilities = model(transform(image).unsqueeze(0)).softmax(-1)[0]  # ({classes},)
names = {names}
best = probabilities.topk(min(5, len(names)))
for share, label in zip(best.values.tolist(), best.indices.tolist()):
    print(f'{{names[label]}}: {{100 * share:.1f}} %')
"""
_ROUTE = """\
import timm
import torch

{ride}
model = timm.create_model({source}, pretrained=True).eval()
images = torch.randn(4, {channels}, {height}, {width})  # a batch of yours, through the transform above
model.set_routing(model.router_threshold)  # {threshold}; any in 0..1, and None switches routing off
with torch.inference_mode():
    logits = model(images)
    routed = model.forward_routed(images)
print(routed.num_experts)  # how many of the {experts} experts each image passed
"""
_FINE_TUNE_PLAIN = """\
import timm
import torch

{ride}
model = timm.create_model({source}, pretrained=True, num_classes={new}).train()  # new heads
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
images, labels = torch.randn(8, {channels}, {height}, {width}), torch.randint({new}, (8,))  # a batch of yours
loss = torch.nn.functional.cross_entropy(model(images), labels)
loss.backward()
optimizer.step()
"""
_FINE_TUNE = """\
import timm
import torch

{ride}from ride_timm.losses import create_loss

model = timm.create_model({source}, pretrained=True, num_classes={new}).train()  # new heads
model.set_expert_training(True)  # from now on each expert's own logits in train mode
images, labels = torch.randn(8, {channels}, {height}, {width}), torch.randint({new}, (8,))  # a batch of yours
class_counts = labels.bincount(minlength={new})  # how many training images each class has
criterion = create_loss('{loss}', class_counts, model=model, epochs=5)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
for epoch in range(5):
    criterion.set_epoch(epoch)
    loss = criterion(model(images), labels)  # one loss an expert
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
_TRANSFORMERS = """\
from PIL import Image
from transformers import pipeline

{ride}
classify = pipeline('image-classification', model={source})
print(classify(Image.new('{mode}', ({width}, {height}))))
"""
