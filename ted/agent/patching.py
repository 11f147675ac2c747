"""Receiving by patches: which ones lead from what is here to what is offered, and using them.

Rules:
 * A patch only saves bytes: without one, or when one fails, the blocks of the pack are fetched.
 * Steps follow one another: each starts from the revision that the one before has made whole.
 * Who passes on to nobody leaves out a patch that was proved with other compressors than those here; who has children
   fetches it for them.
 * What is rebuilt is taken block by block against the signed list, as if it had come over the line.
 * A patch that is being applied ends within about a second when it must, whatever it does at that moment.
 * Room is counted for all that a chain of patches ever has on the disk: patches, packs between, what waits meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ted.content.blocks import PACK_NAME, PartialPack
from ted.content.durable import read_bounded, replace_file
from ted.content.opening.codecs import Codec, behaviour
from ted.content.patch.apply import apply_patch, waiting_bytes
from ted.content.patch.kept import RebuiltPack, patch_ref
from ted.content.record import MAX_RECORD_BYTES, PackRef, RevisionRecord
from ted.content.revision import Revision
from ted.content.working import RECORD_NAME
from ted.errors import FormatError, NoSpaceError, RepositoryError, TrustError
from ted.transfer.fetch import check_space
from ted.transfer.packs import runs_bytes
from ted.transfer.saver import Saver
from ted.trust.chain import Patch
from ted.trust.view import CatalogView

log = logging.getLogger("ted.patching")

_FAULTS = (ValueError, TypeError, LookupError, ArithmeticError, RecursionError)
MAX_STEPS = 32
CHECK_EVERY_S = 0.1
WORTH_PERCENT = 90

Leads = Callable[[str], Mapping[str, Patch]]
"""Stamp -> the patches that lead to it, by the stamp before."""


@dataclass(frozen=True)
class Step:
    """``patch`` makes the own pack of ``record`` of the revision ``before``."""

    before: RevisionRecord
    record: RevisionRecord
    patch: PackRef
    waiting_bytes: int = 0
    """What waits on the disk while it is applied, as the catalog tells."""


def chain_of_patches(wanted: str, held: Sequence[str], leads: Leads) -> list[tuple[str, str, PackRef]]:
    """Return (before, stamp, patch) from the newest held revision up to ``wanted``, empty where none leads there."""
    steps: list[tuple[str, str, PackRef]] = []
    at = wanted
    while at not in held:
        known = {before: told for before, told in leads(at).items() if before < at}
        if not known or len(steps) >= MAX_STEPS:
            return []
        before = max((stamp for stamp in known if stamp in held), default=max(known))
        steps.append((before, at, patch_ref(at, before, known[before].bytes, known[before].root)))
        at = before
    return steps[::-1]


def is_worth_it(patches_bytes: int, missing_bytes: int) -> bool:
    """Whether patches are to be fetched instead of what they make."""
    return patches_bytes * 100 <= missing_bytes * WORTH_PERCENT


def is_usable(patch: Patch) -> bool:
    """Whether this machine's compressors are those that a patch was proved with, as far as samples tell."""
    codecs = {codec.name.lower(): codec for codec in Codec}
    named = [(codecs.get(text.partition(":")[0]), text) for text in patch.closed_by]
    return all(codec is not None and behaviour(codec) == text for codec, text in named)


def plan_steps(
    view: CatalogView, directory: Path, wanted: RevisionRecord, held: Sequence[str], *, for_others: bool = False
) -> list[Step]:
    """Return the patches to use for ``wanted``; what they need besides is here already.

    Args:
        view: The Distributor's catalog; asked for the records of the revisions between.
        directory: The distribution's.
        wanted: The record of the revision that is wanted.
        held: The revisions that are here as a whole.
        for_others: Also those that may fail here, since others come to fetch them.

    Raises:
        TransferError: The sender was asked for a record and did not answer.
    """
    name = wanted.distribution

    def leads(stamp: str) -> dict[str, Patch]:
        told = view.patches(name, stamp)
        return {before: patch for before, patch in told.items() if for_others or is_usable(patch)}

    chain = chain_of_patches(wanted.revision, held, leads)
    missing_bytes = sum(_missing_bytes(directory, ref) for ref in wanted.packs)
    if not is_worth_it(sum(patch.bytes for _, _, patch in chain), missing_bytes):
        return []
    steps: list[Step] = []
    for before, stamp, patch in chain:
        old = steps[-1].record if steps else _record(view, directory, name, before)
        new = wanted if stamp == wanted.revision else _record(view, directory, name, stamp)
        made = {step.record.revision for step in steps}
        between = new.packs[1:] if new is not wanted else ()
        if any(ref.revision not in made and _missing_bytes(directory, ref) for ref in between):
            return []
        steps.append(Step(old, new, patch, view.patches(name, stamp)[before].waiting_bytes))
    return steps


