"""Reach a path below a directory without ever leaving it.

Rules:
 * A path is bytes, relative, and names every directory on the way: no empty part, no ``.``, no ``..``, no NUL, at
   most 4096 bytes and 255 a part. Anything else is refused before the file system is asked.
 * The base directory itself is opened as the administrator wrote it and may be reached through links. Below it every
   component is opened relative to its parent's descriptor with ``O_NOFOLLOW``: a component that is a link is an
   ``UnsafePathError``, also when it was swapped in a moment ago.
 * Descriptors of directories are ``O_PATH``: they need no right to read and never block.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import signal
import stat
import struct
from collections import OrderedDict
from collections.abc import Iterator

from ted.errors import UnsafePathError

MAX_PATH_BYTES = 4096
MAX_PART_BYTES = 255

_OPEN_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CACHED = 128
_NO_NAMES = (b"", b".", b"..")


def show(path: bytes | str) -> str:
    """Return ``path`` as text for people: bytes that are no UTF-8 are escaped."""
    return path if isinstance(path, str) else path.decode("utf-8", "backslashreplace")


def parts_of(path: bytes) -> list[bytes]:
    """Split a relative path into its parts; the empty path has none.

    Raises:
        UnsafePathError: The path is absolute, leaves its base, or no file system could hold it.
    """
    refuse_unplain(path)
    return path.split(b"/") if path else []


def refuse_unplain(path: bytes) -> None:
    """Refuse what is no plain relative path; the empty one is.

    Raises:
        UnsafePathError: As ``parts_of``.
    """
    if path and (len(path) > MAX_PATH_BYTES or _PLAIN.fullmatch(path) is None):
        raise UnsafePathError(
            f"{show(path)!r}: not a plain relative path",
            hint="the distribution was not made by ted build, or was tampered with; build it again",
        )


_PART = rb"(?!\.\.?(?:/|\Z))[^/\0]{1,%d}" % MAX_PART_BYTES
_PLAIN = re.compile(_PART + rb"(?:/" + _PART + rb")*")


def join(parent: bytes, name: bytes) -> bytes:
    """Return ``name`` below ``parent``; either may be empty."""
    return b"/".join(part for part in (parent, name) if part)


class Base:
    """A directory and what lies below it, by descriptor; not safe for several threads.

    Args:
        path: The directory, absolute.
        fd: A descriptor of it, which becomes this object's; opened when ``None``.

    Raises:
        OSError: It cannot be opened, or is no directory.
    """

    def __init__(self, path: str, fd: int | None = None) -> None:
        self.path = path
        self.fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC) if fd is None else fd
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def full(self, path: bytes) -> str:
        """Return the absolute path for messages."""
        return f"{self.path.rstrip('/')}/{show(path)}" if path else self.path

    def directory(self, path: bytes) -> int:
        """Return a descriptor of the directory ``path``; it stays this object's.

        Raises:
            UnsafePathError: A component is a link, or the path is no plain relative path.
            OSError: A component is missing or no directory.
        """
        if not path:
            return self.fd
        held = self._open.get(path)
        if held is not None:
            self._open.move_to_end(path)
            return held
        parent, _, name = path.rpartition(b"/")
        parts_of(path)
        at = self.directory(parent)
        try:
            fd = os.open(name, _OPEN_DIRECTORY, dir_fd=at)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR) and _is_link(name, at):
                raise UnsafePathError(
                    f"{self.full(path)}: a link stands where a directory must be",
                    hint="ted never writes through links below a target; replace the link by a directory, "
                    "or name the place it leads to as a target of its own",
                ) from None
            raise
        self._open[path] = fd
        if len(self._open) > _CACHED:
            os.close(self._open.popitem(last=False)[1])
        return fd

    def parent(self, path: bytes) -> tuple[int, bytes]:
        """Return a descriptor of the directory that holds ``path``, and its name there.

        Raises:
            UnsafePathError: As ``directory``; also for the empty path.
        """
        head, _, name = path.rpartition(b"/")
        held = self._open.get(head) if head else self.fd
        if (
            held is None
            or name in _NO_NAMES
            or len(path) > MAX_PATH_BYTES
            or len(name) > MAX_PART_BYTES
            or b"\0" in name
        ):
            # Not the quick way of a name in a directory that is open already: everything is looked at.
            parts_of(path)
            if not name:
                raise UnsafePathError(f"{self.path}: the target directory itself is no file")
            held = self.directory(head)
        return held, name

    def look(self, path: bytes) -> os.stat_result | None:
        """Return the status of ``path`` itself, links not followed; ``None`` when nothing is there.

        Raises:
            UnsafePathError: A component on the way is a link.
        """
        if not path:
            return os.stat(self.fd)
        try:
            at, name = self.parent(path)
            return os.stat(name, dir_fd=at, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def glance(self, path: bytes) -> os.stat_result | None:
        """As ``look``, but what lies behind a link on the way counts as not there."""
        try:
            return self.look(path)
        except UnsafePathError:
            return None

    def born_after(self, path: bytes, moment_ns: int) -> bool:
        """Return whether what is at ``path`` came to be after that moment; false where nothing tells."""
        at, name = self.parent(path)
        born = born_ns(name, at)
        return born is not None and born > moment_ns

    def forget(self, path: bytes) -> None:
        """Close what is held of ``path`` and below: it is about to be another directory."""
        inside = path + b"/"
        for held in [held for held in self._open if held == path or held.startswith(inside)]:
            os.close(self._open.pop(held))

    def close(self) -> None:
        """Close every descriptor."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _is_link(name: bytes, at: int) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
    except OSError:
        return False


