"""Sending: offers to the direct receivers, each tried until it is taken.

Rules:
 * An offer to a child is in the journal before it is made, so a killed agent goes on with it by itself.
 * A child that does not answer is tried every ``retry_interval`` for ``retry_for``; then it is reported as failed,
   with all that lies behind it, until the next send.
 * A child that refuses is reported with its own words and not tried again.
 * A newer offer of the same distribution to the same child takes the place of the older one.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from ted.agent.node import Node
from ted.errors import FormatError, TedError, UnreachableError
from ted.records.states import NodeState, State, now_text
from ted.transfer.client import Peer
from ted.transfer.slip import RoutingSlip

log = logging.getLogger("ted.sender")

FIRST_RETRY_S = 0.5

OfferKey = tuple[str, str, str]
"""(distributor, distribution, child)."""


class Sender:
    """Offers slips to children and hands on what they say."""

    def __init__(self, node: Node, learn: Callable[[list[NodeState]], None]) -> None:
        self._node = node
        self._learn = learn
        self._running: dict[OfferKey, tuple[str, asyncio.Task[None]]] = {}
        self._later: set[asyncio.Task[None]] = set()

    def forward(self, slip: RoutingSlip) -> list[asyncio.Task[None]]:
        """Start offering to every direct receiver of the slip; return the tasks."""
        return [self._start(child) for child in slip.for_children()]

    def forward_later(self, slip: RoutingSlip, after: asyncio.Task[None]) -> None:
        """Forward ``slip`` when ``after`` has ended."""

        async def wait_and_forward() -> None:
            await asyncio.wait([after])
            self.forward(slip)

        task = asyncio.create_task(wait_and_forward())
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def resume(self) -> None:
        """Go on with the offers that a former life of this agent left open."""
        for offer in await self._node.run(self._node.journal.offers, status="open"):
            if offer["child"]:
                self._start(RoutingSlip.decode(offer["slip"]), first_try_at_s=offer["first_try_at_s"])

    def _start(self, slip: RoutingSlip, *, first_try_at_s: float | None = None) -> asyncio.Task[None]:
        key = (slip.header.distributor, slip.header.distribution, slip.hop.name)
        payload = slip.header.root + slip.header.send
        running = self._running.get(key)
        if running is not None:
            if running[0] == payload and not running[1].done():
                return running[1]
            running[1].cancel()
        task = asyncio.create_task(self._offer(key, slip, first_try_at_s), name=f"offer {key}")
        self._running[key] = (payload, task)
        task.add_done_callback(lambda done: self._forget(key, done))
        return task

    def _forget(self, key: OfferKey, task: asyncio.Task[None]) -> None:
        if self._running.get(key, ("", None))[1] is task:
            del self._running[key]
        if not task.cancelled() and task.exception() is not None:
            log.error("offer to %s ended: %r", key[2], task.exception(), exc_info=task.exception())

    async def _offer(self, key: OfferKey, slip: RoutingSlip, first_try_at_s: float | None) -> None:
        run, journal, config = self._node.run, self._node.journal, self._node.config
        header, child = slip.header, slip.hop
        names = {"distributor": key[0], "distribution": key[1], "revision": header.revision, "child": key[2]}
        if first_try_at_s is None:
            first_try_at_s = time.time()
            await run(journal.put_offer, slip.encode(), **names)
        peer = Peer(child.name, child.address, child.port)
        delay_s = min(FIRST_RETRY_S, config.retry_interval)
        while True:
            try:
                answer = await run(self._node.pool.call_json, peer, "POST", "/v1/offer", {"slip": slip.encode()})
                states = _states_in(answer, slip)
                await run(self._learn, states)
                await run(journal.close_offer, *key[:2], header.revision, "taken", child=key[2])
                return
            except UnreachableError as error:
                if time.time() - first_try_at_s > config.retry_for:
                    await self._give_up(slip, error)
                    return
                log.info("%s; again in %.1f s", error, delay_s)
            except TedError as error:
                await self._give_up(slip, error)
                return
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, config.retry_interval)

    async def _give_up(self, slip: RoutingSlip, error: TedError) -> None:
        header = slip.header
        log.warning("%s: %s", slip.hop.name, error)
        text = error.message + (f" ({error.hint})" if error.hint else "")
        behind = f"not reached: {slip.hop.name} is on the way to it and failed: {text}"
        rows = [
            NodeState(hop.name, header.distributor, header.distribution, header.revision, State.FAILED, now_text(),
                      text if hop is slip.hop else behind)
            for hop in slip.hop.walk()
        ]  # fmt: skip
        await self._node.run(self._learn, rows)
        await self._node.run(
            self._node.journal.close_offer, header.distributor, header.distribution, header.revision, "failed",
            child=slip.hop.name,
        )  # fmt: skip


def _states_in(answer: Any, slip: RoutingSlip) -> list[NodeState]:
    """Return the states a child answered with, as far as it may speak of them.

    Raises:
        FormatError: The answer has another shape.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("states"), list):
        raise FormatError(f"{slip.hop.name} answered an offer with what is not a list of states")
    names = {hop.name for hop in slip.hop.walk()}
    return list(_allowed((NodeState.from_dict(row) for row in answer["states"]), slip, names))


def _allowed(rows: Iterable[NodeState], slip: RoutingSlip, names: set[str]) -> Iterable[NodeState]:
    header = slip.header
    for row in rows:
        if row.node in names and (row.distributor, row.distribution) == (header.distributor, header.distribution):
            yield row
