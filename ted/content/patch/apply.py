"""Applying a patch: from a revision that is here and a patch to the pack of the next revision, byte for byte.

Rules:
 * The pack comes out in order, each frame compressed as the builder did; who takes it checks it block by block.
 * The patch was checked against what was signed before it comes here; it is read as hostile all the same.
 * Frames are compressed in other threads while the next ones are put together.
 * Memory: some frames and one chunk of each stream, whatever the size; some bytes a frame, and those are bounded.
 * It can be ended at any time, also while nothing comes out: ``check`` is called wherever the work may be long.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from enum import IntEnum
from pathlib import Path
from typing import Any

from ted.content.cut import MAX_PIECE_BYTES
from ted.content.entry import MAX_ROW_BYTES, unpack_one
from ted.content.frame import DIGEST_BYTES, MAX_FRAME_BYTES, Encoded, Location, decode, encode
from ted.content.manifest import pack_index
from ted.content.pack import ROW, PackWriter
from ted.content.patch.base import Base
from ted.content.patch.covers import CoverReader
from ted.content.patch.entries import EntryReader
from ted.content.patch.opened import Closing, opened_bytes, read_opened
from ted.content.patch.streams import StreamReader
from ted.content.revision import RevisionReader

_MAX_HEAD_BYTES = 256 << 10
_MAX_LEVEL = 19
_MAX_ENTRIES = 1 << 16
_MAX_FRAMES = 1 << 22
_MAX_RUNS = 1 << 19
"""Of frames of one kind."""
_MAX_MANIFEST_FRAMES = 200_000
"""As a reader of the index that lists them."""
_CACHED_BYTES = 8 << 20
_WORKERS = 2
_THRIFTY_LEVEL = 10
"""From which on zstd takes so much memory that one worker must do."""
_AHEAD_FRAMES = 4
_AHEAD_BYTES = 4 << 20


class FrameKind(IntEnum):
    """What a frame of the pack is."""

    CONTENT = 0
    MANIFEST = 1
    LIST = 2
    INDEX = 3
    CARRIED = 4


class PackOut(ABC):
    """Where a rebuilt pack goes, in order."""

    @abstractmethod
    def write(self, data: bytes, /) -> None:
        """Take the next bytes; raises ``DigestMismatchError`` when they are not those of the pack."""

    @abstractmethod
    def read(self, offset: int, count: int) -> bytes:
        """Return bytes that were written before."""


def apply_patch(path: Path, old: RevisionReader, out: PackOut, check: Callable[[], None] = lambda: None) -> None:
    """Rebuild a pack.

    Args:
        path: The patch, whole and checked against its signed block list.
        old: The revision it was made against.
        out: Takes the pack.
        check: Called many times a second; what it raises ends the work.

    Raises:
        FormatError: The patch cannot be one, or was made against another revision.
        RepositoryError: Something of the old revision is damaged or not here.
    """
    patch = StreamReader(path)
    try:
        application = _Application(patch, old, out, path.parent, check)
        try:
            application.run()
        finally:
            application.close()
    finally:
        patch.close()


def waiting_bytes(path: Path) -> int:
    """Return how many bytes wait on the disk while a patch is applied: what it opens, and a row for each frame.

    Raises:
        FormatError: It is no patch.
    """
    patch = StreamReader(path)
    try:
        return opened_bytes(patch) + ROW.size * sum(count for _, count in _program(patch))
    finally:
        patch.close()


def _program(patch: StreamReader) -> Iterator[tuple[int, int]]:
    """Yield the runs of frames of the pack: (kind, how many)."""
    total = runs = 0
    while told := patch.number("program"):
        total, runs = total + told // len(FrameKind), runs + 1
        if total > _MAX_FRAMES or runs > _MAX_RUNS or not told // len(FrameKind):
            raise patch.refuse("more frames than a pack has")
        yield told % len(FrameKind), told // len(FrameKind)


class _Application:
    def __init__(
        self, patch: StreamReader, old: RevisionReader, out: PackOut, directory: Path, check: Callable[[], None]
    ) -> None:
        self._patch = patch
        self._old = old
        self._out = out
        self._check = check
        self._level, more, self._names = self._head()
        self._frames, gone = self._index()
        self._base = Base(old, sorted({*gone, *more}), check)
        self._kinds, self._counts = array("B"), array("I")
        for kind, count in _program(patch):
            check()
            self._kinds.append(kind)
            self._counts.append(count)
        content = sum(count for kind, count in zip(self._kinds, self._counts, strict=True) if kind == FrameKind.CONTENT)
        self._sizes = array("I")
        for _ in range(content):
            check()
            size = patch.number("sizes")
            if not 0 < size <= MAX_PIECE_BYTES:
                raise patch.refuse("a frame of impossible size")
            self._sizes.append(size)
        self._rows = array("I")
        """Number of a content frame -> its row in the pack."""
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cached_bytes = 0
        self._entries = EntryReader(
            patch, self._base, self._digest_of, self._sizes.__getitem__, self._plain_of, old.frame
        )
        self._next_frame = 0
        self._told_bytes = 0
        self._next_content = 0
        self._encoding: deque[tuple[bytes, Future[Encoded]]] = deque()
        self._encoding_bytes = 0
        workers = _WORKERS if self._level < _THRIFTY_LEVEL else 1
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="ted-compress")
        self._writer = PackWriter(directory / "rebuilt", onto=out, check=check)
        try:
            self._line, closed = read_opened(patch, self._base, directory, sum(self._sizes))
        except BaseException:
            self._writer.abandon()
            raise
        new_bytes = sum(self._sizes) + sum(each.plain_bytes - each.kept_bytes for each in closed)
        self._content_bytes = Closing(CoverReader(patch, self._line, new_bytes, check), closed)

    def run(self) -> None:
        makers = {
            FrameKind.CONTENT: self._content, FrameKind.MANIFEST: self._manifest, FrameKind.LIST: self._list,
            FrameKind.INDEX: self._top, FrameKind.CARRIED: self._carried,
        }  # fmt: skip
        for kind, count in zip(self._kinds, self._counts, strict=True):
            for _ in range(count):
                self._check()
                makers[FrameKind(kind)]()
            self._take_encoded(0)  # the frames that follow may refer to them
        self._writer.finish()

    def close(self) -> None:
        """Forget what waits."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._writer.abandon()
        self._line.close()

    # the head of the patch

    def _head(self) -> tuple[int, list[int], tuple[str, Any, Any]]:
        patch, old = self._patch, self._old
        size = patch.number("head")
        if size > _MAX_HEAD_BYTES:
            raise patch.refuse("a head that is too long")
        head = unpack_one(patch.data("head", size), size, "patch")
        if not isinstance(head, list) or len(head) != 4:
            raise patch.refuse("a head that is none")
        manifest, level, more, names = head
        if manifest != bytes.fromhex(old.record.manifest):
            raise patch.refuse("it was made against another revision")
        frames = len(old.manifest_frames)
        sound = type(level) is int and 1 <= level <= _MAX_LEVEL and isinstance(more, list)
        if not sound or not all(type(number) is int and 0 <= number < frames for number in more):
            raise patch.refuse("a head that is none")
        if names is None:
            return level, more, (old.index.type, old.index.settings, old.index.options)
        if not isinstance(names, list) or [type(part) for part in names] != [str, dict, dict]:
            raise patch.refuse("a head that is none")
        return level, more, (names[0], names[1], names[2])

    def _index(self) -> tuple[list[list[Any]], list[int]]:
        """Return the new manifest's frames ([first path, digest, entries], or [none, emitted, entries] where new)."""
        patch, old_frames = self._patch, self._old.manifest_frames
        frames: list[list[Any]] = []
        gone: list[int] = []
        at = 0
        while True:
            skip, keep, new = (patch.number("index") for _ in range(3))
            if not skip and not keep and not new:
                break
            if at + skip + keep > len(old_frames) or len(frames) + keep + new > _MAX_MANIFEST_FRAMES:
                raise patch.refuse("more manifest frames than there are")
            gone += range(at, at + skip)
            frames += [[f.first_path, f.digest, f.entries] for f in old_frames[at + skip : at + skip + keep]]
            at += skip + keep
            for _ in range(new):
                told = patch.number("index")
                if not 0 < told >> 1 <= _MAX_ENTRIES:
                    raise patch.refuse("a manifest frame with impossibly many entries")
                frames.append([None, bool(told & 1), told >> 1])
        gone += range(at, len(old_frames))
        return frames, gone

    # the frames

    def _content(self) -> None:
        plain = self._content_bytes.read(self._sizes[self._next_content])
        self._next_content += 1
        self._encoding.append((plain, self._pool.submit(encode, plain, self._level)))
        self._encoding_bytes += len(plain)
        self._take_encoded(_AHEAD_FRAMES)

    def _take_encoded(self, waiting: int) -> None:
        """Put frames into the pack, in order, until no more than ``waiting`` are on their way."""
        while len(self._encoding) > waiting or self._encoding_bytes > _AHEAD_BYTES:
            plain, encoding = self._encoding.popleft()
            self._encoding_bytes -= len(plain)
            frame = encoding.result()
            self._remember(len(self._rows), plain)
            self._rows.append(self._writer.frames)
            self._writer.add(frame)

    def _list(self) -> None:
        self._writer.add(encode(self._entries.list(), self._level))

    def _manifest(self) -> None:
        """Rebuild manifest frames up to the next one that is in the pack."""
        while not self._one_manifest_frame():
            pass

    def _one_manifest_frame(self) -> bool:
        while self._next_frame < len(self._frames) and self._frames[self._next_frame][0] is not None:
            self._next_frame += 1
        if self._next_frame == len(self._frames):
            raise self._patch.refuse("more manifest frames than were announced")
        frame = self._frames[self._next_frame]
        rows = bytearray()
        first = b""
        for number in range(frame[2]):
            self._check()
            row, path = self._entries.entry()
            first = path if not number else first
            rows += row
            if len(rows) > MAX_ROW_BYTES:
                raise self._patch.refuse("a manifest frame that is too long")
        self._told_bytes += len(first) + DIGEST_BYTES
        if self._told_bytes > MAX_FRAME_BYTES:
            raise self._patch.refuse("an index that is too long")
        packed = encode(bytes(rows), self._level)
        emitted = frame[1]
        frame[:2] = [first, packed.digest]
        if emitted:
            self._writer.add(packed)
        return bool(emitted)

    def _top(self) -> None:
        while any(frame[0] is None for frame in self._frames[self._next_frame :]):
            if self._one_manifest_frame():
                raise self._patch.refuse("a manifest frame after the index")
        plain = pack_index(*self._names, [(path, digest, entries) for path, digest, entries in self._frames])
        if len(plain) > MAX_FRAME_BYTES:
            raise self._patch.refuse("an index that is too long")
        self._writer.add(encode(plain, self._level))

    def _carried(self) -> None:
        self._writer.add(self._old.stored_frame(self._patch.data("digests", DIGEST_BYTES)))

    # frames looked up again

    def _digest_of(self, number: int) -> bytes:
        return self._row(number)[0]

    def _row(self, number: int) -> tuple[bytes, Location]:
        if not 0 <= number < len(self._rows):
            raise self._patch.refuse("a new frame that is not there yet")
        return self._writer.row(self._rows[number])

    def _plain_of(self, number: int) -> bytes:
        plain = self._cache.get(number)
        if plain is None:
            digest, location = self._row(number)
            stored = self._out.read(location.offset, location.stored_bytes)
            plain = decode(stored, location, digest, "the rebuilt pack")
            self._remember(number, plain)
        return plain

    def _remember(self, number: int, plain: bytes) -> None:
        self._cache[number] = plain
        self._cached_bytes += len(plain)
        while self._cached_bytes > _CACHED_BYTES:
            self._cached_bytes -= len(self._cache.popitem(last=False)[1])
