import json
import math

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.task import ClassificationEvaluator

from ride_timm.data import choose_groups, frequency_groups
from ride_timm.evaluation.metrics import (
    LongTailEvaluator,
    class_accuracy,
    expected_calibration_error,
    group_accuracy,
    harmonic_accuracy,
    wilson_interval,
)
from ride_timm.records.headline import accuracy_labels, leading_accuracy

COUNTS = np.array([300, 150, 90, 40, 20, 19, 8, 2])


def scores(n=400, classes=8, seed=0, scale=2.0, skip=()):
    """Logits that lean towards the true class, and targets that avoid the classes in `skip`."""
    generator = np.random.default_rng(seed)
    target = generator.choice([c for c in range(classes) if c not in skip], n)
    logits = generator.normal(size=(n, classes))
    logits[np.arange(n), target] += scale * generator.random(n)
    return torch.tensor(logits, dtype=torch.float32), torch.tensor(target)


def evaluate(logits, target, sizes=(64,), counts=COUNTS, **kwargs):
    evaluator = LongTailEvaluator(counts, **kwargs)
    start, i = 0, 0
    while start < len(target):
        size = sizes[i % len(sizes)]
        evaluator.update(logits[start : start + size], target[start : start + size])
        start, i = start + size, i + 1
    return evaluator


def _f1(label, predicted, target):
    hits = sum(p == t == label for p, t in zip(predicted, target, strict=True))
    recall, precision = hits / target.count(label), hits / max(predicted.count(label), 1)
    return 2 * recall * precision / (recall + precision) if hits else 0.0


def oracle(logits, target, counts=COUNTS):
    """Every figure by hand, class by class and image by image, from the definitions."""
    logits, target = logits.double().numpy(), target.numpy()
    predicted = [int(np.argmax(row)) for row in logits]
    top5 = [label in np.argsort(-row)[:5] for row, label in zip(logits, target, strict=True)]
    per_class = {}
    for label in sorted(set(target.tolist())):
        hits = [p == label for p, t in zip(predicted, target, strict=True) if t == label]
        per_class[label] = 100 * sum(hits) / len(hits)
    figures = {
        'top1': 100 * np.mean([p == t for p, t in zip(predicted, target, strict=True)]),
        'top5': 100 * np.mean(top5),
        'worst_class': min(per_class.values()),
        'balanced': sum(per_class.values()) / len(per_class),
        'macro_f1': 100 * np.mean([_f1(label, predicted, target.tolist()) for label in per_class]),
        'harmonic': 0.0 if 0 in per_class.values() else len(per_class) / sum(1 / a for a in per_class.values()),
        'num_images': len(target),
        'num_classes_without_images': len(counts) - len(per_class),
    }
    for name, test in {'many': lambda n: n > 100, 'medium': lambda n: 20 <= n <= 100, 'few': lambda n: n < 20}.items():
        members = [accuracy for label, accuracy in per_class.items() if test(counts[label])]
        if members:
            figures[name] = sum(members) / len(members)
    probabilities = [np.exp(row - row.max()) / np.exp(row - row.max()).sum() for row in logits]
    figures['loss'] = float(np.mean([-np.log(p[t]) for p, t in zip(probabilities, target, strict=True)]))
    gap = 0.0
    for m in range(15):
        inside = [i for i, p in enumerate(probabilities) if m / 15 < p.max() <= (m + 1) / 15]
        if inside:
            accuracy = np.mean([predicted[i] == target[i] for i in inside])
            gap += len(inside) / len(target) * abs(accuracy - np.mean([probabilities[i].max() for i in inside]))
    figures['ece'] = 100 * gap
    return figures


@pytest.mark.parametrize(('seed', 'scale', 'skip'), [(0, 2.0, ()), (1, 8.0, (3,)), (2, 0.5, (0, 1, 7)), (3, 6.0, ())])
def test_figures_equal_the_definitions(seed, scale, skip):
    logits, target = scores(seed=seed, scale=scale, skip=skip)
    found = evaluate(logits, target).compute()
    expected = oracle(logits, target)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_agrees_with_timm_and_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix, f1_score, precision_score  # slow to import

    logits, target = scores(seed=5, scale=4.0)
    evaluator, plain = evaluate(logits, target), ClassificationEvaluator()
    plain.update(logits, target)
    found = evaluator.compute()
    for name, value in plain.compute().items():
        assert found[name] == pytest.approx(value)
    predicted = logits.argmax(1)
    assert np.array_equal(evaluator.confusion[:, :-1].numpy(), confusion_matrix(target, predicted))
    assert found['balanced'] == pytest.approx(100 * balanced_accuracy_score(target, predicted))
    assert found['macro_f1'] == pytest.approx(100 * f1_score(target, predicted, average='macro'))
    table = evaluator.per_class()
    assert [row.precision for row in table] == pytest.approx(100 * precision_score(target, predicted, average=None))
    assert [row.predicted for row in table] == np.bincount(predicted, minlength=8).tolist()
    assert [100 * row.correct / row.test_images for row in table] == pytest.approx([row.accuracy for row in table])


