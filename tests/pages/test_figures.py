"""The figures of cards: what they show, their size, and that they are the same bytes each time."""

import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image
from weight_results import GMACS, THRESHOLD, make_results

from ride_timm.errors import RideError
from ride_timm.pages import figures
from ride_timm.pages.figures import font_families, routing_figure, tail_figure
from ride_timm.records.results import Results

PLAIN = {'experts': 1, 'method': 'ce', 'level': 40}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws without writing; returns matplotlib's figure."""
    kept = []
    monkeypatch.setattr(figures, '_save', lambda canvas, path: kept.append(canvas.figure))

    def draw(function, *args):
        function(
            Results.from_json(args[0]),
            tmp_path / 'unused.png',
            *([[*map(Results.from_json, args[1])]] if args[1:] else []),
        )
        return kept[-1]

    return draw


def texts(axes):
    return [text.get_text() for text in axes.texts]


def legend(figure):
    """Texts of the legends, and the place that each stands for."""
    found = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found[label] = handle.get_xydata()[-1].tolist() if hasattr(handle, 'get_xydata') else None
    return found


def record(**options):
    return Results.from_json(make_results(**options))


@pytest.mark.parametrize(('draw', 'height'), [(tail_figure, 800), (routing_figure, 840)])
@pytest.mark.parametrize('router', [True, False])
def test_the_file(tmp_path, draw, height, router):
    draw(record(router=router), tmp_path / 'a.png')
    with Image.open(tmp_path / 'a.png') as image:
        image.load()
        assert image.format == 'PNG'
        assert image.size == (1600, height)
        assert not image.info  # neither program nor date
        assert len(image.convert('RGB').getcolors(10**7)) > 10  # not an empty sheet
    assert (tmp_path / 'a.png').stat().st_size < 80_000
    assert [path.name for path in tmp_path.iterdir()] == ['a.png']


@pytest.mark.parametrize('draw', [tail_figure, routing_figure])
def test_the_same_figure_is_the_same_bytes_whatever_the_users_style(tmp_path, draw):
    draw(record(), tmp_path / 'a.png')
    with matplotlib.rc_context({'font.size': 20, 'axes.facecolor': 'black', 'savefig.dpi': 30}):
        draw(record(), tmp_path / 'b.png')
        assert matplotlib.rcParams['font.size'] == 20
    draw(record(level=49), tmp_path / 'c.png')
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()
    assert (tmp_path / 'a.png').read_bytes() != (tmp_path / 'c.png').read_bytes()


def test_no_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)
    routing_figure(record(), tmp_path / 'a.png')


def test_without_matplotlib(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition('.')[0] == 'matplotlib']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(RideError, match=r'pip install "ride-timm\[quickstart\]"'):
        tail_figure(record(), tmp_path / 'a.png')


def test_the_tail_shows_every_class_by_falling_count(drawn):
    results = make_results()
    shuffled = [results['test']['per_class'][i] for i in np.random.default_rng(0).permutation(100)]
    results['test']['per_class'] = shuffled
    counts_axes, axes = drawn(tail_figure, results).axes
    by_count = sorted(shuffled, key=lambda row: -row['train_images'])
    points = np.concatenate([np.asarray(group.get_offsets()) for group in axes.collections])
    assert points[:, 0] == pytest.approx(np.arange(100) + 0.5)
    # classes of equal count may stand in any order
    for count in {row['train_images'] for row in by_count}:
        places = [i for i, row in enumerate(by_count) if row['train_images'] == count]
        assert sorted(points[places, 1]) == sorted(by_count[i]['accuracy'] for i in places)
    assert counts_axes.get_yscale() == 'log'
    assert list(counts_axes.patches[0].get_data().values) == [row['train_images'] for row in by_count]
    assert texts(counts_axes) == ['500', '5']


def test_counts_within_a_decade_are_plain_numbers(drawn):
    counts_axes, _ = drawn(tail_figure, make_results(classes=4, largest=22, factor=1)).axes
    assert texts(counts_axes) == ['22', '22']
    assert {label.get_text() for label in counts_axes.get_yticklabels(minor=True)} == {''}


@pytest.mark.parametrize('classes', [6, 20, 21])
def test_few_classes_are_named(drawn, classes):
    results = make_results(classes=classes, largest=90, factor=30)
    results['test']['per_class'][2]['name'] = '$x$ <b>\x00 and a name that never ends'
    results['test']['per_class'][3]['name'] = 'n01443537'
    _, axes = drawn(tail_figure, results).axes
    names = [label.get_text() for label in axes.get_xticklabels()]
    if classes > 20:
        assert axes.get_xlabel() == 'class, sorted by training images'
        assert names == [f'{tick:g}' for tick in axes.get_xticks()]  # not rounded
        return
    by_count = sorted(results['test']['per_class'], key=lambda row: (-row['train_images'], row['label']))
    wanted = [row['name'] for row in by_count]
    wanted[wanted.index(results['test']['per_class'][2]['name'])] = r'\$x\$ <b>\x00 and a name …'
    wanted[wanted.index('n01443537')] = 'goldfish (n01443537)'
    assert names == wanted
    assert axes.get_xticks() == pytest.approx(np.arange(classes) + 0.5)


def test_letters_of_other_scripts_come_from_fonts_that_are_there(monkeypatch):
    from matplotlib import font_manager

    monkeypatch.setattr(font_manager, 'get_font_names', lambda: ['Yu Gothic', 'Comic Sans', 'Noto Sans CJK JP'])
    assert font_families.__wrapped__() == ('DejaVu Sans', 'Noto Sans CJK JP', 'Yu Gothic')


