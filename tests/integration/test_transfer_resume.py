"""A cut transfer goes on where it stopped, and a relay passes on what it has while it still receives."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from fleet import CountingProxy, Fleet

Meter = Callable[[Fleet, str], CountingProxy]
PAYLOAD_BYTES = 8_000_000
SLOW_BYTES_S = 2_000_000.0


def chain(fleet: Fleet, meter: Meter) -> CountingProxy:
    """hq -> s01 -> e01, the line to hq metered and slow; returns that line."""
    import random

    fleet.add("hq", distributor=True, routing_hierarchy=["s01"], distributions={
        "app": {"type": "file", "channels": ["pos"], "options": {
            "targets": [{"path": "/nowhere", "from": [f"{fleet.root}/source/"]}]}},
    })  # fmt: skip
    fleet.add("s01")
    fleet.add("e01", parent="s01", channels=("pos",))
    (fleet.root / "source").mkdir()
    (fleet.root / "source" / "big").write_bytes(random.Random(1).randbytes(PAYLOAD_BYTES))
    line = meter(fleet, "hq")
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    line.rate_bytes_s = SLOW_BYTES_S
    line.zero()
    return line


@pytest.mark.parametrize("victim", ["hq", "s01", "e01"])
def test_after_a_kill_only_what_lacks_crosses_the_line(fleet: Fleet, meter: Meter, victim: str) -> None:
    line = chain(fleet, meter)
    send = fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
    fleet.until(lambda: line.bytes > PAYLOAD_BYTES * 0.4)
    fleet.kill(victim)
    assert line.bytes < PAYLOAD_BYTES * 0.95, "the kill came too late to say anything"
    fleet.start(victim)
    fleet.until(lambda: fleet.ted("hq", "send", "--watch", send)["sends"][0]["done"])
    result = fleet.ted("hq", "send", "--watch", send)["sends"][0]
    assert result["incomplete"] == []
    # what was under way and not yet durable may be lost: a second of the line, and what lay in sockets
    assert line.bytes < PAYLOAD_BYTES + SLOW_BYTES_S * 1.5 + 1_000_000
    # what came before the kill counts, though nobody was told of it
    assert [PAYLOAD_BYTES * 0.95 < edge["bytes"] < PAYLOAD_BYTES * 1.05 for edge in result["edges"]] == [True, True]


def test_a_parent_that_comes_back_is_used_again_at_once_and_hears_of_it(fleet: Fleet, meter: Meter) -> None:
    fleet.settings |= {"retry_interval": 100, "retry_for": 300}
    line = chain(fleet, meter)
    send = fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
    fleet.until(lambda: line.bytes > PAYLOAD_BYTES * 0.4)
    fleet.kill("s01")
    fleet.until(lambda: "again in 8.0 s" in fleet.log("e01"))  # by now it waits long between two tries
    fleet.start("s01")
    back_s = time.monotonic()
    fleet.until(lambda: list(fleet.working("e01").glob("hq/app/*/DISTSTATUS.TED")) != [])
    held_s = time.monotonic()
    assert held_s - back_s < 2 + PAYLOAD_BYTES / SLOW_BYTES_S
    fleet.until(lambda: fleet.ted("hq", "send", "--watch", send)["sends"][0]["done"])
    assert time.monotonic() - held_s < 2.5, "the receipts still wait for who is there"
    assert fleet.ted("hq", "send", "--watch", send)["sends"][0]["incomplete"] == []


def test_a_cut_line_loses_next_to_nothing(fleet: Fleet, meter: Meter) -> None:
    line = chain(fleet, meter)
    send = fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
    for share in (0.3, 0.6):
        fleet.until(lambda share=share: line.bytes > PAYLOAD_BYTES * share)
        line.cut()
    fleet.until(lambda: fleet.ted("hq", "send", "--watch", send)["sends"][0]["done"])
    assert fleet.ted("hq", "send", "--watch", send)["sends"][0]["incomplete"] == []
    assert line.bytes < PAYLOAD_BYTES + 2 * 1_500_000


def test_a_leaf_receives_while_its_relay_still_does(fleet: Fleet, meter: Meter) -> None:
    line = chain(fleet, meter)
    send = fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
    seen = []
    while not fleet.ted("hq", "send", "--watch", send)["sends"][0]["done"]:
        complete = list(fleet.working("s01").glob("hq/app/*/DISTSTATUS.TED"))
        packs = fleet.working("e01").glob("hq/app/*/DISTFILE.TED")
        seen.append((bool(complete), sum(path.stat().st_blocks * 512 for path in packs)))
    assert any(not complete and at_leaf > PAYLOAD_BYTES // 5 for complete, at_leaf in seen), seen
    assert line.bytes < PAYLOAD_BYTES * 1.05


def test_two_sends_of_one_revision_share_one_copy_per_line(fleet: Fleet, meter: Meter) -> None:
    line = chain(fleet, meter)
    inventory = fleet.hostvars["hq"]["ted_distributions"]["app"]
    inventory["channels"] = ["pos", "other"]
    fleet.add("e02", parent="s01", channels=("other",))
    fleet.install()
    fleet.start("e02")
    sent = fleet.ted("hq", "send")
    assert [result["incomplete"] for result in sent["sends"]] == [[], []]
    assert line.bytes < PAYLOAD_BYTES * 1.05
    assert fleet.states("hq", "app") == {"s01": "received", "e01": "received", "e02": "received"}


def test_a_newer_revision_takes_the_place_of_one_under_way(fleet: Fleet, meter: Meter) -> None:
    chain(fleet, meter)
    first = fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
    (fleet.root / "source" / "small").write_text("newer")
    newest = fleet.ted("hq", "build")["distributions"][0]["revision"]
    sent = fleet.ted("hq", "send")["sends"][0]
    assert (sent["revision"], sent["incomplete"]) == (newest, [])
    older = fleet.ted("hq", "send", "--watch", first)["sends"][0]
    assert older["done"]
    assert "superseded" in " ".join(older["errors"].values())


def test_a_send_by_another_way_takes_over_what_a_dead_parent_left(fleet: Fleet, meter: Meter) -> None:
    chain(fleet, meter).rate_bytes_s = None
    fleet.hostvars["hq"]["ted_routing_hierarchy"] = ["s01", "s02"]
    fleet.add("s02")
    fleet.add("e02", parent="s02", channels=("pos",))
    slow = meter(fleet, "s01")
    fleet.close()
    fleet.install()
    fleet.start()
    slow.rate_bytes_s = SLOW_BYTES_S
    fleet.ted("hq", "send", "--no-wait")
    fleet.until(lambda: slow.bytes > PAYLOAD_BYTES * 0.4)
    fleet.kill("s01")
    fleet.hostvars["e01"]["ted_parent"] = "s02"
    fleet.place_inventory()
    again = fleet.ted("hq", "send", "--timeout", "60", "--limit", "e01")["sends"][0]
    assert again["states"]["e01"] == "received"
    assert ("s02", "e01") in {(edge["sender"], edge["receiver"]) for edge in again["edges"]}
