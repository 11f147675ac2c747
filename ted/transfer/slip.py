"""The routing slip: which nodes a revision must reach, and by whom, signed by its Distributor.

Rules:
 * A slip is a tree of hops. Each node gets the subtree below itself only, and still can check that the
   Distributor signed exactly that subtree: hop digests form a hash tree whose root is in the signed payload.
 * A hop's digest covers its name, address, port, whether it is a target, and its children in order.
 * The children of a hop are the leaves of a binary hash tree (an odd last one is carried up unchanged), so the
   proof for one of n children is about log2(n) digests.
 * The nodes above are listed as ancestors, Distributor first; the last ancestor is the sender.
 * ``ends_at`` is the end of the send's window: until then blocks are sent, and none is begun that would not be
   finished. ``None``: there is no window.
 * A slip is refused when it is expired, not addressed to this node, or its proof does not lead to the signed root.

Nothing here opens a socket or reads a clock; the caller says what time it is and how a signature is checked.
The bytes are described in docs/protocol.md.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self

from ted.errors import SlipError

FORMAT = 1
MAX_HOPS = 1_000_000
MAX_DEPTH = 64
MAX_PROOF = 32
MAX_TEXT = 255
VALID_FOR = timedelta(days=7)
CLOCK_SKEW = timedelta(minutes=10)
_EMPTY = bytes(32)
_EXCHANGED = ("send", "distributor", "distribution", "revision", "channel", "priority")

Signatures = Sequence[dict[str, str]]
VerifySignature = Callable[[bytes, Signatures], None]


@dataclass(frozen=True, slots=True)
class Hop:
    """One node of the tree with all that lies behind it."""

    name: str
    address: str
    port: int
    target: bool
    children: tuple[Hop, ...] = ()

    def walk(self) -> Iterator[Hop]:
        """Yield this hop and every one behind it, senders before receivers."""
        level = [self]
        while level:
            yield from level
            level = [child for hop in level for child in hop.children]

    def names(self) -> set[str]:
        """Return the names of this hop and of every one behind it."""
        return {hop.name for hop in self.walk()}

    def edges(self) -> list[tuple[str, str]]:
        """Return (sender, receiver) pairs, senders before receivers."""
        return [(hop.name, child.name) for hop in self.walk() for child in hop.children]

    def digest(self) -> bytes:
        """Return the 32 bytes that stand for this hop and all behind it."""
        return _hop_digest(self, len(self.children), _root([child.digest() for child in self.children]))

    def encode(self) -> list[Any]:
        """Return the JSON shape ``[name, address, port, target, [children]]``."""
        return [self.name, self.address, self.port, self.target, [child.encode() for child in self.children]]


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A hop above, without its subtree: what is needed to check the way down from it."""

    name: str
    address: str
    port: int
    target: bool
    children: int
    index: int
    proof: tuple[bytes, ...]

    def encode(self) -> list[Any]:
        """Return the JSON shape."""
        proof = [digest.hex() for digest in self.proof]
        return [self.name, self.address, self.port, self.target, self.children, self.index, proof]


