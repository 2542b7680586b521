"""The figures of the cards: what they show, their size, and that they are the same bytes each time."""

import sys

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from weight_results import GMACS, THRESHOLD, make_results

from ride_timm.cards import figures
from ride_timm.cards.figure_labels import PointLabel, place_labels, spread
from ride_timm.cards.figures import routing_figure, tail_figure
from ride_timm.cards.fonts import font_families
from ride_timm.errors import RideError

PLAIN = {'experts': 1, 'method': 'ce', 'level': 40}


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws without writing; returns matplotlib's figure."""
    kept = []
    monkeypatch.setattr(figures, '_save', lambda canvas, path: kept.append(canvas.figure))

    def draw(function, *args):
        function(args[0], tmp_path / 'unused.png', *args[1:])
        return kept[-1]

    return draw


def texts(axes):
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(('draw', 'height'), [(tail_figure, 800), (routing_figure, 840)])
@pytest.mark.parametrize('router', [True, False])
def test_the_file(tmp_path, draw, height, router):
    draw(make_results(router=router), tmp_path / 'a.png')
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
    draw(make_results(), tmp_path / 'a.png')
    with matplotlib.rc_context({'font.size': 20, 'axes.facecolor': 'black', 'savefig.dpi': 30}):
        draw(make_results(), tmp_path / 'b.png')
        assert matplotlib.rcParams['font.size'] == 20
    draw(make_results(level=49), tmp_path / 'c.png')
    assert (tmp_path / 'a.png').read_bytes() == (tmp_path / 'b.png').read_bytes()
    assert (tmp_path / 'a.png').read_bytes() != (tmp_path / 'c.png').read_bytes()


def test_no_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)
    routing_figure(make_results(), tmp_path / 'a.png')


def test_without_matplotlib(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition('.')[0] == 'matplotlib']:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'matplotlib', None)
    with pytest.raises(RideError, match=r'pip install "ride-timm\[quickstart\]"'):
        tail_figure(make_results(), tmp_path / 'a.png')


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
    _, axes = drawn(tail_figure, results).axes
    means = {name: results['test']['all_experts'][name] for name in ('many', 'medium', 'few')}
    names = [f'{name}: mean {mean:.1f} %' for name, mean in means.items()]
    assert texts(axes) == [text for name, number in zip(names, (35, 35, 30), strict=True)
                           for text in (name, f'{number} classes')]  # fmt: skip
    lines = [line for line in axes.lines if len(line.get_xdata()) == 2]
    assert [tuple(line.get_xdata()) for line in lines] == [(0, 35), (35, 70), (70, 100)]
    assert [line.get_ydata()[0] for line in lines] == pytest.approx(list(means.values()))
    assert len({to_hex(line.get_color()) for line in lines}) == 3


def test_classes_without_figures_and_without_group(drawn):
    results = make_results(classes=6, largest=90, factor=30)
    rows, groups = results['test']['per_class'], results['test']['groups']
    rows[1]['accuracy'] = None
    groups['few'].remove(5)
    _, axes = drawn(tail_figure, results).axes
    points = np.concatenate([np.asarray(group.get_offsets()) for group in axes.collections])
    assert points[:, 0] == pytest.approx([0.5, 2.5, 3.5, 4.5, 5.5])
    assert texts(axes)[-2:] == ['no group', '1 class']


def test_narrow_groups_have_names_side_by_side(drawn):
    results = make_results()
    results['test']['groups'] = {'many': [0], 'medium': [1], 'few': list(range(2, 100))}
    figure = drawn(tail_figure, results)
    extents = [text.get_window_extent() for text in figure.axes[1].texts]
    for one in range(0, len(extents), 2):
        assert not any(extents[one].overlaps(extents[two]) for two in range(one + 2, len(extents), 2))


def test_routing_shows_curve_default_and_all_experts(drawn):
    results = make_results()
    (axes,) = drawn(routing_figure, results).axes
    (curve,) = (line.get_xydata() for line in axes.lines if len(line.get_xdata()) > 2)
    sweep = results['test']['sweep']
    assert curve == pytest.approx(np.array([(row['gmacs'], row['top1']) for row in sweep]))
    markers = {line.get_marker(): line.get_xydata()[0] for line in axes.lines if len(line.get_xdata()) == 1}
    routed = results['test']['routed']
    assert markers['D'] == pytest.approx([routed['gmacs'], routed['top1']])
    assert markers['o'] == pytest.approx([GMACS[3][-1], results['test']['all_experts']['top1']])
    assert f'routed, threshold {THRESHOLD}: {routed["top1"]:.1f} %' in texts(axes)
    assert f'all 3 experts: {results["test"]["all_experts"]["top1"]:.1f} %' in texts(axes)


