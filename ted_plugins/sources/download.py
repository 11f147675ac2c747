"""One file on its way into a mirror: written beside, verified, renamed; and what is kept of it when it is cut.

Rules:
 * Bytes go to a file of another name, which is dropped, or goes on, at the next try. It goes on only where its label
   says the same version as the source does, and only while this machine runs: what was on its way to the disk at a
   power cut has the right size and any content.
 * The label is written before the file is made, and leaves after it: it never speaks of other bytes. What a kill left
   without its other half goes before the next refresh (``tidy``).
 * Not a byte more than announced is written, nor more than the whole source may have.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from ted.errors import BuildError, TransferError
from ted_plugins.sources.index import Row, boot, stamp_of
from ted_plugins.sources.rate import Rate
from ted_plugins.sources.workers import Stopped

RESUME_BYTES = 1 << 20
"""What is shorter than this is begun anew after a cut."""

Progress = Callable[[int, int | None, str], None]
"""Is told of bytes done, bytes in all (``None``: not known) and what it is about."""


class Remote(NamedTuple):
    """A file as the source lists it; what the listing does not say is ``None``.

    ``size_bytes`` must be exact. Two listings with equal size, time, ``validator`` and digest mean the same content,
    if the first one was ``settled``: a change after it would have shown in the second.
    """

    path: str
    """Where in the mirror: relative, with ``/``."""
    size_bytes: int | None = None
    mtime_ns: int | None = None
    validator: str | None = None
    digest: str | None = None
    """What the content must hash to: ``sha256:...``, or another algorithm of ``hashlib``."""
    settled: bool = False
    handle: Any = None
    """The source's own: an address, say. Neither compared nor kept."""
    mode: int = 0o644

    @property
    def listed(self) -> str:
        """Everything that says which version it is, as one text."""
        return repr((*self[1:5], self.mode))


class Known(NamedTuple):
    """The version of a file that the mirror has, whole."""

    size_bytes: int
    mtime_ns: int
    validator: str | None
    """What the source called it in ``Download.begin``."""
    as_listed: bool
    """Whether the source lists the file now as it did then."""


class Partial(NamedTuple):
    """The beginning of a file that an earlier try left."""

    size_bytes: int
    validator: str


class Task(NamedTuple):
    """A file to fetch, and its row if the version there may be the right one."""

    remote: Remote
    held: Row | None


class Fetched(NamedTuple):
    """A file that is now as the source has it."""

    row: Row
    changed: bool


class Totals:
    """Counts of one refresh, of all its threads."""

    def __init__(self, most_bytes: int) -> None:
        self.fetched = self.unchanged = self.come_bytes = 0
        self._most_bytes = most_bytes
        self._all_bytes = self._done_bytes = self._unknown = 0
        self._lock = threading.Lock()

    def expect(self, size_bytes: int | None) -> None:
        """A file was listed."""
        with self._lock:
            self._unknown += size_bytes is None
            self._add(size_bytes or 0)

    def learn(self, more_bytes: int, *, certain: bool) -> None:
        """A file turned out larger (or smaller) than listed; or it becomes unknown again."""
        with self._lock:
            self._unknown += -1 if certain else 1
            self._add(more_bytes)

    def come(self, count: int) -> tuple[int, int | None]:
        """Bytes came; return how much is done, and of how much."""
        with self._lock:
            self.come_bytes += count
            self._done_bytes += count
            if self._done_bytes > self._most_bytes:
                self._refuse()
            return self._done_bytes, None if self._unknown > 0 else self._all_bytes

    def settle(self, count: int) -> None:
        """Bytes need not come (or those that came are of no use, when negative)."""
        with self._lock:
            self._done_bytes += count

    def _add(self, count: int) -> None:
        self._all_bytes += count
        if self._all_bytes > self._most_bytes:
            self._refuse()

    def _refuse(self) -> None:
        raise BuildError(f"the source has more than {self._most_bytes} bytes",
                         hint="narrow it down, or raise max_bytes")  # fmt: skip


