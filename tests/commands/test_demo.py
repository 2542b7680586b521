"""`ride-timm demo`: what the page shows is what `predict` says.

Pages are built in processes of their own: Gradio leaves event loops open, which this test suite takes for an error.
"""

import asyncio
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from demo_net import NAMES, save_net
from PIL import Image
from tiny_runs import CIFAR

from ride_timm.commands.demo import KnownHosts, _answer, _costs, _measured, main
from ride_timm.errors import RideError
from ride_timm.evaluation.cost import gmacs
from ride_timm.inference.abstention import Abstention
from ride_timm.inference.load import TrainedNet, load
from ride_timm.inference.prediction import predict
from ride_timm.inference.prior import apply_prior
from ride_timm.inference.taxonomy import Taxonomy
from ride_timm.publishing.folder import save_folder


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return save_net(tmp_path_factory.mktemp('weights') / 'net')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for i in range(6):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)).save(root / f'{i}.png')
    return [str(root / f'{i}.png') for i in range(6)]


BUILD = """
import json, sys
from ride_timm.commands.demo import build_demo
from ride_timm.inference.load import load
for folder, threshold in json.loads(sys.argv[1]):
    demo = build_demo(load(folder), threshold=threshold)
    print(json.dumps([[part['type'], part['props']] for part in demo.get_config_file()['components']]))
"""


def build(*cases):
    """The components of pages, each as lists of their properties by type."""
    command = [sys.executable, '-c', BUILD, json.dumps([[str(folder), threshold] for folder, threshold in cases])]
    pages = []
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        pages.append({})
        for kind, properties in json.loads(line):
            pages[-1].setdefault(kind, []).append(properties)
    assert len(pages) == len(cases)
    return pages


def answer(trained, path, threshold):
    return _answer(trained, path, threshold, costs=_costs(trained.model), top_k=2, device='cpu')


def test_an_answer_that_is_not_sure_enough_is_unknown(folder, images):
    trained = load(folder)
    options = {'costs': _costs(trained.model), 'top_k': 2, 'device': 'cpu'}
    for limit in (0.0, 1.0):
        promise = Abstention(limit=limit, rate=0.1, confidence=0.9, images=1, said=1, wrong=0)
        shown, *_ = _answer(trained, images[0], 0.0, abstention=promise, **options)
        assert (shown == 'unknown') == (limit == 1.0)
    promise = replace(promise, limit=0.999)
    shown, *_ = _answer(
        trained, images[0], 0.0, abstention=promise, taxonomy=Taxonomy([(name, 'an <b>') for name in NAMES]), **options
    )
    assert shown == {'an <b>': pytest.approx(1.0)}
    with pytest.raises(RideError, match='--abstain'):
        main([str(folder), '--taxonomy', 'tree.csv'])


def thresholds(trained, images):
    """Thresholds that let the experts part the images, and both ends."""
    shares = [share for found in predict(trained, images, threshold=0.0) for share in found.go_on]
    return [0.0, *np.quantile(shares, [0.3, 0.6, 0.9]).tolist(), 1.0]


def test_the_accuracy_that_leads_is_named_first(tmp_path):
    published = Path(__file__).resolve().parents[2] / 'weights' / 'ride_resnet32_3e.balpoe_cifar100lt'
    folder = tmp_path / 'net'
    shutil.copytree(published, folder)
    results = json.loads((folder / 'results.json').read_text())
    figures = results['test']['all_experts'] | {'balanced': 43.21}
    results['test'] |= {'all_experts': figures, 'routed': None, 'sweep': None}
    for images, first, names in ((100, figures['top1'], ['overall']), (7, 43.21, ['mean over classes', 'over images'])):
        results['test']['per_class'][0]['test_images'] = images
        (folder / 'results.json').write_text(json.dumps(results))
        trained = load(folder)
        sentence = _measured(trained)
        assert [sentence.index(name) for name in names] == sorted(sentence.index(name) for name in names)
        assert f'images: {first:.1f} % {names[0]}' in sentence
    apply_prior(trained, 'train')
    assert not _measured(trained)
    assert not _measured(load(folder / 'model.safetensors'))


