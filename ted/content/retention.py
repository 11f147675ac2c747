"""Which revisions and packs are kept.

Rules:
 * Beyond ``max_revisions`` whole revisions the oldest go first; ``None`` keeps all.
 * A revision in use (being sent, extracted, installed) stays, so that there may be more for a while.
 * A revision that is not here as a whole does not count: it stays while it is newer than the newest whole one
   (it is being received), else it goes.
 * A pack stays as long as a kept revision refers to it.

``decide`` touches nothing; ``apply`` does what was decided and may be killed anywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ted.content.working import WorkingDirectory, drop_pack, drop_record, stamps
from ted.errors import RepositoryError

DEFAULT_MAX_REVISIONS = 10


@dataclass(frozen=True, slots=True)
class Removal:
    """What is to go: ``revisions`` lose their record, the directories of ``packs`` go as a whole."""

    revisions: tuple[str, ...]
    packs: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.revisions or self.packs)


def decide(
    refers_to: Mapping[str, Collection[str]],
    *,
    directories: Collection[str],
    whole: Collection[str],
    max_revisions: int | None = DEFAULT_MAX_REVISIONS,
    in_use: Collection[str] = (),
) -> Removal:
    """Return what is to go from a distribution's directory.

    Args:
        refers_to: Stamp of each revision with a record -> stamps of the packs it needs, its own included.
        directories: Stamps of all directories, revisions or packs only.
        whole: Revisions that are here as a whole.
        max_revisions: How many whole revisions to keep, at least 1; ``None`` keeps all.
        in_use: Revisions that stay in any case.
    """
    complete = sorted(stamp for stamp in refers_to if stamp in whole)
    newest = complete[-1] if complete else ""
    surplus = complete[: -max(max_revisions, 1)] if max_revisions is not None else []
    stale = [stamp for stamp in refers_to if stamp not in whole and stamp < newest]
    going = sorted(stamp for stamp in {*surplus, *stale} if stamp not in in_use)
    needed = set(in_use)
    for stamp, packs in refers_to.items():
        if stamp not in going:
            needed.update(packs, (stamp,))
    return Removal(tuple(going), tuple(sorted(stamp for stamp in directories if stamp not in needed)))


def plan(
    working: WorkingDirectory,
    distributor: str,
    distribution: str,
    *,
    max_revisions: int | None = DEFAULT_MAX_REVISIONS,
    in_use: Collection[str] = (),
) -> Removal:
    """Return what is to go, by what lies in the working directory; changes nothing.

    A record that cannot be read may refer to anything: then no pack goes.
    """
    directory = working.distribution(distributor, distribution)
    refers_to: dict[str, Collection[str]] = {}
    unreadable = False
    for stamp in working.revisions(distributor, distribution):
        try:
            record = working.record(distributor, distribution, stamp)
        except RepositoryError:
            unreadable = True
        else:
            refers_to[stamp] = [pack.revision for pack in record.packs]
    removal = decide(
        refers_to,
        directories=stamps(directory),
        whole=working.received(distributor, distribution),
        max_revisions=max_revisions,
        in_use=in_use,
    )
    return Removal(removal.revisions, ()) if unreadable else removal


def apply(working: WorkingDirectory, distributor: str, distribution: str, removal: Removal) -> int:
    """Remove what was decided; return the bytes freed. What a kill leaves over, the next run removes."""
    directory = working.distribution(distributor, distribution)
    for stamp in removal.revisions:
        drop_record(directory / stamp)
    return sum(drop_pack(directory / stamp) for stamp in removal.packs)
