"""The File type, from a source tree to a target: each option of the inventory contract."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from fleet import same_trees
from install_depot import DISTRIBUTOR, NAME, Depot
from install_trees import snapshot

from ted import plugins
from ted.content.blocks import PartialPack
from ted.content.builder import RevisionBuilder
from ted.content.pack import DigestTable
from ted.content.working import read_record
from ted.errors import (
    AcceptanceError,
    BuildError,
    InstallError,
    NothingToRollBackError,
    OptionsError,
    TargetError,
    TedError,
    TrustError,
    UnknownNameError,
    UnsafePathError,
    VariableError,
)
from ted.install.verify import repair, verify_installed, verify_stored
from ted_plugins.file import filesystem_of


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A tree with some of everything."""
    root = tmp_path / "source"
    (root / "bin").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o700)
    (root / "bin" / "tool").write_bytes(b"#!/bin/sh\n")
    (root / "bin" / "tool").chmod(0o4755)
    os.link(root / "bin" / "tool", root / "bin" / "other-name")
    (root / "link").symlink_to("bin/tool")
    (root / "dangling").symlink_to("nowhere")
    (root / "readme.txt").write_text("read me\n")
    os.setxattr(root / "readme.txt", "user.origin", b"hq")
    (root / os.fsdecode(b"latin-\xe9")).write_text("not UTF-8\n")
    with open(root / "sparse", "wb") as file:
        file.seek(8 << 20)
        file.write(b"end")
    (root / "large").write_bytes(os.urandom(3 << 20))
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        os.utime(path, ns=(10**18 + number, 10**18 + number), follow_symlinks=False)
    os.utime(root, ns=(10**18, 10**18))
    return root


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "target"


def to(source: Path, path: str = "%DEST_VOLUME%", **more: Any) -> dict[str, Any]:
    return {"path": path, "from": [f"{source}/"], **more}


def test_every_file_arrives_with_bytes_mode_owner_times_links_and_attributes(
    depot: Depot, source: Path, target: Path
) -> None:
    depot.build(to(source))
    result = depot.extract()
    assert (result.state, result.changed, result.error) == ("extracted", True, None)
    assert same_trees(source, target) == ""
    assert snapshot(source) == snapshot(target)
    assert (target / "sparse").stat().st_blocks * 512 < 1 << 20
    assert depot.leftovers(target) == []


@pytest.mark.parametrize("at_s", [-2_000_000_000, 9_500_000_000])
def test_times_far_from_now_travel(depot: Depot, source: Path, target: Path, at_s: int) -> None:
    """The years 1906 and 2271: the nanoseconds of the latter fit 64 bits without a sign only."""
    at_ns = at_s * 10**9 + 5
    for name in ("readme.txt", "."):
        os.utime(source / name, ns=(at_ns, at_ns))
    depot.build(to(source))
    depot.extract()
    assert (target / "readme.txt").stat().st_mtime_ns == (source / "readme.txt").stat().st_mtime_ns == at_ns
    assert same_trees(source, target) == ""


def test_a_second_extraction_looks_at_nothing_and_changes_nothing(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source))
    depot.extract()
    (target / "readme.txt").unlink()
    result = depot.extract()
    assert (result.state, result.changed, result.actions) == ("extracted", False, {})
    assert not (target / "readme.txt").exists()


def test_force_restores_what_was_changed_and_only_that(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source))
    depot.extract()
    held = (target / "large").stat().st_ino
    times = (target / "readme.txt").stat()
    (target / "readme.txt").write_text("read it\n")
    os.utime(target / "readme.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    result = depot.extract(force=True)
    assert result.changed
    assert result.actions["written"] == 1
    assert same_trees(source, target) == ""
    assert (target / "large").stat().st_ino == held


def test_force_on_what_is_as_it_should_be_changes_nothing(depot: Depot, source: Path) -> None:
    depot.build(to(source))
    depot.extract()
    result = depot.extract(force=True)
    assert not result.changed
    assert set(result.actions) == {"unchanged"}


def test_files_that_were_there_already_with_the_same_bytes_are_not_written(
    depot: Depot, source: Path, target: Path
) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
    depot.build(to(source))
    result = depot.extract()
    assert set(result.actions) == {"unchanged"}
    assert result.changed  # the revision is installed now, and was not before
    assert not depot.extract().changed


def test_an_update_writes_only_what_changed(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source))
    depot.extract()
    inodes = {path: path.lstat().st_ino for path in target.rglob("*")}
    (source / "readme.txt").write_text("another\n")
    depot.build(to(source))
    result = depot.extract()
    assert result.actions["written"] == 1
    assert same_trees(source, target) == ""
    assert [path.name for path, inode in inodes.items() if path.lstat().st_ino != inode] == ["readme.txt"]


