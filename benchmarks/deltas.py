"""Who else makes an update small: programs that make a delta at the sender, or fetch what the receiver lacks.

Each makes ``new.tar`` of a directory from ``old.tar`` (rsync: the tree ``new`` from ``old``), and what it made is
compared.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks.fetching import Server, counted, nginx, server
from benchmarks.measure import Contender, Sample, cpu_s, run_command

ZSTD_19, ZSTD_9, XDELTA = "zstd -19 --patch-from", "zstd -9 --patch-from", "xdelta3 -9 -S lzma"
RSYNC, RSYNC_DAEMON = "rsync -z zstd", "rsync -z zstd, daemon"
CASYNC, ZCHUNK, ZSYNC = "casync", "zchunk", "zsync -z"
_SENT = re.compile(r"Total bytes (?:sent|received): ([\d,.]+)")


@contextmanager
def peers(root: Path) -> Iterator[list[Contender]]:
    """Yield all of them, while the servers run that some of them fetch from."""
    with nginx(root) as web, _rsyncd(root) as rsyncd:
        yield [
            Contender(ZSTD_9, _zstd(root, 9)), Contender(XDELTA, _xdelta(root)),
            Contender(RSYNC, _rsync_over_a_pipe(root)), Contender(RSYNC_DAEMON, _rsync_from_daemon(root, rsyncd)),
            *(Contender(name, run, rounds=1) for name, run in (
                (CASYNC, _casync(root, web)), (ZCHUNK, _zchunk(root, web)), (ZSYNC, _zsync(root, web)),
                (ZSTD_19, _zstd(root, 19)),
            )),
        ]  # fmt: skip


def sample(made: Sample, size: int, back: Sample | None, changed_bytes: int = 0) -> Sample:
    """Return what making an update took, with its ``bytes`` and what it took to ``apply`` it."""
    more = {
        "bytes": size, "changed": changed_bytes,
        "apply_s": back.wall_s if back else 0, "apply_peak": back.peak_bytes if back else 0,
    }  # fmt: skip
    return replace(made, more=more)


def _zstd(root: Path, level: int) -> Callable[[], Sample]:
    common = "zstd -q -f --long=31 --patch-from=old.tar"
    return _delta(root, f"{common} -{level} new.tar -o out", f"{common} -d out -o back")


def _xdelta(root: Path) -> Callable[[], Sample]:
    common = f"xdelta3 -B {1 << 30} -f -s old.tar"
    return _delta(root, f"{common} -e -9 -S lzma new.tar out", f"{common} -d out back")


def _delta(root: Path, make: str, undo: str) -> Callable[[], Sample]:
    def run() -> Sample:
        _emptied(root)
        made = run_command(make.split(), cwd=root)
        back = run_command(undo.split(), cwd=root)
        _compare(root)
        return sample(made, (root / "out").stat().st_size, back)

    return run


def _casync(root: Path, web: Server) -> Callable[[], Sample]:
    url = f"http://127.0.0.1:{web.port}"
    make = "casync make --store=served/chunks"
    return _fetched(root, f"{make} kept/old.caibx old.tar", f"{make} served/new.caibx new.tar",
                    f"casync extract --store={url}/chunks --seed=old.tar {url}/new.caibx back")  # fmt: skip


def _zchunk(root: Path, web: Server) -> Callable[[], Sample]:
    return _fetched(root, "zck -o kept/old.zck old.tar", "zck -o served/new.zck new.tar",
                    f"cd kept && zckdl -q -s old.zck http://127.0.0.1:{web.port}/new.zck && unzck -c new.zck > ../back")


def _zsync(root: Path, web: Server) -> Callable[[], Sample]:
    return _fetched(root, "ln -s ../new.tar served/", "cd served && zsyncmake -z -u new.tar.gz -o new.zsync new.tar",
                    f"zsync -q -i old.tar -o back http://127.0.0.1:{web.port}/new.zsync")  # fmt: skip


def _fetched(root: Path, before: str, make: str, fetch: str) -> Callable[[], Sample]:
    """Return a run of shell lines: what both sides have ``before``; making what is ``served``; fetching it ``back``."""

    def run() -> Sample:
        _emptied(root)
        run_command(before, cwd=root)
        made = run_command(make, cwd=root)
        back = counted(root, lambda: run_command(fetch, cwd=root))
        _compare(root)
        return sample(made, int(back.more["asked"] + back.more["answered"]), back)

    return run


def _rsync_over_a_pipe(root: Path) -> Callable[[], Sample]:
    shell = root / "shell"  # a remote shell: the words after the host's name, on this machine
    shell.write_text('#!/bin/sh\nshift\nexec "$@"\n')
    shell.chmod(0o755)
    return lambda: _rsync(root, ["-e", str(shell), f"{root}/new/", f"localhost:{root}/copy/"])


def _rsync_from_daemon(root: Path, rsyncd: Server) -> Callable[[], Sample]:
    def run() -> Sample:
        used_s = cpu_s(rsyncd.pid)
        found = _rsync(root, [f"rsync://127.0.0.1:{rsyncd.port}/new/", f"{root}/copy/"])
        return replace(found, cpu_s=found.cpu_s + cpu_s(rsyncd.pid) - used_s)

    return run


def _rsync(root: Path, ends: Sequence[str]) -> Sample:
    run_command(["rm", "-rf", str(root / "copy")])
    run_command(["cp", "-a", str(root / "old"), str(root / "copy")])
    words = ["rsync", "-a", "-z", "--zc=zstd", "--no-whole-file", "--delete", "--stats", *ends]
    said = root / "said"
    made = run_command(" ".join(f"'{word}'" for word in words) + f" > '{said}'")
    run_command(["diff", "-r", "--no-dereference", str(root / "new"), str(root / "copy")])
    return sample(made, sum(int(re.sub(r"\D", "", found)) for found in _SENT.findall(said.read_text())), None)


def _rsyncd(root: Path) -> AbstractContextManager[Server]:
    conf = root / "rsyncd.conf"
    conf.write_text(f"use chroot = no\nuid = {os.getuid()}\nreverse lookup = no\n[new]\npath = {root}/new\n")
    return server(lambda port: ["rsync", "--daemon", "--no-detach", "--address=127.0.0.1", f"--port={port}",
                                f"--config={conf}"])  # fmt: skip


def _emptied(root: Path) -> None:
    for name in ("out", "back"):
        (root / name).unlink(missing_ok=True)
    for name in ("served", "kept"):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()


def _compare(root: Path) -> None:
    run_command(["cmp", str(root / "back"), str(root / "new.tar")])
