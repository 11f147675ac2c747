"""A limit is a contract: ten distributions, fifty children, and what crosses the line, each 20 ms."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from lab_rig import Lab, LabFleet

pytestmark = [pytest.mark.lab, pytest.mark.slow, pytest.mark.timeout(400)]
CHILDREN, DISTRIBUTIONS = 50, 10
PRIORITIES = ["high"] * 2 + ["medium"] * 6 + ["low"] * 2
EACH_BYTES = 500_000
TOTAL_BYTES = CHILDREN * DISTRIBUTIONS * EACH_BYTES
RATE = 8_000_000
BURST_BYTES = 64 * 1024
MORE = 1.02
LOOK = """
import os, time
os.nice(-20)  # whoever has to wait for a processor sees one second as another
counters = os.open("/proc/net/dev", os.O_RDONLY)
while True:
    before_s = time.monotonic()
    text = os.pread(counters, 65536, 0).decode()
    if time.monotonic() - before_s < 0.001:  # else nobody knows when they were read
        for line in text.splitlines():
            name, _, counts = line.partition(":")
            if name.strip() == "wan0":
                print(before_s, counts.split()[8], flush=True)
    time.sleep(0.02)
"""
Sample = tuple[float, int]


@contextmanager
def sampled(lab: Lab, site: str, file: Path) -> Iterator[list[Sample]]:
    """Yield samples of what a site has sent over its line, complete when the context ends."""
    samples: list[Sample] = []
    look = ["ip", "netns", "exec", f"{lab.name}.r.{site}", sys.executable, "-c", LOOK]
    with file.open("w") as output, subprocess.Popen(look, stdout=output) as looking:
        try:
            yield samples
        finally:
            looking.terminate()
    samples += read(file)


def read(file: Path) -> list[Sample]:
    """Return the samples that are there; the last line may be on its way yet."""
    *whole, _ = file.read_text().split("\n")
    return [(float(at_s), int(count)) for at_s, count in map(str.split, whole)]


def sent_so_far(file: Path) -> int:
    """Return the bytes sent since the first sample; to ask the lab each time took 28 % of the machine."""
    samples = read(file)
    return samples[-1][1] - samples[0][1] if samples else 0


def between(samples: list[Sample], start_s: float, end_s: float) -> list[Sample]:
    return [sample for sample in samples if start_s <= sample[0] <= end_s]


def worst_second(samples: list[Sample]) -> int:
    """Return the most bytes of any second."""
    worst, ends = 0, iter(samples)
    (end_s, count) = next(ends)
    for start_s, before in samples:
        while end_s - start_s < 1.0:
            following = next(ends, None)
            if following is None:
                return worst
            end_s, count = following
        worst = max(worst, int((count - before) / (end_s - start_s)))
    return worst


def average(samples: list[Sample]) -> float:
    return (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])


def test_rates_hold_with_ten_distributions_to_fifty_children(fleet: LabFleet, lab_of: Callable[..., Lab]) -> None:
    """Each priority has its rate, all of them the same; half way they are halved.

    Judged is the middle: at the beginning there are five hundred offers with their handshakes and catalogs, which are
    no content and have no rate, and fifty nodes on one machine that need all of it for them.
    """
    children = [f"c{number:02}" for number in range(CHILDREN)]
    lab = lab_of({"hq": {"hosts": ["dist"], "wan": "400mbit"}, "far": {"hosts": children, "wan": "400mbit"}})
    found = {}
    for number, priority in enumerate(PRIORITIES):
        source = fleet.root / "source" / f"d{number}"
        source.mkdir(parents=True)
        (source / "big").write_bytes(random.Random(number).randbytes(EACH_BYTES))
        found[f"d{number}"] = {"type": "file", "channels": ["pos"], "priority": priority,
                               "options": {"targets": [{"path": "/nowhere", "from": [f"{source}/"]}]}}  # fmt: skip
    fleet.add(
        "dist", distributor=True, distributions=found, output_rates=dict.fromkeys(("high", "medium", "low"), RATE)
    )
    for child in children:
        fleet.add(child, channels=("pos",))
    fleet.place(lab)
    fleet.install()
    fleet.start()
    fleet.ted("dist", "build")
    file = fleet.root / "samples"
    with sampled(lab, "hq", file) as samples:
        sends = {found["send"] for found in fleet.ted("dist", "send", "--no-wait")["sends"]}
        fleet.until(lambda: sent_so_far(file) > TOTAL_BYTES * 0.5, within_s=150)
        config = fleet.config("dist") / "node.yml"
        halved = yaml.safe_load(config.read_text())
        halved["output_rates"] = {name: rate // 2 for name, rate in halved["output_rates"].items()}
        other = config.with_suffix(".new")
        other.write_text(yaml.safe_dump(halved))
        other.rename(config)
        halved_at_s = time.monotonic()
        watched = list(itertools.chain.from_iterable(("--watch", send) for send in sends))
        done = fleet.ted("dist", "send", *watched, "--timeout", "105")["sends"]
    assert [send["incomplete"] for send in done] == [[]] * DISTRIBUTIONS
    quarter_at_s = next(at_s for at_s, count in samples if count - samples[0][1] > TOTAL_BYTES * 0.25)
    for rate, part in (
        (RATE, between(samples, quarter_at_s, halved_at_s)),
        (RATE / 2, between(samples, halved_at_s + 1, halved_at_s + 13)),
    ):
        assert max(later[0] - earlier[0] for earlier, later in itertools.pairwise(part)) < 0.1, "nobody looked"
        most, mean = worst_second(part) / rate, average(part) / rate
        print(f"{part[-1][0] - part[0][0]:.1f} s at {rate:,.0f} bytes/s: worst second {most:.3f}, average {mean:.3f}")
        assert most <= MORE + BURST_BYTES / rate
        assert mean >= 0.98