def test_the_tail_names_groups_and_their_means(drawn):
    results = make_results()
    figure = drawn(tail_figure, results)
    _, axes = figure.axes
    means = {name: results['test']['all_experts'][name] for name in ('many', 'medium', 'few')}
    names = [text.get_text() for text in figure.legends[0].texts]
    numbers = zip(means.items(), (35, 35, 30), strict=True)
    assert names == [f'{name}: mean {mean:.1f} %, {number} classes' for (name, mean), number in numbers]
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert [tuple(line.get_xdata()) for line in lines] == [(0, 35), (35, 70), (70, 100)]
    assert [line.get_ydata()[0] for line in lines] == pytest.approx(list(means.values()))
    assert len({to_hex(line.get_color()) for line in lines}) == 3


def test_classes_without_figures_and_without_group(drawn):
    results = make_results(classes=6, largest=90, factor=30)
    rows, groups = results['test']['per_class'], results['test']['groups']
    rows[1]['accuracy'] = None
    groups['few'].remove(5)
    figure = drawn(tail_figure, results)
    _, axes = figure.axes
    points = np.concatenate([np.asarray(group.get_offsets()) for group in axes.collections])
    assert points[:, 0] == pytest.approx([0.5, 2.5, 3.5, 4.5, 5.5])
    assert figure.legends[0].texts[-1].get_text() == 'no group: 1 class'


def test_routing_shows_curve_default_and_all_experts(drawn):
    results = make_results()
    figure = drawn(routing_figure, results)
    curve = next(line.get_xydata() for line in figure.axes[0].lines if len(line.get_xdata()) > 2)
    sweep, routed = results['test']['sweep'], results['test']['routed']
    assert curve == pytest.approx(np.array([(row['gmacs'], row['top1']) for row in sweep]))
    found = legend(figure)
    together = results['test']['all_experts']['top1']
    assert found[f'routed, threshold {THRESHOLD}: {routed["top1"]:.1f} %'] == [routed['gmacs'], routed['top1']]
    assert found[f'all 3 experts: {together:.1f} %'] == [GMACS[3][-1], together]
    assert {text.get_text() for text in figure.legends[0].texts} == set(found)


def test_the_plain_net_has_a_line_at_its_cost(drawn):
    plain = make_results(**PLAIN)
    for nets in ((make_results(), [plain]), (plain, [make_results(method='balpoe')])):
        figure = drawn(routing_figure, *nets)
        upright = [line for line in figure.axes[0].lines if list(line.get_ydata()) == [0, 1]]
        assert [line.get_xdata()[0] for line in upright] == GMACS[1]
        assert f'plain network: {plain["test"]["all_experts"]["top1"]:.1f} %' in legend(figure)
    (axes,) = drawn(routing_figure, make_results()).axes
    assert not [line for line in axes.lines if list(line.get_ydata()) == [0, 1]]


def test_others_of_the_same_data_only_and_never_itself(drawn):
    other, foreign = make_results(method='balpoe'), make_results(method='sade')
    foreign['data']['name'] = 'Elsewhere'
    found = legend(drawn(routing_figure, make_results(), [make_results(), foreign, other]))
    top1 = other['test']['all_experts']['top1']
    grey = {label: place for label, place in found.items() if label.startswith('ride_resnet32')}
    assert grey == {f'{other["name"]}: {top1:.1f} %': [GMACS[3][-1], top1]}


def test_without_router_there_are_points_only(drawn):
    figure = drawn(routing_figure, make_results(router=False), [make_results(**PLAIN)])
    assert all(len(line.get_xdata()) == 1 for line in figure.axes[0].lines if list(line.get_ydata()) != [0, 1])
    assert len(legend(figure)) == 2


def test_the_mean_over_classes_of_unbalanced_images(drawn):
    results, old = make_results(), make_results(method='balpoe', router=False)
    results['test']['per_class'][0]['test_images'] = 400
    for row in (results['test']['all_experts'], results['test']['routed'], *results['test']['sweep']):
        row['balanced'] = 12.5
    found = legend(drawn(routing_figure, results, [old]))  # `old` does not know its mean over classes
    assert {'all 3 experts: 12.5 %', 'routed, threshold 0.65: 12.5 %'} <= set(found)
    assert not any('balpoe' in label for label in found)


def test_the_legend_stays_in_the_figure(drawn):
    others = [make_results(**PLAIN)] + [make_results(method=f'm{i}', level=49 + i / 4) for i in range(5)]
    figure = drawn(routing_figure, make_results(), others)
    extent = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].texts) == 9
    assert figure.bbox.x0 <= extent.x0
    assert extent.x1 <= figure.bbox.x1


@pytest.mark.parametrize('name', ['$x_{1$', '长尾 数据', 'a\\frac', 'x' * 200])
def test_any_name_of_the_data(tmp_path, name):
    results = make_results(classes=6, largest=90, factor=30)
    results['data']['name'] = name
    tail_figure(Results.from_json(results), tmp_path / 'a.png')
    routing_figure(Results.from_json(results), tmp_path / 'b.png')


def test_a_long_title_stays_in_the_figure(drawn):
    results = make_results()
    results['data']['name'] = 'x' * 120
    for draw in (tail_figure, routing_figure):
        figure = drawn(draw, results)
        titles = [axes.title if axes.title.get_text() else axes._left_title for axes in figure.axes]
        assert titles[0].get_text()
        assert titles[0].get_window_extent().x1 <= figure.bbox.x1
