"""A Hugging Face Hub in this process, for the real client: repositories, large files, pull requests, and failures.

    with HubServer() as hub:
        HfApi(endpoint=hub.url, token=hub.token).create_repo('me/model')

It speaks what huggingface_hub 2.4 asks for, over two ports: the Hub, and the storage of large files, which is another
origin as at the real one, so that a client that sends its token there is found out.
"""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import sys
import threading
import traceback
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from types import TracebackType
from typing import Any

import hub_changes  # noqa: F401 - both register the routes
import hub_routes  # noqa: F401
from hub_faults import Fault, Faults
from hub_store import Account, Blob, Commit, HubError, Store, is_large
from hub_wire import Logged, Reply, Request, find_route

_PIECE = 16384


class HubServer:
    """The Hub: a context manager that serves while it is open.

    Attributes:
        inline: Take every file into git (`regular`); else weights go to the large file storage.
        token: A token with every right on the namespaces `me` and `ride-timm`.
        reader: A token of another account, which may read public repositories and propose changes.
        requests: What came in, in order of arrival.
        problems: What must stay empty: requests without a route, and errors of the Hub itself.
        faults: Failures in force.
    """

    token = 'hf_' + 'w' * 34
    reader = 'hf_' + 'r' * 34

    def __init__(self, *, inline: bool = False) -> None:
        self.inline = inline
        self.store = Store()
        self.store.accounts[self.token] = Account('me', orgs=('ride-timm',))
        self.store.accounts[self.reader] = Account('you', can_write=False)
        self.faults = Faults()
        self.requests: list[Logged] = []
        self.problems: list[str] = []
        self.closing = threading.Event()
        self._listeners = {name: _Listener(self, name) for name in ('hub', 'storage')}
        self.url = self._listeners['hub'].url
        self.storage_url = self._listeners['storage'].url

    def __enter__(self) -> HubServer:
        for listener in self._listeners.values():
            listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.closing.set()
        for listener in self._listeners.values():
            listener.stop()

    def seed(self, repo_id: str, files: Mapping[str, bytes], *, private: bool = False, title: str = 'seed') -> Commit:
        """Commit files to `main` without any request, in a new repository if there is none of this name."""
        with self.store.lock:
            repository = self.store.repositories.get(repo_id) or self.store.create(repo_id, private=private)
            tree = dict(repository.head().tree)
            for path, data in files.items():
                blob = Blob(data, lfs=not self.inline and is_large(path, len(data)))
                tree[path] = blob
                if blob.lfs:
                    repository.large[blob.sha256] = data
            return repository.commit('main', tree, title)

    def head(self, repo_id: str, revision: str = 'main') -> Commit:
        return self.store.repositories[repo_id].head(revision)

    def files(self, repo_id: str, revision: str = 'main') -> dict[str, bytes]:
        """What a revision holds, but for the Hub's own `.gitattributes`."""
        tree = self.head(repo_id, revision).tree
        return {path: blob.data for path, blob in sorted(tree.items()) if path != '.gitattributes'}

    def history(self, repo_id: str, revision: str = 'main') -> list[Commit]:
        """The commits of a revision, newest first."""
        return list(self.store.repositories[repo_id].history(revision))

    def account(self, request: Request) -> Account | None:
        return self.store.account(request.headers.get('Authorization'))

    def perform(self, request: Request) -> Reply:
        """The answer to a request, without any failure."""
        handler = find_route(request)
        if handler is None:
            self.problems.append(f'no route for {request.method} {request.path}')
            return Reply.error(HubError(404, f'the test Hub has no route for {request.method} {request.path}'))
        try:
            with self.store.lock:
                return handler(self, request)
        except HubError as error:
            return Reply.error(error)
        except Exception:
            self.problems.append(traceback.format_exc())
            return Reply.error(HubError(500, 'the test Hub has an error'))


