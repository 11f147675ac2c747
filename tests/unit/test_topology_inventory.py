"""Inventories as people write them, read with the real ansible-inventory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ted.errors import ConfigError, InventoryError
from ted.topology import compact, parse_inventory, slips
from ted.topology.inventory import examine_source, load_inventory, read_inventory

REPOSITORY = Path(__file__).parents[2]

YAML = """
all:
  vars:
    base: /srv
    nested: {one: "{{ base }}/one"}
    ted_channels: {antivirus: {active: "{{ 1 == 1 }}"}}
  children:
    distributors:
      hosts:
        hq:
          ted_port: "{{ 7000 + 465 }}"
          ted_routing_hierarchy: "{{ groups['parents'] }}"
          ted_distributions:
            dat:
              type: file
              channels: [antivirus]
              options:
                targets:
                  - {path: "{{ nested.one }}/{{ shop }}/%NAME%", from: ["{{ inventory_dir }}/build/"]}
    subscribers:
      children:
        parents: {hosts: {s01: }}
        ends:
          hosts:
            s02: {ted_parent: "{{ groups['parents'][0] }}", ted_port: "{{ hostvars['hq'].ted_port }}"}
            s03: {ted_parent: s01, ansible_host: "{{ inventory_hostname }}.example", ted_timeout: "{{ omit }}"}
    antivirus: {children: {subscribers: }}
