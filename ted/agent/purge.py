"""What nobody needs any more on a node, and its removal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from ted.agent.build import Builder
from ted.agent.records import open_journal
from ted.config import NodeConfig
from ted.content import retention
from ted.content.working import TEMP_SUFFIX, WorkingDirectory
from ted.errors import UnknownNameError
from ted.install.state import InstalledStates
from ted.records.journal import Journal
from ted.records.states import FINAL
from ted.topology.model import Topology
from ted.trust.catalog import Catalog


def purge(
    config: NodeConfig, topology: Topology | None, *, only: Collection[str] = (), apply: bool = False
) -> list[dict[str, Any]]:
    """Return what is (or with ``apply`` was) removed: ``{"path", "why", "bytes"}``.

    Args:
        config: This node's.
        topology: On a Distributor: what its inventory names; ``None`` leaves distributions alone.
        only: These distributions; none means all.
        apply: Remove, and not only look.
    """
    working = config.working
    rows: list[dict[str, Any]] = []
    journal = open_journal(config)
    try:
        for distributor, name in working.distributions():
            if only and name not in only:
                continue
            if distributor != config.node or topology is None:
                rows += _old(config, journal, distributor, name, apply=apply)
            elif name in topology.distributor(distributor).distributions:
                rows += _own(config, topology, journal, name, apply=apply)
            else:
                rows.append(_orphan(config, working, journal, name, apply=apply))
    finally:
        journal.close()
    return rows + _leftovers(working, only, apply=apply)


def _orphan(
    config: NodeConfig, working: WorkingDirectory, journal: Journal, name: str, *, apply: bool
) -> dict[str, Any]:
    directory = working.distribution(config.node, name)
    row = {"path": str(directory), "why": "the inventory no longer names this distribution",
           "bytes": working.disk_bytes(config.node, name)}  # fmt: skip
    if apply:
        Catalog(working.catalog(config.node), config.keys_directory).remove(name)
        journal.forget(config.node, name)
        shutil.rmtree(directory)
    return row


def _own(
    config: NodeConfig, topology: Topology, journal: Journal, name: str, *, apply: bool
) -> list[dict[str, Any]]:
    """A Distributor's own revisions: the catalog stops listing them before they go."""
    builder = Builder(config, topology, journal, base=config.config_directory)
    distribution = topology.distributor(config.node).distributions[name]
    rows = _rows(config.working, config.node, name, builder.surplus(distribution))
    if apply and rows:
        builder.tidy(distribution)
    return rows


def _old(
    config: NodeConfig, journal: Journal, distributor: str, name: str, *, apply: bool
) -> list[dict[str, Any]]:
    working = config.working
    stamps = working.received(distributor, name)
    if not stamps:
        return []
    in_use = InstalledStates(working).revisions_in_use(distributor, name)
    in_use |= {offer["revision"] for offer in journal.offers(status="open", distributor=distributor, distribution=name)}
    in_use |= {row.revision for row in journal.states(distributor=distributor, distribution=name)
               if row.revision and (row.node == config.node or row.state not in FINAL)}  # fmt: skip
    with suppress(UnknownNameError):
        most = working.record(distributor, name, stamps[-1]).settings.get("max_revisions")
        removal = retention.plan(working, distributor, name, max_revisions=most, in_use=in_use)
        rows = _rows(working, distributor, name, removal)
        if apply:
            retention.apply(working, distributor, name, removal)
        return rows
    return []


def _rows(
    working: WorkingDirectory, distributor: str, name: str, removal: retention.Removal
) -> list[dict[str, Any]]:
    going = sorted({*removal.revisions, *removal.packs})
    paths = [working.revision(distributor, name, stamp) for stamp in going]
    return [{"path": str(path), "why": "beyond max_revisions, needed by none", "bytes": _size(path)} for path in paths]


def _leftovers(working: WorkingDirectory, only: Collection[str], *, apply: bool) -> list[dict[str, Any]]:
    rows = [
        {"path": str(path), "why": "left over from a build that was killed", "bytes": _size(path)}
        for distributor, name in working.distributions() if not only or name in only
        for path in sorted(working.distribution(distributor, name).glob(f"*{TEMP_SUFFIX}"))
    ]  # fmt: skip
    if apply and rows:
        removed = {str(path) for path in working.clean_leftovers()}
        rows = [row for row in rows if row["path"] in removed]
    return rows


def _size(path: Path) -> int:
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                total += os.lstat(os.path.join(directory, name)).st_blocks * 512
    return total
