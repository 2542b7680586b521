"""The model cards: what they claim is what `results.json` says, and what they show as code can be run."""

import json
import re
import shlex
import statistics
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index
from weight_results import GMACS, RULE, make_config, make_results, write_folder

from ride_timm.card import BEGIN, END, main, models_table, render_card, update_model_card, write_card
from ride_timm.card_results import check_results, read_results
from ride_timm.engine.args import build_parser as train_parser
from ride_timm.errors import RideError
from ride_timm.markdown import code, duration, escape, fence, gmacs
from ride_timm.validate import build_parser as validate_parser

GROUPS = ('many', 'medium', 'few')


def render(results=None, **options):
    results = results or make_results()
    return render_card(results, make_config(results), **options)


def tables(text):
    """Rows of every table by the first cell of its header; cells are split at bars that are not escaped."""
    found = {}
    for block in re.findall(r'(?:^\|.*\n)+', text + '\n', re.M):
        rows = [[cell.strip() for cell in re.split(r'(?<!\\)\|', line)[1:-1]] for line in block.splitlines()]
        assert len({len(row) for row in rows}) == 1, block
        found[rows[0][0]] = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    return found


def blocks(text, language):
    return re.findall(rf'^```{language}\n(.*?)^```$', text, re.M | re.S)


def section(text, title):
    return text.split(f'\n## {title}\n')[1].split('\n## ')[0]


# the Hub's metadata


@pytest.mark.parametrize('router', [True, False])
def test_the_hub_reads_the_card(router):
    results = make_results(router=router)
    data = ModelCard(render(results)).data
    assert (data.license, data.library_name, data.pipeline_tag) == ('apache-2.0', 'timm', 'image-classification')
    assert {'timm', 'ride-timm', 'image-classification', 'long-tailed-recognition'} <= set(data.tags)
    assert data.model_name == results['name']
    measured = {'all 3 experts': results['test']['all_experts']}
    measured |= {'routed': results['test']['routed']} if router else {}
    expected = {}
    for how, figures in measured.items():
        expected[f'Accuracy ({how})'] = ('accuracy', figures['top1'])
        expected |= {f'Accuracy, {name} classes ({how})': ('accuracy', figures[name]) for name in GROUPS}
        expected[f'Expected calibration error ({how})'] = ('expected_calibration_error', figures['ece'])
    found = {item.metric_name: (item.metric_type, item.metric_value) for item in data.eval_results}
    assert found == {name: (kind, pytest.approx(value, abs=0.005)) for name, (kind, value) in expected.items()}
    assert {item.dataset_name for item in data.eval_results} == {'CIFAR-100-LT'}
    assert len(found) == len(data.eval_results)  # no name twice


def test_the_model_index_is_complete():
    data = ModelCard(render()).data
    (model,) = eval_results_to_model_index(data.model_name, data.eval_results)
    for result in model['results']:
        assert result['task']['type'] == 'image-classification'
        assert result['dataset']['type'] == 'cifar-100-lt'
        assert result['dataset']['name']
        assert all(metric['type'] and metric['value'] is not None for metric in result['metrics'])
    assert data.to_dict()['model-index'] == [model]


def test_datasets_on_the_hub():
    results = make_results()
    results['data']['datasets'] = ['cifar100']
    data = ModelCard(render(results)).data
    assert data.datasets == ['cifar100']
    assert {item.dataset_type for item in data.eval_results} == {'cifar100'}
    assert ModelCard(render()).data.datasets is None


# figures


def test_the_results_table():
    results = make_results()
    rows = tables(render(results))['CIFAR-100-LT']
    test = results['test']
    names = ['all 3 experts', 'routed, threshold 0.65', 'expert 0 alone', 'expert 1 alone', 'expert 2 alone']
    assert [row['CIFAR-100-LT'] for row in rows] == names
    titles = {'overall': 'top1', 'worst class': 'worst_class', 'ECE': 'ece', **{name: name for name in GROUPS}}
    for row, figures in zip(rows, (test['all_experts'], test['routed']), strict=False):
        assert {title: row[title] for title in titles} == {t: f'{figures[key]:.2f}' for t, key in titles.items()}
    assert [row['overall'] for row in rows[2:]] == [f'{test["all_experts"][f"expert{k}_top1"]:.2f}' for k in range(3)]
    assert all(row[title] == '-' for row in rows[2:] for title in titles if title != 'overall')
    costs = [GMACS[3][-1], test['routed']['gmacs'], *[GMACS[3][0]] * 3]
    assert [row['GMACs'] for row in rows] == [f'{cost:.4f}' for cost in costs]


