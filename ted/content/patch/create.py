"""Making a patch: from a revision and the next one, both whole, to the file that makes the one's pack of the other.

Rules:
 * A patch is kept only when it is worth it and, applied, gives the very pack; both are tried out here.
 * Nothing is remembered for each file of the distribution beyond a fixed room, only for what changed.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from ted.content.entry import Entry, Extent, Kind, extents_from_list
from ted.content.frame import DEFAULT_LEVEL
from ted.content.interpreter import interpreter_for_building
from ted.content.opening.codecs import Codec
from ted.content.pack import PackReader
from ted.content.patch.apply import FrameKind, PackOut, apply_patch
from ted.content.patch.base import Base, FrameLine, Span
from ted.content.patch.covers import CoverWriter
from ted.content.patch.entries import EntryWriter
from ted.content.patch.oldfile import Line, OldFile
from ted.content.patch.opened import OpenedNew, write_opened
from ted.content.patch.packages import CODECS, Packages, container_kind, stem
from ted.content.patch.streams import StreamWriter
from ted.content.revision import RevisionReader
from ted.errors import DigestMismatchError, RepositoryError

WORTH_PERCENT = 90
SMALL_UP_TO_BYTES = 64 << 20
"""New bytes up to which the smallest form is looked for unless told; packages opened."""
MAX_FRAMES = 4_000_000
_MAX_WANTED_NAMES = 200_000
_MAX_WAITING = 20_000
_MAX_ALIKE = 64
_MAX_REMEMBERED_BYTES = 16 << 20
_ROOM_BYTES = 16 << 20
"""For the entries of each revision, where time counts; the smallest form needs the memory itself."""


@dataclass(frozen=True, slots=True)
class Ordered:
    """The frames of the new pack in the order they lie, and what each is; content frames have numbers."""

    digests: Sequence[bytes]
    kinds: bytes
    number_of: Mapping[bytes, int]
    starts: Sequence[int]

    def place_of(self, frame: bytes) -> int | None:
        """Return where the bytes of a frame are among the new ones, ``None`` if they are not."""
        number = self.number_of.get(frame)
        return self.starts[number] if number is not None else None


class Piece(NamedTuple):
    """A run of new bytes: ``place`` among them, perhaps like old bytes from ``offset`` of those in ``old`` on.

    Pieces with the same ``of`` resemble the same old bytes; ``same``: they are the same.
    """

    place: int
    length: int
    offset: int
    of: bytes
    old: Sequence[Span]
    same: bool


def in_order(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Yield pieces by place; they come nearly so: the files of a group before or after larger ones between them."""
    waiting: list[Piece] = []
    done = 0
    for piece in pieces:
        heapq.heappush(waiting, piece)
        while waiting and (waiting[0].place <= done or len(waiting) > _MAX_WAITING):
            first = heapq.heappop(waiting)
            done = max(done, first.place + first.length)
            yield first
    while waiting:
        yield heapq.heappop(waiting)


def create_patch(
    old: RevisionReader, new: RevisionReader, path: Path, *, small: bool | None,
    codecs: frozenset[Codec] = CODECS["fast"], level: int = DEFAULT_LEVEL,
) -> int | None:  # fmt: skip
    """Write a patch that rebuilds the own pack of ``new`` for whoever holds ``old``; return its bytes.

    Args:
        old: The revision before, open.
        new: The revision, open.
        path: The file to make; its directory is used for what waits meanwhile.
        small: Take the time to find the smallest form of everything; ``None``: where that is not too much.
        codecs: What is opened in packages.
        level: The zstd level the pack was built with.

    Returns:
        ``None``, and no file, when a patch would not be worth it or would not give the pack.

    Raises:
        RepositoryError: Something of a revision is damaged, or not here.
    """
    if len(new.own_pack.index) > MAX_FRAMES:
        return None
    with interpreter_for_building():
        return _create(old, new, path, small, codecs, level)


def _create(
    old: RevisionReader, new: RevisionReader, path: Path, small: bool | None, codecs: frozenset[Codec], level: int
) -> int | None:
    if small is False:
        for reader in (old, new):
            reader.remember_entries(_ROOM_BYTES)
    out = StreamWriter(path.parent)
    try:
        creation = _Creation(old, new, out, path.parent, small=small, codecs=codecs, level=level)
        with old.unchecked(), new.unchecked():  # what comes of them is tried out
            creation.write()
        size = out.finish(path, small=creation.small)
    finally:
        out.close()
    pack = new.own_pack
    is_worth_it = size * 100 <= pack.bytes * WORTH_PERCENT
    if is_worth_it and _rebuilds(path, old, pack):
        return size
    os.unlink(path)
    if is_worth_it:
        creation.check_bytes()
    return None


