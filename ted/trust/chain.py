"""A catalog at rest: the files one directory holds, verified from a trusted root down.

Rules:
 * ``timestamp.json`` is the only entry: what it does not reach does not exist.
 * A versioned name never changes its bytes.
 * Expiry is not judged here (a catalog that was fresh when it came in stays readable);
   ``Chain.expires_at`` tells, and whoever talks to the outside decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tuf.api.exceptions import BadVersionNumberError

from ted.trust import names
from ted.trust.files import read_bounded
from ted.trust.tuf_api import (
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
    TufError,
)

KEPT_VERSIONS = 4
_ANCHORS_KEPT = 64  # one for each Distributor that sends to this node
_ROOT = re.compile(r"[0-9a-f]{64}", re.ASCII)
DISTRIBUTOR_FIELD = "x-ted-distributor"

_MAX_COMPRESSORS = 16
_MAX_BYTES = 1 << 50

S = TypeVar("S", bound=Signed)


class Patch(NamedTuple):
    """A patch as the catalog tells it: its bytes, the root of its block list, the compressors it was proved with.

    ``waiting_bytes`` wait on the disk while it is applied, and are gone afterwards.
    """

    bytes: int
    root: str
    closed_by: tuple[str, ...] = ()
    waiting_bytes: int = 0

    def row(self) -> list[Any]:
        """Return it as it stands in the catalog."""
        if self.waiting_bytes:
            return [self.bytes, self.root, list(self.closed_by), self.waiting_bytes]
        return [self.bytes, self.root, *([list(self.closed_by)] if self.closed_by else [])]


@dataclass(frozen=True)
class Chain:
    """One consistent, verified state of a catalog."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets
    delegated: Mapping[str, Targets]
    raw: Mapping[str, bytes]
    """Served name -> bytes, of everything below the root."""

    @property
    def distributor(self) -> str | None:
        """The name the root was made for."""
        return distributor_of(self.root)

    @property
    def distributions(self) -> tuple[str, ...]:
        """Every distribution the Distributor publishes, sorted."""
        return tuple(sorted(name for role in self.delegated if (name := names.distribution_of(role))))

    @property
    def expires_at(self) -> datetime:
        """When the first of its parts expires."""
        return min(signed.expires for signed in self.signed().values())

    def signed(self) -> dict[str, Signed]:
        """Return every role's content by role name."""
        top: dict[str, Signed] = {
            "root": self.root, "timestamp": self.timestamp,
            "snapshot": self.snapshot, "targets": self.targets,
        }  # fmt: skip
        return top | dict(self.delegated)

    def revisions(self, distribution: str) -> list[str]:
        """Return the stamps of a distribution's published revisions, oldest first."""
        role = self.delegated.get(names.role_of(distribution))
        parsed = [names.parse_target(path) for path in role.targets] if role else []
        return sorted(item[1] for item in parsed if item and item[0] == distribution)

    def patches(self, distribution: str, stamp: str) -> dict[str, Patch]:
        """Return the patches that lead to a revision, by the stamp before."""
        target = self.target(distribution, stamp)
        custom = target.unrecognized_fields.get("custom") if target else None
        told = custom.get("patches") if isinstance(custom, dict) else None
        rows = told.items() if isinstance(told, dict) else ()
        return {before: _patch(row) for before, row in rows if names.is_stamp(before) and _is_patch(row)}

    def target(self, distribution: str, stamp: str) -> TargetFile | None:
        """Return what is signed of a revision's record; only the distribution's own role is asked."""
        role, path = names.role_of(distribution), names.target_path(distribution, stamp)
        delegations = self.targets.delegations
        # a role may list any path: only what was delegated to it counts
        if not delegations or role not in dict(delegations.get_roles_for_target(path)):
            return None
        signed = self.delegated.get(role)
        return signed.targets.get(path) if signed else None


def _is_patch(value: object) -> bool:
    if not isinstance(value, list) or len(value) not in {2, 3, 4}:
        return False
    size, root = value[:2]
    texts = value[2] if len(value) > 2 else []
    waiting = value[3] if len(value) > 3 else 0
    if not isinstance(texts, list) or len(texts) > _MAX_COMPRESSORS or not all(isinstance(text, str) for text in texts):
        return False
    sizes = type(size) is int and 0 < size < _MAX_BYTES and type(waiting) is int and 0 <= waiting < _MAX_BYTES
    return sizes and isinstance(root, str) and _ROOT.fullmatch(root) is not None


def _patch(row: list[Any]) -> Patch:
    return Patch(row[0], row[1], tuple(row[2]) if len(row) > 2 else (), row[3] if len(row) > 3 else 0)


def distributor_of(root: Root) -> str | None:
    """Return the Distributor a root was made for, ``None`` if it does not say."""
    name = root.unrecognized_fields.get(DISTRIBUTOR_FIELD)
    return name if isinstance(name, str) else None


def parse(kind: type[S], data: bytes) -> Metadata[S]:  # type: ignore[type-var]
    """Parse one metadata file; nothing is verified.

    Raises:
        TufError: It is not metadata of that kind.
    """
    metadata: Metadata[S] = Metadata.from_bytes(data)  # type: ignore[type-var,assignment]
    if metadata.signed.type != kind.type:
        raise TufError(f"expected {kind.type} metadata, got {metadata.signed.type}")
    return metadata


