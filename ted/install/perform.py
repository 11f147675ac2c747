"""Do one act, so that doing it again after a crash changes nothing more.

Rules:
 * What appears, appears whole: files and links are made in the staging directory and renamed over what was there.
   On a file system mounted below the base they are made beside their destination first.
 * A new directory that was staged whole is renamed to where nothing stands, or not at all.
 * A directory goes only if it is the one that was written down, and of what it holds only what was.
 * Done again: what was staged is gone, so it is in place; a delete removes only the very file it was planned for.
 * A link that stands where a directory must be is replaced only if the plan says that ted itself put it there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ted.errors import TargetError, UnsafePathError
from ted.install import attributes
from ted.install.acts import ATTRIBUTES, DELETE, HARDLINK, MKDIR, RUN, SYMLINK, TREE, WRITE, Act, Bases
from ted.install.capture import Identity, copy_data
from ted.install.paths import join, names, refuse_mounted, remove_tree, rename_new
from ted.install.words import shown

_OUTPUT_BYTES = 2000
KEPT = "kept"
"""Directory in a transaction's own for what its commands need; see ``Transaction.keep``."""
_PYTHON, _KEPT = "\0python", "\0kept/"
"""Stand in recorded commands for what differs from one run to the next; no word of a command can hold a NUL."""
NO_HARDLINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP)


