"""A package laid out with its streams opened, and the parts in it that can be compared by themselves."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ted.content.entry import Entry, Extent
from ted.content.opening.archives import files_in
from ted.content.opening.codecs import Read
from ted.content.opening.containers import Container
from ted.content.revision import RevisionReader

_MAX_EXTENTS = 1 << 16


class FileBytes:
    """The bytes of a file in an open revision, by place; none of a sparse file, or of one that is too long."""

    def __init__(self, reader: RevisionReader, entry: Entry) -> None:
        self._reader = reader
        self._extents: list[Extent] = []
        self._starts = array("Q", (0,))
        self.size = entry.size
        for extent in reader.extents(entry):
            if extent.frame is None or len(self._extents) == _MAX_EXTENTS:
                self.size = 0
                return
            self._extents.append(extent)
            self._starts.append(self._starts[-1] + extent.length)

    def pieces(self, place: int, count: int) -> Iterator[tuple[bytes, int, int]]:
        """Yield (frame, offset in it, length) of the bytes from a place on; fewer at the end."""
        count = min(count, self.size - place)
        number = bisect_right(self._starts, place) - 1
        while count > 0:
            extent = self._extents[number]
            inside = place - self._starts[number]
            length = min(count, extent.length - inside)
            assert extent.frame is not None
            yield extent.frame, extent.offset + inside, length
            place, count, number = place + length, count - length, number + 1

    def read(self, place: int, count: int) -> bytes:
        """Return bytes; fewer at the end."""
        parts = [self._reader.frame(frame)[at : at + length] for frame, at, length in self.pieces(place, count)]
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Stream(NamedTuple):
    """A stream that was opened: its raw bytes in the file, and where its plain ones wait."""

    start: int
    length: int
    plain_at: int
    plain_bytes: int


class Run(NamedTuple):
    """Bytes of a package: plain ones from where they wait, or those of the file; ``place`` is there."""

    place: int
    length: int
    plain: bool


class Layout:
    """A package with streams opened; offsets are into that.

    Args:
        container: What the file is.
        raw: Its bytes as they are.
        plain: Reads plain bytes where they wait.
        opened: Number of a part -> its streams, where those were opened.
    """

    def __init__(
        self, container: Container, raw: FileBytes, plain: Read, opened: Mapping[int, Sequence[Stream]]
    ) -> None:  # fmt: skip
        self._raw, self._plain = raw, plain
        self._runs: list[Run] = []
        self._starts = [0]
        self._parts: list[tuple[int, bytes, list[tuple[int, Stream]]]] = []
        parts = container.parts
        for number, part in enumerate(parts):
            first, at = self.size, part.start
            inside: list[tuple[int, Stream]] = []
            for stream in opened.get(number, ()):
                self._add(at, stream.start - at, plain=False)
                if part.archive:
                    inside.append((self.size, stream))
                self._add(stream.plain_at, stream.plain_bytes, plain=True)
                at = stream.start + stream.length
            self._add(at, (parts[number + 1].start if number + 1 < len(parts) else raw.size) - at, plain=False)
            self._parts.append((first, part.name, inside))

    @property
    def size(self) -> int:
        """Bytes of the package with streams opened."""
        return self._starts[-1]

    def _add(self, place: int, length: int, *, plain: bool) -> None:
        if length:
            self._runs.append(Run(place, length, plain))
            self._starts.append(self._starts[-1] + length)

    def runs(self, offset: int, count: int) -> Iterator[Run]:
        """Yield a range as runs."""
        number = bisect_right(self._starts, offset) - 1
        while count > 0:
            run = self._runs[number]
            inside = offset - self._starts[number]
            length = min(count, run.length - inside)
            yield Run(run.place + inside, length, run.plain)
            offset, count, number = offset + length, count - length, number + 1

    def read(self, offset: int, count: int) -> bytes:
        """Return bytes of the range."""
        return b"".join((self._plain if run.plain else self._raw.read)(run.place, run.length)
                        for run in self.runs(offset, count))  # fmt: skip

    def named(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield (name, offset, length) of everything that can be compared by itself, in order; they tile the whole."""
        last, name = 0, b""
        for offset, following in self._marks():
            if offset > last:
                yield name, last, offset - last
            last, name = offset, following
        if self.size > last:
            yield name, last, self.size - last

    def _marks(self) -> Iterator[tuple[int, bytes]]:
        last = 0
        for first, name, streams in self._parts:
            yield first, name
            last = first
            for place, file in files_in(*_joined(self._plain, streams)) if streams else ():
                offset = _offset_of(place, streams)
                if offset > last:
                    yield offset, name + b"\0" + file
                    last = offset


def _joined(plain: Read, streams: Sequence[tuple[int, Stream]]) -> tuple[Read, int]:
    """Return what reads the plain bytes of streams as one run, and how many those are."""
    starts = [0]
    for _, stream in streams:
        starts.append(starts[-1] + stream.plain_bytes)

    def read(place: int, count: int) -> bytes:
        parts = []
        number = bisect_right(starts, place) - 1
        while count > 0 and number < len(streams):
            stream, inside = streams[number][1], place - starts[number]
            part = plain(stream.plain_at + inside, min(count, stream.plain_bytes - inside))
            parts.append(part)
            place, count, number = place + len(part), count - len(part), number + 1
        return b"".join(parts)

    return read, starts[-1]


def _offset_of(place: int, streams: Sequence[tuple[int, Stream]]) -> int:
    """Return the offset in the layout of a place in the plain bytes of streams; 0 if it lies in none."""
    for first, stream in streams:
        if place < stream.plain_bytes:
            return first + place
        place -= stream.plain_bytes
    return 0
