"""Which old bytes return where: the new bytes as copies of old ones, copies with differences, and literals.

Rules:
 * New bytes come in order; for each file its old bytes are named, or none.
 * Chunks cut by content that are in the old file near the same place are copied as they are. What lies between, with
   the old bytes of the same gap, waits for a segment of at most 8 MiB, in which HDiffPatch finds what is alike.
 * Memory: one segment, its old bytes, and at most a million chunks of one old file: larger files, larger chunks.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Protocol

from pyfastcdc import FastCDC

from ted.content.patch.base import Span
from ted.content.patch.streams import StreamReader, StreamWriter
from ted.content.zstd import zstd_compress

SEGMENT_BYTES = 8 << 20
CHUNK_BYTES = 512
MOST_CHUNKS = 1 << 20
STEP_BYTES = 2 << 20
MAX_COPY_BYTES = 1 << 20
_AROUND_BYTES = 256
_MOST_PENDING = 100_000
_MAX_FRAME_BYTES = 4 << 20
_ENDLESS = 1 << 62
_WORTH_A_LOOK_BYTES = 64 << 10
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{32,}")


class Line(Protocol):
    """The old bytes as one run, whatever lies behind it."""

    @property
    def size(self) -> int:
        """Bytes of the line."""

    def read(self, place: int, count: int, /) -> bytes:
        """Return ``count`` bytes of the line; raises ``FormatError`` if they are not all in it."""


@dataclass(slots=True)
class Part:
    """Bytes that lie somewhere: ``place`` in the new bytes or in the base."""

    place: int
    data: bytes


@dataclass(slots=True)
class Segment:
    """New bytes without an exact copy, and the old bytes they may resemble."""

    new: list[Part] = field(default_factory=list)
    old: list[Part] = field(default_factory=list)
    new_bytes: int = 0
    old_bytes: int = 0


class ChunkTable:
    """Offsets of chunks by name, in 16 bytes a slot; the first of equal chunks counts."""

    def __init__(self, most: int) -> None:
        self._mask = (1 << max(10, (most * 3 // 2).bit_length())) - 1
        self._names = array("Q", bytes(8 * (self._mask + 1)))
        self._offsets = array("Q", bytes(8 * (self._mask + 1)))
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
        number = bisect_right(self._starts, offset) - 1
        while count > 0:
            place, length = self._spans[number]
            inside = offset - self._starts[number]
            part = min(count, length - inside)
            yield place + inside, part
            offset, count, number = offset + part, count - part, number + 1

    def read(self, offset: int, count: int) -> bytes:
        """Return bytes of the file."""
        return b"".join(self._base.read(place, length) for place, length in self.pieces(offset, count))

    def chunks_like(self, data: bytes) -> Iterator[tuple[int | None, int, int]]:
        """Yield (offset of the same bytes in the old file or ``None``, start, length) of each chunk of ``data``."""
        if self._table is None:
            self._table = self._make_table()
        for name, start, length in _chunks(data, self._average):
            yield self._table.find(name), start, length

    def _make_table(self) -> ChunkTable:
        table = ChunkTable(2 * self.bytes // self._average)
        for at in range(0, self.bytes, STEP_BYTES):
            for name, start, _ in _chunks(self.read(at, min(STEP_BYTES, self.bytes - at)), self._average):
                table.add(name, at + start)
        return table


def _chunks(data: bytes, average: int) -> Iterator[tuple[int, int, int]]:
    """Yield name (never 0), start and length of each chunk."""
    for chunk in FastCDC(average, min_size=average // 4, max_size=average * 4).cut_buf(data):
        yield int.from_bytes(blake2b(chunk.data, digest_size=8).digest(), "little") or 1, chunk.offset, chunk.length


class CoverWriter:
    """Takes the new bytes in order and writes copies, differences and literals.

    Args:
        out: The patch.
        base: The old bytes.
        read: (place, count) -> new bytes.
        exact: Chunks first; without, everything that changed goes through the finer comparison (slower, smaller).
    """

    def __init__(self, out: StreamWriter, base: Line, read: Callable[[int, int], bytes], *, exact: bool) -> None:
        self._out = out
        self._base = base
        self._read = read
        self._exact = exact
        self._segment = Segment()
        self._copies: list[tuple[int, int, int]] = []
        self._done = 0  # new bytes written out as operations
        self._old_end = 0  # where the last copy ended in the base
        self._owed = 0  # literals already written whose gap is told with the next operation
        self._other = 0  # literals written since the last run of text

    def same(self, place: int, spans: list[Span]) -> None:
        """The new bytes at ``place`` are exactly those old ones."""
        for start, length in spans:
            self._copy(place, start, length)
            place += length

    def take(self, place: int, count: int, old: OldFile | None, old_offset: int) -> None:
        """Take new bytes.

        Args:
            place: Where they begin among the new bytes.
            count: How many.
            old: The file they may resemble.
            old_offset: Where in it the like of their first byte may be.
        """
        for start in range(0, count, STEP_BYTES):
            self._step(place + start, min(STEP_BYTES, count - start), old, old_offset + start)

    def finish(self) -> None:
        """Write what waits."""
        self._flush()

    def _step(self, place: int, count: int, old: OldFile | None, old_offset: int) -> None:
        data = self._read(place, count)
        if old is None or not old.bytes:
            self._resemble(place, data, None, 0, 0)
            return
        if not self._exact and old.bytes <= STEP_BYTES:
            self._resemble(place, data, old, 0, old.bytes)
            return
        guess = max(0, min(old_offset + old.drift, old.bytes))
        open_at: int | None = None
        low = guess
        for found, start, length in old.chunks_like(data):
            if found is None:
                open_at = start if open_at is None else open_at
                continue
            if open_at is not None:
                self._gap(place, data, open_at, start, old, low, found)
                open_at = None
            self.same(place + start, list(old.pieces(found, length)))
            low = found + length
            old.drift = found - old_offset - start
        if open_at is not None:
            self._gap(place, data, open_at, len(data), old, low, None)

    def _gap(
        self, place: int, data: bytes, start: int, end: int, old: OldFile, low: int, high: int | None
    ) -> None:  # fmt: skip
        size = end - start
        if high is None or high < low or high - low > 4 * size + (64 << 10):
            high = low + 2 * size + (4 << 10)
        low, high = max(0, low - _AROUND_BYTES), min(old.bytes, high + _AROUND_BYTES)
        self._resemble(place + start, data[start:end], old, low, high)

    def _resemble(self, place: int, data: bytes, old: OldFile | None, low: int, high: int) -> None:
        segment = self._segment
        segment.new.append(Part(place, data))
        segment.new_bytes += len(data)
        if old is not None and high > low:
            for start, length in old.pieces(low, high - low):
                segment.old.append(Part(start, self._base.read(start, length)))
            segment.old_bytes += high - low
        if segment.new_bytes >= SEGMENT_BYTES or segment.old_bytes >= 2 * SEGMENT_BYTES:
            self._flush()

    def _copy(self, place: int, start: int, length: int) -> None:
        if self._copies:
            last_place, last_start, last_length = self._copies[-1]
            if (last_place + last_length, last_start + last_length) == (place, start):
                self._copies[-1] = (last_place, last_start, last_length + length)
                return
        if len(self._copies) >= _MOST_PENDING:
            self._flush()
        self._copies.append((place, start, length))

    def _flush(self) -> None:
        segment, self._segment = self._segment, Segment()
        copies, self._copies = self._copies, []
        new = Joined(segment.new)
        operations = [(*copy, False) for copy in copies]
        operations += [(*cover, True) for cover in _alike(new, Joined(segment.old))]
        operations.sort()
        for place, start, length, compare in operations:
            self._literals(new, place)
            self._operation(new, place, start, length, compare=compare)
        self._literals_to_end(new)

    def _literals(self, new: Joined, until: int) -> None:
        """Write the new bytes from where we are to ``until``: all of them wait in the segment."""
        self._out.number("gaps", until - self._done + self._owed)
        self._owed = 0
        self._literal(new.at(self._done, until - self._done))
        self._done = until

    def _literals_to_end(self, new: Joined) -> None:
        end = new.end
        if end > self._done:
            self._literal(new.at(self._done, end - self._done))
            self._owed += end - self._done
            self._done = end

    def _literal(self, data: bytes) -> None:
        """Write literals: longer runs of text apart from the rest, since they pack better alone."""
        at = 0
        for run in _TEXT.finditer(data) if data else ():
            self._other += run.start() - at
            self._out.data("literals", data[at : run.start()])
            self._out.number("runs", self._other)
            self._out.number("runs", run.end() - run.start())
            self._out.data("text", run.group())
            self._other, at = 0, run.end()
        self._other += len(data) - at
        self._out.data("literals", data[at:])

    def _operation(self, new: Joined, place: int, start: int, length: int, *, compare: bool) -> None:
        differs = b""
        if compare:
            now, was = new.at(place, length), self._base.read(start, length)
            differs = difference(now, was) if now != was else b""
        self._out.number("lengths", length << 1 | bool(differs))
        self._out.signed("places", start - self._old_end)
        self._out.data("differences", differs)
        self._old_end = start + length
        self._done = place + length


class Joined:
    """Parts as one run of bytes, and back to where they lie."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self.data = b"".join(part.data for part in parts)
        self._places = [part.place for part in parts]
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + len(part.data))

    @property
    def end(self) -> int:
        """The place after the last byte; 0 if there is none."""
        return self.parts[-1].place + len(self.parts[-1].data) if self.parts else 0

    def place_of(self, offset: int) -> tuple[int, int]:
        """Return the place of the byte at ``offset``, and how many bytes follow on from there in its part."""
        number = bisect_right(self._starts, offset) - 1
        inside = offset - self._starts[number]
        return self.parts[number].place + inside, len(self.parts[number].data) - inside

    def at(self, place: int, count: int) -> bytes:
        """Return the bytes at a place (of parts in rising order)."""
        if not count:
            return b""
        number = bisect_right(self._places, place) - 1
        start = self._starts[number] + place - self._places[number]
        return self.data[start : start + count]


