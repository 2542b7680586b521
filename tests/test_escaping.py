"""Names out of files: harmless on terminals, in log lines, in cards and in spreadsheets, and whole when read back."""

import csv
import io
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ride_timm.errors import RideError, one_line
from ride_timm.escaping import csv_cell, from_csv_cell, printable, shortened
from ride_timm.evaluation.metrics import ClassResult
from ride_timm.evaluation.writing import write_per_class
from ride_timm.logs import setup_logging
from ride_timm.pages.markdown import code, escape, fence
from ride_timm.records.runs import read_per_class

EVIL = 'X\x1b]0;owned\x07\x1b[31m\u202e\x9b\r'
COMMANDS = '\x1b\x07\u202e\x9b\r\x00\x7f\u2028\u2066'
LETTERS = 'größe Ελληνικά Привет 猫 ねこ\u3000犬 שלום سلم می\u200cشود क्\u200dष 👩\u200d🔬 a\u00a0b'


def harmless(text):
    return not set(text) & set(COMMANDS)


@pytest.mark.parametrize('char', COMMANDS)
def test_what_commands_a_terminal_becomes_an_escape(char):
    assert printable(f'a{char}b') == f'a{char.encode("unicode_escape").decode()}b'


def test_letters_of_every_script_stay():
    assert printable(LETTERS) == LETTERS


@given(st.text())
def test_printable_keeps_no_control_character_and_changes_nothing_twice(text):
    shown = printable(text)
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 or '\ud800' <= char <= '\udfff' for char in shown)
    assert printable(shown) == shown


def test_bytes_that_are_no_text():
    assert printable(b'a\xff.png'.decode('utf-8', 'surrogateescape')) == r'a\udcff.png'


def test_errors():
    assert harmless(one_line(RideError(f'the class {EVIL} is unknown')))


def test_log_lines(monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, 'handlers', [])  # of the tests' own
    setup_logging()
    shown = io.StringIO()
    root.handlers[0].setStream(shown)
    logging.getLogger('ride_timm.test').warning(f'the class {EVIL}\na line of a table')
    assert shown.getvalue().startswith(r'the class X\x1b]0;owned\x07')
    assert harmless(shown.getvalue())
    assert shown.getvalue().endswith('\na line of a table\n')


@pytest.mark.parametrize('form', [escape, code, lambda text: fence(text, 'bash')])
def test_cards(form):
    assert harmless(form(EVIL))
    assert '猫' in form('猫')


def test_long_names_are_cut_in_their_middle():
    assert shortened('a' * 50, 20) == 'a' * 10 + '...' + 'a' * 7
    assert shortened('short', 20) == 'short'


@pytest.mark.parametrize('text', ['=cmd|calc!A0', '+1', '-2', '@SUM(1)', '\t=1', '\r=1', "'=1", "''=1"])
def test_formulas_become_text(text):
    assert csv_cell(text) == f"'{text}"
    assert from_csv_cell(csv_cell(text)) == text


@pytest.mark.parametrize('value', [-1.5, -2, None, 0, '', 'cat', "'cat'", 'a=b', '1'])
def test_other_cells_stay(value):
    assert csv_cell(value) == value


@given(st.text())
def test_every_cell_is_read_back(text):
    assert from_csv_cell(csv_cell(text)) == text
    assert not csv_cell(text).startswith(('=', '+', '-', '@', '\t', '\r'))


def test_the_table_of_classes_is_read_back(tmp_path):
    names = ['=cmd|calc!A0', '+1', "'=x", 'two\nlines', '猫', 'a,"b"']
    table = [ClassResult(label, name, 'many', 3, 2, np.nan) for label, name in enumerate(names)]
    write_per_class(tmp_path / 'table.csv', table)
    with (tmp_path / 'table.csv').open(newline='', encoding='utf-8') as file:
        cells = [row['name'] for row in csv.DictReader(file)]
    assert cells[:3] == ["'=cmd|calc!A0", "'+1", "''=x"]
    assert [row['name'] for row in read_per_class(tmp_path / 'table.csv')] == names