def names(fd: int) -> list[bytes]:
    """Return the sorted names in the directory ``fd``."""
    listing = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    try:
        return sorted(os.fsencode(name) for name in os.listdir(listing))
    finally:
        os.close(listing)


def mount_of(fd: int) -> int:
    """Return what tells the mount of an open directory or file from others, bind mounts of one file system too."""
    try:
        with open(f"/proc/self/fdinfo/{fd}", encoding="ascii") as info:
            return next(int(line.split()[1]) for line in info if line.startswith("mnt_id:"))
    except (OSError, StopIteration):  # no /proc: the best there is
        return os.fstat(fd).st_dev


def refuse_mounted(fd: int, at: int) -> None:
    """Refuse what is mounted over the directory ``at``.

    Raises:
        OSError: ``fd``, opened in ``at``, lies on another mount (``EBUSY``).
    """
    if mount_of(fd) != mount_of(at):
        raise OSError(errno.EBUSY, "another file system is mounted there")


def stamp_of(status: os.stat_result | None) -> list[int]:
    """Return what tells whether a file is the very one, unchanged: type, device, inode, size, modified, changed (ns).

    An inode's number alone does not: it is given to the next file. Nothing there: an empty list.
    """
    if status is None:
        return []
    return [
        stat.S_IFMT(status.st_mode), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns,
        status.st_ctime_ns,
    ]  # fmt: skip


def born_ns(name: bytes, at: int) -> int | None:
    """Return when the file ``name`` of the directory ``at`` came to be (ns); ``None`` where nothing tells.

    An inode's number is given to the next file, its time of birth is not. Source: statx(2).
    """
    answer = bytearray(_STATX_BYTES)
    buffer = (ctypes.c_char * _STATX_BYTES).from_buffer(answer)
    if _libc.statx(at, name, _NO_FOLLOW, _STATX_BTIME, buffer) != 0:
        return None
    (mask,) = struct.unpack_from("=I", answer)
    seconds, nanoseconds = struct.unpack_from("=qI", answer, _STATX_BTIME_AT)
    return int(seconds * 10**9 + nanoseconds) if mask & _STATX_BTIME else None


def walk_below(base: Base, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield everything below the directory ``path``, a directory before what it holds, sorted by components."""
    for name in names(base.directory(path)):
        child = join(path, name)
        status = base.look(child)
        if status is None:
            continue
        yield child, status
        if stat.S_ISDIR(status.st_mode):
            yield from walk_below(base, child)


def rename_new(source_at: int, source: bytes, at: int, name: bytes) -> None:
    """Rename ``source`` in ``source_at`` to ``name`` in ``at``, where nothing stands.

    Raises:
        FileExistsError: Something stands there.
        OSError: The system refused.
    """
    if _libc.renameat2(source_at, source, at, name, _NO_REPLACE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code))
    # A file system that cannot promise it: looked at first. A rename replaces no directory but an empty one.
    with contextlib.suppress(FileNotFoundError):
        os.stat(name, dir_fd=at, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    os.rename(source, name, src_dir_fd=source_at, dst_dir_fd=at)


def remove_tree(at: int, name: bytes) -> None:
    """Remove ``name`` in the directory ``at`` and all below it, never through a link; gone already is fine."""
    try:
        os.unlink(name, dir_fd=at)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError) as error:
        # POSIX lets unlink of a directory answer EPERM; anything else that answers it is meant.
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            raise error from None
    else:
        return
    fd = os.open(name, _OPEN_DIRECTORY, dir_fd=at)
    try:
        refuse_mounted(fd, at)
        for child in names(fd):
            remove_tree(fd, child)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=at)


_libc = ctypes.CDLL(None, use_errno=True)


_KEEP_SIZE = 1
_M_MMAP_THRESHOLD = -3
_M_TRIM_THRESHOLD = -1
_NO_REPLACE = 1
_PARENT_DEATH_SIGNAL = 1
_NO_FOLLOW = 0x100
_STATX_BTIME = 0x800
_STATX_BYTES = 256
_STATX_BTIME_AT = 80


def reserve_room(fd: int, offset: int, length: int) -> None:
    """Take disk room for ``length`` bytes from ``offset`` on without changing the file's size, where that can be done.

    Raises:
        OSError: There is no room (``ENOSPC``, ``EDQUOT``).
    """
    if _libc.fallocate(fd, _KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(length)) != 0:
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(code, os.strerror(code))


def die_with(parent: int) -> None:
    """Have the system kill this process when ``parent``, which forked it, ends. Source: prctl(2)."""
    _libc.prctl(_PARENT_DEATH_SIGNAL, ctypes.c_ulong(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def keep_freed_memory() -> None:
    """Have the C library keep some MiB that were freed: to ask the system for them again costs more than to use them.

    For a process that has and frees a frame again and again. Source: mallopt(3).
    """
    with contextlib.suppress(AttributeError):  # another C library
        _libc.mallopt(_M_MMAP_THRESHOLD, 4 << 20)
        _libc.mallopt(_M_TRIM_THRESHOLD, 16 << 20)


def sync_filesystem(path: str) -> None:
    """Write everything of the file system that holds ``path`` to its disk.

    Raises:
        OSError: The disk could not take it: what was written may be lost.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc.syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), path)
    finally:
        os.close(fd)
