"""Make a directory of this machine hold what a place of the content tree holds: plan only what differs.

Rules:
 * What is as it should be is not touched. A file's content counts as the same without reading it only if the revision
   installed before had the same content there and size and time are as that left them; else it is read and hashed.
 * A file with other names (hard links) gets new attributes by being written anew, so that its other names keep
   theirs.
 * Without ``synchronize`` nothing is deleted that ted did not put there: a directory that stands where a file must
   be goes only if the revision installed before explains everything in it.
 * A directory that is the target itself and was there before ted keeps its mode and owner; ``/`` keeps its time too.
 * A directory nobody described (its time is 0) is made if missing, and else left alone.
"""

from __future__ import annotations

import errno
import grp
import hashlib
import os
import pwd
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Literal

from ted.content.entry import Entry, Kind
from ted.content.manifest import Run
from ted.content.revision import RevisionReader
from ted.content.walk import Excludes
from ted.errors import OptionsError, TargetError, UnsafePathError
from ted.hookspecs import Attributes
from ted.install import attributes as attrs
from ted.install.crew import PlainRights
from ted.install.paths import Base, join, names, show, walk_below
from ted.install.transaction import Transaction

_READ_BYTES = 1 << 20
_FILE, _DIRECTORY = Kind.FILE, Kind.DIRECTORY
_NO_XATTRS: Mapping[str, bytes] = {}
MANY = 2000
"""Entries of a revision from which on the files of new directories are made by other processes."""

Overwrite = Literal["always", "newer", "never"]


@dataclass(frozen=True, slots=True)
class Placement:
    """How a place of the content tree is mapped to this machine; see ``InstallContext.place``."""

    overwrite: Overwrite = "always"
    synchronize: bool = False
    exclude: Sequence[str] = ()
    remove: Sequence[str] = ()
    owner: str | int | None = None
    group: str | int | None = None
    mode: int | None = None


@dataclass(slots=True)
class _Directory:
    """A directory the walk is in."""

    path: bytes
    there: bool
    wanted: Attributes | None
    differs: bool = False
    dirty: bool = False
    names: set[bytes] = field(default_factory=set)


class _Readers:
    """What other processes read from; both revisions have threads that read ahead."""

    def __init__(self, reader: RevisionReader, before: RevisionReader | None) -> None:
        self._all = [reader] if before is None else [reader, before]
        self.read_piece = reader.read_piece

    def rest(self) -> None:
        """End the threads of both."""
        for reader in self._all:
            reader.rest()


