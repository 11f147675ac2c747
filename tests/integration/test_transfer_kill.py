"""Fifty kills at random times, of any process: nothing is lost, nothing is half done, nobody lends a hand.

Killed are builders, agents (Distributor, relay, receivers) and extractions. A killed agent is started again, as its
supervisor would; a killed command is run again, as the next play would. What had ended by itself counts as no kill.
``TED_TEST_SEED`` chooses other times.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from fleet import CommandError, Fleet, same_trees

KILLS = 50
SEED = int(os.environ.get("TED_TEST_SEED", "20260101"))


class Run:
    """One run of the test: a fleet, a random source, and a count of kills."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.random = random.Random(SEED)
        self.source = fleet.root / "source"
        self.kills: Counter[str] = Counter()
        self.takes_s = {"build": 1.0, "extract": 1.0}

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

    def kill_command(self, name: str, *words: str) -> None:
        """Start a command, kill it within the time it takes, run it again to its end."""
        command = [sys.executable, "-m", "ted", "--config", str(self.fleet.config(name)), "--json", *words]
        quiet = subprocess.DEVNULL
        process = subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True)
        with suppress(subprocess.TimeoutExpired):
            process.wait(self.random.uniform(0.2, max(0.3, self.takes_s[words[0]])))
        if process.poll() is None:
            process.kill()
            self.kills[words[0]] += 1
        process.wait(10)
        started_s = time.monotonic()
        self.fleet.ted(name, *words)
        self.takes_s[words[0]] = time.monotonic() - started_s

    def kill_agent(self, name: str) -> None:
        self.fleet.kill(name)
        self.kills[f"agent of {name}"] += 1
        time.sleep(self.random.uniform(0, 0.3))
        self.fleet.start(name)

    def send_under_fire(self) -> None:
        send = self.fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
        for _ in range(3):
            time.sleep(self.random.uniform(0, 0.4))
            self.kill_agent(self.random.choice(("hq", "s01", "e01", "e02")))
        self.fleet.until(lambda: self.fleet.ted("hq", "send", "--watch", send)["sends"][0]["done"], within_s=300)
        result = self.fleet.ted("hq", "send", "--watch", send)["sends"][0]
        assert result["incomplete"] == [], result["errors"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fifty_kills_lose_nothing_and_end_in_the_right_state(fleet: Fleet) -> None:
    fleet.add("hq", distributor=True, routing_hierarchy=["s01"], distributions={
        "app": {"type": "file", "channels": ["pos"], "max_revisions": 3, "options": {"targets": [
            {"path": "%DEST%", "from": [f"{fleet.root}/source/"], "synchronize": True}]}},
    })  # fmt: skip
    fleet.add("s01")
    for name in ("e01", "e02"):
        fleet.add(name, parent="s01", channels=("pos",), variables={"DEST": str(fleet.root / name / "dest")})
    fleet.settings["retry_for"] = 300  # an agent that is started again may take its time on a busy machine
    run = Run(fleet)
    run.edit_source(0)
    fleet.install()
    fleet.start()
    number = 0
    while run.kills.total() < KILLS:
        number += 1
        run.edit_source(number)
        run.kill_command("hq", "build")
        run.send_under_fire()
        for name in ("e01", "e02"):
            if name == "e01" or number % 2:
                run.kill_command(name, "extract")
            else:
                fleet.ted(name, "extract")
            assert same_trees(run.source, fleet.root / name / "dest") == ""
            assert fleet.ted(name, "verify")["ok"]
    sent = fleet.ted("hq", "send")
    assert not sent["changed"]
    fleet.until(lambda: fleet.states("hq", "app") == {"e01": "extracted", "e02": "extracted", "s01": "received"})
    assert min(run.kills[what] for what in ("build", "extract", "agent of hq", "agent of s01")) > 0, run.kills
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
