import hashlib
import json

import pytest

from ride_timm.errors import RideError
from ride_timm.publishing.index import hash_folder, renew_entry
from ride_timm.records.published import read_index

NAME = 'test_ride_resnet_cifar_3e.toy_digits'
HUB = {'repo_id': 'org/name', 'revision': 'a' * 40, 'files': {}}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / NAME
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps({'num_classes': 3}))
    (folder / 'model.safetensors').write_bytes(b'tensors')
    (folder / '.hidden').write_text('x')
    (tmp_path / 'index.json').write_text(json.dumps({'format': 1, 'weights': {}}))
    return folder


def index(folder):
    return json.loads((folder.parent / 'index.json').read_text())


def test_the_hash_of_every_file(folder):
    files = hash_folder(folder)
    assert list(files) == ['config.json', 'model.safetensors']
    assert files['model.safetensors'] == {'size': 7, 'sha256': hashlib.sha256(b'tensors').hexdigest()}


def test_a_new_entry_is_readable(folder):
    assert renew_entry(folder)
    assert read_index(folder.parent)[NAME].num_classes == 3


def test_without_an_index_nothing_is_written(folder):
    (folder.parent / 'index.json').unlink()
    assert not renew_entry(folder)
    assert not (folder.parent / 'index.json').exists()


def test_entries_keep_their_order_and_the_copy_on_the_hub(folder):
    content = index(folder)
    renew_entry(folder)
    content['weights'] = {NAME: index(folder)['weights'][NAME] | {'hub': HUB}}
    (folder.parent / 'index.json').write_text(json.dumps(content))
    (folder / 'README.md').write_text('a new card')
    renew_entry(folder)
    assert index(folder)['weights'][NAME]['hub'] == HUB
    assert 'README.md' in index(folder)['weights'][NAME]['files']
    (folder / 'model.safetensors').write_bytes(b'other tensors')
    renew_entry(folder)
    assert index(folder)['weights'][NAME]['hub'] is None  # the Hub has others now


@pytest.mark.parametrize('content', ['', '[]', '{}', '{"weights": []}'])
def test_a_damaged_index_is_left_alone(folder, content):
    (folder.parent / 'index.json').write_text(content)
    with pytest.raises(RideError, match=r'cannot be understood|get the file again'):
        renew_entry(folder)
    assert (folder.parent / 'index.json').read_text() == content


def test_a_folder_that_makes_no_entry_leaves_the_index_as_it_was(folder):
    before = index(folder)
    other = folder.rename(folder.with_name('no tag'))
    with pytest.raises(RideError, match='is not ARCHITECTURE'):
        renew_entry(other)
    assert index(folder) == before
