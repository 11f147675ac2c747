"""``ted status``: who has what."""

from __future__ import annotations

import click

from ted.agent.overview import known_states
from ted.agent.records import open_journal
from ted.cli.common import refuse_unknown, topology_if_any
from ted.cli.main import Settings, emit, tabulated
from ted.config import NodeConfig
from ted.records.states import NodeState, said

SHORT = 60


@click.command("status")
@click.argument("names", nargs=-1, metavar="[DISTRIBUTION]...")
@click.option("--node", "node", help="Only this node.")
@click.option("--distributor", help="Only distributions of this Distributor.")
@click.pass_obj
def command(settings: Settings, names: tuple[str, ...], node: str | None, distributor: str | None) -> None:
    """Show what is where: on a Distributor of every subscriber, elsewhere of this node and those behind it.

    A row says what became of the newest revision on its way, and which revision is installed: in service now.
    """
    config = NodeConfig.load(settings.config)
    journal = open_journal(config)
    try:
        topology = topology_if_any(settings) if config.distributor else None
        rows = known_states(journal, topology, config.node if config.distributor else None)
    finally:
        journal.close()
    wanted = [
        row for row in rows
        if (not names or row.distribution in names) and node in {None, row.node}
        and distributor in {None, row.distributor}
    ]  # fmt: skip
    refuse_unknown("distribution", names, {row.distribution for row in rows})
    refuse_unknown("node", [node] if node else [], {row.node for row in rows})
    refuse_unknown("Distributor", [distributor] if distributor else [], {row.distributor for row in rows})
    emit(settings, [row.public() for row in wanted], table(wanted))


def table(rows: list[NodeState]) -> str:
    """Return the rows as a table that fits."""
    if not rows:
        return "nothing was received or sent yet"
    shown = tabulated(
        [[row.node, row.distribution, row.distributor, row.revision or "-", said(row.state, row.revision),
          row.installed or "-", row.at[:19], _short(row.error)] for row in rows],
        headers=["node", "distribution", "distributor", "revision", "state", "installed", "at (UTC)", "error"],
    )  # fmt: skip
    cut = [f"{row.node}, {row.distribution}: {row.error}" for row in rows if row.error and len(row.error) > SHORT]
    return "\n\n".join([shown, *cut])


def _short(text: str | None) -> str:
    return "" if text is None else text if len(text) <= SHORT else text[: SHORT - 1] + "…"
