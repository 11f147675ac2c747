"""Entries and extents as columns, each against what the old revision says at that place.

Rules:
 * What both ends can reckon is not sent: digests of new frames and of the files in them, offsets in a group.
 * Writer and reader walk the same way and keep the same state; one class holds it for both.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgpack

from ted.content.entry import Entry, Extent, ExtentList, Kind, entry_from_row, pack_entry, unpack_one
from ted.content.frame import DIGEST_BYTES, MAX_FRAME_BYTES, frame_digest
from ted.content.patch.base import Base
from ted.content.patch.streams import StreamReader, StreamWriter, folded, unfolded

MTIME, SIZE, CONTENT, MODE, OWNER, KIND, XATTRS, DIGEST = (1 << bit for bit in range(8))
_FIELDS = MODE | OWNER | KIND | XATTRS

NEW, OLD, NAMED, HOLE = range(4)
"""How an extent's frame is told: a new one by number, one of the base by number, by its digest, none."""

_MAX_EXTENTS = 2048
_MAX_LISTS = 20_000
_MAX_NEW_LISTS = 1 << 18
_MAX_PATH_BYTES = 4096
_MAX_FIELDS_BYTES = 1 << 20
_SECOND_NS = 1_000_000_000
_NOBODY = Entry(b"", Kind.FILE, 0o644, 0, "root", "root")


@dataclass
class Places:
    """Where the last extent was: what the next one is told against."""

    new: int = -1
    old: int = -1
    frame: tuple[int, int] | bytes | None = None
    end: int = 0

    def expected(self, frame: tuple[int, int] | bytes) -> int:
        """Return the offset that needs no telling."""
        return self.end if frame == self.frame else 0

    def took(self, frame: tuple[int, int] | bytes, end: int) -> None:
        """Note an extent."""
        self.frame, self.end = frame, end
        if isinstance(frame, tuple):
            if frame[0] == NEW:
                self.new = frame[1]
            else:
                self.old = frame[1]


