"""MegaDetector's results, after its "batch processing API output format", 1.5."""

import json

import pytest

from ride_timm.data import Box, Crop, open_train_split, read_rows
from ride_timm.errors import RideError

RESULTS = {
    'info': {'detector': 'md_v5a.0.0.pt', 'format_version': '1.5'},
    'detection_categories': {'1': 'animal', '2': 'person', '3': 'vehicle'},
    'images': [
        {
            'file': 'site/a.png',
            'detections': [
                {'category': '1', 'conf': 0.9, 'bbox': [0.0, 0.0, 0.5, 1.0]},
                {'category': '1', 'conf': 0.3, 'bbox': [0.5, 0.5, 0.25, 0.5]},
                {'category': '2', 'conf': 0.95, 'bbox': [0.1, 0.1, 0.5, 0.5]},
                {'category': '1', 'conf': 0.05, 'bbox': [0.9, 0.9, 0.1, 0.1]},
            ],
        },
        {'file': 'site/b.png', 'detections': []},
        {'file': 'site/broken.png', 'detections': None, 'failure': 'Failure image access'},
        {'file': 'site/c.png', 'detections': [{'category': '1', 'conf': 0.8, 'bbox': [0, 0, 1, 1]}]},
    ],
}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        file = tmp_path / 'md.json'
        file.write_text(json.dumps({**RESULTS, **changes}))
        return file

    return write


def test_animals_are_rows(write):
    rows = read_rows(write(), labelled=False).rows
    assert [(row.path, row.line, row.box) for row in rows] == [
        ('site/a.png', 1, Box(0, 0, 0.5, 1, True, 0.9)),
        ('site/a.png', 1, Box(0.5, 0.5, 0.25, 0.5, True, 0.3)),
        ('site/a.png', 1, Box(0.9, 0.9, 0.1, 0.1, True, 0.05)),
        ('site/b.png', 2, None),
        ('site/broken.png', 3, None),
        ('site/c.png', 4, Box(0, 0, 1, 1, True, 0.8)),
    ]


@pytest.mark.parametrize(('confidence', 'boxes'), [(0.2, 3), (0.5, 2), (0.0, 4)])
def test_boxes_for_the_labels_of_a_table(write, photos, tmp_path, confidence, boxes):
    photos('site/a.png', 'site/b.png', 'site/c.png')
    table = tmp_path / 'labels.csv'
    table.write_text('file,species\nsite/c.png,lynx\nsite/a.png,deer\nsite/b.png,lynx\n')
    split = open_train_split(None, list_file=table, crop=Crop(str(write()), confidence))
    assert split.class_counts.tolist() == [boxes - 1, 1]
    assert split.dataset.filename(0) == 'site/c.png#xywh=percent:0,0,100,100'
    assert split.dataset.load(1).size == (10, 10)
    with pytest.raises(RideError, match=r'no box of confidence 0.99'):
        open_train_split(None, list_file=table, crop=Crop(str(write()), 0.99))


def test_it_has_no_labels(write):
    with pytest.raises(RideError, match='--crop'):
        read_rows(write())


@pytest.mark.parametrize(
    'images',
    [
        [],
        [{'detections': []}],
        [{'file': 'a', 'detections': [{'category': '1', 'conf': 2, 'bbox': [0, 0, 1, 1]}]}],
        [{'file': 'a', 'detections': [{'category': '1', 'conf': 0.5, 'bbox': [0, 0, 1]}]}],
        [{'file': 'a', 'detections': [{'category': '1', 'conf': 0.5}]}],
        ['a'],
    ],
)
def test_one_sentence(write, images):
    with pytest.raises(RideError) as error:
        read_rows(write(images=images), labelled=False)
    assert '\n' not in str(error.value)
