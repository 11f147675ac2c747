"""One thread that does several tasks in turns: each is a generator that says what it waits for.

Rules:
 * A thread per connection would stand in line for the interpreter at each piece of each file; one thread, which waits
   for all connections at once, does the same work in less time.
 * A task that fails ends them all; each is closed, so that what came so far can be gone on with.
 * Nothing waits for long without looking whether the work was called off.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from ted_plugins.sources.workers import Result, Stopped, Task, Workers

Line = TypeVar("Line")
Line_co = TypeVar("Line_co", covariant=True)
T = TypeVar("T")

_TURN_S = 0.2
_LOOK_FOR_TASKS_S = 0.02


class Pause(NamedTuple):
    """What a task says to wait so long."""

    wait_s: float


Steps = Generator[Any, Any, T]
"""A task on its way: it yields what it waits for (a ``Pause``, or what ``Lines.start`` takes), and is sent how that
ended."""


class Lines(Protocol[Line_co]):
    """Connections that one thread can wait for together."""

    @property
    def lines(self) -> Sequence[Line_co]:
        """What tasks work on, one at a time each."""

    def start(self, what: Any) -> None:
        """Start what a task waits for."""

    def wait(self, most_s: float) -> Iterable[tuple[Any, Any]]:
        """Wait until something ended; return all that did, each with what its task is to be sent."""


def in_turns(
    connect: Callable[[], AbstractContextManager[Lines[Line]]], work: Callable[[Line, Task], Steps[Result]]
) -> Callable[[Workers[Task, Result]], None]:
    """Return the loop of a thread that does as many tasks at a time as it has lines.

    Args:
        connect: Gives the lines.
        work: Begins one task on a line.
    """

    def loop(workers: Workers[Task, Result]) -> None:
        with connect() as lines:
            _Turns(lines, work, workers).run()

    return loop


class _Turn(NamedTuple, Generic[Line, Result]):
    line: Line
    steps: Steps[Result]


class _Turns(Generic[Line, Task, Result]):
    def __init__(
        self, lines: Lines[Line], work: Callable[[Line, Task], Steps[Result]], workers: Workers[Task, Result]
    ) -> None:
        self._lines, self._work, self._workers = lines, work, workers
        self._idle = list(lines.lines)
        self._waiting: dict[Any, _Turn[Line, Result]] = {}
        self._resting: list[tuple[float, _Turn[Line, Result]]] = []
        self._more = True

    def run(self) -> None:
        try:
            while self._more or self._waiting or self._resting:
                self._begin()
                self._wake()
                if self._waiting:
                    for what, how in self._lines.wait(_LOOK_FOR_TASKS_S if self._idle and self._more else _TURN_S):
                        self._go_on(self._waiting.pop(what), how)
                elif self._resting:
                    time.sleep(_LOOK_FOR_TASKS_S)
                if self._workers.stop.is_set():
                    raise Stopped
        finally:
            for turn in (*self._waiting.values(), *(turn for _, turn in self._resting)):
                turn.steps.close()

    def _begin(self) -> None:
        """Begin as many tasks as there are lines for."""
        while self._more and self._idle:
            busy = self._waiting or self._resting
            try:
                task = self._workers.take(0 if busy else 0.5)
            except queue.Empty:
                return
            if task is None:
                self._more = False
                return
            line = self._idle.pop()
            self._go_on(_Turn(line, self._work(line, task)), None)

    def _wake(self) -> None:
        now = time.monotonic()
        for each in [each for each in self._resting if each[0] <= now]:
            self._resting.remove(each)
            self._go_on(each[1], None)

    def _go_on(self, turn: _Turn[Line, Result], how: Any) -> None:
        try:
            what = turn.steps.send(how)
        except StopIteration as done:
            self._idle.append(turn.line)
            self._workers.give(done.value)
            return
        if isinstance(what, Pause):
            self._resting.append((time.monotonic() + what.wait_s, turn))
        else:
            self._waiting[what] = turn
            self._lines.start(what)
