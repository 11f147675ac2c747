"""The one door to ``tuf`` and ``securesystemslib``: the names of their public interfaces this room uses.

Both libraries are typed but re-export their public names implicitly, which strict typing does not see.
"""

from __future__ import annotations

from securesystemslib.signer import CryptoSigner, Signature  # type: ignore[attr-defined]
from tuf.api.exceptions import RepositoryError as TufError
from tuf.api.metadata import (  # type: ignore[attr-defined]
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization import DeserializationError

__all__ = [
    "CryptoSigner",
    "DelegatedRole",
    "Delegations",
    "DeserializationError",
    "MetaFile",
    "Metadata",
    "Root",
    "Signature",
    "Signed",
    "Snapshot",
    "TargetFile",
    "Targets",
    "Timestamp",
    "TufError",
]
