"""Whatever is done to a file, reading it gives a right answer or one sentence, soon and in little memory."""

import json
import resource
import shutil
import time
from pathlib import Path

import pytest
import timm
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ride_timm  # noqa: F401
from ride_timm.commands.run_images import find_run
from ride_timm.errors import RideError
from ride_timm.inference.load import load
from ride_timm.publishing.folder import save_folder
from ride_timm.publishing.official import load_official
from ride_timm.recipes import load_recipe
from ride_timm.records.published import INDEX, PretrainedError, read_index
from ride_timm.records.runs import read_run
from ride_timm.training.initial import read_initial

NAME = 'test_ride_resnet_cifar_3e'
CLASSES = ('cat', 'dog', 'owl', 'yak')
SECONDS, BYTES = 20.0, 2 * 2**30

ODD = st.one_of(
    st.none(), st.booleans(), st.just('x'), st.just(''), st.just([]), st.just({}), st.just([None] * 3), st.just(['x']),
    st.sampled_from([0, -1, 3, 10**6, 10**12, 10**30, 0.0, -1.5, 1e300, float('inf'), float('nan')]),
    st.sampled_from(['hf-hub:evil/x', 'local-dir:/etc', '../x', '/etc/passwd', 'https://x', [10**9] * 3, [[[[1]]]]]),
)  # fmt: skip


@pytest.fixture(scope='module')
def good(tmp_path_factory):
    """A folder with a file of each kind, all whole: a packaged network, a checkpoint, and what a run leaves."""
    folder = tmp_path_factory.mktemp('good')
    model = timm.create_model(NAME, num_classes=len(CLASSES), router=True).eval()
    save_folder(model, folder, CLASSES, (9, 5, 3, 1), {'loss': 'ride', 'loss_kwargs': {}, 'tau': None})
    args = {'model': NAME, 'stage': 'experts', 'model_kwargs': {'router': True}, 'num_classes': 4, 'in_chans': 3}
    args |= {'data_dir': 'data', 'epochs': 1, 'data_config': {'input_size': [3, 32, 32], 'mean': [0.5] * 3}}
    ride = {'class_names': list(CLASSES), 'class_counts': [9, 5, 3, 1], 'loss': 'ride', 'holdout': None}
    checkpoint = {'arch': NAME, 'epoch': 0, 'args': args, 'ride': ride, 'state_dict': model.state_dict()}
    torch.save(checkpoint, folder / 'x.pth.tar')
    run = {'model': NAME, 'last_epoch': 0, 'last': {'top1': 50.0}, 'seed': 1, 'args': args, 'environment': {'a': 'b'}}
    run['segments'] = [{'epoch': k, 'command': 'c', 'environment': {'hardware': str(k)}} for k in (0, 1)]
    (folder / 'results.json').write_text(json.dumps(run))
    (folder / 'args.yaml').write_text(json.dumps(args))
    (folder / 'recipe.yaml').write_text('epochs: 3\nlr: 0.1\n')
    sharded = folder / 'sharded'
    save_folder(model, sharded, CLASSES, max_shard_size=150_000)
    assert len(list(sharded.glob('model-*'))) > 1
    entry = {'files': {'config.json': {'size': 1, 'sha256': 'a' * 64}}, 'hub': None}
    (folder / 'list' / f'{NAME}.x').mkdir(parents=True)
    shutil.copy(folder / 'config.json', folder / 'list' / f'{NAME}.x' / 'config.json')
    (folder / 'list' / INDEX).write_text(json.dumps({'weights': {f'{NAME}.x': entry}}))
    return folder


@pytest.fixture
def mine(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / 'mine'))


