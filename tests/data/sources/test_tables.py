import csv
import io
import json
import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ride_timm.data import Columns, open_eval_split, open_train_split, read_rows
from ride_timm.data.sources.rows import GUESS
from ride_timm.errors import RideError


@pytest.fixture
def read(tmp_path):
    """Write a table and read it: {path: label}, or whole rows."""

    def read(content, name='table.csv', columns=GUESS, whole=False, **options):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        rows = read_rows(file, columns, **options).rows
        return rows if whole else {row.path: row.label for row in rows}

    return read


CATS = {'a.jpg': 'cat', 'b/c.jpg': 'great white shark'}


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('t.csv', 'image,label\na.jpg,cat\nb/c.jpg,great white shark\n'),
        ('t.csv', 'image|label\r\na.jpg|cat\r\nb/c.jpg|great white shark'),
        ('t.txt', 'image\tlabel\na.jpg\tcat\nb/c.jpg\tgreat white shark\n'),
        ('t.csv', 'Species;Note;File Name\ncat;"a; b\n c";a.jpg\ngreat white shark;;b/c.jpg\n;;\n'),
        ('t.tsv', b'\xef\xbb\xbfimg_path\tscientificName\r\na.jpg\tcat\r\n\r\nb/c.jpg\tgreat white shark\r\n'),
        ('t.csv', 'foto,art\na.jpg,cat\nb/c.jpg,great white shark\n'),
        ('t.csv', 'kind,family,class,id,species\nx,Felidae,Mammalia,a.jpg,cat\nx,,,b/c.jpg,great white shark\n'),
        ('t.json', '[{"image": "a.jpg", "label": "cat"}, {"image": "b/c.jpg", "label": "great white shark"}]'),
        ('t.jsonl', '{"file_name": "a.jpg", "y": "cat"}\n{"file_name": "b/c.jpg", "y": "great white shark"}\n'),
    ],
)
def test_tables_as_people_have_them(read, name, content):
    assert read(content, name) == CATS


def test_columns_that_are_named_win_over_guesses(read):
    text = 'image,label,site,photo,answer,part\na.jpg,1,north,x.jpg,cat,train\nb.jpg,2,south,y.jpg,dog,val\n'
    assert read(text) == {'a.jpg': '1', 'b.jpg': '2'}
    rows = read(text, columns=Columns('photo', 'answer', 'part', 'site'), whole=True)
    assert [row[:5] for row in rows] == [('x.jpg', 'cat', 2, 'train', 'north'), ('y.jpg', 'dog', 3, 'val', 'south')]


def test_what_is_guessed_is_said(read, caplog):
    with caplog.at_level(logging.INFO):
        read('lesion_id,image_id,dx,age\nL1,ISIC_0024306,nv,80\nL2,ISIC_0024307,NA,80\n', 'a{0}.csv')
    assert '"NA" of 1 rows' in caplog.text
    assert '"image_id"' in caplog.text
    assert '"dx"' in caplog.text


@pytest.mark.parametrize(
    ('content', 'columns', 'words'),
    [
        ('image,label\na.jpg,cat\n', Columns(label='species'), '"species".*choose one of them with --label-column'),
        ('image,label\na.jpg,cat\n', Columns(image='foto'), 'columns image, label.*--image-column'),
        ('image,label\na.jpg,cat\n', Columns(split='split'), '--split-column'),
        ('image,age,sex\na.jpg,7,m\n', Columns(), 'columns image, age, sex.*--label-column'),
        ('foto,art,ort\nx,7,m\n', Columns(label='art'), '--image-column'),
        ('image,label\na.jpg,cat\nb.jpg,\n', Columns(), 'Line 3 .*no label in the column "label"'),
        ('image,label\na.jpg,cat\n,dog\n', Columns(), 'Line 3 .*names no image in the column "image"'),
        ('image,label\na.jpg,cat\nb.jpg,dog,x\n', Columns(), 'Line 3 .* 3 fields and the first line 2'),
        ('image,label\n"a.jpg,cat\nb.jpg,dog\n', Columns(), 'Line 2 .* 1 fields and the first line 2'),
        ('image,label\n', Columns(), 'no image below it'),
        ('a.jpg 1\n', Columns(label='dx'), 'no first line that names columns'),
    ],
)
def test_one_sentence(read, content, columns, words):
    with pytest.raises(RideError, match=words) as error:
        read(content, columns=columns)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('content', ['{"x": 1}', '[1, 2]', '[]', '{"images": 3}', '[' * 100_000, '{"images": ['])
def test_json_of_no_form_is_one_sentence(read, content):
    with pytest.raises(RideError) as error:
        read(content, 'x.json')
    assert '\n' not in str(error.value)


ISIC = 'image,MEL,NV,BCC\nISIC_0024306,0.0,1.0,0.0\nISIC_0024307,1.0,0.0,0.0\n'


def test_a_column_for_each_class(read):
    assert read(ISIC) == {'ISIC_0024306': 'NV', 'ISIC_0024307': 'MEL'}
    assert read(ISIC.replace('image,', 'image,age,').replace(',0.0,1', ',30,0.0,1').replace('7,1', '7,50,1')) == {
        'ISIC_0024306': 'NV',
        'ISIC_0024307': 'MEL',
    }


@pytest.mark.parametrize(('row', 'words'), [('0,0,0', 'Line 4 .*no 1'), ('1.0,0,1', 'Line 4 .*1 for MEL and BCC')])
def test_a_row_without_a_single_class_is_named(read, row, words):
    with pytest.raises(RideError, match=words):
        read(f'{ISIC}x,{row}\n')


