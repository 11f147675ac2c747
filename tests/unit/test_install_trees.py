"""Directories that are staged whole: there with all they hold or not at all, and taken back without other people's."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from install_depot import Depot
from install_trees import snapshot

from ted.errors import InstallError, TargetError, UnsafePathError
from ted.hookspecs import Attributes
from ted.install import Transaction, recover
from ted.install.log import LogReader
from ted.install.transaction import Policy, State

Begin = Callable[..., Transaction]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: mounting needs root")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    root = tmp_path / "target"
    root.mkdir()
    (root / "old").write_text("old")
    return root


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    def begin(**options: Any) -> Transaction:
        options.setdefault("policy", Policy(retries=0))
        return Transaction(tmp_path / "var" / "transactions" / Transaction.identity(), **options)

    return begin


def write(transaction: Transaction, root: Path, path: str, text: str = "new", **held: Any) -> None:
    attributes = Attributes(**held)
    transaction.write(str(root), path.encode(), [text.encode()], size=len(text.encode()), attributes=attributes)


def plan(transaction: Transaction, root: Path) -> None:
    transaction.mkdir(str(root), b"new", attributes=Attributes(mode=0o750, mtime_ns=10**18))
    write(transaction, root, "new/a", mode=0o4755, mtime_ns=5)
    transaction.mkdir(str(root), b"new/inner", attributes=Attributes(mode=0o555, mtime_ns=2 * 10**18))
    for number in range(5):
        write(transaction, root, f"new/inner/{number}", mtime_ns=7)
    transaction.symlink(str(root), b"new/link", b"inner/0")


PLANNED = {"new", "new/a", "new/inner", "new/link", *(f"new/inner/{number}" for number in range(5))}


def names(root: Path) -> set[str]:
    found = {str(path.relative_to(root)) for path in root.rglob("*")}
    return {path for path in found if not path.startswith(".ted-")}


def acts(transaction: Transaction) -> list[list[Any]]:
    transaction._plan.flush()  # type: ignore[union-attr]
    with LogReader(transaction.directory / "plan") as log:
        return list(log)


def test_a_new_directory_is_one_act_and_comes_whole(begin: Begin, target: Path) -> None:
    seen: list[set[str]] = []

    def look(_phase: str, _number: int) -> None:
        seen.append(names(target) - {"old"})

    with begin(on_act=look) as transaction:
        plan(transaction, target)
        assert [act[0] for act in acts(transaction)] == ["tree"]
        result = transaction.commit()
    assert result.counts == {"directories": 2, "written": 6, "linked": 1}
    assert set() in seen
    assert all(found in (set(), PLANNED) for found in seen)
    assert names(target) == PLANNED | {"old"}


def test_attributes_links_and_extended_attributes_are_as_planned(begin: Begin, target: Path) -> None:
    with begin() as transaction:
        transaction.mkdir(str(target), b"new", attributes=Attributes(mode=0o2755, mtime_ns=3 * 10**18))
        write(transaction, target, "new/a", mode=0o640, mtime_ns=9, xattrs={"user.x": b"1"})
        transaction.mkdir(str(target), b"new/d", attributes=Attributes(mode=0o500, mtime_ns=4, xattrs={"user.d": b"2"}))
        transaction.hardlink(str(target), b"new/d/second", b"new/a")
        transaction.symlink(str(target), b"new/d/link", b"/etc", attributes=Attributes(mtime_ns=11))
        transaction.hardlink(str(target), b"new/old", b"old")  # another name of what is outside
        write(transaction, target, "new/z", "after a name of what is outside")
        transaction.commit()
    found = snapshot(target)
    assert found[b"new"][3:] == (3 * 10**18, 0o2755, {})
    assert found[b"new/a"][3:] == (9, 0o640, {"user.x": b"1"}, b"new", b"new/a")
    assert found[b"new/d"][3:] == (4, 0o500, {"user.d": b"2"})
    assert found[b"new/d/second"][-1] == b"new/a"
    assert found[b"new/d/link"][3:] == (11, b"/etc")
    assert found[b"old"][-1] == found[b"new/old"][-1] == b"new/old"
    assert found[b"new/z"][-2] == b"after a name of what is outside"


def test_undo_takes_exactly_the_directory_back(begin: Begin, target: Path) -> None:
    before = snapshot(target)
    with begin() as transaction:
        plan(transaction, target)
        transaction.hardlink(str(target), b"new/old", b"old")
        transaction.commit()
    with Transaction.open(transaction.directory) as again:
        assert again.undo().failures == ()
    assert snapshot(target) == before


def test_undo_leaves_what_other_people_put_there_and_says_so(begin: Begin, target: Path) -> None:
    with begin() as transaction:
        plan(transaction, target)
        transaction.commit()
    (target / "new" / "theirs").write_text("theirs")
    (target / "new" / "inner" / "3").unlink()
    (target / "new" / "inner" / "3").write_text("another file")
    (target / "new" / "a").write_text("the same file, changed in place")
    with Transaction.open(transaction.directory) as again:
        undone = again.undo()
        assert again.state is State.UNDONE
    assert {failure.path.removeprefix(f"{target}/") for failure in undone.failures} == {"new/inner/3"}
    assert names(target) == {"old", "new", "new/theirs", "new/inner", "new/inner/3"}
    assert (target / "new" / "inner" / "3").read_text() == "another file"


def given_the_number_of(path: Path, text: str, spare: Path) -> None:
    """Make ``path`` another file that has the inode number of the one before, where the file system gives it again."""
    number = path.stat().st_ino
    path.unlink()
    spare.mkdir()
    for count in range(2000):
        other = spare / str(count)
        other.write_text(text)
        if other.stat().st_ino == number:
            break
    other.rename(path)


def test_undo_is_not_deceived_by_a_new_file_with_the_old_ones_inode(
    begin: Begin, target: Path, tmp_path: Path
) -> None:
    with begin() as transaction:
        plan(transaction, target)
        write(transaction, target, "single")
        transaction.commit()
    for path in (target / "new" / "inner" / "3", target / "single"):
        given_the_number_of(path, "another file", tmp_path / f"spare-{path.name}")
    with Transaction.open(transaction.directory) as again:
        undone = again.undo()
    assert {failure.path.removeprefix(f"{target}/") for failure in undone.failures} == {"new/inner/3", "single"}
    for path in (target / "new" / "inner" / "3", target / "single"):
        assert path.read_text() == "another file"


def test_undo_after_a_later_transaction_was_undone_finds_its_own_again(begin: Begin, target: Path) -> None:
    """The later one deleted the directory; what its undo put back is another inode, and still ted's."""
    before = snapshot(target)
    with begin() as first:
        plan(first, target)
        first.commit()
    between = snapshot(target)
    with begin() as second:
        second.delete(str(target), b"new")
        second.commit()
    for transaction, held in ((second, between), (first, before)):
        with Transaction.open(transaction.directory) as again:
            assert again.undo().failures == ()
        assert snapshot(target) == held


