"""The FTP type: files and directories of FTP, FTPS and SFTP servers, fetched by the Distributor when it builds.

Rules:
 * On a Subscriber it is the File type: target number N has the content tree ``N/``, by rsync's trailing-slash rule.
 * What the server lists as it was listed before costs a listing. Where a listing tells less than the server knows, the
   server is asked for the time; where not even that is certain, the file is fetched.
 * Symbolic links of the server are left out, or followed; a distribution never holds one.
 * Of a server's modes nothing is kept that lets others write, or that changes the user.
 * Passwords are used when building, on the Distributor, and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Generic, Self, TypeVar
from urllib.parse import unquote, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ted import hookimpl
from ted.errors import BuildError
from ted.hookspecs import BuildContext, Excludes, InstallContext, TypeInfo
from ted_plugins import file
from ted_plugins.sources.download import RESUME_BYTES
from ted_plugins.sources.ftp import LARGE_PIECE_BYTES, PORTS, SMALL_PIECE_BYTES, FtpLogin, FtpSession
from ted_plugins.sources.listing import Listed, permissions, time_of_stamp
from ted_plugins.sources.mirror import Download, Fetch, Limits, Mirror, Remote
from ted_plugins.sources.rate import Rate, Size
from ted_plugins.sources.secrets import Secret, reveal
from ted_plugins.sources.sessions import Found, Session, Sessions, Walk
from ted_plugins.sources.sftp import UNSURE_BYTES, SftpLogin, SftpSession
from ted_plugins.sources.workers import ahead

_SCHEMES = (*PORTS, "sftp")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f:]+(%[A-Za-z0-9_.-]+)?")
_SERVER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_NS = 10**9
_MINUTE_S = 60
_ZONE_S = 15 * 60
_JUST_NOW_S = 2
_DAY_S = 86400


# -- options


def _no_control(text: str) -> str:
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise ValueError("must not hold control characters")
    return text


Text = Annotated[str, AfterValidator(_no_control)]


def _server_url(url: str) -> str:
    parts = _split(url)
    if parts.username is not None:
        raise ValueError("write user and password as `username` and `password`, not into the url")
    if parts.path.strip("/"):
        raise ValueError("the url of a server ends with the host (or its port); paths stand in `from`")
    return url.rstrip("/")


def _split(url: str) -> _Address:
    """Return the parts of an address of a server; messages do not repeat it, for it may hold a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("is no address that can be read") from None
    if parts.scheme not in _SCHEMES:
        raise ValueError(f"an address begins with {', '.join(f'{scheme}://' for scheme in _SCHEMES)}")
    if parts.password is not None:
        raise ValueError("an address never holds a password: describe the server in `servers`")
    if not parts.hostname or not _HOST.fullmatch(parts.hostname) or parts.query or parts.fragment:
        raise ValueError("an address is SCHEME://HOST[:PORT][/PATH]")
    return _Address(parts.scheme, parts.hostname, port, parts.username and unquote(parts.username), parts.path)


@dataclass(frozen=True)
class _Address:
    scheme: str
    host: str
    port: int | None
    username: str | None
    path: str


def _proxy_url(url: str | None) -> str | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        fits = parts.scheme == "http" and parts.hostname and not parts.path.strip("/")
        _ = parts.port
    except ValueError:
        fits = None
    if not fits or parts.username is not None:
        raise ValueError("a proxy is http://HOST[:PORT], and lets CONNECT through")
    return url


