"""What the tables of fetching share: the inputs, contenders that fetch anew and again, a server of their own."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import trees
from benchmarks.measure import Contender, Options, Sample, Samples, daemon, interleaved
from benchmarks.report import mb, spread

_MADE_AT_S = 1_600_000_000
_NGINX = """
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


@dataclass(frozen=True)
class Server:
    """A server on loopback."""

    port: int
    pid: int


def measured(
    options: Options,
    serve: Callable[[Path], AbstractContextManager[Server]],
    contenders: Callable[[Path, int], list[Contender]],
    peer: str,
    more: Callable[[Samples, str], list[object]] = lambda _found, _name: [],
) -> list[list[object]]:
    """Return the rows: input, contender, seconds, CPU, memory, what ``more`` tells, and the speed to the peer's.

    Args:
        options: How it is measured.
        serve: Serves what is below ``served`` of a directory.
        contenders: As ``anew_and_again`` makes them.
        peer: Whom they are compared with.
        more: Cells of this table alone.
    """
    files, large = (200, 8 << 20) if options.quick else (2_000, 512 << 20)
    rows: list[list[object]] = []
    for what, make in (
        (f"{files:,} small files", lambda served: trees.small_files(served, files)),
        (f"one file of {large >> 20} MiB", lambda served: trees.large_file(served / "large", large)),
    ):
        with trees.scratch("memory") as root:
            root.chmod(0o755)
            (root / "served").mkdir(mode=0o755)
            make(root / "served")
            for path in (root / "served").rglob("*"):
                os.utime(path, (_MADE_AT_S, _MADE_AT_S))
            with serve(root) as running:
                found = interleaved(contenders(root, running.port), options.rounds)
            rows += ([what, *cells] for cells in _rows(found, peer, more))
    return rows


def anew_and_again(root: Path, directory: str, name: str, run: Callable[[], Sample]) -> list[Contender]:
    """Return who fetches into an empty directory, and who does so when everything is there."""

    def anew() -> Sample:
        shutil.rmtree(root / directory, ignore_errors=True)
        (root / directory).mkdir()
        return run()

    return [Contender(name, anew), Contender(_again(name), run)]


@contextmanager
def server(words: Callable[[int], Sequence[str]]) -> Iterator[Server]:
    """Keep a server running for the body.

    Args:
        words: Its command, which makes it listen on the port.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with daemon(words(port)) as process:
        deadline_s = time.monotonic() + 20
        while time.monotonic() < deadline_s:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield Server(port, process.pid)


def nginx(root: Path) -> AbstractContextManager[Server]:
    """Keep an nginx with one worker running for the body: it serves what is below ``served``."""

    def words(port: int) -> list[str]:
        conf = root / "nginx.conf"
        conf.write_text(_NGINX.format(root=root, port=port))
        return [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(conf), "-p", str(root)]

    return server(words)


def counted(root: Path, run: Callable[[], Sample]) -> Sample:
    """Run something that fetches from the ``nginx`` of a directory; return also the bytes ``asked`` and ``answered``.

    They are as nginx counts them: requests with their headers, answers with theirs.
    """
    log = root / "access.log"
    log.write_bytes(b"")
    sample = run()
    time.sleep(0.1)  # a line is written when the answer has left
    lines = [line.split() for line in log.read_text().splitlines()]
    counts = {"asked": sum(int(line[0]) for line in lines), "answered": sum(int(line[1]) for line in lines)}
    return replace(sample, more=counts)


def _again(name: str) -> str:
    return f"{name}, again"


def _rows(found: Samples, peer: str, more: Callable[[Samples, str], list[object]]) -> Iterator[list[object]]:
    for name in found:
        other = _again(peer) if name.endswith("again") else peer
        yield [
            name, spread(found.median(name, "wall_s"), found.worst(name, "wall_s")),
            f"{found.median(name, 'cpu_s'):.2f}", mb(found.worst(name, "peak_bytes")), *more(found, name),
            "" if name == other else f"{found.ratio(other, name, 'wall_s'):.2f}",
        ]  # fmt: skip