def parse_root(data: bytes) -> Root:
    """Parse a root and verify that it is signed by itself.

    Raises:
        TufError: It is not a root, or its signatures do not hold.
    """
    metadata = parse(Root, data)
    metadata.signed.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    return metadata.signed


@lru_cache(maxsize=_ANCHORS_KEPT)
def parse_anchor(data: bytes) -> Root:
    """As ``parse_root``, for a root that this node trusts; the same bytes are parsed once: it is not to be changed."""
    return parse_root(data)


def succeeds(former: Root, data: bytes) -> Root:
    """Return the root ``data`` if it lawfully follows ``former``.

    Raises:
        TufError: It does not.
    """
    metadata = parse(Root, data)
    if metadata.signed.version != former.version + 1:
        raise BadVersionNumberError(f"expected root {former.version + 1}, got {metadata.signed.version}")
    former.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    metadata.signed.verify_delegate("root", metadata.signed_bytes, metadata.signatures)
    return metadata.signed


def follow_roots(directory: Path, anchor: bytes) -> Iterator[tuple[Root, bytes]]:
    """Yield the trusted root and each lawful successor that ``directory`` holds."""
    root = parse_anchor(anchor)
    yield root, anchor
    while data := read_bounded(directory / f"{root.version + 1}.root.json", names.MAX_ROOT_BYTES):
        try:
            root = succeeds(root, data)
        except TufError:
            return  # of a former identity: a newly imported root wins
        yield root, data


def read_chain(directory: Path, anchor: bytes) -> Chain:
    """Read and verify the catalog in ``directory`` from the trusted root ``anchor`` down.

    Raises:
        FileNotFoundError: A part is missing.
        TufError: A part does not verify.
    """
    *_, (root, _) = follow_roots(directory, anchor)
    raw: dict[str, bytes] = {}

    def load(name: str, max_bytes: int = names.MAX_METADATA_BYTES) -> bytes:
        data = read_bounded(directory / name, max_bytes)
        if data is None:
            raise FileNotFoundError(str(directory / name))
        raw[name] = data
        return data

    timestamp = _verified(Timestamp, load("timestamp.json", names.MAX_TIMESTAMP_BYTES), root, "timestamp")
    snapshot = _member(Snapshot, load, root, "snapshot", timestamp.snapshot_meta)
    targets = _member(Targets, load, root, "targets", snapshot.meta["targets.json"])
    delegated = {
        role: _member(Targets, load, targets, role, snapshot.meta[f"{role}.json"]) for role in delegated_roles(targets)
    }
    return Chain(root, timestamp, snapshot, targets, delegated, raw)


def read_targets(scratch: Path) -> Targets:
    """Return the targets metadata among the files of a client, as it keeps them."""
    return parse(Targets, (scratch / "targets.json").read_bytes()).signed


def delegated_roles(targets: Targets) -> list[str]:
    """Return the delegated roles ted knows what to do with."""
    roles = (targets.delegations.roles or {}) if targets.delegations else {}
    return [role for role in roles if names.distribution_of(role)]


def _verified(kind: type[S], data: bytes, delegator: Root | Targets, role: str) -> S:
    metadata = parse(kind, data)
    delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    return metadata.signed


def _member(kind: type[S], load: Callable[[str], bytes], delegator: Root | Targets, role: str, meta: MetaFile) -> S:
    data = load(f"{meta.version}.{role}.json")
    meta.verify_length_and_hashes(data)
    signed = _verified(kind, data, delegator, role)
    if signed.version != meta.version:
        raise BadVersionNumberError(f"expected {role} {meta.version}, got {signed.version}")
    return signed


def versions_on_disk(directory: Path) -> dict[str, list[int]]:
    """Return every version of every role that has a file, rising."""
    found: dict[str, list[int]] = {}
    for path in directory.iterdir():
        if parsed := names.parse_versioned(path.name):
            found.setdefault(parsed[1], []).append(parsed[0])
    return {role: sorted(versions) for role, versions in found.items()}


def prune(directory: Path, chain: Chain) -> None:
    """Remove metadata nobody needs: older than the last few, or never published.

    The last few stay for readers that started from an older ``timestamp.json``; roots stay for ever,
    since a node with an old trusted root walks through them.
    """
    current = {name.removesuffix(".json"): meta.version for name, meta in chain.snapshot.meta.items()}
    current["snapshot"] = chain.snapshot.version
    for role, versions in versions_on_disk(directory).items():
        if role == "root":
            continue
        published = [version for version in versions if version <= current.get(role, 0)]
        for version in set(versions) - set(published[-KEPT_VERSIONS:]):
            (directory / f"{version}.{role}.json").unlink(missing_ok=True)


def read_metadata(directory: Path, name: str) -> bytes | None:
    """Return a file of the catalog in ``directory`` for whoever asks; ``None``: there is none.

    ``name`` comes from outside: only the names a catalog serves are ever opened.
    """
    if not names.is_metadata_name(name):
        return None
    return read_bounded(directory / name, names.MAX_METADATA_BYTES)