@dataclass(frozen=True, slots=True)
class SlipHeader:
    """What the Distributor signs, beside the root of the tree."""

    send: str
    distributor: str
    distribution: str
    revision: str
    channel: str | None
    priority: str
    catalog_version: int
    issued_at: datetime
    expires_at: datetime
    ends_at: datetime | None
    root: str

    def payload(self) -> bytes:
        """Return the canonical bytes that are signed."""
        fields = {name: getattr(self, name) for name in _EXCHANGED} | {
            "format": FORMAT,
            "catalog_version": self.catalog_version,
            "issued_at": self.issued_at.isoformat(),
            "expires_at": self.expires_at.isoformat(),
            "ends_at": None if self.ends_at is None else self.ends_at.isoformat(),
            "root": self.root,
        }
        return _canonical(fields)

    @classmethod
    def from_payload(cls, payload: bytes) -> Self:
        """Read the signed bytes.

        Raises:
            SlipError: They are not a slip of a format this ted knows.
        """
        try:
            fields = json.loads(payload)
            if fields["format"] != FORMAT:
                raise SlipError(
                    f"routing slip of format {fields['format']!r}, this ted knows {FORMAT}",
                    hint="bring ted on this node to the Distributor's version",
                )
            return cls(
                **{name: fields[name] for name in _EXCHANGED},
                catalog_version=int(fields["catalog_version"]),
                issued_at=_time(fields["issued_at"]),
                expires_at=_time(fields["expires_at"]),
                ends_at=None if fields["ends_at"] is None else _time(fields["ends_at"]),
                root=str(fields["root"]),
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise SlipError(f"not a routing slip: {error}") from error


@dataclass(frozen=True, slots=True)
class RoutingSlip:
    """A signed slip as one node holds it: the way from the Distributor, and the subtree below."""

    header: SlipHeader
    signatures: tuple[dict[str, str], ...]
    ancestors: tuple[Ancestor, ...]
    hop: Hop

    @classmethod
    def sign(cls, header: SlipHeader, tree: Hop, sign: Callable[[bytes], Signatures]) -> Self:
        """Return the Distributor's own slip: no ancestors, the whole tree.

        Args:
            header: What to say; its ``root`` is filled in here.
            tree: The Distributor's hop with everything behind it.
            sign: Returns the signatures of the Distributor's online key over the given bytes.
        """
        header = replace(header, root=tree.digest().hex())
        return cls(header, tuple(sign(header.payload())), (), tree)

    @property
    def sender(self) -> Ancestor | None:
        """The node this slip came from; ``None`` on the Distributor."""
        return self.ancestors[-1] if self.ancestors else None

    def for_children(self) -> Iterator[RoutingSlip]:
        """Yield the slip for each direct receiver, in order."""
        digests = [child.digest() for child in self.hop.children]
        me = self.hop
        for index, child in enumerate(me.children):
            proof = tuple(_proof(digests, index))
            step = Ancestor(me.name, me.address, me.port, me.target, len(digests), index, proof)
            yield RoutingSlip(self.header, self.signatures, (*self.ancestors, step), child)

    def check(self, *, me: str, sender: str, now: datetime, verify: VerifySignature) -> None:
        """Refuse the slip unless the Distributor signed it for this node, through this sender.

        The signature comes last: it may cost a question to the sender which keys hold, and only what fits otherwise
        is worth that.

        Args:
            me: This node's name.
            sender: Name in the certificate of the node that handed it over.
            now: Aware UTC time.
            verify: Raises when the signatures over the given bytes do not hold.

        Raises:
            SlipError: Expired, for another node, by another way, or the proof fails.
        """
        what = f"routing slip of {self.header.distributor} for {self.header.distribution}"
        if now > self.header.expires_at:
            raise SlipError(f"{what} expired at {self.header.expires_at.isoformat()}",
                            hint="send again from the Distributor; compare the clocks of both hosts")  # fmt: skip
        if self.header.issued_at > now + CLOCK_SKEW:
            raise SlipError(f"{what} was issued in the future, at {self.header.issued_at.isoformat()}",
                            hint="compare the clocks of the Distributor and this host")  # fmt: skip
        if self.hop.name != me:
            raise SlipError(f"{what} is for {self.hop.name}, this node is {me}",
                            hint="ted_address of the two hosts may be exchanged in the inventory")  # fmt: skip
        if self.sender is None or self.sender.name != sender:
            raise SlipError(f"{what} came from {sender}, which is not the sender it names")
        if self.ancestors[0].name != self.header.distributor:
            raise SlipError(f"{what} does not start at {self.header.distributor}")
        if self._computed_root() != self.header.root:
            raise SlipError(f"{what}: the subtree is not the one that was signed")
        verify(self.header.payload(), self.signatures)

    def _computed_root(self) -> str:
        digest = self.hop.digest()
        for step in reversed(self.ancestors):
            digest = _hop_digest(step, step.children, _fold(digest, step.index, step.children, step.proof))
        return digest.hex()

    def left_s(self, now: datetime) -> float:
        """Return the seconds until the window of the send ends: 0 when it is over, infinite when there is none."""
        ends_at = self.header.ends_at
        return math.inf if ends_at is None else max(0.0, (ends_at - now).total_seconds())

    def encode(self) -> dict[str, Any]:
        """Return the JSON shape that travels in an offer."""
        return {
            "payload": self.header.payload().decode(),
            "signatures": list(self.signatures),
            "ancestors": [ancestor.encode() for ancestor in self.ancestors],
            "hop": self.hop.encode(),
        }

    @classmethod
    def decode(cls, data: Any) -> Self:
        """Read what ``encode`` made; nothing of it is believed before ``check``.

        Raises:
            SlipError: The shape is wrong, or it is larger than a slip may be.
        """
        try:
            header = SlipHeader.from_payload(str(data["payload"]).encode())
            signatures = tuple(
                {"keyid": str(item["keyid"]), "sig": str(item["sig"])} for item in data["signatures"][:16]
            )
            if len(data["ancestors"]) > MAX_DEPTH:
                raise SlipError(f"routing slip deeper than {MAX_DEPTH} hops")
            ancestors = tuple(_decode_ancestor(item) for item in data["ancestors"])
            return cls(header, signatures, ancestors, _decode_hop(data["hop"], MAX_DEPTH, [0]))
        except (ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError) as error:
            raise SlipError(f"not a routing slip: {error!r}") from error


def slip_header(
    *, send: str, distributor: str, distribution: str, revision: str, channel: str | None, priority: str,
    catalog_version: int, now: datetime, ends_at: datetime | None = None, valid_for: timedelta = VALID_FOR,
) -> SlipHeader:  # fmt: skip
    """Return a header issued ``now``; the root is filled in when it is signed."""
    return SlipHeader(
        send, distributor, distribution, revision, channel, priority, catalog_version, now, now + valid_for, ends_at, ""
    )


def _decode_ancestor(item: Any) -> Ancestor:
    name, address, port, target, children, index, proof = item
    if len(proof) > MAX_PROOF or not 0 <= index < children <= MAX_HOPS:
        raise SlipError("routing slip with an impossible proof")
    return Ancestor(_text(name), _text(address), _port(port), bool(target), int(children), int(index),
                    tuple(bytes.fromhex(digest) for digest in proof))  # fmt: skip


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_TEXT or not value.isprintable() or " " in value:
        raise SlipError("routing slip with a name or address that is none")
    return value


def _port(value: Any) -> int:
    if type(value) is not int or not 0 < value < 65536:
        raise SlipError("routing slip with a port that is none")
    return value


def _decode_hop(item: Any, depth_left: int, count: list[int]) -> Hop:
    name, address, port, target, children = item
    count[0] += 1
    if depth_left == 0 or count[0] > MAX_HOPS:
        raise SlipError(f"routing slip with more than {MAX_DEPTH} tiers or {MAX_HOPS} hops")
    below = tuple(_decode_hop(child, depth_left - 1, count) for child in children)
    return Hop(_text(name), _text(address), _port(port), bool(target), below)


def _hop_digest(hop: Hop | Ancestor, children: int, children_root: bytes) -> bytes:
    own = _canonical([hop.name, hop.address, hop.port, hop.target, children])
    return hashlib.sha256(b"ted hop 1\0" + own + children_root).digest()


def _pair(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"ted pair 1\0" + left + right).digest()


def _level_up(level: list[bytes]) -> list[bytes]:
    pairs = [_pair(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
    return pairs + level[len(level) & ~1 :]


def _root(leaves: list[bytes]) -> bytes:
    level = leaves or [_EMPTY]
    while len(level) > 1:
        level = _level_up(level)
    return level[0]


def _proof(leaves: list[bytes], index: int) -> Iterator[bytes]:
    level = leaves
    while len(level) > 1:
        sibling = index ^ 1
        if sibling < len(level):
            yield level[sibling]
        level, index = _level_up(level), index // 2


def _fold(leaf: bytes, index: int, count: int, proof: Sequence[bytes]) -> bytes:
    siblings = iter(proof)
    digest = leaf
    while count > 1:
        if index ^ 1 < count:
            sibling = next(siblings, _EMPTY)
            digest = _pair(sibling, digest) if index & 1 else _pair(digest, sibling)
        index, count = index // 2, (count + 1) // 2
    return digest


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise SlipError(f"time without zone in a routing slip: {text}")
    return moment.astimezone(UTC)
