"""The build cache: what the last build found in files, so that unchanged ones are not read again.

Rules:
 * It may be deleted at any time, and is ignored from the first thing in it that makes no sense.
 * A file is the same if device, inode, size, times of content and status, mode and owner are; that covers its
   extended attributes, whose change moves the status time.
 * A file that changed within 2 s before the build began is not noted: a change in the same tick would not show.
 * Its head holds what all sources looked like together (``SourceTree.look``), and the manifest that came of it: if they
   look the same again, the manifest is the same, and nothing else of the cache is read. Not noted if anything is young.
 * Written in the walk's order and read in it: neither side is ever in memory whole.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import msgpack

from ted.content.durable import drop
from ted.content.entry import Components, Entry, components, entry_from_row
from ted.errors import FormatError

_MARK = ["ted build cache", 2]
_UNKNOWN = bytes(32)
_DOUBTFUL_NS = 2 * 10**9
_MAX_OBJECT_BYTES = 8 << 20
_MAX_ARRAY = 20_000

Signature = list[int]


class Cached(NamedTuple):
    """What is remembered of a file: ``entry`` holds its extents, digest and extended attributes."""

    signature: Signature
    entry: Entry


def signature_of(status: os.stat_result) -> Signature:
    """Return what must be equal for a file to be the same."""
    return [
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_mode,
        status.st_uid,
        status.st_gid,
    ]


class Look(NamedTuple):
    """What something looks like without reading it: equal digests mean unchanged. And when it changed last."""

    digest: bytes
    changed_at_ns: int


def _head(looked: bytes, manifest: bytes) -> bytes:
    """Return the first object; always of the same length, so that it can be written anew at the end."""
    head: bytes = msgpack.packb([*_MARK, looked, manifest])
    return head


class CacheReader:
    """Looks files up in the cache of the last build; ask in the walk's order."""

    def __init__(self, path: Path | None) -> None:
        self._file: IO[bytes] | None = None
        if path is not None:
            with suppress(OSError):
                self._file = open(path, "rb")  # noqa: SIM115 -- closed by close()
        self.looked = _UNKNOWN
        self.manifest = _UNKNOWN
        self._rows = self._read()
        self._next: tuple[Components, Signature, object] | None = next(self._rows, None)

    def close(self) -> None:
        """Close the file."""
        self._rows.close()
        if self._file is not None:
            self._file.close()

    def knows(self, looked: bytes, manifest: bytes) -> bool:
        """Whether sources that look like ``looked`` gave the last build that manifest."""
        return looked != _UNKNOWN and (self.looked, self.manifest) == (looked, manifest)

    def find(self, key: Components, status: os.stat_result) -> Cached | None:
        """Return what is remembered of the file with that path's components, if it is the same file."""
        while self._next is not None and self._next[0] < key:
            self._next = next(self._rows, None)
        if self._next is None or self._next[0] != key or self._next[1] != signature_of(status):
            return None
        try:
            return Cached(self._next[1], entry_from_row(self._next[2], "build cache"))
        except FormatError:
            return None

    def _read(self) -> Generator[tuple[Components, Signature, object], None, None]:
        if self._file is None:
            return
        rows = msgpack.Unpacker(self._file, max_buffer_size=_MAX_OBJECT_BYTES, max_array_len=_MAX_ARRAY)
        try:
            *mark, looked, manifest = rows.unpack()
            if mark != _MARK:
                return
            self.looked, self.manifest = looked, manifest
            while True:
                signature, row = rows.unpack()
                if not isinstance(row[0], bytes):
                    return
                yield components(row[0]), signature, row
        except Exception:  # noqa: BLE001 -- the end, or damage: a cache is only ever a help
            return


class CacheWriter:
    """Notes what this build found; nothing replaces the old cache before ``commit``."""

    def __init__(self, path: Path | None, started_at_ns: int) -> None:
        self._path = path
        self._oldest_doubtful_ns = started_at_ns - _DOUBTFUL_NS
        self._file: IO[bytes] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._temporary(path), "wb")  # noqa: SIM115 -- closed by commit() or abandon()
            self._file.write(_head(_UNKNOWN, _UNKNOWN))

    def add(self, status: os.stat_result, row: bytes) -> None:
        """Note a file and its row in the manifest, unless it changed too short a while ago."""
        if self._file is not None and not self._is_doubtful(max(status.st_mtime_ns, status.st_ctime_ns)):
            self._file.write(b"\x92" + msgpack.packb(signature_of(status)) + row)

    def _is_doubtful(self, changed_at_ns: int) -> bool:
        return changed_at_ns >= self._oldest_doubtful_ns

    def commit(self, looked: Look, manifest: bytes) -> None:
        """Put the new cache in the old one's place.

        Args:
            looked: What the sources looked like before they were read.
            manifest: The digest of the manifest's index that came of them.
        """
        if self._file is not None and self._path is not None:
            if not self._is_doubtful(looked.changed_at_ns):
                self._file.seek(0)
                self._file.write(_head(looked.digest, manifest))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary(self._path), self._path)
            self._file = None

    def abandon(self) -> None:
        """Leave the old cache as it is; harmless after ``commit``."""
        if self._file is not None and self._path is not None:
            drop(self._file)
            self._file = None
            with suppress(OSError):
                os.unlink(self._temporary(self._path))

    @staticmethod
    def _temporary(path: Path) -> Path:
        return path.with_name(f"{path.name}_TEMP")
