"""From what a walk finds to entries and frames.

Rules:
 * Frames are cut as ``docs/format.md`` section 4 says; which files share a group follows from paths and sizes alone, so
   it is known before anything is read.
 * A file is read between two looks at its status. If they differ it is read again, three times at most.
 * A file the cache knows is not read, if its frames are still kept and, for a small file, its whole group is unchanged.
 * Groups are hashed on the threads that compress; at most ``_HASHING`` of them at a time, so that the order in which
   frames come does not depend on which thread was quicker.
 * Entries leave in order; those that wait for their group to end are at most ``MAX_GROUP_ENTRIES`` for each.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

import msgpack

from ted.content.cache import Cached, CacheReader, CacheWriter
from ted.content.cut import (
    GROUP_BYTES,
    MAX_GROUP_ENTRIES,
    MIN_HOLE_BYTES,
    ExtentCutter,
    ends_group,
    path_hash,
    pieces,
)
from ted.content.entry import Components, Entry, Extent, ExtentList, Kind, Xattrs, extents_from_list
from ted.content.frame import frame_digest
from ted.content.manifest import ManifestWriter
from ted.content.store import FrameStore
from ted.content.walk import Item, fail, group_name, owner_name, read_xattrs
from ted.errors import RepositoryError, SourceChangedError

_ATTEMPTS = 3
_PAUSE_S = 0.05
_HASHING = 4


@dataclass(frozen=True, slots=True)
class Given:
    """Bytes that a caller hands in as a file, or (``data`` is ``None``) a directory nobody described."""

    path: bytes
    key: Components
    data: bytes | None
    mode: int
    mtime_ns: int = 0

    @property
    def source(self) -> str:
        """What to call it in messages."""
        return "what the distribution's type adds"


@dataclass(slots=True)
class _Row:
    """An entry on its way into the manifest; waits while ``entry`` is ``None``."""

    marks: bytes
    entry: Entry | None = None
    status: os.stat_result | None = None


@dataclass(slots=True)
class _Read:
    """What reading a file gave: its bytes where it is small, else its extents."""

    status: os.stat_result
    xattrs: Xattrs
    data: bytes | None = None
    extents: tuple[Extent, ...] = ()
    lists: tuple[ExtentList, ...] = ()


@dataclass(slots=True)
class _Member:
    """A small file in the open group: read (``data``), or remembered (``cached``) and not read yet."""

    row: _Row
    base: Entry
    item: Item | None
    data: bytes | None = None
    cached: Cached | None = None


@dataclass(slots=True)
class _Group:
    members: list[_Member] = field(default_factory=list)
    bytes: int = 0
    entries: int = 0


@dataclass(slots=True)
class _Hashing:
    """A group that was read, while its bytes and its files are hashed."""

    members: list[_Member]
    plain: bytes
    digests: Future[list[bytes]]


class Gatherer:
    """Takes what is found, in order, and fills manifest and frame store."""

    def __init__(
        self, frames: FrameStore, manifest: ManifestWriter, cache: CacheReader, cache_out: CacheWriter
    ) -> None:
        self.files = 0
        self.content_bytes = 0
        self._frames = frames
        self._manifest = manifest
        self._cache = cache
        self._cache_out = cache_out
        self._rows: deque[_Row] = deque()
        self._group = _Group()
        self._hashing: deque[_Hashing] = deque()
        self._links = HardLinks()

    def take(self, found: Item | Given) -> None:
        """Take the next thing found.

        Raises:
            SourceChangedError: It went on changing while it was read.
            BuildError: It cannot be read.
        """
        row = _Row(path_hash(found.path))
        self._rows.append(row)
        if isinstance(found, Given):
            self._take_given(found, row)
        elif stat.S_ISREG(found.status.st_mode):
            self._take_file(found, row)
        else:
            row.entry = _entry(found.path, found.status, found.xattrs, found.target)
        if self._group.members:
            self._group.entries += 1
            if self._group.entries >= MAX_GROUP_ENTRIES:
                self._end_group()
        self._emit()

    def finish(self) -> None:
        """Nothing more comes: end the open group."""
        self._end_group()
        while self._hashing:
            self._store_hashed()
        self._emit()

    def _emit(self) -> None:
        while self._rows and (entry := self._rows[0].entry) is not None:
            row = self._rows.popleft()
            packed = self._manifest.add(entry, row.marks)
            if entry.kind is Kind.FILE:
                self.content_bytes += entry.size
                if row.status is not None:
                    self._cache_out.add(row.status, packed)
            self.files += entry.kind in {Kind.FILE, Kind.HARDLINK}

    def _take_given(self, given: Given, row: _Row) -> None:
        kind = Kind.DIRECTORY if given.data is None else Kind.FILE
        data = given.data or b""
        entry = Entry(given.path, kind, given.mode, given.mtime_ns, "root", "root", len(data))
        if not data:
            row.entry = entry
        elif len(data) <= GROUP_BYTES:
            self._join_group(_Member(row, entry, None, data))
        else:
            extents, lists = self._cut_bytes(data)
            row.entry = entry._replace(extents=extents, lists=lists)

    def _take_file(self, item: Item, row: _Row) -> None:
        first = self._links.seen(item)
        if first is not None:
            path, xattrs = first
            row.entry = _entry(item.path, item.status, xattrs, path)
            return
        cached = self._cache.find(item.key, item.status)
        if cached is not None and self._take_cached(item, row, cached):
            return
        self._settle(row, item, self._read(item), grouped=True)

    def _take_cached(self, item: Item, row: _Row, cached: Cached) -> bool:
        known = cached.entry
        entry = _entry(item.path, item.status, known.xattrs)._replace(
            extents=known.extents, lists=known.lists, digest=known.digest
        )
        if known.size <= GROUP_BYTES and len(known.extents) == 1 and known.extents[0].frame is not None:
            self._links.first(item, entry.xattrs)
            self._join_group(_Member(row, entry, item, cached=cached))
            return True
        if not self._need_all(known):
            return False
        self._links.first(item, entry.xattrs)
        row.entry, row.status = entry, item.status
        return True

    def _need_all(self, entry: Entry) -> bool:
        """Refer to every frame of a larger file; false if one is no longer kept."""
        if not all(extent.frame is None or self._frames.need(extent.frame) for extent in entry.extents):
            return False
        for each in entry.lists:
            try:
                plain = self._frames.read(each.frame)
                extents = extents_from_list(plain, each.length, "build cache") if plain is not None else None
            except RepositoryError:
                return False
            if extents is None or not self._frames.need(each.frame):
                return False
            if not all(extent.frame is None or self._frames.need(extent.frame) for extent in extents):
                return False
        return True

    def _settle(self, row: _Row, item: Item, read: _Read, *, grouped: bool) -> None:
        """Give a file that was read its place: in the open group, a frame of its own, or several."""
        self._links.first(item, read.xattrs)
        row.status = read.status
        entry = _entry(item.path, read.status, read.xattrs)
        if read.data is None:
            row.entry = entry._replace(extents=read.extents, lists=read.lists)
        elif grouped:
            self._join_group(_Member(row, entry, item, read.data))
        else:
            row.entry = entry._replace(extents=(Extent(self._frames.put(read.data), 0, len(read.data)),))

    # groups

    def _join_group(self, member: _Member) -> None:
        group, size = self._group, member.base.size
        if group.members and (
            group.bytes + size > GROUP_BYTES or member.base.components[0] != group.members[0].base.components[0]
        ):
            self._end_group()
            group = self._group
        group.members.append(member)
        group.bytes += size
        if ends_group(group.bytes, group.entries + 1, member.row.marks):
            self._end_group()

    def _end_group(self) -> None:
        group, self._group = self._group, _Group()
        if group.members and not self._reuse(group):
            self._store_group(group)

    def _reuse(self, group: _Group) -> bool:
        """Settle a group that is exactly as the cache has it, without reading; false if it is not."""
        frame = group.members[0].base.extents[0].frame if group.members[0].cached else None
        if frame is None:
            return False
        offset = 0
        for member in group.members:
            shares = member.base.digest is not None
            expected = (Extent(frame, offset, member.base.size),)
            if member.cached is None or member.base.extents != expected or shares is (len(group.members) == 1):
                return False
            offset += member.base.size
        if self._frames.size_of(frame) != offset:
            return False
        self._frames.need(frame)
        for member in group.members:
            self._finish_member(member, member.base)
        return True

    def _store_group(self, group: _Group) -> None:
        members = [member for member in group.members if self._has_data(member)]
        parts = [member.data or b"" for member in members]
        plain = b"".join(parts)
        if not plain:
            return
        if len(parts) == 1:
            parts = []  # the frame's digest is the file's
        digests = self._frames.threads.submit(lambda: [frame_digest(part) for part in (plain, *parts)])
        self._hashing.append(_Hashing(members, plain, digests))
        if len(self._hashing) > _HASHING:
            self._store_hashed()

    def _store_hashed(self) -> None:
        """Keep the group that was read longest ago, and give its files their entries."""
        group = self._hashing.popleft()
        frame, *of_files = group.digests.result()
        digests: list[bytes] | list[None] = of_files or [None]
        self._frames.put(group.plain, digest=frame)
        offset = 0
        for member, digest in zip(group.members, digests, strict=True):
            size = len(member.data or b"")
            member.data = None
            extents = (Extent(frame, offset, size),)
            self._finish_member(member, member.base._replace(extents=extents, digest=digest))
            offset += size

    def _has_data(self, member: _Member) -> bool:
        """Read a remembered member; false if it is now another file, which then was settled by itself."""
        if member.data is not None or member.item is None:
            return True
        read = self._read(member.item)
        if read.data is None or len(read.data) != member.base.size:
            self._settle(member.row, member.item, read, grouped=False)
            return False
        member.data = read.data
        member.base = _entry(member.item.path, read.status, read.xattrs)
        member.row.status = read.status
        member.cached = None
        return True

    def _finish_member(self, member: _Member, entry: Entry) -> None:
        member.row.entry = entry
        if member.row.status is None and member.item is not None:
            member.row.status = member.item.status

    # reading

    def _read(self, item: Item) -> _Read:
        for attempt in range(_ATTEMPTS):
            if attempt:
                time.sleep(_PAUSE_S)
            try:
                fd = item.open()
            except OSError as error:
                fail(error, item.source)
            try:
                read = self._read_once(fd, item)
            finally:
                os.close(fd)
            if read is not None:
                return read
        raise SourceChangedError(
            f"{item.source}: changed each of the {_ATTEMPTS} times it was read",
            hint="build again when nobody writes there, or `exclude` it",
        )

    def _read_once(self, fd: int, item: Item) -> _Read | None:
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise SourceChangedError(
                    f"{item.source}: is no longer a file", hint="build again when nobody writes there"
                )
            read = _Read(before, read_xattrs(fd, lambda: item.source))
            size = before.st_size
            sparse = before.st_blocks * 512 < size and next(regions(fd, size)) != (0, size, False)
            if size > GROUP_BYTES or sparse:
                read.extents, read.lists = self._cut_file(fd, size)
            elif size:
                read.data = _read_all(fd, size)
            after = os.fstat(fd)
        except OSError as error:
            fail(error, item.source)
        whole = read.data is None or len(read.data) == size
        covered = sum(piece.length for piece in read.extents or read.lists) == size
        same = (after.st_size, after.st_mtime_ns, after.st_ctime_ns) == (size, before.st_mtime_ns, before.st_ctime_ns)
        return read if same and whole and (covered or read.data is not None) else None

    def _cut_file(self, fd: int, size: int) -> tuple[tuple[Extent, ...], tuple[ExtentList, ...]]:
        lists: list[ExtentList] = []
        cutter = ExtentCutter(lambda extents: lists.append(self._store_list(extents)))
        for start, length, is_hole in regions(fd, size):
            if is_hole:
                cutter.add(Extent(None, 0, length))
                continue
            for piece in pieces(_reader(fd, start, length)):
                cutter.add(Extent(self._frames.put(piece), 0, len(piece)))
        return cutter.finish(), tuple(lists)

    def _cut_bytes(self, data: bytes) -> tuple[tuple[Extent, ...], tuple[ExtentList, ...]]:
        lists: list[ExtentList] = []
        cutter = ExtentCutter(lambda extents: lists.append(self._store_list(extents)))
        for piece in pieces(_memory_reader(data)):
            cutter.add(Extent(self._frames.put(piece), 0, len(piece)))
        return cutter.finish(), tuple(lists)

    def _store_list(self, extents: list[Extent]) -> ExtentList:
        return ExtentList(self._frames.put(msgpack.packb(extents)), sum(extent.length for extent in extents))


class HardLinks:
    """First names of files that have several; a file all of whose names were seen is forgotten."""

    def __init__(self) -> None:
        self._first: dict[tuple[int, int], bytes | tuple[bytes, Xattrs]] = {}
        self._left: dict[tuple[int, int], int] = {}
        self._trees: dict[int, int] = {}

    def first(self, item: Item, xattrs: Xattrs) -> None:
        """Note the first name of a file."""
        if item.status.st_nlink > 1:
            key = self._key(item)
            self._first[key] = (item.path, xattrs) if xattrs else item.path
            if item.status.st_nlink > 2:
                self._left[key] = item.status.st_nlink - 1

    def seen(self, item: Item) -> tuple[bytes, Xattrs] | None:
        """Return path and extended attributes of the first name, ``None`` if this is it.

        Only names within one source count: what goes to two targets may end on two filesystems.
        """
        if item.status.st_nlink < 2:
            return None
        key = self._key(item)
        first = self._first.get(key)
        if first is None:
            return None
        left = self._left.get(key, 1) - 1
        if left:
            self._left[key] = left
        else:
            self._first.pop(key)
            self._left.pop(key, None)
        return first if isinstance(first, tuple) else (first, ())

    def _key(self, item: Item) -> tuple[int, int]:
        tree = self._trees.setdefault(id(item.tree), len(self._trees))
        return (tree << 64 | item.status.st_dev, item.status.st_ino)


def _entry(path: bytes, status: os.stat_result, xattrs: Xattrs, link: bytes | None = None) -> Entry:
    if stat.S_ISREG(status.st_mode):
        kind, size = (Kind.FILE if link is None else Kind.HARDLINK), status.st_size
    else:
        kind, size = (Kind.DIRECTORY if stat.S_ISDIR(status.st_mode) else Kind.SYMLINK), 0
    return Entry(
        path, kind, stat.S_IMODE(status.st_mode), status.st_mtime_ns, owner_name(status.st_uid),
        group_name(status.st_gid), size, (), link, None, xattrs,
    )  # fmt: skip


def regions(fd: int, size: int) -> Iterator[tuple[int, int, bool]]:
    """Yield (start, length, is a hole) for a file, in order; holes that are too short to matter count as data."""
    start = place = 0
    while place < size:
        data = min(_seek(fd, place, os.SEEK_DATA, size), size)
        if data - place >= MIN_HOLE_BYTES:
            if place > start:
                yield start, place - start, False
            yield place, data - place, True
            start = data
        if data >= size:
            break
        place = min(_seek(fd, data, os.SEEK_HOLE, size), size)
    if start < size:
        yield start, size - start, False


def _seek(fd: int, place: int, whence: int, size: int) -> int:
    try:
        return os.lseek(fd, place, whence)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size  # nothing but hole up to the end
        if error.errno in {errno.EINVAL, errno.ENOTSUP}:
            return place if whence == os.SEEK_DATA else size  # a filesystem that knows no holes
        raise


def _read_all(fd: int, size: int) -> bytes:
    data = os.pread(fd, size + 1, 0)
    while len(data) < size and (more := os.pread(fd, size + 1 - len(data), len(data))):
        data += more
    return data


def _reader(fd: int, start: int, length: int) -> Callable[[memoryview], int]:
    place, end = start, start + length

    def read_into(buffer: memoryview) -> int:
        nonlocal place
        count = os.preadv(fd, [buffer[: end - place]], place) if place < end else 0
        place += count
        return count

    return read_into


def _memory_reader(data: bytes) -> Callable[[memoryview], int]:
    place = 0

    def read_into(buffer: memoryview) -> int:
        nonlocal place
        part = data[place : place + len(buffer)]
        buffer[: len(part)] = part
        place += len(part)
        return len(part)

    return read_into
