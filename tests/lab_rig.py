"""A lab as a test sees it: network namespaces, shaped lines, byte counters (see tests/lab/README.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from fleet import Fleet, give_back

HERE = Path(__file__).parent / "lab"
WIRE = 1514 / 1448  # Ethernet, IP and TCP headers of full packets, per byte of payload
PORT = 7465


def goodput_s(payload_bytes: float, mbit_s: float) -> float:
    """Return how long a line needs for a payload in full packets: the bound that nothing can beat."""
    return payload_bytes * WIRE * 8 / (mbit_s * 1e6)


def sent_bytes(namespace: str, device: str) -> int:
    """Return the bytes that a shaped device has sent since it is there. Source: tc(8), -s."""
    show = ["tc", "-n", namespace, "-s", "-j", "qdisc", "show", "dev", device]
    return int(json.loads(subprocess.run(show, capture_output=True, check=True).stdout)[0]["bytes"])


class Lab:
    """A running lab; commands of ``lab`` as methods. It goes down when this process ends, however that comes."""

    def __init__(self, name: str, home: Path, spec: dict[str, Any]) -> None:
        self.name = name
        self.home = home
        self.environment = {**os.environ, "LAB_NAME": name, "LAB_HOME": str(home)}
        path = home.parent / f"{name}.yml"
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        self.call("up", str(path), "--owner", str(os.getpid()))
        found = json.loads((home / name / "lab.json").read_text())
        self._hosts: dict[str, dict[str, Any]] = found["hosts"]
        self._sites: dict[str, dict[str, Any]] = found["sites"]

    def command(self, *words: str) -> list[str]:
        """Return the words of a ``lab`` command; it needs ``environment``."""
        return [sys.executable, str(HERE / "lab"), *words]

    def call(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(self.command(*words), env=self.environment, capture_output=True, text=True, check=False,
                              timeout=100)  # fmt: skip
        assert not (check and done.returncode), f"lab {' '.join(words)}: {done.stderr}"
        return done.stdout

    def line_bytes(self, site: str) -> dict[str, int]:
        """Bytes that crossed the site's WAN line: ``down`` (into it) and ``up``.

        As ``lab bytes`` says, without starting it: who looks often while something is measured would take its share.
        """
        above = self._sites[site]["behind"] or "wan"
        zero = self.home / self.name / "zero.json"
        base = json.loads(zero.read_text())[site] if zero.exists() else {"down": 0, "up": 0}
        ends = {"down": (f"{self.name}.r.{above}", f"w-{site}"), "up": (f"{self.name}.r.{site}", "wan0")}
        return {way: sent_bytes(*end) - base[way] for way, end in ends.items()}

    def inside(self, host: str) -> list[str]:
        """Return the words that run a command in a host's network, with this machine's files."""
        return ["ip", "netns", "exec", f"{self.name}.h.{host}"]

    def address(self, host: str, *, ip6: bool = False) -> str:
        return str(self._hosts[host]["ip6" if ip6 else "ip"])


class LabFleet(Fleet):
    """A fleet whose nodes stand on the hosts of a lab that have their names."""

    lab: Lab
    forks_agents = False  # they are measured

    def place(self, lab: Lab, *, ip6: bool = False) -> None:
        """Give every node the address and the network of the lab's host of its name."""
        self.lab = lab
        for name, own in self.hostvars.items():
            own["ted_address"] = lab.address(name, ip6=ip6)
            give_back(own["ted_port"])
            own["ted_port"] = PORT
            self.inside[name] = lab.inside(name)

    def sent_at_s(self, distributor: str) -> float:
        """Return when (seconds since the epoch) the last send of a Distributor began."""
        from ted.agent.records import open_journal
        from ted.config import NodeConfig

        journal = open_journal(NodeConfig.load(self.config(distributor)))
        try:
            return datetime.fromisoformat(journal.sends()[0]["started_at"]).timestamp()
        finally:
            journal.close()

    def held_at_s(self, distributor: str, distribution: str, node: str) -> float:
        """Return when (seconds since the epoch) a node had the whole revision, by its own state file."""
        revision = self.ted(distributor, "status", distribution)[0]["revision"]
        directory = self.working(node) / distributor / distribution / revision
        return (directory / "DISTSTATUS.TED").stat().st_mtime


class Clock:
    """Runs functions at moments of a test that counts from its making, in a thread of its own."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._threads: list[threading.Thread] = []
        self.errors: list[BaseException] = []

    def at(self, moment_s: float, function: Any, *args: Any) -> None:
        def run() -> None:
            time.sleep(max(0.0, self._began_s + moment_s - time.monotonic()))
            try:
                function(*args)
            except BaseException as error:  # noqa: BLE001 -- the test's own thread raises it
                self.errors.append(error)

        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()

    def join(self) -> None:
        """Wait until everything has run; raise what one of them raised."""
        for thread in self._threads:
            thread.join(100)
        if self.errors:
            raise self.errors[0]
