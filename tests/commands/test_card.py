"""The model cards: what they claim is what `results.json` says."""

import pytest
from card_reading import blocks, render, section, table_of, tables
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index
from weight_results import GMACS, RULE, make_results

from ride_timm.pages.markdown import escape

GROUPS = ('many', 'medium', 'few')
LIMITS = 'Intended use and limits'


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
        '10,847 images of 100 classes', '500 images in the largest', '5 in the smallest', '10,000 test images',
        f'{test["all_experts"]["top1"]:.1f} %', '0.1004 GMACs', f'{test["routed"]["top1"]:.1f} %',
        f'{test["routed"]["gmacs"]:.4f} GMACs', f'{test["routed"]["mean_experts"]:.2f} experts', '784,432 parameters',
        f'{results["network"]["bytes"] / 1e6:.1f} MB', '3x32x32', 'mean 0.4914 0.4822 0.4465',
    ):  # fmt: skip
        assert figure in text
    assert 'a part' not in text


def test_the_groups_are_described():
    text = render()
    assert 'many, 35 classes with 102 to 500 training images' in text
    assert 'few, 30 classes with 5 to 19 training images' in text
    text = render(make_results(classes=3, largest=160, factor=40))
    assert 'many, 1 class with 160 training images' in text
    assert 'few, 1 class with 4 training images' in text


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
    assert 'one seed (42)' in render()
    assert '±' not in render()


def test_several_seeds():
    results = make_results(seeds=3)
    text = render(results)
    *rows, spread = tables(text)['all 3 experts']
    assert 'one seed' not in text
    assert [row['all 3 experts'] for row in rows] == ['seed 42, published', 'seed 43', 'seed 44']
    for title, key in (('overall', 'top1'), ('many', 'many'), ('few', 'few')):
        values = [seed[key] for seed in results['seeds']]
        assert [row[title] for row in rows] == [f'{value:.2f}' for value in values]
        mean = sum(values) / 3
        deviation = (sum((value - mean) ** 2 for value in values) / 2) ** 0.5
        assert spread[title] == f'{mean:.2f} ± {deviation:.2f}'


def test_the_worst_classes():
    results = make_results()
    rows = tables(section(render(results), LIMITS))['class']
    worst = sorted(results['test']['per_class'], key=lambda row: row['accuracy'])[: len(rows)]
    assert len(rows) == 5
    assert [row['accuracy (%)'] for row in rows] == [f'{row["accuracy"]:.1f}' for row in worst]
    by_name = {escape(row['name']): row for row in results['test']['per_class']}
    for row in rows:
        assert row['training images'] == str(by_name[row['class']]['train_images'])
        assert row['accuracy (%)'] == f'{by_name[row["class"]]["accuracy"]:.1f}'


def test_the_worst_classes_have_names_for_people():
    text = section(render(make_results(experts=1, method='ce', classes=2, class_names=['n01443537', 'a|b'])), LIMITS)
    assert {row['class'] for row in tables(text)['class']} == {'goldfish (n01443537)', r'a\|b'}
    assert 'with all experts' not in text


def test_classes_without_figures_are_not_the_worst():
    results = make_results()
    for row in results['test']['per_class']:
        row['accuracy'] = None
    text = section(render(results), LIMITS)
    assert not tables(text)
    assert 'The worst' not in text


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
    assert 'threshold is 0.65; how it was chosen is not recorded' in text
    assert 'The run that chose the threshold' not in text


def test_images_held_out_of_the_published_training():
    text = render(make_results(held_out=True))
    assert '**Trained on a part of the training images**: 9,763 of 10,847.' in text
    assert 'trained on all training images' not in text
    named = make_results()
    named['training'][0]['holdout'] = 0.1
    assert '**Trained on a part of the training images**: 10,847.' in render(named)
    fewer = make_results()
    fewer['training'][0]['images'] = 9000
    assert '9,000 of 10,847' in render(fewer)


def test_what_it_was_initialised_from():
    results = make_results()
    words = '**Initialised from a trained checkpoint**, `resnet50.a1_in1k`'
    assert words not in render(results)
    assert 'fine-tuned' not in table_of([results])
    results['training'][0]['init'] = 'resnet50.a1_in1k'
    assert words in render(results).split('## Use it')[0]
    assert '| 200 (fine-tuned) |' in table_of([results])


def test_figures_of_held_out_images_are_not_called_test_figures():
    results = make_results(held_out=True)
    results['data']['evaluated_on'] = 'held_out'
    results['choices'] = make_results()['choices'] | {'training': results['training']}
    text = render(results)
    assert 'held-out training images' in text
    assert 'The results are of held-out training images, not of test images.' in text
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


# test images that are not balanced


def unbalanced(**options):
    """Results whose mean over classes is 12.5 points below the accuracy over images."""
    results = make_results(**options)
    test = results['test']
    test['per_class'][0]['test_images'] = 400
    for figures in (test['all_experts'], *(test['sweep'] or ()), *([test['routed']] if test['routed'] else [])):
        figures['balanced'] = figures['top1'] - 12.5
    for row in results['seeds']:
        row['balanced'] = row['top1'] - 12.5
    return results


