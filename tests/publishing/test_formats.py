"""Networks as ONNX files and programs of torch.export: the numbers of PyTorch, without any of ours."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models.routed_nets import divide
from PIL import Image

import ride_timm as rt
from ride_timm.commands.export import main as export
from ride_timm.commands.predict import main as predict
from ride_timm.errors import RideError
from ride_timm.inference.load import TrainedNet
from ride_timm.publishing.folder import save_folder
from ride_timm.publishing.formats import write_onnx
from ride_timm.records.calibration import AnswerCounts, Calibration, ConfidenceCurve
from ride_timm.records.fields import to_json

onnxruntime = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

runner = pytest.importorskip('ride_timm.inference.onnx')

CIFAR = 'test_ride_resnet_cifar_3e'
NAMES = ['cat', '=SUM(A1)', 'été', 'd\x1b[2Jog']
NETS = {
    'of convolutions': (32, lambda: timm.create_model(CIFAR, num_classes=4, router=True)),
    'of ConvNeXt': (48, lambda: rt.rideify('test_convnext', 2, num_classes=5, router=True)),
    # a table of positions and the tokens cross the cut, and the table has no entry for each image
    'of EVA': (28, lambda: rt.rideify(
        'eva02_tiny_patch14_224', 3, split='blocks.0', num_classes=4, router=True, img_size=28, depth=2, embed_dim=32,
        num_heads=2,
    )),
}  # fmt: skip


@pytest.mark.parametrize('kind', NETS)
def test_an_exported_network_leaves_early(kind, tmp_path):
    torch.manual_seed(1)
    size, create = NETS[kind]
    net = create().eval()
    net.pretrained_cfg['input_size'] = (3, size, size)
    x = torch.randn(12, 3, size, size) + torch.randn(12, 3, 1, 1)
    divide(net, x)
    if kind == 'of convolutions':
        net.set_logit_offset(torch.randn(3, 4))
    write_onnx(TrainedNet(net, kind), tmp_path / 'net.onnx', threshold=0.5)
    session = onnxruntime.InferenceSession(tmp_path / 'net.onnx')
    wanted = net.forward_routed(x, 0.5).num_experts
    assert set(wanted.tolist()) == set(range(1, net.num_experts + 1))
    # also none that goes on, all that go on to the last expert, and as many as the table of positions has entries
    for part in (x, x[wanted == 1], x[wanted == net.num_experts], x[:1], x[:4], x[:5]):
        logits, num_experts = session.run(None, {'images': part.numpy()})
        found = net.forward_routed(part, 0.5)
        np.testing.assert_allclose(logits, found.logits.detach().numpy(), atol=1e-4)
        assert num_experts.tolist() == found.num_experts.tolist()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """A packaged network, and images of many kinds next to it."""
    root = tmp_path_factory.mktemp('export')
    torch.manual_seed(3)
    net = timm.create_model(CIFAR, num_classes=4, router=True)
    net.pretrained_cfg.update(input_size=(3, 20, 24), crop_pct=0.9, interpolation='bicubic')
    divide(net.eval(), torch.randn(12, 3, 20, 24) + torch.randn(12, 3, 1, 1))
    counts = AnswerCounts(images=1, said=(1,), wrong=(0,))
    curve = ConfidenceCurve(limits=(0.0,), fitted=counts, measured=counts, ece_before=0.0, ece_after=0.0)
    calibration = Calibration(temperatures=(2.0, 1.4, 0.7), full=curve)
    record = {'loss': 'ride', 'pixel_range': [100, 3000], 'calibration': to_json(calibration)}
    save_folder(net, root / CIFAR, NAMES, [12, 4, 2, 1], record)
    images = root / 'images'
    images.mkdir()
    rng = np.random.default_rng(0)

    def picture(*shape):
        return Image.fromarray((rng.random(shape) * rng.integers(50, 255)).astype(np.uint8)).resize((61, 37))

    turned = Image.Exif()
    turned[274] = 6
    picture(9, 7, 3).save(images / '1.jpg', exif=turned)
    picture(9, 7, 4).save(images / '2.png')
    picture(9, 7).save(images / '3.png')
    picture(9, 7, 3).quantize(8).save(images / '4.png', transparency=2)
    Image.fromarray(rng.integers(0, 3000, (23, 18)).astype(np.uint16)).save(images / '5.png')
    for i in range(6, 12):
        picture(5, 3, 3).save(images / f'{i}.webp')
    return root


PLAIN = """
import runpy, sys
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in ('torch', 'torchvision', 'timm', 'ride_timm', 'onnx'):
            raise ImportError(f'{name} is not there')
sys.meta_path.insert(0, Refused())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


OPTIONS = {'full': (), 'routed': ('--threshold', '0.5')}


@pytest.fixture(scope='module')
def files(folder):
    """The ONNX files of it, all experts and routed."""
    for name, options in OPTIONS.items():
        assert (
            export([str(folder / CIFAR), '--format', 'onnx', '--output', str(folder / f'{name}.onnx'), *options]) == 0
        )
    return {name: folder / f'{name}.onnx' for name in OPTIONS}