class Server(BaseModel):
    """A server, and how to log in."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    url: Annotated[Text, AfterValidator(_server_url)] = Field(
        description="ftp://HOST[:PORT]; with TLS ftpes://HOST (explicit) or ftps://HOST (implicit); sftp://HOST."
    )
    username: Text | None = Field(None, min_length=1, description="Login name; unset: anonymous (sftp: ssh's choice).")
    password: Secret | None = Field(None, description="Its password, from Ansible Vault.")
    password_file: Text | None = Field(None, description="File on the Distributor with the password instead.")
    password_env: Text | None = Field(None, description="Environment variable with the password instead.")
    ca_file: Text | None = Field(None, description="ftpes, ftps: certificates to trust instead of the system's.")
    passive: bool = Field(True, description="ftp, ftpes, ftps: passive data connections; else active ones.")
    proxy: Annotated[Text | None, AfterValidator(_proxy_url)] = Field(
        None, description="ftp, ftpes, ftps: http://HOST:PORT that lets CONNECT through."
    )
    key_file: Text | None = Field(None, description="sftp: private key without passphrase; ssh's own choice if unset.")
    known_hosts: Text | None = Field(None, description="sftp: file with the server's host key; ssh's own if unset.")
    ssh_config: Text | None = Field(None, description="sftp: configuration of ssh, for a jump host, say.")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        sftp, tls = self.url.startswith("sftp:"), self.url.startswith(("ftpes:", "ftps:"))
        if len([one for one in (self.password, self.password_file, self.password_env) if one is not None]) > 1:
            raise ValueError("the password comes from one place: password, password_file or password_env")
        for name in ("key_file", "known_hosts", "ssh_config"):
            if getattr(self, name) is not None and not sftp:
                raise ValueError(f"{name} is for sftp:// only")
        if self.ca_file is not None and not tls:
            raise ValueError("ca_file is for ftpes:// and ftps:// only")
        if sftp and (self.proxy is not None or not self.passive):
            raise ValueError("proxy and passive are not for sftp://: ssh_config can name a ProxyJump")
        if self.proxy is not None and not self.passive:
            raise ValueError("a proxy lets passive connections through only")
        return self


def _sources(sources: list[str]) -> list[str]:
    for source in sources:
        _no_control(source)
        if "://" in source:
            _split(source)
        elif not _SERVER_NAME.fullmatch(source.partition(":")[0]) or not source.partition(":")[2]:
            raise ValueError("a source is SERVER:PATH, with a name of `servers`, or an address as ftp://HOST/PATH")
    return sources


class Target(file.Place):
    """One directory on the Subscriber, and what of which server goes there."""

    sources: Annotated[list[str], AfterValidator(_sources)] = Field(
        default_factory=list, alias="from",
        description="SERVER:PATH, or an address as ftp://HOST/PATH (anonymous); rsync's trailing-slash rule.",
    )  # fmt: skip
    follow_links: bool = Field(False, description="Take what the server's symbolic links lead to; else they stay out.")
    binary: bool = Field(True, description="Fetch bytes as they are; else as text, with this machine's ends of lines.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.sources and not self.remove:
            raise ValueError("needs `from` (what to put there) or `remove`")
        return self


class Options(file.Placing):
    """Options of the FTP type."""

    servers: dict[str, Server] = Field(default_factory=dict, description="The servers, by a name of your choice.")
    targets: list[Target] = Field(min_length=1, description="Where, and what.")
    fetch_rate: Size | None = Field(None, description="Bytes per second at most, for all connections of a build.")
    parallel: int = Field(4, ge=1, le=32, description="Connections at once; fewer where the server lets in fewer.")
    timeout: float = Field(60.0, gt=0, le=3600, description="Seconds without an answer, or with next to no data.")
    fetch_retries: int = Field(3, ge=0, le=100, description="Further tries for a file whose transfer was cut.")
    max_files: int = Field(1_000_000, ge=1, description="Files and directories of one source at most.")
    max_bytes: Size = Field(1 << 40, description="Bytes of one source at most.")

    @model_validator(mode="after")
    def _servers_are_there(self) -> Self:
        for name in self.servers:
            if not _SERVER_NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot be a server's name: letters, digits and . _ - (first no dot)")
        for target in self.targets:
            for source in target.sources:
                origin = _origin(source, self.servers)
                if not target.binary and origin.server.url.startswith("sftp:"):
                    raise ValueError(f"{source}: sftp knows no text, set binary: true")
        return self


@dataclass(frozen=True)
class _Origin:
    """One element of ``from``: a server, and a path there."""

    server: Server
    path: str

    @property
    def name(self) -> str:
        """What to call it in messages."""
        user = f"{self.server.username}@" if self.server.username else ""
        scheme, _, host = self.server.url.partition("://")
        return f"{scheme}://{user}{host}{'' if self.path.startswith('/') else '/./'}{self.path}"

    @property
    def as_content(self) -> bool:
        """Whether the content goes to the target, not the directory itself."""
        return self.path.endswith("/") or self.path in {".", ".."}

    @property
    def last(self) -> str:
        """The last name of the path."""
        return os.path.basename(self.path.rstrip("/"))


def _origin(source: str, servers: dict[str, Server]) -> _Origin:
    if "://" not in source:
        name, _, path = source.partition(":")
        if name not in servers:
            raise ValueError(f"{source}: no server {name!r} in `servers`")
        return _Origin(servers[name], path)
    parts = _split(source)
    host = f"[{parts.host}]" if ":" in parts.host else parts.host
    url = f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port is not None else "")
    path = unquote(parts.path, errors="surrogateescape") or "/"
    return _Origin(Server(url=url, username=parts.username), _no_control(path))


# -- hooks


@hookimpl
def ted_type() -> TypeInfo:
    """Describe the type."""
    return TypeInfo("ftp", "Files and directories of FTP, FTPS and SFTP servers", Options, recheck=_recheck)


def _recheck(options: Options) -> bool:
    return options.verify


@hookimpl
def ted_build(build: BuildContext) -> None:
    """Bring every source's mirror up to date, and add it."""
    options: Options = build.options
    gathering = _Gathering(build, options)
    for number, target in enumerate(options.targets):
        for source in target.sources:
            origin = _origin(source, options.servers)
            build.add_tree(gathering.mirrored(origin, target), str(number), contents_only=True)
    gathering.tidy()


