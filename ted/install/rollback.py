"""Roll back: what was extracted is taken back, newest first, until the wanted revision is the one installed.

Rules:
 * Without a revision named: back to the one before the installed one; before the first, what was there before ted.
   Where older steps were dropped (``max_revisions``): to what was there before the oldest step that is kept.
 * Each step's undo log puts back bytes, modes, owners, times, links and attributes, and removes what the step made.
 * Where no undo log leads there (it is gone, or the revision is a newer one), the wanted revision is extracted
   again, if its content is kept.
 * Where several steps are taken back, a file gets what the oldest of them saved, whatever the newer ones found there.
 * Other people's files stay. A directory of ours that holds some of theirs stays too.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from ted.errors import NothingToRollBackError, TedError
from ted.install.context import Installing
from ted.install.extract import ROLLED_BACK, ExtractResult, extract, take_back
from ted.install.host import Host
from ted.install.newer import hand_down
from ted.install.state import EXTRACTED, Installed, Step
from ted.install.transaction import foretell_undo
from ted.install.words import translated
from ted.plugins import collected_warnings

_SHOWN = 5


def rollback(
    host: Host,
    distributor: str,
    distribution: str,
    *,
    revision: str | None = None,
    check: bool = False,
    diff: bool = False,
) -> ExtractResult:
    """Take a distribution back to an earlier revision.

    Args:
        host: This node.
        distributor: Who made it.
        distribution: Its name.
        revision: Which; the one before the installed one when ``None``.
        check: Only foretell.
        diff: Describe each change.

    Raises:
        NothingToRollBackError: There is nothing to go back to.
        TrustError: The revision must be extracted anew, and is not signed by that Distributor.
        InstallError: It could not be put back; it can be tried again.
    """
    started_s = time.monotonic()
    with translated(distribution), host.states.lock(distributor, distribution, host.wait_s, check=check):
        held = host.states.load(distributor, distribution)
        taken_back = [] if check else host.recover(held)
        if taken_back and _is_reached(held, taken_back, revision):
            return _finished(held)
        steps = _steps_back(held, revision)
        if steps is not None and all(_undoable(host, step) for step in steps):
            result = _undo(host, held, steps, check=check, diff=diff)
            if check and host.interrupted(held):
                result.reason = "an interrupted extraction or rollback would be brought to an end first"
            result.duration_s = time.monotonic() - started_s
            return result
    target = revision or _revision_before(held)
    kept = host.working.received(distributor, distribution)
    if target is None or target not in kept:
        raise NothingToRollBackError(
            f"{distribution} of {distributor}: {target or 'what was there before'} is not kept here",
            hint=_choice(held, kept, revision),
        )
    known = next((step.record for step in held.chain if step.revision == target), None)
    result = extract(host, distributor, distribution, revision=target, check=check, diff=diff, force=True, known=known)
    result.warnings.insert(0, f"no undo log leads to {target}: it was extracted anew, by the rules of `ted extract`")
    return replace(result, state=ROLLED_BACK if result.state == EXTRACTED else result.state)


def _is_reached(held: Installed, taken_back: Sequence[Step], revision: str | None) -> bool:
    """Return whether the rollback that was cut off and finished now led to where this one is to go."""
    now = held.newest.revision if held.newest is not None else None
    return now == revision if revision is not None else now not in {step.revision for step in taken_back}


def _finished(held: Installed) -> ExtractResult:
    """Return the result of a rollback that was cut off earlier and is at its end now."""
    revision = held.newest.revision if held.newest is not None else None
    return ExtractResult(
        held.distributor, held.distribution, revision, ROLLED_BACK, changed=True,
        reason="an interrupted rollback was finished",
    )  # fmt: skip


def _steps_back(held: Installed, revision: str | None) -> list[Step] | None:
    """Return the steps to take back, newest first; ``None`` when the chain does not reach that far.

    Raises:
        NothingToRollBackError: Nothing is installed, or the wanted revision is the installed one.
    """
    newest = held.newest
    if newest is None:
        raise NothingToRollBackError(
            f"{held.distribution} of {held.distributor} is not installed here",
            hint=f"`ted extract {held.distribution}` installs what was received; `ted status` tells what is installed",
        )
    if revision == newest.revision:
        raise NothingToRollBackError(
            f"{held.distribution} {revision} is what is installed", hint="name an earlier one, or none"
        )
    steps: list[Step] = []
    for step in reversed(held.chain):
        if step.revision == revision or (revision is None and step.revision != newest.revision):
            return steps
        steps.append(step)
    return steps if revision is None else None


def _revision_before(held: Installed) -> str | None:
    newest = held.newest
    earlier = [step.revision for step in held.chain if newest is not None and step.revision != newest.revision]
    return earlier[-1] if earlier else None


def _choice(held: Installed, kept: Sequence[str], revision: str | None) -> str:
    """Return where one can go, in words: what begins as the wanted revision first, then the newest."""
    installed = held.newest.revision if held.newest is not None else None
    there = sorted({*kept, *(step.revision for step in held.chain)} - {installed}, reverse=True)
    if not there:
        kept_here = "a node has what it received itself, and `max_revisions` says how many of it are kept"
        return f"there is none but {installed}, which is installed: {kept_here}"
    there.sort(key=lambda stamp: not (revision and stamp.startswith(revision)))
    more = "" if len(there) <= _SHOWN else f" and {len(there) - _SHOWN} more"
    return f"there are {', '.join(there[:_SHOWN])}{more}; installed is {installed}"


def _undoable(host: Host, step: Step) -> bool:
    return step.transaction is None or (host.states.transactions / step.transaction / "undo").is_file()


def _undo(host: Host, held: Installed, steps: list[Step], *, check: bool, diff: bool) -> ExtractResult:
    result = ExtractResult(held.distributor, held.distribution, None, ROLLED_BACK, changed=True, check=check)
    unnamed = held.cut and len(steps) == len(held.chain)
    for number, step in enumerate(steps, 1):
        if step.transaction is not None:
            counts, changes = foretell_undo(host.states.transactions / step.transaction, diff=diff)
            for name, count in counts.items():
                result.actions[name] = result.actions.get(name, 0) + count
            result.diff += changes[: 1000 - len(result.diff)]
        result.things += _put_back(step)
        if not check:
            older = next((each.transaction for each in steps[number:] if each.transaction is not None), None)
            if step.transaction is not None and older is not None:
                hand_down(host.states.transactions / step.transaction, host.states.transactions / older)
            result.warnings += take_back(host, held)
            result.warnings += _let_type_follow(host, held, step)
    if unnamed:
        result.warnings.append("what was here before is back; which revision that was is not kept (`max_revisions`)")
    remaining = held.chain[: len(held.chain) - len(steps)] if check else held.chain
    result.revision = remaining[-1].revision if remaining else None
    return result


def _put_back(step: Step) -> list[dict[str, str | None]]:
    """Return what becomes of the things that are no paths when the step is taken back."""
    if step.transaction is None:
        return []
    return [
        {"name": item["name"], "what": "restored", "before": item["after"], "after": item["before"]}
        for item in step.items
        if item["before"] != item["after"]
    ]


def _let_type_follow(host: Host, held: Installed, step: Step) -> list[str]:
    """Call the type's own ``ted_rollback``, if it has one; what goes wrong there is told, the rollback stands."""
    if not host.plugins.has_rollback(step.type):
        return []
    meta = {"distributor": held.distributor, "distribution": held.distribution}
    try:
        with (
            host.verified(held.distributor, held.distribution, step.revision, known=step.record) as reader,
            host.transaction(meta) as transaction,
            collected_warnings(f"ted.install.{held.distribution}") as (logger, warnings),
        ):
            options = host.plugins.validate_options(step.type, reader.options)
            install = Installing(reader, options, host.variables, transaction, logger, guarded=host.guarded)
            host.plugins.rollback(step.type, install)
            transaction.commit()
            transaction.close()
            transaction.forget()
    except TedError as error:
        return [f"ted_rollback of type {step.type!r}: {error.message}"]
    return warnings
