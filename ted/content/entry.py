"""Entries of the content tree, and their form in the manifest.

Rules:
 * Paths, link targets and the names of extended attributes are bytes.
 * Everything that is read from a manifest is checked here before anybody sees it: types, bounds, paths that
   stay inside the tree, extents that add up.
 * What the builder writes passes the same checks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from typing import Any, NamedTuple

import msgpack

from ted.content.frame import DIGEST_BYTES, MAX_FRAME_BYTES
from ted.errors import FormatError

MAX_PATH_BYTES = 4096
MAX_COMPONENT_BYTES = 255
MAX_LINK_BYTES = 4095
MAX_ROW_BYTES = 1 << 20
MAX_DIRECT_EXTENTS = 1024
MAX_LIST_EXTENTS = 2048
MAX_XATTR_BYTES = 64 << 10
MAX_FILE_BYTES = 1 << 62

_FIELDS = 11
_MAX_LISTS = 20_000
_MAX_NAME = 255
_NO_NAMES = (b".", b"..")


class Kind(StrEnum):
    """What an entry is."""

    FILE = "f"
    DIRECTORY = "d"
    SYMLINK = "l"
    HARDLINK = "h"


class Extent(NamedTuple):
    """A piece of a file: ``length`` bytes at ``offset`` of a frame, or a hole (``frame`` is ``None``)."""

    frame: bytes | None
    offset: int
    length: int


class ExtentList(NamedTuple):
    """A frame that holds a list of extents, which together are ``length`` bytes of the file."""

    frame: bytes
    length: int


Xattrs = tuple[tuple[bytes, bytes], ...]
Components = tuple[bytes, ...]
Rights = tuple[int, str | int, str | int]
"""Mode, owner and group."""


class Entry(NamedTuple):
    """One name of the content tree.

    ``path`` is relative to the content tree. ``mode`` holds permission bits only. ``owner`` and ``group`` are names, or
    numbers where there was no name. ``link`` is a symbolic link's target, or the path of the file that a hard link
    is another name of. ``digest`` is the file's SHA-256 where it shares its frame with others: see ``content_digest``.
    Files of very many extents have them in ``lists`` instead; ``RevisionReader`` reads either.
    """

    path: bytes
    kind: Kind
    mode: int
    mtime_ns: int
    owner: str | int
    group: str | int
    size: int = 0
    extents: tuple[Extent, ...] = ()
    link: bytes | None = None
    digest: bytes | None = None
    xattrs: Xattrs = ()
    lists: tuple[ExtentList, ...] = ()

    @property
    def components(self) -> Components:
        """The path's components; entries are sorted by them."""
        return components(self.path)

    @property
    def memory_bytes(self) -> int:
        """About how much memory it takes."""
        xattrs_bytes = sum(150 + len(name) + len(value) for name, value in self.xattrs)
        return 400 + 220 * (len(self.extents) + len(self.lists)) + len(self.path) + xattrs_bytes

    @property
    def content_digest(self) -> bytes | None:
        """SHA-256 of the file's bytes where the manifest tells it, else ``None`` (files of several extents, links)."""
        if self.digest is None and len(self.extents) == 1:
            return self.extents[0].frame
        return self.digest

    def same_content(self, other: Entry) -> bool:
        """Whether both are files of the same bytes, as far as the manifests tell (never a false yes)."""
        if self.size != other.size:
            return False
        if (digest := self.content_digest) is not None and (others := other.content_digest) is not None:
            return digest == others
        return self.extents == other.extents and self.lists == other.lists

    def same_as(self, other: Entry) -> bool:
        """Whether both would install as the same thing: in which frames the bytes lie does not matter."""
        return self[:7] == other[:7] and self[8] == other[8] and self[10] == other[10] and self.same_content(other)


def components(path: bytes) -> Components:
    """Return the key by which entries are sorted."""
    return tuple(path.split(b"/"))


class PathOrder:
    """Tells whether paths come sorted by their components."""

    __slots__ = ("_directory", "_key", "_path")

    def __init__(self) -> None:
        self._directory = b"/"  # of no path
        self._path = b""
        self._key: Components | None = ()

    def follows(self, path: bytes) -> bool:
        """Return whether ``path`` comes after the one before; the first does."""
        directory = path.rpartition(b"/")[0]
        if directory == self._directory:  # as most do: then they are sorted as their bytes are
            sorted_ = path > self._path
            self._key = None
        else:
            before = components(self._path) if self._key is None else self._key
            self._key = components(path)
            sorted_ = self._key > before
            self._directory = directory
        self._path = path
        return sorted_


