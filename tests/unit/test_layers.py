"""Imports point one way, down the layers of the house."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ted
import ted_plugins

TED = Path(ted.__file__).parent
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "topology": {"errors"},
    "content": {"errors"},
    "trust": {"errors", "content"},
    "transfer": {"errors", "content", "trust"},
    "records": {"errors"},
    "hookspecs": {"errors", "content"},
    "options": {"hookspecs"},
    "plugins": {"errors", "content", "hookspecs"},
    "install": {"errors", "content", "hookspecs", "plugins"},
    "config": {"errors", "topology", "content"},
    "agent": {"errors", "topology", "content", "trust", "transfer", "records", "plugins", "install", "config"},
}
COMPOSE = {"cli", "__init__", "__main__", "testing"}
PUBLIC = {"ted", "ted.hookspecs", "ted.errors", "ted.options", "ted.testing"}


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules() -> list[Path]:
    return sorted(TED.rglob("*.py"))


def room(path: Path) -> str:
    first = path.relative_to(TED).parts[0]
    return first.removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(TED)))
def test_a_room_imports_only_the_rooms_below_it(path: Path) -> None:
    here = room(path)
    if here in COMPOSE:
        return
    rooms = {name.split(".")[1] for name in imported(path) if name.startswith("ted.")}
    assert rooms - {here} <= ALLOWED[here], f"{path.name} of {here} reaches up"


def test_every_room_is_in_the_list() -> None:
    assert {room(path) for path in modules()} - COMPOSE == set(ALLOWED)


def test_the_engine_imports_no_plugin_and_no_ansible() -> None:
    for path in modules():
        names = {name.split(".")[0] for name in imported(path)}
        assert "ted_plugins" not in names
        if room(path) != "topology":  # the reader of inventories renders their templates with Ansible's own engine
            assert "ansible" not in names


def test_built_in_types_import_only_what_any_plugin_may() -> None:
    for path in Path(ted_plugins.__file__).parent.rglob("*.py"):
        reached = {name for name in imported(path) if name.split(".")[0] == "ted"}
        bases = {name for name in reached if not any(name.startswith(f"{public}.") for public in PUBLIC - {"ted"})}
        assert {name for name in bases if name not in PUBLIC and not name.startswith("ted.hook")} == set()
