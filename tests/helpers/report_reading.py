"""Making reports in tests, and reading their pages."""

import base64
import io
from html.parser import HTMLParser

from PIL import Image

import ride_timm.commands.validate as validation
from ride_timm.commands.report import main

TAGS = """html head meta title style body header main nav section p h1 h2 dl dt dd ul ol li a span strong b bdi div
    table thead tbody tr th td figure figcaption img"""
ATTRIBUTES = 'lang charset name content http-equiv class id href src alt width height style scope aria-label'
VOID = {'meta', 'img'}


class Page(HTMLParser):
    """Everything on a page, by kind; fails where tags do not nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.links, self.images, self.ids, self.alts = [], [], [], [], [], []
        self.texts, self.cells, self.rows = [], [], []
        self.attributes = set()
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append(tag)
        self.attributes |= set(found)
        self.links += [found[name] for name in ('href',) if name in found]
        self.ids += [found['id']] if 'id' in found else []
        if tag == 'img':
            assert found['src'].startswith('data:image/png;base64,')
            self.images.append(base64.b64decode(found['src'].partition(',')[2], validate=True))
            self.alts.append(found['alt'])
        if tag == 'tr':
            self.rows.append([])
        if tag in ('td', 'th'):
            self.rows[-1].append('')
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if 'style' in self.open:
            assert 'url(' not in data
            assert '@import' not in data
            return
        self.texts.append(data)
        if {'td', 'th'} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, label):
        return next(row for row in self.rows if row[0] == label)

    def class_row(self, name):
        return next(row for row in self.rows[::-1] if row[0] == name)


def read(path):
    """Parse a page, and check what holds for every one."""
    text = path.read_text(encoding='utf-8')
    page = Page(text)
    assert set(page.tags) <= set(TAGS.split())
    assert page.attributes <= set(ATTRIBUTES.split())
    assert 'http:' not in text
    assert 'https:' not in text
    assert [link[1:] for link in page.links] == page.ids
    assert all(link.startswith('#') for link in page.links)
    for picture in page.images:
        with Image.open(io.BytesIO(picture)) as image:
            image.load()
            assert image.format == 'PNG'
    return page


def report(source, *options):
    assert main([str(source), *map(str, options), '--device', 'cpu', '-b', '5']) == 0


def validated(source, *options):
    options = [*map(str, options), '--device', 'cpu']
    name = '--checkpoint' if str(source).endswith('.tar') else '--model'
    return validation.validate(validation.build_parser().parse_args([name, str(source), *options]))
