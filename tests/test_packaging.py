"""What gets into the wheel and the source distribution: the weights, but not the parts of large ones."""

import fnmatch
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
import timm
import torch

from ride_timm.publishing.folder import save_folder
from ride_timm.publishing.index import renew_entry
from ride_timm.records.published import SHARD_INDEX, WEIGHTS

ROOT = Path(__file__).resolve().parents[1]
LARGE, SMALL = 'test_ride_resnet_cifar_3e.large_toys', 'test_ride_resnet_cifar_3e.small_toys'


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A checkout with a weight in one file and one in several."""
    root = tmp_path_factory.mktemp('checkout')
    for name in ('pyproject.toml', 'README.md', 'LICENSE', '.gitignore'):
        shutil.copy(ROOT / name, root)
    (root / 'ride_timm').mkdir()
    for name in ('__init__.py', 'version.py', 'py.typed'):
        shutil.copy(ROOT / 'ride_timm' / name, root / 'ride_timm')
    (root / 'weights').mkdir()
    (root / 'weights' / 'index.json').write_text('{"format": 1, "weights": {}}')
    net = timm.create_model('test_ride_resnet_cifar_3e', num_classes=3)
    for name, limit in ((LARGE, 60_000), (SMALL, None)):
        folder = root / 'weights' / name
        save_folder(net, folder, ['a', 'b', 'c'], [3, 2, 1], dtype=torch.float16, max_shard_size=limit)
        (folder / 'results.json').write_text('{}')
        renew_entry(folder)
    assert len(list((root / 'weights' / LARGE).glob('*.safetensors'))) > 1
    return root


def packed(source, prefix):
    """The names of the weights' files that belong into a package."""
    files = (path.relative_to(source / 'weights') for path in (source / 'weights').rglob('*') if path.is_file())
    return {f'{prefix}/{file.as_posix()}' for file in files if not file.name.startswith('model-')}


def test_the_parts_are_excluded_by_their_names(source):
    tomllib = pytest.importorskip('tomllib', reason='part of Python from 3.11 on')
    build = tomllib.loads((ROOT / 'pyproject.toml').read_text())['tool']['hatch']['build']
    assert build['targets']['wheel']['sources']['weights'] == 'ride_timm/_weights'
    assert 'force-include' not in build['targets']['wheel'], 'it would take the parts too'
    for path in (path for path in (source / 'weights').rglob('*') if path.is_file()):
        name = f'/{path.relative_to(source).as_posix()}'
        excluded = any(fnmatch.fnmatch(name, pattern) for pattern in build['exclude'])
        assert excluded == path.name.startswith('model-'), name


def test_the_wheel(source, tmp_path):
    wheel = pytest.importorskip('hatchling.builders.wheel', reason='pip install hatchling')
    (built,) = wheel.WheelBuilder(str(source)).build(directory=str(tmp_path), versions=['standard'])
    with zipfile.ZipFile(built) as file:
        names = {name for name in file.namelist() if '_weights' in name}
        assert 'ride_timm/py.typed' in file.namelist()
    assert names == packed(source, 'ride_timm/_weights')
    assert f'ride_timm/_weights/{LARGE}/{SHARD_INDEX}' in names
    assert f'ride_timm/_weights/{LARGE}/config.json' in names
    assert f'ride_timm/_weights/{SMALL}/{WEIGHTS}' in names


def test_the_source_distribution(source, tmp_path):
    sdist = pytest.importorskip('hatchling.builders.sdist', reason='pip install hatchling')
    (built,) = sdist.SdistBuilder(str(source)).build(directory=str(tmp_path))
    with tarfile.open(built) as file:
        names = {name.partition('/')[2] for name in file.getnames() if '/weights/' in name}
    assert names == packed(source, 'weights')
