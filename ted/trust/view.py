"""A Distributor's catalog as a receiver sees it, and hands it on.

Rules:
 * Trust starts at ``<config>/trust/<distributor>/root.json``, read anew each time: a root that a person
   imported wins over whatever was received before.
 * ``tuf.ngclient`` does the client workflow (rollback, freeze, mix-and-match, endless data). It works in a
   scratch directory; nothing it refused is ever served.
 * What it accepted is first stored whole as ``.verified``, then moved under the served names, the timestamp
   after what it refers to: a receiver killed in between finishes the move when it next opens the view.
 * Nothing changed costs one request: ``timestamp.json``. That is enough, since a Distributor announces
   a new root by a new timestamp; and if the timestamp that came is one that expired, it is refused.
 * What an agent verified is not verified again for ten minutes, while the trusted root, and inode, times and size of
   all files here, are the same. Damage that changes none of these is noticed when they are over.
 * Freshness is judged by ``refresh``; what came in fresh stays readable, so that a node cut off from
   its parent can still extract or roll back what it holds.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    UnsignedMetadataError,
)

from ted.errors import (
    HOW_TO_MEND,
    DigestMismatchError,
    MissingContentError,
    ReplayError,
    RepositoryError,
    TedError,
    TransferError,
    TrustError,
    UnknownNameError,
    UntrustedDistributorError,
)
from ted.trust import chain as chains
from ted.trust import names, signing
from ted.trust.chain import Chain, Patch, read_metadata
from ted.trust.files import locked, make_directory, read_bounded, replace_file, sync_directory
from ted.trust.tuf_api import Root, TargetFile, Timestamp, TufError

__all__ = ["CatalogView", "Fetch", "KeptChain", "read_metadata"]

Fetch = Callable[[str, int], bytes]
"""``fetch(relative name, max bytes)``: a metadata file's name or ``<distribution>/<stamp>/REVISION.TED``.

