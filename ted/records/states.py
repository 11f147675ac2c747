"""The states of the contract, and which may follow which.

Rules:
 * A state belongs to one (node, distributor, distribution) and names the revision it speaks of.
 * News from the node itself carries its own growing number; later is what has the higher one, so that the clocks
   of different hosts never matter.
 * What others say of a node (number 0: ``pending``, or ``failed`` because it does not answer) is a guess: it gives
   way to any news of the node, and never replaces the news that the node holds that revision.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from ted.errors import FormatError


class State(StrEnum):
    """What a node has done with a revision."""

    PENDING = "pending"
    RECEIVING = "receiving"
    RECEIVED = "received"
    EXTRACTING = "extracting"
    EXTRACTED = "extracted"
    FAILED = "failed"
    ROLLED_BACK = "rolled_back"
    SKIPPED = "skipped"
    UNKNOWN = "unknown"


HOLDS = frozenset({State.RECEIVED, State.EXTRACTING, State.EXTRACTED, State.ROLLED_BACK, State.SKIPPED})
"""States in which the node holds the whole revision."""

IN_SERVICE = frozenset({State.EXTRACTED, State.ROLLED_BACK})
"""States that tell which revision is in service: their own."""

NOT_ASKED = "not asked: "
"""Begins the error of a delivery to a node that could not be asked and, as it said before, has the revision."""

FINAL = (HOLDS - {State.EXTRACTING}) | {State.FAILED}
"""States a send need not wait on."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """One row of ``ted status``; also what travels up as a receipt.

    ``seq`` grows with every change on the reporting node (0: somebody else's guess, such as ``pending``);
    ``bytes_done`` of ``bytes_total`` were fetched over the line; ``had`` says an offer found the revision there.
    ``installed`` is the revision in service, whatever became of ``revision``; ``None``: none, or not known.
    """

    node: str
    distributor: str
    distribution: str
    revision: str | None
    state: State
    at: str
    error: str | None = None
    seq: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    had: bool = False
    installed: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the whole row."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}  # asdict copies each value deeply

    def public(self) -> dict[str, Any]:
        """Return the row of the contract."""
        row = self.to_dict()
        return {key: row[key] for key in
                ("node", "distributor", "distribution", "revision", "state", "installed", "at", "error")}  # fmt: skip

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read a receipt from outside; nothing of it is believed unchecked.

        Raises:
            FormatError: It is not one.
        """
        try:
            row = cls(**{field.name: data[field.name] for field in fields(cls) if field.name in data})
            at = datetime.fromisoformat(row.at)
            return replace(
                row, state=State(row.state), at=at.astimezone(UTC).isoformat(timespec="milliseconds"),
                node=_name(row.node), distributor=_name(row.distributor), distribution=_name(row.distribution),
                revision=None if row.revision is None else _stamp(row.revision),
                installed=None if row.installed is None else _stamp(row.installed),
                error=None if row.error is None else clean(str(row.error)[:MAX_ERROR_CHARACTERS]),
                seq=_number(row.seq, time.time_ns() + MAX_AHEAD_NS), had=row.had is True,
                bytes_done=_number(row.bytes_done), bytes_total=_number(row.bytes_total),
            )  # fmt: skip
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise FormatError(f"not a receipt: {error!r:.200}") from error


def said(state: str, revision: str | None) -> str:
    """Return a state as tables say it: the revision of a rollback is the one gone back to, not the one taken back."""
    if state != State.ROLLED_BACK:
        return str(state)
    return "rolled back" if revision is None else "rolled back to"


MAX_ERROR_CHARACTERS = 4000
MAX_AHEAD_NS = 86_400 * 10**9  # a clock may be a day ahead; more would freeze the node's state for ever
_NAME = re.compile(r"[A-Za-z0-9_@+-][A-Za-z0-9._@+-]{0,127}", re.ASCII)
_STAMP = re.compile(r"[0-9]{8}T[0-9]{12}Z", re.ASCII)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError(f"{value!r:.60} is not a name")
    return value


def _stamp(value: Any) -> str:
    if not isinstance(value, str) or not _STAMP.fullmatch(value):
        raise ValueError(f"{value!r:.60} is not a revision")
    return value


def _number(value: Any, most: int = 2**63 - 1) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{value!r:.60} is out of range")
    return value


def supersedes(new: NodeState, former: NodeState) -> bool:
    """Return whether ``new`` replaces ``former``, both of one node and distribution."""
    if new.seq and new.seq == former.seq:  # told again, now in answer to an offer
        same = (new.revision, new.state) == (former.revision, former.state)
        return new.had and ((same and not former.had) or former.state is State.PENDING)
    if new.seq:
        return new.seq > former.seq
    return new.revision != former.revision or former.state not in HOLDS


def clean(text: str) -> str:
    """Return a text as every database takes it: what is no character, and NUL, become U+FFFD."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def now_text() -> str:
    """Return the aware UTC time, to the millisecond, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
