"""Receiving: an offer is checked, its revision fetched, and the offer passed on to the nodes behind this one.

Rules:
 * What fits without keys is checked first, the Distributor's signature before anything is done: no root, no slip; no
   slip, no catalog; no record, no byte.
 * An accepted offer, and those it leads to, are in the journal before it is answered or closed, so a killed agent
   goes on with them by itself.
 * The children are offered as soon as the record is here: they fetch while this node still does.
 * One revision of a distribution is fetched at a time; an offer issued later for another one takes its place.
 * A hop that fails is tried again, waiting longer each time up to ``retry_interval`` and at once when a sender that
   was gone is back, until nothing has come for ``retry_for``; then it is reported and waits for the next
   offer. What came stays.
 * What comes damaged from one sender ``DAMAGED_TRIES`` times is damaged there, and asking for more of it is of no use:
   it is reported at once, and those behind hear it too.
 * When the window of a send is over, its transfer ends between two blocks: nothing that crossed a line is thrown away.
   A patch that is being applied then waits for the next send as well.
 * A node that holds the revision fetches nothing, and still passes the offer on.
 * What nodes behind may need to come up by the same patches stays until they have, over a restart too.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ted.agent.node import TELL_EVERY_S, Node
from ted.agent.patching import Step, most_bytes, plan_steps, use_patch
from ted.agent.sender import Sender, window_closed
from ted.content import retention
from ted.content.blocks import PartialPack
from ted.content.durable import read_bounded, reads_as, replace_file
from ted.content.patch.kept import patches_of
from ted.content.record import MAX_RECORD_BYTES, PackRef, RevisionRecord
from ted.content.working import RECORD_NAME
from ted.errors import (
    BusyError,
    DamagedError,
    DigestMismatchError,
    FormatError,
    MissingContentError,
    NoSpaceError,
    RecordsError,
    RefusedError,
    RepositoryError,
    SlipError,
    TedError,
    TransferError,
    TrustError,
    UnknownNameError,
    UnreachableError,
    WindowClosedError,
)
from ted.install.state import InstalledStates
from ted.records.states import HOLDS, NodeState, State
from ted.transfer.client import Connection, Peer, answers
from ted.transfer.fetch import Source, check_space, fetch_blocks, prepare_pack, receive_lock
from ted.transfer.pacing import Patience
from ted.transfer.packs import Incoming, runs_bytes
from ted.transfer.server import check_name, check_stamp, patience_window_s
from ted.transfer.slip import RoutingSlip

log = logging.getLogger("ted.receiver")

FIRST_RETRY_S = 0.5
DAMAGED_TRIES = 3
TELL_AFTER_S, TELL_GROWTH = 2.0, 1.5
ANSWER_WITHIN_S = 3.0
BUSY_WITHIN_S = 5.0
LOOK_EVERY_S = 1.0
PRUNE_EVERY_S = 5.0

Key = tuple[str, str, str]
"""(distributor, distribution, revision)."""


def key_of(slip: RoutingSlip) -> Key:
    """Return what the slip is about."""
    return slip.header.distributor, slip.header.distribution, slip.header.revision


class Receiver:
    """Takes offers and carries them out.

    Args:
        node: This node.
        sender: Passes offers on.
        on_received: Called with the slip when its revision is here, also when it was before.
    """

    def __init__(self, node: Node, sender: Sender, on_received: Callable[[RoutingSlip], Awaitable[None]]) -> None:
        self._node = node
        self._sender = sender
        self._on_received = on_received
        self._transfers: dict[tuple[str, str], _Transfer] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._one_at_a_time: dict[tuple[str, str], asyncio.Lock] = {}
        self._between: dict[tuple[str, str], frozenset[str]] = {}
        """What is kept for nodes behind this one that come up by patches, by distribution."""

    # -- offers ------------------------------------------------------------------------------------------

    async def offered(self, data: Any, peer: str) -> dict[str, Any]:
        """Check an offer, start on it, and say what is known of the subtree.

        Args:
            data: ``{"slip": ...}`` as it came.
            peer: The sender's name, from its certificate.

        Raises:
            TrustError: No root, a forged or expired slip, or one for another node.
        """
        slip = await self._node.run(RoutingSlip.decode, data.get("slip") if isinstance(data, dict) else None)
        for name in key_of(slip)[:2]:
            check_name(name)
        check_stamp(slip.header.revision)
        await self._node.call(self._check, slip, peer)
        return await self.accept(slip)

    def _check(self, slip: RoutingSlip, peer: str) -> None:
        view = self._node.view(slip.header.distributor)
        checked = False

        def verify(payload: bytes, signatures: Any) -> None:
            nonlocal checked
            checked = True  # all that needs no key was in order
            view.verify_slip_signature(payload, signatures)

        try:
            slip.check(me=self._node.name, sender=peer, now=datetime.now(UTC), verify=verify)
        except (SlipError, MissingContentError):
            if not checked:
                raise
            # nothing of this Distributor is here yet, or its keys were rotated: ask the sender; the root judges
            source = self._source(slip)
            with self._node.catalog_of(slip.header.distributor, BUSY_WITHIN_S):
                view = self._node.view(slip.header.distributor, source.metadata)
                view.refresh()
            slip.check(me=self._node.name, sender=peer, now=datetime.now(UTC), verify=view.verify_slip_signature)

    async def accept(self, slip: RoutingSlip) -> dict[str, Any]:
        """Start on a checked slip; return ``{"states": [...]}`` of the subtree as far as known."""
        key = key_of(slip)
        run, journal = self._node.run, self._node.journal
        await run(journal.put_offers, [("", slip)])
        before = {row.node: row.seq for row in await run(self._states_of, slip)}
        if await run(self._node.working.is_received, *key):
            await self._mark_target([slip])
            await run(self._acknowledge, key)
            await self._freshen(slip)
            forwarded = await self._sender.forward(slip)
            await run(journal.close_offer, slip.header.send, "done")
            if forwarded:
                await asyncio.wait(forwarded, timeout=ANSWER_WITHIN_S)
            await self._on_received(slip)
        else:
            await self._start(key, slip)
        return {"states": await run(self._told_states, slip, before)}

    def _acknowledge(self, key: Key) -> None:
        """Make sure the journal says that this node holds the revision (a kill, or a lost journal).

        What is installed instead of it, as somebody said, stays on record.
        """
        known = self._own_row(key)
        if known is None or known.state in {State.PENDING, State.RECEIVING, State.UNKNOWN} or (
            known.revision != key[2] and known.state not in {State.ROLLED_BACK, State.EXTRACTED}
        ):
            count = known.bytes_done if known is not None and known.revision == key[2] else 0
            self._node.journal.report(*key, State.RECEIVED, bytes_done=count, bytes_total=count, had=count == 0)

    async def _freshen(self, slip: RoutingSlip) -> None:
        """Have the newer catalog that the slip speaks of, for the children's sake, even if the revision is here."""
        try:
            await self._node.call(self._refresh_if_older, slip)
        except TedError as error:  # the children may hold it themselves; those that do not will say so
            log.info("catalog of %s: %s", slip.header.distributor, error)

    def _refresh_if_older(self, slip: RoutingSlip) -> None:
        if slip.sender is None:
            return
        with self._node.catalog_of(slip.header.distributor, BUSY_WITHIN_S):
            view = self._node.view(slip.header.distributor, self._source(slip).metadata)
            if view.timestamp_version < slip.header.catalog_version:
                view.refresh()

    def _own_row(self, key: Key) -> NodeState | None:
        rows = self._node.journal.states(node=self._node.name, distributor=key[0], distribution=key[1])
        return rows[0] if rows else None

    def _states_of(self, slip: RoutingSlip) -> list[NodeState]:
        """Return what the journal knows of the slip's nodes and revision."""
        names = slip.hop.names()
        rows = self._node.journal.states(distributor=slip.header.distributor, distribution=slip.header.distribution)
        return [row for row in rows if row.node in names and row.revision == slip.header.revision]

    def _told_states(self, slip: RoutingSlip, before: dict[str, int]) -> list[dict[str, Any]]:
        """Return the answer's states: news since the offer came, and who had the revision already.

        Old failures are left out: they say nothing about this offer.
        """
        key = key_of(slip)
        told = []
        for row in self._states_of(slip):
            if row.node == self._node.name:
                continue
            if before.get(row.node) != row.seq:
                told.append(row)
            elif row.state in HOLDS:
                told.append(replace(row, had=True, bytes_done=0, bytes_total=0))
        own = self._own_row(key)
        working = self._node.working
        if own is not None and working.is_received(*key) and (working.is_target(*key) or not slip.hop.target):
            # the revision is here, whatever was done with it since: extracted, failed, rolled back
            state = own.state if own.revision == key[2] and own.state in HOLDS else State.RECEIVED
            had = before.get(self._node.name) == own.seq or own.revision != key[2] or own.had
            count = 0 if had else own.bytes_done
            own = replace(own, revision=key[2], state=state, error=None, had=had, bytes_done=count, bytes_total=count)
        return [row.to_dict() for row in ([own] if own is not None else []) + told]

    async def resume(self) -> None:
        """Go on with every offer that a former life of this agent left open."""
        for offer in reversed(await self._node.run(self._node.journal.offers, status="open", child="")):
            try:
                await self.accept(RoutingSlip.decode(offer["slip"]))
            except TedError as error:
                log.warning("offer of %s %s is dropped: %s", offer["distributor"], offer["distribution"], error)
                await self._node.run(self._node.journal.close_offer, offer["send"], "failed")
        self._background(self._tidy(), "tidy")

    async def _tidy(self) -> None:
        """Go on with what a former life of this agent kept for others, or remove it."""
        working = self._node.working
        for pair in await self._node.run(working.distributions):
            if pair[0] == self._node.name or pair in self._transfers:  # a build, or the transfer, does it
                continue
            try:
                async with self._lock_of(pair):
                    here = await self._node.run(working.received, *pair)
                    if here:
                        record = await self._node.run(working.record, *pair, here[-1])
                        await self._keep_or_prune((*pair, here[-1]), record)
            except (TedError, OSError) as error:
                log.error("%s: old revisions stay: %s", "/".join(pair), error)

    def _background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _lock_of(self, pair: tuple[str, str]) -> asyncio.Lock:
        """Return what is held while revisions of a distribution are fetched or removed."""
        return self._one_at_a_time.setdefault(pair, asyncio.Lock())

    # -- mending -----------------------------------------------------------------------------------------

    async def mend(self, distributor: str, distribution: str, revision: str) -> dict[str, Any]:
        """Fetch again what is damaged of a revision that is here; return ``{"bytes", "from"}``.

        Nothing is said of it above or below: the node holds the revision before and after. Blocks that are damaged
        count as missing from the moment they are found, durably; where they cannot be fetched, or that is cut short,
        ``ted verify --stored`` tells it, and the next repair goes on.

        Raises:
            BusyError: A transfer of the distribution is under way.
            UnknownNameError: It is not here, or nobody has offered the distribution here.
            TransferError: The parent, and who sent it last, cannot be asked or have not got it.
            DamagedError: It is damaged there, too.
        """
        key = (distributor, distribution, revision)
        if self._lock_of(key[:2]).locked():
            raise BusyError(f"a transfer of {distribution} of {distributor} is under way",
                            hint="run it again after that")  # fmt: skip
        slip = await self._node.run(self._newest_offer, key[:2])
        failures: list[TedError] = []
        async with self._lock_of(key[:2]):
            if not await self._node.run(self._node.working.is_received, *key):
                raise UnknownNameError(f"{distribution} {revision} of {distributor} is not here any more")
            for source in self._who_may_mend(slip):
                try:
                    return await self._mend_from(source, key, slip)
                except TedError as error:
                    failures.append(error)
        failures[0].message = "; ".join(failure.message for failure in failures)
        raise failures[0]

    def _who_may_mend(self, slip: RoutingSlip) -> list[Source]:
        """Return who is asked, in order: the parent as it is set now, and who sent the distribution last."""
        sources = [self._source(slip)]
        if self._node.parent is not None:
            sources.insert(0, Source(self._node.pool, self._node.parent, slip.header.distributor))
        return list(dict.fromkeys(sources))

    async def _mend_from(self, source: Source, key: Key, slip: RoutingSlip) -> dict[str, Any]:
        transfer = _Mending(self._node, key, slip, source, self._sender, bytes_done=0)
        failure: TedError | None = None
        try:
            await self._try_some(transfer)
        except TedError as error:
            failure = error
            if isinstance(error, RefusedError) and error.hint is None:  # it has not got it
                error.hint = (
                    f"send it again on {key[0]}, which brings it to {source.peer.name}, and repair after that"
                    if source.peer.name != key[0] else f"{key[0]} has removed it: take a newer revision"
                )
            raise
        finally:
            transfer.end(failure or MissingContentError("the transfer ended"))
        return {"bytes": transfer.bytes_done, "from": source.peer.name}

    def _newest_offer(self, pair: tuple[str, str]) -> RoutingSlip:
        """Return the newest slip of a distribution for this node: whoever sent that last is who is asked."""
        offers = self._node.journal.offers(child="", distributor=pair[0], distribution=pair[1])
        if not offers:
            raise UnknownNameError(f"nobody has sent {pair[1]} of {pair[0]} here: whom to ask is not known",
                                   hint=f"send it again on {pair[0]}")  # fmt: skip
        return RoutingSlip.decode(offers[0]["slip"])

    async def _try_some(self, transfer: _Transfer) -> None:
        for left in reversed(range(DAMAGED_TRIES)):
            try:
                await transfer.attempt()
                return
            except (TransferError, RepositoryError):
                if not left:
                    raise
            await asyncio.sleep(FIRST_RETRY_S)

    # -- fetching ----------------------------------------------------------------------------------------

    async def _start(self, key: Key, slip: RoutingSlip) -> None:
        if await self._joined(key, slip):
            return
        running = self._transfers.get(key[:2])
        if running is not None and running.slip.header.issued_at < slip.header.issued_at:
            running.give_way(slip.header.revision)
        before = await self._node.run(self._own_row, key)
        goes_on = before is not None and (before.revision, before.state) == (key[2], State.RECEIVING)
        done, total = (before.bytes_done, before.bytes_total) if before is not None and goes_on else (0, 0)
        await self._node.run(self._node.journal.report, *key, State.RECEIVING, bytes_done=done, bytes_total=total)
        if await self._joined(key, slip):  # another offer of it was quicker
            return
        transfer = self._transfers[key[:2]] = _Transfer(
            self._node, key, slip, self._source(slip), self._sender, bytes_done=done, told_bytes=total
        )
        self._background(self._receive(key, transfer), f"receive {'/'.join(key)}")

    async def _joined(self, key: Key, slip: RoutingSlip) -> bool:
        """Have a slip served by the transfer that brings its revision already; return whether there is one."""
        while (running := self._transfers.get(key[:2])) is not None and running.key == key:
            if not running.is_failing:
                await running.join(slip, self._source(slip))
                return True
            await running.ended.wait()  # joined now, the slip would fail with it
        return False

    async def _receive(self, key: Key, transfer: _Transfer) -> None:
        """Carry a transfer to its end; nothing it may raise is lost."""
        failure: Exception | None = None
        try:
            async with self._lock_of(key[:2]):
                try:
                    await self._try_until_done(key, transfer)
                    await self._received(key, transfer)
                except Exception:
                    transfer.is_failing = True
                    raise
        except _GivenWayError as error:
            failure = error
            log.info("%s: %s", "/".join(key), error)
            await self._close_offers(transfer, "superseded")
        except TedError as error:
            failure = error
            await self._failed(key, transfer, error)
        except Exception as error:
            failure = error
            log.exception("%s", "/".join(key))
            await self._failed(key, transfer, TransferError(f"{type(error).__name__}: {error}",
                                                            hint="a fault of ted: see agent.log"))  # fmt: skip
        finally:
            transfer.end(failure or MissingContentError("the transfer ended"))
            if self._transfers.get(key[:2]) is transfer:
                del self._transfers[key[:2]]
            transfer.ended.set()
        if failure is None:
            log.info("%s: received", "/".join(key))
            await self._mark_target(transfer.slips)
            for slip in transfer.slips:
                await self._on_received(slip)

    async def _try_until_done(self, key: Key, transfer: _Transfer) -> None:
        delay_s = FIRST_RETRY_S
        damaged: Counter[str] = Counter()
        while True:
            try:
                await transfer.attempt()
                return
            except (TransferError, RepositoryError, RecordsError) as error:
                failure = error
                if isinstance(error, NoSpaceError | WindowClosedError):
                    raise
                if isinstance(error, DamagedError):
                    damaged[error.message] += 1
                    if damaged[error.message] >= DAMAGED_TRIES:
                        raise
                if transfer.stalled_for_s() > self._node.config.retry_for:
                    raise
                if transfer.take_progress():
                    delay_s = FIRST_RETRY_S
                log.info("%s: %s; again in %.1f s", "/".join(key), error, delay_s)
                kind = "corrupt" if isinstance(error, RepositoryError) else "retry"
                await self._note(kind, key, str(error))
            await transfer.pause(min(delay_s, transfer.left_s()), failure)
            delay_s = min(delay_s * 2, self._node.config.retry_interval)

    async def _note(self, kind: str, key: Key, message: str) -> None:
        try:
            await self._node.run(
                self._node.journal.note, kind, message, distributor=key[0], distribution=key[1], revision=key[2]
            )
        except RecordsError as error:
            log.error("%s", error)

    async def _failed(self, key: Key, transfer: _Transfer, error: TedError) -> None:
        """Write down a failure, as soon as it can be: where the disk is full, the records may be unable to take it."""
        log.warning("%s: %s", "/".join(key), error)
        text = error.message + (f" ({error.hint})" if error.hint else "")
        while True:
            try:
                await self._node.run(self._node.journal.report, *key, State.FAILED, error=text,
                                     bytes_done=transfer.bytes_done, bytes_total=transfer.bytes_total)  # fmt: skip
                if not transfer.was_forwarded:  # else they hear it from this node, or have what they need
                    for slip in transfer.slips:
                        await self._sender.not_reached(slip, error)
                await self._close_offers(transfer, "failed")
                return
            except RecordsError as records:
                log.error("%s; tried again in %.0f s", records, self._node.config.retry_interval)
            await asyncio.sleep(self._node.config.retry_interval)

    async def _received(self, key: Key, transfer: _Transfer) -> None:
        run, journal, total = self._node.run, self._node.journal, transfer.bytes_done
        await self._mark_target(transfer.slips)
        await run(journal.report, *key, State.RECEIVED, bytes_done=total, bytes_total=total)
        try:
            await self._close_offers(transfer, "done")
        except RecordsError as error:  # it is here, and on record: the next start closes them
            log.error("%s: its offers stay open: %s", "/".join(key), error)
        await self._keep_or_prune(key, transfer.record)

    async def _keep_or_prune(self, key: Key, record: RevisionRecord | None) -> None:
        """Remove old revisions, as soon as nobody needs them to come up to ``key``; the caller holds the lock."""
        self._between.pop(key[:2], None)
        try:
            between = await self._node.run(self._needed_by_others, key)
        except (TedError, OSError) as error:  # the next one prunes
            log.error("%s: old revisions stay: %s", "/".join(key), error)
            return
        if between:
            self._between[key[:2]] = between
            self._background(self._prune_later(key, record, between), f"keep for others {'/'.join(key)}")
        else:
            await self._prune_now(key, record)

    def _needed_by_others(self, key: Key) -> frozenset[str]:
        """Return the revisions in whose directories nodes behind this one may look for patches that lead to ``key``.

        They may be further back than this node was: the patches to what it had are among them.
        """
        working = self._node.working
        if not patches_of(working.revision(*key)) or not self._is_awaited(key):
            return frozenset()
        return frozenset(working.revisions(*key[:2])) - {key[2]}

    async def _prune_later(self, key: Key, record: RevisionRecord | None, between: frozenset[str]) -> None:
        """Keep what lies between until the nodes behind have the revision, or nothing was heard of them for long."""
        heard, heard_at_s = -1, time.monotonic()
        try:
            while self._between.get(key[:2]) is between and await self._node.run(self._is_awaited, key):
                news = await self._node.run(self._newest_news, key)
                if news != heard:
                    heard, heard_at_s = news, time.monotonic()
                if time.monotonic() - heard_at_s > self._node.silent_for_s:
                    break
                await asyncio.sleep(PRUNE_EVERY_S)
        except RecordsError as error:  # the next revision prunes
            log.error("%s: what lies between stays: %s", "/".join(key), error)
            return
        async with self._lock_of(key[:2]):
            if self._between.get(key[:2]) is between:  # else a newer revision came, and pruned
                del self._between[key[:2]]
                await self._prune_now(key, record)

    def _is_awaited(self, key: Key) -> bool:
        """Return whether nodes behind this one are still to have the revision."""
        journal, distributor, distribution = self._node.journal, key[0], key[1]
        offers = journal.offers(status="open", distributor=distributor, distribution=distribution)
        rows = journal.states(distributor=distributor, distribution=distribution)
        return any(offer["child"] and offer["revision"] == key[2] for offer in offers) or any(
            row.node != self._node.name and row.revision == key[2] and row.state in {State.PENDING, State.RECEIVING}
            for row in rows
        )

    def _newest_news(self, key: Key) -> int:
        rows = self._node.journal.states(distributor=key[0], distribution=key[1])
        return max((row.seq for row in rows), default=0)

    async def _prune_now(self, key: Key, record: RevisionRecord | None) -> None:
        busy = {other.key[2] for other in self._transfers.values() if other.key[:2] == key[:2]}
        try:
            await self._node.run(self._prune, key, record, busy)
        except (TedError, OSError) as error:  # what is here is here; the next one prunes
            log.error("%s: old revisions stay: %s", "/".join(key), error)

    async def _mark_target(self, slips: list[RoutingSlip]) -> None:
        """Write down, before anybody is told that it is here, whether the revision is for this node."""
        for slip in slips:
            if slip.hop.target:
                await self._node.run(self._write_target, key_of(slip))

    def _write_target(self, key: Key) -> None:
        with _disk_errors():
            self._node.working.mark_target(*key)

    async def _close_offers(self, transfer: _Transfer, status: str) -> None:
        for slip in transfer.slips:
            await self._node.run(self._node.journal.close_offer, slip.header.send, status)

    def _prune(self, key: Key, record: RevisionRecord | None, busy: set[str]) -> None:
        """Remove old revisions, but none that is busy, installed, coming in, or still being passed on."""
        if record is None:
            return
        in_use = busy | InstalledStates(self._node.working).revisions_in_use(*key[:2])
        in_use |= {
            offer["revision"]
            for offer in self._node.journal.offers(status="open", distributor=key[0], distribution=key[1])
        }
        in_use |= {
            row.revision for row in self._node.journal.states(distributor=key[0], distribution=key[1])
            if row.state in {State.PENDING, State.RECEIVING, State.EXTRACTING} and row.revision
        }  # fmt: skip
        most = record.settings.get("max_revisions")
        removal = retention.plan(self._node.working, *key[:2], max_revisions=most, in_use=in_use)
        retention.apply(self._node.working, *key[:2], removal)

    def _source(self, slip: RoutingSlip) -> Source:
        above = slip.sender
        if above is None:
            raise SlipError("a routing slip without a sender")
        return Source(self._node.pool, Peer(above.name, above.address, above.port), slip.header.distributor)


