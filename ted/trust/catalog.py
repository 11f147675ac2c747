"""A Distributor's signed catalog: what it publishes, and since when.

Rules:
 * The directory is served as it is: ``root.json``, ``N.root.json``, ``timestamp.json``,
   ``N.snapshot.json``, ``N.targets.json`` and, per distribution, ``N.d.<distribution>.json``.
 * Order of writes: what is referred to, then what refers to it, ``timestamp.json`` last. Until then
   nothing has happened; afterwards everything has. A number once on disk is never used again.
 * A changed root is announced by a new timestamp: whoever holds the newest timestamp has the newest root.
 * Changing a key of a top-level role: the role is signed with the old and the new key before the new
   root appears, so no reader is ever locked out, whichever root it already has.
 * One writer at a time (a lock); readers need none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.serialization.json import JSONSerializer

from ted.errors import ConfigError, FormatError, RepositoryError, TrustError, UnknownNameError
from ted.trust import chain as chains
from ted.trust import names
from ted.trust.chain import Chain, Patch
from ted.trust.files import locked, make_directory, read_bounded, replace_file
from ted.trust.keys import KeyStore
from ted.trust.tuf_api import (
    CryptoSigner,
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
    TufError,
)


@dataclass(frozen=True)
class Lifetimes:
    """How long a signature is good for; each is renewed when half of it is gone."""

    root: timedelta = timedelta(days=365)
    targets: timedelta = timedelta(days=365)
    snapshot: timedelta = timedelta(days=30)
    timestamp: timedelta = timedelta(days=30)

    def of(self, role: str) -> timedelta:
        """Return the life of ``role``; a distribution's role lives as long as ``targets``."""
        lives = {"root": self.root, "snapshot": self.snapshot, "timestamp": self.timestamp}
        return lives.get(role, self.targets)


