"""A Distributor's private keys.

Rules:
 * One file per key, ``<role>.<key id>.pem`` (PKCS #8, Ed25519), mode 0600 in a directory of mode 0700.
 * Which of a role's keys counts is said by the signed catalog, never by this directory: a key that was
   made and not yet published is nothing, so being killed between the two loses nothing.
 * Keys that others can read are refused, as ssh does.
 * The root key may be taken elsewhere (``root.*.pem``): only rotation and root renewal need it.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ted.errors import ConfigError
from ted.trust.files import locked, make_directory, read_bounded, replace_file
from ted.trust.tuf_api import CryptoSigner

_FILE_RE = re.compile(r"(root|targets|snapshot|timestamp|d\.[A-Za-z0-9._@+-]+)\.([0-9a-f]{64})\.pem")
_MAX_KEY_BYTES = 16 << 10


@dataclass(frozen=True)
class HeldKey:
    """A private key that is here."""

    role: str
    keyid: str
    path: Path
    created_at: datetime

    def to_dict(self) -> dict[str, Any]:
        """Return what ``ted keys list --json`` prints; nothing secret."""
        return {"role": self.role, "keyid": self.keyid, "created_at": self.created_at.isoformat()}


class KeyStore:
    """The directory ``<config>/keys`` of a Distributor."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def held(self) -> list[HeldKey]:
        """Return every private key that is here, sorted by role and age."""
        if not self.directory.is_dir():
            return []
        self._check_private(self.directory)
        matches = [(path, _FILE_RE.fullmatch(path.name)) for path in self.directory.iterdir()]
        keys = [
            HeldKey(match[1], match[2], path, datetime.fromtimestamp(path.stat().st_mtime, UTC))
            for path, match in matches
            if match
        ]
        return sorted(keys, key=lambda key: (key.role, key.created_at, key.keyid))

    def create(self, role: str) -> CryptoSigner:
        """Make and store a new key for ``role``."""
        make_directory(self.directory, 0o700)
        self._check_private(self.directory)
        signer = CryptoSigner.generate_ed25519()
        with locked(self.directory):
            replace_file(self._path(role, signer.public_key.keyid), signer.private_bytes, mode=0o600)
        return signer

    def obtain(self, role: str) -> CryptoSigner:
        """Return the newest key held for ``role``, made now if there is none."""
        held = self.signers(role)
        return held[-1] if held else self.create(role)

    def signers(self, role: str, keyids: Collection[str] | None = None) -> list[CryptoSigner]:
        """Return the keys held for ``role``, oldest first; only those in ``keyids`` if given."""
        return [self._load(key) for key in self.held() if key.role == role and (keyids is None or key.keyid in keyids)]

    def drop(self, role: str, *, keep: Collection[str]) -> None:
        """Delete the private keys of ``role`` that are not in ``keep``."""
        for key in self.held():
            if key.role == role and key.keyid not in keep:
                key.path.unlink(missing_ok=True)

    def _path(self, role: str, keyid: str) -> Path:
        return self.directory / f"{role}.{keyid}.pem"

    def _load(self, key: HeldKey) -> CryptoSigner:
        self._check_private(key.path)
        pem = read_bounded(key.path, _MAX_KEY_BYTES) or b""
        try:
            signer = CryptoSigner(load_pem_private_key(pem, None))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{key.path}: no private key ted can use", hint="restore it") from error
        if signer.public_key.keyid != key.keyid:
            raise ConfigError(
                f"{key.path}: holds another key ({signer.public_key.keyid})", hint="restore the right one"
            )
        return signer

    @staticmethod
    def _check_private(path: Path) -> None:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            wanted = "u=rwx,go=" if path.is_dir() else "u=rw,go="
            raise ConfigError(
                f"{path}: private keys that others may read (mode {mode:04o})", hint=f"chmod {wanted} {path}"
            )
