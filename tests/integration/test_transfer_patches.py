"""Updates by patches, with real agents: through relays, from several revisions back, under kills, and without them."""

from __future__ import annotations

import gzip
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from fleet import CountingProxy, Fleet, same_trees, two_tiers

Meter = Callable[[Fleet, str], CountingProxy]


def edit(fleet: Fleet, number: int) -> None:
    """Change the source a little: some bytes of a large file, a line of a small one."""
    source, generator = fleet.root / "source", random.Random(number)
    big = source / "big.bin"
    data = bytearray(big.read_bytes() if big.exists() else random.Random(0).randbytes(4_000_000))
    for _ in range(20):
        at = generator.randrange(len(data))
        data[at : at + 8] = generator.randbytes(8)
    big.write_bytes(data)
    (source / "d0" / "file00000.txt").write_text(f"revision {number}\n")


def build(fleet: Fleet, number: int) -> dict[str, int]:
    edit(fleet, number)
    built: dict[str, int] = fleet.ted("hq", "build")["distributions"][0]
    return built


def packs(fleet: Fleet, name: str) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in fleet.working(name).glob("hq/app/*/DISTFILE.TED")}


def test_a_fleet_on_five_revisions_gets_each_patch_once_over_the_line(fleet: Fleet, meter: Meter) -> None:
    two_tiers(fleet, leaves=5)
    line = meter(fleet, "hq")
    fleet.install()
    fleet.start()
    patch_bytes = 0
    for number in range(5):
        patch_bytes += build(fleet, number)["patch_bytes"] or 0
        fleet.ted("hq", "send", "--limit", f"e{number + 1:02}")
    # what each revision cost: the line carried the first pack once, and then patches
    newest = build(fleet, 5)["patch_bytes"]
    line.zero()
    sent = fleet.ted("hq", "send")["sends"][0]
    assert set(sent["states"].values()) == {"received"}
    assert line.bytes < newest + 20_000
    held = packs(fleet, "hq")
    for number in range(5):
        mine = packs(fleet, f"e{number + 1:02}")
        assert all(held[stamp] == data for stamp, data in mine.items())
        fleet.ted(f"e{number + 1:02}", "extract")
        assert same_trees(fleet.root / "source", fleet.root / f"e{number + 1:02}" / "dest" / "app") == ""
    # the leaf that was five revisions behind came up by patches, each from the revision before
    assert len(list(fleet.working("e01").glob("hq/app/*/PATCH-*/DISTFILE.TED"))) >= 1
    assert sum(edge["bytes"] for edge in sent["edges"] if edge["receiver"] == "e01") < 5 * newest + patch_bytes


