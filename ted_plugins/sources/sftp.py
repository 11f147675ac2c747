"""One login at an SFTP server, through OpenSSH's own ``sftp``: it is told commands, and what it prints is read.

Rules:
 * The server's host key must be known; nobody is asked, nothing unknown is accepted.
 * A password is on no command line and in no environment: ssh asks a program that reads it from this process's memory.
 * What belongs to which command is told apart by a random word that no server can know.
 * The names in a command are quoted so that they mean themselves; one with the end of a line in it cannot be asked for.
 * What it writes is watched: a file that becomes larger than listed, or stops growing, ends the login.
"""

from __future__ import annotations

import os
import re
import resource
import secrets
import selectors
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO

from ted.errors import BuildError, TransferError, TrustError, UnreachableError
from ted_plugins.sources.listing import MAX_LINE_BYTES, Kind, Listed, parse_sftp
from ted_plugins.sources.secrets import scrubbed

MAX_LISTING_BYTES = 1 << 30
REQUEST_BYTES = 32 * 1024
REQUESTS = 64
UNSURE_BYTES = REQUEST_BYTES * REQUESTS
"""So much at the end of a file that was cut may have holes: that many bytes were on their way at once."""
_LISTING_WITHIN_S = 600.0
_MEMORY_BYTES = 4 << 30
"""sftp sorts a listing in memory, and has no bound of its own."""
_LOOK_S = 0.1
_SPOOL_BYTES = 1 << 20
_MAX_COMMAND_BYTES = 2000
"""sftp reads commands into 2048 bytes, and splits longer ones."""
_LINE = re.compile(rb"[-dlbcps][-rwxsStT]{9}")
_PLAIN = re.compile(rb"[A-Za-z0-9_/\x80-\xff]")


