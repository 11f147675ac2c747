"""``ted build``: gather, pack, sign."""

from __future__ import annotations

from typing import Any

import click

from ted.agent.build import Builder
from ted.agent.records import journal_of
from ted.cli.common import topology_of
from ted.cli.main import Settings, emit, tabulated
from ted.cli.progress import download_bar, human_bytes
from ted.config import NodeConfig
from ted.errors import TedError


@click.command("build")
@click.argument("names", nargs=-1, metavar="[DISTRIBUTION]...")
@click.option("--check", is_flag=True, help="Say what would be built; leave nothing behind.")
@click.option("--force", is_flag=True, help="Make a new revision even if nothing changed; refer to no damaged pack.")
@click.pass_obj
def command(settings: Settings, names: tuple[str, ...], check: bool, force: bool) -> None:
    """Build each DISTRIBUTION (default: every active one) of this Distributor.

    A new revision appears only if something changed. Where there is a patch, whoever holds the revision before is sent
    that, and others the new bytes. One that fails leaves its former revision current; the others
    are built all the same.
    """
    config = NodeConfig.load(settings.config)
    topology = topology_of(settings)
    rows: list[dict[str, Any]] = []
    failures: list[TedError] = []
    with journal_of(config, check=check) as journal:
        builder = Builder(config, topology, journal, base=_base(settings))
        for distribution in builder.wanted(names):
            try:
                with download_bar(as_json=settings.as_json) as show:
                    built = builder.build(distribution, force=force, check=check, progress=show)
                row = built.to_dict() | {"error": None}
            except TedError as error:
                failures.append(error)
                row = {"distribution": distribution.name, "revision": None, "changed": False, "error": error.to_dict()}
            rows.append(row | {"distributor": config.node, "check": check})
            for warning in row.get("warnings", ()):
                click.echo(f"ted: warning: {distribution.name}: {warning}", err=True)
    if failures:
        first = failures[0]
        if len(failures) > 1:
            first.message += f" (and {len(failures) - 1} more failed{'' if check else ': `ted report events`'})"
        first.data = {"changed": any(row["changed"] for row in rows), "distributions": rows}
        if not settings.as_json and len(rows) > len(failures):
            _show(settings, rows, check=check)
        raise first
    _show(settings, rows, check=check)


def _show(settings: Settings, rows: list[dict[str, Any]], *, check: bool) -> None:
    """Say what became of each distribution; what failed has its cause elsewhere."""
    changed = "changes" if check else "changed"  # short: the table fits 100 columns
    headers = ["distribution", "revision", changed, "files", "content", "new bytes", "patch", "s"]
    emit(settings, {"changed": any(row["changed"] for row in rows), "distributions": rows},
         tabulated([_cells(row) for row in rows], headers=headers) if rows
         else "this Distributor has no active distribution")  # fmt: skip


def _cells(row: dict[str, Any]) -> list[Any]:
    """Return a row of the table; the patch is what goes over a line to whoever holds the revision before."""
    if row["error"] is not None:
        return [row["distribution"], "-", "failed"]
    patch = "-" if row["patch_bytes"] is None else human_bytes(row["patch_bytes"])
    return [row["distribution"], row["revision"] or "-", "yes" if row["changed"] else "no", row["files"],
            human_bytes(row["content_bytes"]), human_bytes(row["bytes"]), patch,
            f"{row['duration_s']:.1f}"]  # fmt: skip


def _base(settings: Settings) -> Any:
    if settings.inventory is None or settings.inventory_on_stdin:
        return settings.config
    return settings.inventory if settings.inventory.is_dir() else settings.inventory.parent
