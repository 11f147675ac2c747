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
        digest = f"sha256:{source.sha256}" if source.sha256 is not None else None
        if is_ftp(url):
            path = unquote_to_bytes(urlsplit(url).path)
            return str(self.refreshed(_FtpFiles(url, self._login(source, url), {name: (path, digest)}), url) / name)
        digests = {name: digest} if digest is not None else None
        web = WebSource(
            url, self._access(source, url), name_of_file=name, digests=digests, piece_bytes=self.rate.piece_bytes
        )
        return str(self.refreshed(web, url) / name)

    def repository(self, index: tuple[str, ...], source: Source) -> WebRepository | FtpRepository:
        """Return the repository at an address, reached as ``source`` says.

        Args:
            index: The address, and what else chooses one of its indexes: each has a copy of its own.
            source: The first source that names it.
        """
        url = f"{index[0].rstrip('/')}/"
        key = "\n".join((url, *index[1:]))
        if is_ftp(url):
            return FtpRepository(url, self._login(source, url), self, key)
        return WebRepository(url, self._access(source, url), self, key)

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

    def _login(self, source: Source, url: str) -> FtpLogin:
        parts = urlsplit(url)
        login = FtpLogin(parts.scheme, parts.hostname or "", parts.port or PORTS[parts.scheme], ca_file=source.ca,
                         timeout_s=source.timeout, proxy=None if source.proxy == "none" else source.proxy)  # fmt: skip
        if source.username is None:
            return login
        if login.scheme == "ftp":
            self.context.log.warning("%s: the password travels unencrypted; use ftpes:// if the server can", url)
        password = reveal(source.password, file=source.password_file, env=source.password_env)
        return replace(login, username=source.username, password=password or "")

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


@dataclass(frozen=True)
class _FtpFiles:
    """Single files of one FTP server, as the source of a mirror."""

    name: str
    login: FtpLogin
    files: dict[str, tuple[bytes, str | None]]
    """Place in the copy: path on the server, and the digest that is promised."""

    def listing(self) -> Iterator[Remote]:
        """Yield each of them.

        Raises:
            EmptySourceError: One is not there.
        """
        with closing(FtpSession(self.login)) as session:
            for place, (path, digest) in self.files.items():
                found = session.look(path)
                if found is None or found.kind is not Kind.FILE:
                    shown = self.name if len(self.files) == 1 else f"{self.name}{place}"
                    raise EmptySourceError(f"{shown}: no such file", hint="is the address right?")
                at = found.modified_at
                # what was changed long ago cannot change again without another time
                settled = digest is not None or (at is not None and time.time() - at > _SETTLED_S)
                mtime_ns = None if at is None else at * 10**9
                yield Remote(place, found.size, mtime_ns, f"{found.size} {found.stamp}", digest, settled)

    @contextmanager
    def connect(self) -> Iterator[mirror.Fetch]:
        """Lend what fetches them."""
        yield self._fetch

    def _fetch(self, remote: Remote, download: Download) -> None:
        """Fetch one, on a login of its own: one that failed is of no use to another try."""
        path, _ = self.files[remote.path]
        with closing(FtpSession(self.login)) as session, closing(session.download(path)) as pieces:
            download.begin(mtime_ns=remote.mtime_ns)
            for piece in pieces:
                download.write(piece)


@dataclass(frozen=True)
class FtpRepository:
    """A repository on an FTP server."""

    name: str
    """Its address."""
    login: FtpLogin
    mirrors: Mirrors
    key: str
    """Which local copy is its own."""

    def read(self, place: str, max_bytes: int) -> bytes | None:
        """Return a file of it; ``None`` when it is not there.

        Raises:
            BuildError: It is larger, or the server refuses it.
            TransferError: It cannot be read now, however often it was tried.
        """
        rate, log, path = self.mirrors.rate, self.mirrors.context.log, self._path(place)

        def read() -> bytes | None:
            with closing(FtpSession(self.login)) as session:
                found = session.look(path)
                if found is None or found.kind is not Kind.FILE:
                    return None
                data = bytearray()
                with closing(session.download(path)) as pieces:
                    for piece in pieces:
                        rate.take(len(piece))
                        data += piece
                        if len(data) > max_bytes:
                            raise BuildError(f"{self.name}{place}: is larger than {max_bytes} bytes")
            return bytes(data)

        return tried(read, _RETRIES, lambda error: log.info("trying again: %s", error.message))

    def packages(self, offers: list[Offered]) -> dict[Offered, str]:
        """Return where each package lies in the local copy; fetched if it is not there yet, its digest checked."""
        files: dict[str, tuple[bytes, str | None]] = {
            offer.place: (self._path(offer.place), offer.digest) for offer in offers
        }
        directory = self.mirrors.refreshed(_FtpFiles(self.name, self.login, files), self.key)
        return {offer: str(directory / offer.place) for offer in offers}

    def _path(self, place: str) -> bytes:
        return unquote_to_bytes(urlsplit(self.name).path) + os.fsencode(place)


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
