"""What commands show: plan, status, tree, reports, purge; data on one stream, talk on the other."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fleet import CommandError, Fleet, two_tiers

from ted.cli import status_cmd, tree_cmd
from ted.cli.main import COMMANDS, hoist
from ted.records.states import NodeState, State


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory):
    fleet = Fleet(tmp_path_factory.mktemp("overview"))
    two_tiers(fleet)
    fleet.hostvars["e02"]["ted_input_rate"] = "1KB"
    fleet.hostvars["hq"]["ted_distributions"]["app"]["max_revisions"] = 1
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    yield fleet
    fleet.close()


def test_plan_reckons_bytes_and_time_per_line(sent: Fleet) -> None:
    lines = {row["receiver"]: row for row in sent.ted("hq", "plan")["lines"]}
    assert set(lines) == {"s01", "e01", "e02"}
    assert lines["e02"]["bytes"] == lines["s01"]["bytes"] > 0
    assert lines["e02"]["time_s"] == pytest.approx(lines["e02"]["bytes"] / 1000, rel=0.01)
    assert lines["e01"]["time_s"] is None


def test_status_knows_who_was_never_heard_of_and_who_has_it(sent: Fleet) -> None:
    rows = sent.ted("hq", "status")
    names = {"node", "distributor", "distribution", "revision", "state", "installed", "at", "error"}
    assert all(set(row) == names for row in rows)
    sent.ted("hq", "send")
    assert {row["node"]: row["state"] for row in sent.ted("hq", "status")} == {
        "s01": "received", "e01": "received", "e02": "received",
    }  # fmt: skip
    assert [row["node"] for row in sent.ted("hq", "status", "--node", "e01")] == ["e01"]
    assert sent.ted("e01", "status")[0]["state"] == "received"


@pytest.mark.parametrize("words", [("status", "ap"), ("status", "--node", "e0"), ("tree", "ap")])
def test_a_name_nobody_knows_is_refused_with_the_one_that_was_meant(sent: Fleet, words: tuple[str, ...]) -> None:
    sent.ted("hq", "send")
    with pytest.raises(CommandError) as caught:
        sent.ted("hq", *words)
    assert caught.value.returncode == 13
    assert "did you mean" in caught.value.error["hint"]


def test_tree_draws_the_tiers(sent: Fleet) -> None:
    sent.ted("hq", "send")
    text = sent.ted_text("hq", "tree")
    assert "└── s01  ● received" in text
    assert "(relay)" in text
    assert "    ├── e01  ● received" in text
    assert sent.ted("hq", "tree")[0]["tree"]["children"][0]["children"][1]["node"] == "e02"


def test_reports_list_events_sends_and_revisions(sent: Fleet) -> None:
    sent.ted("hq", "send")
    assert {"built", "received"} <= {row["kind"] for row in sent.ted("hq", "report", "events")}
    assert sent.ted("hq", "report", "sends")[0]["without"] == 0
    assert sent.ted("e01", "report", "revisions")[0]["files"] == 40
    assert sent.ted("hq", "report", "failures") == []


def test_the_failure_of_a_distribution_that_is_gone_is_none_any_more(sent: Fleet) -> None:
    (sent.root / "source").rename(sent.root / "away")
    with pytest.raises(CommandError):
        sent.ted("hq", "build")
    assert len(sent.ted("hq", "report", "failures")) == 1
    topology = sent.config("hq") / "topology.json"
    before = topology.read_text()
    known = json.loads(before)
    known["_meta"]["hostvars"]["hq"]["ted_distributions"] = {}
    topology.write_text(json.dumps(known))
    assert sent.ted("hq", "report", "failures") == []
    topology.write_text(before)
    (sent.root / "away").rename(sent.root / "source")
    sent.ted("hq", "build")


def test_a_build_that_failed_is_a_failure_until_one_went_well(sent: Fleet) -> None:
    source = sent.root / "source"
    source.rename(sent.root / "away")
    with pytest.raises(CommandError):
        sent.ted("hq", "build")
    (row,) = sent.ted("hq", "report", "failures")
    assert (row["node"], row["distribution"], row["state"], row["revision"]) == ("hq", "app", "failed", None)
    assert str(source) in row["error"]
    (sent.root / "away").rename(source)
    assert not sent.ted("hq", "build")["distributions"][0]["changed"]
    assert sent.ted("hq", "report", "failures") == []


def test_a_subscriber_is_told_where_the_inventory_is(sent: Fleet) -> None:
    with pytest.raises(CommandError) as caught:
        sent.ted("e01", "tree")
    assert caught.value.returncode == 14
    assert caught.value.error["message"].startswith("e01 is no Distributor")
    assert "on a Distributor" in caught.value.error["hint"]


def test_reports_speak_to_people(sent: Fleet) -> None:
    sent.ted("hq", "send")
    assert "went well since is not in it" in " ".join(sent.ted_text("hq", "report", "-h").split())
    assert "nothing is failed now" in sent.ted_text("hq", "report", "failures")
    head, _, line, *_ = sent.ted_text("hq", "report", "sends").splitlines()
    assert head.startswith("at (UTC)")
    assert "without it" in head
    assert re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d ", line)
    assert re.search(r" \d[\d.]* (B|KiB|MiB|kB|MB) ", line)


def test_reports_fit_a_terminal_and_leave_nothing_out(sent: Fleet) -> None:
    sent.ted("hq", "send")
    for name in ("events", "sends"):
        text = sent.ted_text("hq", "report", name)
        assert max(map(len, text.splitlines())) <= 100, text
        told = " ".join(text.split())
        for row in sent.ted("hq", "report", name):
            assert all(str(row[key]) in told for key in ("revision", "distribution", "message", "send", "receivers")
                       if row.get(key) is not None)  # fmt: skip


def test_a_failed_send_is_told_beside_what_is_in_service(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.settings["retry_for"] = 1
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    fleet.ted("e01", "extract", "app")
    first = fleet.ted("e01", "status")[0]["installed"]
    fleet.until(lambda: fleet.ted("hq", "status", "--node", "e01")[0]["installed"] == first)
    fleet.kill("e01")
    second = fleet.ted("hq", "build", "--force")["distributions"][0]["revision"]
    with pytest.raises(CommandError):
        fleet.ted("hq", "send")
    (row,) = fleet.ted("hq", "status", "--node", "e01")
    assert (row["state"], row["revision"], row["installed"]) == ("failed", second, first)
    assert f"e01  ✘ failed  {second}  (installed: {first})" in fleet.ted_text("hq", "tree")
    head, _, line, *_ = fleet.ted_text("hq", "status").splitlines()
    assert "installed" in head
    assert (second in line, first in line) == (True, True)
    said = fleet.ted_text("hq", "report", "failures")
    assert said.splitlines()[0].split()[:3] == ["node", "distribution", "distributor"]
    assert "e01 (app): e01 (127.0.0.1:" in said
    assert "does not answer" in said


def test_the_status_of_a_node_that_is_taken_for_a_distribution_says_how_to_ask(sent: Fleet) -> None:
    with pytest.raises(CommandError) as caught:
        sent.ted("hq", "status", "e01")
    assert caught.value.error["message"] == "e01 is a node and no distribution"
    assert caught.value.error["hint"] == "`ted status --node e01`"


def test_after_a_failed_send_it_is_still_known_who_holds_what(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.settings["retry_for"] = 1
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    fleet.kill("s01")
    assert fleet.ted("hq", "send")["sends"][0]["unasked"] == ["e01"]
    again, first = fleet.ted("hq", "report", "sends")
    assert (again["receivers"], again["without"], first["without"]) == (2, 0, 0)
    (fleet.root / "source" / "d0" / "file00000.txt").write_text("another\n")
    patch_bytes = fleet.ted("hq", "build")["distributions"][0]["patch_bytes"]
    with pytest.raises(CommandError):
        fleet.ted("hq", "send")
    assert set(fleet.states("hq", "app").values()) == {"failed"}
    assert {row["bytes"] for row in fleet.ted("hq", "plan")["lines"]} == {patch_bytes}
    assert {edge["bytes"] for edge in fleet.ted("hq", "send", "--check")["sends"][0]["edges"]} == {patch_bytes}
    assert fleet.ted("hq", "report", "sends")[0]["without"] == 1


def test_bytes_are_foretold_by_what_a_node_holds_and_not_by_what_it_went_back_to(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    fleet.start()
    for number in range(2):
        (fleet.root / "source" / "new.bin").write_bytes(random.Random(number).randbytes(300_000))
        fleet.ted("hq", "build")
        fleet.ted("hq", "send")
        fleet.ted("e01", "extract")
    fleet.ted("e01", "rollback", "app")
    fleet.until(lambda: fleet.states("hq", "app")["e01"] == "rolled_back")
    with (fleet.root / "source" / "new.bin").open("ab") as file:
        file.write(b"one line more\n")
    patch_bytes = fleet.ted("hq", "build")["distributions"][0]["patch_bytes"]
    foretold = {row["receiver"]: row["bytes"] for row in fleet.ted("hq", "plan")["lines"]}
    assert foretold == {"s01": patch_bytes, "e01": patch_bytes}
    assert {edge["bytes"] for edge in fleet.ted("hq", "send", "--check")["sends"][0]["edges"]} == {patch_bytes}
    came = {edge["receiver"]: edge["bytes"] for edge in fleet.ted("hq", "send")["sends"][0]["edges"]}
    assert came["e01"] < 1.1 * patch_bytes + 3000


def test_a_rollback_is_told_with_where_it_led_to() -> None:
    stamp, at = "20260101T000000000000Z", "2026-01-01T00:00:00+00:00"
    for revision, words in ((stamp, "rolled back to"), (None, "rolled back")):
        row = NodeState("e01", "hq", "app", revision, State.ROLLED_BACK, at, installed=revision)
        assert f"  {words}  " in status_cmd.table([row])
        leaf = {"node": "e01", "target": True, "state": "rolled_back", "revision": revision, "installed": revision}
        tree = leaf | {"node": "hq", "children": [leaf | {"children": []}]}
        assert tree_cmd.lines(tree)[1] == f"└── e01  ↶ {words} {revision or ''}".rstrip()


def test_the_table_of_who_has_what_fits_a_terminal() -> None:
    first, second = "20260101T000000000000Z", "20260102T000000000000Z"
    at, error = "2026-01-02T03:04:05.678+00:00", "the disk is full " * 10
    rows = [
        NodeState("store-0001", "hq", "price-list", first, State.EXTRACTED, at, installed=first),
        NodeState("store-0002", "hq", "price-list", second, State.FAILED, at, error, installed=first),
        NodeState("store-0003", "hq", "price-list", None, State.UNKNOWN, at),
    ]
    table, below = status_cmd.table(rows).split("\n\n")
    assert max(len(line) for line in table.splitlines()) <= 104
    assert max(len(line) for line in status_cmd.table(rows[:1]).splitlines()) <= 92
    assert [line.split()[4] for line in table.splitlines()[2:]] == ["yes", first, "-"]
    assert below == f"store-0002, price-list: {error}"
    assert "distributor" not in table
    assert "distributor" in status_cmd.table([*rows, replace(rows[0], distributor="hq2")])


def test_purge_shows_first_and_removes_only_what_nobody_needs(sent: Fleet) -> None:
    leftover = sent.working("hq") / "hq" / "app" / "20200101T000000000000Z_TEMP"
    leftover.mkdir()
    shown = sent.ted("hq", "purge")
    assert [row["why"] for row in shown["removed"]] == ["left over from a build that was killed"]
    assert leftover.exists()
    assert not sent.ted("hq", "purge", "--apply", "--distribution", "ap")["removed"]
    assert sent.ted("hq", "purge", "--apply")["changed"]
    assert not leftover.exists()
    assert not sent.ted("hq", "purge")["changed"]


def test_purge_of_a_distribution_the_inventory_forgot_takes_it_from_the_catalog(sent: Fleet) -> None:
    distributions = sent.hostvars["hq"]["ted_distributions"]
    distributions["extra"] = distributions["app"] | {"channels": []}
    sent.place_inventory()
    sent.ted("hq", "build", "extra")
    del distributions["extra"]
    sent.place_inventory()
    removed = sent.ted("hq", "purge", "--apply")["removed"]
    assert [row["why"] for row in removed] == ["the inventory no longer names this distribution"]
    assert not (sent.working("hq") / "hq" / "extra").exists()
    assert not (sent.working("hq") / "hq" / ".catalog" / "extra").exists()


def test_a_distribution_is_retired_as_the_page_says(fleet: Fleet) -> None:
    """docs/how-to/retire-a-distribution.md."""
    two_tiers(fleet, leaves=2)
    fleet.install()
    fleet.start()
    for _ in range(2):
        fleet.ted("hq", "build", "--force")
        fleet.ted("hq", "send")
        for leaf in ("e01", "e02"):
            fleet.ted(leaf, "extract")
    for _ in range(2):
        fleet.ted("e01", "rollback", "app")
    with pytest.raises(CommandError, match="is not installed here"):
        fleet.ted("e01", "rollback", "app")
    del fleet.hostvars["hq"]["ted_distributions"]["app"]
    fleet.place_inventory()
    (row,) = fleet.ted("hq", "purge", "--apply")["removed"]
    assert row["path"] == str(fleet.working("hq") / "hq" / "app")
    assert (fleet.ted("hq", "status"), fleet.ted("hq", "tree")) == ([], [])
    for leaf in ("s01", "e01", "e02"):
        assert not fleet.ted(leaf, "purge")["removed"]
    assert fleet.ted("e01", "extract", "--check")["changed"], "it would come back"
    for leaf in ("s01", "e01", "e02"):
        shutil.rmtree(fleet.working(leaf) / "hq" / "app")
    assert fleet.ted("e01", "extract") == {"changed": False, "distributions": []}
    assert not (fleet.root / "e01" / "dest" / "app").exists()
    assert fleet.ted("e02", "extract") == {"changed": False, "distributions": []}
    assert fleet.ted("e02", "status")[0]["state"] == "extracted"
    for _ in range(2):
        fleet.ted("e02", "rollback", "app")
    assert not (fleet.root / "e02" / "dest" / "app").exists()


def test_a_failed_build_keeps_the_former_revision_and_is_on_record(sent: Fleet) -> None:
    former = sent.ted("hq", "report", "revisions")[-1]["revision"]
    (sent.root / "source").rename(sent.root / "away")
    try:
        with pytest.raises(CommandError) as caught:
            sent.ted("hq", "build")
    finally:
        (sent.root / "away").rename(sent.root / "source")
    assert caught.value.error["type"] == "EmptySourceError"
    assert caught.value.returncode == 51
    assert sent.ted("hq", "report", "revisions")[-1]["revision"] == former
    assert sent.ted("hq", "report", "events")[0]["kind"] == "build_failed"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str) -> None:
    done = subprocess.run([sys.executable, "-m", "ted", name, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Usage: ted")


def test_an_error_is_one_document_and_one_line() -> None:
    command = [sys.executable, "-m", "ted", "--config", "/nonexistent", "status", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 10
    assert json.loads(done.stdout)["error"]["type"] == "ConfigError"
    assert done.stderr.startswith("ted: ")
    assert "Traceback" not in done.stderr


def test_global_options_may_stand_anywhere() -> None:
    assert hoist(["status", "--json", "-i", "inv", "--", "--json"]) == ["--json", "-i", "inv", "status", "--", "--json"]


def test_a_check_of_a_build_leaves_nothing_behind_whether_it_can_be_built_or_not(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    gone = fleet.root / "gone"

    def everything() -> list[Path]:
        return sorted(fleet.working("hq").rglob("*"))

    before = everything()
    said = fleet.ted("hq", "build", "--check")
    assert (said["changed"], said["distributions"][0]["former"]) == (True, None)
    (fleet.root / "source").rename(gone)
    with pytest.raises(CommandError):
        fleet.ted("hq", "build", "--check")
    assert everything() == before
    gone.rename(fleet.root / "source")
    (first,) = fleet.ted("hq", "build")["distributions"]
    assert first["former"] is None
    before = everything()
    assert not fleet.ted("hq", "build", "--check")["changed"]
    assert everything() == before
    assert fleet.ted("hq", "build", "--force")["distributions"][0]["former"] == first["revision"]
    assert "build_failed" not in {row["kind"] for row in fleet.ted("hq", "report", "events")}
    shutil.rmtree(fleet.working("hq"))
    assert fleet.ted("hq", "build", "--check")["changed"]
    assert not fleet.working("hq").exists()
