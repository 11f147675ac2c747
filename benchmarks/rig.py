"""The tests' fleets and lab, for tables that need real agents or lines; and the peers' Debian packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fleet import Fleet
from lab_rig import HERE, WIRE, Clock, Lab, LabFleet, goodput_s

__all__ = [
    "HERE", "WIRE", "Clock", "Fleet", "Lab", "LabFleet", "directory", "full_memory", "goodput_s", "need",
    "need_python", "write_random",
]  # fmt: skip


def need(**packages: str) -> None:
    """See that programs are here (program=Debian package); install them where this is root on Debian.

    Raises:
        RuntimeError: One is missing and cannot be installed.
    """
    missing = [package for program, package in packages.items() if shutil.which(program) is None]
    if not missing:
        return
    command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"these Debian packages are needed: {' '.join(missing)}: {done.stderr[-500:]}")


def need_python(*packages: str) -> None:
    """Install packages of the Python index into this environment."""
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *packages], check=True)


@contextmanager
def directory() -> Iterator[Path]:
    """Yield a directory in memory where there is room, so that no disk is measured; gone afterwards."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="ted-bench-", dir=base) as name:
        yield Path(name)


LEFT_FREE_BYTES = 600 << 20


@contextmanager
def full_memory() -> Iterator[None]:
    """Fill free memory with page cache for as long as this lasts, as it is on a server that has run for a while.

    A virtual machine whose host takes free pages back pays for each new one: 0.5 GB/s instead of 4 on the one of
    docs/benchmarks.md. Pages that come out of the cache are the system's already.

    Raises:
        RuntimeError: More than half of it stays free.
    """
    before = _free_bytes()
    with tempfile.TemporaryFile(dir="/var/tmp") as file:  # of holes: it needs no disk
        for _ in range(5):  # what ended last may still be giving memory back
            missing = _free_bytes() - LEFT_FREE_BYTES
            if missing <= 0:
                break
            start = os.fstat(file.fileno()).st_size
            file.truncate(start + missing)
            file.seek(start)
            while file.read(1 << 20):
                pass
        if _free_bytes() > max(before / 2, LEFT_FREE_BYTES):  # some stays free where a control group has less than all
            raise RuntimeError("memory does not fill with page cache: is /var/tmp on a disk?")
        yield


def _free_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemFree:")) * 1024


def write_random(path: Path, size: int) -> None:
    """Write incompressible bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for start in range(0, size, 1 << 24):
            file.write(os.urandom(min(1 << 24, size - start)))