class Placing:
    """One mapping of a place of the content tree to a root; ``run`` plans it.

    Args:
        transaction: Where acts are planned.
        reader: The revision.
        prefix: The place in its content tree.
        root: The directory on this machine, absolute.
        how: Options.
        before: The revision installed before at the same root, if its content is kept.
        recheck: Read and hash every file.
    """

    def __init__(
        self,
        transaction: Transaction,
        reader: RevisionReader,
        prefix: bytes,
        root: str,
        how: Placement,
        *,
        before: RevisionReader | None = None,
        recheck: bool = False,
    ) -> None:
        self._transaction = transaction
        self._reader = reader
        self._prefix = prefix
        self._root = root
        self._how = how
        self._before = before
        self._recheck = recheck
        self._excludes = Excludes(how.exclude)
        self._stack: list[_Directory] = []
        self._broken: set[tuple[int, int]] = set()
        self._seen_links: set[tuple[int, int]] = set()
        self._emptied: set[bytes] = set()
        self._base: Base | None = None
        self._below_base = b""
        self._many = False
        """Whether other processes make the files of new directories."""
        self._accounts: dict[tuple[str | int, str | int], tuple[int | None, int | None]] = {}

    def run(self) -> None:
        """Plan everything.

        Raises:
            UnsafePathError: A path would leave the root, or a link stands on the way.
            TargetError: Something at the target is in the way or cannot be read.
        """
        self._base, self._below_base = self._transaction.opened(self._root)
        if not self._below_base and not stat.S_ISDIR(os.stat(self._root).st_mode):
            raise TargetError(f"{self._root}: is no directory", path=self._root, errno=errno.ENOTDIR)
        self._remove()
        entries = sum(frame.entries for frame in self._reader.manifest_frames)
        self._many = self._transaction.employ(_Readers(self._reader, self._before) if entries >= MANY else None)
        for entry, was in self._paired():
            self._leave_to(self._below(entry.path))
            if not isinstance(entry, Run):
                self._place(entry, was)
            elif not self._hand_over(entry):
                for each in entry.entries("the manifest"):
                    self._place(each, None)
        self._leave_to(None)

    def _below(self, path: bytes) -> bytes:
        """Return where a path of the content tree lies below the root."""
        return path[len(self._prefix) + 1 :]

    def _place(self, entry: Entry, was: Entry | None) -> None:
        path = self._below(entry.path)
        try:
            self._one(entry, was, path)
        except UnsafePathError:
            raise
        except (OSError, TargetError) as error:
            self._transaction.fail(self._root, path, error)

    def _remove(self) -> None:
        """Delete what the options say must not be there."""
        for text in self._how.remove:
            path = os.fsencode(text.strip("/"))
            if self._reader.find(join(self._prefix, path)) is not None:
                raise OptionsError(
                    f"{text!r} is to be removed from {self._root}, and the distribution holds it",
                    hint="leave it out of `remove`, or out of the source with `exclude`",
                )
            if self._transaction.look(self._root, path) is not None:
                self._transaction.delete(self._root, path)
                self._emptied.add(path.rpartition(b"/")[0])

    def _paired(self) -> Iterator[tuple[Entry | Run, Entry | None]]:
        """Yield each entry with the one that the revision installed before had there."""
        found: Iterator[Entry | Run] = self._reader.entries(self._prefix)
        if self._many:
            found = self._reader.runs(self._prefix, self._is_made)
        if self._before is not None and self._before.record.manifest == self._reader.record.manifest:
            for entry in found:
                yield entry, None if isinstance(entry, Run) else entry
            return
        before = iter(self._before.entries(self._prefix)) if self._before is not None else iter(())
        was = next(before, None)
        for entry in found:
            if isinstance(entry, Run):
                yield entry, None
                continue
            while was is not None and was.path != entry.path and was.components < entry.components:
                was = next(before, None)
            yield entry, was if was is not None and was.path == entry.path else None

    # --- files that other processes make --------------------------------------------------------------------------

    def _is_made(self, directory: bytes) -> bool:
        """Return whether a directory of the content tree is one that is made here."""
        path = self._below(directory)
        return any(held.path == path and not held.there for held in reversed(self._stack))

    def _hand_over(self, run: Run) -> bool:
        """Have the files of a run made; false when nothing was done, since there is something to be told of them."""
        rights = [self._plain_rights(*each) for each in run.rights]
        plain = [each for each in rights if each is not None]
        if len(plain) < len(rights):
            return False
        return self._transaction.write_plain(self._root, self._below(run.directory), run, plain, self._reader.pieces)

    def _plain_rights(self, mode: int, owner: str | int, group: str | int) -> PlainRights | None:
        """Return what a new file gets; ``None`` where there is something to be told about it."""
        uid = account("user", owner if self._how.owner is None else self._how.owner)
        gid = account("group", group if self._how.group is None else self._how.group)
        return None if None in (uid, gid) else (mode if self._how.mode is None else self._how.mode, uid, gid)

    # --- directories ----------------------------------------------------------------------------------------------

    def _leave_to(self, path: bytes | None) -> None:
        """Leave the directories that do not hold ``path``; all of them when it is ``None``."""
        while self._stack:
            held = self._stack[-1]
            if path is not None and (not held.path or path.startswith(held.path + b"/")):
                return
            self._stack.pop()
            try:
                self._leave(held)
            except OSError as error:
                self._transaction.fail(self._root, held.path, error)

    def _leave(self, held: _Directory) -> None:
        for name in sorted(held.names):
            self._delete_extra(held, name)
        if not held.there or held.wanted is None:
            return
        if held.differs:
            self._transaction.attributes(self._root, held.path, held.wanted)
        elif held.dirty:
            self._transaction.settle(self._root, held.path, held.wanted)

    def _delete_extra(self, held: _Directory, name: bytes) -> None:
        path = join(held.path, name)
        status = self._transaction.look(self._root, path)
        if status is None or self._transaction.own_name(name):
            return
        if self._excludes.match(path, is_directory=stat.S_ISDIR(status.st_mode)):
            return
        if stat.S_ISDIR(status.st_mode) and self._how.exclude and self._holds_excluded(path):
            return
        self._transaction.delete(self._root, path)
        held.dirty = True

    def _holds_excluded(self, path: bytes) -> bool:
        """Return whether something below is to be left alone; then its directory stays, and the rest of it goes."""
        base, below = self._transaction.opened(self._root)
        keep = False
        for found, status in walk_below(base, join(below, path)):
            inside = found[len(below) + 1 :] if below else found
            keep = keep or self._excludes.match(inside, is_directory=stat.S_ISDIR(status.st_mode))
        if keep:
            for name in names(base.directory(join(below, path))):
                self._delete_extra(_Directory(path, there=True, wanted=None), name)
        return keep

    def _directory(self, entry: Entry, was: Entry | None, path: bytes, status: os.stat_result | None) -> None:
        described = entry.mtime_ns != 0
        wanted = self._wanted(entry)
        if status is None or not stat.S_ISDIR(status.st_mode):
            if status is not None and self._kept_back(entry, status):
                how = f"`overwrite` is `{self._how.overwrite}`"
                raise OSError(errno.ENOTDIR, f"something stands where a directory must be, and {how}")
            if not described:
                wanted = replace(wanted, mtime_ns=None)
            ours = was is not None and was.kind is Kind.SYMLINK
            self._transaction.mkdir(self._root, path, attributes=wanted, replace_link=ours)
            self._stack.append(_Directory(path, there=False, wanted=None))
            return
        if not path:
            wanted = self._of_root(wanted, was, status)
        held = _Directory(path, there=True, wanted=wanted if described else None, dirty=path in self._emptied)
        if held.wanted is not None:
            held.differs = not self._same_attributes(held.wanted, path, status)
        if self._how.synchronize:
            base, below = self._transaction.opened(self._root)
            held.names = set(names(base.directory(join(below, path))))
        if not held.differs:
            self._transaction.counts["unchanged"] += 1
        self._stack.append(held)

    def _of_root(self, wanted: Attributes, was: Entry | None, status: os.stat_result) -> Attributes:
        """Return what the target directory itself gets, that was there before."""
        if self._root.strip("/") == "":
            return Attributes()
        if was is not None and attrs.same(replace(self._wanted(was), mtime_ns=None), status):
            return wanted
        return Attributes(mtime_ns=wanted.mtime_ns)

    # --- one entry ------------------------------------------------------------------------------------------------

    def _one(self, entry: Entry, was: Entry | None, path: bytes) -> None:
        parent = self._stack[-1] if self._stack else None
        if parent is not None:
            parent.names.discard(path.rpartition(b"/")[2])
        made = parent is not None and not parent.there
        if made and entry.kind is _FILE:
            self._write(entry, path)
            return
        status = None if made else self._transaction.look(self._root, path)
        if entry.kind is Kind.DIRECTORY:
            if parent is not None and (status is None or not stat.S_ISDIR(status.st_mode)):
                parent.dirty = True
            self._directory(entry, was, path, status)
            return
        if status is not None and self._kept_back(entry, status):
            self._transaction.counts["skipped"] += 1
            return
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._refuse_losing(path)
        if self._leaf(entry, was, path, status):
            if parent is not None:
                parent.dirty = True
        else:
            self._transaction.counts["unchanged"] += 1

    def _kept_back(self, entry: Entry, status: os.stat_result) -> bool:
        if self._how.overwrite == "newer":
            return status.st_mtime_ns > (self._reader.linked(entry) if entry.kind is Kind.HARDLINK else entry).mtime_ns
        return self._how.overwrite == "never"

    def _leaf(self, entry: Entry, was: Entry | None, path: bytes, status: os.stat_result | None) -> bool:
        """Plan a file or link; return whether anything in its directory changes."""
        if entry.kind is Kind.SYMLINK:
            return self._symlink(entry, path, status)
        if entry.kind is Kind.HARDLINK:
            first = self._first_of(entry)
            if first is not None:
                return self._hardlink(path, first, status)
            entry = self._reader.linked(entry)._replace(path=entry.path)
        return self._file(entry, was, path, status)

    def _file(self, entry: Entry, was: Entry | None, path: bytes, status: os.stat_result | None) -> bool:
        if status is not None and stat.S_ISREG(status.st_mode):
            wanted = self._wanted(entry)
            shared = status.st_nlink > 1
            identity = (status.st_dev, status.st_ino)
            apart = shared and identity in self._seen_links
            if not apart and self._same_content(entry, was, path, status):
                if self._same_attributes(wanted, path, status):
                    if shared:
                        self._seen_links.add(identity)
                    return False
                if not shared:
                    self._transaction.attributes(self._root, path, wanted)
                    return True
            if shared:
                self._broken.add(identity)
        self._write(entry, path)
        return True

    def _write(self, entry: Entry, path: bytes) -> None:
        self._transaction.write(
            self._root, path, self._reader.pieces(entry), size=entry.size, attributes=self._wanted(entry)
        )

    def _symlink(self, entry: Entry, path: bytes, status: os.stat_result | None) -> bool:
        wanted = replace(self._wanted(entry), mode=None, xattrs=None)
        target = entry.link or b""
        if status is not None and stat.S_ISLNK(status.st_mode) and self._read_link(path) == target:
            if attrs.same(self._transaction.rights.reduce(wanted), status):
                return False
            self._transaction.attributes(self._root, path, wanted)
            return True
        self._transaction.symlink(self._root, path, target, attributes=wanted)
        return True

    def _first_of(self, entry: Entry) -> bytes | None:
        """Return the first name's path below the root; ``None`` when it lies elsewhere, or may not be ours."""
        inside = self._prefix + b"/"
        link = entry.link or b""
        if self._how.overwrite != "always" or not link.startswith(inside):
            return None
        return link[len(inside) :]

    def _hardlink(self, path: bytes, first: bytes, status: os.stat_result | None) -> bool:
        other = self._transaction.look(self._root, first) if status is not None else None
        if status is not None and other is not None:
            identity = (status.st_dev, status.st_ino)
            if identity == (other.st_dev, other.st_ino) and identity not in self._broken:
                return False
            if status.st_nlink > 1:
                self._broken.add(identity)
        self._transaction.hardlink(self._root, path, first)
        return True

    # --- comparing ------------------------------------------------------------------------------------------------

    def _at(self, path: bytes) -> tuple[int, bytes]:
        assert self._base is not None
        return self._base.parent(join(self._below_base, path))

    def _read_link(self, path: bytes) -> bytes:
        at, name = self._at(path)
        return os.readlink(name, dir_fd=at)

    def _same_attributes(self, wanted: Attributes, path: bytes, status: os.stat_result) -> bool:
        wanted = self._transaction.rights.reduce(wanted)
        mtime_ns = None
        if stat.S_ISDIR(status.st_mode):
            mtime_ns = self._transaction.mtime_ns(self._root, path, status)
        if not attrs.same(wanted, status, mtime_ns):
            return False
        if wanted.xattrs is None:
            return True
        if not path and not self._below_base:
            assert self._base is not None
            return attrs.read_xattrs(attrs.handle(self._base.fd)) == wanted.xattrs
        at, name = self._at(path)
        return attrs.xattrs_of(name, at) == wanted.xattrs

    def _same_content(self, entry: Entry, was: Entry | None, path: bytes, status: os.stat_result) -> bool:
        if status.st_size != entry.size:
            return False
        if (
            not self._recheck
            and was is not None
            and was.kind is Kind.FILE
            and was.same_content(entry)
            and was.mtime_ns == status.st_mtime_ns
        ):
            return True
        at, name = self._at(path)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=at)
        try:
            return holds(fd, entry, self._reader)
        finally:
            os.close(fd)

    def _refuse_losing(self, path: bytes) -> None:
        """Refuse to replace a directory by a file if that would delete what is not the distribution's.

        Raises:
            TargetError: It would.
        """
        if self._how.synchronize:
            return
        base, below = self._transaction.opened(self._root)
        for found, _ in walk_below(base, join(below, path)):
            inside = found[len(below) + 1 :] if below else found
            if self._before is None or self._before.find(join(self._prefix, inside)) is None:
                raise TargetError(
                    f"{self._root.rstrip('/')}/{show(path)}: a directory with files that are not the distribution's "
                    f"({show(inside)}) stands where a file must be",
                    hint="move it away, or let the distribution own the place with `synchronize: true`",
                    path=f"{self._root.rstrip('/')}/{show(path)}", errno=errno.ENOTEMPTY,
                )  # fmt: skip

    # --- attributes -----------------------------------------------------------------------------------------------

    def _wanted(self, entry: Entry) -> Attributes:
        mode = entry.mode
        if self._how.mode is not None:
            mode = self._how.mode
            if entry.kind is _DIRECTORY:
                mode |= (mode & 0o444) >> 2
        owner = self._how.owner if self._how.owner is not None else entry.owner
        group = self._how.group if self._how.group is not None else entry.group
        xattrs = {os.fsdecode(name): value for name, value in entry.xattrs} if entry.xattrs else _NO_XATTRS
        known = self._accounts.get((owner, group))
        if known is None:
            known = self._number("user", owner), self._number("group", group)
            if None not in known:  # what is not known is warned of each time
                self._accounts[owner, group] = known
        return Attributes(mode, *known, entry.mtime_ns, xattrs)

    def _number(self, kind: Literal["user", "group"], name: str | int) -> int | None:
        number = account(kind, name)
        if number is None:
            self._transaction.warn(f"{kind} {name!r} is not known on this machine: left as it is")
        return number