@dataclass(frozen=True)
class SftpLogin:
    """Where to log in, and how; ``password`` is never shown.

    Files that are not named are those ssh uses by itself.
    """

    host: str
    port: int | None = None
    username: str | None = None
    password: str | None = None
    key_file: str | None = None
    known_hosts: str | None = None
    ssh_config: str | None = None
    timeout_s: float = 60.0
    rate_bytes_s: int | None = None

    def __repr__(self) -> str:
        return f"SftpLogin({self.username}@{self.host}:{self.port})"

    def command(self) -> list[str]:
        """Return the words of the program; none of them is a secret."""
        timeout_s = max(1, int(self.timeout_s))
        options = {
            "BatchMode": "no" if self.password is not None else "yes", "NumberOfPasswordPrompts": "1",
            "StrictHostKeyChecking": "yes", "LogLevel": "ERROR", "ConnectTimeout": str(timeout_s),
            "ServerAliveInterval": str(max(1, timeout_s // 3)), "ServerAliveCountMax": "3",
            "ForwardAgent": "no", "ClearAllForwardings": "yes", "PermitLocalCommand": "no",
        }  # fmt: skip
        if self.username is not None:
            options["User"] = self.username
        if self.known_hosts is not None:
            options |= {"UserKnownHostsFile": _quoted_path(self.known_hosts), "GlobalKnownHostsFile": "/dev/null"}
        if self.key_file is not None:
            options |= {"IdentityFile": _quoted_path(self.key_file), "IdentitiesOnly": "yes"}
        words = ["sftp", *(["-F", self.ssh_config] if self.ssh_config is not None else [])]
        words += [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        words += ["-P", str(self.port)] if self.port is not None else []
        words += ["-l", str(max(1, self.rate_bytes_s * 8 // 1024))] if self.rate_bytes_s is not None else []
        words += ["-B", str(REQUEST_BYTES), "-R", str(REQUESTS), "-b", "-", "--"]
        return [*words, f"[{self.host}]" if ":" in self.host else self.host]


def unavailable() -> str | None:
    """Say why this cannot work on this machine; ``None`` when it can."""
    return None if shutil.which("sftp") else "the program sftp is missing (Debian: openssh-client)"


class SftpSession:
    """A login; for one thread at a time.

    Raises:
        BuildError: The server refuses the login, or does not do what is asked of it.
        TransferError: It does not answer now.
        TrustError: Its host key is not the known one.
    """

    def __init__(self, login: SftpLogin) -> None:
        if (reason := unavailable()) is not None:
            raise BuildError(reason, hint="install it where ted builds")
        self._login = login
        self._word = secrets.token_hex(16).encode()
        self._askpass = _Askpass(login.password) if login.password is not None else None
        self._buffer = b""
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "TZ": "UTC0"}
        environment |= self._askpass.environment if self._askpass is not None else {}
        self._sftp = subprocess.Popen(
            login.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
            start_new_session=True, bufsize=0,
        )  # fmt: skip
        with suppress(OSError):
            resource.prlimit(self._sftp.pid, resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        assert self._sftp.stdout is not None
        self._ready = selectors.DefaultSelector()
        self._ready.register(self._sftp.stdout, selectors.EVENT_READ)
        try:
            self._home = self._pwd()
        except BaseException:
            self.close()
            raise

    # -- what is there

    def absolute(self, path: bytes) -> bytes:
        """Return ``path`` from the top, where it was meant from the directory that the login begins in."""
        return path if path.startswith(b"/") else self._home.rstrip(b"/") + b"/" + path

    def look(self, path: bytes) -> Listed | None:
        """Return what is at ``path``, links followed; ``None`` when nothing is."""
        parent, _, name = path.rstrip(b"/").rpartition(b"/")
        if not name or not self._say(b"-cd %s" % quoted(path)):
            return Listed(name or b"-", Kind.DIRECTORY)
        self._enter(parent or b"/")
        lines = self._say(b"-ls -lan %s" % quoted(name))
        if len(lines) != 1 or not _LINE.match(lines[0]):
            return None
        listed = parse_sftp(lines[0])
        # of a link that leads nowhere sftp shows the link
        return None if listed is None or listed.kind is Kind.LINK else replace(listed, name=name)

    def real(self, directory: bytes) -> bytes:
        """Return the path of a directory without links."""
        self._enter(directory)
        return self._pwd()

    def entries(self, directory: bytes) -> Iterator[Listed]:
        """Return what a directory holds. All of it has come then: the login is free for something else."""
        self._enter(directory)
        spool = tempfile.SpooledTemporaryFile(_SPOOL_BYTES)  # noqa: SIM115 -- closed by _read
        try:
            self._ask(b"-ls -lan", spool, _LISTING_WITHIN_S)
        except BaseException:
            spool.close()
            raise
        return self._read(spool)

    def _read(self, spool: IO[bytes]) -> Iterator[Listed]:
        with spool:
            spool.seek(0)
            for line in iter(lambda: spool.readline(MAX_LINE_BYTES + 1), b""):
                if len(line) > MAX_LINE_BYTES:
                    raise BuildError(f"the server lists a line of more than {MAX_LINE_BYTES} bytes")
                if line.startswith((b"remote readdir", b"Couldn't", b"Can't ls")):
                    raise self._refused(line)
                listed = parse_sftp(line.removesuffix(b"\n"))
                if listed is not None:
                    yield listed

    def modified_at(self, path: bytes, size_bytes: int) -> int:
        """Return when a file was changed, in seconds since 1970.

        sftp has no command for it: it is asked to go on with a copy that is as long as the file already, which brings
        nothing but the time.

        Raises:
            TransferError: The file is not of that size (any more).
        """
        with tempfile.TemporaryDirectory(prefix="ted-sftp-") as directory:
            probe = f"{directory}/probe"
            with open(probe, "wb") as file:
                file.truncate(size_bytes)
            os.utime(probe, (0, 0))
            self._get(path, probe, size_bytes, go_on=True)
            status = os.stat(probe)
            if status.st_size != size_bytes:
                raise TransferError(f"{self._where}: a file changed while it was looked at")
            return int(status.st_mtime)

    def _enter(self, directory: bytes) -> None:
        for line in self._say(b"-cd %s" % quoted(directory)):
            raise self._refused(line)

    def _pwd(self) -> bytes:
        prefix = b"Remote working directory: "
        for line in self._say(b"-pwd"):
            if line.startswith(prefix):
                return line.removeprefix(prefix)
        raise TransferError(f"{self._where}: sftp does not say where it is")

    # -- what is in it

    def download(
        self, path: bytes, place: str, size_bytes: int, *, go_on: bool, watch: Callable[[int], object]
    ) -> None:
        """Write a file to ``place``, with its time; it is of that size then.

        Args:
            path: The file.
            place: File on this machine that is there already.
            size_bytes: Its size as it was listed.
            go_on: Add what is missing to what is there.
            watch: Told how much is there, again and again; may raise to end it.
        """
        self._get(path, place, size_bytes, go_on=go_on, watch=watch)
        if (came := os.stat(place).st_size) != size_bytes:
            raise TransferError(f"{self._where}: {came} of {size_bytes} bytes came")

    def _get(
        self, path: bytes, place: str, size_bytes: int, *, go_on: bool, watch: Callable[[int], object] | None = None
    ) -> None:
        command = b"-get %s %s %s" % (b"-ap" if go_on else b"-p", quoted(path), quoted(os.fsencode(place)))
        watched = _Watched(place, size_bytes, self._login.timeout_s, watch, self._where)
        for line in self._say(command, watched):
            if not (line.startswith((b"Fetching ", b"Resuming ")) or line.endswith(b" was not modified")):
                raise self._refused(line)

    # -- talking with the program

    @property
    def _where(self) -> str:
        return self._login.host if self._login.port is None else f"{self._login.host}:{self._login.port}"

    def _say(self, command: bytes, watched: _Watched | None = None) -> list[bytes]:
        """Return the lines that a command made sftp print."""
        with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
            self._ask(command, spool, None if watched is not None else self._login.timeout_s * 2, watched)
            spool.seek(0)
            return spool.read(_SPOOL_BYTES).splitlines()

    def _ask(self, command: bytes, spool: IO[bytes], within_s: float | None, watched: _Watched | None = None) -> None:
        if len(command) > _MAX_COMMAND_BYTES:
            raise BuildError(f"{self._where}: a path is too long for sftp", hint="leave it out with `exclude`")
        self._write(command + b"\n#" + self._word + b"\n")
        self._read_line(within_s, watched)  # the command itself, as sftp repeats it
        size = 0
        while (line := self._read_line(within_s, watched)) != b"sftp> #" + self._word + b"\n":
            size += len(line)
            if size > MAX_LISTING_BYTES:
                raise BuildError(f"{self._where}: a listing of more than {MAX_LISTING_BYTES} bytes")
            spool.write(line)

    def _write(self, data: bytes) -> None:
        assert self._sftp.stdin is not None
        try:
            self._sftp.stdin.write(data)
        except OSError:
            raise self._ended(b"") from None

    def _read_line(self, within_s: float | None, watched: _Watched | None) -> bytes:
        began_s = time.monotonic()
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_LINE_BYTES:
                raise BuildError(f"{self._where}: a line of more than {MAX_LINE_BYTES} bytes")
            if not self._ready.select(_LOOK_S if watched is not None else 1.0):
                if watched is not None:
                    watched.look()
                elif within_s is not None and time.monotonic() - began_s > within_s:
                    raise UnreachableError(f"{self._where}: no answer in time")
                continue
            assert self._sftp.stdout is not None
            piece = os.read(self._sftp.stdout.fileno(), 65536)
            if not piece:
                raise self._ended(self._buffer)
            self._buffer += piece
        line, self._buffer = self._buffer[: end + 1], self._buffer[end + 1 :]
        if self._word not in line and b"sftp> " not in line[:6]:
            self._said = (self._said + line)[-2000:]
        return line

    _said = b""
    """The end of what it printed, for the message when it ends."""

    def _ended(self, last: bytes) -> Exception:
        text = self._printable(self._said + last)
        if "ost key" in text or "HOST IDENTIFICATION" in text:
            return TrustError(f"{self._where}: its host key is not known: {text}",
                              hint="put the key into known_hosts, from a source you trust")  # fmt: skip
        if "ermission denied" in text or "Too many authentication failures" in text:
            return BuildError(f"{self._where}: the login is refused: {text}",
                              hint="check username, key_file and password of the server")  # fmt: skip
        return UnreachableError(f"{self._where}: the connection ended: {text or 'without a word'}")

    def _refused(self, line: bytes) -> BuildError:
        return BuildError(f"{self._where}: {self._printable(line)}", hint="may this login read it, is it still there?")

    def _printable(self, raw: bytes) -> str:
        text = re.sub(r"[^ -~]+", " ", raw.decode("ascii", "replace"))[-400:].strip()
        return scrubbed(text, (self._login.password,))

    def close(self) -> None:
        """End the program and its ssh."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._sftp.pid, signal.SIGKILL)
        self._sftp.wait()
        self._tidy()

    def quit(self) -> None:
        """Let it say good-bye, and end it."""
        assert self._sftp.stdin is not None
        with suppress(OSError):
            self._sftp.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._sftp.wait(2)
        self.close()

    def _tidy(self) -> None:
        self._ready.close()
        for pipe in (self._sftp.stdin, self._sftp.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        if self._askpass is not None:
            self._askpass.close()


class _Watched:
    """A file that another program writes."""

    def __init__(
        self, place: str, size_bytes: int, timeout_s: float, watch: Callable[[int], object] | None, where: str
    ) -> None:
        self._place, self._size_bytes, self._timeout_s = place, size_bytes, timeout_s
        self._watch, self._where = watch, where
        self._grew_s, self._there = time.monotonic(), -1

    def look(self) -> None:
        """See how much is there.

        Raises:
            TransferError: It is more than was listed, or has not grown for as long as the timeout.
        """
        there, now_s = os.stat(self._place).st_size, time.monotonic()
        if there > self._size_bytes:
            raise TransferError(f"{self._where}: more than the {self._size_bytes} bytes that were listed")
        if there != self._there:
            self._grew_s, self._there = now_s, there
        elif now_s - self._grew_s > self._timeout_s:
            raise UnreachableError(f"{self._where}: nothing came for {self._timeout_s:.0f} s")
        if self._watch is not None:
            self._watch(there)


_ASKPASS = """\
#!/bin/sh
parent() {{ sed -n 's/^PPid:[^0-9]*//p' "/proc/$1/status"; }}
[ "$(parent "$(parent $PPID)")" = {pid} ] || exit 1
exec cat /proc/{pid}/fd/{fd}
"""
"""Whoever asks must be the ssh of an sftp of ours: the ssh to a jump host, a child of that ssh, is told nothing."""


class _Askpass:
    """Answers ssh's question for the password: from memory, on no command line, in no environment, in no file."""

    def __init__(self, password: str) -> None:
        self._fd = os.memfd_create("ted-askpass", os.MFD_CLOEXEC)
        os.write(self._fd, password.encode() + b"\n")
        self._directory = tempfile.mkdtemp(prefix="ted-askpass-")
        script = f"{self._directory}/askpass"
        with open(script, "w", encoding="ascii") as file:
            file.write(_ASKPASS.format(pid=os.getpid(), fd=self._fd))
        os.chmod(script, 0o700)
        self.environment = {"SSH_ASKPASS": script, "SSH_ASKPASS_REQUIRE": "force"}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Forget it."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1
        shutil.rmtree(self._directory, ignore_errors=True)


def quoted(name: bytes) -> bytes:
    """Return a path as a word of sftp's commands that means itself: no pattern, no option, no comment.

    Raises:
        BuildError: It has the end of a line in it.
    """
    if any(c in name for c in b"\n\r\0"):
        raise BuildError("sftp cannot ask for a name with the end of a line in it", hint="rename it at the server")
    word = b"".join(bytes([c]) if _PLAIN.match(bytes([c])) else b"\\" + bytes([c]) for c in name)
    return b"./" + word if name.startswith(b"-") or not name else word


def _quoted_path(path: str) -> str:
    """Return a path as an option of ssh has it: blanks kept, ``%`` meaning itself."""
    return '"' + path.replace("%", "%%") + '"'
