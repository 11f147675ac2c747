"""Who has what: the journal's states, completed by what the topology says should be."""

from __future__ import annotations

from ted.records.journal import Journal
from ted.records.states import NodeState, State, now_text
from ted.topology.model import Topology
from ted.topology.routing import slips


def known_states(journal: Journal, topology: Topology | None, distributor: str | None) -> list[NodeState]:
    """Return one row for each (node, distribution).

    On a Distributor every target of its active distributions has a row: ``unknown`` where nothing was ever heard.
    """
    rows = journal.states()
    if topology is None or distributor is None:
        return rows
    known = {(row.node, row.distributor, row.distribution) for row in rows}
    wanted = {
        (target, distributor, name)
        for routes in slips(topology, distributor=distributor)
        for name in routes.distributions
        for target in routes.paths
        if target != distributor
    }
    unheard = [NodeState(*key, None, State.UNKNOWN, now_text()) for key in sorted(wanted - known)]
    return sorted(rows + unheard, key=lambda row: (row.distributor, row.distribution, row.node))
