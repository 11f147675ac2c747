"""Depth: five hops of 20 Mbit/s beside one, 64 MiB, every block verified at every hop; in the lab (root)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.measure import Contender, Options, Sample, interleaved
from benchmarks.report import Report, spread
from benchmarks.rig import Lab, LabFleet, directory, goodput_s, write_random

MBIT_S = 20


def chain(root: Path, name: str, hops: int, size: int) -> Sample:
    """Send through ``hops`` nodes, each behind its own line, each line behind the one before; seconds to the last."""
    nodes = [f"n{number}" for number in range(1, hops + 1)]
    hierarchy: list[Any] = []
    for node in reversed(nodes):
        hierarchy = [{node: hierarchy}] if hierarchy else [node]
    sites: dict[str, Any] = {"hq": {"hosts": ["dist"]}}
    for above, node in zip([None, *nodes], nodes, strict=False):
        sites[f"s{node}"] = {"hosts": [node], "wan": f"{MBIT_S}mbit", **({"behind": f"s{above}"} if above else {})}
    fleet = LabFleet(root)
    fleet.add("dist", distributor=True, routing_hierarchy=hierarchy, distributions={
        "app": {"type": "file", "channels": ["pos"], "options": {
            "targets": [{"path": "/nowhere", "from": [f"{root}/source/"]}]}},
    })  # fmt: skip
    for node in nodes:
        fleet.add(node, channels=("pos",))
    write_random(root / "source" / "big", size)
    lab = Lab(name, root / "lab", {"sites": sites})
    try:
        fleet.place(lab)
        fleet.install()
        fleet.start()
        fleet.ted("dist", "build")
        sent = fleet.ted("dist", "send")["sends"][0]
        if sent["incomplete"]:
            raise RuntimeError(f"not received: {sent['errors']}")
        began_s = fleet.sent_at_s("dist")
        last_s = fleet.held_at_s("dist", "app", nodes[-1]) - began_s
        return Sample(last_s, 0, 0, {"of_goodput": last_s / goodput_s(size, MBIT_S)})
    finally:
        fleet.close()
        lab.call("down")


def table(options: Options) -> Report:
    """Measure one hop and five."""
    size = (16 if options.quick else 64) * 1024 * 1024

    def contender(hops: int) -> Contender:
        def run() -> Sample:
            with directory() as root:
                return chain(root, f"d{hops}", hops, size)

        return Contender(f"{hops} hops", run)

    found = interleaved([contender(1), contender(5)], options.rounds)
    best_s = goodput_s(size, MBIT_S)
    rows = [(name, spread(found.median(name, "wall_s"), found.worst(name, "wall_s")),
             f"{found.median(name, 'of_goodput'):.3f}") for name in found]  # fmt: skip
    rows += [("1 hop at goodput: the bound", f"{best_s:.2f}", "1.000"),
             ("5 hops, each waiting for the whole file: the bound", f"{5 * best_s:.2f}", "5.000")]  # fmt: skip
    columns = (f"{size / 2**20:.0f} MiB, lines of {MBIT_S} Mbit/s", "s until the last has it, median (worst)",
               "of one hop at goodput (reach: 1.05)")  # fmt: skip
    return Report("depth", "Depth", columns, rows, ["From the send to the last node's whole, verified, durable copy."])
