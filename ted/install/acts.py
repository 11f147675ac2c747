"""What a transaction does, as small records; and the directories it does it in.

An *act* is one change of one path: it names a *base* (the nearest directory that was there before, see ``Bases``)
and a path below it. A path is acted on once in a transaction; acts come parents first.
"""

from __future__ import annotations

import contextlib
import errno
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ted.errors import TargetError
from ted.install.log import LogReader, LogWriter
from ted.install.paths import Base, remove_tree

WRITE: Final = "write"
SYMLINK: Final = "symlink"
HARDLINK: Final = "hardlink"
DELETE: Final = "delete"
MKDIR: Final = "mkdir"
ATTRIBUTES: Final = "attributes"
RUN: Final = "run"
TREE: Final = "tree"


@dataclass(frozen=True, slots=True)
class Act:
    """One change of one path.

    ``data`` is, by kind: the size in bytes (write), the target (symlink), the path of the first name (hardlink),
    whether a link may be replaced (mkdir), packed attributes (attributes), ``[command, undo, timeout_s]`` (run), the
    inode of the staged directory (tree).
    """

    kind: str
    number: int
    base: int
    path: bytes
    data: Any

    def pack(self) -> list[Any]:
        """Return a plain list for the plan."""
        return [self.kind, self.number, self.base, self.path, self.data]


@dataclass(frozen=True, slots=True)
class Failure:
    """An act that could not be done: where, the system's error number, and why in words."""

    path: str
    errno: int
    message: str


@dataclass(slots=True)
class _Place:
    """One base: its path, its modification time before ted came, and what is open of it."""

    path: str
    mtime_ns: int
    device: int
    inode: int
    real: str
    base: Base | None = None
    staging_fd: int = -1
    staged: Base | None = None
    touched: bool = False


@dataclass(slots=True)
class Bases:
    """The directories a transaction works below, each with its hidden staging directory.

    A base is the nearest directory on the way to a target that was there when the transaction began: the target
    itself or, when it must be made, an ancestor. It is written down durably before anything is made in it.
    """

    directory: Path
    identity: str
    places: list[_Place] = field(default_factory=list)

    @property
    def staging(self) -> bytes:
        """Name of the staging directory in every base."""
        return b".ted-" + self.identity.encode()

    @property
    def beside(self) -> bytes:
        """Name of the one temporary file beside a destination on another file system than its base."""
        return self.staging + b"-t"

    def load(self) -> None:
        """Read the bases that are written down."""
        with contextlib.suppress(FileNotFoundError), LogReader(self.directory / "bases") as log:
            self.places[:] = [
                _Place(os.fsdecode(path), mtime_ns, device, inode, os.fsdecode(real))
                for path, mtime_ns, device, inode, real in log
            ]

    def add(self, path: str, *, durable: bool = True) -> int:
        """Write ``path`` down as a base and return its number."""
        for number, place in enumerate(self.places):
            if place.path == path:
                return number
        status = os.stat(path)
        place = _Place(path, status.st_mtime_ns, status.st_dev, status.st_ino, os.path.realpath(path))
        if durable:
            self._write_down(place)
        self.places.append(place)
        return len(self.places) - 1

    def _write_down(self, place: _Place) -> None:
        log = LogWriter(self.directory / "bases")
        try:
            real = os.fsencode(place.real)
            log.append([os.fsencode(place.path), place.mtime_ns, place.device, place.inode, real])
            log.sync()
        finally:
            log.close()

    @property
    def times(self) -> dict[str, int]:
        """Modification time of each base before ted came, by path."""
        return {place.path: place.mtime_ns for place in self.places}

    def __getitem__(self, number: int) -> Base:
        place = self.places[number]
        if place.base is None:
            place.base = self._opened(place)
        return place.base

    @staticmethod
    def _opened(place: _Place) -> Base:
        """Open a base, if it still is the directory it was.

        Raises:
            TargetError: Another one stands there: a link on the way was turned, or a volume is not mounted.
            OSError: It cannot be opened.
        """
        base = Base(place.path)
        status = os.stat(base.fd)
        # The number of a device may change when the machine starts anew.
        renamed = status.st_dev != place.device and os.path.realpath(place.path) != place.real
        if status.st_ino == place.inode and not renamed:
            return base
        base.close()
        raise TargetError(
            f"{place.path}: is another directory than the one ted worked in ({place.real})",
            hint="turn the link back, mount the volume or move the directory back, and try again; or extract the "
            "wanted revision with --revision --force",
            path=place.path, errno=errno.ESTALE,
        )  # fmt: skip

    def staging_fd(self, number: int) -> int:
        """Return a descriptor of the staging directory of a base; made when it is not there."""
        place = self.places[number]
        if place.staging_fd < 0:
            base = self[number]
            with contextlib.suppress(FileExistsError):
                os.mkdir(self.staging, 0o700, dir_fd=base.fd)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            place.staging_fd = os.open(self.staging, flags, dir_fd=base.fd)
            # What is staged must not inherit an access list: it gets exactly the attributes of its entry.
            with contextlib.suppress(OSError):
                os.removexattr(place.staging_fd, "system.posix_acl_default")
        return place.staging_fd

    def staged(self, number: int) -> Base:
        """Return the staging directory of a base, to reach what lies in the directories staged there."""
        place = self.places[number]
        if place.staged is None:
            path = f"{place.path.rstrip('/')}/{os.fsdecode(self.staging)}"
            place.staged = Base(path, os.dup(self.staging_fd(number)))
        return place.staged

    def is_staging(self, name: bytes) -> bool:
        """Return whether ``name`` is this transaction's own, to be passed over by whoever lists a target."""
        return name in (self.staging, self.beside)

    def remove_staging(self) -> None:
        """Take every staging directory away; a base that is gone needs nothing."""
        for number, place in enumerate(self.places):
            self._close_staging(place)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                remove_tree(self[number].fd, self.staging)

    def restore_times(self, *, all_of_them: bool) -> None:
        """Give bases back the time they had before staging; those acted in only when ``all_of_them``."""
        for number, place in enumerate(self.places):
            if all_of_them or not place.touched:
                try:
                    os.utime(place.path, ns=(os.stat(self[number].fd).st_atime_ns, place.mtime_ns))
                except OSError as error:
                    # Only an owner may set times; whoever else may write here lives with the new one.
                    if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOENT, errno.EROFS):
                        raise

    @staticmethod
    def _close_staging(place: _Place) -> None:
        if place.staged is not None:
            place.staged.close()
            place.staged = None
        if place.staging_fd >= 0:
            os.close(place.staging_fd)
            place.staging_fd = -1

    def close(self) -> None:
        """Close every descriptor; the places stay known."""
        for place in self.places:
            self._close_staging(place)
            if place.base is not None:
                place.base.close()
                place.base = None
