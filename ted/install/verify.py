"""Verify: is what is installed as it was extracted, and is what is stored as it was signed?

Rules:
 * Installed: the type plans the installed revision again, in check mode, comparing every byte; whatever it would
   change is drift, and so is what it could not change. Nothing is written.
 * A command of the type follows from what drifted. It is told only where nothing else is, as a command.
 * Stored: every frame of every revision that is here as a whole is read and checked, and so is every block of its
   packs: what no frame needs is sent all the same.
 * Repair extracts again what drifted, in a transaction like any other; what is stored is mended by the agent, which
   fetches it again. A damaged patch is removed: it only saves bytes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ted.content.blocks import BlockList, PartialPack
from ted.content.durable import UNREADABLE
from ted.content.pack import DigestTable
from ted.content.patch.kept import damaged_patches, drop_patch, patch_place
from ted.content.record import PackRef, Run
from ted.content.revision import Revision
from ted.errors import HOW_TO_MEND, DigestMismatchError, TedError
from ted.hookspecs import Drift, Item
from ted.install.context import Installing
from ted.install.extract import ExtractResult, extract
from ted.install.host import Host
from ted.install.transaction import Change, Transaction
from ted.plugins import collected_warnings

Damage = dict[tuple[str, str], list[Run]]
"""What is damaged of the packs that were read: by revision and root, the runs of blocks."""


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be: of which distribution, where, and what."""

    distributor: str
    distribution: str
    revision: str
    where: str
    """``installed`` or ``stored``."""
    path: str
    what: str
    before: str | None = None
    after: str | None = None
    cause: TedError | None = field(default=None, compare=False)
    """Why what is stored cannot be read back: damaged, or not trusted."""
    patch_from: str | None = None
    """It is a patch to the revision, and this is the stamp that it starts from."""

    def to_dict(self) -> dict[str, str | None]:
        """Return the shape ``--json`` prints."""
        names = ("distributor", "distribution", "revision", "where", "path", "what", "before", "after")
        return {name: getattr(self, name) for name in names}


def verify_installed(host: Host, distributor: str, distribution: str) -> list[Problem]:
    """Return what is installed and not as it was extracted; none when nothing is installed.

    Raises:
        TrustError: What is stored is not signed by the Distributor, so nothing can be compared with it.
        RepositoryError: It is damaged, or not kept.
    """
    with host.states.lock(distributor, distribution, host.wait_s, check=True):
        step = host.states.load(distributor, distribution).newest
        if step is None:
            return []
        with (
            host.verified(distributor, distribution, step.revision, known=step.record) as reader,
            host.transaction({}, check=True, diff=True) as transaction,
            collected_warnings(f"ted.install.{distribution}") as (logger, _),
        ):
            options = host.plugins.validate_options(step.type, reader.options)
            install = Installing(
                reader, options, host.variables, transaction, logger, check=True, recheck=True, guarded=host.guarded
            )
            host.plugins.extract(step.type, install)
            drifts = [_drift(change) for change in _beyond_items(transaction)]
            drifts += [_drifted(item) for item in transaction.items if item.before != item.after]
            drifts += [Drift(failure.path, "failed", failure.message) for failure in transaction.failures]
            drifts += host.plugins.verify(step.type, install)
    return [
        Problem(distributor, distribution, step.revision, "installed", drift.path, drift.what, drift.before,
        drift.after) for drift in drifts
    ]  # fmt: skip


def repair(host: Host, distributor: str, distribution: str) -> ExtractResult:
    """Extract the installed revision again where it drifted."""
    step = host.states.load(distributor, distribution).newest
    revision, known = (step.revision, step.record) if step is not None else (None, None)
    return extract(host, distributor, distribution, revision=revision, force=True, known=known)


