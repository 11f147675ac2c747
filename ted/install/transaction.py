"""The one transaction through which every type changes a target.

What a caller gets: all of it or, when something fails, what was there before; after a kill at any moment the next
``recover`` finishes or undoes it; and after it is done ``undo`` still takes it back.

How, in this order:
 1. *Plan.* Each call writes an act to the plan; new content goes at once to a hidden staging directory in the target
    (on its file system), with its attributes. A directory that is not there is staged whole, with all that goes below
    it: one act, however much it holds. Nothing a reader of the target looks at has changed. Killed here: discarded.
 2. *Commit.* Staged content and plan are made durable, then the mark that the plan is whole. Killed after it:
    finished forward, or undone when it was undoing already or a command was cut off in the middle.
 3. *Perform*, in batches of 500: what is at each path is written to the undo log (old files are kept as hard
    links), the log is made durable, then the acts are done. A file, or a new directory, appears by
    renaming: a reader sees the old one or the new one, whole.
 4. *Finish.* Staging goes, directories get their times (deepest first), everything is made durable, then marked
    done. Nothing of ted is left in the target; the undo log and the saved files stay in the transaction's directory.

What callers keep to: parents come before what they hold, and a path is acted on once (refused otherwise).

Memory does not grow with the number of files, eight bytes each aside: plan and undo log are files.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import posixpath
import re
import secrets
import shutil
import stat
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Protocol, TypeVar

from ted.content.durable import replace_file, sync_directory
from ted.content.entry import Entry
from ted.content.manifest import Run
from ted.errors import FormatError, InstallError, TargetError, TedError, UnsafePathError
from ted.hookspecs import Attributes, Item
from ted.install import attributes as attrs
from ted.install.acts import ATTRIBUTES, DELETE, HARDLINK, MKDIR, RUN, SYMLINK, TREE, WRITE, Act, Bases, Failure
from ted.install.attributes import Rights
from ted.install.crew import Crew, Noted, PlainRights, Source, workers_possible
from ted.install.execution import Execution, OnAct, Policy, State, UndoResult, written_failures
from ted.install.log import LogReader, LogWriter
from ted.install.paths import Base, join, mount_of, refuse_unplain, show, sync_filesystem, walk_below
from ted.install.perform import KEPT, NO_HARDLINK, Performer, movable, readable, refuse_link
from ted.install.trees import TreeReader, TreeWriter
from ted.install.words import describe, describe_wanted, target_error

__all__ = [
    "Attributes", "Change", "CommitResult", "Failure", "Policy", "Recovered", "State", "Transaction", "UndoResult",
    "recover",
]  # fmt: skip

MAX_CHANGES = 1000
MAX_ITEMS = 1000
_STAGING = re.compile(rb"\.ted-\d{8}T\d{12}Z-[0-9a-f]{8}(-t)?")
_GONE, _NEW = ".gone", ".new"
_NEW_FOR_S = 60.0
_PASSED = ("unchanged", "skipped")
_MADE_DIRECTORY = Attributes(mode=0o755)
_DEFAULT_FILE_MODE = 0o644
_PERMISSIONS = 0o777
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_TREES = 10_000
"""Directories that one transaction stages whole; memory grows with them. What comes then is planned file by file."""

Made = TypeVar("Made")


class Hole(Protocol):
    """A run of zero bytes that takes no room on the disk."""

    @property
    def length(self) -> int:
        """How many bytes."""


@dataclass(frozen=True, slots=True)
class Change:
    """One line of what a transaction does: the path, what happens, and both sides in words."""

    path: str
    change: str
    before: str | None
    after: str | None

    def to_dict(self) -> dict[str, str | None]:
        """Return the shape ``--json`` prints."""
        return {"path": self.path, "change": self.change, "before": self.before, "after": self.after}


@dataclass(frozen=True, slots=True)
class CommitResult:
    """What was done.

    ``counts``: acts by name (``written linked directories deleted attributes commands``), and what was left alone
    (``unchanged``, and ``skipped`` because the options said so). ``failures``: acts that
    could not be done with ``on_error: continue``. ``warnings``: what could not be set, one sentence each.
    """

    counts: dict[str, int]
    failures: tuple[Failure, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        """Whether anything was done at all."""
        return any(count for name, count in self.counts.items() if name not in _PASSED)


@dataclass(frozen=True, slots=True)
class Recovered:
    """A transaction that was found after a crash, and what became of it."""

    directory: Path
    meta: Mapping[str, Any]
    state: State
    error: str | None = None

    def failures(self) -> list[Failure]:
        """Return what could not be done, with ``on_error: continue``: while it was planned, and while it was done."""
        return written_failures(self.directory)


@dataclass(slots=True)
class _Tree:
    """The directory that is being staged whole: the act that will place it, its base and path."""

    act: int
    base: int
    path: bytes

    def holds(self, base: int, path: bytes) -> bool:
        """Return whether ``path`` lies below it."""
        return base == self.base and path.startswith(self.path) and path[len(self.path) : len(self.path) + 1] == b"/"


@dataclass(slots=True)
class _Guard:
    """Refuses a path that is acted on twice, or below one that goes."""

    gone: set[tuple[int, bytes]] = field(default_factory=set)
    seen: array[int] = field(default_factory=lambda: array("q"))
    directories: array[int] = field(default_factory=lambda: array("q"))
    sorted_so_far: bool = True
    last: tuple[int, list[bytes]] = (-1, [])
    last_file: tuple[int, bytes] = (-1, b"")

    def admit(self, act: Act) -> None:
        """Remember ``act``.

        Raises:
            InstallError: It lies below a path that is deleted or becomes a file.
        """
        if act.kind == RUN:
            return
        here = (act.base, act.path.split(b"/") if act.path else [])
        number, file = self.last_file
        if number == act.base and act.path.startswith(file + b"/"):
            self.refuse_below(act.path)
        if self.goes(act.base, act.path):
            self.refuse_below(act.path)
        self.sorted_so_far = self.sorted_so_far and here > self.last
        self.last = here
        (self.directories if act.kind in (MKDIR, TREE) else self.seen).append(hash((act.base, act.path)))
        if act.kind == DELETE:
            self.gone.add((act.base, act.path))
        if act.kind not in (MKDIR, TREE, ATTRIBUTES):
            self.last_file = (act.base, act.path)

    def goes(self, base: int, path: bytes) -> bool:
        """Return whether the path, or a directory it lies in, is deleted."""
        if not self.gone:
            return False
        parts = path.split(b"/")
        return any((base, b"/".join(parts[:depth])) in self.gone for depth in range(1, len(parts) + 1))

    def check(self, plan: Path) -> None:
        """Refuse the plan in the log ``plan`` when a path was acted on twice.

        Raises:
            InstallError: One was; it is named.
        """
        once = set(self.seen)
        if self.sorted_so_far or (len(once) == len(self.seen) and once.isdisjoint(self.directories)):
            return
        seen: dict[tuple[int, bytes], str] = {}
        with LogReader(plan) as log:
            for record in log:
                if record[0] == RUN:
                    continue
                place = (record[2], record[3])
                # A directory may be asked for more than once: two targets may lead through it.
                if place in seen and not seen[place] == record[0] == MKDIR:
                    self.refuse_twice(record[3])
                seen[place] = record[0]

    @staticmethod
    def refuse_twice(path: bytes) -> NoReturn:
        """Say that a path is acted on twice.

        Raises:
            InstallError: Always.
        """
        raise InstallError(
            f"{show(path)}: is acted on twice in one transaction",
            hint="two targets of the distribution name one place; or its type breaks the rules, then tell its author",
        )

    @staticmethod
    def refuse_below(path: bytes) -> NoReturn:
        """Say that a path lies below one that goes.

        Raises:
            InstallError: Always.
        """
        raise InstallError(
            f"{show(path)}: lies below a path that the same transaction deletes or makes a file",
            hint="a distribution type breaks the rules of Transaction; tell its author",
        )


class Transaction:
    """Plan changes, then ``commit`` them; leaving the ``with`` block without doing so discards them.

    Args:
        directory: Directory of this transaction; made when the first act is planned.
        meta: What the owner wants to find again after a crash (plain JSON).
        policy: What happens when an act fails.
        check: Only count and describe: nothing is written anywhere.
        diff: Describe each change in ``changes`` (the first 1000).
        on_act: Told after each step, for progress.
    """

    def __init__(
        self,
        directory: Path,
        *,
        meta: Mapping[str, Any] | None = None,
        policy: Policy | None = None,
        check: bool = False,
        diff: bool = False,
        on_act: OnAct | None = None,
    ) -> None:
        self.directory = directory
        self.meta: dict[str, Any] = dict(meta or {})
        self.policy = policy or Policy()
        self.check = check
        self.rights = Rights()
        self.counts: Counter[str] = Counter()
        self.changes: list[Change] = []
        self.items: list[Item] = []
        """What was told of things that are no paths, the first 1000."""
        self._diff = diff
        self._bases = Bases(directory, directory.name)
        self._execution = Execution(directory, self._bases, self.policy, on_act)
        self._roots: dict[str, tuple[int, bytes, list[bytes]]] = {}
        self._made: dict[tuple[int, bytes], bool] = {}
        """Directories on the way to a target that are planned; True while nobody gave them attributes."""
        self._links: list[tuple[int, bytes]] = []  # links that become directories
        self._guard = _Guard()
        self._tree: _Tree | None = None
        self._trees: dict[tuple[int, bytes], _Tree] = {}
        """Directories that are staged whole; into all but the newest goes nothing more."""
        self._same_mount: tuple[int, bytes, bool] = (-1, b"", False)
        self._kept: Path | None = None
        self._next = 0
        self._dirs_planned = 0
        self._plan: LogWriter | None = None
        self._dirs: LogWriter | None = None
        self._grown: TreeWriter | None = None
        self._source: Source | None = None
        self._crew: tuple[int, Crew | None] = (-1, None)
        """The base for whose staging directory workers were sought, and they, if there are any."""
        self._lock_fd = -1

    # --- opening what is there ------------------------------------------------------------------------------------

    @classmethod
    def open(cls, directory: Path, *, on_act: OnAct | None = None) -> Transaction:
        """Return the transaction that lies in ``directory``, locked for this process.

        Raises:
            BlockingIOError: Another process has it.
            FormatError: It was written by another version.
        """
        try:
            head = json.loads((directory / "meta.json").read_bytes())
            policy = Policy(**head["policy"])
            meta = head["meta"]
        except FileNotFoundError:
            policy, meta = Policy(), {}
        except (ValueError, TypeError, KeyError) as error:
            raise FormatError(f"{directory / 'meta.json'}: not a transaction's head: {error}") from error
        transaction = cls(directory, meta=meta, policy=policy, on_act=on_act)
        transaction._lock(directory)
        try:
            transaction._bases.load()
        except (ValueError, TypeError) as error:
            raise FormatError(
                f"{directory / 'bases'}: not written by this version of ted: {error}",
                hint="roll back with the ted that wrote it, or remove that directory",
            ) from error
        return transaction

    @staticmethod
    def identity(now: datetime | None = None) -> str:
        """Return a new name for a transaction's directory: sortable by time, and never used before."""
        return f"{now or datetime.now(UTC):%Y%m%dT%H%M%S%f}Z-{secrets.token_hex(4)}"

    @property
    def state(self) -> State:
        """How far it came, read from its directory."""
        return self._execution.state

    # --- planning -------------------------------------------------------------------------------------------------

    def write(
        self,
        root: str,
        path: bytes,
        chunks: Iterable[bytes | memoryview | Hole],
        *,
        size: int,
        attributes: Attributes | None = None,
    ) -> None:
        """Make ``path`` below the directory ``root`` a file of ``size`` bytes; in check mode ``chunks`` is not touched.

        Raises:
            UnsafePathError: The path would leave the root, or a link stands on the way.
            TargetError: There is no room, or no right, to stage it.
        """
        base, where = self._locate(root, path)
        held = self._reduced(attributes or Attributes())
        if self._diff:
            self._note("written", base, where, held, f"file of {size} bytes")
        else:
            self.counts["written"] += 1
        if self.check:
            self._act(WRITE, base, where, size)
            return
        try:
            act, at, name = self._staged_place(WRITE, base, where, size)
            inode, mtime_ns = self._stage_file(where, at, name, chunks, size, held)
        except OSError as error:
            raise target_error(self._bases[base].full(where), error) from error
        self._staged(act, where, name, (stat.S_IFREG, inode, size, mtime_ns))

    def employ(self, source: Source | None) -> bool:
        """Have other processes make what ``write_plain`` is called for; return whether that is possible.

        Args:
            source: What they read pieces from; ``None``: there is nothing for them to do.
        """
        possible = source is not None and not self.check and not self._diff and workers_possible(source) > 0
        self._source = source if possible else None
        return possible

    def write_plain(
        self,
        root: str,
        directory: bytes,
        run: Run,
        rights: Sequence[PlainRights],
        chunks: Callable[[Entry], Iterable[bytes | memoryview | Hole]],
    ) -> bool:
        """Make the files of a run in a directory that this transaction makes; what is wrong with one is told later.

        Args:
            root: As ``write``.
            directory: Path of the directory below the root.
            run: The files, their bytes from ``employ``'s source.
            rights: What they get for each of the run's rights.
            chunks: Returns the content of one.

        Returns:
            False when nothing was done: the directory is not staged whole, or a file is not for other processes.

        Raises:
            UnsafePathError: As ``write``.
            TedError: What an earlier file could not be made for.
        """
        base, where = self._locate(root, directory)
        tree = self._tree
        if tree is None or not ((where == tree.path and base == tree.base) or tree.holds(base, where)):
            return False
        crew = self._crew_for(base)
        if crew is None or any(mode & ~_PERMISSIONS for mode, _, _ in rights):
            return False
        if not self.rights.root:
            rights = [self._reduced_rights(each, run.which.count(place)) for place, each in enumerate(rights)]
        self.counts["written"] += len(run.which)
        below = where[len(tree.path) + 1 :]
        crew.order(
            tree.act, below, run, rights, lambda failed: self._write_again(tree, where, run, rights, failed, chunks)
        )
        return True

    def _reduced_rights(self, rights: PlainRights, files: int) -> PlainRights:
        held = self._reduced(Attributes(*rights), files=files)
        return rights[0], held.owner, held.group

    def symlink(self, root: str, path: bytes, target: bytes, *, attributes: Attributes | None = None) -> None:
        """Make ``path`` a symbolic link to ``target``, which is not looked at.

        Raises:
            UnsafePathError: As ``write``.
            TargetError: As ``write``.
        """
        base, where = self._locate(root, path)
        held = self._reduced(attributes or Attributes())
        self._note("linked", base, where, held, f"link to {show(target)}")
        if self.check:
            self._act(SYMLINK, base, where, target)
            return
        with self._translating(base, where):
            act, at, name = self._staged_place(SYMLINK, base, where, target)
            self._create(where, lambda: os.symlink(target, name, dir_fd=at))
            self._warn(attrs.set_named(name, at, held))
            status = os.stat(name, dir_fd=at, follow_symlinks=False)
        self._staged(act, where, name, _noted(status))

    def hardlink(self, root: str, path: bytes, first: bytes) -> None:
        """Make ``path`` another name of the file ``first`` below the same root, as that is after the transaction.

        Raises:
            UnsafePathError: As ``write``.
        """
        base, where = self._locate(root, path)
        _, other = self._locate(root, first)
        self._note("linked", base, where, None, f"another name of {show(first)}")
        tree = self._tree
        if tree is None or not (tree.holds(base, where) and tree.holds(base, other)):
            self._act(HARDLINK, base, where, other)
            return
        self._finish_ordered()  # the first name may be among it
        with self._translating(base, where):
            at, name = self._in_tree(tree, where)
            status = self._create(where, lambda: self._link_staged(tree, other, at, name))
        self._staged(None, where, name, _noted(status))

    def mkdir(
        self, root: str, path: bytes = b"", *, attributes: Attributes | None = None, replace_link: bool = False
    ) -> None:
        """Make ``path`` a directory; one that is there stays, a file that is there goes.

        ``attributes`` are set when everything below is in place. ``replace_link`` says that a link found there is
        ted's own and may go.

        Raises:
            UnsafePathError: A link stands there or on the way.
        """
        base, where = self._locate(root, path)
        tree = self._tree
        if tree is not None and tree.holds(base, where):
            with self._translating(base, where):
                self._grow(tree, where, attributes)
        elif (base, where) not in self._made:
            status = self._look(base, where) or self._in_staged_tree(base, where)
            if status is not None and stat.S_ISLNK(status.st_mode):
                if not replace_link:
                    refuse_link(self._bases[base].full(where))
                self._links.append((base, where))
            if status is None or not stat.S_ISDIR(status.st_mode):
                self._note("directories", base, where, attributes, "directory")
            self._plan_directory(base, where, status, replace_link)
        self._settle(base, where, attributes or _MADE_DIRECTORY)

    def delete(self, root: str, path: bytes) -> None:
        """Remove ``path`` and all below it; links are removed, never followed. Nothing there is fine.

        Raises:
            UnsafePathError: As ``write``.
        """
        if not os.path.lexists(root):
            return
        base, where = self._locate(root, path)
        if self._look(base, where) is None or self._guard.goes(base, where):
            return
        self._note("deleted", base, where, None, None)
        self._act(DELETE, base, where, None)

    def attributes(self, root: str, path: bytes, attributes: Attributes) -> None:
        """Set the attributes of what is at ``path``; a directory gets them when everything below is in place.

        Raises:
            UnsafePathError: As ``write``.
        """
        base, where = self._locate(root, path)
        held = self._reduced(attributes)
        self._note("attributes", base, where, held, None)
        status = self._look(base, where)
        if status is not None and stat.S_ISDIR(status.st_mode):
            self._act(MKDIR, base, where, False)
            self._settle(base, where, attributes)
        else:
            self._act(ATTRIBUTES, base, where, attrs.pack(held))

    def settle(self, root: str, path: bytes, attributes: Attributes) -> None:
        """Give a directory that is there, and in which this transaction acts, these attributes at the end; not counted.

        Raises:
            UnsafePathError: As ``write``.
        """
        base, where = self._locate(root, path)
        self._settle(base, where, attributes)

    def run(self, command: list[str], *, undo: list[str] | None = None, timeout_s: float = 300.0) -> None:
        """Run ``command`` (a list of words, no shell) when everything planned before it is done.

        ``undo`` takes it back; it must do no harm when ``command`` was cut off in the middle.
        """
        self.counts["commands"] += 1
        kept = self._kept or self.directory / KEPT
        words = movable(command, kept)
        self._describe(readable(words), "commands", None, "run")
        self._act(RUN, 0, b"", [words, None if undo is None else movable(undo, kept), timeout_s])
        self._tree = None

    def keep(self, name: str, chunks: Iterable[bytes | memoryview | Hole]) -> str:
        """Put a file beside the undo log for as long as that is kept, and return its absolute path.

        In check mode it lies in a temporary directory until ``close``.

        Raises:
            UnsafePathError: ``name`` would leave the directory.
            TargetError: There is no room.
        """
        refuse_unplain(os.fsencode(name or "."))
        if self._kept is None:
            self._kept = self._place_for_kept()
        path = self._kept / name
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, _NEW_FILE, 0o600)
            try:
                _pour(fd, chunks)
            finally:
                os.close(fd)
        except OSError as error:
            raise target_error(str(path), error) from error
        return str(path)

    def _place_for_kept(self) -> Path:
        if self.check:
            return Path(tempfile.mkdtemp(prefix="ted-check-"))
        self._prepare()
        return self.directory / KEPT

    def tell(self, item: Item) -> None:
        """Have it in the result what becomes of something that is no path."""
        same = item.before == item.after
        self.counts["unchanged" if same else item.what] += 1
        if len(self.items) < MAX_ITEMS:
            self.items.append(item)
        if not same:
            self._describe(item.name, item.what, item.before, item.after)

    def look(self, root: str, path: bytes) -> os.stat_result | None:
        """Return the status of what is at ``path`` now, links not followed; ``None`` when nothing is.

        Raises:
            UnsafePathError: As ``write``.
        """
        base, where = self._locate(root, path, make=False)
        return self._look(base, where)

    def mtime_ns(self, root: str, path: bytes, status: os.stat_result) -> int:
        """Return the modification time in ``status``, or that of before staging where staging changed it."""
        base, where = self._locate(root, path, make=False)
        return self._time(base, where, status)

    def opened(self, root: str) -> tuple[Base, bytes]:
        """Return the directory ``root`` lies in or is, and its path there: for reading what is at the target."""
        base, prefix = self._locate(root, b"", make=False)
        return self._bases[base], prefix

    def fail(self, root: str, path: bytes, error: OSError | TedError) -> None:
        """Record that ``path`` cannot be done and go on, with ``on_error: continue``; else raise.

        Raises:
            TargetError: ``on_error`` is ``fail``.
        """
        told = target_error(f"{root.rstrip('/')}/{show(path)}", error)
        if self.policy.on_error == "fail":
            raise told from error
        failure = Failure(told.path or "", told.errno or 0, told.message)
        if self.check:
            self._execution.record_failure(failure)
        else:
            self._prepare()
            self._execution.plan_failure(failure)

    def set_policy(self, policy: Policy) -> None:
        """Say what happens when an act fails; before the first act is planned.

        Raises:
            InstallError: Acts are planned already.
        """
        if self._next:
            raise InstallError("what happens on problems must be said before anything is planned")
        self.policy = policy
        self._execution.policy = policy

    def set_meta(self, meta: Mapping[str, Any]) -> None:
        """Replace what the owner wants to find again after a crash; before ``commit``."""
        self.meta = dict(meta)
        if self._plan is not None:
            self._write_head()

    @property
    def failures(self) -> tuple[Failure, ...]:
        """What could not be done until now, with ``on_error: continue``."""
        return tuple(self._execution.failures)

    def warn(self, text: str) -> None:
        """Have a sentence told with the result."""
        self._execution.warnings[text] += 1

    def own_name(self, name: bytes) -> bool:
        """Return whether ``name`` in a target is a transaction's staging, to be passed over by whoever lists it."""
        return self._bases.is_staging(name) or _STAGING.fullmatch(name) is not None

    # --- ending ---------------------------------------------------------------------------------------------------

    def commit(self) -> CommitResult:
        """Do everything that was planned; with nothing planned, nothing is touched.

        Raises:
            TargetError: An act failed. Everything was undone (``on_failure: rollback``), or what was done until then
                was left (``leave``), as ``state`` tells.
            UnsafePathError: A link came in the way meanwhile; as above.
        """
        if not self.check:
            if self._next == 0 and self._dirs_planned == 0:
                self.discard()
            else:
                assert self._plan is not None
                self._finish_ordered()
                self._dismiss()
                self._plan.flush()
                self._guard.check(self.directory / "plan")
                self._seal()
                self._execution.forward()
        return self._result()

    def undo(self) -> UndoResult:
        """Put back what was there before this transaction, and mark it undone; can be repeated after a crash."""
        self._close_logs()
        return self._execution.undo()

    def discard(self) -> None:
        """Drop a plan that was not committed: the target is as it was."""
        self._dismiss()
        self._close_logs()
        if self._bases.places and not self.check:
            self._bases.remove_staging()
            self._bases.restore_times(all_of_them=True)
        self.close()
        if not self.check:
            self.forget()

    def forget(self) -> None:
        """Remove the transaction's directory: it cannot be undone any more."""
        self.close()
        gone = self.directory.with_name(self.directory.name + _GONE)
        with contextlib.suppress(FileNotFoundError):
            # Renamed first: half of a directory must not look like a transaction that a crash cut off.
            os.rename(self.directory, gone)
            shutil.rmtree(gone)

    def close(self) -> None:
        """Let go of descriptors and of the lock; the directory stays."""
        self._dismiss()
        self._close_logs()
        self._bases.close()
        if self.check and self._kept is not None:
            shutil.rmtree(self._kept, ignore_errors=True)
            self._kept = None
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def __enter__(self) -> Transaction:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.check and self._lock_fd >= 0 and self.state is State.PLANNING:
            self.discard()
        self.close()

    def resume(self) -> State:
        """Bring a transaction that a crash cut off to an end, and return which.

        Raises:
            TedError: It could be neither finished nor undone; it stays as it is, to be tried again.
        """
        state = self.state
        if state is State.PLANNING:
            self.discard()
            return state
        if state is State.UNDOING or (state is State.COMMITTED and self._execution.command_was_cut()):
            self.undo()
        elif state is State.COMMITTED:
            self._execution.forward()
        return self.state

    # --- planning, the details ------------------------------------------------------------------------------------

    def _locate(self, root: str, path: bytes, *, make: bool = True) -> tuple[int, bytes]:
        """Return the base and the path below it; the directories down to ``root`` are planned when ``make``."""
        refuse_unplain(path)
        known = self._roots.get(root)
        if known is None:
            known = self._roots[root] = self._find_base(root)
        base, prefix, missing = known
        if make and missing:
            self._roots[root] = (base, prefix, [])
            for part in missing:
                if (base, part) not in self._made:
                    self._make_way(base, part)
        if not prefix or not path:
            return base, prefix or path
        return base, b"%s/%s" % (prefix, path)

    def _make_way(self, base: int, where: bytes) -> None:
        """Plan a directory on the way to a target."""
        tree = self._tree
        if tree is not None and tree.holds(base, where):
            with self._translating(base, where):
                self._grow(tree, where, _MADE_DIRECTORY)
        else:
            self._note("directories", base, where, _MADE_DIRECTORY, "directory")
            self._act(MKDIR, base, where, False)
        self._made[base, where] = True

    def _find_base(self, root: str) -> tuple[int, bytes, list[bytes]]:
        """Return the nearest directory on the way to ``root`` that is there, and what must be made below it."""
        if not root.startswith("/") or "\0" in root or ".." in root.split("/"):
            raise UnsafePathError(f"{root!r}: not a plain absolute path", hint="write the target's whole path")
        whole = posixpath.normpath("/" + root.lstrip("/"))
        present, missing = whole, list[str]()
        while not os.path.lexists(present):
            present, _, name = present.rpartition("/")
            missing.insert(0, name)
            present = present or "/"
        if not os.path.isdir(present):
            raise TargetError(
                f"{present}: is no directory, so {whole} cannot be a target",
                hint="remove it, or name another target",
                path=whole, errno=errno.ENOTDIR,
            )  # fmt: skip
        if not self.check:
            self._prepare()
        number = self._bases.add(present, durable=not self.check)
        made = [os.fsencode("/".join(missing[: depth + 1])) for depth in range(len(missing))]
        return number, made[-1] if made else b"", made

    def _prepare(self) -> None:
        """Make this transaction's directory, with its head, its lock and its empty plan."""
        if self._plan is not None:
            return
        self.directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # It has its name only when it is locked: a recovery that looks now must not take it for a left-over.
        new = self.directory.with_name(self.directory.name + _NEW)
        new.mkdir(mode=0o700)
        self._lock(new)
        os.rename(new, self.directory)
        self._write_head()
        (self.directory / "saved").mkdir(mode=0o700)
        self._plan = LogWriter(self.directory / "plan")
        self._dirs = LogWriter(self.directory / "dirs")

    def _write_head(self) -> None:
        head = {"format": 1, "policy": asdict(self.policy), "meta": self.meta}
        replace_file(self.directory / "meta.json", json.dumps(head).encode())

    def _lock(self, directory: Path) -> None:
        self._lock_fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock_fd)
            self._lock_fd = -1
            raise

    def _look(self, base: int, where: bytes) -> os.stat_result | None:
        try:
            if any(where.startswith(link + b"/") for number, link in self._links if number == base):
                return self._bases[base].glance(where)
            return self._bases[base].look(where)
        except PermissionError as error:
            raise target_error(self._bases[base].full(where), error) from error

    def _act(self, kind: str, base: int, where: bytes, data: Any) -> None:
        """Write an act to the plan; only look at it in check mode."""
        act = Act(kind, self._next, base, where, data)
        self._admit(act)
        if not self.check:
            self._plan_act(act)

    def _plan_act(self, act: Act) -> None:
        self._prepare()
        assert self._plan is not None
        self._plan.append(act.pack())
        self._next += 1
        if act.kind != RUN and b"/" not in act.path:
            self._bases.places[act.base].touched = True

    def _settle(self, base: int, where: bytes, wanted: Attributes) -> None:
        if (base, where) in self._made:
            self._made[base, where] = False
        if self.check:
            return
        self._prepare()
        assert self._dirs is not None
        self._dirs.append([base, where, attrs.pack(self.rights.reduce(wanted))])
        self._dirs_planned += 1

    # --- staging --------------------------------------------------------------------------------------------------

    def _staged_place(self, kind: str, base: int, where: bytes, data: Any) -> tuple[Act | None, int, bytes]:
        """Return the directory and name under which ``where`` is staged, and the act if it needs one of its own."""
        tree = self._tree
        if tree is not None and tree.holds(base, where):
            return None, *self._in_tree(tree, where)
        act = Act(kind, self._next, base, where, data)
        self._admit(act)
        return act, self._bases.staging_fd(base), b"%d" % act.number

    def _in_tree(self, tree: _Tree, where: bytes) -> tuple[int, bytes]:
        """Return where a path below a directory that is staged whole lies now."""
        return self._bases.staged(tree.base).parent(b"%d%s" % (tree.act, where[len(tree.path) :]))

    def _staged(self, act: Act | None, where: bytes, name: bytes, noted: tuple[int, int, int, int]) -> None:
        """Write down what was staged: its act, or that it is in the directory that is staged whole."""
        if act is not None:
            self._plan_act(act)
            self._execution.step("stage", act.number)
            return
        tree = self._tree
        assert tree is not None
        self._note_grown(tree.act, where[len(tree.path) + 1 : -len(name) - 1], name, noted)

    def _note_grown(self, act: int, directory: bytes, name: bytes, noted: Noted) -> None:
        """Write down what was made in a directory that is staged whole, after all that was ordered before."""
        crew = self._crew[1]
        if crew is not None:
            crew.noted(act, directory, name, noted)
        else:
            assert self._grown is not None
            self._grown.note(act, directory, name, noted)

    def _crew_for(self, base: int) -> Crew | None:
        """Return the workers for a base's staging directory, forked when the first file for them comes."""
        if self._source is None:
            return None
        number, crew = self._crew
        if number != base:
            self._finish_ordered()
            self._dismiss()
            assert self._grown is not None
            crew = Crew(self._bases.staged(base), self._source, self._grown)
            self._crew = (base, crew if crew.start() else None)
        return self._crew[1]

    def _finish_ordered(self) -> None:
        """Wait until all files that were ordered are made and noted.

        Raises:
            TedError: One of them could not be made.
        """
        if (crew := self._crew[1]) is not None:
            crew.finish()

    def _dismiss(self) -> None:
        """End the workers."""
        crew, self._crew = self._crew[1], (-1, None)
        if crew is not None:
            crew.close()

    def _write_again(
        self,
        tree: _Tree,
        directory: bytes,
        run: Run,
        rights: Sequence[PlainRights],
        failed: list[int],
        chunks: Callable[[Entry], Iterable[bytes | memoryview | Hole]],
    ) -> Iterator[tuple[bytes, Noted]]:
        """Make files that a worker could not make; some may be left out (``on_error: continue``)."""
        entries = run.entries("the manifest")
        for place in failed:
            entry = entries[place]
            where = join(directory, entry.path.rpartition(b"/")[2])
            held = Attributes(*rights[run.which[place]], entry.mtime_ns)
            try:
                at, name = self._in_tree(tree, where)
                inode, mtime_ns = self._stage_file(where, at, name, chunks(entry), entry.size, held)
            except UnsafePathError:
                raise
            except (OSError, TargetError) as error:
                self.fail(self._bases[tree.base].path, where, error)
            else:
                yield name, (stat.S_IFREG, inode, entry.size, mtime_ns)

    def _create(self, where: bytes, make: Callable[[], Made]) -> Made:
        """Call ``make``, which makes something at ``where`` in the staging directory.

        Raises:
            InstallError: It is there already, or what was staged in its way is no directory.
        """
        try:
            return make()
        except (FileExistsError, NotADirectoryError) as error:
            self._refuse_staging(where, error)

    def _refuse_staging(self, where: bytes, error: OSError) -> NoReturn:
        if isinstance(error, NotADirectoryError):
            self._guard.refuse_below(where)
        self._guard.refuse_twice(where)

    def _begin_tree(self, base: int, where: bytes) -> bool:
        """Stage the directory ``where``, which is not there, whole from now on; False where that cannot be done.

        It cannot be in another that is staged and closed, nor on a file system mounted below the base.
        """
        if self.check or len(self._trees) >= _MAX_TREES or self._tree_above(base, where) is not None:
            return False
        self._prepare()
        if not self._on_the_base_itself(base, where.rpartition(b"/")[0]):
            return False
        with self._translating(base, where):
            staging, name = self._bases.staging_fd(base), str(self._next).encode()
            os.mkdir(name, 0o700, dir_fd=staging)
            inode = os.stat(name, dir_fd=staging, follow_symlinks=False).st_ino
        act = Act(TREE, self._next, base, where, inode)
        self._guard.admit(act)
        self._plan_act(act)
        self._execution.step("stage", act.number)
        self._tree = self._trees[base, where] = _Tree(act.number, base, where)
        if self._grown is None:
            self._grown = TreeWriter(self.directory, partial(self._execution.step, "stage"))
        return True

    def _plan_directory(self, base: int, where: bytes, status: os.stat_result | None, replace_link: bool) -> None:
        """Plan what makes ``where`` a directory, where ``status`` is what is there or is staged there."""
        if status is None and self._begin_tree(base, where):
            return
        if self._in_staged_tree(base, where) is None:
            self._act(MKDIR, base, where, replace_link)

    def _on_the_base_itself(self, base: int, parent: bytes) -> bool:
        if self._same_mount[:2] != (base, parent):
            above, fd = parent, -1
            while fd < 0:  # a parent that is planned will be made where its own parent is
                try:
                    fd = self._bases[base].directory(above)
                except (OSError, UnsafePathError):
                    above = above.rpartition(b"/")[0]
            self._same_mount = (base, parent, mount_of(fd) == mount_of(self._bases[base].fd))
        return self._same_mount[2]

    def _grow(self, tree: _Tree, where: bytes, attributes: Attributes | None) -> None:
        """Make a directory in the one that is staged whole."""
        at, name = self._in_tree(tree, where)
        try:
            os.mkdir(name, 0o700, dir_fd=at)
        except FileExistsError:  # two targets may lead through it
            if not stat.S_ISDIR(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode):
                self._guard.refuse_twice(where)
            return
        except NotADirectoryError:
            self._guard.refuse_below(where)
        self._note("directories", tree.base, where, attributes, "directory")
        self._staged(None, where, name, _noted(os.stat(name, dir_fd=at, follow_symlinks=False)))

    def _tree_above(self, base: int, where: bytes) -> _Tree | None:
        """Return the directory, staged whole, that holds ``where``."""
        while self._trees and where:
            where = where.rpartition(b"/")[0]
            if (base, where) in self._trees:
                return self._trees[base, where]
        return None

    def _in_staged_tree(self, base: int, where: bytes) -> os.stat_result | None:
        """Return the status of what a directory that is staged whole holds at ``where``."""
        tree = self._tree_above(base, where)
        if tree is None:
            return None
        self._finish_ordered()
        return self._bases.staged(base).look(b"%d%s" % (tree.act, where[len(tree.path) :]))

    def _admit(self, act: Act) -> None:
        """Refuse an act on a path that is acted on already, as far as can be told now."""
        self._guard.admit(act)
        if act.kind == RUN or not self._trees or self.check:
            return
        if self._in_staged_tree(act.base, act.path) is not None:
            self._guard.refuse_twice(act.path)
        if self._tree is not None and self._tree.holds(act.base, act.path):
            self._tree = None  # an act of its own follows in it, so nothing more may grow there before that

    def _link_staged(self, tree: _Tree, first: bytes, at: int, name: bytes) -> os.stat_result:
        first_at, first_name = self._in_tree(tree, first)
        try:
            os.link(first_name, name, src_dir_fd=first_at, dst_dir_fd=at, follow_symlinks=False)
        except OSError as error:
            if error.errno not in NO_HARDLINK:
                raise
            status = os.stat(first_name, dir_fd=first_at, follow_symlinks=False)
            Performer.copy_first(first_name, first_at, status, at, name)
        return os.stat(name, dir_fd=at, follow_symlinks=False)

    def _stage_file(
        self,
        where: bytes,
        at: int,
        name: bytes,
        chunks: Iterable[bytes | memoryview | Hole],
        size: int,
        held: Attributes,
    ) -> tuple[int, int]:
        """Make the file ``name`` in the directory ``at``, whole or not at all; return its inode and time."""
        try:
            fd = os.open(name, _NEW_FILE, 0o600, dir_fd=at)
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            self._refuse_staging(where, error)
        try:
            written = _pour(fd, chunks)
            if written != size:
                raise InstallError(f"content of {written} bytes where {size} were announced")
            if held.mode is None:
                held = replace(held, mode=_DEFAULT_FILE_MODE)
            status = os.fstat(fd)
            if trouble := attrs.set_open(fd, held, status):
                self._warn(trouble)
            return status.st_ino, status.st_mtime_ns if held.mtime_ns is None else held.mtime_ns
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=at)
            raise
        finally:
            os.close(fd)

    def _note(self, count: str, base: int, where: bytes, wanted: Attributes | None, after: str | None) -> None:
        self.counts[count] += 1
        if not self._diff or len(self.changes) >= MAX_CHANGES:
            return
        status = self._look(base, where)
        before = None if status is None else describe(self._bases[base], where, status, self._time(base, where, status))
        if after is not None and wanted is not None:
            after = f"{after}{describe_wanted(wanted)}"
        elif wanted is not None:
            after = describe_wanted(wanted).lstrip(", ")
        self._describe(self._bases[base].full(where), count, before, after)
        if status is not None and stat.S_ISDIR(status.st_mode) and count != "attributes":
            self._describe_lost(self._bases[base], where)

    def _describe_lost(self, base: Base, directory: bytes) -> None:
        """Describe what goes with a directory."""
        for path, status in walk_below(base, directory):
            if len(self.changes) >= MAX_CHANGES:
                return
            self._describe(base.full(path), "deleted", describe(base, path, status, status.st_mtime_ns), None)

    def _describe(self, path: str, change: str, before: str | None, after: str | None) -> None:
        if self._diff and len(self.changes) < MAX_CHANGES:
            self.changes.append(Change(path, change, before, after))

    @contextlib.contextmanager
    def _translating(self, base: int, where: bytes) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise target_error(self._bases[base].full(where), error) from error

    def _time(self, base: int, where: bytes, status: os.stat_result) -> int:
        return self._bases.times.get(self._bases[base].full(where), status.st_mtime_ns)

    def _reduced(self, wanted: Attributes, *, files: int = 1) -> Attributes:
        """Return what of ``wanted`` this process may set; what it may not is told once, with a count."""
        held = self.rights.reduce(wanted)
        if (held.owner, held.group) != (wanted.owner, wanted.group):
            self._execution.warnings["owner or group not set: only root may give files away"] += files
        return held

    def _warn(self, trouble: list[str]) -> None:
        self._execution.warnings.update(trouble)

    def _seal(self) -> None:
        """Make staged content and plan durable, then mark the plan as whole."""
        try:
            self._seal_durably()
        except OSError as error:
            raise target_error(error.filename or str(self.directory), error) from error
        self._execution.step("commit")

    def _seal_durably(self) -> None:
        assert self._plan is not None
        assert self._dirs is not None
        for base, where in [made for made, plain in self._made.items() if plain]:
            self._settle(base, where, _MADE_DIRECTORY)
        self._dirs.sync()
        self._plan.flush()
        if self._grown is not None:
            self._grown.sync()
        self._execution.sync_failures()
        self._execution.sync_targets()
        if self._kept is not None:
            sync_filesystem(str(self.directory))
        self._plan.append(["commit", self._next, [place.touched for place in self._bases.places]])
        self._plan.sync()
        sync_directory(self.directory)
        sync_directory(self.directory.parent)

    def _close_logs(self) -> None:
        for log in (self._plan, self._dirs, self._grown):
            if log is not None:
                log.close()
        self._execution.close()

    def _result(self) -> CommitResult:
        warnings = tuple(
            text if count == 1 else f"{text} ({count} times)" for text, count in self._execution.warnings.items()
        )
        return CommitResult(dict(self.counts), tuple(self._execution.failures), warnings)


