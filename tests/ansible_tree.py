"""A tree that the repository's playbooks drive, and what a run of one said."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fleet import free_port

REPOSITORY = Path(__file__).parents[1]
COLLECTION = REPOSITORY / "collections" / "ansible_collections" / "ted" / "distribution"
BIN = Path(sys.executable).parent
LIMIT_S = 240
# Makes virtual environments that see the packages of the tests, pip too: no network is needed, and no ensurepip.
_PYTHON = """#!/bin/sh
[ "$1 $2" = "-m venv" ] || exec {python} "$@"
{python} -m venv --without-pip "$3" && echo '{packages}' > "$3"/lib/python{version}/site-packages/of-the-tests.pth
"""
_RECAP = re.compile(r"^(\S+)\s+: (ok=\d+.*)$", re.MULTILINE)


def packages() -> str:
    """Return the directory of the packages that the tests run with."""
    return next(path for path in sys.path if path.endswith("site-packages"))


def write_python(path: Path, python: str = sys.executable, seen: str = "") -> None:
    """Write a ``ted_python`` that needs no network: its virtual environments see these packages."""
    version = "{}.{}".format(*sys.version_info)
    path.write_text(_PYTHON.format(python=python, packages=seen or packages(), version=version))
    path.chmod(0o755)


@dataclass
class Run:
    """What a playbook run said."""

    code: int
    output: str

    @property
    def recap(self) -> dict[str, dict[str, int]]:
        """Counts of ok, changed, failed ... by host."""
        found = {}
        for host, counts in _RECAP.findall(self.output):
            found[host] = {key: int(value) for key, value in (pair.split("=") for pair in counts.split())}
        return found

    @property
    def changed(self) -> dict[str, int]:
        return {host: counts["changed"] for host, counts in self.recap.items()}


class Tree:
    """A tree of nodes on this machine, driven by the repository's playbooks only."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.inventory = root / "inventory"
        self.run_directory = root / "run"
        self.stdlib = root / "library"
        self.through: list[str] = []  # what playbooks are started through, such as a lab's network
        self.environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"),
            "ANSIBLE_HOME": str(root / "ansible"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",
            "ANSIBLE_HOST_KEY_CHECKING": "true",
            "TED_DEMO_RUN": str(self.run_directory),
            "TED_DEMO_LIBRARY": str(self.stdlib),
            "PATH": f"{BIN}:{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def free_ports(self, count: int) -> list[int]:
        """Return ports of the loopback address that nobody listens on."""
        return [free_port() for _ in range(count)]

    def copy_demo(self, hosts: tuple[str, ...]) -> None:
        """Copy the demo's inventory, with these hosts of it and other ports."""
        shutil.copytree(REPOSITORY / "inventories" / "demo", self.inventory)
        path = self.inventory / "hosts.yml"
        data = yaml.safe_load(path.read_text())
        ports = iter(self.free_ports(len(hosts)))
        for group in ("distributors", "subscribers"):
            kept = {name: own for name, own in data["all"]["children"][group]["hosts"].items() if name in hosts}
            for own in kept.values():
                own["ted_port"] = next(ports)
            data["all"]["children"][group]["hosts"] = kept
        path.write_text(yaml.safe_dump(data))
        settings = self.inventory / "group_vars" / "distributors.yml"
        parents = [name for name in ("s01", "s02") if name in hosts]
        owned = yaml.safe_load(settings.read_text()) | {"ted_routing_hierarchy": parents}
        settings.write_text(yaml.safe_dump(owned))

    def make_library(self) -> None:
        """Make a small tree that looks enough like a library for the demo's edits."""
        for number in range(40):
            directory = self.stdlib / f"package{number % 4}"
            directory.mkdir(parents=True, exist_ok=True)
            (directory / f"module{number}.py").write_text(f"VALUE = {number}\n" * 50)
        (self.stdlib / "json").mkdir()
        (self.stdlib / "json" / "__init__.py").write_text('"""First line."""\n\nVALUE = 1\n')
        (self.stdlib / "this.py").write_text("print('this')\n")
        (self.stdlib / "blob").write_bytes(os.urandom(300_000))

    def play(self, playbook: str | Path, *words: str, fails: bool = False, inventory: Path | None = None) -> Run:
        """Run a playbook of the repository (or the file given); a failure fails the test unless it is expected."""
        path = playbook if isinstance(playbook, Path) else REPOSITORY / "playbooks" / f"{playbook}.yml"
        player = [*self.through, str(BIN / "ansible-playbook")]
        command = [*player, "-i", str(inventory or self.inventory), str(path), *words]
        done = subprocess.run(
            command, env=self.environment, cwd=self.root, text=True, timeout=LIMIT_S, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert (done.returncode != 0) == fails, done.stdout
        return Run(done.returncode, done.stdout)

    def wheel(self) -> str:
        """Return the wheel that the role would install unasked, made once: the work tree may change while tests run."""
        play = self.root / "wheel.yml"
        found = f"{{{{ lookup('ted.distribution.wheel', '{self.root}/wheels') }}}}"
        tasks = [{"ansible.builtin.debug": {"msg": found}}]
        play.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": tasks}]))
        self.play(play, inventory=Path("localhost,"))
        (made,) = (self.root / "wheels").glob("*/*.whl")
        return str(made)

    def ted(self, host: str, *words: str) -> Any:
        """Ask a node's own ted."""
        command = [str(BIN / "ted"), "--config", str(self.run_directory / host / "etc"), "--json", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def installed(self, host: str) -> Path:
        """Where a host has the library."""
        return self.run_directory / host / "root" / "stdlib"

    def close(self) -> None:
        """End every agent that is left."""
        for config in self.run_directory.glob("*/etc/node.yml"):
            command = [str(BIN / "ted"), "--config", str(config.parent), "agent", "stop"]
            subprocess.run(command, capture_output=True, timeout=60, check=False)
