"""Target files that somebody holds: who, and, where a person asked for it, the end of them.

Rules:
 * Linux lets a file that is open or running be replaced: its holder keeps the old one. So an open file is not
   locked. A file is *locked* when a process holds a lock or lease on it (``/proc/locks``), or the kernel refuses
   with "text file busy", "device or resource busy" or "try again".
 * A holder is ended only with ``on_locked: kill``: SIGTERM, five seconds to go, SIGKILL. Never this process, never
   one it descends from, never process 1.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from pathlib import Path

LOCKED_ERRNOS = frozenset({errno.ETXTBSY, errno.EBUSY, errno.EAGAIN})
GRACE_S = 5.0

_LOCKS = Path("/proc/locks")
_PROC = Path("/proc")


def locked_files() -> frozenset[tuple[int, int]]:
    """Return ``(device, inode)`` of every file somebody holds a lock or lease on."""
    found: set[tuple[int, int]] = set()
    try:
        text = _LOCKS.read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        words = line.split()
        if "->" in words:  # a waiter, not a holder
            continue
        for word in words:
            numbers = word.split(":")
            if len(numbers) == 3:
                major, minor, inode = int(numbers[0], 16), int(numbers[1], 16), int(numbers[2])
                found.add((os.makedev(major, minor), inode))
    return frozenset(found)


def holders(device: int, inode: int) -> list[int]:
    """Return the processes that have the file open or run it; those this user may not look into are not seen."""
    return [
        int(process.name) for process in _PROC.iterdir() if process.name.isdigit() and _holds(process, device, inode)
    ]


def _holds(process: Path, device: int, inode: int) -> bool:
    try:
        handles = [process / "exe", *(process / "fd").iterdir()]
    except OSError:
        return False
    for handle in handles:
        try:
            status = os.stat(handle)
        except OSError:
            continue
        if (status.st_dev, status.st_ino) == (device, inode):
            return True
    return False


def end_holders(device: int, inode: int) -> list[int]:
    """End the processes that hold the file and return their ids.

    Raises:
        PermissionError: One of them belongs to somebody else.
    """
    spared = _ancestors()
    ended = [pid for pid in holders(device, inode) if pid not in spared]
    for pid in ended:
        _end(pid)
    return ended


def _ancestors() -> set[int]:
    spared, pid = {1}, os.getpid()
    while pid > 1:
        spared.add(pid)
        try:
            pid = int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return spared


def _end(pid: int) -> None:
    try:
        descriptor = os.pidfd_open(pid)  # names this process for good: its number may be given to another
    except ProcessLookupError:
        return
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            if not _gone(pid, GRACE_S):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                _gone(pid, GRACE_S)
    finally:
        os.close(descriptor)


def _gone(pid: int, within_s: float) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            state = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.02)
    return False
