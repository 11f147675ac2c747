"""TLS of the listening side, on the socket itself: a block is encrypted from where it lies into the kernel.

asyncio's own TLS goes through a buffer in memory and copies each byte three times more; a relay sends its pack once
for each child, so that was most of what it cost beside the encryption (docs/performance.md, "Relay cost").

Rules:
 * To a protocol it is an ``asyncio.Transport``: flow control both ways, ``get_extra_info``, ``close`` and ``abort`` as
   documented there; ``connection_lost`` comes exactly once, never from inside a call.
 * What is given to ``write`` is not copied: it must not change while ``get_write_buffer_size`` tells that bytes wait.
 * At most ``TURN_BYTES`` of a connection go out, or ``TURN_READS`` records come in, before others have their turn.
 * A handshake has ``HANDSHAKE_WITHIN_S``; whoever stalls, goes away or speaks something else is let go without a word
   and holds up nobody.
 * ``close`` sends what waits, ends TLS properly and lets the peer end too, for ``CLOSE_WITHIN_S`` in all; then, as with
   ``abort``, the connection is cut.
 * Whoever takes nothing of what waits for ``STALLED_WITHIN_S`` is let go; what keeps a better time does so itself.
 * A peer that says goodbye still gets what was written by then; one whose connection ends without is gone.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

log = logging.getLogger("ted.tls")

HANDSHAKE_WITHIN_S = 60.0
CLOSE_WITHIN_S = 30.0
STALLED_WITHIN_S = 300.0
ACCEPT_AGAIN_S = 1.0
RECORD_BYTES = 16 * 1024
WRITE_BYTES = 256 * 1024
TURN_BYTES, TURN_READS = 1024 * 1024, 64
HIGH_BYTES = 64 * 1024
LEAST_POUR_BYTES, FAST_AFTER = 64 * 1024, 4
POUR_BYTES = WRITE_BYTES  # no more: what is half out must be offered again whole; half of a usual second-level cache
NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

Fill = Callable[[int, memoryview], bool]
"""Fills a buffer from a place; false when that cannot be done at once."""

_SCRATCH = memoryview(bytearray(POUR_BYTES))  # one for all: nothing stays in it


class TlsListener:
    """Listens, greets whoever comes, and gives each greeted connection a protocol; for the event loop."""

    def __init__(self, protocol: Callable[[], asyncio.BaseProtocol], context: ssl.SSLContext, backlog: int) -> None:
        self._protocol = protocol
        self._context = context
        self._backlog = backlog
        self._sockets: list[socket.socket] = []
        self._greeted: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def start(self, host: str | None, port: int) -> None:
        """Listen on every address of ``host``.

        Raises:
            OSError: It is not this machine's, or somebody else listens there.
        """
        bound = await self._loop.create_server(asyncio.Protocol, host, port, reuse_address=True, start_serving=False)
        try:
            for each in bound.sockets:
                sock = each.dup()
                self._sockets.append(sock)
                sock.setblocking(False)
                sock.listen(self._backlog)
                self._loop.add_reader(sock, self._accept, sock)
        except OSError:
            self.close()
            raise
        finally:
            bound.close()

    @property
    def addresses(self) -> list[Any]:
        """Where it listens."""
        return [sock.getsockname() for sock in self._sockets]

    def close(self) -> None:
        """Listen no more; connections that have their protocol live on."""
        for sock in self._sockets:
            self._loop.remove_reader(sock)
            sock.close()
        self._sockets.clear()
        for task in self._greeted:
            task.cancel()

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(self._backlog):
            try:
                connection, _ = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                log.error("no further connection can be taken: %s", error)
                self._loop.remove_reader(sock)
                self._loop.call_later(ACCEPT_AGAIN_S, self._listen_again, sock)
                return
            task = self._loop.create_task(self._greet(connection))
            self._greeted.add(task)
            task.add_done_callback(partial(self._end_greeting, connection))

    def _end_greeting(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._greeted.discard(task)
        if task.cancelled():
            connection.close()  # it may not even have begun

    def _listen_again(self, sock: socket.socket) -> None:
        if sock in self._sockets:
            self._loop.add_reader(sock, self._accept, sock)

    async def _greet(self, connection: socket.socket) -> None:
        with _closed_on_error(connection):
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            tls = self._context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            with _closed_on_error(tls):
                async with asyncio.timeout(HANDSHAKE_WITHIN_S):
                    await self._handshake(tls)
                TlsTransport(self._loop, tls, self._protocol)

    async def _handshake(self, tls: ssl.SSLSocket) -> None:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._ready(tls, self._loop.add_reader, self._loop.remove_reader)
            except ssl.SSLWantWriteError:
                await self._ready(tls, self._loop.add_writer, self._loop.remove_writer)
            else:
                return

    async def _ready(self, sock: socket.socket, watch: Callable[..., None], leave: Callable[..., bool]) -> None:
        ready = asyncio.Event()
        watch(sock, ready.set)
        try:
            await ready.wait()
        finally:
            leave(sock)


@contextmanager
def _closed_on_error(sock: socket.socket) -> Iterator[None]:
    """Close a socket that did not get a protocol; what a stranger did wrong is worth a line for who looks closely."""
    try:
        yield
    except (OSError, ValueError) as error:  # TimeoutError and SSLError are OSErrors
        sock.close()
        log.debug("no handshake: %r", error)
    except BaseException:
        sock.close()
        raise


class TlsTransport(asyncio.Transport):
    """A greeted connection, as its protocol sees it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: ssl.SSLSocket,
                 protocol: Callable[[], asyncio.BaseProtocol]) -> None:  # fmt: skip
        super().__init__({
            "socket": sock, "ssl_object": sock, "sslcontext": sock.context, "peercert": sock.getpeercert(),
            "cipher": sock.cipher(), "compression": sock.compression(), "peername": sock.getpeername(),
            "sockname": sock.getsockname(),
        })  # fmt: skip
        self._loop = loop
        self._sock = sock
        self._waiting: deque[memoryview] = deque()
        self._waiting_bytes = 0
        self._poured_in_a_row = 0
        self._high_bytes, self._low_bytes = HIGH_BYTES, HIGH_BYTES // 4
        self._writing_paused = False
        self._reading_paused = False
        self._write_wants_read = self._read_wants_write = False  # TLS's own messages go the other way at times
        self._closing = self._said_goodbye = self._peer_ended = self._lost = False
        self._deadline: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._took_at_s = 0.0
        self._watches_read = self._watches_write = False
        self._protocol: Any = protocol()
        self._protocol.connection_made(self)
        self._watch()

    # -- the contract ----------------------------------------------------------------------------------------

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Give what comes from now on to another protocol."""
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return who gets what comes."""
        protocol: asyncio.BaseProtocol = self._protocol
        return protocol

    def is_closing(self) -> bool:
        """Return whether nothing more is taken."""
        return self._closing

    def is_reading(self) -> bool:
        """Return whether what comes is read."""
        return not self._reading_paused and not self._closing

    def pause_reading(self) -> None:
        """Leave what comes where it is."""
        self._reading_paused = True
        self._watch()

    def resume_reading(self) -> None:
        """Read on."""
        self._reading_paused = False
        self._watch()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        """Say from how many waiting bytes on the protocol is told to pause, and down to how many to go on."""
        if high is None:
            high = HIGH_BYTES if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high}) must be >= low ({low}) must be >= 0")
        self._high_bytes, self._low_bytes = high, low
        self._regulate()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        """Return the lower and the upper limit."""
        return self._low_bytes, self._high_bytes

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait; a piece that is half out counts as a whole."""
        return self._waiting_bytes

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send ``data`` now as far as possible and the rest when the peer takes it; see the rules."""
        if self._closing or not data:
            return
        view = memoryview(data).cast("B")
        was_idle = not self._waiting
        self._waiting.append(view)
        self._waiting_bytes += len(view)
        if was_idle:
            self._expect()
            self._send()
        else:
            self._regulate()

    def pour(self, fill: Fill, start: int, stop: int) -> int:
        """Write what ``fill`` has for ``start`` to ``stop``, as far as it has it and the peer takes it; return how far.

        The way of blocks: in pieces so small that each is still in the processor's cache when it is encrypted.
        """
        while start < stop and not self._waiting and not self._closing:
            data = _SCRATCH[: min(self._pour_bytes, stop - start)]
            if not fill(start, data):
                break
            try:
                sent_bytes = self._sock.send(data)
            except (OSError, ValueError):
                sent_bytes = 0  # what is the matter shows when it is offered again
            start += len(data)
            if sent_bytes == len(data):
                self._poured_in_a_row += 1
            else:
                self._poured_in_a_row = 0
                self.write(bytes(data[sent_bytes:]))
        return start

    @property
    def _pour_bytes(self) -> int:
        """How much to pour at a time: what a slow reader does not take is copied, and waits whole."""
        return POUR_BYTES if self._poured_in_a_row >= FAST_AFTER else LEAST_POUR_BYTES

    def can_write_eof(self) -> bool:
        """Return that one direction cannot be ended alone."""
        return False

    def close(self) -> None:
        """End it properly."""
        if self._closing:
            return
        self._closing = True
        self._deadline = self._loop.call_later(CLOSE_WITHIN_S, self.abort)
        if not self._waiting:
            self._say_goodbye()
        self._watch()

    def abort(self) -> None:
        """Cut it."""
        self._lose(None)

    # -- what happens ----------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Wait for what is of use now."""
        reads = not self._lost and not self._peer_ended and not self._read_wants_write and (
            self._said_goodbye or self._write_wants_read or not (self._closing or self._reading_paused))  # fmt: skip
        writes = not self._lost and (
            self._read_wants_write or (bool(self._waiting) and not self._write_wants_read)
            or (self._closing and not self._waiting and not self._said_goodbye))  # fmt: skip
        if reads != self._watches_read:
            self._watches_read = reads
            if reads:
                self._loop.add_reader(self._sock, self._readable)
            else:
                self._loop.remove_reader(self._sock)
        if writes != self._watches_write:
            self._watches_write = writes
            if writes:
                self._loop.add_writer(self._sock, self._writable)
            else:
                self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        if self._write_wants_read:
            self._write_wants_read = False
            self._send()
        self._receive()
        self._watch()

    def _writable(self) -> None:
        if self._read_wants_write:
            self._read_wants_write = False
            self._receive()
        if self._waiting:
            self._send()
        elif self._closing and not self._said_goodbye:
            self._say_goodbye()
        self._watch()

    def _receive(self) -> None:
        """Take in records, none in part: nothing is left in OpenSSL that the socket would not tell of."""
        for _ in range(TURN_READS):
            if self._lost or self._peer_ended or not (self._said_goodbye or self.is_reading()):
                return
            try:
                data = self._sock.recv(RECORD_BYTES)
            except (ssl.SSLWantReadError, BlockingIOError):  # after the goodbye the socket is a plain one
                return
            except ssl.SSLWantWriteError:
                self._read_wants_write = True
                return
            except (OSError, ValueError) as error:
                self._lose(error)
                return
            if not data:
                self._end_of_peer()
            elif not self._closing:
                self._tell(self._protocol.data_received, data)

    def _end_of_peer(self) -> None:
        self._peer_ended = True
        if self._said_goodbye:
            self._lose(None)
        elif not self._closing:
            self._tell(self._protocol.eof_received)
            self.close()

    def _send(self) -> None:
        """Send what waits; a piece that is half out is offered again as it was, as OpenSSL wants it."""
        left_bytes = TURN_BYTES
        while self._waiting and left_bytes > 0:
            view = self._waiting[0]
            try:
                sent_bytes = self._sock.send(view[:WRITE_BYTES])
            except ssl.SSLWantWriteError:
                break
            except ssl.SSLWantReadError:
                self._write_wants_read = True
                break
            except (OSError, ValueError) as error:
                self._lose(error)
                return
            left_bytes -= sent_bytes
            self._took_at_s = self._loop.time()
            self._waiting_bytes -= sent_bytes
            if sent_bytes < len(view):
                self._waiting[0] = view[sent_bytes:]
            else:
                self._waiting.popleft()
        if self._closing and not self._waiting:
            self._say_goodbye()
        self._regulate()
        self._watch()

    def _expect(self) -> None:
        """See to it that what waits does not wait for ever."""
        self._took_at_s = self._loop.time()
        if self._waiting and self._stall is None:
            self._stall = self._loop.call_later(STALLED_WITHIN_S, self._look)

    def _look(self) -> None:
        self._stall = None
        left_s = self._took_at_s + STALLED_WITHIN_S - self._loop.time()
        if self._waiting and left_s <= 0:
            self._lose(TimeoutError(f"nothing was taken for {STALLED_WITHIN_S:g} s"))
        elif self._waiting:
            self._stall = self._loop.call_later(left_s, self._look)

    def _regulate(self) -> None:
        if not self._writing_paused and self._waiting_bytes > self._high_bytes:
            self._writing_paused = True
            self._tell(self._protocol.pause_writing)
        elif self._writing_paused and self._waiting_bytes <= self._low_bytes:
            self._writing_paused = False
            self._tell(self._protocol.resume_writing)

    def _say_goodbye(self) -> None:
        """End TLS and this side's half of the connection, without waiting for the peer's."""
        try:
            self._sock.unwrap()
        except ssl.SSLWantWriteError:
            return  # there is no room for it yet
        except (OSError, ValueError):
            pass  # it is out, and the peer's has not come; or the connection is gone
        self._said_goodbye = True
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)
        if self._peer_ended:
            self._lose(None)

    def _tell(self, method: Callable[..., object], *args: object) -> None:
        """Call the protocol; one that fails loses its connection, and the loop tells of it."""
        try:
            method(*args)
        except BaseException:
            self.abort()
            raise

    def _lose(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._waiting.clear()
        self._waiting_bytes = 0
        for timer in (self._deadline, self._stall):
            if timer is not None:
                timer.cancel()
        self._watch()
        self._loop.call_soon(self._finish, error)

    def _finish(self, error: Exception | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._sock.close()
