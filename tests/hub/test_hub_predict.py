"""`ride-timm predict` with every form of MODEL: the same answers, and those that `validate` measures."""

import json

import pytest
from published import CLASS_NAMES, NAME, REPO, make_weight
from tiny_runs import write_images

import ride_timm.commands.validate as validation
from ride_timm.commands.predict import main as predict
from ride_timm.commands.publish import main as publish


@pytest.fixture
def data(tmp_path):
    return write_images(tmp_path / 'images', dict.fromkeys(CLASS_NAMES, 2), val=3, size=32)


@pytest.mark.parametrize('options', [(), ('--routed',), ('--threshold', '0.5')], ids=' '.join)
def test_every_form_of_a_model(hub, hub_login, data, tmp_path, capsys, options):
    weight = make_weight(tmp_path / 'weights')
    publish([str(weight), REPO])
    argv = [str(data / 'val'), '--json', '--device', 'cpu', *options]
    forms = [str(weight), f'local-dir:{weight}', str(weight / 'model.safetensors')]
    forms += [f'hf-hub:{REPO}', f'hf-hub:{REPO}@{hub.head(REPO).sha}']
    found = {}
    for form in forms:
        capsys.readouterr()
        assert predict([form, *argv]) == 0
        found[form] = json.loads(capsys.readouterr().out)
    if not options:  # by its registered name, which a process learns when it starts
        code = f'from ride_timm.commands.predict import main; main({[NAME, *argv]!r})'
        found[NAME] = json.loads(hub.run_python(code, tmp_path, {'RIDE_TIMM_WEIGHTS': str(weight.parent)}))
    rows = found[str(weight)]
    assert all(other == rows for other in found.values())
    assert len(rows) == 15
    assert all(row['label'] == CLASS_NAMES[row['class_index']] for row in rows)
    parser = validation.build_parser()
    measured = validation.validate(
        parser.parse_args(['--model', f'hf-hub:{REPO}', '--data-dir', str(data), '--device', 'cpu', *options])
    )
    right = sum(row['label'] == row['path'].split('/')[-2] for row in rows)
    assert measured['top1'] == pytest.approx(100 * right / 15)
    if options:
        assert measured['mean_experts'] == pytest.approx(sum(row['num_experts'] for row in rows) / 15)