Raises ``MissingContentError`` (or ``RefusedError``) if the sender has no such file; any other error of ours
passes through a view unchanged.
"""

Looks = frozenset[tuple[str, int, int, int, int]]
"""Of all files of a catalog: name, inode, modified (ns), changed (ns), size (bytes)."""

_KEPT_FOR_S = 600.0

_VERIFIED = ".verified"
_SCRATCH = ".refresh-"


class Found(NamedTuple):
    """A state that was verified, from which trusted root, what the files looked like then, and when (monotonic)."""

    anchor: bytes
    looks: Looks
    chain: Chain
    at_s: float


@dataclass(slots=True)
class KeptChain:
    """What views of one catalog share: the state that one of them verified last.

    Threads may share it: ``found`` is replaced as a whole, and to be read once.
    """

    found: Found | None = None


class CatalogView:
    """The catalog of ``distributor``, received.

    One instance may be used by one thread at a time; several processes may hold views of one directory.

    Args:
        distributor: Its name.
        root: ``<config>/trust/<distributor>/root.json``.
        directory: ``<working directory>/<distributor>/.catalog``; records are looked for beside it.
        fetch: Asks the sender; ``None`` for a view that only reads what is here.
        node: This node's name, for hints.
        kept: What views of this catalog share; without, this one verifies by itself.
    """

    def __init__(
        self, distributor: str, root: Path, directory: Path, fetch: Fetch | None = None, *, node: str = "NODE",
        kept: KeptChain | None = None,
    ) -> None:  # fmt: skip
        self.distributor = names.check_name("Distributor", distributor)
        self.directory = directory
        self._root_path = root
        self._fetch = fetch
        self._node = node
        self._shared = KeptChain() if kept is None else kept
        self._anchor = b""
        self._chain: Chain | None = None

    # -- asking what is here

    def load(self) -> None:
        """Verify what this node holds, or take what a view verified; opens no connection, judges no expiry.

        Raises:
            UntrustedDistributorError: No root of this Distributor is here.
            MissingContentError: Nothing was received yet.
            TrustError: What is here does not verify.
        """
        self._anchor = self._read_anchor()
        self._finish_move()
        for attempt in (1, 2, 3):
            try:
                self._chain = self._verified()
            except FileNotFoundError as error:
                if attempt == 3:  # a refresh elsewhere may have pruned between two reads
                    raise MissingContentError(
                        f"{self.distributor}: no catalog received yet", hint="ted receive"
                    ) from error
            except (TufError, KeyError, ValueError) as error:
                if attempt == 3:
                    raise self._translated(error) from error
            else:
                return

    @property
    def chain(self) -> Chain:
        """The verified state; loaded when first asked for."""
        if self._chain is None:
            self.load()
        if self._chain is None:  # pragma: no cover - load() sets it or raises
            raise MissingContentError(f"{self.distributor}: no catalog received yet")
        return self._chain

    @property
    def timestamp_version(self) -> int:
        """The catalog's version; 0 if none was received or it does not verify."""
        try:
            return self.chain.timestamp.version
        except (MissingContentError, TrustError):
            return 0

    @property
    def distributions(self) -> tuple[str, ...]:
        """Every distribution the Distributor publishes, sorted."""
        return self.chain.distributions

    def revisions(self, distribution: str) -> list[str]:
        """Return the published stamps of ``distribution``, oldest first; empty if it is not published."""
        return self.chain.revisions(distribution)

    def patches(self, distribution: str, stamp: str) -> dict[str, Patch]:
        """Return the patches that lead to a revision, by the stamp before."""
        return self.chain.patches(distribution, stamp)

    def record(self, distribution: str, stamp: str) -> bytes:
        """Return the verified ``REVISION.TED``: the one beside the catalog if it holds, else the sender's.

        Raises:
            UnknownNameError: The catalog has no such revision.
            DigestMismatchError: What came, or what is here where there is nobody to ask, is not what was signed.
            FormatError: What is here cannot be read, and there is nobody to ask.
            MissingContentError: It is not here and there is nobody to ask, or the sender has not got it.
        """
        target = self.chain.target(distribution, stamp) if names.is_stamp(stamp) else None
        if target is None:
            raise UnknownNameError(
                f"{self.distributor}: no revision {stamp} of {distribution} in its catalog",
                hint="refresh (ted receive), or see what there is: ted status",
            )
        path = names.target_path(distribution, stamp)
        if self._fetch is None:
            return self._kept(path, target)
        with suppress(RepositoryError):
            return self._kept(path, target)
        if target.length > names.MAX_RECORD_BYTES:
            raise TrustError(f"{self.distributor}: the record of {path} is longer than a record may be")
        data = self._ask(path, target.length)
        try:
            target.verify_length_and_hashes(data)
        except LengthOrHashMismatchError as error:
            raise DigestMismatchError(
                f"{self.distributor}: {path} is not what was signed: {error}",
                hint="the sender's copy is damaged or forged: repair it there (ted verify --stored)",
            ) from error
        return data

    def verify_slip_signature(self, payload: bytes, signatures: signing.Signatures) -> None:
        """Return if the Distributor signed ``payload``.

        Raises:
            SlipError: It did not (or with a newer key than is known here: refresh and ask again).
        """
        signing.verify(payload, signatures, self.chain.root)

    # -- asking the sender

    def refresh(self) -> bool:
        """Bring the catalog up to date with the sender's; False: nothing had changed.

        Raises:
            UntrustedDistributorError: No root of this Distributor is here.
            ReplayError: The sender offers older metadata than was already trusted.
            TrustError: A signature does not hold, or something expired.
            MissingContentError: The sender has no such catalog.
        """
        self._anchor = self._read_anchor()
        make_directory(self.directory)
        with locked(self.directory):
            self._clear_scratch()
            self._apply_verified()
            before = self._try_load()
            timestamp = self._ask("timestamp.json", names.MAX_TIMESTAMP_BYTES)
            if before and timestamp == before.raw["timestamp.json"] and _is_fresh(before):
                self._chain = before
                return False
            self._update(before, timestamp)
            looks = self._looks()
            self._chain = chains.read_chain(self.directory, self._anchor)
            chains.prune(self.directory, self._chain)
            left = self._looks()
            self._share(left if left is not None and looks is not None and left <= looks else None, self._chain)
            return before is None or (before.root, before.raw) != (self._chain.root, self._chain.raw)

    # -- inside

    def _read_anchor(self) -> bytes:
        anchor = read_bounded(self._root_path, names.MAX_ROOT_BYTES)
        if anchor is None:
            raise UntrustedDistributorError(
                f"this node holds no root of Distributor {self.distributor}, so nothing of it is accepted",
                hint=f"resolve its certificate: {self._mending()}",
            )
        if (found := self._shared.found) is not None and found.anchor == anchor:
            return anchor
        try:
            named = chains.distributor_of(chains.parse_anchor(anchor))
        except (TufError, ValueError) as error:
            raise TrustError(
                f"{self._root_path}: the trusted root of {self.distributor} is damaged: {error}",
                hint=f"ted trust import --force --distributor {self.distributor} ROOT.json",
            ) from error
        if named not in (None, self.distributor):
            raise TrustError(
                f"{self._root_path}: this is the root of {named}, not of {self.distributor}",
                hint=f"ted trust import --force --distributor {self.distributor} ROOT.json",
            )
        return anchor

    def _mending(self) -> str:
        return (
            f"`ted trust import --distributor {self.distributor} ROOT.json` on this node, "
            f"or `ansible-playbook playbooks/install.yml --limit {self._node}`"
        )

    def _try_load(self) -> Chain | None:
        with suppress(TufError, KeyError, ValueError, FileNotFoundError):
            return self._verified()
        return None

    def _verified(self) -> Chain:
        """Return the state that lies here, verified now, or before if nothing here has changed since.

        Raises:
            FileNotFoundError: A part is missing.
            TufError: A part does not verify.
        """
        looks, found = self._looks(), self._shared.found
        if (
            found is not None
            and (found.anchor, found.looks) == (self._anchor, looks)
            and time.monotonic() - found.at_s < _KEPT_FOR_S
        ):
            return found.chain
        chain = chains.read_chain(self.directory, self._anchor)
        self._share(looks, chain)
        return chain

    def _share(self, looks: Looks | None, chain: Chain) -> None:
        """Let other views have what was verified; ``looks`` are of before it was read, and still hold."""
        if looks is not None:
            self._shared.found = Found(self._anchor, looks, chain, time.monotonic())

    def _looks(self) -> Looks | None:
        """Return what tells whether a file here was changed; ``None`` where it cannot be told, as while some go."""
        try:
            with os.scandir(self.directory) as entries:
                found = [(entry.name, entry.stat(follow_symlinks=False)) for entry in entries]
        except OSError:
            return None
        return frozenset((name, at.st_ino, at.st_mtime_ns, at.st_ctime_ns, at.st_size) for name, at in found)

    def _kept(self, path: str, target: TargetFile) -> bytes:
        """Return the record beside the catalog, verified."""
        place = self.directory.parent / path
        data = read_bounded(place, names.MAX_RECORD_BYTES)
        if data is None:
            raise MissingContentError(f"{self.distributor}: {path} is not here", hint="ted receive")
        try:
            target.verify_length_and_hashes(data)
        except LengthOrHashMismatchError as error:
            raise DigestMismatchError(f"{place} is not what was signed", hint=HOW_TO_MEND) from error
        return data

    def _ask(self, name: str, max_bytes: int) -> bytes:
        if self._fetch is None:
            raise MissingContentError(f"{self.distributor}: {name} is not here", hint="ted receive")
        data = self._fetch(name, max_bytes)
        if len(data) > max_bytes:
            raise TrustError(
                f"{self.distributor}: {name} is longer than the {max_bytes} bytes it may have",
                hint="the sender is broken or hostile: look at that node",
            )
        return data

    def _update(self, before: Chain | None, timestamp: bytes) -> None:
        from ted.trust.client import run_client  # what only reads does without its HTTP

        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=self.directory))
        try:
            self._seed(scratch, before)
            run_client(self._ask, timestamp, self._anchor, scratch)
            self._keep(scratch)
        except (TufError, DownloadError, KeyError, ValueError) as error:
            raise self._translated(error) from error
        except OSError as error:
            raise RepositoryError(
                f"{self.directory}: cannot keep the catalog of {self.distributor}: {error}",
                hint="look at space and rights there",
            ) from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _seed(self, scratch: Path, before: Chain | None) -> None:
        """Give the client what was trusted so far: it compares, and fetches only what is new."""
        (scratch / "root_history").mkdir()
        for root, data in chains.follow_roots(self.directory, self._anchor):
            (scratch / "root_history" / f"{root.version}.root.json").write_bytes(data)
        if before is None:
            # rollback protection does not end because another file was damaged
            data = read_bounded(self.directory / "timestamp.json", names.MAX_TIMESTAMP_BYTES) or b""
            (scratch / "timestamp.json").write_bytes(data)
            return
        for name, data in before.raw.items():
            parsed = names.parse_versioned(name)
            local = f"{quote(parsed[1], '')}.json" if parsed else name
            (scratch / local).write_bytes(data)

    def _keep(self, scratch: Path) -> None:
        """Store what the client accepted under the names it is served by, in two steps."""
        files: dict[str, bytes] = {}
        for path in (scratch / "root_history").glob("*.root.json"):
            files[path.name] = path.read_bytes()
        newest = max(files, key=lambda name: int(name.split(".")[0]))
        targets = chains.read_targets(scratch)
        for role in [*chains.delegated_roles(targets), "targets", "snapshot"]:
            data = (scratch / f"{quote(role, '')}.json").read_bytes()
            files[f"{_version(data)}.{role}.json"] = data
        files["timestamp.json"] = (scratch / "timestamp.json").read_bytes()
        files["root.json"] = files[newest]
        if strange := [name for name in files if not names.is_metadata_name(name)]:
            raise TufError(f"versions no catalog has: {', '.join(strange)[:200]}")
        files |= self._former_roots()
        staged = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=self.directory))
        for name, data in files.items():
            if read_bounded(self.directory / name, names.MAX_METADATA_BYTES) != data:
                replace_file(staged / name, data)
        self._drop_foreign_roots(files, int(newest.split(".")[0]))
        os.rename(staged, self.directory / _VERIFIED)
        sync_directory(self.directory)
        self._apply_verified()

    def _former_roots(self) -> dict[str, bytes]:
        """Return the roots before the trusted one: children may hold an older root than this node."""
        found: dict[str, bytes] = {}
        successor = self._anchor
        for version in range(chains.parse_anchor(self._anchor).version - 1, 0, -1):
            name = f"{version}.root.json"
            data = read_bounded(self.directory / name, names.MAX_ROOT_BYTES)
            try:
                data = data or self._ask(name, names.MAX_ROOT_BYTES)
                chains.succeeds(chains.parse_root(data), successor)
            except (TedError, TufError, ValueError):
                break
            found[name] = successor = data
        return found

    def _drop_foreign_roots(self, files: dict[str, bytes], newest: int) -> None:
        """Remove roots of an identity that a newly imported root replaced."""
        for version in chains.versions_on_disk(self.directory).get("root", []):
            name = f"{version}.root.json"
            if version > newest or name not in files:
                (self.directory / name).unlink(missing_ok=True)

    def _finish_move(self) -> None:
        if (self.directory / _VERIFIED).is_dir():
            with locked(self.directory):
                self._apply_verified()

    def _apply_verified(self) -> None:
        staged = self.directory / _VERIFIED
        if not staged.is_dir():
            return
        for name in sorted((path.name for path in staged.iterdir()), key=_order):
            data = read_bounded(staged / name, names.MAX_METADATA_BYTES)
            if data is not None and names.is_metadata_name(name):
                replace_file(self.directory / name, data)
        shutil.rmtree(staged)
        sync_directory(self.directory)

    def _clear_scratch(self) -> None:
        for leftover in self.directory.glob(f"{_SCRATCH}*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _translated(self, error: Exception) -> TedError:
        """Return the error of ours that says what one of the library's means here."""
        who = self.distributor
        if isinstance(error, DownloadLengthMismatchError):
            return TrustError(f"{who}: more data than was signed for: {error}", hint="look at the sender")
        if isinstance(error, DownloadError):
            cause = error.__cause__
            return cause if isinstance(cause, TedError) else TransferError(f"{who}: {error}")
        if isinstance(error, ExpiredMetadataError):
            return TrustError(
                f"{who}: its catalog expired: {error}",
                hint=f"check this node's clock; on {who}, see that `ted agent` runs, or call "
                "`ted keys renew`; if both are well, a sender between them holds back what is new",
            )
        if isinstance(error, BadVersionNumberError):
            return ReplayError(
                f"{who}: older metadata than was already trusted: {error}",
                hint=f"the sender is behind or replays; if {who} was restored from a backup, give it a new identity",
            )
        if isinstance(error, UnsignedMetadataError):
            return TrustError(
                f"{who}: metadata that Distributor {who} did not sign: {error}",
                hint=f"if {who} has a new identity: {self._mending()}",
            )
        return TrustError(f"{who}: metadata that does not hold: {error}", hint="look at the sender")


def _version(data: bytes) -> int:
    """Return the version of metadata that was accepted."""
    version: int = json.loads(data)["signed"]["version"]
    return version


def _is_fresh(chain: Chain) -> bool:
    return chain.expires_at > names.utc_now()


def _order(name: str) -> tuple[int, str]:
    """Order of writes: what is referred to before what refers to it."""
    parsed = names.parse_versioned(name)
    role = parsed[1] if parsed else name
    ranks = {"targets": 1, "snapshot": 2, "root": 3, Timestamp.type + ".json": 4, Root.type + ".json": 5}
    return ranks.get(role, 0), name
