"""``ted tree``: the tiers, with the state of each node."""

from __future__ import annotations

from typing import Any

import click

from ted.agent.records import open_journal
from ted.cli.common import refuse_unknown, topology_of
from ted.cli.main import Settings, emit
from ted.config import NodeConfig
from ted.records.states import NodeState, said
from ted.topology.routing import RouteTree, slip_tree, slips

MARKS = {"extracted": "✔", "received": "●", "failed": "✘", "receiving": "…", "rolled_back": "↶", "skipped": "–"}


@click.command("tree")
@click.argument("names", nargs=-1, metavar="[DISTRIBUTION]...")
@click.option("--channel", help="Only this channel.")
@click.pass_obj
def command(settings: Settings, names: tuple[str, ...], channel: str | None) -> None:
    """Show the tiers below this Distributor, and what each node has of each DISTRIBUTION (default: of all).

    Where another revision is installed (in service) than the one that the state speaks of, it is named too.
    """
    config = NodeConfig.load(settings.config)
    topology = topology_of(settings)
    journal = open_journal(config)
    try:
        states = {(row.distribution, row.node): row for row in journal.states(distributor=config.node)}
    finally:
        journal.close()
    refuse_unknown("distribution", names, topology.distributor(config.node).distributions)
    trees: list[dict[str, Any]] = [
        {"distributor": config.node, "channel": routes.channel, "distribution": name,
         "tree": _node(slip_tree(routes), name, states)}
        for routes in slips(topology, distributor=config.node, channel=channel)
        for name in routes.distributions if not names or name in names
    ]  # fmt: skip
    text = "\n\n".join(
        "\n".join([f"{tree['distribution']}  (channel {tree['channel']})", *lines(tree["tree"])]) for tree in trees
    )
    emit(settings, trees, text or "no active distribution is on an active channel")


def _node(tree: RouteTree, name: str, states: dict[tuple[str, str], NodeState]) -> dict[str, Any]:
    row = states.get((name, tree.name))
    return {
        "node": tree.name,
        "target": tree.target,
        "revision": row.revision if row else None,
        "state": str(row.state) if row else "unknown",
        "installed": row.installed if row else None,
        "children": [_node(child, name, states) for child in tree.children],
    }


def lines(tree: dict[str, Any], head: str = "", tail: str = "") -> list[str]:
    """Return the tree as lines with box characters."""
    relay = "" if tree["target"] or (not head and not tail) else "  (relay)"
    state = f"  {MARKS.get(tree['state'], '○')} {_state(tree)}" if head or tail else ""
    other = tree["installed"] and tree["installed"] != tree["revision"] and (head or tail)
    installed = f"  (installed: {tree['installed']})" if other else ""
    result = [f"{head}{tree['node']}{state}{installed}{relay}".rstrip()]
    children = tree["children"]
    for child in children:
        last = child is children[-1]
        below = lines(child, tail + ("└── " if last else "├── "), tail + ("    " if last else "│   "))
        result += below
    return result


def _state(tree: dict[str, Any]) -> str:
    words = said(tree["state"], tree["revision"])
    return f"{words}{' ' if words != tree['state'] else '  '}{tree['revision'] or ''}"
