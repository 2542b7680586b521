import io

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base

from ride_timm.data import Box, Crop, hold_out, open_train_split
from ride_timm.data.images import open_image
from ride_timm.data.sources.crops import cut_out
from ride_timm.errors import RideError


def cut(image, box, form='PNG', **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return cut_out(file, box)


def picture(mode='RGB', size=(12, 8)):
    channels = len(Image.new(mode, (1, 1)).getbands())
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], channels), np.uint8)
    return Image.fromarray(values.squeeze(), mode)


@pytest.mark.filterwarnings('ignore:.*mode:DeprecationWarning')
@pytest.mark.parametrize(
    ('mode', 'form'), [('RGB', 'PNG'), ('L', 'PNG'), ('RGBA', 'PNG'), ('LA', 'PNG'), ('CMYK', 'TIFF')]
)
def test_a_part_has_the_pixels_of_the_image(mode, form):
    image = picture(mode)
    whole = io.BytesIO()
    image.save(whole, form)
    whole.seek(0)
    for box, edges in ((Box(2, 1, 5, 4), (2, 1, 7, 5)), (Box(0.5, 0.25, 0.25, 0.5, True), (6, 2, 9, 6))):
        part = open_image(cut(image, box, form))
        whole.seek(0)
        assert np.array_equal(np.asarray(part), np.asarray(open_image(whole).crop(edges)))


def test_parts_of_palettes_and_of_16_bits():
    palette = picture().quantize(8)
    part = open_image(cut(palette, Box(1, 1, 4, 4)))
    assert np.array_equal(np.asarray(part), np.asarray(palette.convert('RGB').crop((1, 1, 5, 5))))
    deep = np.arange(96, dtype=np.uint16).reshape(8, 12) * 600
    for form in ('PNG', 'PPM', 'TIFF'):
        part = open_image(cut(Image.fromarray(deep), Box(2, 1, 5, 4), form), 'L', (0, 60000))
        expected = (deep[1:5, 2:7].astype(np.float32) * (255 / 60000)).round()
        assert np.array_equal(np.asarray(part), expected.astype(np.uint8))


def test_boxes_are_of_the_upright_image():
    image = picture()
    exif = Image.Exif()
    exif[Base.Orientation] = 6
    part = open_image(cut(image, Box(1, 2, 3, 4), exif=exif.tobytes()))
    assert np.array_equal(np.asarray(part), np.asarray(image.transpose(Image.Transpose.ROTATE_270).crop((1, 2, 4, 6))))


def test_boxes_are_cut_at_the_edges():
    image = picture()
    assert open_image(cut(image, Box(-5, 6, 100, 100))).size == (12, 2)
    assert open_image(cut(image, Box(3.2, 3.2, 0.1, 0.1))).size == (1, 1)
    with pytest.raises(ValueError, match='lies outside of its 12 x 8 pixels'):
        cut(image, Box(12, 0, 5, 5))


def test_a_box_that_lies_outside_is_one_sentence(photos, tmp_path):
    photos('a.png')
    (tmp_path / 'coco.json').write_text(
        '{"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 1, "name": "x"}], "annotations": '
        '[{"image_id": 1, "category_id": 1, "bbox": [50, 50, 2, 2]}, '
        '{"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}]}'
    )
    split = open_train_split(None, list_file=tmp_path / 'coco.json', crop=Crop('boxes'))
    with pytest.raises(RideError, match=r'a.png#xywh=50,50,2,2 cannot be read .*outside'):
        split.dataset.load(0)
    with pytest.raises(RideError, match='1 group and'):  # parts of one image stay together
        hold_out(split, 0.5)


def test_a_table_without_boxes(photos, tmp_path):
    photos('a.png')
    (tmp_path / 't.csv').write_text('image,label\na.png,x\n')
    with pytest.raises(RideError, match='no box'):
        open_train_split(None, list_file=tmp_path / 't.csv', crop=Crop('boxes'))
