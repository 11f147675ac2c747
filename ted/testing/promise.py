"""What a promise is, and a trial of one: a type with a sample of it on a bench of its own."""

from __future__ import annotations

import contextlib
import fnmatch
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ted.errors import TedError
from ted.plugins import KnownType, installed
from ted.testing.bench import Bench, new_bench
from ted.testing.children import Raised, files_of, raised_by
from ted.testing.looks import Snapshot, differences, shortened, snapshot
from ted.testing.machines import Build, Distributor, Subscriber
from ted.testing.sample import NO_SAMPLE, NotDerivableError, Sample, derived

DOCS = "docs/testing-a-type.md"


class BrokenPromiseError(AssertionError):
    """A type breaks a promise; says which, how it shows, and where the docs tell of it."""



@dataclass(frozen=True)
class Promise:
    """One promise of every type: its name (an anchor of the docs), what it says, and what puts it to the test."""

    name: str
    says: str
    test: Callable[[Trial], None]


PROMISES: dict[str, Promise] = {}
"""Every promise, by name, in the order in which they are put to the test."""


def promise(name: str, says: str) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    """Declare the function below as what puts a promise to the test."""

    def declare(test: Callable[[Trial], None]) -> Callable[[Trial], None]:
        PROMISES[name] = Promise(name, says, test)
        return test

    return declare


def put_to_the_test(type_name: str, name: str) -> None:
    """Put one promise of an installed type to the test.

    Raises:
        BrokenPromiseError: The type breaks it.
        PluginError: There is no such type here, or its plugin cannot be loaded.
    """
    known = installed().type_named(type_name)
    building = known.info.build_available or known.info.available
    reason = known.info.available() or building()
    if reason is not None:
        raise BrokenPromiseError(f"type {type_name!r} cannot work on this machine, so nothing can be tested: {reason}")
    with contextlib.ExitStack() as stack:
        trial = Trial(known, PROMISES[name], stack)
        try:
            trial.promise.test(trial)
        except BrokenPromiseError:
            raise
        except Exception as error:
            raised = raised_by(error, trial.files)
            if not raised.by_plugin:
                raise
            trial.broken("it fails", *told(raised))


@dataclass(frozen=True)
class State:
    """The machine, as anyone can see it."""

    files: Snapshot
    outcome: object


class Trial:
    """A type, one promise of it, and benches to put it to the test on."""

    def __init__(self, known: KnownType, tested: Promise, stack: contextlib.ExitStack) -> None:
        self.known = known
        self.type = known.info.name
        self.promise = tested
        self.files = files_of(known.plugin)
        self._stack = stack

    def scene(self) -> Scene:
        """Return a new bench with a sample of the type; it goes when the trial is over."""
        bench = self._stack.enter_context(new_bench())
        self._stack.enter_context(bench.lived_in())
        return Scene(self, bench, self.sample(bench))

    def sample(self, bench: Bench) -> Sample:
        """Return the sample that the plugin brings, or the one that can be derived.

        Raises:
            BrokenPromiseError: There is none.
        """
        try:
            sample = installed().sample(self.type, bench)
        except TedError as error:
            raise BrokenPromiseError(f"type {self.type!r}: ted_sample failed: {error.message}") from error
        if sample is None:
            try:
                sample = derived(self.known.info.options, bench)
            except NotDerivableError as error:
                option = f" (option {error})" if str(error) else ""
                raise BrokenPromiseError(f"type {self.type!r}: {NO_SAMPLE}{option}") from None
        if not isinstance(sample, Sample):
            raise BrokenPromiseError(f"type {self.type!r}: ted_sample gave {type(sample).__name__}, not a Sample")
        bench.settle(everything=True)
        return sample

    def broken(self, how: str, *details: str) -> NoReturn:
        """Say how the promise is broken.

        Raises:
            BrokenPromiseError: Always.
        """
        lines = "".join(f"\n    {detail}" for detail in details if detail)
        raise BrokenPromiseError(
            f"type {self.type!r} breaks its promise {self.promise.name!r}: {how}{lines}"
            f"\n    The promise: {self.promise.says}\n    See {DOCS}#{self.promise.name}"
        )