def test_without_synchronize_nothing_is_ever_deleted(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source))
    depot.extract()
    (target / "bin" / "theirs").write_text("x")
    (source / "readme.txt").unlink()
    depot.build(to(source))
    result = depot.extract()
    assert "deleted" not in result.actions
    assert (target / "readme.txt").exists()
    assert (target / "bin" / "theirs").exists()


def test_synchronize_deletes_what_the_distribution_does_not_hold_and_spares_what_is_excluded(
    depot: Depot, source: Path, target: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "keep").write_text("x")
    depot.build(to(source, synchronize=True, exclude=["*.log"]))
    depot.extract()
    (target / "old").mkdir()
    (target / "old" / "file").write_text("x")
    (target / "old" / "app.log").write_text("x")
    (target / "bin" / "extra").write_text("x")
    (target / "away").symlink_to(outside)
    (source / "readme.txt").unlink()
    depot.build(to(source, synchronize=True, exclude=["*.log"]))
    result = depot.extract()
    assert result.actions["deleted"] == 4
    assert (target / "old" / "app.log").exists()
    assert not (target / "old" / "file").exists()
    assert not (target / "away").is_symlink()
    assert (outside / "keep").exists()
    depot.rollback()
    assert (target / "old" / "file").exists()
    assert (target / "away").readlink() == outside


def test_synchronize_never_empties_the_machine_or_ted_itself(depot: Depot, source: Path, tmp_path: Path) -> None:
    for path in ("/", "//"):
        with pytest.raises(OptionsError, match="would delete everything"):
            depot.build(to(source, path=path, synchronize=True))
    depot.build(to(source, path=str(tmp_path), synchronize=True))
    with pytest.raises(UnsafePathError):
        depot.extract()
    assert source.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": "srv/app"}, "not absolute"),
        ({"path": "/srv/../etc"}, "must not contain"),
        ({"from": ["build/app"]}, "not absolute"),
        ({"from": []}, "needs `from`"),
    ],
)
def test_what_can_never_work_is_said_when_the_inventory_is_checked(options: dict[str, Any], said: str) -> None:
    target = {"path": "/srv/app", "from": ["/build/"]} | options
    with pytest.raises(OptionsError, match=said):
        plugins.validate_options("file", {"targets": [target]})


def test_a_target_inside_a_synchronized_one_is_refused(depot: Depot, source: Path) -> None:
    depot.build(to(source, synchronize=True), to(source, path="%DEST_VOLUME%/bin/inner"))
    with pytest.raises(UnsafePathError, match="one target lies in the other"):
        depot.extract()


def test_the_trailing_slash_rule_is_that_of_rsync(depot: Depot, source: Path, target: Path) -> None:
    depot.build({"path": "%DEST_VOLUME%", "from": [str(source), f"{source}/bin/", str(source / "readme.txt")]})
    depot.extract()
    assert (target / "source" / "bin" / "tool").exists()
    assert (target / "tool").exists()
    assert (target / "readme.txt").read_text() == "read me\n"


def test_two_sources_with_one_place_are_named(depot: Depot, source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "readme.txt").write_text("mine")
    with pytest.raises(BuildError, match=r"readme\.txt"):
        depot.build({"path": "%DEST_VOLUME%", "from": [f"{source}/", f"{other}/"]})


def test_several_targets_and_missing_directories_are_made(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source, path="%DEST_VOLUME%/a/b/c"), to(source / "bin", path="%dest_volume%/%shop%/100%%"))
    depot.extract()
    assert (target / "a" / "b" / "c" / "readme.txt").exists()
    assert (target / "7" / "100%" / "tool").exists()
    depot.rollback()
    assert not target.exists()


def test_an_unknown_variable_fails_and_is_named(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source, path="%DEST_VOLUME%/%REGION%"))
    with pytest.raises(VariableError, match="%REGION%"):
        depot.extract()
    assert not target.exists()


