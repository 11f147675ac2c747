"""Receiving: an offer is checked, its revision fetched, and the offer passed on to the nodes behind this one.

Rules:
 * The Distributor's signature comes first: no root, no slip; no slip, no catalog; no record, no byte.
 * An accepted offer is in the journal before it is answered, so a killed agent goes on with it by itself.
 * The children are offered as soon as the record is here: they fetch while this node still does.
 * A hop that fails is tried again, waiting longer each time up to ``retry_interval``, until nothing has come for
   ``retry_for``; then it is reported and waits for the next offer. What came stays.
 * A node that holds the revision fetches nothing, and still passes the offer on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from ted.agent.node import Node
from ted.agent.sender import Sender
from ted.content import retention
from ted.content.durable import read_bounded, replace_file
from ted.content.record import MAX_RECORD_BYTES, PackRef, RevisionRecord
from ted.errors import (
    MissingContentError,
    NoSpaceError,
    RepositoryError,
    SlipError,
    TedError,
    TransferError,
    TrustError,
)
from ted.records.states import HOLDS, NodeState, State
from ted.transfer.client import Peer
from ted.transfer.fetch import Source, check_space, fetch_blocks, prepare_pack
from ted.transfer.packs import Incoming, runs_bytes
from ted.transfer.server import check_name, check_stamp
from ted.transfer.slip import RoutingSlip

log = logging.getLogger("ted.receiver")

FIRST_RETRY_S = 0.5
PROGRESS_EVERY_S = 2.0
ANSWER_WITHIN_S = 3.0

Key = tuple[str, str, str]
"""(distributor, distribution, revision)."""


class Receiver:
    """Takes offers and carries them out."""

    def __init__(self, node: Node, sender: Sender, on_received: Any) -> None:
        self._node = node
        self._sender = sender
        self._on_received = on_received
        self._running: dict[Key, asyncio.Task[None]] = {}

    # -- offers ------------------------------------------------------------------------------------------

    async def offered(self, data: Any, peer: str) -> dict[str, Any]:
        """Check an offer, start on it, and say what is known of the subtree.

        Args:
            data: ``{"slip": ...}`` as it came.
            peer: The sender's name, from its certificate.

        Raises:
            TrustError: No root, a forged or expired slip, or one for another node.
        """
        slip = RoutingSlip.decode(data.get("slip") if isinstance(data, dict) else None)
        for name in (slip.header.distributor, slip.header.distribution):
            check_name(name)
        check_stamp(slip.header.revision)
        await self._node.run(self._check, slip, peer)
        return await self.accept(slip)

    def _check(self, slip: RoutingSlip, peer: str) -> None:
        view = self._node.view(slip.header.distributor)
        try:
            slip.check(me=self._node.name, sender=peer, now=datetime.now(UTC), verify=view.verify_slip_signature)
        except (SlipError, MissingContentError):
            # nothing of this Distributor is here yet, or its keys were rotated: ask the sender; the root judges
            if slip.sender is None or slip.sender.name != peer:
                raise
            source = self._source(slip)
            with self._node.catalog_locks[slip.header.distributor]:
                view = self._node.view(slip.header.distributor, source.metadata)
                view.refresh()
            slip.check(me=self._node.name, sender=peer, now=datetime.now(UTC), verify=view.verify_slip_signature)

    async def accept(self, slip: RoutingSlip) -> dict[str, Any]:
        """Start on a checked slip; return ``{"states": [...]}`` of the subtree as far as known."""
        header = slip.header
        key = (header.distributor, header.distribution, header.revision)
        names = {"distributor": key[0], "distribution": key[1]}
        await self._node.run(self._node.journal.put_offer, slip.encode(), revision=key[2], **names)
        if await self._node.run(self._node.working.is_received, *key):
            await self._node.run(self._acknowledge, key)
            forwarded = self._sender.forward(slip)
            if forwarded:
                await asyncio.wait(forwarded, timeout=ANSWER_WITHIN_S)
            await self._node.run(self._node.journal.close_offer, *key, "done")
            await self._on_received(slip)
        else:
            self._start(key, slip)
        return {"states": await self._node.run(self._subtree_states, slip)}

    def _acknowledge(self, key: Key) -> None:
        """Make sure the journal says that this node holds the revision (a kill, or a lost journal)."""
        known = self._own_row(key)
        if known is None or known.state in {State.PENDING, State.RECEIVING, State.UNKNOWN} or (
            known.revision != key[2] and known.state is not State.ROLLED_BACK
        ):
            self._node.journal.report(*key, State.RECEIVED, had=True)

    def _own_row(self, key: Key) -> NodeState | None:
        rows = self._node.journal.states(node=self._node.name, distributor=key[0], distribution=key[1])
        return rows[0] if rows else None

    def _subtree_states(self, slip: RoutingSlip) -> list[dict[str, Any]]:
        """Return what is known of every node of the slip, of the slip's revision only."""
        header = slip.header
        key = (header.distributor, header.distribution, header.revision)
        names = {hop.name for hop in slip.hop.walk()} - {self._node.name}
        rows = self._node.journal.states(distributor=key[0], distribution=key[1])
        known = [row for row in rows if row.node in names and row.revision == key[2]]
        own = self._own_row(key)
        if own is not None and self._node.working.is_received(*key):
            # the revision is here, whatever was done with it since: extracted, failed, rolled back
            state = own.state if own.revision == key[2] and own.state in HOLDS else State.RECEIVED
            own = replace(own, revision=key[2], state=state, error=None, had=True)
        return [row.to_dict() for row in ([own] if own is not None else []) + known]

    async def resume(self) -> None:
        """Go on with every offer that a former life of this agent left open."""
        for offer in await self._node.run(self._node.journal.offers, status="open", child=""):
            try:
                await self.accept(RoutingSlip.decode(offer["slip"]))
            except TedError as error:
                log.warning("offer of %s %s is dropped: %s", offer["distributor"], offer["distribution"], error)

    # -- fetching ----------------------------------------------------------------------------------------

    def _start(self, key: Key, slip: RoutingSlip) -> None:
        running = self._running.get(key)
        if running is None or running.done():
            self._running[key] = asyncio.create_task(self._receive(key, slip), name=f"receive {key}")
        else:
            # the same revision by another channel: what is coming in serves those targets as well
            self._sender.forward_later(slip, running)

    async def _receive(self, key: Key, slip: RoutingSlip) -> None:
        transfer = _Transfer(self._node, key, slip, self._source(slip), self._sender)
        delay_s = FIRST_RETRY_S
        try:
            while True:
                try:
                    await transfer.attempt()
                    break
                except (TransferError, RepositoryError) as error:
                    if isinstance(error, NoSpaceError) or transfer.stalled_for_s() > self._node.config.retry_for:
                        raise
                    if transfer.take_progress():
                        delay_s = FIRST_RETRY_S
                    log.info("%s: %s; again in %.1f s", "/".join(key), error, delay_s)
                    await self._node.run(self._note_retry, key, error)
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, self._node.config.retry_interval)
        except TedError as error:
            await self._failed(key, error)
            transfer.end(error)
        else:
            transfer.end(MissingContentError("the transfer ended"))
            await self._received(key, transfer)
        finally:
            self._running.pop(key, None)

    def _note_retry(self, key: Key, error: TedError) -> None:
        kind = "corrupt" if isinstance(error, RepositoryError) else "retry"
        self._node.journal.note(kind, str(error), distributor=key[0], distribution=key[1], revision=key[2])

    async def _failed(self, key: Key, error: TedError) -> None:
        log.warning("%s: %s", "/".join(key), error)
        text = error.message + (f" ({error.hint})" if error.hint else "")
        await self._node.run(self._node.journal.report, *key, State.FAILED, error=text)
        await self._node.run(self._node.journal.close_offer, *key, "failed")

    async def _received(self, key: Key, transfer: _Transfer) -> None:
        total = transfer.bytes_done
        await self._node.run(self._node.journal.report, *key, State.RECEIVED, bytes_done=total, bytes_total=total)
        await self._node.run(self._node.journal.close_offer, *key, "done")
        await self._node.run(self._prune, key, transfer.record)
        await self._on_received(transfer.slip)

    def _prune(self, key: Key, record: RevisionRecord | None) -> None:
        if record is None:
            return
        busy = {revision for (owner, name, revision) in self._running if (owner, name) == key[:2]}
        most = record.settings.get("max_revisions")
        removal = retention.plan(self._node.working, *key[:2], max_revisions=most, in_use=busy)
        retention.apply(self._node.working, *key[:2], removal)

    def _source(self, slip: RoutingSlip) -> Source:
        above = slip.sender
        if above is None:
            raise SlipError("a routing slip without a sender")
        return Source(self._node.pool, Peer(above.name, above.address, above.port), slip.header.distributor)


