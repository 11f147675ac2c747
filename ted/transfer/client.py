"""One hop's client: requests to a peer over kept connections, each proven to be who it should be.

Rules:
 * Mutual TLS: nothing is sent before the peer's certificate carries the expected node name.
 * What cannot be reached is ``UnreachableError``; an answer that says no keeps the peer's own error and hint.
 * Every body is bounded before it is read.
 * A connection is lent to one thread at a time and kept for the next; one that the peer closed meanwhile is
   opened again, once.

``http.client`` and ``readinto``: a third of the CPU of the friendlier clients (docs/dependencies.md).
"""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import math
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ted.errors import BusyError, DamagedError, RefusedError, TedError, TransferError, UnreachableError
from ted.transfer.gates import fit_receive_buffer, segment_bytes
from ted.transfer.pacing import wire_factor
from ted.trust.realm import explain, require_peer

MAX_JSON_BYTES = 64 * 1024 * 1024
DIAL_TRIES_S = (4.0, 4.0, 4.0, 8.0)
"""A router says within 3 s that a host is off; the last try is for a line on which answers take their time."""
CONNECT_TIMEOUT_S = sum(DIAL_TRIES_S)
IDLE_S = 45.0
LISTENS_WITHIN_S = 3.0
SMALL_WITHIN_S = 120.0
PACKED_FROM_BYTES = 400
LEAST_SEGMENTS = 4
CLOSED = (OSError, http.client.HTTPException, AttributeError, ValueError)
"""What http.client raises when a connection breaks, or is closed by another thread in the middle of a call."""


ENDED = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""A handshake that was cut says nothing about who the peer is: it may be starting anew."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a node answers."""

    name: str
    address: str
    port: int

    def __str__(self) -> str:
        where = f"[{self.address}]" if ":" in self.address else self.address
        return f"{self.name} ({where}:{self.port})"


def packed(body: Any) -> tuple[bytes, dict[str, str]]:
    """Return a JSON body as it travels, and the header that says how: large ones are deflated."""
    data = json.dumps(body, separators=(",", ":")).encode()
    if len(data) < PACKED_FROM_BYTES:
        return data, {}
    return zlib.compress(data), {"Content-Encoding": "deflate"}


async def answers(peer: Peer) -> bool:
    """Return whether somebody listens where ``peer`` should."""
    try:
        async with asyncio.timeout(LISTENS_WITHIN_S):
            _, writer = await asyncio.open_connection(peer.address, peer.port)
    except (OSError, ValueError, OverflowError):  # TimeoutError is an OSError
        return False
    writer.transport.abort()
    return True


def dial(where: tuple[str, int], timeout_s: float, source: Any = None) -> socket.socket:
    """Connect as ``socket.create_connection`` does, and begin anew where nothing answers.

    The system itself asks again later and later, 8 s apart at the end: a peer that is back would be found as late.
    """
    for try_s in DIAL_TRIES_S:
        try:
            sock = socket.create_connection(where, try_s, source)
        except TimeoutError as error:
            silence = error
            continue
        sock.settimeout(timeout_s)
        return sock
    raise silence


