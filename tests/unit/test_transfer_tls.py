"""TLS of the listening side over real sockets: flow control, ends of all kinds, and strangers."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import resource
import select
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ted.transfer import tls
from ted.transfer.tls import POUR_BYTES, TlsListener, TlsTransport
from ted.trust.realm import NodeIdentity, RealmAuthority, peer_name

MIB = 1024 * 1024
DATA = random.Random(1).randbytes(12 * MIB)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts of a server ``s01`` and of a client ``c01`` of one realm."""
    root: Path = tmp_path_factory.mktemp("realm")
    authority = RealmAuthority(root / "authority")
    authority.create("example")
    for node in ("s01", "c01"):
        identity = NodeIdentity(root / node)
        authority.issue_from_request(node, identity.request(node, ("127.0.0.1",)).csr, into=root / node)
    return NodeIdentity(root / "s01").server_context(), NodeIdentity(root / "c01").client_context()


class Line(asyncio.Protocol):
    """One end that writes down what happens to it."""

    def __init__(self, lines: list[Line]) -> None:
        self.came = bytearray()
        self.events: list[str] = []
        self.error: Exception | None = None
        self.lost = asyncio.Event()
        self.on_data: Callable[[bytes], None] = self.came.extend
        self._flows = asyncio.Event()
        self._flows.set()
        lines.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, TlsTransport)
        self.transport = transport
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        self.on_data(data)

    def eof_received(self) -> None:
        self.events.append("eof")

    def pause_writing(self) -> None:
        self.events.append("pause")
        self._flows.clear()

    def resume_writing(self) -> None:
        self.events.append("resume")
        self._flows.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.error = exc
        self._flows.set()
        self.lost.set()

    async def drain(self) -> None:
        await self._flows.wait()


@dataclass
class Place:
    """A listener and those who came."""

    port: int
    client: ssl.SSLContext
    lines: list[Line] = field(default_factory=list)

    def connect(self, receive_bytes: int | None = None) -> ssl.SSLSocket:
        """Connect and greet; for a thread of its own."""
        sock = socket.socket()
        sock.settimeout(20)
        if receive_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        sock.connect(("127.0.0.1", self.port))
        return self.client.wrap_socket(sock, suppress_ragged_eofs=False)

    async def arrival(self, receive_bytes: int | None = None) -> tuple[ssl.SSLSocket, Line]:
        """Return both ends of a new connection."""
        before = len(self.lines)
        sock = await asyncio.to_thread(self.connect, receive_bytes)
        await until(lambda: len(self.lines) > before)
        return sock, self.lines[-1]


