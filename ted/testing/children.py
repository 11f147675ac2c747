"""Work in a process of its own, ended and watched from outside: killed, interrupted, measured, its writes listed."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

from ted.errors import PluginError, TedError

TIME_LIMIT_S = 120.0


@dataclass(frozen=True)
class Raised:
    """An error of another process."""

    name: str
    message: str
    hint: str | None
    is_ted: bool
    """Of the tree of ``ted.errors``, and not a fault of the plugin."""
    by_plugin: bool
    """Raised in the plugin's own lines."""
    text: str
    """Its traceback and causes."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    value: Any = None
    raised: Raised | None = None
    signal: int | None = None
    late: bool = False
    """It had to be killed, for it did not end in time."""

    @property
    def well(self) -> bool:
        """Whether it came to its end."""
        return self.raised is None and self.signal is None and not self.late


def raised_by(error: BaseException, files: Sequence[str] = ()) -> Raised:
    """Return an error in a shape that travels between processes."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1].filename if frames else ""
    return Raised(
        type(error).__name__, getattr(error, "message", None) or str(error), getattr(error, "hint", None),
        isinstance(error, TedError) and not isinstance(error, PluginError), is_of(last, files),
        "".join(traceback.format_exception(error)),
    )  # fmt: skip


def in_child(work: Callable[[], Any], *, files: Sequence[str] = (), time_limit_s: float = TIME_LIMIT_S) -> Ended:
    """Run ``work`` in a process of its own; what it returns must be picklable. ``files`` are the plugin's."""
    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, about threads
        pid = os.fork()
    if pid == 0:
        _child(work, writing, files)
    os.close(writing)
    until = time.monotonic() + time_limit_s
    data = b""
    while True:
        left = until - time.monotonic()
        if left <= 0 or not select.select([reading], [], [], left)[0]:
            os.kill(pid, signal.SIGKILL)
            break
        piece = os.read(reading, 1 << 16)
        if not piece:
            break
        data += piece
    os.close(reading)
    late = time.monotonic() >= until
    status = _wait(pid, until)
    if status is None:
        late = True
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    if late:
        return Ended(late=True)
    if os.WIFSIGNALED(status):
        return Ended(signal=os.WTERMSIG(status))
    if not data:
        return Ended(raised=Raised("SystemExit", f"the process ended with {os.WEXITSTATUS(status)}", None, False, True,
                                   "it ended without a word"))  # fmt: skip
    ended: Ended = pickle.loads(data)  # noqa: S301 -- of our own child
    return ended


def _wait(pid: int, until: float) -> int | None:
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if time.monotonic() > until + 1:
            return None
        time.sleep(0.002)


def _child(work: Callable[[], Any], writing: int, files: Sequence[str]) -> None:
    """Never returns."""
    try:
        with contextlib.suppress(ValueError, OSError):
            signal.setitimer(signal.ITIMER_REAL, 0)  # a test runner's alarm is not ours
        for each in (signal.SIGALRM, signal.SIGTERM):  # what a test runner does about these is not the plugin's
            signal.signal(each, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            ended = Ended(work())
        except BaseException as error:  # noqa: BLE001 -- nothing may return into the parent's tests
            ended = Ended(raised=raised_by(error, files))
        try:
            data = pickle.dumps(ended)
        except Exception as error:  # noqa: BLE001
            data = pickle.dumps(Ended(raised=raised_by(error, files)))
        with open(writing, "wb") as file:
            file.write(data)
    finally:
        os._exit(0)


# --- the plugin's own lines ----------------------------------------------------------------------------------------


def files_of(plugin: object) -> list[str]:
    """Return what a file of the plugin's code begins with: its module, and its package where that is its own."""
    name = plugin.__name__ if isinstance(plugin, ModuleType) else type(plugin).__module__
    module = sys.modules.get(name)
    path = getattr(module, "__file__", None) or ""
    package = sys.modules.get(name.partition(".")[0])
    above = getattr(package, "__file__", None)
    own = package is not None and package.__name__ not in ("ted", "ted_plugins")
    if own and above and os.path.basename(above) == "__init__.py":
        return [path, os.path.dirname(above) + os.sep]
    return [path]


def is_of(filename: str, files: Sequence[str]) -> bool:
    """Return whether a file of code is the plugin's."""
    return any(each and (filename == each or (each.endswith(os.sep) and filename.startswith(each))) for each in files)


Line = tuple[str, int]


def at_lines(files: Sequence[str], call: Callable[[Line], None]) -> Callable[..., Any]:
    """Return a trace function that calls ``call`` before each of the plugin's lines when it is first reached."""
    seen: set[Line] = set()

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if not is_of(frame.f_code.co_filename, files) or (event == "call" and not _in_hook(frame, files)):
            return None
        if event == "line":
            line = (frame.f_code.co_filename, frame.f_lineno)
            if line not in seen:
                seen.add(line)
                call(line)
        return trace

    return trace


def _in_hook(frame: FrameType | None, files: Sequence[str]) -> bool:
    """Return whether one of the plugin's hooks is what runs; its models are also asked by others."""
    while frame is not None:
        caller = "" if frame.f_back is None else str(frame.f_back.f_globals.get("__name__"))
        is_hook = frame.f_code.co_name.startswith("ted_") or caller.startswith("pluggy.")  # specname: any name
        if is_hook and is_of(frame.f_code.co_filename, files):
            return True
        frame = frame.f_back
    return False


@contextlib.contextmanager
def traced(files: Sequence[str], call: Callable[[Line], None]) -> Iterator[None]:
    """Call ``call`` before each of the plugin's lines, meanwhile; what it raises is raised at that line."""
    trace = at_lines(files, call)
    threading.settrace(trace)
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)
        threading.settrace(None)


