"""Read a revision: its entries and their bytes.

Rules:
 * Every frame is checked against its digest each time it is read, a piece of one only against the digest of the file
   that it is; every entry is checked before it is handed out.
 * Entries stream: at most some manifest frames are in memory. So do a file's bytes.
 * A frame is looked for in the record's packs in order, and only where the record says its blocks are live.

A reader is used from one thread; of a large file, and where a patch is made, it reads ahead, inflates and checks in two
others.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from ted.content.blocks import PACK_NAME
from ted.content.entry import (
    Components,
    Entry,
    Extent,
    Kind,
    PathOrder,
    components,
    extents_from_list,
    path_problem,
    printable,
)
from ted.content.frame import Encoded, Location, frame_digest
from ted.content.manifest import ManifestFrame, ManifestIndex, Run, parse_frame, parse_index, parse_runs
from ted.content.pack import DigestTable, PackReader
from ted.content.record import PackRef, RevisionRecord
from ted.errors import HOW_TO_MEND, DigestMismatchError, FormatError, MissingContentError, UsageError

_FILE = Kind.FILE
_CACHED_BYTES = 4 << 20
"""Twice as much cost more, in pages that are new, than was found again."""
_CACHED_MANIFEST_FRAMES = 4
_THREADS = 2
_AHEAD_FROM_BYTES = 8 << 20
"""Of a smaller file it costs more to hand its frames from one thread to another than is won by it."""
_AHEAD_FRAMES = 16
_AHEAD_BYTES = 8 << 20
"""Frames on their way and not asked for yet: by number for one file, by size for all."""

Found = TypeVar("Found", Entry, Entry | Run)
Difference = tuple[bytes, Entry | None, Entry | None]
"""(path, entry before or ``None``, entry after or ``None``)."""


@dataclass(frozen=True, slots=True)
class Hole:
    """``length`` bytes of a file that are not stored: they read as zeros."""

    length: int


class Revision:
    """A revision in its distribution's directory. ``record`` was verified before."""

    def __init__(self, directory: Path, record: RevisionRecord) -> None:
        self.directory = directory
        self.record = record

    def open(self) -> RevisionReader:
        """Open it for reading; close the reader.

        Raises:
            MissingContentError: Something of it is not here.
            FormatError: Something of it breaks the format, or is of a version this ted does not know.
            DigestMismatchError: Something of it is damaged.
        """
        return RevisionReader(self.directory, self.record)


