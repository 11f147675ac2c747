"""A Distributor's own part: signing slips, starting sends, keeping the catalog fresh."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path

from ted.agent.node import Node
from ted.agent.plan import PlannedSend, known_to_have, plan_sends, refuse_strangers, who_went_back
from ted.agent.sender import Sender
from ted.errors import ConfigError, TedError, UsageError
from ted.records.states import NodeState, State, now_text
from ted.topology.inventory import load_inventory
from ted.transfer.slip import RoutingSlip, slip_header
from ted.trust.catalog import Catalog
from ted.trust.signing import SlipSigner

log = logging.getLogger("ted.distributor")

WATCH_EVERY_S = 15.0


class Distributor:
    """Starts sends on the node that owns the distributions."""

    def __init__(self, node: Node, sender: Sender) -> None:
        self._node = node
        self._sender = sender

    async def send(
        self, *, names: Collection[str], channel: str | None, limit: Collection[str] | None,
        revision: str | None, inventory: Path | None, ends_at: datetime | None = None,
    ) -> list[str]:  # fmt: skip
        """Start sends; return their ids. What is known of the deliveries is in the journal from now on.

        ``ends_at`` (aware UTC) is the end of their window: what is not received by then waits for the next send.
        """
        if ends_at is not None and ends_at <= datetime.now(UTC):
            raise UsageError(f"the window of the send is over since {ends_at:%Y-%m-%d %H:%M:%S} UTC",
                             hint="name a time to come")  # fmt: skip
        plans = await self._node.run(
            self._plan, names=names, channel=channel, limit=limit, revision=revision, inventory=inventory
        )
        return [await self._start(plan, ends_at) for plan in plans]

    def _plan(
        self, *, names: Collection[str], channel: str | None, limit: Collection[str] | None,
        revision: str | None, inventory: Path | None,
    ) -> list[PlannedSend]:  # fmt: skip
        if not self._node.config.distributor:
            raise ConfigError(f"{self._node.name} is no Distributor",
                              hint="only hosts of the group `distributors` send")  # fmt: skip
        topology = load_inventory(inventory or self._node.config.config_directory / "topology.json")
        if inventory is None:
            refuse_strangers(topology, self._node.name, limit)
        return plan_sends(topology, self._node.working, self._node.name,
                          names=names, channel=channel, limit=limit, revision=revision)  # fmt: skip

    async def _start(self, plan: PlannedSend, ends_at: datetime | None) -> str:
        slip = await self._node.run(self._sign, plan, ends_at)
        await self._sender.forward(slip)
        return slip.header.send

    def _sign(self, plan: PlannedSend, ends_at: datetime | None) -> RoutingSlip:
        """Sign the slip, and record the send before anybody hears of it."""
        journal, header_names = self._node.journal, (plan.distributor, plan.distribution, plan.record.revision)
        catalog = Catalog(self._node.working.catalog(self._node.name), self._node.config.keys_directory)
        header = slip_header(
            send=uuid.uuid4().hex[:12], distributor=plan.distributor, distribution=plan.distribution,
            revision=plan.record.revision, channel=plan.channel, priority=plan.priority,
            catalog_version=catalog.timestamp_version(), now=datetime.now(UTC), ends_at=ends_at,
        )  # fmt: skip
        signer = SlipSigner(self._node.config.keys_directory)
        slip = RoutingSlip.sign(header, plan.tree, signer.sign)
        senders = {receiver: sender for sender, receiver in plan.tree.edges()}
        hops = [(senders[hop.name], hop.name, hop.target) for hop in plan.tree.walk() if hop.name in senders]
        gone_back = who_went_back(plan, journal)
        pending = [
            NodeState(hop.name, *header_names, State.PENDING, now_text())
            for hop in plan.tree.walk() if hop.name in senders and hop.name not in gone_back
        ]  # fmt: skip
        having = known_to_have(plan, journal)  # before what is pending takes the place of it
        journal.learn(pending, forward=False)
        journal.supersede(*header_names, [receiver for _, receiver, _ in hops])
        # on record before the send is: a kill in between leaves offers that are made all the same
        journal.put_offers([(child.hop.name, child) for child in slip.for_children()])
        journal.start_send(
            header.send, distributor=plan.distributor, distribution=plan.distribution, channel=plan.channel,
            revision=plan.record.revision, tree=plan.tree.encode(), hops=hops, having=having,
        )  # fmt: skip
        return slip

    async def watch(self) -> None:
        """Give up sends of which nothing is heard any more, for ever."""
        silent_for_s = self._node.silent_for_s
        while True:
            try:
                await self._node.run(self._node.journal.give_up_silent, silent_for_s)
            except TedError as error:
                log.error("%s", error)
            await asyncio.sleep(min(WATCH_EVERY_S, silent_for_s / 4))

    def keep_fresh(self) -> None:
        """Sign the catalog's timestamp again when half of its life is over; for a worker thread."""
        directory = self._node.working.catalog(self._node.name)
        if (directory / "root.json").exists():
            Catalog(directory, self._node.config.keys_directory).refresh_timestamp()
