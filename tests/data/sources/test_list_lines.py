import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ride_timm.data import ImageRow, read_class_names, read_rows
from ride_timm.data.sources import list_lines
from ride_timm.data.sources.list_lines import read_lines
from ride_timm.errors import RideError


@pytest.fixture
def listed(tmp_path):
    """Write a list and read it: [(path, label), ...]."""

    def read(content: str | bytes, name: str = 'list.txt'):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [(line.path, line.label) for line in read_rows(file).rows]

    return read


PAIR = [('a/x.jpg', '0'), ('b/y.JPEG', '12')]


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('list.txt', 'a/x.jpg 0\nb/y.JPEG 12\n'),
        ('list.txt', 'a/x.jpg 0\r\nb/y.JPEG 12\r\n'),
        ('list.txt', 'a/x.jpg 0\rb/y.JPEG 12'),
        ('list.txt', '\n  a/x.jpg \t 0  \n\n\nb/y.JPEG 12'),
        ('list.txt', 'a/x.jpg,0\nb/y.JPEG,12'),
        ('list.txt', 'a/x.jpg\t0\nb/y.JPEG\t12'),
        ('list.txt', 'path label\na/x.jpg 0\nb/y.JPEG 12'),
        ('list', b'\xef\xbb\xbfa/x.jpg 0\nb/y.JPEG 12'),
        ('list.csv', 'a/x.jpg,0\nb/y.JPEG,12'),
        ('list.csv', 'a/x.jpg , 0\nb/y.JPEG, 12'),
        ('list.csv', 'a/x.jpg;0\nb/y.JPEG;12'),
        ('list.csv', '"a/x.jpg","0"\n"b/y.JPEG","12"'),
        ('list.csv', 'Label,Width,Image Path\n0,640,a/x.jpg\n12,480,b/y.JPEG'),
        ('list.csv', 'label;size;file\n0;1,5;a/x.jpg\n12;2;b/y.JPEG'),
        ('list.csv', b'\xef\xbb\xbfpath,label\r\na/x.jpg,0\r\nb/y.JPEG,12'),
        ('LIST.CSV', 'path,label\na/x.jpg,0\nb/y.JPEG,12'.encode('utf-16')),
        ('list.tsv', 'label\tfile\n0\ta/x.jpg\n12\tb/y.JPEG'),
    ],
)
def test_forms_of_one_list(listed, name, content):
    assert listed(content, name) == PAIR


@pytest.mark.parametrize(
    ('name', 'line', 'pair'),
    [
        ('list.txt', 'my cat/a b.jpg 3', ('my cat/a b.jpg', '3')),
        ('list.txt', 'cats, dogs/a,b.jpg 3', ('cats, dogs/a,b.jpg', '3')),
        ('list.txt', 'my,cat.jpg,3', ('my,cat.jpg', '3')),
        ('list.csv', '"my,cat.jpg",3', ('my,cat.jpg', '3')),
        ('list.csv', 'x.jpg, "Smith, John"', ('x.jpg', 'Smith, John')),
        ('list.csv', 'x.jpg,great white shark', ('x.jpg', 'great white shark')),
        ('list.tsv', 'my cat.jpg\tgreat white shark', ('my cat.jpg', 'great white shark')),
        ('list.txt', 'Bär/große Katze.jpg Größe', ('Bär/große Katze.jpg', 'Größe')),
        ('list.txt', '猫/一.png 猫', ('猫/一.png', '猫')),
        ('list.txt', 'a\u2028b.jpg 1', ('a\u2028b.jpg', '1')),
        ('list.txt', '<script>alert(1)</script>.jpg <script>', ('<script>alert(1)</script>.jpg', '<script>')),
        ('list.txt', '#1.jpg 7', ('#1.jpg', '7')),
        ('list.txt', 'no_suffix 4', ('no_suffix', '4')),
    ],
)
def test_names(listed, name, line, pair):
    assert listed(f'{line}\n', name) == [pair]


