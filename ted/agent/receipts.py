"""Receipts: what nodes report goes up, hop by hop, to the Distributor that sent.

Rules:
 * A receipt is in the outbox before anything else happens and leaves it only when the node above has it.
 * The node above is whoever last offered that distribution here; it takes receipts only for nodes it sent to
   through this one.
 * On the Distributor itself, receipts end in the states and in the deliveries of its sends.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from typing import Any

from ted.agent.node import Node
from ted.errors import FormatError, TedError, TrustError
from ted.records.states import NodeState
from ted.transfer.client import Peer
from ted.transfer.slip import RoutingSlip

log = logging.getLogger("ted.receipts")

BATCH = 500
POLL_S = 1.0
FIRST_RETRY_S = 1.0


class Receipts:
    """The pump of the outbox, and the door for receipts from below."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._not_before_s: dict[Peer, tuple[float, float]] = {}

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
        if above:
            self.poke()

    async def arrived(self, data: Any, peer: str) -> None:
        """Take a batch from the node ``peer`` below.

        Raises:
            FormatError: It is not a batch of receipts.
            TrustError: It speaks of a node that was not sent to through ``peer``.
        """
        if not isinstance(data, dict) or not isinstance(data.get("receipts"), list):
            raise FormatError("not a batch of receipts")
        rows = [NodeState.from_dict(row) for row in data["receipts"][:BATCH]]
        await self._node.run(self._check, rows, peer)
        await self._node.run(self.learn, rows)

    def _check(self, rows: list[NodeState], peer: str) -> None:
        behind: dict[tuple[str, str], set[str]] = {}
        for row in rows:
            key = (row.distributor, row.distribution)
            if key not in behind:
                offer = self._node.journal.offer(*key, child=peer)
                slip = None if offer is None else RoutingSlip.decode(offer["slip"])
                behind[key] = set() if slip is None else {hop.name for hop in slip.hop.walk()}
            if row.node not in behind[key]:
                raise TrustError(f"{peer} reports for {row.node}, which {row.distribution} does not reach through it")

    async def run(self) -> None:
        """Send receipts up, for ever."""
        while True:
            self._wake.clear()
            try:
                await self._pump()
            except TedError as error:
                log.warning("receipts: %s", error)
            try:
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _pump(self) -> None:
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
        await asyncio.gather(*(self._deliver(peer, rows) for peer, rows in by_peer.items()))

    def _above(self, distributor: str, distribution: str) -> Peer | None:
        offer = self._node.journal.offer(distributor, distribution)
        if offer is None:
            return None
        sender = RoutingSlip.decode(offer["slip"]).sender
        return None if sender is None else Peer(sender.name, sender.address, sender.port)

    async def _deliver(self, peer: Peer, rows: list[NodeState]) -> None:
        now_s = self._loop.time()
        not_before_s, delay_s = self._not_before_s.get(peer, (0.0, FIRST_RETRY_S))
        if now_s < not_before_s:
            return
        try:
            for start in range(0, len(rows), BATCH):
                batch = rows[start : start + BATCH]
                body = {"receipts": [row.to_dict() for row in batch]}
                await self._node.run(self._node.pool.call_json, peer, "POST", "/v1/receipts", body)
                await self._node.run(self._node.journal.taken, batch)
            self._not_before_s.pop(peer, None)
        except TedError as error:
            log.info("receipts for %s wait %.0f s: %s", peer, delay_s, error)
            longest_s = max(FIRST_RETRY_S, self._node.config.retry_interval)
            self._not_before_s[peer] = (now_s + delay_s, min(delay_s * 2, longest_s))
