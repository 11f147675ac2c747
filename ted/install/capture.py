"""Write down what is at a path before an act changes it.

Rules:
 * The record of an act is complete and durable before the act is done; ``undo`` reads the records backwards.
 * An old file is kept as a hard link in the transaction's ``saved/`` directory (nothing is copied, its links stay
   links); where the file system or the system's rules do not allow that, as a copy.
 * The directory around a path is written down first, so that its time is restored last.
 * A directory that goes is written down child by child; a file system mounted below it refuses the act.

Records, all ``[kind, act number, base, path, ...]``: ``absent`` nothing was there; ``file`` a file, saved as
named, with its stamp and, for a copy, its attributes; ``link`` a symbolic link and its target; ``made`` a
directory was there; ``dir`` its attributes, to be set when its content is back; ``tree`` nothing was there, and a
directory that was staged whole comes; ``attrs`` attributes of a file that stays; ``was`` what a delete
means, or the directory that is replaced; ``run`` a command's undo.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ted.install import attributes
from ted.install.acts import ATTRIBUTES, DELETE, HARDLINK, MKDIR, RUN, SYMLINK, TREE, WRITE, Act, Bases
from ted.install.locked import locked_files
from ted.install.log import LogWriter
from ted.install.paths import Base, join, names, refuse_mounted, remove_tree, stamp_of

_NO_LINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP)
_COPY_BYTES = 1 << 20
_REMEMBERED = 4096
_REPLACING = (WRITE, SYMLINK, HARDLINK, DELETE)

Identity = tuple[int, int]


@dataclass(slots=True)
class Capture:
    """Writes the records of one transaction."""

    directory: Path
    bases: Bases
    undo: LogWriter
    copied: bool = False
    """A file was copied since this was last set to False: the copies must be made durable too."""
    _seen: set[tuple[int, bytes]] = field(default_factory=set)
    _missing: set[tuple[int, bytes]] = field(default_factory=set)
    _locked: frozenset[Identity] | None = None
    _copies: dict[Identity, str] = field(default_factory=dict)
    _count: int = 0
    covered: set[int] = field(default_factory=set)
    """Hashes of (base, path) of what this batch's directories hold: what may go with them."""

    def begin_batch(self) -> None:
        """Say that acts may have been done since, so that what was missing may be there now."""
        self._missing.clear()
        self.covered.clear()
        self._locked = None

    def before(self, act: Act) -> Identity | None:
        """Write down what is where ``act`` will be done.

        Returns:
            Device and inode of what is there, ``None`` when nothing is.

        Raises:
            OSError: What is there cannot be saved, or is locked (``ETXTBSY``).
        """
        if act.kind == RUN:
            self.undo.append(["run", act.number, act.data[1], act.data[2]])
            return None
        base = self.bases[act.base]
        # A link on the way may be about to become a directory; if not, the act itself will be refused.
        status = base.glance(act.path) if self._around(act, base) else None
        if act.kind == TREE:  # what it holds is noted already, and it goes where nothing stands
            self.undo.append(["tree", act.number, act.base, act.path])
            return None
        if status is None:
            self.undo.append(["absent", act.number, act.base, act.path])
            return None
        if act.kind in _REPLACING:
            self._refuse_locked(status)
        if not act.path or (act.kind == MKDIR and stat.S_ISDIR(status.st_mode)):
            self._directory(act, base, act.path, status)
        elif act.kind == ATTRIBUTES:
            at, name = base.parent(act.path)
            held = attributes.read(name, at, status)
            self.undo.append(["attrs", act.number, act.base, act.path, attributes.pack(held)])
        else:
            self._whole(act, base, act.path, status)
        if act.kind == DELETE or (act.kind in _REPLACING and stat.S_ISDIR(status.st_mode)):
            self.undo.append(["was", act.number, status.st_dev, status.st_ino])
        return status.st_dev, status.st_ino

    def _refuse_locked(self, status: os.stat_result) -> None:
        if self._locked is None:
            self._locked = locked_files()
        if (status.st_dev, status.st_ino) in self._locked:
            self._locked = None  # whoever tries again wants to know anew
            raise OSError(errno.ETXTBSY, "locked by another process")

    def _around(self, act: Act, base: Base) -> bool:
        """Write down the directory that holds the path; return whether it is there.

        The first record of it counts, later ones do no harm.
        """
        if not act.path:
            return True
        parent = act.path.rpartition(b"/")[0]
        if (act.base, parent) in self._seen:
            return True
        if (act.base, parent) in self._missing:
            return False
        status = base.glance(parent)
        if status is None or not stat.S_ISDIR(status.st_mode):
            self._missing.add((act.base, parent))
            return False
        self._directory(act, base, parent, status)
        return True

    def _directory(self, act: Act, base: Base, path: bytes, status: os.stat_result) -> None:
        held = attributes.read(b".", base.directory(path), status)
        # Staging changed the time of its base: what counts is the time before.
        mtime_ns = self.bases.times.get(base.full(path), status.st_mtime_ns)
        held = replace(held, mtime_ns=mtime_ns)
        self.undo.append(["dir", act.number, act.base, path, attributes.pack(held)])
        if len(self._seen) >= _REMEMBERED:
            self._seen.clear()
        self._seen.add((act.base, path))

    def _whole(self, act: Act, base: Base, path: bytes, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            self._directory(act, base, path, status)
            fd = base.directory(path)
            refuse_mounted(fd, base.directory(path.rpartition(b"/")[0]))
            for name in names(fd):
                child = base.look(join(path, name))
                if child is not None:
                    self.covered.add(hash((act.base, join(path, name))))
                    self._whole(act, base, join(path, name), child)
            self.undo.append(["made", act.number, act.base, path])
            return
        at, name = base.parent(path)
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(name, dir_fd=at)
            held = attributes.read(name, at, status)
            self.undo.append(["link", act.number, act.base, path, target, attributes.pack(held)])
        else:
            self._file(act, path, at, name, status)

    def _file(self, act: Act, path: bytes, at: int, name: bytes, status: os.stat_result) -> None:
        saved = f"{act.number}-{self._count}"
        self._count += 1
        packed: list[Any] | None = None
        if not self._link(at, name, saved):
            packed = attributes.pack(attributes.read(name, at, status))
            saved = self._copy_once(at, name, saved, status)
        self.undo.append(["file", act.number, act.base, path, saved, stamp_of(status), packed])

    def _link(self, at: int, name: bytes, saved: str) -> bool:
        where = self.directory / "saved" / saved
        try:
            os.link(name, where, src_dir_fd=at, follow_symlinks=False)
        except FileExistsError:  # left by a capture that was cut short
            where.unlink()
            return self._link(at, name, saved)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
        return True

    def _copy_once(self, at: int, name: bytes, saved: str, status: os.stat_result) -> str:
        """Copy a file, or name the copy of another of its links."""
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EOPNOTSUPP, "a device, socket or pipe on another file system cannot be saved")
        identity = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and identity in self._copies:
            return self._copies[identity]
        source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=at)
        try:
            refuse_mounted(source, at)
            here = os.open(self.directory / "saved", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                remove_tree(here, saved.encode())
                os.close(copy_data(source, here, saved.encode()))
            finally:
                os.close(here)
        finally:
            os.close(source)
        self.copied = True
        if status.st_nlink > 1:
            self._copies[identity] = saved
        return saved


def copy_data(source: int, at: int, name: bytes) -> int:
    """Copy the open file ``source`` to a new file ``name`` in ``at``, holes kept; return it open for writing."""
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at)
    try:
        size = os.fstat(source).st_size
        offset = 0
        while offset < size:
            try:
                start = os.lseek(source, offset, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # only a hole is left
            offset = os.lseek(source, start, os.SEEK_HOLE)
            _copy_range(source, target, start, offset)
        os.ftruncate(target, size)
    except BaseException:
        os.close(target)
        raise
    return target


def _copy_range(source: int, target: int, start: int, stop: int) -> None:
    while start < stop:
        data = memoryview(os.pread(source, min(_COPY_BYTES, stop - start), start))
        if not data:
            return  # it was cut shorter meanwhile
        while data:
            written = os.pwrite(target, data, start)
            data, start = data[written:], start + written