def test_the_summary_has_the_figures():
    results = make_results()
    text = render(results).split('\n## ')[0].split('\n---\n')[1]
    test = results['test']
    for figure in (
        '10,847 images of 100 classes', '500 of the most frequent', '5 of the rarest', '10,000 test images',
        f'{test["all_experts"]["top1"]:.1f} %', '0.1004 GMACs', f'{test["routed"]["top1"]:.1f} %',
        f'{test["routed"]["gmacs"]:.4f} GMACs', f'{test["routed"]["mean_experts"]:.2f} experts', '784,432 parameters',
        f'{results["network"]["bytes"] / 1e6:.1f} MB', '3x32x32', 'mean 0.4914 0.4822 0.4465',
    ):  # fmt: skip
        assert figure in text
    assert 'only a part' not in text


def test_the_groups_are_described():
    text = render()
    assert 'many, 35 classes with 102 to 500 training images' in text
    assert 'few, 30 classes with 5 to 19 training images' in text


def test_the_routing_table_is_a_selection_with_ends_and_default():
    results = make_results()
    rows = tables(section(render(results), 'Routing'))['threshold']
    sweep = {f'{row["threshold"]:g}': row for row in results['test']['sweep']}
    shown = [row['threshold'].removesuffix(' (default)') for row in rows]
    assert shown == sorted(shown, key=float)
    assert {'0', '0.65', '1'} <= set(shown)
    assert 5 <= len(shown) <= 10
    assert [row['threshold'] for row in rows if 'default' in row['threshold']] == ['0.65 (default)']
    for row, threshold in zip(rows, shown, strict=True):
        expected = sweep[threshold]
        assert [row[name] for name in ('overall', *GROUPS)] == [f'{expected[key]:.2f}' for key in ('top1', *GROUPS)]
        assert row['experts'] == f'{expected["mean_experts"]:.2f}'
        assert row['GMACs'] == f'{expected["gmacs"]:.4f}'


def test_one_seed_has_no_spread():
    assert 'One seed (42) was trained' in render()
    assert '±' not in render()


def test_several_seeds():
    results = make_results(seeds=3)
    text = render(results)
    *rows, spread = tables(text)['all 3 experts']
    assert 'One seed' not in text
    assert [row['all 3 experts'] for row in rows] == ['seed 42, published', 'seed 43', 'seed 44']
    for title, key in (('overall', 'top1'), ('many', 'many'), ('few', 'few')):
        values = [seed[key] for seed in results['seeds']]
        assert [row[title] for row in rows] == [f'{value:.2f}' for value in values]
        mean = sum(values) / 3
        deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
        assert spread[title] == f'{mean:.2f} ± {deviation:.2f}'


def test_the_worst_classes():
    results = make_results()
    rows = tables(section(render(results), 'Intended use and limits'))['class']
    worst = sorted(results['test']['per_class'], key=lambda row: row['accuracy'])[: len(rows)]
    assert len(rows) == 5
    assert [row['accuracy (%)'] for row in rows] == [f'{row["accuracy"]:.1f}' for row in worst]
    by_name = {escape(row['name']): row for row in results['test']['per_class']}
    for row in rows:
        assert row['training images'] == str(by_name[row['class']]['train_images'])
        assert row['accuracy (%)'] == f'{by_name[row["class"]]["accuracy"]:.1f}'


def test_classes_without_figures_are_not_the_worst():
    results = make_results()
    for row in results['test']['per_class']:
        row['accuracy'] = None
    text = section(render(results), 'Intended use and limits')
    assert not tables(text)
    assert 'worst' not in text


def test_other_groups():
    results = make_results(classes=6, largest=90, factor=30)
    header = tables(render(results))['CIFAR-100-LT'][0]
    assert 'many' not in header
    assert {'medium', 'few'} <= set(header)


# how it was made


