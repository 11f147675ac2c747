"""What every package manager is asked for; ``rpm`` and ``deb`` answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, Any, Protocol

from ted_plugins.packages.model import Package, Reader


@dataclass(frozen=True, slots=True)
class Flags:
    """How to install; nothing of it is free text but the paths."""

    root: str = "/"
    database: str | None = None
    through: str = "auto"
    beside: bool = False
    """Replace no other version."""
    listed: bool = False
    """Keep the order given."""
    nodeps: bool = False
    replace_files: bool = False
    scripts: bool = True
    docs: bool = True
    purge: bool = False


@dataclass(frozen=True, slots=True)
class Act:
    """What to do in one go: (package, path of its file) to install, in order; packages to erase.

    ``steps`` is the order of the package manager's own, where it has told one: a word of its own, and positions in
    ``install`` or ``erase``.
    """

    install: tuple[tuple[Package, str], ...] = ()
    erase: tuple[Package, ...] = ()
    steps: tuple[tuple[str, tuple[int, ...]], ...] = ()


@dataclass(frozen=True, slots=True)
class Foretold:
    """What an act leads to: every package afterwards, and the act with the steps to take."""

    after: frozenset[Package]
    act: Act


class Manager(Protocol):
    """One package manager, at one root."""

    @property
    def suffix(self) -> str:
        """Of package files."""

    @property
    def flags(self) -> Flags:
        """How to install."""

    @property
    def read(self) -> Reader:
        """Reads a package file."""

    @property
    def compare(self) -> Callable[[str, str], int]:
        """Say which of two versions is the newer one: negative when the first is the older."""

    def installed(self) -> dict[Package, str]:
        """Return every package that is installed, and its identity (empty where there is none)."""

    def check_signatures(self, files: Sequence[tuple[Package, str]], keys: Sequence[bytes]) -> None:
        """Check the signature of every package file.

        Raises:
            TrustError: One does not hold; it is named.
        """

    def foretell(self, act: Act) -> Foretold:
        """Try the act on a copy of the records, and return what it leads to.

        Raises:
            InstallError: It cannot be done: dependencies, conflicts.
        """

    def test(self, act: Act) -> None:
        """Run the package manager's own test.

        Raises:
            InstallError: It fails.
        """

    def cached(self, package: Package) -> list[str]:
        """Return paths of package files that may be this package, from caches."""

    def rebuild(self, package: Package, target: IO[bytes]) -> None:
        """Write an installed package as a file, from what is on the disk.

        Raises:
            InstallError: It cannot be.
        """

    def leaves_traces(self, package: Package) -> bool:
        """Return whether something is left of a package that is not installed, which a rollback must not remove."""

    def perform(self, act: Act, *, hold: int) -> None:
        """Do it. ``hold`` is a descriptor that every program gets, so that it is known to be still at it.

        Raises:
            TargetError: The package manager failed.
        """

    def restore(self, act: Act, *, again: Sequence[Package], traceless: Sequence[Package], hold: int) -> None:
        """Go back: install former versions, erase what came; whatever state a crash left.

        Args:
            act: What to do.
            again: Of what is installed by it, what may be only half there.
            traceless: Of what is erased, what leaves nothing behind.
            hold: As ``perform``.

        Raises:
            TargetError: The package manager failed.
        """


@dataclass(slots=True)
class Plan:
    """What is written down before anything happens: enough to do it, and to go back.

    ``places``: package -> its file in the transaction's directory, below ``new`` for what comes and ``old`` for what
    goes. ``before``: every version, before, of the names that are touched; ``after``: the same afterwards.
    """

    manager: str
    flags: Flags
    act: Act
    before: list[Package]
    after: list[Package]
    old: list[tuple[Package, str]] = field(default_factory=list)
    traceless: list[Package] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {"format": 1, **asdict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Plan:
        """Return what ``to_dict`` gave."""
        act = data["act"]
        return cls(
            data["manager"], Flags(**data["flags"]),
            Act(
                _files(act["install"]), tuple(Package(**each) for each in act["erase"]),
                tuple((word, tuple(numbers)) for word, numbers in act["steps"]),
            ),
            [Package(**each) for each in data["before"]], [Package(**each) for each in data["after"]],
            list(_files(data["old"])), [Package(**each) for each in data["traceless"]],
        )  # fmt: skip


def _files(rows: Sequence[Any]) -> tuple[tuple[Package, str], ...]:
    return tuple((Package(**package), path) for package, path in rows)
