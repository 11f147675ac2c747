"""Where a node's journal is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ted.config import NodeConfig
from ted.records.journal import Journal


def open_journal(config: NodeConfig) -> Journal:
    """Open a node's journal: ``database_url`` on a Distributor that has one, else SQLite beside its content."""
    if config.distributor and config.database_url:
        return Journal(config.database_url, config.node)
    return Journal.at(config.working_directory, config.node)


@contextmanager
def journal_of(config: NodeConfig, *, check: bool = False) -> Iterator[Journal]:
    """Yield a node's journal; with ``check`` an empty one of which nothing stays."""
    with TemporaryDirectory(prefix="ted-") as scratch:
        journal = Journal.at(Path(scratch), config.node) if check else open_journal(config)
        try:
            yield journal
        finally:
            journal.close()
