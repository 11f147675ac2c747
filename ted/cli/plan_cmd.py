"""``ted plan``: bytes and time per line and per leaf, before anything is sent."""

from __future__ import annotations

from typing import Any

import click

from ted.agent.plan import PlannedSend, plan_bytes, plan_sends
from ted.agent.records import open_journal
from ted.cli.common import topology_of
from ted.cli.main import Settings, emit, tabulated
from ted.cli.progress import human_bytes
from ted.config import NodeConfig
from ted.topology.model import Topology


@click.command("plan")
@click.argument("names", nargs=-1, metavar="[DISTRIBUTION]...")
@click.option("--channel", help="Only this channel.")
@click.pass_obj
def command(settings: Settings, names: tuple[str, ...], channel: str | None) -> None:
    """Show what each line would carry and when each node would have it, at the rates of the inventory.

    A node without a rate is reckoned as unlimited. Since every node forwards while it receives, a leaf ends with
    the slowest line above it.
    """
    config = NodeConfig.load(settings.config)
    topology = topology_of(settings)
    journal = open_journal(config)
    try:
        sends = plan_sends(topology, config.working, config.node, names=names, channel=channel)
        rows = [row for plan in sends for row in _rows(plan, plan_bytes(plan, journal, config.working), topology)]
    finally:
        journal.close()
    shown = [
        [row["distribution"], row["channel"], row["sender"], row["receiver"], human_bytes(row["bytes"]),
         "-" if row["time_s"] is None else f"{row['time_s']:.1f}"] for row in rows
    ]  # fmt: skip
    headers = ["distribution", "channel", "from", "to", "bytes", "seconds"]
    emit(settings, {"lines": rows, "bytes": sum(row["bytes"] for row in rows)}, tabulated(shown, headers=headers))


def _rows(plan: PlannedSend, line_bytes: dict[str, int], topology: Topology) -> list[dict[str, Any]]:
    time_s: dict[str, float] = {plan.tree.name: 0.0}
    rows = []
    children = {hop.name: len(hop.children) for hop in plan.tree.walk()}
    for sender, receiver in plan.tree.edges():
        rate = _rate(topology, plan.priority, sender, receiver, children[sender])
        own_s = 0.0 if rate is None else line_bytes[receiver] / rate
        time_s[receiver] = max(time_s[sender], own_s)
        rows.append({
            "distribution": plan.distribution, "channel": plan.channel, "sender": sender, "receiver": receiver,
            "bytes": line_bytes[receiver], "rate_bytes_s": rate,
            "time_s": None if rate is None and time_s[receiver] == 0 else round(time_s[receiver], 3),
        })  # fmt: skip
    return rows


def _rate(topology: Topology, priority: str, sender: str, receiver: str, siblings: int) -> float | None:
    """Return bytes per second of one line: the sender's limit shared by its receivers, and the receiver's own."""
    out = getattr(topology.node(sender).output_rates, priority)
    limits = [out / siblings] if out is not None else []
    into = topology.node(receiver).input_rate_bytes_s
    limits += [float(into)] if into is not None else []
    return min(limits) if limits else None
