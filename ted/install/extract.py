"""Extract: make this machine have a revision, in one transaction, and remember how to take it back.

Rules, in the order they are checked:
 * What a crash left is finished or undone first.
 * Installed already, whole, and neither ``force`` nor a re-check is asked for: nothing is looked at.
 * The record's signature, then the platform, then the type: a mismatch is ``skipped``, with the reason.
 * The type plans, the transaction is committed, the distribution's own acceptance tests run; if they fail it is undone.
 * Then, and only then, the chain of what is installed has a new step.

In check mode nothing is written, and the answer is what would be done now.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ted.content.revision import RevisionReader
from ted.errors import AcceptanceError, PluginError, TargetError, TedError
from ted.install import acceptance
from ted.install.context import Installing
from ted.install.execution import State
from ted.install.host import Host, now_text
from ted.install.platforms import mismatch
from ted.install.state import ACCEPTING, EXTRACTED, FAILED, Installed, Step
from ted.install.transaction import Change, CommitResult, Transaction
from ted.install.words import translated
from ted.plugins import collected_warnings

SKIPPED = "skipped"
ROLLED_BACK = "rolled_back"


@dataclass
class ExtractResult:
    """What extracting (or rolling back) one distribution did, or would do.

    ``state`` is one of the contract's: ``extracted``, ``skipped``, ``failed`` (some files could not be written, see
    ``error``), ``rolled_back``. ``actions``: counts by name. ``things``: what became of things that are no paths (see
    ``hookspecs.Item``). ``diff``: the first 1000 changes, when asked for. ``hint``: what to do that it is not skipped,
    where its type is missing or broken; another platform, or a type that cannot work on this machine, has none.
    """

    distributor: str
    distribution: str
    revision: str | None
    state: str
    changed: bool = False
    actions: dict[str, int] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    things: list[dict[str, str | None]] = field(default_factory=list)
    diff: list[Change] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    reason: str | None = None
    hint: str | None = None
    check: bool = False
    duration_s: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return one row of ``ted extract --json``."""
        return {**asdict(self), "diff": [change.to_dict() for change in self.diff],
                "duration_s": round(self.duration_s, 3)}  # fmt: skip


def extract(
    host: Host,
    distributor: str,
    distribution: str,
    *,
    revision: str | None = None,
    newest: str | None = None,
    check: bool = False,
    diff: bool = False,
    force: bool = False,
    known: str | None = None,
) -> ExtractResult:
    """Extract a revision on this node.

    Args:
        host: This node.
        distributor: Who made it.
        distribution: Its name.
        revision: Which, also an older one than is installed; the newest when ``None``.
        newest: The newest that is meant for this node; the newest that is here as a whole when ``None``.
        check: Only foretell.
        diff: Describe each change.
        force: Compare with the target, byte by byte, even if it is installed already.
        known: SHA-256 of the revision's record if it was verified here before; see ``Host.record``.

    Raises:
        UnknownNameError: It is not here.
        TrustError: It is not signed by that Distributor; nothing of it was read.
        InstallError: It could not be applied; what was there before is back, unless ``on_failure`` is ``leave``.
        AcceptanceError: Its own tests failed; as above.
    """
    started_s = time.monotonic()
    with translated(distribution), host.states.lock(distributor, distribution, host.wait_s, check=check):
        held = host.states.load(distributor, distribution)
        if not check:
            host.recover(held)
        stamp = host.chosen(distributor, distribution, revision or newest)
        extraction = _Extraction(host, held, stamp, check=check, diff=diff, force=force, known=known,
                                 named=revision is not None)  # fmt: skip
        result = extraction.run()
        if check and host.interrupted(held):
            result.changed = True
            result.reason = "an interrupted extraction or rollback would be brought to an end first"
    result.duration_s = time.monotonic() - started_s
    return result