def check(read, path):
    """Read a file: any answer, or one sentence that names a file; and nothing else, nothing large, nothing slow."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read(path)
    except (RideError, PretrainedError) as error:
        assert '\n' not in str(error)
        assert 'Traceback' not in str(error)
        assert len(str(error)) < 3000
    assert time.perf_counter() - began < SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < BYTES


def read_folder(path):
    """As predict, report and --teacher read a packaged network."""
    load(path.parent)


def read_report(path):
    last = path.with_name('last.pth.tar')  # without which the folder is not that of a run
    last.touch()
    try:
        find_run(str(path.parent))
    finally:
        last.unlink()


READERS = {
    'config.json': (read_folder, lambda path: load(path.with_name('model.safetensors'))),
    'results.json': (lambda path: read_run(path.parent),),
    'args.yaml': (read_report,),
    'recipe.yaml': (lambda path: load_recipe(str(path)),),
    'list/index.json': (lambda path: read_index(path.parent),),
    'sharded/model.safetensors.index.json': (read_folder, lambda path: load(path)),
}
TENSORS = {
    'model.safetensors': (read_folder, load, read_initial, load_official),
    'x.pth.tar': (load, read_initial, load_official),
}


def places(content, at=()):
    """Where the values of nested JSON are."""
    if at:
        yield at
    if isinstance(content, dict):
        for key, value in content.items():
            yield from places(value, (*at, key))
    elif isinstance(content, list):
        for index, value in enumerate(content[:2]):
            yield from places(value, (*at, index))


def replaced(content, at, value):
    content = json.loads(json.dumps(content))
    inner = content
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return content


def some(examples):
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    )  # fmt: skip


def replace_values(good, mine, name, data):
    text = (good / name).read_text()
    content = {'epochs': 3, 'lr': 0.1, 'loss_kwargs': {'a': 1}} if name == 'recipe.yaml' else json.loads(text)
    at = data.draw(st.sampled_from(list(places(content))))
    (mine / name).write_text(json.dumps(replaced(content, at, data.draw(ODD))))
    for read in READERS[name]:
        check(read, mine / name)
    shutil.copy(good / name, mine / name)


def change_bytes(good, mine, name, data):
    content = bytearray((good / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        end = data.draw(st.sampled_from([64, 2000, len(content)]))
        at = data.draw(st.integers(0, min(end, len(content)) - 1))
        content[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([None, None, 0, 1, 8, 100, len(content) // 2, len(content) - 1]))
    (mine / name).write_bytes(bytes(content[:cut]))
    for read in (READERS | TENSORS)[name]:
        check(read, mine / name)
    shutil.copy(good / name, mine / name)


@pytest.mark.parametrize('name', READERS)
@some(25)
@given(data=st.data())
def test_values_of_other_types(good, mine, name, data):
    replace_values(good, mine, name, data)


@pytest.mark.parametrize('name', [*READERS, *TENSORS])
@some(12)
@given(data=st.data())
def test_changed_and_missing_bytes(good, mine, name, data):
    change_bytes(good, mine, name, data)


@pytest.mark.slow
@pytest.mark.parametrize('name', READERS)
@some(800)
@given(data=st.data())
@pytest.mark.filterwarnings('ignore:The (router belongs|checkpoint has a router)')  # of a config of other classes
def test_many_values_of_other_types(good, mine, name, data):
    replace_values(good, mine, name, data)


@pytest.mark.slow
@pytest.mark.parametrize('name', [*READERS, *TENSORS])
@some(300)
@given(data=st.data())
def test_many_changed_bytes(good, mine, name, data):
    change_bytes(good, mine, name, data)


@pytest.mark.parametrize('name', [name for name in READERS if name != 'recipe.yaml'])
@pytest.mark.parametrize('content', [b'', b'{', b'[]', b'null', b'\xff\xfe', b'[' * 100_000, b'{"a":' * 100_000])
def test_other_files_are_refused(mine, name, content):
    (mine / name).write_bytes(content)
    for read in READERS[name]:
        with pytest.raises((RideError, PretrainedError)):
            read(mine / name)


def test_good_files_are_taken(mine):
    for name, readers in (READERS | TENSORS).items():
        for read in readers:
            if read is not load_official:
                read(mine / name)
