import pytest

from ride_timm.data.likely_groups import likely_groups


def names_of(counts, name):
    """A path for each of so many images of each class, and the classes."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    numbers = [number for count in counts for number in range(count)]
    return [f'class{label}/{name(label, number)}' for label, number in zip(labels, numbers, strict=True)], labels


def test_tracks_that_each_class_counts():
    """As of traffic signs: track 0 of one class is not that of another."""
    names, labels = names_of((60, 40, 10), lambda label, number: f'{number // 5:05d}_{number % 5:05d}.ppm')
    found = likely_groups(names, labels)
    assert (found.number, found.images) == (12 + 8 + 2, 110)
    assert found.pattern == r'(.+)_\d+\.\w+$'
    assert found.groups[-1] == 'class2/00001'


def test_places_that_several_classes_share():
    names, labels = names_of((60, 40, 20), lambda label, number: f'S{number % 12:02d}-{label}{number:04d}')
    found = likely_groups(names, labels)
    assert (found.number, found.groups[0]) == (12, 'S00')
    assert found.pattern == r'([^/]+)-\d+(\.\w+)?$'


@pytest.mark.parametrize(
    'name',
    [
        lambda label, number: f'image_{number:04d}.jpg',
        lambda label, number: f'{number:04d}.jpg',
        lambda label, number: f'IMG-{number}.jpg',
        lambda label, number: f'n0{label}_{number}.JPEG',
        lambda label, number: f'{("goldfish", "carassius_auratus")[number % 2]}_s_{number:06d}.png',
        lambda label, number: f'{2007 + number % 5}_{number:06d}.jpg',
        lambda label, number: f'{number * 7919 % 1000003}_{number}.png',
        lambda label, number: 'x.png',
    ],
    ids=['image', 'number', 'camera', 'ImageNet', 'CIFAR', 'year', 'unique', 'same'],
)
def test_names_without_groups(name):
    assert likely_groups(*names_of((60, 40, 10), name)) is None
    assert likely_groups([], []) is None
