"""The agent's extractions: each in a process of its own, forked from one that has loaded what they need.

Rules:
 * The process they are forked from is itself forked when the agent starts and has one thread only: no lock can be held
   in it that nobody would ever let go. It shares the agent's memory, and does nothing but wait.
 * An extraction is ``ted extract`` as anybody would call it: it reads configuration, trust and plugins itself.
 * The process ends with the agent and begins nothing after that. An extraction under way is left to go on; the next
   agent's waits for its locks.
 * Where the process is gone, or a package was installed since it was forked, a new interpreter does the same, and takes
   longer to start.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import gc
import json
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from io import FileIO
from typing import Any, NoReturn

import ted

log = logging.getLogger("ted.extractor")

NAME = "ted-extractor"
"""What the system's lists of processes call it."""
MAX_REQUEST_BYTES = 64 * 1024
_SET_NAME = 15  # linux/prctl.h
_STANDARD_ERROR = 2
_PACKAGES = ("site-packages", "dist-packages")
"""In other directories of the path files come and go for other reasons."""

Main = Callable[[list[str]], None]
"""The command line; it may end the process."""


class Extractor:
    """Runs commands for the agent, and returns what they print.

    Args:
        load: Returns the command line, with what an extraction needs imported.
    """

    def __init__(self, load: Callable[[], Main]) -> None:
        self._load = load
        self._requests: socket.socket | None = None
        self._pid = 0
        self._installed: list[int] = []

    def start(self) -> None:
        """Fork the process that extractions are forked from; a process with further threads has none."""
        if threading.active_count() > 1:
            log.warning("extractions take longer to start: this process has further threads")
            return
        _open_standard_files()
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()  # else it would be written twice
        gc.freeze()  # what is there is shared for as long as neither touches it
        self._installed = _installed()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._pid = os.fork()
        except OSError as error:
            log.warning("extractions take longer to start: %s", error)
            ours.close()
            theirs.close()
            return
        if self._pid == 0:
            ours.close()
            _serve(theirs, self._load)
        theirs.close()
        ours.setblocking(False)
        self._requests = ours

    async def run(self, words: list[str]) -> bytes:
        """Run a command and return what it printed, once it has ended; nothing when it was killed.

        Raises:
            OSError: It cannot be started.
        """
        if self._is_of_use():
            output, given = os.pipe()
            with open(output, "rb", buffering=0) as pipe:
                try:
                    is_taken = self._hand_over(words, given)
                finally:
                    os.close(given)
                if is_taken and ((said := await _read(pipe)) or self._is_of_use()):
                    return said
        return await _by_new_interpreter(words)

    def _is_of_use(self) -> bool:
        """Return whether extractions can be forked; where they no longer can, the process is let go."""
        if self._requests is None:
            return False
        if _installed() != self._installed:
            self._let_go("a package was installed or removed since this agent started")
            return False
        try:
            self._requests.recv(1)
        except BlockingIOError:
            return True
        except OSError:
            pass
        self._let_go(f"{NAME} is gone")
        return False

    def _hand_over(self, words: list[str], output: int) -> bool:
        """Ask for a process that runs a command; return whether the request was taken."""
        assert self._requests is not None
        try:
            socket.send_fds(self._requests, [json.dumps(words).encode()], [output])
        except OSError:  # it ended this moment, or is behind by very many
            return False
        return True

    def _let_go(self, why: str) -> None:
        assert self._requests is not None
        log.warning("extractions take longer to start until the agent is started anew: %s", why)
        self._requests.close()
        self._requests = None
        threading.Thread(target=os.waitpid, args=(self._pid, 0), daemon=True).start()


def _open_standard_files() -> None:
    """See to it that no pipe or socket gets the number of a standard file that was closed."""
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= _STANDARD_ERROR:
        pass
    os.close(fd)


def _installed() -> list[int]:
    """Return what changes whenever a package is installed, removed or replaced: times (ns) of where they lie."""
    found = []
    for path in (*(each for each in sys.path if each.endswith(_PACKAGES)), str(ted.__file__)):
        with suppress(OSError):
            found.append(os.stat(path).st_mtime_ns)
    return found


async def _by_new_interpreter(words: list[str]) -> bytes:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ted", *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    return (await process.communicate())[0]


async def _read(pipe: FileIO) -> bytes:
    """Return all that comes out of a pipe, until its other end is closed."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), pipe
    )
    try:
        return await reader.read()
    finally:
        transport.close()


# --- the process that is forked from -------------------------------------------------------------------------------


def _serve(requests: socket.socket, load: Callable[[], Main]) -> NoReturn:
    """Fork a process for each command that is asked for, until the agent is gone; never returns."""
    try:
        # from a terminal it comes to all: the end of the agent ends this
        interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, _bury)
        os.environ.pop("NOTIFY_SOCKET", None)  # to the service manager only the agent speaks
        _take_name()
        main = load()
        gc.freeze()
        while (found := _next(requests)) is not None:
            words, output = found
            try:
                if os.fork() == 0:
                    signal.signal(signal.SIGINT, interrupted)
                    _run(main, words, output, requests)
            except OSError as error:
                log.error("an extraction cannot be started: %s", error.strerror)
            os.close(output)
    except BaseException:  # whatever it is must not climb into what the agent would do next
        log.exception("%s ends", NAME)
    finally:
        os._exit(0)


def _bury(_number: int, _frame: object) -> None:
    """Take note of whoever ended; what they said is all that the agent wants to know."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _next(requests: socket.socket) -> tuple[list[str], int] | None:
    """Return the next command and where its output goes, ``None`` when nobody waits for it any more."""
    said, fds, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 1)
    end = select.poll()
    end.register(requests, 0)  # what is always told: that the other side is gone
    return (json.loads(said), fds[0]) if fds and not end.poll(0) else None


def _take_name() -> None:
    with suppress(OSError, AttributeError):  # another C library, or another system
        ctypes.CDLL(None).prctl(_SET_NAME, NAME.encode(), 0, 0, 0)


def _run(main: Main, words: list[str], output: int, requests: socket.socket) -> NoReturn:
    """Run a command in this process, which was forked for it, and end as an interpreter does; never returns."""
    ending: Any = atexit
    ending._clear()  # noqa: SLF001 -- what the agent's modules would do at their end is not this process's
    try:
        requests.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        complaints = os.dup(_STANDARD_ERROR)
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd, use in enumerate((nothing, output, nothing)):
            os.dup2(use, fd)
        os.close(output)
        os.close(nothing)
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 -- for as long as this process lives
        try:
            main(words)
        except Exception:
            os.dup2(complaints, _STANDARD_ERROR)
            log.exception("ted %s", " ".join(words))
        finally:
            _await_threads()
            ending._run_exitfuncs()  # noqa: SLF001 -- as multiprocessing does in what it forks
            sys.stdout.flush()
    finally:
        os._exit(0)


def _await_threads() -> None:
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
