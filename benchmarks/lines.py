"""One copy per line: 33 leaves behind lines of 20, 10 and 5 Mbit/s join at random, one relay is killed half way."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Contender, Options, Sample, interleaved
from benchmarks.report import Report, spread
from benchmarks.rig import WIRE, Clock, Lab, LabFleet, directory, goodput_s, write_random

RATES_MBIT_S = {"r1": 20, "r2": 10, "r3": 5}
JOIN_WITHIN_S = 10
VICTIM = "r2"


def run_once(root: Path, size: int, leaves: int, seed: int) -> Sample:
    """Send; return the seconds until the last leaf has it, and what each line carried, in copies."""
    fleet, sites = LabFleet(root), {"hq": {"hosts": ["dist"]}}
    fleet.settings |= {"timeout": 5, "retry_interval": 1, "retry_for": 120}
    fleet.add("dist", distributor=True, routing_hierarchy=list(RATES_MBIT_S), distributions={
        "app": {"type": "file", "channels": ["pos"], "options": {
            "targets": [{"path": "/nowhere", "from": [f"{root}/source/"]}]}},
    })  # fmt: skip
    everyone: list[str] = []
    for relay, mbit_s in RATES_MBIT_S.items():
        names = [f"{relay}-{number:02}" for number in range(1, leaves + 1)]
        site: dict[str, Any] = {"hosts": [relay, *names], "wan": f"{mbit_s}mbit"}
        sites[f"s{relay}"] = site
        fleet.add(relay, channels=("pos",))
        for name in names:
            fleet.add(name, parent=relay, channels=("pos",))
        everyone += names
    write_random(root / "source" / "big", size)
    lab = Lab("lines", root / "lab", {"sites": sites})
    try:
        fleet.place(lab)
        fleet.install()
        fleet.start("dist", *RATES_MBIT_S)
        fleet.ted("dist", "build")
        lab.call("bytes", "--zero")
        send = fleet.ted("dist", "send", "--no-wait")["sends"][0]["send"]
        clock, chance = Clock(), random.Random(seed)
        for name in everyone:
            clock.at(chance.uniform(0, JOIN_WITHIN_S), fleet.start, name)
        fleet.until(lambda: lab.line_bytes(f"s{VICTIM}")["down"] > size * WIRE / 2, within_s=300)
        fleet.kill(VICTIM)
        fleet.start(VICTIM)
        clock.join()
        fleet.until(lambda: fleet.ted("dist", "send", "--watch", send, "--timeout", "60")["sends"][0]["done"],
                    within_s=600)  # fmt: skip
        copies = {relay: lab.line_bytes(f"s{relay}")["down"] / size / WIRE for relay in RATES_MBIT_S}
        check(fleet, everyone)
        last_s = max(fleet.held_at_s("dist", "app", name) for name in everyone) - fleet.sent_at_s("dist")
        return Sample(last_s, 0, 0, {**copies, "of_slowest": last_s / goodput_s(size, min(RATES_MBIT_S.values()))})
    finally:
        fleet.close()
        lab.call("down")
        time.sleep(1)


def check(fleet: LabFleet, names: list[str]) -> None:
    """Compare every node's pack with the Distributor's, byte for byte.

    Raises:
        RuntimeError: One differs.
    """
    packs = [next(fleet.working(name).glob("dist/app/*/DISTFILE.TED")) for name in ["dist", *names]]
    if len({hashlib.file_digest(pack.open("rb"), "sha256").hexdigest() for pack in packs}) != 1:
        raise RuntimeError("a leaf has something else")


def table(options: Options) -> Report:
    """Measure the lines."""
    size, leaves = (8, 2) if options.quick else (64, 33)

    def run() -> Sample:
        with directory() as root:
            return run_once(root, size * 1024 * 1024, leaves, seed=5)

    found = interleaved([Contender("ted", run)], options.rounds)
    rows: list[tuple[object, ...]] = []
    for relay, mbit_s in RATES_MBIT_S.items():
        carried = spread(found.median("ted", relay), found.worst("ted", relay), 4)
        rows.append((f"line of {mbit_s} Mbit/s, copies", carried, "1.02"))
    last = spread(found.median("ted", "of_slowest"), found.worst("ted", "of_slowest"), 3)
    rows.append(("last leaf, of what the slowest line needs", last, ""))
    columns = (f"{size} MiB to {3 * leaves} leaves on 3 sites, {leaves} each", "median (worst)", "reach")
    note = (
        f"The leaves start at random within {JOIN_WITHIN_S} s; the relay {VICTIM} is killed (SIGKILL) when its line "
        "has carried half, and started again. All that crosses a line into its site counts, headers included."
    )
    return Report("lines", "One copy per line", columns, rows, [note])
