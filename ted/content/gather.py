"""From what a walk finds to entries and frames.

Rules:
 * Frames are cut as ``docs/format.md`` section 4 says; which files share a group follows from paths and sizes alone, so
   it is known before anything is read.
 * A file is read between two looks at its status. If they differ it is read again, three times at most.
 * A file the cache knows is not read, if its frames are still kept and, for a small file, its whole group is unchanged.
 * Small files are hashed here, not on the threads that compress: to take turns at the interpreter for each of
   them would cost more.
 * Entries leave in order; those that wait for their group to end are at most ``MAX_GROUP_ENTRIES``.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgpack

from ted.content.cache import Cached, CacheReader, CacheWriter, signer
from ted.content.cut import (
    GROUP_BYTES,
    MAX_GROUP_ENTRIES,
    MIN_HOLE_BYTES,
    ExtentCutter,
    ends_group,
    path_hash,
    pieces,
)
from ted.content.entry import (
    Components,
    Entry,
    Extent,
    ExtentList,
    Kind,
    Xattrs,
    extents_from_list,
    pack_entry,
)
from ted.content.frame import frame_digest
from ted.content.manifest import ManifestWriter
from ted.content.store import FrameStore
from ted.content.walk import Item, fail, group_name, owner_name, read_xattrs
from ted.errors import FormatError, RepositoryError, SourceChangedError

_ATTEMPTS = 3
_PAUSE_S = 0.05
_FILE = Kind.FILE.value


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


class _Attributes(NamedTuple):
    """What stands in a file's row of the manifest between kind and size."""

    mode: int
    mtime_ns: int
    owner: str | int
    group: str | int


@dataclass(slots=True)
class _Row:
    """An entry on its way into the manifest; waits while ``packed`` is ``None``.

    A small file waits for its group to end: its bytes are in ``data`` if it was read, else ``known`` is what is
    remembered of it. In the end ``known`` is what the next build may know.
    """

    path: bytes
    marks: bytes
    packed: bytes | None = None
    is_file: bool = False
    size: int = 0
    item: Item | None = None
    status: os.stat_result | None = None
    attributes: _Attributes | None = None
    xattrs: Xattrs = ()
    data: bytes | None = None
    known: Cached | None = None


class _Read(NamedTuple):
    """What reading a file gave: its bytes where it is small, else its extents."""

    status: os.stat_result
    xattrs: Xattrs
    data: bytes | None
    extents: tuple[Extent, ...] = ()
    lists: tuple[ExtentList, ...] = ()


