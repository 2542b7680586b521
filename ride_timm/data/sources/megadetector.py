"""Results of MegaDetector: where on camera-trap images animals are, without saying which.

Form: https://github.com/agentmorris/MegaDetector/tree/main/megadetector/api/batch_processing#batch-processing-api-output-format
"""

from typing import Any

from ride_timm.data.sources.rows import Box, ImageRow, Listed
from ride_timm.errors import RideError
from ride_timm.records.schema import OBJECT, TEXT, Kind, Schema, check_record, list_of, nullable, number

__all__ = ['read_megadetector']

_ANIMAL = 'animal'
_FILE: Schema = {'images': list_of(OBJECT, longest=50_000_000), 'detection_categories': OBJECT}
_IMAGE: Schema = {'file': TEXT, 'detections': nullable(list_of(OBJECT))}
_DETECTION: Schema = {
    'category': Kind('a text or a whole number', lambda value: isinstance(value, (str, int))),
    'conf': number(0.0, 1.0),
    'bbox': list_of(number(-1e3, 1e3), 4, 4),
}


def read_megadetector(content: dict[str, Any], file: str, labelled: bool = True) -> Listed:
    """The animals on each image; persons and vehicles are passed over.

    Args:
        content: The file's.
        file: Its name, for messages.
        labelled: Labels are needed.

    Returns:
        A row for each animal, and one without a box for an image without.

    Raises:
        RideError: Labels are needed, or a field is missing or of another kind.
    """
    if labelled:
        raise RideError(
            f'{file} holds results of MegaDetector, which name no species; give a table with labels, and this file '
            f'with --crop {file}.'
        )
    check_record(content, _FILE, file)
    animals = {key for key, name in content['detection_categories'].items() if name == _ANIMAL}
    rows = []
    for line, image in enumerate(content['images'], 1):
        place = f'Image {line} of {file}'
        check_record(image, _IMAGE, place, ('file',))
        boxes: list[Box] = []
        for detection in image.get('detections') or ():
            check_record(detection, _DETECTION, place, ('category', 'conf', 'bbox'))
            x, y, width, height = map(float, detection['bbox'])
            if str(detection['category']) in animals and width > 0 and height > 0:
                boxes.append(Box(x, y, width, height, relative=True, confidence=float(detection['conf'])))
        rows += [ImageRow(image['file'].strip(), '', line, box=box) for box in boxes or (None,)]
    if not rows:
        raise RideError(f'{file} names no image; give results of MegaDetector with some.')
    return Listed(rows, "MegaDetector's results", 'image', contained=True, many=True)
