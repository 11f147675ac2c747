"""kill -9 of an extraction or rollback, at every step and at any time: the next run ends in the right state."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import same_trees
from install_depot import DISTRIBUTOR, NAME, Depot
from install_trees import snapshot

from ted.install.verify import verify_installed

Snapshot = dict[bytes, tuple[Any, ...]]


class Killer:
    """Ends its own process, hard, at a step of the transaction."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.steps = 0

    def __call__(self, _phase: str, _number: int) -> None:
        self.steps += 1
        if self.steps == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A directory in memory where there is one: what a kill leaves is what the kernel holds, not what the disk does."""
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="ted-kill-", dir=memory))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A target that holds something of everything before ted comes."""
    target = tmp_path / "target"
    (target / "d" / "inner").mkdir(parents=True)
    (target / "d" / "inner" / "file").write_text("old")
    os.link(target / "d" / "inner" / "file", target / "second-name")
    (target / "changes").write_text("old")
    (target / "stays").write_text("same")
    (target / "goes").write_text("old")
    (target / "link").symlink_to("stays")
    (target / "becomes-directory").write_text("old")
    return target


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "becomes-directory").mkdir(parents=True)
    (source / "becomes-directory" / "new").write_text("new")
    (source / "d").write_text("a file now")
    (source / "changes").write_text("new")
    (source / "stays").write_text("same")
    os.link(source / "changes", source / "second-name")
    (source / "link").symlink_to("changes")
    for number in range(4):
        (source / f"new{number}").write_bytes(os.urandom(100))
    fresh = source / "fresh"
    (fresh / "inner").mkdir(parents=True, mode=0o750)
    (fresh / "a").write_text("fresh")
    os.setxattr(fresh / "a", "user.ted", b"x")
    (fresh / "inner" / "empty").touch()
    (fresh / "inner" / "link").symlink_to("../a")
    os.link(fresh / "a", fresh / "inner" / "second-name")
    os.link(source / "changes", fresh / "of-outside")
    (fresh / "z").write_text("after a name of what is outside")
    return source