@pytest.mark.parametrize('kind', OPTIONS)
def test_the_file_answers_as_predict_does_without_torch(kind, folder, files, tmp_path, capsys):
    copy, options = tmp_path / 'run.py', OPTIONS[kind]
    shutil.copy(runner.__file__, copy)
    (tmp_path / 'broken.png').write_bytes(b'no image')
    images = [str(path) for path in sorted((folder / 'images').iterdir())]
    capsys.readouterr()
    assert predict([str(folder / CIFAR), *images, '--json', *options]) == 0
    wanted = json.loads(capsys.readouterr().out)
    command = [sys.executable, '-c', PLAIN, copy, files[kind], tmp_path / 'broken.png', folder / 'images', '--json']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and 'broken.png' in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    found = json.loads(done.stdout)
    assert {row['num_experts'] for row in found} == ({1, 2, 3} if options else {3})
    for row, expected in zip(found, wanted, strict=True):
        assert (row['path'], row['num_experts']) == (expected['path'], expected['num_experts'])
        assert [vote['label'] for vote in row['top']] == [vote['label'] for vote in expected['top']]
        np.testing.assert_allclose(*([v['confidence'] for v in each['top']] for each in (row, expected)), atol=1e-4)


def test_a_line_for_people(folder, files, tmp_path, capsys):
    file = files['full']
    assert runner.main([str(file), str(folder / 'images' / '1.jpg')]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable() and line.endswith('(3 experts)')
    net = runner.OnnxNet(file)
    assert net.labels == NAMES and net.threshold is None
    with Image.open(folder / 'images' / '1.jpg') as image:
        assert net.predict([image])[0].top == net.predict([folder / 'images' / '1.jpg'])[0].top
    with pytest.raises(SystemExit, match='2'):
        runner.main([str(tmp_path / 'none.onnx'), 'image.jpg'])


@pytest.mark.parametrize('kind', OPTIONS)
def test_eight_bits(kind, folder, files, tmp_path, capsys):
    file = tmp_path / 'int8.onnx'
    options = ['--int8', str(folder / 'images'), '--output', str(file), *OPTIONS[kind]]
    assert export([str(folder / CIFAR), '--format', 'onnx', *options]) == 0
    assert file.stat().st_size < 0.6 * files[kind].stat().st_size
    small, plain = runner.OnnxNet(file), runner.OnnxNet(files[kind])
    x = np.stack([plain.prepare(path) for path in sorted((folder / 'images').iterdir())])
    (logits, num_experts), (wanted, _) = small(x), plain(x)
    assert num_experts.max() == 3
    if kind == 'full':
        assert np.abs(logits - wanted).max() < 0.1 * np.ptp(wanted)
    assert np.abs(logits - wanted).max() > 0


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    wanted=st.tuples(st.sampled_from([1, 3]), st.integers(1, 40), st.integers(1, 40)),
    square=st.booleans(),
    crop_pct=st.sampled_from([0.5, 0.875, 0.9, 0.95, 1.0]),
    crop_mode=st.sampled_from(['center', 'squash', 'border']),
    interpolation=st.sampled_from(['nearest', 'bilinear', 'bicubic', 'lanczos', 'box', 'hamming']),
)
def test_images_are_prepared_as_timm_does(size, wanted, square, crop_pct, crop_mode, interpolation):
    channels, height, width = wanted
    width = height if square else width
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).convert('RGB' if channels == 3 else 'L')
    config = {
        'input_size': (channels, height, width), 'mean': (0.4, 0.5, 0.6)[:channels], 'std': (0.2, 0.3, 0.25)[:channels],
        'crop_pct': crop_pct, 'crop_mode': crop_mode, 'interpolation': interpolation,
    }  # fmt: skip
    try:
        expected = timm.data.create_transform(**config, is_training=False)(image).numpy()
    except ValueError:  # an image of one pixel a side may be scaled to none
        return
    np.testing.assert_allclose(runner.prepare(image, {**config, 'pixel_range': None}), expected, atol=1e-6)


def test_a_program_of_torch_export(folder, tmp_path, capsys):
    file = tmp_path / 'net.pt2'
    assert export([str(folder / CIFAR), '--format', 'torch-export', '--output', str(file)]) == 0
    extra = {'ride_timm.json': ''}
    program = torch.export.load(file, extra_files=extra).module()
    net, x = rt.from_pretrained(folder / CIFAR), torch.randn(5, 3, 20, 24)
    for part in (x, x[:1]):
        torch.testing.assert_close(program(part), net(part))
    known = json.loads(extra['ride_timm.json'])
    assert known['labels'] == NAMES and known['pixel_range'] == [100, 3000]


def test_a_plain_network(tmp_path, capsys):
    net = timm.create_model('test_vit', num_classes=3).eval()
    write_onnx(TrainedNet(net, 'test_vit'), tmp_path / 'plain.onnx')
    plain = runner.OnnxNet(tmp_path / 'plain.onnx')
    x = torch.randn(3, 3, 160, 160)
    logits, num_experts = plain(x.numpy())
    np.testing.assert_allclose(logits, net(x).detach().numpy(), atol=1e-4)
    assert num_experts.tolist() == [0, 0, 0] and plain.labels == ['0', '1', '2']


@pytest.mark.parametrize(
    ('model', 'options', 'wanted'),
    [
        (CIFAR, ('--format', 'torch-export', '--routed'), '--format onnx'),
        (CIFAR, ('--format', 'onnx', '--output', 'none/net.onnx'), 'none'),
        (CIFAR, ('--format', 'torch-export', '--int8', 'images'), '--format onnx'),
        (CIFAR, ('--format', 'onnx', '--int8', 'nowhere'), 'nowhere'),
        ('bare', ('--format', 'onnx', '--routed'), 'no router'),
    ],
)
def test_what_cannot_be_exported(model, options, wanted, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if model == 'bare':
        save_folder(timm.create_model(CIFAR, num_classes=2), folder / 'bare', ['a', 'b'], [2, 1], {})
    with pytest.raises(RideError, match=wanted):
        export([str(folder / model), *options])
    assert not list(tmp_path.iterdir())


def test_onnx_is_missing(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(RideError, match='needs onnxscript'):
        write_onnx(rt.load(folder / CIFAR), tmp_path / 'net.onnx')
