"""The revision record ``REVISION.TED``: the one object that is signed.

Rules:
 * Canonical JSON (sorted keys, no spaces), at most 1 MiB; what is read must be exactly what would be written.
 * The own pack comes first and is live whole; at most 32 packs; runs of blocks are sorted, apart and inside the pack.
 * An unknown format number or key is refused: the signature covers what this ted would not understand.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn

from ted.errors import HOW_TO_MEND, FormatError

FORMAT = 1
MAX_RECORD_BYTES = 1 << 20
MAX_PACKS = 32
MAX_RUNS = 1024
MIN_BLOCK_BYTES = 64 << 10
MAX_BLOCK_BYTES = 4 << 20
MAX_PACK_BYTES = 1 << 50
SETTINGS = frozenset({"priority", "max_revisions", "on_failure", "platforms", "encrypt", "description"})

Run = tuple[int, int]
"""(first block, count)."""

_NAME = re.compile(r"[A-Za-z0-9_@+-][A-Za-z0-9._@+-]{0,127}", re.ASCII)
_HOUR = "(?:[01][0-9]|2[0-3])"  # fromisoformat knows 24:00 in newer Pythons
_STAMP = re.compile(rf"[0-9]{{8}}T{_HOUR}[0-9]{{10}}Z", re.ASCII)
_BUILT_AT = re.compile(rf"[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}T{_HOUR}:[0-9]{{2}}:[0-9]{{2}}\.[0-9]{{1,6}}Z", re.ASCII)
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_MAX_FILES = 1 << 40
_MAX_CONTENT_BYTES = 1 << 62


def is_name(value: object) -> bool:
    """Whether ``value`` may name a node or a distribution."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def is_stamp(value: object) -> bool:
    """Whether ``value`` names a revision: a time stamp that exists."""
    if not isinstance(value, str):
        return False
    try:
        stamp_time(value)
    except ValueError:
        return False
    return True


def stamp_time(stamp: str) -> datetime:
    """Return the time a stamp names, aware, UTC.

    Raises:
        ValueError: It is no stamp, or names no time.
    """
    if _STAMP.fullmatch(stamp) is None:
        raise ValueError(f"{stamp!r:.60} is no stamp")
    return datetime.fromisoformat(f"{stamp[:15]}.{stamp[15:]}")  # strptime would load its own module first


def next_stamp(now: datetime, latest: str | None) -> str:
    """Return the stamp of a revision made ``now``, later than ``latest`` whatever the clock does."""
    at = now.astimezone(UTC)
    if latest is not None:
        at = max(at, stamp_time(latest) + timedelta(microseconds=1))
    return f"{at.year:04}{at:%m%dT%H%M%S%f}Z"


@dataclass(frozen=True, slots=True)
class PackRef:
    """A pack that a revision needs, and which of its blocks.

    ``revision`` is the stamp of the revision whose directory holds it; ``root`` the root of its block list (hex);
    ``live`` the runs of blocks that must be here.
    """

    revision: str
    bytes: int
    block_bytes: int
    blocks: int
    root: str
    live: tuple[Run, ...]

    @property
    def live_blocks(self) -> int:
        """Number of blocks that must be here."""
        return sum(count for _, count in self.live)

    @property
    def live_bytes(self) -> int:
        """Bytes of the blocks that must be here."""
        total = self.live_blocks * self.block_bytes
        if self.live and sum(self.live[-1]) == self.blocks:
            total -= self.blocks * self.block_bytes - self.bytes
        return total

    def to_dict(self) -> dict[str, Any]:
        """Return its shape in the record."""
        return {
            "revision": self.revision,
            "bytes": self.bytes,
            "block_bytes": self.block_bytes,
            "blocks": self.blocks,
            "root": self.root,
            "live": [list(run) for run in self.live],
        }


@dataclass(frozen=True, slots=True)
class RevisionRecord:
    """What one revision is made of; see ``docs/format.md`` section 7.

    ``manifest`` is the digest of the manifest's index frame (hex); ``built_at`` is aware, UTC.
    """

    distributor: str
    distribution: str
    revision: str
    type: str
    settings: Mapping[str, Any]
    manifest: str
    packs: tuple[PackRef, ...]
    files: int
    content_bytes: int
    built_at: datetime
    format: int = FORMAT

    def to_dict(self) -> dict[str, Any]:
        """Return the record's shape as JSON."""
        return {
            "format": self.format,
            "distributor": self.distributor,
            "distribution": self.distribution,
            "revision": self.revision,
            "type": self.type,
            "settings": dict(self.settings),
            "manifest": self.manifest,
            "packs": [pack.to_dict() for pack in self.packs],
            "files": self.files,
            "content_bytes": self.content_bytes,
            "built_at": _time_text(self.built_at),
        }

    def to_bytes(self) -> bytes:
        """Return the record as it is stored and signed.

        Raises:
            FormatError: It breaks the format, or is larger than a record may be.
        """
        data = canonical_json(self.to_dict())
        if self != RevisionRecord.from_bytes(data):
            _refuse("it would not read as it was written")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> RevisionRecord:
        """Return the record in ``data``; its signature was checked before.

        Raises:
            FormatError: It is none, or of a format this ted does not know.
        """
        if len(data) > MAX_RECORD_BYTES:
            _refuse(f"it has {len(data)} bytes; {MAX_RECORD_BYTES} are allowed")
        value = _parse(data)
        found = value.get("format")
        if found != FORMAT or type(found) is not int:
            raise FormatError(
                f"revision record of format {found!r:.40}; this ted knows format {FORMAT}",
                hint="install a newer ted on this node; nothing was changed",
            )
        if set(value) != _KEYS:
            _refuse("its keys are not those of a record")
        record = _record(value)
        if canonical_json(value) != data:
            _refuse("it is not canonical JSON")
        return record