def verify_stored(host: Host, distributor: str, distribution: str) -> list[Problem]:
    """Return the revisions that are here as a whole and cannot be read back as they were signed.

    What several revisions share is read once.

    Raises:
        TedError: There is no room to note what was read.
    """
    problems: list[Problem] = []
    directory = host.working.distribution(distributor, distribution)
    known = {step.revision: step.record for step in host.states.load(distributor, distribution).chain}
    damage: Damage = {}
    with closing(DigestTable(Path(tempfile.gettempdir()))) as content:  # who verifies may not write where it is stored
        for stamp in host.working.received(distributor, distribution):
            try:
                record, _ = host.record(distributor, distribution, stamp, known=known.get(stamp))
                for ref in record.packs:
                    _check_blocks(directory / ref.revision, ref, damage)
                with Revision(directory, record).open() as reader:
                    reader.verify_frames(content)
            except (TedError, OSError) as error:
                path = directory / stamp
                if isinstance(error, OSError) and error.errno not in UNREADABLE:
                    raise TedError(f"{path} cannot be verified: {error.strerror}",
                                   hint=f"it notes what it read in {tempfile.gettempdir()} (TMPDIR)") from error
                cause = error if isinstance(error, TedError) else _unreadable(path, error)
                problems.append(
                    Problem(distributor, distribution, stamp, "stored", str(path), cause.message, cause=cause)
                )
    return problems


def verify_patches(host: Host, distributor: str, distribution: str) -> list[Problem]:
    """Return the stored patches that are damaged; what they carry is sent as blocks, so nobody lacks anything."""
    problems = []
    directory = host.working.distribution(distributor, distribution)
    for stamp in host.working.received(distributor, distribution):
        signed: Mapping[str, PackRef] = {}
        with suppress(TedError):  # where the catalog is not trusted, the revision tells
            signed = host.signed_patches(distributor, distribution, stamp)
        for before, what in damaged_patches(directory, stamp, signed).items():
            path = directory / patch_place(stamp, before)
            cause = DigestMismatchError(what)
            problems.append(
                Problem(distributor, distribution, stamp, "stored", str(path), what, cause=cause, patch_from=before)
            )
    return problems


def drop_damaged(host: Host, problem: Problem, *, again: bool) -> bool:
    """Remove a damaged patch; return whether the next build makes it anew.

    Args:
        host: This node.
        problem: The patch, as ``verify_patches`` found it.
        again: It should; it does where the patch leads to the newest revision.
    """
    assert problem.patch_from is not None
    newest = host.working.revisions(problem.distributor, problem.distribution)[-1]
    revision = host.working.revision(problem.distributor, problem.distribution, problem.revision)
    again = again and problem.revision == newest
    drop_patch(revision, problem.patch_from, again=again)
    return again


def _unreadable(path: Path, error: OSError) -> DigestMismatchError:
    return DigestMismatchError(f"{path} cannot be read: {error.strerror}", hint=HOW_TO_MEND)


def _check_blocks(directory: Path, ref: PackRef, known: Damage) -> None:
    BlockList.load(directory, ref)
    pack = PartialPack(directory, ref)
    try:
        if (ref.revision, ref.root) not in known:
            known[ref.revision, ref.root] = pack.damaged()
        damaged, missing = known[ref.revision, ref.root], pack.missing()
    finally:
        pack.close()
    if damaged:
        raise DigestMismatchError(f"block {damaged[0][0]} of {pack.path} is damaged", hint=HOW_TO_MEND)
    if missing:  # a repair was cut short, or the file's size changed: what was noted of its blocks does not count then
        size_bytes = pack.path.stat().st_size if pack.path.exists() else ref.bytes
        what = f"block {missing[0][0]} of {pack.path} is not here"
        if size_bytes != ref.bytes:
            what = f"{pack.path} has {size_bytes} bytes, the record says {ref.bytes}"
        raise DigestMismatchError(what, hint=HOW_TO_MEND)


def _beyond_items(transaction: Transaction) -> list[Change]:
    """Return the changes of paths; those of commands only where nothing says what they are about."""
    told = {(item.name, item.what) for item in transaction.items}
    changes = [change for change in transaction.changes if (change.path, change.change) not in told]
    paths = [change for change in changes if change.change != "commands"]
    return paths if paths or told else changes


def _drifted(item: Item) -> Drift:
    what = "missing" if item.before is None else "extra" if item.after is None else "version"
    return Drift(item.name, what, item.before, item.after)


_WHAT = {"deleted": "extra", "attributes": "attributes", "commands": "command"}


def _drift(change: Change) -> Drift:
    what = _WHAT.get(change.change)
    if what is None:
        same_kind = (change.before or "").split(" ")[0] == (change.after or "").split(" ")[0]
        what = "missing" if change.before is None else "content" if same_kind else "kind"
    return Drift(change.path, what, change.before, change.after)
