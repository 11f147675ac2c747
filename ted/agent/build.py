"""Building: a type gathers, the engine frames and packs, the catalog signs, what is too old goes.

Rules:
 * A build that fails leaves the former revision current, and is on record with its cause.
 * The catalog lists exactly the kept revisions; a build that was killed before it signed is healed by the next one.
 * What is signed is what was built, not what lies on the disk: a record that changed since stays signed as it was.
   What was not signed, since the build was killed or the catalog is another one, is signed later only where it is
   sound: record, manifest and packs fit each other. Else it goes, if nobody can have it.
 * Nothing is removed before the catalog no longer lists it.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ted import plugins
from ted.config import NodeConfig
from ted.content import retention
from ted.content.blocks import is_sound
from ted.content.builder import BuildResult, RevisionBuilder
from ted.content.durable import read_bounded
from ted.content.patch.kept import closed_by, make_patch, patches_of, waits, was_cut_short
from ted.content.record import MAX_RECORD_BYTES, PackRef
from ted.content.revision import Revision
from ted.content.working import LOCK_NAME, RECORD_NAME, drop_record
from ted.errors import (
    BuildError,
    ConfigError,
    DigestMismatchError,
    FormatError,
    RepositoryError,
    TedError,
    UnknownNameError,
)
from ted.install.state import InstalledStates
from ted.records.journal import Journal
from ted.topology.model import Distribution, Topology
from ted.trust.catalog import Catalog
from ted.trust.chain import Patch

log = logging.getLogger("ted.build")

BLAME = "the stored pack of revision {} is damaged"


@dataclass(frozen=True)
class Built:
    """What building one distribution did; ``revision`` is the newest one now (``None``: none yet, check mode).

    ``former`` was the newest one before the build, ``None`` before the first.
    ``patch_bytes`` is the size of the patch from the revision before, ``None`` where there is none.
    """

    distribution: str
    revision: str | None
    changed: bool
    bytes: int
    frames: int
    files: int
    content_bytes: int
    duration_s: float
    warnings: tuple[str, ...] = ()
    patch_bytes: int | None = None
    former: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return one row of ``ted build --json``."""
        return {
            "distribution": self.distribution, "revision": self.revision, "former": self.former,
            "changed": self.changed, "bytes": self.bytes, "patch_bytes": self.patch_bytes, "frames": self.frames,
            "files": self.files, "content_bytes": self.content_bytes,
            "duration_s": round(self.duration_s, 3), "warnings": list(self.warnings),
        }  # fmt: skip