def path_problem(path: object) -> str | None:
    """Return what is wrong with an entry's path, ``None`` if nothing is."""
    if not isinstance(path, bytes) or not path:
        return "has no path"
    if len(path) <= MAX_PATH_BYTES and _SOUND_PATH.fullmatch(path):
        return None
    if len(path) > MAX_PATH_BYTES:
        return f"has a path of {len(path)} bytes"
    if b"\0" in path:
        return "has a NUL in its path"
    if any(not part or part in {b".", b".."} for part in path.split(b"/")):
        return "has a path that could leave the tree"
    return "has a name that is too long"


_COMPONENT = rb"(?!\.\.?(?:/|\Z))[^/\0]{1,%d}" % MAX_COMPONENT_BYTES
_SOUND_PATH = re.compile(_COMPONENT + rb"(?:/" + _COMPONENT + rb")*")


def printable(path: bytes) -> str:
    """Return a path as text for messages."""
    return path.decode("utf-8", "backslashreplace")


def pack_entry(entry: Entry) -> bytes:
    """Return the entry's row in the manifest."""
    extents = entry.lists or entry.extents
    row: bytes = msgpack.packb(
        [
            entry.path,
            entry.kind.value,
            entry.mode,
            entry.mtime_ns,
            entry.owner,
            entry.group,
            entry.size,
            extents,
            entry.link,
            entry.digest,
            entry.xattrs,
        ]
    )
    return row


def unpacker(data: bytes, max_array: int) -> msgpack.Unpacker:
    """Return a reader of the msgpack objects in ``data`` that believes no length beyond the data's own."""
    size = len(data)
    reader = msgpack.Unpacker(
        raw=False,
        strict_map_key=True,
        max_buffer_size=max(size, 1),
        max_str_len=size,
        max_bin_len=size,
        max_array_len=min(size, max_array),
        max_map_len=size,
        max_ext_len=0,
    )
    reader.feed(data)
    return reader


def unpack_one(data: bytes, max_array: int, where: str) -> Any:
    """Return the only msgpack object in ``data``.

    Raises:
        FormatError: It is not one whole object.
    """
    reader = unpacker(data, max_array)
    try:
        value = reader.unpack()
        if reader.tell() != len(data):
            raise FormatError(f"{where}: something follows the end")
    except FormatError:
        raise
    except Exception as error:  # msgpack raises many kinds on hostile bytes
        raise FormatError(f"{where}: not readable ({type(error).__name__})") from error
    return value


def entry_from_row(row: object, where: str) -> Entry:
    """Return the entry that a manifest's row describes.

    Raises:
        FormatError: Anything in it breaks the format; names ``where`` and the path.
    """
    if not isinstance(row, list) or len(row) != _FIELDS:
        raise FormatError(f"{where}: a row is not an entry of {_FIELDS} fields")
    if (entry := _plain_file(row)) is not None:
        return entry
    path, kind, mode, mtime_ns, owner, group, size, extents, link, digest, xattrs = row
    problem = path_problem(path)
    if problem is None:
        checks = (
            isinstance(kind, str) and kind in _KINDS,
            type(mode) is int and 0 <= mode <= 0o7777,
            type(mtime_ns) is int and -(1 << 63) <= mtime_ns < 1 << 64,
            _is_owner(owner),
            _is_owner(group),
            type(size) is int and 0 <= size <= MAX_FILE_BYTES and (not size or kind in ("f", "h")),
            type(extents) is list and (not extents or kind == "f"),
            link is None if kind == "f" else _link_fits(kind, link),
            digest is None or (_is_digest(digest) and _lies_in_one_frame(extents)),
        )
        if False in checks:
            problem = f"has a wrong {_CHECKED[checks.index(False)]}"
    if problem is not None:
        raise FormatError(f"{where}: {_name(path)} {problem}")
    try:
        pieces, lists = _extents(extents, size, kind)
        pairs = () if xattrs == [] else _xattrs(xattrs)
    except _WrongError as wrong:
        raise FormatError(f"{where}: {_name(path)} {wrong}") from None
    return Entry(path, _KINDS[kind], mode, mtime_ns, owner, group, size, pieces, link, digest, pairs, lists)


