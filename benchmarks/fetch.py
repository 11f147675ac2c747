"""How fast a server's files are here, and what it costs to find that nothing changed: beside wget -m, on loopback."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import trees
from benchmarks.measure import Contender, Options, Sample, Samples, daemon, interleaved, run_command, run_function
from benchmarks.report import Report, mb, spread
from ted_plugins.sources.mirror import Mirror
from ted_plugins.sources.web import Access, origin_of
from ted_plugins.sources.website import WebSource

TED, WGET = "ted, http", "wget -m"
_MADE_AT_S = 1_600_000_000
_CONF = """
pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 1; daemon off; master_process off;
events {{ worker_connections 512; }}
http {{
    log_format told '$request_length $bytes_sent'; access_log {root}/access.log told;
    keepalive_requests 1000000; sendfile on; default_type application/octet-stream;
    client_body_temp_path {root}/t1; proxy_temp_path {root}/t2; fastcgi_temp_path {root}/t3;
    uwsgi_temp_path {root}/t4; scgi_temp_path {root}/t5;
    server {{ listen 127.0.0.1:{port}; root {root}/served; autoindex on; }}
}}
"""


def table(options: Options) -> Report:
    files, large = (200, 8 << 20) if options.quick else (2_000, 512 << 20)
    rows: list[list[object]] = []
    for name, make in (
        (f"{files:,} small files", lambda served: trees.small_files(served, files)),
        (f"one file of {large >> 20} MiB", lambda served: trees.large_file(served / "large", large)),
    ):
        with trees.scratch("memory") as root:
            (root / "served").mkdir()
            make(root / "served")
            for path in (root / "served").rglob("*"):
                os.utime(path, (_MADE_AT_S, _MADE_AT_S))
            with _nginx(root) as port:
                rows += _rows(name, interleaved(_contenders(root, f"http://127.0.0.1:{port}/"), options.rounds))
    return Report(
        "fetch", "Fetching",
        ["what", "by", "s, median (worst)", "CPU s", "peak MB", "requests, kB", "answers, MB", "speed to wget's"], rows,
        ["One nginx with one worker on the same machine; served from and written to memory. ted: four connections, "
         "digests of everything, its index; wget: one connection.",
         "*again*: nothing changed, and the files are older than a minute. Bytes as nginx counts them: requests with "
         "their headers, answers with theirs."],
    )  # fmt: skip


def _contenders(root: Path, url: str) -> list[Contender]:
    log = root / "access.log"

    def counted(run: Callable[[], Sample]) -> Sample:
        log.write_bytes(b"")
        sample = run()
        time.sleep(0.1)
        lines = [line.split() for line in log.read_text().splitlines()]
        counts = {"asked": sum(int(line[0]) for line in lines), "answered": sum(int(line[1]) for line in lines)}
        return Sample(sample.wall_s, sample.cpu_s, sample.peak_bytes, counts)

    def ted() -> Sample:
        source = WebSource(url, Access(origin_of(url)))
        mirror = Mirror(root / "ted", source, logging.getLogger("benchmark"))
        return counted(lambda: run_function(mirror.refresh))

    def wget() -> Sample:
        words = ["wget", "-q", "-m", "-np", "-nH", "-R", "index.html*", "-P", str(root / "wget"), url]
        return counted(lambda: run_command(words))

    def fresh(name: str, run: Callable[[], Sample]) -> Callable[[], Sample]:
        def anew() -> Sample:
            shutil.rmtree(root / name, ignore_errors=True)
            (root / name).mkdir()
            return run()

        return anew

    return [
        Contender(TED, fresh("ted", ted)), Contender(f"{TED}, again", ted),
        Contender(WGET, fresh("wget", wget)), Contender(f"{WGET}, again", wget),
    ]  # fmt: skip


def _rows(what: str, found: Samples) -> Iterator[list[object]]:
    for name in found:
        peer = f"{WGET}, again" if name.endswith("again") else WGET
        speed = found.ratio(peer, name, "wall_s")
        yield [
            what, name, spread(found.median(name, "wall_s"), found.worst(name, "wall_s")),
            f"{found.median(name, 'cpu_s'):.2f}",
            mb(found.worst(name, "peak_bytes")), f"{found.median(name, 'asked') / 1e3:.1f}",
            f"{found.median(name, 'answered') / 1e6:.2f}", "" if name == peer else f"{speed:.2f}",
        ]  # fmt: skip


@contextmanager
def _nginx(root: Path) -> Iterator[int]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    conf = root / "nginx.conf"
    conf.write_text(_CONF.format(root=root, port=port))
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    with daemon([program, "-c", str(conf), "-p", str(root)]):
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield port