def test_the_plain_net_has_a_line_at_its_cost(drawn):
    plain = make_results(**PLAIN)
    for nets in ((make_results(), [plain]), (plain, [make_results(method='balpoe')])):
        (axes,) = drawn(routing_figure, *nets).axes
        upright = [line for line in axes.lines if list(line.get_ydata()) == [0, 1]]
        assert [line.get_xdata()[0] for line in upright] == GMACS[1]
        assert f'plain network, {plain["test"]["all_experts"]["top1"]:.1f} %' in texts(axes)
    (axes,) = drawn(routing_figure, make_results()).axes
    assert not [line for line in axes.lines if list(line.get_ydata()) == [0, 1]]


def test_others_of_the_same_data_only_and_never_itself(drawn):
    other, foreign = make_results(method='balpoe'), make_results(method='sade')
    foreign['data']['name'] = 'Elsewhere'
    (axes,) = drawn(routing_figure, make_results(), [make_results(), foreign, other]).axes
    grey = [text for text in texts(axes) if text.startswith('ride_resnet32')]
    assert grey == [f'{other["name"]}, {other["test"]["all_experts"]["top1"]:.1f} %']
    (note,) = (text for text in axes.texts if text.get_text() == grey[0])
    assert note.xy == (GMACS[3][-1], other['test']['all_experts']['top1'])  # where its line ends


def test_without_router_there_are_points_only(drawn):
    (axes,) = drawn(routing_figure, make_results(router=False), [make_results(**PLAIN)]).axes
    assert all(len(line.get_xdata()) == 1 for line in axes.lines if list(line.get_ydata()) != [0, 1])
    assert len(texts(axes)) == 2


def test_labels_do_not_hide_each_other(drawn):
    others = [make_results(**PLAIN)]
    others += [make_results(method=f'm{i}', level=49 + i / 4) for i in range(5)]
    figure = drawn(routing_figure, make_results(), others)
    extents = [Text.get_window_extent(text) for text in figure.axes[0].texts]  # without the lines to the points
    assert len(extents) == 9
    for index, extent in enumerate(extents):
        assert not any(extent.overlaps(other) for other in extents[index + 1 :])
        assert figure.bbox.x0 <= extent.x0
        assert extent.x1 <= figure.bbox.x1


@pytest.mark.parametrize('name', ['$x_{1$', '长尾 数据', 'a\\frac', 'x' * 200])
def test_any_name_of_the_data(tmp_path, name):
    results = make_results(classes=6, largest=90, factor=30)
    results['data']['name'] = name
    tail_figure(results, tmp_path / 'a.png')
    routing_figure(results, tmp_path / 'b.png')


def test_a_long_title_stays_in_the_figure(drawn):
    results = make_results()
    results['data']['name'] = 'x' * 120
    for draw in (tail_figure, routing_figure):
        figure = drawn(draw, results)
        titles = [axes.title if axes.title.get_text() else axes._left_title for axes in figure.axes]
        assert titles[0].get_text()
        assert titles[0].get_window_extent().x1 <= figure.bbox.x1


def test_a_label_avoids_the_curve():
    figure = Figure(figsize=(4, 3), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 10))
    figure.draw_without_rendering()
    right_of_it = np.array([(x, 5.0) for x in np.linspace(5, 10, 100)])
    (label,) = place_labels(axes, [PointLabel('text', 5, 5, 'black')], right_of_it, 9)
    box = label.get_window_extent()
    pixels = axes.transData.transform(right_of_it)
    assert not ((pixels >= (box.x0, box.y0)) & (pixels <= (box.x1, box.y1))).all(1).any()


WIDTHS = st.lists(st.floats(0.5, 20), min_size=1, max_size=6)


@settings(deadline=None)
@given(WIDTHS, st.data())
def test_spread_keeps_order_and_distance(widths, data):
    centres = sorted(data.draw(st.lists(st.floats(0, 200), min_size=len(widths), max_size=len(widths))))
    found = spread(centres, widths, 0, 200)
    for i in range(len(widths) - 1):
        assert found[i + 1] - found[i] >= (widths[i] + widths[i + 1]) / 2 - 1e-9
    assert found[0] - widths[0] / 2 >= -1e-9
    assert found[-1] + widths[-1] / 2 <= 200 + 1e-9


def test_spread_moves_nothing_that_has_room():
    assert spread([10, 50, 90], [10, 10, 10], 0, 100) == [10, 50, 90]
    assert spread([], [], 0, 1) == []