def test_a_class_that_swallows_another_has_a_low_precision():
    logits = torch.eye(3)[[0, 0, 0, 0, 2, 2, 2, 2, 1, 2]]  # 4 of 8 images of class 0 are taken for class 2
    evaluator = evaluate(logits, torch.tensor([0] * 8 + [1, 2]), counts=[8, 1, 1])
    rows = evaluator.per_class()
    assert [row.accuracy for row in rows] == [50.0, 100.0, 100.0]
    assert [row.precision for row in rows] == [100.0, 100.0, 20.0]
    found = evaluator.compute()
    assert found['macro_f1'] == pytest.approx(100 * (2 / 3 + 1 + 1 / 3) / 3)
    assert (found['balanced'], found['top1']) == (pytest.approx(250 / 3), 60.0)


def test_a_class_without_images_or_answers_is_left_out():
    evaluator = evaluate(torch.eye(3)[[0, 0, 2]], torch.tensor([0, 0, 0]), counts=[8, 1, 1])
    rows = evaluator.per_class()
    assert [row.plain()['accuracy'] for row in rows] == [pytest.approx(200 / 3), None, None]
    assert [row.plain()['precision'] for row in rows] == [100.0, None, 0.0]
    found = evaluator.compute()
    assert (found['balanced'], found['macro_f1']) == (pytest.approx(200 / 3), pytest.approx(80.0))


@pytest.mark.parametrize(
    ('images', 'leading'),
    [([5, 5, 5], 'top1'), ([5, 0, 5], 'top1'), ([5, 4, 5], 'balanced'), ([0, 7], 'top1'), ([0, 0], 'top1')],
)
def test_the_mean_over_classes_leads_where_images_are_not_balanced(images, leading):
    assert leading_accuracy(images) == next(iter(accuracy_labels(images).values())) == leading
    target = np.repeat(np.arange(len(images)), images)
    found = evaluate(torch.zeros(len(target), len(images)), torch.tensor(target), counts=images).compute()
    assert (next(iter(found)) == 'balanced') == (leading == 'balanced')
    if leading == 'top1' and len(target):
        assert found['balanced'] == pytest.approx(found['top1'])


@pytest.mark.parametrize(
    ('correct', 'images', 'low', 'high'), [(2, 4, 15.0, 85.0), (0, 10, 0.0, 27.8), (10, 10, 72.2, 100.0)]
)
def test_the_interval_of_an_accuracy(correct, images, low, high):
    assert wilson_interval(correct, images) == pytest.approx((low, high), abs=0.05)


def test_groups_are_those_of_the_command_line():
    counts = [90, 60, 50, 40, 30, 25]  # no class is beyond the field's limits
    assert LongTailEvaluator(counts).groups.keys() == choose_groups(counts).groups.keys() == {'many', 'medium', 'few'}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_order_and_batches_do_not_matter(seed, sizes):
    logits, target = scores(n=120, seed=seed, scale=3.0)
    order = torch.tensor(np.random.default_rng(seed).permutation(120))
    whole, shuffled = (
        evaluate(logits, target, (120,)).compute(),
        evaluate(logits[order], target[order], sizes).compute(),
    )
    assert whole.pop('loss') == pytest.approx(shuffled.pop('loss'), rel=1e-5)
    assert whole == shuffled


def test_ties_do_not_depend_on_the_batch():
    logits, target = torch.zeros(64, 8), torch.arange(64) % 8
    for sizes in ((64,), (1,), (7,)):
        found = evaluate(logits, target, sizes).compute()
        assert found['top1'] == 100 / 8
        assert found['top5'] == 100 * 5 / 8


