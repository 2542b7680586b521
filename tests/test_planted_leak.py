"""A data set of frames of few objects: the report names the leak, and groups give the honest, lower result."""

import json

import numpy as np
import pytest
from PIL import Image, ImageFilter

from ride_timm.commands.data import main as data_report
from ride_timm.data import hold_out
from ride_timm.data.form import open_train
from ride_timm.options import DataForm, filled

OBJECTS, FRAMES = (8, 6, 4), 6
PATTERN = r'(.+)_\d+\.\w+$'


@pytest.fixture(scope='module')
def frames(tmp_path_factory):
    """Each object looks like itself and hardly like its class; its frames differ by noise and a pixel."""
    root = tmp_path_factory.mktemp('frames')
    rng = np.random.default_rng(3)
    for label, objects in enumerate(OBJECTS):
        folder = root / 'ABC'[label]
        folder.mkdir()
        for number in range(objects):
            coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
            scene = coarse.resize((40, 40), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))
            for frame in range(FRAMES):
                pixels = np.asarray(scene)[frame % 2 : 32 + frame % 2, :32] + rng.normal(0, 5, (32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f'{number:05d}_{frame:05d}.png')
    return root


def report(capsys, *arguments):
    capsys.readouterr()
    status = data_report([*map(str, arguments), '--json'])
    findings = json.loads(capsys.readouterr().out)['findings']
    return status, {finding['text'] for finding in findings if finding['level'] == 'warning'}


def nearest_neighbour(split):
    """Accuracy (percent) of the class of the most similar training image."""
    train, val = (
        np.stack([np.asarray(part.dataset.load(row), dtype=float).ravel() for row in range(len(part.targets))])
        for part in (split.train, split.held)
    )
    nearest = ((train[None] - val[:, None]) ** 2).sum(-1).argmin(1)
    return 100 * (split.train.targets[nearest] == split.held.targets).mean()


def test_the_report_names_it_and_what_to_type(frames, capsys):
    status, warnings = report(capsys, frames)
    assert status == 0
    assert any(PATTERN in text and '108 images in 18 groups' in text for text in warnings)
    assert any('look nearly like a training image' in text for text in warnings)


def test_groups_end_it(frames, capsys):
    status, warnings = report(capsys, frames, '--group-pattern', PATTERN)
    assert status == 0
    assert not any('nearly' in text or 'both sides' in text for text in warnings)


def test_a_given_split_that_divides_objects(frames, capsys, tmp_path):
    for path in sorted(frames.glob('*/*.png')):
        side = tmp_path / ('val' if path.stem.endswith('0') else 'train') / path.parent.name
        side.mkdir(parents=True, exist_ok=True)
        (side / path.name).symlink_to(path)
    _, warnings = report(capsys, tmp_path)
    assert any('18 are on both sides' in text and 'join both sides' in text for text in warnings)
    _, warnings = report(capsys, tmp_path, '--group-pattern', PATTERN)
    assert any('18 of 18 groups of images are on both sides' in text for text in warnings)


def test_the_honest_result_is_lower(frames):
    loose, grouped = (
        hold_out(open_train(filled(DataForm(data_dir=str(frames), group_pattern=pattern)), 3), 0.25)
        for pattern in (None, PATTERN)
    )
    assert nearest_neighbour(loose) > 95
    assert nearest_neighbour(grouped) < 70
    assert grouped.held.class_counts.tolist() == [12, 6, 6]
