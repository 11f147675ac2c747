"""The HTTP type: files and directories of web servers, put below targets on each Subscriber.

Rules:
 * An address that ends with a slash is a directory that the server lists: its content goes to the target. Any other
   is one file, which goes to the target under its name.
 * What did not change is not fetched again; how that is known is the business of ``sources.website``.
 * A promise (a digest, a checksum file, a signature) that does not hold ends the build.
 * Secrets are of the build alone: what travels with a revision holds a mask in their place.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import unquote, urljoin, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from ted import hookimpl
from ted.errors import BuildError, EmptySourceError
from ted.hookspecs import BuildContext, InstallContext, TypeInfo
from ted_plugins.file import Place, Placing, place
from ted_plugins.sources.checksums import (
    MAX_CHECKSUMS_BYTES,
    MAX_SIGNATURE_BYTES,
    parse_checksums,
    parse_digest,
    verify_signature,
)
from ted_plugins.sources.mirror import Limits, Mirror
from ted_plugins.sources.rate import Rate, Size
from ted_plugins.sources.secrets import without_credentials
from ted_plugins.sources.web import Access, WebAccess, web_address
from ted_plugins.sources.website import WebSource, file_name


def _address(url: str) -> str:
    return url if url.startswith("{{") else web_address(url)


def _file_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise ValueError(f"{name!r} is no name of a file")
    return name


def _written_short(value: object) -> object:
    return {"url": value} if isinstance(value, str) else value


class Entry(WebAccess):
    """One address, and how to reach it."""

    url: Annotated[str, AfterValidator(_address)] = Field(description="Address; with a slash at its end a directory.")
    name: Annotated[str, AfterValidator(_file_name)] | None = Field(
        None, description="What one file is called; unset takes the end of its address."
    )
    depth: int | None = Field(
        None, ge=0, le=100, description="How deep directories are followed; what is below is left out. Unset: all."
    )
    include: list[str] = Field(default_factory=list, description="Patterns of the files of a directory; unset: all.")
    exclude: list[str] = Field(default_factory=list, description="Patterns of what is left out, directories too.")
    trust_listing: bool = Field(
        True, description="Believe a listing that shows a file as it was; false asks the server for every file."
    )
    digest: Annotated[str, AfterValidator(parse_digest)] | None = Field(
        None, description="What one file must hash to: sha256:... (or sha384, sha512)."
    )
    checksums: str | None = Field(None, description="Address of a checksum file (SHA256SUMS), absolute or from url.")
    signature: str | None = Field(
        None, description="Address of a detached OpenPGP signature, of the checksum file or else of the one file."
    )
    keyring: str | None = Field(None, description="File on the Distributor with the keys that signatures may be by.")

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory that the server lists."""
        return self.url.endswith("/")

    @model_validator(mode="after")
    def _promises_fit(self) -> Self:
        shown = without_credentials(self.url)
        if self.is_directory and (self.digest or self.name):
            raise ValueError(f"{shown}: digest and name are for one file, not for a directory")
        if self.is_directory and self.signature and not self.checksums:
            raise ValueError(f"{shown}: a signature of a directory is one of its checksum file: say checksums")
        if self.digest and self.checksums:
            raise ValueError(f"{shown}: a digest or a checksum file, not both")
        if (self.signature is None) != (self.keyring is None):
            raise ValueError(f"{shown}: signature and keyring belong together")
        if not self.is_directory and not self.name and file_name(self.url) in ("", ".", ".."):
            raise ValueError(f"{shown}: does not say what the file is called: use name")
        if not self.is_directory and (self.include or self.exclude):
            raise ValueError(f"{shown}: include and exclude are for directories; a directory ends with a slash")
        for other in (self.checksums, self.signature):
            if other is not None:
                web_address(urljoin(self.url, other))
        return self