def test_a_target_that_is_not_absolute_is_refused(depot: Depot, source: Path) -> None:
    depot.build(to(source, path="%SHOP%/data"))
    with pytest.raises(TargetError, match="absolute"):
        depot.extract()


@pytest.mark.parametrize(
    ("overwrite", "kept"), [("always", set()), ("newer", {"new"}), ("never", {"new", "old"})],
    ids=["always", "newer", "never"],
)
def test_overwrite_says_which_existing_files_are_replaced(
    depot: Depot, tmp_path: Path, target: Path, overwrite: str, kept: set[str]
) -> None:
    source = tmp_path / "s"
    source.mkdir()
    target.mkdir()
    for name, second in (("old", 1), ("new", 10**9 * 3)):
        (source / name).write_text("distributed")
        os.utime(source / name, (10**9, 10**9))
        (target / name).write_text("existing")
        os.utime(target / name, (second, second))
    (source / "missing").write_text("distributed")
    depot.build(to(source), overwrite=overwrite)
    depot.extract()
    assert {name for name in ("old", "new") if (target / name).read_text() == "existing"} == kept
    assert (target / "missing").read_text() == "distributed"


def test_owner_group_and_mode_of_the_options_win_over_the_source(depot: Depot, source: Path, target: Path) -> None:
    owner = 1 if os.geteuid() == 0 else os.geteuid()
    depot.build(to(source, owner=owner, group=owner, mode="0640"))
    depot.extract()
    status = (target / "bin" / "tool").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (owner, owner, 0o640)
    assert stat.S_IMODE((target / "bin").stat().st_mode) == 0o750
    assert not depot.extract(force=True).changed


def test_remove_takes_files_of_the_target_away_and_rollback_brings_them_back(
    depot: Depot, source: Path, target: Path
) -> None:
    (target / "old" / "deep").mkdir(parents=True)
    (target / "old" / "deep" / "file").write_text("x")
    before = snapshot(target)
    depot.build(to(source, remove=["old", "not/there"]))
    assert depot.extract().actions["deleted"] == 1
    assert not (target / "old").exists()
    assert not depot.extract(force=True).changed
    depot.rollback()
    assert snapshot(target) == before


def test_what_is_distributed_cannot_also_be_removed(depot: Depot, source: Path) -> None:
    depot.build(to(source, remove=["bin/tool"]))
    with pytest.raises(OptionsError, match="bin/tool"):
        depot.extract()


def test_rollback_brings_back_what_was_there_before_ted(depot: Depot, source: Path, target: Path) -> None:
    (target / "bin").mkdir(parents=True)
    (target / "bin" / "tool").write_text("theirs")
    (target / "readme.txt").mkdir()
    (target / "link").symlink_to("/etc")
    os.link(target / "bin" / "tool", target / "second-name")
    os.setxattr(target / "bin" / "tool", "user.mine", b"1")
    before = snapshot(target)
    depot.build(to(source, synchronize=True))
    depot.extract()
    assert same_trees(source, target) == ""
    result = depot.rollback()
    assert (result.state, result.changed, result.revision, result.warnings) == ("rolled_back", True, None, [])
    assert snapshot(target) == before
    with pytest.raises(NothingToRollBackError):
        depot.rollback()


def test_rollback_goes_back_one_revision_or_to_the_one_named(depot: Depot, source: Path, target: Path) -> None:
    stamps, states = [], []
    for number in range(3):
        (source / "readme.txt").write_text(f"revision {number}")
        stamps.append(depot.build(to(source)))
        depot.extract()
        states.append(snapshot(target))
    assert depot.rollback().revision == stamps[1]
    assert snapshot(target) == states[1]
    depot.extract()
    assert snapshot(target) == states[2]
    assert depot.rollback(revision=stamps[0]).revision == stamps[0]
    assert snapshot(target) == states[0]


def test_a_directory_that_others_use_by_now_stays_without_a_warning(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source))
    depot.extract()
    (target / "bin" / "theirs").write_text("x")
    result = depot.rollback()
    assert result.state == "rolled_back"
    assert result.warnings == []
    assert [path.name for path in target.rglob("*")] == ["bin", "theirs"]


