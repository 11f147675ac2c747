"""The manifest: entries in frames, and the index frame that lists those.

Rules:
 * Entries come in sorted and are packed in the order they come; frames end where ``cut`` says.
 * What is read is checked: order, counts, first paths, types. A frame of the manifest holds 1 MiB at most.
 * Equal trees with equal settings give the same index digest: every map is written with its keys sorted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import msgpack

from ted.content.cut import MANIFEST_FRAME_BYTES, ends_manifest_frame
from ted.content.entry import (
    MAX_ROW_BYTES,
    Components,
    Entry,
    PathOrder,
    PlainFile,
    Rights,
    are_rights,
    components,
    entry_from_row,
    path_problem,
    plain_files,
    printable,
    rights_of_plain_file,
    unpack_one,
    unpacker,
)
from ted.content.frame import DIGEST_BYTES, MAX_FRAME_BYTES
from ted.errors import BuildError, FormatError

INDEX_FORMAT = 1

_MAX_ROW_ARRAY = 20_000
_MAX_FRAMES = 200_000
_MAX_ENTRIES = 1 << 16
_MAX_RUN_BYTES = 16 << 10
_MAX_RUN_RIGHTS = 256
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


class Run(NamedTuple):
    """Files of one directory, each in one piece of the same frame, as the manifest has them one after another.

    That is all that was looked at: the rows are checked by who takes the ``entries``. ``rows`` are a few KiB at most.
    ``rights`` are those that occur, ``which`` has for each file the place of its own among them.
    """

    path: bytes
    """Of the first file."""
    last: bytes
    """Path of the last one."""
    frame: bytes
    rights: tuple[Rights, ...]
    which: bytes
    rows: bytes

    @property
    def directory(self) -> bytes:
        """Path of the directory."""
        return self.path.rpartition(b"/")[0]

    def entries(self, where: str) -> list[Entry]:
        """Return the entries, checked.

        Raises:
            FormatError: They break the format.
        """
        reader = unpacker(self.rows, _MAX_ROW_ARRAY)
        order = PathOrder()
        entries = [entry_from_row(_unpacked(reader, where), where) for _ in self.which]
        for entry in entries:
            if not order.follows(entry.path):
                _refuse_order(entry.path, where)
        return entries

    def files(self) -> list[PlainFile] | None:
        """Return what the ``entries`` say, in less time; ``None`` if there is anything wrong with one of them."""
        if path_problem(self.path):
            return None
        return plain_files(unpacker(self.rows, _MAX_ROW_ARRAY), self.path.rfind(b"/") + 1)


class _OpenRun:
    """A run that more files may follow."""

    __slots__ = ("_directory", "_first", "_frame", "_last", "_places", "_start", "_which")

    def __init__(self, start: int, path: bytes, directory: bytes, frame: bytes) -> None:
        self._start = start
        self._first = self._last = path
        self._directory = directory
        self._frame = frame
        self._places: dict[Rights, int] = {}
        self._which = bytearray()

    @classmethod
    def of(cls, start: int, path: bytes, directory: bytes, frame: bytes, rights: Rights, end: int) -> _OpenRun | None:
        """Return a run that begins with a row; ``None`` if that is for no run."""
        run = cls(start, path, directory, frame)
        return run if run.add(path, directory, frame, rights, end) else None

    def add(self, path: bytes, directory: bytes, frame: bytes, rights: Rights, end: int) -> bool:
        """Take up the next row, which ends at ``end``; false if it belongs to no run, or to another."""
        if directory != self._directory or frame != self._frame or end - self._start > _MAX_RUN_BYTES:
            return False
        try:
            place = self._places.get(rights)
        except TypeError:  # none that can be
            return False
        if place is None:
            if len(self._places) >= _MAX_RUN_RIGHTS or not are_rights(rights):
                return False
            place = self._places[rights] = len(self._places)
        self._which.append(place)
        self._last = path
        return True

    def closed(self, plain: bytes, end: int) -> Run:
        """Return it; ``end`` is where its last row in ``plain`` ends."""
        return Run(
            self._first, self._last, self._frame, tuple(self._places), bytes(self._which), plain[self._start : end]
        )


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
    reader = _frame_reader(plain, where)
    order = PathOrder()
    for number in range(frame.entries):
        entry = entry_from_row(_unpacked(reader, where), where)
        if not number:
            _check_first(entry.path, frame, where)
        if not order.follows(entry.path):
            _refuse_order(entry.path, where)
        yield entry
    _check_end(reader, plain, where)


def parse_runs(
    plain: bytes, frame: ManifestFrame, where: str, has_runs: Callable[[bytes], bool]
) -> Iterator[Entry | Run]:
    """As ``parse_frame``; small files of the directories for which ``has_runs`` says so come as runs.

    ``has_runs`` is called when all that comes before the directory's file was yielded.
    """
    order = PathOrder()
    for number, found in enumerate(_in_runs(plain, frame, where, has_runs)):
        if not number:
            _check_first(found.path, frame, where)
        last = found.last if isinstance(found, Run) else found.path
        if not order.follows(found.path) or (last != found.path and not order.follows(last)):
            _refuse_order(last, where)
        yield found


def _in_runs(
    plain: bytes, frame: ManifestFrame, where: str, has_runs: Callable[[bytes], bool]
) -> Iterator[Entry | Run]:
    reader = _frame_reader(plain, where)
    run: _OpenRun | None = None
    known, said, end = b"/", False, 0  # of no directory
    for _ in range(frame.entries):
        row = _unpacked(reader, where)
        start, end = end, reader.tell()
        piece = rights_of_plain_file(row)
        if run is not None:
            if piece is not None and run.add(row[0], *piece, end):
                continue
            yield run.closed(plain, start)
            run = None
        if piece is not None:
            if piece[0] != known:
                known, said = piece[0], has_runs(piece[0])
            run = _OpenRun.of(start, row[0], *piece, end) if said else None
        if run is None:
            yield entry_from_row(row, where)
    _check_end(reader, plain, where)
    if run is not None:
        yield run.closed(plain, end)


def _refuse_order(path: bytes, where: str) -> NoReturn:
    raise FormatError(f"{where}: {printable(path)} is out of order")


def _frame_reader(plain: bytes, where: str) -> msgpack.Unpacker:
    if len(plain) > MAX_ROW_BYTES:
        raise FormatError(f"{where}: a manifest frame of {len(plain)} bytes")
    return unpacker(plain, _MAX_ROW_ARRAY)


def _check_first(path: bytes, frame: ManifestFrame, where: str) -> None:
    if path != frame.first_path:
        raise FormatError(f"{where}: a manifest frame does not begin where the index says")


def _check_end(reader: msgpack.Unpacker, plain: bytes, where: str) -> None:
    if reader.tell() != len(plain):
        raise FormatError(f"{where}: a manifest frame holds more than the index says")


def _unpacked(reader: msgpack.Unpacker, where: str) -> Any:
    try:
        return reader.unpack()
    except Exception as error:  # msgpack raises many kinds on hostile bytes
        raise FormatError(f"{where}: a manifest frame is not readable ({type(error).__name__})") from error
