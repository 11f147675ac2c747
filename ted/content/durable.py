"""Files that are whole or not there.

Rules:
 * Written beside their place, synced, renamed, the directory synced.
 * Read with a bound, never through a link.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import IO

from ted.errors import FormatError

UNREADABLE = frozenset({errno.EIO, errno.EUCLEAN, errno.EBADMSG})
"""What the system says of what a disk does not give back any more, or gives back and knows to be wrong."""


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def drop(*files: IO[bytes] | None) -> None:
    """Close files whose content is not wanted any more: that a full disk takes no more of it does not matter."""
    for file in files:
        if file is not None:
            with suppress(OSError):
                file.close()


def write_synced(path: Path, data: bytes) -> None:
    """Make the file ``path`` with ``data`` and sync it; its name is not yet durable."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, data: bytes) -> None:
    """Put ``data`` at ``path``, atomically and durably."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        write_synced(temporary, data)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    sync_directory(path.parent)


def read_bounded(path: Path, max_bytes: int) -> bytes | None:
    """Return the bytes of a regular file, ``None`` if there is none.

    Raises:
        FormatError: It is longer than ``max_bytes``, no regular file, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}", hint="see who owns it") from error
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FormatError(f"{path}: not a regular file", hint="remove it; it is not ted's")
        try:
            data = file.read(max_bytes + 1)
        except OSError as error:
            raise FormatError(f"{path}: cannot be read: {error.strerror}", hint="see the kernel's log") from error
    if len(data) > max_bytes:
        raise FormatError(f"{path}: longer than {max_bytes} bytes", hint="remove it; it is not ted's")
    return data


def reads_as(path: Path, data: bytes) -> bool:
    """Whether a file holds ``data``; one that cannot be read does not."""
    with suppress(FormatError):
        return read_bounded(path, max(len(data), 1)) == data
    return False
