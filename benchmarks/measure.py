"""Runs and what they cost: wall clock, CPU, memory; contenders one after another, round by round.

Rules:
 * CPU is user and system time of the process and of every descendant that was waited for.
 * Memory is the largest resident set of any one process of a run. A program's is at least the ``LAUNCHER`` 's, 9 MB.
"""

from __future__ import annotations

import math
import os
import re
import resource
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

TICKS_S = os.sysconf("SC_CLK_TCK")

LAUNCHER = """
import os, sys, time
writing = int(sys.argv[1])
os.set_inheritable(writing, False)
started_s = time.perf_counter()
pid = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ, setsigdef=[13, 25])
_, status, usage = os.wait4(pid, 0)
took = time.perf_counter() - started_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
os.write(writing, " ".join(map(str, [os.waitstatus_to_exitcode(status), *took])).encode())
"""
"""Starts a program, for who would count as its memory: what has been resident where a process was forked stays in its
``ru_maxrss`` when it becomes another program. 13 and 25 are SIGPIPE and SIGXFSZ: Python ignores them, the program shall
not."""


@dataclass(frozen=True)
class Options:
    """How a table is to be taken: ``quick`` means small inputs, to see that everything works."""

    rounds: int = 5
    quick: bool = False


@dataclass(frozen=True)
class Sample:
    """One run; ``more`` holds what only this table measures, such as bytes on a line."""

    wall_s: float
    cpu_s: float
    peak_bytes: int = 0
    more: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Contender:
    """Something that can be run again and again; ``rounds`` bounds one that is very slow."""

    name: str
    run: Callable[[], Sample]
    rounds: int | None = None


class Samples(dict[str, list[Sample]]):
    """What came of each contender, by its name."""

    def of(self, name: str, what: str) -> list[float]:
        """Return a figure of every run: a field of ``Sample`` or a key of its ``more``."""
        return [float(s.more[what] if what in s.more else getattr(s, what)) for s in self[name]]

    def median(self, name: str, what: str) -> float:
        return statistics.median(self.of(name, what))

    def worst(self, name: str, what: str) -> float:
        return max(self.of(name, what))

    def ratio(self, name: str, peer: str, what: str) -> float:
        """Return the median of one over the median of the other."""
        of_peer = self.median(peer, what)
        return self.median(name, what) / of_peer if of_peer else math.nan


def interleaved(contenders: Sequence[Contender], rounds: int) -> Samples:
    """Run every contender once per round, each round beginning with another one."""
    found = Samples({contender.name: [] for contender in contenders})
    for number in range(rounds):
        turn = number % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            if contender.rounds is not None and number >= contender.rounds:
                continue
            sample = contender.run()
            found[contender.name].append(sample)
            more = "".join(f" {key} {value:.4g}" for key, value in sample.more.items())
            print(f"  round {number + 1}: {contender.name}: {sample.wall_s:.2f} s, CPU {sample.cpu_s:.2f} s{more}",
                  file=sys.stderr, flush=True)  # fmt: skip
    return found


def run_command(command: Sequence[str] | str, *, cwd: Path | None = None, env: Mapping[str, str] | None = None,
                accept: Sequence[int] = (0,)) -> Sample:  # fmt: skip
    """Run a program (a string: a shell's line) to its end.

    Raises:
        RuntimeError: It failed; with the end of what it said.
    """
    words = ["sh", "-c", command] if isinstance(command, str) else list(command)
    code, said, sample = run_apart(words, cwd=cwd, env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    if code not in accept:
        raise RuntimeError(f"{words} ended with {code}: {said[-2000:].decode(errors='replace')}")
    return sample


def run_apart(words: Sequence[str], **options: Any) -> tuple[int, bytes, Sample]:
    """Run a program to its end, started by a small process, so that its memory is its own.

    Args:
        words: The program and its arguments.
        options: Those of ``subprocess.run``.

    Returns:
        Its exit code, what it said if ``stdout`` is a pipe, and what it took.

    Raises:
        RuntimeError: It could not be started; with what was said instead.
    """
    reading, writing = os.pipe()
    with os.fdopen(reading) as took:
        try:
            done = subprocess.run([sys.executable, "-I", "-S", "-c", LAUNCHER, str(writing), *words], check=False,
                                  pass_fds=[writing], **options)  # fmt: skip
        finally:
            os.close(writing)
        figures = took.read().split()
    if not figures:
        raise RuntimeError(f"{words} could not be started: {done.stdout}")
    code, wall_s, cpu_s, peak_bytes = figures
    return int(code), done.stdout or b"", Sample(float(wall_s), float(cpu_s), int(peak_bytes))


def run_function(function: Callable[[], object]) -> Sample:
    """Run a function of ours in a process of its own, so that its CPU and memory are its own.

    Raises:
        RuntimeError: It raised; its traceback is on standard error.
    """
    reading, writing = os.pipe()
    started_s = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        _run_and_leave(function, writing)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    _, status, usage = os.wait4(pid, 0)
    wall_s = time.perf_counter() - started_s
    if status or not said:
        raise RuntimeError("what was measured failed; its traceback is above")
    return Sample(wall_s, usage.ru_utime + usage.ru_stime, int(said))


def _run_and_leave(function: Callable[[], object], writing: int) -> NoReturn:
    code = 1
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins here, not with our parent's
        function()
        largest_child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        os.write(writing, str(max(_peak_bytes(os.getpid()), largest_child)).encode())
        code = 0
    except BaseException:  # noqa: BLE001 -- a forked child must end here, whatever happens
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _peak_bytes(pid: int) -> int:
    """Return the largest resident set that a living process has had; 0 when it lives no more."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def descendants(pid: int) -> Iterator[int]:
    """Yield a process and all that are below it now."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield from descendants(int(child))


def cpu_s(pid: int) -> float:
    """Return the CPU a living process and its descendants, ended ones included, have used."""
    total = 0
    for each in descendants(pid):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(map(int, fields[11:15]))  # utime stime cutime cstime
    return total / TICKS_S


def peak_bytes(pid: int) -> int:
    """Return the largest resident set any living process of the tree has had."""
    return max(_peak_bytes(each) for each in descendants(pid))


@contextmanager
def daemon(command: Sequence[str], **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """Keep a server running for the body; it is ended, and killed where it does not end."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
