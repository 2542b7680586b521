"""COCO's JSON, and COCO Camera Traps, which adds places and sequences.

Forms: https://cocodataset.org/#format-data and
https://lila.science/coco-camera-traps, a part of https://github.com/agentmorris/MegaDetector.
"""

from collections import Counter
from typing import Any

from ride_timm.data.sources.rows import Box, ImageRow, Listed
from ride_timm.errors import RideError
from ride_timm.escaping import printable
from ride_timm.records.schema import OBJECT, TEXT, Kind, Schema, check_record, list_of, nullable, number, shown

__all__ = ['ID', 'read_coco']

_MANY = 50_000_000  # what a file of the largest size can hold
ID = Kind('a whole number or a text', lambda value: isinstance(value, (int, str)) and not isinstance(value, bool))
_COCO: Schema = {name: list_of(OBJECT, longest=_MANY) for name in ('images', 'annotations', 'categories')}
_CATEGORY: Schema = {'id': ID, 'name': TEXT}
_IMAGE: Schema = {'id': ID, 'file_name': TEXT, 'location': nullable(ID), 'seq_id': nullable(ID)}
_ANNOTATION: Schema = {'image_id': ID, 'category_id': ID, 'bbox': nullable(list_of(number(-1e9, 1e9), 0, 4))}


def read_coco(content: dict[str, Any], file: str, labelled: bool = True) -> Listed:
    """The annotations of a COCO file, in the order of the images; the category's name is the label.

    The group is `location`, or `seq_id` where there is none.

    Args:
        content: The file's.
        file: Its name, for messages.
        labelled: Leave out images without an annotation.

    Returns:
        A row for each annotation, with its `bbox` where it has one.

    Raises:
        RideError: A field is missing or of another kind, or an id is not there or twice.
    """
    check_record(content, _COCO, file)
    names: dict[Any, str] = {}
    for i, category in enumerate(content['categories'], 1):
        check_record(category, _CATEGORY, f'Category {i} of {file}', ('id', 'name'))
        name = category['name'].strip()
        if category['id'] in names or not name:
            what = 'has no name' if not name else f'has the id {shown(category["id"])} of another'
            raise RideError(f'Category {i} of {file} {what}; give each category an id and a name of its own.')
        names[category['id']] = name
    images: dict[Any, dict[str, Any]] = {}
    for i, image in enumerate(content['images'], 1):
        check_record(image, _IMAGE, f'Image {i} of {file}', ('id', 'file_name'))
        if image['id'] in images:
            raise RideError(f'Image {i} of {file} has the id {shown(image["id"])} of another; give each its own.')
        images[image['id']] = image
    seen: dict[Any, list[tuple[str, Box | None]]] = {key: [] for key in images}
    strays = 0
    for i, annotation in enumerate(content['annotations'], 1):
        check_record(annotation, _ANNOTATION, f'Annotation {i} of {file}', ('image_id', 'category_id'))
        if annotation['category_id'] not in names:
            raise RideError(
                f'Annotation {i} of {file} is of the category {shown(annotation["category_id"])}, which is none of its '
                f'{len(names)} categories; add it to "categories".'
            )
        found = seen.get(annotation['image_id'])
        strays += found is None
        if found is not None:
            found.append((names[annotation['category_id']], _box(annotation.get('bbox'))))
    rows = []
    for line, (key, image) in enumerate(images.items(), 1):
        place = image.get('location') if image.get('location') is not None else image.get('seq_id')
        group = None if place is None else str(place)
        for label, box in seen[key] or ([] if labelled else [('', None)]):
            rows.append(ImageRow(image['file_name'].strip(), label if labelled else '', line, None, group, box))
    notes = []
    empty = sum(not found for found in seen.values())
    if empty and labelled:
        notes.append(f'{empty} of {len(images)} images have no annotation and are left out')
    if strays:
        notes.append(f'{strays} annotations are of images that are not listed and left out')
    if not rows:
        raise RideError(f'{file} has no annotated image; give a COCO file with "images" and "annotations".')
    twice = [name for name, number in Counter(names.values()).items() if number > 1]
    if twice:
        notes.append(f'several categories are called {printable(min(twice))} and count as one class')
    return Listed(rows, 'COCO annotations', 'image', tuple(notes), contained=True, many=True)


def _box(bbox: list[float] | None) -> Box | None:
    if not bbox or len(bbox) != 4 or bbox[2] <= 0 or bbox[3] <= 0:
        return None
    x, y, width, height = map(float, bbox)
    return Box(x, y, width, height)
