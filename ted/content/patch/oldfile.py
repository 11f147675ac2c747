"""A file of the old revision: its bytes by its own offsets, and its chunks, wherever they are."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator
from hashlib import blake2b
from typing import Protocol

from pyfastcdc import FastCDC

from ted.content.patch.base import Span

CHUNK_BYTES = 1024
MOST_CHUNKS = 1 << 20
STEP_BYTES = 2 << 20


class Line(Protocol):
    """The old bytes as one run, whatever lies behind it."""

    @property
    def size(self) -> int:
        """Bytes of the line."""

    def read(self, place: int, count: int, /) -> bytes:
        """Return ``count`` bytes of the line; raises ``FormatError`` if they are not all in it."""


class ChunkTable:
    """Offsets of chunks by name, in 12 bytes a slot (16 beyond 4 GiB); the first of equal chunks counts."""

    def __init__(self, most: int, end: int) -> None:
        self._mask = (1 << max(10, (most * 4 // 3).bit_length())) - 1
        self._names = array("Q", bytes(8 * (self._mask + 1)))
        self._offsets = array("I", bytes(4 * (self._mask + 1))) if end < 1 << 32 else array("Q", self._names)
        self._room = self._mask * 4 // 5

    def add(self, name: int, offset: int) -> None:
        """Note a chunk; a full table takes no more."""
        slot = name & self._mask
        while self._names[slot]:
            if self._names[slot] == name:
                return
            slot = (slot + 1) & self._mask
        if self._room:
            self._room -= 1
            self._names[slot], self._offsets[slot] = name, offset

    def find(self, name: int) -> int | None:
        """Return where a chunk of that name lies."""
        slot = name & self._mask
        while found := self._names[slot]:
            if found == name:
                return self._offsets[slot]
            slot = (slot + 1) & self._mask
        return None


class OldFile:
    """A file of the base, read by its own offsets.

    ``drift`` is how far the old bytes lie behind the new ones they resemble, as last seen.
    """

    def __init__(self, base: Line, spans: list[Span]) -> None:
        self._base = base
        self._starts = [0]
        self._spans = spans
        for _, length in spans:
            self._starts.append(self._starts[-1] + length)
        self.bytes = self._starts[-1]
        self.drift = 0
        self._average = CHUNK_BYTES
        while self.bytes // self._average > MOST_CHUNKS:
            self._average *= 2
        self._table: ChunkTable | None = None

    def pieces(self, offset: int, count: int) -> Iterator[Span]:
        """Yield where the bytes from ``offset`` on lie in the base."""
        offset, count = within(offset, count, self.bytes)
        number = bisect_right(self._starts, offset) - 1
        while count > 0:
            place, length = self._spans[number]
            inside = offset - self._starts[number]
            part = min(count, length - inside)
            yield place + inside, part
            offset, count, number = offset + part, count - part, number + 1

    def read(self, offset: int, count: int) -> bytes:
        """Return bytes of the file, those of them that there are."""
        return b"".join(self._base.read(place, length) for place, length in self.pieces(offset, count))

    def chunks_like(self, data: bytes) -> Iterator[tuple[int | None, int, int]]:
        """Yield (offset of the same bytes in the old file or ``None``, start, length) of each chunk of ``data``."""
        if self._table is None:
            self._table = self._make_table()
        for name, start, length in chunks(data, self._average):
            yield self._table.find(name), start, length

    def _make_table(self) -> ChunkTable:
        table = ChunkTable(self.bytes * 5 // (4 * self._average), self.bytes)
        for at in range(0, self.bytes, STEP_BYTES):
            for name, start, _ in chunks(self.read(at, min(STEP_BYTES, self.bytes - at)), self._average):
                table.add(name, at + start)
        return table


def within(offset: int, count: int, end: int) -> tuple[int, int]:
    """Return what of a range lies in 0 to ``end``."""
    start, stop = max(offset, 0), min(offset + count, end)
    return start, max(stop - start, 0)


def chunks(data: bytes, average: int) -> Iterator[tuple[int, int, int]]:
    """Yield name (never 0), start and length of each chunk."""
    for chunk in FastCDC(average, min_size=average // 4, max_size=average * 4).cut_buf(data):
        yield int.from_bytes(blake2b(chunk.data, digest_size=8).digest(), "little") or 1, chunk.offset, chunk.length