def test_a_directory_of_others_in_the_place_of_a_file_is_told(depot: Depot, source: Path, target: Path) -> None:
    target.mkdir()
    (target / "readme.txt").write_text("there before")
    depot.build(to(source))
    depot.extract()
    (target / "readme.txt").unlink()
    (target / "readme.txt").mkdir()
    (target / "readme.txt" / "theirs").write_text("x")
    (warning,) = depot.rollback().warnings
    assert "readme.txt" in warning
    assert (target / "readme.txt" / "theirs").exists()


def test_a_rollback_without_undo_log_extracts_the_kept_revision_again(depot: Depot, source: Path, target: Path) -> None:
    first = depot.build(to(source))
    depot.extract()
    (source / "readme.txt").write_text("second")
    depot.build(to(source))
    depot.extract()
    subprocess.run(["rm", "-r", str(depot.host.states.transactions)], check=True)
    result = depot.rollback()
    assert (result.state, result.revision) == ("rolled_back", first)
    assert (target / "readme.txt").read_text() == "read me\n"
    with pytest.raises(NothingToRollBackError):
        depot.rollback(revision="20200101T000000000000Z")


def test_a_rollback_to_no_revision_says_which_there_are(depot: Depot, source: Path) -> None:
    stamps = []
    for number in range(3):
        (source / "readme.txt").write_text(f"{number}")
        stamps.append(depot.build(to(source)))
        depot.extract()
    for nonsense, order in (("yesterday", (1, 0)), (stamps[1][:-1], (1, 0)), (stamps[0][:-1], (0, 1))):
        with pytest.raises(NothingToRollBackError) as caught:
            depot.rollback(revision=nonsense)
        assert f"{nonsense} is not kept here" in caught.value.message
        there = ", ".join(stamps[each] for each in order)
        assert caught.value.hint == f"there are {there}; installed is {stamps[2]}"


def test_undo_logs_live_as_long_as_max_revisions_says(depot: Depot, source: Path) -> None:
    for number in range(4):
        (source / "readme.txt").write_text(f"revision {number}")
        depot.build(to(source), settings={"max_revisions": 2})
        depot.extract()
    assert len(list(depot.host.states.transactions.iterdir())) == 2
    assert len(depot.host.states.load(DISTRIBUTOR, NAME).chain) == 2


def test_check_writes_nothing_and_foretells_what_is_done(depot: Depot, source: Path, target: Path) -> None:
    (target / "bin").mkdir(parents=True)
    (target / "bin" / "tool").write_text("theirs")
    before = snapshot(target)
    depot.build(to(source, synchronize=True))
    foretold = depot.extract(check=True, diff=True)
    assert snapshot(target) == before
    assert not depot.host.states.transactions.exists()
    done = depot.extract(diff=True)
    assert (foretold.changed, foretold.actions) == (done.changed, done.actions)
    assert foretold.diff == done.diff
    assert not depot.extract(check=True).changed
    undone = depot.rollback(check=True, diff=True)
    assert undone.revision is None
    assert undone.actions["deleted"] > 0
    assert same_trees(source, target) == ""


def test_a_target_may_lie_in_another_and_one_place_has_one_owner(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source), to(source / "empty", path="%DEST_VOLUME%/bin"), to(source, path="%DEST_VOLUME%/bin/deep"))
    depot.extract()
    assert (target / "bin" / "deep" / "readme.txt").exists()
    depot.rollback()
    assert not target.exists()
    depot.build(to(source), to(source / "bin", path="%DEST_VOLUME%/bin"))
    with pytest.raises(InstallError, match=r"bin/(tool|other-name)"):
        depot.extract()
    assert not target.exists()


def test_check_foretells_two_sources_of_one_target_too(depot: Depot, source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
    (target / "bin" / "tool").write_text("theirs")
    depot.build(to(source), to(source / "bin", path="%DEST_VOLUME%/bin", exclude=["*"]))
    foretold = depot.extract(check=True, diff=True)
    done = depot.extract(diff=True)
    assert (foretold.actions, foretold.diff) == (done.actions, done.diff)


def test_check_on_a_missing_target_makes_no_directory(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source, path="%DEST_VOLUME%/a/b"))
    foretold = depot.extract(check=True)
    assert not target.exists()
    assert foretold.actions == depot.extract().actions


def test_what_is_not_signed_is_never_extracted(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source))
    depot.signed.clear()
    with pytest.raises(TrustError):
        depot.extract()
    assert not target.exists()