def test_names_of_the_figures():
    logits, target = scores()
    evaluator = evaluate(logits, target)
    names = list(evaluator.metric_names)
    assert list(evaluator.compute()) == ['balanced', *(name for name in names if name != 'balanced')]
    assert list(evaluate(logits[:8], torch.arange(8)).compute()) == names  # balanced images
    assert evaluator.default_metric in evaluator.metric_names
    assert tuple(evaluator.summary()) == ('loss', 'top1', 'top5')


def test_empty_group_is_absent():
    logits, target = scores()
    found = evaluate(logits, target, counts=[500] * 8).compute()
    assert 'medium' not in found
    assert 'few' not in found
    assert found['many'] == pytest.approx(np.mean([row.accuracy for row in evaluate(logits, target).per_class()]))


def test_class_without_test_images_is_left_out_not_zero():
    logits, target = scores(skip=(5, 6, 7))  # all of the few classes
    logits[:50, 6] = 100  # false positives on an untested class
    evaluator = evaluate(logits, target)
    found = evaluator.compute()
    assert 'few' not in found
    assert found['num_classes_without_images'] == 3
    row = evaluator.per_class()[6]
    assert (row.label, row.name, row.group, row.train_images, row.test_images) == (6, '6', 'few', 8, 0)
    assert math.isnan(row.accuracy)


def test_a_class_that_is_never_right():
    logits, target = torch.eye(8) * 5, torch.arange(8)
    logits[7] = torch.tensor([5.0, *[0.0] * 7])
    found = evaluate(logits, target).compute()
    assert found['harmonic'] == found['worst_class'] == 0.0
    assert found['few'] == pytest.approx(200 / 3)


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_logits_that_are_not_finite_are_never_right(bad):
    logits, target = torch.zeros(8, 8), torch.arange(8)
    logits[torch.arange(8), target] = 9.0
    logits[3, 3] = bad  # where topk and argmax see the largest value
    logits[4] = bad
    found = evaluate(logits, target).compute()
    assert found['top1'] == found['top5'] == 75.0
    assert found['worst_class'] == 0.0
    assert found['num_images'] == 8
    sure = torch.softmax(logits[0], 0).max().item()
    assert found['ece'] == pytest.approx(100 * 6 / 8 * (1 - sure), abs=1e-4)


def test_not_finite_with_few_classes():
    evaluator = LongTailEvaluator([5, 5])
    evaluator.update(torch.full((2, 2), float('nan')), torch.tensor([0, 1]))
    found = evaluator.compute()
    assert found['top1'] == found['top5'] == 0.0


def test_masked_classes_may_be_minus_infinity():
    logits, target = torch.full((2, 8), -float('inf')), torch.tensor([2, 3])
    logits[0, 2] = logits[1, 4] = 1.0
    found = evaluate(logits, target).compute()
    assert found['top1'] == 50.0
    assert found['ece'] == pytest.approx(50.0)


def test_calibration_of_known_bins():
    assert expected_calibration_error([4, 0, 6], [1, 0, 6], [2.0, 0.0, 5.4]) == pytest.approx(100 * (1.0 + 0.6) / 10)
    assert math.isnan(expected_calibration_error([0], [0], [0.0]))


def test_confidence_on_an_edge_belongs_to_the_lower_bin():
    evaluator = LongTailEvaluator([1, 1, 1])
    evaluator.update(torch.zeros(1, 3), torch.tensor([0]))  # softmax 1/3 = the upper edge of bin 5 of 15
    assert evaluator.bins[0].nonzero().tolist() == [[4]]


def test_experts_are_reported_one_by_one():
    generator = torch.Generator().manual_seed(0)
    experts, target = torch.randn(50, 3, 8, generator=generator), torch.randint(8, (50,), generator=generator)
    evaluator = LongTailEvaluator(COUNTS, num_experts=3, max_samples=45)
    for rows in torch.arange(50).split(20):
        evaluator.update(experts[rows].mean(1), target[rows], experts[rows])
    found = evaluator.compute()
    for k in range(3):
        right = (experts[:45, k].argmax(1) == target[:45]).double().mean().item()
        assert found[f'expert{k}_top1'] == pytest.approx(100 * right)
    assert found['num_images'] == 45
    assert set(found) <= set(evaluator.metric_names)