@hookimpl
def ted_extract(install: InstallContext) -> None:
    """Make every target hold its part."""
    options: Options = install.options
    file.place(install, options, [(target, _spared(target, options)) for target in options.targets])


@hookimpl
def ted_sample(bench: Any) -> Any:
    """Return what the contract suite tests this type with."""
    from ted_plugins.samples.ftp import sample

    return sample(bench)


def _spared(target: Target, options: Options) -> list[str]:
    origins = [_origin(source, options.servers) for source in target.sources]
    return file.spared(target.exclude, [origin.last for origin in origins if not origin.as_content])


class _Gathering:
    """One build: mirrors that stay from build to build, a rate for all of them."""

    def __init__(self, build: BuildContext, options: Options) -> None:
        self._build, self._options = build, options
        self._rate = Rate(options.fetch_rate)
        self._kept: set[str] = set()

    def mirrored(self, origin: _Origin, target: Target) -> Path:
        """Return the directory that holds what is at the origin now."""
        options, log = self._options, self._build.log
        source = _source(origin, target, self._build, options)
        mirror = Mirror(
            self._directory(origin, target), source, log, rate=self._rate,
            parallel=source.parallel, retries=options.fetch_retries,
            limits=Limits(options.max_files, options.max_bytes), progress=self._build.progress,
            allow_empty=options.allow_empty,
        )  # fmt: skip
        with source:
            done = mirror.refresh()
        log.info("%s: %d fetched, %d as they were, %d gone, %d bytes came", source.name, done.fetched, done.unchanged,
                 done.removed, done.bytes)  # fmt: skip
        return mirror.files

    def _directory(self, origin: _Origin, target: Target) -> Path:
        """Return where an origin's mirror is; two of the same origin have two."""
        server = origin.server
        for number in range(len(self._kept) + 1):
            told = json.dumps([server.url, server.username, origin.path, target.binary, number])
            name = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:32]
            if name not in self._kept:
                break
        self._kept.add(name)
        return self._build.scratch / "mirrors" / name

    def tidy(self) -> None:
        """Remove the mirrors of origins that are no more."""
        directory = self._build.scratch / "mirrors"
        for path in directory.iterdir() if directory.is_dir() else ():
            if path.name not in self._kept:
                shutil.rmtree(path, ignore_errors=True)


# -- sources of mirrors

