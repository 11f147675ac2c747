"""What a person reads about files: descriptions, and errors of the system with what to do now."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from ted.errors import TargetError, TedError
from ted.hookspecs import Attributes
from ted.install.paths import Base, show

_HINTS = {
    errno.ENOSPC: "make room on that file system; what is there was not changed",
    errno.EDQUOT: "raise the quota or make room; what is there was not changed",
    errno.EACCES: "extract as a user who may write there",
    errno.EPERM: "extract as a user who may change it, and look for an immutable flag (lsattr)",
    errno.EROFS: "the file system is mounted read-only",
    errno.ETXTBSY: "somebody holds it: raise `retries`, or allow `on_locked: kill`",
    errno.EBUSY: "somebody holds it, or a file system is mounted there",
}


def target_error(path: str, error: OSError | TedError) -> TargetError:
    """Return what a person is told when the system refuses ``path``."""
    if isinstance(error, TargetError):
        return error
    if isinstance(error, TedError):
        return TargetError(error.message, hint=error.hint, path=path)
    number = error.errno or 0
    name = errno.errorcode.get(number, "error")
    return TargetError(f"{path}: {error.strerror or error} ({name})", hint=_HINTS.get(number), path=path, errno=number)


def shown(command: list[str]) -> str:
    """Return a command for messages and records: its program alone, for its words may hold secrets."""
    return command[0] if command else "a command"


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Tell what the system refuses as a ``TargetError``; ``what`` names the place if the system does not."""
    try:
        yield
    except OSError as error:
        raise target_error(str(error.filename or what), error) from error


def describe(base: Base, where: bytes, status: os.stat_result, mtime_ns: int) -> str:
    """Return what is at a path, in words."""
    kind = stat.S_IFMT(status.st_mode)
    if kind == stat.S_IFLNK:
        at, name = base.parent(where)
        return f"link to {show(os.readlink(name, dir_fd=at))}"
    words = {stat.S_IFREG: f"file of {status.st_size} bytes", stat.S_IFDIR: "directory"}.get(kind, "special file")
    held = Attributes(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, mtime_ns)
    return words + describe_wanted(held)


def describe_wanted(wanted: Attributes) -> str:
    """Return attributes in words, each after a comma."""
    words = []
    if wanted.mode is not None:
        words.append(f"mode {wanted.mode:04o}")
    if wanted.owner is not None or wanted.group is not None:
        words.append(f"owner {'-' if wanted.owner is None else wanted.owner}:"
                     f"{'-' if wanted.group is None else wanted.group}")  # fmt: skip
    if wanted.mtime_ns is not None:
        words.append(f"modified {datetime.fromtimestamp(wanted.mtime_ns // 10**9, UTC):%Y-%m-%dT%H:%M:%SZ}")
    return "".join(f", {word}" for word in words)