class Target(Place):
    """One directory on the Subscriber, and what of the web goes there."""

    sources: list[Annotated[Entry, BeforeValidator(_written_short, json_schema_input_type=str | Entry)]] = Field(
        default_factory=list, alias="from", description="Addresses, each a text or a mapping."
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.sources and not self.remove:
            raise ValueError("needs `from` (what to put there) or `remove`")
        return self


class Options(Placing):
    """Options of the HTTP type."""

    targets: list[Target] = Field(min_length=1, description="Where, and what.")
    fetch_rate: Size | None = Field(None, description="Bytes per second of all connections together; unset: no limit.")
    parallel: int = Field(4, ge=1, le=32, description="Connections to a server at a time.")
    fetch_retries: int = Field(3, ge=0, le=100, description="How often a file is tried again after a failure.")
    max_files: int = Field(1_000_000, ge=1, description="Files that one address may have.")
    max_bytes: Size = Field(1 << 40, description="Bytes that one address may have.")


@hookimpl
def ted_type() -> TypeInfo:
    """Describe the type."""
    return TypeInfo("http", "Files and directories of web servers", Options, recheck=_recheck)


def _recheck(options: Options) -> bool:
    return options.verify


@hookimpl
def ted_build(build: BuildContext) -> None:
    """Bring the mirror of every address up to date, and add it."""
    options: Options = build.options
    rate = Rate(options.fetch_rate)
    names: Counter[str] = Counter()
    used: set[str] = set()
    for number, target in enumerate(options.targets):
        for entry in target.sources:
            name = _mirror_name(entry, names)
            used.add(name)
            files = _fetch(build, entry, target, rate, build.scratch / name, used)
            if files is not None:
                build.add_tree(files, str(number), exclude=target.exclude, contents_only=True)
    _remove_others(build.scratch, used)


@hookimpl
def ted_extract(install: InstallContext) -> None:
    """Make every target hold its part."""
    options: Options = install.options
    place(install, options, [(target, target.exclude) for target in options.targets])


@hookimpl
def ted_sample(bench: Any) -> Any:
    """Return what the contract suite tests this type with."""
    from ted_plugins.samples.http import sample

    return sample(bench)


# -- building


def _fetch(
    build: BuildContext, entry: Entry, target: Target, rate: Rate, scratch: Path, used: set[str]
) -> Path | None:
    """Return the directory with what the address has; ``None`` when it has nothing, and may."""
    options: Options = build.options
    access = entry.opened(entry.url)
    _warn(build, entry, access)
    small = _SmallFiles(build, access, rate, scratch.name, used)
    digests, undigested = _promised(entry, small)
    source = WebSource(
        entry.url, access, depth=entry.depth, include=tuple(entry.include), exclude=(*entry.exclude, *target.exclude),
        name_of_file=entry.name, digests=digests, undigested=undigested, trust_listing=entry.trust_listing,
        piece_bytes=rate.piece_bytes, retries=options.fetch_retries,
    )  # fmt: skip
    mirror = Mirror(
        scratch, source, build.log, rate=rate, parallel=options.parallel, retries=options.fetch_retries,
        limits=Limits(options.max_files, options.max_bytes), progress=build.progress, allow_empty=options.allow_empty,
    )  # fmt: skip
    try:
        done = mirror.refresh()
    except EmptySourceError as error:
        if not options.allow_empty:
            raise
        build.log.warning("%s", error.message)
        return None
    build.log.info("%s: %d fetched, %d unchanged, %d removed, %d bytes", source.name, done.fetched, done.unchanged,
                   done.removed, done.bytes)  # fmt: skip
    if entry.signature is not None and entry.keyring is not None and entry.checksums is None:
        signature = small.read(urljoin(entry.url, entry.signature), MAX_SIGNATURE_BYTES)
        content = mirror.files / (entry.name or file_name(entry.url))
        verify_signature(content, signature, entry.keyring, source.name)
    return mirror.files if done.fetched + done.unchanged else None


def _promised(entry: Entry, small: _SmallFiles) -> tuple[dict[str, str] | None, frozenset[str]]:
    """Return the digests that are promised for paths, and the paths that need none."""
    if entry.digest is not None:
        return {entry.name or file_name(entry.url): entry.digest}, frozenset()
    if entry.checksums is None:
        return None, frozenset()
    address = urljoin(entry.url, entry.checksums)
    data = small.read(address, MAX_CHECKSUMS_BYTES)
    addresses = [address]
    if entry.signature is not None and entry.keyring is not None:
        addresses.append(urljoin(entry.url, entry.signature))
        signature = small.read(addresses[-1], MAX_SIGNATURE_BYTES)
        with tempfile.NamedTemporaryFile(prefix="ted-checksums-") as file:
            file.write(data)
            file.flush()
            verify_signature(Path(file.name), signature, entry.keyring, without_credentials(address))
    digests = {}
    for path, digest in parse_checksums(data, without_credentials(address)).items():
        if (below := _below(entry.url, urljoin(address, "."), path)) is not None:
            digests[below] = digest
    if not entry.is_directory and entry.name:
        return {entry.name: digests[file_name(entry.url)]} if file_name(entry.url) in digests else {}, frozenset()
    return digests, frozenset(below for each in addresses if (below := _below(entry.url, each, "")) is not None)


def _below(url: str, address: str, path: str) -> str | None:
    """Return where ``path`` below ``address`` is in the mirror of ``url``; ``None`` if it is not below that."""
    top = unquote(urlsplit(urljoin(url, ".")).path, errors="surrogateescape")
    whole = unquote(urlsplit(address).path, errors="surrogateescape") + path
    return whole[len(top) :] if whole.startswith(top) else None


@dataclass(frozen=True)
class _SmallFiles:
    """Checksum files and signatures: each has a mirror of its own, so that one that did not change costs a question."""

    build: BuildContext
    access: Access
    rate: Rate
    mirror_name: str
    used: set[str]
    """Names of the mirrors that stay."""

    def read(self, url: str, max_bytes: int) -> bytes:
        """Return what the file holds.

        Raises:
            BuildError: It is not there, too long, or too slow.
            TransferError: It does not come, however often it was tried.
        """
        name = f"{self.mirror_name}-{hashlib.sha256(url.encode('utf-8', 'surrogateescape')).hexdigest()[:8]}"
        source = WebSource(
            url, self.access, name_of_file="file", piece_bytes=self.rate.piece_bytes,
            within_s=self.access.page_within_s + self.rate.within_s(max_bytes),
        )  # fmt: skip
        self.used.add(name)
        mirror = Mirror(
            self.build.scratch / name, source, self.build.log, rate=self.rate,
            retries=self.build.options.fetch_retries, limits=Limits(1, max_bytes),
        )  # fmt: skip
        try:
            mirror.refresh()
        except EmptySourceError as error:
            raise BuildError(error.message, hint="check checksums and signature") from error
        return (mirror.files / "file").read_bytes()


def _warn(build: BuildContext, entry: Entry, access: Access) -> None:
    shown = without_credentials(entry.url)
    if not entry.verify_tls:
        build.log.warning("%s: certificates are not verified: anybody on the way may answer", shown)
    if access.secrets and entry.url.startswith("http:") and access.origin.host not in ("localhost", "127.0.0.1", "::1"):
        build.log.warning("%s: the password crosses the network in plain text; use https", shown)


def _mirror_name(entry: Entry, names: Counter[str]) -> str:
    """Return where the mirror of an address is, for this build and later ones."""
    name = hashlib.sha256(f"{entry.url}\n{entry.name or ''}".encode("utf-8", "surrogateescape")).hexdigest()[:24]
    names[name] += 1
    return f"web-{name}-{names[name]}"


def _remove_others(scratch: Path, used: set[str]) -> None:
    """Remove the mirrors of addresses that are no longer named, and of their checksum files."""
    for path in scratch.glob("web-*"):
        if path.name not in used:
            shutil.rmtree(path, ignore_errors=True)
