"""What nobody needs any more on a node, and its removal."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from ted.agent.records import open_journal
from ted.config import NodeConfig
from ted.content import retention
from ted.content.working import TEMP_SUFFIX, WorkingDirectory
from ted.errors import UnknownNameError
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
    for distributor, name in working.distributions():
        if only and name not in only:
            continue
        own = topology is not None and distributor == config.node
        if own and topology is not None and name not in topology.distributor(distributor).distributions:
            rows.append(_orphan(config, working, name, apply=apply))
            continue
        rows += _old(config, working, distributor, name, apply=apply)
    rows += _leftovers(working, only, apply=apply)
    return rows


def _orphan(config: NodeConfig, working: WorkingDirectory, name: str, *, apply: bool) -> dict[str, Any]:
    directory = working.distribution(config.node, name)
    row = {"path": str(directory), "why": "the inventory no longer names this distribution",
           "bytes": working.disk_bytes(config.node, name)}  # fmt: skip
    if apply:
        Catalog(working.catalog(config.node), config.keys_directory).remove(name)
        journal = open_journal(config)
        try:
            journal.forget(config.node, name)
        finally:
            journal.close()
        shutil.rmtree(directory)
    return row


def _old(
    config: NodeConfig, working: WorkingDirectory, distributor: str, name: str, *, apply: bool
) -> list[dict[str, Any]]:
    stamps = working.received(distributor, name)
    if not stamps:
        return []
    journal = open_journal(config)
    try:
        in_use = {offer["revision"] for offer in journal.offers(status="open")
                  if (offer["distributor"], offer["distribution"]) == (distributor, name)}  # fmt: skip
        in_use |= {row.revision for row in journal.states(node=config.node, distributor=distributor, distribution=name)
                   if row.revision}  # fmt: skip
    finally:
        journal.close()
    with suppress(UnknownNameError):
        most = working.record(distributor, name, stamps[-1]).settings.get("max_revisions")
        removal = retention.plan(working, distributor, name, max_revisions=most, in_use=in_use)
        going = sorted({*removal.revisions, *removal.packs})
        rows = [
            {"path": str(working.revision(distributor, name, stamp)), "why": "beyond max_revisions, needed by none",
             "bytes": _size(working.revision(distributor, name, stamp))} for stamp in going
        ]  # fmt: skip
        if apply:
            retention.apply(working, distributor, name, removal)
        return rows
    return []


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