def test_padding_is_dropped():
    logits, target = scores(n=100)
    padded = evaluate(torch.cat([logits, logits[:28]]), torch.cat([target, target[:28]]), max_samples=100)
    assert padded.compute() == pytest.approx(evaluate(logits, target).compute())


def test_reset_starts_anew():
    evaluator = evaluate(*scores(seed=1))
    evaluator.reset()
    evaluator.update(*scores(seed=2))
    assert evaluator.compute() == pytest.approx(evaluate(*scores(seed=2)).compute())


def test_nothing_evaluated_yet():
    found = LongTailEvaluator(COUNTS).compute()
    assert found['num_images'] == 0
    assert found['num_classes_without_images'] == 8
    assert all(math.isnan(found[name]) for name in ('worst_class', 'harmonic', 'balanced', 'macro_f1', 'ece'))


def test_wrong_shapes_are_refused():
    evaluator = LongTailEvaluator(COUNTS)
    target = torch.zeros(4, dtype=torch.long)
    with pytest.raises(ValueError, match=r'\(B, 8\)'):
        evaluator.update(torch.zeros(4, 7), target)
    with pytest.raises(ValueError, match=r'\(B, 8\)'):
        evaluator.update(torch.zeros(3, 8), target)
    with pytest.raises(ValueError, match='None, not'):
        evaluator.update(torch.zeros(4, 8), target, torch.zeros(4, 2, 8))
    with pytest.raises(ValueError, match=r'\(4, 2, 8\), not None'):
        LongTailEvaluator(COUNTS, num_experts=2).update(torch.zeros(4, 8), target)
    with pytest.raises(ValueError, match='2 class names for 8'):
        LongTailEvaluator(COUNTS, class_names=('a', 'b'))


def test_own_groups_and_names():
    logits, target = scores()
    names = tuple('abcdefgh')
    evaluator = evaluate(logits, target, groups={'head': [0, 1]}, class_names=names)
    table = evaluator.per_class()
    assert [row.name for row in table] == list(names)
    assert [row.group for row in table] == ['head', 'head', *[''] * 6]
    assert evaluator.compute()['head'] == pytest.approx((table[0].accuracy + table[1].accuracy) / 2)


def test_pure_functions():
    accuracy = class_accuracy([[3, 1, 0], [0, 0, 0], [1, 1, 2]])
    assert accuracy[[0, 2]].tolist() == [75.0, 50.0]
    assert math.isnan(accuracy[1])
    assert class_accuracy([[3, 0, 1], [0, 1, 1]]).tolist() == [75.0, 50.0]  # a column for invalid predictions
    assert group_accuracy(accuracy, {'x': [0, 1], 'y': [1], 'z': []}) == {'x': 75.0}
    assert harmonic_accuracy(accuracy) == pytest.approx(2 / (1 / 75 + 1 / 50))
    assert frequency_groups(COUNTS).keys() == {'many', 'medium', 'few'}


def _evaluate_one_part(rank, folder):
    torch.set_num_threads(1)  # a forked process must not use its parent's thread pool
    dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=2)
    logits, target = scores(n=101)
    mine = [i % 101 for i in range(rank, 102, 2)]  # as timm's OrderedDistributedSampler pads
    evaluator = LongTailEvaluator(COUNTS, num_experts=2, max_samples=51 - rank)
    for rows in torch.tensor(mine).split(16):
        evaluator.update(logits[rows], target[rows], torch.stack([logits[rows], -logits[rows]], 1))
    figures = evaluator.compute(distributed=True)
    figures['per_class'] = evaluator.per_class(distributed=True)
    (folder / f'{rank}.json').write_text(json.dumps(figures))
    dist.destroy_process_group()


@pytest.mark.filterwarnings('ignore:.*fork:DeprecationWarning')  # Python 3.12 warns if there are threads
def test_two_processes_equal_one(tmp_path):
    logits, target = scores(n=101)
    single = LongTailEvaluator(COUNTS, num_experts=2)
    single.update(logits, target, torch.stack([logits, -logits], 1))
    expected = {**single.compute(), 'per_class': [list(row) for row in single.per_class()]}
    mp.start_processes(_evaluate_one_part, (tmp_path,), nprocs=2, start_method='fork')
    for rank in range(2):
        found = json.loads((tmp_path / f'{rank}.json').read_text())
        assert found.pop('loss') == pytest.approx(expected['loss'], rel=1e-5)
        assert found == {name: value for name, value in expected.items() if name != 'loss'}