def most_bytes(directory: Path, wanted: RevisionRecord, steps: Sequence[Step]) -> int:
    """Return how much more of the disk is taken when most is, on the way to ``wanted`` by ``steps``.

    What waits while a patch is applied is gone after that; all else stays. It is enough for the blocks too, at any
    moment at which a patch turns out to be of no use.
    """
    taken = most = 0
    made = set()
    for step in steps:
        own = step.record.packs[0]
        taken += _missing_bytes(directory, step.patch) + _missing_bytes(directory, own, whole=True)
        most = max(most, taken + step.waiting_bytes)
        made.add(own.revision)
    taken += sum(_missing_bytes(directory, ref) for ref in wanted.packs if ref.revision not in made)
    return max(most, taken)


def _missing_bytes(directory: Path, ref: PackRef, *, whole: bool = False) -> int:
    """Return the bytes of the live blocks of a pack that are not here; ``whole``: of all its blocks."""
    pack = PartialPack(directory / ref.revision, ref)
    try:
        return runs_bytes(ref, pack.missing([(0, ref.blocks)] if whole else None))
    finally:
        pack.close()


def _record(view: CatalogView, directory: Path, distribution: str, stamp: str) -> RevisionRecord:
    data = view.record(distribution, stamp)
    record = RevisionRecord.from_bytes(data)
    if (record.distributor, record.distribution, record.revision) != (view.distributor, distribution, stamp):
        raise TrustError(f"the record signed as {distribution} {stamp} speaks of another revision")
    place = directory / stamp
    place.mkdir(parents=True, exist_ok=True)
    if read_bounded(place / RECORD_NAME, MAX_RECORD_BYTES) != data:
        replace_file(place / RECORD_NAME, data)
    return record


class _Rebuilt(RebuiltPack):
    def __init__(self, pack: PartialPack, came: Callable[[], None]) -> None:
        super().__init__(pack)
        self._came = came

    def came(self) -> None:
        self._came()


def _now_and_then(*checks: Callable[[], None]) -> Callable[[], None]:
    """Return what calls all ``checks``, at most ten times a second however often it is called itself."""
    next_at_s = 0.0

    def check() -> None:
        nonlocal next_at_s
        now_s = time.monotonic()
        if now_s >= next_at_s:
            next_at_s = now_s + CHECK_EVERY_S
            for each in checks:
                each()

    return check


def use_patch(
    directory: Path, step: Step, pack: PartialPack, came: Callable[[], None], *, min_free_bytes: int | None,
    check: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Rebuild the own pack of a step's revision.

    Args:
        directory: The distribution's.
        step: What to do; its patch is here.
        pack: Where the bytes go; blocks that are here stay as they are.
        came: Called for each block that is here now.
        min_free_bytes: What must stay free on the disk.
        check: Called several times a second, also while no block comes; what it raises ends the work.

    Raises:
        RepositoryError: The patch does not give the pack (another zstd, or something is damaged), or the pack and
            what waits meanwhile have no room above ``min_free_bytes``.
        TransferError: The disk failed.
    """
    missing = pack.missing([(0, pack.ref.blocks)])
    if not missing:
        return
    waiting = waiting_bytes(directory / step.patch.revision / PACK_NAME)
    try:
        check_space(directory, waiting + runs_bytes(pack.ref, missing), min_free_bytes)
    except NoSpaceError as error:  # the blocks may well have room
        problem = f"no room to open packages and to make the pack: {error.message}"
        raise RepositoryError(problem, hint=error.hint) from error
    with Saver(pack) as saver, Revision(directory, step.before).open() as old:
        try:
            path, go_on = directory / step.patch.revision / PACK_NAME, _now_and_then(saver.check, check)
            apply_patch(path, old, _Rebuilt(pack, came), go_on)
        except _FAULTS as error:  # whatever a patch brings about, it costs no more than the patch
            log.exception("%s: a fault of ted, or a hostile patch", step.patch.revision)
            raise FormatError(f"the patch cannot be applied: {type(error).__name__}: {error}") from error

