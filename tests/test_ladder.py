"""The benchmark that compares steps of a recipe: its commands, what it keeps, what it trains again, its verdicts."""

import csv
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'benchmarks'))
import ladder
from configs import resolved


def write_run(folder, seed=42, epochs=12, many=60.0):
    """A finished run: 12 epochs, two classes of many images, one medium, two few of which one has no held-out image."""
    folder.mkdir(parents=True)
    last = {'many': many, 'medium': 50.0, 'few': 20.0, 'ece': 7.5}
    rows = [{'epoch': e, 'train_images_per_second': 50.0, **{f'eval_{k}': v - 11 + e for k, v in last.items()}}
            for e in range(epochs)]  # fmt: skip
    for name, table in (
        ('summary.csv', rows),
        ('per_class.csv', [
            {'group': group, 'test_images': images}
            for group, images in (('many', 50), ('many', 40), ('medium', 5), ('few', 1), ('few', 0))
        ]),
    ):  # fmt: skip
        with (folder / name).open('w', newline='') as file:
            writer = csv.DictWriter(file, table[0])
            writer.writeheader()
            writer.writerows(table)
    results = {'last': last, 'training': [{'seed': seed, 'epochs': epochs, 'images': 100}],
               'test': {'environment': {'hardware': '2 CPU cores', 'commit': 'abc'}}}  # fmt: skip
    (folder / 'results.json').write_text(json.dumps(results))


@pytest.mark.parametrize('step', ladder.STEPS)
def test_steps_are_options_of_the_training(step):
    parent, _, later = ladder.STEPS[step]
    more = ('--init', 'x') if later else ladder.COMMON
    args = resolved([*ladder.options_of(step), *more, '--data-dir', 'x'])
    assert (args.stage, args.loss) == (('heads', 'balanced_softmax') if later else ('experts', 'balpoe'))
    assert args.holdout == (None if later else 0.1)
    assert parent is None or list(ladder.STEPS).index(parent) < list(ladder.STEPS).index(step)


def test_a_later_stage_goes_on_from_its_parent(args, tmp_path, monkeypatch):
    commands = []

    def run(end, command, log):
        commands.append(command)
        write_run(tmp_path / 'runs' / log.stem)
        return 0

    monkeypatch.setattr(ladder, 'run_until', run)
    parent = ladder.STEPS['heads'].parent
    assert ladder.Ladder(args).climb('heads', 42)
    assert [command[command.index('--experiment') + 1] for command in commands] == [f'{parent}-12-42', 'heads-12-42']
    assert commands[1][commands[1].index('--init') + 1] == str(tmp_path / f'runs/{parent}-12-42/last.pth.tar')
    assert commands[1][commands[1].index('--epochs') + 1] == '20'
    (line,) = ladder.read_lines(tmp_path / 'r.csv')
    assert (line['step'], line['epochs']) == ('heads', '12')  # that of the training it is compared with


def test_a_line_holds_balanced_accuracy_over_classes(tmp_path):
    write_run(tmp_path / 'run')
    line = ladder.read_run('aa', tmp_path / 'run')
    assert tuple(line) == ladder.COLUMNS
    assert (line['step'], line['seed'], line['epochs'], line['seconds']) == ('aa', 42, 12, 24)
    assert float(line['balanced']) == (2 * 60 + 50 + 20) / 4
    assert float(line['balanced_last10']) == (2 * 60 + 50 + 20) / 4 - 4.5  # each epoch a point above the one before
    # sqrt(sum over classes of p (100 - p) / n) / 4
    error = (60 * 40 / 50 + 60 * 40 / 40 + 50 * 50 / 5 + 20 * 80 / 1) ** 0.5 / 4
    assert float(line['se']) == pytest.approx(error, abs=0.005)


@pytest.fixture
def args(tmp_path):
    return ladder.build_parser().parse_args(
        ['--data-dir', 'x', '--epochs', '12', '--output', str(tmp_path / 'runs'), '--results', str(tmp_path / 'r.csv')]
    )


def test_what_has_a_line_is_not_trained_again(args, tmp_path, monkeypatch, capsys):
    trained = []

    def run(end, command, log):
        trained.append(command[command.index('--experiment') + 1])
        if len(trained) > 1:
            write_run(tmp_path / 'runs' / trained[-1])
        else:
            log.write_text('epoch 0\nride-timm train: error: the disk is full\n')
        return 0 if len(trained) > 1 else 2

    monkeypatch.setattr(ladder, 'run_until', run)
    steps = ladder.Ladder(args)
    assert not steps.climb('base', 42)
    assert 'error: the disk is full' in capsys.readouterr().err
    assert steps.climb('base', 42)
    assert steps.climb('base', 42)
    assert trained == ['base-12-42', 'base-12-42']
    args.epochs = 50
    assert ladder.Ladder(args).lines() == []
    assert len(ladder.read_lines(tmp_path / 'r.csv')) == 1


def lines(**means):
    return [
        {
            'step': step,
            'balanced_last10': str(value),
            'se': '1.5',
            'many': '60',
            'medium': '50',
            'few': '20',
            'ece': '7',
        }
        for step, values in means.items()
        for value in values
    ]


@pytest.mark.parametrize(
    ('means', 'verdict'),
    [
        ({'base': [40.0, 41.0], 'aa': [44.0, 45.0]}, 'base: +4.00 +- 0.71, better'),
        ({'base': [44.0, 45.0], 'aa': [40.0, 41.0]}, 'base: -4.00 +- 0.71, worse'),
        ({'base': [40.0, 41.0], 'aa': [41.0, 42.0]}, 'base: +1.00 +- 0.71, not told apart'),
        ({'base': [40.0], 'aa': [42.0]}, 'base: +2.00 +- 0.71, better'),  # with the spread that is assumed
    ],
)
def test_steps_are_told_apart_by_the_spread_of_seeds(means, verdict):
    text = ladder.table(lines(**means))
    row = next(row for row in text.splitlines() if row.startswith('aa'))
    assert row.endswith(verdict)
    assert ('estimated)' in text) == (len(means['base']) > 1)


def test_spread_is_that_of_all_steps():
    spread, estimated = ladder.seed_spread(lines(base=[40.0, 42.0], aa=[50.0, 50.0], gated=[9.0]))
    assert estimated
    assert spread == pytest.approx(1.0)
