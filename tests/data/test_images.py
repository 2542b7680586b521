import io

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from ride_timm.data import ImageSet, check_images, convert_image, find_unreadable, open_image, open_train_split
from ride_timm.data.images import image_mode, image_types, measure_range
from ride_timm.data.scan import scan_images
from ride_timm.errors import RideError
from ride_timm.records.training_record import TrainingRecord


@pytest.fixture
def folder_with_broken_files(make_folder):
    root = make_folder({'train': {'a': 3, 'b': 3}}, size=32)
    jpeg = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(jpeg, 'JPEG')
    (root / 'train/a/truncated.jpg').write_bytes(jpeg.getvalue()[: len(jpeg.getvalue()) // 2])
    png = (root / 'train/a/0.png').read_bytes()
    (root / 'train/a/truncated.png').write_bytes(png[: len(png) // 2])
    (root / 'train/b/empty.png').write_bytes(b'')
    (root / 'train/b/text.jpg').write_text('no image at all')
    return root


BROKEN = ['truncated.jpg', 'truncated.png', 'empty.png', 'text.jpg']


def test_every_unreadable_file_is_found(folder_with_broken_files):
    split = open_train_split(folder_with_broken_files)
    found = find_unreadable(split)
    assert [path.rpartition('/')[2] for path, _ in found] == BROKEN
    assert 'truncated' in found[0][1]
    assert found[2][1] == found[3][1] == 'not an image, or an empty file'


def test_check_names_the_first_files_and_the_number(folder_with_broken_files):
    with pytest.raises(
        RideError, match=r'^4 of 10 images of .*train cannot be read: .*truncated.jpg.* and 1 more'
    ) as e:
        check_images(open_train_split(folder_with_broken_files))
    assert '\n' not in str(e.value)


def test_broken_image_is_never_replaced_by_its_neighbour(folder_with_broken_files):
    split = open_train_split(folder_with_broken_files)
    bad = {i for i in range(len(split.dataset)) if split.dataset.filename(i, basename=True) in BROKEN}
    assert len(bad) == len(BROKEN)
    for index in range(len(split.dataset)):
        if index in bad:
            with pytest.raises(
                RideError, match=r'^The image .*/train/[ab]/.* cannot be read \(.*\); remove or replace it.$'
            ):
                split.dataset[index]
        else:
            assert split.dataset[index][1] == split.targets[index]


def test_readable_split_passes(make_folder):
    split = open_train_split(make_folder({'train': {'a': 2, 'b': 1}}))
    assert find_unreadable(split) == []
    check_images(split)


def test_unusual_image_types_are_read(tmp_path):
    folder = tmp_path / 'train/a'
    folder.mkdir(parents=True)
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    colour = Image.fromarray(np.stack([grey, grey, grey], 2))
    colour.convert('CMYK').save(folder / 'cmyk.jpg')
    palette = colour.convert('P')
    palette.save(folder / 'palette.png')
    palette.save(folder / 'transparent_palette.png', transparency=bytes(range(256)))
    colour.convert('RGBA').save(folder / 'rgba.png')
    Image.fromarray(grey).convert('LA').save(folder / 'la.png')
    Image.fromarray(grey > 32).save(folder / 'one_bit.png')
    Image.fromarray(grey.astype(np.uint16) * 256 + 7).save(folder / 'sixteen_bit.png')
    split = open_train_split(tmp_path)
    assert len(split.dataset) == 7
    check_images(split)
    assert {split.dataset[i][0].mode for i in range(7)} == {'RGB'}


def test_sixteen_bit_grey_keeps_its_upper_byte():
    values = np.array([[0, 255, 256], [32768, 40000, 65535]], dtype=np.uint16)
    image = convert_image(Image.fromarray(values), 'L')
    assert np.array_equal(np.asarray(image), values // 256)


def test_sixteen_bit_grey_is_scaled_by_the_range_of_its_data_set(make_folder):
    root = make_folder({'train': {'a': 2, 'b': 1}})
    values = np.linspace(100, 4000, 64 * 64).astype(np.uint16).reshape(64, 64)
    values[0, 0] = 65535  # a hot pixel
    for name in ('a/0.png', 'a/1.tiff'):
        Image.fromarray(values).save(root / 'train' / name)
    (root / 'train/a/1.png').unlink()
    images = open_train_split(root, in_chans=1).dataset
    low, high = measure_range(images)
    assert low == pytest.approx(100, abs=10)
    assert high == pytest.approx(4000, abs=10)
    images.pixel_range = low, high
    pixels = [np.asarray(images.load(index)) for index in range(2)]
    assert np.array_equal(pixels[0], pixels[1])
    assert pixels[0].max() == 255
    assert pixels[0].mean() == pytest.approx(127.5, abs=2)
    eight_bits = images.load(2)
    images.pixel_range = None
    assert np.array_equal(images.load(2), eight_bits)


def test_a_range_is_measured_where_there_are_16_bits_only(make_folder):
    assert measure_range(open_train_split(make_folder({'train': {'a': 2, 'b': 1}})).dataset) is None


@pytest.mark.parametrize('entry', ['x', [1], [2, 1], [0, 70000], [0.0, 9.0], [None, 3], {}, True])
def test_a_stored_range_is_checked(entry):
    assert TrainingRecord.from_json({}, 'x').pixel_range is None
    assert TrainingRecord.from_json({'pixel_range': [3, 9]}, 'x').pixel_range == (3, 9)
    with pytest.raises(RideError, match='pixel_range'):
        TrainingRecord.from_json({'pixel_range': entry}, 'x')


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('kind', ['PNG', 'JPEG', 'TIFF', 'WEBP'])
def test_photographs_stand_upright(orientation, kind):
    pixels = np.zeros((16, 32, 3), dtype=np.uint8)
    pixels[:8, :8], pixels[8:, 24:] = (255, 0, 0), (0, 0, 255)
    upright = Image.fromarray(pixels)
    transposed = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # how a camera that was held so stores it
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(transposed[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    stored.save(file, kind, exif=exif, **({'lossless': True} if kind == 'WEBP' else {}))
    file.seek(0)
    found = np.asarray(open_image(file)).astype(int)
    assert np.abs(found - pixels).mean() < (10 if kind == 'JPEG' else 1e-9)


def test_damaged_exif_data_do_not_hide_an_image():
    file = io.BytesIO()
    Image.new('RGB', (8, 8), 'red').save(file, 'PNG', exif=b'Exif\0\0II*\0' + b'\xff' * 20)
    file.seek(0)
    assert np.asarray(open_image(file))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize('mode', ['RGBA', 'LA', 'P', 'L', 'RGB'])
def test_transparent_pixels_are_white(mode):
    grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    image = grey.convert(mode if mode != 'P' else 'L').convert(mode)
    file = io.BytesIO()
    if mode in ('RGBA', 'LA'):
        image.putalpha(Image.fromarray(np.where(np.arange(64).reshape(8, 8) == 5, 0, 255).astype(np.uint8)))
        image.save(file, 'PNG')
    else:
        image.save(file, 'PNG', transparency=5 if mode != 'RGB' else (5, 5, 5))
    file.seek(0)
    found = np.asarray(open_image(file))[..., 0].ravel()
    assert found[5] == 255
    assert np.array_equal(np.delete(found, 5), np.delete(np.arange(64), 5))


def test_half_transparent_pixels_mix_with_white():
    assert convert_image(Image.new('RGBA', (1, 1), (0, 0, 0, 51))).getpixel((0, 0)) == (204, 204, 204)


def test_plain_images_keep_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    assert np.array_equal(open_image(file), pixels)


def test_programs_in_files_are_not_run():
    """Pillow hands EPS files, which are programs, to Ghostscript where there is one."""
    file = io.BytesIO(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n')
    with pytest.raises(UnidentifiedImageError):
        open_image(file)
    assert not {'.eps', '.ps', '.mpg', '.h5'} & set(image_types())
    images = ImageSet([], np.zeros(1, dtype=np.int64), [0])
    images.open = lambda index: file
    file.seek(0)
    (facts,) = scan_images(images)
    assert facts.problem == 'not an image, or an empty file'


def test_open_image_decodes_completely_before_the_file_closes(tmp_path):
    path = tmp_path / 'x.png'
    Image.new('L', (4, 4), 9).save(path)
    with path.open('rb') as file:
        image = open_image(file)
    assert image.mode == 'RGB'
    assert np.asarray(image).min() == 9


def test_channels():
    assert [image_mode(channels) for channels in (1, 3, 4)] == ['L', 'RGB', 4]


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    file.seek(0)
    return file


BANDS = np.random.default_rng(0).integers(0, 256, (6, 8, 5), dtype=np.uint8)


def test_arrays_keep_their_channels():
    expected = BANDS.transpose(2, 0, 1)
    for array in (BANDS, expected, np.asfortranarray(BANDS)):
        assert np.array_equal(open_image(saved(array), 5), expected)
    deep = BANDS.astype(np.uint16) * 16
    assert np.array_equal(open_image(saved(deep), 5, (0, 255 * 16)), expected)
    assert np.array_equal(open_image(saved(BANDS[..., :3])), BANDS[..., :3])
    assert open_image(saved(BANDS[..., 0]), 'L').mode == 'L'


def test_four_channels_of_a_picture_are_kept_as_they_are():
    file = io.BytesIO()
    Image.fromarray(BANDS[..., :4]).save(file, 'TIFF')
    file.seek(0)
    assert np.array_equal(open_image(file, 4), BANDS[..., :4].transpose(2, 0, 1))


@pytest.mark.parametrize(
    ('array', 'message'),
    [(BANDS, '--in-chans'), (BANDS.astype(np.float32), 'float32'), (np.array([{}], dtype=object), 'object')],
)
def test_arrays_that_do_not_fit(array, message):
    with pytest.raises(ValueError, match=message):
        open_image(saved(array), 4)


def test_a_header_that_promises_more_than_the_file_holds():
    content = saved(BANDS).getvalue().replace(b'(6, 8, 5), ', b'(6, 8, 5000000000), ')
    with pytest.raises(ValueError, match='shape'):
        open_image(io.BytesIO(content), 5)


def test_arrays_next_to_pictures_are_none(make_folder):
    root = make_folder({'train': {'a': 2, 'b': 1}})
    np.save(root / 'train/a/mask.npy', BANDS)
    assert open_train_split(root).class_counts.tolist() == [2, 1]


def test_sources_without_files_are_named_by_row():
    base = [(Image.new('L', (2, 2), i), 0) for i in range(3)]
    images = ImageSet(base, np.zeros(2, dtype=np.int64), [2, 0])
    assert images.filenames() == ['number 2 of list', 'number 0 of list']
    assert np.asarray(images.load(0)).max() == 2
    images.transform = np.asarray
    assert images[1][0].shape == (2, 2, 3)
