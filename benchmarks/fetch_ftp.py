"""How fast an FTP server's files are here, and what it costs to find that nothing changed: beside lftp, on loopback."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

from benchmarks import trees
from benchmarks.measure import Contender, Options, Sample, Samples, daemon, interleaved, run_command, run_function
from benchmarks.report import Report, mb, spread
from ted import plugins
from ted_plugins import ftp

TED, LFTP = "ted, ftp", "lftp mirror"
_MADE_AT_S = 1_600_000_000
_CONF = """
listen=YES
listen_address=127.0.0.1
listen_port={port}
background=NO
seccomp_sandbox=NO
secure_chroot_dir={root}/empty
anonymous_enable=YES
anon_root={root}/served
no_anon_password=YES
anon_world_readable_only=NO
xferlog_enable=NO
"""


def table(options: Options) -> Report:
    files, large = (200, 8 << 20) if options.quick else (2_000, 512 << 20)
    rows: list[list[object]] = []
    for name, make in (
        (f"{files:,} small files", lambda served: trees.small_files(served, files)),
        (f"one file of {large >> 20} MiB", lambda served: trees.large_file(served / "large", large)),
    ):
        with trees.scratch("memory") as root:
            root.chmod(0o755)
            (root / "served").mkdir(mode=0o755)
            (root / "empty").mkdir()
            make(root / "served")
            for path in (root / "served").rglob("*"):
                os.utime(path, (_MADE_AT_S, _MADE_AT_S))
            with _vsftpd(root) as port:
                rows += _rows(name, interleaved(_contenders(root, port), options.rounds))
    return Report(
        "fetch-ftp", "Fetching by FTP",
        ["what", "by", "s, median (worst)", "CPU s", "peak MB", "speed to lftp's"], rows,
        ["One vsftpd (no MLSD) on the same machine; served from and written to memory. ted: four connections, times "
         "asked for to the second, digests of everything, its index; lftp: as it comes, one connection.",
         "*again*: nothing changed."],
    )  # fmt: skip


def _contenders(root: Path, port: int) -> list[Contender]:
    options = plugins.validate_options("ftp", {"targets": [{"path": "/srv", "from": [f"ftp://127.0.0.1:{port}/"]}]})
    build = SimpleNamespace(
        options=options, scratch=root / "ted", log=logging.getLogger("benchmark"), add_tree=lambda *_a, **_k: None,
        progress=lambda *_: None,
    )  # fmt: skip

    def ted() -> Sample:
        return run_function(lambda: ftp.ted_build(build))

    def lftp() -> Sample:
        return run_command(["lftp", "-c", f"open ftp://127.0.0.1:{port}; mirror / {root}/lftp"])

    def fresh(name: str, run: Callable[[], Sample]) -> Callable[[], Sample]:
        def anew() -> Sample:
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir()
            return run()

        return anew

    return [
        Contender(TED, fresh("ted", ted)), Contender(f"{TED}, again", ted),
        Contender(LFTP, fresh("lftp", lftp)), Contender(f"{LFTP}, again", lftp),
    ]  # fmt: skip


def _rows(what: str, found: Samples) -> Iterator[list[object]]:
    for name in found:
        peer = f"{LFTP}, again" if name.endswith("again") else LFTP
        speed = found.ratio(peer, name, "wall_s")
        yield [
            what, name, spread(found.median(name, "wall_s"), found.worst(name, "wall_s")),
            f"{found.median(name, 'cpu_s'):.2f}", mb(found.worst(name, "peak_bytes")),
            "" if name == peer else f"{speed:.2f}",
        ]  # fmt: skip


@contextmanager
def _vsftpd(root: Path) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    conf = root / "vsftpd.conf"
    conf.write_text(_CONF.format(root=root, port=port))
    with daemon([shutil.which("vsftpd") or "/usr/sbin/vsftpd", str(conf)]):
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield port
