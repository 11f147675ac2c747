"""The working directory: where distributions lie, under which names.

Rules:
 * Names of nodes and distributions are checked before they become paths; nothing else becomes one.
 * A revision is a directory named by a stamp that holds a record. Without one it is only a pack that others refer to.
 * ``_TEMP`` directories belong to a builder; those whose builder is dead are removed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from ted.content.blocks import BITMAP_NAME, BLOCKS_NAME, PACK_NAME
from ted.content.durable import read_bounded, replace_file, sync_directory
from ted.content.record import (
    MAX_RECORD_BYTES,
    RevisionRecord,
    canonical_json,
    is_name,
    is_stamp,
)
from ted.errors import HOW_TO_MEND, BuildError, FormatError, MissingContentError, UnknownNameError, UsageError

RECORD_NAME = "REVISION.TED"
STATUS_NAME = "DISTSTATUS.TED"
TEMP_SUFFIX = "_TEMP"
LOCK_NAME = ".build.lock"
STATE_NAME = ".ted"
CATALOG_NAME = ".catalog"
_MAX_STATUS_BYTES = 4096
NAMES = (STATUS_NAME, RECORD_NAME, PACK_NAME, BITMAP_NAME, BLOCKS_NAME)


class BuildLock:
    """Held by the one builder of a distribution; the kernel takes it back when the process ends."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / LOCK_NAME
        self._file: IO[str] | None = None

    def __enter__(self) -> BuildLock:
        if not self.acquire():
            holder = self._path.read_text(errors="replace")[:20].strip() or "unknown"
            raise BuildError(
                f"another build of {self._path.parent.name} is running (process {holder})",
                hint="wait until it is done",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> bool:
        """Take the lock; false if a live process holds it."""
        file = open(self._path, "a+", encoding="ascii")  # noqa: SIM115 -- closed by release()
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file
        return True

    def release(self) -> None:
        """Give the lock back."""
        if self._file is not None:
            self._file.close()
            self._file = None


def stamps(directory: Path) -> list[str]:
    """Return the stamps of all revisions and packs in a distribution's directory, oldest first."""
    names = os.listdir(directory) if directory.is_dir() else []
    return sorted(name for name in names if is_stamp(name))


def record_stamps(directory: Path) -> list[str]:
    """Return the stamps of the revisions (what has a record) in a distribution's directory, oldest first."""
    return [stamp for stamp in stamps(directory) if (directory / stamp / RECORD_NAME).is_file()]


def read_record(directory: Path) -> tuple[RevisionRecord, bytes]:
    """Return the record in a revision's directory, and its bytes as they were signed.

    Raises:
        MissingContentError: There is none.
        FormatError: It is none, or of another revision.
    """
    data = read_bounded(directory / RECORD_NAME, MAX_RECORD_BYTES)
    if data is None:
        raise MissingContentError(f"{directory}: no {RECORD_NAME}", hint=HOW_TO_MEND)
    try:
        record = RevisionRecord.from_bytes(data)
    except FormatError as error:
        raise FormatError(f"{directory / RECORD_NAME}: {error.message}", hint=error.hint) from error
    if record.revision != directory.name:
        raise FormatError(f"{directory}: holds the record of {record.revision}", hint="remove that directory")
    return record, data


def clean_temporary(directory: Path) -> list[Path]:
    """Remove what dead builders left in a distribution's directory; the caller holds its lock."""
    removed = []
    for name in os.listdir(directory):
        if name.endswith(TEMP_SUFFIX) and is_stamp(name.removesuffix(TEMP_SUFFIX)):
            shutil.rmtree(directory / name)
            removed.append(directory / name)
    return removed


class WorkingDirectory:
    """The working directory of a node."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    # paths

    @property
    def state(self) -> Path:
        """Where the node's own state lies."""
        return self.path / STATE_NAME

    def catalog(self, distributor: str) -> Path:
        """Return the directory of a Distributor's catalog."""
        return self.path / _checked(distributor) / CATALOG_NAME

    def build_cache(self, distribution: str) -> Path:
        """Return the file that remembers the last build of a distribution of this node."""
        return self.state / "build" / f"{_checked(distribution)}.cache"

    def lock_path(self, name: str) -> Path:
        """Return the file of a lock of this node."""
        return self.state / "locks" / f"{_checked(name)}.lock"

    def distribution(self, distributor: str, distribution: str) -> Path:
        """Return the directory of a distribution.

        Raises:
            UsageError: That cannot be a name.
        """
        return self.path / _checked(distributor) / _checked(distribution)

    def revision(self, distributor: str, distribution: str, stamp: str) -> Path:
        """Return the directory of a revision.

        Raises:
            UsageError: That cannot be a name or stamp.
        """
        if not is_stamp(stamp):
            raise UsageError(f"{stamp!r:.60} is not a revision", hint="revisions look like 20261122T125447123456Z")
        return self.distribution(distributor, distribution) / stamp

    # what is there

    def distributions(self) -> list[tuple[str, str]]:
        """Return (distributor, distribution) of everything here, sorted."""
        return sorted((above.name, below.name) for above in _directories(self.path) for below in _directories(above))

    def revisions(self, distributor: str, distribution: str) -> list[str]:
        """Return the stamps of the revisions that have a record, oldest first."""
        return record_stamps(self.distribution(distributor, distribution))

    def received(self, distributor: str, distribution: str) -> list[str]:
        """Return the stamps of the revisions that are here as a whole, oldest first."""
        return [
            stamp
            for stamp in self.revisions(distributor, distribution)
            if self.is_received(distributor, distribution, stamp)
        ]

    def record(self, distributor: str, distribution: str, stamp: str) -> RevisionRecord:
        """Return the record of a revision; its signature is somebody else's to check.

        Raises:
            UnknownNameError: There is no such revision.
            FormatError: It is not a record, or of something else.
        """
        try:
            record, _ = read_record(self.revision(distributor, distribution, stamp))
        except MissingContentError as error:
            raise UnknownNameError(
                f"no revision {stamp} of {distribution} from {distributor} here", hint="`ted status` lists what is here"
            ) from error
        if (record.distributor, record.distribution) != (distributor, distribution):
            raise FormatError(
                f"{self.revision(distributor, distribution, stamp)}: holds a record of {record.distribution} "
                f"from {record.distributor}",
                hint="remove that directory; it is fetched again",
            )
        return record

    def is_received(self, distributor: str, distribution: str, stamp: str) -> bool:
        """Whether a revision is here as a whole: received to its end, or built here."""
        directory = self.revision(distributor, distribution, stamp)
        if (directory / STATUS_NAME).is_file():
            return True
        return (directory / PACK_NAME).is_file() and not (directory / BITMAP_NAME).exists()

    def mark_received(self, distributor: str, distribution: str, stamp: str, *, target: bool = False) -> None:
        """Write ``DISTSTATUS.TED``; the last thing that is done for a revision that was received.

        Args:
            distributor: The Distributor.
            distribution: The distribution.
            stamp: The revision.
            target: Whether it is for this node: said in the same act, so that no kill comes between.

        Raises:
            MissingContentError: There is no record to vouch for.
        """
        directory = self.revision(distributor, distribution, stamp)
        _, data = read_record(directory)
        status = {"format": 1, "record": hashlib.sha256(data).hexdigest()}
        if target or self.is_target(distributor, distribution, stamp):  # or it is here for the second time
            status["target"] = True
        replace_file(directory / STATUS_NAME, canonical_json(status))

    def record_received(self, distributor: str, distribution: str, stamp: str) -> str | None:
        """Return the SHA-256 (hex) of the record verified when the revision was received; ``None``: none was."""
        record = _status(self.revision(distributor, distribution, stamp)).get("record")
        return record if isinstance(record, str) else None

    def is_target(self, distributor: str, distribution: str, stamp: str) -> bool:
        """Whether a revision that was received is for this node, and not only passed on by it."""
        return _status(self.revision(distributor, distribution, stamp)).get("target") is True

    def mark_target(self, distributor: str, distribution: str, stamp: str) -> None:
        """Write down that a revision that was received is for this node; what was not received is left alone."""
        directory = self.revision(distributor, distribution, stamp)
        status = _status(directory)
        if status and status.get("target") is not True:
            replace_file(directory / STATUS_NAME, canonical_json(status | {"target": True}))

    def disk_bytes(self, distributor: str | None = None, distribution: str | None = None) -> int:
        """Return the bytes that lie on disk, of everything or of one distribution; holes do not count."""
        top = self.path
        if distributor is not None:
            top = self.distribution(distributor, distribution) if distribution else top / _checked(distributor)
        total = 0
        for directory, _, names in os.walk(top):
            for name in names:
                with suppress(FileNotFoundError):
                    total += os.lstat(os.path.join(directory, name)).st_blocks * 512
        return total

    # changes

    def clean_leftovers(self) -> list[Path]:
        """Remove ``_TEMP`` directories whose builder is dead; return those that were removed."""
        removed: list[Path] = []
        for distributor, distribution in self.distributions():
            directory = self.path / distributor / distribution
            if not any(name.endswith(TEMP_SUFFIX) for name in os.listdir(directory)):
                continue
            lock = BuildLock(directory)
            if lock.acquire():
                try:
                    removed += clean_temporary(directory)
                finally:
                    lock.release()
        return removed

    def remove_revision(self, distributor: str, distribution: str, stamp: str) -> None:
        """Make a revision no revision any more; its pack stays until ``retention`` finds that nobody refers to it."""
        drop_record(self.revision(distributor, distribution, stamp))

    @contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """Hold a lock of this node by name (without waiting); yields false if another process holds it."""
        path = self.lock_path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def _status(directory: Path) -> dict[str, Any]:
    """Return what the status file in a revision's directory says; nothing when there is none."""
    data = read_bounded(directory / STATUS_NAME, _MAX_STATUS_BYTES)
    with suppress(ValueError):
        status = json.loads(data or b"")
        if isinstance(status, dict) and status.get("format") == 1:
            return status
    return {}


def drop_record(directory: Path) -> None:
    """Take a revision's status and record away, durably, in the order that never promises too much."""
    for name in (STATUS_NAME, RECORD_NAME):
        with suppress(FileNotFoundError):
            os.unlink(directory / name)
    for patch in directory.glob("PATCH-*"):
        shutil.rmtree(patch, ignore_errors=True)
    if directory.is_dir():
        sync_directory(directory)


def drop_pack(directory: Path) -> int:
    """Remove a pack's directory; the pack first, since one without a bitmap reads as whole. Returns the bytes freed."""
    freed = 0
    for name in (PACK_NAME, BITMAP_NAME, BLOCKS_NAME):
        with suppress(FileNotFoundError):
            freed += os.lstat(directory / name).st_blocks * 512
            os.unlink(directory / name)
    with suppress(FileNotFoundError):
        shutil.rmtree(directory)
    return freed


def _directories(path: Path) -> list[Path]:
    try:
        names = os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path / name for name in names if is_name(name) and (path / name).is_dir()]


def _checked(name: str) -> str:
    if not is_name(name):
        raise UsageError(f"{name!r:.60} cannot be a name", hint="letters, digits and . _ @ + - (not first a dot)")
    return name