S = TypeVar("S", bound=Session)


class _ServerSource(Generic[S]):
    """What is at a path of a server, as a mirror's source; the protocols fill in how a file is fetched."""

    def __init__(self, origin: _Origin, target: Target, build: BuildContext, options: Options) -> None:
        self._origin, self._target, self._log = origin, target, build.log
        self._most = options.max_files
        self.parallel = options.parallel
        self._at_full_speed = options.fetch_rate is None
        self._sessions: Sessions[S] = Sessions(self.log_in)
        self._excludes = Excludes(target.exclude)
        self._path = os.fsencode(origin.path)
        self._now = time.time()

    def log_in(self) -> S:
        """Open one more login."""
        raise NotImplementedError

    def remote(self, path: str, found: Found) -> Remote:
        """Return a file as the listing tells it."""
        raise NotImplementedError

    def fetch(self, remote: Remote, download: Download) -> None:
        """Fetch a file, unless it is here."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._sessions.close()

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return self._origin.name

    def listing(self) -> Iterator[Remote]:
        """Yield every file."""
        self._now = time.time()
        packages = 0
        walk = Walk(
            self._sessions, self._path.rstrip(b"/") or b"/", follow_links=self._target.follow_links,
            leave_out=lambda path, is_directory: self._excludes.match(path, is_directory=is_directory),
            most=self._most, name=self.name, warn=self._log.warning,
        )  # fmt: skip
        for found in walk.files():
            path = os.fsdecode(found.relative)
            packages += path.endswith(".rpm")
            below = not self._origin.as_content and found.path != walk.top
            yield self.remote(f"{self._origin.last}/{path}" if below else path, found)
        if packages:
            self._log.warning("%s: holds %d RPM packages; the rpm type also installs them", self.name, packages)

    @contextmanager
    def connect(self) -> Iterator[Fetch]:
        """Lend what fetches files; a login is taken for each, so that fewer logins than threads can do."""
        yield self.fetch


def _source(origin: _Origin, target: Target, build: BuildContext, options: Options) -> _FtpSource | _SftpSource:
    if origin.server.url.startswith("sftp:"):
        return _SftpSource(origin, target, build, options)
    return _FtpSource(origin, target, build, options)


def _secret(server: Server) -> str | None:
    what = f"password of {server.url}"
    secret = reveal(server.password, file=server.password_file, env=server.password_env, what=what)
    if secret is not None and re.search(r"[\x00\r\n]", secret):
        raise BuildError(f"{what}: must not hold the end of a line", hint="write it without one")
    return secret


class _FtpSource(_ServerSource[FtpSession]):
    def __init__(self, origin: _Origin, target: Target, build: BuildContext, options: Options) -> None:
        super().__init__(origin, target, build, options)
        server, parts = origin.server, _split(origin.server.url)
        login = FtpLogin(
            parts.scheme, parts.host, parts.port or PORTS[parts.scheme], ca_file=server.ca_file,
            passive=server.passive, timeout_s=options.timeout, proxy=server.proxy,
        )  # fmt: skip
        secret = _secret(server)
        if server.username is not None:
            login = replace(login, username=server.username, password=secret or "")
        if secret is not None and parts.scheme == "ftp":
            build.log.warning("%s: the password travels unencrypted; use ftpes:// if the server can", server.url)
        self._login = login

    def log_in(self) -> FtpSession:
        return FtpSession(self._login)

    def remote(self, path: str, found: Found) -> Remote:
        listed = found.listed
        at = listed.modified_at
        return Remote(
            path, listed.size if self._target.binary else None, None if at is None else at * _NS,
            f"{listed.size} {listed.stamp}",
            settled=_settled(listed, self._now) if at is None else _certain(at, self._now),
            handle=found, mode=permissions(listed),
        )  # fmt: skip

    def fetch(self, remote: Remote, download: Download) -> None:
        found: Found = remote.handle
        with self._sessions.one() as session:
            began_at = time.time()
            at = found.listed.modified_at
            at = session.modified_at(found.path) if at is None else at
            version = f"{found.listed.size} {at}" if at is not None and _certain(at, began_at) else None
            if version is not None and download.known is not None and download.known.validator == version:
                download.unchanged()
                return
            at = at if at is not None else _guessed(found.listed)
            partial, offset_bytes = download.partial, 0
            if partial is not None and partial.validator == version and self._target.binary and session.resumes:
                offset_bytes = partial.size_bytes
            large = self._at_full_speed and found.listed.size >= RESUME_BYTES
            pieces = session.download(
                found.path, offset_bytes, binary=self._target.binary,
                piece_bytes=LARGE_PIECE_BYTES if large else SMALL_PIECE_BYTES,
            )  # fmt: skip
            rest = ahead(pieces, session.close) if large else pieces
            with closing(pieces), closing(rest):  # at once: what was raised would keep them, and the connection, open
                first = next(pieces, b"")  # the server has agreed to begin there
                download.begin(offset_bytes=offset_bytes, validator=version, mtime_ns=None if at is None else at * _NS)
                download.write(first)
                for piece in rest:
                    download.write(piece)


class _SftpSource(_ServerSource[SftpSession]):
    def __init__(self, origin: _Origin, target: Target, build: BuildContext, options: Options) -> None:
        super().__init__(origin, target, build, options)
        server, parts = origin.server, _split(origin.server.url)
        if options.fetch_rate is not None:
            self.parallel = 1  # sftp keeps to a rate of its own, and cannot share one
        self._login = SftpLogin(
            parts.host, parts.port, server.username, _secret(server), server.key_file, server.known_hosts,
            server.ssh_config, options.timeout, options.fetch_rate,
        )  # fmt: skip

    def log_in(self) -> SftpSession:
        return SftpSession(self._login)

    def remote(self, path: str, found: Found) -> Remote:
        listed = found.listed
        return Remote(
            path, listed.size, None, listed.stamp, settled=_settled(listed, self._now), handle=found,
            mode=permissions(listed),
        )  # fmt: skip

    def fetch(self, remote: Remote, download: Download) -> None:
        found: Found = remote.handle
        size_bytes = found.listed.size
        with self._sessions.one() as session:
            began_at, version = time.time(), None
            may_be_known = download.known is not None and download.known.size_bytes == size_bytes
            if may_be_known or size_bytes >= RESUME_BYTES:
                version = _version(size_bytes, session.modified_at(found.path, size_bytes), began_at)
            if version is not None and download.known is not None and download.known.validator == version:
                download.unchanged()
                return
            offset_bytes = 0
            download.shorten(UNSURE_BYTES)
            partial = download.partial
            if partial is not None and partial.validator == version:
                offset_bytes = partial.size_bytes
            place = download.outside(offset_bytes=offset_bytes, validator=version)
            session.download(found.path, place, size_bytes, go_on=offset_bytes > 0, watch=download.grown)
            at = int(os.stat(place).st_mtime)
            download.came(validator=_version(size_bytes, at, began_at), mtime_ns=at * _NS)


# -- what times tell


def _version(size_bytes: int, at: int, now: float) -> str | None:
    return f"{size_bytes} {at}" if _certain(at, now) else None


def _certain(at: int, now: float) -> bool:
    """Say whether a change after ``now`` shows in the seconds of a file changed at ``at``.

    Not if that is just now, or by a server's fast clock still to come.
    """
    return not -_DAY_S < now - at < _JUST_NOW_S


def _settled(listed: Listed, now: float) -> bool:
    """Say whether a change after ``now`` shows in the minutes of a listing, in whatever zone its server lives."""
    at = _guessed(listed)
    if at is None:
        return False
    age_s = now - at
    if age_s > 2 * _DAY_S:
        return True
    # A day alone is listed of what is old, or still to come.
    return ":" in listed.stamp and (age_s + _MINUTE_S) % _ZONE_S > 3 * _MINUTE_S


def _guessed(listed: Listed) -> int | None:
    """Return the time that a listing shows, as if its server lived in UTC."""
    try:
        return time_of_stamp(listed.stamp, datetime.now(UTC))
    except ValueError:
        return None
