"""The notebook of the documentation runs as it stands, and has no output in it."""

import json
from pathlib import Path

NOTEBOOK = Path(__file__).resolve().parents[1] / 'docs' / 'notebook.ipynb'


def test_every_cell_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding='utf-8'))['cells'] if cell['cell_type'] == 'code']
    assert all(cell['outputs'] == [] and cell['execution_count'] is None for cell in cells)
    here = {}
    for cell in cells:
        exec(''.join(cell['source']), here)
    scores, routed, choice = here['scores'], here['routed'], here['choice']
    assert scores.overall > 70
    assert set(scores.groups) == {'many', 'medium', 'few'}
    assert routed.gmacs <= scores.gmacs * 1.02  # and the routers
    assert choice.threshold == here['model'].router_threshold
    assert str(scores) in capsys.readouterr().out
