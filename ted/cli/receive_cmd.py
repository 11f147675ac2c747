"""``ted receive``: pull now what the parent has for this node."""

from __future__ import annotations

import time
from typing import Any

import click

from ted.agent.ask import call_agent
from ted.agent.records import open_journal
from ted.cli.main import Settings, emit
from ted.cli.progress import ProgressLines, human_bytes
from ted.config import NodeConfig
from ted.errors import IncompleteError
from ted.records.journal import Journal
from ted.records.states import NodeState, State

POLL_S = 0.2

Key = tuple[str, str, str]


@click.command("receive")
@click.argument("names", nargs=-1, metavar="[DISTRIBUTION]...")
@click.option("--check", is_flag=True, help="Say what this node lacks as far as it knows; fetch nothing.")
@click.option("--timeout", "timeout_s", type=float, default=3600.0, show_default=True, help="Seconds to wait.")
@click.pass_obj
def command(settings: Settings, names: tuple[str, ...], check: bool, timeout_s: float) -> None:
    """Ask this node's parent for the revisions it should have, and wait until they are here."""
    config = NodeConfig.load(settings.config)
    journal = open_journal(config)
    refused: list[dict[str, Any]] = []
    try:
        keys = _newest_offers(journal, names)
        held_before = {key for key in keys if config.working.is_received(*key)}
        if not check:
            asked_at_ns = time.time_ns()
            answer = call_agent(config.working.state, "receive", names=names)
            keys, refused = [(key[0], key[1], key[2]) for key in answer["offers"]], answer["refused"]
            _wait(config, journal, keys, asked_at_ns, timeout_s, ProgressLines(as_json=settings.as_json))
        states = {(row.distributor, row.distribution): row for row in journal.states(node=config.node)}
        rows = [_row(config, states.get(key[:2]), key, key not in held_before) for key in keys]
    finally:
        journal.close()
    data = {"changed": any(row["changed"] for row in rows), "distributions": rows, "refused": refused}
    missing = [row for row in rows if not row["held"] and not check]
    if missing or (refused and not rows):
        why = missing[0]["error"] or missing[0]["state"] if missing else refused[0]["message"]
        error = IncompleteError(f"{missing[0]['distribution'] if missing else 'nothing was taken'}: {why}")
        error.data = data
        raise error
    text = "\n".join(f"{row['distributor']} {row['distribution']} {row['revision']}: {_word(row)}" for row in rows)
    emit(settings, data, text or "the parent has nothing for this node")


def _word(row: dict[str, Any]) -> str:
    """Return the state in words: what is here and failed later did so when it was installed."""
    if row["held"] and row["state"] == State.FAILED:
        return f"received; what came after that failed: {row['error']}"
    return str(row["state"])


def _newest_offers(journal: Journal, names: tuple[str, ...]) -> list[Key]:
    newest: dict[tuple[str, str], Key] = {}
    for offer in journal.offers(child=""):
        key = (offer["distributor"], offer["distribution"], offer["revision"])
        if not names or key[1] in names:
            newest.setdefault(key[:2], key)
    return list(newest.values())


def _wait(
    config: NodeConfig, journal: Journal, keys: list[Key], asked_at_ns: int, timeout_s: float, lines: ProgressLines
) -> None:
    """Wait until each revision is here, or has failed since it was asked for."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        failed = {(row.distributor, row.distribution, row.revision) for row in journal.states(node=config.node)
                  if row.state == State.FAILED and row.seq >= asked_at_ns}  # fmt: skip
        if all(config.working.is_received(*key) or key in failed for key in keys):
            return
        if time.monotonic() > deadline_s:
            raise IncompleteError(f"not all is here after {timeout_s:g} s", hint="`ted status` shows how far it is")
        if lines.due():
            lines.say("\n".join(
                f"{row.distribution}: {human_bytes(row.bytes_done)} of {human_bytes(row.bytes_total)}"
                for row in journal.states(node=config.node)
                if (row.distributor, row.distribution, row.revision) in keys and row.state == State.RECEIVING
            ) or "waiting for the parent")  # fmt: skip
        time.sleep(POLL_S)


def _row(config: NodeConfig, row: NodeState | None, key: Key, changed: bool) -> dict[str, Any]:
    held = config.working.is_received(*key)
    known = row is not None and row.revision == key[2]
    return {
        "distributor": key[0], "distribution": key[1], "revision": key[2], "changed": changed, "held": held,
        "state": str(row.state) if row is not None and known else "received" if held else "unknown",
        "error": row.error if row is not None and known else None,
    }  # fmt: skip