@cache
def account(kind: Literal["user", "group"], name: str | int) -> int | None:
    """Return the number of a user or group, ``None`` when this machine does not know the name."""
    if isinstance(name, int):
        return name
    try:
        return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
    except KeyError:
        return int(name) if name.isascii() and name.isdigit() else None


def holds(fd: int, entry: Entry, reader: RevisionReader) -> bool:
    """Return whether the open file has the content of ``entry``; their sizes are the same."""
    if entry.content_digest is not None:
        return _digest(fd, 0, entry.size) == entry.content_digest
    offset = 0
    for extent in reader.extents(entry):
        if extent.frame is None:
            same = _is_zero(fd, offset, extent.length)
        else:
            same = _digest(fd, offset, extent.length) == extent.frame
        if not same:
            return False
        offset += extent.length
    return True


def _digest(fd: int, offset: int, length: int) -> bytes:
    digest = hashlib.sha256()
    while length:
        data = os.pread(fd, min(length, _READ_BYTES), offset)
        if not data:
            return b""
        digest.update(data)
        offset, length = offset + len(data), length - len(data)
    return digest.digest()


def _is_zero(fd: int, offset: int, length: int) -> bool:
    try:
        if os.lseek(fd, offset, os.SEEK_DATA) >= offset + length:
            return True
    except OSError as error:
        if error.errno == errno.ENXIO:  # a hole up to the end
            return True
    while length:
        data = os.pread(fd, min(length, _READ_BYTES), offset)
        if not data or data.count(0) != len(data):
            return False
        offset, length = offset + len(data), length - len(data)
    return True
