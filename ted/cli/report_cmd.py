"""``ted report``: what happened, from this node's records."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import click

from ted.agent.records import open_journal
from ted.cli.common import topology_if_any
from ted.cli.main import Settings, emit, tabulated, wrapped
from ted.cli.progress import human_bytes
from ted.config import NodeConfig
from ted.errors import RepositoryError, TedError, UnknownNameError
from ted.records.journal import Journal
from ted.records.sends import send_result
from ted.records.states import HOLDS, NodeState, State

ROWS = 50
EMPTY = {
    "events": "nothing happened here yet",
    "sends": "nothing was sent from here yet",
    "failures": "nothing is failed now; what failed and went well since is in `ted report events`",
    "revisions": "no revision is kept here: `ted build` makes one on a Distributor, `ted receive` fetches elsewhere",
}
"""What a report says that has no rows."""

BELOW = {"events": ("message",), "sends": ("send", "receivers", "done", "duration_s")}
"""What stands below each row, so that the table fits a terminal."""

HEADERS = {
    "at": "at (UTC)", "kind": "what", "without": "without it",
    "content_bytes": "content", "pack_bytes": "its pack", "bytes": "all links",
}  # fmt: skip
"""Keys of rows that are no words for people, and the words; the others are."""

Broken = tuple[str, str, str, TedError]
"""A revision whose record cannot be read: Distributor, distribution, stamp and why."""


@click.command("report")
@click.argument("name", type=click.Choice(["events", "sends", "failures", "revisions"]))
@click.option("--last", type=click.IntRange(1), help="Rows at most; default: 50, and all revisions.")
@click.pass_obj
def command(settings: Settings, name: str, last: int | None) -> None:
    """Show a report from this node's records, newest first.

    \b
    events     what happened here, and what other nodes told
    sends      what was sent from here: how many receivers, and how many are still without it
    failures   what is failed now: for each node and distribution whose last word is a failure, why; failed builds
               too. What went well since is not in it; `ted report events` has what was
    revisions  which revisions are kept here
    """  # noqa: D301
    config = NodeConfig.load(settings.config)
    broken: list[Broken] = []
    journal = open_journal(config)
    try:
        if name == "revisions":
            rows, broken = _revisions(config)
            rows = rows[:last]
        else:
            rows = _rows(journal, name, last or ROWS, _owned(settings, config))
    finally:
        journal.close()
    for row in broken:
        click.echo(_warning(row), err=True)
    text = _failures(rows) if rows and name == "failures" else _table(name, rows) if rows else EMPTY[name]
    if broken and not rows:
        text = "of no revision that is kept here can the record be read"
    emit(settings, rows, text)


def _table(name: str, rows: list[dict[str, Any]]) -> str:
    """Return the rows as a table that fits a terminal; what is long, or seldom asked for, stands below each row."""
    several = len({row["distributor"] for row in rows if row.get("distributor")}) > 1
    keys = [key for key in rows[0] if key not in BELOW.get(name, ()) and (key != "distributor" or several)]
    cells = [[_cell(key, row[key]) for key in keys] for row in rows]
    headers = [HEADERS.get(key, key) for key in keys]
    return tabulated(cells, headers, [_below(name, row) for row in rows])


def _below(name: str, row: dict[str, Any]) -> list[str]:
    said = ""
    if name == "events":
        said = " ".join(str(row["message"] or "").split())
    elif name == "sends":
        nodes = f"{row['receivers']} receiver{'' if row['receivers'] == 1 else 's'}"
        ended = f"ended after {row['duration_s']:g} s" if row["done"] else "under way"
        said = f"send {row['send']} to {nodes}, {ended}"
    return wrapped(said)


def _cell(key: str, value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key == "bytes" or key.endswith("_bytes"):
        return human_bytes(value)
    return value[:19] if key == "at" else value


def _failures(rows: list[dict[str, Any]]) -> str:
    """Return a table of what is failed now, and below it why: once for all that failed alike."""
    headers = ["node", "distribution", "distributor", "revision that failed", "since (UTC)"]
    table = tabulated(
        [[row["node"], row["distribution"], row["distributor"], row["revision"] or "-", row["at"][:19]]
         for row in rows], headers=headers,
    )  # fmt: skip
    causes: dict[str, list[str]] = {}
    for row in rows:
        causes.setdefault(row["error"] or "no cause was told", []).append(f"{row['node']} ({row['distribution']})")
    return "\n".join([table, "", *[f"{', '.join(who)}: {why}" for why, who in causes.items()]])


def _owned(settings: Settings, config: NodeConfig) -> Collection[str] | None:
    """Return the distributions of this Distributor, ``None`` where they are not known."""
    topology = topology_if_any(settings) if config.distributor else None
    if topology is None or config.node not in topology.distributors:
        return None
    return topology.distributor(config.node).distributions.keys()


def _rows(journal: Journal, name: str, last: int, owned: Collection[str] | None) -> list[dict[str, Any]]:
    if name == "events":
        return [{key: row[key] for key in ("at", "kind", "node", "distributor", "distribution", "revision", "message")}
                for row in journal.events(last)]  # fmt: skip
    if name == "failures":
        failed = [row.public() for row in journal.states() if row.state == State.FAILED]
        failed += [
            NodeState(journal.node, row["distributor"], row["distribution"], None, State.FAILED, row["at"],
                      f"build: {row['message']}").public()
            for row in journal.failed_builds()
        ]  # fmt: skip
        if owned is not None:  # what is no distribution of this Distributor any more has nothing left to mend
            failed = [row for row in failed if row["distributor"] != journal.node or row["distribution"] in owned]
        return sorted(failed, key=lambda row: str(row["at"]), reverse=True)[:last]
    rows = []
    for head in journal.sends()[:last]:
        send = journal.send(head["send"])
        if send is not None:
            result = send_result(send)
            without = set(result["incomplete"])
            if without:
                without -= _holders(journal, send)
            rows.append({"at": head["started_at"]}
                        | {key: result[key] for key in ("send", "distribution", "channel", "revision", "done", "bytes",
                                                        "duration_s")}
                        | {"receivers": len(result["states"]), "without": len(without)})  # fmt: skip
    return rows


def _holders(journal: Journal, send: dict[str, Any]) -> set[str]:
    """Return the nodes known to have what was sent, by this send or otherwise."""
    what, revision = (send["distributor"], send["distribution"]), send["revision"]
    known = journal.states(distributor=what[0], distribution=what[1])
    return journal.brought(*what, revision) | {
        row.node for row in known
        if row.installed == revision or (row.revision == revision and row.state in HOLDS)
    }  # fmt: skip


def _revisions(config: NodeConfig) -> tuple[list[dict[str, Any]], list[Broken]]:
    """Return the revisions that are kept here, newest first, and those whose record cannot be read."""
    rows: list[dict[str, Any]] = []
    broken: list[Broken] = []
    for distributor, distribution in config.working.distributions():
        for stamp in config.working.revisions(distributor, distribution):
            try:
                record = config.working.record(distributor, distribution, stamp)
            except (RepositoryError, UnknownNameError) as error:
                broken.append((distributor, distribution, stamp, error))
                continue
            rows.append({
                "distributor": distributor, "distribution": distribution, "revision": stamp, "type": record.type,
                "files": record.files, "content_bytes": record.content_bytes, "pack_bytes": record.packs[0].bytes,
            })  # fmt: skip
    return sorted(rows, key=lambda row: str(row["revision"]), reverse=True), broken


def _warning(broken: Broken) -> str:
    distributor, distribution, stamp, error = broken
    hint = f"\n     {error.hint}" if error.hint else ""
    return f"ted: warning: {distribution} {stamp} of {distributor}: {error.message}{hint}"
