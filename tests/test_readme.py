"""The pages say what is so: their code runs and their commands parse."""

import re
import shlex
from pathlib import Path

import pytest

from ride_timm import cli, run
from ride_timm.recipes import list_recipes

ROOT = Path(__file__).resolve().parents[1]


def _blocks(language: str) -> list[str]:
    return re.findall(rf'^```{language}\n(.*?)^```', (ROOT / 'README.md').read_text(), re.MULTILINE | re.DOTALL)


def _commands() -> list[list[str]]:
    return [shlex.split(line, comments=True) for block in _blocks('bash') for line in block.splitlines() if line]


def test_python_block_runs_and_its_comments_are_true():
    (code,) = _blocks('python')
    space: dict = {}
    exec(code, space)
    lines = [line for line in code.splitlines() if '.shape ' in line]
    assert len(lines) == 3
    for line in lines:
        expression, comment = line.split('#')
        shape = re.search(r'\(\d+(, \d+)*\)', comment)[0]
        assert str(tuple(eval(expression, space))) == shape


@pytest.mark.filterwarnings('ignore')  # torch's own, of its quantisation
def test_the_code_of_the_page_on_tools_runs():
    space: dict = {}
    for code in re.findall(r'^```python\n(.*?)^```', (ROOT / 'docs/tools.md').read_text(), re.MULTILINE | re.DOTALL):
        exec(code, space)
    assert space['features'][0].grad.shape == (2, 48, 8, 8)
    assert 'DynamicQuantizedLinear' in repr(space['small'].router)


def test_every_command_parses():
    seen = set()
    for words in _commands():
        if words[0] == 'torchrun':
            assert words[3:6] == ['-m', 'ride_timm', 'train']
            cli.module_of('train').build_parser().parse_args(words[6:])
            seen.add('torchrun')
        elif words[0] == 'ride-timm':
            parsed = cli.module_of(words[1]).build_parser().parse_args(words[2:])
            if getattr(parsed, 'recipe', None):
                assert parsed.recipe in list_recipes()
            seen.add(words[1])
        elif words[:3] == ['python', '-m', 'ride_timm.run']:
            parsed = run.build_parser().parse_args(words[3:])
            assert parsed.script.endswith('.py')
            assert parsed.args == words[4:] != []
            seen.add('run')
    commands = {'train', 'validate', 'convert', 'run', 'data', 'demo', 'predict', 'publish', 'report', 'export'}
    assert seen == {'torchrun', *commands}


@pytest.mark.parametrize('extra', ['quickstart', 'test'])
def test_the_two_lines_install_into_a_fresh_environment(extra):
    lines = [line for block in _blocks('bash') for line in block.splitlines() if f".[{extra}]'" in line]
    assert len(lines) == 1
    steps = [shlex.split(step) for step in lines[0].split('&&')]
    assert steps[0] == ['python3', '-m', 'venv', '.venv']
    assert steps[1][:2] == ['.venv/bin/pip', 'install']
    assert steps[2][0] == {'quickstart': '.venv/bin/ride-timm', 'test': '.venv/bin/pytest'}[extra]


def test_every_command_of_the_console_script_exists_and_explains_itself(capsys):
    assert cli.main(['--help']) == 0
    text = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f'\n  {name} ' in text


def test_the_quickstarts_output_is_in_the_page():
    page = (ROOT / 'README.md').read_text()
    for line in ('plain ResNet, cross entropy', 'RIDE, 3 experts, routed', 'answers', 'output/quickstart/ride_routed'):
        assert line in page
    assert '@@' not in page
    assert '@@' not in (ROOT / 'CONTRIBUTING.md').read_text()