def test_the_choices():
    text = section(render(), 'How each choice was made')
    assert "The router's threshold, 0.65, was chosen on 1,084 training images (10 %, seed 42)" in text
    assert RULE in text
    assert 'never on test images' in text
    assert 'trained on all training images' in text
    assert '`cifar100lt_ride` and `cifar100lt_router`' in text


def test_a_threshold_without_record():
    results = make_results()
    results['choices'] = None
    text = render(results)
    assert 'threshold is 0.65; there is no record of how it was chosen' in text
    assert 'The run that chose the threshold' not in text


def test_images_held_out_of_the_published_training():
    text = render(make_results(held_out=True))
    assert '**It saw only a part of the training images**: 9,763 of 10,847;' in text
    assert 'trained on all training images' not in text
    named = make_results()
    named['training'][0]['command'] += ' --holdout=0.1'
    assert '**It saw only a part of the training images**: 10,847;' in render(named)
    fewer = make_results()
    fewer['training'][0]['images'] = 9000
    assert '9,000 of 10,847' in render(fewer)


def test_figures_of_held_out_images_are_not_called_test_figures():
    results = make_results(held_out=True)
    results['data']['source'] = '1084 of 10847 training images of data/x/train, held out'
    results['choices'] = make_results()['choices'] | {'training': results['training']}
    text = render(results)
    assert 'held-out training images' in text
    assert 'The figures are of training images that were held out, not of test images.' in text
    assert 'on the same images' in text
    assert 'that this training held out' in text
    assert '10,000 test images' not in text
    assert {item.dataset_split for item in ModelCard(text).data.eval_results} == {'held out'}


def test_the_training_table_and_commands():
    results = make_results()
    text = section(render(results), 'Training')
    rows = {row['']: row for row in tables(text)['']}
    assert list(rows['seed'].values()) == ['seed', '42', '42', '-']
    assert list(rows['epochs'].values()) == ['epochs', '200', '5', '-']
    assert list(rows['training images'].values()) == ['training images', '10,847', '10,847', '-']
    assert list(rows['time of the training steps'].values())[1:] == ['2 h 15 min', '2 min', '-']
    assert rows['hardware']['experts'] == '2 CPU cores (x86_64)'
    assert rows['timm']['test'] == '1.0.31'
    assert rows['commit']['router'] == '`0123456789abcdef0123456789abcdef01234567`'
    own, choosing = blocks(text, 'bash')
    assert own.splitlines() == [stage['command'] for stage in results['training']]
    assert choosing.splitlines() == [stage['command'] for stage in results['choices']['training']]


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


def test_a_network_of_timms_own():
    results = make_results(experts=1, method='ce', name='resnet50.ce_mine')
    results['architecture'], results['network']['gmacs_by_experts'] = 'resnet50', None
    text = render(results)
    assert all('ride_timm' not in snippet for snippet in blocks(text, 'python'))
    assert "create_model('local-dir:resnet50.ce_mine', pretrained=True)" in text


@pytest.mark.parametrize('repo_id', [None, 'org/net'])
@pytest.mark.parametrize('source', ['torch/cifar100 (val)', 'data/mine/val', None])
def test_the_commands_are_understood(repo_id, source):
    results = make_results()
    results['data']['source'] = source
    text = render(results, repo_id=repo_id)
    lines = [line for block in blocks(section(text, 'Check it'), 'bash') for line in block.splitlines()]
    parsed = [validate_parser().parse_args(shlex.split(line)[2:]) for line in lines]
    assert [args.routed for args in parsed] == [False, True]
    assert {args.model for args in parsed} == {'hf-hub:org/net' if repo_id else results['name']}
    assert {args.dataset for args in parsed} == {'torch/cifar100' if source and 'torch' in source else ''}
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
    assert 'My birds, has terms of its own' in text
    assert 'Apache-2.0' in text


# others


def test_others_of_the_same_data_are_listed():
    plain, balpoe = make_results(experts=1, method='ce', level=40), make_results(method='balpoe')
    foreign = make_results()
    foreign['data']['name'], foreign['name'] = 'Elsewhere', 'x.y'
    text = render(others=[balpoe, foreign, plain])
    assert text == render(others=[plain, balpoe])  # in whatever order
    rows = tables(text)['all experts']
    names = [row['all experts'] for row in rows]
    assert names == ['**ride_resnet32_3e.ride_cifar100lt**', 'ride_resnet32_1e.ce_cifar100lt (plain)', balpoe['name']]
    assert rows[1]['overall'] == f'{plain["test"]["all_experts"]["top1"]:.2f}'
    assert rows[1]['GMACs'] == '0.0689'


