"""What ted is for, on real networks: depth is free, one copy per line, nothing that fails costs more than a block."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from fleet import same_trees
from lab_rig import Lab, LabFleet, goodput_s

pytestmark = pytest.mark.lab
MIB = 1024 * 1024


def distribute(fleet: LabFleet, size: int, hierarchy: list[Any], name: str = "dist") -> None:
    """Add the Distributor ``dist`` with one distribution ``app`` of ``size`` random bytes on the channel ``pos``."""
    fleet.add(name, distributor=True, routing_hierarchy=hierarchy, distributions={
        "app": {"type": "file", "channels": ["pos"], "options": {
            "targets": [{"path": "%DEST%", "from": [f"{fleet.root}/source/"]}]}},
    })  # fmt: skip
    source = fleet.root / "source"
    source.mkdir()
    (source / "big").write_bytes(random.Random(11).randbytes(size))


def receive(fleet: LabFleet, name: str, parent: str | None = None, **variables: Any) -> None:
    fleet.add(name, parent=parent, channels=("pos",), variables={"DEST": str(fleet.root / name / "dest")}, **variables)


def is_exact(fleet: LabFleet, name: str) -> bool:
    fleet.ted(name, "extract", "app")
    return same_trees(fleet.root / "source", fleet.root / name / "dest") == ""


def chain(fleet: LabFleet, lab_of: Callable[..., Lab], size: int, hops: int, mbit_s: int, *, ip6: bool = False) -> Lab:
    """dist -> n1 -> n2 ...: every node a site of its own, each line behind the one before."""
    names = [f"n{number}" for number in range(1, hops + 1)]
    hierarchy: list[Any] = []
    for name in reversed(names):
        hierarchy = [{name: hierarchy}] if hierarchy else [name]
    sites: dict[str, Any] = {"hq": {"hosts": ["dist"]}}
    for above, name in zip([None, *names], names, strict=False):
        sites[f"s{name}"] = {"hosts": [name], "wan": f"{mbit_s}mbit", **({"behind": f"s{above}"} if above else {})}
    lab = lab_of(sites)
    distribute(fleet, size, hierarchy)
    for name in names:
        receive(fleet, name)
    fleet.place(lab, ip6=ip6)
    fleet.install()
    fleet.start()
    fleet.ted("dist", "build")
    return lab


def depth(fleet: LabFleet, hops: int) -> tuple[float, float]:
    """Send; return the seconds of the first and of the last hop."""
    sent = fleet.ted("dist", "send")["sends"][0]
    assert sent["incomplete"] == []
    first_s, last_s = (fleet.held_at_s("dist", "app", f"n{number}") for number in (1, hops))
    return first_s - fleet.sent_at_s("dist"), last_s - fleet.sent_at_s("dist")


def test_the_fifth_hop_has_it_when_the_first_has_it(fleet: LabFleet, lab_of: Callable[..., Lab]) -> None:
    size = 16 * MIB
    chain(fleet, lab_of, size, 5, 20)
    first_s, last_s = depth(fleet, 5)
    assert goodput_s(size, 20) * 0.95 < first_s
    assert last_s < first_s * 1.5, "store and forward takes five times as long"
    for name in ("n2", "n3", "n4", "n5"):  # a parent with nothing yet is waited for, not asked again
        assert [row for row in fleet.ted(name, "report", "events") if row["kind"] == "retry"] == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_five_hops_take_a_twentieth_more_than_one(fleet: LabFleet, lab_of: Callable[..., Lab]) -> None:
    size = 64 * MIB
    chain(fleet, lab_of, size, 5, 20)
    first_s, last_s = depth(fleet, 5)
    print(f"one hop {first_s:.2f} s, five {last_s:.2f} s, goodput {goodput_s(size, 20):.2f} s")
    assert last_s < 1.05 * max(first_s, goodput_s(size, 20))


def test_a_tree_of_ipv6_alone_works(fleet: LabFleet, lab_of: Callable[..., Lab]) -> None:
    chain(fleet, lab_of, MIB, 2, 50, ip6=True)
    assert ":" in fleet.hostvars["n2"]["ted_address"]
    assert fleet.ted("dist", "send")["sends"][0]["incomplete"] == []
    assert is_exact(fleet, "n2")
