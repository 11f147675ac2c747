"""What an installer must never do to other people's files, whatever happens around it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from install_depot import Depot

from ted.errors import FormatError, RepositoryError, TargetError, UnsafePathError
from ted.install import Transaction, recover
from ted.install.log import LogReader, LogWriter
from ted.install.perform import run_command
from ted.install.state import Installed, Step
from ted.install.transaction import Policy, State

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: mounting needs root")


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    root = tmp_path / "target"
    root.mkdir()
    return root


@pytest.fixture
def begin(tmp_path: Path) -> Callable[..., Transaction]:
    def begin(**options: Any) -> Transaction:
        options.setdefault("policy", Policy(retries=0))
        return Transaction(tmp_path / "var" / "transactions" / Transaction.identity(), **options)

    return begin


@contextmanager
def mounted(path: Path, *how: str) -> Iterator[None]:
    subprocess.run(["mount", *how, str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


def write(transaction: Transaction, root: Path, path: str, text: str) -> None:
    transaction.write(str(root), path.encode(), [text.encode()], size=len(text.encode()))


def make(root: Path, **files: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (root / name).write_text(text)
    return root


def fill_up(directory: Path) -> None:
    with suppress(OSError), open(directory / "filler", "wb", 0) as file:
        while True:
            file.write(bytes(4096))


def test_synchronize_spares_what_an_anchored_exclude_left_out_of_a_named_directory(
    depot: Depot, tmp_path: Path, target: Path
) -> None:
    make(tmp_path / "pos" / "var", junk="built")
    make(tmp_path / "pos", program="x")
    make(target / "pos" / "var", customers="precious")
    depot.build({"from": [str(tmp_path / "pos")], "exclude": ["/var"], "synchronize": True})
    depot.extract()
    assert (target / "pos" / "program").exists()
    assert (target / "pos" / "var" / "customers").read_text() == "precious"


@needs_root
@pytest.mark.parametrize("on_error", ["fail", "continue"])
def test_what_is_bound_into_a_directory_is_never_deleted_with_it(
    begin: Callable[..., Transaction], tmp_path: Path, target: Path, on_error: Any
) -> None:
    outside = make(tmp_path / "outside", customers="precious")
    make(target / "extra" / "bound")
    make(target / "extra", aaa="first")
    with (
        mounted(target / "extra" / "bound", "--bind", str(outside)),
        begin(policy=Policy(on_error=on_error, retries=0, on_failure="leave")) as transaction,
    ):
        transaction.delete(str(target), b"extra")
        if on_error == "fail":
            with pytest.raises(TargetError, match="mounted"):
                transaction.commit()
        else:
            assert "mounted" in transaction.commit().failures[0].message
        assert (outside / "customers").read_text() == "precious"
        assert (target / "extra" / "aaa").exists()


@contextmanager
def on_another_file_system(path: Path) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    with mounted(path, "-t", "tmpfs", "-o", "size=4m", "tmpfs"):
        yield


@needs_root
def test_an_inode_number_that_was_given_to_another_file_does_not_hide_the_change(
    begin: Callable[..., Transaction], tmp_path: Path, target: Path
) -> None:
    """The saved copy is on another file system, and what stands there now has the number of what stood there before."""
    make(target, f="ORIGINAL")
    with on_another_file_system(tmp_path / "var"):
        with begin(policy=Policy(retries=0, on_error="continue")) as transaction:
            write(transaction, target, "f", "rev2")
            os.link(target / "f", tmp_path / "same-number")  # holds the number
            transaction.commit()
        os.rename(tmp_path / "same-number", target / "f")
        (target / "f").write_text("by an editor, under the old number")
        with Transaction.open(transaction.directory) as again:
            (failure,) = again.undo().failures
            assert failure.message.startswith("not put back: it was changed since; what was there before is kept as ")
        assert (target / "f").read_text() == "by an editor, under the old number"


def test_a_rollback_never_works_in_the_directory_a_turned_link_leads_to(
    begin: Callable[..., Transaction], tmp_path: Path
) -> None:
    make(tmp_path / "v1")
    make(tmp_path / "v2")
    (tmp_path / "current").symlink_to("v1")
    with begin() as transaction:
        write(transaction, tmp_path / "current", "app.conf", "ted")
        transaction.commit()
    make(tmp_path / "v2", **{"app.conf": "admin"})
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("v2")
    with Transaction.open(transaction.directory) as again, pytest.raises(TargetError, match="another directory"):
        again.undo()
    assert (tmp_path / "v2" / "app.conf").read_text() == "admin"
    (tmp_path / "current").unlink()
    (tmp_path / "current").symlink_to("v1")
    with Transaction.open(transaction.directory) as again:
        again.undo()
    assert os.listdir(tmp_path / "v1") == []


@needs_root
def test_what_a_failed_act_did_not_write_is_not_undone(begin: Callable[..., Transaction], target: Path) -> None:
    make(target, b="old")
    subprocess.run(["chattr", "+i", str(target / "b")], check=True)
    try:
        with begin(policy=Policy(retries=0, on_error="continue")) as transaction:
            write(transaction, target, "a", "x")
            write(transaction, target, "b", "x")
            assert len(transaction.commit().failures) == 1
    finally:
        subprocess.run(["chattr", "-i", str(target / "b")], check=True)
    (target / "b").unlink()
    make(target, b="the user's own")
    with Transaction.open(transaction.directory) as again:
        assert again.undo().failures == ()
    assert {path.name: path.read_text() for path in target.iterdir()} == {"b": "the user's own"}


def test_undoing_leaves_a_file_that_somebody_put_there_since_and_says_so(
    begin: Callable[..., Transaction], target: Path
) -> None:
    make(target, old="old")
    with begin() as transaction:
        write(transaction, target, "new", "ted")
        write(transaction, target, "old", "ted")
        write(transaction, target, "still-ours", "ted")
        transaction.commit()
    for name in ("new", "old"):
        make(target, moved="by another program")
        (target / "moved").rename(target / name)
    with Transaction.open(transaction.directory) as again:
        failures = again.undo().failures
    assert {failure.message.partition(";")[0] for failure in failures} == {"not put back: it was changed since"}
    assert {path.name: path.read_text() for path in target.iterdir()} == dict.fromkeys(
        ("new", "old"), "by another program"
    )


@pytest.mark.parametrize("first_synchronizes", [True, False])
def test_synchronize_never_deletes_what_another_distribution_owns(
    depot: Depot, tmp_path: Path, target: Path, first_synchronizes: bool
) -> None:
    for name in ("x", "y"):
        make(tmp_path / name, **{f"only-{name}": name})
    depot.build({"from": [f"{tmp_path}/x/"], "synchronize": first_synchronizes}, name="x")
    depot.build({"from": [f"{tmp_path}/y/"], "synchronize": not first_synchronizes}, name="y")
    depot.extract("x")
    with pytest.raises(UnsafePathError, match="x of hq is installed"):
        depot.extract("y")
    assert os.listdir(target) == ["only-x"]
    depot.rollback("x")
    assert depot.extract("y").changed


def test_rolling_one_distribution_back_leaves_a_file_of_another(depot: Depot, tmp_path: Path, target: Path) -> None:
    for name in ("x", "y"):
        make(tmp_path / name, common=f"of {name}")
        depot.build({"from": [f"{tmp_path}/{name}/"]}, name=name)
        depot.extract(name)
    result = depot.rollback("x")
    assert "changed since" in " ".join(result.warnings)
    assert (target / "common").read_text() == "of y"


@pytest.mark.parametrize(
    "options",
    [
        {"path": "{var}/hq", "synchronize": True},
        {"path": "{root}", "synchronize": True},
        {"path": "{root}", "remove": ["var/.ted"]},
        {"path": "{root}", "remove": ["var"]},
    ],
)
def test_nothing_is_deleted_in_or_around_the_directories_of_ted(
    depot: Depot, tmp_path: Path, options: dict[str, Any]
) -> None:
    make(tmp_path / "source", f="x")
    path = options["path"].format(var=depot.working.path, root=tmp_path)
    depot.build({"from": [f"{tmp_path}/source/"], **options, "path": path})
    with pytest.raises(UnsafePathError, match="own"):
        depot.extract(check=True)


def test_a_directory_that_came_after_it_was_looked_at_is_not_removed(
    begin: Callable[..., Transaction], target: Path
) -> None:
    def meanwhile(phase: str, _number: int) -> None:
        if phase == "capture":
            make(target / "new", precious="x")

    with begin(on_act=meanwhile, policy=Policy(retries=0)) as transaction:
        write(transaction, target, "new", "ted")
        with pytest.raises(TargetError, match="meanwhile"):
            transaction.commit()
    assert (target / "new" / "precious").exists()


def test_a_file_that_came_into_a_directory_that_goes_is_not_removed(
    begin: Callable[..., Transaction], target: Path
) -> None:
    make(target / "gone", old="old")

    def meanwhile(phase: str, _number: int) -> None:
        if phase == "capture":
            make(target / "gone", precious="x")

    with begin(on_act=meanwhile) as transaction:
        transaction.delete(str(target), b"gone")
        with pytest.raises(TargetError):
            transaction.commit()
    assert {path.name for path in (target / "gone").iterdir()} == {"old", "precious"}


@needs_root
def test_a_working_directory_that_fills_up_in_the_middle_still_lets_everything_be_undone(
    begin: Callable[..., Transaction], tmp_path: Path, target: Path
) -> None:
    make(target, **{f"f{number:03}": "old" for number in range(600)})

    def fill(phase: str, number: int) -> None:
        if phase == "act" and number == 3:
            fill_up(tmp_path / "var")

    with on_another_file_system(tmp_path / "var"):
        with begin(on_act=fill) as transaction:
            for number in range(600):
                write(transaction, target, f"f{number:03}", "new")
            with pytest.raises(TargetError) as caught:
                transaction.commit()
            assert caught.value.errno == errno.ENOSPC
            assert transaction.state is State.UNDONE
        assert {path.read_text() for path in target.iterdir()} == {"old"}


@needs_root
def test_a_log_without_room_drops_what_is_not_whole_and_goes_on(tmp_path: Path) -> None:
    with on_another_file_system(tmp_path / "small"):
        log = LogWriter(tmp_path / "small" / "log")
        log.append(["first"])
        log.reserve(4096)
        fill_up(tmp_path / "small")
        with pytest.raises(OSError, match="No space"):
            log.append([os.urandom(1 << 20)])
        log.append(["last"])
        log.close()
        with LogReader(tmp_path / "small" / "log") as reader:
            records = list(reader)
        assert (records[0], records[-1]) == (["first"], ["last"])


def test_a_command_that_ended_is_not_run_again_after_a_crash(
    begin: Callable[..., Transaction], tmp_path: Path, target: Path
) -> None:
    def crash(phase: str, _number: int) -> None:
        if phase == "finish":
            raise KeyboardInterrupt

    with begin(on_act=crash) as transaction:
        write(transaction, target, "f", "x")
        transaction.run(["sh", "-c", f"echo ran >> {tmp_path}/log"])
        with pytest.raises(KeyboardInterrupt):
            transaction.commit()
    assert [found.state for found in recover(transaction.directory.parent)] == [State.DONE]
    assert (tmp_path / "log").read_text() == "ran\n"


def test_a_command_may_leave_a_service_running_and_its_time_limit_ends_its_children(tmp_path: Path) -> None:
    began_s = time.monotonic()
    run_command(["sh", "-c", "sleep 40 & exit 0"], 20)
    assert time.monotonic() - began_s < 20
    with pytest.raises(TargetError, match="longer"):
        run_command(["sh", "-c", f"(sleep 3; echo late > {tmp_path}/late) & sleep 9"], 0.3)
    time.sleep(3.2)
    assert not (tmp_path / "late").exists()


def test_an_error_never_shows_the_words_of_a_command() -> None:
    with pytest.raises(TargetError) as caught:
        run_command(["sh", "-c", "exit 3", "hunter2"], 5)
    assert "hunter2" not in str(caught.value)
    assert "exit code 3" in str(caught.value)


def test_a_transaction_that_is_stuck_is_an_error_of_its_distribution(
    depot: Depot, tmp_path: Path, target: Path
) -> None:
    make(tmp_path / "source", f="x")
    depot.build({"from": [f"{tmp_path}/source/"]})

    def crash(_phase: str, _number: int) -> None:
        os._exit(9)

    if (child := os.fork()) == 0:
        depot.host.on_act = crash
        depot.extract()
    os.waitpid(child, 0)
    shutil.move(target, tmp_path / "away")
    target.symlink_to("target")  # a loop: the system refuses to open it
    with pytest.raises((TargetError, RepositoryError)):
        depot.extract()


def crashed(depot: Depot, at: str) -> None:
    """Extract in a process that ends in phase ``at``."""
    if (child := os.fork()) == 0:
        depot.host.on_act = lambda phase, _number: os._exit(9) if phase == at else None
        depot.extract()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_clock_that_went_back_costs_no_undo_log(depot: Depot, tmp_path: Path, target: Path) -> None:
    make(tmp_path / "source", f="first")
    depot.build({"from": [f"{tmp_path}/source/"]})
    depot.extract()
    held = depot.host.states.load("hq", "pos")
    held.chain[0] = replace(held.chain[0], at="2999-01-01T00:00:00+00:00")
    depot.host.states.save(held)
    make(tmp_path / "source", f="second")
    depot.build({"from": [f"{tmp_path}/source/"]})
    crashed(depot, "done")
    depot.extract()
    depot.rollback()
    assert (target / "f").read_text() == "first"


def test_with_one_kept_revision_the_newest_can_still_be_taken_back(depot: Depot, tmp_path: Path, target: Path) -> None:
    for text in ("first", "second"):
        make(tmp_path / "source", f=text)
        depot.build({"from": [f"{tmp_path}/source/"]}, settings={"max_revisions": 1})
        depot.extract()
    foretold = depot.rollback(check=True)
    result = depot.rollback()
    assert (result.state, result.warnings) == (foretold.state, foretold.warnings)
    assert "not kept" in result.warnings[-1]
    assert (target / "f").read_text() == "first"


def test_check_mode_writes_nothing_at_all(depot: Depot, tmp_path: Path) -> None:
    make(tmp_path / "source", f="x")
    depot.build({"from": [f"{tmp_path}/source/"]})
    before = sorted(tmp_path.rglob("*"))
    assert depot.extract(check=True).changed
    assert sorted(tmp_path.rglob("*")) == before


def test_check_mode_foretells_that_what_a_crash_left_is_brought_to_an_end(depot: Depot, tmp_path: Path) -> None:
    make(tmp_path / "source", f="x")
    depot.build({"from": [f"{tmp_path}/source/"]})
    crashed(depot, "done")
    foretold = depot.extract(check=True)
    assert foretold.changed
    assert "interrupted" in str(foretold.reason)
    assert depot.extract().changed
    assert depot.extract(check=True).reason is None


def test_what_root_installed_can_be_read_by_the_agents_user(depot: Depot, tmp_path: Path) -> None:
    make(tmp_path / "source", f="x")
    depot.build({"from": [f"{tmp_path}/source/"]})
    umask = os.umask(0o077)
    try:
        depot.extract()
    finally:
        os.umask(umask)
    chain = depot.working.state / "installed" / "hq" / "pos.json"
    assert chain.stat().st_mode & 0o044 == 0o044
    assert all(path.stat().st_mode & 0o055 == 0o055 for path in (chain.parent, chain.parent.parent))


def test_overwrite_newer_keeps_a_newer_file_where_a_directory_must_be(
    depot: Depot, tmp_path: Path, target: Path
) -> None:
    make(tmp_path / "source" / "d", f="x")
    os.utime(tmp_path / "source" / "d", (10**9, 10**9))
    make(target, d="newer")
    depot.build({"from": [f"{tmp_path}/source/"]}, overwrite="newer")
    with pytest.raises(TargetError, match="newer"):
        depot.extract()
    assert (target / "d").read_text() == "newer"


def test_the_list_of_what_is_installed_never_grows_beyond_what_can_be_read(depot: Depot) -> None:
    places = {str(number): "/" + "x" * 200 for number in range(500)}
    held = Installed("hq", "pos", [Step(f"r{number}", "", "file", "", places=places) for number in range(30)])
    depot.host.cut(held, None)
    assert 1 < len(held.chain) < 30
    assert depot.host.states.load("hq", "pos").chain == held.chain
    with pytest.raises(FormatError):
        depot.host.states.save(Installed("hq", "pos", held.chain * 30))


def test_opening_a_transaction_somebody_works_on_leaves_no_descriptor_open(
    begin: Callable[..., Transaction], target: Path
) -> None:
    with begin() as transaction:
        write(transaction, target, "f", "x")
        before = os.listdir("/proc/self/fd")
        with pytest.raises(BlockingIOError):
            Transaction.open(transaction.directory)
        assert os.listdir("/proc/self/fd") == before


def test_a_rollback_keeps_what_it_may_not_put_back_and_says_where(depot: Depot, tmp_path: Path, target: Path) -> None:
    source = make(tmp_path / "source", f="first", g="first")
    depot.build({"path": str(target), "from": [f"{source}/"]})
    depot.extract()
    make(source, f="the second", g="the second")
    depot.build({"path": str(target), "from": [f"{source}/"]})
    depot.extract()
    make(tmp_path, theirs="theirs")
    (tmp_path / "theirs").rename(target / "f")
    (warning,) = depot.rollback().warnings
    assert warning.startswith(f"{target / 'f'}: not put back: it was changed since; what was there before is kept as ")
    kept = Path(warning.rpartition(" ")[2])
    assert (kept.read_text(), kept.parents[1]) == ("first", depot.working.state / "kept")
    assert ((target / "f").read_text(), (target / "g").read_text()) == ("theirs", "first")
    assert len(list(depot.host.states.transactions.iterdir())) == 1


def test_a_rollback_puts_the_oldest_content_back_where_newer_steps_found_drift(
    depot: Depot, tmp_path: Path, target: Path
) -> None:
    source = make(tmp_path / "source", f="first", g="first")
    first = depot.build({"path": str(target), "from": [f"{source}/"]})
    depot.extract()
    make(source, f="the second", g="the second")
    depot.build({"path": str(target), "from": [f"{source}/"]})
    depot.extract()
    make(tmp_path, theirs="theirs")
    (tmp_path / "theirs").rename(target / "f")
    (target / "g").unlink()
    (target / "g").symlink_to("theirs")
    make(source, f="the third one", g="the third one")
    depot.build({"path": str(target), "from": [f"{source}/"]})
    depot.extract()
    assert depot.rollback(revision=first).warnings == []
    assert ((target / "f").read_text(), (target / "g").read_text()) == ("first", "first")