def test_figures_are_shown_by_name():
    assert '](tail.png)' in render()
    assert '](routing.png)' in render()
    assert '.png' not in render(figures=())
    assert 'Accuracy over GMACs of an image](routing.png)' in render(figures=['routing.png', 'tail.png'])


# files


def test_write_card(tmp_path):
    results = make_results()
    folder = write_folder(tmp_path, results)
    write_card(folder, [make_results(method='balpoe')])
    names = {'README.md', 'tail.png', 'routing.png', 'results.json', 'config.json'}
    assert {path.name for path in folder.iterdir()} == names
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert first['README.md'].decode() == render(results, others=[make_results(method='balpoe')])
    write_card(str(folder), [make_results(method='balpoe')])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    write_card(folder, repo_id='org/net')
    assert 'hf-hub:org/net' in (folder / 'README.md').read_text()


def test_the_card_of_another_network_is_refused():
    results = make_results()
    with pytest.raises(RideError, match=r'config\.json is of ride_resnet32_4e and results\.json of ride_resnet32_3e'):
        render_card(results, make_config(results) | {'architecture': 'ride_resnet32_4e'})


def test_a_folder_without_config(tmp_path):
    folder = write_folder(tmp_path, make_results())
    (folder / 'config.json').unlink()
    with pytest.raises(RideError, match=r'config\.json cannot be read'):
        write_card(folder)
    assert not (folder / 'README.md').exists()


@pytest.mark.parametrize(
    ('content', 'message'), [('{', 'is not JSON'), ('[]', 'holds no JSON object'), ('{}', '"format" None')]
)
def test_files_that_are_no_results(tmp_path, content, message):
    (tmp_path / 'results.json').write_text(content)
    with pytest.raises(RideError, match=message) as error:
        read_results(tmp_path)
    assert str(tmp_path / 'results.json') in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(RideError, match=r'results\.json cannot be read'):
        read_results(tmp_path / 'results.json')


@pytest.mark.parametrize(
    'key',
    [
        'name', 'method', 'data.train_images', 'network.bytes', 'network.gmacs_by_experts', 'training.0.command',
        'choices.threshold', 'choices.training.1.stage', 'test.all_experts.top1', 'test.routed.gmacs',
        'test.sweep.3.threshold', 'test.groups', 'test.per_class.7.accuracy', 'seeds.0.top1',
    ],
)  # fmt: skip
@pytest.mark.parametrize('how', ['missing', 'wrong'])
def test_a_bad_key_is_named(key, how):
    results = make_results()
    *parents, last = [int(part) if part.isdigit() else part for part in key.split('.')]
    holder = results
    for part in parents:
        holder = holder[part]
    if how == 'missing':
        del holder[last]
    else:
        holder[last] = object()
    named = re.sub(r'\.(\d+)\.', r'[\1].', key)
    with pytest.raises(RideError, match=re.escape(f'somewhere/results.json: "{named}" ')) as error:
        check_results(results, 'somewhere/results.json')
    assert ('is missing' in str(error.value)) == (how == 'missing')
    with pytest.raises(RideError, match=re.escape(named)):
        render_card(results, {})


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('test.all_experts.top1', float('nan')), ('test.all_experts.many', '57'), ('test.routed.top1', True),
        ('data.num_classes', 99), ('test.groups.many', [100]), ('seeds', []), ('training', []), ('format', 2),
    ],
)  # fmt: skip
def test_bad_values(key, value):
    results = make_results()
    *parents, last = key.split('.')
    holder = results
    for part in parents:
        holder = holder[part]
    holder[last] = value
    with pytest.raises(RideError, match=last if last != 'num_classes' else 'per_class'):
        check_results(results)


