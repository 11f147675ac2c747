"""The manifest: entries in frames, and the index frame that lists those.

Rules:
 * Entries come in sorted and are packed in the order they come; frames end where ``cut`` says.
 * What is read is checked: order, counts, first paths, types. A frame of the manifest holds 1 MiB at most.
 * Equal trees with equal settings give the same index digest: every map is written with its keys sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack

from ted.content.cut import MANIFEST_FRAME_BYTES, ends_manifest_frame
from ted.content.entry import (
    MAX_ROW_BYTES,
    Components,
    Entry,
    PathOrder,
    components,
    entry_from_row,
    path_problem,
    printable,
    unpack_one,
    unpacker,
)
from ted.content.frame import DIGEST_BYTES, MAX_FRAME_BYTES
from ted.errors import BuildError, FormatError

INDEX_FORMAT = 1

_MAX_ROW_ARRAY = 20_000
_MAX_FRAMES = 200_000
_MAX_ENTRIES = 1 << 16
_INDEX_KEYS = {"format", "frames", "options", "settings", "type"}


@dataclass(frozen=True, slots=True)
class ManifestFrame:
    """One frame of the manifest, as the index frame lists it."""

    first_path: bytes
    digest: bytes
    entries: int


@dataclass(frozen=True, slots=True)
class ManifestIndex:
    """What the index frame holds."""

    type: str
    settings: Mapping[str, Any]
    options: Mapping[str, Any]
    frames: tuple[ManifestFrame, ...]


class ManifestWriter:
    """Packs entries into frames, which ``store`` keeps; ``store`` returns a frame's digest."""

    def __init__(self, store: Callable[[bytes], bytes]) -> None:
        self._store = store
        self._rows = bytearray()
        self._first = b""
        self._entries = 0
        self._frames: list[tuple[bytes, bytes, int]] = []

    def add(self, path: bytes, row: bytes, marks: bytes) -> None:
        """Append an entry; ``row`` is what ``pack_entry`` makes of it, ``marks`` the ``path_hash`` of its path.

        Raises:
            BuildError: Its row is longer than any may be.
        """
        if len(row) > MAX_ROW_BYTES:
            raise BuildError(
                f"{printable(path)}: too many extents or extended attributes", hint="exclude it, or split it"
            )
        rows = self._rows
        if rows and len(rows) + len(row) > MANIFEST_FRAME_BYTES:
            self._end()
        if not rows:
            self._first = path
        rows += row
        self._entries += 1
        if ends_manifest_frame(len(rows), marks):
            self._end()

    def finish(self, type_: str, settings: Mapping[str, Any], options: Mapping[str, Any]) -> bytes:
        """Store the last frame and the index frame; return the index frame's digest.

        Raises:
            BuildError: The index is larger than a frame may be.
        """
        self._end()
        plain = pack_index(type_, settings, options, self._frames)
        if len(plain) > MAX_FRAME_BYTES:
            raise BuildError("too many files for one distribution", hint="make several distributions of it")
        return self._store(plain)

    def _end(self) -> None:
        if self._rows:
            self._frames.append((self._first, self._store(bytes(self._rows)), self._entries))
            self._rows.clear()
            self._entries = 0


def pack_index(
    type_: str, settings: Mapping[str, Any], options: Mapping[str, Any], frames: Sequence[tuple[bytes, bytes, int]]
) -> bytes:
    """Return the plain bytes of an index frame; ``frames`` are (first path, digest, entries)."""
    index = {
        "format": INDEX_FORMAT,
        "frames": frames,
        "options": _sorted(options),
        "settings": _sorted(settings),
        "type": type_,
    }
    plain: bytes = msgpack.packb(index)
    return plain


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _sorted(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, (list, tuple)):
        return [_sorted(item) for item in value]
    return value


def parse_index(plain: bytes, where: str) -> ManifestIndex:
    """Return what an index frame says.

    Raises:
        FormatError: It breaks the format, or is of one this ted does not know.
    """
    value = unpack_one(plain, _MAX_FRAMES, where)
    if not isinstance(value, dict):
        raise FormatError(f"{where}: the manifest's index is none")
    found = value.get("format")
    if type(found) is not int or found != INDEX_FORMAT:
        raise FormatError(
            f"{where}: manifest format {found!r:.40}; this ted knows format {INDEX_FORMAT}",
            hint="install a newer ted on this node; nothing was changed",
        )
    if set(value) != _INDEX_KEYS:
        raise FormatError(f"{where}: the manifest's index lacks something")
    type_, settings, options, frames = (value[key] for key in ("type", "settings", "options", "frames"))
    if not (isinstance(type_, str) and isinstance(settings, dict) and isinstance(options, dict)):
        raise FormatError(f"{where}: the manifest's index is none")
    if not isinstance(frames, list):
        raise FormatError(f"{where}: the manifest's index is none")
    return ManifestIndex(type_, settings, options, tuple(_frames(frames, where)))


def _frames(rows: list[Any], where: str) -> Iterator[ManifestFrame]:
    last: Components = ()
    for row in rows:
        if not isinstance(row, list) or len(row) != 3:
            raise FormatError(f"{where}: the manifest's index lists what is no frame")
        path, digest, entries = row
        sound = isinstance(digest, bytes) and len(digest) == DIGEST_BYTES and type(entries) is int
        if path_problem(path) or not sound or not 0 < entries <= _MAX_ENTRIES:
            raise FormatError(f"{where}: the manifest's index lists what is no frame")
        if components(path) <= last:
            raise FormatError(f"{where}: the manifest's frames are out of order")
        last = components(path)
        yield ManifestFrame(path, digest, entries)


def parse_frame(plain: bytes, frame: ManifestFrame, where: str) -> Iterator[Entry]:
    """Yield the entries of one manifest frame, in order.

    Raises:
        FormatError: They break the format, or are not those the index promised.
    """
    if len(plain) > MAX_ROW_BYTES:
        raise FormatError(f"{where}: a manifest frame of {len(plain)} bytes")
    reader = unpacker(plain, _MAX_ROW_ARRAY)
    order = PathOrder()
    for number in range(frame.entries):
        try:
            row = reader.unpack()
        except Exception as error:  # msgpack raises many kinds on hostile bytes
            raise FormatError(f"{where}: a manifest frame is not readable ({type(error).__name__})") from error
        entry = entry_from_row(row, where)
        if not number and entry.path != frame.first_path:
            raise FormatError(f"{where}: a manifest frame does not begin where the index says")
        if not order.follows(entry.path):
            raise FormatError(f"{where}: {printable(entry.path)} is out of order")
        yield entry
    if reader.tell() != len(plain):
        raise FormatError(f"{where}: a manifest frame holds more than the index says")
