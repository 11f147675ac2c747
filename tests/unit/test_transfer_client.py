"""Bodies of any size, in pieces of any size, over connections that end or are kept."""

from __future__ import annotations

import random
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ted.errors import UnreachableError
from ted.transfer.client import Connection, Peer, Pool, dial

Serve = Callable[..., Connection]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Return a function that connects to a server which gives these answers, each to one request, and then ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads, connections = [], []

    def give(answers: list[bytes]) -> None:
        peer, _ = listener.accept()
        with peer:
            for answer in answers:
                while b"\r\n\r\n" not in peer.recv(65536):
                    pass
                peer.sendall(answer)

    def connect(*answers: bytes) -> Connection:
        threads.append(threading.Thread(target=give, args=(list(answers),)))
        threads[-1].start()
        connections.append(Connection(Peer("p", "127.0.0.1", listener.getsockname()[1]), "me", None, 5))
        return connections[-1]

    yield connect
    for connection in connections:
        connection.close()
    for thread in threads:
        thread.join(10)
    listener.close()


def answer(body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def read(connection: Connection, size: int, piece: int) -> bytes:
    head, body = connection.request("GET", "/x"), bytearray(size)
    for start in range(0, size, piece):
        connection.read_into(head, memoryview(body)[start : start + piece])
    return bytes(body)


@pytest.mark.parametrize("headers", [(), ("Connection: close",)])
@pytest.mark.parametrize("piece", [1_000, 8_192, 65_536, 1 << 20])
def test_a_body_is_read_whole_in_pieces_of_any_size(serve: Serve, piece: int, headers: tuple[str, ...]) -> None:
    body = random.Random(piece).randbytes(300_001)
    assert read(serve(answer(body, *headers)), len(body), piece) == body


def test_a_connection_whose_body_was_read_takes_the_next_request(serve: Serve) -> None:
    bodies = [random.Random(size).randbytes(size) for size in (300_000, 10, 8_192, 100_000)]
    connection = serve(*map(answer, bodies))
    assert [read(connection, len(body), 65_536) for body in bodies] == bodies


def test_a_body_that_ends_early_is_a_broken_connection(serve: Serve) -> None:
    with pytest.raises(UnreachableError, match="ended the transfer early"):
        read(serve(answer(b"x" * 100_000, length=200_000)), 200_000, 65_536)


def test_only_who_takes_no_connection_is_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        peer = Peer("p", "127.0.0.1", listener.getsockname()[1])

        def cut() -> None:
            there, _ = listener.accept()
            there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # it ends with a reset
            there.close()

        thread = threading.Thread(target=cut)
        thread.start()
        with pytest.raises(UnreachableError) as caught:
            Connection(peer, "me", ssl.create_default_context(), 5)
        assert not caught.value.is_gone
        thread.join(10)
    with pytest.raises(UnreachableError) as caught:
        Connection(peer, "me", ssl.create_default_context(), 5)
    assert caught.value.is_gone


def test_a_pool_knows_when_it_last_reached_a_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer, pool, begun_s = Peer("p", "127.0.0.1", listener.getsockname()[1]), Pool("me", None, 5), time.monotonic()
        assert not pool.reached_since(peer, begun_s)
        with pool.lend(peer):
            pass
        reached_s = time.monotonic()
        assert pool.reached_since(peer, begun_s)
        with pool.lend(peer):  # a kept one says nothing
            pass
        assert not pool.reached_since(peer, reached_s)
        pool.close()


class Silence:
    """What ``socket.create_connection`` does where nothing answers, up to a try of which it is told how long it is."""

    def __init__(self, answers_at: int | None, connect: Callable[..., socket.socket]) -> None:
        self.tries_s: list[float] = []
        self._answers_at = answers_at
        self._connect = connect

    def __call__(self, where: tuple[str, int], timeout_s: float, source: None) -> socket.socket:
        self.tries_s.append(timeout_s)
        if len(self.tries_s) - 1 != self._answers_at:
            raise TimeoutError("timed out")
        return self._connect(where, timeout_s, source)


@pytest.mark.parametrize("transport", ["http", "https"])
def test_who_does_not_answer_is_called_anew_and_no_longer_than_before(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.create_default_context() if transport == "https" else None
    silence = Silence(None, socket.create_connection)
    monkeypatch.setattr(socket, "create_connection", silence)
    with pytest.raises(UnreachableError, match="timed out") as caught:
        Connection(Peer("p", "127.0.0.1", 9), "me", context, 5)
    assert caught.value.is_gone
    assert silence.tries_s == [4, 4, 4, 8]


def test_who_answers_a_later_call_is_connected_and_has_the_whole_time_from_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        silence = Silence(2, socket.create_connection)
        monkeypatch.setattr(socket, "create_connection", silence)
        with dial(listener.getsockname(), 20) as sock:
            assert (len(silence.tries_s), sock.gettimeout()) == (3, 20)


def test_who_refuses_is_not_called_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []

    def refuse(_where: tuple[str, int], timeout_s: float, _source: None) -> socket.socket:
        calls.append(timeout_s)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(ConnectionRefusedError):
        dial(("127.0.0.1", 9), 20)
    assert len(calls) == 1
