"""The model cards as files: reading `results.json`, writing, the table of all weights, the command."""

import json
import re
import statistics
from pathlib import Path

import pytest
from card_reading import render, table_of, tables
from huggingface_hub import ModelCard
from weight_results import make_config, make_results, write_folder

from ride_timm.commands.card import main
from ride_timm.errors import RideError
from ride_timm.pages.card import BEGIN, END, render_card, update_model_card, write_card
from ride_timm.records.results import Results, read_results

GROUPS = ('many', 'medium', 'few')

# files


def record(**options):
    return Results.from_json(make_results(**options))


def test_write_card(tmp_path):
    results = make_results()
    folder = write_folder(tmp_path, results)
    write_card(folder, [record(method='balpoe')])
    names = {'README.md', 'tail.png', 'routing.png', 'results.json', 'config.json'}
    assert {path.name for path in folder.iterdir()} == names
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert first['README.md'].decode() == render(results, others=[make_results(method='balpoe')])
    write_card(str(folder), [record(method='balpoe')])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


def test_the_picture_of_a_single_point_is_taken_away(tmp_path):
    results = make_results(experts=1, method='ce')
    folder = write_folder(tmp_path, results)
    write_card(folder, [record()])
    assert (folder / 'routing.png').exists()
    write_card(folder)
    assert not (folder / 'routing.png').exists()
    assert (folder / 'README.md').read_text() == render(results)


def test_the_card_of_another_network_is_refused():
    results = make_results()
    with pytest.raises(RideError, match=r'config\.json is of ride_resnet32_4e and results\.json of ride_resnet32_3e'):
        render_card(Results.from_json(results), make_config(results) | {'architecture': 'ride_resnet32_4e'})


def test_a_folder_without_config(tmp_path):
    folder = write_folder(tmp_path, make_results())
    (folder / 'config.json').unlink()
    with pytest.raises(RideError, match=r'config\.json cannot be read'):
        write_card(folder)
    assert not (folder / 'README.md').exists()


@pytest.mark.parametrize(
    ('content', 'message'), [('{', 'is not valid JSON'), ('[]', 'holds no JSON object'), ('{}', '"format" None')]
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
        'architecture', 'method', 'data.train_images', 'network.parameters', 'network.gmacs_by_experts',
        'training.0.command',
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
    table = re.match(r'test\.(all_experts|routed|sweep)', named)  # which has numbers by name
    named = table[1] if table else named
    with pytest.raises(RideError, match=r'^somewhere/results\.json: .*' + re.escape(f'{named}" ')) as error:
        Results.from_json(results, 'somewhere/results.json')
    assert ('is missing' in str(error.value)) == (how == 'missing' and not table)
    assert last in str(error.value)


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('test.all_experts.top1', float('nan')), ('test.all_experts.many', '57'), ('test.routed.top1', True),
        ('data.num_classes', 99), ('test.groups.many', [100]), ('seeds', []), ('training', []), ('format', 3),
    ],
)  # fmt: skip
def test_bad_values(key, value):
    results = make_results()
    *parents, last = key.split('.')
    holder = results
    for part in parents:
        holder = holder[part]
    holder[last] = value
    with pytest.raises(
        RideError, match='per_class' if last == 'num_classes' else key.split('.')[1] if '.' in key else key
    ):
        Results.from_json(results)


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
    assert 'one seed:' in text
    assert tables(text)['CIFAR-100-LT'][0]['few'] == tables(text)['CIFAR-100-LT'][0]['ECE'] == '-'
    assert not any('few classes (all' in item.metric_name for item in ModelCard(text).data.eval_results)


# the table of all


def test_the_table_of_all_weights():
    everything = [make_results(seeds=3), make_results(method='balpoe', router=False, level=50),
                  make_results(experts=1, method='ce', level=40)]  # fmt: skip
    text = table_of(everything)
    assert text == table_of(everything[::-1])
    header, _, *lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()]
    assert header[:8] == ['checkpoint', 'data', 'overall', 'many', 'medium', 'few', 'ECE', 'GMACs']
    plain, balpoe, ride = lines
    for row, results in ((plain, everything[2]), (balpoe, everything[1]), (ride, everything[0])):
        figures, network = results['test']['all_experts'], results['network']
        assert row[0] == f'[{results["name"]}](weights/{results["name"]}/README.md)'
        assert row[2:7] == [f'{figures[key]:.1f}' for key in ('top1', *GROUPS, 'ece')]
        assert row[7] == f'{network["gmacs"]:.4f}'
        assert row[11:14] == [f'{network["parameters"] / 1e6:.3f}', f'{network["bytes"] / 1e6:.1f}', '200']
    routed = everything[0]['test']['routed']
    assert ride[8:11] == [f'{routed["top1"]:.1f}', f'{routed["mean_experts"]:.2f}', f'{routed["gmacs"]:.4f}']
    assert plain[8:11] == balpoe[8:11] == ['-'] * 3
    values = [row['top1'] for row in everything[0]['seeds']]
    assert ride[14] == f'3 ({statistics.mean(values):.1f} ± {statistics.stdev(values):.1f})'
    assert plain[14] == '1'
    assert plain[1] == 'CIFAR-100-LT'
    held = table_of([make_results(held_out=True)]).splitlines()[2]
    assert held.split('|')[2].strip() == 'CIFAR-100-LT (90 % of the images)'


def test_update_model_card(tmp_path):
    page = tmp_path / 'MODEL_CARD.md'
    page.write_text(f'# Models\n\n{BEGIN}\nold\n{END}\n\nafter\n')
    update_model_card(page, [record()])
    expected = f'# Models\n\n{BEGIN}\n\n{table_of([make_results()])}\n\n{END}\n\nafter\n'
    assert page.read_text() == expected
    update_model_card(page, [record()])
    assert page.read_text() == expected


@pytest.mark.parametrize('text', ['', BEGIN, END, f'{END}{BEGIN}', f'{BEGIN}{BEGIN}{END}'])
def test_a_page_without_marks_is_left_alone(tmp_path, text):
    page = tmp_path / 'page.md'
    page.write_text(text)
    with pytest.raises(RideError, match=r'page\.md must have one line <!-- models: begin -->'):
        update_model_card(page, [record()])
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
    assert table_of(everything) in page.read_text()


def test_the_command_writes_nothing_if_a_folder_is_bad(tmp_path):
    good = write_folder(tmp_path, make_results())
    bad = write_folder(tmp_path, make_results(method='balpoe'))
    (bad / 'results.json').write_text(json.dumps({'format': 2}))
    with pytest.raises(RideError, match='"architecture" is missing'):
        main([str(good), str(bad)])
    assert not (good / 'README.md').exists()
    with pytest.raises(RideError, match='name each once'):
        main([str(good), str(good)])