class _Transfer:
    """One revision on its way to this node, over as many attempts as it takes."""

    def __init__(self, node: Node, key: Key, slip: RoutingSlip, source: Source, sender: Sender) -> None:
        self.slip = slip
        self.record: RevisionRecord | None = None
        self.bytes_done = 0
        self.bytes_total = 0
        self._node, self._key, self._source, self._sender = node, key, source, sender
        self._incoming: dict[str, Incoming] = {}
        self._open = ExitStack()
        self._forwarded = False
        self._progress_at_s = time.monotonic()
        self._progressed = False
        self._told_at_s = 0.0
        self._ended = False

    def stalled_for_s(self) -> float:
        """Return how long nothing has come."""
        return time.monotonic() - self._progress_at_s

    def take_progress(self) -> bool:
        """Return whether anything came since this was last asked."""
        progressed, self._progressed = self._progressed, False
        return progressed

    async def attempt(self) -> None:
        """Bring the revision here, from where the last attempt stopped."""
        run, loop = self._node.run, asyncio.get_running_loop()
        record = self.record = await run(self._fetch_record)
        packs = await run(self._prepare, record, loop)
        if not self._forwarded:
            self._forwarded = True
            self._sender.forward(self.slip)
        for ref, incoming in packs:
            await run(self._fetch_pack, ref, incoming)
        await run(self._complete)

    def end(self, error: Exception) -> None:
        """Wake those who wait for blocks, and close the packs."""
        self._ended = True
        for name, incoming in self._incoming.items():
            self._node.packs.withdraw((*self._key[:2], name))
            incoming.stop(error)
        self._open.close()

    def _fetch_record(self) -> RevisionRecord:
        distributor, distribution, revision = self._key
        with self._node.catalog_locks[distributor]:
            view = self._node.view(distributor, self._source.metadata)
            known = view.timestamp_version  # 0: nothing received yet
            if known < self.slip.header.catalog_version or revision not in view.revisions(distribution):
                view.refresh()
            data = view.record(distribution, revision)
        record = RevisionRecord.from_bytes(data)
        if (record.distributor, record.distribution, record.revision) != self._key:
            raise TrustError(f"the record signed as {'/'.join(self._key)} speaks of another revision")
        directory = self._node.working.revision(*self._key)
        directory.mkdir(parents=True, exist_ok=True)
        if read_bounded(directory / "REVISION.TED", MAX_RECORD_BYTES) != data:
            replace_file(directory / "REVISION.TED", data)
        return record

    def _prepare(self, record: RevisionRecord, loop: asyncio.AbstractEventLoop) -> list[tuple[PackRef, Incoming]]:
        packs = []
        for ref in record.packs:
            if ref.revision not in self._incoming:
                directory = self._node.working.revision(*self._key[:2], ref.revision)
                pack = prepare_pack(self._source, record.distribution, ref, directory)
                self._open.callback(pack.close)
                incoming = self._incoming[ref.revision] = Incoming(pack, loop)
                self._node.packs.announce((*self._key[:2], ref.revision), incoming)
            packs.append((ref, self._incoming[ref.revision]))
        missing_bytes = sum(runs_bytes(ref, incoming.pack.missing()) for ref, incoming in packs)
        self.bytes_total = self.bytes_done + missing_bytes
        check_space(self._node.working.path, missing_bytes, self._node.config.min_free)
        self._tell(force=True)
        return packs

    def _fetch_pack(self, ref: PackRef, incoming: Incoming) -> None:
        def came(size_bytes: int) -> None:
            self.bytes_done += size_bytes
            self._progressed, self._progress_at_s = True, time.monotonic()
            incoming.advanced()
            self._tell()

        fetch_blocks(self._source, self._key[1], ref, incoming.pack, on_block=came, cancelled=lambda: self._ended)
        if incoming.pack.missing():
            raise TransferError(f"{self._source.peer} did not send all of pack {ref.revision}")

    def _tell(self, *, force: bool = False) -> None:
        now_s = time.monotonic()
        if force or now_s - self._told_at_s >= PROGRESS_EVERY_S:
            self._told_at_s = now_s
            self._node.journal.report(
                *self._key, State.RECEIVING, bytes_done=self.bytes_done, bytes_total=self.bytes_total
            )

    def _complete(self) -> None:
        for incoming in self._incoming.values():
            incoming.pack.flush()
        self._node.working.mark_received(*self._key)