class Catalog:
    """The catalog of one Distributor, on the Distributor.

    Args:
        directory: ``<working directory>/<distributor>/.catalog``.
        keys: ``<config>/keys``.
        lifetimes: How long each role's signature holds.
        now: The clock (aware, UTC).
    """

    def __init__(
        self,
        directory: Path,
        keys: Path,
        *,
        lifetimes: Lifetimes | None = None,
        now: Callable[[], datetime] = names.utc_now,
    ) -> None:
        self.directory = directory
        self.keys = KeyStore(keys)
        self._lifetimes = lifetimes or Lifetimes()
        self._now = now

    # -- asking

    def exists(self) -> bool:
        """Say whether there is a catalog, complete."""
        return (self.directory / "timestamp.json").is_file()

    def root_bytes(self) -> bytes:
        """Return the newest root: what Subscribers must be given to trust this Distributor.

        Raises:
            RepositoryError: There is no catalog.
        """
        versions = chains.versions_on_disk(self.directory).get("root") if self.directory.is_dir() else None
        data = read_bounded(self._root_path(versions[-1]), names.MAX_ROOT_BYTES) if versions else None
        if data is None:
            raise RepositoryError(f"{self.directory}: no catalog", hint="make it: ted keys create --distributor NAME")
        return data

    def distributions(self) -> tuple[str, ...]:
        """Return every distribution that is published, sorted."""
        return self._read().distributions

    def revisions(self, distribution: str) -> list[str]:
        """Return the published stamps of ``distribution``, oldest first."""
        return self._read().revisions(distribution)

    def patches(self, distribution: str, stamp: str) -> dict[str, Patch]:
        """Return the patches that lead to a revision, by the stamp before."""
        return self._read().patches(distribution, stamp)

    def altered(self, distribution: str, records: Mapping[str, bytes | None]) -> list[str]:
        """Return the stamps that are published and whose records are not what was published; ``None``: not readable."""
        chain, found = self._read(), []
        for stamp, data in records.items():
            if (target := chain.target(distribution, stamp)) is not None:
                try:
                    target.verify_length_and_hashes(data or b"")
                except LengthOrHashMismatchError:
                    found.append(stamp)
        return found

    def timestamp_version(self) -> int:
        """Return the catalog's version: it grows with every change."""
        return self._read().timestamp.version

    def describe(self) -> dict[str, Any]:
        """Return names, versions, key ids and expiry of every role."""
        chain = self._read()
        return {
            "distributor": chain.distributor,
            "roles": [
                {
                    "role": role,
                    "version": signed.version,
                    "expires_at": signed.expires.isoformat(),
                    "keyids": _keyids(chain, role),
                }
                for role, signed in chain.signed().items()
            ],
        }

    # -- changing

    def create(self, distributor: str) -> bool:
        """Make keys, root and an empty catalog; what is there already stays.

        Raises:
            ConfigError: The directory holds another Distributor's catalog, or one whose keys are elsewhere.
        """
        names.check_name("Distributor", distributor)
        make_directory(self.directory)
        with locked(self.directory):
            if self.exists():
                self._check_own(distributor)
                return self._heal()
            self._create(distributor)
            return True

    def publish(
        self, distribution: str, records: Mapping[str, bytes | None],
        patches: Mapping[str, Mapping[str, Patch]] | None = None,
    ) -> bool:  # fmt: skip
        """Make ``records`` the whole list of the distribution's revisions.

        Args:
            distribution: Its name.
            records: Time stamp -> bytes of ``REVISION.TED``, of every revision that is kept; ``None``: what was
                published of it stays.
            patches: Time stamp -> the patches that lead to it: by the stamp before.

        Returns:
            False if that was published already (whatever is due for renewal is still renewed).

        Raises:
            FormatError: A stamp or a record is not one.
            TrustError: A private key that is needed is not here.
        """
        names.check_name("distribution", distribution)
        fresh = {stamp: _target(distribution, stamp, data) for stamp, data in records.items() if data is not None}
        with self._edit() as chain:
            wanted = {}
            for stamp in records:
                target = fresh.get(stamp) or deepcopy(chain.target(distribution, stamp))
                if target is not None:
                    told = (patches or {}).get(stamp, {})
                    rows = {"patches": {before: patch.row() for before, patch in told.items()}}
                    target.unrecognized_fields = {"custom": rows} if stamp in (patches or {}) else {}
                    wanted[names.target_path(distribution, stamp)] = target
            changed = self._publish(chain, distribution, wanted)
            self._renew()
        return changed

    def remove(self, distribution: str) -> bool:
        """Publish ``distribution`` no more; receivers then see none of its revisions."""
        with self._edit() as chain:
            role = names.role_of(distribution)
            delegations = deepcopy(chain.targets.delegations)
            if not delegations or role not in (delegations.roles or {}):
                return False
            for keyid in delegations.roles.pop(role).keyids:  # type: ignore[union-attr]
                delegations.keys.pop(keyid, None)
            targets = deepcopy(chain.targets)
            targets.delegations = delegations
            self._advance(chain, targets=targets)
            return True

    def rotate(self, role: str) -> str:
        """Give ``role`` a new key and delete its old private key.

        Args:
            role: A top-level role, a distribution's role, or a distribution.

        Returns:
            The new key's id.

        Raises:
            UnknownNameError: There is no such role.
            TrustError: The root's private key is needed and not here.
        """
        with self._edit() as chain:
            role = _existing_role(chain, role)
            if names.distribution_of(role):
                new = self.keys.create(role)
                self._rotate_delegated(chain, role, new)
            else:
                self._signers(chain.root, "root")  # before anything is made
                new = self.keys.create(role)
                self._rotate_top(chain, role, new)
            keyid: str = new.public_key.keyid
            self.keys.drop(role, keep={keyid})
            return keyid

    def refresh_timestamp(self) -> bool:
        """Sign anew whatever has less than half of its life left; False: nothing was due.

        The agent calls this daily. The root is renewed too where its private key is here.
        """
        with self._edit():
            return self._renew()

    # -- inside

    def _read(self) -> Chain:
        try:
            return chains.read_chain(self.directory, self.root_bytes())
        except (TufError, KeyError, FileNotFoundError) as error:
            raise RepositoryError(
                f"{self.directory}: the catalog is damaged: {error}",
                hint="restore it, or remove it and the keys and make both anew: ted keys create",
            ) from error

    @contextmanager
    def _edit(self) -> Iterator[Chain]:
        if not self.exists():
            self.root_bytes()  # raises, naming the mending command
            raise RepositoryError(
                f"{self.directory}: an unfinished catalog",
                hint="finish it: ted keys create --distributor NAME",
            )
        with locked(self.directory):
            self._heal()
            yield self._read()

    def _heal(self) -> bool:
        """Finish a root change that was cut off between its two files."""
        newest = self.root_bytes()
        if read_bounded(self.directory / "root.json", names.MAX_ROOT_BYTES) == newest:
            return False
        replace_file(self.directory / "root.json", newest)
        return True

    def _check_own(self, distributor: str) -> None:
        chain = self._read()
        if chain.distributor != distributor:
            raise ConfigError(
                f"{self.directory}: holds the catalog of {chain.distributor}, not of {distributor}",
                hint="give each Distributor its own working directory",
            )
        if not self.keys.signers("timestamp", chain.root.roles["timestamp"].keyids):
            raise ConfigError(
                f"{self.directory}: the keys of this catalog are not in {self.keys.directory}",
                hint="restore the keys; or remove the catalog, make a new identity (ted keys create), "
                "build, and give its root to every Subscriber (ted trust import)",
            )

    def _create(self, distributor: str) -> None:
        try:
            root = chains.parse_root(self.root_bytes())  # a create that was cut off
        except RepositoryError:
            root = Root(expires=self._expiry("root"), unrecognized_fields={chains.DISTRIBUTOR_FIELD: distributor})
            for role in names.TOP_LEVEL_ROLES:
                root.add_key(self.keys.obtain(role).public_key, role)
            self._write_root(root, self._signers(root, "root"))
        targets = Targets(expires=self._expiry("targets"), delegations=Delegations({}, {}))
        snapshot = Snapshot(meta={})
        snapshot.version = 0  # the first is 1
        self._advance(Chain(root, Timestamp(), snapshot, targets, {}, {}), targets=targets)
        self._heal()

    def _publish(self, chain: Chain, distribution: str, wanted: dict[str, TargetFile]) -> bool:
        role = names.role_of(distribution)
        known = chain.delegated.get(role)
        if known and known.targets == wanted:
            return False
        if known:
            self._advance(chain, delegated={role: Targets(targets=wanted)})
            return True
        targets = deepcopy(chain.targets)
        delegations = targets.delegations or Delegations({}, {})
        key = self.keys.obtain(role).public_key
        delegations.keys[key.keyid] = key
        pattern = names.target_path(distribution, "*")
        delegations.roles = (delegations.roles or {}) | {
            role: DelegatedRole(role, [key.keyid], 1, terminating=True, paths=[pattern])
        }
        targets.delegations = delegations
        self._advance(chain, delegated={role: Targets(targets=wanted)}, targets=targets)
        return True

    def _rotate_delegated(self, chain: Chain, role: str, new: CryptoSigner) -> None:
        targets = deepcopy(chain.targets)
        for keyid in _keyids(chain, role):
            targets.revoke_key(keyid, role)
        targets.add_key(new.public_key, role)
        self._advance(chain, delegated={role: deepcopy(chain.delegated[role])}, targets=targets)

    def _rotate_top(self, chain: Chain, role: str, new: CryptoSigner) -> None:
        root = deepcopy(chain.root)
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        root.add_key(new.public_key, role)
        root.roles[role].threshold = 1
        root.version += 1
        root.expires = self._expiry("root")
        old = self._signers(chain.root, "root")
        if role != "root":
            chain = self._advance(
                chain,
                targets=deepcopy(chain.targets) if role == "targets" else None,
                extra={role: [new]},
            )
        self._write_root(root, old + ([new] if role == "root" else []))
        self._advance(
            Chain(root, chain.timestamp, chain.snapshot, chain.targets, chain.delegated, chain.raw),
            resign_snapshot=False,
        )

    def _renew(self) -> bool:
        chain = self._read()
        due = {role for role, signed in chain.signed().items() if self._is_due(role, signed)}
        renewed = self._renew_root(chain) if "root" in due else False
        if not renewed and not due - {"root"}:
            return False
        self._advance(
            self._read() if renewed else chain,
            delegated={role: deepcopy(chain.delegated[role]) for role in due if names.distribution_of(role)},
            targets=deepcopy(chain.targets) if "targets" in due else None,
            resign_snapshot="snapshot" in due,
        )
        return True

    def _renew_root(self, chain: Chain) -> bool:
        held = self.keys.signers("root", chain.root.roles["root"].keyids)
        if len(held) < chain.root.roles["root"].threshold:
            return False  # kept elsewhere: `ted keys list` shows when it expires
        root = deepcopy(chain.root)
        root.version += 1
        root.expires = self._expiry("root")
        self._write_root(root, held)
        return True

    def _advance(
        self,
        chain: Chain,
        *,
        delegated: Mapping[str, Targets] | None = None,
        targets: Targets | None = None,
        resign_snapshot: bool = True,
        extra: Mapping[str, list[CryptoSigner]] | None = None,
    ) -> Chain:
        """Sign and write the given roles, then snapshot (if anything in it changed), then timestamp."""
        extra = extra or {}
        numbers = chains.versions_on_disk(self.directory)
        meta = dict(chain.snapshot.meta)
        holder = targets or chain.targets
        members: dict[str, Targets] = dict(delegated or {}) | ({"targets": targets} if targets else {})
        for role, signed in members.items():
            delegator: Root | Targets = chain.root if role == "targets" else holder
            signers = self._signers(delegator, role) + extra.get(role, [])
            former = meta.get(f"{role}.json")
            signed.version = self._next(numbers, role, former.version if former else 0)
            meta[f"{role}.json"] = self._write(role, signed, signers)
        snapshot = chain.snapshot
        stamped = chain.timestamp.snapshot_meta
        if members or resign_snapshot:
            snapshot = Snapshot(meta=meta)
            snapshot.version = self._next(numbers, "snapshot", chain.snapshot.version)
            signers = self._signers(chain.root, "snapshot") + extra.get("snapshot", [])
            stamped = self._write("snapshot", snapshot, signers)
        timestamp = Timestamp(snapshot_meta=stamped)
        timestamp.version = chain.timestamp.version + (1 if self.exists() else 0)
        signers = self._signers(chain.root, "timestamp") + extra.get("timestamp", [])
        self._write("timestamp", timestamp, signers, "timestamp.json")
        chain = Chain(chain.root, timestamp, snapshot, holder, dict(chain.delegated) | dict(delegated or {}), {})
        chains.prune(self.directory, chain)
        return chain

    @staticmethod
    def _next(numbers: Mapping[str, list[int]], role: str, published: int) -> int:
        # a killed writer may have left a higher number: its bytes stay what they were
        return max([published, *numbers.get(role, [])]) + 1

    def _write(self, role: str, signed: Signed, signers: list[CryptoSigner], name: str | None = None) -> MetaFile:
        signed.expires = self._expiry(role)
        data = _sign(signed, signers)
        if len(data) > (names.MAX_TIMESTAMP_BYTES if role == "timestamp" else names.MAX_METADATA_BYTES):
            raise FormatError(
                f"{role}: the list of revisions is too long to be served ({len(data)} bytes)",
                hint="set max_revisions, or split the distribution",
            )
        replace_file(self.directory / (name or f"{signed.version}.{role}.json"), data)
        return MetaFile(signed.version, len(data))

    def _write_root(self, root: Root, signers: list[CryptoSigner]) -> None:
        data = _sign(root, signers)
        chains.parse_root(data)  # never publish a root that does not hold
        replace_file(self._root_path(root.version), data)
        replace_file(self.directory / "root.json", data)

    def _root_path(self, version: int) -> Path:
        return self.directory / f"{version}.root.json"

    def _signers(self, delegator: Root | Targets, role: str) -> list[CryptoSigner]:
        wanted = delegator.get_delegated_role(role)
        signers = self.keys.signers(role, wanted.keyids)
        if len(signers) < wanted.threshold:
            raise TrustError(
                f"the private key of role {role} is not in {self.keys.directory}",
                hint=f"bring back {role}.{wanted.keyids[0]}.pem (mode 0600)",
            )
        return signers

    def _expiry(self, role: str) -> datetime:
        return (self._now() + self._lifetimes.of(role)).replace(microsecond=0)

    def _is_due(self, role: str, signed: Signed) -> bool:
        return signed.expires - self._now() < self._lifetimes.of(role) / 2


def _sign(signed: Signed, signers: list[CryptoSigner]) -> bytes:
    metadata: Metadata[Any] = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))


def _target(distribution: str, stamp: str, data: bytes) -> TargetFile:
    if not names.is_stamp(stamp):
        raise FormatError(f"{distribution}: {stamp!r} is no revision's time stamp")
    if len(data) > names.MAX_RECORD_BYTES:
        raise FormatError(f"{distribution} {stamp}: a record of {len(data)} bytes; the bound is 1 MiB")
    return TargetFile.from_data(names.target_path(distribution, stamp), data)


def _keyids(chain: Chain, role: str) -> list[str]:
    delegator: Root | Targets = chain.targets if names.distribution_of(role) else chain.root
    return list(delegator.get_delegated_role(role).keyids)


def _existing_role(chain: Chain, role: str) -> str:
    known = chain.signed()
    for candidate in (role, names.role_of(role)):
        if candidate in known:
            return candidate
    raise UnknownNameError(f"no role {role}", hint=f"there are: {', '.join(known)}")
