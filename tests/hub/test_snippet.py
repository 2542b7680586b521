"""The public API as it is typed in a notebook, line by line, on small data and a small network."""

import timm
import torch
from PIL import Image
from published import make_weight
from torch.utils.data import DataLoader, TensorDataset

DATA = """
import timm, torch, ride_timm as rt
from torch.utils.data import DataLoader

counts = rt.class_counts(train_set.targets)
"""
TRAINING = """
criterion = rt.create_loss('balpoe', counts, model=model, epochs=30)   # K, head scale, re-weighting epoch follow
model.set_expert_training(True)
for epoch in range(30):
    criterion.set_epoch(epoch); model.train()
    for x, y in DataLoader(train_set, 64, shuffle=True):
        loss = criterion(model(x), y)                                  # takes the tuple, a (B, K, C) and a (B, C) tensor
        optimizer.zero_grad(); loss.backward(); optimizer.step()
print(rt.evaluate(model, val_loader, counts))                          # overall, many, medium, few, ECE, each expert, GMACs
rt.train_router(model, train_loader)                                   # adds one where there is none
print(rt.choose_threshold(model, holdout_loader, counts, max_loss=0.005))
print(rt.evaluate(model, val_loader, counts, routed=True))
rt.logit_adjustment(model, counts, tau=0.5)                            # idempotent; 0 takes it back
net = rt.load('hf-hub:org/name')                                       # model, class names, counts, record
print(rt.predict(net, ['a.jpg', pil_image]))
"""  # noqa: E501


def colours(numbers):
    """Images of one colour a class, with noise, and their classes."""
    rng = torch.Generator().manual_seed(sum(numbers))
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor(numbers))
    images = 0.5 * torch.randn(len(targets), 3, 16, 16, generator=rng) + torch.eye(3)[targets][:, :, None, None]
    data = TensorDataset(images, targets)
    data.targets = targets
    return data


def test_line_by_line(hub, tmp_path, monkeypatch, capsys):
    folder = make_weight(tmp_path / 'weights')
    hub.seed('org/name', {path.name: path.read_bytes() for path in folder.iterdir()})
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (32, 32), 'red').save('a.jpg')
    torch.manual_seed(0)
    train_set = colours([40, 12, 4])
    here = {
        'train_set': train_set,
        'train_loader': DataLoader(train_set, 16, shuffle=True),
        'val_loader': DataLoader(colours([10, 10, 10]), 16),
        'holdout_loader': DataLoader(colours([12, 8, 6]), 16),
        'pil_image': Image.new('RGB', (40, 40), 'blue'),
    }
    exec(DATA, here)
    here['model'] = timm.create_model('ride_resnet32_3e', layers=(1, 1, 1), num_classes=len(here['counts']))
    here['optimizer'] = torch.optim.SGD(here['model'].parameters(), 0.05, momentum=0.9)
    capsys.readouterr()
    exec(TRAINING, here)
    printed = capsys.readouterr().out
    assert printed.count('overall') == 2  # the choice of a threshold prints what was certified
    assert printed.count('mean experts') == 1
    assert 'a.jpg: ' in printed
    scores = here['rt'].evaluate(here['model'], here['val_loader'], here['counts'])
    assert scores.overall > 60
    assert here['net'].class_names is not None
