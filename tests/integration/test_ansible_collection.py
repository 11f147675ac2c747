"""The collection as a thing that is shipped: it documents itself, passes the linter, is installed from a tarball."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
COLLECTION = REPOSITORY / "collections" / "ansible_collections" / "ted" / "distribution"
BIN = Path(sys.executable).parent
PLUGINS = sorted(
    (path.parent.name.removesuffix("s"), path.stem)
    for kind in ("modules", "filter", "lookup", "callback")
    for path in (COLLECTION / "plugins" / kind).glob("*.py")
)


def run(
    command: list[str], home: Path, *, cwd: Path = REPOSITORY, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program of this virtual environment with an Ansible home of its own."""
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=cwd,
        env={
            **os.environ,
            "ANSIBLE_HOME": str(home),
            "ANSIBLE_NOCOLOR": "1",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def test_ansible_doc_shows_every_plugin_with_examples_that_parse(tmp_path: Path) -> None:
    for kind in ("module", "filter", "lookup", "callback"):
        names = [f"ted.distribution.{name}" for of, name in PLUGINS if of == kind]
        done = run(["ansible-doc", "--json", "-t", kind, *names], tmp_path)
        assert done.returncode == 0, done.stderr
        shown = json.loads(done.stdout)
        assert sorted(shown) == sorted(names)
        for name, page in shown.items():
            assert page["doc"]["description"], name
            if kind != "callback":
                examples = yaml.safe_load(page["examples"])
                assert examples, name
                assert page["return"], name


def test_every_module_documents_check_mode_and_supports_it(tmp_path: Path) -> None:
    names = [f"ted.distribution.{name}" for kind, name in PLUGINS if kind == "module"]
    shown = json.loads(run(["ansible-doc", "--json", *names], tmp_path).stdout)
    for name in names:
        attributes = shown[name]["doc"]["attributes"]
        assert attributes["check_mode"]["support"] == "full", name
        assert set(attributes) >= {"check_mode", "diff_mode", "idempotent"}, name


def test_every_module_is_in_the_action_group() -> None:
    group = yaml.safe_load((COLLECTION / "meta" / "runtime.yml").read_text())["action_groups"]["ted"]
    assert group == sorted(name for kind, name in PLUGINS if kind == "module")


def test_ansible_doc_shows_the_role(tmp_path: Path) -> None:
    done = run(["ansible-doc", "--json", "-t", "role", "ted.distribution.node"], tmp_path)
    points = json.loads(done.stdout)["ted.distribution.node"]["entry_points"]
    assert set(points) == {"main", "refresh", "uninstall"}
    assert "ted_venv" in points["main"]["options"]


def test_the_role_documents_every_variable_it_reads(tmp_path: Path) -> None:
    done = run(["ansible-doc", "--json", "-t", "role", "ted.distribution.node"], tmp_path)
    points = json.loads(done.stdout)["ted.distribution.node"]["entry_points"]
    documented = {name for point in points.values() for name in point["options"]}
    files = [
        *(COLLECTION / "roles" / "node" / "defaults").glob("*.yml"),
        *(COLLECTION / "roles" / "node" / "tasks").glob("*.yml"),
    ]
    read = {name for file in files for name in re.findall(r"(?<![\w.])ted_[a-z_]+", file.read_text())}
    assert read <= documented


def test_every_playbook_has_the_right_syntax(tmp_path: Path) -> None:
    playbooks = sorted(str(path) for path in (REPOSITORY / "playbooks").glob("*.yml"))
    done = run(["ansible-playbook", "-i", "inventories/demo", "--syntax-check", *playbooks], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_collection_is_built_installed_and_found(tmp_path: Path) -> None:
    built = run(
        ["ansible-galaxy", "collection", "build", str(COLLECTION), "--output-path", str(tmp_path)], tmp_path / "home"
    )
    assert built.returncode == 0, built.stderr
    (tarball,) = tmp_path.glob("ted-distribution-*.tar.gz")
    with tarfile.open(tarball) as archive:
        names = archive.getnames()
    assert "plugins/modules/send.py" in names
    assert not [name for name in names if "__pycache__" in name or "tests/output" in name]
    where = tmp_path / "installed"
    environment = {"ANSIBLE_COLLECTIONS_PATH": str(where), "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg")}
    (tmp_path / "ansible.cfg").write_text("[defaults]\n")
    command = ["ansible-galaxy", "collection", "install", "--offline", "--force", "-p", str(where), str(tarball)]
    installed = run(command, tmp_path / "home", cwd=tmp_path, **environment)
    assert installed.returncode == 0, installed.stderr
    shown = run(["ansible-doc", "ted.distribution.build"], tmp_path / "home", cwd=tmp_path, **environment)
    assert str(where) in shown.stdout


def test_modules_keep_to_the_syntax_of_python_3_8_and_import_nothing_of_the_engine() -> None:
    import ast

    for path in [
        *(COLLECTION / "plugins" / "modules").glob("*.py"),
        *(COLLECTION / "plugins" / "module_utils").glob("*.py"),
    ]:
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        imported = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        imported |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
        foreign = {name for name in imported if name.split(".")[0] not in sys.stdlib_module_names}
        own = "ansible_collections.ted.distribution.plugins.module_utils."
        foreign = {name for name in foreign if not name.startswith(own)}
        assert foreign <= {"ansible.module_utils.basic"}, path


# The filters, in a play that needs no host.

INVENTORY = """
all:
  vars:
    where: /srv
    ted_venv: /opt/other
    ted_channels: {pos: {}}
  children:
    distributors:
      hosts:
        hq:
          ansible_host: 192.0.2.1
          secret_of_another_product: hidden
          ted_database_url: postgresql://ted:hunter2@db/ted
          ted_routing_hierarchy: [{relay: [s01]}]
          ted_distributions:
            app:
              type: file
              channels: [pos]
              options:
                targets:
                  - {path: "{{ only_subscribers_know }}/app", from: ["{{ where }}/app/"]}
                password: hunter2
    subscribers:
      hosts: {s01: {ted_address: 192.0.2.2}, s02: {ted_parent: lonely, ted_database_url: postgresql://ted:hunter2@db/ted}}
    external_subscribers:
      hosts: {partner: {ted_parent: s01}}
    pos: {children: {subscribers: {}}, hosts: {partner: {}}}
    others: {hosts: {relay: {ted_port: 7500}, lonely: {}, web: {}}}
"""
PLAY = """
- hosts: localhost
  gather_facts: false
  tasks:
    - ansible.builtin.copy:
        dest: "{{ out }}"
        mode: "0600"
        content: >-
          {{ {'topology': hostvars | ted.distribution.topology(groups),
              'own': hostvars | ted.distribution.topology(groups, 'hq'),
              'of_another': hostvars | ted.distribution.topology(groups, 'other'),
              'nodes': hostvars | ted.distribution.nodes(groups),
              'targets': hostvars | ted.distribution.targets(groups),
              'owners': hostvars | ted.distribution.owners(groups, distribution='app'),
              'meant': [hostvars | ted.distribution.meant(groups, distribution='ap'),
                        hostvars | ted.distribution.meant(groups, distribution='zzz'),
                        hostvars | ted.distribution.meant(groups, channel='poss'),
                        hostvars | ted.distribution.meant(groups, distribution='app', channel='pos')],
              'hq': hostvars | ted.distribution.node_settings(groups, 'hq'),
              's01': hostvars | ted.distribution.node_settings(groups, 's01'),
              's02': hostvars | ted.distribution.node_settings(groups, 's02'),
              'slip': lookup('ted.distribution.routing_slip', 'pos', limit=['s01'])} | to_json }}
"""


@pytest.fixture(scope="module")
def filtered(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What every filter says about one inventory."""
    root = tmp_path_factory.mktemp("filters")
    (root / "hosts.yml").write_text(INVENTORY)
    (root / "play.yml").write_text(PLAY)
    command = [
        "ansible-playbook",
        "-i",
        str(root / "hosts.yml"),
        str(root / "play.yml"),
        "-e",
        f"out={root / 'out.json'}",
    ]
    done = run(command, root / "home", ANSIBLE_CONFIG=str(REPOSITORY / "ansible.cfg"))
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((root / "out.json").read_text())


def test_a_distributor_gets_its_own_secrets_and_no_others(filtered: Any) -> None:
    assert "hunter2" in json.dumps(filtered["own"])
    assert "hunter2" not in json.dumps(filtered["of_another"])
    own, whole = (filtered[which]["_meta"]["hostvars"] for which in ("own", "topology"))
    assert own["hq"] == whole["hq"]
    assert own["s02"] == {"ted_channels": {"pos": {}}, "ted_parent": "lonely"}


def test_only_a_distributor_is_told_a_database(filtered: Any) -> None:
    assert filtered["hq"]["database_url"] == "postgresql://ted:hunter2@db/ted"
    assert "database_url" not in filtered["s02"]


FORETOLD = """
- hosts: localhost
  gather_facts: false
  vars:
    tree: {_meta: {hostvars: {hq: {password: hunter2}}}}
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
  tasks:
    - {ted.distribution.build: {topology: "{{ tree | to_json }}"}, ignore_errors: true}
    - {ted.distribution.send: {topology: "{{ tree | to_json }}"}, ignore_errors: true}
"""


def test_the_tree_that_a_check_goes_by_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "play.yml").write_text(FORETOLD)
    command = ["ansible-playbook", "-vvv", "--check", "-i", "localhost,", "-c", "local", str(tmp_path / "play.yml")]
    done = run(command, tmp_path / "home", ANSIBLE_CONFIG=str(REPOSITORY / "ansible.cfg"))
    assert done.stdout.count("topology: VALUE_SPECIFIED_IN_NO_LOG_PARAMETER") == 2, done.stdout + done.stderr
    assert "hunter2" not in done.stdout


def test_a_play_on_a_distributor_gathers_nothing_of_its_receivers(tmp_path: Path) -> None:
    """Ansible computes every variable that a template names, whichever branch is taken."""
    looked = tmp_path / "looked"
    app = {"type": "file", "channels": ["pos"], "options": {"targets": [{"path": "/x", "from": ["/y"]}]}}
    parent = f"{{{{ lookup('ansible.builtin.pipe', 'echo >> {looked}; echo hq') }}}}"
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable, "ted_channels": {"pos": {}}}
    hosts = {"hq": local | {"ted_executable": "/bin/false", "ted_distributions": {"app": app}},
             "s01": local | {"ted_parent": parent}}  # fmt: skip
    groups = {"distributors": ["hq"], "pos": ["s01"]}
    inventory = {"all": {"hosts": hosts, "children": {
        name: {"hosts": dict.fromkeys(members)} for name, members in groups.items()}}}  # fmt: skip
    path = str(tmp_path / "inventory.yml")
    Path(path).write_text(json.dumps(inventory))
    for play in ("build", "send"):
        done = run(["ansible-playbook", "-i", path, f"playbooks/{play}.yml"], tmp_path / "home")
        assert "/bin/false" in done.stdout, done.stdout + done.stderr
    assert not looked.exists()
    for found in ("nodes", "topology"):
        looked.unlink(missing_ok=True)
        seen = run(["ansible", "-i", path, "localhost", "-m", "ansible.builtin.debug", "-a",
                    f"msg={{{{ hostvars | ted.distribution.{found}(groups) }}}}"], tmp_path / "home")  # fmt: skip
        assert looked.exists(), seen.stdout + seen.stderr


def test_the_topology_holds_the_contracts_variables_and_nothing_else(filtered: Any) -> None:
    hostvars = filtered["topology"]["_meta"]["hostvars"]
    assert set(hostvars) == {"hq", "relay", "s01", "s02", "lonely", "partner"}
    assert set(hostvars["hq"]) == {
        "ansible_host", "ted_channels", "ted_database_url", "ted_distributions", "ted_routing_hierarchy"
    }  # fmt: skip
    assert filtered["topology"]["pos"]["hosts"] == ["partner", "s01", "s02"]
    assert filtered["topology"]["ungrouped"]["hosts"] == ["lonely", "relay"]


def test_the_topology_is_templated_and_what_cannot_be_keeps_its_text(filtered: Any) -> None:
    (target,) = filtered["topology"]["_meta"]["hostvars"]["hq"]["ted_distributions"]["app"]["options"]["targets"]
    assert target == {"path": "{{ only_subscribers_know }}/app", "from": ["/srv/app/"]}


def test_relays_are_nodes_without_a_group_and_external_subscribers_are_not(filtered: Any) -> None:
    assert filtered["nodes"] == [name for name in filtered["nodes"] if name not in ("partner", "web", "localhost")]
    assert set(filtered["nodes"]) == {"hq", "relay", "s01", "s02", "lonely"}
    assert set(filtered["targets"]) == {"s01", "s02"}
    assert filtered["owners"] == ["hq"]


def test_a_name_that_nobody_has_is_answered_with_those_there_are(filtered: Any) -> None:
    near, none_near, channel, both = filtered["meant"]
    assert near == "did you mean app?"
    assert none_near.startswith("there are these distributions: app")
    assert channel == "did you mean pos?"
    assert both.startswith("the channels with app are: pos")


def test_a_node_knows_its_parent_by_hierarchy_first(filtered: Any) -> None:
    assert filtered["s01"] == {
        "node": "s01", "distributor": False, "address": "192.0.2.2",
        "parent": "relay", "parent_address": "relay", "parent_port": 7500,
    }  # fmt: skip
    assert filtered["s02"]["parent"] == "lonely"


def test_the_lookup_tells_what_ted_routes_tells(filtered: Any) -> None:
    slip = filtered["slip"]
    assert slip["edges"] == [["hq", "relay"], ["relay", "s01"]]
    assert slip["paths"] == {"s01": ["hq", "relay", "s01"]}


def test_the_page_names_every_playbook_module_and_narrowing_variable() -> None:
    page = (REPOSITORY / "docs" / "ansible.md").read_text()
    for playbook in (REPOSITORY / "playbooks").glob("*.yml"):
        assert f"`{playbook.name}`" in page
    for kind, name in PLUGINS:
        if kind == "module":
            assert f"`{name}`" in page
    used = {
        name
        for playbook in (REPOSITORY / "playbooks").glob("*.yml")
        for name in re.findall(
            r"\b(ted_(?:distribution|channel|revision|send_timeout|allow_incomplete|purge))\b", playbook.read_text()
        )
    }
    assert all(f"`{name}`" in page for name in used)


def test_yaml_in_the_how_to_pages_parses() -> None:
    pages = [REPOSITORY / "docs" / "ansible.md", *(REPOSITORY / "docs" / "how-to").glob("*.md")]
    for page in pages:
        for block in re.findall(r"^( *)```yaml\n(.*?)^ *```", page.read_text(), re.DOTALL | re.MULTILINE):
            assert yaml.safe_load(textwrap.dedent(block[1])) is not None, page
