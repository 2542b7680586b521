"""The pages say what is so: code runs, commands parse, links lead somewhere, results are the published ones."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from ride_timm import cli
from ride_timm.commands import run
from ride_timm.recipes import list_recipes

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / 'README.md'
PAGES = [README, *(ROOT / name for name in ('CONTRIBUTING.md', 'MODEL_CARD.md')), *sorted((ROOT / 'docs').glob('*.md'))]
OTHER_PROGRAMS = {'hf', 'git', 'pip', 'cd', 'bash', 'python3', '.venv/bin/python', '.venv/bin/pip'}


def _blocks(page, language):
    return re.findall(rf'^```{language}\n(.*?)^```', page.read_text(encoding='utf-8'), re.MULTILINE | re.DOTALL)


def _commands():
    return [
        (f'{page.name}: {line}', shlex.split(line, comments=True))
        for page in PAGES
        for block in _blocks(page, 'bash')
        for line in block.splitlines()
        if line
    ]


@pytest.fixture
def my_images(tmp_path, monkeypatch):
    """A folder as the pages assume it: five classes with few images, and a photograph."""
    rng = np.random.default_rng(0)
    for part, images in (('train', [9, 7, 5, 4, 3]), ('holdout', [2] * 5), ('val', [2] * 5)):
        for label, count in enumerate(images):
            folder = tmp_path / 'my_images' / part / f'class{label}'
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(rng.integers(0, 255, (36, 36, 3), dtype=np.uint8)).save(folder / f'{number}.png')
    Image.new('RGB', (40, 40)).save(tmp_path / 'photo.jpg')
    monkeypatch.chdir(tmp_path)


def _run(code):
    torch.manual_seed(0)
    space = {}
    exec(code, space)
    return space


def test_inference_runs_and_its_comments_are_true(my_images):
    code = _blocks(README, 'python')[0]
    space = _run(code)
    shapes = re.findall(r'^(.*\.shape)  # (\(\d+,[\d, ]*\))', code, re.MULTILINE)
    assert len(shapes) == 3
    space['model'].set_routing(None)
    for expression, shape in shapes:
        assert repr(tuple(eval(expression, space))) == shape


def test_fine_tuning_runs(my_images, capsys):
    space = _run(_blocks(README, 'python')[1])
    assert space['model'].router is not None
    assert space['counts'].tolist() == [9, 7, 5, 4, 3]
    out = capsys.readouterr().out
    assert 'few' in out
    assert f'threshold {space["model"].router_threshold:g}' in out


@pytest.mark.filterwarnings('ignore')  # torch's own, of its quantisation
def test_the_code_of_the_page_on_tools_runs():
    space = {}
    for code in _blocks(ROOT / 'docs/tools.md', 'python'):
        exec(code, space)
    assert space['features'][0].grad.shape == (2, 48, 8, 8)
    assert 'DynamicQuantizedLinear' in repr(space['small'].router)


@pytest.mark.parametrize(('line', 'words'), _commands())
def test_every_command_parses(line, words):
    if words[0] == 'torchrun':
        words = ['ride-timm', 'train', *words[words.index('train') + 1 :]]
    if words[0] == 'ride-timm':
        parsed = cli.module_of(words[1]).build_parser().parse_args(words[2:])
        if getattr(parsed, 'recipe', None):
            assert parsed.recipe in list_recipes()
    elif words[:4] == ['python', '-m', 'ride_timm', 'run']:
        parsed = run.build_parser().parse_args(words[4:])
        assert parsed.args == words[5:] != []
    elif words[:2] == ['python', '-m']:
        assert importlib.util.find_spec(words[2])
    elif words[0] == 'python':
        assert (ROOT / words[1]).is_file()
    else:
        assert words[0] in OTHER_PROGRAMS


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_link_and_named_test_exists(page):
    text = page.read_text(encoding='utf-8')
    links = [link for link in re.findall(r'\]\(([^)#]+)[^)]*\)', text) if '://' not in link]
    for link in links:
        assert (page.parent / link).exists(), link
    for path in re.findall(r'`((?:tests|benchmarks)/[\w/.]+)`', text):
        assert (ROOT / path).exists() or 'NAME' in path or path == 'tests/test_models.py', path  # the last is timm's


@pytest.mark.parametrize('extra', ['quickstart', 'test'])
def test_the_two_lines_install_into_a_fresh_environment(extra):
    lines = [line for block in _blocks(README, 'bash') for line in block.splitlines() if f".[{extra}]'" in line]
    assert len(lines) == 1
    steps = [shlex.split(step) for step in lines[0].split('&&')]
    assert steps[0] == ['python3', '-m', 'venv', '.venv']
    assert steps[1][:2] == ['.venv/bin/pip', 'install']
    assert steps[2][0] == {'quickstart': '.venv/bin/ride-timm', 'test': '.venv/bin/pytest'}[extra]


def test_the_table_holds_the_published_results():
    rows = re.findall(r'^\| `([\w.]+)`(?:, plain)? \| (.*) \|$', README.read_text(encoding='utf-8'), re.MULTILINE)
    found = {name: [cell.strip() for cell in cells.split('|')] for name, cells in rows if '.' in name}
    assert set(found) == {path.parent.name for path in (ROOT / 'weights').glob('*/results.json')}
    for name, cells in found.items():
        results = json.loads((ROOT / 'weights' / name / 'results.json').read_text(encoding='utf-8'))
        test, routed = results['test']['all_experts'], results['test']['routed']
        assert cells == [
            results['data']['name'],
            f'{test["top1"]:.2f}',
            ' / '.join(f'{test[group]:.1f}' for group in ('many', 'medium', 'few')),
            f'{test["ece"]:.1f}',
            f'{results["network"]["gmacs"]:.4f}',
            f'{routed["top1"]:.2f}, {routed["gmacs"]:.4f}' if routed else '',
        ]


def test_every_command_of_the_console_script_exists_and_explains_itself(capsys):
    assert cli.main(['--help']) == 0
    text = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f'\n  {name} ' in text


def test_the_architectures_of_the_readme_exist():
    for family, experts in re.findall(r'`(ride_\w+_)\{([\d,]+)\}e`', README.read_text(encoding='utf-8')):
        for count in experts.split(','):
            assert timm.is_model(f'{family}{count}e')