def test_the_mean_over_classes_leads_on_unbalanced_images():
    results, other = unbalanced(seeds=2), unbalanced(method='balpoe')
    text = render(results, others=[other])
    test = results['test']
    for title, figures in (
        ('CIFAR-100-LT', [test['all_experts'], test['routed']]),
        ('all experts', [test['all_experts'], other['test']['all_experts']]),
        ('all 3 experts', results['seeds']),
    ):
        rows = tables(text)[title]
        assert list(rows[0])[1:3] == ['mean over classes', 'over images']
        for row, figure in zip(rows, figures, strict=False):
            assert row['mean over classes'] == f'{figure["balanced"]:.2f}'
            assert row['over images'] == f'{figure["top1"]:.2f}'
    assert tables(section(text, 'Routing'))['threshold'][0]['mean over classes'] == (
        f'{test["sweep"][0]["balanced"]:.2f}'
    )
    told = text.split('\n## ')[0]
    assert f'{test["all_experts"]["balanced"]:.1f} % in the mean over classes' in told
    assert f'({test["all_experts"]["top1"]:.1f} % of the 10,000 test images)' in told
    assert f'{test["routed"]["balanced"]:.1f} % in the mean over classes' in told
    assert '100 to 400 per class' in section(text, 'Results')
    assert ModelCard(text).data.eval_results[0].metric_name == 'Balanced accuracy (all 3 experts)'
    assert ModelCard(text).data.eval_results[0].metric_value == round(test['all_experts']['balanced'], 2)


def test_the_table_of_all_weights_names_the_mean_over_classes():
    results = unbalanced(seeds=2)
    (cells,) = [[cell.strip() for cell in line.split('|')] for line in table_of([results]).splitlines()[2:]]
    assert cells[2] == 'CIFAR-100-LT (mean over classes)'
    assert cells[3] == f'{results["test"]["all_experts"]["balanced"]:.1f}'
    assert cells[9] == f'{results["test"]["routed"]["balanced"]:.1f}'
    mean = sum(row['balanced'] for row in results['seeds']) / 2
    assert cells[15].startswith(f'2 ({mean:.1f} ± ')


def test_results_without_the_mean_over_classes_keep_the_accuracy_over_images():
    results = unbalanced()
    del results['test']['routed']['balanced']
    assert tables(render(results))['CIFAR-100-LT'][0]['overall'] == f'{results["test"]["all_experts"]["top1"]:.2f}'


def test_the_accuracy_on_few_images_has_an_interval():
    results = make_results()
    worst = min(results['test']['per_class'], key=lambda row: row['accuracy'])
    worst |= {'test_images': 4, 'accuracy': 0.0}
    first, *others = tables(section(render(results), LIMITS))['class']
    assert first['accuracy (%)'] == '0.0 (0 to 49)'
    assert not any('to' in row['accuracy (%)'] for row in others)
    assert 'precision (%)' not in first  # of results from before it was kept
    worst |= {'predicted': 8, 'precision': 12.5}
    assert tables(section(render(results), LIMITS))['class'][0]['precision (%)'] == '12.5'


def test_macro_f1_stands_next_to_the_mean_over_classes():
    results = unbalanced()
    results['test']['all_experts']['macro_f1'] = 43.21
    row = tables(render(results))['CIFAR-100-LT'][0]
    assert row['macro F1'] == '43.21'
    assert list(row)[1:4] == ['mean over classes', 'over images', 'macro F1']


# plain networks


@pytest.mark.parametrize(
    ('method', 'registered', 'papers'),
    [
        ('ce', False, []), ('focal', False, ['1708.02002']), ('ldam', False, ['1906.07413']),
        ('logit_adjusted', False, ['2007.07314']), ('balanced_softmax', True, ['2010.01809', '2007.10740']),
        ('ce', True, ['2010.01809']), (None, False, []),
    ],
)  # fmt: skip
def test_a_card_cites_what_was_used(method, registered, papers):
    results = make_results(experts=1, method=method)
    if not registered:  # one of timm's own
        results['network'] |= {'gmacs_by_experts': None, 'multi_expert': False}
    text = render(results)
    assert [line.split('{')[1].split('}')[0] for line in text.splitlines() if 'eprint' in line] == papers
    assert ('## Citation' in text) == bool(papers)


def test_a_single_point_makes_no_picture():
    plain = make_results(experts=1, method='ce')
    assert '](tail.png)' in render(plain)
    assert 'routing.png' not in render(plain)
    assert 'routing.png' not in render(make_results(router=False))
    assert '](routing.png)' in render(plain, others=[make_results()])


def test_figures_are_shown_by_name():
    assert '](tail.png)' in render()
    assert '](routing.png)' in render()
    assert '.png' not in render(figures=())
    assert 'Accuracy over GMACs per image](routing.png)' in render(figures=['routing.png', 'tail.png'])


def test_the_base_model_and_the_data_set_are_in_the_metadata():
    results = make_results()
    results['base_model'], results['data']['datasets'] = 'timm/resnet50.a1_in1k', ['uoft-cs/cifar100']
    data = ModelCard(render(results)).data
    assert data.base_model == 'timm/resnet50.a1_in1k'
    assert data.datasets == ['uoft-cs/cifar100']