def _rebuilds(path: Path, old: RevisionReader, pack: PackReader) -> bool:
    with open(pack.path, "rb") as file:
        try:
            apply_patch(path, old, _Compare(file.fileno()))
        except RepositoryError:
            return False
        return True


class _Compare(PackOut):
    """Takes the rebuilt pack and compares it with the one there is."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0

    def write(self, data: bytes, /) -> None:
        if os.pread(self._fd, len(data), self._at) != data:
            raise DigestMismatchError(f"the patch gives another pack from byte {self._at} on")
        self._at += len(data)

    def read(self, offset: int, count: int) -> bytes:
        return os.pread(self._fd, count, offset)


class _Creation:
    def __init__(
        self, old: RevisionReader, new: RevisionReader, out: StreamWriter, directory: Path, *,
        small: bool | None, codecs: frozenset[Codec], level: int,
    ) -> None:  # fmt: skip
        self._old, self._new, self._out, self._level, self._directory = old, new, out, level, directory
        self._asked_small, self._codecs = small, codecs
        self.small = bool(small)
        kept = {frame.digest for frame in new.manifest_frames}
        there = {frame.digest for frame in old.manifest_frames}
        self._changed = [number for number, frame in enumerate(new.manifest_frames) if frame.digest not in there]
        self._gone = [number for number, frame in enumerate(old.manifest_frames) if frame.digest not in kept]
        self._chosen = self._gone

    def write(self) -> None:
        wanted, lists = self._survey()
        alike = _Alike(self._old, wanted)
        numbers = self._chosen = sorted({*self._gone, *alike.frames})
        base = Base(self._old, numbers)
        ordered = self._order(lists)
        self._head(sorted(set(numbers) - set(self._gone)))
        self._index(set(ordered.digests))
        self._program(ordered)
        self._entries(base, ordered)
        packages = Packages(self._old, self._new, base, ordered.place_of, self._codecs, self._directory)
        try:
            self._covers(base, ordered, alike, packages)
        finally:
            packages.close()

    def check_bytes(self) -> None:
        """Read again what the patch was made of, compared with its names.

        Raises:
            RepositoryError: Some of it is damaged.
        """
        for reader, numbers in ((self._old, self._chosen), (self._new, self._changed)):
            for number in numbers:
                for entry in reader.frame_entries(number):
                    for extent in reader.extents(entry):
                        if extent.frame is not None:
                            reader.frame(extent.frame)

    # what is there

    def _changed_entries(self) -> Iterator[Entry]:
        for number in self._changed:
            yield from self._new.frame_entries(number)

    def _old_entries(self) -> Iterator[Entry]:
        for number in self._gone:
            yield from self._old.frame_entries(number)

    def _survey(self) -> tuple[set[bytes], set[bytes]]:
        """Return the keys of changed files that the old revision has not got, and the frames of extent lists."""
        wanted: set[bytes] = set()
        lists: set[bytes] = set()
        old = self._old_entries()
        was = next(old, None)
        for entry in self._changed_entries():
            lists.update(each.frame for each in entry.lists)
            while was is not None and was.components < entry.components:
                was = next(old, None)
            is_new = (was is None or was.path != entry.path) and entry.kind is Kind.FILE
            if is_new and len(wanted) < _MAX_WANTED_NAMES:
                is_package = bool(self._codecs) and container_kind(self._new, entry) is not None
                wanted.update(_keys(entry, versioned=is_package))
        return wanted, lists

    def _order(self, lists: Set[bytes]) -> Ordered:
        index = self._new.own_pack.index
        rows = [(location.offset, digest) for digest, location in map(index.at, range(len(index)))]
        rows.sort()
        manifest = {frame.digest for frame in self._new.manifest_frames}
        top = bytes.fromhex(self._new.record.manifest)
        kinds = bytearray()
        numbers: dict[bytes, int] = {}
        starts = [0]
        for _, digest in rows:
            if self._old.frame_bytes(digest) is not None:
                kind = FrameKind.CARRIED
            elif digest == top:
                kind = FrameKind.INDEX
            elif digest in manifest:
                kind = FrameKind.MANIFEST
            elif digest in lists:
                kind = FrameKind.LIST
            else:
                kind = FrameKind.CONTENT
                numbers[digest] = len(numbers)
                starts.append(starts[-1] + index[digest].plain_bytes)
            kinds.append(kind)
        return Ordered([digest for _, digest in rows], bytes(kinds), numbers, starts)

    # what is told

    def _head(self, more: list[int]) -> None:
        index, former = self._new.index, self._old.index
        told: Any = (index.type, dict(index.settings), dict(index.options))
        if told == (former.type, dict(former.settings), dict(former.options)):
            told = None
        data: bytes = msgpack.packb([bytes.fromhex(self._old.record.manifest), self._level, more, told])
        self._out.number("head", len(data))
        self._out.data("head", data)

    def _index(self, in_pack: set[bytes]) -> None:
        """Tell the manifest's frames: runs of [old ones left out, old ones kept, new ones] until all are told."""
        place = {frame.digest: number for number, frame in enumerate(self._old.manifest_frames)}
        frames, at, old_at = self._new.manifest_frames, 0, 0
        while at < len(frames):
            start = place.get(frames[at].digest, old_at)
            first = at
            while at < len(frames) and place.get(frames[at].digest) == start + at - first:
                at += 1
            self._out.number("index", start - old_at)
            self._out.number("index", at - first)
            old_at = start + at - first
            first = at
            while at < len(frames) and frames[at].digest not in place:
                at += 1
            self._out.number("index", at - first)
            for frame in frames[first:at]:
                self._out.number("index", frame.entries << 1 | (frame.digest in in_pack))
        self._out.number("index", 0)
        self._out.number("index", 0)
        self._out.number("index", 0)

    def _program(self, ordered: Ordered) -> None:
        at = 0
        kinds = ordered.kinds
        while at < len(kinds):
            first = at
            while at < len(kinds) and kinds[at] == kinds[first]:
                at += 1
            self._out.number("program", (at - first) * len(FrameKind) + kinds[first])
        self._out.number("program", 0)
        for number in range(len(ordered.starts) - 1):
            self._out.number("sizes", ordered.starts[number + 1] - ordered.starts[number])

    def _entries(self, base: Base, ordered: Ordered) -> None:
        in_order = [d for d, kind in zip(ordered.digests, ordered.kinds, strict=True) if kind == FrameKind.LIST]
        starts = ordered.starts
        writer = EntryWriter(
            self._out, base, ordered.number_of.get, lambda number: starts[number + 1] - starts[number],
            {digest: number for number, digest in enumerate(in_order)}.get,
        )  # fmt: skip
        changed = iter(self._changed)
        for digest, kind in zip(ordered.digests, ordered.kinds, strict=True):
            if kind == FrameKind.CARRIED:
                self._out.data("digests", digest)
            elif kind == FrameKind.LIST:
                plain = self._new.checked_frame(digest)
                writer.list(_extents_in(plain))
            elif kind == FrameKind.MANIFEST:
                self._frames_up_to(digest, changed, writer)
        self._frames_up_to(None, changed, writer)

    def _frames_up_to(self, digest: bytes | None, changed: Iterator[int], writer: EntryWriter) -> None:
        for number in changed:
            for entry in self._new.frame_entries(number):
                writer.entry(entry)
            if self._new.manifest_frames[number].digest == digest:
                return

    # the bytes

    def _covers(self, base: Base, ordered: Ordered, alike: _Alike, packages: Packages) -> None:
        line = FrameLine(self._new)
        for digest, number in ordered.number_of.items():
            line.append(digest, ordered.starts[number + 1] - ordered.starts[number])
        changed = _Again(lambda: self._with_like(base, ordered, alike))
        for entry, was in changed:
            if was is not None:
                packages.consider(entry, was)
        new = packages.finish(line.read, line.size)
        write_opened(self._out, packages.line, new.closed)
        if self._asked_small is None:
            self.small = new.size <= SMALL_UP_TO_BYTES
        gone = [*base.spans_of_frames(lambda digest: self._new.frame_bytes(digest) is None)]
        if packages.line.opened_bytes:
            gone.append((base.size, packages.line.opened_bytes))
        with CoverWriter(self._out, packages.line, new.read, gone, exact=not self.small) as writer:
            self._write_covers(writer, self._pieces(base, ordered, changed, packages, new), packages.line, new.size)

    def _write_covers(self, writer: CoverWriter, pieces: Iterable[Piece], line: Line, new_bytes: int) -> None:
        done = 0
        of, old = b"", OldFile(line, [])
        for piece in in_order(pieces):
            if piece.place < done:
                continue
            writer.take(done, piece.place - done, None, 0)  # what no changed file shows
            if piece.of != of:
                of, old = piece.of, OldFile(line, list(piece.old))
            if piece.same:
                writer.same(piece.place, list(old.pieces(piece.offset, piece.length)))
            else:
                writer.take(piece.place, piece.length, old, piece.offset)
            done = piece.place + piece.length
        writer.take(done, new_bytes - done, None, 0)
        writer.finish()

    def _pieces(
        self, base: Base, ordered: Ordered, changed: _Again, packages: Packages, new: OpenedNew
    ) -> Iterator[Piece]:
        """Yield the pieces of the changed files that lie in new frames."""
        for entry, was in changed:
            parts = packages.likenesses(entry.path)
            if parts is not None:
                for part in parts:
                    of = b"%s\0%d" % (entry.path, part.part)
                    yield Piece(part.place, part.length, part.offset, of, part.old, part.same)
                continue
            old = base.spans(was) if was is not None and was.size else []
            offset = 0
            for extent in self._new.extents(entry):
                place = ordered.place_of(extent.frame) if extent.frame is not None else None
                whole = was is not None and extent.length == entry.size and was.same_content(entry)
                found = new.pieces(place + extent.offset, extent.length) if place is not None else ()
                for at, skipped, length in found:
                    yield Piece(at, length, offset + skipped, entry.path, old, whole)
                offset += extent.length if extent.frame is not None else 0

    def _with_like(self, base: Base, ordered: Ordered, alike: _Alike) -> Iterator[tuple[Entry, Entry | None]]:
        """Yield the changed files with bytes in new frames, each with the old file it may resemble."""
        for entry, was in self._with_old(base):
            if entry.kind is Kind.FILE and any(each.frame in ordered.number_of for each in self._new.extents(entry)):
                yield entry, was if was is not None else alike.to(entry)

    def _with_old(self, base: Base) -> Iterator[tuple[Entry, Entry | None]]:
        """Yield the changed entries in order, each with the old file of that path."""
        old = base.entries()
        was = next(old, None)
        for entry in self._changed_entries():
            while was is not None and was.components < entry.components:
                was = next(old, None)
            yield entry, was if was is not None and was.path == entry.path and was.kind is Kind.FILE else None


