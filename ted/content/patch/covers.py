"""Which old bytes return where: the new bytes as copies of old ones, copies with differences, and literals.

Rules:
 * New bytes come in order; for each file its old bytes are named, or none.
 * What did not move is copied block by block; in longer stretches that changed, chunks cut by content that are anywhere
   in the old file. What lies between waits for a segment, with the old bytes of the same gap, and HDiffPatch finds what
   is alike. Where time counts, what lies alongside the old bytes from either end of its gap is copied at once, with
   its differences.
 * What moved elsewhere is looked for last: new bytes that are still literals against old ones that no copy took.
 * While segments are compared in other threads, the next one is gathered.
 * Memory: those segments, their old bytes, at most a million chunks of one old file (larger files, larger chunks), 24
   bytes for each of at most half a million operations, and a map of at most 16 MiB of which old bytes are taken.
   Differences wait in a file, at most about 256 MiB of them.
"""

from __future__ import annotations

import heapq
import os
import re
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import IO, Self

from ted.content.patch.alike import Compared, Part, Segment, compare
from ted.content.patch.base import Span
from ted.content.patch.bytewise import added, alongside, alongside_from_end, difference
from ted.content.patch.oldfile import STEP_BYTES, Line, OldFile
from ted.content.patch.streams import StreamReader, StreamWriter

SEGMENT_BYTES = 4 << 20
OLD_SEGMENT_BYTES = 8 << 20
BLOCK_BYTES = 4 << 10
MAX_COPY_BYTES = 1 << 20
_AROUND_BYTES = 256
_NEAR_BYTES = 64 << 10
_FAR_BYTES = 64 << 10
_MOST_PENDING = 100_000
_MOST_OPERATIONS = 500_000
_MOST_DIFFERING_BYTES = 256 << 20
_MOST_UNITS = 16 << 20
_UNIT_BYTES = 32
_SHORTEST_MOVED_BYTES = 32
_SHORTEST_COPY_BYTES = 8
_SHORTEST_END_BYTES = 64
_WORTH_A_LOOK_BYTES = 256
_LITERAL_STEP_BYTES = 1 << 20
_LOOK_BACK_UNITS = 64 << 10
_MAX_FRAME_BYTES = 4 << 20
_ENDLESS = 1 << 62
_FREE = re.compile(rb"\0{2,}")
_TEXT = re.compile(rb"[\t\n\r\x20-\x7e]{32,}")


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
        while first > 0 and before > 0:
            last, first = first, max(0, first - _LOOK_BACK_UNITS)
            before -= self._map.count(0, first, last) * self._unit
        for run in _FREE.finditer(self._map, first):
            start = run.start() * self._unit
            count = min(run.end() * self._unit, self._end, start + most_bytes) - start
            yield start, count
            most_bytes -= count
            if most_bytes <= 0:
                return


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


