"""Walk a source tree in the manifest's order.

Rules:
 * Sorted by path components, one directory's names in memory at a time for each level.
 * Links are never followed: everything is opened relative to its directory, without following.
 * What cannot be sent is an error that names the path; what is excluded is not looked at.
 * A name that goes away under the walk is ``SourceChangedError``.
"""

from __future__ import annotations

import errno
import fnmatch
import grp
import hashlib
import os
import pwd
import re
import stat
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, NoReturn

from ted.content.cache import Look
from ted.content.entry import (
    MAX_COMPONENT_BYTES,
    MAX_PATH_BYTES,
    MAX_XATTR_BYTES,
    Components,
    Xattrs,
    is_carried_xattr,
    path_problem,
    printable,
)
from ted.errors import BuildError, SourceChangedError, UnsupportedFileError

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_AS_STORED = (sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
"""What ``os.fsencode`` does, for what is a string already."""
_MAX_OPEN_LEVELS = 64
_MAX_XATTRS_BYTES = 256 << 10
_NO_XATTRS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES, errno.ENODATA}


class Excludes:
    """rsync-like patterns that leave names out.

    ``*.tmp`` matches a name anywhere; ``cache/*.tmp`` with a slash matches the end of the path; ``/cache`` is anchored
    at the source; a trailing slash matches directories only; ``*`` and ``?`` stop at a slash, ``**`` does not.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        every: list[str] = []
        directories: list[str] = []
        for pattern in self.patterns:
            body = pattern.rstrip("/")
            if body:
                (directories if pattern.endswith("/") else every).append(_expression(body))
        self._any = _compiled(every)
        self._directory = _compiled(every + directories)

    def match(self, relative: bytes, *, is_directory: bool) -> bool:
        """Whether the path relative to the source is left out."""
        expression = self._directory if is_directory else self._any
        return expression is not None and expression.fullmatch(os.fsdecode(relative)) is not None


def _compiled(expressions: list[str]) -> re.Pattern[str] | None:
    return re.compile("|".join(expressions), re.DOTALL) if expressions else None


def _expression(pattern: str) -> str:
    anchored = pattern.startswith("/")
    parts: list[str] = []
    for token in re.findall(r"\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern.lstrip("/"), re.DOTALL):
        if token in _WILD:
            parts.append(_WILD[token])
        elif len(token) > 1:
            # fnmatch knows how to write a set; what it wraps around the set is taken off
            parts.append(fnmatch.translate(token)[4:-3])
        else:
            parts.append(re.escape(token))
    return ("" if anchored else "(?:.*/)?") + "".join(parts)


_WILD = {"**": ".*", "*": "[^/]*", "?": "[^/]"}


class Item(NamedTuple):
    """Something found in a source. ``path`` is where it goes in the content tree."""

    tree: SourceTree
    relative: Components
    path: bytes
    key: Components
    status: os.stat_result
    target: bytes | None = None
    xattrs: Xattrs = ()

    def open(self) -> int:
        """Open the file for reading, following nothing."""
        return self.tree.open_file(self.relative)

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.status.st_mode)

    @property
    def source(self) -> str:
        """The path on this machine, for messages."""
        return self.tree.name_of(self.relative)


class SourceTree:
    """A directory, file or link on this machine, mapped to a place in the content tree.

    Args:
        source: What to walk. With ``contents_only`` a directory (a link to one is followed).
        at: Path in the content tree; ``b""`` is its root.
        contents_only: Map the directory itself to ``at``; else the source goes below ``at`` under its own name.
        outside_links: ``refuse`` or ``keep`` links that are absolute or leave the source.

    Raises:
        OSError: The source cannot be opened.
    """

    def __init__(
        self, source: Path, at: bytes, excludes: Excludes, *, contents_only: bool, outside_links: str = "refuse"
    ) -> None:
        self.source = source
        self._excludes = excludes
        self._keep_links = outside_links == "keep"
        absolute = os.path.abspath(source)  # not resolve(): the last component may be a link
        follow = contents_only
        self._status = os.stat(absolute, follow_symlinks=follow)
        self._root_fd = -1
        self._base = at
        self._name: bytes | None = None
        self._as_named = False
        if contents_only or stat.S_ISDIR(self._status.st_mode):
            self._root_fd = os.open(absolute, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if not contents_only:
                self._base = _joined(at, os.fsencode(os.path.basename(absolute)))
        else:
            parent, name = os.path.split(absolute)
            self._root_fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._name = os.fsencode(name)
        self._current: tuple[Components, int] = ((), self._root_fd)
        self.looked: Look | None = None
        """See ``items``."""

    @classmethod
    def of_file(cls, source: Path, path: bytes) -> SourceTree:
        """Return the tree of one file (a link to one is followed) that goes to ``path`` itself."""
        tree = cls(Path(os.path.realpath(source)), b"", Excludes(()), contents_only=False)
        if tree._name is None:
            tree.close()
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(source))
        tree._base = path
        tree._as_named = True
        return tree

    def close(self) -> None:
        """Close the source."""
        if self._root_fd >= 0:
            os.close(self._root_fd)
            self._root_fd = -1

    def name_of(self, relative: Components) -> str:
        """Return the path on this machine, for messages."""
        base = self.source.parent if self._name is not None else self.source
        return os.path.join(str(base), *(printable(part) for part in relative))

    def open_file(self, relative: Components) -> int:
        """Open a file of the tree for reading, following nothing on the way."""
        directory, fd = self._current
        if relative[:-1] == directory:
            return os.open(relative[-1], _OPEN, dir_fd=fd)
        fd = self._open_directory(relative[:-1])
        try:
            return os.open(relative[-1], _OPEN, dir_fd=fd)
        finally:
            os.close(fd)

    def look(self) -> Look:
        """Return what the whole tree looks like now, without opening a file.

        What is told by it: every name that is not excluded, and every status, but the time of the last access.

        Raises:
            OSError: Something went away meanwhile, or may not be listed.
        """
        sight = self._sight()
        levels = [self._look_into(b"", self._status, sight)] if self._name is None else []
        while levels:
            directory, rows, below = levels[-1]
            if below:
                levels.append(self._look_into(*below.pop(), sight))
            else:
                sight.leave(directory, rows)
                levels.pop()
        return sight.look()

    def _sight(self) -> _Sight:
        return _Sight((os.path.abspath(self.source), self._base, self._name, self._as_named, self._keep_links,
                       self._excludes.patterns), self._status)  # fmt: skip

    def _look_into(
        self, directory: bytes, status: os.stat_result, sight: _Sight
    ) -> tuple[bytes, list[bytes], list[tuple[bytes, os.stat_result]]]:
        """Return the directory, a row for each name, and the directories among them, the last one first."""
        rows: list[bytes] = []
        directories: list[tuple[bytes, os.stat_result]] = []
        excludes, prefix = self._excludes, directory + b"/" if directory else b""
        fd = os.open(directory or b".", _OPEN | os.O_DIRECTORY, dir_fd=self._root_fd)
        try:
            opened = os.fstat(fd)
            if (opened.st_dev, opened.st_ino) != (status.st_dev, status.st_ino):
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
            with os.scandir(fd) as found:
                for each in found:
                    name, held = each.name.encode(*_AS_STORED), each.stat(follow_symlinks=False)
                    is_directory = stat.S_ISDIR(held.st_mode)
                    if excludes.patterns and excludes.match(prefix + name, is_directory=is_directory):
                        continue
                    rows.append(sight.row(name, held))
                    if is_directory:
                        directories.append((prefix + name, held))
        finally:
            os.close(fd)
        directories.sort(key=itemgetter(0), reverse=True)
        return directory, rows, directories

    def items(self, *, look: bool = False) -> Iterator[Item]:
        """Yield everything in the tree, sorted; the tree's own root first if it has a place.

        With ``look``, what ``look`` would have said before is in ``looked`` at the end: a name and its status are taken
        before it is read.

        Raises:
            UnsupportedFileError: A device, socket, FIFO, a link that leaves the tree, a name that is too long.
            SourceChangedError: Something went away meanwhile.
            BuildError: Something may not be read.
        """
        sight = self._sight() if look else None
        if self._name is not None:
            yield self._file_item((self._name,), self._root_fd, self._status)
        else:
            yield from self._root_and_below(sight)
        if sight is not None:
            self.looked = sight.look()

    def _root_and_below(self, sight: _Sight | None) -> Iterator[Item]:
        if self._base:
            status = os.fstat(self._root_fd)
            xattrs = read_xattrs(self._root_fd, lambda: self.name_of(()))
            yield Item(self, (), self._base, _key(self._base), status, None, xattrs)
        yield from self._below(sight)

    def _below(self, sight: _Sight | None) -> Iterator[Item]:
        key = _key(self._base) if self._base else ()
        levels = [_Level((), key, self._root_fd, self._names(self._root_fd, ()))]
        try:
            while levels:
                level = levels[-1]
                if not level.names:
                    levels.pop()
                    if sight is not None:
                        sight.leave(b"/".join(level.relative), level.rows)
                    self._leave(level, levels)
                    continue
                item = self._item(level, level.names.pop())
                if item is None:
                    continue
                if sight is not None:
                    level.rows.append(sight.row(item.relative[-1], item.status))
                if stat.S_ISDIR(item.status.st_mode):
                    item, below = self._enter(item, level)
                    levels.append(below)
                    if len(levels) > _MAX_OPEN_LEVELS:
                        levels[-_MAX_OPEN_LEVELS].suspend()
                    self._current = (below.relative, below.fd)
                yield item
        finally:
            self._current = ((), self._root_fd)
            for level in levels:
                if level.relative:
                    level.suspend()

    def _leave(self, level: _Level, levels: list[_Level]) -> None:
        if level.relative:
            level.suspend()
        if not levels:
            self._current = ((), self._root_fd)
            return
        parent = levels[-1]
        if parent.fd < 0:
            parent.fd = self._open_directory(parent.relative)
            status = os.fstat(parent.fd)
            if (status.st_dev, status.st_ino) != parent.identity:
                self._fail(OSError(errno.ESTALE, os.strerror(errno.ESTALE)), parent.relative)
        self._current = (parent.relative, parent.fd)

    def _item(self, level: _Level, name: bytes) -> Item | None:
        relative = (*level.relative, name)
        try:
            status = os.stat(name, dir_fd=level.fd, follow_symlinks=False)
        except OSError as error:
            self._fail(error, relative)
        excludes = self._excludes
        if excludes.patterns and excludes.match(b"/".join(relative), is_directory=stat.S_ISDIR(status.st_mode)):
            return None
        path = level.prefix + name
        if not stat.S_ISREG(status.st_mode) or len(name) > MAX_COMPONENT_BYTES or len(path) > MAX_PATH_BYTES:
            return self._file_item(relative, level.fd, status)
        return Item(self, relative, path, (*level.key, name), status)

    def _file_item(self, relative: Components, directory_fd: int, status: os.stat_result) -> Item:
        path = self._base if self._as_named else _joined(self._base, b"/".join(relative))
        if problem := path_problem(path):
            raise UnsupportedFileError(f"{self.name_of(relative)}: {problem}", hint="rename it, or `exclude` it")
        target = None
        if stat.S_ISLNK(status.st_mode):
            target = self._target(relative, directory_fd)
        elif not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            what = _OTHER_KINDS.get(stat.S_IFMT(status.st_mode), "special file")
            raise UnsupportedFileError(
                f"{self.name_of(relative)}: a {what} cannot be sent", hint="leave it out with `exclude`"
            )
        return Item(self, relative, path, _key(path), status, target)

    def _target(self, relative: Components, directory_fd: int) -> bytes:
        try:
            target = os.readlink(relative[-1], dir_fd=directory_fd)
        except OSError as error:
            self._fail(error, relative)
        if not self._keep_links and _leaves(relative[:-1], target):
            raise UnsupportedFileError(
                f"{self.name_of(relative)}: the link to {printable(target)} leads out of the source",
                hint="leave it out with `exclude`, or say `outside_links: keep`",
            )
        return target

    def _enter(self, item: Item, level: _Level) -> tuple[Item, _Level]:
        relative = item.relative
        try:
            fd = os.open(relative[-1], _OPEN | os.O_DIRECTORY, dir_fd=level.fd)
        except OSError as error:
            self._fail(error, relative)
        try:
            status = os.fstat(fd)
            whole = Item(self, relative, item.path, item.key, status, None, read_xattrs(fd, lambda: item.source))
            return whole, _Level(relative, item.key, fd, self._names(fd, relative), (status.st_dev, status.st_ino))
        except BaseException:
            os.close(fd)
            raise

    def _open_directory(self, relative: Components) -> int:
        fd = os.dup(self._root_fd)
        try:
            for name in relative:
                below = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
        except OSError as error:
            os.close(fd)
            self._fail(error, relative)
        return fd

    def _names(self, fd: int, relative: Components) -> list[bytes]:
        try:
            names = [name.encode(*_AS_STORED) for name in os.listdir(fd)]
        except OSError as error:
            self._fail(error, relative)
        names.sort(reverse=True)  # taken from the end
        return names

    def _fail(self, error: OSError, relative: Components) -> NoReturn:
        fail(error, self.name_of(relative))


_ROW = struct.Struct("<HQQqQQIII")
_64_BITS = (1 << 64) - 1  # times before 1970 have the uppermost bit, and so have those after 2262
_ROWS = struct.Struct("<IQ")


class _Sight:
    """What a tree looks like, directory by directory: one is left after those in it, in the order of their names."""

    def __init__(self, head: tuple[object, ...], status: os.stat_result) -> None:
        self._digest = hashlib.sha256(repr(head).encode())
        self._owners: set[tuple[int, int]] = set()
        self._changed_at_ns = 0
        self._digest.update(self.row(b"", status))

    def row(self, name: bytes, status: os.stat_result) -> bytes:
        """Return what is told of a name in a directory."""
        modified_ns, changed_ns = status.st_mtime_ns, status.st_ctime_ns
        if changed_ns > self._changed_at_ns or modified_ns > self._changed_at_ns:
            self._changed_at_ns = max(modified_ns, changed_ns)
        self._owners.add((status.st_uid, status.st_gid))
        return name + _ROW.pack(
            len(name), status.st_dev, status.st_ino, status.st_size, modified_ns & _64_BITS, changed_ns & _64_BITS,
            status.st_mode, status.st_uid, status.st_gid,
        )  # fmt: skip

    def leave(self, directory: bytes, rows: list[bytes]) -> None:
        """Take up a directory with the rows of all that is in it."""
        rows.sort()
        self._digest.update(_ROWS.pack(len(directory), len(rows)) + directory + b"".join(rows))

    def look(self) -> Look:
        """Return it, when everything was seen."""
        named = sorted((uid, gid, str(owner_name(uid)), str(group_name(gid))) for uid, gid in self._owners)
        digest = self._digest.copy()
        digest.update(repr(named).encode())
        return Look(digest.digest(), self._changed_at_ns)


@dataclass(slots=True)
class _Level:
    """A directory that is being walked; ``key`` and ``prefix`` are its place in the content tree."""

    relative: Components
    key: Components
    fd: int
    names: list[bytes]
    identity: tuple[int, int] = (0, 0)
    rows: list[bytes] = field(default_factory=list)
    prefix: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.prefix = b"".join(name + b"/" for name in self.key)

    def suspend(self) -> None:
        if self.fd >= 0 and self.relative:
            os.close(self.fd)
            self.fd = -1


def fail(error: OSError, name: str) -> NoReturn:
    """Raise what an error of the operating system on a source means.

    Raises:
        SourceChangedError: It is gone, or has become something else.
        BuildError: Anything else.
    """
    if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE}:
        raise SourceChangedError(
            f"{name}: changed or went away while it was read", hint="build again when nobody writes there"
        ) from error
    hint = "the user that builds must be able to read it, or `exclude` it" if error.errno == errno.EACCES else None
    raise BuildError(f"{name}: {error.strerror}", hint=hint) from error


def read_xattrs(fd: int, name: Callable[[], str]) -> Xattrs:
    """Return the extended attributes (ACLs among them) that are sent; none where the filesystem has none.

    Args:
        fd: An open file or directory.
        name: Gives its name for messages.

    Raises:
        UnsupportedFileError: They are larger than an entry may hold.
    """
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return ()
        fail(error, name())
    if not names:
        return ()
    pairs = [
        (attribute, value)
        for attribute in sorted(os.fsencode(text) for text in names)
        if is_carried_xattr(attribute) and (value := _xattr(fd, attribute, name)) is not None
    ]
    if sum(len(value) for _, value in pairs) > _MAX_XATTRS_BYTES:
        raise UnsupportedFileError(f"{name()}: more extended attributes than can be sent", hint="`exclude` it")
    return tuple(pairs)


def _xattr(fd: int, attribute: bytes, name: Callable[[], str]) -> bytes | None:
    try:
        value = os.getxattr(fd, attribute)
    except OSError as error:
        if error.errno in _NO_XATTRS:
            return None
        fail(error, name())
    if len(value) > MAX_XATTR_BYTES:
        raise UnsupportedFileError(f"{name()}: an extended attribute of {len(value)} bytes", hint="`exclude` it")
    return value


@lru_cache(maxsize=4096)
def owner_name(uid: int) -> str | int:
    """Return the name of a user, or the number where there is no (usable) name."""
    try:
        return _usable(pwd.getpwuid(uid).pw_name) or uid
    except KeyError:
        return uid


@lru_cache(maxsize=4096)
def group_name(gid: int) -> str | int:
    """Return the name of a group, or the number where there is no (usable) name."""
    try:
        return _usable(grp.getgrgid(gid).gr_name) or gid
    except KeyError:
        return gid


def _usable(name: str) -> str | None:
    return name if name.isprintable() and 0 < len(name) <= 255 else None


_OTHER_KINDS = {
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
}


def _joined(base: bytes, below: bytes) -> bytes:
    return base + b"/" + below if base else below


def _key(path: bytes) -> Components:
    return tuple(path.split(b"/"))


def _leaves(directory: Components, target: bytes) -> bool:
    if target.startswith(b"/"):
        return True
    depth = len(directory)
    for part in target.split(b"/"):
        if part == b"..":
            depth -= 1
            if depth < 0:
                return True
        elif part not in {b"", b"."}:
            depth += 1
    return False