class Connection:
    """One connection to one peer; used by one thread at a time."""

    def __init__(self, peer: Peer, me: str, context: ssl.SSLContext | None, timeout_s: float) -> None:
        self.peer = peer
        self.idle_since_s = time.monotonic()
        self._timeout_s = timeout_s
        self._asked_window_bytes: int | None = None
        self._window_bytes = 0
        self._buffer_empty_of: http.client.HTTPResponse | None = None
        self._headers = {"X-Ted-Node": me} if context is None else {}
        self._context = context
        self._http = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        address, port = self.peer.address, self.peer.port
        connection: http.client.HTTPConnection
        try:
            if self._context is None:
                connection = http.client.HTTPConnection(address, port, timeout=CONNECT_TIMEOUT_S)
            else:
                connection = http.client.HTTPSConnection(
                    address, port, timeout=CONNECT_TIMEOUT_S, context=self._context
                )
        except (ValueError, http.client.HTTPException) as error:
            raise UnreachableError(f"{self.peer} has no address one could connect to: {error}",
                                   hint=f"check ted_address of {self.peer.name}") from error  # fmt: skip
        connection._create_connection = dial  # type: ignore[attr-defined]  # noqa: SLF001 -- there to be replaced
        try:
            connection.connect()
            assert connection.sock is not None
            if isinstance(connection.sock, ssl.SSLSocket):
                require_peer(connection.sock, self.peer.name)
            connection.sock.settimeout(self._timeout_s)
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except ssl.SSLError as error:
            connection.close()
            if isinstance(error, ENDED):
                raise UnreachableError(
                    f"{self.peer} ended the connection before it was secure: {_reason(error)}",
                    hint=f"ted tries again by itself; is {self.peer.name} being started anew?",
                ) from error
            raise explain(error, self.peer.name) from error
        except (OSError, ValueError, OverflowError) as error:
            # else somebody took the connection, and ended it or was silent
            is_gone = connection.sock is None and not isinstance(error, ConnectionResetError)
            connection.close()
            raise UnreachableError(
                f"{self.peer} does not answer: {_reason(error)}",
                hint="is its agent running, and its port open from here? `ted agent start` there starts it",
                is_gone=is_gone,
            ) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """End the connection; a thread that waits for it gets an error."""
        sock = self._http.sock
        if sock is not None:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._http.close()

    def request(
        self, method: str, path: str, body: Any = None, *, unless: str | None = None
    ) -> http.client.HTTPResponse:
        """Send a request and return the answer's head; a refusal is raised.

        With ``unless``, the tag of an answer that is here already, the answer may be 304 without a body.

        Raises:
            UnreachableError: The connection broke.
            BusyError: The peer is there and has not come to it yet; the connection stays good.
            RefusedError: The peer answered with an error; it carries the peer's own message and hint.
        """
        headers = {"Accept-Encoding": "deflate", **self._headers}
        data = None
        if unless is not None:
            headers["If-None-Match"] = unless
        if body is not None:
            data, encoding = packed(body)
            headers |= {"Content-Type": "application/json", **encoding}
        try:
            self._http.request(method, path, body=data, headers=headers)
            answer = self._http.getresponse()
        except CLOSED as error:
            raise self.broken(error) from error
        if answer.status >= 400:
            raise self._refusal(answer)
        return answer

    @cached_property
    def line_factor(self) -> float:
        """What a byte costs on the line, headers and all."""
        return wire_factor(segment_bytes(self._http.sock), tls=self._context is not None)

    def limit_window(self, window_bytes: int | None) -> int:
        """Let the system take in about ``window_bytes`` before they are read (``None``: what it likes).

        Returns:
            How much it may be: a few segments at least, 0 for no limit.
        """
        if window_bytes != self._asked_window_bytes:
            self._asked_window_bytes = window_bytes
            least_bytes = LEAST_SEGMENTS * segment_bytes(self._http.sock)
            self._window_bytes = 0 if window_bytes is None else max(window_bytes, least_bytes)
            fit_receive_buffer(self._http.sock, self._window_bytes or None)
        return self._window_bytes

    def read(self, answer: http.client.HTTPResponse, max_bytes: int) -> bytes:
        """Return the whole body, at most ``max_bytes``."""
        if answer.length is not None and answer.length > max_bytes:
            raise TransferError(f"{self.peer} announces {answer.length} bytes where {max_bytes} are allowed")
        data = self._read_within(answer, max_bytes + 1)
        if answer.headers.get("Content-Encoding") == "deflate":
            data = self._unpacked(data, max_bytes)
        if len(data) > max_bytes:
            raise TransferError(f"{self.peer} sends more than the {max_bytes} bytes that are allowed")
        return data

    def _read_within(self, answer: http.client.HTTPResponse, most_bytes: int) -> bytes:
        """Read a small body as a whole, in ``SMALL_WITHIN_S``: a peer that drips holds up nobody."""
        deadline_s = time.monotonic() + SMALL_WITHIN_S
        data = bytearray()
        try:
            while len(data) < most_bytes and (piece := answer.read1(min(65536, most_bytes - len(data)))):
                data += piece
                if time.monotonic() > deadline_s:
                    raise UnreachableError(f"{self.peer} takes more than {SMALL_WITHIN_S:g} s for a small answer")
            if answer.length == 0:
                answer.read()  # read1 does not notice the end of a body of known length
        except CLOSED as error:
            raise self.broken(error) from error
        return bytes(data)

    def _unpacked(self, data: bytes, max_bytes: int) -> bytes:
        try:
            return zlib.decompressobj().decompress(data, max_bytes + 1)
        except zlib.error as error:
            raise TransferError(f"{self.peer} sends what cannot be unpacked: {error}") from error

    def read_into(self, answer: http.client.HTTPResponse, buffer: memoryview) -> None:
        """Fill ``buffer`` from the body.

        What came with the head is in ``http.client``'s buffer. The rest is read past it: between it and OpenSSL lie
        three calls for each record of 16 KiB.

        Raises:
            UnreachableError: The connection broke, or ended early.
        """
        done = 0
        try:
            # an answer that says `Connection: close` has the socket to itself
            while done < len(buffer) and (answer is not self._buffer_empty_of or self._http.sock is None):
                piece = answer.read1(len(buffer) - done)
                buffer[done : done + len(piece)] = piece
                done += self._more_than_none(len(piece))
                if len(buffer) >= io.DEFAULT_BUFFER_SIZE:  # all that was buffered had room
                    self._buffer_empty_of = answer
            self._read_past(answer, buffer[done:])
            if answer.length == 0:
                answer.read()  # ends it, so that the connection can be used again
        except CLOSED as error:
            raise self.broken(error) from error

    def _read_past(self, answer: http.client.HTTPResponse, buffer: memoryview) -> None:
        sock, size, done = self._http.sock, len(buffer), 0
        # one call less than recv_into, and into the buffer it is a count that comes back
        read: Any = sock.read if isinstance(sock, ssl.SSLSocket) else lambda _size, view: sock.recv_into(view)
        while done < size:
            done += read(size - done, buffer[done:]) or self._more_than_none(0)
        assert answer.length is not None
        answer.length -= size

    def _more_than_none(self, count: int) -> int:
        if not count:
            raise UnreachableError(f"{self.peer} ended the transfer early")
        return count

    def broken(self, error: Exception) -> TedError:
        """Return the error for a connection that broke."""
        if isinstance(error, ssl.SSLError) and "alert" in str(error).lower():
            return explain(error, self.peer.name)  # TLS 1.3: a refused certificate shows at the first read
        return UnreachableError(f"connection to {self.peer} broke: {_reason(error)}",
                                hint=f"ted tries again by itself; is {self.peer.name} up?")  # fmt: skip

    def _refusal(self, answer: http.client.HTTPResponse) -> TedError:
        message, hint = f"{answer.status} {answer.reason}", None
        with suppress(ValueError, KeyError, TypeError, TransferError):
            said = json.loads(self.read(answer, 65536))["error"]
            message, hint = str(said["message"]), said["hint"] and str(said["hint"])
            if said["type"] == BusyError.__name__:
                return BusyError(f"{self.peer}: {message}", hint=hint)
            if said["type"] == DamagedError.__name__:  # it says itself where
                return DamagedError(_bounded(message), hint=hint and _bounded(hint))
        if answer.status >= 500:
            return UnreachableError(f"{self.peer}: {message}", hint=hint)
        return RefusedError(f"{self.peer}: {message}", hint=hint)


