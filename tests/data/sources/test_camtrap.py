"""Camtrap DP 1.0, after https://camtrap-dp.tdwg.org."""

import json
import logging

import pytest

from ride_timm.data import Box, open_train_split, read_rows
from ride_timm.errors import RideError

RESOURCES = [
    {'name': name, 'path': f'{name}.csv', 'profile': 'tabular-data-resource'}
    for name in ('deployments', 'media', 'observations')
]
MEDIA = """mediaID,deploymentID,captureMethod,timestamp,filePath,filePublic,fileName,fileMediatype
m1,d1,activityDetection,2020-08-02T05:00:00Z,media/1.jpg,true,1.jpg,image/jpeg
m2,d1,activityDetection,2020-08-02T05:00:05Z,media/2.jpg,true,2.jpg,image/jpeg
m3,d2,activityDetection,2020-08-02T05:00:05Z,media/3.jpg,true,3.jpg,image/jpeg
m4,d2,activityDetection,2020-08-02T06:00:00+02:00,media/4.mp4,true,4.mp4,video/mp4
m5,d2,timeLapse,2020-08-03T05:00:00Z,https://example.org/5,true,5.jpg,image/jpeg
m6,d2,timeLapse,2020-08-04T05:00:00Z,media/6.jpg,true,6.jpg,image/jpeg
"""
COLUMNS = (
    'observationID,deploymentID,mediaID,eventID,eventStart,eventEnd,observationLevel,observationType,scientificName,'
    'count,bboxX,bboxY,bboxWidth,bboxHeight\n'
)
OBSERVATIONS = f"""{COLUMNS}
o1,d1,,e1,2020-08-02T05:00:00Z,2020-08-02T05:00:05Z,event,animal,Anas strepera,2,,,,
o2,d2,m3,e2,2020-08-02T05:00:05Z,2020-08-02T05:00:05Z,media,animal,Rattus norvegicus,1,0.25,0.5,0.5,0.5
o3,d2,m5,e3,2020-08-03T05:00:00Z,2020-08-03T05:00:00Z,media,animal,Ardea,1,,,,
o4,d2,m5,e3,2020-08-03T05:00:00Z,2020-08-03T05:00:00Z,media,animal,Ardea cinerea,1,,,,
o5,d2,m6,e4,2020-08-04T05:00:00Z,2020-08-04T05:00:00Z,media,blank,,,,,,
o6,d2,m6,e4,2020-08-04T05:00:00Z,2020-08-04T05:00:00Z,media,animal,,1,,,,
"""


@pytest.fixture
def package(tmp_path):
    def write(resources=RESOURCES, **tables):
        tables = {'media': MEDIA, 'observations': OBSERVATIONS} | tables
        for name, text in tables.items():
            (tmp_path / f'{name}.csv').write_text(text)
        file = tmp_path / 'datapackage.json'
        file.write_text(json.dumps({'name': 'by-hand', 'resources': resources}))
        return file

    return write


SEEN = [
    ('media/1.jpg', 'Anas strepera', 'd1', None),
    ('media/2.jpg', 'Anas strepera', 'd1', None),
    ('media/3.jpg', 'Rattus norvegicus', 'd2', Box(0.25, 0.5, 0.5, 0.5, True)),
    ('5.jpg', 'Ardea', 'd2', None),
    ('5.jpg', 'Ardea cinerea', 'd2', None),
]


@pytest.mark.parametrize('folder', [False, True])
def test_animals_are_rows(package, folder, caplog):
    file = package()
    with caplog.at_level(logging.INFO):
        rows = read_rows(file.parent if folder else file).rows
    assert [(row.path, row.label, row.group, row.box) for row in rows] == SEEN
    for said in ('1 videos', '1 blank', '1 animal without a name', '1 of 5 images show no animal'):
        assert said in caplog.text
    rows = read_rows(file, labelled=False).rows
    assert len({row.path for row in rows}) == 5
    assert {row.label for row in rows} == {''}
    assert Box(0.25, 0.5, 0.5, 0.5, True) in {row.box for row in rows}


def test_media_that_name_their_event(package):
    media = MEDIA.replace('fileMediatype\n', 'fileMediatype,eventID\n').replace('image/jpeg\n', 'image/jpeg,e1\n')
    events = OBSERVATIONS.replace('2020-08-02T05:00:00Z,2020-08-02T05:00:05Z,event', ',,event')
    rows = read_rows(package(media=media.replace('video/mp4', 'video/mp4,'), observations=events)).rows
    assert [row.label for row in rows].count('Anas strepera') == 5


@pytest.mark.parametrize('folder', [False, True])
def test_images_of_a_package(package, photos, folder):
    photos('media/1.jpg', 'media/2.jpg', 'media/3.jpg', 'media/5.jpg')
    file = package()
    split = open_train_split(None, list_file=file.parent if folder else file)
    assert split.dataset.filenames() == ['media/1.jpg', 'media/2.jpg', 'media/3.jpg']  # two species on number 5
    assert [split.class_names[i] for i in split.targets] == ['Anas strepera', 'Anas strepera', 'Rattus norvegicus']
    assert split.dataset.base.reader.groups == ('d1', 'd1', 'd2')


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'resources': RESOURCES[:2]}, '0 resources called "observations"'),
        ({'resources': [{'name': 'media', 'path': '../media.csv'}]}, 'outside of the package'),
        ({'resources': [{'name': 'media', 'path': '/etc/passwd'}]}, 'outside of the package'),
        ({'resources': [{'name': 'media', 'path': 'https://x/media.csv'}]}, 'outside of the package'),
        ({'resources': [{'name': 'media', 'path': ['a', 'b']}]}, '"path"'),
        ({'media': 'mediaID,file\nm1,x\n'}, 'lacks the column filePath'),
        ({'observations': COLUMNS + 'o1,d1,m1,e1,,,media,animal,Anas,1,0.5,x,1,1\n'}, 'has the box 0.5, x'),
        ({'observations': COLUMNS + 'o1,d1,,e1,,,event,animal,Anas,1,,,,\n'}, 'no eventStart and eventEnd'),
        ({'observations': COLUMNS + 'o1,d1,m1,e1\n'}, 'Line 2 .* 4 fields'),
        ({'observations': COLUMNS}, 'no observation of an animal'),
    ],
)
def test_one_sentence(package, changes, words):
    with pytest.raises(RideError, match=words) as error:
        read_rows(package(**changes))
    assert '\n' not in str(error.value)