class Builder:
    """Builds the distributions of one Distributor."""

    def __init__(self, config: NodeConfig, topology: Topology, journal: Journal, *, base: Path) -> None:
        """``base`` is what relative paths of acceptance tests are below."""
        if not config.distributor:
            raise ConfigError(f"{config.node} is no Distributor",
                              hint="only hosts of the group `distributors` build")  # fmt: skip
        self._config = config
        self._settings = topology.distributor(config.node)
        self._journal = journal
        self._base = base
        self._working = config.working
        self._catalog = Catalog(self._working.catalog(config.node), config.keys_directory)

    def wanted(self, names: tuple[str, ...]) -> list[Distribution]:
        """Return the distributions to build: those named, or every active one.

        Raises:
            UnknownNameError: One is not of this Distributor, or is not active.
        """
        known = self._settings.distributions
        for name in names:
            if name not in known:
                there = ", ".join(sorted(known)) or "none"
                refresh = f"`ansible-playbook playbooks/refresh.yml --limit {self._config.node}`"
                raise UnknownNameError(
                    f"{self._config.node} has no distribution {name!r}",
                    hint=f"it has {there}; what is new in the inventory comes by {refresh}",
                )
            if not known[name].active:
                raise UnknownNameError(f"distribution {name!r} is not active",
                                       hint="set active: true in ted_distributions to build it")  # fmt: skip
        return [known[name] for name in dict.fromkeys(names)] if names else [d for d in known.values() if d.active]

    def build(
        self,
        distribution: Distribution,
        *,
        force: bool = False,
        check: bool = False,
        progress: plugins.Progress | None = None,
    ) -> Built:
        """Build one distribution.

        Args:
            distribution: What to build.
            force: Make a new revision even if nothing changed.
            check: Only say what would come out; nothing stays on the disk.
            progress: Told of long downloads.

        Raises:
            BuildError: It could not be gathered; the former revision stays.
            OptionsError: Its options are not valid.
            PluginError: Its type is not installed here.
        """
        missing = self._missing(distribution.name) if check else []
        with self._alone(distribution.name):
            try:
                return self._build(distribution, force=force, check=check, progress=progress)
            finally:
                for path in missing:
                    _remove(path, whole=path.parent == self._scratch)

    def tidy(self, distribution: Distribution) -> None:
        """Remove what is surplus, and from the catalog first.

        Raises:
            BuildError: It is being built at this moment, and may refer to what would go.
        """
        with self._alone(distribution.name):
            unsound, _ = self._look_at_unsigned(distribution.name)
            self._publish(distribution, unsound)

    def _missing(self, name: str) -> list[Path]:
        """Return what is not there yet of the directories and locks that a build makes, the deepest first."""
        working, directory = self._working, self._working.distribution(self._config.node, name)
        scratch, lock = self._scratch / f"{name}.scratch", working.lock_path(_lock(name))
        places = [directory / LOCK_NAME, directory, directory.parent, scratch, scratch.parent, lock, lock.parent,
                  working.state, working.path]  # fmt: skip
        return [path for path in places if not path.exists()]

    @property
    def _scratch(self) -> Path:
        return self._working.state / "build"

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        with self._working.lock(_lock(name)) as mine:
            if not mine:
                raise BuildError(f"another build of {name} is running", hint="wait until it is done")
            yield

    def _build(
        self, distribution: Distribution, *, force: bool, check: bool, progress: plugins.Progress | None
    ) -> Built:
        started_s = time.monotonic()
        unsound: set[str] = set()
        warned: list[str] = []
        if not check:
            self._catalog.create(self._config.node)
            unsound, warned = self._look_at_unsigned(distribution.name)
        former = next(reversed(self._working.revisions(self._config.node, distribution.name)), None)
        try:
            result, warnings = self._gather(distribution, force=force, check=check, progress=progress)
        except TedError as error:
            if distribution.name not in error.message:
                error.message = f"{distribution.name}: {error.message}"
            self._note("build_failed", distribution.name, None, str(error))
            raise
        except OSError as error:
            self._note("build_failed", distribution.name, None, str(error))
            raise BuildError(f"{distribution.name}: {error}", hint="the former revision stays current") from error
        patch_bytes = None if check else self._patch(distribution, result)
        if not check:
            warnings = [*warned, *warnings, *self._publish(distribution, unsound, result)]
            if result.changed or self._failed_before(distribution.name):
                self._note("built", distribution.name, result.record.revision, f"{result.bytes_new} bytes")
        revision = result.record.revision if not check else former
        duration_s = time.monotonic() - started_s
        return Built(distribution.name, revision, result.changed, result.bytes_new, result.frames_new, result.files,
                     result.record.content_bytes, duration_s, tuple(warnings), patch_bytes, former)  # fmt: skip

    def _patch(self, distribution: Distribution, result: BuildResult) -> int | None:
        """Make the patch from the revision before; without one the pack is sent, so nothing that fails here matters."""
        stamps = self._working.revisions(self._config.node, distribution.name)
        if distribution.patches == "none" or len(stamps) < 2 or stamps[-1] != result.record.revision:
            return None
        directory = self._working.distribution(self._config.node, distribution.name)
        if not result.changed and not was_cut_short(directory / stamps[-1]):
            return None
        try:
            before = self._working.record(self._config.node, distribution.name, stamps[-2])
            return make_patch(directory, before, result.record, distribution.patches, distribution.open_packages)
        except (TedError, OSError) as error:
            why = self._blamed(error, directory, stamps[-2:])
            log.warning("%s: no patch from %s: %s", distribution.name, stamps[-2], why)
            return None
        except Exception:
            log.exception("%s: no patch from %s: a fault of ted", distribution.name, stamps[-2])
            return None

    def _blamed(self, error: Exception, directory: Path, stamps: list[str]) -> str:
        """Return what to say of an error; where something stored is damaged: of which revision, and what mends it."""
        damaged: list[str] = []
        needed: set[str] = set()
        if isinstance(error, RepositoryError):
            with suppress(TedError):
                records = [self._working.record(self._config.node, directory.name, stamp) for stamp in stamps]
                refs = {ref.revision: ref for record in records for ref in record.packs}
                needed = {ref.revision for ref in records[-1].packs}
                damaged = sorted(stamp for stamp, ref in refs.items() if not is_sound(directory / stamp, ref))
        if not damaged:
            return str(error)
        blame = " and ".join(BLAME.format(stamp) for stamp in damaged)
        if needed.isdisjoint(damaged):  # what is sent now is sound
            return blame
        return f"{blame}, and the new one needs it: `ted build --force {directory.name}` packs anew what it held"

    def _gather(
        self, distribution: Distribution, *, force: bool, check: bool, progress: plugins.Progress | None
    ) -> tuple[BuildResult, list[str]]:
        options = plugins.validate_options(distribution.type, distribution.options)
        directory = self._working.distribution(self._config.node, distribution.name)
        settings = {
            "priority": distribution.priority, "max_revisions": distribution.max_revisions,
            "on_failure": distribution.on_failure, "platforms": [dict(facts) for facts in distribution.platforms],
            "encrypt": distribution.encrypt, "description": distribution.description,
        }  # fmt: skip
        with RevisionBuilder(
            directory, self._config.node, distribution.name, distribution.type, settings,
            options.model_dump(mode="json", by_alias=True), cache=self._working.build_cache(distribution.name),
            allow_empty=bool(getattr(options, "allow_empty", False)),
        ) as builder:  # fmt: skip
            warnings = plugins.gather(
                distribution.type, builder, options, self._scratch, force=force, progress=progress
            )
            self._add_acceptance_tests(builder, distribution)
            result = builder.finish(force=force, check=check)
            damaged = [f"{BLAME.format(stamp)}: what it held is packed anew" for stamp in builder.damaged]
            return result, [*warnings, *damaged]

    def _add_acceptance_tests(self, builder: RevisionBuilder, distribution: Distribution) -> None:
        for name in distribution.verify:
            path = self._base / name
            if not path.is_file():
                raise BuildError(f"{distribution.name}: acceptance test {path} is not a file",
                                 hint="`verify` names pytest-testinfra files on the Distributor")  # fmt: skip
            builder.add_file(f"verify/{path.name}", path)

    def surplus(self, distribution: Distribution) -> retention.Removal:
        """Return what is beyond the distribution's ``max_revisions`` and needed by nobody."""
        node, name = self._config.node, distribution.name
        most, in_use = distribution.max_revisions, self._in_use(name)
        return retention.plan(self._working, node, name, max_revisions=most, in_use=in_use)

    def _publish(self, distribution: Distribution, unsound: Set[str], built: BuildResult | None = None) -> list[str]:
        """Make the catalog list exactly the revisions that are kept, and then remove the others; return warnings.

        ``unsound``: those that are kept, and not signed.
        """
        node, name = self._config.node, distribution.name
        removal = self.surplus(distribution)
        kept = {*self._working.revisions(node, name)} - {*removal.revisions} - unsound
        records = {stamp: self._record_bytes(name, stamp) for stamp in sorted(kept)}
        if built is not None and built.changed and built.record.revision in records:
            records[built.record.revision] = built.record_bytes
        altered = self._catalog.altered(name, records)
        records |= dict.fromkeys(altered)
        self._catalog.publish(name, records, self._patches(name, records))
        retention.apply(self._working, node, name, removal)
        return [
            f"the record of revision {stamp} is not what was signed: no node can fetch it; "
            + (f"`ted build --force {name}` makes a new one" if stamp == max(records) else "a newer one is there")
            for stamp in altered
        ]

    def _record_bytes(self, name: str, stamp: str) -> bytes | None:
        with suppress(RepositoryError):
            return read_bounded(self._working.revision(self._config.node, name, stamp) / RECORD_NAME, MAX_RECORD_BYTES)
        return None

    def _look_at_unsigned(self, name: str) -> tuple[set[str], list[str]]:
        """Look at the revisions that the catalog does not list; what a killed build left damaged is removed.

        Returns:
            Those that are not sound and stay, and what to say of all that are not.
        """
        directory = self._working.distribution(self._config.node, name)
        listed, in_use = set(self._catalog.revisions(name)), self._in_use(name)
        known: dict[PackRef, bool] = {}
        unsound, warnings = set(), []
        for stamp in self._working.revisions(self._config.node, name):
            problem = self._what_is_wrong(directory, stamp, known) if stamp not in listed else None
            if problem is None:
                continue
            if listed and stamp > max(listed) and stamp not in in_use and isinstance(problem, RepositoryError):
                drop_record(directory / stamp)
                warnings.append(f"revision {stamp} was not signed yet and is damaged, so it is removed: {problem}")
            else:
                unsound.add(stamp)
                warnings.append(f"revision {stamp} is not in the catalog and cannot be signed: {problem}")
            log.warning("%s: %s", name, warnings[-1])
        return unsound, warnings

    def _what_is_wrong(self, directory: Path, stamp: str, known: dict[PackRef, bool]) -> TedError | OSError | None:
        """Return why a revision is not sound, ``None`` if it is; ``known``: the packs that were read."""
        try:
            record = self._working.record(self._config.node, directory.name, stamp)
            with Revision(directory, record).open() as reader:
                if (record.distributor, record.distribution) != (self._config.node, directory.name):
                    raise FormatError(f"its record is of {record.distribution} of {record.distributor}")
                if record.settings != reader.settings:
                    raise FormatError("its record and its manifest have different settings")
            for ref in record.packs:
                if ref not in known:
                    known[ref] = is_sound(directory / ref.revision, ref)
                if not known[ref]:
                    raise DigestMismatchError(BLAME.format(ref.revision))
        except (TedError, OSError) as error:
            return error
        return None

    def _patches(self, name: str, stamps: Iterable[str]) -> dict[str, dict[str, Patch]]:
        """Return the patches of the kept revisions, each from the one before it."""
        found = {}
        for before, stamp in pairwise(sorted(stamps)):
            ref = patches_of(self._working.revision(self._config.node, name, stamp)).get(before)
            if ref is not None:
                directory = self._working.distribution(self._config.node, name)
                with suppress(RepositoryError):  # a damaged one is not told
                    compressors, waiting_bytes = closed_by(directory, ref), waits(directory, ref)
                    found[stamp] = {before: Patch(ref.bytes, ref.root, compressors, waiting_bytes)}
        return found

    def _in_use(self, name: str) -> set[str]:
        """Return the revisions that an open send still needs, or that are installed on this node."""
        installed = InstalledStates(self._working).revisions_in_use(self._config.node, name)
        return installed | {
            send["revision"] for send in self._journal.sends(open_only=True)
            if (send["distributor"], send["distribution"]) == (self._config.node, name)
        }  # fmt: skip

    def _failed_before(self, name: str) -> bool:
        return any(row["distribution"] == name for row in self._journal.failed_builds())

    def _note(self, kind: str, distribution: str, revision: str | None, message: str) -> None:
        self._journal.note(kind, message, distributor=self._config.node, distribution=distribution, revision=revision)


def _lock(name: str) -> str:
    return f"build-{name}"[:128]


def _remove(path: Path, *, whole: bool) -> None:
    """Take away what a check made; unless ``whole``, a directory in which somebody else put something stays."""
    with suppress(OSError):
        if whole:
            shutil.rmtree(path)
        elif path.is_dir():
            path.rmdir()
        else:
            path.unlink()