def canonical_json(value: Any) -> bytes:
    """Return ``value`` as JSON with sorted keys and no spaces."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"cannot be written as JSON: {error}") from error


_KEYS = frozenset(
    (
        "format",
        "distributor",
        "distribution",
        "revision",
        "type",
        "settings",
        "manifest",
        "packs",
        "files",
        "content_bytes",
        "built_at",
    )
)
_PACK_KEYS = frozenset(("revision", "bytes", "block_bytes", "blocks", "root", "live"))


def _refuse(problem: str) -> NoReturn:
    raise FormatError(f"revision record: {problem}", hint=HOW_TO_MEND)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise FormatError("revision record: not JSON", hint=HOW_TO_MEND) from error
    if not isinstance(value, dict):
        _refuse("not a JSON object")
    return value


def _int(value: object, low: int, high: int, what: str) -> int:
    if type(value) is not int or not low <= value <= high:
        _refuse(f"{what} is not a number from {low} to {high}")
    return value


def _hex(value: object, what: str) -> str:
    if not isinstance(value, str) or _HEX.fullmatch(value) is None:
        _refuse(f"{what} is not a digest")
    return value


def _name(value: object, what: str) -> str:
    if not is_name(value) or not isinstance(value, str):
        _refuse(f"{what} is not a name")
    return value


def _stamp(value: object, what: str) -> str:
    if not is_stamp(value) or not isinstance(value, str):
        _refuse(f"{what} is not a time stamp")
    return value


def _record(value: dict[str, Any]) -> RevisionRecord:
    settings = value["settings"]
    if not isinstance(settings, dict) or not set(settings) <= SETTINGS:
        _refuse("settings that this ted does not know")
    revision = _stamp(value["revision"], "revision")
    return RevisionRecord(
        distributor=_name(value["distributor"], "distributor"),
        distribution=_name(value["distribution"], "distribution"),
        revision=revision,
        type=_name(value["type"], "type"),
        settings=settings,
        manifest=_hex(value["manifest"], "manifest"),
        packs=_packs(value["packs"], revision),
        files=_int(value["files"], 0, _MAX_FILES, "files"),
        content_bytes=_int(value["content_bytes"], 0, _MAX_CONTENT_BYTES, "content_bytes"),
        built_at=_time(value["built_at"]),
    )


def _packs(rows: object, revision: str) -> tuple[PackRef, ...]:
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_PACKS:
        _refuse(f"packs: there are 1 to {MAX_PACKS}")
    packs = tuple(_pack(row) for row in rows)
    own = packs[0]
    if own.revision != revision or own.live != ((0, own.blocks),):
        _refuse("packs: the first is not its own, live whole")
    stamps = [pack.revision for pack in packs]
    if len(set(stamps)) != len(stamps) or max(stamps) != revision:
        _refuse("packs: one comes twice, or is of a later revision")
    return packs


def _pack(row: object) -> PackRef:
    if not isinstance(row, dict) or set(row) != _PACK_KEYS:
        _refuse("packs: a pack's keys are not those of a pack")
    block_bytes = _int(row["block_bytes"], MIN_BLOCK_BYTES, MAX_BLOCK_BYTES, "block_bytes")
    size = _int(row["bytes"], 72, MAX_PACK_BYTES, "bytes")
    blocks = -(-size // block_bytes)
    if block_bytes & (block_bytes - 1) or row["blocks"] != blocks or type(row["blocks"]) is not int:
        _refuse("packs: blocks and sizes do not fit")
    stamp = _stamp(row["revision"], "packs: revision")
    return PackRef(stamp, size, block_bytes, blocks, _hex(row["root"], "root"), _runs(row["live"], blocks))


def _runs(rows: object, blocks: int) -> tuple[Run, ...]:
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_RUNS:
        _refuse(f"packs: live has 1 to {MAX_RUNS} runs")
    runs: list[Run] = []
    end = -1
    for row in rows:
        if not isinstance(row, list) or len(row) != 2:
            _refuse("packs: a run is [first, count]")
        first = _int(row[0], end + 1, blocks - 1, "packs: first block of a run")
        count = _int(row[1], 1, blocks - first, "packs: length of a run")
        runs.append((first, count))
        end = first + count
    return tuple(runs)


def _time_text(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _time(value: object) -> datetime:
    try:
        if not isinstance(value, str) or not _BUILT_AT.fullmatch(value):
            _refuse("built_at is not a time")
        return datetime.fromisoformat(value)
    except ValueError as error:
        raise FormatError("revision record: built_at is not a time", hint=HOW_TO_MEND) from error
