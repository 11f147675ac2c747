"""Getting at package files: on this disk, or in a local copy of what a server has."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes, urlsplit

from ted.errors import BuildError, EmptySourceError
from ted.hookspecs import BuildContext
from ted_plugins.packages.options import Source, is_ftp
from ted_plugins.packages.repositories import Offered, matches
from ted_plugins.sources import mirror
from ted_plugins.sources.download import Download, Remote
from ted_plugins.sources.ftp import PORTS, FtpLogin, FtpSession
from ted_plugins.sources.listing import Kind
from ted_plugins.sources.rate import Rate
from ted_plugins.sources.secrets import reveal, without_credentials
from ted_plugins.sources.tries import tried
from ted_plugins.sources.turns import Lines
from ted_plugins.sources.web import Access, refusal, web_session
from ted_plugins.sources.website import WebSource, file_name

_CHUNK = 1 << 20
_RETRIES = 2
_INDEX_WITHIN_S = 6 * 3600
_LIMITS = mirror.Limits(files=20_000)
_SETTLED_S = 86_400
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
    rate: Rate
    _used: set[str] = field(default_factory=set)

    def package(self, source: Source) -> str:
        """Return the path of the package at an address.

        Raises:
            BuildError: It is not there, or not what ``sha256`` says.
            TransferError: It cannot be fetched now.
        """
        url = str(source.url)
        name = file_name(url) or "package"
        if is_ftp(url):
            file = FtpFile(url, source, name, source.sha256)
            if file.login.scheme == "ftp" and source.username is not None:
                self.context.log.warning("%s: the password travels unencrypted; use ftpes:// if the server can", url)
            return str(self.refreshed(file, url) / name)
        digests = {name: f"sha256:{source.sha256}"} if source.sha256 is not None else None
        web = WebSource(
            url, self._access(source, url), name_of_file=name, digests=digests, piece_bytes=self.rate.piece_bytes
        )
        return str(self.refreshed(web, url) / name)

    def repository(self, index: tuple[str, ...], source: Source) -> WebRepository:
        """Return the repository at an address, reached as ``source`` says.

        Args:
            index: The address, and what else chooses one of its indexes: each has a copy of its own.
            source: The first source that names it.
        """
        url = f"{index[0].rstrip('/')}/"
        return WebRepository(url, self._access(source, url), self, "\n".join((url, *index[1:])))

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

    def refreshed(self, source: mirror.Source, key: str) -> Path:
        """Return the directory that holds what ``source`` has now."""
        directory = f"web-{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}"
        self._used.add(directory)
        held = mirror.Mirror(
            self.context.scratch / directory, source, self.context.log, rate=self.rate, limits=_LIMITS,
            progress=self.context.progress,
        )  # fmt: skip
        held.refresh()
        return held.files


@dataclass(frozen=True)
class _Files:
    """Single files of one server, as the source of a mirror."""

    name: str
    files: list[WebSource]

    def listing(self) -> Iterator[Remote]:
        """Yield each of them."""
        for file in self.files:
            yield from file.listing()

    def connect_all(self, count: int) -> AbstractContextManager[Lines[mirror.FetchInSteps]]:
        """Return so many connections that fetch them."""
        return self.files[0].connect_all(count)


class FtpFile:
    """One file of an FTP server, as the source of a mirror."""

    def __init__(self, url: str, access: Source, name: str, sha256: str | None) -> None:
        parts = urlsplit(url)
        self.name = url
        self._place, self._path = name, unquote_to_bytes(parts.path)
        self._digest = f"sha256:{sha256}" if sha256 is not None else None
        login = FtpLogin(parts.scheme, parts.hostname or "", parts.port or PORTS[parts.scheme], ca_file=access.ca,
                         timeout_s=access.timeout, proxy=None if access.proxy == "none" else access.proxy)  # fmt: skip
        if access.username is not None:
            password = reveal(access.password, file=access.password_file, env=access.password_env)
            login = replace(login, username=access.username, password=password or "")
        self.login = login

    def listing(self) -> Iterator[Remote]:
        """Yield it.

        Raises:
            EmptySourceError: It is not there.
        """
        with closing(FtpSession(self.login)) as session:
            found = session.look(self._path)
        if found is None or found.kind is not Kind.FILE:
            raise EmptySourceError(f"{self.name}: no such file", hint="is the address right?")
        at = found.modified_at
        validator = f"{found.size} {found.stamp}"
        # what was changed long ago cannot change again without another time
        settled = self._digest is not None or (at is not None and time.time() - at > _SETTLED_S)
        mtime_ns = None if at is None else at * 10**9
        yield Remote(self._place, found.size, mtime_ns, validator, self._digest, settled)

    @contextmanager
    def connect(self) -> Iterator[mirror.Fetch]:
        """Lend what fetches it."""
        yield self._fetch

    def _fetch(self, remote: Remote, download: Download) -> None:
        """Fetch it, on a login of its own: one that failed is of no use to another try."""
        with closing(FtpSession(self.login)) as session, closing(session.download(self._path)) as pieces:
            download.begin(mtime_ns=remote.mtime_ns)
            for piece in pieces:
                download.write(piece)


@dataclass(frozen=True)
class WebRepository:
    """A repository on a web server."""

    url: str
    access: Access
    mirrors: Mirrors
    key: str
    """Which local copy is its own."""

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
        rate, log = self.mirrors.rate, self.mirrors.context.log

        def read() -> bytes | None:
            with web_session(self.access, piece_bytes=rate.piece_bytes) as session:
                head, data = session.read(self.url + quote(place), max_bytes, rate=rate, within_s=_INDEX_WITHIN_S)
            if head.status not in (200, 404, 410):
                raise refusal(head, f"{self.name}{place}")
            return data if head.status == 200 else None

        return tried(read, _RETRIES, lambda error: log.info("trying again: %s", error.message))

    def packages(self, offers: list[Offered]) -> dict[Offered, str]:
        """Return where each package lies in the local copy; fetched if it is not there yet, its digest checked."""
        wanted = {offer.place: offer for offer in offers}
        files = [
            WebSource(
                self.url + quote(place), self.access, name_of_file=place, digests={place: offer.digest},
                piece_bytes=self.mirrors.rate.piece_bytes,
            )
            for place, offer in wanted.items()
        ]  # fmt: skip
        directory = self.mirrors.refreshed(_Files(self.name, files), self.key)
        return {offer: str(directory / offer.place) for offer in offers}


def _chunks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from iter(lambda: file.read(_CHUNK), b"")
