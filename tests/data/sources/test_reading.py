"""Files of every form, damaged in any way, are rows or one sentence; and what form a file has, its content says."""

import copy
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_camtrap import MEDIA, OBSERVATIONS, RESOURCES
from test_coco import COCO
from test_megadetector import RESULTS

from ride_timm.data import Columns, open_train_split, read_rows
from ride_timm.errors import RideError

PACKAGE = {'resources': RESOURCES}
RECORDS = [{'image': 'a.jpg', 'label': 'x', 'split': 'train', 'n': 1}, {'image': 'b.jpg', 'label': 'y', 'n': None}]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 10**20), st.floats(), st.text(max_size=5), st.just([]), st.just({}),
    st.lists(st.integers(), max_size=5), st.just('../../x'), st.just('\x00'),
)  # fmt: skip


def places(node, path=()):
    """The path of every node of a JSON value."""
    yield path
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(value, (*path, key))


@settings(deadline=None, max_examples=150)
@given(data=st.data(), labelled=st.booleans())
def test_damaged_json_is_rows_or_one_sentence(tmp_path_factory, data, labelled):
    folder = tmp_path_factory.getbasetemp()
    (folder / 'media.csv').write_text(MEDIA)
    (folder / 'observations.csv').write_text(OBSERVATIONS)
    content = copy.deepcopy(data.draw(st.sampled_from([COCO, RESULTS, PACKAGE, RECORDS])))
    *path, last = data.draw(st.sampled_from([path for path in places(content) if path]))
    node = content
    for key in path:
        node = node[key]
    if data.draw(st.booleans()):
        node[last] = data.draw(VALUES)
    else:
        del node[last]
    file = folder / 'damaged.json'
    file.write_text(json.dumps(content))
    try:
        rows = read_rows(file, labelled=labelled).rows
    except RideError as error:
        assert '\n' not in str(error)
    else:
        assert rows
        assert all(isinstance(row.path, str) and (row.label or not labelled) for row in rows)


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_a_damaged_package_is_rows_or_one_sentence(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    texts = {'media': MEDIA, 'observations': OBSERVATIONS}
    name = data.draw(st.sampled_from(sorted(texts)))
    start = data.draw(st.integers(0, len(texts[name])))
    end = data.draw(st.integers(start, min(start + 40, len(texts[name]))))
    texts[name] = texts[name][:start] + data.draw(st.text(max_size=3)) + texts[name][end:]
    for each, text in texts.items():
        (folder / f'{each}.csv').write_bytes(text.encode('utf-8', 'surrogatepass'))
    file = folder / f'datapackage-{data.draw(st.integers(0, 10**9))}.json'  # one is not read twice
    file.write_text(json.dumps(PACKAGE))
    try:
        rows = read_rows(file).rows
    except RideError as error:
        assert '\n' not in str(error)
    else:
        assert all(row.path and row.label for row in rows)
    file.unlink()


@pytest.mark.parametrize(
    ('name', 'content', 'form'),
    [
        ('x.csv', json.dumps(COCO), 'COCO annotations'),
        ('x.txt', json.dumps(RECORDS), 'a table'),
        ('x.json', 'image,label\na.jpg,x\n', 'a table'),
        ('x.json', 'a.jpg 1\nb.jpg 2\n', 'a list of images'),
        ('x.txt', '[1].jpg 3\n', 'a list of images'),
        ('x.txt', '{a}.jpg,3\n', 'a list of images'),
        ('x.csv', 'image,MEL,NV\na,0,1\n', 'a table with a column for each class'),
        ('x.csv', 'image,label,MEL,NV\na,x,0,1\n', 'a table'),
        # a COCO file of a detector's results, with both kinds of keys
        ('x.json', json.dumps({**RESULTS, **COCO}), 'COCO annotations'),
    ],
)
def test_the_content_says_what_form_a_file_has(tmp_path, name, content, form):
    (tmp_path / name).write_text(content)
    assert read_rows(tmp_path / name).form == form


def test_columns_of_a_file_without_any(tmp_path):
    (tmp_path / 'coco.json').write_text(json.dumps(COCO))
    with pytest.raises(RideError, match='--label-column'):
        read_rows(tmp_path / 'coco.json', Columns(label='species'))


def large_table(folder, names):
    rows = (f'"{name[3:-4]}",1.5,"some, text",c{i % 300},{i % 50}\n' for i, name in enumerate(names))
    (folder / 'table.csv').write_text(f'image_id,x,note,species,site\n{"".join(rows)}')
    return folder / 'table.csv'


def large_coco(folder, names):
    content = {
        'images': [{'id': i, 'file_name': name, 'location': i % 50, 'width': 9} for i, name in enumerate(names)],
        'annotations': [
            {'id': i, 'image_id': i, 'category_id': i % 300, 'bbox': [0, 0, 1, 1]} for i in range(len(names))
        ],
        'categories': [{'id': i, 'name': f'c{i}'} for i in range(300)],
    }
    (folder / 'coco.json').write_text(json.dumps(content))
    return folder / 'coco.json'


def large_package(folder, names):
    media = (f'm{i},d{i % 50},{name}\n' for i, name in enumerate(names))
    seen = (f'm{i},animal,c{i % 300}\n' for i in range(len(names)))
    (folder / 'media.csv').write_text(f'mediaID,deploymentID,filePath\n{"".join(media)}')
    (folder / 'observations.csv').write_text(f'mediaID,observationType,scientificName\n{"".join(seen)}')
    (folder / 'datapackage.json').write_text(json.dumps(PACKAGE))
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)  # writing the files takes longest
def test_200_000_rows_in_under_10_seconds(tmp_path):
    names = [f'{i % 20:02d}/{i:06d}.jpg' for i in range(200_000)]
    for folder in range(20):
        (tmp_path / f'{folder:02d}').mkdir()
    for name in names:
        (tmp_path / name).touch()
    for write in (large_table, large_coco, large_package):
        file = write(tmp_path, names)
        start = time.process_time()
        split = open_train_split(None, list_file=file)
        assert time.process_time() - start < 10
        assert split.class_counts.sum() == 200_000