class _Again:
    """Pairs of a changed file and its like, to be gone through more than once; small enough, they are remembered."""

    def __init__(self, pairs: Callable[[], Iterator[tuple[Entry, Entry | None]]]) -> None:
        self._pairs = pairs
        self._known: list[tuple[Entry, Entry | None]] | None = None
        self._room = _MAX_REMEMBERED_BYTES

    def __iter__(self) -> Iterator[tuple[Entry, Entry | None]]:
        if self._known is not None:
            yield from self._known
            return
        known: list[tuple[Entry, Entry | None]] = []
        for pair in self._pairs():
            if self._room >= 0:
                self._room -= sum(entry.memory_bytes for entry in pair if entry is not None)
                known.append(pair)
            elif known:
                known.clear()
            yield pair
        if self._room >= 0:
            self._known = known


class _Alike:
    """Old files by the keys of new ones, for those that have none of their path.

    ``frames`` are the manifest frames that have such files, in order.
    """

    def __init__(self, old: RevisionReader, wanted: Set[bytes]) -> None:
        self.frames: list[int] = []
        self._found: dict[bytes, list[Entry]] = {}
        for number in range(len(old.manifest_frames)) if wanted else ():
            for entry in old.frame_entries(number):
                if entry.kind is Kind.FILE:
                    self._note(number, entry, wanted)

    def _note(self, number: int, entry: Entry, wanted: Set[bytes]) -> None:
        for key in _keys(entry):
            if key in wanted:
                if self.frames[-1:] != [number]:
                    self.frames.append(number)
                if entry.size and len(self._found.setdefault(key, [])) < _MAX_ALIKE:
                    self._found[key].append(entry)

    def to(self, entry: Entry) -> Entry | None:
        """Return the old file that is most like a new one by name, ``None`` if none is."""
        return next((_nearest(entry.path, self._found[key]) for key in _keys(entry) if key in self._found), None)


def _keys(entry: Entry, *, versioned: bool = True) -> list[bytes]:
    """Return what a file may be found by: its name, and what the names of its versions have in common."""
    name = entry.components[-1]
    common = stem(name) if versioned else None
    return [name, common] if common is not None else [name]


def _extents_in(plain: bytes) -> list[Extent]:
    rows = msgpack.unpackb(plain)
    return extents_from_list(plain, sum(row[2] for row in rows), "extent list")


def _nearest(path: bytes, entries: Sequence[Entry]) -> Entry | None:
    """Return the file whose path has most in common with ``path``, from both ends."""
    return max(entries, key=lambda e: _shared(e.path, path) + _shared(e.path[::-1], path[::-1]), default=None)


def _shared(one: bytes, other: bytes) -> int:
    """Return how many first bytes two paths have in common."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
