"""The tutorial, block by block as a reader would type it, in an empty folder, with the test Hub as the Hub."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / 'docs' / 'tutorial.md'
RIDE_TIMM = [sys.executable, '-m', 'ride_timm.cli']


def blocks():
    return re.findall(r'^```(python|bash)\n(.*?)^```', PAGE.read_text(encoding='utf-8'), re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(900)  # a dozen processes, one of them a training
def test_every_block_runs(hub, hub_env, tmp_path):
    environment = {**os.environ, **hub_env, 'OMP_NUM_THREADS': '1', 'HF_TOKEN': hub.token}
    said = []
    for language, text in blocks():
        if language == 'python':
            commands = [[sys.executable, '-c', text]]
        else:
            commands = [[*RIDE_TIMM, *shlex.split(line)[1:]] for line in text.splitlines()]
        for command in commands:
            if 'my-org/shapes' in command:  # the account of the test Hub
                command[command.index('my-org/shapes')] = 'ride-timm/shapes'
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False
            )  # fmt: skip
            assert done.returncode == 0, f'{command}\n{done.stderr}'
            said.append(done.stdout + done.stderr)
    text = '\n'.join(said)
    assert 'imbalance' in text
    assert '--model ride_resnet32_3e (images of about 32 pixels' in text
    assert 'mean_experts' in text
    assert len((tmp_path / 'rings.csv').read_text().splitlines()) == 21
    assert '(3, 32, 32) 3 0.5' in text
    names = {path.name for path in (tmp_path / 'shapes-on-the-hub').iterdir()}
    assert {'model.safetensors', 'config.json', 'README.md', 'results.json'} <= names
    assert re.search(r"timm\.create_model\('hf-hub:ride-timm/shapes@[0-9a-f]{40}', pretrained=True\)", text)
    assert set(hub.files('ride-timm/shapes')) >= names
