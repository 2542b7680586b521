"""Parts of images as images of their own: which boxes are taken, and the pixels in one."""

import io
from collections.abc import Mapping, Sequence
from typing import IO

import numpy as np
from PIL import Image

from ride_timm.data.images import open_picture, upright
from ride_timm.data.sources.rows import Box, ImageRow

__all__ = ['cut_out', 'one_label_each', 'part_name', 'with_boxes']


def with_boxes(
    rows: Sequence[ImageRow], boxes: Mapping[int, Sequence[Box]] | None, confidence: float
) -> tuple[list[int], list[Box]]:
    """Choose the boxes that stand for the rows.

    Args:
        rows: N rows.
        boxes: The boxes of each row by its number, as a detector found them; None takes the rows' own.
        confidence: Boxes of a lower one are left out.

    Returns:
        The number of the row of each box, and the boxes; a row without a box has none.
    """
    found = [
        (index, box)
        for index, row in enumerate(rows)
        for box in (([row.box] if row.box else []) if boxes is None else boxes.get(index, ()))
        if box.confidence >= confidence
    ]
    return [index for index, _ in found], [box for _, box in found]


def one_label_each(rows: Sequence[ImageRow]) -> tuple[list[ImageRow], int]:
    """A row for each whole image, of images with a row for each thing seen on them.

    Returns:
        The rows, without boxes, of the images whose rows have one label, and the number of images that have several.
    """
    labels: dict[str, set[str]] = {}
    first: dict[str, ImageRow] = {}
    for row in rows:
        labels.setdefault(row.path, set()).add(row.label)
        first.setdefault(row.path, row._replace(box=None))
    kept = [row for path, row in first.items() if len(labels[path]) == 1]
    return kept, len(first) - len(kept)


def part_name(path: str, box: Box | None) -> str:
    """What a part of an image is called, as a media fragment: `a.jpg#xywh=10,20,30,40`, or in percent of the sides.

    Args:
        path: The image's name.
        box: The part; None: all of it.
    """
    if box is None:
        return path
    scale, unit = (100, 'percent:') if box.relative else (1, '')
    return f'{path}#xywh={unit}{",".join(f"{scale * side:g}" for side in box[:4])}'


def cut_out(file: IO[bytes], box: Box) -> IO[bytes]:
    """The part of a picture that a box shows, as a picture file of the same kind of pixels.

    Args:
        file: The picture, which is closed.
        box: The part, of the upright picture; what lies outside of that is cut off.

    Returns:
        A TIFF file.

    Raises:
        ValueError: The box lies outside.
        UnidentifiedImageError: The file is no picture.
    """
    with file, open_picture(file) as opened:
        image = upright(opened)
        width, height = image.size
        across, down = (width, height) if box.relative else (1, 1)
        left, top = max(round(box.x * across), 0), max(round(box.y * down), 0)
        right = min(max(round((box.x + box.width) * across), left + 1), width)
        bottom = min(max(round((box.y + box.height) * down), top + 1), height)
        if left >= right or top >= bottom:
            raise ValueError(f'the box {part_name("", box)[1:]} lies outside of its {width} x {height} pixels')
        part = image.crop((left, top, right, bottom))
        if part.mode == 'I' and opened.format in ('PNG', 'PPM'):  # 16 bits, which these formats' readers widen
            part = Image.fromarray(np.asarray(part).astype(np.uint16))
        elif part.has_transparency_data:
            part = part.convert('RGBA')
        elif part.mode == 'P':
            part = part.convert('RGB')
    cut = io.BytesIO()
    part.save(cut, 'TIFF')
    cut.seek(0)
    return cut
