"""Getting at package files: on this disk, or in a local copy of what a server has."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from ted.errors import BuildError, TransferError
from ted.hookspecs import BuildContext
from ted_plugins.packages.options import Source
from ted_plugins.packages.repositories import Offered, matches
from ted_plugins.sources.download import Remote
from ted_plugins.sources.mirror import Fetch, Limits, Mirror
from ted_plugins.sources.secrets import without_credentials
from ted_plugins.sources.web import Access, refusal, web_session
from ted_plugins.sources.website import WebSource, file_name

_CHUNK = 1 << 20
_TRIES = 3
_LIMITS = Limits(files=20_000)
_HERE = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class LocalRepository:
    """A repository in a directory of the Distributor."""

    name: str

    def read(self, place: str, max_bytes: int) -> bytes | None:
        """Return a file of it; ``None`` when it is not there.

        Raises:
            BuildError: It is larger, or cannot be read.
        """
        path = os.path.join(self.name, place)
        try:
            with open(path, "rb") as file:
                data = file.read(max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BuildError(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) > max_bytes:
            raise BuildError(f"{path}: is larger than {max_bytes} bytes")
        return data

    def packages(self, offers: list[Offered]) -> dict[Offered, str]:
        """Return where each package lies, its digest checked.

        Raises:
            BuildError: One is not there, or not what the index promises.
        """
        found = {offer: os.path.join(self.name, offer.place) for offer in offers}
        for offer, path in found.items():
            try:
                same = matches(_chunks(path), offer.digest)
            except OSError as error:
                raise BuildError(f"{path}: cannot be read: {error.strerror}", hint="the index names it") from error
            if not same:
                raise BuildError(f"{path}: is not what the repository's index promises", hint="make the index anew")
        return found


@dataclass
class Mirrors:
    """The local copies of what a build fetches; they stay from build to build, so nothing is fetched twice."""

    context: BuildContext
    _used: set[str] = field(default_factory=set)

    def package(self, source: Source) -> str:
        """Return the path of the package at an address.

        Raises:
            BuildError: It is not there, or not what ``sha256`` says.
            TransferError: It cannot be fetched now.
        """
        url = str(source.url)
        name = file_name(url) or "package"
        digests = {name: f"sha256:{source.sha256}"} if source.sha256 is not None else None
        web = WebSource(url, self._access(source, url), name_of_file=name, digests=digests)
        return str(self.refreshed(web.name, [web], url) / name)

    def repository(self, url: str, source: Source) -> WebRepository:
        """Return the repository at an address, reached as ``source`` says."""
        return WebRepository(f"{url.rstrip('/')}/", self._access(source, url), self)

    def tidy(self) -> None:
        """Remove copies of what is listed no more."""
        for path in self.context.scratch.glob("web-*"):
            if path.name not in self._used:
                shutil.rmtree(path, ignore_errors=True)

    def _access(self, source: Source, url: str) -> Access:
        access, shown = source.opened(url), without_credentials(url)
        if not source.verify_tls:
            self.context.log.warning("%s: certificates are not verified: anybody on the way may answer", shown)
        if access.secrets and url.startswith("http:") and access.origin.host not in _HERE:
            self.context.log.warning("%s: the password crosses the network in plain text; use https", shown)
        return access

    def refreshed(self, name: str, files: list[WebSource], key: str) -> Path:
        """Return the directory that holds ``files`` as they are on the server now."""
        directory = f"web-{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}"
        self._used.add(directory)
        mirror = Mirror(
            self.context.scratch / directory, _Files(name, files), self.context.log, limits=_LIMITS,
            progress=self.context.progress,
        )  # fmt: skip
        mirror.refresh()
        return mirror.files


@dataclass(frozen=True)
class _Files:
    """Single files of one server, as the source of a mirror."""

    name: str
    files: list[WebSource]

    def listing(self) -> Iterator[Remote]:
        """Yield each of them."""
        for file in self.files:
            yield from file.listing()

    def connect(self) -> AbstractContextManager[Fetch]:
        """Return what fetches them for one thread."""
        return self.files[0].connect()


@dataclass(frozen=True)
class WebRepository:
    """A repository on a web server."""

    url: str
    access: Access
    mirrors: Mirrors

    @property
    def name(self) -> str:
        """Its address."""
        return without_credentials(self.url)

    def read(self, place: str, max_bytes: int) -> bytes | None:
        """Return a file of it; ``None`` when it is not there.

        Raises:
            BuildError: It is larger.
            RefusedError: The server refuses it.
            TransferError: It cannot be read now, however often it was tried.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                with web_session(self.access) as session:
                    head, data = session.read(self.url + quote(place), max_bytes)
                if head.status in (404, 410):
                    return None
                if head.status != 200:
                    raise refusal(head, f"{self.name}{place}")
            except TransferError:
                if attempt == _TRIES:
                    raise
            else:
                return data
        return None

    def packages(self, offers: list[Offered]) -> dict[Offered, str]:
        """Return where each package lies in the local copy; fetched if it is not there yet, its digest checked."""
        wanted = {offer.place: offer for offer in offers}
        files = [
            WebSource(self.url + quote(place), self.access, name_of_file=place, digests={place: offer.digest})
            for place, offer in wanted.items()
        ]
        directory = self.mirrors.refreshed(self.name, files, self.url)
        return {offer: str(directory / offer.place) for offer in offers}


def _chunks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from iter(lambda: file.read(_CHUNK), b"")
