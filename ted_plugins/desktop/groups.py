"""Make groups, and take away those that were made: ``groups.py make|unmake MARK NAME...``, run by a transaction.

``MARK.NAME`` beside the file ``MARK`` tells that the group was made here, not by somebody else in the meantime: only
then it is taken away. It imports nothing of ted, so that it starts at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_THERE = 9  # groupadd: somebody has it already
_GONE = 6  # groupdel: there is none


def make(mark: Path, name: str) -> int:
    """Make a group unless it is there; return 0, or the exit code of ``groupadd``."""
    fd = os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.fsync(fd)
    os.close(fd)
    code = subprocess.run(["groupadd", name], check=False).returncode
    if code == _THERE:
        mark.unlink()
        return 0
    return code


def unmake(mark: Path, name: str) -> int:
    """Take a group away if it was made here; return 0, or the exit code of ``groupdel``."""
    if not mark.exists():
        return 0
    code = subprocess.run(["groupdel", name], check=False).returncode
    if code not in (0, _GONE):
        return code
    mark.unlink()
    return 0


if __name__ == "__main__":
    do = {"make": make, "unmake": unmake}[sys.argv[1]]
    sys.exit(max(abs(do(Path(f"{sys.argv[2]}.{name}"), name)) for name in sys.argv[3:]))