class _Extraction:
    """One extraction, under the distribution's lock."""

    def __init__(
        self,
        host: Host,
        held: Installed,
        stamp: str,
        *,
        check: bool,
        diff: bool,
        force: bool,
        named: bool,
        known: str | None,
    ) -> None:
        self.host = host
        self.held = held
        self.stamp = stamp
        self.check = check
        self.diff = diff
        self.force = force
        self.named = named
        self.known = known
        if known is None and held.newest is not None and held.newest.revision == stamp:
            self.known = held.newest.record

    def run(self) -> ExtractResult:
        """Do it."""
        newest = self.held.newest
        if newest is not None and newest.revision > self.stamp and not self.named:
            self.stamp = newest.revision  # its content is gone, and what is installed is never replaced by older
            return self._result(EXTRACTED)
        if self._is_installed(newest):
            return self._result(EXTRACTED)
        record, digest = self.host.record(self.held.distributor, self.held.distribution, self.stamp, known=self.known)
        reason, hint = mismatch(record.settings.get("platforms") or []), None
        if reason is None:
            reason, hint = self._unavailable(record.type)
        if reason is not None:
            return replace(self._result(SKIPPED), reason=reason, hint=hint)
        with self.host.verified(self.held.distributor, self.held.distribution, self.stamp, known=digest) as reader:
            if newest is not None and newest.revision == self.stamp and newest.state == ACCEPTING and not self.check:
                self._accept(reader, undo=True)
                return replace(self._result(EXTRACTED), changed=True, reason="an interrupted extraction was finished")
            return self._apply(reader, digest)

    def _is_installed(self, newest: Step | None) -> bool:
        return (
            newest is not None
            and newest.revision == self.stamp
            and newest.state == EXTRACTED
            and not self.force
            and not newest.recheck
        )

    def _unavailable(self, type_name: str) -> tuple[str | None, str | None]:
        """Return why that type cannot be used here, if so, and what to do about it, if that is known."""
        try:
            reason = self.host.plugins.type_named(type_name).info.available()
        except PluginError as error:
            return error.message, error.hint
        return None if reason is None else f"type {type_name!r} cannot work on this machine: {reason}", None

    def _apply(self, reader: RevisionReader, digest: str) -> ExtractResult:
        plugins = self.host.plugins
        record = reader.record
        options = plugins.validate_options(record.type, reader.options)
        newest = self.held.newest
        step = Step(
            record.revision, now_text(), record.type, digest,
            recheck=plugins.type_named(record.type).info.recheck(options),
        )  # fmt: skip
        meta = {"distributor": self.held.distributor, "distribution": self.held.distribution, "step": asdict(step)}
        on_failure = record.settings.get("on_failure")
        transaction = self.host.transaction(meta, on_failure=on_failure, check=self.check, diff=self.diff)
        with (
            transaction,
            self.host.before(self.held) as before,
            collected_warnings(f"ted.install.{self.held.distribution}") as (logger, warnings),
        ):
            install = Installing(
                reader, options, self.host.variables, transaction, logger, check=self.check,
                recheck=self.force or (newest is not None and newest.recheck), before=before,
                before_places=newest.places if newest is not None else {}, guarded=self.host.guarded,
                others=self.host.states.places_of_others(self.held.distributor, self.held.distribution),
            )  # fmt: skip
            plugins.extract(record.type, install)
            items = [asdict(item) for item in transaction.items]
            step = replace(step, places=install.places, synchronized=install.synchronized, items=items)
            transaction.set_meta({**meta, "step": asdict(step)})
            committed = self._commit(transaction, step)
            return self._finish(reader, transaction, committed, step, warnings)

    def _commit(self, transaction: Transaction, step: Step) -> CommitResult:
        try:
            return transaction.commit()
        except (TedError, OSError):
            self._after_failure(transaction, step)
            raise

    def _after_failure(self, transaction: Transaction, step: Step) -> None:
        """Write down what a failed commit left: a step that failed, or nothing."""
        state = transaction.state
        if state is State.PLANNING:
            transaction.discard()
        transaction.close()
        if state is State.LEFT:
            self._add(replace(step, state=FAILED, transaction=transaction.directory.name))
        elif state is State.UNDONE:
            transaction.forget()

    def _finish(
        self,
        reader: RevisionReader,
        transaction: Transaction,
        committed: CommitResult,
        step: Step,
        warnings: list[str],
    ) -> ExtractResult:
        result = replace(
            self._result(EXTRACTED), changed=committed.changed, actions=committed.counts, diff=transaction.changes,
            warnings=[*warnings, *committed.warnings], things=step.items,
        )  # fmt: skip
        if committed.failures:
            step = replace(step, state=FAILED)
            result.state = FAILED
            result.error = _failed(committed).to_dict() | {
                "failures": [asdict(failure) for failure in committed.failures]
            }
        if self.check:
            newest = self.held.newest
            result.changed = committed.changed or newest is None or newest.revision != self.stamp
            return result
        transaction.close()
        name = transaction.directory.name if committed.changed else None
        if name is None:
            transaction.forget()
        result.changed = self._remember(replace(step, transaction=name)) or committed.changed
        if step.state != FAILED:
            self._accept(reader, undo=result.changed)
        return result

    def _remember(self, step: Step) -> bool:
        """Write the step into the chain; return whether another revision is installed now than before."""
        if step.state != FAILED:
            step = replace(step, state=ACCEPTING)
        newest = self.held.newest
        same = newest is not None and newest.revision == step.revision
        if newest is not None and same and step.transaction is None:
            step = replace(step, transaction=newest.transaction, at=newest.at)
            self.held.chain.pop()
        self._add(step)
        return not same

    def _add(self, step: Step) -> None:
        self.held.chain.append(step)
        self.host.states.save(self.held)

    def _accept(self, reader: RevisionReader, *, undo: bool) -> None:
        """Run the acceptance tests of the newest step; if they fail, take it back, unless it is to be left.

        With ``undo`` off (nothing was changed now) there is nothing to take back either.

        Raises:
            AcceptanceError: They failed.
        """
        step = self.held.chain[-1]
        if acceptance.has_tests(reader):
            try:
                acceptance.run(reader, scratch=self.host.working.state / "tmp", places=step.places)
            except AcceptanceError:
                if not undo or reader.record.settings.get("on_failure") == "leave":
                    self._mark(FAILED)
                else:
                    take_back(self.host, self.held)
                raise
        self._mark(EXTRACTED)
        self.host.cut(self.held, _max_revisions(reader.record.settings))

    def _mark(self, state: str) -> None:
        self.held.chain[-1] = replace(self.held.chain[-1], state=state)
        self.host.states.save(self.held)

    def _result(self, state: str) -> ExtractResult:
        return ExtractResult(self.held.distributor, self.held.distribution, self.stamp, state, check=self.check)


def take_back(host: Host, held: Installed) -> list[str]:
    """Undo the newest step of the chain.

    Returns:
        What could not be put back, in words.

    Raises:
        TargetError: Something could not be put back for want of rights or room; it can be tried again.
    """
    step = held.chain[-1]
    transaction = host.opened(step.transaction) if step.transaction is not None else None
    left: list[str] = []
    if transaction is not None:
        with transaction:
            undone = transaction.undo()
        left = [f"{failure.path}: {failure.message}" for failure in undone.failures]
    held.chain.pop()
    host.states.save(held)
    if step.transaction is not None:
        host.forget(step.transaction)
    return left


def _failed(committed: CommitResult) -> TargetError:
    first = committed.failures[0]
    more = len(committed.failures) - 1
    return TargetError(
        f"{first.message}" + (f" (and {more} more)" if more else ""),
        hint="everything else was extracted (on_error: continue); mend the cause and extract again",
        path=first.path, errno=first.errno,
    )  # fmt: skip


def _max_revisions(settings: Mapping[str, Any]) -> int | None:
    value = settings.get("max_revisions", 10)
    return value if isinstance(value, int) else None