def recover(
    directory: Path, *, only: Callable[[Mapping[str, Any]], bool] = lambda _meta: True, on_act: OnAct | None = None
) -> list[Recovered]:
    """Bring every transaction below ``directory`` that a crash cut off to an end.

    Those another process works on are passed over. A transaction that cannot be brought to an end now (a full disk,
    say) is reported with its error and stays for the next time.

    Args:
        directory: Where transactions lie.
        only: Chooses by what the owner wrote into ``meta``; nothing else is touched.
        on_act: Told after each step.

    Returns:
        Every transaction that is there, in the order they began, with its state; discarded plans are not told.
    """
    found: list[Recovered] = []
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        if path.suffix in (_GONE, _NEW):
            _clear(path)
            continue
        try:
            transaction = Transaction.open(path, on_act=on_act)
        except (BlockingIOError, NotADirectoryError, FileNotFoundError):
            continue
        except (FormatError, OSError) as failed:
            found.append(Recovered(path, {}, State.PLANNING, target_error(str(path), failed).message))
            continue
        error: str | None = None
        try:
            if transaction.meta and not only(transaction.meta):
                continue
            state = transaction.resume()
        except (TedError, OSError) as failed:
            error, state = target_error(str(path), failed).message, transaction.state
        finally:
            transaction.close()
        if state is not State.PLANNING:
            found.append(Recovered(path, transaction.meta, state, error))
    return found


