"""What is urgent overtakes the bulk in full lines, over three tiers."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from lab_rig import WIRE, Lab, LabFleet

pytestmark = pytest.mark.lab
MIB = 1024 * 1024
BULK_BYTES = 12_000_000
RATES = {"high": 1_220_000, "low": 1_220_000}  # just under the lines: no queue forms in them
LINE_BYTES_S = 10e6 / 8


def distribution(fleet: LabFleet, name: str, size: int, priority: str) -> dict[str, Any]:
    directory = fleet.root / "source" / name
    directory.mkdir(parents=True)
    (directory / "big").write_bytes(random.Random(name).randbytes(size))
    return {"type": "file", "channels": ["pos"], "priority": priority,
            "options": {"targets": [{"path": "/nowhere", "from": [f"{directory}/"]}]}}  # fmt: skip


def test_urgent_overtakes_bulk_over_three_tiers_and_the_lines_stay_full(
    fleet: LabFleet, lab_of: Callable[..., Lab]
) -> None:
    sites = {f"s{n}": {"hosts": [f"r{n}"], "wan": "10mbit"} for n in (1, 2, 3)}
    lab = lab_of({"hq": {"hosts": ["dist"]}, **sites})
    fleet.add("dist", distributor=True, routing_hierarchy=[{"r1": ["r2"]}], output_rates=RATES, distributions={
        "idle": distribution(fleet, "idle", MIB, "high"),
        "bulk": distribution(fleet, "bulk", BULK_BYTES, "low"),
        "urgent": distribution(fleet, "urgent", MIB, "high"),
    })  # fmt: skip
    fleet.add("r1", output_rates=RATES)
    fleet.add("r2", output_rates=RATES)
    fleet.add("r3", parent="r2", channels=("pos",))
    fleet.place(lab)
    fleet.install()
    fleet.start()
    fleet.ted("dist", "build")
    idle_s = fleet.ted("dist", "send", "idle")["sends"][0]["duration_s"]
    lab.call("bytes", "--zero")
    bulk = fleet.ted("dist", "send", "bulk", "--no-wait")["sends"][0]["send"]
    fleet.until(lambda: lab.line_bytes("s3")["down"] > 2 * MIB)
    began_s, before = time.monotonic(), lab.line_bytes("s1")["down"]
    urgent_s = fleet.ted("dist", "send", "urgent")["sends"][0]["duration_s"]
    used = (lab.line_bytes("s1")["down"] - before) / LINE_BYTES_S / (time.monotonic() - began_s)
    print(f"idle {idle_s} s, urgent {urgent_s} s, {urgent_s / idle_s:.2f}; the first line was used {used:.1%}")
    assert fleet.states("dist", "bulk")["r3"] == "receiving"
    # sharing the lines evenly would be twice the time and more
    assert urgent_s < 1.5 * idle_s
    assert used > 0.85  # the commands that measure take their time too
    fleet.until(lambda: fleet.ted("dist", "send", "--watch", bulk)["sends"][0]["done"])
    assert fleet.states("dist", "bulk")["r3"] == "received"
    assert lab.line_bytes("s3")["down"] < (BULK_BYTES + MIB) * WIRE * 1.02
