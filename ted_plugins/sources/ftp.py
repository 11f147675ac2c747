"""One login at an FTP server, with TLS or without: what the standard library's ftplib leaves to its caller.

Rules:
 * Names are bytes: the control connection carries them as they are, whatever their encoding.
 * Data connections go to the host the control connection goes to, whatever address a server's answer to PASV names;
   in active mode only that host may connect.
 * With TLS both connections are encrypted, the certificate is verified, and a data connection goes on with the TLS
   session of the control connection (servers demand it: else another client might take the transfer over). A listing
   that ends without TLS's own end may have been cut by somebody, and is refused.
 * Everything a server says is bounded: lines, answers, listings; and in time: a transfer that stalls ends.
 * Every failure is an error of the tree. What trying again can help is a ``TransferError``; after one the login is of
   no more use.
"""

from __future__ import annotations

import ftplib
import http.client
import re
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

from ted.errors import BuildError, TransferError, TrustError, UnreachableError
from ted_plugins.sources.listing import (
    MAX_LINE_BYTES,
    Kind,
    Listed,
    Parser,
    parse_full_time,
    parse_mlsd,
    parse_mlst,
    parse_unix,
)
from ted_plugins.sources.secrets import scrubbed

PORTS = {"ftp": 21, "ftpes": 21, "ftps": 990}
MAX_ANSWER_BYTES = 1 << 20
MAX_LISTING_BYTES = 1 << 30
SMALL_PIECE_BYTES = 64 * 1024
LARGE_PIECE_BYTES = 512 * 1024
_SPOOL_BYTES = 1 << 20
_SLOWEST_BYTES_S = 100
"""A transfer that stays below this for as long as the timeout is given up."""
_UNKNOWN_COMMAND = ("500", "501", "502", "504", "202")
_FACTS = ("type", "size", "modify", "unix.mode", "unique")


@dataclass(frozen=True)
class FtpLogin:
    """Where to log in, and how; ``password`` is never shown."""

    scheme: str
    """``ftp``; with TLS ``ftpes`` (asked for after connecting) or ``ftps`` (from the first byte)."""
    host: str
    port: int
    username: str = "anonymous"
    password: str = "anonymous@"  # noqa: S105 -- what anonymous says
    ca_file: str | None = None
    passive: bool = True
    timeout_s: float = 60.0
    proxy: str | None = None
    """An HTTP proxy that lets CONNECT through: ``http://proxy:3128``."""

    def __repr__(self) -> str:
        return f"FtpLogin({self.scheme}://{self.username}@{self.host}:{self.port})"


