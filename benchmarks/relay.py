"""What a relay costs over mutual TLS, verifying: CPU beside nginx as server and pycurl as client, and its memory.

The server rows send the same file to the same clients (curl, 1, 10 and 40 of them at once). The client rows receive,
hash and store the same file: pycurl from nginx, a ted agent from a ted agent (with journal, durability and all).
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import Contender, Options, Sample, cpu_s, daemon, interleaved, peak_bytes
from benchmarks.report import Report, spread
from benchmarks.rig import LabFleet, directory, need, need_python, write_random

NGINX = """
daemon off; master_process off; error_log {root}/nginx.log; pid {root}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; keepalive_timeout 60;
  client_body_temp_path {root}; proxy_temp_path {root}; fastcgi_temp_path {root}; uwsgi_temp_path {root};
  scgi_temp_path {root};
  server {{
    listen 127.0.0.1:{port} ssl; root {root}; ssl_protocols TLSv1.3; ssl_verify_client on;
    ssl_certificate {realm}/node.pem; ssl_certificate_key {realm}/node.key; ssl_client_certificate {realm}/ca.pem;
  }}
}}
"""
SLOW_BYTES_S = 128 * 1024
SLOW_FOR_S = 10
CHILDREN = 40


@dataclass(frozen=True)
class Server:
    """A server with the pack, and how curl asks it for all of it."""

    name: str
    pid: int
    asked: list[str]


@dataclass
class Site:
    """A relay (agent ``e01``) with a pack that it received from ``hq``, and nginx with the same file."""

    fleet: LabFleet
    root: Path
    pack: Path
    servers: list[Server]

    def realm(self, node: str) -> Path:
        return self.fleet.config(node) / "realm"

    def curl(self, server: Server, child: int, *words: str) -> list[str]:
        """Return the words with which one child, a node of its own, fetches the whole pack."""
        realm = self.realm(f"c{child:02}")
        keys = ["--cert", f"{realm}/node.pem", "--key", f"{realm}/node.key", "--cacert", f"{realm}/ca.pem"]
        return ["curl", "-sSf", "-o", "/dev/null", *keys, *words, *server.asked]


@contextmanager
def site(root: Path, size: int) -> Iterator[Site]:
    fleet = LabFleet(root)
    fleet.add("hq", distributor=True, routing_hierarchy=["e01"], distributions={
        "app": {"type": "file", "channels": ["pos"], "options": {
            "targets": [{"path": "/nowhere", "from": [f"{root}/source/"]}]}},
    })  # fmt: skip
    fleet.add("e01", channels=("pos",))
    for child in range(CHILDREN):
        fleet.add(f"c{child:02}")
    write_random(root / "source" / "big", size)
    with ExitStack() as stack:
        stack.callback(fleet.close)
        fleet.install()
        fleet.start("hq", "e01")
        fleet.ted("hq", "build")
        revision = fleet.ted("hq", "report", "revisions")[0]["revision"]
        pack = fleet.working("hq") / "hq" / "app" / revision / "DISTFILE.TED"
        record = json.loads((pack.parent / "REVISION.TED").read_text())
        ref = next(each for each in _packs(record) if each["revision"] == revision)
        (root / "wanted").write_text(json.dumps(
            {"bytes": ref["bytes"], "block_bytes": ref["block_bytes"], "runs": [[0, ref["blocks"]]]}))  # fmt: skip
        fleet.ted("hq", "send")
        port = fleet.hostvars["e01"]["ted_port"]
        ted = Server("ted", _agent(fleet, "e01"), [
            "--data-binary", f"@{root}/wanted", "-H", "Content-Type: application/json",
            f"https://127.0.0.1:{port}/v1/pack/hq/app/{revision}",
        ])  # fmt: skip
        (root / "pack").symlink_to(pack)
        nginx = stack.enter_context(_nginx(root, fleet.config("hq") / "realm"))
        yield Site(fleet, root, pack, [ted, nginx])


def _packs(record: object) -> Iterator[dict[str, object]]:
    """Yield what looks like a reference to a pack, wherever the record keeps it."""
    if isinstance(record, dict):
        if {"revision", "bytes", "block_bytes", "blocks"} <= set(record):
            yield record
        for value in record.values():
            yield from _packs(value)
    elif isinstance(record, list):
        for value in record:
            yield from _packs(value)


def _agent(fleet: LabFleet, name: str) -> int:
    return int(fleet.ted(name, "agent", "status")["pid"])


@contextmanager
def _nginx(root: Path, realm: Path) -> Iterator[Server]:
    from fleet import free_port

    port = free_port()
    (root / "nginx.conf").write_text("user root;" + NGINX.format(root=root, port=port, realm=realm))
    with daemon(["nginx", "-p", str(root), "-c", str(root / "nginx.conf")]) as process:
        time.sleep(1)
        yield Server("nginx", process.pid, [f"https://127.0.0.1:{port}/pack"])


def sending(place: Site, server: Server, children: int, each_bytes: int) -> Callable[[], Sample]:
    """Return a run in which ``children`` at once fetch the whole pack."""

    def run() -> Sample:
        before_s, started_s = cpu_s(server.pid), time.perf_counter()
        clients = [subprocess.Popen(place.curl(server, child)) for child in range(children)]
        for client in clients:
            if client.wait():
                raise RuntimeError(f"curl ended with {client.returncode}")
        wall_s, used_s = time.perf_counter() - started_s, cpu_s(server.pid) - before_s
        sent_gb = children * each_bytes / 1e9
        return Sample(wall_s, used_s, peak_bytes(server.pid), {"s_per_gb": used_s / sent_gb})

    return run


def slowly(place: Site, server: Server) -> Callable[[], Sample]:
    """Return a run in which ``CHILDREN`` slow children are served for a while."""

    def run() -> Sample:
        words = ["--limit-rate", str(SLOW_BYTES_S), "--max-time", str(SLOW_FOR_S)]
        clients = [subprocess.Popen(place.curl(server, child, *words), stderr=subprocess.DEVNULL)
                   for child in range(CHILDREN)]  # fmt: skip
        time.sleep(2)  # handshakes and first windows are not what is asked
        before_s, started_s = cpu_s(server.pid), time.perf_counter()
        time.sleep(SLOW_FOR_S - 4)
        used_s, wall_s = cpu_s(server.pid) - before_s, time.perf_counter() - started_s
        for client in clients:
            client.wait()
        return Sample(wall_s, used_s, peak_bytes(server.pid), {"percent": 100 * used_s / wall_s})

    return run


def receiving_ted(place: Site, size: int) -> Callable[[], Sample]:
    """Return a run in which the agent ``e01`` receives the pack: TLS, hash of each block, store, journal."""

    def run() -> Sample:
        fleet = place.fleet
        leaf = fleet.working("e01") / "hq" / "app"
        subprocess.run(["rm", "-rf", str(leaf)], check=True)
        pid = _agent(fleet, "e01")
        before_s, started_s = cpu_s(pid), time.perf_counter()
        sent = fleet.ted("hq", "send")["sends"][0]
        if sent["incomplete"]:
            raise RuntimeError(f"not received: {sent}")
        used_s, wall_s = cpu_s(pid) - before_s, time.perf_counter() - started_s
        return Sample(wall_s, used_s, peak_bytes(pid), {"s_per_gb": used_s / (size / 1e9)})

    return run


def receiving_pycurl(place: Site, size: int) -> Callable[[], Sample]:
    """Return a run in which pycurl receives the same file, hashes it with SHA-256 and stores it."""
    url = place.servers[1].asked[-1]

    def run() -> Sample:
        out = place.root / "received"
        started_s = time.perf_counter()
        pid = os.fork()
        if not pid:
            try:
                _pycurl(url, place.realm("c00"), out)
                os._exit(0)
            finally:
                os._exit(1)
        _, status, usage = os.wait4(pid, 0)
        wall_s = time.perf_counter() - started_s
        if status or out.stat().st_size != size:
            raise RuntimeError("pycurl failed")
        out.unlink()
        used_s = usage.ru_utime + usage.ru_stime
        return Sample(wall_s, used_s, 0, {"s_per_gb": used_s / (size / 1e9)})

    return run


def _pycurl(url: str, realm: Path, out: Path) -> None:
    import hashlib

    import pycurl  # type: ignore[import-not-found]

    digest = hashlib.sha256()
    with out.open("wb", buffering=0) as file:

        def take(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        curl = pycurl.Curl()
        for option, value in ((curl.URL, url), (curl.CAINFO, f"{realm}/ca.pem"), (curl.SSLCERT, f"{realm}/node.pem"),
                              (curl.SSLKEY, f"{realm}/node.key"), (curl.BUFFERSIZE, 256 * 1024),
                              (curl.WRITEFUNCTION, take)):  # fmt: skip
            curl.setopt(option, value)
        curl.perform()


def table(options: Options) -> Report:
    """Measure, and put ted beside nginx and pycurl."""
    need(nginx="nginx-light", curl="curl")
    need_python("pycurl")
    size = (32 if options.quick else 128) * 1024 * 1024
    rows: list[tuple[object, ...]] = []
    with directory() as root, site(root, size) as place:
        pack_bytes = place.pack.stat().st_size
        for children in (1, 10, CHILDREN):
            if children > 1 and children * pack_bytes > 1 << 32:
                contenders = [Contender(s.name, sending(place, s, children, pack_bytes), rounds=3)
                              for s in place.servers]  # fmt: skip
            else:
                contenders = [Contender(s.name, sending(place, s, children, pack_bytes)) for s in place.servers]
            found = interleaved(contenders, options.rounds)
            rows += _rows(f"send to {children} at once, CPU s per GB", found, "ted", "nginx", "s_per_gb", "1.3")
        found = interleaved([Contender(s.name, slowly(place, s)) for s in place.servers], min(options.rounds, 3))
        rows += _rows(f"{CHILDREN} slow children (128 KiB/s each), % of a core", found, "ted", "nginx", "percent", "")
        peak = peak_bytes(place.servers[0].pid) / 2**20
        rows.append((f"memory after all that, {CHILDREN} children, MiB", f"{peak:.0f}",
                     f"{peak_bytes(place.servers[1].pid) / 2**20:.0f}", "", "100"))  # fmt: skip
    client_size = (32 if options.quick else 512) * 1024 * 1024
    with directory() as root, site(root, client_size) as place:
        pack_bytes = place.pack.stat().st_size
        pair = [Contender("ted", receiving_ted(place, pack_bytes)),
                Contender("pycurl", receiving_pycurl(place, pack_bytes))]  # fmt: skip
        found = interleaved(pair, options.rounds)
        rows += _rows("receive, hash, store, CPU s per GB", found, "ted", "pycurl", "s_per_gb", "1.2")
    columns = ("what", "ted, median (worst)", "peer, median (worst)", "ratio", "reach")
    notes = [
        f"A pack of {size / 2**20:.0f} MiB of incompressible bytes, from page cache, in memory; client and server "
        "share the two cores. Peers: nginx (one worker, sendfile) as server, pycurl with SHA-256 as client.",
        f"The client row: a pack of {client_size / 2**20:.0f} MiB; ted's counts everything its agent does in a send: "
        "offer, catalog, journal, durability (0.1 s, whatever the size).",
    ]
    return Report("relay", "The cost of a relay", columns, rows, notes)


def _rows(what: str, found: object, ours: str, peer: str, key: str, reach: str) -> list[tuple[object, ...]]:
    from benchmarks.measure import Samples

    assert isinstance(found, Samples)
    mine, other = (spread(found.median(name, key), found.worst(name, key)) for name in (ours, peer))
    return [(what, mine, f"{peer} {other}", f"{found.ratio(ours, peer, key):.2f}", reach)]
