"""Damage in what is stored: it is found, told with its place and what mends it, and mended."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from bad_disk import BadDisk
from fleet import CommandError, CountingProxy, Fleet, two_tiers

from ted.content.blocks import PartialPack
from ted.content.working import read_record

BLOCK_BYTES = 64 * 1024
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: mounting needs root")


def a_fleet(fleet: Fleet, kept_blocks: int = 0) -> None:
    """A tree whose Distributor has built what does not compress: several blocks of noise."""
    two_tiers(fleet, leaves=1)
    (fleet.root / "source" / "noise").write_bytes(random.Random(1).randbytes(6 * BLOCK_BYTES))
    (fleet.root / "source" / "other").write_bytes(random.Random(2).randbytes(kept_blocks * BLOCK_BYTES))
    fleet.settings["retry_for"] = 600
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")


def damage(fleet: Fleet, node: str, at: int = 3 * BLOCK_BYTES, name: str = "DISTFILE.TED") -> Path:
    """Change some bytes of the newest stored pack of a node."""
    pack = sorted(fleet.working(node).glob(f"hq/app/*/{name}"))[-1]
    with pack.open("r+b") as file:
        file.seek(at)
        file.write(b"damaged")
    return pack


@pytest.mark.parametrize("name", ["DISTFILE.TED", "BLOCKS.TED"])
def test_damage_at_the_distributor_ends_the_send_for_all_with_its_cause(fleet: Fleet, name: str) -> None:
    a_fleet(fleet)
    at = 3 * BLOCK_BYTES if name == "DISTFILE.TED" else 5
    revision = damage(fleet, "hq", at, name).parent.name
    begun_s = time.monotonic()
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "send")
    assert time.monotonic() - begun_s < 30
    assert caught.value.returncode == 34
    assert f"{name} of app {revision} is damaged at hq" in str(caught.value)
    assert "`ted build --force app` on hq" in str(caught.value)
    assert fleet.states("hq", "app") == {"s01": "failed", "e01": "failed"}
    assert "damaged at hq" in str(fleet.ted("hq", "report", "failures"))


def test_damage_on_a_relay_fails_only_those_behind_it_and_what_came_stays(fleet: Fleet) -> None:
    a_fleet(fleet)
    fleet.kill("e01")
    fleet.ted("hq", "send", "--no-wait")
    fleet.until(lambda: fleet.states("hq", "app").get("s01") == "received")
    damage(fleet, "s01")
    fleet.start("e01")
    fleet.until(lambda: fleet.states("hq", "app").get("e01") == "failed", 30)
    (failure,) = [row for row in fleet.ted("hq", "report", "failures") if row["node"] == "e01"]
    assert "block 3 of DISTFILE.TED" in failure["error"]
    assert "`ted verify --stored --repair` on s01" in failure["error"]
    assert next(fleet.working("e01").glob("hq/app/*/DISTFILE.TED")).stat().st_blocks > 0
    with pytest.raises(CommandError) as caught:
        fleet.ted("e01", "receive")
    assert (caught.value.returncode, "damaged at s01" in str(caught.value)) == (34, True)
    fleet.ted("s01", "verify", "--stored", "--repair")
    fleet.ted("e01", "receive")
    assert fleet.states("hq", "app") == {"s01": "received", "e01": "received"}


@pytest.mark.parametrize("name", ["DISTFILE.TED", "BLOCKS.TED", "REVISION.TED"])
def test_a_subscriber_fetches_again_what_is_damaged_and_no_more(fleet: Fleet, name: str) -> None:
    a_fleet(fleet)
    fleet.ted("hq", "send")
    fleet.ted("e01", "extract")
    pack = damage(fleet, "e01", 3 * BLOCK_BYTES if name == "DISTFILE.TED" else 5, name)
    with pytest.raises(CommandError) as caught:
        fleet.ted("e01", "verify", "--stored")
    assert "build --force" not in (caught.value.error["hint"] or "")
    done = fleet.ted("e01", "verify", "--stored", "--repair")
    assert (done["ok"], done["problems"]) == (True, [])
    (row,) = done["repaired"]
    assert (row["revision"], row["from"]) == (pack.parent.name, "s01")
    assert row["bytes"] == (BLOCK_BYTES if name == "DISTFILE.TED" else 0)
    assert fleet.ted("e01", "verify", "--stored")["ok"]
    assert fleet.states("hq", "app")["e01"] == "extracted"


def test_a_repair_that_finds_no_parent_loses_nothing_and_the_next_one_goes_on(fleet: Fleet) -> None:
    a_fleet(fleet)
    fleet.ted("hq", "send")
    fleet.ted("e01", "extract")
    revision = damage(fleet, "e01").parent.name
    fleet.kill("s01")
    with pytest.raises(CommandError) as caught:
        fleet.ted("e01", "verify", "--stored", "--repair")
    assert "s01" in str(caught.value)
    fleet.kill("e01")  # what was found stays found
    with pytest.raises(CommandError) as caught:
        fleet.ted("e01", "verify", "--stored")
    assert "does not pass" in str(caught.value)
    assert "--stored --repair" in caught.value.error["hint"]
    fleet.start("s01", "e01")
    (row,) = fleet.ted("e01", "verify", "--stored", "--repair")["repaired"]
    assert (row["revision"], row["bytes"]) == (revision, BLOCK_BYTES)
    assert fleet.ted("e01", "verify")["ok"]
    assert fleet.states("hq", "app")["e01"] == "extracted"


def test_a_repair_that_was_killed_is_told_and_the_next_one_goes_on(fleet: Fleet) -> None:
    a_fleet(fleet)
    fleet.ted("hq", "send")
    fleet.kill("e01")
    place = next(fleet.working("e01").glob("hq/app/*/DISTFILE.TED")).parent
    PartialPack.doubted(place, read_record(place)[0].packs[0]).close()  # as a repair begins where it can trust nothing
    with pytest.raises(CommandError) as caught:
        fleet.ted("e01", "verify", "--stored")
    assert "is not here" in str(caught.value)
    fleet.start("e01")
    assert fleet.ted("e01", "verify", "--stored", "--repair")["ok"]
    assert fleet.ted("e01", "verify", "--stored")["ok"]


def test_what_is_here_was_received_even_if_its_extraction_failed(fleet: Fleet) -> None:
    a_fleet(fleet)
    fleet.ted("hq", "send")
    damage(fleet, "e01")
    with pytest.raises(CommandError):
        fleet.ted("e01", "extract")
    (row,) = fleet.ted("e01", "receive")["distributions"]
    assert (row["held"], row["state"]) == (True, "failed")
    assert "frame" in row["error"]


def test_a_repair_without_an_agent_says_what_to_start(fleet: Fleet) -> None:
    a_fleet(fleet)
    fleet.ted("hq", "send")
    damage(fleet, "e01")
    fleet.kill("e01")
    with pytest.raises(CommandError) as caught:
        fleet.ted("e01", "verify", "--stored", "--repair")
    assert "ted agent start" in caught.value.error["hint"]


def test_a_forced_build_leaves_a_damaged_pack_out_and_the_next_send_works(fleet: Fleet) -> None:
    a_fleet(fleet)
    revision = damage(fleet, "hq").parent.name
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "verify", "--stored", "--repair")
    assert "ted build --force app" in caught.value.error["hint"]
    (row,) = fleet.ted("hq", "build", "--force")["distributions"]
    assert any(revision in warning and "damaged" in warning for warning in row["warnings"])
    fleet.ted("hq", "send")
    assert set(fleet.states("hq", "app").values()) == {"received"}


def test_a_plain_build_that_comes_across_damage_says_in_which_revision_and_what_mends_it(fleet: Fleet) -> None:
    a_fleet(fleet, kept_blocks=20)
    revision = damage(fleet, "hq").parent.name
    noise = fleet.root / "source" / "noise"
    changed = bytearray(noise.read_bytes())
    changed[:: BLOCK_BYTES // 4] = bytes(24)  # each frame of it: the patch compares them with those of before
    noise.write_bytes(changed)
    said = fleet.ted_warnings("hq", "build")
    assert f"the stored pack of revision {revision} is damaged" in said
    assert "`ted build --force app`" in said


def test_a_pack_that_was_cut_short_keeps_what_is_left_of_it(fleet: Fleet) -> None:
    a_fleet(fleet)
    fleet.ted("hq", "send")
    pack = damage(fleet, "e01", 0)
    size_bytes = pack.stat().st_size
    os.truncate(pack, 3 * BLOCK_BYTES)
    (row,) = fleet.ted("e01", "verify", "--stored", "--repair")["repaired"]
    assert row["bytes"] == size_bytes - 2 * BLOCK_BYTES, "all but the second and the third block"
    assert fleet.ted("e01", "verify", "--stored")["ok"]


def test_a_repair_during_a_transfer_says_so_and_harms_neither(
    fleet: Fleet, meter: Callable[[Fleet, str], CountingProxy]
) -> None:
    two_tiers(fleet, leaves=1)
    line = meter(fleet, "s01")
    fleet.install()
    fleet.start()
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    first = damage(fleet, "e01", 100).parent.name
    (fleet.root / "source" / "noise").write_bytes(random.Random(1).randbytes(48 * BLOCK_BYTES))
    second = fleet.ted("hq", "build")["distributions"][0]["revision"]
    line.rate_bytes_s = 50_000  # until it was met
    send = fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
    fleet.until(lambda: bool(list(fleet.working("e01").glob(f"hq/app/{second}/DISTFILE.TED"))))
    with pytest.raises(CommandError) as caught:
        fleet.ted("e01", "verify", "--stored", "--repair")
    assert caught.value.returncode == 35
    assert "a transfer of app of hq is under way" in caught.value.error["message"]
    assert "again after that" in caught.value.error["hint"]
    assert fleet.states("hq", "app")["e01"] == "receiving", "it came too late to say anything"
    line.rate_bytes_s = None
    fleet.until(lambda: fleet.ted("hq", "send", "--watch", send)["sends"][0]["done"])
    assert fleet.states("hq", "app")["e01"] == "received"
    done, also = fleet.ted("e01", "verify", "--stored", "--repair")["repaired"]
    assert (done["revision"], done["from"], also["revision"], also["bytes"]) == (first, "s01", second, 0)
    assert fleet.ted("e01", "verify", "--stored")["ok"]


def moved(fleet: Fleet) -> None:
    """A tree in which e01 was moved from s01, which is gone, to s02 after the send; what it has is damaged."""
    a_fleet(fleet)
    fleet.ted("hq", "send")
    damage(fleet, "e01")
    fleet.hostvars["hq"]["ted_routing_hierarchy"] = ["s01", "s02"]
    fleet.add("s02")
    fleet.add("e02", parent="s02", channels=("pos",))
    fleet.hostvars["e01"]["ted_parent"] = "s02"
    fleet.close()
    fleet.install()
    fleet.start("hq", "s02", "e01", "e02")


def test_after_a_change_of_the_parent_a_repair_asks_the_new_one(fleet: Fleet) -> None:
    moved(fleet)
    fleet.ted("hq", "send", "--limit", "e02")
    (row,) = fleet.ted("e01", "verify", "--stored", "--repair")["repaired"]
    assert (row["from"], row["bytes"]) == ("s02", BLOCK_BYTES)
    assert fleet.ted("e01", "verify", "--stored")["ok"]


def test_a_new_parent_that_has_not_got_it_says_so_and_the_former_one_is_asked(fleet: Fleet) -> None:
    moved(fleet)
    with pytest.raises(CommandError) as caught:
        fleet.ted("e01", "verify", "--stored", "--repair")
    assert "is not on s02" in caught.value.error["message"]
    assert "send it again on hq" in caught.value.error["hint"]
    fleet.start("s01")
    (row,) = fleet.ted("e01", "verify", "--stored", "--repair")["repaired"]
    assert (row["from"], row["bytes"]) == ("s01", BLOCK_BYTES)


@pytest.fixture
def bad_disk(fleet: Fleet) -> Iterator[Callable[[str, int], BadDisk]]:
    """Yield a function that puts the stored pack of a node on a disk that cannot be read from some byte on."""
    with ExitStack() as disks:

        def put(name: str, first_bad_byte: int) -> BadDisk:
            (pack,) = fleet.working(name).glob("hq/app/*/DISTFILE.TED")
            disk = BadDisk(pack, first_bad_byte, fleet.root / f"disk-{name}")
            disks.callback(disk.close)
            return disk

        yield put
        fleet.close()


@needs_root
def test_sectors_that_cannot_be_read_are_told_and_written_anew(
    fleet: Fleet, bad_disk: Callable[[str, int], BadDisk]
) -> None:
    a_fleet(fleet)
    fleet.ted("hq", "send")
    disk = bad_disk("e01", 3 * BLOCK_BYTES)
    size_bytes = disk.file.stat().st_size
    with pytest.raises(OSError, match="Input/output error"):
        disk.file.read_bytes()
    with pytest.raises(CommandError) as caught:
        fleet.ted("e01", "verify", "--stored")
    assert caught.value.returncode == 22
    assert f"block 3 of {disk.file} is damaged" in caught.value.error["message"]
    assert "--stored --repair" in caught.value.error["hint"]
    with pytest.raises(CommandError) as caught:
        fleet.ted("e01", "extract")
    assert "cannot be read" in caught.value.error["message"]
    assert "--stored --repair" in caught.value.error["hint"]
    (row,) = fleet.ted("e01", "verify", "--stored", "--repair")["repaired"]
    assert (row["from"], row["bytes"]) == ("s01", size_bytes - 3 * BLOCK_BYTES)
    assert disk.file.read_bytes() == next(fleet.working("s01").glob("hq/app/*/DISTFILE.TED")).read_bytes()
    assert fleet.ted("e01", "extract")["changed"]


@needs_root
def test_a_sender_that_cannot_read_its_pack_is_named_within_seconds(
    fleet: Fleet, bad_disk: Callable[[str, int], BadDisk]
) -> None:
    a_fleet(fleet)
    fleet.kill("e01")
    fleet.ted("hq", "send", "--no-wait")
    fleet.until(lambda: fleet.states("hq", "app").get("s01") == "received")
    revision = bad_disk("s01", 3 * BLOCK_BYTES).file.parent.name
    fleet.start("e01")
    fleet.until(lambda: fleet.states("hq", "app").get("e01") == "failed", 30)
    (failure,) = [row for row in fleet.ted("hq", "report", "failures") if row["node"] == "e01"]
    assert f"block 3 of DISTFILE.TED of app {revision} is damaged at s01" in failure["error"]
    assert "`ted verify --stored --repair` on s01" in failure["error"]
    assert "cannot be read: Input/output error" in fleet.log("s01")
    fleet.ted("s01", "verify", "--stored", "--repair")
    fleet.ted("e01", "receive")
    assert fleet.states("hq", "app") == {"s01": "received", "e01": "received"}


@needs_root
def test_a_distributor_that_cannot_read_its_pack_packs_anew_what_it_held(
    fleet: Fleet, bad_disk: Callable[[str, int], BadDisk]
) -> None:
    a_fleet(fleet)
    bad_disk("hq", 3 * BLOCK_BYTES)
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "send")
    assert "block 3 of DISTFILE.TED" in str(caught.value)
    assert "is damaged at hq" in str(caught.value)
    fleet.ted("hq", "build", "--force")
    fleet.ted("hq", "send")
    assert set(fleet.states("hq", "app").values()) == {"received"}


@pytest.mark.parametrize("node", ["hq", "s01"])
def test_a_sender_whose_pack_was_cut_short_is_named_within_seconds(fleet: Fleet, node: str) -> None:
    a_fleet(fleet)
    fleet.kill("e01")
    if node == "s01":
        fleet.ted("hq", "send", "--no-wait")
        fleet.until(lambda: fleet.states("hq", "app").get("s01") == "received")
    (pack,) = fleet.working(node).glob("hq/app/*/DISTFILE.TED")
    os.truncate(pack, 3 * BLOCK_BYTES)
    if node == "hq":
        fleet.ted("hq", "send", "--no-wait")
    fleet.start("e01")
    fleet.until(lambda: fleet.states("hq", "app").get("e01") == "failed", 30)
    failures = {row["node"]: row["error"] for row in fleet.ted("hq", "report", "failures")}
    mend = "`ted build --force app` on hq" if node == "hq" else "`ted verify --stored --repair` on s01"
    assert f"DISTFILE.TED of app {pack.parent.name} is damaged at {node}" in failures["e01"]
    assert mend in failures["e01"]
    if node == "s01":
        fleet.ted("s01", "verify", "--stored", "--repair")
        fleet.ted("e01", "receive")
        assert fleet.states("hq", "app") == {"s01": "received", "e01": "received"}


@pytest.mark.parametrize("name", ["DISTFILE.TED", "BLOCKS.TED"])
def test_a_damaged_patch_is_told_removed_and_made_again_by_the_next_build(fleet: Fleet, name: str) -> None:
    a_fleet(fleet, kept_blocks=4)
    fleet.ted("hq", "send")
    noise = fleet.root / "source" / "noise"
    noise.write_bytes(b"changed" + noise.read_bytes()[7:])
    newest = fleet.ted("hq", "build")["distributions"][0]["revision"]
    fleet.ted("hq", "send")
    for node in ("hq", "s01"):
        (place,) = fleet.working(node).glob("hq/app/*/PATCH-*")
        data = (place / name).read_bytes()
        (place / name).write_bytes(data[:-20] + bytes(20))
        with pytest.raises(CommandError) as caught:
            fleet.ted(node, "verify", "--stored")
        assert caught.value.returncode == 22
        assert str(place) in caught.value.error["message"]
        assert "removes this patch" in caught.value.error["hint"]
        done = fleet.ted(node, "verify", "--stored", "--repair")
        (row,) = done["repaired"]
        assert (done["ok"], row["revision"], row["removed"]) == (True, newest, str(place))
        assert row["made_again_by_build"] == (node == "hq")
        assert not place.exists()
        assert fleet.ted(node, "verify", "--stored")["ok"]
    built = fleet.ted("hq", "build")["distributions"][0]
    assert (built["changed"], built["revision"]) == (False, newest)
    assert len(list(fleet.working("hq").glob("hq/app/*/PATCH-*/DISTFILE.TED"))) == 1
    assert fleet.ted("hq", "verify", "--stored")["ok"]


@pytest.mark.parametrize("left_bytes", [BLOCK_BYTES, 0])
def test_a_patch_that_lost_its_end_hinders_no_build_and_is_removed(fleet: Fleet, left_bytes: int) -> None:
    a_fleet(fleet, kept_blocks=4)
    fleet.ted("hq", "send")
    noise = fleet.root / "source" / "noise"
    noise.write_bytes(random.Random(3).randbytes(2 * BLOCK_BYTES) + noise.read_bytes()[2 * BLOCK_BYTES :])
    newest = fleet.ted("hq", "build")["distributions"][0]["revision"]
    fleet.ted("hq", "send")
    for node in ("hq", "s01"):
        (patch,) = fleet.working(node).glob("hq/app/*/PATCH-*/DISTFILE.TED")
        assert patch.stat().st_size > 2 * BLOCK_BYTES
        os.truncate(patch, left_bytes)
    assert fleet.ted("hq", "build")["distributions"][0]["revision"] == newest
    (row,) = fleet.ted("hq", "verify", "--stored", "--repair")["repaired"]
    removed = fleet.working("hq") / "hq" / "app" / newest / patch.parent.name
    assert (row["removed"], row["made_again_by_build"]) == (str(removed), True)
    fleet.ted("hq", "build")
    assert fleet.ted("hq", "verify", "--stored")["ok"]
    assert fleet.ted("s01", "verify", "--stored")["ok"], "there it counts as partly here"


def test_a_patch_that_is_only_partly_here_is_no_damage(fleet: Fleet) -> None:
    a_fleet(fleet, kept_blocks=4)
    fleet.ted("hq", "send")
    noise = fleet.root / "source" / "noise"
    noise.write_bytes(b"changed" + noise.read_bytes()[7:])
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    (place,) = fleet.working("s01").glob("hq/app/*/PATCH-*")
    (place / "DISTFILE.TED").unlink()  # with a bitmap: as one that was given up
    assert fleet.ted("s01", "verify", "--stored")["ok"]


def altered_record(place: Path) -> bytes:
    """Change a record so that it can still be read; return it as it was."""
    before = (place / "REVISION.TED").read_bytes()
    after = before.replace(b'"priority":"medium"', b'"priority":"xedium"')
    assert after != before
    (place / "REVISION.TED").write_bytes(after)
    return before


def test_a_build_signs_no_record_that_was_changed_on_the_disk(fleet: Fleet) -> None:
    a_fleet(fleet, kept_blocks=4)
    (place,) = (path.parent for path in fleet.working("hq").glob("hq/app/*/REVISION.TED"))
    before = altered_record(place)
    (fleet.root / "source" / "more").write_text("more")
    said = fleet.ted_warnings("hq", "build")
    assert f"the record of revision {place.name} is not what was signed" in said
    fleet.ted("hq", "send")
    assert set(fleet.states("hq", "app").values()) == {"received"}
    (place / "REVISION.TED").write_bytes(before)
    assert "not what was signed" not in fleet.ted_warnings("hq", "build"), "what was signed stayed signed"
    assert fleet.ted("hq", "verify", "--stored")["ok"]


def altered_before_it_was_signed(fleet: Fleet) -> str:
    """Build a revision as if the build was killed before it signed, and change its record; return its stamp."""
    catalog = fleet.working("hq") / "hq" / ".catalog"
    shutil.copytree(catalog, fleet.root / "catalog")
    (fleet.root / "source" / "more").write_text("more")
    unsigned: str = fleet.ted("hq", "build")["distributions"][0]["revision"]
    shutil.rmtree(catalog)
    shutil.copytree(fleet.root / "catalog", catalog)
    altered_record(fleet.working("hq") / "hq" / "app" / unsigned)
    return unsigned


def test_a_record_that_changed_before_it_was_signed_is_removed_and_what_was_built_is_signed(fleet: Fleet) -> None:
    a_fleet(fleet, kept_blocks=4)
    unsigned = altered_before_it_was_signed(fleet)
    built = fleet.ted("hq", "build")["distributions"][0]
    assert any(unsigned in warning and "removed" in warning for warning in built["warnings"])
    assert (built["changed"], built["revision"] > unsigned) == (True, True)
    fleet.ted("hq", "send")
    assert set(fleet.states("hq", "app").values()) == {"received"}
    assert fleet.ted("hq", "verify", "--stored")["ok"]


def test_a_purge_signs_no_record_that_changed_before_it_was_signed(fleet: Fleet) -> None:
    a_fleet(fleet, kept_blocks=4)
    for number in range(2):  # of which a purge finds one too many
        (fleet.root / "source" / "more").write_text(f"{number}")
        newest = fleet.ted("hq", "build")["distributions"][0]["revision"]
    unsigned = altered_before_it_was_signed(fleet)
    fleet.hostvars["hq"]["ted_distributions"]["app"]["max_revisions"] = 1
    fleet.install()
    fleet.ted("hq", "purge")
    signed = [path.read_text() for path in (fleet.working("hq") / "hq" / ".catalog").glob("*.json")]
    assert any(newest in text for text in signed)
    assert not any(unsigned in text for text in signed)


def test_once_packed_anew_the_distributor_is_told_that_its_newest_revision_is_sound(fleet: Fleet) -> None:
    a_fleet(fleet)
    damage(fleet, "hq")
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "verify", "--stored")
    assert "`ted build --force app` packs it anew" in caught.value.error["hint"]
    newest = fleet.ted("hq", "build", "--force")["distributions"][0]["revision"]
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "verify", "--stored")
    assert f"the newest revision, {newest}, is sound" in caught.value.error["hint"]
    assert "max_revisions removes older ones" in caught.value.error["hint"]


def test_after_a_new_catalog_no_revision_is_removed_and_what_is_damaged_is_not_signed(fleet: Fleet) -> None:
    a_fleet(fleet, kept_blocks=4)
    shared = next(fleet.working("hq").glob("hq/app/*/DISTFILE.TED"))
    (fleet.root / "source" / "more").write_text("more")
    fleet.ted("hq", "build")
    damage_in = shared.read_bytes()
    shared.write_bytes(damage_in[:-1] + bytes([damage_in[-1] ^ 1]))
    shutil.rmtree(fleet.working("hq") / "hq" / ".catalog")
    before = sorted(fleet.working("hq").glob("hq/app/*/REVISION.TED"))
    (fleet.root / "source" / "more").write_text("still more")
    warnings = fleet.ted("hq", "build")["distributions"][0]["warnings"]
    assert sum("is not in the catalog and cannot be signed" in warning for warning in warnings) == len(before) == 2
    assert set(before) < set(fleet.working("hq").glob("hq/app/*/REVISION.TED"))
