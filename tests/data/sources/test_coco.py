"""COCO and COCO Camera Traps, after https://cocodataset.org/#format-data and https://lila.science/coco-camera-traps."""

import json
import logging

import pytest

from ride_timm.data import Box, Crop, open_train_split, open_unlabelled, read_rows
from ride_timm.errors import RideError

COCO = {
    'info': {'version': '1.0', 'description': 'by hand', 'year': 2020},
    'categories': [{'id': 0, 'name': 'empty'}, {'id': 7, 'name': 'red deer'}, {'id': 9, 'name': 'lynx'}],
    'images': [
        {'id': 'u1', 'file_name': 'p/1.png', 'width': 20, 'height': 10, 'seq_id': 's1', 'location': 33},
        {'id': 'u2', 'file_name': 'p/2.png', 'width': 20, 'height': 10, 'seq_id': 's2'},
        {'id': 'u3', 'file_name': 'p/3.png', 'width': 20, 'height': 10},
        {'id': 'u4', 'file_name': 'p/4.png', 'width': 20, 'height': 10},
        {'id': 'u5', 'file_name': 'p/5.png', 'width': 20, 'height': 10},
    ],
    'annotations': [
        {'id': 1, 'image_id': 'u3', 'category_id': 7, 'bbox': [1, 2, 3, 4]},
        {'id': 2, 'image_id': 'u3', 'category_id': 9, 'bbox': [5.5, 2, 30, 4]},
        {'id': 3, 'image_id': 'u1', 'category_id': 9, 'bbox': [0, 0, 10, 10]},
        {'id': 4, 'image_id': 'u1', 'category_id': 9, 'bbox': [10, 0, 10, 10]},
        {'id': 5, 'image_id': 'u2', 'category_id': 0},
        {'id': 6, 'image_id': 'u5', 'category_id': 7},
    ],
}


@pytest.fixture
def write(tmp_path):
    def write(name='coco.json', **changes):
        file = tmp_path / name
        file.write_text(json.dumps({**COCO, **changes}))
        return file

    return write


def test_annotations_are_rows_in_the_order_of_the_images(write):
    listed = read_rows(write())
    assert [(row.path, row.label, row.line, row.group, row.box) for row in listed.rows] == [
        ('p/1.png', 'lynx', 1, '33', Box(0, 0, 10, 10)),
        ('p/1.png', 'lynx', 1, '33', Box(10, 0, 10, 10)),
        ('p/2.png', 'empty', 2, 's2', None),
        ('p/3.png', 'red deer', 3, None, Box(1, 2, 3, 4)),
        ('p/3.png', 'lynx', 3, None, Box(5.5, 2, 30, 4)),
        ('p/5.png', 'red deer', 5, None, None),
    ]
    assert [row.path for row in read_rows(write(), labelled=False).rows].count('p/4.png') == 1


def test_images_without_labels_may_show_several_classes(write):
    images = open_unlabelled(write())
    assert sorted(images.filename(i) for i in range(len(images))) == [f'p/{i}.png' for i in range(1, 6)]


def test_whole_images_of_one_class(write, photos, caplog):
    photos(*(f'p/{i}.png' for i in range(1, 6)))
    with caplog.at_level(logging.INFO):
        split = open_train_split(None, list_file=write())
    assert split.dataset.filenames() == ['p/1.png', 'p/2.png', 'p/5.png']
    assert [split.class_names[i] for i in split.targets] == ['lynx', 'empty', 'red deer']
    assert '1 of 5 images have no annotation' in caplog.text
    assert '1 of the 4 images of' in caplog.text  # p/3.png shows two classes
    assert split.dataset.base.reader.groups == ('33', 's2', None)


def test_boxes_as_images(write, photos):
    photos(*(f'p/{i}.png' for i in range(1, 6)))
    split = open_train_split(None, list_file=write(), crop=Crop('boxes'))
    assert split.dataset.filenames() == [
        'p/1.png#xywh=0,0,10,10', 'p/1.png#xywh=10,0,10,10', 'p/3.png#xywh=1,2,3,4', 'p/3.png#xywh=5.5,2,30,4',
    ]  # fmt: skip
    assert [split.class_names[i] for i in split.targets] == ['lynx', 'lynx', 'red deer', 'lynx']
    assert [split.dataset.load(i).size for i in range(4)] == [(10, 10), (10, 10), (3, 4), (14, 4)]
    assert split.dataset.base.reader.groups == ('33', '33', 'p/3.png', 'p/3.png')
    assert len(set(split.dataset.locations)) == 4


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'images': [{'id': 1}]}, 'Image 1 of .* lacks "file_name"'),
        ({'images': {}}, '"images"'),
        ({'images': [COCO['images'][0]] * 2}, "Image 2 of .* has the id 'u1' of another"),
        ({'categories': [{'id': 1, 'name': 'x'}] * 2}, 'Category 2'),
        ({'categories': [{'id': 1, 'name': ' '}]}, 'Category 1 of .* has no name'),
        ({'categories': []}, 'Annotation 1 of .* is of the category 7'),
        ({'annotations': []}, 'no annotated image'),
        ({'annotations': COCO['annotations'][:2]}, 'Every image of .* several classes'),
        ({'annotations': [{'image_id': 'u1', 'category_id': 7, 'bbox': [1, 2, 'x', 3]}]}, 'Annotation 1 .*"bbox"'),
        ({'annotations': [{'image_id': [], 'category_id': 7}]}, 'Annotation 1 .*"image_id"'),
        ({'annotations': [{'image_id': 'u1', 'category_id': 7, 'bbox': [1, 2, float('nan'), 3]}]}, '"bbox"'),
    ],
)
def test_one_sentence(write, changes, words):
    with pytest.raises(RideError, match=words) as error:
        open_train_split(None, list_file=write(**changes))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'path', ['../secret.png', '/etc/secret.png', 'C:\\secret.png', '..\\secret.png', 'https://x/y.png']
)
def test_no_path_leads_out_of_the_folder(write, path, tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'secret.png').touch()
    file = write(images=[{'id': 'u1', 'file_name': path}])
    with pytest.raises(RideError, match=r'outside of|address'):
        open_train_split(tmp_path / 'data', list_file=file)


def test_absolute_paths_within_the_folder(write, photos, tmp_path):
    photos('p/1.png')
    file = write(images=[{'id': 'u1', 'file_name': str(tmp_path / 'p/1.png')}])
    assert open_train_split(tmp_path, list_file=file).class_names == ('lynx',)
