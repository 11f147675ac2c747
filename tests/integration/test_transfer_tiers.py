"""Real agents, real TLS, two tiers on the loopback address: what is built arrives, once per line, and stays safe."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from fleet import CommandError, CountingProxy, Fleet, make_source, same_trees, two_tiers

from ted.agent.ask import call_agent
from ted.agent.extractor import NAME
from ted.content.working import WorkingDirectory

Meter = Callable[[Fleet, str], CountingProxy]


def test_a_revision_goes_through_two_tiers_and_is_extracted_the_same(fleet: Fleet) -> None:
    two_tiers(fleet)
    fleet.install()
    fleet.start()
    built = fleet.ted("hq", "build")
    sent = fleet.ted("hq", "send")
    assert (built["changed"], sent["changed"]) == (True, True)
    assert sent["sends"][0]["states"] == {"s01": "received", "e01": "received", "e02": "received"}
    assert {(edge["sender"], edge["receiver"]) for edge in sent["sends"][0]["edges"]} == {
        ("hq", "s01"), ("s01", "e01"), ("s01", "e02"),
    }  # fmt: skip
    for name in ("e01", "e02"):
        assert fleet.ted(name, "extract")["changed"]
        assert same_trees(fleet.root / "source", fleet.root / name / "dest" / "app") == ""
    fleet.until(lambda: fleet.states("hq", "app") == {"e01": "extracted", "e02": "extracted", "s01": "received"})
    assert not fleet.ted("hq", "build")["changed"]
    assert not fleet.ted("hq", "send")["changed"]
    assert not fleet.ted("e01", "extract")["changed"]


def test_a_relay_holds_what_it_passes_on_and_extracts_nothing(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    packs = [sorted(fleet.working(name).glob("hq/app/*/DISTFILE.TED")) for name in ("hq", "s01", "e01")]
    assert len({pack[0].read_bytes() for pack in packs}) == 1
    assert list(fleet.working("e01").glob("hq/app/*/DISTSTATUS.TED"))


def test_an_update_and_the_way_back(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    first = fleet.ted("hq", "send")["sends"][0]["revision"]
    fleet.ted("e01", "extract")
    before = fleet.root / "before"
    shutil.copytree(fleet.root / "source", before, symlinks=True, copy_function=shutil.copy2)
    os.utime(before, ns=(fleet.root.stat().st_atime_ns, (fleet.root / "source").stat().st_mtime_ns))
    (fleet.root / "source" / "d0" / "file00000.txt").write_text("changed\n")
    (fleet.root / "source" / "new.txt").write_text("new\n")
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    assert fleet.ted("e01", "extract")["changed"]
    assert same_trees(fleet.root / "source", fleet.root / "e01" / "dest" / "app") == ""
    back = fleet.ted("e01", "rollback", "app")
    assert back["changed"]
    assert back["distributions"][0]["revision"] == first
    assert same_trees(before, fleet.root / "e01" / "dest" / "app") == ""
    fleet.until(lambda: fleet.states("hq", "app")["e01"] == "rolled_back")


def test_every_node_keeps_as_many_revisions_as_the_distributor_says(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.hostvars["hq"]["ted_distributions"]["app"]["max_revisions"] = 2
    fleet.install()
    fleet.start()
    made = []
    for text in "abc":
        (fleet.root / "source" / "d0" / "file00000.txt").write_text(text)
        made += [row["revision"] for row in fleet.ted("hq", "build")["distributions"]]
        fleet.ted("hq", "send")
    for name in fleet.hostvars:
        fleet.until(lambda name=name: WorkingDirectory(fleet.working(name)).revisions("hq", "app") == made[1:])


def test_what_is_on_two_channels_is_sent_to_a_subscriber_of_both_once(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=2)
    fleet.hostvars["hq"]["ted_distributions"]["app"]["channels"] = ["pos", "office"]
    fleet.everyone["ted_channels"]["office"] = {}
    fleet.groups["office"] = ["e01"]
    fleet.groups["pos"] = ["e01", "e02"]
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    first = fleet.ted("hq", "send", "--channel", "office")
    assert first["sends"][0]["states"] == {"e01": "received", "s01": "received"}
    second = fleet.ted("hq", "send", "--channel", "pos")["sends"][0]
    cost = {edge["receiver"]: edge["bytes"] for edge in second["edges"]}
    assert (cost["s01"], cost["e01"]) == (0, 0)
    assert cost["e02"] > 0
    assert not fleet.ted("hq", "send")["changed"]


def test_a_send_with_nothing_to_do_costs_under_8_kb_per_hop(fleet: Fleet, meter: Meter) -> None:
    two_tiers(fleet, leaves=12)
    lines = {name: meter(fleet, name) for name in ("hq", "s01", *(f"e{n:02}" for n in range(1, 13)))}
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    fleet.close()  # so that every connection is made anew, handshake and all
    for line in lines.values():
        line.zero()
    fleet.start()
    assert not fleet.ted("hq", "send")["changed"]
    costs = {name: line.bytes for name, line in lines.items()}
    print("bytes per meter:", costs)
    # s01 and hq speak through both their meters: what hq asks of s01, and what s01 asks of hq
    assert 0 < costs["hq"] + costs["s01"] < 8000
    assert 0 < max(costs[f"e{n:02}"] for n in range(1, 13)) < 8000


def test_one_changed_line_in_ten_thousand_files_sends_little(fleet: Fleet, meter: Meter) -> None:
    two_tiers(fleet, leaves=1)
    shutil.rmtree(fleet.root / "source")
    make_source(fleet.root / "source", files=10_000)
    lines = [meter(fleet, name) for name in ("hq", "s01", "e01")]
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    fleet.ted("e01", "extract")
    path = fleet.root / "source" / "d3" / "file00123.txt"
    path.write_text(path.read_text().replace("123\n", "one hundred and twenty-three\n", 1))
    fleet.ted("hq", "build")
    fleet.close()
    for line in lines:
        line.zero()
    fleet.start()
    sent = fleet.ted("hq", "send")["sends"][0]
    costs = [line.bytes for line in lines]
    print(costs, sent["bytes"])
    assert 0 < sent["bytes"] < 2000
    # each door is asked by its neighbours above and below: together the doors saw both hops, the last two the second
    assert sum(costs) < 2 * 20_000
    assert costs[1] + costs[2] < 20_000
    assert fleet.ted("e01", "extract")["distributions"][0]["actions"]["written"] == 1
    assert same_trees(fleet.root / "source", fleet.root / "e01" / "dest" / "app") == ""


def test_a_node_without_the_root_refuses_and_says_what_to_do(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    shutil.rmtree(fleet.config("s01") / "trust")
    fleet.start()
    fleet.ted("hq", "build")
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "send")
    error = caught.value.error
    assert error["type"] == "IncompleteError"
    assert "hq" in error["message"]
    assert "ted trust import" in error["message"]
    assert not list(fleet.working("s01").glob("hq/app/*/DISTFILE.TED"))


def test_a_relay_that_was_made_anew_refuses_and_nobody_counts_as_having_what_was_known(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    fleet.kill("s01")
    shutil.rmtree(fleet.config("s01") / "trust")
    shutil.rmtree(fleet.working("s01"))
    fleet.start("s01")
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "send")
    assert "e01 (app): not reached: s01" in caught.value.error["message"]
    assert "ted trust import" in caught.value.error["message"]


def test_a_node_of_another_realm_is_not_believed(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    stranger = Fleet(fleet.root / "stranger")
    stranger.add("s01")
    stranger.install()
    shutil.rmtree(fleet.config("s01") / "realm")
    shutil.copytree(stranger.config("s01") / "realm", fleet.config("s01") / "realm")
    fleet.settings["retry_for"] = 1
    fleet.write_config("hq")
    fleet.start()
    fleet.ted("hq", "build")
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "send")
    assert "realm" in caught.value.error["message"]


def test_a_receiver_without_room_refuses_before_the_first_byte(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.hostvars["e01"]["ted_min_free"] = 2**60
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "send")
    assert "must stay free" in caught.value.error["message"]
    assert not list(fleet.working("e01").glob("hq/app/*/DISTFILE.TED"))


def test_a_receiver_that_is_down_is_tried_again_until_it_is_up(fleet: Fleet) -> None:
    two_tiers(fleet)
    fleet.install()
    fleet.start("hq", "s01", "e01")
    fleet.ted("hq", "build")
    send = fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
    fleet.until(lambda: fleet.ted("hq", "send", "--watch", send)["sends"][0]["states"]["e01"] == "received")
    assert not fleet.ted("hq", "send", "--watch", send, "--timeout", "0.1")["sends"][0]["done"]
    fleet.start("e02")
    (seen, again) = fleet.ted("hq", "send", "--watch", send, "--watch", send, "--timeout", "60")["sends"]
    assert seen["done"]
    assert again == seen
    assert fleet.states("hq", "app")["e02"] == "received"


def test_a_receiver_that_stays_down_is_reported_and_the_others_have_it(fleet: Fleet) -> None:
    two_tiers(fleet)
    fleet.settings["retry_for"] = 2
    fleet.install()
    fleet.start("hq", "s01", "e01")
    fleet.ted("hq", "build")
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "send")
    assert caught.value.returncode == 34
    assert "e02 (127.0.0.1:" in caught.value.error["message"]
    assert "does not answer" in caught.value.error["message"]
    assert fleet.states("hq", "app") == {"e01": "received", "e02": "failed", "s01": "received"}


def test_a_send_without_news_succeeds_while_a_relay_is_down(fleet: Fleet) -> None:
    two_tiers(fleet)
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    fleet.kill("s01")
    (sent,) = fleet.ted("hq", "send", "--timeout", "60")["sends"]
    assert (sent["done"], sent["changed"], sent["incomplete"]) == (True, False, [])
    assert sent["states"] == {"s01": "received", "e01": "received", "e02": "received"}
    assert sent["unasked"] == ["e01", "e02"], "of whom the revision is for"
    assert "does not answer" in sent["errors"]["s01"]
    (fleet.root / "source" / "news").write_text("Something to send.")
    fleet.ted("hq", "build")
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "send", "--timeout", "3")
    assert caught.value.returncode == 34
    assert "goes on by itself" in caught.value.error["hint"]
    assert set(fleet.states("hq", "app").values()) == {"pending"}
    fleet.start("s01")
    fleet.until(lambda: set(fleet.states("hq", "app").values()) == {"received"})


def test_a_relay_that_is_to_extract_now_has_not_got_it_while_it_is_down(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.settings["retry_for"] = 2
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    fleet.kill("s01")
    fleet.groups["pos"].append("s01")
    fleet.place_inventory()
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "send")
    assert caught.value.error["message"].startswith("1 receiver is without the revision:\n  s01 (app): s01 (127.0.0.1:")


def test_a_connection_that_ends_before_it_is_secure_is_tried_again(fleet: Fleet, meter: Meter) -> None:
    two_tiers(fleet, leaves=1)
    line = meter(fleet, "s01")
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    line.cut_at_once = 2
    assert fleet.ted("hq", "send")["sends"][0]["states"] == {"s01": "received", "e01": "received"}
    assert line.cut_at_once == 0


def test_a_send_that_waits_for_a_node_says_why(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    fleet.start("hq", "s01")
    fleet.ted("hq", "build")
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "send", "--timeout", "8")
    assert "e01 (127.0.0.1:" in caught.value.error["message"]
    assert "does not answer" in caught.value.error["message"]
    waiting = {row["node"]: row for row in fleet.ted("hq", "status")}
    assert (waiting["e01"]["state"], waiting["s01"]["error"]) == ("pending", None)
    assert "does not answer" in waiting["e01"]["error"]
    fleet.start("e01")
    fleet.until(lambda: fleet.states("hq", "app")["e01"] == "received")
    assert {row["error"] for row in fleet.ted("hq", "status")} == {None}


def test_limit_sends_to_the_named_and_those_on_the_way_only(fleet: Fleet) -> None:
    two_tiers(fleet)
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    sent = fleet.ted("hq", "send", "--limit", "e02")
    assert sent["sends"][0]["states"] == {"s01": "received", "e02": "received"}
    assert not list(fleet.working("e01").glob("hq/app/*"))


def test_a_limit_that_the_installed_inventory_lacks_says_so(fleet: Fleet) -> None:
    two_tiers(fleet)
    fleet.install()
    fleet.start("hq")
    fleet.ted("hq", "build")
    for words in ([], ["--check"]):
        with pytest.raises(CommandError) as caught:
            fleet.ted("hq", "send", "--limit", "e0", *words)
        assert caught.value.error["message"] == "the inventory installed on hq does not know e0 (yet)"
        assert "refresh.yml --limit hq" in caught.value.error["hint"]
        assert caught.value.error["hint"].endswith("did you mean e02?")


def test_after_a_pilot_a_parent_installs_what_was_sent_to_itself(fleet: Fleet) -> None:
    two_tiers(fleet)
    fleet.groups["pos"].append("s01")
    fleet.hostvars["s01"]["ted_variables"] = {"DEST": str(fleet.root / "s01" / "dest")}
    fleet.install()
    fleet.start()
    told = fleet.root / "s01" / "dest" / "app" / "x"
    (fleet.root / "source" / "x").write_text("for all")
    (first,) = (row["revision"] for row in fleet.ted("hq", "build")["distributions"])
    fleet.ted("hq", "send")
    (fleet.root / "source" / "x").write_text("pilot")
    (pilot,) = (row["revision"] for row in fleet.ted("hq", "build")["distributions"])
    fleet.ted("hq", "send", "--limit", "e02")
    for changed in (True, False):
        (row,) = fleet.ted("s01", "extract")["distributions"]
        assert (row["state"], row["revision"], row["changed"]) == ("extracted", first, changed)
        assert told.read_text() == "for all"
    (row,) = fleet.ted("e02", "extract")["distributions"]
    assert row["revision"] == pilot
    fleet.ted("hq", "send")
    assert fleet.ted("s01", "extract")["distributions"][0]["revision"] == pilot
    assert told.read_text() == "pilot"


def test_a_relay_whose_old_offers_are_gone_still_installs_nothing(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.hostvars["s01"]["ted_variables"] = {"DEST": str(fleet.root / "s01" / "dest")}
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    for name in ("s01", "e01"):
        fleet.kill(name)
        for path in (fleet.working(name) / ".ted").glob("records.sqlite*"):
            path.unlink()
    assert fleet.ted("s01", "extract")["distributions"] == []
    assert fleet.ted("s01", "extract", "app")["distributions"][0]["state"] == "skipped"
    assert not (fleet.root / "s01" / "dest").exists()
    assert fleet.ted("e01", "extract")["distributions"][0]["state"] == "extracted"


def test_check_foretells_the_bytes_and_sends_nothing(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    planned = fleet.ted("hq", "send", "--check")
    assert planned["changed"]
    assert not list(fleet.working("s01").glob("hq/app/*"))
    sent = fleet.ted("hq", "send")
    assert sent["sends"][0]["bytes"] == planned["sends"][0]["bytes"]
    assert not fleet.ted("hq", "send", "--check")["changed"]


def test_an_agent_extracts_by_itself_where_its_schedule_says_immediately(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.hostvars["e01"]["ted_extract_schedule"] = {"immediately": True}
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    fleet.until(lambda: fleet.states("hq", "app")["e01"] == "extracted")
    assert same_trees(fleet.root / "source", fleet.root / "e01" / "dest" / "app") == ""
    assert "take longer" not in fleet.log("e01"), "it was forked"
    revision = fleet.ted("hq", "send", "--check")["sends"][0]["revision"]
    fleet.until(lambda: f"hq/app/{revision}: received" in fleet.log("e01"))
    fleet.until(lambda: f"extract app {revision}: extracted" in fleet.log("e01"))


def test_an_agent_extracts_also_where_the_process_its_extractions_are_forked_from_was_killed(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.hostvars["e01"]["ted_extract_schedule"] = {"immediately": True}
    fleet.install()
    fleet.start()
    assert forked_by(fleet.pid("s01")) == [], "it extracts nothing by itself"
    fleet.until(lambda: forked_by(fleet.pid("e01")) != [])
    (extractor,) = forked_by(fleet.pid("e01"))
    os.kill(extractor, signal.SIGKILL)
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    fleet.until(lambda: fleet.states("hq", "app")["e01"] == "extracted")
    assert same_trees(fleet.root / "source", fleet.root / "e01" / "dest" / "app") == ""
    assert f"{NAME} is gone" in fleet.log("e01")
    fleet.kill("e01")
    fleet.start("e01")
    fleet.until(lambda: forked_by(fleet.pid("e01")) != [])
    (extractor,) = forked_by(fleet.pid("e01"))
    fleet.kill("e01")
    fleet.until(lambda: not Path(f"/proc/{extractor}").exists())


def forked_by(agent: int) -> list[int]:
    """Return the living processes that an agent's extractions are forked from."""
    children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
    told = {int(pid): Path(f"/proc/{pid}/stat").read_text() for pid in children}
    return [pid for pid, stat in told.items() if f"({NAME}) " in stat and f"({NAME}) Z" not in stat]