class _Listener(ThreadingHTTPServer):
    """One port. Closing it ends its connections and threads: the client keeps connections open for reuse."""

    daemon_threads = False
    request_queue_size = 64

    def __init__(self, hub: HubServer, name: str) -> None:
        self.hub, self.name = hub, name
        self._open: set[socket.socket] = set()
        self._to_reset: set[socket.socket] = set()
        super().__init__(('127.0.0.1', 0), _Handler)
        self.url = f'http://127.0.0.1:{self.server_address[1]}'
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), name=f'test-{name}', daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self._thread.join()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def reset(self, connection: socket.socket) -> None:
        """Let the connection end with RST instead of FIN."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self._to_reset.add(connection)

    def server_bind(self) -> None:
        # The parent's looks its own name up, which may ask a name server.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = '127.0.0.1', self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        if request in self._to_reset:
            self._to_reset.discard(request)
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # that is: the client is gone
            self.hub.problems.append(traceback.format_exc())


class _Handler(BaseHTTPRequestHandler):
    """Reads a request, lets a failure strike, answers."""

    protocol_version = 'HTTP/1.1'
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _Listener

    def do_GET(self) -> None:
        hub = self.server.hub
        request = Request(self.command, self.path, {k.title(): v for k, v in self.headers.items()})
        logged = Logged(self.command, self.server.name, request.path, request.query, request.headers)
        hub.requests.append(logged)
        fault = hub.faults.strike(self.command, request.path)
        with_body = self.command in ('POST', 'PUT')
        cut = fault is not None and fault.closes and not fault.performed
        request.body = self._read_body(fault.after_bytes or 0 if fault is not None and cut and with_body else None)
        if fault is None:
            self._answer(logged, hub.perform(request))
        elif cut and with_body:
            self._hang_up(fault)
        else:
            self._fail(fault, request, logged)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - names of the parent's

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _fail(self, fault: Fault, request: Request, logged: Logged) -> None:
        """Answer a request, whose body is read, with a failure."""
        hub = self.server.hub
        if fault.action == 'slow':
            hub.closing.wait(fault.seconds)
        if fault.action == 'flip':
            request.body = fault.damage(request.body)
        performed = fault.performed or fault.action != 'status'
        reply = hub.perform(request) if performed else Reply()
        if fault.action == 'status':
            reply = Reply.error(HubError(fault.status, fault.message, fault.code))
            reply.headers |= fault.headers
        elif fault.action == 'flip' and self.command == 'GET':
            reply.body = fault.damage(reply.body)
        elif fault.action == 'short':
            reply.body = reply.body[: fault.after_bytes or 0]
        elif fault.action == 'etag':
            reply.headers |= {k: v[::-1] for k, v in reply.headers.items() if k.lower().endswith('etag')}
        if fault.closes:
            if fault.after_bytes is not None and self.command == 'GET':
                self._answer(logged, reply, fault.after_bytes)
            self._hang_up(fault)
        else:
            self._answer(logged, reply)

    def _read_body(self, limit: int | None) -> bytes:
        """The body, or about its first `limit` bytes."""
        body = bytearray()
        chunked = self.headers.get('Transfer-Encoding', '').lower() == 'chunked'
        left = 0 if chunked else int(self.headers.get('Content-Length') or 0)
        while limit is None or len(body) < limit:
            if chunked and not left:
                left = int(self.rfile.readline().strip() or b'0', 16)
                if not left:
                    self.rfile.readline()
                    break
            if not left:
                break
            piece = _read(self.rfile, min(left, _PIECE))
            body += piece
            left -= len(piece)
            if chunked and not left:
                self.rfile.readline()
        return bytes(body)

    def _answer(self, logged: Logged, reply: Reply, stop: int | None = None) -> None:
        """Send an answer, of its body only the first `stop` bytes."""
        logged.status = reply.status
        self.send_response(reply.status)
        for name, value in {'Content-Length': str(len(reply.body)), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(reply.body[:stop])
        self.wfile.flush()

    def _hang_up(self, fault: Fault) -> None:
        self.close_connection = True
        if fault.action == 'reset':
            self.server.reset(self.connection)


def _read(stream: BufferedIOBase, size: int) -> bytes:
    piece = stream.read(size)
    if not piece:
        raise ConnectionResetError('the client has gone')
    return piece
