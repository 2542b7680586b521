"""The model cards: what they show as code can be run, and texts of users stay texts."""

import re
import shlex

import pytest
from card_reading import blocks, render, section, tables
from huggingface_hub import ModelCard
from weight_results import make_results

from ride_timm.commands.train import build_parser as train_parser
from ride_timm.commands.validate import build_parser as validate_parser
from ride_timm.losses import RideLoss
from ride_timm.pages.markdown import code, duration, escape, fence, gmacs

# code


@pytest.mark.parametrize(
    ('options', 'repo_id', 'number'),
    [
        ({}, None, 3),
        ({}, 'org/net', 4),
        ({'router': False}, None, 2),
        ({'experts': 1, 'method': 'ce'}, 'org/net', 3),
        ({'classes': 10}, None, 3),
    ],
)
def test_the_python_blocks_compile(options, repo_id, number):
    results = make_results(**options)
    text = render(results, repo_id=repo_id)
    snippets = blocks(text, 'python')
    assert len(snippets) == number
    source = 'hf-hub:org/net' if repo_id else results['name']
    for snippet in snippets:
        compile(snippet, 'card', 'exec')
        assert 'import ride_timm' in snippet
        assert 'transformers' in snippet or f'create_model({source!r}, pretrained=True' in snippet
    assert ('hf-hub' in text) == ('transformers' in text) == (repo_id is not None)
    assert any('set_routing' in snippet for snippet in snippets) == results['network']['router']
    new = 5 if options.get('classes') == 10 else 10
    assert any(f'num_classes={new})' in snippet for snippet in snippets)


def test_fine_tuning_trains_each_expert_by_the_loss_of_the_card():
    (snippet,) = [block for block in blocks(render(make_results()), 'python') if 'optimizer' in block]
    space = {}
    exec(snippet, space)  # on the checkpoint of the repository that the results are named after
    assert isinstance(space['criterion'], RideLoss)
    assert space['criterion'].classification.reweight_epoch == 4
    assert [logits.shape for logits in space['model'](space['images'])] == [(8, 10)] * 3
    assert space['loss'].isfinite()


def test_a_network_of_timms_own():
    results = make_results(experts=1, method='ce', name='resnet50.ce_mine')
    results['architecture'] = 'resnet50'
    results['network'] |= {'gmacs_by_experts': None, 'multi_expert': False}
    text = render(results)
    assert all('ride_timm' not in snippet for snippet in blocks(text, 'python'))
    assert "create_model('local-dir:resnet50.ce_mine', pretrained=True)" in text


@pytest.mark.parametrize('repo_id', [None, 'org/net'])
@pytest.mark.parametrize('dataset', ['torch/cifar100', None])
def test_the_commands_are_understood(repo_id, dataset):
    results = make_results()
    results['data']['dataset'] = dataset
    text = render(results, repo_id=repo_id)
    lines = [line for block in blocks(section(text, 'Reproduce the results'), 'bash') for line in block.splitlines()]
    parsed = [validate_parser().parse_args(shlex.split(line)[2:]) for line in lines]
    assert [args.routed for args in parsed] == [False, True]
    assert {args.model for args in parsed} == {'hf-hub:org/net' if repo_id else results['name']}
    assert {args.dataset for args in parsed} == {dataset}
    assert all(args.pretrained and args.data_dir == 'DIR' for args in parsed)
    (line,) = blocks(section(text, 'Use it'), 'bash')
    assert train_parser().parse_args(shlex.split(line)[2:]).init == parsed[0].model


def test_without_router_nothing_is_said_of_routing():
    text = render(make_results(router=False))
    assert '\n## Routing\n' not in text
    assert '--routed' not in text
    assert 'threshold' not in text
    rows = tables(text)['CIFAR-100-LT']
    assert not any('routed' in row['CIFAR-100-LT'] for row in rows)


def test_the_plain_network():
    results = make_results(experts=1, method='ce')
    text = render(results)
    assert [row['CIFAR-100-LT'] for row in tables(text)['CIFAR-100-LT']] == ['the network']
    assert 'cross-entropy' in text
    assert 'all 1' not in text
    assert '1 experts' not in text


# texts of users


def test_user_texts_stay_texts():
    strange = ['<script>alert(1)</script>', 'a|b', 'größe', '__init__', '`x`', '[l](http://x)', 'two\nlines', '长尾']
    results = make_results(class_names=strange + [f'c{i}' for i in range(92)])
    for row in results['test']['per_class'][:8]:
        row['accuracy'] = 0.0
    results['data']['name'] = 'My <b>data</b> | v1'
    text = render(results)
    body = text.split('\n---\n', 1)[1]
    assert '<script>' not in body
    assert '<b>' not in body
    rows = tables(section(text, 'Intended use and limits'))['class']
    found = [row['class'] for row in rows]
    assert found[:4] == ['&lt;script&gt;alert(1)&lt;/script&gt;', r'a\|b', 'größe', r'\_\_init\_\_']
    assert found[4] == r'\`x\`'
    assert ModelCard(text).data.eval_results[0].dataset_name == 'My <b>data</b> | v1'


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('few_shot', 'few_shot'),
        ('_a_', r'\_a\_'),
        ('a\\|b', r'a\\\|b'),
        ('1 < 2 & 3', '1 &lt; 2 &amp; 3'),
        ('two\n lines', 'two lines'),
        ('*$~[]', r'\*\$\~\[\]'),
    ],
)
def test_escape(text, expected):
    assert escape(text) == expected


def test_a_command_cannot_end_its_block():
    results = make_results()
    results['training'][0]['command'] = 'ride-timm train\n```\n# not a title'
    text = render(results)
    assert '````bash\nride-timm train\n```\n# not a title' in text
    assert fence('a', 'bash') == '```bash\na\n```'
    assert code('a`b') == r'a\`b'
    assert code('a_b.c') == '`a_b.c`'


@pytest.mark.parametrize(
    ('seconds', 'expected'), [(None, '-'), (12.3, '12 s'), (97, '2 min'), (3599, '1 h 0 min'), (8123, '2 h 15 min')]
)
def test_duration(seconds, expected):
    assert duration(seconds) == expected


def test_gmacs():
    assert [gmacs(value) for value in (0.07714, 5.7701, None)] == ['0.0771', '5.770', '-']


# terms and papers


def test_the_papers():
    for method, numbers in (('ride', ['2010.01809']), ('balpoe', ['2010.01809', '2206.05260']),
                            ('sade', ['2010.01809', '2107.09249'])):  # fmt: skip
        (entries,) = blocks(render(make_results(method=method)), 'bibtex')
        assert re.findall(r'eprint = \{(.*?)\}', entries) == numbers
        assert entries.count('@misc{') == entries.count('\n}') == len(numbers)


def test_the_terms_of_the_data():
    assert 'state no licence' in render()
    results = make_results()
    results['data']['name'] = 'My birds'
    text = render(results)
    assert 'CIFAR' not in section(text, 'Data and licence')
    assert 'My birds, have their own terms' in text
    assert 'Apache-2.0' in text
