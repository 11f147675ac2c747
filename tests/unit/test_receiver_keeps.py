"""What a receiver keeps of older revisions for nodes behind it, and when it removes the rest; also after a restart."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from install_depot import DISTRIBUTOR, NAME, Depot

from ted.agent.node import Node
from ted.agent.receiver import Receiver, _Transfer
from ted.agent.sender import Sender
from ted.config import NodeConfig
from ted.content.patch.kept import make_patch
from ted.records.states import NodeState, State
from ted.transfer.client import Peer
from ted.transfer.fetch import Source
from ted.transfer.slip import Hop, RoutingSlip, slip_header

PAIR = (DISTRIBUTOR, NAME)


class Relay(SimpleNamespace):
    """``s01``: three revisions of which it need keep one, and the patches from each to the next."""

    node: Node
    receiver: Receiver
    stamps: list[str]

    def here(self) -> list[str]:
        return self.node.working.revisions(*PAIR)

    def heard(self, state: State, seq: int) -> None:
        row = NodeState("e01", *PAIR, self.stamps[-1], state, "2026-01-01T00:00:00+00:00", seq=seq)
        self.node.journal.learn([row], forward=False)


@pytest.fixture
def relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    monkeypatch.setattr("ted.agent.receiver.PRUNE_EVERY_S", 0.05)
    depot, generator = Depot(tmp_path), random.Random(1)
    source = tmp_path / "source"
    source.mkdir()
    stamps: list[str] = []
    data = bytearray(generator.randbytes(100_000))
    for _ in range(3):
        data[generator.randrange(len(data))] ^= 1
        (source / "big").write_bytes(data)
        target = {"path": "%DEST_VOLUME%", "from": [f"{source}/"]}
        stamps.append(depot.build(target, settings={"max_revisions": 1}))
        if stamps[1:]:
            old, new = (depot.working.record(*PAIR, stamp) for stamp in stamps[-2:])
            assert make_patch(depot.working.distribution(*PAIR), old, new, "fast")
    for stamp in stamps:
        depot.working.mark_received(*PAIR, stamp)
    node = Node(NodeConfig(node="s01", working_directory=depot.working.path, transport="http"))

    async def on_received(slip: RoutingSlip) -> None:
        pass

    yield Relay(node=node, receiver=Receiver(node, Sender(node, lambda _rows: None), on_received), stamps=stamps)
    node.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.02)


def test_a_restarted_relay_keeps_every_patch_for_who_is_further_back_and_then_removes_them(relay: Relay) -> None:
    relay.heard(State.PENDING, seq=0)

    async def scenario() -> None:
        await relay.receiver.resume()
        await asyncio.sleep(0.5)
        assert relay.here() == relay.stamps, "e01 may be on the first: the patch from it lies with the second"
        lock = relay.receiver._one_at_a_time[PAIR]
        async with lock:  # as while the next revision comes in
            relay.heard(State.RECEIVED, seq=7)
            await asyncio.sleep(0.5)
            assert relay.here() == relay.stamps
        await until(lambda: relay.here() == relay.stamps[-1:])

    asyncio.run(scenario())


def test_a_restarted_relay_removes_what_it_had_kept_for_others_that_have_come_up_since(relay: Relay) -> None:
    relay.heard(State.RECEIVED, seq=7)

    async def scenario() -> None:
        await relay.receiver.resume()
        await until(lambda: relay.here() == relay.stamps[-1:])

    asyncio.run(scenario())


def transfer(relay: Relay, revision: str) -> _Transfer:
    header = slip_header(send="1", distributor=PAIR[0], distribution=PAIR[1], revision=revision, channel="av",
                         priority="high", catalog_version=1, now=datetime.now(UTC))  # fmt: skip
    tree = Hop("hq", "127.0.0.1", 1, False, (Hop("s01", "127.0.0.1", 1, True, (Hop("e01", "::1", 1, True),)),))
    (slip,) = RoutingSlip.sign(header, tree, lambda _payload: []).for_children()
    source = Source(relay.node.pool, Peer("hq", "127.0.0.1", 1), PAIR[0])
    made = _Transfer(relay.node, (*PAIR, revision), slip, source, relay.receiver._sender, bytes_done=5)
    made.record = relay.node.working.record(*PAIR, revision)
    return made


def test_a_relay_that_has_come_up_keeps_also_what_it_started_from(relay: Relay) -> None:
    relay.heard(State.PENDING, seq=0)

    async def scenario() -> None:
        await relay.receiver._received((*PAIR, relay.stamps[-1]), transfer(relay, relay.stamps[-1]))
        await asyncio.sleep(0.2)
        assert relay.here() == relay.stamps
        relay.heard(State.RECEIVED, seq=7)
        await until(lambda: relay.here() == relay.stamps[-1:])

    asyncio.run(scenario())


def test_records_that_fail_after_an_arrival_do_not_undo_it(relay: Relay, tmp_path: Path) -> None:
    async def scenario() -> None:
        coming = transfer(relay, relay.stamps[-1])
        with closing(sqlite3.connect(tmp_path / "var" / ".ted" / "records.sqlite")) as db:
            db.execute("DROP TABLE offers")
        await relay.receiver._received((*PAIR, relay.stamps[-1]), coming)
        assert relay.here() == relay.stamps, "who waits is not known: nothing goes"

    asyncio.run(scenario())
    (row,) = relay.node.journal.states(node="s01")
    assert (row.state, row.revision, row.bytes_done) == (State.RECEIVED, relay.stamps[-1], 5)
