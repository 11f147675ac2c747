"""Which old bytes return where: the new bytes as copies of old ones, copies with differences, and literals.

Rules:
 * New bytes come in order; for each file its old bytes are named, or none.
 * What did not move is copied block by block; in longer stretches that changed, chunks cut by content that are anywhere
   in the old file. What lies between, with the old bytes of the same gap, waits for a segment, in which HDiffPatch
   finds what is alike.
 * What moved elsewhere is looked for last: new bytes that are still literals against old ones that no copy took.
 * While one segment is compared in another thread, the next one is gathered.
 * Memory: those two, their old bytes, at most a million chunks of one old file (larger files, larger chunks), 24 bytes
   for each of at most half a million operations, and a map of at most 16 MiB of which old bytes are taken.
"""

from __future__ import annotations

import heapq
import re
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from hashlib import blake2b
from types import TracebackType
from typing import Protocol, Self

from pyfastcdc import FastCDC

from ted.content.patch.base import Span
from ted.content.patch.streams import StreamReader, StreamWriter
from ted.content.zstd import zstd_compress

SEGMENT_BYTES = 4 << 20
OLD_SEGMENT_BYTES = 8 << 20
CHUNK_BYTES = 512
BLOCK_BYTES = 4 << 10
MOST_CHUNKS = 1 << 20
STEP_BYTES = 2 << 20
MAX_COPY_BYTES = 1 << 20
_AROUND_BYTES = 256
_NEAR_BYTES = 64 << 10
_MOST_PENDING = 100_000
_MOST_OPERATIONS = 500_000
_MOST_UNITS = 16 << 20
_UNIT_BYTES = 32
_SHORTEST_MOVED_BYTES = 32
_SHORTEST_COPY_BYTES = 8
_SHORTEST_END_BYTES = 64
_LITERAL_STEP_BYTES = 1 << 20
_LOOK_BACK_UNITS = 64 << 10
_MAX_FRAME_BYTES = 4 << 20
_ENDLESS = 1 << 62
_WORTH_A_LOOK_BYTES = 64 << 10
_FREE = re.compile(rb"\0{2,}")
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


