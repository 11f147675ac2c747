"""Fifty kills at random times, of any process: nothing is lost, nothing is half done, nobody lends a hand.

Killed are builders, agents (Distributor, relay, receivers) and extractions. A killed agent is started again, as its
supervisor would; a killed command is run again, as the next play would.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fleet import CommandError, Fleet, same_trees

ROUNDS = 10
SEED = 20260101


class Run:
    """One run of the test: a fleet, a random source, and a count of kills."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.random = random.Random(SEED)
        self.source = fleet.root / "source"
        self.kills = 0

    def edit_source(self, number: int) -> None:
        self.source.mkdir(exist_ok=True)
        (self.source / "big.bin").write_bytes(self.random.randbytes(12_000_000 + number))
        for _ in range(30):
            directory = self.source / f"d{self.random.randrange(8)}"
            directory.mkdir(exist_ok=True)
            path = directory / f"f{self.random.randrange(40)}"
            if path.exists() and self.random.random() < 0.3:
                path.unlink()
            else:
                path.write_text(f"{number} {self.random.random()}\n" * self.random.randrange(1, 200))

    def kill_command(self, name: str, *words: str, within_s: float) -> None:
        """Start a command, kill it, run it again to its end."""
        command = [sys.executable, "-m", "ted", "--config", str(self.fleet.config(name)), "--json", *words]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
        time.sleep(self.random.uniform(0.2, within_s))
        if process.poll() is None:
            os.kill(process.pid, 9)
        process.wait(10)
        self.kills += 1
        self.fleet.ted(name, *words)

    def kill_agent(self, name: str) -> None:
        self.fleet.kill(name)
        self.kills += 1
        time.sleep(self.random.uniform(0, 0.3))
        self.fleet.start(name)

    def send_under_fire(self) -> None:
        send = self.fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
        for _ in range(3):
            time.sleep(self.random.uniform(0, 0.4))
            self.kill_agent(self.random.choice(("hq", "s01", "e01", "e02")))
        self.fleet.until(lambda: self.fleet.ted("hq", "send", "--watch", send)["sends"][0]["done"], within_s=90)
        result = self.fleet.ted("hq", "send", "--watch", send)["sends"][0]
        assert result["incomplete"] == [], result["errors"]


@pytest.mark.timeout(600)
def test_fifty_kills_lose_nothing_and_end_in_the_right_state(fleet: Fleet) -> None:
    fleet.add("hq", distributor=True, routing_hierarchy=["s01"], distributions={
        "app": {"type": "file", "channels": ["pos"], "max_revisions": 3, "options": {"targets": [
            {"path": "%DEST%", "from": [f"{fleet.root}/source/"], "synchronize": True}]}},
    })  # fmt: skip
    fleet.add("s01")
    for name in ("e01", "e02"):
        fleet.add(name, parent="s01", channels=("pos",), variables={"DEST": str(fleet.root / name / "dest")})
    run = Run(fleet)
    run.edit_source(0)
    fleet.install()
    fleet.start()
    for number in range(ROUNDS):
        run.edit_source(number)
        run.kill_command("hq", "build", within_s=1.0)
        run.send_under_fire()
        for name in ("e01", "e02"):
            if name == "e01" or number % 2:
                run.kill_command(name, "extract", within_s=1.2)
            else:
                fleet.ted(name, "extract")
            assert same_trees(run.source, fleet.root / name / "dest") == ""
            assert fleet.ted(name, "verify")["ok"]
    while run.kills < 50:
        run.kill_agent(run.random.choice(("hq", "s01", "e01", "e02")))
    sent = fleet.ted("hq", "send")
    assert not sent["changed"]
    fleet.until(lambda: fleet.states("hq", "app") == {"e01": "extracted", "e02": "extracted", "s01": "received"})
    assert run.kills >= 50
    names = {path.name for path in Path(fleet.root).rglob("*")}
    assert [name for name in names if name.startswith(".ted-") or name.endswith("_TEMP")] == []


def test_a_send_is_not_forgotten_by_a_killed_distributor(fleet: Fleet) -> None:
    fleet.add("hq", distributor=True, distributions={
        "app": {"type": "file", "channels": ["pos"], "options": {
            "targets": [{"path": "/nowhere", "from": [f"{fleet.root}/source/"]}]}},
    })  # fmt: skip
    fleet.add("e01", channels=("pos",))
    (fleet.root / "source").mkdir()
    (fleet.root / "source" / "a").write_text("a")
    fleet.install()
    fleet.start("hq")
    fleet.ted("hq", "build")
    send = fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
    fleet.kill("hq")
    fleet.start("hq", "e01")
    fleet.until(lambda: fleet.ted("hq", "send", "--watch", send)["sends"][0]["states"] == {"e01": "received"})


def test_commands_say_so_when_the_agent_is_not_running(fleet: Fleet) -> None:
    fleet.add("hq", distributor=True, distributions={})
    fleet.install()
    with pytest.raises(CommandError) as caught:
        fleet.ted("hq", "send")
    assert caught.value.returncode == 70
    assert "ted agent start" in caught.value.error["hint"]
