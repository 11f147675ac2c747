"""Receipts: what nodes report goes up, hop by hop, to the Distributor that sent.

Rules:
 * A receipt is in the outbox before anything else happens and leaves it only when the node above has it.
 * The node above is whoever last offered that distribution here; it takes receipts only for nodes it sent to
   through this one.
 * A node above that does not answer is tried again, waiting longer each time up to ``retry_interval``; one that was
   gone as soon as anything here has reached it.
 * On the Distributor itself, receipts end in the states and in the deliveries of its sends.
 * Whoever is about to ask the Distributor may wait until its receipts are there: the wish travels up with them, each
   hop answers once those above have answered it, and nobody waits longer than ``SETTLE_S``.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

from ted.agent.node import Node
from ted.errors import FormatError, SlipError, TedError, UnreachableError
from ted.records.states import NodeState, State
from ted.transfer.client import Peer
from ted.transfer.slip import RoutingSlip

log = logging.getLogger("ted.receipts")

BATCH = 500
POLL_S = 1.0
FIRST_RETRY_S = 1.0
NAMES_KEPT = 256
SETTLE_S = 2.0
SETTLE_EVERY_S = 0.2


@dataclass(frozen=True)
class _Rest:
    """How long a peer that failed is left alone.

    It was gone at ``gone_at_s``: a connection to it since then ends the rest.
    """

    until_s: float = 0.0
    next_s: float = FIRST_RETRY_S
    gone_at_s: float | None = None


class Receipts:
    """The pump of the outbox, and the door for receipts from below."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._rests: dict[Peer, _Rest] = {}
        self._under_way: dict[Peer, asyncio.Task[None]] = {}
        self._more: set[Peer] = set()
        """Peers for whom something came while something else was on its way to them."""
        self._names: dict[tuple[str, str], set[str]] = {}
        self._settling = 0

    def poke(self) -> None:
        """Look into the outbox now; from any thread."""
        self._loop.call_soon_threadsafe(self._wake.set)

    def learn(self, rows: list[NodeState]) -> None:
        """Take news of other nodes: record it, and send it on up; for a worker thread."""
        above = [row for row in rows if row.distributor != self._node.name]
        self._node.journal.learn(above, forward=True)
        here = [row for row in rows if row.distributor == self._node.name]
        self._node.journal.learn(here, forward=False)
        self._node.journal.deliver(here)
        if any(row.state is not State.RECEIVING for row in above):  # how far they are waits for the next look
            self.poke()

    async def arrived(self, data: Any, peer: str) -> None:
        """Take a batch from the node ``peer`` below; what it may not speak of is left out.

        Raises:
            FormatError: It is not a batch of receipts.
        """
        if not isinstance(data, dict) or not isinstance(data.get("receipts"), list):
            raise FormatError("not a batch of receipts")
        rows = []
        for item in data["receipts"][:BATCH]:
            try:
                rows.append(NodeState.from_dict(item))
            except FormatError as error:
                log.warning("%s sent %s", peer, error)
        await self._node.run(self._take, rows, peer)
        if data.get("settle") is True:
            await self.settle()

    async def settle(self) -> bool:
        """Send what is in the outbox all the way up; return whether it is there, after ``SETTLE_S`` at the latest."""
        deadline_s = self._loop.time() + SETTLE_S
        self._settling += 1
        try:
            while await self._node.run(self._node.journal.outbox):
                await self._pump()
                left_s = deadline_s - self._loop.time()
                if left_s <= 0:
                    return False
                if self._under_way:
                    await asyncio.wait(self._under_way.values(), timeout=left_s)
                else:  # nobody is above yet, or is not to be asked again so soon
                    await asyncio.sleep(min(SETTLE_EVERY_S, left_s))
            return True
        finally:
            self._settling -= 1

    def _take(self, rows: list[NodeState], peer: str) -> None:
        behind: dict[tuple[str, str], set[str]] = {}
        allowed = []
        for row in rows:
            key = (row.distributor, row.distribution)
            if key not in behind:
                behind[key] = self._behind(peer, *key)
            if row.node in behind[key]:
                allowed.append(row)
            else:
                log.warning("%s reports for %s, which %s does not reach through it", peer, row.node, row.distribution)
        self.learn(allowed)

    def _behind(self, peer: str, distributor: str, distribution: str) -> set[str]:
        """Return the nodes that were sent to through ``peer``, by any slip still kept."""
        names: set[str] = set()
        for send in self._node.journal.offered(peer, distributor, distribution):
            key = (send, peer)
            if key not in self._names:
                if len(self._names) > NAMES_KEPT:
                    self._names.clear()
                if (slip := self._slip(send, peer)) is None:  # dropped meanwhile: a newer one says the same
                    continue
                self._names[key] = slip.hop.names()
            names |= self._names[key]
        return names

    async def run(self) -> None:
        """Send receipts up, for ever; the outbox is read where something was written, or waits."""
        read_version: int | None = None
        while True:
            is_due = self._wake.is_set()
            self._wake.clear()
            version = self._node.journal.data_version()  # before the outbox is read: what comes after makes it another
            if is_due or version is None or version != read_version:
                try:
                    read_version = None if await self._pump() else version
                except TedError as error:
                    read_version = None
                    log.warning("receipts: %s", error)
            try:
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _pump(self) -> bool:
        """Send what waits on its way; return whether anything does."""
        rows = await self._node.run(self._node.journal.outbox)
        own = [row for row in rows if row.distributor == self._node.name]
        if own:  # the Distributor reports on itself
            await self._node.run(self._node.journal.deliver, own)
            await self._node.run(self._node.journal.taken, own)
        by_peer: defaultdict[Peer, list[NodeState]] = defaultdict(list)
        peers: dict[tuple[str, str], Peer | None] = {}
        for row in rows:
            if row.distributor == self._node.name:
                continue
            key = (row.distributor, row.distribution)
            if key not in peers:
                peers[key] = await self._node.run(self._above, *key)
            if (peer := peers[key]) is not None:
                by_peer[peer].append(row)
        for peer, batch in by_peer.items():
            if peer in self._under_way:  # one that stalls holds up nobody else
                self._more.add(peer)
            elif self._may_ask(peer):
                task = asyncio.create_task(self._deliver(peer, batch))
                self._under_way[peer] = task
                task.add_done_callback(partial(self._delivered, peer))
        return bool(rows)

    def _delivered(self, peer: Peer, task: asyncio.Task[None]) -> None:
        self._under_way.pop(peer, None)
        if peer in self._more:
            self._more.discard(peer)
            self._wake.set()
        if not task.cancelled() and task.exception() is not None:
            log.error("receipts for %s", peer, exc_info=task.exception())

    def _above(self, distributor: str, distribution: str) -> Peer | None:
        """Return who offered that distribution here last; ``None`` when nobody did."""
        for send in self._node.journal.offered("", distributor, distribution):
            try:
                slip = self._slip(send, "")
            except SlipError:
                continue
            sender = None if slip is None else slip.sender
            if sender is not None:
                return Peer(sender.name, sender.address, sender.port)
        return None

    def _slip(self, send: str, child: str) -> RoutingSlip | None:
        text = self._node.journal.slip(send, child)
        return None if text is None else RoutingSlip.decode(json.loads(text))

    def _may_ask(self, peer: Peer) -> bool:
        rest = self._rests.get(peer, _Rest())
        is_back = rest.gone_at_s is not None and self._node.pool.reached_since(peer, rest.gone_at_s)
        return is_back or self._loop.time() >= rest.until_s

    async def _deliver(self, peer: Peer, rows: list[NodeState]) -> None:
        now_s, delay_s = self._loop.time(), self._rests.get(peer, _Rest()).next_s
        try:
            for start in range(0, len(rows), BATCH):
                batch = rows[start : start + BATCH]
                body: dict[str, Any] = {"receipts": [row.to_dict() for row in batch]}
                if self._settling:
                    body["settle"] = True
                await self._node.call(self._node.pool.call_json, peer, "POST", "/v1/receipts", body)
                await self._node.run(self._node.journal.taken, batch)
            self._rests.pop(peer, None)
        except TedError as error:
            log.info("receipts for %s wait %.0f s: %s", peer, delay_s, error)
            longest_s = max(FIRST_RETRY_S, self._node.config.retry_interval)
            gone_at_s = now_s if isinstance(error, UnreachableError) and error.is_gone else None
            self._rests[peer] = _Rest(now_s + delay_s, min(delay_s * 2, longest_s), gone_at_s)