def test_lines_keep_their_numbers(tmp_path):
    file = tmp_path / 'list.csv'
    file.write_text('path,label\n\na.jpg,x\n\n\nb.jpg,y\n')
    assert read_rows(file).rows == [ImageRow('a.jpg', 'x', 3), ImageRow('b.jpg', 'y', 6)]


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('list.txt', 'a.jpg 0\nb.jpg\n', 'Line 2 of .*"b.jpg"'),
        ('list.csv', 'a.jpg,0\nb.jpg,\n', 'Line 2 of .*"b.jpg,"'),
        ('list.csv', 'a.jpg,0\n,1\n', 'Line 2 of .*",1"'),
        ('list.txt', 'a.jpg 0\nb.jpg c.jpg\n', 'Line 2 of .*"b.jpg c.jpg"'),
        ('list.tsv', 'a.jpg\tcat\tid1\nb.jpg\tcat\tid2\n', 'Line 1 of .*header'),
        ('list.txt', '0 a.jpg\n1 b.jpg\n', 'Line 1 of .*"0 a.jpg"'),
        ('list.csv', 'a,b,c\nx.jpg,1,2\n', 'columns a, b, c, none known to hold labels.*--label-column'),
        ('list.csv', 'path,size,label\nx.jpg,1\n', 'Line 2 of '),
        ('list.csv', 'path,label\n', 'has a header and no image'),
        ('list.txt', '', 'is empty'),
        ('list.txt', '\n \r\n', 'is empty'),
        ('list.txt', b'a.jpg 0\nb\xe4r.jpg 1\n', r'is not in UTF-8 \(line 2\)'),
    ],
)
def test_malformed_lists_are_one_sentence(listed, name, content, words):
    with pytest.raises(RideError, match=words) as error:
        listed(content, name)
    assert '\n' not in str(error.value)


def test_missing_list(tmp_path):
    with pytest.raises(RideError, match=r'The list .*none.txt cannot be read \(No such file'):
        read_rows(tmp_path / 'none.txt')
    with pytest.raises(RideError, match='cannot be read'):
        read_rows(tmp_path)


@settings(deadline=None, max_examples=200)
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=120).map(str.encode)))
def test_any_bytes_give_pairs_or_one_sentence(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / 'any.csv'
    file.write_bytes(content)
    try:
        lines = read_rows(file).rows
    except RideError as error:
        assert '\n' not in str(error)
    else:
        assert lines
        assert all(line.path and line.label for line in lines)


@settings(deadline=None, max_examples=100)
@given(
    pairs=st.lists(
        st.tuples(
            st.text(st.characters(blacklist_categories=('C', 'Z'), blacklist_characters='"'), min_size=1, max_size=12),
            st.text(st.characters(categories=('L', 'N')), min_size=1, max_size=8),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_what_is_written_is_read(tmp_path_factory, pairs):
    file = tmp_path_factory.getbasetemp() / 'written.txt'
    file.write_text(''.join(f'{name}.png {label}\r\n' for name, label in pairs), newline='')
    assert [(line.path, line.label) for line in read_rows(file).rows] == [
        (f'{name}.png', label) for name, label in pairs
    ]


def test_class_names(tmp_path):
    file = tmp_path / 'names.txt'
    file.write_bytes('\ufeffgreat white shark\r\nBär, groß\r\n'.encode())
    assert read_class_names(file) == ('great white shark', 'Bär, groß')
    file.write_text('a\nb\na\n')
    with pytest.raises(RideError, match=r'has "a" on the lines 1 and 3'):
        read_class_names(file)
    file.write_text('a\n\nb\n')
    with pytest.raises(RideError, match=r'Line 2 of the file of class names .* is blank'):
        read_class_names(file)


def test_lines_of_a_text_file(tmp_path):
    file = tmp_path / 'x'
    file.write_bytes(b' a \r\n\r\nb')
    assert read_lines(file, 'the file') == [(1, 'a'), (3, 'b')]


def test_a_file_without_an_end(monkeypatch):
    monkeypatch.setattr(list_lines, '_MAX_BYTES', 2**20)
    with pytest.raises(RideError, match='more than'):
        read_rows('/dev/zero')
