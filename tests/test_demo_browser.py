"""The demo's page in a real browser, driven as a person would.

Needs Chromium: where none is found the tests are skipped; `RIDE_TIMM_BROWSER` names one that must work.
"""

import base64
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from demo_net import save_net
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from ride_timm.inference.load import load
from ride_timm.inference.prediction import predict

FOUND = [path for name in ('chromium', 'chromium-browser', 'google-chrome') if (path := shutil.which(name))]
BROWSER = os.environ.get('RIDE_TIMM_BROWSER') or next(iter(FOUND), None)
OPTIONS = ['--no-sandbox', '--disable-gpu', '--disable-quic', '--disable-background-networking', '--disable-sync']
OPTIONS += ['--no-first-run', '--disable-component-update']
PATIENCE = 30_000  # milliseconds

pytestmark = pytest.mark.skipif(BROWSER is None, reason='no Chromium; set RIDE_TIMM_BROWSER to its path')


@pytest.fixture(scope='module')
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)).save(root / f'{i}.png')
    Image.fromarray(rng.integers(0, 65536, (20, 20)).astype(np.uint16)).save(root / 'sixteen bit.png')
    return sorted(root.iterdir())


@pytest.fixture(scope='module')
def net(tmp_path_factory):
    return save_net(tmp_path_factory.mktemp('weights') / 'net')


@pytest.fixture(scope='module')
def address(net, images):
    """Where `ride-timm demo` serves; interrupted with Ctrl+C at the end."""
    command = [sys.executable, '-m', 'ride_timm.cli', 'demo', str(net), '--examples', str(images[0]), '--top-k', '2']
    # a shell in the background ignores Ctrl+C, and so would the server
    heard = {'preexec_fn': lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)} if os.name == 'posix' else {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **heard) as server:
        try:
            line = server.stdout.readline()
            assert line.startswith(f'{net}: open http://127.0.0.1:')
            yield line.split(': open ')[1].split(' ')[0]
            server.send_signal(signal.SIGINT)
            assert server.wait(30) == 0
        finally:
            server.kill()


@pytest.fixture(scope='module')
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """The page, opened; at the end it must have asked no other host and raised nothing."""
    context = browser.new_context(viewport={'width': 1100, 'height': 1000})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    expect.set_options(timeout=PATIENCE)
    asked, raised = set(), []
    page.on('request', lambda request: asked.add(request.url))
    page.on('pageerror', lambda error: raised.append(error))
    page.goto(address)
    page.get_by_label('Routing threshold').first.wait_for()
    yield page
    assert [url for url in asked if not url.startswith((address, 'data:', 'blob:'))] == []
    assert raised == []
    assert page.evaluate('window.hacked') is None
    context.close()


def drop(page, path: Path) -> None:
    """Let a file fall onto the place for images, as from a file manager."""
    content = base64.b64encode(path.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """([content, name]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
            transfer.items.add(new File([bytes], name, { type: 'image/png' }));
            return transfer;
        }""",
        [content, path.name],
    )
    page.get_by_text('Drop Image Here').first.dispatch_event('drop', {'dataTransfer': transfer})


def route(page, threshold: float) -> None:
    box = page.locator('input[type=number]').first
    box.fill(str(threshold))
    box.press('Enter')


def expect_answer(page, net, path: Path, threshold: float) -> None:
    """Compare the page with `predict`."""
    (found,) = predict(load(net), [str(path)], top_k=2, threshold=threshold)
    expect(page.get_by_text(f'{found.num_experts} of 3 experts, ')).to_be_visible()
    labels = page.get_by_test_id('label-output-value')
    expect(labels).to_have_text(found.top[0].label)
    shown = page.locator('.confidence-set')
    votes = [*found.top, *(vote for vote in found.experts if vote)]
    expect(shown).to_have_count(len(votes))
    for index, vote in enumerate(votes):
        expect(shown.nth(index)).to_contain_text(vote.label)
        expect(shown.nth(index)).to_contain_text(f'{round(100 * vote.confidence)}%')
    expect(page.get_by_text('Not asked.')).to_have_count(3 - found.num_experts)


def test_drop_an_image_and_move_the_slider(page, net, images):
    shares = [share for found in predict(load(net), [str(images[0])], threshold=0.0) for share in found.go_on]
    drop(page, images[0])
    expect_answer(page, net, images[0], load(net).model.router_threshold)
    counted = set()
    for threshold in (1, 0, round(float(np.mean(shares)), 2), 0.99, 0.01):
        route(page, threshold)
        (found,) = predict(load(net), [str(images[0])], threshold=threshold)
        counted.add(found.num_experts)
        expect_answer(page, net, images[0], threshold)
    assert len(counted) > 1


def test_other_kinds_of_images_and_another_image(page, net, images):
    threshold = load(net).model.router_threshold
    for path in (images[-1], images[2], images[3]):
        assert path.suffix == '.png'
        page.locator('input[type=file]').first.set_input_files(path)
        expect_answer(page, net, path, threshold)
        page.get_by_label('Remove Image').click()
        expect(page.locator('.confidence-set')).to_have_count(0)


def test_an_example(page, net, images):
    page.locator('.gallery-item').first.click()
    expect_answer(page, net, images[0], load(net).model.router_threshold)


def test_what_is_no_image_is_told_and_the_page_goes_on(page, net, images, tmp_path):
    bad = tmp_path / 'notes <b>.png'
    bad.write_bytes(b'no image')
    page.locator('input[type=file]').first.set_input_files(bad)
    told = page.get_by_role('alert')
    expect(told).to_contain_text('notes')
    expect(page.locator('.confidence-set')).to_have_count(0)
    page.locator('.gallery-item').first.click()
    expect_answer(page, net, images[0], load(net).model.router_threshold)


def test_names_of_classes_are_text(page, net, images):
    page.locator('.gallery-item').first.click()
    expect(page.locator('.confidence-set')).not_to_have_count(0)
    assert page.locator('img[src="x"]').count() == 0