@dataclass(slots=True)
class Performer:
    """Does the acts of one transaction."""

    bases: Bases
    covered: Collection[int]
    """Hashes of (base, path) of what may go with the directory that holds it; see ``Capture``."""

    def do(self, act: Act, was: Identity | None) -> list[str]:
        """Do ``act``; ``was`` is what its capture found there.

        Returns:
            What could not be set, in words; the act is done nevertheless.

        Raises:
            UnsafePathError: A link stands on the way.
            TargetError: A command failed, or what was staged is gone.
            OSError: The system refused.
        """
        if act.kind in (WRITE, SYMLINK):
            self._place(act, was)
        elif act.kind == HARDLINK:
            self._hardlink(act, was)
        elif act.kind == TREE:
            self._tree(act)
        elif act.kind == MKDIR:
            self._mkdir(act)
        elif act.kind == DELETE:
            self._delete(act, was)
        elif act.kind == ATTRIBUTES:
            at, name = self.bases[act.base].parent(act.path)
            return attributes.set_named(name, at, attributes.unpack(act.data))
        elif act.kind == RUN:
            run_command(local(act.data[0], self.bases.directory), act.data[2])
        return []

    def _place(self, act: Act, was: Identity | None) -> None:
        base = self.bases[act.base]
        at, name = base.parent(act.path)
        staging = self.bases.staging_fd(act.base)
        if not self._rename(staging, str(act.number).encode(), at, name, partial(self._make_room, act, was)):
            self._in_place_already(act)

    def _tree(self, act: Act) -> None:
        base = self.bases[act.base]
        at, name = base.parent(act.path)
        try:
            rename_new(self.bases.staging_fd(act.base), str(act.number).encode(), at, name)
        except FileNotFoundError:
            self._in_place_already(act)
        except FileExistsError:
            if stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                refuse_link(base.full(act.path))
            raise OSError(errno.EEXIST, "something came there meanwhile; extract again") from None

    def _in_place_already(self, act: Act) -> None:
        """Check that what is no longer staged is where it belongs."""
        base = self.bases[act.base]
        status = base.look(act.path)
        if status is not None and _is_placed(act, status):
            return
        raise TargetError(
            f"{base.full(act.path)}: its new content is no longer in {self.bases.staging.decode()}",
            hint="something removed ted's staging directory; extract again",
        )

    def _rename(self, source_at: int, source: bytes, at: int, name: bytes, make_room: Callable[[], None]) -> bool:
        """Rename a staged file over ``name``; False when it is not staged any more.

        ``make_room`` is called when a directory stands there.
        """
        for _ in range(3):
            try:
                os.rename(source, name, src_dir_fd=source_at, dst_dir_fd=at)
            except FileNotFoundError:
                return False
            except OSError as error:
                if error.errno in (errno.EISDIR, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    make_room()
                elif error.errno == errno.EXDEV and source != self.bases.beside:
                    self._copy_beside(source_at, source, at)
                    self._rename(at, self.bases.beside, at, name, make_room)
                    os.unlink(source, dir_fd=source_at)
                    return True
                else:
                    raise
            else:
                return True
        raise OSError(errno.EBUSY, "it keeps coming back")

    def _copy_beside(self, source_at: int, source: bytes, at: int) -> None:
        """Make the staged file again beside its destination, which another file system holds."""
        beside = self.bases.beside
        remove_tree(at, beside)
        status = os.stat(source, dir_fd=source_at, follow_symlinks=False)
        held = attributes.read(source, source_at, status)
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(source, dir_fd=source_at), beside, dir_fd=at)
            attributes.set_named(beside, at, held)
            return
        opened = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source_at)
        try:
            target = copy_data(opened, at, beside)
            try:
                attributes.set_open(target, held)
                os.fsync(target)
            finally:
                os.close(target)
        finally:
            os.close(opened)

    def _hardlink(self, act: Act, was: Identity | None) -> None:
        base = self.bases[act.base]
        first_at, first = base.parent(act.data)
        staging = self.bases.staging_fd(act.base)
        staged = str(act.number).encode()
        remove_tree(staging, staged)
        # The status is asked for first: a first name that is missing must not look like a finished act.
        status = os.stat(first, dir_fd=first_at, follow_symlinks=False)
        try:
            os.link(first, staged, src_dir_fd=first_at, dst_dir_fd=staging, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_HARDLINK:
                raise
            self.copy_first(first, first_at, status, staging, staged)
        at, name = base.parent(act.path)
        self._rename(staging, staged, at, name, partial(self._make_room, act, was))
        # Renaming one name of a file over another name of it does nothing, by POSIX: the staged one stays.
        remove_tree(staging, staged)

    @staticmethod
    def copy_first(first: bytes, at: int, status: os.stat_result, staging: int, staged: bytes) -> None:
        """Where the file system makes no hard link, a second file with the same content stands in for it."""
        held = attributes.read(first, at, status)
        source = os.open(first, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        try:
            target = copy_data(source, staging, staged)
            try:
                attributes.set_open(target, held)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _mkdir(self, act: Act) -> None:
        if not act.path:
            return
        base = self.bases[act.base]
        at, name = base.parent(act.path)
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=at)
            return
        status = os.stat(name, dir_fd=at, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            return
        if stat.S_ISLNK(status.st_mode) and not act.data:
            refuse_link(base.full(act.path))
        os.unlink(name, dir_fd=at)
        os.mkdir(name, 0o700, dir_fd=at)
        base.forget(act.path)

    def _delete(self, act: Act, was: Identity | None) -> None:
        base = self.bases[act.base]
        status = base.look(act.path)
        if status is None or (status.st_dev, status.st_ino) != was:
            return
        base.forget(act.path)
        self._remove(act.base, act.path, *base.parent(act.path))

    def _make_room(self, act: Act, was: Identity | None) -> None:
        base = self.bases[act.base]
        base.forget(act.path)
        status = base.look(act.path)
        if status is None:
            return
        if (status.st_dev, status.st_ino) != was:
            raise OSError(errno.EEXIST, "a directory came there meanwhile")
        self._remove(act.base, act.path, *base.parent(act.path))

    def _remove(self, number: int, path: bytes, at: int, name: bytes) -> None:
        """Remove what is written down; a directory in which something came meanwhile stays (``ENOTEMPTY``)."""
        if not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
            os.unlink(name, dir_fd=at)
            return
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
        try:
            refuse_mounted(fd, at)
            for child in names(fd):
                if hash((number, join(path, child))) in self.covered:
                    self._remove(number, join(path, child), fd, child)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=at)


def _is_placed(act: Act, status: os.stat_result) -> bool:
    if act.kind == SYMLINK:
        return stat.S_ISLNK(status.st_mode)
    if act.kind == TREE:
        return stat.S_ISDIR(status.st_mode) and status.st_ino == act.data
    return stat.S_ISREG(status.st_mode) and status.st_size == act.data


def refuse_link(path: str) -> None:
    """Say that a link stands where the distribution holds a directory.

    Raises:
        UnsafePathError: Always.
    """
    raise UnsafePathError(
        f"{path}: a link stands where the distribution holds a directory",
        hint="ted never writes through links below a target: replace the link by a directory, "
        "or name the place it leads to as a target of its own",
    )


def movable(command: list[str], kept_in: Path) -> list[str]:
    """Return the words of a command so that it can be run by a later ted, and when what is kept has moved."""
    kept = f"{kept_in}/"
    return [
        _PYTHON if word == sys.executable else _KEPT + word.removeprefix(kept) if word.startswith(kept) else word
        for word in command
    ]


def readable(command: list[str]) -> str:
    """Return the words of ``movable`` for people: the same wherever and whenever it is run."""
    return " ".join(command).replace("\0", "")


def local(command: list[str], directory: Path) -> list[str]:
    """Return the words of ``movable`` as they are to be run now."""
    kept = f"{directory / KEPT}/"
    return [
        sys.executable if word == _PYTHON else kept + word.removeprefix(_KEPT) if word.startswith(_KEPT) else word
        for word in command
    ]


def run_command(command: list[str], timeout_s: float) -> None:
    """Run ``command`` without a shell and wait for it; what it leaves running on purpose goes on.

    Raises:
        TargetError: It cannot be started, fails, or takes longer than ``timeout_s``.
    """
    name = shown(command)
    with tempfile.TemporaryFile() as output:  # a pipe would be held open by whatever the command leaves behind
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        except (OSError, ValueError) as error:
            raise TargetError(f"{name}: cannot be started: {error}") from error
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TargetError(f"{name}: took longer than {timeout_s:g} s") from None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        if code == 0:
            return
        output.seek(max(output.seek(0, os.SEEK_END) - _OUTPUT_BYTES, 0))
        said = output.read(_OUTPUT_BYTES).decode("utf-8", "replace").strip()
    raise TargetError(f"{name}: exit code {code}" + (f": {said}" if said else ""))