def test_the_page_says_what_predict_says(folder, images):
    trained = load(folder)
    counted = set()
    for threshold in thresholds(trained, images):
        for path, found in zip(images, predict(trained, images, top_k=2, threshold=threshold), strict=True):
            label, cost, *rest = answer(trained, path, threshold)
            assert label == pytest.approx({vote.label: vote.confidence for vote in found.top}, abs=1e-5)
            assert cost.startswith(f'{found.num_experts} of 3 experts, ')
            votes, decisions = rest[::2], rest[1::2]
            assert len(votes) == 3
            for vote, wanted in zip(votes, found.experts, strict=True):
                assert vote == (None if wanted is None else pytest.approx({wanted.label: wanted.confidence}, abs=1e-5))
            words = ['Asks expert 1.', 'Asks expert 2.', 'The last expert.']
            if found.num_experts < 3:
                words[found.num_experts - 1 :] = ['Stops here.', *['Not asked.'] * (3 - found.num_experts)]
            assert all(word in decision for word, decision in zip(words, decisions, strict=True))
            counted.add(found.num_experts)
    assert counted == {1, 2, 3}


def test_no_image_clears_the_page(folder):
    assert answer(load(folder), None, 0.5) == [None, ''] * 4


def test_no_answer_is_a_sentence_without_the_place_on_the_server(folder, tmp_path):
    bad = tmp_path / 'a <b>.png'
    bad.write_bytes(b'no image')
    label, told, *rest = answer(load(folder), str(bad), 0.5)
    assert label is None
    assert rest == [None, ''] * 3
    assert 'No answer: The image a &lt;b&gt;.png cannot be read (not an image' in told
    assert str(tmp_path) not in told


@pytest.mark.parametrize('name', ['resnet18', 'ride_resnet32_1e'])
def test_a_network_with_one_opinion_shows_the_answer_alone(name, images):
    net = timm.create_model(name, num_classes=3)
    net.pretrained_cfg.update(input_size=(3, 32, 32))
    label, cost = answer(TrainedNet(net.eval(), name, ('a', 'b', 'c'), None), images[0], 0.5)
    assert len(label) == 2
    assert set(label) < {'a', 'b', 'c'}
    assert cost == f'{gmacs(net, (3, 32, 32)):.4g} GMACs'


