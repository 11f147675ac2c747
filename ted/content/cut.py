"""Where content is cut: groups of small files, larger files by content, manifest frames, extent lists.

The rules are those of ``docs/format.md`` section 4 and 5.2, and frozen. Each depends on what lies close by only, so
that a change moves no cut far from it. Nothing here opens a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Protocol, cast

from pyfastcdc import FastCDC

from ted.content.entry import MAX_DIRECT_EXTENTS, MAX_LIST_EXTENTS, Extent

GROUP_BYTES = 256 << 10
MIN_GROUP_BYTES = 64 << 10
MIN_GROUP_ENTRIES = 256
MAX_GROUP_ENTRIES = 1024
MIN_PIECE_BYTES = 64 << 10
PIECE_BYTES = 256 << 10
MAX_PIECE_BYTES = 1 << 20
MIN_HOLE_BYTES = 32 << 10
MANIFEST_FRAME_BYTES = 256 << 10
MIN_MANIFEST_FRAME_BYTES = 16 << 10
MIN_LIST_EXTENTS = 256

_WINDOW_BYTES = 4 << 20

ReadInto = Callable[[memoryview], int]
"""Fill the buffer from the current place; return the bytes read, 0 at the end."""


class _Piece(Protocol):
    offset: int
    length: int


def path_hash(path: bytes) -> bytes:
    """Return what decides, for an entry's path, whether a group or a manifest frame ends after it."""
    return hashlib.sha256(path).digest()


def ends_group(group_bytes: int, entries: int, marks: bytes) -> bool:
    """Whether a group ends after the file whose ``path_hash`` is ``marks``.

    Args:
        group_bytes: Bytes in the group, that file's included.
        entries: Entries of any kind from the group's first file to that one, both included.
        marks: The file's ``path_hash``.
    """
    return marks[0] & 15 == 0 and (group_bytes >= MIN_GROUP_BYTES or entries >= MIN_GROUP_ENTRIES)


def ends_manifest_frame(frame_bytes: int, marks: bytes) -> bool:
    """Whether a manifest frame of that size ends after the entry whose ``path_hash`` is ``marks``."""
    return frame_bytes >= MIN_MANIFEST_FRAME_BYTES and marks[1] == 0


def pieces(read_into: ReadInto) -> Iterator[bytes]:
    """Yield the content-defined pieces of a stream, in bounded memory, whatever sizes the reads return."""
    cutter = FastCDC(PIECE_BYTES, min_size=MIN_PIECE_BYTES, max_size=MAX_PIECE_BYTES, normalized_chunking=1, seed=0)
    window = bytearray(_WINDOW_BYTES)
    view = memoryview(window)
    held = 0
    ended = False
    while True:
        while held < _WINDOW_BYTES and not ended:
            count = read_into(view[held:])
            held += count
            ended = not count
        if not held:
            return
        used = 0
        # A cut depends on the next MAX_PIECE_BYTES only: if those are here, or the end is, it is final.
        for piece in cast("Iterator[_Piece]", cutter.cut_buf(view[:held])):
            if not ended and held - piece.offset < MAX_PIECE_BYTES:
                break
            used = piece.offset + piece.length
            yield bytes(view[piece.offset : used])
        view[: held - used] = bytes(view[used:held])
        held -= used


class ExtentCutter:
    """Collects a file's extents; those of a very long file go into lists, one after another.

    Args:
        store: Called with each full list; keeps it in a frame.
    """

    def __init__(self, store: Callable[[list[Extent]], None]) -> None:
        self._store = store
        self._held: list[Extent] = []
        self._in_lists = False

    def add(self, extent: Extent) -> None:
        """Take up the next extent."""
        if self._in_lists:
            self._add_to_list(extent)
            return
        self._held.append(extent)
        if len(self._held) > MAX_DIRECT_EXTENTS:
            self._in_lists = True
            held, self._held = self._held, []
            for earlier in held:
                self._add_to_list(earlier)

    def finish(self) -> tuple[Extent, ...]:
        """Return the extents, or none if they went into lists."""
        if not self._in_lists:
            return tuple(self._held)
        if self._held:
            self._store(self._held)
        return ()

    def _add_to_list(self, extent: Extent) -> None:
        self._held.append(extent)
        count = len(self._held)
        marked = extent.frame is not None and extent.frame[0] == 0
        if count == MAX_LIST_EXTENTS or (count >= MIN_LIST_EXTENTS and marked):
            self._store(self._held)
            self._held = []
