"""Other processes that make the small files of directories which are staged whole, so that every core works.

Rules:
 * A worker makes a new plain file, whole and with its attributes, or leaves nothing of it. What it could not make the
   transaction makes itself then, so that what is wrong is told as without workers.
 * What a worker writes was checked by its digest, and lies in a staging directory, reached without following a link:
   the target sees nothing of it before the transaction is committed.
 * Workers are forked, and only from a process of one thread: no lock can be held that nobody would ever let go. A
   process with more threads (the agent) does the work itself.
 * They have the transaction's lock and the distribution's with their parent, and die with it: whoever takes up what a
   crash left has these locks, so nobody writes there any more.
 * Who is done gets the next orders. Notes are made in the order of the orders, and what was noted between them keeps
   its place. Orders under way are bounded, and with their answers shorter than a socket's buffer: neither side waits
   for the other for ever, and memory is flat.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import select
import signal
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from typing import Any, NamedTuple, NoReturn, Protocol

import msgpack

from ted.content.manifest import Run
from ted.errors import InstallError, TedError
from ted.install.paths import Base, die_with, join, keep_freed_memory
from ted.install.trees import TreeWriter, pack_row

MAX_WORKERS = 4
_BATCH_FILES = 96
"""A batch ends with a frame, so that one worker inflates it, or at twice its size."""
_MAX_BATCH_BYTES = 32 << 10
"""A run more it may have, and an answer is shorter than what was ordered."""
_UNDER_WAY = 3
"""Batches that one worker has at most."""
_MAX_NOT_NOTED = 64
"""Batches, those that were made before their turn to be noted came among them."""
_MAX_WAITING = 8192
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MODE = 0o7777
_TRIES, _TRY_S = 50, 0.001

Noted = tuple[int, int, int, int]
"""File type, inode, size (bytes), modified (ns)."""
PlainRights = tuple[int, int | None, int | None]
"""Mode, and the numbers of owner and group: ``None`` leaves one as it is."""
Again = Callable[[list[int]], Iterator[tuple[bytes, Noted]]]


class Source(Protocol):
    """What the bytes of files come from."""

    def rest(self) -> None:
        """End the threads it has."""

    def read_piece(self, frame: bytes, offset: int, length: int, digest: bytes | None, /) -> bytes | memoryview:
        """Return the bytes of a file in one piece, checked, without a thread; raises ``RepositoryError``."""


def workers_possible(source: Source) -> int:
    """Return how many workers are worth it here: one a core, none where there is but one core or another thread."""
    source.rest()
    cores = len(os.sched_getaffinity(0))
    return min(cores, MAX_WORKERS) if cores > 1 and _is_single_threaded() else 0


def _is_single_threaded() -> bool:
    """Return whether this process has one thread only; one that ended a moment ago is waited for."""
    if threading.active_count() > 1:
        return False
    for _ in range(_TRIES):
        try:
            if len(os.listdir("/proc/self/task")) == 1:
                return True
        except OSError:
            return False
        time.sleep(_TRY_S)
    return False


class _Waiting(NamedTuple):
    """What will be noted of a directory: what was made here, when its turn comes, or what workers have made then."""

    act: int
    directory: bytes
    made: tuple[bytes, Noted] | None
    again: Again


@dataclass(slots=True)
class _Given:
    """A batch that a worker has; its answers, when they came."""

    answers: list[tuple[bytes, list[int]]] | None = None


@dataclass(slots=True)
class _Worker:
    pid: int
    connection: Connection
    under_way: deque[_Given] = field(default_factory=deque)


@dataclass(slots=True)
class Crew:
    """The workers of one transaction, for one staging directory.

    Args:
        staged: The staging directory.
        source: What gives a piece's bytes; asked in the workers.
        notes: Told, in order, of everything made.
    """

    staged: Base
    source: Source
    notes: TreeWriter
    _workers: list[_Worker] = field(default_factory=list)
    _answering: select.poll = field(default_factory=select.poll)
    _given: deque[_Given] = field(default_factory=deque)
    _batch: list[tuple[int, bytes, Run, Sequence[PlainRights]]] = field(default_factory=list)
    _batch_files: int = 0
    _batch_bytes: int = 0
    _waiting: deque[_Waiting] = field(default_factory=deque)

    def start(self) -> bool:
        """Fork the workers, as many as are worth it and the system has room for; return whether there are any."""
        wanted = workers_possible(self.source)
        # A signal that comes to a worker before it has its own ways would be obeyed as if it were the parent.
        held = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while len(self._workers) < wanted and self._fork(held):
                pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        if self._workers:
            gc.freeze()  # what is there is not looked through again and again while much comes and goes
        return bool(self._workers)

    def _fork(self, held: set[int]) -> bool:
        """Fork a worker, which lets the signals ``held`` stay blocked; return whether there was room for it."""
        parent = os.getpid()
        ours, theirs = Pipe()
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            return False
        if pid == 0:
            others = [ours, *(each.connection for each in self._workers)]
            _be_worker(parent, theirs, others, self.staged, self.source, held)
        theirs.close()
        self._workers.append(_Worker(pid, ours))
        self._answering.register(ours, select.POLLIN)
        return True

    def order(self, act: int, directory: bytes, run: Run, rights: Sequence[PlainRights], again: Again) -> None:
        """Have the files of a run made in one directory.

        Args:
            act: Of the directory that is staged whole.
            directory: Path below that.
            run: The files.
            rights: What they get for each of the run's rights.
            again: Makes here, by their places in the run, those that the worker could not make.

        Raises:
            TedError: What an earlier file could not be made for.
        """
        self._waiting.append(_Waiting(act, directory, None, again))
        if self._batch_files >= _BATCH_FILES or self._batch_bytes >= _MAX_BATCH_BYTES:
            goes_on = self._batch[-1][2].frame == run.frame and self._batch_bytes < _MAX_BATCH_BYTES
            if not goes_on or self._batch_files >= 2 * _BATCH_FILES:
                self._give()
        self._batch.append((act, directory, run, rights))
        self._batch_files += len(run.which)
        self._batch_bytes += len(run.rows)

    def noted(self, act: int, directory: bytes, name: bytes, noted: Noted) -> None:
        """Note what was made here, after all that was ordered before."""
        if not self._waiting:
            self.notes.note(act, directory, name, noted)
            return
        self._waiting.append(_Waiting(act, directory, (name, noted), _never))
        if len(self._waiting) >= _MAX_WAITING:
            self.finish()

    def finish(self) -> None:
        """Wait until all that was ordered is made and noted.

        Raises:
            TedError: As ``order``.
        """
        self._give()
        while self._given:
            self._take()

    def close(self) -> None:
        """End the workers, in the middle of whatever they do."""
        for worker in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(worker.pid, 0)
            worker.connection.close()
        if self._workers:
            gc.unfreeze()
        self._workers.clear()

    def _give(self) -> None:
        if not self._batch:
            return
        worker = self._least_busy()
        while len(self._given) >= _MAX_NOT_NOTED or len(worker.under_way) >= _UNDER_WAY:
            self._take()
            worker = self._least_busy()
        with _told_if_gone():
            worker.connection.send_bytes(msgpack.packb(self._batch))
        given = _Given()
        worker.under_way.append(given)
        self._given.append(given)
        self._batch.clear()
        self._batch_files = self._batch_bytes = 0

    def _least_busy(self) -> _Worker:
        return min(self._workers, key=lambda each: len(each.under_way))

    def _take(self) -> None:
        """Wait for the answers of whoever is done first, and note those whose turn it is."""
        ready = {fd for fd, _ in self._answering.poll()}
        for worker in self._workers:
            if worker.connection.fileno() in ready:
                with _told_if_gone():
                    answers = msgpack.unpackb(worker.connection.recv_bytes())
                worker.under_way.popleft().answers = answers
        while self._given and (made := self._given[0].answers) is not None:
            self._given.popleft()
            for row, failed in made:
                self._note_made_here()
                self._note_made(self._waiting.popleft(), row, failed)
            self._note_made_here()

    def _note_made_here(self) -> None:
        while self._waiting and (made := self._waiting[0].made) is not None:
            waiting = self._waiting.popleft()
            self.notes.note(waiting.act, waiting.directory, *made)

    def _note_made(self, waiting: _Waiting, row: bytes, failed: list[int]) -> None:
        if row:
            self.notes.add_row(waiting.act, row)
        if failed:
            for name, noted in waiting.again(failed):
                self.notes.note(waiting.act, waiting.directory, name, noted)


def _never(_failed: list[int]) -> Iterator[tuple[bytes, Noted]]:
    raise AssertionError


@contextlib.contextmanager
def _told_if_gone() -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise InstallError(
            "a process that wrote files for this extraction was ended",
            hint="by somebody, or by the system for want of memory; nothing was changed: extract again",
        ) from error


def _be_worker(
    parent: int, connection: Connection, others: list[Connection], staged: Base, source: Source, held: set[int]
) -> NoReturn:
    """Make what is ordered until nobody is there to order; never returns."""
    code = 1
    try:
        die_with(parent)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # from a terminal it comes to all: the parent ends its workers
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        for other in others:
            other.close()
        os.umask(0)
        keep_freed_memory()
        gc.disable()  # it would touch, and so copy, all that is shared with the parent; nothing here needs it
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                batch = msgpack.unpackb(connection.recv_bytes())
                connection.send_bytes(msgpack.packb([_make(staged, source, *order) for order in batch]))
        code = 0
    finally:
        os._exit(code)


def _make(
    staged: Base, source: Source, act: int, directory: bytes, fields: list[Any], rights: list[PlainRights]
) -> tuple[bytes, list[int]]:
    """Make the files of a run in a directory; return the note of them, and the places of those that could not be made.

    Nothing is left of these.
    """
    run = Run(*fields)
    try:
        at = staged.directory(join(b"%d" % act, directory))
    except (OSError, TedError):
        at = -1
    files = run.files()
    if files is None or at < 0:
        return b"", list(range(len(run.which)))
    made: list[Any] = []
    failed: list[int] = []
    for place, (name, mtime_ns, offset, length, digest) in enumerate(files):
        try:
            data = source.read_piece(run.frame, offset, length, digest)
            inode = _make_one(at, name, data, *rights[run.which[place]], mtime_ns)
        except (OSError, OverflowError, TedError):
            failed.append(place)
        else:
            made += (name, stat.S_IFREG, inode, length, mtime_ns)
    return pack_row(act, directory, made) if made else b"", failed


def _make_one(
    at: int, name: bytes, data: bytes | memoryview, mode: int, owner: int | None, group: int | None, mtime_ns: int
) -> int:
    """Make a file and return its inode.

    Raises:
        OSError: It could not be made, and nothing is left of it. So with ``OverflowError``.
    """
    fd = os.open(name, _NEW_FILE, mode, dir_fd=at)
    try:
        if os.write(fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        status = os.fstat(fd)
        if owner not in (None, status.st_uid) or group not in (None, status.st_gid):
            os.chown(fd, -1 if owner is None else owner, -1 if group is None else group)
        if status.st_mode & _MODE != mode:
            os.fchmod(fd, mode)
        os.utime(fd, ns=(mtime_ns, mtime_ns))
        return status.st_ino
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=at)
        raise
    finally:
        os.close(fd)
