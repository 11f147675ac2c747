"""What a playbook run says of a send, to a person."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from ted.records.states import HOLDS, NOT_ASKED

PLUGINS = Path(__file__).parents[2] / "collections/ansible_collections/ted/distribution/plugins"


@pytest.fixture(scope="module")
def progress() -> Any:
    spec = importlib.util.spec_from_file_location("ted_progress", PLUGINS / "plugin_utils" / "progress.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def send(**told: Any) -> dict[str, Any]:
    """Return a send over two links; ``told`` is what the case is about."""
    edges = [{"sender": "hq", "receiver": "s01", "bytes": 7}, {"sender": "s01", "receiver": "e01", "bytes": 9}]
    return {
        "send": "1", "distributor": "hq", "distribution": "app", "channel": "pos", "revision": "R1", "edges": edges,
        "bytes": 16, "changed": True, "states": {"s01": "extracted", "e01": "received"},
    } | told  # fmt: skip


def test_a_table_tells_what_crossed_each_link(progress: Any) -> None:
    lines = progress.table(send())
    assert lines[0] == "app R1 on pos: 16 B over 2 links"
    assert [line.split() for line in lines[3:]] == [
        ["1", "hq", "s01", "7", "B", "extracted"],
        ["2", "s01", "e01", "9", "B", "received"],
    ]


def test_a_check_tells_who_would_be_sent_what_is_still_to_be_built(progress: Any) -> None:
    states = {"s01": "pending", "e01": "pending"}
    lines = progress.table(send(send=None, revision=None, states=states))
    assert lines[0] == "app a new revision on pos: at most 9 B over each link"
    assert [line.endswith("would be sent") for line in lines[3:]] == [True, True]


def test_a_send_in_which_nothing_moved_is_one_line(progress: Any) -> None:
    nothing = send(changed=False, bytes=0, edges=[edge | {"bytes": 0} for edge in send()["edges"]])
    assert progress.table(nothing) == ["app R1 on pos: nothing to send, everybody has it"]
    late = nothing | {"states": {"s01": "extracted", "e01": "pending"}, "incomplete": ["e01"]}
    assert progress.table(late)[3:] != []


DOWN = "s01 (127.0.0.1:7465) does not answer: connection refused (is the agent of s01 running?)"


def waiting(*, behind: int = 1) -> dict[str, Any]:
    """Return a send that has s02 and waits for s01 and those behind it."""
    names = [f"e{number:02}" for number in range(1, behind + 1)]
    edges = [("hq", "s01"), ("hq", "s02"), *(("s01", name) for name in names)]
    return send(
        edges=[{"sender": sender, "receiver": receiver, "bytes": 0} for sender, receiver in edges],
        states={"s01": "pending", "s02": "received"} | dict.fromkeys(names, "pending"), bytes=386, bytes_total=386,
        errors={"s01": DOWN} | dict.fromkeys(names, f"not reached: s01 is on the way to it: {DOWN}"),
    )  # fmt: skip


def test_whom_a_send_waits_for_is_told_once_with_all_behind_it(progress: Any) -> None:
    told: set[Any] = set()
    assert progress.obstacle_lines([waiting()], told) == [f"waiting for {DOWN}; behind it: e01"]
    assert progress.obstacle_lines([waiting()], told) == []
    (line,) = progress.obstacle_lines([waiting(behind=9)], set())
    assert line.endswith("; behind it: e01, e02, e03, e04 and 5 more")
    failed = waiting() | {"states": dict.fromkeys(("s01", "e01"), "failed")}
    assert progress.obstacle_lines([failed], set()) == [], "the end of the task names it"


def test_a_cause_is_said_once_for_all_who_lack_it_for_it(progress: Any) -> None:
    behind = f"not reached: s01 is on the way to it and failed: {DOWN}"
    states = dict.fromkeys(("s01", "e01", "e02", "e03"), "failed")
    found = send(states=states, errors={"s01": DOWN, "e01": behind, "e02": behind, "e03": "disk full"})
    assert progress.reasons([found]) == f"app was not received by e01, e02, s01 ({DOWN}); nor by e03 (disk full)"
    assert progress.reasons([send(states={"e01": "pending"})]) == "app was not received by e01 (pending)"
    both = [send(distribution=name, states=states, errors=dict.fromkeys(states, DOWN)) for name in ("app", "motd")]
    assert progress.reasons(both) == f"app and motd were not received by e01, e02, e03, s01 ({DOWN})"


def test_what_to_do_is_said_of_what_ended_and_of_what_goes_on(progress: Any) -> None:
    waits, full = {"e01": "pending"}, {"e01": "failed"}
    mend, look = "send again when that is mended: what came is kept", "`ted send --watch 1` on the Distributor"
    assert progress.whats_next([send(states=full, done=True)]) == mend
    assert progress.whats_next([send(states=waits, done=True)]) == mend
    assert look in (said := progress.whats_next([send(states=waits, done=False)]))
    assert mend not in said
    two = send(states={"e01": "pending", "e02": "failed"})
    for both in ([send(states=full, done=True), send(states=waits)], [two]):
        assert (mend in progress.whats_next(both), look in progress.whats_next(both)) == (True, True)
    assert progress.whats_next([send()]) == ""


def test_a_send_that_asked_nobody_says_so(progress: Any) -> None:
    nothing = send(changed=False, bytes=0, unasked=["e01"])
    assert progress.title(nothing, []) == "app R1 on pos: nothing to send, everybody has it (1 could not be asked)"


def test_who_could_not_be_asked_is_named_once_for_each_cause(progress: Any) -> None:
    names = [f"e{number:02}" for number in range(1, 7)]
    lacking = send(unasked=names, errors=dict.fromkeys(names, f"not asked: {DOWN}"))
    assert progress.unasked([lacking, lacking]) == [
        f"e01, e02, e03, e04 and 2 more could not be asked, and had the revision when last heard of: {DOWN}"
    ]
    many = send(unasked=[*names, "e07"], errors={name: f"not asked: {name} is off" for name in [*names, "e07"]})
    assert len(progress.unasked([many])) == 6
    assert progress.unasked([many])[-1] == "and 2 more causes"
    relay = send(unasked=["e01", "s01"], errors={"s01": f"not asked: {DOWN}", "e01": f"not asked: not reached: {DOWN}"})
    (line,) = progress.unasked([relay])
    assert line == f"e01, s01 could not be asked, and had the revision when last heard of: {DOWN}"
    assert progress.unasked([send()]) == []


def test_the_collection_has_the_words_of_the_agent(progress: Any) -> None:
    assert progress.NOT_ASKED == NOT_ASKED
    assert set(progress.HELD) == HOLDS


def test_many_causes_are_counted(progress: Any) -> None:
    names = [f"s{number:02}" for number in range(9)]
    many = send(edges=[{"sender": "hq", "receiver": name, "bytes": 0} for name in names],
                states=dict.fromkeys(names, "pending"), errors=dict.fromkeys(names, "no answer"))  # fmt: skip
    lines = progress.obstacle_lines([many], set())
    assert (lines[0], len(lines)) == ("waiting for s00: no answer", 6)
    assert lines[5].startswith("waiting for 4 more")


def test_no_percentage_looks_finished_while_somebody_waits(progress: Any) -> None:
    assert progress.line([waiting()], 2, 1) == "hq sends app: 1 of 3 have it, after 0:02"
    assert "50 % of 772 B" in progress.line([waiting() | {"bytes_total": 772}], 2, 1)
    whole = send(bytes=386, bytes_total=386)
    assert "2 of 2 have it, 100 % of 386 B" in progress.line([whole], 2, 1)


@pytest.mark.parametrize(("elapsed_s", "left"), [(10, "0:10"), (14, "0:06"), (30, "0:00")])
def test_the_time_that_is_left_goes_by_when_the_bytes_were_told(progress: Any, elapsed_s: float, left: str) -> None:
    half = waiting() | {"bytes": 500, "bytes_total": 1000}
    assert progress.line([half], elapsed_s, 10).endswith(f"50 % of 1.0 kB, 50 B/s, {left} left")


def test_a_failure_shows_who_lacks_it_and_why_and_not_every_link(progress: Any) -> None:
    failed = send(states={"s01": "received", "e01": "pending"}, errors={"e01": "e01: refused", "s01": "s01: was slow"})
    said = progress.brief(failed)
    assert said["incomplete"] == ["e01"]
    assert said["errors"] == {"e01": "e01: refused"}
    assert said["send"] == "1"
    assert not {"edges", "states"} & said.keys()
