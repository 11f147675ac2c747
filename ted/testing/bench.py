"""A playground: a few directories in which one sample of a type lives, all of them watched.

In ``root`` lie ``sources`` (the Distributor's disk), ``target`` (the Subscriber's), ``elsewhere`` (what belongs to
others, and must stay), ``home``, ``tmp`` and ``cwd`` of the process. Beside it, not watched: ``aside``, where services
of the sample may write, and the machines' own directories.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ted.testing.looks import Snapshot, snapshot

T = TypeVar("T")

_OLD_NS = 1_500_000_000 * 10**9
_AN_HOUR_NS = 3600 * 10**9
_ROOM_BYTES = 1 << 30
_PIECE = 1 << 20


class Bench:
    """What ``ted_sample`` makes its sample on. Every check gets a new one.

    .. versionadded:: 0.1
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.root = base / "play"
        """Everything below it is watched."""
        self.sources = self.root / "sources"
        """Where sources go: the Distributor's disk. Not there when a revision is extracted."""
        self.target = self.root / "target"
        """Where an extraction goes: the Subscriber's disk. A file of somebody else's lies there."""
        self.aside = base / "aside"
        """Not watched: what services of the sample write."""
        self.secret = f"ted-canary-{secrets.token_hex(12)}"
        """What secret options must hold; it is looked for everywhere."""
        self._elsewhere = self.root / "elsewhere"
        self._stack = contextlib.ExitStack()
        self._aged = 0
        self.began_ns = time.time_ns() - 10**9
        for each in (self.sources, self.target, self.aside, self._elsewhere / "theirs", self.root / "home",
                     self.root / "tmp", self.root / "cwd"):  # fmt: skip
            each.mkdir(parents=True)
        self.write(self.target / "of-somebody-else.txt", b"not ted's\n", mode=0o604)
        self.write(self._elsewhere / "theirs" / "file.txt", b"not ted's\n")
        (self._elsewhere / "link").symlink_to("theirs")

    # -- for samples

    def write(self, path: Path, data: bytes, *, mode: int = 0o644) -> Path:
        """Write a file and the directories on the way to it; return its path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(mode)
        return path

    def fill(self, path: Path, size: int) -> Path:
        """Write a file of so many bytes that no compression makes less of, always the same ones; return its path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            for number in range(-(-size // _PIECE)):
                piece = hashlib.shake_128(b"ted %d" % number).digest(min(_PIECE, size - number * _PIECE))
                file.write(piece)
        return path

    def enter(self, context: contextlib.AbstractContextManager[T]) -> T:
        """Enter a context manager (a service, say) that is left when the check is over."""
        return self._stack.enter_context(context)

    def on_end(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call something when the check is over: stop a service."""
        self._stack.callback(call, *arguments)

    def free_port(self) -> int:
        """Return a port of the loopback address that nobody listens on."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    # -- for the suite

    def settle(self, *, everything: bool = False) -> None:
        """Give what was written to the sources (or anywhere) lately times of long ago, later at each call.

        So nothing depends on how fast the test ran, and what changed has another time, whatever its resolution.
        """
        moment_ns = _OLD_NS + self._aged * _AN_HOUR_NS
        self._aged += 1
        for directory, names, files in os.walk(self.root if everything else self.sources, topdown=False):
            for path in [*(os.path.join(directory, name) for name in [*files, *names]), directory]:
                with contextlib.suppress(OSError):
                    if os.lstat(path).st_mtime_ns >= self.began_ns:
                        os.utime(path, ns=(moment_ns, moment_ns), follow_symlinks=False)

    @contextlib.contextmanager
    def lived_in(self) -> Iterator[None]:
        """Let this process live in the playground meanwhile: home, temporary and current directory."""
        before, here, temporary = dict(os.environ), os.getcwd(), tempfile.tempdir
        os.environ.update(HOME=str(self.root / "home"), TMPDIR=str(self.root / "tmp"))
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
            os.environ.pop(name, None)
        tempfile.tempdir = None
        os.chdir(self.root / "cwd")
        try:
            yield
        finally:
            os.chdir(here)
            os.environ.clear()
            os.environ.update(before)
            tempfile.tempdir = temporary

    @contextlib.contextmanager
    def sources_away(self) -> Iterator[None]:
        """Have no sources meanwhile: a Subscriber is another machine."""
        away, moment_ns = self.base / "away", self.root.stat().st_mtime_ns
        self.sources.rename(away)
        os.utime(self.root, ns=(moment_ns, moment_ns))
        try:
            yield
        finally:
            moment_ns = self.root.stat().st_mtime_ns
            away.rename(self.sources)
            os.utime(self.root, ns=(moment_ns, moment_ns))

    def elsewhere(self, name: str) -> Path:
        """Return a path of that name among what belongs to others."""
        return self._elsewhere / name

    def look(self) -> Snapshot:
        """Return everything in the playground."""
        return snapshot(self.root)

    def close(self) -> None:
        """Stop what the sample started, and remove the playground."""
        try:
            self._stack.close()
        finally:
            shutil.rmtree(self.base, ignore_errors=True)


@contextlib.contextmanager
def new_bench() -> Iterator[Bench]:
    """Yield a bench in a directory of its own, in memory where that serves: fsync costs nothing there."""
    base = Path(tempfile.mkdtemp(prefix=f"ted-bench-{os.getpid()}-", dir=_memory()))
    bench = Bench(base)
    try:
        yield bench
    finally:
        bench.close()


def _memory() -> str | None:
    place = "/dev/shm"  # noqa: S108 -- a directory of its own is made there
    try:
        held = os.statvfs(place)
        if held.f_flag & os.ST_NOEXEC or held.f_bavail * held.f_frsize < _ROOM_BYTES:
            return None
        with tempfile.NamedTemporaryFile(dir=place) as probe:
            os.setxattr(probe.name, "user.ted", b"x")
    except OSError:
        return None
    return place
