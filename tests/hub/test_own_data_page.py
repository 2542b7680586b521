"""docs/own-data.md, block by block as a reader would type it, in an empty folder, with the fake Hub as the Hub."""

import re
import shlex
from pathlib import Path

import pytest

from ride_timm.cli import main

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'own-data.md'


def blocks():
    return re.findall(r'^```(python|bash)\n(.*?)^```', PAGE.read_text(encoding='utf-8'), re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(900)  # one of the commands trains
@pytest.mark.filterwarnings('default')  # a reader sees them and goes on
def test_every_block_runs(hub, hub_login, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for language, text in blocks():
        if language == 'python':
            exec(compile(text, 'own-data.md', 'exec'), {'__name__': '__main__'})
            continue
        for line in text.splitlines():
            command = shlex.split(line.replace('my-org/', 'ride-timm/'))  # the account of the fake Hub
            assert main(command[1:]) == 0, f'{line}\n{capsys.readouterr().err}'
    out = capsys.readouterr().out
    assert 'imbalance' in out
    assert 'mean_experts' in out
    assert len((tmp_path / 'rings.csv').read_text().splitlines()) == 21
    names = {path.name for path in (tmp_path / 'shapes-on-the-hub').iterdir()}
    assert {'model.safetensors', 'config.json', 'README.md', 'results.json'} <= names
    assert f'hf-hub:ride-timm/shapes@{hub.head("ride-timm/shapes").sha}' in out
    assert set(hub.files('ride-timm/shapes')) >= names
