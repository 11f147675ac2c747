"""An FTP server that lies, as it is told to: what no real server can be made to do."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from typing import Self

Line = bytes


class HostileFtp:
    """Serves LIST (no MLSD) and RETR of what it was given.

    Args:
        listing: Lines of LIST of every directory; may be endless.
        content: What RETR sends; may be endless.
        features: Lines of FEAT.
        answers: Instead of its own answer to a command.
        pasv_host: What PASV says, commas and all.
        stall_after: Bytes of content after which nothing more comes.
        cut_after: Bytes of content after which every connection ends, once.
    """

    def __init__(
        self,
        *,
        listing: Callable[[str], Iterable[Line]] = lambda _directory: [],
        content: Callable[[str], Iterable[bytes]] = lambda _path: [],
        features: tuple[str, ...] = ("MDTM", "SIZE", "REST STREAM"),
        answers: dict[str, str | Callable[[], Iterator[bytes]]] | None = None,
        pasv_host: str = "127,0,0,1",
        stall_after: int | None = None,
        times: str = "20010909014641",
    ) -> None:
        self._listing, self._content, self._features = listing, content, features
        self._answers, self._pasv_host, self._stall_after, self._times = answers or {}, pasv_host, stall_after, times
        self.commands: list[str] = []
        self.sent_bytes = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"ftp://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._ending.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(5)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(0.2)
        directory, data = "/", None
        with connection, ExitStack() as opened, suppress(OSError):
            connection.sendall(b"220 hello\r\n")
            for line in self._lines(connection):
                verb, _, argument = line.partition(" ")
                self.commands.append(line)
                if verb in self._answers:
                    self._answer(connection, self._answers[verb])
                elif verb == "CWD":
                    if argument.endswith(".bin"):
                        connection.sendall(b"550 no directory\r\n")
                        continue
                    directory = argument
                    connection.sendall(b"250 ok\r\n")
                elif verb == "PASV":
                    data = opened.enter_context(socket.create_server(("127.0.0.1", 0)))
                    data.settimeout(5)
                    port = data.getsockname()[1]
                    text = f"227 entering passive mode ({self._pasv_host},{port >> 8},{port & 255})\r\n"
                    connection.sendall(text.encode())
                elif verb in {"LIST", "RETR"} and data is not None:
                    connection.sendall(b"150 here it comes\r\n")
                    lines = (line + b"\r\n" for line in self._listing(directory))
                    self._send(data, lines if verb == "LIST" else self._content(argument))
                    connection.sendall(b"226 done\r\n")
                else:
                    connection.sendall(self._plain(verb, directory))

    def _plain(self, verb: str, directory: str) -> bytes:
        features = "".join(f" {feature}\r\n" for feature in self._features)
        return {
            "USER": b"230 come in\r\n", "PWD": f'257 "{directory}"\r\n'.encode(), "TYPE": b"200 ok\r\n",
            "FEAT": f"211-features\r\n{features}211 end\r\n".encode(), "MDTM": f"213 {self._times}\r\n".encode(),
            "SIZE": b"213 5\r\n", "REST": b"350 ok\r\n", "QUIT": b"221 bye\r\n",
        }.get(verb, b"502 unknown\r\n")  # fmt: skip

    def _answer(self, connection: socket.socket, answer: str | Callable[[], Iterator[bytes]]) -> None:
        for piece in [f"{answer}\r\n".encode()] if isinstance(answer, str) else answer():
            if self._ending.is_set():
                return
            connection.sendall(piece)

    def _lines(self, connection: socket.socket) -> Iterator[str]:
        held = b""
        while not self._ending.is_set():
            try:
                piece = connection.recv(4096)
            except TimeoutError:
                continue
            if not piece:
                return
            held += piece
            while b"\n" in held:
                line, held = held.split(b"\n", 1)
                yield line.decode("latin-1").rstrip("\r")

    def _send(self, listener: socket.socket, pieces: Iterable[bytes]) -> None:
        with listener:
            connection, _ = listener.accept()
        sent = 0
        with connection:
            connection.settimeout(5)
            for piece in pieces:
                if self._ending.is_set():
                    return
                connection.sendall(piece)
                sent += len(piece)
                self.sent_bytes += len(piece)
                while self._stall_after is not None and sent >= self._stall_after and not self._ending.is_set():
                    time.sleep(0.05)


def file_line(name: bytes, size: int = 5, stamp: bytes = b"Sep  9  2001") -> Line:
    return b"-rw-r--r--    1 ftp      ftp      %12d %s %s" % (size, stamp, name)


def directory_line(name: bytes) -> Line:
    return b"drwxr-xr-x    2 ftp      ftp          4096 Sep  9  2001 " + name


def link_line(name: bytes, target: bytes) -> Line:
    return b"lrwxrwxrwx    1 ftp      ftp      %12d Sep  9  2001 %s -> %s" % (len(target), name, target)
