"""How long 10,000 subscribers in 250 LANs take to be read and routed (target: under 2 s).

Run: ``python benchmarks/routing.py [subscribers] [LANs]``
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from ted.topology import examine_inventory, routing_warnings, slip_tree, slips


def inventory(subscribers: int, lans: int) -> dict[str, Any]:
    """LANs of one parent each, in the hierarchy in tens; everybody on one channel, one in ten on another."""
    parents = [f"p{lan:04d}" for lan in range(lans)]
    ends = {f"{parents[n % lans]}-{n // lans:05d}": parents[n % lans] for n in range(subscribers - lans)}
    channels = {"everybody": {"send_schedule": {"daily": "02:00-05:00"}}, "some": {}}
    common: dict[str, Any] = {
        "ted_channels": channels,
        "ted_input_rate": "256KiB",
        "ted_output_rates": {"high": "2MB", "low": 1000},
        "ted_extract_schedule": "immediately",
        "ted_variables": {"DEST_VOLUME": "/"},
        "ansible_host": "10.0.0.1",
    }
    hostvars: dict[str, Any] = {name: {**common} for name in parents}
    hostvars |= {name: {**common, "ted_parent": parent} for name, parent in ends.items()}
    hostvars["hq"] = {
        **common,
        "ted_distributions": {"dat": {"type": "file", "channels": ["everybody", "some"]}},
        "ted_routing_hierarchy": [{parents[n]: parents[n + 1 : n + 10]} for n in range(0, lans, 10)],
    }
    return json.loads(  # type: ignore[no-any-return]  # as it comes from a file: nothing is shared
        json.dumps(
            {
                "_meta": {"hostvars": hostvars},
                "distributors": {"hosts": ["hq"]},
                "subscribers": {"hosts": [*parents, *ends]},
                "everybody": {"children": ["subscribers"]},
                "some": {"hosts": list(ends)[::10]},
            }
        )
    )


def main() -> None:
    subscribers, lans = (int(word) for word in (sys.argv[1:] + ["10000", "250"][len(sys.argv) - 1 :])[:2])
    data = inventory(subscribers, lans)
    start = time.perf_counter()
    found = examine_inventory(data)
    assert not found.problems, found.problems[:3]
    read = time.perf_counter()
    routes = slips(found.topology)
    routed = time.perf_counter()
    trees = [slip_tree(slip) for slip in routes]
    drawn = time.perf_counter()
    routing_warnings(found.topology)
    print(f"{subscribers} subscribers, {lans} LANs, {sum(len(slip.edges) for slip in routes)} edges")
    print(f"read   {read - start:6.2f} s")
    print(f"route  {routed - read:6.2f} s  (read + route {routed - start:.2f} s)")
    print(f"tree   {drawn - routed:6.2f} s  ({sum(tree.receivers for tree in trees)} receivers)")
    print(f"warn   {time.perf_counter() - drawn:6.2f} s")


if __name__ == "__main__":
    main()