def _clear(path: Path) -> None:
    """Remove what is left of a transaction that was being removed, or that never got its name."""
    with contextlib.suppress(OSError):  # the next time, then
        if path.suffix == _GONE or time.time() - path.stat().st_mtime > _NEW_FOR_S:
            shutil.rmtree(path)


def foretell_undo(directory: Path, *, diff: bool = False) -> tuple[dict[str, int], list[Change]]:
    """Return what undoing the transaction in ``directory`` would do: counts by name, and the first changes in words."""
    counts: Counter[str] = Counter()
    changes: list[Change] = []
    bases = Bases(directory, directory.name)
    bases.load()
    with LogReader(directory / "undo") as log, contextlib.closing(TreeReader(directory)) as trees:
        for record in log.backwards():
            if record[0] == "tree":
                _foretell_tree(trees, bases, record, counts, changes, diff=diff)
                continue
            told = _UNDO_WORDS.get(record[0])
            if told is None or (record[0] == "run" and record[2] is None):
                continue
            counts[told] += 1
            if diff and len(changes) < MAX_CHANGES:
                root = "" if record[0] == "run" else bases.places[record[2]].path.rstrip("/") + "/"
                path = readable(record[2]) if record[0] == "run" else show(record[3])
                changes.append(Change(root + path, told, None, None))
    return dict(counts), changes