class RevisionReader:
    """An open revision; a context manager."""

    def __init__(self, directory: Path, record: RevisionRecord) -> None:
        self.record = record
        self._where = f"{record.distribution} {record.revision}"
        self._packs = _Packs(directory, record)
        self._manifest_cache: OrderedDict[int, list[Entry]] = OrderedDict()
        self._remembered: dict[int, list[Entry]] = {}
        self._room_bytes = 0
        self._checks = True
        try:
            plain = self._packs.read(bytes.fromhex(record.manifest))
            self._index = parse_index(plain, self._where)
            if self._index.type != record.type:
                raise FormatError(f"{self._where}: record and manifest name different types")
        except BaseException:
            self._packs.close()
            raise
        self._starts: list[Components] = [components(frame.first_path) for frame in self._index.frames]

    def __enter__(self) -> RevisionReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all packs."""
        self._packs.close()

    @property
    def index(self) -> ManifestIndex:
        """What the manifest's index frame says."""
        return self._index

    @property
    def type(self) -> str:
        """The distribution's type."""
        return self._index.type

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings the revision was built with."""
        return self._index.settings

    @property
    def options(self) -> Mapping[str, Any]:
        """The type's own options the revision was built with."""
        return self._index.options

    @property
    def manifest_frames(self) -> Sequence[ManifestFrame]:
        """The frames of the manifest, in order."""
        return self._index.frames

    def entries(self, prefix: bytes = b"") -> Iterator[Entry]:
        """Yield the entries at and below ``prefix``, sorted by path components.

        Args:
            prefix: A path in the content tree, ``b""`` for all of it.

        Raises:
            FormatError: The manifest breaks the format: nothing after that is yielded.
        """
        return self._at_and_below(prefix, self._listed if prefix else self.frame_entries)

    def runs(self, prefix: bytes, has_runs: Callable[[bytes], bool]) -> Iterator[Entry | Run]:
        """As ``entries``, but files of directories for which ``has_runs`` says so may come as runs, not checked yet."""

        def frame_runs(number: int) -> Iterator[Entry | Run]:
            frame = self._index.frames[number]
            return parse_runs(self._packs.read(frame.digest), frame, self._where, has_runs)

        return self._at_and_below(prefix, frame_runs)

    def find(self, path: bytes) -> Entry | None:
        """Return the entry of that path, ``None`` if there is none."""
        key = components(path)
        number = bisect_right(self._starts, key) - 1
        if number < 0:
            return None
        return next((entry for entry in self._frame_entries(number) if entry.path == path), None)

    def chunks(self, entry: Entry) -> Iterator[bytes | Hole]:
        """Yield the bytes of a file in order, and its holes; at most 4 MiB at once. A hard link yields its file's.

        Raises:
            DigestMismatchError: What is stored is damaged.
            MissingContentError: Something of it is not here.
            FormatError: The extents do not fit the frames.
        """
        for piece in self.pieces(entry):
            yield bytes(piece) if isinstance(piece, memoryview) else piece

    def pieces(self, entry: Entry) -> Iterator[bytes | memoryview | Hole]:
        """As ``chunks``, but a part of a frame is a view, which keeps all of it in memory: for who only writes it."""
        if entry.kind is Kind.HARDLINK:
            entry = self.linked(entry)
        extents = self.extents(entry) if entry.lists else iter(entry.extents)
        for extent in self._packs.ahead_of(extents) if entry.size >= _AHEAD_FROM_BYTES else extents:
            if extent.frame is None:
                yield Hole(extent.length)
                continue
            part = self._part(extent.frame, extent.offset, extent.length, entry.digest, entry.path)
            if entry.content_digest == extent.frame and type(part) is memoryview:
                raise FormatError(f"{self._where}: {printable(entry.path)}: part of a frame without a digest")
            yield part

    def rest(self) -> None:
        """End the threads that read ahead; they come back when something is prepared."""
        self._packs.rest()

    def read_piece(self, frame: bytes, offset: int, length: int, digest: bytes | None) -> bytes | memoryview:
        """Return the bytes of a file in one piece, checked by its digest, or the frame's if it has none. No threads.

        Raises:
            RepositoryError: As ``chunks``.
        """
        part = self._part(frame, offset, length, digest, b"a file")
        if digest is None and type(part) is memoryview:
            raise FormatError(f"{self._where}: part of a frame without a digest")
        return part

    def _part(self, frame: bytes, offset: int, length: int, digest: bytes | None, path: bytes) -> bytes | memoryview:
        """Return a frame, or a view of a part of it: compared with ``digest`` if there is one, else as a whole."""
        part = _cut(self._packs.read(frame, checked=digest is None), offset, length)
        if digest is not None and frame_digest(part) != digest:
            part = _cut(self._packs.read(frame), offset, length)  # what is damaged is read anew, or told with its place
            if frame_digest(part) != digest:
                raise DigestMismatchError(f"{self._where}: {printable(path)} is not what its entry says",
                                          hint=HOW_TO_MEND)  # fmt: skip
        if len(part) != length:
            raise FormatError(f"{self._where}: {printable(path)}: an extent leaves its frame")
        return part

    def extents(self, entry: Entry) -> Iterator[Extent]:
        """Yield the extents of a file, those in lists too."""
        yield from entry.extents
        for each in entry.lists:
            where = f"{self._where}: {printable(entry.path)}"
            yield from extents_from_list(self._packs.read(each.frame), each.length, where)

    def verify_frames(self, known: DigestTable | None = None) -> int:
        """Read everything and check it; return the number of entries.

        Args:
            known: The content that need not be read again, of revisions read before; that of this one is added.

        Raises:
            RepositoryError: The first thing that is wrong.
        """
        count = 0
        for entry in self.entries():
            count += 1
            if entry.kind is not Kind.FILE:
                continue
            content = hashlib.sha256(repr((entry.extents, entry.lists, entry.digest)).encode()).digest()
            if known is not None and content in known:
                continue
            if entry.digest is not None and (frame := entry.extents[0].frame) is not None:
                self._packs.read(frame)  # what of it is no file of this revision is checked as well
            for _ in self.pieces(entry):
                pass
            if known is not None:
                known.add(content)
        return count

    def frame_entries(self, number: int) -> Iterator[Entry]:
        """Yield the entries of manifest frame ``number``; order and parents across frames are not checked."""
        if (known := self._remembered.get(number)) is not None:
            return iter(known)
        frame = self._index.frames[number]
        entries = parse_frame(self._packs.read(frame.digest), frame, self._where)
        return self._remembering(number, entries) if self._room_bytes else entries

    def remember_entries(self, room_bytes: int) -> None:
        """Parse a manifest frame only once from now on, as long as all that is remembered fits in ``room_bytes``."""
        self._room_bytes = room_bytes

    def _remembering(self, number: int, entries: Iterator[Entry]) -> Iterator[Entry]:
        known: list[Entry] = []
        for entry in entries:
            known.append(entry)
            yield entry
        size = sum(entry.memory_bytes for entry in known)
        if size <= self._room_bytes and number not in self._remembered:
            self._room_bytes -= size
            self._remembered[number] = known

    # frames by name

    def frame(self, digest: bytes) -> bytes:
        """Return the plain bytes of any frame of the revision, checked, but within ``unchecked``.

        Raises:
            DigestMismatchError: It is damaged.
            MissingContentError: No live pack holds it.
        """
        return self._packs.read(digest, checked=self._checks)

    def checked_frame(self, digest: bytes) -> bytes:
        """Return the plain bytes of any frame of the revision, checked, within ``unchecked`` too.

        Raises:
            DigestMismatchError: It is damaged.
            MissingContentError: No live pack holds it.
        """
        return self._packs.read(digest)

    def prepare_frame(self, digest: bytes) -> None:
        """Say that a frame will be asked for soon: another thread reads it meanwhile."""
        self._packs.prepare(digest, checked=self._checks)

    @contextmanager
    def unchecked(self) -> Iterator[None]:
        """Until this ends, ``frame`` does not compare with names: for who tries out what comes of the bytes.

        All else, what the manifest says and extent lists too, is checked as ever.
        """
        self._checks = False
        try:
            yield
        finally:
            self._checks = True

    def stored_frame(self, digest: bytes) -> Encoded:
        """Return a frame as it is stored; its bytes are not checked."""
        return self._packs.stored(digest)

    def frame_bytes(self, digest: bytes) -> int | None:
        """Return the plain bytes a frame has, ``None`` if no live pack holds it."""
        return self._packs.size_of(digest)

    @property
    def own_pack(self) -> PackReader:
        """The pack that this revision added."""
        return self._packs.own

    # how entries are found and checked

    def _at_and_below(self, prefix: bytes, read: Callable[[int], Iterator[Found]]) -> Iterator[Found]:
        prefix = prefix.strip(b"/")
        if problem := path_problem(prefix) if prefix else None:
            raise UsageError(f"{printable(prefix)} {problem}")
        found = self._below(components(prefix), read) if prefix else self._stream(0, read)
        return self._checked(found, _TreeCheck(self, known=not prefix))

    def _stream(self, number: int, read: Callable[[int], Iterator[Found]]) -> Iterator[Found]:
        for each in range(number, len(self._index.frames)):
            yield from read(each)

    def _below(self, wanted: Components, read: Callable[[int], Iterator[Found]]) -> Iterator[Found]:
        prefix = b"/".join(wanted)
        inside = prefix + b"/"
        for found in self._stream(max(bisect_right(self._starts, wanted) - 1, 0), read):
            if found.path.startswith(inside) or found.path == prefix:
                yield found
            elif components(found.path) > wanted:
                return

    @staticmethod
    def _checked(found: Iterator[Found], check: _TreeCheck) -> Iterator[Found]:
        for each in found:
            check.check(each)
            yield each

    def linked(self, entry: Entry) -> Entry:
        """Return the file that a hard link is another name of.

        Raises:
            FormatError: It names no earlier file.
        """
        target = self.find(entry.link) if entry.link is not None and components(entry.link) < entry.components else None
        if target is None or target.kind is not Kind.FILE:
            raise FormatError(f"{self._where}: {printable(entry.path)} is a hard link to no earlier file")
        return target

    def _listed(self, number: int) -> Iterator[Entry]:
        """Yield the entries of a frame, parsed as a whole: what holds the prefix is looked up in it, too."""
        return iter(self._frame_entries(number))

    def _frame_entries(self, number: int) -> list[Entry]:
        found = self._manifest_cache.get(number)
        if found is None:
            found = self._manifest_cache[number] = list(self.frame_entries(number))
            if len(self._manifest_cache) > _CACHED_MANIFEST_FRAMES:
                self._manifest_cache.popitem(last=False)
        self._manifest_cache.move_to_end(number)
        return found


