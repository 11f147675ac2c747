"""Threads that do the same thing to one task after the other, each on a connection of its own.

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
        connect: Gives a thread its connection.
        work: Does one task on a connection.
        most: Threads at most.
        stop: Set when the work is called off; ``work`` then raises ``Stopped`` soon.
    """

    def __init__(
        self,
        connect: Callable[[], AbstractContextManager[Connection]],
        work: Callable[[Connection, Task], Result],
        most: int,
        stop: threading.Event,
    ) -> None:
        self._run_with: Callable[[], None] = lambda: self._run(connect, work)
        self._most, self._stop = most, stop
        self._tasks: queue.SimpleQueue[Task | None] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[Result] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []

    def put(self, task: Task) -> None:
        """Hand a task in; raises the first error of those before it."""
        if len(self._threads) < self._most:
            thread = threading.Thread(target=self._run_with, name=f"fetch-{len(self._threads)}", daemon=True)
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
        self._stop.set()
        for thread in self._threads:
            thread.join()
        return self._taken()

    def _taken(self) -> list[Result]:
        found = []
        while not self._results.empty():
            found.append(self._results.get())
        return found

    def _put(self, task: Task | None) -> None:
        self._raise()
        while self._tasks.qsize() >= _MOST_WAITING:
            self._stop.wait(_LOOK_AGAIN_S)
            self._raise()
        self._tasks.put(task)

    def _raise(self) -> None:
        if self._errors:
            raise self._errors[0]

    def _run(
        self, connect: Callable[[], AbstractContextManager[Connection]], work: Callable[[Connection, Task], Result]
    ) -> None:
        try:
            with connect() as connection:
                while (task := self._next()) is not None:
                    self._results.put(work(connection, task))
        except Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 -- handed to whoever waits
            self._errors.append(error)
            self._stop.set()

    def _next(self) -> Task | None:
        while not self._stop.is_set():
            try:
                return self._tasks.get(timeout=0.5)
            except queue.Empty:
                continue
        return None


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
