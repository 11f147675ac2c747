"""A local copy of remote files that stays from build to build: the part of fetching that no protocol changes.

Rules:
 * What did not change is not fetched again: at best its listing says so, else the source is asked ("only if changed").
 * A listing is believed only as far as it can tell: a file so new that another change could bear the same time is asked
   for again (``Remote.settled``).
 * A change is written beside, verified (size, digest), gets its name by a rename, and then its row (``index``).
 * A cut download goes on where it stopped, in this build or a later one, only if the source says that it is the same
   version; two versions are never joined.
 * What vanished from the source is removed, once everything else is here; so is what no row describes. Nothing listed
   at all is an error.
 * Names, sizes and numbers are a stranger's: names stay inside, sizes are bounded before they are believed.
 * The mirror depends on the source alone: files have the source's times, directories their newest file's; modes are
   0755 of directories, and of files what the source says, or 0644.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

from ted.errors import BuildError, EmptySourceError, TransferError
from ted_plugins.sources.download import Desk, Download, Fetched, Known, Partial, Progress, Remote, Task, Totals, tidy
from ted_plugins.sources.index import Index, intact
from ted_plugins.sources.rate import Rate
from ted_plugins.sources.tries import pause_s
from ted_plugins.sources.turns import Lines, Pause, Steps, in_turns
from ted_plugins.sources.workers import Stopped, Workers, one_by_one

__all__ = [
    "Download", "Fetch", "FetchInSteps", "Known", "Limits", "Mirror", "Partial", "Progress", "Refreshed", "Remote",
    "SharedSource", "Source", "ThreadedSource",
]  # fmt: skip

MAX_PATH_BYTES = 3072
MAX_NAME_BYTES = 255
MAX_DEPTH = 100

_BATCH = 256
_BAD = re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)|\0")


Fetch = Callable[[Remote, Download], None]
"""Fetches one file: calls ``unchanged()`` of the download, or ``begin()`` and then ``write()`` for each piece."""

FetchInSteps = Callable[[Remote, Download], Steps[None]]
"""Does so in steps, which yield what there is to wait for."""


class Listing(Protocol):
    """What every source has."""

    @property
    def name(self) -> str:
        """What to call it in messages; no secrets."""

    def listing(self) -> Iterator[Remote]:
        """Yield every file; called once for each refresh, and not while anything else of this source runs.

        Raises:
            EmptySourceError: The source is gone.
            TransferError: It cannot be listed now.
        """


class ThreadedSource(Listing, Protocol):
    """A source for as many threads as there are connections."""

    def connect(self) -> AbstractContextManager[Fetch]:
        """Return what fetches one file after the other for one thread, on a connection of its own.

        It calls ``download.unchanged()``; or ``download.begin()`` and then ``download.write()`` for each piece.
        """


@runtime_checkable
class SharedSource(Listing, Protocol):
    """A source whose connections one thread waits for together: of less cost where files are small."""

    def connect_all(self, count: int) -> AbstractContextManager[Lines[FetchInSteps]]:
        """Return so many connections, each as what fetches one file after the other on it."""


Source = ThreadedSource | SharedSource
"""Where files come from. Errors: ``TransferError`` is tried again, every other one ends the build."""


@dataclass(frozen=True)
class Limits:
    """What a source may have at most."""

    files: int = 1_000_000
    total_bytes: int = 1 << 40


@dataclass(frozen=True)
class Refreshed:
    """What a refresh did: files with new content, files as they were, files removed, bytes that came."""

    fetched: int
    unchanged: int
    removed: int
    bytes: int


class Mirror:
    """The local copy of one source.

    Args:
        scratch: The mirror's own directory; made if missing. What it holds may be removed at any time between builds.
        source: Where the files come from.
        log: Told what is worth a person's attention.
        rate: Shared by all connections of a build.
        parallel: Connections at most.
        retries: How often a file is tried again after a ``TransferError``.
        limits: What the source may have at most.
        progress: Told of bytes as they come.
        allow_empty: Nothing listed is no error.
        wait: Waits so many seconds before another try; ``None``: until something else ends the refresh at most.
    """

    def __init__(
        self,
        scratch: Path,
        source: Source,
        log: logging.Logger,
        *,
        rate: Rate | None = None,
        parallel: int = 4,
        retries: int = 3,
        limits: Limits = Limits(),
        progress: Progress | None = None,
        allow_empty: bool = False,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        self.files = scratch / "files"
        """The tree: what to hand to ``add_tree``."""
        self._parts, self._index = scratch / "parts", scratch / "index.db"
        self._source, self._log, self._progress = source, log, progress
        self._rate, self._parallel, self._retries = rate or Rate(None), parallel, retries
        self._limits, self._allow_empty, self._wait = limits, allow_empty, wait

    def refresh(self) -> Refreshed:
        """Make the mirror hold what the source has.

        Raises:
            EmptySourceError: The source has nothing, or is gone.
            BuildError: It cannot be mirrored: a hostile name, too much, content that is not as promised.
            TransferError: A file could not be fetched, however often it was tried.
        """
        for directory in (self.files, self._parts):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        desk = Desk(
            self._source.name, self.files, self._parts, self._rate, Totals(self._limits.total_bytes), self._progress,
            goes_on=tidy(self._parts),
        )  # fmt: skip
        with Index(self._index) as index:
            self._compare(index, desk)
            removed = self._remove_vanished(index, desk)
            if _tidy(str(self.files)) != index.count():
                _remove_unknown(self.files, index)
                _tidy(str(self.files))
        shutil.rmtree(self._parts, ignore_errors=True)
        return Refreshed(desk.totals.fetched, desk.totals.unchanged, removed, desk.totals.come_bytes)

    # -- deciding

    def _compare(self, index: Index, desk: Desk) -> None:
        workers = self._workers(desk)
        try:
            for batch in self._listed(index, desk):
                for task in self._tasks(index, desk, batch):
                    workers.put(task)
                self._note(index, desk, workers.done())
            if (path := index.conflict()) is not None:
                raise BuildError(f"{desk.name}: lists {path!r} as a file and as a directory")
            for done in workers.rest():
                self._note(index, desk, done)
        finally:
            self._note(index, desk, workers.close())

    def _listed(self, index: Index, desk: Desk) -> Iterator[list[Remote]]:
        count, listing = 0, self._source.listing()
        while batch := list(islice(listing, _BATCH)):
            for remote in batch:
                _check_path(remote.path, desk.name)
            noted = index.list(remote.path for remote in batch)
            fresh: dict[str, Remote] = {}
            for remote in batch:
                if remote.path not in noted and fresh.setdefault(remote.path, remote) is remote:
                    desk.totals.expect(remote.size_bytes)
            count += len(fresh)
            if count > self._limits.files:
                raise BuildError(f"{desk.name}: more than {self._limits.files} files",
                                 hint="narrow the source down, or raise max_files")  # fmt: skip
            yield list(fresh.values())
        if not count and not self._allow_empty:
            raise EmptySourceError(
                f"{desk.name}: there is no file", hint="is the address right? allow_empty: true builds it all the same"
            )

    def _tasks(self, index: Index, desk: Desk, batch: list[Remote]) -> Iterator[Task]:
        """Yield what must be fetched, or asked for."""
        rows = index.rows([remote.path for remote in batch])
        for remote in batch:
            row = rows.get(remote.path)
            held = intact(desk.place(remote.path), row) if row is not None else None
            if held is None:
                yield Task(remote, None)
                continue
            if held is not row:
                index.put([held])
            if held.settled and held.listed == remote.listed:
                desk.totals.settle(held.size_bytes)
                desk.totals.unchanged += 1
            elif remote.digest is not None:
                # A server that says "not changed" could not know what was promised.
                yield Task(remote, None)
            else:
                yield Task(remote, held)

    def _note(self, index: Index, desk: Desk, done: list[Fetched]) -> None:
        index.put([each.row for each in done])
        for each in done:
            desk.totals.fetched += each.changed
            desk.totals.unchanged += not each.changed

    def _remove_vanished(self, index: Index, desk: Desk) -> int:
        count = 0
        for path in index.vanished():
            with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
                os.unlink(desk.place(path))
            above = os.path.dirname(path)
            with suppress(OSError):
                while above:
                    os.rmdir(desk.place(above))
                    above = os.path.dirname(above)
            count += 1
        index.forget_vanished()
        return count

    # -- doing, in the threads of the workers

    def _workers(self, desk: Desk) -> Workers[Task, Fetched]:
        source = self._source
        if isinstance(source, SharedSource):
            share = in_turns(partial(source.connect_all, self._parallel), partial(self._fetch, desk))
            return Workers(share, 1, desk.stop)

        def work(fetch: Fetch, task: Task) -> Fetched:
            return _at_once(self._fetch(desk, _in_one_step(fetch), task), desk)

        return Workers(one_by_one(source.connect, work), self._parallel, desk.stop)

    def _fetch(self, desk: Desk, fetch: FetchInSteps, task: Task) -> Steps[Fetched]:
        attempt = 0
        while True:
            download = Download(task, desk, again=attempt > 0)
            try:
                yield from fetch(task.remote, download)
                return download.finish()
            except TransferError as error:
                wait_s = pause_s(error, attempt, self._retries)
                self._log.info("%s: trying again: %s", desk.name, error.message)
            finally:
                download.fail()
            if self._wait is not None:
                self._wait(wait_s)
            else:
                yield Pause(wait_s)
            attempt += 1


def _in_one_step(fetch: Fetch) -> FetchInSteps:
    def steps(remote: Remote, download: Download) -> Steps[None]:
        fetch(remote, download)
        yield from ()

    return steps


def _at_once(steps: Steps[Fetched], desk: Desk) -> Fetched:
    """Go through the steps of one file in a thread that has nothing else to do."""
    while True:
        try:
            pause: Pause = next(steps)
        except StopIteration as done:
            fetched: Fetched = done.value
            return fetched
        desk.stop.wait(pause.wait_s)
        if desk.stop.is_set():
            steps.close()
            raise Stopped


# -- paths


def _check_path(path: str, source: str) -> None:
    """Refuse a name that would leave the mirror, or that no file system takes.

    Raises:
        BuildError: It is such a name.
    """
    short = len(path) <= MAX_NAME_BYTES // 4  # no character takes more than four bytes
    bad = _BAD.search(path) is not None or path.count("/") >= MAX_DEPTH
    if not short and not bad:
        raw = os.fsencode(path)
        bad = len(raw) > MAX_PATH_BYTES or any(len(part) > MAX_NAME_BYTES for part in raw.split(b"/"))
    if bad:
        shown = path if len(path) <= 200 else f"{path[:200]}..."
        raise BuildError(f"{source}: lists a name that cannot be taken: {shown!r}",
                         hint="leave it out with `exclude`, or have it renamed at the source")  # fmt: skip


def _tidy(top: str) -> int:
    """Give each directory its mode and its newest file's time, the deepest first; return how many files there are.

    A directory that holds nothing goes: the source has none such.
    """
    count = 0
    for path, directories, _, fd in os.fwalk(top, topdown=False):
        for name in directories:
            with suppress(OSError):
                os.rmdir(name, dir_fd=fd)
        newest = 0
        with os.scandir(fd) as found:
            for each in found:
                newest = max(newest, each.stat(follow_symlinks=False).st_mtime_ns)
                count += not each.is_dir(follow_symlinks=False)
        status = os.fstat(fd)
        if stat.S_IMODE(status.st_mode) != 0o755:
            os.chmod(path, 0o755)  # noqa: S103 -- the mirror itself lies in a directory of 0700
        if status.st_mtime_ns != newest:
            os.utime(fd, ns=(newest, newest))
    return count


def _remove_unknown(files: Path, index: Index) -> None:
    """Remove files without a row, which a kill or a lost index left: what is no more in the source would stay."""
    for directory, _, names in os.walk(files):
        for name in names:
            path = os.path.join(directory, name)
            if not index.rows([os.path.relpath(path, files)]):
                os.unlink(path)