class _TreeCheck:
    """Checks what one entry alone does not show: order, parents that are directories, what hard links name."""

    def __init__(self, reader: RevisionReader, *, known: bool) -> None:
        self._reader = reader
        self._directory: Components | None = () if known else None
        self._order = PathOrder()
        self._above: bytes | None = None
        """The directory of the entry before: it was looked at."""

    def skipped(self) -> None:
        """Entries were left out: in which directory the next one lies is to be looked up."""
        self._directory = None
        self._above = None

    def check(self, entry: Entry | Run) -> None:
        """Check the next entry, or of a run the first and the last.

        Raises:
            FormatError: It breaks the order, lies in no directory, or is a hard link to no earlier file.
        """
        path = entry.path
        self._check_order(path)
        if isinstance(entry, Run) and entry.last != path:
            self._check_order(entry.last)
        above = path.rpartition(b"/")[0]
        if above == self._above and (isinstance(entry, Run) or entry.kind is _FILE):
            return
        key = components(path)
        parent = key[:-1]
        if self._directory is None:
            self._look_up(parent)
            self._directory = parent
        if parent != self._directory[: len(parent)]:
            raise FormatError(f"{printable(path)} lies in no directory")
        self._above = above
        if isinstance(entry, Run):
            return
        if entry.kind is Kind.DIRECTORY:
            self._directory = key
        elif entry.kind is Kind.HARDLINK:
            self._reader.linked(entry)

    def _check_order(self, path: bytes) -> None:
        if not self._order.follows(path):
            raise FormatError(f"{printable(path)} is out of order")

    def _look_up(self, path: Components) -> None:
        for depth in range(1, len(path) + 1):
            entry = self._reader.find(b"/".join(path[:depth]))
            if entry is None or entry.kind is not Kind.DIRECTORY:
                raise FormatError(f"{printable(b'/'.join(path[:depth]))} is no directory")


