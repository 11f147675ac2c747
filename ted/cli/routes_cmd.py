"""``ted routes``: who sends to whom, as a tree or as JSON."""

from __future__ import annotations

from collections.abc import Iterator

import click

from ted.cli.common import topology_of
from ted.cli.main import Settings, emit
from ted.topology.routing import ChannelRoutes, RouteTree, slip_tree, slips

TARGET, RELAY = "●", "○"
_LEGEND = f"{TARGET} receives it for itself   {RELAY} only passes it on"


@click.command("routes")
@click.option("--channel", help="Only this channel.")
@click.option("--distributor", help="Only this Distributor.")
@click.option("--limit", metavar="HOST,...", help="Only the routes to these hosts.")
@click.option("--depth", type=click.IntRange(min=1), metavar="N", help="Show N tiers, count what is below.")
@click.pass_obj
def command(
    settings: Settings, channel: str | None, distributor: str | None, limit: str | None, depth: int | None
) -> None:
    """Show the routing slips: for each Distributor and channel, who sends to whom.

    Nothing is sent. The JSON holds every tier whatever --depth says.
    """
    hosts = None if limit is None else {name.strip() for name in limit.split(",") if name.strip()}
    found = slips(topology_of(settings), distributor=distributor, channel=channel, limit=hosts)
    emit(settings, {"routes": [routes.to_dict() for routes in found]}, _text(found, depth))


def _text(found: list[ChannelRoutes], depth: int | None) -> str:
    if not found:
        return "no distribution is on a channel: there is nothing to send"
    return "\n\n".join(["\n".join(_slip(routes, depth)) for routes in found] + [_LEGEND])


def _slip(routes: ChannelRoutes, depth: int | None) -> Iterator[str]:
    yield f"channel {routes.channel}: {', '.join(routes.distributions) or 'no active distribution'}"
    yield from draw(slip_tree(routes), depth)
    for warning in routes.warnings:
        yield f"! {warning.message}"


def draw(tree: RouteTree, depth: int | None = None) -> Iterator[str]:
    """Yield the lines of a tree; with ``depth`` only so many tiers below its top, the rest counted."""
    waiting: list[tuple[RouteTree, str, str, int]] = [(tree, "", "", 0)]
    while waiting:
        node, lead, below, tier = waiting.pop()
        yield f"{lead}{_label(node, top=tier == 0)}"
        if not node.children:
            continue
        if depth is not None and tier >= depth:
            continue
        last = len(node.children) - 1
        for position in range(last, -1, -1):  # pushed backwards, so that the first comes out first
            arm, stem = ("└── ", "    ") if position == last else ("├── ", "│   ")
            waiting.append((node.children[position], below + arm, below + stem, tier + 1))


def _label(node: RouteTree, *, top: bool) -> str:
    mark = "" if top and not node.target else f" {TARGET if node.target else RELAY}"
    if not node.children:
        return f"{node.name}{mark}"
    return f"{node.name}{mark}  sends to {len(node.children)}, {node.receivers} receive through it"
