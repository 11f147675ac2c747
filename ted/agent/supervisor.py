"""A background agent where no service manager runs: one process that starts the agent again when it dies.

Rules:
 * ``start`` returns when the agent answers; the two processes outlive the shell, the play and the login.
 * The supervisor holds ``.ted/supervisor.lock``; the agent holds ``.ted/agent.lock``. Locks of dead processes are free,
   so a stale process number is never believed.
 * An agent that dies is started again, at once the first time, then after 1, 2, 4 ... 30 seconds; one that lived
   a minute starts the count anew.
 * An agent whose supervisor was killed works on; the next ``start`` ends it and starts one under a supervisor.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ted.agent.ask import call_agent
from ted.agent.locks import hold_lock, lock_owner
from ted.config import NodeConfig
from ted.errors import AgentError, TedError

log = logging.getLogger("ted.supervisor")

LONGEST_PAUSE_S = 30.0
LIVED_S = 60.0
START_WITHIN_S = 30.0
LIVES = 3
STOP_WITHIN_S = 15.0
MAX_LOG_BYTES = 10 * 1024 * 1024


def start(config: NodeConfig) -> bool:
    """Make sure that an agent runs under a supervisor; return whether one had to be started.

    Raises:
        AgentError: It did not come up; the end of its log is told.
    """
    state = config.working.state
    state.mkdir(parents=True, exist_ok=True)
    if lock_owner(state, "supervisor.lock") is not None:
        _wait_until_it_answers(config)
        return False
    orphan = lock_owner(state, "agent.lock")
    if orphan is not None:
        _end(orphan, state, "agent.lock")
    log_path = state / "agent.log"
    _rotate(log_path)
    begun = log_path.stat().st_size if log_path.exists() else 0
    command = [sys.executable, "-m", "ted", "--config", str(config.config_directory), "agent", "supervise"]
    with log_path.open("ab") as out:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd="/")
    _wait_until_it_answers(config, begun)
    return True


def stop(config: NodeConfig) -> bool:
    """End supervisor and agent; return whether there was one."""
    state = config.working.state
    ended = False
    for name in ("supervisor.lock", "agent.lock"):
        pid = lock_owner(state, name)
        if pid is not None:
            _end(pid, state, name)
            ended = True
    return ended


def status(config: NodeConfig) -> dict[str, Any]:
    """Return ``{"running", "supervised", "pid", "supervisor_pid", "port", "outdated"}``.

    ``outdated``: the agent runs with settings that ``node.yml`` has no more, limits apart.
    """
    state = config.working.state
    supervisor, agent = lock_owner(state, "supervisor.lock"), lock_owner(state, "agent.lock")
    answers = None
    if agent is not None:
        with suppress(TedError):
            answers = call_agent(state, "status", timeout_s=5)
    return {"node": config.node, "running": answers is not None, "supervised": supervisor is not None,
            "pid": agent, "supervisor_pid": supervisor, "port": config.port,
            "outdated": bool(answers and answers.get("outdated", True))}  # fmt: skip


def supervise(config: NodeConfig) -> None:
    """Run the agent as a child, again and again, until SIGTERM."""
    hold_lock(config.working.state, "supervisor.lock")
    child: subprocess.Popen[bytes] | None = None
    stopping = False

    def end(_number: int, _frame: Any) -> None:
        nonlocal stopping
        stopping = True
        if child is not None:
            child.terminate()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    failures = 0
    while not stopping:
        started_s = time.monotonic()
        child = subprocess.Popen(
            [sys.executable, "-m", "ted", "--config", str(config.config_directory), "agent"],
            stdin=subprocess.DEVNULL, close_fds=True,
        )  # fmt: skip
        if stopping:  # the signal came between the check and the start
            child.terminate()
        child.wait()
        if stopping:
            break
        if time.monotonic() - started_s > LIVED_S:
            failures = 0
        pause_s = min(2.0 ** (failures - 1), LONGEST_PAUSE_S) if failures else 0.0
        failures += 1
        log.warning("%s (%d), again in %g s", _ended(config.node), child.returncode, pause_s)
        _rotate(config.working.state / "agent.log")
        until_s = time.monotonic() + pause_s
        while not stopping and time.monotonic() < until_s:
            time.sleep(0.1)


def _wait_until_it_answers(config: NodeConfig, begun: int | None = None) -> None:
    """Return when the agent answers.

    Args:
        config: Its node.
        begun: Bytes of its log before this start: an agent that ended ``LIVES`` times since will not come up.
    """
    state = config.working.state
    deadline_s = time.monotonic() + START_WITHIN_S
    while True:
        try:
            call_agent(state, "status", timeout_s=5)
            return
        except TedError as error:
            log_path = state / "agent.log"
            died = begun is not None and _ends_since(log_path, begun, config.node) >= LIVES
            if died or time.monotonic() > deadline_s:
                why = f"ended {LIVES} times" if died else f"did not come up within {START_WITHIN_S:g} s"
                said = _cause(log_path, config.node) if died else _tail(log_path)
                raise AgentError(f"the agent of {config.node} {why}: {said}",
                                 hint=f"mend what it says, it is tried again by itself; its log is {log_path}"
                                 ) from error  # fmt: skip
        time.sleep(0.1)


def _ends_since(log_path: Path, begun: int, node: str) -> int:
    """Return how often the supervisor saw the agent end since its log had ``begun`` bytes."""
    with suppress(OSError), log_path.open("rb") as file:
        file.seek(begun)
        return file.read(MAX_LOG_BYTES).count(_ended(node).encode())
    return 0


def _ended(node: str) -> str:
    return f"agent of {node} ended"


def _end(pid: int, state: Path, lock_name: str) -> None:
    """SIGTERM, then SIGKILL, until the lock of ``pid`` is free."""
    for number, within_s in ((signal.SIGTERM, STOP_WITHIN_S), (signal.SIGKILL, STOP_WITHIN_S)):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline_s = time.monotonic() + within_s
        while time.monotonic() < deadline_s:
            if lock_owner(state, lock_name) != pid:
                return
            time.sleep(0.05)
    raise AgentError(f"process {pid} does not end", hint="see what it waits for with `ps -o stat,wchan`")


def _rotate(path: Path) -> None:
    # copied and truncated: the supervisor's standard error goes on pointing to this file
    with suppress(OSError):
        if path.stat().st_size > MAX_LOG_BYTES:
            path.with_suffix(".log.1").write_bytes(path.read_bytes())
            os.truncate(path, 0)


def _cause(path: Path, node: str) -> str:
    """Return the last error that an agent ended with, in one line, and after it what it said of it (its hint)."""
    lines = [line for line in _tail(path, 8192).splitlines() if line.strip() and _ended(node) not in line]
    heads = [number for number, line in enumerate(lines) if not line[0].isspace()]
    if not heads:
        return " ".join(line.strip() for line in lines) or "(no log)"
    first, *rest = (line.strip() for line in lines[heads[-1] :])
    between = " " if first.endswith(":") else "; "
    return between.join(part for part in (first.removeprefix("ted: "), " ".join(rest)) if part)


def _tail(path: Path, size_bytes: int = 500) -> str:
    with suppress(OSError):
        whole = path.read_bytes()
        end = whole[-size_bytes:]
        if len(end) < len(whole) and b"\n" in end.strip():
            end = end.partition(b"\n")[2]  # a line that was cut in the middle says nothing
        return end.decode(errors="replace").strip()
    return "(no log)"