class _Packs:
    """The packs of a record; keeps the last frames read."""

    def __init__(self, directory: Path, record: RevisionRecord) -> None:
        self._where = f"{record.distribution} {record.revision}"
        self._open: list[tuple[PackRef, PackReader]] = []
        self._cache: OrderedDict[bytes, bytes] = OrderedDict()
        self._cached_bytes = 0
        self._coming: OrderedDict[bytes, Future[bytes]] = OrderedDict()
        self._coming_bytes = 0
        self._pool: ThreadPoolExecutor | None = None
        self._unchecked: set[bytes] = set()
        """Those frames that are here or on their way and were not compared with their names."""
        try:
            for ref in record.packs:
                path = directory / ref.revision / PACK_NAME
                self._open.append((ref, PackReader(path, expected_bytes=ref.bytes)))
        except BaseException:
            self.close()
            raise

    def rest(self) -> None:
        self._forget_coming()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def close(self) -> None:
        self.rest()
        for _, reader in self._open:
            reader.close()

    def read(self, digest: bytes, *, checked: bool = True) -> bytes:
        """Return a frame; with ``checked`` off for who checks what it takes of it."""
        plain = self._cache.get(digest)
        if plain is None:
            plain = self._arrived(digest, checked=checked)
        if checked and digest in self._unchecked:
            if frame_digest(plain) != digest:
                self._drop(digest)
                reader, location = self._find(digest)
                plain = reader.read(digest, location)  # tells what is wrong, if it still is
            self._unchecked.discard(digest)
        self._keep(digest, plain)
        return plain

    def _arrived(self, digest: bytes, *, checked: bool) -> bytes:
        coming = self._coming.pop(digest, None)
        reader, location = self._find(digest)
        if coming is not None:
            self._coming_bytes -= location.plain_bytes
            return coming.result()
        plain = reader.read(digest, location, checked=checked)
        if not checked:
            self._unchecked.add(digest)
        if self._coming_bytes >= _AHEAD_BYTES:  # what is on its way was not wanted
            self._forget_coming()
        return plain

    def _keep(self, digest: bytes, plain: bytes) -> None:
        if digest in self._cache:
            self._cache.move_to_end(digest)
            return
        self._cache[digest] = plain
        self._cached_bytes += len(plain)
        while self._cached_bytes > _CACHED_BYTES:
            self._drop(next(iter(self._cache)))

    def _drop(self, digest: bytes) -> None:
        self._cached_bytes -= len(self._cache.pop(digest, b""))
        self._unchecked.discard(digest)

    def prepare(self, digest: bytes, *, checked: bool = True) -> bool:
        """Begin to read a frame in another thread; false where enough is on its way already."""
        if digest in self._cache or digest in self._coming:
            return True
        if self._coming_bytes >= _AHEAD_BYTES:
            return False
        with suppress(MissingContentError):  # told when it is asked for
            reader, location = self._find(digest)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="ted-read")
            self._coming[digest] = self._pool.submit(reader.read, digest, location, checked=checked)
            if not checked:
                self._unchecked.add(digest)
            self._coming_bytes += location.plain_bytes
        return True

    def _forget_coming(self) -> None:
        for digest, coming in self._coming.items():
            coming.cancel()
            self._unchecked.discard(digest)
        self._coming.clear()
        self._coming_bytes = 0

    def ahead_of(self, extents: Iterator[Extent]) -> Iterator[Extent]:
        """Yield ``extents``, the frames of those that follow on their way."""
        waiting: deque[Extent] = deque()
        for extent in extents:
            waiting.append(extent)
            room = extent.frame is None or self.prepare(extent.frame)
            if not room or len(waiting) > _AHEAD_FRAMES:
                yield waiting.popleft()
        yield from waiting

    @property
    def own(self) -> PackReader:
        return self._open[0][1]

    def stored(self, digest: bytes) -> Encoded:
        reader, location = self._find(digest)
        return Encoded(digest, location.codec, reader.stored(location), location.plain_bytes)

    def size_of(self, digest: bytes) -> int | None:
        found = self._look_up(digest)
        return found[1].plain_bytes if found is not None else None

    def _look_up(self, digest: bytes) -> tuple[PackReader, Location] | None:
        for ref, reader in self._open:
            location = reader.index.get(digest)
            if location is not None and _is_live(ref, location):
                return reader, location
        return None

    def _find(self, digest: bytes) -> tuple[PackReader, Location]:
        found = self._look_up(digest)
        if found is not None:
            return found
        raise MissingContentError(
            f"{self._where}: no pack holds the frame {digest.hex()}", hint="`ted verify --stored` says what is wrong"
        )


