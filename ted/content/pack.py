"""The pack ``DISTFILE.TED``: write one, read one.

Rules:
 * A writer appends frames in the order it is given them, then index and trailer; nothing is rewritten.
 * A reader believes nothing before the magic, the version, the file's size and the digest of the index hold.
 * Memory does not grow with the frames by more than some bytes each: rows wait in a file, lookups of many bisect.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import IO, Protocol

from ted.content.durable import drop
from ted.content.frame import DIGEST_BYTES, Encoded, Location, check_location, decode
from ted.errors import HOW_TO_MEND, DigestMismatchError, FormatError, MissingContentError

MAGIC = b"TEDPACK\0"
VERSION = 1
HEADER = struct.Struct("<8sH6x")
ROW = struct.Struct("<32sQIIB")
TRAILER = struct.Struct("<QI32sH2x8s")
EMPTY_PACK_BYTES = HEADER.size + TRAILER.size

_INDEX_IN_MEMORY_BYTES = 16 << 20
_ROWS_BY_DIGEST = 2048
"""Up to so many rows there is a table of them: 180 bytes a row, and a revision has 32 packs."""
_ROWS_AT_ONCE = 100_000
_COPY_BYTES = 1 << 20


class DigestTable:
    """Which digests were seen, in about 20 bytes each; exact.

    Digests are kept in a file; an open-addressed table of their first 8 bytes finds the candidates, and the file
    decides, since whoever writes the content could make two digests begin alike.
    """

    def __init__(self, directory: Path) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 -- closed by close()
        self._count = 0
        self._slots = 1 << 10
        self._marks = array("Q", bytes(8 * self._slots))
        self._rows = array("I", bytes(4 * self._slots))

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Forget all; the file is gone with it."""
        drop(self._file)

    def __contains__(self, digest: bytes) -> bool:
        mark = int.from_bytes(digest[:8], "little")
        slot = mark % self._slots
        while row := self._rows[slot]:
            if self._marks[slot] == mark and self._digest(row - 1) == digest:
                return True
            slot = (slot + 1) % self._slots
        return False

    def add(self, digest: bytes) -> None:
        """Take up a digest that is not in the table."""
        self._file.write(digest)
        self._count += 1
        if self._count * 3 > self._slots * 2:
            self._grow()
        self._place(int.from_bytes(digest[:8], "little"), self._count)

    def _place(self, mark: int, row: int) -> None:
        slot = mark % self._slots
        while self._rows[slot]:
            slot = (slot + 1) % self._slots
        self._marks[slot] = mark
        self._rows[slot] = row

    def _grow(self) -> None:
        marks, rows = self._marks, self._rows
        self._slots *= 2
        self._marks = array("Q", bytes(8 * self._slots))
        self._rows = array("I", bytes(4 * self._slots))
        for mark, row in zip(marks, rows, strict=True):
            if row:
                self._place(mark, row)

    def _digest(self, row: int) -> bytes:
        self._file.flush()
        return os.pread(self._file.fileno(), DIGEST_BYTES, row * DIGEST_BYTES)


class Sink(Protocol):
    """What the bytes of a pack can be written to, one after another."""

    def write(self, data: bytes, /) -> object:
        """Take the next bytes."""


