"""What a staged directory holds: a new directory is made whole beside its place and renamed there as one act.

Rules:
 * Each thing in it is noted when it is made, by name, kind, inode, size and time, in the log ``trees``; that log is
   durable before the directory is renamed. It tells an undo what is ted's and what other people put there since.
 * The notes of one act stand together, acts in ascending order, a directory before what it holds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from ted.install.log import LogReader, LogWriter
from ted.install.paths import join

LOG_NAME = "trees"
_FIELDS = 5
_ROW_FIELDS = 512 * _FIELDS


class Grown(NamedTuple):
    """One thing in a staged directory: its path below it, file type, inode, size (bytes), modified (ns)."""

    path: bytes
    kind: int
    inode: int
    size: int
    mtime_ns: int

    def is_alike(self, status: os.stat_result) -> bool:
        """Return whether ``status`` looks like it, or like what was put back of it: another directory, a copy."""
        if stat.S_IFMT(status.st_mode) != self.kind:
            return False
        return self.kind == stat.S_IFDIR or (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)

    def is_same_inode(self, status: os.stat_result) -> bool:
        """Return whether ``status`` is of its inode: it was changed in place, or another was given the number."""
        return (stat.S_IFMT(status.st_mode), status.st_ino) == (self.kind, self.inode)


def pack_row(act: int, directory: bytes, fields: list[Any]) -> bytes:
    """Return the note of what was made in one directory: ``fields`` are name, type, inode, size and time of each."""
    row: bytes = msgpack.packb([act, directory, *fields])
    return row


class TreeWriter:
    """Notes what is made in staged directories; ``noted`` is told the act of each note, or row of notes."""

    def __init__(self, directory: Path, noted: Callable[[int], None]) -> None:
        self._log = LogWriter(directory / LOG_NAME)
        self._noted = noted
        self._at: tuple[int, bytes] = (-1, b"")
        self._row: list[Any] = []

    def note(self, act: int, directory: bytes, name: bytes, noted: tuple[int, int, int, int]) -> None:
        """Note that ``name`` was made in ``directory``, a path below the staged directory of ``act``.

        Args:
            act: Its number.
            directory: Path below the staged directory.
            name: What was made there.
            noted: File type, inode, size (bytes), modified (ns).
        """
        if (act, directory) != self._at or len(self._row) >= _ROW_FIELDS:
            self._flush_row()
            self._at = (act, directory)
        self._row += (name, *noted)
        self._noted(act)

    def add_row(self, act: int, row: bytes) -> None:
        """Add what ``pack_row`` made of an act."""
        self._flush_row()
        self._log.append_packed(row)
        self._noted(act)

    def sync(self) -> None:
        """Make everything noted durable."""
        self._flush_row()
        self._log.sync()

    def close(self) -> None:
        """Let go of the log."""
        self._log.close()

    def _flush_row(self) -> None:
        if self._row:
            self._log.append([*self._at, *self._row])
            self._row.clear()


class TreeReader:
    """Reads the notes backwards: ask for acts in descending order."""

    def __init__(self, directory: Path) -> None:
        self._log: LogReader | None = None
        self._records: Iterator[list[Any]] = iter(())
        self.noted_at_ns = 0
        """When the last note was made, at the latest."""
        with suppress(FileNotFoundError):
            self.noted_at_ns = os.stat(directory / LOG_NAME).st_mtime_ns
            self._log = LogReader(directory / LOG_NAME)
            self._records = self._log.backwards()
        self._next: list[Any] | None = next(self._records, None)

    def rows(self, act: int) -> Iterator[list[Grown]]:
        """Yield what the staged directory of ``act`` holds, the newest first, in parts."""
        while self._next is not None and self._next[0] > act:
            self._next = next(self._records, None)
        while self._next is not None and self._next[0] == act:
            _, directory, *fields = self._next
            yield [
                Grown(join(directory, fields[at]), *fields[at + 1 : at + _FIELDS])
                for at in range(len(fields) - _FIELDS, -1, -_FIELDS)
            ]
            self._next = next(self._records, None)

    def close(self) -> None:
        """Let go of the log."""
        if self._log is not None:
            self._log.close()
