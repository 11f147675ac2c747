"""How long 10,000 subscribers in 250 LANs take to be read and routed (target: under 2 s)."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from benchmarks.measure import Contender, Options, interleaved, run_function
from benchmarks.report import Report, mb, spread
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


def table(options: Options) -> Report:
    """Each step is measured with those before it: the last row is all of them."""
    subscribers, lans = (500, 10) if options.quick else (10_000, 250)
    data = inventory(subscribers, lans)
    steps = ("read", "route", "tree", "warn")
    contenders = [Contender(step, partial(run_function, partial(upto, step, data))) for step in steps]
    found = interleaved(contenders, options.rounds)
    rows = [
        (f"up to *{step}*", spread(found.median(step, "wall_s"), found.worst(step, "wall_s")),
         f"{found.median(step, 'cpu_s'):.2f}", mb(found.median(step, "peak_bytes")))
        for step in steps
    ]  # fmt: skip
    columns = (f"{subscribers:,} subscribers, {lans} LANs", "s, median (worst)", "CPU s", "peak MB")
    return Report("routing", "Reading and routing a large inventory", columns, rows)


def upto(step: str, data: dict[str, Any]) -> None:
    """Examine the inventory, make the slips, their trees, the warnings; stop after ``step``."""
    found = examine_inventory(data)
    assert not found.problems, found.problems[:3]
    if step == "read":
        return
    routes = slips(found.topology)
    if step == "route":
        return
    receivers = sum(slip_tree(slip).receivers for slip in routes)
    assert receivers
    if step == "tree":
        return
    routing_warnings(found.topology)
