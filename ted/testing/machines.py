"""Two machines in one process: a Distributor that builds, a Subscriber that extracts. Real packs and transactions.

The Subscriber has a copy of the revisions alone, never the Distributor's scratch. What it takes for signed is what this
Distributor built; ``Tree`` has real keys and catalogs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ted import plugins
from ted.content.builder import RevisionBuilder
from ted.content.entry import Entry
from ted.content.record import RevisionRecord
from ted.content.revision import Revision
from ted.content.working import WorkingDirectory
from ted.errors import TrustError
from ted.install.extract import ExtractResult, extract
from ted.install.host import Host
from ted.install.rollback import rollback
from ted.install.transaction import Transaction
from ted.install.variables import Variables, predefined
from ted.install.verify import Problem, repair, verify_installed

NODE, SUBSCRIBER, NAME = "hq", "s01", "sample"


@dataclass(frozen=True)
class Build:
    """What a build gave.

    .. versionadded:: 0.1
    """

    revision: str
    """Its time stamp."""
    changed: bool
    """Whether it is a new revision."""
    warnings: list[str]
    record: RevisionRecord


class Distributor:
    """A Distributor that builds one distribution of a type.

    .. versionadded:: 0.1
    """

    def __init__(self, root: Path, type_name: str, *, name: str = NAME) -> None:
        self.type = type_name
        self.name = name
        self.working = WorkingDirectory(root / NODE / "var")
        self.working.path.mkdir(parents=True, exist_ok=True)
        self.signed: set[str] = set()

    @property
    def scratch(self) -> Path:
        """Where types keep what they fetched."""
        return self.working.state / "build"

    @property
    def directory(self) -> Path:
        """Where the revisions lie."""
        return self.working.distribution(NODE, self.name)

    def build(self, options: Mapping[str, Any], *, force: bool = False) -> Build:
        """Build the distribution as ``ted build`` does.

        Raises:
            TedError: As ``ted build`` would say it.
        """
        known = plugins.installed()
        model = known.validate_options(self.type, options)
        with RevisionBuilder(
            self.directory, NODE, self.name, self.type, {}, model.model_dump(mode="json", by_alias=True),
            cache=self.working.build_cache(self.name), allow_empty=bool(getattr(model, "allow_empty", False)),
        ) as builder:  # fmt: skip
            warnings = known.gather(self.type, builder, model, self.scratch, force=force)
            result = builder.finish(force=force)
        self.signed.add(hashlib.sha256(result.record_bytes).hexdigest())
        return Build(result.record.revision, result.changed, warnings, result.record)

    @property
    def revisions(self) -> list[str]:
        """Time stamps of the revisions that are there, oldest first."""
        return self.working.revisions(NODE, self.name)

    def entries(self, revision: str) -> dict[bytes, Entry]:
        """Return the content tree of a revision: what would be installed, and no matter in which frames it lies."""
        record = self.working.record(NODE, self.name, revision)
        with Revision(self.directory, record).open() as reader:
            return {
                entry.path: entry._replace(digest=entry.content_digest, extents=(), lists=())
                for entry in reader.entries()
            }


@dataclass
class Subscriber:
    """A Subscriber that has what a Distributor built.

    .. versionadded:: 0.1
    """

    root: Path
    distributor: Distributor
    variables: Mapping[str, str] = field(default_factory=dict)
    roots: list[str] = field(default_factory=list)
    """Directories that transactions of this Subscriber acted below."""
    on_act: Callable[[str, int], None] | None = None

    def __post_init__(self) -> None:
        self.working = WorkingDirectory(self.root / SUBSCRIBER / "var")
        self.working.path.mkdir(parents=True, exist_ok=True)
        given = predefined(
            node=SUBSCRIBER, config_directory=self.root / SUBSCRIBER / "etc", working_directory=self.working.path,
            address="192.0.2.1",
        )  # fmt: skip
        self.host = _Host(
            self.working, self._verify_record, Variables(given, self.variables), (str(self.working.path),), wait_s=5.0
        )
        self.host.roots = self.roots

    def _verify_record(self, distributor: str, distribution: str, stamp: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() not in self.distributor.signed:
            raise TrustError(f"{distribution} {stamp} of {distributor} is not signed")

    def receive(self) -> None:
        """Have every revision of the Distributor."""
        here = self.working.distribution(NODE, self.distributor.name)
        for stamp in os.listdir(self.distributor.directory):
            if stamp[:1].isdigit() and not (here / stamp).exists():
                shutil.copytree(self.distributor.directory / stamp, here / stamp, copy_function=os.link)

    def extract(self, **how: Any) -> ExtractResult:
        """Extract what the Distributor built last; ``how``: ``check``, ``diff``, ``force``, ``revision``.

        Raises:
            TedError: As ``ted extract`` would say it.
        """
        self.receive()
        self.host.on_act = self.on_act
        return extract(self.host, NODE, self.distributor.name, **how)

    def rollback(self, **how: Any) -> ExtractResult:
        """Take it back, as ``ted rollback``."""
        self.host.on_act = self.on_act
        return rollback(self.host, NODE, self.distributor.name, **how)

    def verify(self) -> list[Problem]:
        """Return what is installed and not as it was extracted, as ``ted verify``."""
        return verify_installed(self.host, NODE, self.distributor.name)

    def repair(self) -> ExtractResult:
        """Mend what drifted, as ``ted verify --repair``."""
        return repair(self.host, NODE, self.distributor.name)

    @property
    def installed(self) -> list[str]:
        """Revisions that were extracted and not taken back, oldest first."""
        return [step.revision for step in self.host.states.load(NODE, self.distributor.name).chain]


class _Host(Host):
    """A node that remembers below which directories its transactions act."""

    roots: list[str]

    def transaction(
        self, meta: Mapping[str, Any], *, on_failure: str | None = None, check: bool = False, diff: bool = False
    ) -> Transaction:
        made = super().transaction(meta, on_failure=on_failure, check=check, diff=diff)
        locate = made._locate  # noqa: SLF001

        def noting(root: str, path: bytes, *, make: bool = True) -> tuple[int, bytes]:
            if root not in self.roots:
                self.roots.append(root)
            return locate(root, path, make=make)

        made._locate = noting  # type: ignore[method-assign]  # noqa: SLF001
        return made
