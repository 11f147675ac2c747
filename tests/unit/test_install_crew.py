"""Files that other processes make: the same as without, the same errors, and nobody left running."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import same_trees
from install_depot import Depot
from install_trees import snapshot

from ted.errors import DigestMismatchError, InstallError
from ted.install import attributes, crew, transaction, tree
from ted.install.crew import Crew
from ted.install.transaction import Transaction


@pytest.fixture
def source(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    for number in range(600):
        path = source / f"d{number // 50}" / f"f{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d\n" % number * (number % 7))
        os.chmod(path, (0o644, 0o600, 0o444, 0o777)[number % 4])
        os.utime(path, ns=(10**18, 10**18 + number))
    os.chmod(source / "d1" / "f050", 0o4755)
    os.link(source / "d1" / "f051", source / "d2" / "a-second-name")
    (source / "d3" / "a-link").symlink_to("f150")
    (source / "d3" / "large").write_bytes(os.urandom(3 << 20))
    (source / "d4" / "empty").mkdir()
    os.setxattr(source / "d5" / "f250", "user.ted", b"x")
    return source


@pytest.fixture
def depot(tmp_path: Path, source: Path) -> Depot:
    depot = Depot(tmp_path / "node")
    depot.build({"path": str(tmp_path / "target"), "from": [f"{source}/"]})
    return depot


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Crew]]:
    """Workers, however few entries there are; yields those that were started."""
    found: list[Crew] = []
    start: Callable[[Crew], bool] = Crew.start

    def noted(self: Crew) -> bool:
        found.append(self)
        return start(self)

    monkeypatch.setattr(tree, "MANY", 1)
    monkeypatch.setattr(crew, "_is_single_threaded", lambda: True)  # whatever other tests have left
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2})
    monkeypatch.setattr(Crew, "start", noted)
    yield found
    assert not any(each._workers for each in found)


def test_what_workers_make_is_what_is_made_without(
    depot: Depot, source: Path, tmp_path: Path, started: list[Crew]
) -> None:
    result = depot.extract()
    assert started
    assert result.actions["written"] == 601
    assert same_trees(source, tmp_path / "target") == ""
    made = snapshot(tmp_path / "target")
    assert set(depot.extract(force=True).actions) == {"unchanged"}
    assert depot.rollback().warnings == []
    assert not (tmp_path / "target").exists()
    tree.MANY = 1 << 30  # put back with the fixture
    depot.extract()
    assert len(started) == 1
    assert {path: held[1:] for path, held in snapshot(tmp_path / "target").items()} == {
        path: held[1:] for path, held in made.items()
    }


def test_what_a_worker_could_not_make_is_made_again(
    depot: Depot, source: Path, tmp_path: Path, started: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = crew._make_one

    def refused(at: int, name: bytes, *rest: Any) -> int:
        if name.endswith(b"3"):
            raise PermissionError
        return make(at, name, *rest)

    monkeypatch.setattr(crew, "_make_one", refused)
    depot.extract()
    assert started
    assert same_trees(source, tmp_path / "target") == ""
    assert depot.rollback().warnings == []
    assert not (tmp_path / "target").exists()


def test_what_cannot_be_made_at_all_is_left_out_where_that_is_asked_for(
    depot: Depot, source: Path, tmp_path: Path, started: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    make, stage = crew._make_one, Transaction._stage_file
    refused = [b"f003", b"f017", b"f303"]

    def make_some(at: int, name: bytes, *rest: Any) -> int:
        if name in refused:
            raise PermissionError
        return make(at, name, *rest)

    def stage_some(self: Transaction, where: bytes, at: int, name: bytes, *rest: Any) -> tuple[int, int]:
        if name in refused:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return stage(self, where, at, name, *rest)

    monkeypatch.setattr(crew, "_make_one", make_some)
    monkeypatch.setattr(Transaction, "_stage_file", stage_some)
    depot.build({"path": str(tmp_path / "target"), "from": [f"{source}/"]}, on_error="continue")
    result = depot.extract()
    assert started
    assert result.state == "failed"
    assert result.error is not None
    told = [failure["path"] for failure in result.error["failures"]]
    assert [path.rpartition("/")[2].encode() for path in told] == refused
    made = {path.relative_to(tmp_path / "target") for path in (tmp_path / "target").rglob("*")}
    wanted = {path.relative_to(source) for path in source.rglob("*")}
    assert wanted - made == {Path("d0/f003"), Path("d0/f017"), Path("d6/f303")}
    assert made < wanted


def test_a_user_is_told_for_how_many_files_the_owner_was_not_set(
    depot: Depot, source: Path, tmp_path: Path, started: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50, 60):
        os.chown(source / "d1" / f"f{number:03}", 12345, -1)
    depot.build({"path": str(tmp_path / "target"), "from": [f"{source}/"]})
    told: list[list[str]] = []
    for many in (1, 1 << 30):
        monkeypatch.setattr(tree, "MANY", many)
        monkeypatch.setattr(transaction, "Rights", lambda: attributes.Rights(root=False))
        told.append(depot.extract().warnings)
        assert (tmp_path / "target" / "d1" / "f052").stat().st_uid == os.geteuid()
        depot.rollback()
    assert len(started) == 1
    assert told[0] == told[1]
    assert any("owner or group not set" in text and text.endswith("(10 times)") for text in told[0])


def test_long_paths_fill_no_pipe(depot: Depot, source: Path, tmp_path: Path, started: list[Crew]) -> None:
    deep = source.joinpath(*["n" * 200] * 12)
    deep.mkdir(parents=True)
    for number in range(2000):
        (deep / f"{number:04}{'m' * 200}").write_bytes(b"%d\n" % number)
    depot.build({"path": str(tmp_path / "target"), "from": [f"{source}/"]})
    depot.extract()
    assert started
    assert same_trees(source, tmp_path / "target") == ""
    assert depot.rollback().warnings == []
    assert not (tmp_path / "target").exists()


def test_damage_is_told_as_without_workers(depot: Depot, tmp_path: Path, started: list[Crew]) -> None:
    (pack,) = depot.working.path.rglob("DISTFILE.TED")
    with pack.open("r+b") as file:
        file.seek(40)
        byte = file.read(1)
        file.seek(40)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DigestMismatchError, match="the frame at 16 is not"):
        depot.extract()
    assert started
    assert sorted(os.listdir(tmp_path)) == ["node", "source"]


def test_a_worker_that_is_killed_ends_the_extraction_and_nothing_is_left(
    depot: Depot, tmp_path: Path, started: list[Crew]
) -> None:
    def kill(phase: str, number: int) -> None:
        if phase == "stage" and started and started[0]._workers:
            os.kill(started[0]._workers[0].pid, signal.SIGKILL)

    depot.host.on_act = kill
    with pytest.raises(InstallError, match="was ended"):
        depot.extract()
    assert sorted(os.listdir(tmp_path)) == ["node", "source"]
    depot.host.on_act = None
    assert depot.extract().changed


def test_workers_die_with_who_forked_them(depot: Depot, tmp_path: Path, started: list[Crew]) -> None:
    def tell_and_die(phase: str, number: int) -> None:
        if phase == "stage" and started and started[0]._workers:
            (tmp_path / "pids").write_text(" ".join(str(each.pid) for each in started[0]._workers))
            os.kill(os.getpid(), signal.SIGKILL)

    depot.host.on_act = tell_and_die
    pid = os.fork()
    if pid == 0:
        try:
            depot.extract()
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGKILL
    workers = [int(each) for each in (tmp_path / "pids").read_text().split()]
    until = time.monotonic() + 10
    while any(_runs(each) for each in workers):
        assert time.monotonic() < until
        time.sleep(0.01)
    depot.host.on_act = None
    assert depot.extract().changed
    assert depot.leftovers(tmp_path / "target") == []


def test_a_worker_that_is_interrupted_at_its_birth_does_not_act_as_its_parent(
    depot: Depot, source: Path, tmp_path: Path, started: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    fork, parent = os.fork, os.getpid()

    def interrupted() -> int:
        pid = fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return pid

    monkeypatch.setattr(os, "fork", interrupted)
    try:
        depot.extract()
    finally:
        if os.getpid() != parent:
            (tmp_path / "acted").touch()
            os._exit(1)
    assert started
    assert not (tmp_path / "acted").exists()
    assert same_trees(source, tmp_path / "target") == ""


def _runs(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_an_update_has_workers_too(
    depot: Depot, source: Path, tmp_path: Path, started: list[Crew], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(directory: str) -> None:
        (source / directory).mkdir()
        for number in range(2000):
            (source / directory / f"f{number:04}").write_bytes(b"%d" % number)
        (source / "a-large").write_bytes(os.urandom(9 << 20))  # of which other threads read ahead

    def nobody_reads() -> bool:
        return not any(each.name.startswith("ted-read") for each in threading.enumerate())

    def build() -> None:
        depot.build({"path": str(tmp_path / "target"), "from": [f"{source}/"]})

    monkeypatch.setattr(crew, "_is_single_threaded", nobody_reads)
    fill("d7-old")
    build()
    depot.extract()
    fill("d8-new")
    build()
    close: Callable[[Crew], None] = Crew.close
    employed: list[int] = []

    def counted(self: Crew) -> None:
        employed.append(len(self._workers))
        close(self)

    monkeypatch.setattr(Crew, "close", counted)
    depot.extract()
    assert employed == [3]
    assert same_trees(source, tmp_path / "target") == ""


def test_a_process_with_threads_works_without(depot: Depot, source: Path, tmp_path: Path) -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        assert not crew._is_single_threaded()
    finally:
        ended.set()
        thread.join()


def test_few_entries_need_no_workers(depot: Depot, source: Path, tmp_path: Path, started: list[Crew]) -> None:
    tree.MANY = 2000
    depot.extract()
    assert not started
    assert same_trees(source, tmp_path / "target") == ""
