"""This node as an installer sees it, and the way to a verified revision.

Rules:
 * Signature first: the record's bytes are verified before they are parsed, and nothing of a revision is read
   before that.
 * A revision is read only if it is here as a whole.
 * Before anything else is done with a distribution, what a crash left is brought to an end and written into its chain.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ted.content.durable import read_bounded
from ted.content.record import MAX_RECORD_BYTES, PackRef, RevisionRecord
from ted.content.revision import Revision, RevisionReader
from ted.content.working import RECORD_NAME, WorkingDirectory
from ted.errors import FormatError, MissingContentError, RepositoryError, TedError, UnknownNameError
from ted.install.execution import OnAct, Policy, State
from ted.install.state import ACCEPTING, FAILED, Installed, InstalledStates, Step
from ted.install.transaction import Recovered, Transaction, recover
from ted.install.variables import Variables
from ted.plugins import Plugins, installed

log = logging.getLogger("ted.install")

VerifyRecord = Callable[[str, str, str, bytes], None]
"""Called with Distributor, distribution, time stamp and the record's bytes; raises ``TrustError`` if not signed."""

SignedPatches = Callable[[str, str, str], Mapping[str, PackRef]]
"""Called with Distributor, distribution and time stamp; returns the patches that lead to it, by the stamp before."""

DEFAULT_WAIT_S = 60.0


