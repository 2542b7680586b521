import shutil

import numpy as np
from PIL import Image

from ride_timm.data import ImageSet, open_train_split
from ride_timm.data.scan import find_repeats, scan_images


def test_facts_of_files(make_folder):
    root = make_folder({'train': {'a': 2, 'b': 2}})
    Image.new('L', (5, 3)).save(root / 'train/a/grey.png')
    frames = [Image.new('RGB', (4, 4), (n, 0, 0)) for n in (1, 2)]
    frames[0].save(root / 'train/a/moving.png', save_all=True, append_images=frames[1:])
    (root / 'train/b/1.png').write_bytes(b'none')
    seen = []
    split = open_train_split(root)
    facts = scan_images(split.dataset, threads=2, progress=seen.append)
    by_name = dict(zip(split.dataset.filenames(), facts, strict=True))
    assert by_name['a/grey.png'][:3] == ((5, 3), 'L', False)
    assert by_name['a/0.png'][:3] == ((8, 8), 'RGB', False)
    assert by_name['a/moving.png'].animated
    assert by_name['b/1.png'].size is None
    assert by_name['b/1.png'].problem == 'not an image, or an empty file'
    assert sum(seen) == 6
    assert len({fact.digest for fact in facts}) == 6


def test_the_same_file_twice(make_folder):
    root = make_folder({'train': {'a': 3, 'b': 2}})
    shutil.copy(root / 'train/a/1.png', root / 'train/b/9.png')
    split = open_train_split(root)
    assert find_repeats(scan_images(split.dataset)) == [[1, 5]]
    for name in 'ab':  # what cannot be read is not the same image
        (root / 'train' / name / '0.png').write_bytes(b'')
    assert find_repeats(scan_images(split.dataset)) == [[1, 5]]


def test_sources_without_files():
    images = [Image.new('L', (2, 2), n) for n in (1, 2, 1)]
    facts = scan_images(ImageSet([(image, 0) for image in images], np.zeros(3, dtype=np.int64), [0, 1, 2]))
    assert [fact[:3] for fact in facts] == [((2, 2), 'L', False)] * 3
    assert find_repeats(facts) == [[0, 2]]
