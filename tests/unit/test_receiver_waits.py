"""How long a receiver waits between two tries: no longer than its sender is gone, and the whole time otherwise."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from fleet import free_port

from ted.agent import receiver
from ted.agent.receiver import _Transfer
from ted.errors import MissingContentError, TedError, UnreachableError
from ted.transfer.client import Connection, Peer

LONG_S = 5.0


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Peer:
    monkeypatch.setattr(receiver, "LOOK_EVERY_S", 0.2)
    return Peer("s01", "127.0.0.1", free_port())


@pytest.fixture
def listening(peer: Peer) -> Iterator[socket.socket]:
    with socket.create_server((peer.address, peer.port)) as listener:
        yield listener


def transfer(peer: Peer) -> _Transfer:
    anything: Any = SimpleNamespace()
    return _Transfer(anything, ("hq", "app", "r"), anything, cast("Any", SimpleNamespace(peer=peer)), anything,
                     bytes_done=0)  # fmt: skip


def failure_to_connect(peer: Peer) -> UnreachableError:
    with pytest.raises(UnreachableError) as caught:
        Connection(peer, "e01", None, 5)
    return caught.value


async def comes_back(peer: Peer, error: TedError) -> float:
    """Return how long a pause is if the sender is back after a second."""
    paused = asyncio.create_task(paused_s(peer, error))
    await asyncio.sleep(1)
    with socket.create_server((peer.address, peer.port)):
        return await paused


async def paused_s(peer: Peer, error: TedError, delay_s: float = LONG_S) -> float:
    begun_s = time.monotonic()
    await transfer(peer).pause(delay_s, error)
    return time.monotonic() - begun_s


def test_a_sender_that_is_back_before_the_first_look_is_used_at_once(peer: Peer) -> None:
    error = failure_to_connect(peer)
    with socket.create_server((peer.address, peer.port)):
        assert asyncio.run(paused_s(peer, error)) < LONG_S / 2


def test_a_sender_that_is_back_after_some_looks_is_used_at_once(peer: Peer) -> None:
    assert 1 < asyncio.run(comes_back(peer, failure_to_connect(peer))) < LONG_S / 2


def test_a_sender_that_broke_a_connection_and_is_back_later_is_used_at_once(peer: Peer) -> None:
    assert 1 < asyncio.run(comes_back(peer, UnreachableError("the connection broke"))) < LONG_S / 2


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("error", [UnreachableError("it breaks every connection"), MissingContentError("not here")])
def test_a_sender_that_is_there_and_of_no_use_has_the_whole_time(peer: Peer, error: TedError) -> None:
    assert asyncio.run(paused_s(peer, error, 1.0)) > 0.95


def test_a_sender_that_stays_away_is_tried_again_when_the_time_is_over(peer: Peer) -> None:
    assert 0.95 < asyncio.run(paused_s(peer, failure_to_connect(peer), 1.0)) < LONG_S / 2
