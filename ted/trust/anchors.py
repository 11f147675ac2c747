"""Trusted roots of a node: ``<config>/trust/<distributor>/root.json``.

Rules:
 * A root gets here by a person's or a play's act only, never over the wire.
 * A root names its Distributor under its own signature; it is not trusted under another name.
 * An older root does not replace a newer one unless forced.
 * What is already so is left as it is.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ted.errors import ReplayError, TrustError, UnknownNameError, UntrustedDistributorError
from ted.trust import names
from ted.trust.chain import distributor_of, parse, parse_root
from ted.trust.files import make_directory, read_bounded, replace_file
from ted.trust.tuf_api import DeserializationError, Metadata, Root, TufError


@dataclass(frozen=True)
class Anchor:
    """A trusted root, in what a person wants to know of it."""

    distributor: str
    version: int
    keyids: tuple[str, ...]
    threshold: int
    expires_at: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON shape of ``ted trust list``."""
        return {
            "distributor": self.distributor,
            "version": self.version,
            "keyids": list(self.keyids),
            "threshold": self.threshold,
            "expires_at": self.expires_at,
        }


@dataclass(frozen=True)
class Import:
    """What an import did, or would do."""

    changed: bool
    anchor: Anchor
    former: Anchor | None


class TrustStore:
    """The directory ``<config>/trust`` of a node."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def path(self, distributor: str) -> Path:
        """Return where a Distributor's root is kept."""
        return self.directory / names.check_name("Distributor", distributor) / "root.json"

    def read(self, distributor: str) -> bytes | None:
        """Return a Distributor's trusted root, ``None`` if there is none."""
        return read_bounded(self.path(distributor), names.MAX_ROOT_BYTES)

    def list(self) -> list[Anchor]:
        """Return every trusted root, sorted by Distributor.

        Raises:
            TrustError: One of them is not a root.
        """
        if not self.directory.is_dir():
            return []
        held = sorted(path.parent.name for path in self.directory.glob("*/root.json"))
        return [describe(name, data) for name in held if (data := self.read(name))]

    def import_root(
        self, data: bytes, distributor: str | None = None, *, force: bool = False, check: bool = False,
        source: str | None = None,
    ) -> Import:  # fmt: skip
        """Trust the Distributor that ``data`` is the root of.

        Args:
            data: A ``root.json``.
            distributor: The name it must be of; by default the one it says.
            force: Let an older root replace a newer one, a stranger's the one that is held, and any a damaged one.
            check: Change nothing; say what would be.
            source: Where ``data`` is from, for what is said of it.

        Raises:
            TrustError: Not a root, not signed by itself, or of another Distributor; or the one that is held is damaged.
            ReplayError: Older than the root that is held.
            UntrustedDistributorError: Not signed by the root that is held: another identity of the same name.
        """
        anchor = describe(distributor, data, source)
        held = self.read(anchor.distributor)
        former = self._describe_held(anchor.distributor, held, force=force) if held else None
        if held and former and parse(Root, held).signed == parse(Root, data).signed:  # however it is laid out
            return Import(False, anchor, former)
        if former and anchor.version < former.version and not force:
            raise ReplayError(
                f"{anchor.distributor}: root {anchor.version} is older than root {former.version} held here",
                hint="get the newest (ted trust export on the Distributor), or insist with --force",
            )
        if held and former and not force and not _succeeds(parse(Root, held).signed, data):
            raise UntrustedDistributorError(
                f"{anchor.distributor}: this root is not signed by the one held here: another identity of that name "
                f"(held: {_short(former)}, offered: {_short(anchor)})",
                hint=f"compare with `ted keys list` on {anchor.distributor}; if it has a new identity: --force",
            )
        if not check:
            path = self.path(anchor.distributor)
            make_directory(path.parent)
            replace_file(path, data.strip())
        return Import(True, anchor, former)

    def _describe_held(self, distributor: str, held: bytes, *, force: bool) -> Anchor | None:
        """Return what is held; ``None`` where it is no root and another is to take its place."""
        try:
            return describe(distributor, held)
        except TrustError as error:
            if force:
                return None
            raise TrustError(
                f"{self.path(distributor)}: the trusted root of {distributor} is damaged: {error.message}",
                hint="look for the cause; then --force puts the one that was offered in its place",
            ) from error

    def remove(self, distributor: str, *, check: bool = False) -> bool:
        """Trust ``distributor`` no more; False: it was not trusted."""
        directory = self.path(distributor).parent
        if not directory.is_dir():
            return False
        if not check:
            shutil.rmtree(directory)
        return True


def _succeeds(held: Root, data: bytes) -> bool:
    """Say whether the keys of the root that is held signed another one."""
    offered = Metadata[Root].from_bytes(data)
    try:
        held.verify_delegate(Root.type, offered.signed_bytes, offered.signatures)
    except TufError:
        return False
    return True


def _short(anchor: Anchor) -> str:
    return ", ".join(keyid[:12] for keyid in anchor.keyids)


def describe(distributor: str | None, data: bytes, source: str | None = None) -> Anchor:
    """Parse and verify a root.

    Args:
        distributor: The name it must be of; ``None`` takes the one it says.
        data: A ``root.json``.
        source: Where it is from, for what is said of it.

    Raises:
        TrustError: Not a root, not signed by itself, or of another Distributor.
    """
    root = _parse(source or distributor or "the root", data)
    named = distributor_of(root)
    if distributor is None and named is None:
        raise TrustError("this root does not say whose it is", hint="name it: --distributor NAME")
    if distributor is not None and named is not None and distributor != named:
        raise TrustError(
            f"this is the root of {named}, not of {distributor}",
            hint=f"export the right one: on {distributor}, ted trust export",
        )
    try:
        name = names.check_name("Distributor", distributor or named or "")
    except UnknownNameError as error:
        raise TrustError(f"this root names no possible Distributor: {error.message}") from error
    role = root.roles["root"]
    return Anchor(name, root.version, tuple(role.keyids), role.threshold, root.expires.isoformat())


def _parse(who: str, data: bytes) -> Root:
    if len(data) > names.MAX_ROOT_BYTES:
        raise TrustError(f"{who}: not a root: longer than {names.MAX_ROOT_BYTES} bytes")
    try:
        return parse_root(data)
    except (TufError, ValueError) as error:
        why = "it is no root metadata" if isinstance(error, DeserializationError) else error
        raise TrustError(
            f"{who}: not a root that holds: {why}",
            hint="take root.json as `ted trust export` writes it on the Distributor",
        ) from error
