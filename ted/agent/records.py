"""Where a node's journal is."""

from __future__ import annotations

from ted.config import NodeConfig
from ted.records.journal import Journal


def open_journal(config: NodeConfig) -> Journal:
    """Open a node's journal: ``database_url`` on a Distributor that has one, else SQLite beside its content."""
    if config.database_url:
        return Journal(config.database_url, config.node)
    return Journal.at(config.working_directory, config.node)