class FtpSession:
    """A login; for one thread at a time.

    Raises:
        BuildError: The server refuses the login, or does not do what is asked of it.
        TransferError: It does not answer now, or refuses for now.
        TrustError: Its certificate does not hold.
    """

    def __init__(self, login: FtpLogin) -> None:
        self._login = login
        self._type = ""
        self._ftp = _Control(login)
        self._features: dict[str, str] = {}
        self._data: socket.socket | None = None
        try:
            with self._translated("connecting"):
                self._ftp.open()
            with self._translated(f"logging in as {login.username}"):
                self._ftp.login(_text(login.username.encode()), _text(login.password.encode()))
                if login.scheme != "ftp":
                    self._ftp.prot_p()
            with self._translated("asking what it can"):
                self._features = self._feat()
                self._home = _raw(self._ftp.pwd())
        except BaseException:
            self.close()
            raise

    # -- what is there

    def look(self, path: bytes) -> Listed | None:
        """Return what is at ``path``, links followed; ``None`` when nothing is."""
        name = path.rstrip(b"/").rpartition(b"/")[2] or b"-"
        with self._translated("looking"):
            if "MLST" in self._features:
                listed = self._mlst(path, name)
                if listed is None or listed.kind is not Kind.LINK:
                    return listed
            if self._accepts(f"CWD {_text(path)}"):
                return Listed(name, Kind.DIRECTORY)
            return self._look_at_file(path, name)

    def _mlst(self, path: bytes, name: bytes) -> Listed | None:
        try:
            lines = self._ftp.sendcmd(f"MLST {_text(path)}").split("\n")
        except ftplib.error_perm as error:
            if str(error)[:3] in _UNKNOWN_COMMAND:
                raise
            return None
        if len(lines) < 3:
            raise BuildError(f"{self._login.host}: answers MLST with {lines[0][:100]!r}")
        return parse_mlst(_raw(lines[1]), name)

    def _look_at_file(self, path: bytes, name: bytes) -> Listed | None:
        self._choose("I")
        try:
            size = self._ftp.size(_text(path))
        except ftplib.error_perm as error:
            if str(error)[:3] in _UNKNOWN_COMMAND:
                raise
            return None
        at = self._modified_at(path)
        stamp = "" if at is None else time.strftime("%Y%m%d%H%M%S", time.gmtime(at))
        return None if size is None else Listed(name, Kind.FILE, size, stamp, at)

    def _accepts(self, command: str) -> bool:
        try:
            self._ftp.voidcmd(command)
        except ftplib.error_perm:
            return False
        return True

    def modified_at(self, path: bytes) -> int | None:
        """Return when a file was changed, in seconds since 1970; ``None`` where the server does not tell."""
        with self._translated("asking for a time"):
            return self._modified_at(path)

    def _modified_at(self, path: bytes) -> int | None:
        if self._features and "MDTM" not in self._features:
            return None
        try:
            return parse_full_time(self._ftp.sendcmd(f"MDTM {_text(path)}")[4:])
        except (ftplib.error_perm, ValueError):
            return None

    def real(self, directory: bytes) -> bytes:
        """Return where the server says it is, having gone to ``directory``."""
        with self._translated("entering a directory"):
            self._ftp.voidcmd(f"CWD {_text(directory)}")
            return _raw(self._ftp.pwd())

    def absolute(self, path: bytes) -> bytes:
        """Return ``path`` from the top, where it was meant from the directory that the login begins in."""
        return path if path.startswith(b"/") else self._home.rstrip(b"/") + b"/" + path

    def entries(self, directory: bytes) -> Iterator[Listed]:
        """Return what a directory holds. All of it has come then: the login is free for something else."""
        with self._translated("entering a directory"):
            self._ftp.voidcmd(f"CWD {_text(directory)}")
        spool = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 -- closed by _read
        try:
            with self._translated("listing a directory"):
                parse = self._list_into(spool)
        except BaseException:
            spool.close()
            raise
        return self._read(spool, parse)

    def _read(self, spool: IO[bytes], parse: Parser) -> Iterator[Listed]:
        with spool, self._translated("listing a directory"):
            spool.seek(0)
            for line in iter(lambda: spool.readline(MAX_LINE_BYTES + 1), b""):
                if len(line) > MAX_LINE_BYTES:
                    raise BuildError(f"the server lists a line of more than {MAX_LINE_BYTES} bytes")
                listed = parse(line.removesuffix(b"\n").removesuffix(b"\r"))
                if listed is not None:
                    yield listed

    def _list_into(self, spool: IO[bytes]) -> Parser:
        self._choose("A")
        commands: list[tuple[str, Parser]] = [("LIST -a", parse_unix), ("LIST", parse_unix)]
        if "MLST" in self._features:
            commands.insert(0, ("MLSD", parse_mlsd))
        for at, (command, parse) in enumerate(commands):
            try:
                self._copy(command, spool)
            except ftplib.error_perm as error:
                if at + 1 == len(commands) or str(error)[:3] not in (*_UNKNOWN_COMMAND, "550"):
                    raise
            else:
                return parse
        raise AssertionError

    def _copy(self, command: str, spool: IO[bytes]) -> None:
        size = 0
        for piece in self._pieces(command, strict=True):
            size += len(piece)
            if size > MAX_LISTING_BYTES:
                raise BuildError(f"a listing of more than {MAX_LISTING_BYTES} bytes", hint="narrow the source down")
            spool.write(piece)

    # -- what is in it

    @property
    def resumes(self) -> bool:
        """Whether a download can begin in the middle."""
        return not self._features or "REST" in self._features

    def download(
        self, path: bytes, offset_bytes: int = 0, *, binary: bool = True, piece_bytes: int = SMALL_PIECE_BYTES
    ) -> Generator[bytes, None, None]:
        """Yield a file in pieces, from ``offset_bytes`` on; as text its ends of lines become this machine's."""
        with self._translated(f"fetching {_text(path)}"):
            self._choose("I" if binary else "A")
            pieces = self._pieces(f"RETR {_text(path)}", offset_bytes or None, strict=not binary, most=piece_bytes)
            yield from pieces if binary else _lines_of_unix(pieces)

    def _pieces(
        self, command: str, rest: int | None = None, *, strict: bool = False, most: int = SMALL_PIECE_BYTES
    ) -> Iterator[bytes]:
        """Yield what comes over a data connection; it is whole when the server said so at the end."""
        connection, _ = self._ftp.ntransfercmd(command, rest)
        self._data = connection
        with connection:
            pace = _Pace(self._login.timeout_s)
            while piece := pace.of(lambda: _receive(connection, most, strict=strict)):
                yield piece
            if isinstance(connection, ssl.SSLSocket):
                with suppress(OSError):  # the other side may be gone already
                    connection.unwrap()
        try:
            self._ftp.voidresp()
        except ftplib.error_perm as error:  # it had agreed: something broke on the way
            raise ftplib.error_temp(str(error)) from None  # noqa: S321

    # -- keeping house

    def close(self) -> None:
        """Leave at once; a transfer that another thread is at ends with an error."""
        if self._data is not None:
            with suppress(OSError):
                self._data.shutdown(socket.SHUT_RDWR)
        self._ftp.close()

    def quit(self) -> None:
        """Say good-bye, and leave."""
        with suppress(OSError, EOFError, ftplib.Error):
            self._ftp.quit()
        self.close()

    def _choose(self, type_: str) -> None:
        if self._type != type_:
            self._ftp.voidcmd(f"TYPE {type_}")
            self._type = type_

    def _feat(self) -> dict[str, str]:
        """Return what the server can: names in capitals, with what stands behind each; none when it does not tell."""
        try:
            lines = self._ftp.sendcmd("FEAT").split("\n")[1:-1]
        except ftplib.error_perm:
            return {}
        found = {}
        for line in lines:
            name, _, rest = line.strip().partition(" ")
            found[name.upper()] = rest
        if "UTF8" in found:
            self._accepts("OPTS UTF8 ON")
        facts = [fact for fact in found.get("MLST", "").split(";") if fact.rstrip("*").lower() in _FACTS]
        if any(not fact.endswith("*") for fact in facts):
            self._accepts(f"OPTS MLST {''.join(fact.rstrip('*') + ';' for fact in facts)}")
        return found

    @contextmanager
    def _translated(self, doing: str) -> Iterator[None]:
        """Make an error of the tree of whatever ftplib, ssl and the system raise."""
        where = f"{self._login.host}:{self._login.port}"
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise TrustError(
                f"{where}: its certificate does not hold: {error.verify_message}",
                hint="name the authority that issued it (ca_file), or the host as the certificate does",
            ) from None
        except ftplib.error_perm as error:
            raise BuildError(f"{where}: {doing}: refused: {self._said(error)}", hint=_hint(doing)) from None
        except (ftplib.error_temp, ftplib.error_reply, ftplib.error_proto) as error:
            raise TransferError(f"{where}: {doing}: not now: {self._said(error)}") from None
        except ssl.SSLError as error:
            raise TransferError(f"{where}: {doing}: TLS: {error.reason or 'broken'}",
                                hint="ftpes:// asks for TLS after connecting, ftps:// speaks it from the first byte",
                                ) from None  # fmt: skip
        except (TimeoutError, EOFError) as error:
            said = "no answer in time" if isinstance(error, TimeoutError) else "it closed the connection"
            raise UnreachableError(f"{where}: {doing}: {said}") from None
        except ValueError:
            raise BuildError(f"{where}: {doing}: an answer that is none of FTP") from None
        except (OSError, http.client.HTTPException) as error:
            said = self._said(error)
            raise UnreachableError(f"{where}: {doing}: {said}", hint="are host and port right?") from None

    def _said(self, error: Exception) -> str:
        text = re.sub(r"[^ -~]+", " ", str(error))[:300].strip()
        return scrubbed(text, (self._login.password,)) if self._login.username != "anonymous" else text