async def until(holds: Callable[[], bool], within_s: float = 15.0) -> None:
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def listening(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> AsyncIterator[Place]:
    place = Place(0, contexts[1])
    listener = TlsListener(lambda: Line(place.lines), contexts[0], 128)
    await listener.start("127.0.0.1", 0)
    place.port = listener.addresses[0][1]
    try:
        yield place
    finally:
        listener.close()
        for line in place.lines:
            line.transport.abort()
        await asyncio.sleep(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    async def within() -> None:
        async with asyncio.timeout(60):
            await test

    asyncio.run(within())


def read_all(sock: ssl.SSLSocket, size_bytes: int, *, pause_s: float = 0.0) -> bytes:
    data = bytearray()
    while len(data) < size_bytes and (piece := sock.recv(65536)):
        data += piece
        time.sleep(pause_s)
    return bytes(data)


Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


def test_a_connection_tells_who_is_there(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            sock, line = await place.arrival()
            info = line.transport.get_extra_info
            assert peer_name(info("ssl_object")) == peer_name(info("peercert")) == "c01"
            assert sock.version() == info("ssl_object").version() == "TLSv1.3"
            assert info("sslcontext") is contexts[0]
            assert info("peername") == sock.getsockname()
            assert info("sockname") == sock.getpeername()
            assert info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert info("cipher")[1] == "TLSv1.3"
            await asyncio.to_thread(sock.sendall, b"hello")
            await until(lambda: line.came == b"hello")
            line.transport.write(b"good day")
            assert await asyncio.to_thread(sock.recv, 100) == b"good day"
            sock.close()

    run(test())


def test_without_a_certificate_nobody_comes_in(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            stranger.check_hostname, stranger.verify_mode = False, ssl.CERT_NONE

            def knock() -> bytes:
                with socket.create_connection(("127.0.0.1", place.port), 10) as plain, stranger.wrap_socket(plain) as s:
                    return s.recv(1)  # TLS 1.3: the refusal shows here

            with pytest.raises(ssl.SSLError, match="certificate required"):
                await asyncio.to_thread(knock)
            assert place.lines == []

    run(test())


@pytest.mark.parametrize("way", ["write", "pour"])
def test_a_slow_reader_gets_every_byte_and_little_waits_for_it(contexts: Contexts, way: str) -> None:
    def fill(start: int, buffer: memoryview) -> bool:
        if start == 5 * MIB:
            return False  # as what is not in memory yet
        buffer[:] = DATA[start : start + len(buffer)]
        return True

    async def send(line: Line) -> None:
        at = 0
        while at < len(DATA):
            if way == "pour":
                at = line.transport.pour(fill, at, min(at + MIB, 5 * MIB if at < 5 * MIB else len(DATA)))
            piece = DATA[at : at + 100_000]
            at += len(piece)
            line.transport.write(piece)
            assert line.transport.get_write_buffer_size() <= POUR_BYTES + len(piece)
            await line.drain()

    async def test() -> None:
        async with listening(contexts) as place:
            sock, line = await place.arrival(receive_bytes=64 * 1024)
            line.transport.set_write_buffer_limits(high=1)
            sending = asyncio.create_task(send(line))
            data = await asyncio.to_thread(read_all, sock, len(DATA), pause_s=0.0003)
            await sending
            assert hashlib.sha256(data).digest() == hashlib.sha256(DATA).digest()
            flow = [event for event in line.events if event != "made"]
            assert flow[:2] == ["pause", "resume"]
            assert all(event == ("pause", "resume")[number % 2] for number, event in enumerate(flow))
            sock.close()

    run(test())


def test_both_directions_at_once(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            sock, line = await place.arrival()

            def echo(data: bytes) -> None:
                line.transport.write(data)
                if line.transport.get_write_buffer_size():  # what stands here is not worth reading on for
                    line.transport.pause_reading()
                    go_on.append(asyncio.create_task(resume()))

            async def resume() -> None:
                await line.drain()
                line.transport.resume_reading()

            go_on: list[asyncio.Task[None]] = []
            line.on_data = echo
            line.transport.set_write_buffer_limits(high=1)
            data = await asyncio.to_thread(_exchange, sock, DATA[: 8 * MIB])
            assert data == DATA[: 8 * MIB]
            sock.close()

    run(test())


def _exchange(sock: ssl.SSLSocket, data: bytes) -> bytes:
    """Send and receive at once, in one thread: two must not be in one ``SSLSocket`` at a time."""
    sock.setblocking(False)
    came, sent = bytearray(), 0
    until_s = time.monotonic() + 60
    while len(came) < len(data):
        assert time.monotonic() < until_s
        with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if sent < len(data):
                sent += sock.send(data[sent : sent + 100_000])
        try:
            piece = sock.recv(65536)
            assert piece
            came += piece
        except ssl.SSLWantReadError:
            select.select([sock], [sock] if sent < len(data) else [], [], 1)
    return bytes(came)


def test_a_reader_that_goes_away_ends_the_connection_once(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            sock, line = await place.arrival()
            line.transport.write(DATA)
            assert line.transport.get_write_buffer_size() > 0
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.close()
            await asyncio.wait_for(line.lost.wait(), 10)
            assert isinstance(line.error, OSError)
            assert line.transport.get_write_buffer_size() == 0
            line.transport.write(b"nobody takes this")
            line.transport.close()
            line.transport.abort()
            await asyncio.sleep(0.05)
            assert line.events.count("lost") == 1
            assert line.transport.get_extra_info("socket").fileno() == -1

    run(test())


def test_a_handshake_that_stalls_is_let_go_and_holds_up_nobody(
    contexts: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls, "HANDSHAKE_WITHIN_S", 0.5)

    async def test() -> None:
        async with listening(contexts) as place:
            with socket.create_connection(("127.0.0.1", place.port)) as stalled:
                stalled.sendall(b"\x16\x03\x01\x02\x00\x01")  # the beginning of a ClientHello
                sock, _ = await place.arrival()
                stalled.settimeout(10)
                assert await asyncio.to_thread(stalled.recv, 1) == b""
                assert len(place.lines) == 1
                sock.close()

    run(test())


def test_what_is_no_handshake_is_let_go(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            for garbage in (b"GET / HTTP/1.0\r\n\r\n", os.urandom(2000), b""):
                with socket.create_connection(("127.0.0.1", place.port), 10) as stranger:
                    stranger.sendall(garbage)
                    stranger.shutdown(socket.SHUT_WR)
                    with suppress(ConnectionResetError):
                        while await asyncio.to_thread(stranger.recv, 1000):
                            pass
            sock, line = await place.arrival()
            assert place.lines == [line]
            sock.close()

    run(test())


def test_many_come_and_go(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            before = len(os.listdir("/proc/self/fd"))

            def visit(number: int) -> bool:
                with place.connect() as sock:
                    sock.sendall(number.to_bytes(4, "big"))
                    return read_all(sock, 65536) == DATA[number : number + 65536]

            async def serve() -> None:
                served: set[Line] = set()
                while len(served) < 60:
                    for line in set(place.lines) - served:
                        if len(line.came) == 4:
                            served.add(line)
                            number = int.from_bytes(line.came, "big")
                            line.transport.write(DATA[number : number + 65536])
                    await asyncio.sleep(0.01)

            serving = asyncio.create_task(serve())
            assert all(await asyncio.gather(*(asyncio.to_thread(visit, number) for number in range(60))))
            await serving
            await until(lambda: all(line.lost.is_set() for line in place.lines))
            assert len(place.lines) == 60
            assert len(os.listdir("/proc/self/fd")) <= before

    run(test())


def _end_half_and_read(client: ssl.SSLContext, port: int, ends: threading.Event) -> bytes:
    """Be a client that ends its half of TLS, and then reads on: with buffers in memory, since ``SSLSocket`` cannot."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    end = client.wrap_bio(incoming, outgoing)
    with socket.create_connection(("127.0.0.1", port), 20) as sock:

        def step(call: Callable[[], Any]) -> Any:
            while True:
                with suppress(ssl.SSLWantReadError):
                    result = call()
                    sock.sendall(outgoing.read())
                    return result
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))

        step(end.do_handshake)
        end.write(b"all of it")
        with suppress(ssl.SSLWantReadError):
            end.unwrap()
        sock.sendall(outgoing.read())
        ends.wait(20)
        data = bytearray()
        with suppress(ssl.SSLZeroReturnError):
            while piece := step(lambda: end.read(65536)):
                data += piece
        return bytes(data)


def test_a_peer_that_ends_its_half_gets_what_was_written(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            ended = threading.Event()
            reading = asyncio.create_task(asyncio.to_thread(_end_half_and_read, contexts[1], place.port, ended))
            await until(lambda: bool(place.lines))
            line = place.lines[0]
            line.on_data = lambda _: line.transport.write(DATA)
            await until(lambda: "eof" in line.events)
            ended.set()
            assert await reading == DATA
            await asyncio.wait_for(line.lost.wait(), 10)
            assert [event for event in line.events if event not in {"pause", "resume"}] == ["made", "eof", "lost"]
            assert line.error is None

    run(test())


def test_a_connection_that_was_cut_is_lost_at_once(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            sock, line = await place.arrival()
            socket.socket.shutdown(sock, socket.SHUT_WR)  # of TCP alone, without a goodbye
            await asyncio.wait_for(line.lost.wait(), 10)
            assert line.events == ["made", "eof", "lost"]
            sock.close()

    run(test())


def test_a_peer_that_ends_properly_is_answered_properly(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            sock, line = await place.arrival()
            plain = await asyncio.to_thread(sock.unwrap)
            await asyncio.wait_for(line.lost.wait(), 10)
            assert line.events == ["made", "eof", "lost"]
            assert line.error is None
            plain.close()

    run(test())


def test_closing_sends_what_waits_and_says_goodbye(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            sock, line = await place.arrival()
            line.transport.write(DATA)
            line.transport.close()
            line.transport.write(b"too late")
            assert not line.transport.is_reading()
            assert await asyncio.to_thread(read_all, sock, len(DATA)) == DATA
            assert await asyncio.to_thread(sock.recv, 1) == b""  # a proper end: a cut would be an SSLEOFError
            assert not line.lost.is_set()
            sock.close()
            await asyncio.wait_for(line.lost.wait(), 10)
            assert line.error is None

    run(test())


def test_who_still_sends_after_the_goodbye_may_end_in_its_own_time(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            sock, line = await place.arrival()
            line.transport.close()
            assert await asyncio.to_thread(sock.recv, 1) == b""
            for _ in range(3):
                await asyncio.to_thread(sock.sendall, b"the rest of an upload")
                await asyncio.sleep(0.05)
                assert not line.lost.is_set()
            sock.close()
            await asyncio.wait_for(line.lost.wait(), 10)
            assert line.error is None

    run(test())


def test_closing_waits_for_a_dead_reader_only_so_long(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "CLOSE_WITHIN_S", 0.3)

    async def test() -> None:
        async with listening(contexts) as place:
            sock, line = await place.arrival()
            line.transport.write(DATA)
            line.transport.close()
            await asyncio.wait_for(line.lost.wait(), 5)
            with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
                await asyncio.to_thread(read_all, sock, len(DATA))
            sock.close()

    run(test())


def test_who_takes_nothing_for_long_is_let_go(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "STALLED_WITHIN_S", 0.5)

    async def test() -> None:
        async with listening(contexts) as place:
            slow, line = await place.arrival(receive_bytes=64 * 1024)
            stalled, other = await place.arrival(receive_bytes=64 * 1024)
            line.transport.write(DATA)
            other.transport.write(DATA)
            assert await asyncio.to_thread(read_all, slow, len(DATA), pause_s=0.002) == DATA
            await asyncio.wait_for(other.lost.wait(), 5)
            assert isinstance(other.error, TimeoutError)
            assert not line.lost.is_set()
            slow.close()
            stalled.close()

    run(test())


def test_abort_cuts(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            sock, line = await place.arrival()
            line.transport.abort()
            assert not line.lost.is_set()  # never from inside a call
            await asyncio.wait_for(line.lost.wait(), 5)
            with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
                await asyncio.to_thread(sock.recv, 1)
            sock.close()

    run(test())


def test_reading_can_be_paused(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            sock, line = await place.arrival()
            line.transport.pause_reading()
            await asyncio.to_thread(sock.sendall, DATA[:100_000])
            await asyncio.sleep(0.1)
            assert not line.came
            line.transport.resume_reading()
            await until(lambda: line.came == DATA[:100_000])
            sock.close()

    run(test())


def test_a_protocol_that_fails_loses_its_connection_alone(contexts: Contexts) -> None:
    async def test() -> None:
        said: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
        async with listening(contexts) as place:
            sock, line = await place.arrival()
            other_sock, other = await place.arrival()

            def fail(_: bytes) -> None:
                raise ZeroDivisionError

            line.on_data = fail
            await asyncio.to_thread(sock.sendall, b"x")
            await asyncio.wait_for(line.lost.wait(), 5)
            assert isinstance(said[0]["exception"], ZeroDivisionError)
            await asyncio.to_thread(other_sock.sendall, b"x")
            await until(lambda: other.came == b"x")
            sock.close()
            other_sock.close()

    run(test())


def test_limits_are_those_of_asyncio(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            sock, line = await place.arrival()
            transport = line.transport
            transport.set_write_buffer_limits(high=1000)
            assert transport.get_write_buffer_limits() == (250, 1000)
            transport.set_write_buffer_limits(low=1000)
            assert transport.get_write_buffer_limits() == (1000, 4000)
            transport.set_write_buffer_limits()
            assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
            with pytest.raises(ValueError, match="must be"):
                transport.set_write_buffer_limits(high=1, low=2)
            assert transport.can_write_eof() is False
            assert transport.get_protocol() is line
            sock.close()

    run(test())


def test_a_taken_port_is_an_error(contexts: Contexts) -> None:
    async def test() -> None:
        async with listening(contexts) as place:
            second = TlsListener(lambda: Line(place.lines), contexts[0], 8)
            with pytest.raises(OSError, match="in use"):
                await second.start("127.0.0.1", place.port)

    run(test())


def test_it_accepts_again_when_there_are_descriptors_again(contexts: Contexts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "ACCEPT_AGAIN_S", 0.1)

    async def test() -> None:
        async with listening(contexts) as place:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            with socket.socket() as waiting:
                waiting.settimeout(10)
                spare = os.dup(waiting.fileno())
                os.close(spare)
                resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
                try:
                    waiting.connect(("127.0.0.1", place.port))
                    await asyncio.sleep(0.3)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                sock = await asyncio.to_thread(contexts[1].wrap_socket, waiting)
                await until(lambda: len(place.lines) == 1)
                sock.close()

    run(test())