def _plain_file(row: list[Any]) -> Entry | None:
    """Return the entry of a row as most are: a file in one piece. ``None`` for others, and for all that is wrong."""
    path, kind, mode, mtime_ns, owner, group, size, extents, link, digest, xattrs = row
    if kind != "f" or link is not None or xattrs != [] or type(extents) is not list or len(extents) != 1:
        return None
    piece = extents[0]
    if type(piece) is not list or len(piece) != 3:
        return None
    frame, offset, length = piece
    sound = (
        type(path) is bytes
        and len(path) <= MAX_PATH_BYTES
        and _SOUND_PATH.fullmatch(path) is not None
        and type(mode) is type(mtime_ns) is type(size) is type(offset) is type(length) is int
        and 0 <= mode <= 0o7777
        and -(1 << 63) <= mtime_ns < 1 << 64
        and 1 <= length == size <= MAX_FRAME_BYTES
        and 0 <= offset <= MAX_FRAME_BYTES
        and type(frame) is bytes
        and len(frame) == DIGEST_BYTES
        and (digest is None or (type(digest) is bytes and len(digest) == DIGEST_BYTES))
        and _is_owner(owner)
        and _is_owner(group)
    )
    if not sound:
        return None
    return Entry(path, _FILE, mode, mtime_ns, owner, group, size, (Extent(frame, offset, length),), None, digest)


def rights_of_plain_file(row: object) -> tuple[bytes, bytes, Rights] | None:
    """Return directory, frame and rights of a row that looks like one of a file in one piece; ``None`` for others.

    Nothing else of the row is checked.
    """
    if type(row) is not list or len(row) != _FIELDS:
        return None
    path, kind, mode, _, owner, group, _, extents, link, _, xattrs = row
    if kind != "f" or link is not None or xattrs != [] or type(extents) is not list or len(extents) != 1:
        return None
    piece = extents[0]
    if type(piece) is not list or len(piece) != 3 or not _is_digest(piece[0]) or type(path) is not bytes:
        return None
    return path.rpartition(b"/")[0], piece[0], (mode, owner, group)


PlainFile = tuple[bytes, int, int, int, bytes | None]
"""Name, modified (ns), offset in its frame, length, digest where the frame has more."""


def plain_files(rows: Iterable[list[Any]], before_name: int) -> list[PlainFile] | None:
    """Return files of one directory, whose names begin at that byte; ``None`` if anything is wrong with one.

    That is what ``entry_from_row`` finds, in a third of the time: for rows that ``rights_of_plain_file`` and
    ``are_rights`` have looked at.
    """
    files: list[PlainFile] = []
    last = b""
    for path, _, _, mtime_ns, _, _, size, ((_, offset, length),), _, digest, _ in rows:
        name = path[before_name:]
        sound = (
            last < name
            and name not in _NO_NAMES
            and b"\0" not in name
            and len(name) <= MAX_COMPONENT_BYTES
            and len(path) <= MAX_PATH_BYTES
            and type(mtime_ns) is type(size) is type(offset) is type(length) is int
            and -(1 << 63) <= mtime_ns < 1 << 64
            and 1 <= length == size <= MAX_FRAME_BYTES
            and 0 <= offset <= MAX_FRAME_BYTES
            and (digest is None or (type(digest) is bytes and len(digest) == DIGEST_BYTES))
        )
        if not sound:
            return None
        files.append((name, mtime_ns, offset, length, digest))
        last = name
    return files


def are_rights(rights: tuple[object, object, object]) -> bool:
    """Return whether these can be mode, owner and group of an entry."""
    mode, owner, group = rights
    return type(mode) is int and 0 <= mode <= 0o7777 and _is_owner(owner) and _is_owner(group)


class _WrongError(Exception):
    """Something in a row breaks the format; what, in words that follow its path."""


def extents_from_list(plain: bytes, length: int, where: str) -> list[Extent]:
    """Return the extents that an extent list's frame holds.

    Raises:
        FormatError: They are none, or do not add up to ``length``.
    """
    rows = unpack_one(plain, MAX_LIST_EXTENTS, where)
    if not isinstance(rows, list):
        raise FormatError(f"{where}: an extent list that is none")
    try:
        extents = [_extent(row) for row in rows]
    except _WrongError as wrong:
        raise FormatError(f"{where}: an extent list that {wrong}") from None
    if sum(extent.length for extent in extents) != length:
        raise FormatError(f"{where}: an extent list does not add up")
    return extents


