"""What cards say of particular data, and of networks whose figures alone are kept."""

import shlex

import pytest
from card_reading import blocks, render, section, table_of, tables
from configs import resolved
from weight_results import make_results

from ride_timm.commands.convert import build_parser as convert_parser


def tiny(size=64, **options):
    results = make_results(classes=200, **options)
    results['data']['name'] = 'Tiny-ImageNet-LT'
    results['network']['input_size'] = [3, size, size]
    return results


def test_tiny_imagenet_is_not_imagenet_lt():
    text = section(render(tiny()), 'Intended use and limits')
    assert 'It is not an ImageNet-LT network' in text
    assert 'scaled down to 64 pixels.' in text
    assert 'enlarged' not in text
    assert 'scaled down to 64 pixels, enlarged to 128 for this network.' in render(tiny(128))
    (commands,) = blocks(text, 'bash')
    train, convert = (shlex.split(line) for line in commands.splitlines())
    args = resolved(train[2:])
    assert (args.recipe, args.model) == ('imagenetlt_ride_r50', tiny()['architecture'])
    assert convert_parser().parse_args(convert[2:]).output == 'converted'


def test_the_terms_of_tiny_imagenet():
    text = section(render(tiny()), 'Data and licence')
    assert 'non-commercial research and education only' in text
    assert 'CIFAR' not in text


def test_a_threshold_given_by_hand():
    results = make_results()
    rule = results['choices']['rule']
    assert f'The rule: {rule}.' in section(render(results), 'How each choice was made')
    results['choices'] |= {'by_hand': True, 'rule_threshold': 0.05}
    text = section(render(results), 'How each choice was made')
    assert f'It was set by hand; the rule ({rule}) would have chosen 0.05.' in text
    assert 'The rule:' not in text


def test_a_plain_network_is_not_trained_by_rides_recipe():
    results = tiny(experts=1, method='ce', name='resnet50.ce_tinyimagenetlt')
    results['architecture'] = 'resnet50'
    results['network'] |= {'gmacs_by_experts': None, 'multi_expert': False}
    text = section(render(results), 'Intended use and limits')
    assert 'It is not an ImageNet-LT network' in text
    assert not blocks(text, 'bash')


@pytest.mark.parametrize('name', ['CIFAR-100-LT', 'My birds', 'ImageNet-LT'])
def test_other_data_have_no_such_note(name):
    results = make_results()
    results['data']['name'] = name
    assert 'Tiny ImageNet' not in render(results)


def test_a_network_whose_results_alone_are_kept():
    results = tiny(experts=1, method='balanced_softmax', name='resnet50.balanced_softmax_tinyimagenetlt')
    results['results_only'], results['network']['bytes'] = True, None
    text = render(results, others=[tiny()])
    assert 'only its results' in text
    assert not blocks(text, 'python')
    assert '\n## Reproduce the results' not in text
    assert '--pretrained' not in text
    assert len(tables(text)['all experts']) == 2
    assert table_of([results]).splitlines()[2].split('|')[13].strip() == '-'


def test_the_comparison_has_calibration_and_says_who_saw_less():
    own, other = tiny(), tiny(held_out=True, method='balpoe')
    rows = tables(render(own, others=[other]))['all experts']
    assert [row['ECE'] for row in rows] == [f'{net["test"]["all_experts"]["ece"]:.2f}' for net in (own, other)]
    assert rows[1]['all experts'].endswith('(90 % of the images)')
    assert 'of the images' not in rows[0]['all experts']


def test_half_precision_is_named():
    results = tiny()
    results['network']['dtype'] = 'float16'
    assert 'in float16 (normalisation, biases and router in float32)' in render(results)
    assert 'in float' not in render(tiny())


def test_another_number_of_epochs_than_the_recipes():
    results = tiny()
    assert 'except' not in section(render(results), 'How each choice was made')
    results['training'][0] |= {'own_epochs': True, 'epochs': 40}
    text = section(render(results), 'How each choice was made')
    assert 'printed by `ride-timm recipes NAME`, except `--epochs 40` (experts).' in text
