"""``ted status``: who has what."""

from __future__ import annotations

from collections.abc import Callable

import click

from ted.agent.overview import known_states
from ted.agent.records import open_journal
from ted.cli.common import refuse_unknown, topology_if_any
from ted.cli.main import Settings, emit, tabulated
from ted.config import NodeConfig
from ted.errors import UsageError
from ted.records.states import NodeState, said


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
    distributions, nodes = {row.distribution for row in rows}, {row.node for row in rows}
    for name in sorted(nodes.intersection(names) - distributions):
        raise UsageError(f"{name} is a node and no distribution", hint=f"`ted status --node {name}`")
    refuse_unknown("distribution", names, distributions)
    refuse_unknown("node", [node] if node else [], nodes)
    refuse_unknown("Distributor", [distributor] if distributor else [], {row.distributor for row in rows})
    emit(settings, [row.public() for row in wanted], table(wanted))


def table(rows: list[NodeState]) -> str:
    """Return the rows as a table that fits a terminal; what went wrong stands below it, whole."""
    if not rows:
        return "nothing was received or sent yet"
    several = len({row.distributor for row in rows}) > 1
    columns: dict[str, Callable[[NodeState], str]] = {
        "node": lambda row: row.node,
        "distribution": lambda row: row.distribution,
        **({"distributor": lambda row: row.distributor} if several else {}),
        "revision": lambda row: row.revision or "-",
        "state": lambda row: said(row.state, row.revision),
        "installed": lambda row: "yes" if row.revision and row.installed == row.revision else row.installed or "-",
        "at (UTC)": lambda row: row.at[:16].replace("T", " "),
    }
    shown = tabulated([[show(row) for show in columns.values()] for row in rows], headers=list(columns))
    return "\n\n".join([shown, *(f"{row.node}, {row.distribution}: {row.error}" for row in rows if row.error)])
