"""Very large and very many, through two tiers with real agents: memory stays flat, and everything arrives."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet, two_tiers

from benchmarks.measure import run_apart

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(3 * 3600)]
MIB, GIB = 1 << 20, 1 << 30
MOST_BYTES = 256 * MIB
STEPS_S = 3000.0


def run(fleet: Fleet, name: str, *words: str) -> Any:
    """Run a command on a node; print what it took, for docs/performance.md; return what it said.

    It takes at most the memory that was promised.
    """
    command = [sys.executable, "-m", "ted", "--config", str(fleet.config(name)), "--json", *words]
    code, said, took = run_apart(command, stdout=subprocess.PIPE)
    assert code == 0, said
    print(f"{name}: ted {' '.join(words)}: {took.wall_s:.1f} s, CPU {took.cpu_s:.1f} s, "
          f"peak of {took.peak_bytes / 1e6:.0f} MB", flush=True)  # fmt: skip
    assert took.peak_bytes < MOST_BYTES
    return json.loads(said)


def agents_stay_small(fleet: Fleet) -> None:
    for name in fleet.hostvars:
        status = Path(f"/proc/{fleet.pid(name)}/status").read_text()
        peak_bytes = int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) * 1024
        print(f"{name}: agent: peak of {peak_bytes / 1e6:.0f} MB", flush=True)
        assert peak_bytes < MOST_BYTES


def send(fleet: Fleet) -> int:
    """Build and send; return the bytes of the patch, 0 if there is none."""
    built = run(fleet, "hq", "build")
    sent = fleet.ted("hq", "send", "--no-wait")["sends"][0]["send"]
    begun_s = time.monotonic()
    fleet.until(lambda: fleet.ted("hq", "send", "--watch", sent)["sends"][0]["done"], within_s=STEPS_S)
    print(f"sent in {time.monotonic() - begun_s:.1f} s", flush=True)
    assert fleet.states("hq", "app")["e01"] == "received"
    return built["distributions"][0]["patch_bytes"] or 0


def bare_source(fleet: Fleet) -> Path:
    """Return the source directory, with nothing in it."""
    source = fleet.root / "source"
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    return source


def same_bytes(one: Path, other: Path) -> bool:
    return subprocess.run(["cmp", "--silent", str(one), str(other)], check=False).returncode == 0


def test_a_file_of_20_gib_with_two_of_data(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    generator = random.Random(20)
    big = bare_source(fleet) / "disk.img"
    with big.open("wb") as file:
        for number in range(32):
            file.seek(number * 640 * MIB)
            for _ in range(64):
                file.write(generator.randbytes(MIB))
        file.truncate(20 * GIB)
    fleet.install()
    fleet.start()
    send(fleet)
    run(fleet, "e01", "extract")
    arrived = fleet.root / "e01" / "dest" / "app" / "disk.img"
    assert arrived.stat().st_size == 20 * GIB
    assert arrived.stat().st_blocks * 512 < 3 * GIB  # holes stay holes
    # bytes changed here and there, a MiB put between others, and another one at the end
    with big.open("r+b") as file:
        for _ in range(1000):
            file.seek(generator.randrange(32) * 640 * MIB + generator.randrange(63 * MIB))
            file.write(generator.randbytes(8))
        file.seek(5 * 640 * MIB)
        piece = file.read(60 * MIB)
        file.seek(5 * 640 * MIB)
        file.write(generator.randbytes(MIB) + piece)
        file.seek(20 * GIB)
        file.write(generator.randbytes(MIB))
    patch_bytes = send(fleet)
    assert 0 < patch_bytes < 2.2 * MIB
    run(fleet, "e01", "extract")
    assert same_bytes(big, arrived)
    agents_stay_small(fleet)


def test_a_million_small_files(fleet: Fleet) -> None:
    two_tiers(fleet, leaves=1)
    source = bare_source(fleet)
    for number in range(2000):
        below = source / f"d{number // 50:02}" / f"d{number:04}"
        below.mkdir(parents=True)
        fd = os.open(below, os.O_RDONLY)
        for each in range(500):
            file = os.open(f"f{each:03}.conf", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
            os.write(file, b"setting %d of %d is on\n" % (each, number))
            os.close(file)
        os.close(fd)
    time.sleep(2.1)  # younger files are not remembered
    fleet.install()
    fleet.start()
    send(fleet)
    run(fleet, "e01", "extract")
    assert not run(fleet, "hq", "build")["distributions"][0]["changed"]
    (source / "d07" / "d0350" / "f123.conf").write_text("one line\n")
    patch_bytes = send(fleet)
    assert 0 < patch_bytes < 4096
    run(fleet, "e01", "extract")
    target = fleet.root / "e01" / "dest" / "app"
    assert (target / "d07" / "d0350" / "f123.conf").read_text() == "one line\n"
    assert sum(len(files) for _, _, files in os.walk(target)) == 1_000_000
    run(fleet, "e01", "verify")
    agents_stay_small(fleet)
