from PIL import ExifTags, Image

from ride_timm.data.shots import BURST_SECONDS, Shot, read_shot, same_bursts


def photograph(path, taken, serial='7'):
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Model] = 'Reconyx', 'HC500'
    own = exif.get_ifd(ExifTags.IFD.Exif)
    own[ExifTags.Base.DateTimeOriginal], own[ExifTags.Base.BodySerialNumber] = taken, serial
    Image.new('RGB', (8, 8)).save(path, exif=exif)
    with Image.open(path) as image:
        return read_shot(image)


def test_what_exif_data_say(tmp_path):
    first = photograph(tmp_path / 'a.jpg', '2021:05:04 10:11:12')
    later = photograph(tmp_path / 'b.png', '2021:05:04 10:12:12', '')
    assert (first.camera, first.serial) == ('Reconyx HC500', '7')
    assert later.taken - first.taken == 60
    assert later.serial is None
    assert photograph(tmp_path / 'c.jpg', 'yesterday') == Shot('Reconyx HC500', '7', None)
    assert photograph(tmp_path / 'd.jpg', '    :  :     :  :  ', '') is None
    assert read_shot(Image.new('RGB', (8, 8))) is None


def test_bursts_are_of_one_camera_and_moment():
    train = [Shot('A', '1', 100.0), Shot('A', '1', 50.0), None, Shot('A', '2', 300.0), Shot('A', '1', None)]
    val = [
        Shot('A', '1', 100.0 + BURST_SECONDS),
        Shot('A', '1', 52.0),
        Shot('A', '1', 106.5),
        Shot('A', '1', 300.0),
        Shot('B', '2', 300.0),
        None,
        Shot('A', '1', None),
    ]
    assert same_bursts(train, val) == {0: 0, 1: 1}


def test_a_clock_that_was_never_set():
    assert same_bursts([Shot('A', '1', 0.0)] * 60, [Shot('A', '1', 0.0)]) == {}
