"""The working directory and what is kept in it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from ted.content.blocks import PartialPack
from ted.content.builder import RevisionBuilder
from ted.content.record import RevisionRecord
from ted.content.retention import Removal, apply, decide, plan
from ted.content.revision import Revision
from ted.content.working import WorkingDirectory, drop_pack
from ted.errors import FormatError, UnknownNameError, UsageError

A, B, C, D = (f"2026112{day}T000000000000Z" for day in range(1, 5))
CHAIN = {A: [A], B: [B, A], C: [C, A], D: [D, C]}


def removal(max_revisions: int | None = 10, **changes: object) -> Removal:
    arguments = {"directories": CHAIN, "whole": list(CHAIN), "in_use": ()} | changes
    return decide(CHAIN, max_revisions=max_revisions, **arguments)  # type: ignore[arg-type]


def test_all_stay_while_there_are_not_too_many() -> None:
    assert removal(4) == Removal((), ())
    assert removal(None) == Removal((), ())
    assert not removal(10)


def test_the_oldest_go_first_and_packs_stay_while_a_kept_one_refers_to_them() -> None:
    assert removal(3) == Removal((A,), ())
    assert removal(2) == Removal((A, B), (B,))
    assert removal(1) == Removal((A, B, C), (A, B))
    assert removal(0) == Removal((A, B, C), (A, B))


def test_a_revision_in_use_stays_so_that_there_may_be_more_for_a_while() -> None:
    assert removal(1, in_use=[B]) == Removal((A, C), ())
    assert removal(1, in_use=[A, B, C]) == Removal((), ())


def test_a_revision_that_is_still_coming_in_does_not_push_out_a_whole_one() -> None:
    assert removal(1, whole=[A, B, C]) == Removal((A, B), (B,))
    assert removal(1, whole=[A]) == Removal((), ())
    assert removal(1, whole=[]) == Removal((), ())


def test_one_that_never_came_in_whole_goes_when_a_newer_one_did() -> None:
    assert removal(10, whole=[A, B, D]) == Removal((C,), ())
    assert removal(10, whole=[A, B, D], in_use=[C]) == Removal((), ())


def test_directories_that_nobody_refers_to_go() -> None:
    orphan = "20200101T000000000000Z"
    assert removal(10, directories=[*CHAIN, orphan]) == Removal((), (orphan,))
    assert removal(10, directories=[*CHAIN, orphan], in_use=[orphan]) == Removal((), ())


def built(working: WorkingDirectory, content: dict[str, bytes]) -> RevisionRecord:
    with RevisionBuilder(working.distribution("hq", "lib"), "hq", "lib", "file", {}, {}) as builder:
        for path, data in content.items():
            builder.add_bytes(path, data)
        return builder.finish().record


def chain(working: WorkingDirectory) -> list[RevisionRecord]:
    """Five revisions; each changes one file, so that later ones refer to the packs of earlier ones."""
    choice = random.Random(3)
    content = {f"data/f{number}": choice.randbytes(300_000) for number in range(8)}
    records = []
    for number in range(5):
        content[f"data/f{number}"] = choice.randbytes(300_000)
        records.append(built(working, content))
    return records


def readable(working: WorkingDirectory) -> list[str]:
    found = []
    for stamp in working.revisions("hq", "lib"):
        record = working.record("hq", "lib", stamp)
        with Revision(working.distribution("hq", "lib"), record).open() as reader:
            assert reader.verify_frames() == 9
        found.append(stamp)
    return found


def test_what_is_kept_can_be_read_and_what_is_not_needed_is_gone(tmp_path: Path) -> None:
    working = WorkingDirectory(tmp_path)
    stamps = [record.revision for record in chain(working)]
    before = working.disk_bytes("hq", "lib")
    going = plan(working, "hq", "lib", max_revisions=2)
    assert going.revisions == tuple(stamps[:3])
    assert stamps[0] not in going.packs  # the later ones still refer to it
    apply(working, "hq", "lib", going)
    assert readable(working) == stamps[3:]
    assert working.disk_bytes("hq", "lib") <= before
    assert plan(working, "hq", "lib", max_revisions=2) == Removal((), ())
    record = built(working, {"data/other": b"x" * 100})
    freed = apply(working, "hq", "lib", plan(working, "hq", "lib", max_revisions=1))
    assert freed > 300_000
    assert [path.name for path in working.distribution("hq", "lib").iterdir() if path.is_dir()] == [record.revision]


def test_a_record_that_cannot_be_read_keeps_every_pack(tmp_path: Path) -> None:
    working = WorkingDirectory(tmp_path)
    stamps = [record.revision for record in chain(working)]
    (working.revision("hq", "lib", stamps[2]) / "REVISION.TED").write_bytes(b"{}")
    assert plan(working, "hq", "lib", max_revisions=1).packs == ()


APPLY = """
import sys
from pathlib import Path
from ted.content.retention import apply, plan
from ted.content.working import WorkingDirectory
working = WorkingDirectory(Path(sys.argv[1]))
print("begun", flush=True)
apply(working, "hq", "lib", plan(working, "hq", "lib", max_revisions=1))
"""


def test_a_removal_killed_at_any_time_is_finished_by_the_next(tmp_path: Path) -> None:
    choice = random.Random(5)
    for number in range(6):
        working = WorkingDirectory(tmp_path / str(number))
        newest = chain(working)[-1].revision
        with subprocess.Popen([sys.executable, "-c", APPLY, str(working.path)], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                process.wait(choice.random() * 0.01)
            except subprocess.TimeoutExpired:
                process.kill()
        assert newest in readable(working)
        apply(working, "hq", "lib", plan(working, "hq", "lib", max_revisions=1))
        assert readable(working) == [newest]


def test_what_lies_here_is_listed_and_nothing_else_is(tmp_path: Path) -> None:
    working = WorkingDirectory(tmp_path)
    assert working.distributions() == []
    record = built(working, {"data/f": b"x"})
    (tmp_path / ".ted" / "build").mkdir(parents=True)
    (tmp_path / "hq" / ".catalog").mkdir()
    (tmp_path / "stray file").touch()
    (tmp_path / "hq" / "file").touch()
    working.revision("hq", "lib", "20200101T000000000000Z").mkdir()
    (working.distribution("hq", "lib") / "not a stamp").mkdir()
    assert working.distributions() == [("hq", "lib")]
    assert working.revisions("hq", "lib") == [record.revision]
    assert working.revisions("hq", "other") == []
    assert working.record("hq", "lib", record.revision) == record
    assert working.disk_bytes() > 0
    with pytest.raises(UnknownNameError, match="no revision 20200101T000000000000Z of lib from hq"):
        working.record("hq", "lib", "20200101T000000000000Z")


@pytest.mark.parametrize("name", ["", ".", "..", ".ted", "a/b", "../x", "a\0", "a b", "x" * 129, "ä", "a\n", 5])
def test_nothing_but_a_name_becomes_a_path(tmp_path: Path, name: str) -> None:
    working = WorkingDirectory(tmp_path)
    for ask in (
        lambda: working.distribution(name, "lib"),
        lambda: working.distribution("hq", name),
        lambda: working.revision("hq", "lib", name),
        lambda: working.catalog(name),
        lambda: working.build_cache(name),
    ):
        with pytest.raises(UsageError):
            ask()


def test_a_record_in_the_wrong_place_is_refused(tmp_path: Path) -> None:
    working = WorkingDirectory(tmp_path)
    record = built(working, {"data/f": b"x"})
    os.rename(tmp_path / "hq", tmp_path / "elsewhere")
    with pytest.raises(FormatError, match="holds a record of lib from hq"):
        working.record("elsewhere", "lib", record.revision)
    other = working.revision("elsewhere", "lib", "20200101T000000000000Z")
    os.rename(working.revision("elsewhere", "lib", record.revision), other)
    with pytest.raises(FormatError, match="holds the record of"):
        working.record("elsewhere", "lib", "20200101T000000000000Z")


def test_a_revision_counts_as_received_when_its_status_says_so(tmp_path: Path) -> None:
    sender = WorkingDirectory(tmp_path / "sender")
    record = built(sender, {"data/f": os.urandom(300_000)})
    assert sender.received("hq", "lib") == [record.revision]
    receiver = WorkingDirectory(tmp_path / "receiver")
    there, here = (each.revision("hq", "lib", record.revision) for each in (sender, receiver))
    here.mkdir(parents=True)
    (here / "REVISION.TED").write_bytes((there / "REVISION.TED").read_bytes())
    assert receiver.received("hq", "lib") == []
    own = record.packs[0]
    pack = PartialPack.prepare(here, own, (there / "BLOCKS.TED").read_bytes())
    served = PartialPack(there, own)
    for number in range(own.blocks):
        assert receiver.received("hq", "lib") == []
        pack.write(number, served.read(number))
    pack.flush()
    assert pack.complete()
    receiver.mark_received("hq", "lib", record.revision, target=True)
    assert receiver.is_target("hq", "lib", record.revision)
    assert receiver.received("hq", "lib") == [record.revision]
    with Revision(receiver.distribution("hq", "lib"), record).open() as reader:
        assert reader.verify_frames() == 2
    receiver.remove_revision("hq", "lib", record.revision)
    assert receiver.revisions("hq", "lib") == []
    assert drop_pack(here) > 0
    assert not here.exists()


def test_a_lock_of_the_node_is_held_by_one(tmp_path: Path) -> None:
    working = WorkingDirectory(tmp_path)
    with working.lock("hq.lib") as first, working.lock("hq.lib") as second, working.lock("hq.other") as other:
        assert (first, second, other) == (True, False, True)
    with working.lock("hq.lib") as again:
        assert again