# --- what it does to the machine -----------------------------------------------------------------------------------

_WRITING = {
    "os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1, "os.link": 2, "os.symlink": 2, "os.chmod": 1,
    "os.chown": 1, "os.truncate": 1, "os.utime": 1, "os.setxattr": 1, "os.removexattr": 1, "shutil.rmtree": 1,
}  # fmt: skip
_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
STARTING = frozenset({"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn"})


def watch(call: Callable[[str, tuple[Any, ...]], None]) -> None:
    """Tell of each thing this process does, from now to its end (``sys.addaudithook`` knows no way back)."""
    busy = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy or (event != "open" and event not in _WRITING and event not in STARTING):
            return
        busy = True
        try:
            call(event, arguments)
        finally:
            busy = False

    sys.addaudithook(hook)


def written_by(event: str, arguments: tuple[Any, ...]) -> Iterator[str]:
    """Yield the absolute paths that an event writes to."""
    paths: Sequence[Any] = ()
    if event == "open":
        mode, flags = arguments[1], arguments[2]
        writes = any(each in mode for each in "wax+") if isinstance(mode, str) else bool((flags or 0) & _FLAGS)
        paths = arguments[:1] if writes else ()
    elif event in _WRITING:
        paths = arguments[: _WRITING[event]]
        if event in ("os.link", "os.symlink"):
            paths = paths[1:]
    for path in paths:
        if isinstance(path, str | bytes | os.PathLike):
            text = os.fsdecode(path)
            if text.startswith("/"):
                yield os.path.normpath(text)


def called_from(files: Sequence[str]) -> bool:
    """Return whether the plugin's code is what runs now."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None:
        if is_of(frame.f_code.co_filename, files):
            return True
        frame = frame.f_back
    return False


def peak_bytes_of(work: Callable[[], Any]) -> int:
    """Return by how much the memory of this process grew at most while it did ``work``."""
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_kib("VmRSS")
    work()
    return (_status_kib("VmHWM") - before) * 1024


def _status_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def started_since(mark: str) -> list[str]:
    """Return the programs that run now with ``TED_TRIAL=mark`` in their environment, but this one."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        if int(directory.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if f"TED_TRIAL={mark}".encode() in (directory / "environ").read_bytes().split(b"\0"):
                if " Z " in (directory / "stat").read_text():
                    continue
                found.append((directory / "cmdline").read_bytes().split(b"\0")[0].decode("utf-8", "replace"))
    return found


def patiently_none(look: Callable[[], list[str]], within_s: float) -> list[str]:
    """Wait until ``look`` finds nothing more; return what it still finds."""
    until = time.monotonic() + within_s
    while found := look():
        if time.monotonic() > until:
            return found
        time.sleep(0.02)
    return []


def told_by_os(event: str, arguments: tuple[Any, ...]) -> tuple[str, str]:
    """Return the words and the environment of a process that an event of ``STARTING`` starts."""
    own = repr(dict(os.environ))
    if event == "subprocess.Popen":
        words, environment = arguments[1], arguments[3]
        return repr(words), own if environment is None else repr(dict(environment))
    if event == "os.system":
        return repr(arguments[0]), own
    environment = arguments[2] if len(arguments) > 2 else None
    return repr(arguments[:2]), own if environment is None else repr(environment)
