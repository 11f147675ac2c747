"""How fast an FTP server's files are here, and what it costs to find that nothing changed: beside lftp, on loopback."""

from __future__ import annotations

import logging
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace

from benchmarks.fetching import Server, anew_and_again, measured, server
from benchmarks.measure import Contender, Options, Sample, run_command, run_function
from benchmarks.report import Report
from ted import plugins
from ted_plugins import ftp

TED, LFTP = "ted, ftp", "lftp mirror"
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
    return Report(
        "fetch_ftp", "Fetching by FTP",
        ["what", "by", "s, median (worst)", "CPU s", "peak MB", "speed to lftp's"],
        measured(options, _vsftpd, _contenders, LFTP),
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

    return [*anew_and_again(root, "ted", TED, ted), *anew_and_again(root, "lftp", LFTP, lftp)]


def _vsftpd(root: Path) -> AbstractContextManager[Server]:
    (root / "empty").mkdir()

    def words(port: int) -> list[str]:
        conf = root / "vsftpd.conf"
        conf.write_text(_CONF.format(root=root, port=port))
        return [shutil.which("vsftpd") or "/usr/sbin/vsftpd", str(conf)]

    return server(words)
