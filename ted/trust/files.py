"""Files that are whole or not there.

Rules:
 * Written beside their place, synced, renamed, the directory synced: a reader or a crash sees
   the old bytes or the new ones.
 * Read with a bound, never through a link.
 * Whoever changes a directory of ours holds its lock; readers need none.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ted.errors import RepositoryError

_TEMP_PREFIX = ".tmp-"


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put ``data`` at ``path``, atomically and durably, whatever the umask."""
    temporary = path.parent / f"{_TEMP_PREFIX}{secrets.token_hex(8)}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def read_bounded(path: Path, max_bytes: int) -> bytes | None:
    """Return the content of a regular file, ``None`` if there is none.

    Raises:
        RepositoryError: It is longer than ``max_bytes``.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if isinstance(error, PermissionError):
            raise RepositoryError(f"{path}: not readable", hint="run as the user ted runs as") from error
        return None
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise RepositoryError(f"{path}: longer than {max_bytes} bytes", hint="remove it; it is not ted's")
    return data


def make_directory(directory: Path, mode: int = 0o755) -> None:
    """Make ``directory`` with exactly ``mode``; one that is there stays as it is."""
    if directory.is_dir():
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        directory.mkdir(mode=mode)
        directory.chmod(mode)
        sync_directory(directory.parent)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold the one lock of ``directory`` and clear what a killed writer left.

    Waits for whoever holds it; processes and threads alike.
    """
    path = directory / ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise RepositoryError(
            f"{path}: cannot be locked: {error.strerror}", hint="run as the user ted runs as"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        for leftover in directory.glob(f"{_TEMP_PREFIX}*"):
            leftover.unlink(missing_ok=True)
        yield
    finally:
        os.close(descriptor)
