"""What a type's hook works with on a Subscriber: one revision, this node, one transaction."""

from __future__ import annotations

import logging
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ted.content.entry import Entry, Kind
from ted.content.revision import Hole, RevisionReader
from ted.errors import TargetError, UnsafePathError
from ted.install.transaction import Transaction
from ted.install.tree import Overwrite, Placement, Placing
from ted.install.variables import Variables

DATA = b"data"


@dataclass(frozen=True)
class Content:
    """The type's own tree of a revision: paths as the type gave them, without ``data/``."""

    reader: RevisionReader

    @property
    def revision(self) -> str:
        """Its time stamp."""
        return self.reader.record.revision

    def entries(self, at: str = "") -> Iterator[Entry]:
        """Yield its entries at and below ``at``, sorted by path components."""
        skip = len(DATA) + 1
        for entry in self.reader.entries(place_in_content(at)):
            if entry.path == DATA:
                continue
            link = entry.link
            if entry.kind is Kind.HARDLINK and link is not None:
                link = link[skip:]
            yield entry._replace(path=entry.path[skip:], link=link)

    def read(self, entry: Entry) -> Iterator[bytes | Hole]:
        """Yield the content of a file, verified."""
        found = self.reader.find(DATA + b"/" + entry.path)
        if found is None:
            raise UnsafePathError(f"{entry.path!r}: no entry of this revision")
        yield from self.reader.chunks(found)


def place_in_content(at: str) -> bytes:
    """Return the whole path of a place of the type's own tree."""
    return DATA + b"/" + os.fsencode(at) if at else DATA


@dataclass
class Installing:
    """The ``InstallContext``.

    ``places`` collects where each place of the content went; ``before_places`` is the same of the revision
    installed now. ``guarded`` are directories that nothing is deleted in: ted's own. ``others`` are the places of other
    distributions here: directory -> whose, and whether it is synchronized.
    """

    reader: RevisionReader
    options: Any
    variables: Variables
    transaction: Transaction
    log: logging.Logger
    check: bool = False
    recheck: bool = False
    before: RevisionReader | None = None
    before_places: dict[str, str] = field(default_factory=dict)
    guarded: Sequence[str] = ()
    others: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    _synchronized: dict[str, bool] = field(default_factory=dict)

    @property
    def distributor(self) -> str:
        """Who made it."""
        return self.reader.record.distributor

    @property
    def distribution(self) -> str:
        """Its name."""
        return self.reader.record.distribution

    @property
    def revision(self) -> str:
        """The time stamp of what is extracted."""
        return self.reader.record.revision

    @property
    def previous(self) -> Content | None:
        """The revision installed before."""
        return Content(self.before) if self.before is not None else None

    def expand(self, text: str) -> str:
        """Return ``text`` with ``%NAME%`` replaced."""
        return self.variables.expand(text)

    def entries(self, at: str = "") -> Iterator[Entry]:
        """Yield the entries at and below ``at``."""
        return Content(self.reader).entries(at)

    def read(self, entry: Entry) -> Iterator[bytes | Hole]:
        """Yield the content of a file."""
        return Content(self.reader).read(entry)

    def problems(
        self,
        *,
        on_error: Literal["fail", "continue"] = "fail",
        on_locked: Literal["fail", "kill"] = "fail",
        retries: int = 3,
    ) -> None:
        """Say what happens when something cannot be done."""
        policy = replace(self.transaction.policy, on_error=on_error, on_locked=on_locked, retries=retries)
        self.transaction.set_policy(policy)

    def place(
        self,
        at: str,
        root: str,
        *,
        overwrite: Overwrite = "always",
        synchronize: bool = False,
        exclude: Sequence[str] = (),
        remove: Sequence[str] = (),
        owner: str | int | None = None,
        group: str | int | None = None,
        mode: int | None = None,
    ) -> None:
        """Make the directory ``root`` hold what the content tree holds at ``at``."""
        root = self._checked_root(root, synchronize=synchronize, remove=remove)
        self.places[at] = root
        how = Placement(overwrite, synchronize, tuple(exclude), tuple(remove), owner, group, mode)
        before = self.before if self.before_places.get(at) == root else None
        Placing(
            self.transaction, self.reader, place_in_content(at), root, how, before=before, recheck=self.recheck
        ).run()

    @property
    def synchronized(self) -> list[str]:
        """Directories that hold nothing but what the distribution says."""
        return [root for root, also in self._synchronized.items() if also]

    def _checked_root(self, root: str, *, synchronize: bool, remove: Sequence[str] = ()) -> str:
        if not root.startswith("/") or "\0" in root:
            raise TargetError(
                f"{root!r}: a target must be an absolute path", hint="write it from / on, or let a variable hold it",
                path=root,
            )  # fmt: skip
        root = "/" + posixpath.normpath(root).lstrip("/")
        real = os.path.realpath(root)
        self._refuse_deleting_ted(root, [real] * synchronize + [posixpath.join(real, path) for path in remove])
        self._refuse_others(root, real, synchronize=synchronize)
        for other, also in self._synchronized.items():
            if (synchronize and _inside(other, real)) or (also and _inside(real, other)):
                raise UnsafePathError(
                    f"{root} and {other}: one target lies in the other, and `synchronize` would delete it",
                    hint="make them one target, or leave `synchronize` off for the outer one",
                )
        if synchronize and real == "/":
            raise UnsafePathError(
                f"{root}: `synchronize` of the whole machine is refused", hint="name the directory it really owns"
            )
        self._synchronized[real] = synchronize
        return root

    def _refuse_deleting_ted(self, root: str, deleted_in: Sequence[str]) -> None:
        for guarded in map(os.path.realpath, self.guarded):
            if any(_inside(guarded, path) or _inside(path, guarded) for path in deleted_in):
                raise UnsafePathError(
                    f"{root}: `synchronize` or `remove` there would delete ted's own {guarded}",
                    hint="name the directory that the distribution really owns",
                )

    def _refuse_others(self, root: str, real: str, *, synchronize: bool) -> None:
        for other, (whose, also) in self.others.items():
            if (synchronize and _inside(other, real)) or (also and _inside(real, other)):
                raise UnsafePathError(
                    f"{root}: {whose} is installed in {other}, and `synchronize` of one would delete the other",
                    hint="give each a directory of its own, leave `synchronize` off, or roll the other one back first",
                )


def _inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")
