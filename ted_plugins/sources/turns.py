"""One thread that does several tasks in turns: each is a generator that says what it waits for.

Rules:
 * A thread per connection would stand in line for the interpreter at each piece of each file; one thread, which waits
   for all connections at once, does the same work in less time.
 * A task that fails ends them all; each is closed, so that what came so far can be gone on with.
 * What comes next is asked for before what came is put away: a server has work while this thread has.
 * Nothing waits for long without looking whether the work was called off.
"""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import chain
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
    def most(self) -> int:
        """How many tasks may wait at a time."""

    @property
    def lines(self) -> Sequence[Line_co]:
        """What tasks work on, one at a time each: more than may wait."""

    def start(self, what: Any) -> None:
        """Start what a task waits for."""

    def push(self) -> None:
        """Let what was started get under way, without waiting."""

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
        self._queued: deque[tuple[Any, _Turn[Line, Result]]] = deque()
        self._ended: list[tuple[_Turn[Line, Result], Any]] = []
        self._resting: list[tuple[float, _Turn[Line, Result]]] = []
        self._more = True

    def run(self) -> None:
        try:
            while self._more or self._waiting or self._queued or self._resting:
                self._begin()
                self._wake()
                if self._waiting:
                    self._wait()
                elif self._resting:
                    time.sleep(_LOOK_FOR_TASKS_S)
                if self._workers.stop.is_set():
                    raise Stopped
        finally:
            asleep, ended = (turn for _, turn in (*self._resting, *self._queued)), (turn for turn, _ in self._ended)
            for turn in chain(self._waiting.values(), asleep, ended):
                turn.steps.close()

    def _wait(self) -> None:
        for what, how in self._lines.wait(_LOOK_FOR_TASKS_S if self._has_room else _TURN_S):
            self._ended.append((self._waiting.pop(what), how))
        if self._ended:
            self._begin()
            self._lines.push()
        while self._ended:
            self._go_on(*self._ended.pop())

    @property
    def _has_room(self) -> bool:
        return self._more and len(self._waiting) + len(self._resting) < self._lines.most and bool(self._idle)

    def _begin(self) -> None:
        """Let as many tasks wait as may: those first that were begun before."""
        while self._queued and len(self._waiting) < self._lines.most:
            self._start(*self._queued.popleft())
        while self._has_room:
            busy = self._waiting or self._ended or self._resting
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
        elif len(self._waiting) < self._lines.most:
            self._start(what, turn)
        else:
            self._queued.append((what, turn))

    def _start(self, what: Any, turn: _Turn[Line, Result]) -> None:
        self._waiting[what] = turn
        self._lines.start(what)
