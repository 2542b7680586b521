"""Requests and answers of the test Hub, and the table of its routes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_store import HubError

if TYPE_CHECKING:
    from hub_server import HubServer


@dataclass
class Logged:
    """One request as the Hub saw it; `status` is None as long as, and if, no answer was sent.

    Attributes:
        host: 'hub', or 'storage' for the large files, which have an origin of their own.
        path: Decoded, without the query.
    """

    method: str
    host: str
    path: str
    query: str
    headers: Mapping[str, str]
    status: int | None = None

    def __str__(self) -> str:
        return f'{self.method} {self.path} {self.status}'


@dataclass
class Request:
    """A request on its way to a route: `target` as sent, `args` the decoded groups of the route's pattern."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes = b''
    args: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.target).path)

    @property
    def query(self) -> str:
        return urlsplit(self.target).query

    def flag(self, name: str) -> bool:
        """Whether the query sets a parameter."""
        return parse_qs(self.query).get(name, [''])[0] in ('1', 'true', 'True')

    def json(self) -> Any:
        return _parse(self.body)

    def ndjson(self) -> list[Any]:
        return [_parse(line) for line in self.body.splitlines()]


def _parse(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise HubError(400, f'the body is not JSON: {error}') from error


@dataclass
class Reply:
    """An answer."""

    status: int = 200
    body: bytes = b''
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, content: Any, status: int = 200) -> Reply:
        return cls(status, json.dumps(content).encode(), {'Content-Type': 'application/json'})

    @classmethod
    def error(cls, error: HubError) -> Reply:
        """The refusal as the Hub words it: in the headers, from where clients read it, and in the body."""
        reply = cls.json({'error': error.message}, error.status)
        line = ' '.join(error.message.split())  # a header is one line of ASCII
        reply.headers['X-Error-Message'] = line.encode('ascii', 'replace').decode()
        if error.code:
            reply.headers['X-Error-Code'] = error.code
        return reply

    def part(self, asked: str | None) -> Reply:
        """The bytes that a `Range` header asks for: 206, or 416 behind the end."""
        match = re.fullmatch(r'bytes=(\d+)-(\d*)', asked or '')
        if self.status != 200 or match is None:
            return self
        size, start = len(self.body), int(match[1])
        if start >= size:
            return Reply(416, b'', {'Content-Range': f'bytes */{size}'})
        end = min(int(match[2]), size - 1) if match[2] else size - 1
        headers = {**self.headers, 'Content-Range': f'bytes {start}-{end}/{size}'}
        return Reply(206, self.body[start : end + 1], headers)


Handler = Callable[['HubServer', Request], Reply]
_ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []
_REPO = '([^/]+/[^/]+?)'


def route(methods: str, pattern: str) -> Callable[[Handler], Handler]:
    """Register a function for methods, as 'GET|HEAD', and a path; `REPO` in it stands for `owner/name`."""

    def register(handler: Handler) -> Handler:
        _ROUTES.append((methods, re.compile(pattern.replace('REPO', _REPO)), handler))
        return handler

    return register


def find_route(request: Request) -> Handler | None:
    """The function for a request, whose `args` it fills in.

    Paths are matched as sent, so that the quoted slashes of `refs%2Fpr%2F1` stay in one segment.
    """
    path = urlsplit(request.target).path
    for methods, pattern, handler in _ROUTES:
        match = pattern.fullmatch(path)
        if match and request.method in methods.split('|'):
            request.args = tuple(unquote(group or '') for group in match.groups())
            return handler
    return None
