"""An agent in the background: it comes up, stays up whatever is killed, and goes when it is told to."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet import CommandError, Fleet

from ted.agent.supervisor import _cause


@pytest.fixture
def lone(fleet: Fleet) -> Iterator[Fleet]:
    fleet.add("hq", distributor=True, distributions={})
    fleet.install()
    yield fleet
    fleet.ted("hq", "agent", "stop")


def runs(fleet: Fleet) -> bool:
    """Ask for the agent's status: exit code 70 says that none runs, and so does the document."""
    try:
        return bool(fleet.ted("hq", "agent", "status")["running"])
    except CommandError as error:
        if error.returncode != 70:
            raise
        return False


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/{pid}/stat") as stat:  # a zombie waits for the test's own init
        return stat.read().rpartition(")")[2].split()[0] == "Z"


def test_start_and_stop_change_something_once(lone: Fleet) -> None:
    assert lone.ted("hq", "agent", "start", "--check")["changed"]
    assert not runs(lone)
    started = lone.ted("hq", "agent", "start")
    assert (started["changed"], started["running"], started["supervised"]) == (True, True, True)
    assert not lone.ted("hq", "agent", "start")["changed"]
    stopped = lone.ted("hq", "agent", "stop")
    assert (stopped["changed"], stopped["running"]) == (True, False)
    assert not lone.ted("hq", "agent", "stop")["changed"]
    lone.until(lambda: gone(started["pid"]) and gone(started["supervisor_pid"]))


def test_a_stop_says_that_it_stopped_one(lone: Fleet) -> None:
    lone.ted("hq", "agent", "start")
    assert "running, process" in lone.ted_text("hq", "agent", "stop", "--check")
    assert lone.ted_text("hq", "agent", "stop", "--check").endswith("; would be stopped\n")
    said = [lone.ted_text("hq", "agent", "stop") for _ in range(2)]
    assert said == ["agent of hq: stopped\n", "agent of hq: not running\n"]


def test_the_status_of_no_agent_says_what_to_do(lone: Fleet) -> None:
    with pytest.raises(CommandError) as caught:
        lone.ted("hq", "agent", "status")
    assert caught.value.returncode == 70
    assert "`ted agent start`" in caught.value.error["hint"]
    assert '"running": false' in str(caught.value), "what is known of it stands beside the error"


def test_a_killed_agent_is_started_again(lone: Fleet) -> None:
    first = lone.ted("hq", "agent", "start")
    os.kill(first["pid"], signal.SIGKILL)
    lone.until(lambda: runs(lone))
    assert lone.ted("hq", "agent", "status")["pid"] != first["pid"]


def test_after_a_killed_supervisor_start_makes_it_whole_again(lone: Fleet) -> None:
    first = lone.ted("hq", "agent", "start")
    os.kill(first["supervisor_pid"], signal.SIGKILL)
    lone.until(lambda: gone(first["supervisor_pid"]))
    assert lone.ted("hq", "agent", "status")["running"], "the agent works on by itself"
    again = lone.ted("hq", "agent", "start")
    assert (again["changed"], again["supervised"]) == (True, True)


def test_two_agents_of_one_working_directory_are_refused(lone: Fleet) -> None:
    first = lone.ted("hq", "agent", "start")
    with pytest.raises(CommandError) as caught:
        lone.ted("hq", "agent")
    assert str(first["pid"]) in caught.value.error["message"]


def test_an_agent_ends_at_once_when_told(lone: Fleet) -> None:
    lone.ted("hq", "agent", "start")
    started_s = time.monotonic()
    lone.ted("hq", "agent", "stop")
    assert time.monotonic() - started_s < 12


def test_a_taken_port_is_named(lone: Fleet) -> None:
    import socket

    with socket.create_server(("127.0.0.1", lone.hostvars["hq"]["ted_port"])), pytest.raises(CommandError) as caught:
        lone.ted("hq", "agent")
    assert str(lone.hostvars["hq"]["ted_port"]) in caught.value.error["message"]

def test_an_agent_that_cannot_have_its_port_says_so_soon_and_comes_up_once_it_can(lone: Fleet) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", lone.hostvars["hq"]["ted_port"]))
        other.listen()
        with pytest.raises(CommandError) as caught:
            lone.ted("hq", "agent", "start")
        assert "ended 3 times" in caught.value.error["message"]
        assert "in use" in caught.value.error["message"]
        assert "agent of hq ended (" not in caught.value.error["message"]
    lone.until(lambda: runs(lone))


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (f"ted: the records of hq cannot be opened in {'x' * 600}: refused\n     is it up?\n",
         f"the records of hq cannot be opened in {'x' * 600}: refused; is it up?"),
        ("ted: the inventory has 2 problems:\n  a: b\n  c: d\n     mend it\n",
         "the inventory has 2 problems: a: b c: d mend it"),
        ("Traceback (most recent call last):\n  File x\nValueError: no\n", "ValueError: no"),
        ("", "(no log)"),
    ],
)  # fmt: skip
def test_the_cause_is_quoted_and_then_its_hint(tmp_path: Path, said: str, cause: str) -> None:
    log = tmp_path / "agent.log"
    ended = "2026-11-27 10:00:00,123 hq WARNING ted.supervisor: agent of hq ended (12), again in 1 s\n"
    log.write_text("started\n" * bool(said) + f"{said}{ended}" * 3)
    assert _cause(log, "hq") == cause
