"""Which packages of a new revision are opened in a patch: those with an older version in the old one.

Rules:
 * A stream is opened where the old package has one of that name, with other bytes, and a recipe gives its bytes.
 * The old stream is opened only for that. Everything else travels as the bytes it is, and so does what is too much:
   for the formats' bounds, for memory, or for the disk.
 * Opened bytes are then compared part by part: the members of a zip, the files of an archive, each with its like.
"""

from __future__ import annotations

import re
import shutil
from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from ted.content.entry import Entry
from ted.content.opening.codecs import PIECE_BYTES, Codec, Inflated, Read, StreamError
from ted.content.opening.containers import Container, Packed, container, following, kind_of
from ted.content.opening.proof import Prover
from ted.content.patch.base import Base, Span
from ted.content.patch.layout import FileBytes, Layout, Stream
from ted.content.patch.oldfile import OldFile
from ted.content.patch.opened import MAX_OPENED_BYTES, Closed, OpenedLine, OpenedNew, Spool, are_few
from ted.content.revision import RevisionReader
from ted.errors import FormatError

CODECS: Mapping[str, frozenset[Codec]] = {
    "none": frozenset(), "fast": frozenset({Codec.DEFLATE, Codec.ZSTD}), "all": frozenset(Codec),
}  # fmt: skip
"""What a distribution's ``open_packages`` may say: streams that are made again quickly, or xz too."""

T = TypeVar("T")
_MAX_PARTS = 100_000
_MAX_STREAMS_OF_PART = 20_000
_SMALLEST_BYTES = 32
_VERSIONED = re.compile(rb"(.+?)[-_.]v?[0-9]")
_NUMBERS = re.compile(rb"[0-9]+(?:[.][0-9]+)*")


def stem(name: bytes) -> bytes | None:
    """Return what the names of a package's versions have in common, ``None`` for a name without a version."""
    found = _VERSIONED.match(name.lower())
    return found[1] + b"\0" + name.rpartition(b".")[2] if found else None


class Likeness(NamedTuple):
    """New bytes (``place`` with streams opened), and the old ones they may resemble, from ``offset`` of those on.

    ``part`` is the number of the part they are of.
    """

    part: int
    place: int
    length: int
    offset: int
    old: tuple[Span, ...]
    same: bool


@dataclass(frozen=True, slots=True)
class _Opened:
    file: FileBytes
    new: Layout
    old: Layout
    old_file: OldFile