ECOTAXA = (
    'object_id\timg_file_name\timg_rank\tobject_annotation_category\tobject_annotation_status\tsample_id\n'
    '[t]\t[t]\t[f]\t[t]\t[t]\t[t]\n'
    'o1\ta.jpg\t0\tCopepoda\tvalidated\ts1\n'
    'o2\tb.jpg\t0\tdetritus\tpredicted\ts1\n'
    'o3\tc.jpg\t0\tdetritus\tvalidated\ts2\n'
)


def test_ecotaxa(read, caplog):
    with caplog.at_level(logging.INFO):
        rows = read(ECOTAXA, 'ecotaxa_export.tsv', whole=True)
    assert [(row.path, row.label, row.line, row.group) for row in rows] == [
        ('a.jpg', 'Copepoda', 3, 's1'),
        ('c.jpg', 'detritus', 5, 's2'),
    ]
    assert '1 of 3 rows are not validated' in caplog.text
    assert len(read(ECOTAXA, 'ecotaxa_export.tsv', labelled=False)) == 3
    with pytest.raises(RideError, match='None of the 3 rows'):
        read(ECOTAXA.replace('validated', 'predicted'), 'ecotaxa_export.tsv')


def test_wilds(photos, tmp_path):
    colours = photos(*(f'train/{i}.jpg' for i in range(5)), size=(4, 4))
    assert colours
    (tmp_path / 'metadata.csv').write_text(
        ',split,location_remapped,sequence_remapped,y,filename\n'
        '0,train,20,1,0,0.jpg\n1,train,20,1,7,1.jpg\n2,val,21,2,7,2.jpg\n3,id_val,20,3,7,3.jpg\n4,test,9,4,0,4.jpg\n'
    )
    form = {'list_file': tmp_path / 'metadata.csv', 'divided': True}
    train = open_train_split(None, **form)
    assert train.dataset.filenames() == ['0.jpg', '1.jpg']  # which lie in a folder below
    assert train.dataset.base.reader.groups == ('20', '20')
    assert train.class_names == ('0', '7')
    for split, files in (('val', ['2.jpg']), ('test', ['4.jpg']), ('id_val', ['3.jpg'])):
        part = open_eval_split(None, **form, split=split, class_names=train.class_names)
        assert part.dataset.filenames() == files
    with pytest.raises(RideError, match=r'no images of the split night but of "train" \(2\), "val" \(1\)'):
        open_eval_split(None, **form, split='night', class_names=train.class_names)


def test_ids_find_their_files_in_folders_below(photos, tmp_path):
    photos('part_1/ISIC_1.jpg', 'part_2/ISIC_2.JPG')
    table = tmp_path / 'labels.csv'
    table.write_text('image_id,dx\nISIC_1,nv\nISIC_2,mel\n')
    split = open_train_split(None, list_file=table)
    assert [path.rpartition('/')[2] for path in split.dataset.filenames(absolute=True)] == ['ISIC_1.jpg', 'ISIC_2.JPG']
    assert split.class_names == ('mel', 'nv')
    photos('part_3/ISIC_1.jpg')
    with pytest.raises(RideError, match=r'may be .*part_1.* or .*part_3'):
        open_train_split(None, list_file=table)
    table.write_text('image_id,dx\nISIC_1,nv\nISIC_9,mel\n')
    (tmp_path / 'part_3/ISIC_1.jpg').unlink()
    with pytest.raises(RideError, match=r'An image of .* cannot be found, first .*ISIC_9 \(line 3\)'):
        open_train_split(None, list_file=table)


def test_no_label_needed(read):
    assert read('image\na.jpg\nb c.jpg\n', labelled=False) == {'a.jpg': '', 'b c.jpg': ''}
    assert read('image,size\na.jpg,1\n', labelled=False).keys() == {'a.jpg'}
    assert read('a.jpg\nmy cat.jpg\n', 'x.txt', labelled=False) == {'a.jpg': '', 'my cat.jpg': ''}


def test_a_changed_table_is_read_again(read):
    assert read('image,label\na.jpg,cat\n') == {'a.jpg': 'cat'}
    assert read('image,label\na.jpg,zebra\n') == {'a.jpg': 'zebra'}


CELLS = st.text(st.characters(codec='utf-8', exclude_categories=('Cs', 'Cc')), max_size=10).map(str.strip)


@settings(deadline=None, max_examples=100)
@given(
    pairs=st.dictionaries(CELLS.filter(bool), st.tuples(CELLS.filter(bool), CELLS), min_size=1, max_size=8),
    delimiter=st.sampled_from(',;\t|'),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    end=st.sampled_from(['\n', '\r\n']),
    mark=st.booleans(),
    as_json=st.booleans(),
)
def test_what_is_written_is_read(tmp_path_factory, pairs, delimiter, quoting, end, mark, as_json):
    names, text = ('note', 'image', 'other', 'label'), io.StringIO(newline='')
    rows = [(note, f'{path}.png', 'x\ny', label) for path, (label, note) in pairs.items()]
    if as_json:
        text.write(json.dumps([dict(zip(names, row, strict=True)) for row in rows]))
    else:
        csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([names, *rows])
    file = tmp_path_factory.getbasetemp() / 'written.csv'
    file.write_bytes(text.getvalue().encode('utf-8-sig' if mark else 'utf-8'))
    found = read_rows(file).rows
    assert [(row.path, row.label) for row in found] == [(path, label) for _, path, _, label in rows]
