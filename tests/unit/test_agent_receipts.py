"""The pump of receipts where the node above does not answer."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ted.agent import receipts
from ted.agent.receipts import Receipts
from ted.errors import RecordsError, TransferError, UnreachableError
from ted.records.journal import Journal
from ted.records.states import NodeState, State
from ted.transfer.client import Peer

WAITING = NodeState("sub", "hq", "maps", "20260101T000000Z", State.RECEIVED, "2026-01-01T00:00:00Z", None, 5, 1, 1,
                    False, None)  # fmt: skip


class DeadEnd:
    """A node whose outbox is never taken, for nobody above answers."""

    name = "relay"
    config = SimpleNamespace(retry_interval=60)

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self.looks = self.calls = 0
        self.journal = self.pool = self
        self._threads = threads

    def data_version(self) -> int:
        return 1  # nothing is written

    def outbox(self) -> list[NodeState]:
        self.looks += 1
        return [WAITING]

    def call_json(self, *_: Any) -> None:
        self.calls += 1
        raise TransferError("nobody answers")

    async def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    call = run


def test_a_peer_that_does_not_answer_costs_no_busy_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts, "SETTLE_S", 0.5)

    async def settle(node: DeadEnd) -> bool:
        pump = Receipts(cast("Any", node))
        monkeypatch.setattr(pump, "_above", lambda *_: Peer("hq", "192.0.2.1", 7465))
        running = asyncio.create_task(pump.run())
        try:
            return await pump.settle()
        finally:
            running.cancel()

    with ThreadPoolExecutor(1) as threads:
        node = DeadEnd(threads)
        assert not asyncio.run(settle(node))
    assert node.calls == 1
    assert node.looks < 20


class GoneThenBack(DeadEnd):
    """The peer above is gone when it is first called; ``reached_at_s`` is when something else reached it again."""

    reached_at_s = -math.inf

    def call_json(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == 1:
            raise UnreachableError("nobody answers", is_gone=True)

    def taken(self, rows: list[NodeState]) -> None:
        pass

    def reached_since(self, _peer: Peer, moment_s: float) -> bool:
        return self.reached_at_s > moment_s


@pytest.mark.parametrize("is_reached", [True, False])
def test_a_peer_that_was_gone_has_its_receipts_when_it_is_back(
    monkeypatch: pytest.MonkeyPatch, is_reached: bool
) -> None:
    monkeypatch.setattr(receipts, "POLL_S", 0.05)
    monkeypatch.setattr(receipts, "FIRST_RETRY_S", 60.0)

    async def calls(node: GoneThenBack) -> tuple[int, int]:
        pump = Receipts(cast("Any", node))
        monkeypatch.setattr(pump, "_above", lambda *_: Peer("hq", "192.0.2.1", 7465))
        running = asyncio.create_task(pump.run())
        try:
            await asyncio.sleep(0.5)
            before = node.calls
            node.reached_at_s = time.monotonic() if is_reached else node.reached_at_s
            await asyncio.sleep(0.5)
            return before, node.calls
        finally:
            running.cancel()

    with ThreadPoolExecutor(1) as threads:
        before, after = asyncio.run(calls(GoneThenBack(threads)))
    assert (before, after > 1) == (1, is_reached)


def test_an_outbox_into_which_nothing_was_put_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command of this node puts receipts there in a process of its own, and tells nobody."""
    monkeypatch.setattr(receipts, "POLL_S", 0.05)
    journal, of_a_command = Journal.at(tmp_path, "sub"), Journal.at(tmp_path, "sub")
    looks: list[None] = []

    def outbox() -> list[NodeState]:
        looks.append(None)
        return Journal.outbox(journal)

    async def run(function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(function, *arguments)

    async def looked(wanted: int) -> None:
        async with asyncio.timeout(30):
            while len(looks) < wanted:
                await asyncio.sleep(0.01)

    async def scenario() -> None:
        pump = Receipts(cast("Any", SimpleNamespace(name="sub", journal=journal, run=run)))
        running = asyncio.create_task(pump.run())
        try:
            await looked(1)
            await asyncio.sleep(0.5)
            assert len(looks) == 1
            pump.poke()
            await looked(2)
            await asyncio.sleep(0.5)
            assert len(looks) == 2
            await asyncio.to_thread(of_a_command.report, "hq", "maps", None, State.RECEIVED)
            await looked(5)  # what waits is tried again, though nothing is written meanwhile
        finally:
            running.cancel()

    monkeypatch.setattr(journal, "outbox", outbox)
    asyncio.run(scenario())
    of_a_command.close()
    journal.close()


class _Slip:
    header = SimpleNamespace(send="s1", distributor="hq", distribution="maps", revision=WAITING.revision)

    @staticmethod
    def encode() -> dict[str, Any]:
        return {}


def test_receipts_that_cannot_be_judged_now_are_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be gone: who is told that they were taken forgets them."""
    journal = Journal.at(tmp_path, "relay")
    journal.put_offers([("sub", _Slip())])

    def unreadable(*_: Any) -> str:
        raise RecordsError("the database is down")

    monkeypatch.setattr(journal, "slip", unreadable)

    async def run(function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.to_thread(function, *arguments)

    row = WAITING.to_dict() | {"revision": "20260101T000000000000Z"}

    async def arrive() -> None:
        pump = Receipts(cast("Any", SimpleNamespace(name="relay", journal=journal, run=run)))
        await pump.arrived({"receipts": [row]}, "sub")

    with pytest.raises(RecordsError):
        asyncio.run(arrive())
    monkeypatch.setattr(journal, "slip", lambda *_: None)
    asyncio.run(arrive())
    assert journal.states() == [], "the offer was dropped meanwhile: sub is not behind it"
    journal.close()
