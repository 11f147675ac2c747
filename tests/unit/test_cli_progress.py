"""What long work says where no terminal is: in a log, or into a pipe."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ted.cli import progress, receive_cmd, send_cmd
from ted.cli.main import Settings
from ted.records.journal import Journal
from ted.records.states import NodeState, State


class Looks(Journal):
    """A send of 3 MB to each of two receivers that has ended at the third look."""

    def __init__(self) -> None:
        self.left = 3

    def are_open(self, sends: object) -> bool:  # noqa: ARG002
        return False

    def result(self) -> dict[str, Any]:
        self.left -= 1
        last = "received" if not self.left else "receiving"
        return {
            "send": "s1", "distribution": "app", "channel": "pos", "states": {"e1": "received", "e2": last},
            "bytes": 4_000_000, "bytes_total": 6_000_000, "done": not self.left,
            "errors": {}, "edges": [],
        }  # fmt: skip


@pytest.mark.parametrize(("every_s", "as_json", "lines"), [(0.0, False, 2), (60.0, False, 0), (0.0, True, 0)])
def test_a_send_that_nobody_watches_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], every_s: float, as_json: bool, lines: int
) -> None:
    monkeypatch.setattr(progress, "LINES_EVERY_S", every_s)
    monkeypatch.setattr(send_cmd, "POLL_S", 0.0)
    monkeypatch.setattr(send_cmd, "_result", lambda journal, _send: journal.result())
    settings = Settings(inventory=None, config=Path("ted.toml"), as_json=as_json, verbose=False)
    assert send_cmd._follow(settings, Looks(), ["s1"], None)[0]["done"]
    assert capsys.readouterr().err.splitlines() == ["app to pos: 1 of 2 done, 4.0 MB of 6.0 MB"] * lines


def stays_open(journal: Looks, _sends: object) -> bool:
    """Let one look pass in which nobody looks at all receivers; return whether the send goes on."""
    journal.left -= 1
    return journal.left > 1


@pytest.mark.parametrize("are_open", [Looks.are_open, stays_open])
def test_a_send_is_looked_at_soon_and_then_no_more_than_five_times_a_second(
    monkeypatch: pytest.MonkeyPatch, are_open: Callable[[Looks, object], bool]
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(Looks, "are_open", are_open)
    monkeypatch.setattr(send_cmd.time, "sleep", pauses.append)
    monkeypatch.setattr(send_cmd, "_result", lambda journal, _send: journal.result())
    settings = Settings(inventory=None, config=Path("ted.toml"), as_json=True, verbose=False)
    journal = Looks()
    journal.left = 9
    assert send_cmd._follow(settings, journal, ["s1"], None)[0]["done"]
    assert pauses[:5] == [0.02, 0.04, 0.08, 0.2, 0.2]
    assert set(pauses[5:]) == {0.2}


def test_whom_a_send_waits_for_is_named_with_the_cause_and_those_behind_it_are_not() -> None:
    edges = [("hq", "s1"), ("s1", "e1"), ("hq", "s2"), ("hq", "s3")]
    result = {
        "edges": [{"sender": sender, "receiver": receiver} for sender, receiver in edges],
        "states": {"s1": "pending", "e1": "pending", "s2": "failed", "s3": "receiving"},
        "errors": {"s1": "s1 (192.0.2.1:7465) does not answer", "e1": "not reached: s1 is on the way", "s2": "full"},
    }
    assert send_cmd._waits_for(result) == "; waiting for s1 (192.0.2.1:7465) does not answer"
    result["errors"]["s3"] = "no answer"
    assert send_cmd._waits_for(result).endswith("does not answer, and for 1 more")
    assert send_cmd._waits_for(result | {"errors": {"s3": "no answer"}}) == "; waiting for s3: no answer"
    assert send_cmd._waits_for(result | {"errors": {}}) == ""


@pytest.mark.parametrize(("hosts", "said"), [
    (["e1"], "1 receiver is without the revision:\n  e1 (app): gone"),
    (["e1", "e2"], "2 receivers are without the revision:\n  e1 (app), e2 (app): gone"),
])  # fmt: skip
def test_a_send_that_is_incomplete_says_for_how_many(hosts: list[str], said: str) -> None:
    errors = {host: f"{host}: gone" for host in hosts}
    result = {"send": "s1", "distribution": "app", "incomplete": hosts, "errors": errors, "done": True,
              "states": dict.fromkeys(hosts, "pending")}  # fmt: skip
    error = send_cmd._incomplete([result], None)
    assert (error.message, error.hint.partition(":")[0]) == (said, "send again when that is mended")
    going = result | {"done": False}
    hint = send_cmd._incomplete([going], None).hint
    assert ("`ted send --watch s1`" in hint, "mended" in hint) == (True, False)
    hint = send_cmd._incomplete([going, result | {"states": dict.fromkeys(hosts, "failed")}], None).hint
    assert ("`ted send --watch s1`" in hint, "mended" in hint) == (True, True)


def test_who_could_not_be_asked_is_told_and_is_no_failure(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(inventory=None, config=Path("ted.toml"), as_json=False, verbose=False)
    result = _watched(states={"e1": "received"}, incomplete=[], unasked=["e1"], errors={"e1": "not asked: e1: gone"})
    assert send_cmd._incomplete([result], None) is None
    send_cmd._show_watched(settings, [result])
    said = capsys.readouterr()
    why = "could not be asked, and had the revision when last heard of:\n  e1 (app): gone\n"
    assert said.err == f"ted: warning: 1 receiver {why}"
    assert said.out.splitlines()[-1].split()[-1] == "received"


def _watched(**more: Any) -> dict[str, Any]:
    edge = {"sender": "hq", "receiver": "e1", "bytes": 0}
    return {"send": "s1", "distribution": "app", "channel": "pos", "revision": "r", "changed": 0,
            "states": {"e1": "failed"}, "incomplete": ["e1"], "errors": {"e1": "gone"}, "edges": [edge], "done": True,
            "unasked": [], **more}  # fmt: skip


def test_a_look_at_what_ended_without_somebody_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings(inventory=None, config=Path("ted.toml"), as_json=False, verbose=False)
    send_cmd._show_watched(settings, [_watched()])
    said = capsys.readouterr()
    assert said.err.startswith("ted: 1 receiver is without the revision:\n  e1 (app): gone\n     send again")
    assert "--watch" not in said.out
    send_cmd._show_watched(settings, [_watched(done=False, states={"e1": "pending"})])
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.splitlines()[-1] == "`ted send --watch s1` tells how far app to pos is"


def test_a_node_that_fetches_for_long_says_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINES_EVERY_S", 0.0)
    monkeypatch.setattr(receive_cmd, "POLL_S", 0.0)
    key, is_here = ("hq", "app", "r"), iter([False, False, True])
    rows = iter([[], [NodeState("e1", *key, State.RECEIVING, "now", bytes_done=4_000_000, bytes_total=6_000_000)]])
    row: list[NodeState] = []

    def states(**_of: Any) -> list[NodeState]:
        return row

    def is_received(*_key: str) -> bool:
        row[:] = next(rows, row)
        return next(is_here)

    config: Any = SimpleNamespace(node="e1", working=SimpleNamespace(is_received=is_received))
    journal: Any = SimpleNamespace(states=states)
    receive_cmd._wait(config, journal, [key], 0, 60, progress.ProgressLines(as_json=False))
    assert capsys.readouterr().err.splitlines() == ["waiting for the parent", "app: 4.0 MB of 6.0 MB"]
