"""``ted purge``: orphans and old revisions go; a dry run first."""

from __future__ import annotations

from typing import Any

import click

from ted.agent.purge import purge
from ted.cli.common import topology_if_any
from ted.cli.main import Settings, emit, tabulated
from ted.cli.progress import human_bytes
from ted.config import NodeConfig
from ted.topology.names import suggestion


@click.command("purge")
@click.option("--apply", "apply", is_flag=True, help="Remove; without it, only show.")
@click.option("--distribution", "only", multiple=True, help="Only this distribution; may be repeated.")
@click.pass_obj
def command(settings: Settings, apply: bool, only: tuple[str, ...]) -> None:
    """Remove what nobody needs.

    Left-overs of builds, revisions beyond the maximum, packs nothing refers to, and on a Distributor the
    distributions that its inventory no longer names.
    """
    config = NodeConfig.load(settings.config)
    topology = topology_if_any(settings) if config.distributor else None
    here = {distribution for _, distribution in config.working.distributions()}
    for name in sorted(set(only) - here):  # no error: one play may purge on many nodes
        hint = suggestion(name, here) or "nothing is removed of it"
        click.echo(f"ted: warning: no distribution {name!r} is here; {hint}", err=True)
    removed: list[dict[str, Any]] = purge(config, topology, only=only, apply=apply)
    text = tabulated([[row["path"], row["why"], human_bytes(row["bytes"])] for row in removed],
                    headers=["removed" if apply else "would go", "why", "size"])  # fmt: skip
    data = {"changed": bool(removed), "applied": apply, "removed": removed,
            "bytes": sum(row["bytes"] for row in removed)}  # fmt: skip
    emit(settings, data, text if removed else "nothing to remove")
