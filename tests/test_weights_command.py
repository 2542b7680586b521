"""`ride-timm weights`: names, figures, and where the weights are."""

import json

import pytest
from weight_results import make_results

from ride_timm.commands.weights import list_weights, main, weights_root
from ride_timm.errors import RideError
from ride_timm.publishing.index import pin_copy, renew_entry
from ride_timm.records.published import published_weights

UNPUBLISHED = 'ride_resnet32_3e.unpublished_cifar100lt'
REVISION = '0123456789abcdef' * 2 + '01234567'


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Two weights: one with its tensors, one without."""
    (tmp_path / 'index.json').write_text('{"format": 1, "weights": {}}')
    for method, router in (('ride', True), ('balpoe', False)):
        # a name that is in no index: what is missing here must not be found among the published weights
        results = make_results(method=method, router=router, name=None if router else UNPUBLISHED)
        folder = tmp_path / results['name']
        folder.mkdir()
        (folder / 'results.json').write_text(json.dumps(results))
        (folder / 'config.json').write_text('{"num_classes": 100}')
        (folder / 'model.safetensors').write_bytes(bytes(1_234_567))
        assert renew_entry(folder)
        if not router:
            (folder / 'model.safetensors').unlink()
    monkeypatch.setenv('RIDE_TIMM_WEIGHTS', str(tmp_path))
    published_weights.cache_clear()
    yield tmp_path
    published_weights.cache_clear()


def rows_of(root):
    return [row for row in list_weights() if row['name'] in json.loads((root / 'index.json').read_text())['weights']]


def test_the_table(root, capsys):
    assert main([]) == 0
    header, first, second = capsys.readouterr().out.splitlines()[:3]
    assert header.split() == ['name', 'data', 'overall', 'many', 'medium', 'few', 'GMACs', 'MB', 'where']
    everything = make_results()['test']['all_experts']
    shown = [f'{everything[key]:.2f}' for key in ('top1', 'many', 'medium', 'few')]
    assert first.split() == [
        'ride_resnet32_3e.ride_cifar100lt', 'CIFAR-100-LT', *shown, '0.1004', '1.2', str(root / first.split()[0])
    ]  # fmt: skip
    assert second.startswith(UNPUBLISHED)
    assert second.endswith('  not available')
    assert first.index(shown[0]) + len(shown[0]) == header.index('overall') + len('overall')


def test_a_copy_on_the_hub(root, capsys):
    folder = root / UNPUBLISHED
    files = json.loads((root / 'index.json').read_text())['weights'][folder.name]['files']
    assert pin_copy(folder, 'org/name', REVISION, files)
    published_weights.cache_clear()
    main([])
    assert 'org/name@0123456\n' in capsys.readouterr().out
    assert rows_of(root)[1]['hub'] == f'org/name@{REVISION}'


def test_for_programs(root, capsys):
    assert main(['--json']) == 0
    first, second = [row for row in json.loads(capsys.readouterr().out) if 'cifar100lt' in row['name']][:2]
    results = make_results()
    assert first == {
        'name': results['name'], 'data': 'CIFAR-100-LT', 'overall': results['test']['all_experts']['top1'],
        **{name: results['test']['all_experts'][name] for name in ('many', 'medium', 'few')},
        'gmacs': results['network']['gmacs'],
        'routed': {key: results['test']['routed'][name] for key, name in (('overall', 'top1'), ('gmacs', 'gmacs'))},
        'bytes': 1_234_567, 'path': str(root / results['name']), 'hub': None,
    }  # fmt: skip
    assert second['routed'] is second['path'] is second['hub'] is None


@pytest.mark.parametrize('content', [None, 'x', '[]', '{}'])
def test_without_figures(root, content, capsys):
    path = root / 'ride_resnet32_3e.ride_cifar100lt' / 'results.json'
    path.unlink()
    if content is not None:
        path.write_text(content)
    main([])
    row = capsys.readouterr().out.splitlines()[1].split()
    assert row[1:7] == ['-'] * 6
    assert row[7] == '1.2'


def test_no_weights(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr('ride_timm.commands.weights.published_weights', dict)
    assert main([]) == 0
    assert 'No weights are published with this version' in capsys.readouterr().out
    assert main(['--json']) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_the_folder_of_the_weights(root, monkeypatch, tmp_path):
    assert weights_root()[0] == root
    assert list(weights_root()[1]) == ['ride_resnet32_3e.ride_cifar100lt', UNPUBLISHED]
    monkeypatch.setenv('RIDE_TIMM_WEIGHTS', str(tmp_path / 'nothing'))
    with pytest.raises(RideError, match='cannot be understood'):
        weights_root()


class TestPinning:
    def test_a_weight_that_is_not_in_the_index(self, root):
        assert not pin_copy(root / 'ride_resnet32_3e.other', 'org/name', REVISION, {})

    def test_without_an_index(self, tmp_path):
        assert not pin_copy(tmp_path / 'a.b', 'org/name', REVISION, {})

    @pytest.mark.parametrize('revision', ['main', REVISION[:7], REVISION.upper()])
    def test_only_commits(self, root, revision):
        before = (root / 'index.json').read_text()
        with pytest.raises(RideError, match='40 hexadecimal digits'):
            pin_copy(root / 'ride_resnet32_3e.ride_cifar100lt', 'org/name', revision, {})
        assert (root / 'index.json').read_text() == before
