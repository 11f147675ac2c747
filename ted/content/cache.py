"""The build cache: what the last build found in files, so that unchanged ones are not read again.

Rules:
 * It may be deleted at any time, and is ignored from the first thing in it that makes no sense.
 * A file is the same if device, inode, size, times of content and status, mode and owner (number and name) are; that
   covers its extended attributes, whose change moves the status time. Its row in the manifest is then the same too,
   as long as its bytes lie where they lay.
 * A file that changed within 2 s before the build began is not noted: a change in the same tick would not show.
 * Its head holds what all sources looked like together (``SourceTree.look``), and the manifest that came of it: if they
   look the same again, the manifest is the same, and nothing else of the cache is read. Not noted if anything is young.
 * Written in the walk's order and read in it, in pieces with their digests, so that rows can be taken as they are:
   neither side is ever in memory whole.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple

import msgpack

from ted.content.durable import drop
from ted.content.entry import Components, Entry, components, entry_from_row, unpack_one

_MARK = ["ted build cache", 3]
_UNKNOWN = bytes(32)
_DOUBTFUL_NS = 2 * 10**9
_PIECE_BYTES = 128 << 10
_MAX_OBJECT_BYTES = 8 << 20
_MAX_ARRAY = 20_000

Signer = Callable[[os.stat_result, str | int, str | int], bytes]


class Cached(NamedTuple):
    """What is remembered of a file.

    ``row`` is its row in the manifest. ``frame`` and ``offset`` tell where a small file lies that may share its frame
    with others, ``shares`` whether it does; all other files have no ``frame`` here.
    """

    path: bytes
    signature: bytes
    row: bytes
    frame: bytes | None = None
    offset: int = 0
    shares: bool = False

    def entry(self) -> Entry:
        """Return the file's entry.

        Raises:
            FormatError: The row is none.
        """
        return entry_from_row(unpack_one(self.row, _MAX_ARRAY, "build cache"), "build cache")


def signer() -> Signer:
    """Return a function for one thread: from a file's status and its owner's names to what must stay equal."""
    pack = msgpack.Packer().pack

    def sign(status: os.stat_result, owner: str | int, group: str | int) -> bytes:
        signature: bytes = pack((
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode,
            status.st_uid, status.st_gid, owner, group,
        ))  # fmt: skip
        return signature

    return sign


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
        self._next = next(self._rows, None)

    def close(self) -> None:
        """Close the file."""
        self._next = None
        if self._file is not None:
            self._file.close()

    def knows(self, looked: bytes, manifest: bytes) -> bool:
        """Whether sources that look like ``looked`` gave the last build that manifest."""
        return looked != _UNKNOWN and (self.looked, self.manifest) == (looked, manifest)

    @property
    def is_used_up(self) -> bool:
        """Whether nothing more can be found."""
        return self._next is None

    def find(self, path: bytes, key: Components, signature: bytes) -> Cached | None:
        """Return what is remembered of the file ``path`` (``key`` are its components), if it is the same file."""
        known = self._next
        while known is not None and known.path != path and components(known.path) < key:
            known = self._next = next(self._rows, None)
        if known is None or known.path != path or known.signature != signature:
            return None
        return known

    def _read(self) -> Iterator[Cached]:
        if self._file is None:
            return
        pieces = msgpack.Unpacker(self._file, max_buffer_size=_MAX_OBJECT_BYTES, max_array_len=_MAX_ARRAY)
        try:
            *mark, looked, manifest = pieces.unpack()
            if mark != _MARK:
                return
            self.looked, self.manifest = looked, manifest
            while True:
                digest, piece = pieces.unpack()
                if hashlib.sha256(piece).digest() != digest:
                    return
                rows = msgpack.Unpacker(max_buffer_size=len(piece))
                rows.feed(piece)
                yield from (Cached(*row) for row in rows)
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
        self._piece = bytearray()
        self._pack = msgpack.Packer().pack

    def takes(self, status: os.stat_result) -> bool:
        """Whether a file of that status may be noted: not if it changed too short a while ago."""
        doubtful_ns = self._oldest_doubtful_ns
        return self._file is not None and status.st_ctime_ns < doubtful_ns and status.st_mtime_ns < doubtful_ns

    def add(self, known: Cached) -> None:
        """Note a file."""
        if self._file is not None:
            self._piece += self._pack(known)
            if len(self._piece) >= _PIECE_BYTES:
                self._end_piece(self._file)

    def _end_piece(self, file: IO[bytes]) -> None:
        piece = bytes(self._piece)
        self._piece.clear()
        file.write(self._pack((hashlib.sha256(piece).digest(), piece)))

    def commit(self, looked: Look, manifest: bytes) -> None:
        """Put the new cache in the old one's place.

        Args:
            looked: What the sources looked like before they were read.
            manifest: The digest of the manifest's index that came of them.
        """
        if self._file is not None and self._path is not None:
            if self._piece:
                self._end_piece(self._file)
            if looked.changed_at_ns < self._oldest_doubtful_ns:
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
