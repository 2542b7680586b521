import http.client
import os
import socket
import subprocess
import sys
import threading

import pytest
from hub_cases import FILES, REPO, shapes
from hub_server import HubServer
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError


def test_nothing_else_can_be_reached(hub, foreign_hosts):
    for call in (
        lambda: socket.create_connection(('192.0.2.1', 80), timeout=1),
        lambda: socket.create_connection(('huggingface.co', 443), timeout=1),
    ):
        with pytest.raises(OSError, match='a test must not connect'):
            call()
    assert foreign_hosts == ['192.0.2.1', 'huggingface.co']
    del foreign_hosts[:]  # else the test fails


def test_a_child_process_knows_this_hub_alone(hub, hub_env):
    hub.seed(REPO, FILES)
    code = (
        'from huggingface_hub import HfApi, hf_hub_download as get\n'
        f'print(open(get({REPO!r}, "config.json")).read())\n'
        'try: HfApi(endpoint="http://huggingface.co").model_info("a/b", timeout=5)\n'
        'except Exception as error: print(type(error).__name__, "refused" in str(error))\n'
    )
    env = {**os.environ, **hub_env}
    child = subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True, timeout=60)
    assert child.stdout == '{"architecture": "a"}\nConnectError True\n', child.stderr
    assert shapes(hub) == [f'{verb} /R/resolve/main/config.json 200' for verb in ('HEAD', 'GET')]


def test_the_cache_is_the_tests_own(hub, hub_login, tmp_path):
    hub.seed(REPO, FILES, private=True)
    path = hf_hub_download(REPO, 'config.json')  # with the token of the environment
    assert os.environ['HF_HOME'] in path
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download(REPO, 'config.json', cache_dir=tmp_path, local_files_only=True)


def test_an_unknown_request_is_a_problem_and_closing_leaves_nothing():
    before = set(threading.enumerate())
    with HubServer() as hub:
        clients = [http.client.HTTPConnection(url.removeprefix('http://')) for url in (hub.url, hub.storage_url)]
        for client in clients:
            client.request('GET', '/api/datasets/a/b')
            answer = client.getresponse()
            assert (answer.status, b'no route' in answer.read()) == (404, True)
    assert hub.problems == ['no route for GET /api/datasets/a/b'] * 2
    for client in clients:
        assert client.sock.recv(1) == b''  # it was kept open until now
        client.close()
    assert set(threading.enumerate()) <= before
