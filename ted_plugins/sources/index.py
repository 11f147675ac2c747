"""What a mirror knows of its files: one row for each, on disk, so that memory stays flat.

Rules:
 * A row is written after its file has its name. A kill in between leaves a file that no row describes, or another one
   describes: it is not believed, and fetched again.
 * A file is believed without reading it only as long as it is the very inode that was put there, unchanged, and this
   machine has run since. Else it is read and compared with its digest: a power cut may have taken what was not yet on
   disk, and nothing here waits for disks.
 * An index that cannot be read is begun anew; that costs transfers, no truth.
"""

from __future__ import annotations

import functools
import hashlib
import os
import sqlite3
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

_FORMAT = 1
_ROWS = 500

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, listed TEXT NOT NULL, settled INTEGER NOT NULL, promised TEXT,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, validator TEXT, digest TEXT NOT NULL, stamp TEXT NOT NULL
) WITHOUT ROWID;
CREATE TEMP TABLE listed (path BLOB PRIMARY KEY) WITHOUT ROWID;
"""


class Row(NamedTuple):
    """One file of the mirror."""

    path: str
    listed: str
    """How the source listed it when it was fetched."""
    settled: bool
    """Whether a later change would have shown in the listing."""
    promised: str | None
    """The digest the source promised."""
    size_bytes: int
    mtime_ns: int
    validator: str | None
    """What the source called this version when it was fetched."""
    digest: str
    """``sha256:...`` of the content."""
    stamp: str


class Index:
    """The rows of one mirror; used by one thread."""

    def __init__(self, path: Path) -> None:
        try:
            self._db = _open(path)
        except sqlite3.DatabaseError:
            for name in (path, Path(f"{path}-wal"), Path(f"{path}-shm")):
                name.unlink(missing_ok=True)
            self._db = _open(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def rows(self, paths: Sequence[str]) -> dict[str, Row]:
        """Return what is known of these paths."""
        marks = ",".join("?" * len(paths))
        found = self._db.execute(f"SELECT * FROM files WHERE path IN ({marks})", [os.fsencode(p) for p in paths])  # noqa: S608
        rows = (Row(os.fsdecode(row[0]), row[1], bool(row[2]), *row[3:]) for row in found)
        return {row.path: row for row in rows}

    def count(self) -> int:
        """Return how many files are known."""
        return int(self._db.execute("SELECT count(*) FROM files").fetchone()[0])

    def put(self, rows: Iterable[Row]) -> None:
        """Write rows down."""
        with self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?,?)",
                ((os.fsencode(row.path), *row[1:]) for row in rows),
            )

    def list(self, paths: Iterable[str]) -> set[str]:
        """Note that the source has ``paths``; return those that were noted already."""
        raws = [os.fsencode(path) for path in paths]
        marks = ",".join("?" * len(raws))
        found = self._db.execute(f"SELECT path FROM listed WHERE path IN ({marks})", raws).fetchall()  # noqa: S608
        self._db.executemany("INSERT OR IGNORE INTO listed VALUES (?)", ((raw,) for raw in raws))
        return {os.fsdecode(row[0]) for row in found}

    def conflict(self) -> str | None:
        """Return a path that was listed as a file and also as a directory."""
        found = self._db.execute(
            "SELECT path FROM listed AS a WHERE EXISTS (SELECT 1 FROM listed AS b"
            " WHERE b.path > CAST(a.path || x'2f' AS BLOB) AND b.path < CAST(a.path || x'30' AS BLOB)) LIMIT 1"
        ).fetchone()
        return os.fsdecode(found[0]) if found else None

    def vanished(self) -> Iterator[str]:
        """Yield what is known and was not listed."""
        last = b""
        while True:
            rows = self._db.execute(
                "SELECT path FROM files WHERE path > ? AND path NOT IN (SELECT path FROM listed) ORDER BY path LIMIT ?",
                (last, _ROWS),
            ).fetchall()
            if not rows:
                return
            yield from (os.fsdecode(row[0]) for row in rows)
            last = rows[-1][0]

    def forget_vanished(self) -> None:
        """Forget what was not listed."""
        with self._db:
            self._db.execute("DELETE FROM files WHERE path NOT IN (SELECT path FROM listed)")


def _open(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level="DEFERRED")
    try:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
        if db.execute("PRAGMA user_version").fetchone()[0] not in (0, _FORMAT):
            raise sqlite3.DatabaseError("another format")
        db.executescript(_SCHEMA)
        db.execute("SELECT * FROM files LIMIT 1")
        db.execute(f"PRAGMA user_version={_FORMAT}")
    except BaseException:
        db.close()
        raise
    return db


# -- whether a file is still the one that was put there


def stamp_of(file: str | int) -> tuple[os.stat_result, str]:
    """Return the status of a file (its path, or open), and the stamp it is believed by while this machine runs."""
    status = os.lstat(file) if isinstance(file, str) else os.fstat(file)
    return status, f"{boot()} {_inode(status)}"


def intact(path: str, row: Row) -> Row | None:
    """Return ``row``, with a fresh stamp if need be, when the file at ``path`` is what it says; else ``None``."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    size, mtime_ns = status.st_size, status.st_mtime_ns
    if not stat.S_ISREG(status.st_mode) or (size, mtime_ns) != (row.size_bytes, row.mtime_ns):
        return None
    since, _, inode = row.stamp.rpartition(" ")
    if inode == _inode(status) and since in ("", boot()):
        return row
    with suppress(OSError):
        if digest_of(path) == row.digest:
            # What another start of this machine wrote, and this one could read, is on disk.
            kept = boot() if since == boot() else ""
            return row._replace(stamp=f"{kept} {_inode(status)}")
    return None


def digest_of(path: str) -> str:
    """Return the digest of a file's content."""
    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def _inode(status: os.stat_result) -> str:
    return f"{status.st_ino}.{status.st_ctime_ns}"


@functools.cache
def boot() -> str:
    """Return what tells this start of the machine from others; when unknown, something that matches no other."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return f"pid-{os.getpid()}"
