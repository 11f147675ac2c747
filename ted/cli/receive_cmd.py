"""``ted receive``: pull now what the parent has for this node."""

from __future__ import annotations

import time
from typing import Any

import click

from ted.agent.control import call_agent
from ted.agent.records import open_journal
from ted.cli.main import Settings, emit
from ted.config import NodeConfig
from ted.errors import IncompleteError
from ted.records.states import FINAL

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
    try:
        offers = [
            (offer["distributor"], offer["distribution"], offer["revision"])
            for offer in journal.offers(child="") if not names or offer["distribution"] in names
        ]  # fmt: skip
        held_before = {key for key in offers if config.working.is_received(*key)}
        if not check:
            answer = call_agent(config.working.state, "receive", names=names)
            offers = [(key[0], key[1], key[2]) for key in answer["offers"]]
            _wait(config, offers, timeout_s)
        rows = [_row(journal.states(node=config.node), key, key not in held_before) for key in offers]
    finally:
        journal.close()
    data = {"changed": any(row["changed"] for row in rows), "distributions": rows}
    failed = [row for row in rows if row["state"] == "failed" and not check]
    if failed:
        error = IncompleteError(f"{failed[0]['distribution']}: {failed[0]['error']}")
        error.data = data
        raise error
    text = "\n".join(f"{row['distributor']} {row['distribution']} {row['revision']}: {row['state']}" for row in rows)
    emit(settings, data, text or "the parent has nothing for this node")


def _wait(config: NodeConfig, keys: list[Key], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    journal = open_journal(config)
    try:
        while time.monotonic() < deadline_s:
            states = {(row.distributor, row.distribution): row for row in journal.states(node=config.node)}
            if all(
                config.working.is_received(*key) or (key[:2] in states and states[key[:2]].state in FINAL)
                for key in keys
            ):  # fmt: skip
                return
            time.sleep(POLL_S)
    finally:
        journal.close()
    raise IncompleteError(f"not all is here after {timeout_s:g} s", hint="`ted status` shows how far it is")


def _row(states: list[Any], key: Key, changed: bool) -> dict[str, Any]:
    found = [row for row in states if (row.distributor, row.distribution) == key[:2]]
    return {
        "distributor": key[0], "distribution": key[1], "revision": key[2], "changed": changed,
        "state": str(found[0].state) if found else "unknown", "error": found[0].error if found else None,
    }  # fmt: skip
