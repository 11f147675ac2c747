"""Requests to web servers, by libcurl: a session does one after the other, ``WebLines`` several in one thread.

Rules:
 * Redirects are followed by hand, ``MAX_REDIRECTS`` at most: only to http and https, never from https to http.
 * Credentials, the client certificate and the secret query go to the host they were given for and to no other,
   wherever a redirect leads.
 * Certificates are verified unless ``verify_tls: false`` says otherwise, which is warned about.
 * What a server says is bounded: header lines, bodies that are read into memory, the time it may be silent, and where
   ``within_s`` says so the time it may take in all.
 * Every failure is an error of the tree; no message holds a secret.

Why libcurl: 2,000 small files cost 0.3 ms each; with ``requests`` 1.6 ms, with ``http.client`` 0.5 ms.
"""

from __future__ import annotations

import functools
import os
import re
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Annotated, Any, Generic, NamedTuple, Self
from urllib.parse import quote, urljoin, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ted.errors import BuildError, PluginError, RefusedError, TransferError, TrustError, UnreachableError
from ted_plugins.sources.rate import Rate
from ted_plugins.sources.secrets import Secret, reveal, scrubbed, without_credentials
from ted_plugins.sources.turns import Line, Steps

if TYPE_CHECKING:
    import pycurl

MAX_REDIRECTS = 10
MAX_REFUSAL_BYTES = 64 * 1024
_MOVES = frozenset({301, 302, 303, 307, 308})
_SLOWEST_BYTES_S = 10
_PAGE_TIMEOUTS = 10
_PORTS = {"http": 80, "https": 443}
_PIECE_BYTES = 256 * 1024
_NOT_WAITED_S = 0.002
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}", re.ASCII)
_STATUS = re.compile(r"HTTP/[0-9.]+ ([0-9]{3})")
_HEADER = re.compile(
    r"^(content-length|content-range|content-type|date|etag|last-modified|location):([^\r\n]*)",
    re.MULTILINE | re.IGNORECASE,
)
_PLAIN = re.compile(r"[A-Za-z0-9!#$%&'()*+,/:;=?@\[\]_.~-]*")
_LENGTH = re.compile(r"[0-9]{1,18}", re.ASCII)
_ETAG = re.compile(r'(W/)?"[\x21\x23-\x7e]{0,500}"')
_DATE = re.compile(r"[\x20-\x7e]{1,60}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

# libcurl's numbers: https://curl.se/libcurl/c/libcurl-errors.html
_UNREACHABLE = frozenset({5, 6, 7, 97})
_NO_TLS = 35
_DISTRUSTED = frozenset({51, 58, 60, 64, 66, 77, 80, 82, 83, 90, 91})


def web_address(url: str) -> str:
    """Check an address of an option: http or https, a host, and no credentials in it.

    Raises:
        ValueError: It is none, told without what may be a password.
    """
    shown = without_credentials(url)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(f"{shown} is no address") from None
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        raise ValueError(f"{shown} is no address: write http://host/path or https://host/path")
    if "@" in parts.netloc:
        raise ValueError(f"{shown}: an address holds no user or password: use the options for them")
    if parts.fragment or _CONTROL.search(url) or " " in url or ".." in parts.path.split("/"):
        raise ValueError(f"{shown}: no '#', no '..', no space in an address; write %20 for a space")
    return url


def _header_names(headers: dict[str, Secret]) -> dict[str, Secret]:
    for name in headers:
        if not _TOKEN.fullmatch(name):
            raise ValueError(f"{name!r} is no name of a header")
    return headers


class WebAccess(BaseModel):
    """Options that say how a web server is reached. Secrets are masked wherever options are written."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    username: str | None = Field(None, description="User name for basic authentication.")
    password: Secret | None = Field(None, description="Its password.")
    password_file: str | None = Field(None, description="File on the Distributor that holds the password.")
    password_env: str | None = Field(None, description="Variable of the Distributor's environment with the password.")
    token: Secret | None = Field(None, description="Bearer token.")
    token_file: str | None = Field(None, description="File on the Distributor that holds the token.")
    token_env: str | None = Field(None, description="Variable of the Distributor's environment with the token.")
    headers: Annotated[dict[str, Secret], AfterValidator(_header_names)] = Field(
        default_factory=dict, max_length=20, description="More headers, such as API keys; their values are secrets."
    )
    query: Secret | None = Field(None, description="Query put behind each address, such as a signature; a secret.")
    proxy: str | None = Field(
        None, description="http://proxy:3128, or none; unset takes the environment's (https_proxy, no_proxy)."
    )
    proxy_username: str | None = Field(None, description="User name at the proxy.")
    proxy_password: Secret | None = Field(None, description="Password at the proxy.")
    proxy_password_file: str | None = Field(None, description="File on the Distributor with the proxy's password.")
    verify_tls: bool = Field(True, description="Verify certificates; false is warned about.")
    ca: str | None = Field(None, description="File on the Distributor with the authorities to trust, instead of all.")
    certificate: str | None = Field(None, description="File on the Distributor with a client certificate.")
    key: str | None = Field(None, description="File on the Distributor with its key, if not in the same file.")
    key_password: Secret | None = Field(None, description="Password of that key.")
    timeout: int = Field(
        60, ge=1, le=3600, description="Seconds a server may be silent; a page may take ten times that in all."
    )

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for what, given in (
            ("password", (self.password, self.password_file, self.password_env)),
            ("token", (self.token, self.token_file, self.token_env)),
            ("proxy_password", (self.proxy_password, self.proxy_password_file)),
        ):
            if sum(each is not None for each in given) > 1:
                raise ValueError(f"say the {what} in one way only")
        if self.username is not None and (self.token or self.token_file or self.token_env):
            raise ValueError("a user name or a token, not both")
        if self.username is None and (self.password or self.password_file or self.password_env):
            raise ValueError("a password needs a username")
        if self.proxy not in (None, "none"):
            web_address(str(self.proxy))
        return self

    def opened(self, url: str) -> Access:
        """Return what a session needs, secrets revealed; to be called when building, and nowhere else.

        Args:
            url: The address that the secrets belong to.

        Raises:
            BuildError: A secret is not there.
        """
        token = reveal(self.token, file=self.token_file, env=self.token_env, what="token")
        headers = [f"{name}: {reveal(value, what=f'header {name}')}" for name, value in self.headers.items()]
        access = Access(
            origin=origin_of(url), username=self.username,
            password=reveal(self.password, file=self.password_file, env=self.password_env),
            headers=(*headers, *([f"Authorization: Bearer {token}"] if token is not None else [])), token=token,
            query=reveal(self.query, what="query"), proxy=self.proxy,
            proxy_username=self.proxy_username,
            proxy_password=reveal(self.proxy_password, file=self.proxy_password_file, what="proxy_password"),
            verify_tls=self.verify_tls, ca=self.ca, certificate=self.certificate, key=self.key,
            key_password=reveal(self.key_password, what="key_password"), timeout_s=self.timeout,
        )  # fmt: skip
        for secret in access.secrets:
            if _CONTROL.search(secret):
                raise BuildError("a password, token or header has a line end or another control character in it")
        return access


class Origin(NamedTuple):
    """Whom one speaks to."""

    scheme: str
    host: str
    port: int

    def may_have_secrets_of(self, other: Origin) -> bool:
        """Say whether this is where ``other`` was meant, or the same with TLS."""
        upgraded = Origin("http", self.host, 80) if self == ("https", self.host, 443) else self
        return other in (self, upgraded)


def origin_of(url: str) -> Origin:
    """Return the origin of an address."""
    end = url.find("/", 8)  # behind the second slash of both schemes
    return _origin(url if end < 0 else url[:end])


@functools.lru_cache(maxsize=64)
def _origin(top: str) -> Origin:
    parts = urlsplit(top)
    return Origin(parts.scheme, (parts.hostname or "").lower().rstrip("."), parts.port or _PORTS.get(parts.scheme, 0))


@dataclass(frozen=True, repr=False)
class Access:
    """How a server is reached, secrets revealed: never print it."""

    origin: Origin
    username: str | None = None
    password: str | None = None
    headers: tuple[str, ...] = ()
    token: str | None = None
    query: str | None = None
    proxy: str | None = None
    proxy_username: str | None = None
    proxy_password: str | None = None
    verify_tls: bool = True
    ca: str | None = None
    certificate: str | None = None
    key: str | None = None
    key_password: str | None = None
    timeout_s: int = 60

    @property
    def page_within_s(self) -> int:
        """How long a page, or a checksum file, may take in all."""
        return _PAGE_TIMEOUTS * self.timeout_s

    @property
    def secrets(self) -> tuple[str, ...]:
        """Everything that no message may hold."""
        values = [header.partition(": ")[2] for header in self.headers]
        found = (self.password, self.token, self.query, self.proxy_password, self.key_password, *values)
        return tuple(each for each in found if each)


class Head(NamedTuple):
    """What a server answers before the body."""

    status: int
    headers: Mapping[str, str]
    """Those that matter here, by their names in small letters."""
    url: str
    """Where it came from, after redirects."""
    moved: bool = False

    @property
    def length(self) -> int | None:
        """Bytes of the body."""
        text = self.headers.get("content-length", "")
        return int(text) if _LENGTH.fullmatch(text) else None

    @property
    def etag(self) -> str | None:
        """The version's name."""
        text = self.headers.get("etag", "")
        return text if _ETAG.fullmatch(text) else None

    @property
    def last_modified(self) -> str | None:
        """When it last changed, as the server writes it: to be sent back as it is."""
        text = self.headers.get("last-modified", "")
        return text if _DATE.fullmatch(text) else None

    def time_s(self, name: str) -> int | None:
        """Return the date in a header, in seconds since 1970."""
        return _seconds(self.headers[name][:60]) if name in self.headers else None


@functools.lru_cache(maxsize=64)
def _seconds(date: str) -> int | None:
    try:
        return int(parsedate_to_datetime(date).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


Sink = Callable[[bytes], object]


_Said = tuple[tuple[str, ...], bool, int | None]
"""More headers, whether the body may be compressed, and within how many seconds it shall be there."""


class Failure(NamedTuple):
    """What libcurl says of a transfer that failed."""

    number: int
    text: str


class WebSession:
    """One request after the other to what ``access`` reaches."""

    def __init__(self, access: Access, *, piece_bytes: int | None = None) -> None:
        self._pycurl, self._access, self._piece_bytes = _libcurl(), access, piece_bytes or _PIECE_BYTES
        self._curls: dict[bool, pycurl.Curl] = {}
        self._said: dict[bool, _Said] = {}

    def close(self) -> None:
        """Close the connections."""
        for curl in self._curls.values():
            curl.close()

    def get(
        self,
        url: str,
        take: Callable[[Head], Sink | None],
        *,
        headers: tuple[str, ...] = (),
        compressed: bool = False,
        within_s: int | None = None,
    ) -> Head:
        """Ask for an address, and follow where it leads.

        Args:
            url: What to ask for.
            take: Is called when the answer begins, and returns what its body goes to; ``None``: the body is not wanted.
            headers: More headers; they hold no secrets.
            compressed: Let the server compress the body; what arrives is unpacked, so bound it.
            within_s: How long each answer may take in all, however steadily it drips.

        Raises:
            UnreachableError: There is no such host, or it does not answer.
            TransferError: The transfer was cut, or stalled.
            BuildError: It took longer than ``within_s``.
            RefusedError: It leads to where it must not, or in circles.
            TrustError: A certificate does not hold.
        """
        steps = self.asking(url, take, headers=headers, compressed=compressed, within_s=within_s)
        try:
            curl = next(steps)
            while True:
                curl = steps.send(self._performed(curl))
        except StopIteration as done:
            head: Head = done.value
            return head

    def asking(
        self, url: str, take: Callable[[Head], Sink | None], *, headers: tuple[str, ...] = (), compressed: bool = False,
        within_s: int | None = None,
    ) -> Steps[Head]:  # fmt: skip
        """Do as ``get`` in steps: yield what libcurl is to perform, and be sent the failure, or ``None``."""
        at, said = url, (headers, compressed, within_s)
        for _ in range(MAX_REDIRECTS + 1):
            curl, answer = self._prepared(at, take, said, moved=at != url)
            head = self._concluded(answer, (yield curl))
            if head.status not in _MOVES or "location" not in head.headers:
                return head
            at = self._next(at, head.headers["location"])
        raise RefusedError(f"{without_credentials(url)}: more than {MAX_REDIRECTS} redirects")

    def read(
        self, url: str, max_bytes: int, *, compressed: bool = False, rate: Rate | None = None,
        within_s: int | None = None,
    ) -> tuple[Head, bytes]:  # fmt: skip
        """Return an answer and its whole body, where it is there (200); no faster than ``rate``.

        Raises:
            BuildError: It is longer than ``max_bytes``, or takes longer than ``within_s``.
            TransferError: As ``get``.
        """
        body = bytearray()

        def add(data: bytes) -> None:
            if rate is not None:
                rate.take(len(data))
            body.extend(data)
            if len(body) > max_bytes:
                raise BuildError(f"{without_credentials(url)}: longer than {max_bytes} bytes, or endless")

        head = self.get(
            url, lambda head: add if head.status == 200 else None, compressed=compressed, within_s=within_s
        )
        return head, bytes(body)

    # -- one request

    def _prepared(
        self, url: str, take: Callable[[Head], Sink | None], said: _Said, *, moved: bool
    ) -> tuple[pycurl.Curl, _Answer]:
        pycurl, access = self._pycurl, self._access
        ours = origin_of(url).may_have_secrets_of(access.origin)
        if access.query and not ours and access.query in url:
            raise RefusedError(f"{without_credentials(url)}: a redirect takes the secret query to another host")
        headers, compressed, within_s = said
        answer = _Answer(url, take, moved, within_s)
        curl = self._curl(ours=ours)
        curl.setopt(pycurl.URL, _ascii(_with_query(url, access.query) if ours and access.query else url))
        if self._said.get(ours) != said:
            self._said[ours] = said
            curl.setopt(pycurl.TIMEOUT, within_s or 0)
            curl.setopt(pycurl.ACCEPT_ENCODING, "gzip" if compressed else None)
            curl.unsetopt(pycurl.HTTPHEADER)  # an empty list would leave the former ones
            curl.setopt(pycurl.HTTPHEADER, [*map(_utf8, access.headers if ours else ()), *headers])
        curl.setopt(pycurl.HEADERFUNCTION, answer.lines.append)  # libcurl takes 300 kB of them at most
        curl.setopt(pycurl.WRITEFUNCTION, answer.body)
        return curl, answer

    def _performed(self, curl: pycurl.Curl) -> Failure | None:
        try:
            curl.perform()
        except self._pycurl.error as error:
            return Failure(error.args[0], str(error.args[1]))
        return None

    def _concluded(self, answer: _Answer, failure: Failure | None) -> Head:
        if failure is not None:
            if answer.error is not None:
                raise answer.error from None
            if answer.is_late:
                raise BuildError(f"{without_credentials(answer.url)}: did not come whole within {answer.within_s} s",
                                 hint="is the server well? a longer `timeout` gives it more time")  # fmt: skip
            if not answer.unwanted:
                raise self._translated(failure, answer.url)
        return answer.head()

    # -- handles: one for the host that has the secrets, and one, without any, for wherever it leads

    def _curl(self, *, ours: bool) -> pycurl.Curl:
        if ours not in self._curls:
            self._curls[ours] = curl = self._pycurl.Curl()
            self._set_up(curl)
            self._set_authorities(curl)
            self._set_proxy(curl)
            if ours:
                self._set_credentials(curl)
        return self._curls[ours]

    def _set_up(self, curl: pycurl.Curl) -> None:
        pycurl, access = self._pycurl, self._access
        for option, value in (
            (pycurl.NOSIGNAL, 1), (pycurl.FOLLOWLOCATION, 0), (pycurl.TCP_KEEPALIVE, 1),
            (pycurl.HTTP_VERSION, pycurl.CURL_HTTP_VERSION_1_1), (pycurl.SSLVERSION, pycurl.SSLVERSION_TLSv1_2),
            (pycurl.CONNECTTIMEOUT, access.timeout_s), (pycurl.LOW_SPEED_LIMIT, _SLOWEST_BYTES_S),
            (pycurl.LOW_SPEED_TIME, access.timeout_s), (pycurl.SSL_VERIFYPEER, int(access.verify_tls)),
            (pycurl.SSL_VERIFYHOST, 2 if access.verify_tls else 0), (pycurl.BUFFERSIZE, self._piece_bytes),
            (pycurl.PROTOCOLS, pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS),
        ):  # fmt: skip
            curl.setopt(option, value)
        curl.setopt(pycurl.USERAGENT, "ted")

    def _set_credentials(self, curl: pycurl.Curl) -> None:
        pycurl, access = self._pycurl, self._access
        if access.username is not None:
            curl.setopt(pycurl.HTTPAUTH, pycurl.HTTPAUTH_BASIC)
            curl.setopt(pycurl.USERNAME, _utf8(access.username))
            curl.setopt(pycurl.PASSWORD, _utf8(access.password or ""))
        for option, value in (
            (pycurl.SSLCERT, access.certificate), (pycurl.SSLKEY, access.key), (pycurl.KEYPASSWD, access.key_password),
        ):  # fmt: skip
            if value is not None:
                curl.setopt(option, _utf8(value))

    def _set_authorities(self, curl: pycurl.Curl) -> None:
        pycurl = self._pycurl
        known = ssl.get_default_verify_paths()
        if self._access.ca is not None:
            curl.setopt(pycurl.CAINFO, _utf8(self._access.ca))
            curl.unsetopt(pycurl.CAPATH)
            return
        files = (known.cafile, "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
        found = next((path for path in files if path and os.path.exists(path)), None)
        if found:
            curl.setopt(pycurl.CAINFO, found)

    def _set_proxy(self, curl: pycurl.Curl) -> None:
        pycurl, access = self._pycurl, self._access
        if access.proxy is not None:
            curl.setopt(pycurl.PROXY, "" if access.proxy == "none" else access.proxy)
            curl.setopt(pycurl.NOPROXY, "")
        if access.proxy_username is not None:
            curl.setopt(pycurl.PROXYUSERNAME, _utf8(access.proxy_username))
            curl.setopt(pycurl.PROXYPASSWORD, _utf8(access.proxy_password or ""))

    def _next(self, url: str, location: str) -> str:
        shown = without_credentials(url)
        try:
            target = urljoin(url, _ascii(location))
            parts = urlsplit(target)
            bad = parts.scheme not in _PORTS or not parts.hostname or parts.port == 0 or "@" in parts.netloc
        except ValueError:
            bad = True
        if bad:
            raise RefusedError(f"{shown}: leads to {without_credentials(location)[:200]!r}, which is not followed",
                               hint="redirects are followed to http and https addresses only")  # fmt: skip
        if url.startswith("https:") and parts.scheme != "https":
            raise RefusedError(f"{shown}: leads from https to http, which is not followed")
        return target.partition("#")[0]

    def _translated(self, failure: Failure, url: str) -> Exception:
        number, text = failure
        message = f"{without_credentials(url)}: {scrubbed(text, self._access.secrets)}"
        if number in _UNREACHABLE:
            return UnreachableError(message, hint="is the address right, and the server (or proxy) up?")
        if number in _DISTRUSTED:
            return TrustError(message, hint="`ca` names the file of the authority to trust; see also `certificate`")
        if number == _NO_TLS:
            return TransferError(message, hint="does that port speak https? http:// if not, or a proxy is in between")
        return TransferError(message)


class _Answer:
    """Takes what libcurl hands over; an exception must not pass through it, so it is kept."""

    def __init__(self, url: str, take: Callable[[Head], Sink | None], moved: bool, within_s: int | None) -> None:
        self.url, self._take, self._moved = url, take, moved
        self.within_s = within_s
        self._late_at_s = None if within_s is None else time.monotonic() + within_s
        self.lines: list[bytes] = []
        self.error: BaseException | None = None
        self.unwanted = False
        self._bytes = 0
        self._head: Head | None = None
        self._sink: Sink | None = None

    @property
    def is_late(self) -> bool:
        """Whether it took longer than it may."""
        return self._late_at_s is not None and time.monotonic() >= self._late_at_s

    def body(self, data: bytes) -> int | None:
        try:
            if self._head is None:
                self.head()
            if self._sink is None:
                # Refusals and redirects have a body that nobody wants, and that need not end.
                self._bytes += len(data)
                self.unwanted = self._bytes > MAX_REFUSAL_BYTES
                return -1 if self.unwanted else None
            self._sink(data)
        except BaseException as error:  # noqa: BLE001 -- raised again by whoever asked
            self.error = error
            return -1
        return None

    def head(self) -> Head:
        if self._head is None:
            status, headers = _parsed(self.lines)
            self._head = Head(status, headers, self.url, self._moved)
            moves = status in _MOVES and "location" in headers
            self._sink = None if moves else self._take(self._head)
        return self._head


def _parsed(lines: list[bytes]) -> tuple[int, dict[str, str]]:
    """Return status and the headers that matter of the last answer: a proxy's may stand before it."""
    block = b"".join(lines).decode("latin-1")
    begin = block.rfind("\nHTTP/") + 1
    status = _STATUS.match(block, begin)
    headers = {name.lower(): value.strip(" \t") for name, value in reversed(_HEADER.findall(block, begin))}
    return int(status[1]) if status else 0, headers


def _with_query(url: str, query: str) -> str:
    there = urlsplit(url).query
    if f"&{query}&" in f"&{there}&":  # a redirect handed it on
        return url
    return f"{url}{'&' if there else '?'}{query}"


def _ascii(url: str) -> str:
    """Return an address in which whatever is no ASCII is escaped; what is escaped stays as it is."""
    return url if _PLAIN.fullmatch(url) else quote(url, safe="!#$%&'()*+,/:;=?@[]~", errors="surrogateescape")


def _utf8(text: str) -> bytes:
    """Return a text as libcurl's binding takes one that need not be ASCII."""
    return text.encode("utf-8", "surrogateescape")


class WebLines(Generic[Line]):
    """Sessions that one thread drives at the same time, for ``turns.in_turns``.

    Args:
        access: What they reach.
        count: How many connections.
        line: Makes of a session what its tasks work on.
        piece_bytes: As much is taken from a connection at once.
    """

    def __init__(
        self, access: Access, count: int, line: Callable[[WebSession], Line], *, piece_bytes: int | None = None
    ) -> None:
        self.most = count
        self._sessions = [WebSession(access, piece_bytes=piece_bytes) for _ in range(2 * count)]
        self.lines = [line(session) for session in self._sessions]
        self._multi = _libcurl().CurlMulti()
        self._on_their_way: set[Any] = set()

    def start(self, curl: pycurl.Curl) -> None:
        """Start a request."""
        self._multi.add_handle(curl)
        self._on_their_way.add(curl)

    def push(self) -> None:
        """Let requests go on, as far as they can at this moment."""
        self._multi.perform()

    def wait(self, most_s: float) -> list[tuple[pycurl.Curl, Failure | None]]:
        """Let requests go on until some ended; return these."""
        self._multi.perform()
        ended = self._ended()
        if not ended:
            began_s = time.monotonic()
            if self._multi.select(most_s) <= 0 and time.monotonic() - began_s < _NOT_WAITED_S:
                time.sleep(_NOT_WAITED_S)  # there is nothing yet that could be waited for
        return ended

    def close(self) -> None:
        """Break off what is on its way, and close the connections."""
        for curl in self._on_their_way:
            self._multi.remove_handle(curl)
        for session in self._sessions:
            session.close()
        self._multi.close()

    def _ended(self) -> list[tuple[pycurl.Curl, Failure | None]]:
        _, done, failed = self._multi.info_read()
        ended: list[tuple[pycurl.Curl, Failure | None]] = [(curl, None) for curl in done]
        ended += [(curl, Failure(number, str(text))) for curl, number, text in failed]
        for curl, _ in ended:
            self._multi.remove_handle(curl)
            self._on_their_way.remove(curl)
        return ended


def _libcurl() -> Any:
    """Return the module; only a build that fetches pays for it.

    Raises:
        PluginError: It is not there.
    """
    try:
        import pycurl
    except ImportError as error:
        raise PluginError(f"libcurl cannot be used here: {error}", hint="pip install pycurl") from error
    return pycurl


@contextmanager
def web_session(access: Access, *, piece_bytes: int | None = None) -> Iterator[WebSession]:
    """Yield a session, and close it."""
    session = WebSession(access, piece_bytes=piece_bytes)
    try:
        yield session
    finally:
        session.close()


def refusal(head: Head, what: str) -> Exception:
    """Return the error that an answer other than the expected one is."""
    shown = f"{what}: the server answers {head.status}"
    if head.status in (401, 403, 407):
        unlisted = head.status == 403 and what.endswith("/")
        other = "; or the server gives no index of that directory" if unlisted else ""
        return RefusedError(shown, hint=f"check username and password, or token{other}")
    if head.status in (408, 425, 429) or head.status >= 500:
        return TransferError(shown)
    return RefusedError(shown)