def test_a_patch_that_the_sender_lost_costs_nothing_but_bytes(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    fleet.start()
    build(fleet, 0)
    fleet.ted("hq", "send")
    assert build(fleet, 1)["patch_bytes"]
    for patch in fleet.working("hq").glob("hq/app/*/PATCH-*"):
        shutil.rmtree(patch)
    assert set(fleet.ted("hq", "send")["sends"][0]["states"].values()) == {"received"}
    assert packs(fleet, "e01") == packs(fleet, "hq")


def test_a_distribution_without_patches_makes_none(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.hostvars["hq"]["ted_distributions"]["app"]["patches"] = "none"
    fleet.install()
    fleet.start()
    build(fleet, 0)
    assert build(fleet, 1)["patch_bytes"] is None
    assert not list(fleet.working("hq").glob("hq/app/*/PATCH-*"))


def test_an_agent_killed_while_it_fetches_and_applies_goes_on(fleet: Fleet, meter: Meter) -> None:
    two_tiers(fleet, leaves=1)
    line = meter(fleet, "s01")
    fleet.install()
    fleet.start()
    build(fleet, 0)
    fleet.ted("hq", "send")
    generator = random.Random(4)
    for number in range(1, 4):
        (fleet.root / "source" / "noise").write_bytes(random.Random(number).randbytes(1_000_000))
        build(fleet, number)
        line.rate_bytes_s = 2_000_000
        send = fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
        for name in ("e01", "s01", "e01"):
            time.sleep(generator.uniform(0, 0.5))
            fleet.kill(name)
            fleet.start(name)
        line.rate_bytes_s = None
        fleet.until(lambda send=send: fleet.ted("hq", "send", "--watch", send)["sends"][0]["done"])  # type: ignore[misc]
        assert fleet.ted("hq", "send", "--watch", send)["sends"][0]["incomplete"] == []
    assert packs(fleet, "e01") == packs(fleet, "hq") == packs(fleet, "s01")
    leftovers: list[Path] = [path for path in fleet.root.rglob("*_TEMP") if "PATCH-" in path.name]
    assert leftovers == []


def test_a_build_killed_while_it_makes_the_patch_makes_it_the_next_time(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    fleet.ted("hq", "build")
    (fleet.root / "source" / "d1" / "file00001.txt").write_text("another line\n" * 300)
    changed = fleet.ted("hq", "build")["distributions"][0]
    place = fleet.working("hq") / "hq" / "app" / changed["revision"]
    (patch,) = place.glob("PATCH-*")
    patch.rename(f"{patch}_TEMP")  # as a kill at the last moment leaves it
    again = fleet.ted("hq", "build")["distributions"][0]
    assert (again["changed"], again["patch_bytes"]) == (False, changed["patch_bytes"])
    assert [path.name for path in place.glob("PATCH-*")] == [patch.name]


def test_what_a_relay_went_over_stays_until_a_slow_node_behind_it_has_come_up_by_it(
    fleet: Fleet, meter: Meter
) -> None:
    two_tiers(fleet, leaves=1)
    line = meter(fleet, "s01")
    fleet.install()
    fleet.start()
    build(fleet, 0)
    fleet.ted("hq", "send")
    patch_bytes, between = 0, []
    for number in range(1, 4):
        (fleet.root / "source" / "noise").write_bytes(random.Random(number).randbytes(300_000))
        built = build(fleet, number)
        patch_bytes += built["patch_bytes"]
        between.append(fleet.working("s01") / "hq" / "app" / str(built["revision"]))
    line.rate_bytes_s = 200_000
    line.zero()
    sent = fleet.ted("hq", "send")["sends"][0]
    assert set(sent["states"].values()) == {"received"}
    assert sum(edge["bytes"] for edge in sent["edges"] if edge["receiver"] == "e01") == patch_bytes
    fleet.until(lambda: [place.exists() for place in between] == [False, False, True])
    assert packs(fleet, "e01")[between[-1].name] == packs(fleet, "hq")[between[-1].name]


SLOW_ZLIB = """
import time, zlib
plain = zlib.compressobj
class Slow:
    def __init__(self, *words):
        self.made = plain(*words)
        self.flush = self.made.flush
    def compress(self, data):
        time.sleep(1.2)
        return self.made.compress(data)
zlib.compressobj = Slow
"""


def test_a_window_that_ends_while_a_package_is_compressed_again_ends_that(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    (fleet.root / "slow").mkdir()
    (fleet.root / "slow" / "sitecustomize.py").write_text(SLOW_ZLIB)
    fleet.inside["e01"] = ["env", f"PYTHONPATH={fleet.root / 'slow'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"]
    fleet.start()
    words = random.Random(1).choices([b"word%d " % number for number in range(999)], k=600_000)
    package = fleet.root / "source" / "words.gz"
    for number in range(2):
        words[0] = b"revision %d\n" % number
        package.write_bytes(gzip.compress(b"".join(words), 6, mtime=0))  # 17 pieces: 20 s at e01
        built = fleet.ted("hq", "build")["distributions"][0]
        if not number:
            fleet.ted("hq", "send")
    assert built["patch_bytes"] < 20_000
    send = fleet.ted("hq", "send", "--until", "5s", "--no-wait")["sends"][0]["send"]
    fleet.until(lambda: fleet.ted("hq", "send", "--watch", send)["sends"][0]["done"], within_s=12)
    (said,) = fleet.ted("hq", "send", "--watch", send)["sends"][0]["errors"].values()
    assert "window" in said
    assert len(list(fleet.working("e01").glob("hq/app/*/PATCH-*/DISTFILE.TED"))) == 1
    fleet.kill("e01")
    del fleet.inside["e01"]
    fleet.start("e01")
    assert fleet.ted("hq", "send")["sends"][0]["states"]["e01"] == "received"
    assert packs(fleet, "e01") == packs(fleet, "hq")


def test_a_send_that_is_only_looked_at_foretells_the_patches_and_what_is_there(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    fleet.start()
    build(fleet, 0)
    foretold = fleet.ted("hq", "send", "--check")["sends"][0]["edges"]
    assert all(edge["bytes"] > 4_000_000 for edge in foretold)
    fleet.ted("hq", "send")
    fleet.ted("e01", "extract")
    patch_bytes = build(fleet, 1)["patch_bytes"]
    foretold = fleet.ted("hq", "send", "--check")["sends"][0]["edges"]
    assert {edge["bytes"] for edge in foretold} == {patch_bytes}
    came = fleet.ted("hq", "send")["sends"][0]["edges"]
    assert all(patch_bytes <= edge["bytes"] < patch_bytes * 1.1 + 3000 for edge in came)
    fleet.ted("e01", "extract")
    fleet.ted("e01", "rollback", "app")
    fleet.until(lambda: fleet.states("hq", "app")["e01"] == "rolled_back")
    foretold = fleet.ted("hq", "send", "--check")["sends"][0]["edges"]
    assert {edge["bytes"] for edge in foretold} == {0}