class EntryWriter:
    """Writes entries and extent lists into the streams of a patch.

    Args:
        out: The patch.
        base: The old revision.
        number_of: Digest of a new content frame -> its number, ``None`` for any other frame.
        bytes_of: Number of a new content frame -> its plain bytes.
        is_new_list: Whether a list's frame is told by the patch, in the order of their numbers.
    """

    def __init__(
        self, out: StreamWriter, base: Base, number_of: Callable[[bytes], int | None],
        bytes_of: Callable[[int], int], list_number: Callable[[bytes], int | None],
    ) -> None:  # fmt: skip
        self._out = out
        self._base = base
        self._number_of = number_of
        self._bytes_of = bytes_of
        self._list_number = list_number
        self._old = base.entries()
        self._next: Entry | None = next(self._old, None)
        self._last = _NOBODY
        self._mtime_ns = 0
        self._places = Places()
        self._lists = 0

    def entry(self, entry: Entry) -> None:
        """Write the next entry."""
        skipped = 0
        key = entry.components
        while self._next is not None and self._next.components < key:
            skipped += 1
            self._next = next(self._old, None)
        was = None
        if self._next is not None and self._next.path == entry.path:
            was, self._next = self._next, next(self._old, None)
        self._out.number("ops", skipped << 1 | (was is None))
        if was is None:
            self._path(entry.path)
        self._write(entry, was if was is not None else _reference(self._last))
        self._last = entry

    def list(self, extents: list[Extent]) -> None:
        """Write the extents of a list's frame."""
        self._out.number("lists", len(extents))
        for extent in extents:
            self._extent("lists", extent, None)

    def _path(self, path: bytes) -> None:
        last = self._last.path
        shared = 0
        while shared < min(len(path), len(last)) and path[shared] == last[shared]:
            shared += 1
        self._out.number("paths", shared)
        self._out.number("paths", len(path) - shared)
        self._out.data("paths", path[shared:])

    def _write(self, entry: Entry, was: Entry) -> None:
        content = (entry.extents, entry.lists, entry.digest) != (was.extents, was.lists, was.digest)
        flags = (
            MTIME * (entry.mtime_ns != was.mtime_ns) | SIZE * (entry.size != was.size) | CONTENT * content
            | MODE * (entry.mode != was.mode) | OWNER * ((entry.owner, entry.group) != (was.owner, was.group))
            | KIND * ((entry.kind, entry.link) != (was.kind, was.link)) | XATTRS * (entry.xattrs != was.xattrs)
            | DIGEST * (content and entry.digest is not None)
        )  # fmt: skip
        self._out.data("flags", bytes((flags,)))
        if flags & MTIME:
            self._time(entry.mtime_ns)
        if flags & SIZE:
            self._out.signed("file_sizes", entry.size - was.size)
        if flags & _FIELDS:
            values = [value for flag, value in _fields(entry) if flags & flag]
            data: bytes = msgpack.packb(values)
            self._out.number("fields", len(data))
            self._out.data("fields", data)
        if content:
            self._content(entry)

    def _time(self, mtime_ns: int) -> None:
        step, self._mtime_ns = mtime_ns - self._mtime_ns, mtime_ns
        if step % _SECOND_NS:
            self._out.number("mtimes", folded(step) << 1 | 1)
        else:
            self._out.number("mtimes", folded(step // _SECOND_NS) << 1)

    def _content(self, entry: Entry) -> None:
        pieces = entry.lists or entry.extents
        self._out.number("extents", len(pieces) << 1 | bool(entry.lists))
        for each in entry.lists:
            if self._list_number(each.frame) == self._lists:
                self._lists += 1
                self._out.number("extents", 0)
            else:
                self._out.number("extents", each.length)
                self._out.data("digests", each.frame)
        for extent in entry.extents:
            self._extent("extents", extent, entry.size if len(entry.extents) == 1 else None)

    def _extent(self, stream: str, extent: Extent, size: int | None) -> None:
        out, places = self._out, self._places
        if extent.frame is None:
            out.number(stream, HOLE)
            out.number(stream, extent.length)
            return
        frame: tuple[int, int] | bytes
        new, old = self._number_of(extent.frame), self._base.number_of(extent.frame)
        if new is not None:
            frame, whole = (NEW, new), self._bytes_of(new)
            out.number(stream, NEW | folded(new - places.new) << 2)
        elif old is not None:
            frame, whole = (OLD, old), self._base.frame_bytes(old)
            out.number(stream, OLD | folded(old - places.old) << 2)
        else:
            frame, whole = extent.frame, 0
            out.number(stream, NAMED)
            out.data("digests", extent.frame)
        out.signed(stream, extent.offset - places.expected(frame))
        untold = size if size is not None else whole - extent.offset
        out.number(stream, 0 if extent.length == untold else extent.length)
        places.took(frame, extent.offset + extent.length)


class EntryReader:
    """Reads what ``EntryWriter`` wrote.

    Args:
        patch: The patch.
        base: The old revision.
        digest_of: Number of a new content frame -> its digest; raises ``FormatError`` for one that is not there yet.
        bytes_of: Number of a new content frame -> how many plain bytes it has, the same.
        new_plain: Number of a new content frame -> its plain bytes, the same.
        old_plain: Digest -> plain bytes of a frame of the old revision.
    """

    def __init__(
        self, patch: StreamReader, base: Base, digest_of: Callable[[int], bytes], bytes_of: Callable[[int], int],
        new_plain: Callable[[int], bytes], old_plain: Callable[[bytes], bytes],
    ) -> None:  # fmt: skip
        self._patch = patch
        self._base = base
        self._digest_of = digest_of
        self._bytes_of = bytes_of
        self._new_plain = new_plain
        self._old_plain = old_plain
        self._old: Iterator[Entry] = base.entries()
        self._last = _NOBODY
        self._mtime_ns = 0
        self._places = Places()
        self._list_digests = bytearray()
        self._list_lengths = array("Q")
        self._lists_used = 0

    def entry(self) -> tuple[bytes, bytes]:
        """Return the next entry as its row in the manifest, and its path.

        Raises:
            FormatError: It cannot be one.
        """
        op = self._patch.number("ops")
        for _ in range(op >> 1):
            if next(self._old, None) is None:
                raise self._patch.refuse("more old entries are left out than there are")
        if op & 1:
            entry = self._read(_reference(self._last)._replace(path=self._path()))
        else:
            was = next(self._old, None)
            if was is None:
                raise self._patch.refuse("an old entry that does not exist")
            entry = self._read(was)
        self._last = entry
        return pack_entry(entry), entry.path

    def list(self) -> bytes:
        """Return the plain bytes of the next extent list's frame."""
        count = self._patch.number("lists")
        if not 0 < count <= _MAX_EXTENTS:
            raise self._patch.refuse(f"a list of {count} extents")
        if len(self._list_lengths) == _MAX_NEW_LISTS:
            raise self._patch.refuse("too many lists")
        extents = [self._extent("lists", None) for _ in range(count)]
        plain: bytes = msgpack.packb(extents)
        self._list_digests += frame_digest(plain)
        self._list_lengths.append(sum(extent.length for extent in extents))
        return plain

    def _path(self) -> bytes:
        shared, rest = self._patch.number("paths"), self._patch.number("paths")
        if shared > len(self._last.path) or shared + rest > _MAX_PATH_BYTES:
            raise self._patch.refuse("a path that cannot be")
        return self._last.path[:shared] + self._patch.data("paths", rest)

    def _read(self, was: Entry) -> Entry:
        patch = self._patch
        flags = patch.data("flags", 1)[0]
        changed: dict[str, Any] = {}
        if flags & MTIME:
            changed["mtime_ns"] = self._time()
        if flags & SIZE:
            changed["size"] = was.size + patch.signed("file_sizes")
        if flags & _FIELDS:
            changed |= self._fields(flags)
        entry = was._replace(**changed)
        if flags & CONTENT:
            extents, lists = self._content(entry.size)
            digest = self._digest(extents) if flags & DIGEST else None
            entry = entry._replace(extents=extents, lists=lists, digest=digest)
        row = [*entry[:7], [list(piece) for piece in entry.lists or entry.extents], *entry[8:10],
               [list(pair) for pair in entry.xattrs]]  # fmt: skip
        row[1] = entry.kind.value
        return entry_from_row(row, "patch")

    def _time(self) -> int:
        told = self._patch.number("mtimes")
        self._mtime_ns += unfolded(told >> 1) * (1 if told & 1 else _SECOND_NS)
        return self._mtime_ns

    def _fields(self, flags: int) -> dict[str, Any]:
        size = self._patch.number("fields")
        if size > _MAX_FIELDS_BYTES:
            raise self._patch.refuse("fields that are too long")
        values = unpack_one(self._patch.data("fields", size), size, "patch")
        wanted = [flag for flag, _ in _fields(_NOBODY) if flags & flag]
        if not isinstance(values, list) or len(values) != len(wanted):
            raise self._patch.refuse("fields that are none")
        changed: dict[str, Any] = {}
        try:
            for flag, value in zip(wanted, values, strict=True):
                changed |= _FROM_FIELD[flag](value)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise self._patch.refuse("fields that are none") from error
        return changed

    def _content(self, size: int) -> tuple[tuple[Extent, ...], tuple[ExtentList, ...]]:
        told = self._patch.number("extents")
        count = told >> 1
        if told & 1:
            if count > _MAX_LISTS:
                raise self._patch.refuse("too many lists")
            return (), tuple(self._list() for _ in range(count))
        if count > _MAX_EXTENTS:
            raise self._patch.refuse("too many extents")
        return tuple(self._extent("extents", size if count == 1 else None) for _ in range(count)), ()

    def _list(self) -> ExtentList:
        length = self._patch.number("extents")
        if length:
            return ExtentList(self._patch.data("digests", DIGEST_BYTES), length)
        number = self._lists_used
        if number >= len(self._list_lengths):
            raise self._patch.refuse("a list that was not told")
        self._lists_used += 1
        digest = bytes(self._list_digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES])
        return ExtentList(digest, self._list_lengths[number])

    def _extent(self, stream: str, size: int | None) -> Extent:
        patch, places = self._patch, self._places
        told = patch.number(stream)
        how, step = told & 3, unfolded(told >> 2)
        if how == HOLE:
            return Extent(None, 0, patch.number(stream))
        frame: tuple[int, int] | bytes
        digest: bytes | None
        if how == NEW:
            frame = (NEW, places.new + step)
            digest, whole = self._digest_of(frame[1]), self._bytes_of(frame[1])
        elif how == OLD:
            frame = (OLD, places.old + step)
            digest = self._base.digest(frame[1])
            if digest is None:
                raise patch.refuse("an old frame that does not exist")
            whole = self._base.frame_bytes(frame[1])
        else:
            frame = digest = patch.data("digests", DIGEST_BYTES)
            whole = 0
        offset = places.expected(frame) + patch.signed(stream)
        length = patch.number(stream) or (size if size is not None else whole - offset)
        if not (0 <= offset <= MAX_FRAME_BYTES and 0 < length <= MAX_FRAME_BYTES):
            raise patch.refuse("an extent that cannot be")
        places.took(frame, offset + length)
        return Extent(digest, offset, length)

    def _digest(self, extents: tuple[Extent, ...]) -> bytes:
        if len(extents) != 1 or extents[0].frame is None:
            raise self._patch.refuse("a digest of what is not in one frame")
        frame = self._places.frame  # where that extent is
        is_new = isinstance(frame, tuple) and frame[0] == NEW
        plain = self._new_plain(self._places.new) if is_new else self._old_plain(extents[0].frame)
        return frame_digest(plain[extents[0].offset : extents[0].offset + extents[0].length])


def _reference(last: Entry) -> Entry:
    """Return what a new entry is told against: the one before it, without its content."""
    return last._replace(size=0, extents=(), lists=(), digest=None)


def _fields(entry: Entry) -> tuple[tuple[int, Any], ...]:
    return (
        (MODE, entry.mode), (OWNER, (entry.owner, entry.group)), (KIND, (entry.kind.value, entry.link)),
        (XATTRS, entry.xattrs),
    )  # fmt: skip


_FROM_FIELD: dict[int, Callable[[Any], dict[str, Any]]] = {
    MODE: lambda value: {"mode": value},
    OWNER: lambda value: {"owner": value[0], "group": value[1]},
    KIND: lambda value: {"kind": Kind(value[0]), "link": value[1]},
    XATTRS: lambda value: {"xattrs": tuple((pair[0], pair[1]) for pair in value)},
}
