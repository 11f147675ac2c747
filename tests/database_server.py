"""A real PostgreSQL server of the tests' own, on a socket in a directory of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import mkdtemp


def _program(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    if not found and (elsewhere := shutil.which(name)):
        found = [Path(elsewhere)]
    assert found, f"{name} is not here: install Debian's postgresql (scripts/test-packages)"
    return str(found[-1])


@contextmanager
def postgresql() -> Iterator[str]:
    """Yield the URL of a server; it ends, and its files go, with the context."""
    home = Path(mkdtemp(prefix="ted-pg-"))  # a socket's path has at most 107 bytes
    data = home / "data"
    # the server refuses to run as root
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(home, "postgres", "postgres")
    run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL, timeout=100, cwd=home)
    try:
        run([*as_user, _program("initdb"), "-D", data, "-A", "trust", "-U", "ted", "-N"])
        options = f"-F -c listen_addresses='' -c unix_socket_directories='{home}'"
        control = [*as_user, _program("pg_ctl"), "-D", data, "-l", home / "log", "-w"]
        run([*control, "-o", options, "start"])
        try:
            yield f"postgresql://ted@/postgres?host={home}"
        finally:
            run([*control, "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(home, ignore_errors=True)
