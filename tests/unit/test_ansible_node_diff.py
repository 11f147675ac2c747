"""What ``--diff`` of the module node shows: every setting, and no secret. And what it makes the agent's own."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

COLLECTION = Path(__file__).parents[2] / "collections" / "ansible_collections" / "ted" / "distribution"
SECRETS = """# Written by the role ted.distribution.node.
node: s01
retry_for: 17
database_url: postgresql://u:hun/ter2@db/ted
parent: s02
variables:
    db_password: |-
        line one of hunter2

        hunter2
    API_KEY: hunter2
    harmless: hunter2
    passwords:
    - hunter2
unlock_pin: hunter2
log_max_age: 3d
list:
- token: hunter2
"""


@pytest.fixture(scope="module")
def node() -> Any:
    """Yield the module's code, with the collection found where Ansible would find it."""
    root = str(COLLECTION.parents[2])
    sys.path.insert(0, root)
    try:
        spec = importlib.util.spec_from_file_location("ted_node_module", COLLECTION / "plugins" / "modules" / "node.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    finally:
        sys.path.remove(root)


def test_settings_are_shown_without_their_secrets(node: Any) -> None:
    before, after = node.masked_pair("", SECRETS)
    assert before == ""
    assert "hunter2" not in after
    assert "ter2" not in after
    for line in ("node: s01", "retry_for: 17", "parent: s02", "log_max_age: 3d"):
        assert f"{line}\n" in after
    assert "@db/ted" in after
    assert "variables: (not shown), changed\n" in after


def test_a_secret_that_changes_is_marked_and_one_that_stays_is_not(node: Any) -> None:
    before, after = node.masked_pair(SECRETS, SECRETS.replace("API_KEY: hunter2", "API_KEY: hunter3"))
    assert "variables: (not shown)\n" in before
    assert "variables: (not shown), changed\n" in after
    assert "unlock_pin: (not shown)\n" in after
    assert "hunter" not in before + after


def test_lines_that_are_no_setting_are_hidden(node: Any) -> None:
    _, after = node.masked_pair("", "{variables: {a: hunter2}}\n'quoted_password': hunter2\n# hunter2\n")
    assert "hunter2" not in after


def test_the_tree_is_shown_without_its_secrets(node: Any) -> None:
    own = {"ted_variables": {"A": "hunter2"}, "ted_port": 7465, "ted_database_url": "postgresql://u:hunter2@db/ted"}
    options = {"targets": [{"path": "/srv", "from": ["/a"]}], "auth": {"Password": ["hunter2", {"x": "hunter2"}]}}
    tree = {"_meta": {"hostvars": {"hq": own | {"ted_distributions": {"d": {"options": options}}}}}}
    before, after = node.masked_pair("", json.dumps(tree))
    assert before == ""
    assert "hunter2" not in after
    assert '"ted_port": 7465' in after
    assert '"/srv"' in after
    changed = json.loads(json.dumps(tree))
    changed["_meta"]["hostvars"]["hq"]["ted_variables"]["A"] = "hunter3"
    before, after = node.masked_pair(json.dumps(tree), json.dumps(changed))
    assert before != after
    assert "hunter" not in before + after


def test_secrets_of_sources_are_not_shown(node: Any) -> None:
    source = {"url": "https://x/", "username": "u", "password": "hunter2", "headers": {"X-Api": "hunter2"},
              "query": "sig=hunter2", "token_file": "/hunter2"}  # fmt: skip
    tree = {"ted_distributions": {"web": {"options": {"targets": [{"path": "/srv", "from": [source]}]}}}}
    _, after = node.masked_pair("{}", json.dumps(tree))
    assert "hunter2" not in after
    assert "https://x/" in after


def test_a_working_directory_of_root_is_handed_over_but_not_what_root_can_undo(node: Any, tmp_path: Path) -> None:
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    working = tmp_path / "ted"
    for name in (".ted/locks", ".ted/installed/hq", ".ted/transactions", "hq/app/20260101T000000000000Z"):
        (working / name).mkdir(parents=True)
    for name in (".ted/agent.lock", ".ted/installed/hq/app.json", "hq/app/20260101T000000000000Z/DISTFILE.TED"):
        (working / name).touch()
    module = SimpleNamespace(check_mode=False, params={
        "owner": user.pw_name, "working_directory": str(working), "name": "s01"})  # fmt: skip
    place = SimpleNamespace(module=module, config=str(tmp_path / "etc"), written=[])
    node.give(place)
    kept = {path for path in working.rglob("*") if path.stat().st_uid != user.pw_uid}
    top = working / ".ted"
    if os.geteuid() == 0:
        assert kept == {top / "installed", top / "installed/hq", top / "installed/hq/app.json", top / "transactions"}
        assert place.written[-1] == str(working), "the top comes last"
    place.written.clear()
    node.give(place)
    assert place.written == []