class Scene:
    """A sample of a type on its bench, with the machines that build and extract it."""

    def __init__(self, trial: Trial, bench: Bench, sample: Sample) -> None:
        self.trial = trial
        self.bench = bench
        self.sample = sample
        self.options: Mapping[str, Any] = dict(sample.options)
        self.targets = [Path(target) for target in sample.targets] or [bench.target]
        self._machines = 0
        self.distributor = self.new_distributor()
        self.subscriber = self.new_subscriber(self.distributor)

    def new_distributor(self) -> Distributor:
        """Return a Distributor that never built anything."""
        self._machines += 1
        return Distributor(self.bench.base / "machines" / str(self._machines), self.trial.type)

    def new_subscriber(self, distributor: Distributor) -> Subscriber:
        """Return a Subscriber on which nothing was extracted."""
        self._machines += 1
        return Subscriber(self.bench.base / "machines" / str(self._machines), distributor, self.variables)

    @property
    def variables(self) -> dict[str, str]:
        """The Subscriber's own variables."""
        return {"DEST_VOLUME": str(self.bench.target), **self.sample.variables}

    # -- doing

    def build(self, what: str = "the sample") -> Build:
        """Build the sample; that it cannot be built breaks the promise."""
        try:
            return self.distributor.build(self.options)
        except TedError as error:
            self.trial.broken(f"{what} cannot be built", *told(raised_by(error)))

    def extract(self, what: str = "the revision", **how: Any) -> Any:
        """Extract on a machine that has no sources; that it cannot be done breaks the promise."""
        try:
            with self.bench.sources_away():
                result = self.subscriber.extract(**how)
        except TedError as error:
            self.trial.broken(f"{what} cannot be extracted on another machine than the one it was built on",
                              *told(raised_by(error)))  # fmt: skip
        if result.state != "extracted":
            self.trial.broken(f"{what} was not extracted but {result.state}", str(result.reason or result.error or ""))
        return result

    def rollback(self, what: str = "the revision") -> Any:
        """Roll back on a machine that has no sources."""
        try:
            with self.bench.sources_away():
                result = self.subscriber.rollback()
        except TedError as error:
            self.trial.broken(f"{what} cannot be rolled back", *told(raised_by(error)))
        if result.warnings:
            self.trial.broken(f"rolling back {what} did not go well", *result.warnings[:3])
        return result

    def change(self) -> None:
        """Change the sources as the sample says."""
        options = self.sample.change()
        if isinstance(options, Mapping):
            self.options = dict(options)
        self.bench.settle()

    # -- looking

    def state(self) -> State:
        """Return the targets as they are, and the outcome beyond files."""
        files = snapshot(*self.targets, volatile=self.sample.volatile)
        return State(files, self.sample.outcome() if self.sample.outcome is not None else None)

    def is_target(self, path: str) -> bool:
        """Return whether a path is a target or lies in one."""
        return any(path == str(target) or path.startswith(f"{target}/") for target in self.targets)

    def outside(self) -> Snapshot:
        """Return everything in the playground that no extraction may touch, but the sources: they are not there."""
        found = snapshot(
            self.bench.root, without=lambda path: self.is_target(path) or path == str(self.bench.sources),
            volatile=self.sample.volatile,
        )  # fmt: skip
        above = {str(parent) for target in self.targets for parent in target.parents}
        free = above | {str(self.bench.root / "tmp")}  # in these something came and went, as it may
        for path in free & found.keys():
            found[path] = found[path]._replace(mtime_ns=0)
        return found

    def is_volatile(self, path: str) -> bool:
        """Return whether the sample says that the bytes of a path say nothing."""
        return any(fnmatch.fnmatch(path, pattern) for pattern in self.sample.volatile)

    def changed(self, before: State, after: State) -> list[str]:
        """Return how two states differ, in words."""
        words = differences(before.files, after.files, below=self.bench.root)
        if before.outcome != after.outcome:
            words.append(f"the outcome was {before.outcome!r:.300} and is {after.outcome!r:.300}")
        return words

    def must_be(self, wanted: State, how: str, *, again: bool = False) -> None:
        """Say that the promise is broken if the machine is not as ``wanted``.

        With ``again``, it was done again since: times of now are no difference.
        """
        now = self.state()
        words = self.changed(self.timeless(wanted), self.timeless(now)) if again else self.changed(wanted, now)
        if words:
            self.trial.broken(f"{how}: {shortened(words)}")

    def timeless(self, state: State) -> State:
        """Return a state in which times of now are none: what has such a time has another one each time."""
        began_ns = self.bench.began_ns
        return State({path: look._replace(mtime_ns=0) if look.mtime_ns >= began_ns else look
                      for path, look in state.files.items()}, state.outcome)  # fmt: skip

    @contextlib.contextmanager
    def nothing_outside(self, doing: str) -> Iterator[None]:
        """Say that the promise is broken if anything but the targets changes meanwhile."""
        before = self.outside()
        yield
        words = differences(before, self.outside(), below=self.bench.root)
        if words:
            self.trial.broken(f"{doing} changed what is outside of its targets: {shortened(words)}")


def told(raised: Raised) -> list[str]:
    """Return an error in lines for the message of a broken promise."""
    lines = [f"{raised.name}: {raised.message}"]
    if raised.hint:
        lines.append(f"({raised.hint})")
    if not raised.is_ted:
        lines += [line for line in raised.text.strip().splitlines() if line.strip().startswith("File ")][-2:]
    return lines


def patiently(done: Callable[[], bool], within_s: float) -> bool:
    """Wait until something is so; return whether it is."""
    until = time.monotonic() + within_s
    while not done():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def inside(path: str, *directories: Path | str) -> bool:
    """Return whether a path is one of some directories or lies in one."""
    return any(path == os.fspath(each) or path.startswith(f"{each}/") for each in directories)
