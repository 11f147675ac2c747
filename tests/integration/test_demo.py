"""``make demo`` as a newcomer runs it: the whole inventory, a small library; another program is asked for the truth."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from fleet import free_port, same_trees

pytestmark = pytest.mark.long

REPOSITORY = Path(__file__).parents[2]
NODES = ("s01", "s02", "e01", "e02", "e03", "e04")


@pytest.mark.timeout(900)
def test_the_demonstration_ends_with_the_same_trees_everywhere_and_tells_why(bare_tree: Any) -> None:
    told = subprocess.run(
        [str(REPOSITORY / "scripts" / "demo")], cwd=REPOSITORY, text=True, timeout=880, check=False,
        env={**bare_tree.environment, "TED_DEMO_PORT": str(free_port(in_a_row=1 + len(NODES))), "PWD": str(REPOSITORY)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout
    for name in NODES:
        assert same_trees(bare_tree.run_directory / "source" / "stdlib", bare_tree.installed(name)) == ""
    assert same_trees(bare_tree.stdlib, bare_tree.installed("e01")) == ""
    story = told.stdout[told.stdout.index("WHAT HAPPENED") :]
    assert "as a patch" in story
    assert "found no difference between hq's source and any of the six nodes" in story
    assert all(f"-> {name}" in story for name in NODES)
    states = {row["node"]: row["state"] for row in bare_tree.ted("hq", "status", "stdlib")}
    assert states == dict.fromkeys(NODES, "rolled_back")
    for line in story.splitlines():
        if "--config" in line:
            words = line.split("     ")[0].split()
            assert subprocess.run(words, cwd=REPOSITORY, capture_output=True, check=False).returncode == 0, line