class Packages:
    """What is opened of two revisions. ``consider`` changed files, then ``finish``; close it.

    Args:
        old: The revision before.
        new: The revision.
        base: The old line.
        place_of: Frame -> where its bytes are among the new ones, ``None`` if they are not.
        codecs: What may be opened.
        directory: Where plain bytes may wait.
    """

    def __init__(
        self, old: RevisionReader, new: RevisionReader, base: Base, place_of: Callable[[bytes], int | None],
        codecs: frozenset[Codec], directory: Path,
    ) -> None:  # fmt: skip
        self._old, self._new, self._base, self._place_of, self._codecs = old, new, base, place_of, codecs
        most = min(MAX_OPENED_BYTES, shutil.disk_usage(directory).free // 4)  # half of what is free for the two
        self.line = OpenedLine(base, directory, most)
        self._spool = Spool(directory, most)
        self._closed: list[Closed] = []
        self._claims: list[tuple[int, int]] = []
        self._files: dict[bytes, _Opened] = {}
        self._parts = self._in_runs = 0

    def close(self) -> None:
        """Forget everything."""
        self.line.close()
        self._spool.close()

    def consider(self, entry: Entry, was: Entry) -> None:
        """Open a file of the new revision if that helps against the old file ``was``."""
        kind = container_kind(self._new, entry) if self._codecs else None
        if kind is None or entry.path in self._files or container_kind(self._old, was) != kind:
            return
        new_bytes, old_bytes = FileBytes(self._new, entry), FileBytes(self._old, was)
        new, old = container(new_bytes.read, new_bytes.size), container(old_bytes.read, old_bytes.size)
        spans = self._base.spans(was)
        if new is None or old is None or sum(length for _, length in spans) != was.size:
            return
        self._parts += len(new.parts) + len(old.parts)
        if self._parts <= _MAX_PARTS:
            old_file = OldFile(self.line, spans)
            opened_new, opened_old = self._open(new, new_bytes, old, old_bytes, old_file)
            if opened_new:
                self._files[entry.path] = _Opened(
                    new_bytes, Layout(new, new_bytes, self._spool.read, opened_new),
                    Layout(old, old_bytes, self.line.read, opened_old), old_file,
                )  # fmt: skip

    def finish(self, raw: Read, raw_bytes: int) -> OpenedNew:
        """Return the new bytes with streams opened; ``raw`` reads them as they are."""
        self._closed.sort(key=lambda closed: closed.place)
        self._opened_new = OpenedNew(self._closed, raw, raw_bytes, self._spool)
        return self._opened_new

    def likenesses(self, path: bytes) -> Iterator[Likeness] | None:
        """Return the parts of an opened file, each with its like; ``None`` for a file that was not opened."""
        opened = self._files.get(path)
        return self._likenesses(opened) if opened is not None else None

    # what is opened

    def _open(
        self, new: Container, new_bytes: FileBytes, old: Container, old_bytes: FileBytes, old_file: OldFile
    ) -> tuple[dict[int, list[Stream]], dict[int, list[Stream]]]:
        """Open what helps of a new package and an old one; return the streams of each by the numbers of their parts."""
        opened_new: dict[int, list[Stream]] = {}
        opened_old: dict[int, list[Stream]] = {}
        likes, prover = _Likes((part.name, number) for number, part in enumerate(old.parts)), Prover()
        for number, part in enumerate(new.parts):
            like = likes.find(part.name)
            if like is None or like in opened_old or prover.is_hopeless or not old.parts[like].packed:
                continue
            if not part.packed or not all(packed.codec in self._codecs for packed in part.packed):
                continue
            if _same_part(new, number, new_bytes, old, like, old_bytes):
                continue
            state, at = self.line.state, self._spool.size
            made = self._open_new(part.packed, new_bytes, _end_of(new, number, new_bytes.size), prover)
            olds = self._open_old(old.parts[like].packed, old_file, _end_of(old, like, old_bytes.size)) if made else []
            in_runs = self._in_runs + sum(len(closed.runs) for _, closed in made)
            if olds and are_few(len(self.line.opened), len(self._closed) + len(made), in_runs):
                self._in_runs = in_runs
                opened_new[number], opened_old[like] = [stream for stream, _ in made], olds
                for _, closed in made:
                    insort(self._claims, (closed.place, closed.end))
                    self._closed.append(closed)
            else:
                self.line.forget_to(state)
                self._spool.cut(at)
        return opened_new, opened_old

    def _open_new(
        self, packed: Sequence[Packed], file: FileBytes, end: int, prover: Prover
    ) -> list[tuple[Stream, Closed]]:  # fmt: skip
        """Inflate the streams of a part and prove that they can be made again: all of them, or none."""
        spool, made = self._spool, list[tuple[Stream, Closed]]()

        def take(each: Packed) -> int | None:
            at = spool.size
            raw_bytes = _inflate(each, file.read, end, spool)
            kept = self._kept(file, each.start, raw_bytes) if raw_bytes >= _SMALLEST_BYTES else None
            if kept is None:
                return None
            plain, raw, plain_bytes = _from(spool.read, at), _from(file.read, each.start), spool.size - at
            recipe = prover.recipe(each.codec, each.hint, plain, plain_bytes, raw, raw_bytes)
            if recipe is None:
                return None
            made.append((Stream(each.start, raw_bytes, at, plain_bytes), Closed(*kept, recipe, plain_bytes, at)))
            return raw_bytes

        return made if _all_streams(packed, file.read, end, take) and _lie_apart(closed for _, closed in made) else []

    def _open_old(self, packed: Sequence[Packed], old_file: OldFile, end: int) -> list[Stream]:
        """Open the streams of a part of the old package in the line: all of them, or none."""
        streams: list[Stream] = []

        def take(each: Packed) -> int | None:
            place = next((place for place, _ in old_file.pieces(each.start, 1)), None)
            if place is None:
                return None  # the file ends where the stream should begin
            try:
                raw_bytes, (plain_at, plain_bytes) = self.line.open(place, each.codec)
            except FormatError:
                return None
            if each.start + raw_bytes > end or list(old_file.pieces(each.start, raw_bytes)) != [(place, raw_bytes)]:
                return None  # its bytes lie apart in the line
            streams.append(Stream(each.start, raw_bytes, plain_at, plain_bytes))
            return raw_bytes

        return streams if _all_streams(packed, self._read_old(old_file), end, take) else []

    @staticmethod
    def _read_old(old_file: OldFile) -> Read:
        return lambda place, count: old_file.read(place, max(0, min(count, old_file.bytes - place)))

    def _kept(self, file: FileBytes, start: int, length: int) -> tuple[int, tuple[int, ...]] | None:
        """Return where the bytes of a stream are among the new ones, and its runs (see ``Closed``).

        ``None`` where none of them is, they lie apart there, or another stream has them.
        """
        first = at = -1
        runs = [0]
        for frame, offset, count in file.pieces(start, length):
            place = self._place_of(frame)
            if (place is not None) is bool(len(runs) % 2):
                runs.append(0)
            runs[-1] += count
            if place is None:
                continue
            if first < 0:
                first = at = place + offset
            if at != place + offset:
                return None
            at += count
        return (first, tuple(runs)) if first >= 0 and not self._is_claimed(first, at) else None

    def _is_claimed(self, start: int, end: int) -> bool:
        number = bisect_right(self._claims, (start, start))
        before = number > 0 and self._claims[number - 1][1] > start
        return before or (number < len(self._claims) and self._claims[number][0] < end)

    # what is compared

    def _likenesses(self, opened: _Opened) -> Iterator[Likeness]:
        likes = _Likes((name, (offset, length)) for name, offset, length in opened.old.named())
        for number, (name, offset, length) in enumerate(opened.new.named()):
            like = likes.find(name) or (0, 0)
            spans = tuple(_spans(opened, *like))
            same = like[1] == length and _same(_from(opened.new.read, offset), _from(opened.old.read, like[0]), length)
            for place, at, count in self._places(opened, offset, length):
                yield Likeness(number, place, count, at, spans, same)

    def _places(self, opened: _Opened, offset: int, length: int) -> Iterator[tuple[int, int, int]]:
        """Yield (place with streams opened, offset in the range, length) of what of a range is among the new bytes."""
        done = 0
        for run in opened.new.runs(offset, length):
            if run.plain:
                yield self._opened_new.place_of_plain(run.place), done, run.length
                done += run.length
                continue
            for frame, at, count in opened.file.pieces(run.place, run.length):
                place = self._place_of(frame)
                found = self._opened_new.pieces(place + at, count) if place is not None else ()
                yield from ((at_place, done + skipped, part) for at_place, skipped, part in found)
                done += count


def container_kind(reader: RevisionReader, entry: Entry) -> str | None:
    """Return what container a file may be by its first bytes, ``None`` if it is none that can be opened."""
    first = next(reader.extents(entry), None)
    if first is None or first.frame is None:
        return None
    return kind_of(reader.frame(first.frame)[first.offset : first.offset + 8])


class _Likes(Generic[T]):
    """Finds the like of a name: the same, or one that differs in its numbers only."""

    def __init__(self, named: Iterable[tuple[bytes, T]]) -> None:
        self._exact: dict[bytes, T] = {}
        self._near: dict[bytes, T] = {}
        for name, value in named:
            self._exact[name] = self._near[_NUMBERS.sub(b"#", name)] = value

    def find(self, name: bytes) -> T | None:
        found = self._exact.get(name)
        return found if found is not None else self._near.get(_NUMBERS.sub(b"#", name))


def _end_of(found: Container, number: int, size: int) -> int:
    return found.parts[number + 1].start if number + 1 < len(found.parts) else size


def _same_part(
    new: Container, number: int, new_bytes: FileBytes, old: Container, like: int, old_bytes: FileBytes
) -> bool:
    """Whether two parts have the same bytes from their first streams on."""
    start, was = new.parts[number].packed[0].start, old.parts[like].packed[0].start
    count = _end_of(new, number, new_bytes.size) - start
    same_length = count == _end_of(old, like, old_bytes.size) - was
    return same_length and _same(_from(new_bytes.read, start), _from(old_bytes.read, was), count)


def _same(one: Read, other: Read, count: int) -> bool:
    return all(
        one(at, min(PIECE_BYTES, count - at)) == other(at, min(PIECE_BYTES, count - at))
        for at in range(0, count, PIECE_BYTES)
    )


def _spans(opened: _Opened, offset: int, length: int) -> Iterator[Span]:
    for run in opened.old.runs(offset, length):
        if run.plain:
            yield run.place, run.length
        else:
            yield from opened.old_file.pieces(run.place, run.length)


def _lie_apart(closed: Iterable[Closed]) -> bool:
    """Whether no bytes are in two streams: two that are the same may lie in the same frames."""
    places = sorted((each.place, each.end) for each in closed)
    return all(end <= start for (_, end), (start, _) in pairwise(places))


def _all_streams(packed: Sequence[Packed], read: Read, end: int, take: Callable[[Packed], int | None]) -> bool:
    """Take all streams of a part, also those behind one whose end only its codec knows; false if one was not taken."""
    waiting = deque(packed)
    for _ in range(_MAX_STREAMS_OF_PART):
        if not waiting:
            return True
        each = waiting.popleft()
        raw_bytes = take(each)
        if raw_bytes is None or (each.length is not None and raw_bytes != each.length):
            return False
        if each.length is None:
            more = following(read, replace(each, length=raw_bytes), end)
            waiting.extend([more] if more is not None else [])
    return False


def _inflate(each: Packed, read: Read, end: int, spool: Spool) -> int:
    """Append the plain bytes of a stream; return its raw bytes, 0 if it is no sound one."""
    limit = each.start + each.length if each.length is not None else end
    stream = Inflated(each.codec, lambda place, count: read(place, min(count, limit - place)) if place < limit else b"",
                      each.start)  # fmt: skip
    try:
        for piece in stream:
            spool.add(piece)
    except (StreamError, FormatError):
        return 0
    return stream.raw_bytes


def _from(read: Read, start: int) -> Read:
    return lambda place, count: read(start + place, count)