def _name(path: object) -> str:
    return printable(path[:200]) if isinstance(path, bytes) else "an entry"


def _is_int(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _is_digest(value: object) -> bool:
    return isinstance(value, bytes) and len(value) == DIGEST_BYTES


def _is_owner(value: object) -> bool:
    if isinstance(value, str):
        return 0 < len(value) <= _MAX_NAME and value.isprintable()
    return _is_int(value, 0, (1 << 32) - 1)


def _link_fits(kind: object, link: object) -> bool:
    if kind == "l":
        return isinstance(link, bytes) and 0 < len(link) <= MAX_LINK_BYTES and b"\0" not in link
    if kind == "h":
        return path_problem(link) is None
    return link is None


def _extents(rows: list[object], size: int, kind: str) -> tuple[tuple[Extent, ...], tuple[ExtentList, ...]]:
    if not rows:
        if size and kind == "f":
            raise _WrongError("has no extents")
        return (), ()
    if len(rows) == 1 and isinstance(rows[0], list) and len(rows[0]) == 3:  # most files
        piece = _extent(rows[0])
        if piece.length != size:
            raise _WrongError("has extents that do not add up to its size")
        return (piece,), ()
    lists: tuple[ExtentList, ...] = ()
    pieces: tuple[Extent, ...] = ()
    if isinstance(rows[0], list) and len(rows[0]) == 2:
        lists = tuple(_extent_list(row) for row in rows[:_MAX_LISTS])
    else:
        pieces = tuple(_extent(row) for row in rows[: MAX_DIRECT_EXTENTS + 1])
    if len(rows) > (_MAX_LISTS if lists else MAX_DIRECT_EXTENTS):
        raise _WrongError("has too many extents")
    if sum(piece.length for piece in pieces or lists) != size:
        raise _WrongError("has extents that do not add up to its size")
    return pieces, lists


def _extent(row: object) -> Extent:
    if isinstance(row, list) and len(row) == 3:
        frame, offset, length = row
        if type(offset) is int and type(length) is int and length >= 1:
            if frame is None:
                if offset == 0 and length <= MAX_FILE_BYTES:
                    return Extent(None, 0, length)
            elif _is_digest(frame) and 0 <= offset <= MAX_FRAME_BYTES and length <= MAX_FRAME_BYTES:
                return Extent(frame, offset, length)
    raise _WrongError("has an extent that is none")


def _lies_in_one_frame(extents: object) -> bool:
    """Return whether a file can have a digest of its own: only one that shares a frame has."""
    return (
        type(extents) is list
        and len(extents) == 1
        and type(extents[0]) is list
        and len(extents[0]) == 3
        and extents[0][0] is not None
    )


def _extent_list(row: object) -> ExtentList:
    if not isinstance(row, list) or len(row) != 2:
        raise _WrongError("has an extent that is none")
    frame, length = row
    if not _is_digest(frame) or not _is_int(length, 1, MAX_FILE_BYTES):
        raise _WrongError("has an extent that is none")
    return ExtentList(frame, length)


def _xattrs(rows: object) -> Xattrs:
    if not isinstance(rows, list):
        raise _WrongError("has extended attributes that are none")
    pairs: list[tuple[bytes, bytes]] = []
    for row in rows:
        if not isinstance(row, list) or len(row) != 2 or not all(isinstance(part, bytes) for part in row):
            raise _WrongError("has an extended attribute that is none")
        name, value = row
        if not is_carried_xattr(name) or len(value) > MAX_XATTR_BYTES:
            raise _WrongError("has an extended attribute that is not carried")
        if pairs and pairs[-1][0] >= name:
            raise _WrongError("has extended attributes out of order")
        pairs.append((name, value))
    return tuple(pairs)


_CHECKED = ("kind", "mode", "time", "owner", "group", "size", "list of extents", "link", "digest")
_KINDS = {kind.value: kind for kind in Kind}
_FILE = Kind.FILE
_CARRIED = {b"system.posix_acl_access", b"system.posix_acl_default", b"security.capability"}


def is_carried_xattr(name: bytes) -> bool:
    """Whether an extended attribute of that name is sent; ``security.selinux``, ``trusted.*`` are the receiver's."""
    return name in _CARRIED or (name.startswith(b"user.") and 5 < len(name) <= 255 and b"\0" not in name)