def _cut(plain: bytes, offset: int, length: int) -> bytes | memoryview:
    return plain if not offset and length == len(plain) else memoryview(plain)[offset : offset + length]


def _is_live(ref: PackRef, location: Location) -> bool:
    first, last = location.offset // ref.block_bytes, (location.end - 1) // ref.block_bytes
    number = bisect_right(ref.live, (first, ref.blocks)) - 1
    return number >= 0 and last < sum(ref.live[number])


class _Cursor:
    """Where a comparison stands in one revision; a manifest frame is only read when its entries are asked for."""

    def __init__(self, reader: RevisionReader | None) -> None:
        self._reader = reader
        self._frames = reader.manifest_frames if reader is not None else ()
        self._check = _TreeCheck(reader, known=True) if reader is not None else None
        self._number = 0
        self._entries: Iterator[Entry] | None = None
        self._entry: Entry | None = None

    def at_frame(self) -> bytes | None:
        """Return the digest of the manifest frame that is next and not begun, else ``None``."""
        if self._entries is not None or self._number >= len(self._frames):
            return None
        return self._frames[self._number].digest

    def entry(self) -> Entry | None:
        """Return the entry the cursor is at, checked; ``None`` at the end."""
        if self._entry is None and self._reader is not None and self._number < len(self._frames):
            self._entries = self._reader.frame_entries(self._number)
            self._take()
        return self._entry

    def advance(self) -> None:
        """Go on to the next entry, or to the next frame without beginning it."""
        self._take()

    def skip_frame(self) -> None:
        """Leave out the frame that is next."""
        self._number += 1
        if self._check is not None:
            self._check.skipped()

    def _take(self) -> None:
        self._entry = next(self._entries, None) if self._entries is not None else None
        if self._entry is None:
            self._entries = None
            self._number += 1
        elif self._check is not None:
            self._check.check(self._entry)


def diff(old: RevisionReader | None, new: RevisionReader) -> Iterator[Difference]:
    """Yield what differs between two revisions, sorted by path components.

    Entries that would install as the same thing (``Entry.same_as``) are left out, manifest frames that both have
    are not looked into.

    Args:
        old: ``None`` compares with nothing: every entry of ``new`` is yielded.
        new: The revision to compare with.
    """
    before, after = _Cursor(old), _Cursor(new)
    while True:
        if before.at_frame() is not None and before.at_frame() == after.at_frame():
            before.skip_frame()
            after.skip_frame()
            continue
        was, now = before.entry(), after.entry()
        if was is None and now is None:
            return
        if now is None or (was is not None and was.components < now.components):
            assert was is not None
            yield was.path, was, None
            before.advance()
        elif was is None or now.components < was.components:
            yield now.path, None, now
            after.advance()
        else:
            if not was.same_as(now):
                yield now.path, was, now
            before.advance()
            after.advance()
