"""Do, finish or undo what a transaction has planned, from wherever a crash left it.

The files of a transaction's directory: ``plan`` (acts, closed by a ``commit`` record when whole), ``dirs``
(attributes that directories get at the end), ``bases``, ``undo`` (records of ``capture``, with marks) and ``saved/``.

Marks in ``undo``: ``batch`` and ``captured`` around the records of a batch, so that one that was cut short is
written anew; ``placed`` for what an act put there; ``started`` and ``finished`` around a command; ``failed`` for an
act left out, or (act -1) for what could not even be planned, ``refused`` for the one that ended it all; and ``done``,
``left``, ``undoing``, ``undone``.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

from ted.errors import TargetError, TedError
from ted.install import attributes as attrs
from ted.install.acts import ATTRIBUTES, RUN, TREE, Act, Bases, Failure
from ted.install.capture import Capture, Identity
from ted.install.locked import LOCKED_ERRNOS, end_holders
from ted.install.log import LogReader, LogWriter
from ted.install.paths import stamp_of, sync_filesystem
from ted.install.perform import Performer
from ted.install.undo import OTHERS_DOING, Undoer
from ted.install.words import shown, target_error

Answer = TypeVar("Answer")

BATCH = 500
MAX_FAILURES = 1000
_NO_ACT = -1
_RESERVED_BYTES = 16 << 10
_PLACED_BYTES = 128
"""Room for the marks of an undo, and for what a batch writes down while it is done: see ``LogWriter.reserve``."""

OnAct = Callable[[str, int], None]
"""Told after each step: the phase (``stage commit capture act finish done undo undone``) and a number in it."""


class State(StrEnum):
    """How far a transaction came."""

    PLANNING = "planning"
    COMMITTED = "committed"
    UNDOING = "undoing"
    UNDONE = "undone"
    DONE = "done"
    LEFT = "left"
    """It failed, and what was done until then was left, as asked (``on_failure: leave``)."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What happens when an act fails; see the File type's options."""

    on_failure: Literal["rollback", "leave"] = "rollback"
    on_error: Literal["fail", "continue"] = "fail"
    on_locked: Literal["fail", "kill"] = "fail"
    retries: int = 3
    retry_delay_s: float = 0.5


@dataclass(frozen=True, slots=True)
class UndoResult:
    """What was put back, and what could not be."""

    restored: int
    failures: tuple[Failure, ...]


class _ActFailedError(Exception):
    """An act failed; carries what to tell."""

    def __init__(self, error: TedError, failure: Failure) -> None:
        self.error, self.failure = error, failure
        super().__init__(str(error))


