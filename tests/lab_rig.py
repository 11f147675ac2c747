"""A lab as a test sees it: network namespaces, shaped lines, byte counters (see tests/lab/README.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from fleet import Fleet

HERE = Path(__file__).parent / "lab"


class Lab:
    """A running lab; commands of ``lab`` as methods."""

    def __init__(self, name: str, home: Path) -> None:
        self.name = name
        self._env = {**os.environ, "LAB_NAME": name, "LAB_HOME": str(home)}

    def call(self, *words: str) -> str:
        command = [sys.executable, str(HERE / "lab"), *words]
        done = subprocess.run(command, env=self._env, capture_output=True, text=True, check=False, timeout=100)
        assert done.returncode == 0, f"lab {' '.join(words)}: {done.stderr}"
        return done.stdout

    def line_bytes(self, site: str) -> dict[str, int]:
        """Bytes that crossed the site's WAN line: ``down`` (into it) and ``up``."""
        counters: dict[str, dict[str, int]] = json.loads(self.call("bytes", "--json"))
        return counters[site]

    def inside(self, host: str) -> list[str]:
        """Return the words that run a command in a host's network, with this machine's files."""
        return ["ip", "netns", "exec", f"{self.name}.h.{host}"]

    def addresses(self) -> dict[str, str]:
        hosts: dict[str, Any] = yaml.safe_load(self.call("inventory"))["all"]
        found: dict[str, str] = {}

        def walk(group: dict[str, Any]) -> None:
            for name, values in (group.get("hosts") or {}).items():
                if values and "ansible_host" in values:
                    found[name] = values["ansible_host"]
            for child in (group.get("children") or {}).values():
                walk(child or {})

        walk(hosts)
        return found


def place(fleet: Fleet, lab: Lab) -> None:
    """Give every node of a fleet the address and the network of the lab's host of its name."""
    addresses = lab.addresses()
    for name, own in fleet.hostvars.items():
        own["ted_address"] = addresses[name]
        own["ted_port"] = 7465
        fleet.inside[name] = lab.inside(name)
