"""Threads that work through tasks; and one that runs ahead of a reader, or behind a writer.

Rules:
 * A thread, and its connection, is made only when there is a task for it.
 * The first error stops everything, and is what the caller gets; what was done before it is not lost.
 * Tasks that wait are bounded, so whoever hands them in waits too.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, suppress
from typing import Generic, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Connection = TypeVar("Connection")

_MOST_WAITING = 256
_LOOK_AGAIN_S = 0.01


class Stopped(Exception):  # noqa: N818 -- no error: somebody else's is told
    """The work was called off."""


class Workers(Generic[Task, Result]):
    """Up to ``most`` threads.

    Args:
        loop: What each does: it takes tasks (``take``) and gives results (``give``) until there are no more.
        most: Threads at most.
        stop: Set when the work is called off; ``loop`` then raises ``Stopped`` soon.
    """

    def __init__(self, loop: Callable[[Workers[Task, Result]], None], most: int, stop: threading.Event) -> None:
        self.stop = stop
        self._loop, self._most = loop, most
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    # -- for whoever has the tasks

    def put(self, task: Task) -> None:
        """Hand a task in; raises the first error of those before it."""
        if len(self._threads) < self._most:
            thread = threading.Thread(target=self._run, name=f"fetch-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._put(task)

    def done(self) -> list[Result]:
        """Return what was done since the last call; raises the first error."""
        self._raise()
        return self._taken()

    def rest(self) -> Iterator[list[Result]]:
        """Yield what is done until everything is; raises the first error."""
        for _ in self._threads:
            self._put(None)
        for thread in self._threads:
            while thread.is_alive():
                thread.join(0.5)
                yield self.done()
        yield self.done()

    def close(self) -> list[Result]:
        """Call the work off, wait for the threads, and return what else was done."""
        self.stop.set()
        for thread in self._threads:
            thread.join()
        return self._taken()

    # -- for the loop of a thread

    def take(self, wait_s: float = 0.5) -> Task | None:
        """Return the next task; ``None`` when there are no more.

        Raises:
            Empty: There is none now, and none came within ``wait_s``.
            Stopped: The work was called off.
        """
        if self.stop.is_set():
            raise Stopped
        return self._tasks.get(timeout=wait_s) if wait_s else self._tasks.get_nowait()

    def give(self, result: Result) -> None:
        """Hand out what came of a task."""
        self._results.put(result)

    def _taken(self) -> list[Result]:
        found = []
        while not self._results.empty():
            found.append(self._results.get())
        return found

    def _put(self, task: Task | None) -> None:
        self._raise()
        while self._tasks.qsize() >= _MOST_WAITING:
            self.stop.wait(_LOOK_AGAIN_S)
            self._raise()
        self._tasks.put(task)

    def _raise(self) -> None:
        if self._errors:
            raise self._errors[0]

    def _run(self) -> None:
        try:
            self._loop(self)
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 -- handed to whoever waits
            self._errors.append(error)
            self.stop.set()


def one_by_one(
    connect: Callable[[], AbstractContextManager[Connection]], work: Callable[[Connection, Task], Result]
) -> Callable[[Workers[Task, Result]], None]:
    """Return the loop of threads that do one task after the other, each thread on a connection of its own.

    Args:
        connect: Gives a thread its connection.
        work: Does one task on a connection.
    """

    def loop(workers: Workers[Task, Result]) -> None:
        with connect() as connection:
            while True:
                try:
                    task = workers.take()
                except queue.Empty:
                    continue
                if task is None:
                    return
                workers.give(work(connection, task))

    return loop


def ahead(pieces: Iterator[bytes], leave: Callable[[], object], most: int = 4) -> Generator[bytes, None, None]:
    """Yield what ``pieces`` brings, which a thread of its own fetches while the caller works on what came before.

    Args:
        pieces: What to go through.
        leave: Called when the caller wants no more: makes ``pieces`` end soon, with an error.
        most: So many pieces are held at most.
    """
    ready: queue.Queue[bytes | BaseException | None] = queue.Queue(most)
    wanted = threading.Event()
    wanted.set()

    def run() -> None:
        end: BaseException | None = None
        try:
            for piece in pieces:
                ready.put(piece)
                if not wanted.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 -- handed to the caller
            end = error
        ready.put(end)

    thread = threading.Thread(target=run, name="fetch-ahead", daemon=True)
    thread.start()
    try:
        while (piece := ready.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
        thread.join()  # it is done; were it told to leave now, the caller's connection would be lost
    finally:
        wanted.clear()
        if thread.is_alive():
            thread.join(0.1)
        if thread.is_alive():
            leave()
        while thread.is_alive():
            with suppress(queue.Empty):
                ready.get_nowait()
            thread.join(0.01)


class Behind:
    """Writes what comes in a thread of its own, while the caller fetches what comes next.

    Args:
        write: Is called in that thread, for one piece after the other.
        most: So many pieces are held at most.
    """

    def __init__(self, write: Callable[[bytes], object], most: int = 4) -> None:
        self._write = write
        self._pieces: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(most)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fetch-behind", daemon=True)
        self._thread.start()

    def put(self, pieces: list[bytes]) -> None:
        """Hand over what shall be written at once; waits for room, and raises what writing raised before."""
        self._room.acquire()
        if self._error is not None:
            raise self._error
        self._pieces.put(pieces)

    def close(self) -> None:
        """Wait until everything is written; raises what writing raised."""
        self._pieces.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while (pieces := self._pieces.get()) is not None:
            if self._error is None:
                try:
                    self._write(b"".join(pieces))
                except BaseException as error:  # noqa: BLE001 -- handed to the caller
                    self._error = error
            self._room.release()