@dataclass
class Host:
    """What installing needs to know of this node.

    ``guarded`` are ted's own directories, in which no ``synchronize`` or ``remove`` may delete. ``wait_s`` is how long
    to wait for another process that works on the same distribution.
    """

    working: WorkingDirectory
    verify_record: VerifyRecord
    variables: Variables = field(default_factory=Variables)
    guarded: tuple[str, ...] = ()
    wait_s: float = DEFAULT_WAIT_S
    on_act: OnAct | None = None
    given_plugins: Plugins | None = None
    signed_patches: SignedPatches = lambda _distributor, _distribution, _stamp: {}

    @property
    def plugins(self) -> Plugins:
        """The distribution types known here."""
        return self.given_plugins or installed()

    @property
    def states(self) -> InstalledStates:
        """What is installed here."""
        return InstalledStates(self.working)

    # -- revisions

    def chosen(self, distributor: str, distribution: str, revision: str | None) -> str:
        """Return the revision to work with: the one named, or the newest that is here as a whole.

        Raises:
            UnknownNameError: Nothing of that distribution is here.
            MissingContentError: The revision named is not here as a whole.
        """
        received = self.working.received(distributor, distribution)
        if revision is None and received:
            return received[-1]
        if revision is not None and revision in received:
            return revision
        if revision is not None and revision in self.working.revisions(distributor, distribution):
            raise MissingContentError(
                f"{distribution} {revision} of {distributor} is not received to its end", hint="`ted receive` goes on"
            )
        if revision is None:
            raise UnknownNameError(f"{distribution} of {distributor} is not here",
                                   hint="`ted status` lists what is, `ted receive` fetches")  # fmt: skip
        here = f"here are {', '.join(received)}; " if received else ""
        raise UnknownNameError(
            f"{distribution} {revision} of {distributor} is not here",
            hint=f"{here}what {distributor} still keeps comes by `ted send {distribution} --revision ...` there, "
                 "with --limit to this node",
        )  # fmt: skip

    @contextmanager
    def verified(
        self, distributor: str, distribution: str, revision: str, *, known: str | None = None
    ) -> Iterator[RevisionReader]:
        """Yield a reader of a revision whose record was verified; ``known`` as in ``record``.

        Raises:
            TrustError: The record is not signed by the Distributor.
            RepositoryError: What is stored is damaged, or not there.
        """
        record, _ = self.record(distributor, distribution, revision, known=known)
        directory = self.working.distribution(distributor, distribution)
        with Revision(directory, record).open() as reader:
            yield reader

    def record(
        self, distributor: str, distribution: str, revision: str, *, known: str | None = None
    ) -> tuple[RevisionRecord, str]:
        """Return the verified record of a revision, and the SHA-256 of its bytes.

        ``known`` is the SHA-256 of a record that was verified when it was extracted here: the same bytes need no second
        proof, for the Distributor's catalog lists only what it keeps itself. Where that catalog lists the revision no
        more, the bytes that were verified when it was received still count.

        Raises:
            TrustError: It is not signed by the Distributor.
            UnknownNameError: The catalog does not list it, and these bytes were never verified here.
            FormatError: It is signed, and of something else.
            MissingContentError: There is none.
        """
        path = self.working.revision(distributor, distribution, revision) / RECORD_NAME
        data = read_bounded(path, MAX_RECORD_BYTES)
        if data is None:
            raise MissingContentError(f"{path}: is not there", hint="`ted receive` fetches it")
        digest = hashlib.sha256(data).hexdigest()
        if digest != known:
            try:
                self.verify_record(distributor, distribution, revision, data)
            except UnknownNameError:
                if digest != self.working.record_received(distributor, distribution, revision):
                    raise
        record = RevisionRecord.from_bytes(data)
        if (record.distributor, record.distribution, record.revision) != (distributor, distribution, revision):
            raise FormatError(
                f"{path}: is the record of {record.distribution} {record.revision} of {record.distributor}",
                hint="remove that directory; it is fetched again",
            )
        return record, digest

    @contextmanager
    def before(self, held: Installed) -> Iterator[RevisionReader | None]:
        """Yield a reader of what is installed now, ``None`` if nothing is or its content is not kept.

        Its record was verified when it was extracted: the same bytes are meant, known by their digest.
        """
        step = held.newest
        reader: RevisionReader | None = None
        if step is not None and step.state != FAILED:
            try:
                directory = self.working.distribution(held.distributor, held.distribution)
                data = read_bounded(directory / step.revision / RECORD_NAME, MAX_RECORD_BYTES)
                if data is not None and hashlib.sha256(data).hexdigest() == step.record:
                    reader = Revision(directory, RevisionRecord.from_bytes(data)).open()
            except (RepositoryError, OSError) as error:
                log.info("%s: the revision installed before cannot be read: %s", held.distribution, error)
        try:
            yield reader
        finally:
            if reader is not None:
                reader.close()

    # -- transactions

    def transaction(
        self, meta: Mapping[str, Any], *, on_failure: str | None = None, check: bool = False, diff: bool = False
    ) -> Transaction:
        """Return a new transaction of this node."""
        policy = Policy(on_failure="leave" if on_failure == "leave" else "rollback")
        return Transaction(
            self.states.transactions / Transaction.identity(), meta=meta, policy=policy, check=check, diff=diff,
            on_act=self.on_act,
        )  # fmt: skip

    def opened(self, name: str) -> Transaction | None:
        """Return a transaction that was committed, ``None`` when it is gone."""
        path = self.states.transactions / name
        return Transaction.open(path, on_act=self.on_act) if (path / "meta.json").is_file() else None

    def recover(self, held: Installed) -> list[Step]:
        """Bring what a crash left to an end and write it into the chain, its acceptance tests still to be run.

        Returns:
            Steps whose rollback was cut off and has been finished now.

        Raises:
            TedError: A transaction can be neither finished nor undone now; it is tried again the next time.
        """
        known = {step.transaction: step for step in held.chain if step.transaction is not None}
        taken_back: list[Step] = []
        whose = (held.distributor, held.distribution)
        for found in recover(self.states.transactions, only=lambda meta: _owner(meta) == whose, on_act=self.on_act):
            meta = found.meta
            if _owner(meta) != whose:
                continue
            if found.error is not None and found.state not in (State.UNDONE, State.LEFT):
                raise _unfinished(found.directory, found.error)
            name = found.directory.name
            if found.state is State.UNDONE:
                taken_back += [step for step in [known.get(name)] if step is not None and step.state != ACCEPTING]
                held.chain = [step for step in held.chain if step.transaction != name]
                self.states.save(held)
                self.forget(name)
            elif name not in known and "step" in meta:
                # Whatever the clock says: what is done and not in the chain was done last, and can be taken back.
                held.chain.append(_adopted(meta["step"], found))
                self.states.save(held)
            elif name not in known:
                self.forget(name)
        return taken_back

    def interrupted(self, held: Installed) -> bool:
        """Return whether ``recover`` has something to bring to an end that changes what is here; nothing is written."""
        known = {step.transaction for step in held.chain}
        for head in self.states.transactions.glob("*Z-????????/meta.json"):
            name = head.parent.name
            with contextlib.suppress(OSError, ValueError):
                whose = _owner(json.loads(head.read_bytes())["meta"])
                state = Transaction(head.parent).state
                over = state is State.PLANNING or (name in known and state in (State.DONE, State.LEFT))
                if whose == (held.distributor, held.distribution) and not over:
                    return True
        return False

    def recover_others(self, but: Collection[tuple[str, str]]) -> None:
        """Bring to an end what a crash left of distributions that nobody extracts any more; what is busy is left."""
        owners = set()
        for head in self.states.transactions.glob("*/meta.json"):
            with contextlib.suppress(OSError, ValueError):
                owners.add(_owner(json.loads(head.read_bytes())["meta"]))
        for distributor, distribution in sorted(owners - {*but}):
            try:
                with self.states.lock(distributor, distribution, 0):
                    self.recover(self.states.load(distributor, distribution))
            except (TedError, OSError) as error:
                log.warning("%s of %s: %s", distribution, distributor, error)

    def forget(self, name: str) -> None:
        """Remove a transaction's directory."""
        Transaction(self.states.transactions / name).forget()

    def cut(self, held: Installed, max_revisions: int | None) -> None:
        """Drop steps of revisions beyond ``max_revisions`` (``None``: none), and what the file has no room for."""
        revisions = list(dict.fromkeys(step.revision for step in reversed(held.chain)))
        kept = set(revisions if max_revisions is None else revisions[: max(max_revisions, 1)])
        while held.chain and (held.chain[0].revision not in kept or held.is_too_long):
            # The undo log goes first: a step without one is known for what it is, a log without a step is not.
            if held.chain[0].transaction is not None:
                self.forget(held.chain[0].transaction)
            del held.chain[0]
            held.cut = True
            self.states.save(held)


def now_text() -> str:
    """Return this moment, UTC, as it is written down."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _owner(meta: Mapping[str, Any]) -> tuple[str, str]:
    return str(meta.get("distributor")), str(meta.get("distribution"))


def _adopted(step: Mapping[str, Any], found: Recovered) -> Step:
    adopted = Step(**{**step, "transaction": found.directory.name})
    return replace(adopted, state=FAILED if found.state is State.LEFT or found.failures() else ACCEPTING)


def _unfinished(directory: Path, error: str) -> TedError:
    return RepositoryError(
        f"an interrupted extraction could not be brought to an end: {error}",
        hint=f"mend the cause and extract again; its journal is {directory}",
    )
