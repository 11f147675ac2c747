"""Who works in a working directory: locks that end with their process.

The kernel says who holds one; nothing is read from a file that a dead process may have left.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path

from ted.errors import AgentError

_FLOCK = "hhqqi"  # struct flock of Linux with 64-bit offsets


def hold_lock(state_directory: Path, name: str) -> int:
    """Take the lock ``name``; this process holds it until it ends.

    Raises:
        AgentError: Another process has it, or the directory is somebody else's.
    """
    try:
        state_directory.mkdir(parents=True, exist_ok=True)
        fd = os.open(state_directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except PermissionError as error:
        raise AgentError(f"{error.filename}: {error.strerror}", hint="the working directory belongs to another user: "
                         "start the agent as that one, or run install.yml with ted_agent_user") from None  # fmt: skip
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise AgentError(f"another agent (process {lock_owner(state_directory, name)}) works in "
                         f"{state_directory.parent}", hint="`ted agent stop` ends it") from None  # fmt: skip
    return fd


def lock_owner(state_directory: Path, name: str) -> int | None:
    """Return the process that holds the lock ``name``, or ``None`` when it is free.

    The kernel says who: nothing is read from a file that a dead process may have left.
    """
    try:
        fd = os.open(state_directory / name, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = struct.unpack(_FLOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    finally:
        os.close(fd)
    return None if kind == fcntl.F_UNLCK else int(pid)