def test_what_is_unknown_is_a_dash():
    results = make_results()
    results['network']['bytes'] = None
    results['training'][0] |= {'seconds': None, 'commit': None, 'seed': None, 'recipe': None, 'command': None}
    results['choices']['held_out'] = {'fraction': None, 'images': None, 'seed': None}
    results['seeds'][0]['seed'] = None
    results['test']['all_experts']['few'] = None
    del results['test']['all_experts']['ece']
    text = render(results)
    assert 'None' not in text.replace('None switches routing off', '')
    assert 'One seed was trained' in text
    assert tables(text)['CIFAR-100-LT'][0]['few'] == tables(text)['CIFAR-100-LT'][0]['ECE'] == '-'
    assert not any('few classes (all' in item.metric_name for item in ModelCard(text).data.eval_results)


# the table of all


def test_the_table_of_all_weights():
    everything = [make_results(seeds=3), make_results(method='balpoe', router=False, level=50),
                  make_results(experts=1, method='ce', level=40)]  # fmt: skip
    text = models_table(everything)
    assert text == models_table(everything[::-1])
    header, _, *lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()]
    assert header[:7] == ['weights', 'data', 'overall', 'many', 'medium', 'few', 'GMACs']
    plain, balpoe, ride = lines
    for row, results in ((plain, everything[2]), (balpoe, everything[1]), (ride, everything[0])):
        figures, network = results['test']['all_experts'], results['network']
        assert row[0] == f'[{results["name"]}](weights/{results["name"]}/README.md)'
        assert row[2:6] == [f'{figures[key]:.1f}' for key in ('top1', *GROUPS)]
        assert row[6] == f'{network["gmacs"]:.4f}'
        assert row[10:12] == [f'{network["parameters"] / 1e6:.3f}', f'{network["bytes"] / 1e6:.1f}']
    routed = everything[0]['test']['routed']
    assert ride[7:10] == [f'{routed["top1"]:.1f}', f'{routed["mean_experts"]:.2f}', f'{routed["gmacs"]:.4f}']
    assert plain[7:10] == balpoe[7:10] == ['-'] * 3
    values = [row['top1'] for row in everything[0]['seeds']]
    assert ride[12] == f'3 ({statistics.mean(values):.1f} ± {statistics.stdev(values):.1f})'
    assert plain[12] == '1'


def test_update_model_card(tmp_path):
    page = tmp_path / 'MODEL_CARD.md'
    page.write_text(f'# Models\n\n{BEGIN}\nold\n{END}\n\nafter\n')
    update_model_card(page, [make_results()])
    expected = f'# Models\n\n{BEGIN}\n\n{models_table([make_results()])}\n\n{END}\n\nafter\n'
    assert page.read_text() == expected
    update_model_card(page, [make_results()])
    assert page.read_text() == expected


@pytest.mark.parametrize('text', ['', BEGIN, END, f'{END}{BEGIN}', f'{BEGIN}{BEGIN}{END}'])
def test_a_page_without_marks_is_left_alone(tmp_path, text):
    page = tmp_path / 'page.md'
    page.write_text(text)
    with pytest.raises(RideError, match=r'page\.md must have one line <!-- models: begin -->'):
        update_model_card(page, [make_results()])
    assert page.read_text() == text


def test_the_projects_page_has_the_marks():
    page = Path(__file__).resolve().parents[1] / 'MODEL_CARD.md'
    text = page.read_text(encoding='utf-8')
    assert text.count(BEGIN) == text.count(END) == 1


def test_the_command(tmp_path, capsys):
    everything = [make_results(), make_results(experts=1, method='ce', level=40)]
    folders = [write_folder(tmp_path, results) for results in everything]
    page = tmp_path / 'MODEL_CARD.md'
    page.write_text(f'{BEGIN}\n{END}\n')
    assert main([*map(str, folders), '--model-card', str(page)]) == 0
    for folder, results in zip(folders, everything, strict=True):
        assert (folder / 'README.md').read_text() == render(results, others=everything)
        assert str(folder / 'README.md') in capsys.readouterr().out or folder is not folders[0]
    assert models_table(everything) in page.read_text()


def test_the_command_writes_nothing_if_a_folder_is_bad(tmp_path):
    good = write_folder(tmp_path, make_results())
    bad = write_folder(tmp_path, make_results(method='balpoe'))
    (bad / 'results.json').write_text(json.dumps({'format': 1}))
    with pytest.raises(RideError, match='"name" is missing'):
        main([str(good), str(bad)])
    assert not (good / 'README.md').exists()
    with pytest.raises(RideError, match='name each once'):
        main([str(good), str(good)])