def in_a_child(work: Any) -> bool:
    """Run ``work`` in a process of its own; return whether it came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001 -- nothing may return into the parent's tests
            os._exit(7)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFEXITED(status)


def the_way(work: Path, source: Path, target: Path, *, tests: dict[str, str] | None = None) -> Depot:
    depot = Depot(work)
    depot.build({"path": str(target), "from": [f"{source}/"], "synchronize": True}, tests=tests)
    return depot


@pytest.mark.parametrize("across", [False, True], ids=["one-file-system", "two-file-systems"])
def test_an_extraction_killed_at_any_step_is_finished_or_undone(
    tmp_path: Path, source: Path, target: Path, across: bool
) -> None:
    with tempfile.TemporaryDirectory(prefix="ted-kill-", dir=None if across else tmp_path) as work:
        kill_at_every_step(the_way(Path(work), source, target), source, target)


def test_an_extraction_with_workers_killed_at_any_step_is_finished_or_undone(
    tmp_path: Path, source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ted.install.tree.MANY", 1)
    for number in range(40):
        (source / "fresh" / "inner" / f"many{number}").write_bytes(os.urandom(100))
    kill_at_every_step(the_way(tmp_path, source, target), source, target)


def kill_at_every_step(depot: Depot, source: Path, target: Path) -> None:
    before = snapshot(target)
    after: Snapshot | None = None
    for step in range(1, 1000):
        depot.host.on_act = Killer(step)
        ended = in_a_child(depot.extract)
        depot.host.on_act = None
        if not ended:
            assert snapshot(target).keys() >= {b"stays"}
        result = depot.extract()
        assert (result.state, result.error) == ("extracted", None)
        assert same_trees(source, target) == ""
        assert depot.leftovers(target) == []
        after = after or snapshot(target)
        chain = depot.host.states.load(DISTRIBUTOR, NAME).chain
        assert [each.state for each in chain] == ["extracted"]
        assert depot.rollback().warnings == []
        assert snapshot(target) == before, step
        assert list(depot.host.states.transactions.iterdir()) == []
        if ended:
            assert step > 25
            return
    pytest.fail("it never came to its end")


def test_a_rollback_killed_at_any_step_is_finished_and_goes_not_one_step_too_far(
    tmp_path: Path, source: Path, target: Path
) -> None:
    first = the_way(tmp_path, source, target)
    stamp = first.extract().revision
    before = snapshot(target)
    (source / "changes").write_text("second")
    (source / "d").unlink()
    (source / "later").write_text("second")
    depot = the_way(tmp_path, source, target)
    depot.signed |= first.signed
    for step in range(1, 1000):
        depot.extract()
        depot.host.on_act = Killer(step)
        ended = in_a_child(depot.rollback)
        depot.host.on_act = None
        if not ended:
            result = depot.rollback()
            assert (result.state, result.revision) == ("rolled_back", stamp), step
        assert snapshot(target) == before, step
        assert len(list(depot.host.states.transactions.iterdir())) == 1
        if ended:
            assert step > 7
            return
    pytest.fail("it never came to its end")


def test_what_is_killed_during_its_acceptance_tests_is_tested_again(tmp_path: Path, source: Path, target: Path) -> None:
    marker = tmp_path / "marker"
    marker.write_text("kill")
    test = (
        "import os, pathlib, signal\n"
        f"marker = pathlib.Path({str(marker)!r})\n"
        "def test_it():\n"
        "    if marker.exists():\n"
        "        marker.unlink()\n"
        "        os.kill(os.getppid(), signal.SIGKILL)\n"
        "    else:\n"
        "        assert False, 'ran again'\n"
    )
    depot = the_way(tmp_path, source, target, tests={"test_kill.py": test})
    before = snapshot(target)
    assert not in_a_child(depot.extract)
    assert same_trees(source, target) == ""
    with pytest.raises(Exception, match="ran again"):
        depot.extract()
    assert snapshot(target) == before


PROGRAM = """
import sys
from pathlib import Path
from install_depot import Depot
depot = Depot(Path(sys.argv[1]))
depot.signed = set(sys.argv[2:])
print("ready", flush=True)
depot.extract()
"""


def test_kills_at_random_times_never_lose_anything(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    for directory in range(10):
        (source / str(directory)).mkdir(parents=True)
        for number in range(40):
            (source / str(directory) / f"{number}.txt").write_bytes(os.urandom(2000))
    depot = the_way(tmp_path, source, target)
    before = snapshot(target)
    chance = random.Random(2)
    killed = 0
    for _ in range(8):
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path), *depot.signed], stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(chance.uniform(0, 0.15))
        process.kill()
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
        depot.extract()
        assert same_trees(source, target) == ""
        assert depot.leftovers(target) == []
        depot.rollback()
        assert snapshot(target) == before
    assert killed > 1


@pytest.mark.parametrize("found_while", ["planning", "performing"])
def test_what_could_not_be_extracted_is_tried_and_told_again_after_a_kill(tmp_path: Path, found_while: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    for name in "abc":
        (source / name).write_text(f"new {name}")
    depot = Depot(tmp_path)
    depot.build({"path": str(target), "from": [f"{source}/"]}, on_error="continue")
    for step in range(1, 1000):
        target.mkdir()
        if found_while == "planning":
            (target / "b").mkdir()
            (target / "b" / "mine").write_text("foreign")
        killer = Killer(step)

        def meanwhile(phase: str, number: int, killer: Killer = killer) -> None:
            if phase == "capture" and found_while == "performing":
                (target / "b").mkdir()
                (target / "b" / "mine").write_text("foreign")
            killer(phase, number)

        depot.host.on_act = meanwhile
        ended = in_a_child(depot.extract)
        depot.host.on_act = None
        if (target / "b" / "mine").exists():
            for _ in range(2):
                result = depot.extract()
                assert (result.state, result.error and result.error["path"]) == ("failed", str(target / "b")), step
                assert ("b", "failed") in [(Path(each.path).name, each.what)
                                           for each in verify_installed(depot.host, DISTRIBUTOR, NAME)]  # fmt: skip
            assert (target / "b" / "mine").read_text() == "foreign"
            shutil.rmtree(target / "b")
        assert depot.extract().state == "extracted", step
        assert same_trees(source, target) == ""
        assert verify_installed(depot.host, DISTRIBUTOR, NAME) == []
        while depot.host.states.load(DISTRIBUTOR, NAME).chain:
            depot.rollback()
        shutil.rmtree(target)
        if ended:
            assert step > 8
            return
    pytest.fail("it never came to its end")


def test_a_rollback_over_a_mended_drift_killed_at_any_step_puts_the_wanted_revision_back(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for name in ("drifts", "drifts-later", "stays"):
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("first")
    depot = the_way(tmp_path, source, target)
    depot.extract()
    first = snapshot(target)
    for name in ("drifts", "drifts-later"):
        (source / name).write_text("the second")
    second = the_way(tmp_path, source, target)
    second.signed |= depot.signed
    for step in range(1, 1000):
        second.extract()
        for name in ("drifts", "drifts-later"):  # each is mended by a step of its own
            (tmp_path / "theirs").write_text(f"drifted {name}")
            (tmp_path / "theirs").rename(target / name)
            assert second.extract(force=True).changed
        second.host.on_act = Killer(step)
        ended = in_a_child(second.rollback)
        second.host.on_act = None
        if not ended:
            result = second.rollback()
            assert (result.state, result.warnings) == ("rolled_back", []), step
        assert snapshot(target) == first, step
        assert len(list(second.host.states.transactions.iterdir())) == 1
        if ended:
            assert step > 10
            return
    pytest.fail("it never came to its end")
