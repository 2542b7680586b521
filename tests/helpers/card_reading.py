"""Reading model cards in tests: tables, blocks of code, sections."""

import re

from weight_results import make_config, make_results

from ride_timm.pages.card import models_table, render_card
from ride_timm.records.results import Results


def render(results=None, **options):
    """The card of results, by default of those of a routed network."""
    results = results or make_results()
    others = [Results.from_json(other) for other in options.pop('others', ())]
    return render_card(Results.from_json(results), make_config(results), others=others, **options)


def table_of(everything):
    """The table of all published networks."""
    return models_table([Results.from_json(results) for results in everything])


def tables(text):
    """Rows of every table by the first cell of its header; cells are split at bars that are not escaped."""
    found = {}
    for block in re.findall(r'(?:^\|.*\n)+', text + '\n', re.M):
        rows = [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in block.splitlines()]
        assert len({len(row) for row in rows}) == 1, block
        found[rows[0][0]] = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    return found


def blocks(text, language):
    """The blocks of code in a language."""
    return re.findall(rf'^```{language}\n(.*?)^```$', text, re.M | re.S)


def section(text, title):
    """What stands under a title, up to the next."""
    return text.split(f'\n## {title}\n')[1].split('\n## ')[0]
