"""Put back what was there, from the records a transaction wrote before each act.

Rules:
 * Records are applied newest first, so a directory is made before its content is put back and its time is set after.
 * Applying one again changes nothing: a crash in the middle is answered by starting over.
 * What other people put there since is left: a file that is not the one ted put there stays, and is named in the
   result. A directory of ours that now holds something of theirs simply stays: that is how directories are shared.
   What an act that failed would have replaced is not touched. Whatever cannot be put back is named in the result,
   and everything else is put back nevertheless.
 * What a newer step of the same rollback has just put back does not count as changed where this one saved a file or
   link. Of a file that is not put back because of other people's, the saved copy is kept beside the transactions.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ted.errors import TedError, UnsafePathError
from ted.hookspecs import Attributes
from ted.install import attributes
from ted.install.acts import Bases, Failure
from ted.install.capture import copy_data
from ted.install.newer import PutBack, same_file
from ted.install.paths import Base, join, remove_tree, show, stamp_of
from ted.install.perform import local, run_command
from ted.install.trees import Grown, TreeReader
from ted.install.words import shown

_MAX_NAME = 60
OTHERS_DOING = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR)
"""Why something is not put back because other people changed it since: told, and let be."""


@dataclass(slots=True)
class Undoer:
    """Applies the records of one transaction."""

    directory: Path
    bases: Bases
    failures: list[Failure] = field(default_factory=list)
    restored: int = 0
    _started: set[int] = field(default_factory=set)
    _failed: set[int] = field(default_factory=set)
    _partly: set[int] = field(default_factory=set)
    _placed: dict[int, tuple[int, bytes, list[int]]] = field(default_factory=dict)
    """What the acts of the batch put where: act -> base, path, stamp. After a crash some are not known."""
    _linked: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    _trees: TreeReader | None = None
    _step: Callable[[], None] = lambda: None
    _put_back: PutBack | None = None

    def apply(self, records: Iterable[list[Any]], step: Callable[[], None]) -> None:
        """Apply ``records``, newest first; ``step`` is called after each."""
        self._trees, self._step = TreeReader(self.directory), step
        try:
            self._apply(records, step)
        finally:
            self._trees.close()

    def _apply(self, records: Iterable[list[Any]], step: Callable[[], None]) -> None:
        kinds: dict[str, Callable[[Base, bytes, list[Any]], None]] = {
            "absent": self._absent, "file": self._file, "link": self._link, "made": self._made,
            "dir": self._directory, "attrs": self._attributes,
        }  # fmt: skip
        for record in records:
            kind = record[0]
            if kind == "started":
                self._started.add(record[1])
            elif kind in ("failed", "refused"):
                self._failed.add(record[1])
            elif kind == "placed":
                self._placed.setdefault(record[1], (record[2], record[3], record[4]))
            elif kind == "batch":
                self._placed.clear()
            elif kind == "run":
                self._run(record)
                step()
            elif kind == "tree":
                self._tree(*record[1:])
                step()
            elif kind in kinds:
                self._one(kinds[kind], record)
                step()

    def _one(self, restore: Callable[[Base, bytes, list[Any]], None], record: list[Any]) -> None:
        kind, act, number, path, *rest = record
        try:
            base = self.bases[number]
        except FileNotFoundError as error:
            if kind != "absent":
                self._fail(self.bases.places[number].path, error)
            return
        except (OSError, TedError) as error:
            self._fail(self.bases.places[number].path, error)
            return
        try:
            if kind != "dir" and act in self._failed and not self._was_taken(kind, act, base, path):
                return
            if kind in ("absent", "file", "link"):
                self._refuse_changed(act, number, base, path, rest)
            if path:
                self._clean_beside(base, path)
            restore(base, path, rest)
        except (OSError, TedError) as error:
            self._fail(base.full(path), error, self._kept(kind, path, rest, error))
        else:
            self.restored += 1

    def _kept(self, kind: str, path: bytes, rest: list[Any], error: OSError | TedError) -> Path | None:
        """Keep what was saved of a file that other people's stands in the way of; return where."""
        if kind != "file" or getattr(error, "errno", None) not in OTHERS_DOING:
            return None
        saved = self.directory / "saved" / rest[0]
        place = kept_of(self.directory) / f"{rest[0]}-{show(path.rpartition(b'/')[2])}"[:_MAX_NAME]
        if saved.exists() and not place.exists():
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                os.link(saved, place)
            except OSError:  # a file system without hard links; it has done what it was saved for
                os.rename(saved, place)
        return place if place.exists() else None

    def _was_taken(self, kind: str, act: int, base: Base, path: bytes) -> bool:
        """Return whether a failed act took this away: it may have removed a part of a directory, and nothing else."""
        if kind == "made":
            self._partly.add(act)
        return act in self._partly and base.glance(path) is None

    def _refuse_changed(self, act: int, number: int, base: Base, path: bytes, rest: list[Any]) -> None:
        """Leave what is no longer what the act put there, and not what was there before either.

        Raises:
            OSError: It was changed since (``EEXIST``).
        """
        placed = self._placed.get(act)
        there = stamp_of(base.glance(path))
        if placed is None or not there:
            return
        # Below a directory that the act took away it put nothing.
        ours = placed[2] if placed[:2] == (number, path) else []
        before = rest[1] if len(rest) == 3 else []
        both_directories = bool(ours) and ours[0] == there[0] == stat.S_IFDIR
        link = len(rest) == 2 and there[0] == stat.S_IFLNK
        if both_directories or link or same_file(ours, there, base, path) or there[3:5] == before[3:5]:
            return
        if not (rest and self._was_put_back(base, path)):
            raise OSError(errno.EEXIST, "it was changed since")

    def _was_put_back(self, base: Base, path: bytes) -> bool:
        if self._put_back is None:
            self._put_back = PutBack(self.directory)
        status = base.glance(path)
        return status is not None and self._put_back.is_there(base, path, status)

    def _fail(self, path: str, error: OSError | TedError, kept: Path | None = None) -> None:
        code = getattr(error, "errno", None) or 0
        text = (error.strerror or str(error)) if isinstance(error, OSError) else error.message
        also = "" if kept is None else f"; what was there before is kept as {kept}"
        self.failures.append(Failure(path, code, f"not put back: {text}{also}"))

    def _clean_beside(self, base: Base, path: bytes) -> None:
        """Remove a temporary file that a crash left beside the path, on a file system mounted below the base."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, UnsafePathError):
            at, _ = base.parent(path)
            if os.fstat(at).st_dev != os.fstat(base.fd).st_dev:
                remove_tree(at, self.bases.beside)

    def _absent(self, base: Base, path: bytes, _rest: list[Any]) -> None:
        """Remove what ted put there; a directory that others use by now stays."""
        try:
            self._remove(base, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise

    def _remove(self, base: Base, path: bytes) -> None:
        status = base.glance(path)  # ted put nothing behind a link
        if status is None:
            return
        at, name = base.parent(path)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=at)
            return
        base.forget(path)
        try:
            os.rmdir(name, dir_fd=at)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                error.strerror = "the directory holds files that ted did not put there"
            raise

    def _tree(self, act: int, number: int, path: bytes) -> None:
        """Take away what a staged directory brought, and the directory where nothing else is in it."""
        assert self._trees is not None
        try:
            base = self.bases[number]
            status = base.glance(path)
        except FileNotFoundError:
            return
        except (OSError, TedError) as error:
            self._fail(self.bases.places[number].path, error)
            return
        if act in self._failed or status is None or not stat.S_ISDIR(status.st_mode):
            return  # it was never placed, or is gone already
        for rows in self._trees.rows(act):
            for grown in rows:
                self._take_away(base, join(path, grown.path), grown)
            self._step()
        self._take_away(base, path, None)

    def _take_away(self, base: Base, path: bytes, noted: Grown | None) -> None:
        """Remove what is at ``path``, unless it is no longer what was ``noted``; a staged directory has no note."""
        try:
            status = base.glance(path)
            if status is not None and noted is not None and not self._is_still(noted, base, path, status):
                raise OSError(errno.EEXIST, "it was changed since")
            self._absent(base, path, [])
        except (OSError, TedError) as error:
            self._fail(base.full(path), error)
        else:
            self.restored += 1

    def _is_still(self, noted: Grown, base: Base, path: bytes, status: os.stat_result) -> bool:
        assert self._trees is not None
        if noted.is_alike(status):
            return True
        return noted.is_same_inode(status) and not base.born_after(path, self._trees.noted_at_ns)

    def _make_room(self, base: Base, path: bytes) -> None:
        """Take a directory away that stands where a file or link was."""
        status = base.look(path)
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._remove(base, path)

    def _file(self, base: Base, path: bytes, rest: list[Any]) -> None:
        saved, before, packed = rest
        where = self.directory / "saved" / saved
        status = base.look(path)
        if packed is None:
            if not where.exists():  # put back by an undo that was cut short
                return
            self._make_room(base, path)
            at, name = base.parent(path)
            try:
                os.rename(where, name, dst_dir_fd=at)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                self._copy(where, at, name, _held(where))  # the working directory moved meanwhile
            where.unlink(missing_ok=True)  # it stays when it was another name of the very same file
        elif stamp_of(status) != before:
            self._make_room(base, path)
            self._restore_copy(base, path, saved, where, attributes.unpack(packed))

    def _restore_copy(self, base: Base, path: bytes, saved: str, where: Path, held: Attributes) -> None:
        at, name = base.parent(path)
        other = self._linked.get(saved)
        if other is not None and self.bases[other[0]] is base:
            other_at, other_name = base.parent(other[1])
            remove_tree(at, self.bases.beside)
            os.link(other_name, self.bases.beside, src_dir_fd=other_at, dst_dir_fd=at, follow_symlinks=False)
            os.rename(self.bases.beside, name, src_dir_fd=at, dst_dir_fd=at)
            remove_tree(at, self.bases.beside)
            return
        self._copy(where, at, name, held)
        number = next(i for i, place in enumerate(self.bases.places) if place.base is base)
        self._linked[saved] = (number, path)

    def _copy(self, where: Path, at: int, name: bytes, held: Attributes) -> None:
        beside = self.bases.beside
        remove_tree(at, beside)
        source = os.open(where, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            target = copy_data(source, at, beside)
            try:
                attributes.set_open(target, held)
                os.fsync(target)
            finally:
                os.close(target)
        finally:
            os.close(source)
        os.rename(beside, name, src_dir_fd=at, dst_dir_fd=at)

    def _link(self, base: Base, path: bytes, rest: list[Any]) -> None:
        target, packed = rest
        self._make_room(base, path)
        at, name = base.parent(path)
        try:
            there = os.readlink(name, dir_fd=at)
        except OSError:
            there = None
        if there != target:
            remove_tree(at, self.bases.beside)
            os.symlink(target, self.bases.beside, dir_fd=at)
            os.rename(self.bases.beside, name, src_dir_fd=at, dst_dir_fd=at)
        attributes.set_named(name, at, attributes.unpack(packed))

    def _made(self, base: Base, path: bytes, _rest: list[Any]) -> None:
        status = base.look(path)
        if status is not None and stat.S_ISDIR(status.st_mode):
            return
        at, name = base.parent(path)
        if status is not None:
            os.unlink(name, dir_fd=at)
        os.mkdir(name, 0o700, dir_fd=at)

    def _directory(self, base: Base, path: bytes, rest: list[Any]) -> None:
        status = base.look(path)
        if status is None or not stat.S_ISDIR(status.st_mode):
            raise OSError(errno.ENOENT, "the directory is gone")
        attributes.set_named(b".", base.directory(path), attributes.unpack(rest[0]))

    def _attributes(self, base: Base, path: bytes, rest: list[Any]) -> None:
        at, name = base.parent(path)
        attributes.set_named(name, at, attributes.unpack(rest[0]))

    def _run(self, record: list[Any]) -> None:
        _, number, command, timeout_s = record
        if command is None or number not in self._started:
            return
        try:
            run_command(local(command, self.directory), timeout_s)
        except TedError as error:
            self.failures.append(Failure(shown(command), 0, error.message))
        else:
            self.restored += 1


def kept_of(directory: Path) -> Path:
    """Return where saved files of the transaction in ``directory`` go that could not be put back."""
    return directory.parent.with_name("kept") / directory.name


def _held(where: Path) -> Attributes:
    here = os.open(where.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return attributes.read(os.fsencode(where.name), here, os.stat(where, follow_symlinks=False))
    finally:
        os.close(here)
