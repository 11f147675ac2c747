"""What a check of the playbooks foretells of what comes next."""

from __future__ import annotations

import importlib.util
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