def _hint(doing: str) -> str:
    if doing.startswith("logging"):
        return "check username and password of the server"
    return "may this login read it, and is it still there?"


class _Control(ftplib.FTP_TLS):
    """ftplib's control connection, with what it leaves open closed."""

    def __init__(self, login: FtpLogin) -> None:
        context = None
        if login.scheme != "ftp":
            try:
                context = ssl.create_default_context(cafile=login.ca_file)
            except OSError as error:  # also what is no certificate: an SSLError
                reason = "holds no certificates" if isinstance(error, ssl.SSLError) else error.strerror
                raise BuildError(
                    f"{login.ca_file}: {reason}", hint="ca_file is a file on the Distributor with certificates (PEM)"
                ) from error
            context.minimum_version = ssl.TLSVersion.TLSv1_2
        super().__init__(context=context, timeout=login.timeout_s, encoding="latin-1")
        self._where = login
        self._answer_bytes = 0
        self.host, self.port = login.host, login.port
        self.passiveserver = login.passive

    def open(self) -> None:
        """Connect, and encrypt."""
        self.sock = self._dial(self.host, self.port)
        self.af = self.sock.family
        if self._where.proxy:
            self.af = socket.AF_INET6  # EPSV: an answer to PASV would name an address behind the proxy
        if self._where.scheme == "ftps":
            self.sock = self.context.wrap_socket(self.sock, server_hostname=self.host)
        self.file = self.sock.makefile("r", encoding=self.encoding)
        self.welcome = self.getresp()
        if self._where.scheme == "ftpes":
            self.auth()

    def login(self, user: str = "", passwd: str = "", acct: str = "", secure: bool = False) -> str:
        """Log in; encrypted or not was decided in ``open``."""
        return super().login(user, passwd, acct, secure=secure)

    def _dial(self, host: str, port: int) -> socket.socket:
        if not self._where.proxy:
            return socket.create_connection((host, port), self.timeout)
        proxy = urlsplit(self._where.proxy)
        tunnel = http.client.HTTPConnection(str(proxy.hostname), proxy.port or 3128, timeout=self.timeout)
        tunnel.response_class = _ProxyAnswer
        tunnel.set_tunnel(f"[{host}]" if ":" in host else host, port)
        tunnel.connect()
        return tunnel.sock

    def putcmd(self, line: str) -> None:
        self._answer_bytes = 0
        super().putcmd(line)

    def getline(self) -> str:
        line = super().getline()
        self._answer_bytes += len(line) + 1
        if self._answer_bytes > MAX_ANSWER_BYTES:
            raise ftplib.error_proto(f"an answer of more than {MAX_ANSWER_BYTES} bytes")  # noqa: S321
        return line

    def ntransfercmd(self, cmd: str, rest: int | str | None = None) -> tuple[socket.socket, int | None]:
        """Begin a transfer: as ftplib does, but through the proxy, with our TLS session, and from that host only."""
        assert self.sock is not None
        size: int | None = None
        if self._where.proxy and self.passiveserver:
            connection = self._through_proxy(cmd, rest)
        else:
            connection, size = ftplib.FTP.ntransfercmd(self, cmd, rest)  # noqa: S321
        try:
            peer, server = connection.getpeername()[0], self.sock.getpeername()[0]
            if not self.passiveserver and peer != server:
                raise ftplib.error_proto(f"{peer} connected, and is not the server")  # noqa: S321
            if not isinstance(self.sock, ssl.SSLSocket):
                return connection, size
            return self.context.wrap_socket(
                connection, server_hostname=self.host, session=self.sock.session, suppress_ragged_eofs=False
            ), size  # fmt: skip
        except BaseException:
            connection.close()
            raise

    def _through_proxy(self, cmd: str, rest: int | str | None) -> socket.socket:
        _, port = self.makepasv()
        connection = self._dial(self.host, port)
        try:
            if rest is not None:
                self.sendcmd(f"REST {rest}")
            answer = self.sendcmd(cmd)
            if answer[0] == "2":
                answer = self.getresp()
            if answer[0] != "1":
                raise ftplib.error_reply(answer)  # noqa: S321
        except BaseException:
            connection.close()
            raise
        return connection