@dataclass
class Desk:
    """What the downloads of one refresh share."""

    name: str
    files: Path
    parts: Path
    rate: Rate
    totals: Totals
    progress: Progress | None
    goes_on: bool
    """Whether an earlier build left beginnings of files."""
    stop: threading.Event = field(default_factory=threading.Event)

    @cached_property
    def top(self) -> str:
        """``files``, as a text."""
        return str(self.files)

    def place(self, path: str) -> str:
        """Return where a file of the mirror is."""
        return f"{self.top}/{path}"


class Download:
    """One file on its way, as the source that fetches it sees it.

    The source calls ``unchanged()``, or ``begin()`` and then ``write()`` for each piece. ``begin()`` again starts over.
    Where another program does the fetching, it calls ``outside()``, ``grown()`` now and then, and ``came()``.
    """

    def __init__(self, task: Task, desk: Desk, *, again: bool = False) -> None:
        self.remote = task.remote
        self._held, self._desk = task.held, desk
        self._part = _Part(desk.parts, task.remote.path, may_be_there=again or desk.goes_on)
        self._fd: int | None = None
        self._unchanged = self._resumed = False
        self._expected: int | None = None
        self._size = self._counted = 0
        self._learned: int | None = None
        self._validator: str | None = None
        self._mtime_ns: int | None = None
        self._settled: bool | None = None
        self._hashes: dict[str, Any] = {}

    @property
    def known(self) -> Known | None:
        """The version that is here; the source may say that it is still the right one."""
        held = self._held
        if held is None:
            return None
        return Known(held.size_bytes, held.mtime_ns, held.validator, held.listed == self.remote.listed)

    @property
    def partial(self) -> Partial | None:
        """The beginning of a version that is here; the source may go on from there, if it still has that version."""
        return self._part.found()

    def unchanged(self, *, settled: bool | None = None) -> None:
        """Say that what is here (``known``) is what the source has.

        Args:
            settled: As ``Remote.settled``, if that is known only now.
        """
        self._settled = settled
        if self._held is None:
            raise TransferError(f"{self.remote.path}: said to be unchanged, but it is not here")
        self._unchanged = True

    def begin(
        self,
        *,
        offset_bytes: int = 0,
        validator: str | None = None,
        size_bytes: int | None = None,
        mtime_ns: int | None = None,
        settled: bool | None = None,
    ) -> None:
        """Say what comes now.

        Args:
            offset_bytes: Where it begins: 0, or where ``partial`` ends, of that same version.
            validator: What the source calls this version. Equal texts must mean equal bytes; leave it out where that
                is not certain.
            size_bytes: Size of the whole file; else that of the listing.
            mtime_ns: Its time, since 1970; else that of the listing, else 0.
            settled: As ``Remote.settled``, if that is known only now.

        Raises:
            BuildError: More than the source may have.
        """
        self.close()
        self._take_back()
        self._expected = size_bytes if size_bytes is not None else self.remote.size_bytes
        self._validator, self._mtime_ns, self._settled = validator, mtime_ns, settled
        self._hashes = _hashes(self.remote.digest)
        self._resumed = offset_bytes > 0
        self._fd = self._go_on(offset_bytes) if offset_bytes else self._create()
        self._size = offset_bytes
        if self._expected is not None and self._expected != self.remote.size_bytes:
            self._learned = self._expected - (self.remote.size_bytes or 0)
            self._desk.totals.learn(self._learned, certain=self.remote.size_bytes is None)

    def write(self, data: bytes) -> None:
        """Take the next bytes; waits where a rate is set.

        Raises:
            TransferError: More than was announced.
            BuildError: More than the source may have.
        """
        step = self._desk.rate.step_bytes
        if step is None:
            self._write(data)
            return
        left = memoryview(data)
        while left:
            self._desk.rate.take(min(step, len(left)))
            self._write(left[:step])
            left = left[step:]

    def _write(self, data: bytes | memoryview) -> None:
        if self._desk.stop.is_set():
            raise Stopped
        if self._fd is None:
            raise AssertionError("write() before begin()")
        self._size += len(data)
        if self._expected is not None and self._size > self._expected:
            self._part.drop()
            raise TransferError(f"{self.remote.path}: more comes than its {self._expected} bytes")
        self._counted += len(data)
        done, total = self._desk.totals.come(len(data))
        for each in self._hashes.values():
            each.update(data)
        written = os.write(self._fd, data)
        while written < len(data):
            written += os.write(self._fd, data[written:])
        if self._desk.progress is not None:
            self._desk.progress(done, total, self._desk.name)

    def outside(self, *, offset_bytes: int = 0, validator: str | None = None, size_bytes: int | None = None) -> str:
        """Say what comes now, as ``begin`` does, and return the file that another program is to write (on) to."""
        self.begin(offset_bytes=offset_bytes, validator=validator, size_bytes=size_bytes)
        self.close()
        return self._part.path

    def grown(self, size_bytes: int) -> None:
        """Take note of how long the file is that another program writes.

        Raises:
            TransferError: It is longer than announced.
            BuildError: It is longer than the source may be.
        """
        if self._desk.stop.is_set():
            raise Stopped
        if self._expected is not None and size_bytes > self._expected:
            raise TransferError(f"{self.remote.path}: more comes than its {self._expected} bytes")
        more = max(0, size_bytes - self._size)
        self._size += more
        self._counted += more
        done, total = self._desk.totals.come(more)
        if self._desk.progress is not None:
            self._desk.progress(done, total, self._desk.name)

    def came(self, *, validator: str | None = None, mtime_ns: int | None = None) -> None:
        """Take what another program wrote, and what turned out to be its version and its time."""
        self._validator, self._mtime_ns = validator, mtime_ns
        self._fd = self._part.reopen()
        self.grown(os.fstat(self._fd).st_size)
        self._hashes = _hashes(self.remote.digest)
        for piece in self._part.pieces():
            self._hash(piece)

    def shorten(self, unsure_bytes: int) -> None:
        """Take so many bytes off the end of ``partial``: what another program wrote last may have holes."""
        partial = self.partial
        if partial is not None:
            os.truncate(self._part.path, max(0, partial.size_bytes - unsure_bytes))

    def finish(self) -> Fetched:
        """Verify what came and give it its name; for the mirror only.

        Raises:
            TransferError: It is not whole.
            BuildError: It is not what was promised.
        """
        remote, held = self.remote, self._held
        settled = remote.settled if self._settled is None else self._settled
        if self._unchanged and held is not None:
            self._desk.totals.settle(held.size_bytes)
            row = held._replace(listed=remote.listed, settled=settled)
            place = self._desk.place(remote.path)
            if stat.S_IMODE(os.lstat(place).st_mode) != remote.mode:
                os.chmod(place, remote.mode)
                row = row._replace(stamp=stamp_of(place)[1])
            return Fetched(row, changed=False)
        if self._fd is None:
            raise TransferError(f"{remote.path}: nothing came")
        self._verify()
        at = next((each for each in (self._mtime_ns, remote.mtime_ns) if each is not None), 0)
        os.fchmod(self._fd, remote.mode)
        os.utime(self._fd, ns=(at, at))
        _rename(self._part.path, self._desk.place(remote.path), self._desk.top)
        self._part.renamed()
        self._counted, self._learned = 0, None
        status, stamp = stamp_of(self._fd)
        self.close()
        digest = f"sha256:{self._hashes['sha256'].hexdigest()}"
        row = Row(remote.path, remote.listed, settled, remote.digest, status.st_size, status.st_mtime_ns,
                  self._validator, digest, stamp)  # fmt: skip
        changed = held is None or (held.digest, held.mtime_ns) != (digest, status.st_mtime_ns)
        return Fetched(row, changed)

    def fail(self) -> None:
        """End a try that failed; what can go on stays. For the mirror only."""
        self.close()
        self._take_back()

    def close(self) -> None:
        """Close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _create(self) -> int:
        size = self._expected
        return self._part.create(self._validator if size is None or size >= RESUME_BYTES else None)

    def _go_on(self, offset_bytes: int) -> int:
        partial = self.partial
        if partial is None or partial != (offset_bytes, self._validator):
            raise TransferError(f"{self.remote.path}: goes on where nothing ended")
        for piece in self._part.pieces():
            self._hash(piece)
        self._desk.totals.settle(offset_bytes)
        self._counted = offset_bytes
        return self._part.reopen()

    def _take_back(self) -> None:
        """Count as if this try had not been."""
        if self._counted:
            self._desk.totals.settle(-self._counted)
        if self._learned is not None:
            self._desk.totals.learn(-self._learned, certain=self.remote.size_bytes is not None)
        self._counted, self._learned = 0, None

    def _hash(self, data: bytes | memoryview) -> None:
        for each in self._hashes.values():
            each.update(data)

    def _verify(self) -> None:
        path = self.remote.path
        if self._expected is not None and self._size != self._expected:
            raise TransferError(f"{path}: {self._size} of {self._expected} bytes came")
        if self.remote.digest is None:
            return
        algorithm, _, wanted = self.remote.digest.partition(":")
        found = self._hashes[algorithm].hexdigest()
        if found == wanted.lower():
            return
        self._part.drop()
        if self._resumed:
            raise TransferError(f"{path}: went on where it was cut, and its {algorithm} is not as promised")
        raise BuildError(f"{path}: its {algorithm} is {found}, {wanted} was promised",
                         hint="is the source being changed at this moment? else do not trust it")  # fmt: skip


class _Part:
    """The file beside, and the label that says which version it begins."""

    def __init__(self, directory: Path, path: str, *, may_be_there: bool) -> None:
        self.path = f"{directory}/{hashlib.sha256(os.fsencode(path)).hexdigest()[:40]}"
        self._label = f"{self.path}.json"
        self._may_be_there, self._labelled = may_be_there, False

    def found(self) -> Partial | None:
        if not self._may_be_there:
            return None
        try:
            with open(self._label, encoding="utf-8") as file:
                label = json.load(file)
            size = os.lstat(self.path).st_size
        except (OSError, ValueError):
            return None
        self._labelled = True
        return Partial(size, label["validator"]) if size and label["boot"] == boot() else None

    def create(self, validator: str | None) -> int:
        if self._may_be_there:
            self.drop()
        self._may_be_there = True
        if validator is not None:
            self._labelled = True
            with open(f"{self._label}.new", "w", encoding="utf-8") as file:
                json.dump({"validator": validator, "boot": boot()}, file)
            os.rename(f"{self._label}.new", self._label)
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def reopen(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)

    def pieces(self) -> Iterator[bytes]:
        with open(self.path, "rb") as file:
            while piece := file.read(1 << 20):
                yield piece

    def renamed(self) -> None:
        if self._labelled:
            os.unlink(self._label)

    def drop(self) -> None:
        self._labelled = False
        for name in (self.path, self._label):
            with suppress(FileNotFoundError):
                os.unlink(name)


def tidy(parts: Path) -> bool:
    """Remove beginnings without a label and labels without a beginning; return whether any are left."""
    names = {each.name for each in parts.iterdir()}
    for name in names:
        stem, dot, kind = name.partition(".")
        if kind == "json.new" or (dot and stem not in names) or (not dot and f"{name}.json" not in names):
            (parts / name).unlink()
    return any(parts.iterdir())


def _hashes(promised: str | None) -> dict[str, Any]:
    found = {"sha256": hashlib.sha256()}
    if promised is None or promised.startswith("sha256:"):
        return found
    name = promised.partition(":")[0]
    try:
        return found | {name: hashlib.new(name, usedforsecurity=False)}
    except ValueError:
        raise BuildError(f"digests as {promised!r} are not known here") from None


def _rename(part: str, place: str, top: str) -> None:
    """Give a file its name, in place of whatever an earlier listing had there."""
    try:
        os.rename(part, place)
    except IsADirectoryError:
        shutil.rmtree(place)
        os.rename(part, place)
    except (FileNotFoundError, NotADirectoryError):
        _make_way(os.path.dirname(place), top)
        os.rename(part, place)


def _make_way(directory: str, top: str) -> None:
    above = directory
    while len(above) > len(top):
        with suppress(OSError):
            if not stat.S_ISDIR(os.lstat(above).st_mode):
                os.unlink(above)
        above = os.path.dirname(above)
    os.makedirs(directory, mode=0o755, exist_ok=True)
