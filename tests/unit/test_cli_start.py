"""A command starts quickly: it imports what it uses, and the list of commands imports none of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fleet import Fleet

import ted.cli
from ted.cli.main import COMMANDS

LIST = """
import contextlib, json, sys
from ted.cli.main import cli
from ted.errors import UnknownNameError
with contextlib.suppress(UnknownNameError):
    cli.main({!r}, standalone_mode=False)
print()
print(json.dumps(sorted(sys.modules)))
"""
TRUST = {"tuf", "cryptography", "securesystemslib"}
SERVING = {"aiohttp", "rich"}
TYPES = {"ted.plugins"}
VALIDATING = {"pydantic", "email", "importlib.metadata"}


def modules_after(*words: str) -> set[str]:
    done = subprocess.run([sys.executable, "-c", LIST.format(list(words))], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_list_of_commands_imports_no_command() -> None:
    loaded = modules_after("--help")
    assert not {name for name in loaded if name.startswith("ted.cli.") and name.endswith("_cmd")}
    assert loaded.isdisjoint({"pydantic", "sqlite3", "yaml", "tabulate", *TRUST, *SERVING})


@pytest.mark.parametrize(
    ("command", "without"),
    [
        ("extract", {*TRUST, *SERVING, "tabulate", "ted.topology.inventory", "testinfra"}),
        ("send", {*TRUST, *SERVING, *VALIDATING, "tabulate", "ted.topology.inventory", "ted.install", *TYPES}),
        ("status", {*TRUST, *VALIDATING, "aiohttp", "tabulate", "ted.topology.inventory", "ted.install", *TYPES}),
        ("rollback", {*TRUST, "aiohttp", "tabulate", "ted.topology.inventory"}),
        ("build", {"aiohttp", "tabulate", "ted.topology.inventory", "testinfra"}),
    ],
)
def test_a_command_imports_only_what_it_uses(command: str, without: set[str]) -> None:
    assert modules_after(command, "--help").isdisjoint(without)


def test_a_look_at_a_send_imports_nothing_that_sends(fleet: Fleet) -> None:
    fleet.add("hq", distributor=True)
    fleet.install()
    loaded = modules_after("--config", str(fleet.config("hq")), "--json", "send", "--watch", "none")
    assert "ted.records.journal" in loaded, "it looked"
    assert loaded.isdisjoint({*TRUST, *SERVING, *VALIDATING, "http.client", "ted.topology.inventory"})
    assert "ted.transfer.client" not in loaded


def test_the_list_of_commands_names_every_one() -> None:
    found = {path.stem.removesuffix("_cmd") for path in Path(ted.cli.__file__).parent.glob("*_cmd.py")}
    assert found == set(COMMANDS)
