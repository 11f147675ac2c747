"""``ted check`` and ``ted routes``, run as commands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

DATA: dict[str, Any] = {
    "_meta": {
        "hostvars": {
            "hq": {
                "ted_channels": {"antivirus": {}},
                "ted_distributions": {
                    "dat": {
                        "type": "file",
                        "channels": ["antivirus"],
                        "options": {"targets": [{"path": "/srv/dat", "from": ["/build/dat/"]}]},
                    }
                },
                "ted_routing_hierarchy": ["s01"],
            },
            "e01": {"ted_parent": "s02"},
            "e02": {"ted_parent": "s02"},
            "s02": {"ted_parent": "s01"},
        }
    },
    "distributors": {"hosts": ["hq"]},
    "subscribers": {"hosts": ["s01", "s02", "e01", "e02"]},
    "antivirus": {"hosts": ["s01", "e01", "e02"]},
}


def ted(*words: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "ted"
    return subprocess.run([str(program), *words], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def inventory(tmp_path: Path) -> Path:
    path = tmp_path / "topology.json"
    path.write_text(json.dumps(DATA))
    return path


def change(inventory: Path, host: str, **variables: Any) -> None:
    data = json.loads(inventory.read_text())
    data["_meta"]["hostvars"].setdefault(host, {}).update(variables)
    inventory.write_text(json.dumps(data))


def test_routes_shows_a_tree_with_its_targets_marked(inventory: Path) -> None:
    done = ted("routes", "-i", str(inventory))
    assert done.returncode == 0
    assert done.stdout == (
        "channel antivirus: dat\n"
        "hq  sends to 1, 3 receive through it\n"
        "└── s01 ●  sends to 1, 2 receive through it\n"
        "    └── s02 ○  sends to 2, 2 receive through it\n"
        "        ├── e01 ●\n"
        "        └── e02 ●\n"
        "\n"
        "● receives it for itself   ○ only passes it on\n"
    )


def test_routes_shows_as_many_tiers_as_asked(inventory: Path) -> None:
    assert ted("routes", "-i", str(inventory), "--depth", "1").stdout.splitlines()[1:3] == [
        "hq  sends to 1, 3 receive through it",
        "└── s01 ●  sends to 1, 2 receive through it",
    ]


def test_routes_json_has_the_shape_of_the_contract(inventory: Path) -> None:
    assert json.loads(ted("routes", "-i", str(inventory), "--json").stdout) == {
        "routes": [
            {
                "distributor": "hq",
                "channel": "antivirus",
                "distributions": ["dat"],
                "edges": [["hq", "s01"], ["s01", "s02"], ["s02", "e01"], ["s02", "e02"]],
                "paths": {
                    "e01": ["hq", "s01", "s02", "e01"],
                    "e02": ["hq", "s01", "s02", "e02"],
                    "s01": ["hq", "s01"],
                },
                "warnings": [],
            }
        ]
    }


def test_routes_are_narrowed_by_channel_distributor_and_limit(inventory: Path) -> None:
    done = ted(
        "routes", "-i", str(inventory), "--json", "--channel", "antivirus", "--distributor", "hq", "--limit", "e01,s01"
    )
    [found] = json.loads(done.stdout)["routes"]
    assert list(found["paths"]) == ["e01", "s01"]
    assert found["edges"] == [["hq", "s01"], ["s01", "s02"], ["s02", "e01"]]


def test_an_unknown_channel_is_an_error_with_the_exit_code_of_the_tree(inventory: Path) -> None:
    done = ted("routes", "-i", str(inventory), "--json", "--channel", "antivrus")
    assert done.returncode == 13
    assert json.loads(done.stdout)["error"]["hint"] == "did you mean antivirus?"


def test_the_inventory_placed_on_a_distributor_is_used_when_none_is_named(inventory: Path) -> None:
    assert ted("--config", str(inventory.parent), "routes").stdout == ted("routes", "-i", str(inventory)).stdout
    done = ted("--config", "/nowhere", "routes")
    assert done.returncode == 14
    assert "--inventory" in done.stderr


def test_check_finds_nothing_wrong_with_a_good_inventory(inventory: Path) -> None:
    done = ted("check", "-i", str(inventory))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith(
        "1 Distributor, 4 Subscribers, 0 External Subscribers, 1 channel, 1 distribution\n0 problems, 0 warnings\n"
    )
    assert json.loads(ted("check", "-i", str(inventory), "--json").stdout) == {
        "ok": True,
        "problems": [],
        "warnings": [],
    }


def test_check_looks_at_the_nodes_own_settings_too(inventory: Path) -> None:
    (inventory.parent / "node.yml").write_text("node: hq\nretry_fro: 3\n")
    done = ted("--config", str(inventory.parent), "--json", "check")
    assert done.returncode == 11
    problem = json.loads(done.stdout)["problems"][0]
    assert "retry_fro: is no setting of a node" in problem["message"]
    assert problem["hint"] == "did you mean retry_for?"


def test_check_lists_every_problem_with_host_and_variable(inventory: Path) -> None:
    for host in ("e01", "e02", "s01", "s02"):
        change(inventory, host, ted_prot=7465)
    change(inventory, "s01", ted_transport="ftp")
    done = ted("check", "-i", str(inventory), "--json")
    assert done.returncode == 11
    found = json.loads(done.stdout)
    assert found["ok"] is False
    assert [(item["host"], item["variable"]) for item in found["problems"]] == [
        ("s01", "ted_transport"), ("e01", "ted_prot"), ("e02", "ted_prot"), ("s01", "ted_prot"), ("s02", "ted_prot"),
    ]  # fmt: skip
    text = ted("check", "-i", str(inventory))
    assert text.returncode == 11
    assert "✘ e01, e02, s01, s02: ted_prot: is no variable of ted\n    did you mean ted_port?\n" in text.stdout


def test_check_warns_of_orphans(inventory: Path) -> None:
    change(inventory, "e02", ted_parent=None)
    done = ted("check", "-i", str(inventory), "--json")
    assert done.returncode == 0
    [warning] = json.loads(done.stdout)["warnings"]
    assert (warning["host"], warning["variable"]) == ("e02", "ted_parent")


def test_other_commands_refuse_a_broken_inventory_with_all_its_problems(inventory: Path) -> None:
    change(inventory, "e01", ted_parent="nobody")
    change(inventory, "e02", ted_port=0)
    done = ted("routes", "-i", str(inventory), "--json")
    assert done.returncode == 11
    error = json.loads(done.stdout)["error"]
    assert error["type"] == "InventoryError"
    assert {(item["host"], item["variable"]) for item in error["problems"]} == {
        ("e01", "ted_parent"),
        ("e02", "ted_port"),
    }


def test_check_names_variables_that_no_extraction_could_replace(inventory: Path) -> None:
    change(inventory, "e01", ted_variables={"A": "%B%", "B": "%A%"})
    change(inventory, "e02", ted_variables={"SITE": "/srv/%NOWHERE%", "HOME": "%ENV:HOME%/%SERVER_NAME%"})
    done = ted("check", "-i", str(inventory), "--json")
    assert done.returncode == 11
    found = {(item["host"], item["variable"]): item["message"] for item in json.loads(done.stdout)["problems"]}
    assert set(found) == {("e01", "ted_variables.A"), ("e01", "ted_variables.B"), ("e02", "ted_variables.SITE")}
    assert "%B% refers to itself: B -> A -> B" in found["e01", "ted_variables.A"]
    assert "%NOWHERE% is not defined" in found["e02", "ted_variables.SITE"]


def test_check_names_who_lacks_a_variable_of_a_path(inventory: Path) -> None:
    targets = [{"path": "%DEST_VOLUME%/%ENV:HOME%/%%", "from": ["/build/dat/"], "remove": ["old", "old-%shop%"]}]
    dat = DATA["_meta"]["hostvars"]["hq"]["ted_distributions"]["dat"] | {"options": {"targets": targets}}
    change(inventory, "hq", ted_distributions={"dat": dat})
    change(inventory, "e01", ted_variables={"Shop": "7"})
    done = ted("check", "-i", str(inventory), "--json")
    assert done.returncode == 0
    found = json.loads(done.stdout)["warnings"]
    assert [(item["host"], item["variable"]) for item in found] == [("e02", "ted_variables"), ("s01", "ted_variables")]
    said = "! e02, s01: ted_variables: %SHOP% is not defined, and dat of hq needs it there\n"
    assert said in ted("check", "-i", str(inventory)).stdout
