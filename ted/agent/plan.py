"""What a send would do: who sends to whom, and how many bytes each line would carry.

Rules:
 * One send for each (channel, distribution); inactive ones are left out with a reason.
 * The revision sent is the newest in the signed catalog, unless one is named.
 * A line carries the live blocks of the packs that its receiver is not known to hold, or the patches that lead there
   from what it holds, where they are worth it. A receiver never heard of is reckoned as holding nothing.
 * What a node holds is the newest of what it last reported to hold, what is installed there, and what a send that is
   still remembered brought it: whoever was rolled back keeps what came.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from ted.agent.patching import chain_of_patches, is_worth_it
from ted.content.record import RevisionRecord
from ted.content.working import WorkingDirectory
from ted.errors import UnknownNameError
from ted.records.journal import Journal
from ted.records.states import HOLDS, NodeState, State
from ted.topology.model import Topology
from ted.topology.names import suggestion
from ted.topology.routing import RouteTree, slip_tree, slips
from ted.transfer.slip import Hop
from ted.trust.catalog import Catalog


@dataclass(frozen=True)
class PlannedSend:
    """One revision for one channel: the tree it goes down."""

    distributor: str
    distribution: str
    channel: str
    priority: str
    record: RevisionRecord
    tree: Hop
    warnings: tuple[str, ...] = ()


def plan_sends(
    topology: Topology, working: WorkingDirectory, distributor: str, *,
    names: Collection[str] = (), channel: str | None = None, limit: Collection[str] | None = None,
    revision: str | None = None,
) -> list[PlannedSend]:  # fmt: skip
    """Return the sends that these words ask for.

    Args:
        topology: Who is there.
        working: The Distributor's, where the built revisions lie.
        distributor: Who sends.
        names: Distributions; none means every active one on a channel.
        channel: Only this one; ``None`` means every channel.
        limit: Only these targets.
        revision: That one and not the newest; with one name only.

    Raises:
        UnknownNameError: No such distribution, channel or revision, or nothing was built yet.
    """
    settings = topology.distributor(distributor)
    for name in names:
        if name not in settings.distributions:
            raise UnknownNameError(f"{distributor} has no distribution {name!r}",
                                   hint=f"it has {', '.join(sorted(settings.distributions)) or 'none'}")  # fmt: skip
        if not settings.distributions[name].active:
            raise UnknownNameError(f"distribution {name!r} of {distributor} is not active",
                                   hint="set active: true in ted_distributions to send it")  # fmt: skip
    planned = []
    for routes in slips(topology, distributor=distributor, channel=channel, limit=limit):
        tree = _hops(slip_tree(routes), topology)
        for name in routes.distributions:
            if names and name not in names:
                continue
            record = _record(working, distributor, name, revision)
            priority = settings.distributions[name].priority
            warnings = tuple(str(warning) for warning in routes.warnings)
            planned.append(PlannedSend(distributor, name, routes.channel, priority, record, tree, warnings))
    return planned


def refuse_strangers(topology: Topology, distributor: str, limit: Collection[str] | None) -> None:
    """Return when the tree that is installed on a Distributor has every host of ``limit``.

    Raises:
        UnknownNameError: It lacks one, which the inventory of whoever asks may have.
    """
    for name in sorted(set(limit or ()) - topology.nodes.keys()):
        new = f"if it is new: `ansible-playbook playbooks/refresh.yml --limit {distributor}` (or install.yml)"
        near = suggestion(name, topology.nodes)
        raise UnknownNameError(f"the inventory installed on {distributor} does not know {name} (yet)",
                               hint=f"{new}; {near}" if near else new)  # fmt: skip


def plan_bytes(plan: PlannedSend, journal: Journal, working: WorkingDirectory) -> dict[str, int]:
    """Return for each receiver of the plan the bytes that its line would carry."""
    rows = journal.states(distributor=plan.distributor, distribution=plan.distribution)
    held = {row.node: row for row in rows}
    brought = journal.brought(plan.distributor, plan.distribution, plan.record.revision)
    least = min((_reported_revision(row) or "" for row in rows), default="")
    last_brought = journal.last_brought(plan.distributor, plan.distribution, after=least)
    bytes_from = cache(partial(_missing_bytes, plan.record, working=working))  # thousands hold one of a few
    return {
        receiver: 0 if receiver in brought else bytes_from(
            _held_revision(held.get(receiver), last_brought.get(receiver))
        )
        for _, receiver in plan.tree.edges()
    }


def plan_result(plan: PlannedSend, line_bytes: dict[str, int], journal: Journal) -> dict[str, Any]:
    """Return the shape of a send that was only looked at."""
    rows = journal.states(distributor=plan.distributor, distribution=plan.distribution)
    held = {row.node: row for row in rows}
    states = {}
    for _, receiver in plan.tree.edges():
        row = held.get(receiver)
        states[receiver] = str(row.state) if row and row.revision == plan.record.revision else "pending"
    holding = {name for name, row in held.items() if row.revision == plan.record.revision and row.state in HOLDS}
    return {
        "send": None,
        "distributor": plan.distributor,
        "distribution": plan.distribution,
        "channel": plan.channel,
        "revision": plan.record.revision,
        "changed": any(receiver not in holding for _, receiver in plan.tree.edges()),
        "bytes": sum(line_bytes.values()),
        "edges": [
            {"sender": sender, "receiver": receiver, "bytes": line_bytes[receiver]}
            for sender, receiver in plan.tree.edges()
        ],
        "states": states,
        "duration_s": 0.0,
    }


def known_to_have(plan: PlannedSend, journal: Journal) -> set[str]:
    """Return the receivers that are known to have the plan's revision: what counts while they do not answer.

    A target that only passed it on, as far as is known, has not got it for itself.
    """
    of = (plan.distributor, plan.distribution)
    as_targets = journal.brought(*of, plan.record.revision, as_targets=True)
    found = {row.node: row.state for row in journal.states(distributor=of[0], distribution=of[1])
             if row.revision == plan.record.revision and row.state in HOLDS}  # fmt: skip
    return {
        hop.name for hop in plan.tree.walk()
        if hop.name in found and (not hop.target or found[hop.name] != State.RECEIVED or hop.name in as_targets)
    }  # fmt: skip


def who_went_back(plan: PlannedSend, journal: Journal) -> set[str]:
    """Return the nodes that went back from the plan's revision: they keep what came, and wait for nothing."""
    of = (plan.distributor, plan.distribution)
    back = {row.node for row in journal.states(distributor=of[0], distribution=of[1])
            if row.state is State.ROLLED_BACK and row.revision != plan.record.revision}  # fmt: skip
    return back & journal.brought(*of, plan.record.revision)


