import io

import numpy as np
import pytest
from PIL import Image

from ride_timm.data import ImageSet, check_images, convert_image, find_unreadable, open_image, open_train_split
from ride_timm.data.images import image_mode
from ride_timm.errors import RideError


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
    assert [path for path, _ in find_unreadable(split, limit=1, threads=1)] == [found[0][0]]


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
                RideError, match=r'^the image .*/train/[ab]/.* cannot be read \(.*\): remove or replace it$'
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


def test_open_image_decodes_completely_before_the_file_closes(tmp_path):
    path = tmp_path / 'x.png'
    Image.new('L', (4, 4), 9).save(path)
    with path.open('rb') as file:
        image = open_image(file)
    assert image.mode == 'RGB'
    assert np.asarray(image).min() == 9


def test_channels():
    assert (image_mode(1), image_mode(3)) == ('L', 'RGB')
    with pytest.raises(RideError, match='not 4'):
        image_mode(4)


def test_sources_without_files_are_named_by_row():
    base = [(Image.new('L', (2, 2), i), 0) for i in range(3)]
    images = ImageSet(base, np.zeros(2, dtype=np.int64), [2, 0])
    assert images.filenames() == ['number 2 of list', 'number 0 of list']
    assert np.asarray(images.load(0)).max() == 2
    images.transform = np.asarray
    assert images[1][0].shape == (2, 2, 3)
