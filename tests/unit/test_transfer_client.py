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
from ted.transfer.client import Connection, Peer, Pool

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
