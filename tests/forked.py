"""``ted`` as a process of its own without the start of an interpreter: a process that has imported ted forks each.

Most of what a short command costs is its imports, and the tests give thousands of commands. What is forked is a process
like any other: memory, signals, working directory, environment and exit code are its own.

One server for each process that asks. It has no thread and no connection, ends with whoever asked, and forks twice: the
first child waits for the second, which is the command, and says how it ended.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from typing import IO, Any

MOST_BYTES = 128 * 1024
_IMPORTED = ("ted.agent.service", "ted.plugins", "ted.topology.inventory", "tabulate")


class Forked:
    """A ``ted`` process; as far as it goes, what ``subprocess.Popen`` is."""

    def __init__(self, words: list[str], *, stdin: int, stdout: int, stderr: int) -> None:
        reply, theirs = os.pipe()
        request = {"words": words, "env": dict(os.environ), "cwd": os.getcwd()}
        try:
            socket.send_fds(_server(), [json.dumps(request).encode()], [stdin, stdout, stderr, theirs])
        finally:
            os.close(theirs)
        self._reply: IO[bytes] = os.fdopen(reply, "rb", buffering=0)
        self.args = ["ted", *words]
        self.pid = int(self._line())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code if it has ended."""
        if self.returncode is None and self._has_ended(0):
            self.returncode = int(self._line())
            self._reply.close()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait until it has ended; return its exit code.

        Raises:
            subprocess.TimeoutExpired: It has not, within ``timeout`` seconds.
        """
        if self.returncode is None and not self._has_ended(timeout):
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        code = self.poll()
        assert code is not None
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9."""
        self.send_signal(signal.SIGKILL)

    def _has_ended(self, within_s: float | None) -> bool:
        poll = select.poll()  # select knows no descriptor beyond 1023
        poll.register(self._reply, select.POLLIN)
        return bool(poll.poll(None if within_s is None else within_s * 1000))

    def _line(self) -> bytes:
        line = self._reply.readline()
        if not line:
            raise RuntimeError(f"{self.args}: nothing was forked")
        return line


def run(words: list[str], stdin: str | None, timeout_s: float) -> subprocess.CompletedProcess[str]:
    """Run a command to its end.

    Raises:
        subprocess.TimeoutExpired: It takes longer; it is killed.
    """
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write((stdin or "").encode())
        given.seek(0)
        process = Forked(words, stdin=given.fileno(), stdout=out.fileno(), stderr=err.fileno())
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
        said = []
        for file in (out, err):
            file.seek(0)
            said.append(file.read().decode(errors="surrogateescape"))
    return subprocess.CompletedProcess(process.args, code, *said)


_mine: dict[int, socket.socket] = {}


def _server() -> socket.socket:
    """Return the way to this process's server; started when it is first asked for."""
    if os.getpid() not in _mine:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MOST_BYTES)
        server = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                                  stdin=subprocess.DEVNULL)  # fmt: skip
        theirs.close()
        atexit.register(_end, ours, server)
        _mine[os.getpid()] = ours
    return _mine[os.getpid()]


def _end(ours: socket.socket, server: subprocess.Popen[bytes]) -> None:
    ours.close()
    server.wait()


# -- the server


def _serve(requests: socket.socket) -> None:
    from ted.cli.main import COMMANDS

    for name in (*_IMPORTED, *(f"ted.cli.{command}_cmd" for command in COMMANDS)):
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, fds, _, _ = socket.recv_fds(requests, MOST_BYTES, 4)
        if not data:
            return
        if os.fork() == 0:
            requests.close()
            _watch(json.loads(data), fds)
        for fd in fds:
            os.close(fd)


def _watch(request: dict[str, Any], fds: list[int]) -> None:
    """Fork the command, say its process id, wait for it, and say how it ended."""
    *standard, reply = fds
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    began = os.fork()
    if began == 0:
        os.close(reply)
        _become(request, standard)
    for fd in standard:
        os.close(fd)
    with suppress(BrokenPipeError):
        os.write(reply, b"%d\n" % began)
        _, status = os.waitpid(began, 0)
        os.write(reply, b"%d\n" % os.waitstatus_to_exitcode(status))
    os._exit(0)


def _become(request: dict[str, Any], standard: list[int]) -> None:
    """Be the command; never returns."""
    from ted.cli.main import main

    for number, fd in enumerate(standard):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    time.tzset()
    sys.argv = ["ted", *request["words"]]
    main()
    sys.exit()


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