def _foretell_tree(
    trees: TreeReader, bases: Bases, record: list[Any], counts: Counter[str], changes: list[Change], *, diff: bool
) -> None:
    _, act, number, path = record
    root = bases.places[number].path.rstrip("/")
    found = itertools.chain((grown.path for rows in trees.rows(act) for grown in rows), [b""])
    for below in found:
        counts["deleted"] += 1
        if diff and len(changes) < MAX_CHANGES:
            changes.append(Change(f"{root}/{show(join(path, below))}", "deleted", None, None))


_UNDO_WORDS = {
    "absent": "deleted", "file": "restored", "link": "restored", "made": "restored", "attrs": "attributes",
    "run": "commands",
}  # fmt: skip


def _noted(status: os.stat_result) -> tuple[int, int, int, int]:
    return stat.S_IFMT(status.st_mode), status.st_ino, status.st_size, status.st_mtime_ns


def _pour(fd: int, chunks: Iterable[bytes | memoryview | Hole]) -> int:
    """Write ``chunks`` and return the size; holes stay holes."""
    size = 0
    ends_in_hole = False
    for chunk in chunks:
        if isinstance(chunk, bytes | bytearray | memoryview):
            written = os.write(fd, chunk)
            while written < len(chunk):
                written += os.write(fd, memoryview(chunk)[written:])
            size += written
            ends_in_hole = False
        else:
            size += chunk.length
            os.lseek(fd, chunk.length, os.SEEK_CUR)
            ends_in_hole = True
    if ends_in_hole:
        os.ftruncate(fd, size)
    return size
