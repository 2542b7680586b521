import zipfile

import pytest
import timm
import torch

import ride_timm  # noqa: F401
from ride_timm.errors import RideError
from ride_timm.inference.hub import _check_hash
from ride_timm.inference.load import load
from ride_timm.publishing.official import load_official
from ride_timm.records.checkpoint import read_checkpoint

NAME = 'test_ride_resnet_cifar_3e'


def write(path, **changes):
    state = timm.create_model(NAME, num_classes=3).state_dict()
    torch.save({'arch': NAME, 'args': {'num_classes': 3}, 'state_dict': state} | changes, path)
    return path


@pytest.mark.parametrize('read', [read_checkpoint, load_official])
def test_compressed_records_are_refused(tmp_path, read):
    good, bad = write(tmp_path / 'good.pth.tar'), tmp_path / 'bad.pth.tar'
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, 'w', zipfile.ZIP_DEFLATED) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    read(good)
    with pytest.raises(RideError, match='compressed'):
        read(bad)


@pytest.mark.parametrize(
    'args',
    [{'num_classes': 10**6}, {'model_kwargs': {'channels': [10**5] * 3}}, {'model_kwargs': {'layers': [10**4] * 3}}],
)
def test_sizes_that_no_tensor_has_are_refused(tmp_path, args):
    with pytest.raises(RideError, match='the tensors of the file allow'):
        load(write(tmp_path / 'x.pth.tar', args=args))


def test_a_tensor_larger_than_its_memory_is_refused(tmp_path):
    with pytest.raises(RideError, match='ordinary tensor'):
        read_checkpoint(write(tmp_path / 'x.pth.tar', state_dict={'x': torch.zeros(1).expand(10**9)}))


@pytest.mark.parametrize('name', ['hf-hub:org/name', 'local-dir:x', '/etc/passwd', '../x', 'https://host/x'])
def test_an_architecture_in_a_file_is_no_source(tmp_path, name):
    with pytest.raises(RideError, match='"arch"'):
        load(write(tmp_path / 'x.pth.tar', arch=name))


def test_a_small_file_of_the_hub_has_the_hash_of_git(tmp_path):
    blob = tmp_path / 'ce013625030ba8dba906f756967f9e9ca394464a'  # of `git hash-object`, for these 6 bytes
    blob.write_bytes(b'hello\n')
    _check_hash(blob, None)
    blob.write_bytes(b'hallo\n')
    with pytest.raises(RideError, match='SHA-1'):
        _check_hash(blob, None)
