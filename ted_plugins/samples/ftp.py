"""A sample of the FTP type: a login with a password at an FTP server on the loopback address, in a process of its own.

Run as a program this module is that server; it is told on standard input what to serve, and to whom.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from ted.testing import Bench, Sample, Variant

_USER = "shop"


def sample(bench: Bench) -> Sample:
    """Return a small distribution of two directories of a server."""
    app = bench.sources / "app"
    bench.write(app / "bin" / "tool", b"#!/bin/sh\necho tool\n", mode=0o755)
    bench.write(app / "readme.txt", b"of the first\r\nrevision\r\n")
    bench.write(app / "stays.txt", b"the same in every revision\n", mode=0o640)
    bench.write(app / "rest.tmp", b"left over\n")
    bench.write(bench.sources / "etc" / "app.conf", b"setting = 1\n")
    bench.write(bench.sources / "other" / "other.txt", b"another source\n")
    port = _serve(bench)
    options: dict[str, Any] = {
        "servers": {"here": {"url": f"ftp://127.0.0.1:{port}", "username": _USER, "password": bench.secret}},
        "targets": [
            {"path": "%DEST_VOLUME%/app", "from": ["here:/app/"], "synchronize": True},
            {"path": f"{bench.target}/etc", "from": ["here:/etc/app.conf"], "mode": "0640"},
        ],
        "fetch_retries": 0,
    }

    def change() -> None:
        (app / "readme.txt").write_bytes(b"of the second\r\nrevision\r\n")
        (app / "rest.tmp").unlink()
        bench.write(app / "new" / "file.txt", b"new\n")

    return Sample(
        options, change, [bench.target / "app", bench.target / "etc"], variants=_variants(bench),
        inert=_INERT, grow=lambda size: bench.fill(app / "large.bin", size),
    )  # fmt: skip


_INERT = {
    "servers.password_file": "the sample has the password itself",
    "servers.password_env": "the sample has the password itself",
    "servers.passive": "shows on the line only: who connects to whom",
    "servers.ca_file": "for servers with TLS",
    "servers.key_file": "for servers with SSH",
    "servers.known_hosts": "for servers with SSH",
    "servers.ssh_config": "for servers with SSH",
    "targets.follow_links": "this server shows no links",
    "fetch_rate": "shows only in time",
    "parallel": "shows only in time",
    "timeout": "shows only in time",
    "fetch_retries": "shows only where a transfer is cut",
    "retries": "shows only in time: how often a locked file is tried",
    "on_locked": "shows only where another process holds a file of the target",
}


def _variants(bench: Bench) -> list[Variant]:
    target, app = bench.target / "app", bench.sources / "app"

    def foreign() -> None:
        bench.write(target / "readme.txt", b"somebody else's, and newer\n")

    def in_the_way() -> None:
        bench.write(bench.target / "etc" / "app.conf" / "theirs.txt", b"not ted's\n")

    def to_be_removed() -> None:
        bench.write(bench.target / "etc" / "old.conf", b"old\n")

    def a_stranger() -> None:
        bench.write(target / "stranger.txt", b"somebody else's\n")

    def nothing_there() -> None:
        for directory, _, names in os.walk(app):
            for name in names:
                os.unlink(os.path.join(directory, name))

    owners: list[Any] = ["daemon", 1] if os.geteuid() == 0 else []
    return [
        Variant("servers.here.url", "ftp://127.0.0.1:1"),
        Variant("servers.here.username", "nobody-we-know"),
        Variant("servers.here.password", "not-the-secret"),
        Variant("servers.here.proxy", "http://127.0.0.1:1"),
        Variant("targets.0.path", f"{bench.target}/another"),
        Variant("targets.0.from", ["here:/other/"]),
        Variant("targets.0.binary", value=False),
        Variant("targets.0.exclude", ["*.tmp"]),
        Variant("targets.0.synchronize", value=False, given=a_stranger),
        Variant("targets.1.mode", "0600"),
        Variant("targets.1.remove", ["old.conf"], given=to_be_removed),
        Variant("overwrite", "never", given=foreign),
        Variant("overwrite", "newer", given=foreign),
        Variant("on_error", "continue", given=in_the_way),
        Variant("allow_empty", value=True, sources=nothing_there),
        Variant("verify", value=True),
        Variant("max_files", 1),
        Variant("max_bytes", 10),
        *(Variant(f"targets.0.{each}", value) for each in ("owner", "group") for value in owners),
    ]


def _serve(bench: Bench) -> int:
    """Start the server, and return its port."""
    told = {"files": str(bench.sources), "user": _USER, "password": bench.secret}
    server = subprocess.Popen(
        [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", start_new_session=True
    )
    bench.on_end(_end, server)
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(told).encode())
    server.stdin.close()
    line = server.stdout.readline()
    if not line:
        raise RuntimeError("the FTP server of the sample did not start: is pyftpdlib installed? pip install 'ted[dev]'")
    return int(line)


def _end(server: subprocess.Popen[bytes]) -> None:
    server.kill()
    server.wait()
    assert server.stdout is not None
    server.stdout.close()


def _main() -> None:
    import logging

    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import FTPServer

    told = json.load(sys.stdin)
    logging.basicConfig(level=logging.ERROR)
    authorizer = DummyAuthorizer()
    authorizer.add_user(told["user"], told["password"], told["files"], perm="elr")
    handler = type("Handler", (FTPHandler,), {"authorizer": authorizer, "auth_failed_timeout": 0})
    server = FTPServer(("127.0.0.1", 0), handler)
    sys.stdout.write(f"{server.address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    _main()
