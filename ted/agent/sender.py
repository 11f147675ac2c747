"""Sending: offers to the direct receivers, each tried until it is taken.

Rules:
 * An offer to a child is in the journal before it is made, so a killed agent goes on with it by itself.
 * A child that does not answer is tried every ``retry_interval`` for ``retry_for``; then it is reported as failed,
   with all that lies behind it, until the next send. The Distributor's send need not wait for those of them that are
   known to have the revision: after ``SILENT_AFTER_S`` they have it, until they are asked and say something else.
 * A child that cannot be reached from outside asks by itself; while it does, it is not called.
 * When the window of a send is over, whoever was not reached is reported so.
 * A child that refuses is reported with its own words and not tried again.
 * A newer offer of the same distribution to the same child takes the place of an older one whose nodes it reaches
   as well.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime
from typing import Any

from ted.agent.node import Node
from ted.errors import FormatError, RecordsError, TedError, UnreachableError, WindowClosedError
from ted.records.states import NodeState, State, now_text
from ted.transfer.client import Peer
from ted.transfer.slip import RoutingSlip

log = logging.getLogger("ted.sender")

FIRST_RETRY_S = 0.5
SILENT_AFTER_S = 10.0
"""For so long a child may not answer before what it is known to have counts."""


class Sender:
    """Offers slips to children and hands on what they say.

    Args:
        node: This node.
        learn: Takes the states that children answer with; called in a worker thread.
    """

    def __init__(self, node: Node, learn: Callable[[list[NodeState]], None]) -> None:
        self._node = node
        self._learn = learn
        self._running: dict[tuple[str, str], tuple[RoutingSlip, asyncio.Task[None]]] = {}
        self._behind: set[asyncio.Task[None]] = set()
        self._asks_before_s: dict[str, float] = {}

    async def forward(self, slip: RoutingSlip) -> list[asyncio.Task[None]]:
        """Start offering to every direct receiver of the slip; they are in the journal when this returns."""
        children = await self._node.run(self._prepare, slip)
        return [self._start(child) for child in children]

    def _prepare(self, slip: RoutingSlip) -> list[RoutingSlip]:
        children = list(slip.for_children())
        if children:
            self._node.journal.put_offers([(child.hop.name, child) for child in children])
        return children

    async def resume(self) -> None:
        """Go on with the offers that a former life of this agent left open."""
        for offer in reversed(await self._node.run(self._node.journal.offers, status="open")):
            if not offer["child"]:
                continue
            try:
                self._start(RoutingSlip.decode(offer["slip"]), first_try_at_s=offer["put_at_s"])
            except TedError as error:
                log.warning("offer to %s is dropped: %s", offer["child"], error)
                await self._node.run(
                    self._node.journal.close_offer, offer["send"], "failed", child=offer["child"]
                )

    def _start(self, slip: RoutingSlip, *, first_try_at_s: float | None = None) -> asyncio.Task[None]:
        key = (slip.header.send, slip.hop.name)
        running = self._running.get(key)
        if running is not None:
            return running[1]
        for other, (older, task) in list(self._running.items()):
            if _takes_the_place_of(slip, older):
                task.cancel()
                self._background(self._close(other, "superseded"))
        task = asyncio.create_task(self._offer(slip, first_try_at_s or time.time()), name=f"offer to {key[1]}")
        self._running[key] = (slip, task)
        task.add_done_callback(lambda done: self._forget(key, done))
        return task

    def asked_by(self, child: str, every_s: float) -> None:
        """Note that ``child`` fetched its offers by itself and will do so again: it need not be called meanwhile."""
        self._asks_before_s[child] = time.monotonic() + 2 * every_s + self._node.config.timeout
        for key, (_, task) in list(self._running.items()):
            if key[1] == child:
                task.cancel()
                self._background(self._close(key, "taken"))

    def _asks_by_itself(self, child: str) -> bool:
        return time.monotonic() < self._asks_before_s.get(child, 0)

    async def _close(self, key: tuple[str, str], status: str) -> None:
        await self._node.run(self._node.journal.close_offer, key[0], status, child=key[1])

    def _background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._behind.add(task)
        task.add_done_callback(self._behind.discard)

    def _forget(self, key: tuple[str, str], task: asyncio.Task[None]) -> None:
        if key in self._running and self._running[key][1] is task:
            del self._running[key]
        if not task.cancelled() and task.exception() is not None:
            log.error("offer to %s ended", key[1], exc_info=task.exception())

    async def _offer(self, slip: RoutingSlip, first_try_at_s: float) -> None:
        call, run, config = self._node.call, self._node.run, self._node.config
        peer = Peer(slip.hop.name, slip.hop.address, slip.hop.port)
        delay_s = min(FIRST_RETRY_S, config.retry_interval)
        told = counted = False
        began_s = time.monotonic()
        while True:
            left_s = slip.left_s(datetime.now(UTC))
            if not left_s:
                await self._give_up(slip, window_closed(slip))
                return
            if self._asks_by_itself(peer.name):
                await asyncio.sleep(min(delay_s, left_s))
                continue
            try:
                answer = await call(self._node.pool.call_json, peer, "POST", "/v1/offer", {"slip": slip.encode()})
                await run(self._learn, _states_in(answer, slip))
                await run(self._node.journal.close_offer, slip.header.send, "taken", child=peer.name)
                return
            except (UnreachableError, RecordsError) as error:
                if time.time() - first_try_at_s > config.retry_for:
                    await self._give_up(slip, error)
                    return
                log.info("%s; again in %.1f s", error, delay_s)
                if not told and delay_s > FIRST_RETRY_S:  # not of a child that is only being started anew
                    told = await self._tell_why(slip, error)
                if not counted and _is_silence(error) and time.monotonic() - began_s > SILENT_AFTER_S:
                    counted = await self._count_what_is_known(slip, error)
            except TedError as error:
                await self._give_up(slip, error)
                return
            await asyncio.sleep(min(delay_s, left_s))
            delay_s = min(delay_s * 2, config.retry_interval)

    async def _tell_why(self, slip: RoutingSlip, error: TedError) -> bool:
        """Say above why the nodes of a slip still wait; return true."""
        await self._node.run(self._learn, _all_of(slip, State.PENDING, error, "is on the way to it and cannot be had"))
        return True

    async def _count_what_is_known(self, slip: RoutingSlip, error: TedError) -> bool:
        """Let the nodes of this Distributor's slip have what they are known to have; return true."""
        if slip.header.distributor == self._node.name:
            rows = _all_of(slip, State.PENDING, error, "is on the way to it and cannot be had")
            await self._node.run(self._node.journal.deliver, rows, unasked=True)
        return True

    async def not_reached(self, slip: RoutingSlip, error: TedError) -> None:
        """Report the nodes behind this one, which are not offered what did not come here."""
        rows = [row for row in _all_of(slip, State.FAILED, error, "is on the way to it and failed")
                if row.node != self._node.name]  # fmt: skip
        await self._node.run(self._learn, rows)

    async def _give_up(self, slip: RoutingSlip, error: TedError) -> None:
        log.warning("%s: %s", slip.hop.name, error)
        if _is_silence(error):
            await self._count_what_is_known(slip, error)
        await self._node.run(self._learn, _all_of(slip, State.FAILED, error, "is on the way to it and failed"))
        await self._node.run(self._node.journal.close_offer, slip.header.send, "failed", child=slip.hop.name)