class Execution:
    """Works on the directory of one transaction; its owner holds the lock."""

    def __init__(self, directory: Path, bases: Bases, policy: Policy, on_act: OnAct | None) -> None:
        self.directory = directory
        self.bases = bases
        self.policy = policy
        self.warnings: Counter[str] = Counter()
        self.failures: list[Failure] = []
        self._failed: set[int] = set()
        self._finished: set[int] = set()
        self._undo_log: LogWriter | None = None
        self._on_act = on_act or (lambda _phase, _number: None)
        self._steps = 0

    def step(self, phase: str, number: int | None = None) -> None:
        """Tell that a step is done."""
        self._steps += 1
        self._on_act(phase, self._steps if number is None else number)

    def close(self) -> None:
        """Close the undo log."""
        if self._undo_log is not None:
            self._undo_log.close()
            self._undo_log = None

    @property
    def state(self) -> State:
        """How far it came, read from its directory."""
        with contextlib.suppress(FileNotFoundError), LogReader(self.directory / "undo") as log:
            for record in log.backwards():
                if record[0] in ("done", "left", "undoing", "undone"):
                    return State(record[0])
        with contextlib.suppress(FileNotFoundError), LogReader(self.directory / "plan") as log:
            last = next(log.backwards(), None)
            if last is not None and last[0] == "commit":
                return State.COMMITTED
        return State.PLANNING

    def undo(self) -> UndoResult:
        """Put back what was there before this transaction, and mark it undone; can be repeated after a crash.

        Raises:
            TargetError: Something could not be put back, for want of rights or room, say. Everything else was, the
                transaction is not marked undone, and the next call tries again.
        """
        late = self.state in (State.DONE, State.LEFT)
        self.close()
        undoer = Undoer(self.directory, self.bases)
        if (self.directory / "undo").exists():
            with LogReader(self.directory / "undo") as log:
                # What is undone stays readable while the mark is added: the reader maps the log as it was.
                self._log("undoing", late)
                self._steps = 0
                undoer.apply(log.backwards(), lambda: self.step("undo"))
        self.bases.remove_staging()
        if not late and not self._was_done_before_undoing():
            self.bases.restore_times(all_of_them=True)
        self.sync_targets()
        hard = next((failure for failure in undoer.failures if failure.errno not in OTHERS_DOING), None)
        if hard is not None:
            self.close()
            self.bases.close()
            raise TargetError(
                f"{hard.path}: {hard.message}", hint="mend that; the next extraction or rollback goes on undoing",
                path=hard.path, errno=hard.errno,
            )  # fmt: skip
        self._log("undone")
        self.step("undone")
        self.bases.close()
        return UndoResult(undoer.restored, tuple(undoer.failures[:MAX_FAILURES]))

    def sync_targets(self) -> None:
        """Make what was written at the targets durable; each file system once."""
        done: set[int] = set()
        for number, place in enumerate(self.bases.places):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                device = os.fstat(self.bases[number].fd).st_dev
                if device not in done:
                    sync_filesystem(place.path)
                    done.add(device)

    def forward(self) -> None:
        """Perform and finish what is committed, from wherever it stands."""
        self.close()
        try:
            self._perform()
            self._finish()
        except (_ActFailedError, OSError, TedError) as error:
            failed = error.error if isinstance(error, _ActFailedError) else error
            told = failed if isinstance(failed, TedError) else target_error(str(self.directory), failed)
            if self.policy.on_failure == "rollback":
                self._undo_after(told)
            else:
                self._leave(told)
            raise told from error

    def _undo_after(self, cause: TedError) -> None:
        """Undo because of ``cause``; if that fails too, tell both."""
        try:
            self.undo()
        except (OSError, TedError) as error:
            second = target_error(str(self.directory), error)
            raise TargetError(
                f"{cause.message}; and what was done could not be undone: {second.message}",
                hint=second.hint or "mend that; the next extraction goes on", path=second.path, errno=second.errno,
            ) from cause  # fmt: skip

    def _perform(self) -> None:
        capture = Capture(self.directory, self.bases, self._undo_writer())
        start, held = self._progress(capture)
        with LogReader(self.directory / "plan") as log:
            commit = next(log.backwards())
            for place, touched in zip(self.bases.places, commit[2], strict=True):
                place.touched = touched
            for batch in _batches(log, start):
                self._batch(batch, capture, held)
                held = None

    def _progress(self, capture: Capture) -> tuple[int, dict[int, Identity | None] | None]:
        """Return the first act that may not be done, and what was there if its batch was written down whole."""
        undo = self._undo_writer()
        first, begun, whole = 0, -1, False
        held: dict[int, Identity | None] = {}
        self.failures.clear()  # they are in the log, those found while planning too
        undo.flush()
        with LogReader(self.directory / "undo") as log:
            for offset, record in log.forwards():
                if record[0] == "batch":
                    first, begun, whole, held = record[1], offset, False, {}
                    capture.begin_batch()
                elif record[0] == "captured":
                    whole = True
                elif record[0] in ("file", "link", "made"):
                    capture.covered.add(hash((record[2], record[3])))
                elif record[0] == "was":
                    held[record[1]] = (record[2], record[3])
                elif record[0] == "finished":
                    self._finished.add(record[1])
                elif record[0] == "failed":
                    self._failed.add(record[1])
                    self.record_failure(Failure(*record[2:]))
        if begun >= 0 and not whole:
            undo.truncate(begun)
            return first, None
        return first, held if whole else None

    def _batch(self, acts: list[Act], capture: Capture, held: dict[int, Identity | None] | None) -> None:
        if held is None:
            held = self._capture(acts, capture)
        performer = Performer(self.bases, capture.covered)
        for act in acts:
            if act.number in self._failed or act.number in self._finished:
                continue
            if act.kind == RUN:
                self._log("started", act.number)
            try:
                self.warnings.update(self._patiently(act, partial(performer.do, act, held.get(act.number))))
            except (OSError, TedError) as error:
                self._act_failed(act, error)
            else:
                self._placed(act)
            if act.kind == RUN:
                self._log("finished", act.number)
            self.step("act", act.number)

    def _placed(self, act: Act) -> None:
        """Write down what the act put there, for the undo that comes later; it is durable when the next batch is."""
        if act.kind not in (RUN, ATTRIBUTES, TREE):
            stamp = stamp_of(self.bases[act.base].glance(act.path))
            self._undo_writer().append(["placed", act.number, act.base, act.path, stamp])

    def _capture(self, acts: list[Act], capture: Capture) -> dict[int, Identity | None]:
        """Write down what is at the path of each act, durably."""
        undo = self._undo_writer()
        undo.append(["batch", acts[0].number])
        held: dict[int, Identity | None] = {}
        capture.begin_batch()
        for act in acts:
            try:
                held[act.number] = self._patiently(act, partial(capture.before, act))
            except (OSError, TedError) as error:
                self._act_failed(act, error)
        undo.append(["captured", acts[-1].number])
        undo.reserve(_RESERVED_BYTES + sum(_PLACED_BYTES + len(act.path) for act in acts))
        if capture.copied:
            sync_filesystem(str(self.directory))
            capture.copied = False
        undo.sync()
        self.step("capture", acts[-1].number)
        return held

    def _patiently(self, act: Act, do: Callable[[], Answer]) -> Answer:
        """Call ``do``; while the target is locked, again and again; then end its holder if that was asked for."""
        for attempt in range(self.policy.retries + 1):
            try:
                return do()
            except OSError as error:
                if error.errno not in LOCKED_ERRNOS:
                    raise
                if attempt < self.policy.retries:
                    time.sleep(self.policy.retry_delay_s)
                elif self.policy.on_locked != "kill" or error.errno == errno.EBUSY:  # a mount, not a holder
                    raise
        status = self.bases[act.base].glance(act.path)
        if status is not None:
            end_holders(status.st_dev, status.st_ino)
        return do()

    def _act_failed(self, act: Act, error: OSError | TedError) -> None:
        """Go on without the act, or give up.

        Raises:
            _ActFailedError: ``on_error`` is ``fail``.
        """
        where = shown(act.data[0]) if act.kind == RUN else self.bases.places[act.base].path
        if act.kind != RUN:
            with contextlib.suppress(OSError):
                where = self.bases[act.base].full(act.path)
        told = error if isinstance(error, TedError) else target_error(where, error)
        failure = Failure(where, getattr(error, "errno", None) or 0, told.message)
        if self.policy.on_error == "fail":
            if act.kind == TREE:  # what stands there is not ted's
                self._undo_writer().append(["refused", act.number])
            raise _ActFailedError(told, failure) from error
        self._failed.add(act.number)
        self._undo_writer().append(["failed", act.number, failure.path, failure.errno, failure.message])
        self.record_failure(failure)

    def record_failure(self, failure: Failure) -> None:
        """Keep a failure for the result; beyond the first 1000 they are not kept."""
        if len(self.failures) < MAX_FAILURES:
            self.failures.append(failure)

    def plan_failure(self, failure: Failure) -> None:
        """Keep a failure found while planning, also for whoever goes on after a crash."""
        if len(self.failures) < MAX_FAILURES:
            self._undo_writer().append(["failed", _NO_ACT, failure.path, failure.errno, failure.message])
        self.record_failure(failure)

    def sync_failures(self) -> None:
        """Make the failures found while planning durable: before the mark that the plan is whole."""
        if self.failures:
            self._undo_writer().sync()

    def _finish(self) -> None:
        """Leave the target as planned, with nothing of ted in it, and mark the transaction done."""
        self.bases.remove_staging()
        self.bases.restore_times(all_of_them=False)
        self.step("finish")
        self._settle_directories()
        self.sync_targets()
        self._log("done")
        self.step("done")
        for name in ("plan", "dirs"):
            (self.directory / name).unlink(missing_ok=True)
        self.bases.close()

    def _settle_directories(self) -> None:
        with LogReader(self.directory / "dirs") as log:
            for number, where, packed in log.backwards():
                base = self.bases[number]
                try:
                    at = base.directory(where)
                    self.warnings.update(attrs.set_named(b".", at, attrs.unpack(packed)))
                except (OSError, TedError) as error:
                    self._act_failed(Act(ATTRIBUTES, _NO_ACT, number, where, None), error)
                self.step("finish")

    def _leave(self, error: TedError) -> None:
        """Keep what was done until an act failed, as asked; it can still be undone."""
        with contextlib.suppress(OSError):
            self.bases.remove_staging()
            self.bases.restore_times(all_of_them=False)
        self._log("left", error.message)
        self.bases.close()

    def _undo_writer(self) -> LogWriter:
        if self._undo_log is None:
            self._undo_log = LogWriter(self.directory / "undo")
        return self._undo_log

    def _log(self, *record: Any) -> None:
        undo = self._undo_writer()
        undo.append(list(record))
        undo.sync()

    def command_was_cut(self) -> bool:
        """Return whether a command was started and nobody knows whether it ended."""
        open_commands: set[int] = set()
        with contextlib.suppress(FileNotFoundError), LogReader(self.directory / "undo") as log:
            for record in log:
                if record[0] == "started":
                    open_commands.add(record[1])
                elif record[0] == "finished":
                    open_commands.discard(record[1])
        return bool(open_commands)

    def _was_done_before_undoing(self) -> bool:
        with LogReader(self.directory / "undo") as log:
            return any(record[0] == "undoing" and record[1] for record in log)


def written_failures(directory: Path) -> list[Failure]:
    """Return the failures in the undo log of the transaction in ``directory``, the first 1000."""
    with contextlib.suppress(FileNotFoundError), LogReader(directory / "undo") as log:
        return [Failure(*record[2:]) for record in islice((r for r in log if r[0] == "failed"), MAX_FAILURES)]
    return []


def _batches(log: LogReader, start: int) -> Iterator[list[Act]]:
    """Yield the acts from number ``start`` on in batches; a command is a batch of its own."""
    batch: list[Act] = []
    for record in log:
        if record[0] == "commit" or record[1] < start:
            continue
        act = Act(*record)
        if act.kind == RUN and batch:
            yield batch
            batch = []
        batch.append(act)
        if act.kind == RUN or len(batch) >= BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