"""


@pytest.fixture
def hosts(tmp_path: Path) -> Path:
    path = tmp_path / "hosts.yml"
    path.write_text(YAML)
    return path


def add(path: Path, host: str, **variables: Any) -> None:
    directory = path.parent / "host_vars"
    directory.mkdir(exist_ok=True)
    (directory / f"{host}.yml").write_text(yaml.safe_dump(variables))


def test_a_yaml_inventory_is_read_with_its_templates_rendered(hosts: Path) -> None:
    topology = load_inventory(hosts)
    assert topology.nodes["hq"].port == topology.nodes["s02"].port == 7465
    assert topology.nodes["s03"].address == "s03.example"
    assert topology.nodes["s03"].timeout_s == 300.0
    [slip] = slips(topology)
    assert slip.edges == (("hq", "s01"), ("s01", "s02"), ("s01", "s03"))


def test_a_subscribers_variable_in_a_target_path_stays_as_it_is(hosts: Path) -> None:
    distribution = load_inventory(hosts).distributor("hq").distributions["dat"]
    assert distribution.options["targets"] == [
        {"path": "/srv/one/{{ shop }}/%NAME%", "from": [f"{hosts.parent.resolve()}/build/"]}
    ]


def test_a_template_may_use_lookups_and_filters_by_their_full_names(hosts: Path) -> None:
    add(hosts, "s02", ted_variables={"HOME": "{{ lookup('ansible.builtin.env', 'HOME') | ansible.builtin.quote }}"})
    settings = load_inventory(hosts).nodes["s02"].subscriber
    assert settings is not None
    assert settings.variables == {"HOME": os.environ["HOME"]}


def test_a_template_that_cannot_be_rendered_is_a_problem_with_host_and_variable(hosts: Path) -> None:
    add(hosts, "s02", ted_min_free="{{ typo }}", ted_transport="ftp")
    add(hosts, "hq", ted_database_url="{{ 1 / 0 }}", ted_unlisted_parent="{{ oops")
    with pytest.raises(InventoryError) as caught:
        load_inventory(hosts)
    found = {(item["host"], item["variable"]): item["message"] for item in caught.value.problems}
    assert sorted(found) == [
        ("hq", "ted_database_url"),
        ("hq", "ted_unlisted_parent"),
        ("s02", "ted_min_free"),
        ("s02", "ted_transport"),
    ]
    assert "typo" in str(found["s02", "ted_min_free"])


def test_what_the_inventory_marks_unsafe_is_never_rendered(hosts: Path) -> None:
    marker = hosts.parent / "ran"
    directory = hosts.parent / "host_vars"
    directory.mkdir()
    (directory / "s02.yml").write_text(
        f"tag: !unsafe \"{{{{ lookup('pipe', 'touch {marker}') }}}}\"\n"
        'ted_variables: {TAG: "{{ tag }}", RAW: !unsafe "{{ base }}"}\n'
    )
    settings = load_inventory(hosts).nodes["s02"].subscriber
    assert settings is not None
    assert settings.variables == {"TAG": f"{{{{ lookup('pipe', 'touch {marker}') }}}}", "RAW": "{{ base }}"}
    assert not marker.exists()


def test_a_vaulted_value_and_what_needs_it_stay_closed(hosts: Path) -> None:
    directory = hosts.parent / "host_vars"
    directory.mkdir()
    (directory / "hq.yml").write_text(
        'ted_database_url: "postgresql://ted:{{ password }}@db/ted"\n'
        "password: !vault |\n  $ANSIBLE_VAULT;1.1;AES256\n  33626430\n"
    )
    found = examine_source(hosts)
    assert found.problems == ()
    assert found.topology.distributor("hq").database_url == "postgresql://ted:{{ password }}@db/ted"
    assert "password" not in compact(read_inventory(hosts).data)["_meta"]["hostvars"]["hq"]


def test_an_ini_inventory_is_read(tmp_path: Path) -> None:
    path = tmp_path / "hosts.ini"
    path.write_text(
        "[distributors]\nhq\n[subscribers]\ns[01:03]\n[subscribers:vars]\nted_port=7000\nted_parent=hq\n"
        "[antivirus:children]\nsubscribers\n[all:vars]\nted_channels={'antivirus': {}}\n"
    )
    topology = load_inventory(path)
    assert topology.subscribers == ("s01", "s02", "s03")
    assert topology.nodes["s02"].port == 7000
    assert list(topology.channels) == ["antivirus"]


def test_a_dynamic_inventory_is_read(tmp_path: Path) -> None:
    path = tmp_path / "dynamic.json"  # executable: run, not read
    data = {"_meta": {"hostvars": {"s01": {"ted_port": 7001}}}, "subscribers": {"hosts": ["s01"]}}
    path.write_text(f"#!/bin/sh\necho '{json.dumps(data)}'\n")
    path.chmod(0o755)
    assert load_inventory(path).nodes["s01"].port == 7001


def test_a_directory_is_read(hosts: Path) -> None:
    (hosts.parent / "README.md").write_text("# not an inventory\n")
    assert load_inventory(hosts.parent) == load_inventory(hosts)


def test_the_json_of_an_inventory_gives_the_same_topology_without_ansible(
    hosts: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    placed = tmp_path_factory.mktemp("etc") / "topology.json"
    placed.write_text(json.dumps(compact(read_inventory(hosts).data)))
    code = (
        "import sys; sys.modules['ansible'] = None; sys.executable = '/nowhere/python'\n"
        "from pathlib import Path\nfrom ted.topology.inventory import load_inventory\n"
        f"print(load_inventory(Path({str(placed)!r})).nodes['s03'].address)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PATH": "/nowhere"}, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("s03.example\n", "")
    assert load_inventory(placed) == load_inventory(hosts)


def test_without_ansible_the_error_says_what_to_install(hosts: Path) -> None:
    code = (
        "import sys; sys.executable = '/nowhere/python'\nfrom pathlib import Path\n"
        "from ted.topology.inventory import load_inventory\n"
        f"try: load_inventory(Path({str(hosts)!r}))\nexcept Exception as e: print(type(e).__name__, e, e.hint)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PATH": "/nowhere"}, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("ConfigError reading this inventory needs Ansible")
    assert "pip install" in done.stdout


@pytest.mark.parametrize(
    ("name", "content"),
    [("missing.yml", None), ("broken.yml", "all: [\n"), ("broken.json", "{"), ("list.json", "[]")],
)
def test_what_cannot_be_read_is_a_config_error(tmp_path: Path, name: str, content: str | None) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_inventory(path)
    assert name in caught.value.message


def test_half_an_inventory_is_refused(hosts: Path) -> None:
    (hosts.parent / "more.yml").write_text("all: {hosts: {s99: }\n")
    with pytest.raises(ConfigError, match=r"more\.yml"):
        load_inventory(hosts.parent)


def test_deeply_nested_json_is_an_error_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text('{"_meta": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(ConfigError):
        load_inventory(path)


def test_the_inventory_of_three_lans_is_the_picture_of_the_manual() -> None:
    found = examine_source(REPOSITORY / "inventories" / "wan")
    assert (found.problems, found.warnings) == ((), ())
    assert parse_inventory(compact(read_inventory(REPOSITORY / "inventories" / "wan").data)) == found.topology
    everybody, shops = slips(found.topology)
    assert len(everybody.paths) == 157
    assert everybody.edges[:3] == (("hq", "a01"), ("hq", "b01"), ("hq", "c01"))
    assert everybody.paths["c03-30"] == ("hq", "c01", "c03", "c03-30")
    assert len(shops.paths) == 120
