"""docs/inventory.md: its examples run, and it leaves no variable out."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ted.topology import examine_inventory, parse_schedule
from ted.topology.variables import CHANNEL_FIELDS, DISTRIBUTION_FIELDS, KNOWN_VARIABLES, ROLE_VARIABLES

PAGE = (Path(__file__).parents[2] / "docs" / "inventory.md").read_text()
BLOCKS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
WHOLE = [block for block in BLOCKS if "all" in block]
PARTS = [block for block in BLOCKS if "all" not in block]
SCHEDULES = re.findall(r"^\| `(.*?)` \|", PAGE.split("## Schedules")[1], re.MULTILINE)
SCHEDULES += re.findall(r"`(\{(?:weekly|monthly|yearly): [^`]*\})`", PAGE)


def test_the_whole_example_prints_what_the_page_shows(tmp_path: Path) -> None:
    assert len(WHOLE) == 1
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump(WHOLE[0]))
    [console] = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    shown = re.findall(r"^\$ ted (.*)\n((?:(?!\$ ).*\n)*)", console, re.MULTILINE)
    assert len(shown) == 2
    for words, output in shown:
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ted"), *shlex.split(words)],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == output


@pytest.mark.parametrize("part", PARTS, ids=lambda part: next(iter(part)))
def test_every_example_is_valid(part: dict[str, Any]) -> None:
    channels = {"ted_channels": {"antivirus": {}, "pos_software": {}}}
    distributor = any("distribution" in name or "rout" in name or "channels" in name for name in part) and not any(
        name == "ted_parent" for name in part
    )
    data = {
        "_meta": {"hostvars": {"hq": channels | (part if distributor else {}), "s09": {} if distributor else part}},
        "distributors": {"hosts": ["hq"]},
        "subscribers": {"hosts": ["s01", "s02", "s03", "s04", "s09"]},
        "antivirus": {"children": ["subscribers"]},
        "pos_software": {"hosts": ["s02"]},
    }
    found = examine_inventory(data)
    assert found.problems == ()
    assert found.warnings == ()


@pytest.mark.parametrize("example", SCHEDULES)
def test_every_schedule_of_the_page_is_read(example: str) -> None:
    assert parse_schedule(yaml.safe_load(example)) is not None


def test_the_page_names_every_variable_and_every_field() -> None:
    for name in [*(KNOWN_VARIABLES - ROLE_VARIABLES), *DISTRIBUTION_FIELDS, *CHANNEL_FIELDS]:
        assert f"`{name}`" in PAGE or f"{name}:" in PAGE, name
    named = set(re.findall(r"\bted_[a-z_]+", PAGE))
    assert named <= KNOWN_VARIABLES
