"""Sources for the tables of building and extracting: the same bytes every time."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import run_command
from ted import plugins
from ted.content.builder import BuildResult, RevisionBuilder
from ted.content.working import WorkingDirectory
from ted.install.host import Host

MEMORY = Path("/dev/shm")
DISTRIBUTOR, NAME = "hq", "bench"


@contextmanager
def scratch(where: str) -> Iterator[Path]:
    """Yield an empty directory: in ``memory``, or on the ``disk`` of the temporary files."""
    path = Path(tempfile.mkdtemp(prefix="ted-bench-", dir=MEMORY if where == "memory" else None))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def new_disk(size_bytes: int = 32 << 30) -> Iterator[Path]:
    """Yield an empty ext4 file system on the disk of the temporary files, gone afterwards; needs root.

    ext4 does not use an inode again for minutes after a file was removed, and steps over each of these for every
    file it makes: where much was removed lately, 20,000 files take ten times as long, for whoever comes next.
    """
    with scratch("disk") as place:
        image, path = place / "image", place / "disk"
        path.mkdir()
        with image.open("wb") as file:
            file.truncate(size_bytes)
        run_command(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard", str(image)])
        device = subprocess.check_output(["losetup", "--direct-io=on", "-f", "--show", image], text=True).strip()
        try:
            run_command(["mount", device, str(path)])
            try:
                yield path
            finally:
                run_command(["umount", "--lazy", str(path)])
        finally:
            run_command(["losetup", "-d", device])


def put_aside(path: Path) -> None:
    """Take away what an earlier run left but for its inodes (see ``new_disk``), and let the disk come to rest."""
    aside = path.parent / "aside"
    aside.mkdir(exist_ok=True)
    if path.exists():
        for large in (each for each in path.rglob("*") if each.is_file() and each.stat().st_size > 1 << 24):
            os.truncate(large, 0)
        path.rename(aside / str(len(os.listdir(aside))))
    os.sync()


def words(count: int = 3000) -> list[bytes]:
    chance = random.Random(1)
    return [bytes(chance.choices(range(97, 123), k=chance.randint(2, 9))) for _ in range(count)]


def small_files(source: Path, count: int) -> int:
    """Make ``count`` files of text, 6 KB on average, a hundred in a directory; return their bytes."""
    chance, known, total = random.Random(2), words(), 0
    for number in range(count):
        if number % 100 == 0:
            directory = source / f"p{number // 2000:03}" / f"d{number // 100:05}"
            directory.mkdir(parents=True)
        size = min(int(chance.lognormvariate(8.2, 1.1)), 200_000)
        text = b" ".join(chance.choices(known, k=size // 6 + 1))[:size]
        (directory / f"file{number % 100:03}.txt").write_bytes(text)
        total += len(text)
    return total


def tiny_files(source: Path, count: int) -> None:
    """Make ``count`` files of a line each, 500 in a directory."""
    for number in range(count):
        if number % 500 == 0:
            directory = source / f"d{number // 500:05}"
            directory.mkdir(parents=True)
        (directory / f"f{number % 500:03}.conf").write_bytes(b"setting %d is on\n" % number)


def large_file(path: Path, size: int) -> None:
    """Make a file of which half is random and half is text, in turns of a MiB."""
    chance, known = random.Random(3), words()
    text = b" ".join(chance.choices(known, k=200_000))[: 1 << 20]
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(chance.randbytes(1 << 20) if file.tell() >> 20 & 1 else text[file.tell() >> 20 & 0xFFFF :])
        file.truncate(size)


def build(root: Path, source: Path, *, level: int = 3, block_bytes: int | None = None) -> BuildResult:
    """Build a revision of a File distribution that goes to ``<root>/target``."""
    working = WorkingDirectory(root / "var")
    working.path.mkdir(parents=True, exist_ok=True)
    target = {"path": str(root / "target"), "from": [f"{source}/"]}
    model = plugins.validate_options("file", {"targets": [target]})
    with RevisionBuilder(
        working.distribution(DISTRIBUTOR, NAME), DISTRIBUTOR, NAME, "file", {}, model.model_dump(mode="json"),
        cache=root / "cache", level=level, block_bytes=block_bytes,
    ) as builder:  # fmt: skip
        plugins.gather("file", builder, model, working.state / "build")
        return builder.finish()


def host(root: Path) -> Host:
    """Return the node that extracts what ``build`` made; who signed it is not what is measured."""
    return Host(WorkingDirectory(root / "var"), lambda *_names: None)


def same(one: Path, other: Path) -> None:
    """Compare two trees, content, modes and times.

    Raises:
        RuntimeError: They differ.
    """
    done = subprocess.run(
        ["rsync", "-rlptcniHX", "--delete", f"{one}/", f"{other}/"], capture_output=True, text=True, check=True
    )
    found = [line for line in done.stdout.splitlines() if line]
    if found:
        raise RuntimeError(f"{other} is not {one}: {found[:5]}")


def drop(path: Path) -> None:
    """Remove what an earlier run left, and let the disk come to rest."""
    shutil.rmtree(path, ignore_errors=True)
    os.sync()