def test_what_is_damaged_on_disk_is_never_extracted(depot: Depot, source: Path, target: Path) -> None:
    stamp = depot.build(to(source))
    pack = depot.working.revision(DISTRIBUTOR, NAME, stamp) / "DISTFILE.TED"
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.write_bytes(data)
    assert verify_stored(depot.host, DISTRIBUTOR, NAME) != []
    with pytest.raises(Exception, match=r"digest|damaged|signed"):
        depot.extract()
    assert not target.exists()


@pytest.mark.parametrize("more_bytes", [1, -1])
def test_a_received_pack_of_another_size_is_told_by_both_sizes(depot: Depot, source: Path, more_bytes: int) -> None:
    place = depot.working.revision(DISTRIBUTOR, NAME, depot.build(to(source)))
    ref = read_record(place)[0].packs[0]
    PartialPack.doubted(place, ref).close()  # a pack that was received has a bitmap
    depot.working.mark_received(DISTRIBUTOR, NAME, place.name)
    pack = place / "DISTFILE.TED"
    os.truncate(pack, ref.bytes + more_bytes)
    (problem,) = verify_stored(depot.host, DISTRIBUTOR, NAME)
    assert problem.what == f"{pack} has {ref.bytes + more_bytes} bytes, the record says {ref.bytes}"


def test_what_several_revisions_share_is_read_once(
    depot: Depot, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "large").write_bytes(os.urandom(1 << 20))
    first = depot.build(to(source))
    for number in range(3):
        (source / "small").write_text(str(number))
        depot.build(to(source))
    pack = depot.working.revision(DISTRIBUTOR, NAME, first) / "DISTFILE.TED"
    read_bytes, pread = 0, os.pread

    def counted(fd: int, size: int, offset: int) -> bytes:
        nonlocal read_bytes
        data = pread(fd, size, offset)
        if os.readlink(f"/proc/self/fd/{fd}") == str(pack):
            read_bytes += len(data)
        return data

    monkeypatch.setattr(os, "pread", counted)
    assert len(depot.working.received(DISTRIBUTOR, NAME)) == 4
    assert verify_stored(depot.host, DISTRIBUTOR, NAME) == []
    assert read_bytes < 2.2 * pack.stat().st_size, "its blocks once, and its frames once"
    damage = bytearray(pack.read_bytes())
    damage[len(damage) // 2] ^= 1
    pack.write_bytes(damage)
    assert len(verify_stored(depot.host, DISTRIBUTOR, NAME)) == 4


def test_a_full_directory_for_temporary_files_is_no_damage(
    depot: Depot, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_table: DigestTable, _digest: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    depot.build(to(source))
    monkeypatch.setattr(DigestTable, "add", full)
    with pytest.raises(TedError, match="cannot be verified: No space left") as caught:
        verify_stored(depot.host, DISTRIBUTOR, NAME)
    assert tempfile.gettempdir() in str(caught.value.hint)


def test_a_revision_that_is_not_here_is_named(depot: Depot) -> None:
    with pytest.raises(UnknownNameError, match="pos"):
        depot.extract()


def test_another_platform_skips_with_the_reason(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source), settings={"platforms": [{"os_family": "Plan9"}, {"architecture": "vax"}]})
    result = depot.extract()
    assert (result.state, result.changed) == ("skipped", False)
    assert "os_family Plan9 or architecture vax" in str(result.reason)
    assert not target.exists()


def test_acceptance_tests_run_after_extraction_and_undo_it_when_they_fail(
    depot: Depot, source: Path, target: Path
) -> None:
    good = "import os\ndef test_it(host):\n    assert host.file(os.environ['TED_TARGET_0'] + '/readme.txt').exists\n"
    first = depot.build(to(source), tests={"test_good.py": good})
    depot.extract()
    before = snapshot(target)
    (source / "readme.txt").unlink()
    (source / "more").write_text("x")
    depot.build(to(source, synchronize=True), tests={"test_good.py": good})
    with pytest.raises(AcceptanceError, match="test_it"):
        depot.extract()
    assert snapshot(target) == before
    newest = depot.host.states.load(DISTRIBUTOR, NAME).newest
    assert newest is not None
    assert (newest.revision, newest.state) == (first, "extracted")


def test_failing_acceptance_tests_leave_everything_with_on_failure_leave(
    depot: Depot, source: Path, target: Path
) -> None:
    depot.build(to(source), settings={"on_failure": "leave"}, tests={"test_no.py": "def test_no():\n    assert 0\n"})
    with pytest.raises(AcceptanceError, match="test_no"):
        depot.extract()
    assert same_trees(source, target) == ""
    depot.rollback()
    assert not target.exists()


def test_the_verify_option_repairs_drift_at_each_extract_time(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source), verify=True)
    depot.extract()
    assert not depot.extract().changed
    times = (target / "large").stat()
    with open(target / "large", "r+b") as file:
        file.write(b"damaged")
    os.utime(target / "large", ns=(times.st_atime_ns, times.st_mtime_ns))
    result = depot.extract()
    assert (result.changed, result.actions["written"]) == (True, 1)
    assert same_trees(source, target) == ""
    depot.rollback()
    assert not target.exists()