class CoverWriter:
    """Takes the new bytes in order and writes copies, differences and literals. A context manager.

    Args:
        out: The patch.
        base: The old bytes.
        read: (place, count) -> new bytes.
        gone: What of the base is not in the new revision as it was, so that it may have moved.
        exact: Chunks first, and what lies alongside; without, everything that changed in small files goes through the
            finer comparison (slower, smaller).
    """

    def __init__(
        self, out: StreamWriter, base: Line, read: Callable[[int, int], bytes], gone: Iterable[Span], *, exact: bool
    ) -> None:
        self._out = out
        self._base = base
        self._read = read
        self._exact = exact
        self._threads = 2 if exact else 1  # so many segments are compared at a time, half as large
        self._most_new, self._most_old = SEGMENT_BYTES // self._threads, OLD_SEGMENT_BYTES // self._threads
        self._taken = Taken(base.size, gone)
        self._segment = Segment()
        self._copies: list[_Operation] = []
        self._copied_bytes = 0  # what is different in them
        self._comparing: deque[tuple[list[_Operation], Future[Compared] | None]] = deque()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="ted-compare")
        self._operations = _Operations(out.beside())
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
                high = offset + end if offset + end <= old.bytes else None
                self._gap(place + start, data[start:end], old, offset + start, high)
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
                self._gap(place + open_at, data[open_at:start], old, low, found)
                open_at = None
            self.same(place + start, old.pieces(found, length))
            low = found + length
            old.drift = found - old_offset - start
        if open_at is not None:
            self._gap(place + open_at, data[open_at:], old, low, None)
        return old.drift != drift

    def _gap(self, place: int, new: bytes, old: OldFile, low: int, high: int | None) -> None:
        """Take new bytes that are between what comes before ``low`` in the old file and what comes from ``high`` on."""
        first = last = 0
        looks = self._exact and len(new) >= _WORTH_A_LOOK_BYTES
        if looks and low >= 0:
            first = alongside(new, old.read(low, len(new)))
        rest = len(new) - first
        if looks and rest and high is not None and high >= rest:
            last = alongside_from_end(new[first:], old.read(high - rest, rest))
        self._alongside(place, new[:first], old, low)
        if rest > last:
            end = high - last if high is not None else None
            self._between(place + first, new[first : len(new) - last], old, low + first, end)
        if high is not None:
            self._alongside(place + len(new) - last, new[len(new) - last :], old, high - last)

    def _alongside(self, place: int, new: bytes, old: OldFile, offset: int) -> None:
        """Copy the old bytes from ``offset`` on with what is different in the new ones."""
        at = 0
        for start, length in old.pieces(offset, len(new)):
            for operation in _trimmed(place + at, start, new[at : at + length], self._base.read(start, length)):
                self._add(operation)
            at += length

    def _between(self, place: int, new: bytes, old: OldFile, low: int, high: int | None) -> None:
        if high is None or high < low or high - low > 4 * len(new) + _FAR_BYTES:
            high = low + len(new) + (len(new) // 4 if self._exact else len(new)) + BLOCK_BYTES
        self._resemble(place, new, old, max(0, low - _AROUND_BYTES), min(old.bytes, high + _AROUND_BYTES))

    def _resemble(self, place: int, data: bytes, old: OldFile | None, low: int, high: int) -> None:
        segment = self._segment
        segment.new.append(Part(place, data))
        segment.new_bytes += len(data)
        self._end = place + len(data)
        if old is not None and high > low:
            for start, length in old.pieces(low, high - low):
                segment.old.append(Part(start, self._base.read(start, length)))
            segment.old_bytes += high - low
        if segment.new_bytes >= self._most_new or segment.old_bytes >= self._most_old:
            self._flush()

    def _copy(self, place: int, start: int, length: int) -> None:
        if self._copies:
            last_place, last_start, last_length, differs = self._copies[-1]
            if not differs and (last_place + last_length, last_start + last_length) == (place, start):
                self._copies[-1] = (last_place, last_start, last_length + length, b"")
                self._end = place + length
                return
        self._add((place, start, length, b""))

    def _add(self, operation: _Operation) -> None:
        if len(self._copies) >= _MOST_PENDING or self._copied_bytes >= SEGMENT_BYTES:
            self._flush()
        self._copies.append(operation)
        self._copied_bytes += len(operation[3])
        self._end = operation[0] + operation[2]

    def _flush(self) -> None:
        """Have what waits in the segment compared, and note all operations before it."""
        segment, self._segment = self._segment, Segment()
        copies, self._copies, self._copied_bytes = self._copies, [], 0
        self._comparing.append((copies, self._pool.submit(compare, segment) if segment.old else None))
        self._note(self._threads)
        if len(self._operations) >= _MOST_OPERATIONS or self._operations.differing_bytes >= _MOST_DIFFERING_BYTES:
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

    def _alike(self, compared: Compared) -> Iterator[_Operation]:
        new, found = compared
        for place, start, length in found:
            if length >= _SHORTEST_COPY_BYTES:
                yield from _trimmed(place, start, new.at(place, length), self._base.read(start, length))

    # what moved

    def _moved(self) -> Iterator[_Operation]:
        """Yield what is alike in the new bytes that nothing gives yet and the old ones that nobody took."""
        comparing: deque[Future[Compared]] = deque()
        for segment in self._elsewhere() if self._taken.left() else ():
            comparing.append(self._pool.submit(compare, segment))
            if len(comparing) >= self._threads:
                yield from sorted(self._alike(comparing.popleft().result()))
        for each in comparing:
            yield from sorted(self._alike(each.result()))

    def _elsewhere(self) -> Iterator[Segment]:
        """Yield the new bytes that nothing gives yet, each with old ones that nobody took."""
        old: dict[Span, bytes] = {}
        segment = Segment()
        for place, count in self._open():
            for at in range(place, place + count, self._most_new):
                data = self._read(at, min(self._most_new, place + count - at))
                segment.new.append(Part(at, data))
                segment.new_bytes += len(data)
                if segment.new_bytes >= self._most_new:
                    old = self._nobodys(segment, old)
                    yield segment
                    segment = Segment()
        if segment.new:
            self._nobodys(segment, old)
            yield segment

    def _nobodys(self, segment: Segment, known: dict[Span, bytes]) -> dict[Span, bytes]:
        """Give a segment the old bytes that nobody took, of too many those in about its place; return them."""
        middle = segment.new[len(segment.new) // 2].place * self._base.size // max(self._end, 1)
        spans = self._taken.near(middle, self._most_old)
        old = {span: known[span] if span in known else self._base.read(*span) for span in spans}
        segment.old = [Part(start, data) for (start, _), data in old.items()]
        return old

    def _open(self) -> Iterator[Span]:
        """Yield (place, bytes) of the literals that are long enough to have come from elsewhere."""
        done = self._done
        for place, length in self._operations.places():
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
            self._operation(place, start, length, differs)
        self._operations.clear()
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

    def _operation(self, place: int, start: int, length: int, differs: bytes) -> None:
        self._out.number("lengths", length << 1 | bool(differs))
        self._out.signed("places", start - self._old_end)
        self._out.data("differences", differs)
        self._old_end = start + length
        self._done = place + length


_Operation = tuple[int, int, int, bytes]
"""(place in the new bytes, place in the base, length, the differences or nothing where the bytes are the same)."""


def _trimmed(place: int, start: int, now: bytes, was: bytes) -> Iterator[_Operation]:
    """Yield the copy of ``was`` that gives ``now``; longer ends that are the same go on their own."""
    if now == was:
        yield place, start, len(now), b""
        return
    differs = difference(now, was)
    first, end = len(now) - len(differs.lstrip(b"\0")), len(differs.rstrip(b"\0"))
    first = first if first >= _SHORTEST_END_BYTES else 0
    end = end if len(now) - end >= _SHORTEST_END_BYTES else len(now)
    if first:
        yield place, start, first, b""
    yield place + first, start + first, end - first, differs[first:end]
    if end < len(now):
        yield place + end, start + end, len(now) - end, b""


class _Operations:
    """Many operations in rising order: 24 bytes each, and their differences, ``differing_bytes``, in a file."""

    def __init__(self, file: IO[bytes]) -> None:
        self._numbers = array("Q")
        self._file = file
        self.differing_bytes = 0

    def __len__(self) -> int:
        return len(self._numbers) // 3

    def __iter__(self) -> Iterator[_Operation]:
        self._file.flush()
        offset = 0
        for at in range(0, len(self._numbers), 3):
            place, start, told = self._numbers[at : at + 3]
            differs = os.pread(self._file.fileno(), told >> 1, offset) if told & 1 else b""
            offset += len(differs)
            yield place, start, told >> 1, differs

    def places(self) -> Iterator[Span]:
        """Yield (place, length) of each."""
        for at in range(0, len(self._numbers), 3):
            yield self._numbers[at], self._numbers[at + 2] >> 1

    def add(self, operation: _Operation) -> None:
        """Append an operation; exact copies that go on from the last one lengthen it."""
        place, start, length, differs = operation
        numbers = self._numbers
        if numbers and not differs and not numbers[-1] & 1:
            before = numbers[-1] >> 1
            if numbers[-3] + before == place and numbers[-2] + before == start:
                numbers[-1] += length << 1
                return
        numbers.extend((place, start, length << 1 | bool(differs)))
        self._file.write(differs)
        self.differing_bytes += len(differs)

    def clear(self) -> None:
        """Forget all."""
        self._numbers = array("Q")
        self.differing_bytes = 0
        self._file.seek(0)
        self._file.truncate()


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
