"""The states of the contract, and which may follow which.

Rules:
 * A state belongs to one (node, distributor, distribution) and names the revision it speaks of.
 * News from the node itself carries its own growing number; later is what has the higher one, so that the clocks
   of different hosts never matter.
 * What others say of a node (number 0: ``pending``, or ``failed`` because it does not answer) is a guess: it gives
   way to any news of the node, and never replaces the news that the node holds that revision.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
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

FINAL = (HOLDS - {State.EXTRACTING}) | {State.FAILED}
"""States a send need not wait on."""


@dataclass(frozen=True, slots=True)
class NodeState:
    """One row of ``ted status``; also what travels up as a receipt.

    ``seq`` grows with every change on the reporting node (0: somebody else's guess, such as ``pending``);
    ``bytes_done`` of ``bytes_total`` were fetched over the line; ``had`` says an offer found the revision there.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the whole row."""
        return asdict(self)

    def public(self) -> dict[str, Any]:
        """Return the row of the contract."""
        row = self.to_dict()
        return {key: row[key] for key in
                ("node", "distributor", "distribution", "revision", "state", "at", "error")}  # fmt: skip

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read a receipt from outside.

        Raises:
            FormatError: It is not one.
        """
        try:
            known = {field.name: data[field.name] for field in fields(cls) if field.name in data}
            row = cls(**{**known, "state": State(data["state"])})
            texts = (row.node, row.distributor, row.distribution, row.at)
            numbers = (row.seq, row.bytes_done, row.bytes_total)
            if not all(isinstance(text, str) and len(text) <= 256 for text in texts):
                raise FormatError("receipt with a name or time that is no short text")
            if not all(isinstance(number, int) and 0 <= number < 2**63 for number in numbers):
                raise FormatError("receipt with a number out of range")
            return cls(**{**asdict(row), "error": None if row.error is None else str(row.error)[:4000]})
        except (TypeError, KeyError, ValueError) as error:
            raise FormatError(f"not a receipt: {error!r}") from error


def supersedes(new: NodeState, former: NodeState) -> bool:
    """Return whether ``new`` replaces ``former``, both of one node and distribution."""
    if new.seq and new.seq == former.seq:  # told again, now in answer to an offer
        return new.had and not former.had and (new.revision, new.state) == (former.revision, former.state)
    if new.seq:
        return new.seq > former.seq
    return new.revision != former.revision or former.state not in HOLDS


def now_text() -> str:
    """Return the aware UTC time, to the millisecond, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