def _bounded(text: str) -> str:
    """Return what a peer says as it may be told on: it goes into the records of others."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:500])


class Pool:
    """Connections to peers, kept for a while; safe for threads."""

    def __init__(self, me: str, context: ssl.SSLContext | None, timeout_s: float) -> None:
        self._me = me
        self._context = context
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._idle: dict[Peer, list[Connection]] = {}
        self._lent: set[Connection] = set()
        self._reached_at_s: dict[Peer, float] = {}
        self._closed = False

    @contextmanager
    def lend(self, peer: Peer, *, fresh: bool = False) -> Iterator[Connection]:
        """Lend a connection; it is kept when the block ends well, and closed when it does not."""
        connection = (None if fresh else self._take(peer)) or self._connect(peer)
        with self._lock:
            self._lent.add(connection)
        try:
            yield connection
        except BaseException:
            connection.close()
            raise
        else:
            self._give_back(connection)
        finally:
            with self._lock:
                self._lent.discard(connection)

    def call(self, peer: Peer, method: str, path: str, body: Any = None, *,
             max_bytes: int = MAX_JSON_BYTES) -> bytes:  # fmt: skip
        """Make one request and return its body; a kept connection that died is replaced once."""
        return self._call(peer, method, path, body, max_bytes, None)[1]

    def call_if_changed(self, peer: Peer, path: str, unless: str | None) -> tuple[str | None, Any]:
        """Get what is JSON; return its tag and itself, which is ``None`` when ``unless`` still is its tag."""
        tag, data = self._call(peer, "GET", path, None, MAX_JSON_BYTES, unless)
        return tag, _json(data, peer, path) if data else None

    def _call(
        self, peer: Peer, method: str, path: str, body: Any, max_bytes: int, unless: str | None
    ) -> tuple[str | None, bytes]:
        def attempt(*, fresh: bool) -> tuple[str | None, bytes]:
            with self.lend(peer, fresh=fresh) as connection:
                answer = connection.request(method, path, body, unless=unless)
                return answer.headers.get("ETag"), connection.read(answer, max_bytes)

        with self._lock:
            had_idle = bool(self._idle.get(peer))
        try:
            return attempt(fresh=False)
        except UnreachableError:
            if not had_idle:
                raise
        return attempt(fresh=True)

    def call_json(self, peer: Peer, method: str, path: str, body: Any = None) -> Any:
        """Make one request whose answer is JSON."""
        return _json(self.call(peer, method, path, body), peer, path)

    def close(self) -> None:
        """Close every connection, those in use as well."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, {}
            lent = list(self._lent)
        for connection in lent:
            connection.close()
        for connections in idle.values():
            for connection in connections:
                connection.close()

    def reached_since(self, peer: Peer, moment_s: float) -> bool:
        """Return whether a connection to ``peer`` was made after ``moment_s`` of ``time.monotonic``."""
        with self._lock:
            return self._reached_at_s.get(peer, -math.inf) > moment_s

    def _connect(self, peer: Peer) -> Connection:
        connection = Connection(peer, self._me, self._context, self._timeout_s)
        with self._lock:
            self._reached_at_s[peer] = time.monotonic()
        return connection

    def _take(self, peer: Peer) -> Connection | None:
        now = time.monotonic()
        with self._lock:
            while connections := self._idle.get(peer):
                connection = connections.pop()
                if now - connection.idle_since_s < IDLE_S:
                    return connection
                connection.close()
        return None

    def _give_back(self, connection: Connection) -> None:
        now = time.monotonic()
        connection.idle_since_s = now
        with self._lock:
            if self._closed:
                connection.close()
                return
            self._idle.setdefault(connection.peer, []).append(connection)
            for peer, connections in list(self._idle.items()):
                for old in [c for c in connections if now - c.idle_since_s >= IDLE_S]:
                    connections.remove(old)
                    old.close()
                if not connections:
                    del self._idle[peer]


def _json(data: bytes, peer: Peer, path: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise TransferError(f"{peer} answers {path} with what is not JSON") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
