"""docs/features.md: every feature of the main job has a test, and every test it names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "features.md").read_text()
ROWS = {row[0]: row[1] for row in re.findall(r"^\| ([A-Z]+-\d+) \| .* \| (.*) \|$", PAGE, re.MULTILINE)}
MAIN_JOB = {
    "B": (*range(1, 10), 13, 18), "DN": (9, 14), "DIR": range(1, 7), "SN": (*range(1, 10), *range(11, 17)),
    "FR": (1, 2, 3, 9), "RT": range(1, 9), "SEC": (*range(1, 6), 17, 18), "X": (*range(1, 11), 12, 13),
    "FILE": range(1, 22), "VAR": (*range(1, 7), 12),
}  # fmt: skip


def test_every_feature_of_the_main_job_is_shown_by_a_test() -> None:
    missing = {f"{room}-{number}" for room, numbers in MAIN_JOB.items() for number in numbers} - ROWS.keys()
    assert not missing
    assert all("::test_" in shown for shown in ROWS.values())


def test_every_test_that_is_named_exists() -> None:
    for path, name in re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", PAGE):
        assert re.search(rf"^def {name}\(", (ROOT / path).read_text(), re.MULTILINE), f"{path}::{name}"


def test_no_feature_stands_twice() -> None:
    assert len(ROWS) == len(re.findall(r"^\| [A-Z]+-\d+ \|", PAGE, re.MULTILINE))