class Taken:
    """Which bytes of the base were taken by a copy, in units of 32 or more; what was not on offer counts as taken."""

    def __init__(self, end: int, offered: Iterable[Span]) -> None:
        self._end = end
        self._unit = max(_UNIT_BYTES, -(-end // _MOST_UNITS))
        self._map = bytearray(b"\1") * -(-end // self._unit)
        for start, length in offered:
            self._mark(start // self._unit, -(-(start + length) // self._unit), b"\0")

    def take(self, start: int, length: int) -> None:
        """Note a copy."""
        self._mark(-(-start // self._unit), (start + length) // self._unit, b"\1")

    def _mark(self, first: int, end: int, value: bytes) -> None:
        if end > first:
            self._map[first:end] = value * (end - first)

    def left(self) -> bool:
        """Whether nobody took some of it."""
        return self._map.find(0) >= 0

    def near(self, place: int, most_bytes: int) -> Iterator[Span]:
        """Yield runs that nobody took, in order: all, or of too many those around ``place``."""
        middle = first = min(place, self._end) // self._unit
        before = most_bytes - min(self._map.count(0, middle) * self._unit, most_bytes // 2)
        while first > 0 and self._map.count(0, first, middle) * self._unit < before:
            first = max(0, first - _LOOK_BACK_UNITS)
        for run in _FREE.finditer(self._map, first):
            start = run.start() * self._unit
            count = min(run.end() * self._unit, self._end, start + most_bytes) - start
            yield start, count
            most_bytes -= count
            if most_bytes <= 0:
                return


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
        offset, count = _within(offset, count, self.bytes)
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
        for name, start, length in _chunks(data, self._average):
            yield self._table.find(name), start, length

    def _make_table(self) -> ChunkTable:
        table = ChunkTable(self.bytes * 5 // (4 * self._average), self.bytes)
        for at in range(0, self.bytes, STEP_BYTES):
            for name, start, _ in _chunks(self.read(at, min(STEP_BYTES, self.bytes - at)), self._average):
                table.add(name, at + start)
        return table


def _within(offset: int, count: int, end: int) -> tuple[int, int]:
    """Return what of a range lies in 0 to ``end``."""
    start, stop = max(offset, 0), min(offset + count, end)
    return start, max(stop - start, 0)


def _runs(new: bytes, old: bytes) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, end, same) of runs of blocks that are the same or not in both."""
    start, was_same = 0, None
    for at in range(0, len(new), BLOCK_BYTES):
        same = new[at : at + BLOCK_BYTES] == old[at : at + BLOCK_BYTES]
        if was_same is not None and same is not was_same:
            yield start, at, was_same
            start = at
        was_same = same
    if was_same is not None:
        yield start, len(new), was_same


def _chunks(data: bytes, average: int) -> Iterator[tuple[int, int, int]]:
    """Yield name (never 0), start and length of each chunk."""
    for chunk in FastCDC(average, min_size=average // 4, max_size=average * 4).cut_buf(data):
        yield int.from_bytes(blake2b(chunk.data, digest_size=8).digest(), "little") or 1, chunk.offset, chunk.length


class CoverWriter:
    """Takes the new bytes in order and writes copies, differences and literals. A context manager.

    Args:
        out: The patch.
        base: The old bytes.
        read: (place, count) -> new bytes.
        gone: What of the base is not in the new revision as it was, so that it may have moved.
        exact: Chunks first; without, everything that changed in small files goes through the finer comparison (slower,
            smaller).
    """

    def __init__(
        self, out: StreamWriter, base: Line, read: Callable[[int, int], bytes], gone: Iterable[Span], *, exact: bool
    ) -> None:
        self._out = out
        self._base = base
        self._read = read
        self._exact = exact
        self._taken = Taken(base.size, gone)
        self._segment = Segment()
        self._copies: list[_Operation] = []
        self._comparing: deque[tuple[list[_Operation], Future[_Compared] | None]] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ted-compare")
        self._operations = _Operations()
        self._end = 0  # of the new bytes that were looked at
        self._done = 0  # new bytes written out as operations
        self._old_end = 0  # where the last copy written ended in the base
        self._owed = 0  # literals already written whose gap is told with the next operation
        self._other = 0  # literals written since the last run of text

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def same(self, place: int, spans: Iterable[Span]) -> None:
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
        self._note(0)
        self._write()

    # finding

    def _step(self, place: int, count: int, old: OldFile | None, old_offset: int) -> None:
        data = self._read(place, count)
        if old is None or not old.bytes:
            self._resemble(place, data, None, 0, 0)
        elif not self._exact and old.bytes <= STEP_BYTES:
            self._resemble(place, data, old, 0, old.bytes)
        else:
            at = 0
            while at < count:
                at += self._in_place(place + at, data[at:], old, old_offset + at)

    def _in_place(self, place: int, data: bytes, old: OldFile, old_offset: int) -> int:
        """Copy blocks that did not move; return how far it went: to where what follows has moved."""
        offset = old_offset + old.drift
        was = old.read(offset, len(data)) if offset >= 0 else b""
        for start, end, same in _runs(data, was):
            if same:
                self.same(place + start, old.pieces(offset + start, end - start))
            elif end - start <= _NEAR_BYTES:
                around = _within(offset + start - _AROUND_BYTES, end - start + 2 * _AROUND_BYTES, old.bytes)
                self._resemble(place + start, data[start:end], old, around[0], sum(around))
            elif self._by_chunks(place + start, data[start:end], old, old_offset + start):
                return end
        return len(data)

    def _by_chunks(self, place: int, data: bytes, old: OldFile, old_offset: int) -> bool:
        """Copy the chunks that are in the old file, wherever; return whether the last one has another drift."""
        drift = old.drift
        open_at: int | None = None
        low = max(0, min(old_offset + drift, old.bytes))
        for found, start, length in old.chunks_like(data):
            if found is None:
                open_at = start if open_at is None else open_at
                continue
            here = old_offset + old.drift + start
            if found != here and here >= 0 and old.read(here, length) == data[start : start + length]:
                found = here  # noqa: PLW2901 -- of equal chunks the nearest
            if open_at is not None:
                self._gap(place, data, open_at, start, old, low, found)
                open_at = None
            self.same(place + start, old.pieces(found, length))
            low = found + length
            old.drift = found - old_offset - start
        if open_at is not None:
            self._gap(place, data, open_at, len(data), old, low, None)
        return old.drift != drift

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
        self._end = place + len(data)
        if old is not None and high > low:
            for start, length in old.pieces(low, high - low):
                segment.old.append(Part(start, self._base.read(start, length)))
            segment.old_bytes += high - low
        if segment.new_bytes >= SEGMENT_BYTES or segment.old_bytes >= OLD_SEGMENT_BYTES:
            self._flush()

    def _copy(self, place: int, start: int, length: int) -> None:
        if self._copies:
            last_place, last_start, last_length, _ = self._copies[-1]
            if (last_place + last_length, last_start + last_length) == (place, start):
                self._copies[-1] = (last_place, last_start, last_length + length, False)
                self._end = place + length
                return
        if len(self._copies) >= _MOST_PENDING:
            self._flush()
        self._copies.append((place, start, length, False))
        self._end = place + length

    def _flush(self) -> None:
        """Have what waits in the segment compared, and note all operations before it."""
        segment, self._segment = self._segment, Segment()
        copies, self._copies = self._copies, []
        self._comparing.append((copies, self._pool.submit(_compare, segment) if segment.old else None))
        self._note(1)
        if len(self._operations) >= _MOST_OPERATIONS:
            self._note(0)
            self._write()

    def _note(self, waiting: int) -> None:
        """Note the operations of all but the last ``waiting`` segments."""
        while len(self._comparing) > waiting:
            found, comparing = self._comparing.popleft()
            if comparing is not None:
                found += self._alike(comparing.result())
            found.sort()
            for operation in found:
                self._operations.add(operation)
                self._taken.take(*operation[1:3])

    def _alike(self, compared: _Compared) -> Iterator[_Operation]:
        new, found = compared
        for place, start, length in found:
            if length >= _SHORTEST_COPY_BYTES:
                yield from _trimmed(place, start, new.at(place, length), self._base.read(start, length))

    # what moved

    def _moved(self) -> Iterator[_Operation]:
        """Yield what is alike in the new bytes that nothing gives yet and the old ones that nobody took."""
        segment = Segment()
        for place, count in self._open() if self._taken.left() else ():
            for at in range(place, place + count, SEGMENT_BYTES):
                data = self._read(at, min(SEGMENT_BYTES, place + count - at))
                segment.new.append(Part(at, data))
                segment.new_bytes += len(data)
                if segment.new_bytes >= SEGMENT_BYTES:
                    yield from self._elsewhere(segment)
                    segment = Segment()
        if segment.new:
            yield from self._elsewhere(segment)

    def _elsewhere(self, segment: Segment) -> list[_Operation]:
        """Return what of the segment is alike in old bytes that nobody took, of too many those in about its place."""
        middle = segment.new[len(segment.new) // 2].place * self._base.size // max(self._end, 1)
        for start, count in self._taken.near(middle, OLD_SEGMENT_BYTES):
            segment.old.append(Part(start, self._base.read(start, count)))
        return sorted(self._alike(_compare(segment)))

    def _open(self) -> Iterator[Span]:
        """Yield (place, bytes) of the literals that are long enough to have come from elsewhere."""
        done = self._done
        for place, _, length, _ in self._operations:
            if place - done >= _SHORTEST_MOVED_BYTES:
                yield done, place - done
            done = place + length
        if self._end - done >= _SHORTEST_MOVED_BYTES:
            yield done, self._end - done

    # writing

    def _write(self) -> None:
        for place, start, length, differs in heapq.merge(self._operations, self._moved()):
            self._out.number("gaps", place - self._done + self._owed)
            self._literals(place)
            self._owed = 0
            self._operation(place, start, length, differs=differs)
        self._operations = _Operations()
        self._owed += self._end - self._done
        self._literals(self._end)

    def _literals(self, until: int) -> None:
        for at in range(self._done, until, _LITERAL_STEP_BYTES):
            self._literal(self._read(at, min(_LITERAL_STEP_BYTES, until - at)))
        self._done = max(self._done, until)

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

    def _operation(self, place: int, start: int, length: int, *, differs: bool) -> None:
        self._out.number("lengths", length << 1 | differs)
        self._out.signed("places", start - self._old_end)
        if differs:
            self._out.data("differences", difference(self._read(place, length), self._base.read(start, length)))
        self._old_end = start + length
        self._done = place + length


_Operation = tuple[int, int, int, bool]
"""(place in the new bytes, place in the base, length, whether the bytes differ)."""


def _trimmed(place: int, start: int, now: bytes, was: bytes) -> Iterator[_Operation]:
    """Yield the copy of ``was`` that gives ``now``; longer ends that are the same go on their own."""
    if now == was:
        yield place, start, len(now), False
        return
    differs = difference(now, was)
    first, end = len(now) - len(differs.lstrip(b"\0")), len(differs.rstrip(b"\0"))
    first = first if first >= _SHORTEST_END_BYTES else 0
    end = end if len(now) - end >= _SHORTEST_END_BYTES else len(now)
    if first:
        yield place, start, first, False
    yield place + first, start + first, end - first, True
    if end < len(now):
        yield place + end, start + end, len(now) - end, False


class _Operations:
    """Many operations in rising order, 24 bytes each."""

    def __init__(self) -> None:
        self._numbers = array("Q")

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def __iter__(self) -> Iterator[_Operation]:
        for at in range(0, len(self._numbers), 3):
            place, start, told = self._numbers[at : at + 3]
            yield place, start, told >> 1, bool(told & 1)

    def add(self, operation: _Operation) -> None:
        """Append an operation; exact copies that go on from the last one lengthen it."""
        place, start, length, differs = operation
        numbers = self._numbers
        if numbers and not differs and not numbers[-1] & 1:
            before = numbers[-1] >> 1
            if numbers[-3] + before == place and numbers[-2] + before == start:
                numbers[-1] += length << 1
                return
        numbers.extend((place, start, length << 1 | differs))


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


_Compared = tuple[Joined, list[tuple[int, int, int]]]
"""The new bytes of a segment, and what ``_alike`` found in them."""


def _compare(segment: Segment) -> _Compared:
    new = Joined(segment.new)
    return new, list(_alike(new, Joined(segment.old)))


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
    """Gives back the new bytes, in order; ``check`` is called for each part of them."""

    def __init__(
        self, patch: StreamReader, base: Line, total_bytes: int, check: Callable[[], None] = lambda: None
    ) -> None:
        self._check = check
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
        first = self._part(count) if count else b""
        if len(first) == count:
            return first
        data = bytearray(first)  # there may be as many parts as bytes
        while len(data) < count:
            data += self._part(count - len(data))
        return bytes(data)

    def _part(self, count: int) -> bytes:
        self._check()
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
        data = bytearray()
        while len(data) < count:
            self._check()
            if not self._other and not self._text:
                if self._patch.at_end("runs"):
                    self._other = _ENDLESS  # no more text
                else:
                    self._other, self._text = self._patch.number("runs"), self._patch.number("runs")
                    if not self._other and not self._text:
                        raise self._patch.refuse("runs of nothing")
            stream, size = ("literals", self._other) if self._other else ("text", self._text)
            size = min(size, count - len(data))
            if self._other:
                self._other -= size
            else:
                self._text -= size
            data += self._patch.data(stream, size)
        return bytes(data)

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
