"""Types that ted does not bring: the role's variable for them, and what a module says where one is missing."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader

from ted.topology.variables import KNOWN_VARIABLES, ROLE_VARIABLES

COLLECTION = Path(__file__).parents[2] / "collections/ansible_collections/ted/distribution"


def loaded(place: str) -> ModuleType:
    """Return a file of the collection as a module."""
    spec = importlib.util.spec_from_file_location(f"ted_{Path(place).stem}", COLLECTION / "plugins" / place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Module:
    """What a module warns of."""

    def __init__(self) -> None:
        self.warned: list[str] = []

    def warn(self, text: str) -> None:
        self.warned.append(text)


def row(name: str, state: str, hint: str | None = None) -> dict[str, Any]:
    return {"distribution": name, "state": state, "reason": f"no type for {name}", "hint": hint}


def test_a_module_warns_once_of_each_distribution_whose_type_is_missing() -> None:
    module = Module()
    rows = [row("a", "skipped", "do x"), row("b", "skipped"), row("c", "extracted"), row("d", "skipped", "do y")]
    loaded("module_utils/ted_cli.py").warn_of_skipped(module, {"distributions": rows})
    assert [text.split(" is skipped")[0] for text in module.warned] == ["a", "d"]
    assert "no type for a" in module.warned[0]
    assert "do x" in module.warned[0]


def test_an_engine_that_gives_no_hints_is_no_error() -> None:
    module = Module()
    old = [{"distribution": "a", "state": "skipped", "reason": "other platform"}]
    loaded("module_utils/ted_cli.py").warn_of_skipped(module, {"distributions": old})
    assert module.warned == []


def test_engine_and_collection_know_the_same_variables_of_the_role() -> None:
    assert loaded("plugin_utils/inventory.py").ROLE_VARIABLES == ROLE_VARIABLES
    specs = yaml.safe_load((COLLECTION / "roles/node/meta/argument_specs.yml").read_text())["argument_specs"]
    named = {name for entry in specs.values() for name in entry["options"]}
    assert "ted_type_packages" in named
    assert named <= KNOWN_VARIABLES


def look_up(*terms: str) -> list[dict[str, str]]:
    lookup = loaded("lookup/package.py").LookupModule(loader=DataLoader())
    found: list[dict[str, str]] = lookup.run(list(terms), {})
    return found


def test_a_wheel_is_told_by_its_content_and_a_requirement_by_its_text(tmp_path: Path) -> None:
    wheel = tmp_path / "notes-1-py3-none-any.whl"
    wheel.write_bytes(b"one")
    (first,) = look_up(str(wheel))
    assert (first["wheel"], first["requirement"]) == (str(wheel), "")
    wheel.write_bytes(b"two")
    (second,) = look_up(str(wheel))
    assert second["state"] != first["state"]
    one, two = look_up("notes >=1", "notes >=2")
    assert (one["wheel"], one["requirement"]) == ("", "notes >=1")
    assert one["state"] != two["state"]


def test_a_wheel_that_is_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(AnsibleError, match=r"no wheel .*gone-1-py3-none-any\.whl on the controller"):
        look_up(str(tmp_path / "gone-1-py3-none-any.whl"))