def _alike(new: Joined, old: Joined) -> Iterator[tuple[int, int, int]]:
    """Yield (place in the new bytes, place in the base, length) of what is alike, nothing across two parts."""
    if not new.data or not old.data:
        return
    for old_at, new_at, length in _found_by_hdiffpatch(old.data, new.data):
        at, was, left = new_at, old_at, length
        while left:
            place, new_run = new.place_of(at)
            start, old_run = old.place_of(was)
            part = min(left, new_run, old_run)
            yield place, start, part
            at, was, left = at + part, was + part, left - part


def _found_by_hdiffpatch(old: bytes, new: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (old offset, new offset, length) of what HDiffPatch finds alike.

    Only the list of covers in its own format (``HDIFF13``) is used: sizes, then for each cover the step in the old
    bytes (with a sign bit), the gap in the new ones, the length; numbers are seven bits a byte, highest first.
    """
    try:
        import hdiffpatch
    except ImportError:  # no wheel for this machine: only equal chunks are found
        return
    if _resembles_nothing(old, new):
        return
    found = hdiffpatch.diff(old, new, None, validate=False)
    at = found.index(b"\0") + 1
    sizes = []
    for _ in range(11):
        value, at = _number(found, at, 0)
        sizes.append(value)
    old_end = new_end = 0
    for _ in range(sizes[2]):
        back = found[at] >> 7
        step, at = _number(found, at, 1)
        gap, at = _number(found, at, 0)
        length, at = _number(found, at, 0)
        old_at, new_at = old_end - step if back else old_end + step, new_end + gap
        if old_at < 0 or old_at + length > len(old) or new_at + length > len(new):
            return  # a format we do not know: what is left is literals
        yield old_at, new_at, length
        old_end, new_end = old_at + length, new_at + length


def _resembles_nothing(old: bytes, new: bytes) -> bool:
    """Whether ``new`` is packed or sealed and not one chunk of it is in ``old``: comparing that takes 3 s for a MiB."""
    if len(new) < _WORTH_A_LOOK_BYTES or len(zstd_compress(new, 1)) < len(new) * 0.98:
        return False
    names = {name for name, _, _ in _chunks(old, CHUNK_BYTES)}
    return all(name not in names for name, _, _ in _chunks(new, CHUNK_BYTES))


def _number(data: bytes, at: int, tag_bits: int) -> tuple[int, int]:
    more = 0x80 >> tag_bits
    value = data[at] & (more - 1)
    go_on = data[at] & more
    at += 1
    while go_on:
        value = value << 7 | data[at] & 127
        go_on = data[at] & 128
        at += 1
    return value, at


def difference(new: bytes, old: bytes) -> bytes:
    """Return ``new`` minus ``old``, byte by byte, modulo 256."""
    low, high = _masks(len(new))
    a, b = int.from_bytes(new, "little"), int.from_bytes(old, "little")
    return (((a | high) - (b & low)) ^ ((a ^ ~b) & high)).to_bytes(len(new), "little")


def added(old: bytes, differs: bytes) -> bytes:
    """Return ``old`` plus ``differs``, byte by byte, modulo 256."""
    low, high = _masks(len(old))
    a, b = int.from_bytes(old, "little"), int.from_bytes(differs, "little")
    return (((a & low) + (b & low)) ^ ((a ^ b) & high)).to_bytes(len(old), "little")


def _masks(size: int) -> tuple[int, int]:
    return int.from_bytes(b"\x7f" * size, "little"), int.from_bytes(b"\x80" * size, "little")


class CoverReader:
    """Gives back the new bytes, in order."""

    def __init__(self, patch: StreamReader, base: Line, total_bytes: int) -> None:
        self._patch = patch
        self._base = base
        self._left = total_bytes
        self._literals = 0
        self._other = self._text = 0
        self._copy: tuple[int, int, bool] | None = None
        self._old_end = 0

    def read(self, count: int) -> bytes:
        """Return the next ``count`` bytes, at most a frame's.

        Raises:
            FormatError: The patch has not got them.
        """
        if count > min(self._left, _MAX_FRAME_BYTES):
            raise self._patch.refuse("more new bytes than were announced")
        self._left -= count
        parts = []
        while count:
            part = self._part(count)
            count -= len(part)
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, count: int) -> bytes:
        if not self._literals and self._copy is None:
            self._operation()
        if self._literals:
            size = min(count, self._literals)
            self._literals -= size
            return self._literal(size)
        if self._copy is None:
            raise self._patch.refuse("an operation that does nothing")
        start, length, differs = self._copy
        size = min(count, length, MAX_COPY_BYTES)
        data = self._base.read(start, size)
        if differs:
            data = added(data, self._patch.data("differences", size))
        self._copy = (start + size, length - size, differs) if size < length else None
        return data

    def _literal(self, count: int) -> bytes:
        parts = []
        while count:
            if not self._other and not self._text:
                if self._patch.at_end("runs"):
                    self._other = _ENDLESS  # no more text
                else:
                    self._other, self._text = self._patch.number("runs"), self._patch.number("runs")
            stream, size = ("literals", min(count, self._other)) if self._other else ("text", min(count, self._text))
            if self._other:
                self._other -= size
            else:
                self._text -= size
            parts.append(self._patch.data(stream, size))
            count -= size
        return b"".join(parts)

    def _operation(self) -> None:
        patch = self._patch
        if patch.at_end("gaps"):
            self._literals = _ENDLESS  # no more copies: the rest is literals
            return
        self._literals = patch.number("gaps")
        told = patch.number("lengths")
        start = self._old_end + patch.signed("places")
        length = told >> 1
        if not length or start < 0 or start + length > self._base.size:
            raise patch.refuse("a copy of what is not there")
        self._old_end = start + length
        self._copy = (start, length, bool(told & 1))
