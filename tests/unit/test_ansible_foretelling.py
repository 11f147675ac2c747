"""What a check of the playbooks foretells of what comes next."""

from __future__ import annotations

import importlib.util
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

PLUGINS = Path(__file__).parents[2] / "collections/ansible_collections/ted/distribution/plugins"


@pytest.fixture(scope="module")
def inventory() -> Any:
    spec = importlib.util.spec_from_file_location("ted_inventory", PLUGINS / "plugin_utils" / "inventory.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hostvars() -> dict[str, Any]:
    built = {"distributions": [{"distribution": "web", "check": True, "changed": True}]}
    return {
        "east": {"ted_distributions": {"web": {"channels": ["a"]}}, "build_done": built},
        "west": {"ted_distributions": {"web": {"channels": ["b"]}}},
        "s01": {}, "s02": {},
    }  # fmt: skip


GROUPS = {"distributors": ["east", "west"], "a": ["s01"], "b": ["s02"], "all": ["east", "west", "s01", "s02"]}


def test_what_one_distributor_builds_comes_to_its_own_channels_alone(inventory: Any, hostvars: dict[str, Any]) -> None:
    assert inventory.to_come(hostvars, GROUPS, "s01") == ["web"]
    assert inventory.to_come(hostvars, GROUPS, "s01", channel="b") == []
    assert inventory.to_come(hostvars, GROUPS, "s02") == []
    assert inventory.targets(hostvars, GROUPS) == ["s01", "s02"]


def test_a_distribution_without_channels_goes_out_on_none(inventory: Any, hostvars: dict[str, Any]) -> None:
    hostvars["east"]["ted_distributions"]["web"] = {"channels": None}
    assert inventory.to_be_built(hostvars, "east") == ["web"]
    assert inventory.to_be_built(hostvars, "east", channel="a") == []


def test_what_a_host_only_hands_on_is_not_installed_there(inventory: Any, hostvars: dict[str, Any]) -> None:
    edges = [{"receiver": "s01", "bytes": 7}, {"receiver": "s02", "bytes": 7}]
    send = {"send": None, "distributor": "west", "distribution": "web", "channel": "b", "edges": edges}
    for host in ("s01", "s02"):
        hostvars[host]["send_done"] = {"results": [{"sends": [send]}]}
    hostvars["east"]["build_done"] = {}
    assert inventory.to_come(hostvars, GROUPS, "s01") == []
    assert inventory.to_come(hostvars, GROUPS, "s02") == ["web"]


def test_outside_check_mode_nothing_is_foretold(inventory: Any, hostvars: dict[str, Any]) -> None:
    hostvars["east"]["build_done"]["distributions"][0]["check"] = False
    assert inventory.to_come(hostvars, GROUPS, "s01") == []


class Counted(dict[str, Any]):
    """Variables of hosts as Ansible has them: each look at a host costs."""

    def __init__(self, hostvars: dict[str, Any]) -> None:
        super().__init__(hostvars)
        self.looks: Counter[str] = Counter()

    def __getitem__(self, host: str) -> Any:
        self.looks[host] += 1
        return super().__getitem__(host)


def test_whatever_is_read_off_an_inventory_looks_up_each_host_once(inventory: Any, hostvars: dict[str, Any]) -> None:
    fed: dict[str, Any] = {"r1": {"ted_parent": "east"}, "s01": {"ted_parent": "r1", "ted_port": 1, "ted_address": "a"}}
    everyone = hostvars | fed
    groups = GROUPS | {"all": list(everyone)}
    for read in (
        lambda hosts: inventory.topology(hosts, groups, "east"),
        lambda hosts: inventory.members(hosts, groups),
        lambda hosts: inventory.node_settings(hosts, groups, "s01"),
        lambda hosts: inventory.to_come(hosts, groups, "s01"),
        lambda hosts: inventory.meant(hosts, groups, "nope"),
    ):
        counted = Counted(everyone)
        read(counted)
        assert counted.looks
        assert set(counted.looks.values()) == {1}
