"""Names and bounds of a catalog.

Rules:
 * A distribution's role is ``d.<distribution>``: no name a person gives can collide with
   ``root``, ``targets``, ``snapshot`` or ``timestamp``.
 * A name that came from outside is matched whole against an expression before it becomes a path.
 * Every bound is checked before the bytes behind it are believed.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from ted.errors import UnknownNameError

TOP_LEVEL_ROLES = ("root", "targets", "snapshot", "timestamp")
DELEGATED_PREFIX = "d."
RECORD_NAME = "REVISION.TED"

MAX_ROOT_BYTES = 512 << 10
MAX_TIMESTAMP_BYTES = 64 << 10
MAX_METADATA_BYTES = 8 << 20
MAX_RECORD_BYTES = 1 << 20

_NAME = r"[A-Za-z0-9_@+-][A-Za-z0-9._@+-]{0,127}"
_NAME_RE = re.compile(_NAME)
_STAMP_RE = re.compile(r"[0-9]{8}T[0-9]{12}Z")
_TARGET_RE = re.compile(rf"({_NAME})/([0-9]{{8}}T[0-9]{{12}}Z)/REVISION\.TED")
_VERSIONED_RE = re.compile(rf"([1-9][0-9]{{0,9}})\.(root|snapshot|targets|d\.{_NAME})\.json")
_UNVERSIONED = ("root.json", "timestamp.json")


def utc_now() -> datetime:
    """Return the time of day, aware, UTC."""
    return datetime.now(UTC)


def check_name(kind: str, name: str) -> str:
    """Return ``name`` if a node, distribution or Distributor may be called so.

    Raises:
        UnknownNameError: It may not.
    """
    if not _NAME_RE.fullmatch(name):
        raise UnknownNameError(
            f"{name!r} is no name for a {kind}",
            hint="use 1 to 128 of A-Z a-z 0-9 . _ @ + - and no dot at the start",
        )
    return name


def is_stamp(text: str) -> bool:
    """Say whether ``text`` is a revision's time stamp, e.g. ``20261122T125447123456Z``."""
    return _STAMP_RE.fullmatch(text) is not None


def role_of(distribution: str) -> str:
    """Return the name of the role that signs a distribution's list of revisions."""
    return DELEGATED_PREFIX + distribution


def distribution_of(role: str) -> str | None:
    """Return the distribution a delegated role signs for; ``None`` for any other role."""
    name = role.removeprefix(DELEGATED_PREFIX)
    return name if name != role and _NAME_RE.fullmatch(name) else None


def target_path(distribution: str, stamp: str) -> str:
    """Return the name under which a revision's record is signed and served."""
    return f"{distribution}/{stamp}/{RECORD_NAME}"


def parse_target(path: str) -> tuple[str, str] | None:
    """Return (distribution, stamp) of a record's name, ``None`` if it is not one."""
    match = _TARGET_RE.fullmatch(path)
    return (match[1], match[2]) if match else None


def parse_versioned(name: str) -> tuple[int, str] | None:
    """Return (version, role) of ``<version>.<role>.json``, ``None`` for any other name."""
    match = _VERSIONED_RE.fullmatch(name)
    return (int(match[1]), match[2]) if match else None


def is_metadata_name(name: str) -> bool:
    """Say whether ``name`` is one of the file names a catalog serves."""
    return name in _UNVERSIONED or parse_versioned(name) is not None