def test_what_was_taken_back_stays_so_when_it_is_offered_again(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.hostvars["e01"]["ted_extract_schedule"] = {"immediately": True}
    fleet.install()
    fleet.start()
    told = fleet.root / "e01" / "dest" / "app" / "x"

    def release(text: str) -> str:
        (fleet.root / "source" / "x").write_text(text)
        (row,) = fleet.ted("hq", "build")["distributions"]
        fleet.ted("hq", "send")
        fleet.until(lambda: told.exists() and told.read_text() == text)
        fleet.until(lambda: fleet.ted("e01", "status")[0]["state"] == "extracted")
        return str(row["revision"])

    first, second = release("one"), release("two")
    fleet.ted("e01", "rollback", "app")
    fleet.ted("hq", "send")
    fleet.kill("e01")
    fleet.start("e01")
    fleet.ted("e01", "receive")
    assert told.read_text() == "one"
    third = release("three")
    events = [(row["kind"], row["revision"]) for row in fleet.ted("e01", "report", "events")]  # newest first
    since = events[: events.index(("rolled_back", first))]
    assert ("extracted", third) in since
    assert [each for each in since if each[1] == second] == []
    fleet.ted("e01", "rollback", "app")
    assert fleet.ted("e01", "extract", "app")["changed"]  # a person says so
    assert told.read_text() == "three"
    fleet.ted("e01", "extract", "app", "--revision", first)
    fleet.ted("hq", "send")
    fleet.kill("e01")
    fleet.start("e01")
    (row,) = fleet.ted("e01", "status")
    assert (row["state"], row["revision"], told.read_text()) == ("extracted", first, "one")


def test_receive_pulls_from_the_parent(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.settings["retry_for"] = 1
    fleet.install()
    fleet.start("hq", "s01")
    fleet.ted("hq", "build")
    with pytest.raises(CommandError):
        fleet.ted("hq", "send")
    fleet.start("e01")
    pulled = fleet.ted("e01", "receive")
    assert (pulled["changed"], pulled["distributions"][0]["state"]) == (True, "received")


def test_a_damaged_block_on_a_relay_is_not_passed_on(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.settings["retry_for"] = 3
    fleet.install()
    fleet.start("hq", "s01")
    fleet.ted("hq", "build")
    with pytest.raises(CommandError):
        fleet.ted("hq", "send")
    (pack,) = fleet.working("s01").glob("hq/app/*/DISTFILE.TED")
    with pack.open("r+b") as file:
        file.seek(100)
        file.write(b"damaged")
    fleet.start("e01")
    with pytest.raises(CommandError):
        fleet.ted("hq", "send")
    assert fleet.states("hq", "app")["e01"] == "failed"
    assert not list(fleet.working("e01").glob("hq/app/*/DISTSTATUS.TED"))


def test_many_distributions_at_once_disturb_each_other_nowhere(fleet: Fleet) -> None:
    two_tiers(fleet)
    distributions = fleet.hostvars["hq"]["ted_distributions"]
    for number in range(20):
        distributions[f"d{number:02}"] = distributions["app"] | {"options": {"targets": [
            {"path": f"%DEST%/d{number}", "from": [f"{fleet.root}/source/d{number % 5}/"]}]}}  # fmt: skip
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    sent = fleet.ted("hq", "send")
    assert len(sent["sends"]) == 21
    assert [result["incomplete"] for result in sent["sends"]] == [[]] * 21
    assert "a fault of ted" not in fleet.log("s01") + fleet.log("e01") + fleet.log("e02")


def test_a_send_to_nodes_that_rolled_back_finds_what_they_hold(fleet: Fleet) -> None:
    two_tiers(fleet)
    fleet.install()
    fleet.start()
    for text in ("one", "two"):
        (fleet.root / "source" / "x").write_text(text)
        fleet.ted("hq", "build")
        fleet.ted("hq", "send")
        for name in ("e01", "e02"):
            fleet.ted(name, "extract")
    fleet.ted("e01", "rollback", "app")
    fleet.until(lambda: fleet.states("hq", "app")["e01"] == "rolled_back")
    sent = fleet.ted("hq", "send")
    assert (sent["changed"], sent["sends"][0]["incomplete"]) == (False, [])
    own = fleet.ted("e01", "status")[0]
    assert own["state"] == "rolled_back"
    there = {row["node"]: (row["state"], row["revision"]) for row in fleet.ted("hq", "status", "app")}
    assert there["e01"] == ("rolled_back", own["revision"]), "what nobody changed is told as before"
    assert (there["s01"][0], there["e02"][0]) == ("received", "extracted")
    (fleet.root / "source" / "x").write_text("three")
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    assert fleet.states("hq", "app")["e01"] == "received", "what is new waits to be extracted"


def test_a_thousand_checks_that_find_nothing_new_cost_three_hundred_bytes_each(fleet: Fleet, meter: Meter) -> None:
    two_tiers(fleet, leaves=1)
    shutil.rmtree(fleet.root / "source")
    make_source(fleet.root / "source", files=10_000)
    line = meter(fleet, "s01")
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    state = fleet.working("e01") / ".ted"
    key = fleet.ted("e01", "receive")["distributions"][0]
    line.zero()
    for _ in range(1_000):
        assert call_agent(state, "receive")["offers"] == [["hq", key["distribution"], key["revision"]]]
    print(line.bytes / 1_000)
    assert line.bytes / 1_000 <= 300
    # and news is still news
    (fleet.root / "source" / "new.txt").write_text("new\n")
    built = fleet.ted("hq", "build")["distributions"][0]["revision"]
    fleet.ted("hq", "send")
    assert fleet.ted("e01", "receive")["distributions"][0]["revision"] == built