def _is_silence(error: TedError) -> bool:
    """Return whether a node did not answer; one that refused did."""
    return isinstance(error, UnreachableError | WindowClosedError)


def window_closed(slip: RoutingSlip) -> WindowClosedError:
    """Return what to say when the window of a slip's send is over."""
    assert slip.header.ends_at is not None
    return WindowClosedError(f"{WindowClosedError.says} {slip.header.ends_at:%Y-%m-%d %H:%M:%S} UTC",
                             hint="what came stays; the next send goes on from there")  # fmt: skip


def _all_of(slip: RoutingSlip, state: State, error: TedError, what: str) -> list[NodeState]:
    """Return one row for each node of a slip whose first hop has ``error``."""
    header = slip.header
    text = error.message + (f" ({error.hint})" if error.hint else "")
    behind = f"not reached: {slip.hop.name} {what}: {text}"
    return [
        NodeState(hop.name, header.distributor, header.distribution, header.revision, state, now_text(),
                  text if hop is slip.hop else behind)
        for hop in slip.hop.walk()
    ]  # fmt: skip


def _takes_the_place_of(new: RoutingSlip, old: RoutingSlip) -> bool:
    """Return whether an offer need not be made any more once ``new`` is: same child, and nobody is left out."""
    same = (new.header.distributor, new.header.distribution, new.hop.name) == (
        old.header.distributor, old.header.distribution, old.hop.name,
    )  # fmt: skip
    return same and new.header.issued_at >= old.header.issued_at and new.hop.names() >= old.hop.names()


def _states_in(answer: Any, slip: RoutingSlip) -> list[NodeState]:
    """Return the states a child answered with, as far as it may speak of them.

    Raises:
        FormatError: The answer has another shape.
    """
    if not isinstance(answer, dict) or not isinstance(answer.get("states"), list):
        raise FormatError(f"{slip.hop.name} answered an offer with what is not a list of states")
    names = slip.hop.names()
    return list(_allowed((NodeState.from_dict(row) for row in answer["states"]), slip, names))


def _allowed(rows: Iterable[NodeState], slip: RoutingSlip, names: set[str]) -> Iterable[NodeState]:
    header = slip.header
    for row in rows:
        if row.node in names and (row.distributor, row.distribution) == (header.distributor, header.distribution):
            yield row
