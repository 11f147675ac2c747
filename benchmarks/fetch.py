"""How fast a server's files are here, and what it costs to find that nothing changed: beside wget -m, on loopback."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.fetching import anew_and_again, measured, server
from benchmarks.measure import Contender, Options, Sample, Samples, run_command, run_function
from benchmarks.report import Report
from ted_plugins.sources.mirror import Mirror
from ted_plugins.sources.web import Access, origin_of
from ted_plugins.sources.website import WebSource

TED, WGET = "ted, http", "wget -m"
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
    return Report(
        "fetch", "Fetching",
        ["what", "by", "s, median (worst)", "CPU s", "peak MB", "requests, kB", "answers, MB", "speed to wget's"],
        measured(options, _nginx, _contenders, WGET, _bytes),
        ["One nginx with one worker on the same machine; served from and written to memory. ted: four connections, "
         "digests of everything, its index; wget: one connection.",
         "*again*: nothing changed, and the files are older than a minute. Bytes as nginx counts them: requests with "
         "their headers, answers with theirs."],
    )  # fmt: skip


def _contenders(root: Path, port: int) -> list[Contender]:
    log, url = root / "access.log", f"http://127.0.0.1:{port}/"

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

    return [*anew_and_again(root, "ted", TED, ted), *anew_and_again(root, "wget", WGET, wget)]


def _bytes(found: Samples, name: str) -> list[object]:
    return [f"{found.median(name, 'asked') / 1e3:.1f}", f"{found.median(name, 'answered') / 1e6:.2f}"]


def _nginx(root: Path) -> AbstractContextManager[int]:
    def words(port: int) -> list[str]:
        conf = root / "nginx.conf"
        conf.write_text(_CONF.format(root=root, port=port))
        return [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(conf), "-p", str(root)]

    return server(words)
