"""docs/ansible.md: it leaves out no playbook, no variable of the role, no plugin."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
COLLECTION = REPOSITORY / "collections" / "ansible_collections" / "ted" / "distribution"
PAGE = (REPOSITORY / "docs" / "ansible.md").read_text()
PLAYBOOKS = sorted(path.name for path in (REPOSITORY / "playbooks").glob("*.yml"))
SPECS = yaml.safe_load((COLLECTION / "roles" / "node" / "meta" / "argument_specs.yml").read_text())["argument_specs"]
PLUGINS = sorted(
    path.stem
    for kind in ("modules", "filter", "lookup", "callback")
    for path in (COLLECTION / "plugins" / kind).glob("*.py")
)


def test_the_page_names_every_playbook() -> None:
    assert [name for name in PLAYBOOKS if f"`{name}`" not in PAGE] == []


def test_the_page_names_every_variable_a_playbook_reads() -> None:
    read = {
        name
        for path in (REPOSITORY / "playbooks").glob("*.yml")
        for name in re.findall(
            r"\bted_(?:distribution|channel|revision|send_timeout|allow_incomplete)\b", path.read_text()
        )
    }
    assert [name for name in sorted(read) if f"`{name}`" not in PAGE] == []


@pytest.mark.parametrize("entry", sorted(SPECS))
def test_the_page_names_every_variable_of_the_role(entry: str) -> None:
    assert [name for name in SPECS[entry]["options"] if f"| `{name}` |" not in PAGE] == []


def test_the_defaults_of_the_page_are_those_of_the_role() -> None:
    shown = dict(re.findall(r"^\| `(ted_\w+)` \| `?([^`|]+?)`? \|", PAGE, re.MULTILINE))
    for options in (entry["options"] for entry in SPECS.values()):
        for name, option in options.items():
            if "default" in option:
                assert shown[name] == str(option["default"]).replace("False", "false"), name


def test_the_page_names_every_plugin() -> None:
    assert [name for name in PLUGINS if f"`{name}`" not in PAGE] == []
