"""Failures to order: which request meets what."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from typing import Literal

Action = Literal['status', 'cut', 'reset', 'slow', 'flip', 'short', 'etag']


@dataclass(eq=False)
class Fault:
    """One failure, and the requests that it meets.

    Actions:
        status: Answer `status` (`code` and `message` go into the Hub's error headers) and do nothing.
        cut: Close the connection: of a request with a body once `after_bytes` of it have come in, of any other once
            `after_bytes` of the answer's body have gone out. None closes before the first byte of an answer.
        reset: The same with a TCP reset, as a crashed machine or a firewall does it.
        slow: Wait `seconds`, then answer.
        flip: Change one bit, of the upload's or of the answer's byte number `after_bytes`.
        short: End the answer's body orderly after `after_bytes`.
        etag: Announce a hash that is not the content's.

    Attributes:
        method: Regular expression of the whole method.
        path: Regular expression of the whole path, decoded and without the query.
        nth: The first request to meet, from 1, among those of this method and path.
        times: How many in a row it meets; None for ever.
        performed: Whether `status`, `cut` and `reset` strike after the request was carried out: only its answer is
            lost.
        seen: Requests of this method and path until now.
        strikes: Times that it struck until now.
    """

    method: str = '.*'
    path: str = '.*'
    nth: int = 1
    times: int | None = 1
    action: Action = 'status'
    status: int = 503
    code: str | None = None
    message: str = 'injected'
    headers: dict[str, str] = field(default_factory=dict)
    after_bytes: int | None = None
    seconds: float = 0.0
    performed: bool = False
    seen: int = field(default=0, init=False)
    strikes: int = field(default=0, init=False)

    @property
    def closes(self) -> bool:
        return self.action in ('cut', 'reset')

    def meets(self, method: str, path: str) -> bool:
        """Count a request; whether it is one to strike."""
        if not re.fullmatch(self.method, method) or not re.fullmatch(self.path, path):
            return False
        self.seen += 1
        return self.nth <= self.seen and (self.times is None or self.seen < self.nth + self.times)

    def damage(self, data: bytes) -> bytes:
        """The data with one bit changed."""
        if not data:
            return data
        at = min(self.after_bytes or 0, len(data) - 1)
        return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


class Faults:
    """The failures in force; where several meet a request, the first added strikes."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> Fault:
        """Put a failure in force, and return it for its counters."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def strike(self, method: str, path: str) -> Fault | None:
        """The failure that a request meets; to be asked once a request."""
        with self._lock:
            met = [fault for fault in self._faults if fault.meets(method, path)]
            if not met:
                return None
            met[0].strikes += 1
            return met[0]