def test_verify_names_each_drift_and_repair_mends_it(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source, synchronize=True))
    depot.extract()
    assert verify_installed(depot.host, DISTRIBUTOR, NAME) == []
    times = (target / "large").stat()
    with open(target / "large", "r+b") as file:
        file.write(b"damaged")
    os.utime(target / "large", ns=(times.st_atime_ns, times.st_mtime_ns))
    (target / "readme.txt").unlink()
    (target / "bin" / "tool").chmod(0o777)
    (target / "extra").write_text("x")
    (target / "link").unlink()
    (target / "link").symlink_to("/etc/passwd")
    before = snapshot(target)
    found = {Path(p.path).name: p.what for p in verify_installed(depot.host, DISTRIBUTOR, NAME)}
    assert snapshot(target) == before
    assert found["large"] == "content"
    assert found["readme.txt"] == "missing"
    assert found["extra"] == "extra"
    assert found["link"] == "content"
    assert "tool" in found
    assert repair(depot.host, DISTRIBUTOR, NAME).changed
    assert verify_installed(depot.host, DISTRIBUTOR, NAME) == []
    assert same_trees(source, target) == ""


def test_a_directory_with_other_peoples_files_is_not_replaced_by_a_file(
    depot: Depot, source: Path, target: Path
) -> None:
    (target / "readme.txt").mkdir(parents=True)
    (target / "readme.txt" / "theirs").write_text("x")
    before = snapshot(target)
    depot.build(to(source))
    with pytest.raises(TargetError, match="theirs"):
        depot.extract()
    assert snapshot(target) == before


def test_a_directory_of_a_former_revision_becomes_a_file_and_back(depot: Depot, tmp_path: Path, target: Path) -> None:
    source = tmp_path / "s"
    (source / "thing").mkdir(parents=True)
    (source / "thing" / "inner").write_text("x")
    (source / "other").symlink_to("thing")
    depot.build(to(source))
    depot.extract()
    first = snapshot(target)
    (source / "thing" / "inner").unlink()
    (source / "thing").rmdir()
    (source / "thing").write_text("file now")
    (source / "other").unlink()
    (source / "other").mkdir()
    (source / "other" / "deep").write_text("y")
    depot.build(to(source))
    depot.extract()
    assert same_trees(source, target) == ""
    depot.rollback()
    assert snapshot(target) == first


def test_a_difference_names_all_that_goes_with_a_directory(depot: Depot, tmp_path: Path, target: Path) -> None:
    source = tmp_path / "s"
    (source / "conf" / "deep").mkdir(parents=True)
    (source / "conf" / "deep" / "inner").write_text("x")
    depot.build(to(source, synchronize=True))
    depot.extract()
    (target / "conf" / "mine").write_text("somebody else's")
    shutil.rmtree(source / "conf")
    (source / "conf").write_text("file now")
    depot.build(to(source, synchronize=True))
    found = {(change["path"], change["change"]) for change in depot.extract(diff=True).to_dict()["diff"]}
    gone = {(f"{target}/conf/{name}", "deleted") for name in ("deep", "deep/inner", "mine")}
    assert {(f"{target}/conf", "written"), *gone} <= found


def test_a_directory_keeps_its_time_where_a_file_in_it_becomes_a_directory(
    depot: Depot, tmp_path: Path, target: Path
) -> None:
    source = tmp_path / "changing"
    (source / "holder").mkdir(parents=True)
    for number in range(2):
        thing = source / "holder" / "thing"
        if number:
            thing.unlink()
            thing.mkdir()
        else:
            thing.write_text("a file\n")
        os.utime(source / "holder", ns=(10**18, 10**18))
        depot.build(to(source))
        depot.extract()
        assert (target / "holder" / "thing").is_dir() is bool(number)
        assert (target / "holder").stat().st_mtime_ns == 10**18
    depot.rollback()
    assert (target / "holder").stat().st_mtime_ns == 10**18


