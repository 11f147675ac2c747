"""What is installed here: for each distribution the chain of what was extracted, newest last.

Rules:
 * One small file for each distribution, replaced atomically; ``<working
   directory>/.ted/installed/<distributor>/<name>.json``.
 * Each step of the chain names its transaction, whose undo log takes the step back. A step that changed nothing
   has none.
 * The chain is as long as the kept revisions; what is older loses its undo log.
 * One process at a time works on a distribution; another waits a while and then says who is at it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ted.content.durable import read_bounded, replace_file
from ted.content.working import WorkingDirectory
from ted.errors import FormatError, InstallError

FORMAT = 1
MAX_STEPS = 1000
EXTRACTED, ACCEPTING, FAILED = "extracted", "accepting", "failed"
MAX_STATE_BYTES = 4 << 20
_POLL_S = 0.1


@dataclass(frozen=True)
class Step:
    """One extraction: of which revision, when, by which transaction, and where each place of the content went."""

    revision: str
    at: str
    type: str
    record: str
    """SHA-256 of the signed record, hex: what was verified then."""
    state: str = EXTRACTED
    """``extracted``; ``accepting`` while its acceptance tests did not pass; ``failed`` when some of it was not done."""
    transaction: str | None = None
    """Name of its transaction; ``None`` when nothing had to be changed."""
    recheck: bool = False
    """Whether its options ask to re-check it at each extract time."""
    places: dict[str, str] = field(default_factory=dict)
    """Place in the content tree -> directory on this machine."""
    synchronized: list[str] = field(default_factory=list)
    """Which of these directories, links followed, hold nothing but what the distribution says."""
    items: list[dict[str, str | None]] = field(default_factory=list)
    """What the type told of things that are no paths; see ``hookspecs.Item``."""


@dataclass
class Installed:
    """The chain of one distribution."""

    distributor: str
    distribution: str
    chain: list[Step] = field(default_factory=list)
    cut: bool = False
    """Older steps were dropped: what was here before ted cannot be restored any more."""

    @property
    def newest(self) -> Step | None:
        """What is installed now."""
        return self.chain[-1] if self.chain else None

    @property
    def is_too_long(self) -> bool:
        """Whether older steps must go, so that the file can still be read when the next ones are added."""
        return len(self.chain) > MAX_STEPS or (len(self.chain) > 1 and len(self.to_bytes()) > MAX_STATE_BYTES // 2)

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1).encode()


class InstalledStates:
    """The chains below a working directory."""

    def __init__(self, working: WorkingDirectory) -> None:
        self._working = working
        self._directory = working.state / "installed"

    @property
    def transactions(self) -> Path:
        """Where transactions lie."""
        return self._working.state / "transactions"

    def _path(self, distributor: str, distribution: str) -> Path:
        self._working.distribution(distributor, distribution)  # refuses what is no name
        return self._directory / distributor / f"{distribution}.json"

    def all(self) -> list[tuple[str, str]]:
        """Return (distributor, distribution) of everything that was ever extracted here, sorted."""
        return sorted((path.parent.name, path.name.removesuffix(".json")) for path in self._directory.glob("*/*.json"))

    def load(self, distributor: str, distribution: str) -> Installed:
        """Return the chain; an empty one when nothing was extracted.

        Raises:
            FormatError: The file is damaged, or of a version this ted does not know.
        """
        path = self._path(distributor, distribution)
        data = read_bounded(path, MAX_STATE_BYTES)
        if data is None:
            return Installed(distributor, distribution)
        try:
            held: dict[str, Any] = json.loads(data)
            if held.pop("format") != FORMAT:
                raise ValueError("of another version")
            chain = [Step(**step) for step in held.pop("chain")]
            return Installed(**held, chain=chain)
        except (ValueError, TypeError, KeyError) as error:
            raise FormatError(
                f"{path}: not a list of what is installed: {error}",
                hint="remove the file and extract again: nothing at the target is lost, but it cannot be rolled back",
            ) from error

    def places_of_others(self, distributor: str, distribution: str) -> dict[str, tuple[str, bool]]:
        """Return where other distributions are, links followed: directory -> whose, and whether it is synchronized."""
        found: dict[str, tuple[str, bool]] = {}
        for pair in self.all():
            newest = self.load(*pair).newest if pair != (distributor, distribution) else None
            for root in map(os.path.realpath, newest.places.values() if newest is not None else ()):
                also = newest is not None and root in newest.synchronized
                found[root] = (f"{pair[1]} of {pair[0]}", also or found.get(root, ("", False))[1])
        return found

    def save(self, installed: Installed) -> None:
        """Write the chain, durably.

        Raises:
            FormatError: It could not be read again.
        """
        path = self._path(installed.distributor, installed.distribution)
        data = installed.to_bytes()
        if len(data) > MAX_STATE_BYTES:
            raise FormatError(f"{path}: {len(data)} bytes are above {MAX_STATE_BYTES}", hint="name fewer targets")
        self._make_directory(path.parent)
        replace_file(path, data)
        path.chmod(0o644)

    def _make_directory(self, path: Path) -> None:
        """Make the directory of a chain, which an agent that is not root must read when root extracts."""
        for each in (self._working.state, self._directory, path):
            if not each.is_dir():
                each.mkdir(parents=True, exist_ok=True)
                each.chmod(0o755)

    def revisions_in_use(self, distributor: str, distribution: str) -> set[str]:
        """Return the revisions whose content is worth keeping: the one installed, and the one before it."""
        revisions = list(dict.fromkeys(step.revision for step in self.load(distributor, distribution).chain))
        return set(revisions[-2:])

    @contextmanager
    def lock(self, distributor: str, distribution: str, wait_s: float, *, check: bool = False) -> Iterator[None]:
        """Be the only one who works on this distribution; with ``check`` nothing is written for it.

        Raises:
            InstallError: Another process still is after ``wait_s``.
        """
        path = self._path(distributor, distribution).with_suffix(".lock")
        if check and not path.exists():  # nobody ever worked on it
            yield
            return
        if not check:
            self._make_directory(path.parent)
        until = time.monotonic() + wait_s
        with open(path, "r" if check else "a+", encoding="ascii") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= until:
                        file.seek(0)
                        holder = file.read(20).strip() or "unknown"
                        raise InstallError(
                            f"{distribution} of {distributor} is being extracted or rolled back by process {holder}",
                            hint="wait until it is done",
                        ) from None
                time.sleep(_POLL_S)
            if not check:
                file.seek(0)
                file.truncate()
                file.write(str(os.getpid()))
                file.flush()
            yield