def _held_revision(row: NodeState | None, last_brought: str | None) -> str | None:
    """Return the newest revision that a node is known to hold; nothing is known of one never heard of."""
    if row is None:
        return None
    return max((stamp for stamp in (_reported_revision(row), last_brought) if stamp is not None), default=None)


def _reported_revision(row: NodeState) -> str | None:
    """Return the newest revision that the node itself said to hold."""
    held = row.revision if row.state in HOLDS else None
    return max((stamp for stamp in (held, row.installed) if stamp is not None), default=None)


def _missing_bytes(record: RevisionRecord, before: str | None, *, working: WorkingDirectory) -> int:
    """Return the bytes that bring ``record`` to a node that holds the revision ``before`` (``None``: nothing)."""
    if before == record.revision:
        return 0
    held: set[str] = set()
    patches_bytes = 0
    if before is not None:
        with suppress(UnknownNameError):  # no longer kept here: reckoned as nothing
            former = working.record(record.distributor, record.distribution, before)
            held = {ref.revision for ref in former.packs}
        leads = partial(_catalog(working, record.distributor).patches, record.distribution)
        patches_bytes = sum(patch.bytes for _, _, patch in chain_of_patches(record.revision, [before], leads))
    packs_bytes = sum(ref.live_bytes for ref in record.packs if ref.revision not in held)
    return patches_bytes if patches_bytes and is_worth_it(patches_bytes, packs_bytes) else packs_bytes


def _record(working: WorkingDirectory, distributor: str, name: str, revision: str | None) -> RevisionRecord:
    published = _catalog(working, distributor).revisions(name)
    stamps = [stamp for stamp in published if working.is_received(distributor, name, stamp)]
    if not stamps:
        raise UnknownNameError(f"{name} of {distributor} was never built",
                               hint=f"run `ted build {name}` on {distributor}, or playbooks/build.yml")  # fmt: skip
    if revision is not None and revision not in stamps:
        raise UnknownNameError(f"{name} of {distributor} has no revision {revision}",
                               hint=f"kept are {', '.join(stamps)}")  # fmt: skip
    return working.record(distributor, name, revision or stamps[-1])


def _catalog(working: WorkingDirectory, distributor: str) -> Catalog:
    """Return the signed catalog, to be read: no key is needed for that."""
    return Catalog(working.catalog(distributor), working.state / "no-keys")


def _hops(tree: RouteTree, topology: Topology) -> Hop:
    node = topology.node(tree.name)
    below = tuple(_hops(child, topology) for child in tree.children)
    return Hop(node.name, node.address, node.port, tree.target, below)
