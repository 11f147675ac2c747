"""Each built-in type has a page that names all its options, and an example that its model takes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from ted import plugins

PAGES = Path(__file__).parents[2] / "docs" / "types"
BUILT_IN = [known.info.name for known in plugins.types() if known.package == "ted"]


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def options_of(model: type[BaseModel]) -> set[str]:
    """Return the names of all options of a model, nested ones too, as an inventory spells them."""
    schema = model.model_json_schema(by_alias=True)
    found = set(schema.get("properties", {}))
    for definition in schema.get("$defs", {}).values():
        found |= set(definition.get("properties", {}))
    return found


def told_in(text: str) -> set[str]:
    """Return every option that the first cell of a row names."""
    rows = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([a-z_0-9]+)`", row)}


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_option_has_a_row(name: str) -> None:
    """On the type's own page, or on the page of another type that it leads to."""
    read: set[str] = set()
    rows: set[str] = set()
    waiting = {name}
    while waiting:
        read.add(here := waiting.pop())
        rows |= told_in(page(here))
        waiting |= set(re.findall(r"\]\(([a-z]+)\.md", page(here))) - read
    assert options_of(plugins.type_named(name).info.options) - rows == set()


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_option_says_what_it_is(name: str) -> None:
    schema: dict[str, Any] = plugins.type_named(name).info.options.model_json_schema()
    silent = [
        f"{where}.{option}" for where, part in {"options": schema, **schema.get("$defs", {})}.items()
        for option, told in part.get("properties", {}).items() if not told.get("description")
    ]  # fmt: skip
    assert silent == []


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_examples_are_valid(name: str) -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", page(name), re.DOTALL)
    distributions = [yaml.safe_load(block).get("ted_distributions", {}) for block in blocks]
    examples = [each for found in distributions for each in found.values() if each["type"] == name]
    assert examples
    for each in examples:
        plugins.validate_options(name, each["options"])
