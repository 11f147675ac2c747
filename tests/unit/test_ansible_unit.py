"""The unit of the agent: systemd takes every line of it, as root and as a user of its own."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import Environment, FileSystemLoader, StrictUndefined

ROLE = Path(__file__).parents[2] / "collections/ansible_collections/ted/distribution/roles/node"


@pytest.mark.parametrize("user", ["", getpass.getuser()])
def test_systemd_finds_no_fault_with_the_unit(user: str, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    assert analyze, "the tests need systemd-analyze: apt-get install systemd (scripts/test-packages does)"
    templates = Environment(loader=FileSystemLoader(ROLE / "templates"), undefined=StrictUndefined, autoescape=True)
    (tmp_path / "a b").mkdir()
    unit = tmp_path / "ted-agent.service"
    unit.write_text(templates.get_template("ted-agent.service.j2").render(
        inventory_hostname="s01", node_executable=sys.executable, node_config=tmp_path / "a b",
        node_working_directory=tmp_path / "a b", node_agent_user=user,
    ))  # fmt: skip
    done = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    about_it = [line for line in done.stderr.splitlines() if "ted-agent" in line]
    assert (done.returncode, about_it) == (0, []), done.stderr