def test_a_link_in_the_target_where_a_directory_must_be_is_refused(
    depot: Depot, source: Path, target: Path, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    target.mkdir()
    (target / "bin").symlink_to(outside)
    before = snapshot(target)
    depot.build(to(source))
    with pytest.raises(UnsafePathError, match="bin"):
        depot.extract()
    assert snapshot(target) == before
    assert list(outside.iterdir()) == []


def test_a_target_may_itself_be_reached_through_a_link(depot: Depot, source: Path, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "target").symlink_to(real)
    depot.build(to(source))
    depot.extract()
    assert same_trees(source, real) == ""


def test_a_target_that_was_there_keeps_its_mode_and_owner(depot: Depot, source: Path, target: Path) -> None:
    target.mkdir(mode=0o700)
    target.chmod(0o1777)
    source.chmod(0o750)
    depot.build(to(source))
    depot.extract()
    assert stat.S_IMODE(target.stat().st_mode) == 0o1777


def test_a_target_ted_made_follows_its_source(depot: Depot, source: Path, target: Path) -> None:
    source.chmod(0o750)
    depot.build(to(source))
    depot.extract()
    assert stat.S_IMODE(target.stat().st_mode) == 0o750
    source.chmod(0o755)
    depot.build(to(source))
    depot.extract()
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert same_trees(source, target) == ""


def test_a_user_who_is_not_root_gets_everything_but_owners_and_is_told(source: Path) -> None:
    """Run as nobody when the tests are root's: files of root arrive as nobody's, once, and stay so."""
    place = Path(tempfile.mkdtemp(prefix="ted-user-"))
    subprocess.run(["cp", "-a", str(source), str(place / "source")], check=True)
    subprocess.run(["chmod", "u+rwX,go+rX", "-R", str(place)], check=True)
    if os.geteuid() == 0:
        os.chown(place, 65534, 65534)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            depot = Depot(place)
            depot.build(to(place / "source", owner=12345))
            result = depot.extract()
            assert result.state == "extracted"
            assert any("only root may give files away (" in warning for warning in result.warnings)
            assert not stat.S_IMODE((place / "target" / "bin" / "tool").stat().st_mode) & stat.S_ISUID
            assert set(depot.extract(force=True).actions) == {"unchanged"}
            depot.rollback()
            assert not (place / "target").exists()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    shutil.rmtree(place)


def test_sources_and_targets_on_network_file_systems_are_warned_about(
    depot: Depot, source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert filesystem_of("/proc/self") == "proc"
    monkeypatch.setattr("ted_plugins.file.NETWORK_FILESYSTEMS", {filesystem_of(str(tmp_path))})
    options = plugins.validate_options("file", {"targets": [to(source)]})
    with RevisionBuilder(
        depot.working.distribution(DISTRIBUTOR, "x"), DISTRIBUTOR, "x", "file", {}, options.model_dump(mode="json")
    ) as builder:
        (warning,) = plugins.gather("file", builder, options, tmp_path / "scratch")
    assert str(source) in warning
    depot.build(to(source))
    assert any("network share" in warning for warning in depot.extract().warnings)


def test_two_extractions_at_once_wait_for_each_other_and_say_so(depot: Depot, source: Path) -> None:
    depot.build(to(source))
    with depot.host.states.lock(DISTRIBUTOR, NAME, 0), pytest.raises(InstallError, match=f"process {os.getpid()}"):
        depot.extract()
    assert depot.extract().changed


def test_what_a_crash_left_of_another_distribution_is_ended_too(depot: Depot, source: Path, target: Path) -> None:
    depot.build(to(source), name="other")
    pid = os.fork()
    if pid == 0:
        depot.host.on_act = lambda phase, _number: os._exit(9) if phase == "act" else None
        depot.extract(name="other")
    os.waitpid(pid, 0)
    assert list(target.parent.glob(".ted-*")) != []
    depot.host.recover_others([])
    assert list(target.parent.glob(".ted-*")) == []
    assert same_trees(source, target) == ""
