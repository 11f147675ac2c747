"""Updates of packages, with real agents: opened on the way, the vendor's very file at the end, whatever the zlib."""

from __future__ import annotations

import io
import random
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from fleet import CountingProxy, Fleet, same_trees, two_tiers

Meter = Callable[[Fleet, str], CountingProxy]
OTHER_ZLIB = """
import zlib
plain = zlib.compressobj
def compressobj(level=-1, method=zlib.DEFLATED, wbits=15, memLevel=8, strategy=0):
    return plain(level, method, wbits, memLevel - 3, strategy)
zlib.compressobj = compressobj
"""


def release(fleet: Fleet, number: int, members: int = 10) -> Path:
    """Put version ``number`` of a package into the source, instead of the one before; 43 kB a member."""
    for former in fleet.root.glob("source/thing-*.whl"):
        former.unlink()
    out, words = io.BytesIO(), [b"word%d " % each for each in range(3000)]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in range(members):
            generator = random.Random(member)
            # The change comes first: all that follows is shifted in the compressed member.
            data = b"version %d\n" % number + b"".join(generator.choices(words, k=20_000))
            archive.writestr(zipfile.ZipInfo(f"thing/part{member}.py", (2026, 1, number + 1, 0, 0, 0)), data,
                             zipfile.ZIP_DEFLATED)  # fmt: skip
    path = fleet.root / "source" / f"thing-1.{number}.0-py3-none-any.whl"
    path.write_bytes(out.getvalue())
    return path


def packs(fleet: Fleet, name: str) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in fleet.working(name).glob("hq/app/*/DISTFILE.TED")}


def start_with_another_zlib(fleet: Fleet, name: str) -> None:
    place = fleet.root / "other"
    place.mkdir()
    (place / "sitecustomize.py").write_text(OTHER_ZLIB)
    fleet.inside[name] = ["env", f"PYTHONPATH={place}"]
    fleet.start(name)


def test_an_update_of_a_package_costs_its_change_and_arrives_as_the_very_file(
    fleet: Fleet, meter: Meter
) -> None:  # fmt: skip
    two_tiers(fleet, leaves=2)
    line = meter(fleet, "hq")
    fleet.install()
    fleet.start("hq", "s01", "e01")
    start_with_another_zlib(fleet, "e02")
    release(fleet, 0)
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    wheel = release(fleet, 1)
    built = fleet.ted("hq", "build")["distributions"][0]
    assert built["bytes"] > wheel.stat().st_size
    assert built["patch_bytes"] < wheel.stat().st_size // 20
    line.zero()
    sent = fleet.ted("hq", "send")["sends"][0]
    assert set(sent["states"].values()) == {"received"}
    came = {edge["receiver"]: edge["bytes"] for edge in sent["edges"]}
    assert came["e01"] < built["patch_bytes"] + 30_000
    assert line.bytes < built["patch_bytes"] + 40_000
    # who cannot close it alike did not even fetch the patch; its parent had rebuilt what it needs
    assert came["e02"] > wheel.stat().st_size
    assert "the patch is of no use" not in fleet.log("e01") + fleet.log("e02")
    assert not list(fleet.working("e02").glob("hq/app/*/PATCH-*/DISTFILE.TED"))
    assert packs(fleet, "e01") == packs(fleet, "e02") == packs(fleet, "s01") == packs(fleet, "hq")
    for name in ("e01", "e02"):
        fleet.ted(name, "extract")
        assert same_trees(fleet.root / "source", fleet.root / name / "dest" / "app") == ""


def test_a_relay_whose_zlib_gives_other_bytes_hands_the_patch_on(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    start_with_another_zlib(fleet, "s01")
    fleet.start("hq", "e01")
    release(fleet, 0)
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    wheel = release(fleet, 1)
    fleet.ted("hq", "build")
    sent = fleet.ted("hq", "send")["sends"][0]
    assert set(sent["states"].values()) == {"received"}
    assert "the patch is of no use" in fleet.log("s01")
    came = {edge["receiver"]: edge["bytes"] for edge in sent["edges"]}
    assert came["e01"] < wheel.stat().st_size // 4 < came["s01"]
    assert packs(fleet, "e01") == packs(fleet, "s01") == packs(fleet, "hq")


def test_an_agent_killed_while_it_closes_a_package_goes_on(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.install()
    fleet.start()
    release(fleet, 0, members=40)
    fleet.ted("hq", "build")
    fleet.ted("hq", "send")
    release(fleet, 1, members=40)
    assert fleet.ted("hq", "build")["distributions"][0]["patch_bytes"]
    send = fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
    generator = random.Random(4)
    for _ in range(2):
        time.sleep(generator.uniform(0, 0.6))
        fleet.kill("e01")
        fleet.start("e01")
    fleet.until(lambda: fleet.ted("hq", "send", "--watch", send)["sends"][0]["done"])
    assert fleet.ted("hq", "send", "--watch", send)["sends"][0]["incomplete"] == []
    assert packs(fleet, "e01") == packs(fleet, "hq") == packs(fleet, "s01")
    assert [path for path in fleet.root.rglob("*_TEMP") if "PATCH-" in path.name] == []
    fleet.ted("e01", "extract")
    assert same_trees(fleet.root / "source", fleet.root / "e01" / "dest" / "app") == ""


def test_a_distribution_may_leave_packages_closed(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    fleet.hostvars["hq"]["ted_distributions"]["app"]["open_packages"] = "none"
    fleet.install()
    release(fleet, 0)
    fleet.ted("hq", "build")
    wheel = release(fleet, 1)
    sent_bytes = fleet.ted("hq", "build")["distributions"][0]["patch_bytes"]
    assert sent_bytes is None or sent_bytes > wheel.stat().st_size // 2