class _GivenWayError(TedError):
    """An offer issued later took the place of this one."""


class _Transfer:
    """One revision on its way to this node, over as many attempts as it takes.

    Args:
        node: This node.
        key: What comes.
        slip: The offer that began it.
        source: Whom to fetch from.
        sender: Passes the offer on.
        bytes_done: What came in a former life of this agent, as far as that told it.
        told_bytes: How much it was in all, as that life told it.
    """

    def __init__(
        self, node: Node, key: Key, slip: RoutingSlip, source: Source, sender: Sender, *,
        bytes_done: int, told_bytes: int = 0,
    ) -> None:  # fmt: skip
        self.key = key
        self.slip = slip
        self.slips = [slip]
        self.record: RevisionRecord | None = None
        self.bytes_done = bytes_done
        self.bytes_total = bytes_done
        self._told_bytes = told_bytes
        self._node, self._source, self._sender = node, source, sender
        self._incoming: dict[str, Incoming] = {}
        self._with_patches = True
        self._patch_bytes = 0
        self._patched: set[str] = set()
        self._open = ExitStack()
        self.is_failing = False
        self.ended = asyncio.Event()
        self.was_forwarded = False
        self._progress_at_s = time.monotonic()
        self._progressed = False
        self._told_at_s, self._tell_after_s = 0.0, TELL_AFTER_S
        self._stopped = asyncio.Event()
        self._again = asyncio.Event()
        self._for_revision: str | None = None
        self._connection: Connection | None = None
        self._connection_lock = threading.Lock()

    def stalled_for_s(self) -> float:
        """Return how long nothing has come."""
        return time.monotonic() - self._progress_at_s

    def left_s(self) -> float:
        """Return the seconds until the last window of those that want this revision ends; infinite without one."""
        now = datetime.now(UTC)
        return max(slip.left_s(now) for slip in self.slips)

    def take_progress(self) -> bool:
        """Return whether anything came since this was last asked."""
        progressed, self._progressed = self._progressed, False
        return progressed

    def give_way(self, revision: str) -> None:
        """Stop for another revision that was offered later."""
        self._for_revision = revision
        self._stopped.set()
        self._again.set()
        self._cut()

    async def join(self, slip: RoutingSlip, source: Source) -> None:
        """Serve the targets of another slip for the same revision as well.

        One issued later through another parent is how the tree is now: what is still missing comes from there.
        """
        self.slips.append(slip)
        self._told_at_s, self._tell_after_s = 0.0, TELL_AFTER_S  # who sent it knows nothing of this node yet
        if source.peer != self._source.peer and slip.header.issued_at > self.slip.header.issued_at:
            self.slip, self._source = slip, source
            self._progress_at_s = time.monotonic()
            self._again.set()
            self._cut()
        if self.was_forwarded:
            await self._sender.forward(slip)

    async def pause(self, delay_s: float, error: TedError) -> None:
        """Wait, unless there is a reason to go on at once: an end, another source, or the sender is back.

        Args:
            delay_s: How long at most.
            error: How the last attempt ended.
        """
        is_gone = isinstance(error, UnreachableError) and error.is_gone
        reasons = [asyncio.create_task(self._again.wait()), asyncio.create_task(self._sender_is_back(is_gone))]
        try:
            await asyncio.wait(reasons, timeout=delay_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for reason in reasons:
                reason.cancel()
        self._again.clear()

    async def _sender_is_back(self, is_gone: bool) -> None:
        """Return when the sender, which stopped answering, answers again.

        Args:
            is_gone: Nobody was there a moment ago; a sender that the first look finds is back already.
        """
        while not is_gone and await answers(self._source.peer):
            await asyncio.sleep(LOOK_EVERY_S)
        await asyncio.sleep(LOOK_EVERY_S)
        while not await answers(self._source.peer):
            await asyncio.sleep(LOOK_EVERY_S)

    async def attempt(self) -> None:
        """Bring the revision here, from where the last attempt stopped.

        Raises:
            TransferError: A hop failed; what came stays.
        """
        self._unless_over()
        loop = asyncio.get_running_loop()
        record = self.record = await self._node.call(self._fetch_record)
        with self._node.working.lock(receive_lock(*self.key[:2])) as mine:
            if not mine:
                raise TransferError(f"another process receives {self.key[1]} on this node")
            steps = await self._node.call(self._plan_patches, record, loop)
            packs = await self._node.call(self._prepare, record, loop)
            if not self.was_forwarded:
                self.was_forwarded = True
                for slip in self.slips:
                    await self._sender.forward(slip)
            for step in steps:
                await self._node.call(self._use_patch, step, loop)
                self._unless_stopped()
            for ref, incoming in packs:
                await self._node.call(self._fetch_pack, ref, incoming)
                self._unless_stopped()
            await self._node.run(self._complete)

    def _unless_stopped(self) -> None:
        if self._stopped.is_set():
            raise _GivenWayError(f"gives way to revision {self._for_revision}")

    def _unless_over(self) -> None:
        self._unless_stopped()
        if not self.left_s():
            raise self._window_closed()

    def _window_closed(self) -> WindowClosedError:
        return window_closed(max(self.slips, key=lambda slip: slip.left_s(datetime.now(UTC))))

    def end(self, error: Exception) -> None:
        """Wake those who wait for blocks, end the fetching thread, and close the packs."""
        self._stopped.set()
        self._cut()
        for name, incoming in self._incoming.items():
            self._node.packs.withdraw((*self.key[:2], name), incoming, error)
            incoming.stop(error)
        self._open.close()

    def _fetch_record(self) -> RevisionRecord:
        distributor, distribution, revision = self.key
        with self._node.catalog_of(distributor, self._node.config.timeout):
            view = self._node.view(distributor, self._source.metadata)
            known = view.timestamp_version  # 0: nothing received yet
            if known < self.slip.header.catalog_version or revision not in view.revisions(distribution):
                view.refresh()
            try:
                data = view.record(distribution, revision)
            except UnknownNameError as error:
                raise MissingContentError(error.message, hint="a newer revision may have taken its place") from error
            except DigestMismatchError as error:
                raise self._source.damaged(distribution, revision, RECORD_NAME) from error
        record = RevisionRecord.from_bytes(data)
        if (record.distributor, record.distribution, record.revision) != self.key:
            raise TrustError(f"the record signed as {'/'.join(self.key)} speaks of another revision")
        with _disk_errors():
            directory = self._node.working.revision(*self.key)
            directory.mkdir(parents=True, exist_ok=True)
            if not reads_as(directory / RECORD_NAME, data):
                replace_file(directory / RECORD_NAME, data)
        return record

    def _plan_patches(self, record: RevisionRecord, loop: asyncio.AbstractEventLoop) -> list[Step]:
        """Return the patches that save bytes on the way to ``record``.

        Their block lists, and those of the packs they make, are here then.
        """
        if not self._with_patches:
            return []
        working, (distributor, distribution, _) = self._node.working, self.key
        directory = working.distribution(distributor, distribution)
        try:
            with _disk_errors(), self._node.catalog_of(distributor, self._node.config.timeout):
                view = self._node.view(distributor, self._source.metadata)
                held, for_others = working.received(distributor, distribution), bool(self.slip.hop.children)
                steps = plan_steps(view, directory, record, held, for_others=for_others)
                check_space(directory, most_bytes(directory, record, steps) if steps else 0, self._node.config.min_free)
            wanted = {ref.revision: ref for ref in record.packs}
            for step in steps:  # all of them now: others may want the last before this node has the first
                own = step.record.packs[0]
                self._incoming_of(step.patch, loop)
                self._incoming_of(wanted.get(own.revision, own), loop)
        except (NoSpaceError, RefusedError, RepositoryError, UnknownNameError) as error:  # blocks need less room
            log.info("%s: no patch: %s", "/".join(self.key), error)
            self._with_patches = False
            return []
        self._patch_bytes = sum(runs_bytes(step.patch, self._incoming[step.patch.revision].pack.missing())
                                for step in steps)  # fmt: skip
        self._patched = {step.record.revision for step in steps}
        return steps

    def _use_patch(self, step: Step, loop: asyncio.AbstractEventLoop) -> None:
        """Fetch a patch and rebuild a pack with it; where that fails, its blocks are fetched as without."""
        if not self._with_patches:
            return
        try:
            own = self._incoming_of(step.record.packs[0], loop)
            self._fetch_pack(step.patch, self._incoming[step.patch.revision])
            if not self._stopped.is_set():
                directory = self._node.working.distribution(*self.key[:2])
                with _disk_errors():
                    use_patch(directory, step, own.pack, lambda: self._rebuilt(own),
                              min_free_bytes=self._node.config.min_free, check=self._unless_over)  # fmt: skip
        except (NoSpaceError, RefusedError, RepositoryError) as error:
            log.warning("%s: the patch is of no use: %s", "/".join(self.key), error)
            self._with_patches = False
        self._patched.discard(step.record.revision)

    def _rebuilt(self, own: Incoming) -> None:
        self._progressed, self._progress_at_s = True, time.monotonic()
        own.advanced()
        self._leave_free(own)

    def _leave_free(self, incoming: Incoming) -> None:
        """Refuse the next block where it would take what must stay free: others fill the disk as well."""
        if self._node.config.min_free and incoming.pack.missing():
            check_space(self._node.working.path, incoming.pack.ref.block_bytes, self._node.config.min_free)

    def _incoming_of(self, ref: PackRef, loop: asyncio.AbstractEventLoop) -> Incoming:
        """Return the pack or patch as what comes in, its block list fetched and checked."""
        incoming = self._incoming.get(ref.revision)
        if incoming is None:
            directory = self._node.working.distribution(*self.key[:2]) / ref.revision
            with _disk_errors():
                pack = self._open_pack(ref, directory)
                if pack.missing():
                    pack.make()
            self._open.callback(pack.close)
            incoming = self._incoming[ref.revision] = Incoming(pack, loop)
            self._node.packs.announce((*self.key[:2], ref.revision), incoming)
        return incoming

    def _open_pack(self, ref: PackRef, directory: Path) -> PartialPack:
        pack = prepare_pack(self._source, self.key[1], ref, directory)
        pack.reclaim()
        return pack

    def _prepare(self, record: RevisionRecord, loop: asyncio.AbstractEventLoop) -> list[tuple[PackRef, Incoming]]:
        packs = []
        for ref in record.packs:
            if ref.revision not in self._incoming:
                directory = self._node.working.revision(*self.key[:2], ref.revision)
                with _disk_errors():
                    pack = self._open_pack(ref, directory)
                self._open.callback(pack.close)
                self._incoming[ref.revision] = Incoming(pack, loop)
            packs.append((ref, self._incoming[ref.revision]))
        missing_bytes = sum(runs_bytes(ref, incoming.pack.missing()) for ref, incoming in packs)
        fetched_bytes = sum(runs_bytes(ref, incoming.pack.missing()) for ref, incoming in packs
                            if ref.revision not in self._patched)  # fmt: skip
        if not self._patched:  # what a former life got and did not come to tell
            self.bytes_done = max(self.bytes_done, self._told_bytes - fetched_bytes)
        self._told_bytes = 0
        self.bytes_total = self.bytes_done + fetched_bytes + self._patch_bytes
        missing_bytes += self._patch_bytes
        check_space(self._node.working.path, missing_bytes, self._node.config.min_free)
        for ref, incoming in packs:
            with _disk_errors():
                if incoming.pack.missing():
                    incoming.pack.make()
            self._node.packs.announce((*self.key[:2], ref.revision), incoming)
        self._tell(force=True)
        return packs

    def _fetch_pack(self, ref: PackRef, incoming: Incoming) -> None:
        def news(size_bytes: int) -> None:
            self._progress_at_s = time.monotonic()
            if size_bytes:
                self.bytes_done += size_bytes
                self._progressed = True
                incoming.advanced()
                self._leave_free(incoming)
            self._tell()

        config = self._node.config
        patience = Patience(config.min_rate, patience_window_s(config.timeout))
        check_space(self._node.working.path, runs_bytes(ref, incoming.pack.missing()), config.min_free)
        with _disk_errors():
            in_time = fetch_blocks(
                self._source, self.key[1], ref, incoming.pack, gate=self._node.gate_in, patience=patience,
                left_s=self.left_s, on_open=self._opened, on_news=news, cancelled=self._stopped.is_set,
            )  # fmt: skip
        if incoming.pack.missing() and not self._stopped.is_set():
            if not in_time:
                raise self._window_closed()
            raise TransferError(f"{self._source.peer} did not send all of pack {ref.revision}")

    def _opened(self, connection: Connection | None) -> None:
        with self._connection_lock:
            self._connection = connection

    def _cut(self) -> None:
        """End the fetching thread's wait; a connection that went back to the pool is another's and stays."""
        with self._connection_lock:
            if self._connection is not None:
                self._connection.close()

    def _tell(self, *, force: bool = False) -> None:
        """Report how far it is: soon at first, less often as it takes longer; each report costs every node above."""
        now_s = time.monotonic()
        if (force or now_s - self._told_at_s >= self._tell_after_s) and not self._stopped.is_set():
            if not force:
                self._tell_after_s = min(self._tell_after_s * TELL_GROWTH, TELL_EVERY_S)
            self._told_at_s = now_s
            self._node.journal.report(
                *self.key, State.RECEIVING, bytes_done=self.bytes_done, bytes_total=self.bytes_total
            )

    def _complete(self) -> None:
        with _disk_errors():
            for incoming in self._incoming.values():
                incoming.pack.flush()
            self._node.working.mark_received(*self.key, target=any(slip.hop.target for slip in self.slips))


class _Mending(_Transfer):
    """Fetches again what is damaged of a revision that was received: only that, only for this node, and silently."""

    def __init__(
        self, node: Node, key: Key, slip: RoutingSlip, source: Source, sender: Sender, *, bytes_done: int
    ) -> None:
        super().__init__(node, key, slip, source, sender, bytes_done=bytes_done)
        self._with_patches = False
        self.was_forwarded = True

    def left_s(self) -> float:
        """No window: somebody asked for it now."""
        return math.inf

    def _fetch_record(self) -> RevisionRecord:
        """Return the record that is here where it is the one that was verified: the catalog may list it no more."""
        working = self._node.working
        with _disk_errors(), suppress(FormatError):  # of one that cannot be read, too
            data = read_bounded(working.revision(*self.key) / RECORD_NAME, MAX_RECORD_BYTES) or b""
            if hashlib.sha256(data).hexdigest() == working.record_received(*self.key):
                return RevisionRecord.from_bytes(data)
        return super()._fetch_record()

    def _open_pack(self, ref: PackRef, directory: Path) -> PartialPack:
        try:
            pack = prepare_pack(self._source, self.key[1], ref, directory)
            pack.recheck()
        except FormatError:  # of another size, or with a bitmap of another pack
            PartialPack.doubted(directory, ref)
            pack = prepare_pack(self._source, self.key[1], ref, directory)
        pack.reclaim()
        return pack

    def _tell(self, *, force: bool = False) -> None:
        """The states stay: what is installed is installed, what was received was received."""

    def _complete(self) -> None:
        with _disk_errors():
            for incoming in self._incoming.values():
                incoming.pack.flush()
            self._node.working.mark_received(*self.key)


class _disk_errors:  # noqa: N801 -- reads as a statement
    """Translate what the disk says: full is final, anything else may pass."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not isinstance(error, OSError):
            return
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise NoSpaceError(f"the disk is full: {error}", hint="free space; what came stays") from error
        raise TransferError(f"the disk of this node fails: {error}", hint="see the kernel's log") from error
