"""``ted report``: what happened, from this node's records."""

from __future__ import annotations

from typing import Any

import click

from ted.agent.records import open_journal
from ted.cli.main import Settings, emit, tabulated
from ted.config import NodeConfig
from ted.records.journal import Journal
from ted.records.sends import send_result


@click.command("report")
@click.argument("name", type=click.Choice(["events", "sends", "failures", "revisions"]))
@click.option("--last", type=int, default=50, show_default=True, help="Rows at most.")
@click.pass_obj
def command(settings: Settings, name: str, last: int) -> None:
    """Show a report: what happened (events), what was sent, what failed, or which revisions are kept here."""
    config = NodeConfig.load(settings.config)
    journal = open_journal(config)
    try:
        rows = _revisions(config) if name == "revisions" else _rows(journal, name, last)
    finally:
        journal.close()
    emit(settings, rows, tabulated(rows, headers="keys") if rows else "nothing is on record")


def _rows(journal: Journal, name: str, last: int) -> list[dict[str, Any]]:
    if name == "events":
        return [{key: row[key] for key in ("at", "kind", "node", "distributor", "distribution", "revision", "message")}
                for row in journal.events(last)]  # fmt: skip
    if name == "failures":
        return [row.public() for row in journal.states() if row.state == "failed"][:last]
    rows = []
    for head in journal.sends()[:last]:
        send = journal.send(head["send"])
        if send is not None:
            result = send_result(send)
            rows.append({key: result[key] for key in ("send", "distribution", "channel", "revision", "done", "bytes",
                                                      "duration_s")}
                        | {"receivers": len(result["states"]), "without": len(result["incomplete"])})  # fmt: skip
    return rows


def _revisions(config: NodeConfig) -> list[dict[str, Any]]:
    rows = []
    for distributor, distribution in config.working.distributions():
        for stamp in config.working.revisions(distributor, distribution):
            record = config.working.record(distributor, distribution, stamp)
            rows.append({
                "distributor": distributor, "distribution": distribution, "revision": stamp, "type": record.type,
                "files": record.files, "content_bytes": record.content_bytes, "pack_bytes": record.packs[0].bytes,
            })  # fmt: skip
    return rows