@pytest.mark.parametrize("phase", ["stage", "commit", "capture"])
@pytest.mark.parametrize("what", ["link", "directory", "file", "link into the staging"])
def test_what_comes_to_the_place_meanwhile_is_neither_followed_nor_replaced(
    begin: Begin, target: Path, tmp_path: Path, phase: str, what: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    new = target / "new"

    def attack(now: str, _number: int) -> None:
        if now != phase or os.path.lexists(new):
            return
        if what == "link":
            new.symlink_to(outside)
        elif what == "link into the staging":
            new.symlink_to(f".ted-{transaction.directory.name}")
        elif what == "directory":
            new.mkdir(mode=0o711)
        else:
            new.write_text("theirs")

    with begin(on_act=attack) as transaction:
        plan(transaction, target)
        write(transaction, target, "old", "changed")
        refused = UnsafePathError if "link" in what else TargetError
        with pytest.raises(refused, match="new"):
            transaction.commit()
        assert transaction.state is State.UNDONE
    assert list(outside.iterdir()) == []
    assert (target / "old").read_text() == "old"
    assert not list(target.glob(".ted-*"))
    if what == "file":
        assert new.read_text() == "theirs"
    elif "link" in what:
        assert new.is_symlink()
    else:
        assert new.stat().st_mode & 0o777 == 0o711


def test_a_parent_swapped_for_a_link_is_not_followed(begin: Begin, target: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (target / "d").mkdir()

    def attack(now: str, _number: int) -> None:
        if now == "commit":
            (target / "d").rename(tmp_path / "moved")
            (target / "d").symlink_to(outside)

    with begin(on_act=attack) as transaction:
        transaction.mkdir(str(target), b"d/new")
        write(transaction, target, "d/new/a")
        transaction.symlink(str(target), b"old", b"x")
        with suppress(UnsafePathError):
            transaction.commit()
    assert list(outside.iterdir()) == []


def test_a_path_in_it_is_acted_on_once_and_a_file_holds_nothing(begin: Begin, target: Path) -> None:
    before = snapshot(target)
    with begin() as transaction:
        plan(transaction, target)
        for again in (
            lambda: write(transaction, target, "new/a"),
            lambda: write(transaction, target, "new/inner"),
            lambda: transaction.mkdir(str(target), b"new/a"),
            lambda: transaction.symlink(str(target), b"new/link", b"x"),
            lambda: write(transaction, target, "new/a/below"),
            lambda: transaction.mkdir(str(target), b"new/a/below"),
            lambda: transaction.hardlink(str(target), b"new/a", b"old"),
        ):
            with pytest.raises(InstallError):
                again()
    assert snapshot(target) == before


def test_a_directory_in_it_may_be_asked_for_again_when_another_one_began(begin: Begin, target: Path) -> None:
    with begin() as transaction:
        plan(transaction, target)
        transaction.mkdir(str(target), b"other")
        transaction.mkdir(str(target), b"new/inner", attributes=Attributes(mode=0o700))
        transaction.mkdir(str(target), b"new/later")
        write(transaction, target, "new/later/file")
        with pytest.raises(InstallError):
            write(transaction, target, "new/a")
        transaction.commit()
    assert names(target) == PLANNED | {"old", "other", "new/later", "new/later/file"}


def test_what_follows_a_command_is_not_there_before_it_runs(begin: Begin, target: Path) -> None:
    with begin() as transaction:
        transaction.mkdir(str(target), b"new")
        write(transaction, target, "new/before")
        transaction.run(["/bin/sh", "-c", f"ls {target}/new > {target}/seen"])
        write(transaction, target, "new/after")
        transaction.commit()
    assert (target / "seen").read_text() == "before\n"
    assert (target / "new" / "after").exists()


def test_with_on_error_continue_a_file_that_fails_is_missing_and_never_half_there(begin: Begin, target: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise OSError(errno.EIO, "the disk says no")

    with begin(policy=Policy(retries=0, on_error="continue")) as transaction:
        transaction.mkdir(str(target), b"new")
        for path in (b"new/bad", b"bad"):
            with pytest.raises(TargetError):
                transaction.write(str(target), path, broken(), size=8)
        write(transaction, target, "new/good")
        write(transaction, target, "good")
        result = transaction.commit()
    assert result.failures == ()
    assert names(target) == {"old", "new", "new/good", "good"}


def test_a_crash_between_placing_and_the_next_record_is_finished(begin: Begin, target: Path) -> None:
    class CutOffError(BaseException):
        pass

    def cut(phase: str, _number: int) -> None:
        if phase == "act":
            raise CutOffError

    transaction = begin(on_act=cut)
    plan(transaction, target)
    with pytest.raises(CutOffError):
        transaction.commit()
    transaction.close()
    assert names(target) == PLANNED | {"old"}
    assert [found.state for found in recover(transaction.directory.parent)] == [State.DONE]
    assert names(target) == PLANNED | {"old"}
    assert not list(target.glob(".ted-*"))


@contextmanager
def mounted(path: Path, size: str) -> Iterator[Path]:
    path.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@needs_root
def test_below_a_mount_in_the_target_new_directories_are_made_all_the_same(begin: Begin, target: Path) -> None:
    with mounted(target / "mount", "1m"):
        before = snapshot(target)
        with begin() as transaction:
            for name in ("mount/new", "new"):
                transaction.mkdir(str(target), name.encode())
                write(transaction, target, f"{name}/file", name)
            transaction.commit()
        assert (target / "mount" / "new" / "file").read_text() == "mount/new"
        assert (target / "new" / "file").read_text() == "new"
        with Transaction.open(transaction.directory) as again:
            assert again.undo().failures == ()
        assert snapshot(target) == before


@needs_root
@pytest.mark.parametrize("room", ["300k", "40k"])
def test_a_disk_that_fills_during_an_extraction_is_named_and_everything_is_as_before(tmp_path: Path, room: str) -> None:
    source = tmp_path / "source"
    (source / "old").mkdir(parents=True)
    for number in range(100):
        (source / "old" / f"{number:03}").write_bytes(os.urandom(4000))
    (source / "new" / "deep").mkdir(parents=True)
    for number in range(100):
        (source / "new" / "deep" / f"{number:03}").write_bytes(os.urandom(4000))
    with mounted(tmp_path / "target", room) as target:
        (target / "old").mkdir()
        (target / "old" / "000").write_text("old")
        before = snapshot(target)
        free = os.statvfs(target).f_bfree
        depot = Depot(tmp_path)
        depot.build({"path": str(target), "from": [f"{source}/"]})
        with pytest.raises(TargetError) as caught:
            depot.extract()
        assert caught.value.errno == errno.ENOSPC
        assert "make room" in str(caught.value.hint)
        assert snapshot(target) == before
        assert os.statvfs(target).f_bfree == free
        assert list(depot.host.states.transactions.iterdir()) == []
