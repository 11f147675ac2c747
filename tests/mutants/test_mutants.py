"""The contract suite kills every mutant of the good plugin, each by the promise it breaks, and not the good one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
from mutants.table import MUTANTS, Mutant

from ted.plugins import installed
from ted.testing import BrokenPromiseError
from ted.testing.children import in_child
from ted.testing.promise import put_to_the_test
from ted.testing.promises import PROMISES

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

GOOD = Path(__file__).with_name("keeper.py").read_text()


def said(tmp_path: Path, source: str, promise: str) -> str:
    """Install a plugin where only a process of its own sees it, put it to the test, and return what the suite says."""
    (tmp_path / "ted_keeper.py").write_text(source)
    about = tmp_path / "ted_keeper-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: ted-keeper\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[ted]\nkeeper = ted_keeper\n")

    def work() -> str:
        sys.path.insert(0, str(tmp_path))
        importlib.invalidate_caches()
        installed.cache_clear()
        try:
            put_to_the_test("keeper", promise)
        except BrokenPromiseError as error:
            return str(error)
        return ""

    ended = in_child(work, time_limit_s=280)
    assert ended.well, ended
    return str(ended.value)


@pytest.mark.parametrize("promise", PROMISES)
def test_the_good_plugin_keeps_its_promises(tmp_path: Path, promise: str) -> None:
    assert said(tmp_path, GOOD, promise) == ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=[f"{each.promise}: {each.name}" for each in MUTANTS])
def test_a_mutant_is_killed_by_the_promise_it_breaks(tmp_path: Path, mutant: Mutant) -> None:
    message = said(tmp_path, mutant.of(GOOD), mutant.promise)
    assert f"breaks its promise {mutant.promise!r}" in message
    assert f"docs/testing-a-type.md#{mutant.promise}" in message


def test_there_are_enough_of_them() -> None:
    assert len(MUTANTS) >= 60
    assert len({each.name + each.promise for each in MUTANTS}) == len(MUTANTS)
    assert {each.promise for each in MUTANTS} >= set(PROMISES) - {"travels"}