@dataclass(slots=True)
class _Group:
    top: bytes = b""
    rows: list[_Row] = field(default_factory=list)
    bytes: int = 0
    entries: int = 0


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
        self._links = HardLinks()
        self._sign = signer()
        self._pack = msgpack.Packer().pack

    def take(self, found: Item | Given) -> None:
        """Take the next thing found.

        Raises:
            SourceChangedError: It went on changing while it was read.
            BuildError: It cannot be read.
        """
        row = _Row(found.path, path_hash(found.path))
        self._rows.append(row)
        if isinstance(found, Given):
            self._take_given(found, row)
        elif stat.S_ISREG(found.status.st_mode):
            self._take_file(found, row)
        else:
            row.packed = pack_entry(_entry(found, found.xattrs, found.target))
        if self._group.rows:
            self._group.entries += 1
            if self._group.entries >= MAX_GROUP_ENTRIES:
                self._end_group()
        self._emit()

    def finish(self) -> None:
        """Nothing more comes: end the open group."""
        self._end_group()
        self._emit()

    def _emit(self) -> None:
        rows = self._rows
        while rows and (packed := rows[0].packed) is not None:
            row = rows.popleft()
            self._manifest.add(row.path, packed, row.marks)
            self.files += row.is_file
            self.content_bytes += row.size
            if row.known is not None:
                self._cache_out.add(row.known)

    def _take_given(self, given: Given, row: _Row) -> None:
        if given.data is None:
            row.packed = pack_entry(Entry(given.path, Kind.DIRECTORY, given.mode, given.mtime_ns, "root", "root"))
            return
        row.is_file, row.size = True, len(given.data)
        row.attributes = _Attributes(given.mode, given.mtime_ns, "root", "root")
        if not given.data:
            self._finish_row(row, ())
        elif row.size <= GROUP_BYTES:
            row.data = given.data
            self._join_group(row, given.key[0])
        else:
            extents, lists = self._cut_bytes(given.data)
            self._finish_row(row, lists or extents)

    def _take_file(self, item: Item, row: _Row) -> None:
        row.is_file, row.item = True, item
        first = self._links.seen(item)
        if first is not None:
            path, xattrs = first
            row.packed = pack_entry(_entry(item, xattrs, path))
            return
        status = item.status
        if not self._cache.is_used_up:
            signature = self._sign(status, owner_name(status.st_uid), group_name(status.st_gid))
            known = self._cache.find(item.path, item.key, signature)
            if known is not None and self._take_known(item, row, known):
                return
        self._settle(row, item, self._read(item), grouped=True)

    def _take_known(self, item: Item, row: _Row, known: Cached) -> bool:
        """Take a file as it is remembered; false if it must be read."""
        if known.frame is None or item.status.st_nlink > 1:
            try:
                entry = known.entry()
            except FormatError:
                return False
            if known.frame is None and not self._need_all(entry):
                return False
            self._links.first(item, entry.xattrs)
        row.status, row.size, row.known = item.status, item.status.st_size, known
        if known.frame is None:
            row.packed = known.row
        else:
            self._join_group(row, item.key[0])
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
        _take_up(row, read)
        if read.data is None:
            self._finish_row(row, read.lists or read.extents)
        elif grouped:
            self._join_group(row, item.key[0])
        else:
            row.data = None
            self._finish_row(row, ((self._frames.put(read.data), 0, row.size),))

    def _finish_row(
        self, row: _Row, extents: Sequence[tuple[object, ...]], *, frame: bytes | None = None, offset: int = 0,
        digest: bytes | None = None,
    ) -> None:  # fmt: skip
        """Give a file its row in the manifest; ``frame`` and ``offset`` only where it may share a frame."""
        attributes = row.attributes
        assert attributes is not None
        row.packed = self._pack((row.path, _FILE, *attributes, row.size, extents, None, digest, row.xattrs))
        if row.status is not None and self._cache_out.takes(row.status):
            signature = self._sign(row.status, attributes.owner, attributes.group)
            row.known = Cached(row.path, signature, row.packed, frame, offset, digest is not None)

    # groups

    def _join_group(self, row: _Row, top: bytes) -> None:
        group = self._group
        if group.rows and (group.bytes + row.size > GROUP_BYTES or top != group.top):
            self._end_group()
            group = self._group
        group.top = top
        group.rows.append(row)
        group.bytes += row.size
        if ends_group(group.bytes, group.entries + 1, row.marks):
            self._end_group()

    def _end_group(self) -> None:
        group, self._group = self._group, _Group()
        if group.rows and not self._reuse(group.rows):
            self._store_group(group.rows)

    def _reuse(self, rows: list[_Row]) -> bool:
        """Settle a group that is exactly as the cache has it, without reading; false if it is not."""
        frame = rows[0].known.frame if rows[0].known is not None else None
        if frame is None:
            return False
        offset, shares = 0, len(rows) > 1
        for row in rows:
            known = row.known
            if known is None or known.frame != frame or known.offset != offset or known.shares is not shares:
                return False
            offset += row.size
        if self._frames.size_of(frame) != offset:
            return False
        self._frames.need(frame)
        for row in rows:
            known, status = row.known, row.status
            assert known is not None
            assert status is not None
            row.packed = known.row
            if not self._cache_out.takes(status):
                row.known = None
        return True

    def _store_group(self, rows: list[_Row]) -> None:
        rows = [row for row in rows if self._has_data(row)]
        plain = b"".join([row.data or b"" for row in rows])
        if not plain:
            return
        frame, shared, offset = self._frames.put(plain), len(rows) > 1, 0
        for row in rows:
            # alone, the frame's digest is the file's
            digest = frame_digest(row.data or b"") if shared else None
            row.data = None
            self._finish_row(row, ((frame, offset, row.size),), frame=frame, offset=offset, digest=digest)
            offset += row.size

    def _has_data(self, row: _Row) -> bool:
        """Read a remembered file; false if it is now another one, which then was settled by itself."""
        if row.data is not None or row.item is None:
            return True
        read, expected, row.known = self._read(row.item), row.size, None
        if read.data is None or len(read.data) != expected:
            self._settle(row, row.item, read, grouped=False)
            return False
        _take_up(row, read)
        return True

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
                read = self._read_once(fd, item, is_first=not attempt)
            finally:
                os.close(fd)
            if read is not None:
                return read
        raise SourceChangedError(
            f"{item.source}: changed each of the {_ATTEMPTS} times it was read",
            hint="build again when nobody writes there, or `exclude` it",
        )

    def _read_once(self, fd: int, item: Item, *, is_first: bool) -> _Read | None:
        """Read what is open as ``fd``; ``None`` if it is not what it was before, by the walk's look if ``is_first``."""
        try:
            before = item.status if is_first else os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise SourceChangedError(
                    f"{item.source}: is no longer a file", hint="build again when nobody writes there"
                )
            xattrs = read_xattrs(fd, lambda: item.source)
            size = before.st_size
            data: bytes | None = None
            extents: tuple[Extent, ...] = ()
            lists: tuple[ExtentList, ...] = ()
            sparse = before.st_blocks * 512 < size and next(regions(fd, size)) != (0, size, False)
            if size > GROUP_BYTES or sparse:
                extents, lists = self._cut_file(fd, size)
            elif size:
                data = _read_all(fd, size)
            after = os.fstat(fd)
        except OSError as error:
            if is_first:  # no longer what the walk saw, it may be: the next look tells
                return None
            fail(error, item.source)
        if (
            after.st_ctime_ns != before.st_ctime_ns
            or after.st_mtime_ns != before.st_mtime_ns
            or after.st_ino != before.st_ino
            or after.st_dev != before.st_dev
            or after.st_size != size
            or (len(data) if data is not None else sum(piece.length for piece in extents or lists)) != size
        ):
            return None
        return _Read(before, xattrs, data, extents, lists)

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


def _take_up(row: _Row, read: _Read) -> None:
    status = read.status
    row.status, row.xattrs, row.data, row.size = status, read.xattrs, read.data, status.st_size
    row.attributes = _Attributes(
        stat.S_IMODE(status.st_mode), status.st_mtime_ns, owner_name(status.st_uid), group_name(status.st_gid)
    )


def _entry(item: Item, xattrs: Xattrs, link: bytes | None) -> Entry:
    """Return the entry of a directory or link, symbolic or hard."""
    status = item.status
    kind, size = (Kind.DIRECTORY if stat.S_ISDIR(status.st_mode) else Kind.SYMLINK), 0
    if stat.S_ISREG(status.st_mode):
        kind, size = Kind.HARDLINK, status.st_size
    return Entry(
        item.path, kind, stat.S_IMODE(status.st_mode), status.st_mtime_ns, owner_name(status.st_uid),
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