class _ProxyAnswer(http.client.HTTPResponse):
    """A proxy's answer to CONNECT, read no further than its end: the server's greeting may have come with it."""

    def __init__(self, sock: socket.socket, *args: Any, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp.close()
        self.fp = sock.makefile("rb", buffering=0)  # type: ignore[assignment]


class _Pace:
    """Ends a transfer that brings next to nothing for as long as the timeout."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._waited_s, self._came = 0.0, 0

    def of(self, receive: Callable[[], bytes]) -> bytes:
        """Return what ``receive`` brings.

        Raises:
            TimeoutError: It has been too slow.
        """
        began_s = time.monotonic()
        piece = receive()
        self._waited_s += time.monotonic() - began_s
        self._came += len(piece)
        if self._waited_s > self._timeout_s:
            if self._came < _SLOWEST_BYTES_S * self._waited_s:
                raise TimeoutError
            self._waited_s, self._came = 0.0, 0
        return piece


def _receive(connection: socket.socket, most: int, *, strict: bool) -> bytes:
    """Return what came, nothing at the end; ``strict`` is for what has no size that would tell that it was cut."""
    try:
        return connection.recv(most)
    except ssl.SSLEOFError:
        if strict:
            raise
        return b""


def _lines_of_unix(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the pieces with every CR LF made LF."""
    held = b""
    for piece in pieces:
        data = held + piece
        held = b"\r" if data.endswith(b"\r") else b""
        yield data[: len(data) - len(held)].replace(b"\r\n", b"\n")
    if held:
        yield held


def _text(name: bytes) -> str:
    return name.decode("latin-1")


def _raw(text: Any) -> bytes:
    return str(text).encode("latin-1")