@pytest.fixture(scope='module')
def without_router(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('weights') / 'plain'
    save_folder(timm.create_model(CIFAR, num_classes=4), folder, NAMES, [4, 3, 2, 1], {'loss': 'ride'})
    return folder


def test_without_a_router_all_experts_answer(without_router, images):
    trained = load(without_router)
    label, cost, *rest = answer(trained, images[0], 0.5)
    (found,) = predict(trained, images[:1], top_k=2)
    assert label == pytest.approx({vote.label: vote.confidence for vote in found.top}, abs=1e-5)
    assert cost.startswith('3 of 3 experts, ')
    assert rest[1::2] == ['', '', '']
    assert all(rest[::2])
    with pytest.raises(RideError, match=r'--threshold was given, but .* has no router'):
        main([str(without_router), '--threshold', '0.5'])


def test_the_parts_of_the_page(folder, without_router, tmp_path):
    save_folder(timm.create_model('test_resnet', num_classes=4), tmp_path / 'one', NAMES, [4, 3, 2, 1], {'loss': 'ce'})
    cases = (folder, None), (folder, 0.25), (without_router, None), (tmp_path / 'one', None)
    default, given, unrouted, plain = build(*cases)
    assert default['slider'][0]['value'] == load(folder).model.router_threshold
    assert given['slider'][0]['value'] == 0.25
    assert [page['slider'][0]['visible'] for page in (default, unrouted, plain)] == [True, False, False]
    assert [len(page['label']) for page in (default, unrouted, plain)] == [4, 4, 1]


def test_a_taken_port_is_one_sentence(folder):
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [sys.executable, '-m', 'ride_timm.cli', 'demo', str(folder), '--port', str(port)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.count('\n') == 1
    assert f'cannot be served on 127.0.0.1, not port {port} ' in ended.stderr
    assert 'choose another --port' in ended.stderr


def test_wrong_arguments(folder, tmp_path):
    for options, words in (
        (['--top-k', '0'], '--top-k 0 was given'),
        (['--threshold', '2'], '--threshold 2'),
        (['--examples', str(tmp_path / 'none')], '--examples: .*none'),
    ):
        with pytest.raises(RideError, match=words):
            main([str(folder), *options])


def test_without_gradio(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    with pytest.raises(RideError, match=r'gradio, which is not installed; run: pip install "ride-timm\[demo\]"'):
        main([str(folder)])


@contextmanager
def served(folder, temporary, *options):
    """`ride-timm demo` in a process of its own, with Gradio's temporary folder; gives the process and its port."""
    command = [sys.executable, '-m', 'ride_timm.cli', 'demo', str(folder), *options]
    environment = {**os.environ, 'GRADIO_TEMP_DIR': str(temporary)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
        try:
            yield server, int(server.stdout.readline().split('http://127.0.0.1:')[1].split('/')[0])
        finally:
            server.kill()


def upload(port, content):
    """Send a file as the page does; returns status and answer."""
    edge = b'edge'
    head = b'Content-Disposition: form-data; name="files"; filename="x.png"\r\nContent-Type: image/png'
    body = b'--' + edge + b'\r\n' + head + b'\r\n\r\n' + content + b'\r\n--' + edge + b'--\r\n'
    return ask(port, 'POST', '/gradio_api/upload', body, {'Content-Type': 'multipart/form-data; boundary=edge'})


def ask(port, *request):
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=60)
    connection.request(*request)
    response = connection.getresponse()
    try:
        return response.status, response.read()
    finally:
        response.close()
        connection.close()


def test_uploads_are_bounded_and_gone_after_the_end(folder, images, tmp_path):
    with served(folder, tmp_path / 'temporary', '--examples', images[0]) as (server, port):
        status, answer = upload(port, Path(images[1]).read_bytes())
        (path,) = json.loads(answer)
        assert status == 200
        assert Path(path).is_relative_to(tmp_path / 'temporary')
        assert Path(path).is_file()
        assert upload(port, bytes(51 * 2**20))[0] == 413
        assert ask(port, 'GET', '/config', None, {'Host': f'localhost:{port}'})[0] == 200
        status, answer = ask(port, 'GET', '/config', None, {'Host': f'other.example:{port}'})
        assert status == 400
        assert b'localhost' in answer
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) == 128 + signal.SIGTERM
    assert list((tmp_path / 'temporary').iterdir()) == []
    assert Path(images[0]).is_file()


@pytest.mark.parametrize(
    'host, known',
    [
        ('127.0.0.1:7860', True), ('192.168.0.7', True), ('[::1]:7860', True), ('[fe80::1]', True), ('localhost', True),
        ('LocalHost:80', True), ('lab', True), ('', False), ('other.example', False),
        ('localhost.other.example', False), ('127.0.0.1.other.example:7860', False),
        ('other.example:localhost', False), ('é:1', False),
    ],
)  # fmt: skip
@pytest.mark.parametrize('kind', ['http', 'websocket'])
def test_names_that_the_server_answers_to(host, known, kind):
    reached, sent = [], []

    async def app(*_):
        reached.append(True)

    async def send(message):
        sent.append(message)

    scope = {'type': kind, 'headers': [(b'host', host.encode())]}
    asyncio.run(KnownHosts(app, ['localhost', 'lab'])(scope, None, send))
    assert (reached, [message.get('status') for message in sent[:1]]) == (([True], []) if known else ([], [400]))
