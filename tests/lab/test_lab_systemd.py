"""The role where systemd runs: playbooks over SSH, on hosts that have booted it, one after another as a person would.

The Distributor's agent runs as a user of its own from the beginning. The Subscriber's runs as root and installs by
itself, until it is given a user, too.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_tree import Run, Tree, packages, write_python
from lab_rig import WIRE, Lab

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(300)]
HOSTS = ("hq", "s01")
SITES = {"office": {"hosts": ["hq"], "systemd": True},
         "shop": {"hosts": ["s01"], "systemd": True, "wan": "20mbit"}}  # fmt: skip
MIB = 2**20
SIZE = 10 * MIB
USER = "ted-agent"


class Machines:
    """Two hosts of a lab that run systemd, and the tree on them."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        share = f"{packages()}:/srv/packages"
        self.lab = Lab(f"t{os.getpid()}sd", tree.root / "lab", {"share": [share], "sites": SITES})
        self.state = self.lab.home / self.lab.name
        self.source, self.installed = self.disk("hq") / "srv/source", self.disk("s01") / "srv/installed"
        self.source.mkdir()
        (self.source / "big").write_bytes(random.Random(4).randbytes(SIZE))
        (self.source / "tool").write_bytes(b"#!/bin/sh\n")
        os.chown(self.source / "tool", 1, 1)
        (self.source / "tool").chmod(0o4750)
        for host in HOSTS:
            write_python(self.disk(host) / "srv/python", "/usr/bin/python3", "/srv/packages")
        self.package = tree.wheel()  # while there is a network
        tree.through = self.lab.command("run")
        tree.environment |= self.lab.environment | {"PATH": tree.environment["PATH"]}
        tree.inventory.mkdir()
        (tree.inventory / "lab.yml").write_text((self.state / "inventory.yml").read_text())

    def disk(self, host: str) -> Path:
        return self.state / "hosts" / host / "root"

    def describe(self, **of_s01: Any) -> None:
        """Write the inventory, with these variables of the Subscriber."""
        target = {"path": "/srv/installed", "from": ["/srv/source/"]}
        app = {"type": "file", "channels": ["pos"], "options": {"targets": [target]}}
        everyone = {
            "ted_package": self.package, "ted_python": "/srv/python", "ted_pip_extra_args": "--no-deps",
            "ted_channels": {"pos": {}}, "ted_timeout": 5, "ted_retry_interval": 1, "ted_retry_for": 100,
        }  # fmt: skip
        (self.tree.inventory / "ted.yml").write_text(yaml.safe_dump({"all": {"vars": everyone, "children": {
            "distributors": {"hosts": {"hq": {"ted_agent_user": USER, "ted_distributions": {"app": app}}}},
            "subscribers": {"children": {"pos": {"hosts": {"s01": of_s01}}}},
        }}}))  # fmt: skip

    def on(self, host: str, command: str) -> str:
        return self.lab.call("exec", host, command)

    def ted(self, host: str, *words: str) -> Any:
        return json.loads(self.on(host, f"/opt/ted/venv/bin/ted --json {' '.join(words)}"))

    def unit(self, host: str) -> dict[str, str]:
        """Return what systemd says of the agent's unit."""
        names = "ActiveState,SubState,MainPID,NRestarts,UnitFileState,LoadState"
        said = self.on(host, f"systemctl show ted-agent --property={names}")
        return dict(line.split("=", 1) for line in said.splitlines())

    def agent(self, host: str) -> str:
        """Return the id of the agent, which systemd and ted agree on; fail if there is none."""
        unit = self.unit(host)
        assert unit["ActiveState"] == "active", self.on(host, "journalctl -u ted-agent --no-pager | tail -50")
        until(lambda: self.lab.call("exec", host, "/opt/ted/venv/bin/ted --json agent status", check=False))
        assert str(self.ted(host, "agent", "status")["pid"]) == unit["MainPID"]
        return unit["MainPID"]

    def user(self, host: str) -> str:
        return self.on(host, f"ps -o user:30= -p {self.agent(host)}").strip()

    def difference(self) -> str:
        """Return what rsync finds different between source and target: another program than ours."""
        command = ["rsync", "-n", "-c", "-a", "--itemize-changes", f"{self.source}/", f"{self.installed}/"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def play(self, playbook: str, *words: str, fails: bool = False) -> Run:
        return self.tree.play(playbook, *words, fails=fails)


def until(holds: Callable[[], Any], within_s: float = 60) -> None:
    deadline_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Yield two hosts with systemd on which nothing is installed."""
    debians = subprocess.run(["/usr/bin/python3", "--version"], capture_output=True, text=True, check=True).stdout
    ours = "{}.{}".format(*sys.version_info)
    assert re.match(rf"Python {ours}\.", debians), f"the hosts' {debians.strip()} cannot use the packages of {ours}"
    machines = Machines(Tree(tmp_path_factory.mktemp("sd")))
    try:
        yield machines
    finally:
        machines.lab.call("down")


def test_the_role_sees_systemd_and_starts_a_unit_that_is_enabled(machines: Machines) -> None:
    machines.describe(ted_extract_schedule="immediately")
    machines.play("install")
    for host, user in (("hq", USER), ("s01", "root")):
        assert machines.user(host) == user
        unit = machines.unit(host)
        assert (unit["UnitFileState"], unit["NRestarts"]) == ("enabled", "0")
        warned = machines.on(host, "journalctl --no-pager -o cat _PID=1 --grep ted-agent.service: || true")
        assert "gnoring" not in warned
        assert "Failed" not in warned


def test_a_second_run_changes_nothing_and_restarts_nothing(machines: Machines) -> None:
    agents = [machines.agent(host) for host in HOSTS]
    assert machines.play("install").changed == dict.fromkeys(HOSTS, 0)
    assert [machines.agent(host) for host in HOSTS] == agents


def test_a_killed_agent_is_started_again_and_the_transfer_goes_on(machines: Machines) -> None:
    machines.play("build")
    killed = machines.agent("s01")
    machines.lab.call("bytes", "--zero")
    send = machines.ted("hq", "send", "--no-wait")["sends"][0]["send"]
    until(lambda: machines.lab.line_bytes("shop")["down"] > SIZE * WIRE * 0.3)
    machines.on("s01", f"kill -9 {killed}")
    until(lambda: machines.ted("hq", "send", "--watch", send)["sends"][0]["done"])
    assert machines.agent("s01") != killed
    assert machines.unit("s01")["NRestarts"] == "1"
    assert machines.lab.line_bytes("shop")["down"] < SIZE * WIRE * 1.02 + MIB
    # Installed by the agent: owner, set-user-ID bit and all.
    until(lambda: machines.installed.exists() and not machines.difference())


def test_a_changed_setting_restarts_the_one_it_is_for(machines: Machines) -> None:
    agents = {host: machines.agent(host) for host in HOSTS}
    machines.describe(ted_extract_schedule="immediately", ted_variables={"NAME": "value"})
    machines.play("refresh")
    assert machines.agent("hq") == agents["hq"]
    assert machines.agent("s01") != agents["s01"]
    assert machines.unit("s01")["NRestarts"] == "0"  # it was asked to


def test_an_agent_that_cannot_start_fails_the_play_and_comes_up_by_itself_when_it_can(machines: Machines) -> None:
    machines.on("s01", "systemctl stop ted-agent; systemd-run -q --unit=squatter /usr/bin/python3 -m http.server 7465")
    until(lambda: ":7465" in machines.on("s01", "ss -ltn"))
    for _ in range(2):  # also when nothing is left to change
        said = machines.play("install", "--limit", "s01", fails=True).output
        assert "ted-agent.service failed" in said
        assert "journalctl -xeu ted-agent" in said
    assert "cannot listen on port 7465" in machines.on("s01", "journalctl -u ted-agent -o cat --no-pager")
    machines.on("s01", "systemctl stop squatter")
    until(lambda: machines.unit("s01")["SubState"] == "running")


def test_after_a_power_cut_it_runs_without_a_play(machines: Machines) -> None:
    machines.lab.call("kill", "s01")
    machines.lab.call("start", "s01")
    until(lambda: machines.unit("s01")["ActiveState"] == "active")
    assert machines.user("s01") == "root"
    for shared in (machines.state / "cp").iterdir():  # ssh's connections to what was there before
        shared.unlink()


def test_an_agent_that_is_given_a_user_has_its_files_and_no_others(machines: Machines) -> None:
    machines.describe(ted_agent_user=USER)
    machines.play("install")
    assert machines.user("s01") == USER
    (machines.source / "more").write_text("more")
    for playbook in ("build", "send", "extract"):
        machines.play(playbook)
    assert machines.difference() == ""
    assert machines.user("s01") == USER
    inside = f"nsenter -t {machines.agent('s01')} --mount"
    refused = machines.on("s01", f"{inside} touch /var/lib/ted/own /etc/ted/own /usr/own /srv/own 2>&1; true")
    assert re.findall("'(.*?)': Read-only file system", refused) == ["/etc/ted/own", "/usr/own", "/srv/own"]


def test_uninstall_ends_and_removes_it(machines: Machines) -> None:
    machines.play("uninstall")
    for host in HOSTS:
        assert (machines.unit(host)["ActiveState"], machines.unit(host)["LoadState"]) == ("inactive", "not-found")
        assert machines.on(host, "pgrep -f '[t]ed agent'; find /etc/systemd /opt -name 'ted*'") == ""
    assert machines.play("uninstall").changed == dict.fromkeys(HOSTS, 0)
