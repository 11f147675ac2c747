"""Between real networks: a WAN line carries one copy, at its rate, through cuts."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from lab_rig import WIRE, Lab, LabFleet, goodput_s

pytestmark = pytest.mark.lab
PAYLOAD_BYTES = 8_000_000


def branch(fleet: LabFleet, lab_of: Callable[..., Lab], wan: str, leaves: int) -> Lab:
    """hq -> b01 over the WAN, b01 -> the other hosts of its LAN."""
    names = [f"b{number:02}" for number in range(1, leaves + 2)]
    lab = lab_of({"hq": {"hosts": ["dist"]}, "branch": {"hosts": names, "wan": wan}})
    fleet.add("dist", distributor=True, routing_hierarchy=["b01"], distributions={
        "app": {"type": "file", "channels": ["pos"], "options": {
            "targets": [{"path": "/nowhere", "from": [f"{fleet.root}/source/"]}]}},
    })  # fmt: skip
    fleet.add("b01", channels=("pos",))
    for name in names[1:]:
        fleet.add(name, parent="b01", channels=("pos",))
    fleet.place(lab)
    (fleet.root / "source").mkdir()
    (fleet.root / "source" / "big").write_bytes(random.Random(3).randbytes(PAYLOAD_BYTES))
    fleet.install()
    fleet.start()
    fleet.ted("dist", "build")
    lab.call("bytes", "--zero")
    return lab


def test_a_wan_line_carries_one_copy_however_many_are_behind_it(fleet: LabFleet, lab_of: Callable[..., Lab]) -> None:
    lab = branch(fleet, lab_of, "20mbit", leaves=4)
    sent = fleet.ted("dist", "send")["sends"][0]
    assert set(sent["states"].values()) == {"received"}
    assert lab.line_bytes("branch")["down"] < PAYLOAD_BYTES * WIRE * 1.02
    assert sent["duration_s"] > goodput_s(PAYLOAD_BYTES, 20) * 0.9, "the line was not shaped"


def test_a_cut_wan_line_goes_on_where_it_stopped(fleet: LabFleet, lab_of: Callable[..., Lab]) -> None:
    fleet.settings["timeout"] = 5
    lab = branch(fleet, lab_of, "20mbit", leaves=1)
    send = fleet.ted("dist", "send", "--no-wait")["sends"][0]["send"]
    fleet.until(lambda: lab.line_bytes("branch")["down"] > PAYLOAD_BYTES * 0.3)
    lab.call("link", "branch", "down")
    fleet.until(lambda: any(row["kind"] == "retry" for row in fleet.ted("b01", "report", "events")))
    lab.call("link", "branch", "up")
    fleet.until(lambda: fleet.ted("dist", "send", "--watch", send)["sends"][0]["done"])
    assert fleet.ted("dist", "send", "--watch", send)["sends"][0]["incomplete"] == []
    assert lab.line_bytes("branch")["down"] < PAYLOAD_BYTES * WIRE * 1.02 + 4_000_000