class PackWriter:
    """Write one pack; close it with ``finish`` or ``abandon``.

    Args:
        path: The new file; where ``onto`` is given, only its directory is used (for what waits).
        onto: What to write to instead; it is the caller's to make durable and to close.
        check: Called again and again while the index is made; what it raises ends that.
    """

    def __init__(self, path: Path, onto: Sink | None = None, check: Callable[[], None] | None = None) -> None:
        self._check = check
        self._own = open(path, "xb", buffering=_COPY_BYTES) if onto is None else None  # noqa: SIM115 -- finish()
        self._file: Sink = onto if self._own is None else self._own  # type: ignore[assignment]
        self._rows: IO[bytes] = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 -- the same
        self._count = 0
        self._offset = HEADER.size
        self._file.write(HEADER.pack(MAGIC, VERSION))

    @property
    def frames(self) -> int:
        """Frames written so far."""
        return self._count

    def add(self, frame: Encoded) -> Location:
        """Append a frame whose digest is not yet in this pack."""
        location = Location(self._offset, len(frame.stored), frame.plain_bytes, frame.codec)
        self._file.write(frame.stored)
        self._rows.write(ROW.pack(frame.digest, *location))
        self._offset = location.end
        self._count += 1
        return location

    def row(self, number: int) -> tuple[bytes, Location]:
        """Return the digest and the location of a frame by its number in the order they were added."""
        self._rows.flush()
        digest, *location = ROW.unpack(os.pread(self._rows.fileno(), ROW.size, number * ROW.size))
        return digest, Location(*location)

    def finish(self) -> int:
        """Write index and trailer, sync, close; return the size of the pack in bytes."""
        index = hashlib.sha256()
        for rows in self._sorted_rows():
            index.update(rows)
            self._file.write(rows)
        self._file.write(TRAILER.pack(self._offset, self._count, index.digest(), VERSION, MAGIC))
        if self._own is not None:
            self._own.flush()
            os.fsync(self._own.fileno())
        self.abandon()
        return self._offset + self._count * ROW.size + TRAILER.size

    def abandon(self) -> None:
        """Close without finishing; harmless after ``finish``."""
        drop(self._rows, self._own)

    def _sorted_rows(self) -> Iterator[bytes]:
        # Digests are spread evenly, so that a pass over the rows for each range of first bytes sorts any
        # number of them in bounded memory.
        passes = min(256, -(-self._count // _ROWS_AT_ONCE)) or 1
        for number in range(passes):
            low, high = number * 256 // passes, (number + 1) * 256 // passes
            rows = [row for row in self._unsorted_rows() if low <= row[0] < high]
            rows.sort()
            yield b"".join(rows)

    def _unsorted_rows(self) -> Iterator[bytes]:
        self._rows.seek(0)
        while part := self._rows.read(ROW.size * 4096):
            if self._check is not None:
                self._check()
            for start in range(0, len(part), ROW.size):
                yield part[start : start + ROW.size]


class PackIndex(Mapping[bytes, Location]):
    """The frames of one pack by digest; each location is checked before it is handed out."""

    def __init__(self, fd: int, offset: int, count: int, where: str) -> None:
        self._fd = fd
        self._offset = offset
        self._count = count
        self._where = where
        small = count * ROW.size <= _INDEX_IN_MEMORY_BYTES
        self._bytes = _read(fd, count * ROW.size, offset, where) if small else None

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[bytes]:
        return (self._row(number)[:DIGEST_BYTES] for number in range(self._count))

    def __getitem__(self, digest: bytes) -> Location:
        number = self.find(digest)
        if number is None:
            raise KeyError(digest)
        return self.at(number)[1]

    def __contains__(self, digest: object) -> bool:
        return isinstance(digest, bytes) and self.find(digest) is not None

    def find(self, digest: bytes) -> int | None:
        """Return the number of the row of ``digest``, ``None`` if there is none.

        Raises:
            FormatError: The index is not in order, where that is noticed.
        """
        if self._count <= _ROWS_BY_DIGEST:
            return self._numbers.get(digest)
        number = bisect_left(range(self._count), digest, key=self._digest)
        return number if number < self._count and self._digest(number) == digest else None

    @cached_property
    def _numbers(self) -> dict[bytes, int]:
        """The numbers of the rows by digest.

        Raises:
            FormatError: They are not in order, or one is there twice: bisecting would find others than this does.
        """
        digests = list(self)
        if any(digest >= following for digest, following in pairwise(digests)):
            raise FormatError(f"{self._where}: the index is not in order", hint=HOW_TO_MEND)
        return {digest: number for number, digest in enumerate(digests)}

    def at(self, number: int) -> tuple[bytes, Location]:
        """Return the digest and location in row ``number``.

        Raises:
            FormatError: The location cannot be one.
        """
        digest, offset, stored_bytes, plain_bytes, codec = ROW.unpack(self._row(number))
        location = Location(offset, stored_bytes, plain_bytes, codec)
        check_location(location, self._offset, self._where)
        return digest, location

    def _digest(self, number: int) -> bytes:
        return self._row(number)[:DIGEST_BYTES]

    def _row(self, number: int) -> bytes:
        start = number * ROW.size
        if self._bytes is not None:
            return self._bytes[start : start + ROW.size]
        return _read(self._fd, ROW.size, self._offset + start, self._where)


class PackReader:
    """An open pack. Several threads may read at the same time.

    Raises (opening):
        MissingContentError: There is no such file, or it is cut short.
        FormatError: It is no pack, or of a version this ted does not know.
        DigestMismatchError: The index is damaged. Reading raises it, too, where the disk cannot read.
    """

    def __init__(self, path: Path, *, expected_bytes: int | None = None) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise MissingContentError(
                f"{path}: cannot be opened: {error.strerror}", hint=HOW_TO_MEND
            ) from error
        try:
            self.bytes = os.fstat(self._fd).st_size
            self.index = self._open_index(expected_bytes)
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Close the file; harmless when it is closed."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def stored(self, location: Location) -> bytes:
        """Return the stored bytes at ``location``."""
        data = self._read(location.stored_bytes, location.offset)
        if len(data) != location.stored_bytes:
            raise MissingContentError(f"{self.path}: ends within a frame", hint=HOW_TO_MEND)
        return data

    def read(self, digest: bytes, location: Location, *, checked: bool = True) -> bytes:
        """Return the plain bytes of a frame, compared with ``digest`` where they are to be ``checked``."""
        return decode(self.stored(location), location, digest, str(self.path), checked=checked)

    @property
    def index_offset(self) -> int:
        """Where the frames end and the index begins."""
        return self._index_offset

    def _open_index(self, expected_bytes: int | None) -> PackIndex:
        if expected_bytes is not None and self.bytes != expected_bytes:
            raise MissingContentError(
                f"{self.path}: has {self.bytes} bytes, the record says {expected_bytes}",
                hint=HOW_TO_MEND,
            )
        if self.bytes < EMPTY_PACK_BYTES:
            raise FormatError(f"{self.path}: too short to be a pack", hint=HOW_TO_MEND)
        _check_mark(self.path, *HEADER.unpack(self._read(HEADER.size, 0)))
        offset, count, digest, version, magic = TRAILER.unpack(self._read(TRAILER.size, self.bytes - TRAILER.size))
        _check_mark(self.path, magic, version)
        if offset < HEADER.size or offset + count * ROW.size + TRAILER.size != self.bytes:
            raise FormatError(f"{self.path}: the trailer does not fit the file")
        if self._digest_of(offset, count * ROW.size) != digest:
            raise DigestMismatchError(
                f"{self.path}: the index is damaged", hint=HOW_TO_MEND
            )
        self._index_offset: int = offset
        return PackIndex(self._fd, offset, count, str(self.path))

    def _digest_of(self, offset: int, size: int) -> bytes:
        digest = hashlib.sha256()
        for start in range(offset, offset + size, _COPY_BYTES):
            digest.update(self._read(min(_COPY_BYTES, offset + size - start), start))
        return digest.digest()

    def _read(self, size: int, offset: int) -> bytes:
        return _read(self._fd, size, offset, str(self.path))


def _read(fd: int, size: int, offset: int, where: str) -> bytes:
    try:
        return os.pread(fd, size, offset)
    except OSError as error:  # a sector that cannot be read is damage like any other
        raise DigestMismatchError(f"{where}: cannot be read at byte {offset}: {error.strerror}",
                                  hint=HOW_TO_MEND) from error  # fmt: skip


def _check_mark(path: Path, magic: bytes, version: int) -> None:
    if magic != MAGIC:
        raise FormatError(f"{path}: not a pack of ted", hint=HOW_TO_MEND)
    if version != VERSION:
        raise FormatError(
            f"{path}: pack format version {version}; this ted knows version {VERSION}",
            hint="install a newer ted on this node; nothing was changed",
        )
