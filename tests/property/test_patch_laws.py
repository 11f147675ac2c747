"""A patch applied to the old revision gives the new one's very pack, whatever the trees hold; else there is none."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patch_rig import assert_rebuilt, build, rebuild

from ted.content.blocks import PACK_NAME, BlockList, PartialPack
from ted.content.entry import Entry, Extent, Kind
from ted.content.patch import covers, create, streams
from ted.content.patch.base import Base
from ted.content.patch.bytewise import added, alongside, alongside_from_end, difference
from ted.content.patch.covers import CoverReader
from ted.content.patch.kept import RebuiltPack, make_patch, patch_place, patches_of
from ted.content.patch.streams import STREAMS, StreamReader, StreamWriter
from ted.content.record import PackRef, RevisionRecord
from ted.content.revision import Revision
from ted.errors import DigestMismatchError, FormatError, RepositoryError

STEP_NS = 1_000_000_007


class Tree:
    """A source tree that is edited without mercy."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)
        root.mkdir()

    def content(self) -> bytes:
        kind = self.random.randrange(5)
        if kind == 0:
            return b""
        if kind == 1:
            return self.random.randbytes(self.random.randrange(1, 200_000))
        words = [b"alpha ", b"beta\n", b"gamma;", b"\0\1\2", b"%d " % self.random.randrange(99)]
        return b"".join(self.random.choices(words, k=self.random.randrange(1, 40_000)))

    def edit(self) -> None:
        for _ in range(self.random.randrange(1, 12)):
            path = self.root / self.random.choice("abc") / f"f{self.random.randrange(12)}"
            self.act(path, self.random.randrange(9))

    def act(self, path: Path, what: int) -> None:
        path.parent.mkdir(exist_ok=True)
        there = path.is_file() and not path.is_symlink()
        if what == 0 and there:
            path.unlink()
        elif what == 1 and there and path.stat().st_size:
            data = bytearray(path.read_bytes())
            at = self.random.randrange(len(data))
            data[at : at + self.random.randrange(50)] = self.random.randbytes(self.random.randrange(90))
            path.write_bytes(data)
        elif what == 2 and there:
            other = path.with_name(f"moved{self.random.randrange(9)}")
            other.unlink(missing_ok=True)
            path.rename(other)
        elif what == 3 and there:
            path.chmod(self.random.choice((0o600, 0o755)))
            os.utime(path, ns=(0, self.random.randrange(10**9) * STEP_NS))
        elif what == 4:
            path.unlink(missing_ok=True)
            path.symlink_to("nowhere")
        elif what == 5 and there:
            other = path.with_name("linked")
            other.unlink(missing_ok=True)
            os.link(path, other)
        elif what == 6:
            path.unlink(missing_ok=True)
            with path.open("wb") as file:
                file.truncate(self.random.randrange(1, 3) << 20)
                file.seek(self.random.randrange(1 << 20))
                file.write(self.random.randbytes(70_000))
        else:
            path.unlink(missing_ok=True)
            path.write_bytes(self.content())


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32), small=st.booleans())
def test_a_patch_gives_the_very_pack_whatever_the_trees_hold(seed: int, small: bool) -> None:
    with tempfile.TemporaryDirectory() as name:
        tree, directory = Tree(Path(name) / "source", seed), Path(name) / "work"
        tree.edit()
        old = build(directory, tree.root)
        tree.edit()
        assert_rebuilt(directory, old, build(directory, tree.root), small=small)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, RevisionRecord, RevisionRecord]:
    """Two revisions of a file of several frames, text and noise, edited here and there."""
    source, generator = tmp_path / "source", random.Random(3)
    source.mkdir()
    data = bytearray(generator.randbytes(3_000_000))
    (source / "big").write_bytes(data)
    (source / "text").write_text("".join(f"line {generator.random()}\n" for _ in range(3000)))
    directory = tmp_path / "work"
    old = build(directory, source)
    for _ in range(40):
        at = generator.randrange(len(data))
        data[at : at + 8] = generator.randbytes(12)
    (source / "big").write_bytes(data)
    (source / "text").write_text((source / "text").read_text().replace("line 0.5", "row 0.5"))
    return directory, old, build(directory, source)


@pytest.mark.parametrize("small", [True, False])
def test_scattered_edits_cost_little(two: tuple[Path, RevisionRecord, RevisionRecord], small: bool) -> None:
    size = assert_rebuilt(*two, small=small)
    assert size is not None
    assert size < 6000


@given(st.integers(0, 2**32), st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 60))
def test_what_lies_alongside_is_mostly_the_same(seed: int, same: int, other: int, edits: int) -> None:
    chance = random.Random(seed)
    old = chance.randbytes(same + other)
    new = bytearray(old[:same] + chance.randbytes(other))
    for at in chance.sample(range(same), min(same, edits)):
        new[at] ^= 1 + chance.randrange(255)
    for found in (alongside(bytes(new), old), alongside_from_end(bytes(new)[::-1], old[::-1])):
        unlike = sum(a != b for a, b in zip(new[:found], old[:found], strict=True))
        assert unlike <= found / 4
        if edits * 20 < same:
            assert found > same - 1200  # what follows the last whole stretch may be left


def test_where_little_is_told_what_moved_is_no_difference(tmp_path: Path) -> None:
    """As in an image of a disk: numbers here and there, zeros between; all that follows an insertion has moved."""
    generator, source = random.Random(6), tmp_path / "source"
    source.mkdir()
    data = bytearray(2_000_000)
    for _ in range(10_000):
        at = generator.randrange(len(data) - 8)
        data[at : at + 8] = generator.randbytes(8)
    (source / "data").write_bytes(data)
    old = build(tmp_path / "work", source)
    for _ in range(30):
        at = generator.randrange(len(data))
        data[at:at] = b"inserted"
    (source / "data").write_bytes(data)
    size = assert_rebuilt(tmp_path / "work", old, build(tmp_path / "work", source), small=False)
    assert size is not None
    assert size < 1500  # a byte for each that looks otherwise where it was: 9,000 more


def test_an_update_of_more_operations_than_memory_holds_is_written_in_parts(
    two: tuple[Path, RevisionRecord, RevisionRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = assert_rebuilt(*two, small=False)
    for name, value in (("_MOST_OPERATIONS", 7), ("_MOST_PENDING", 5), ("SEGMENT_BYTES", 20_000)):
        monkeypatch.setattr(covers, name, value)
    parts = assert_rebuilt(*two, small=False)
    assert whole is not None
    assert parts is not None
    assert whole <= parts < 2 * whole


def test_differences_that_wait_on_the_disk_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, source, waiting = random.Random(8), tmp_path / "source", [0]
    source.mkdir()
    data = bytearray(generator.randbytes(3_000_000))
    (source / "data").write_bytes(data)
    old = build(tmp_path / "work", source)
    for at in range(0, len(data), 500):
        data[at] ^= 1
    (source / "data").write_bytes(data)
    new = build(tmp_path / "work", source)

    class Watched(covers._Operations):
        def add(self, operation: covers._Operation) -> None:
            super().add(operation)
            waiting[0] = max(waiting[0], self._file.tell())

    monkeypatch.setattr(covers, "_Operations", Watched)
    monkeypatch.setattr(covers, "SEGMENT_BYTES", 100_000)
    monkeypatch.setattr(covers, "STEP_BYTES", 100_000)
    whole = assert_rebuilt(tmp_path / "work", old, new, small=False)
    assert waiting[0] > 2_900_000
    waiting[0] = 0
    monkeypatch.setattr(covers, "_MOST_DIFFERING_BYTES", 400_000)
    parts = assert_rebuilt(tmp_path / "work", old, new, small=False)
    assert waiting[0] < 1_200_000  # and what comes in at once
    assert whole is not None
    assert parts is not None
    assert parts < whole + 100


def test_what_fails_while_a_patch_is_compressed_ends_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def failing(plain: bytes, **_: bool) -> bytes:
        tried.append(plain)
        raise MemoryError

    monkeypatch.setattr(streams, "_packed", failing)
    writer = StreamWriter(tmp_path)
    writer.data("literals", bytes(streams.LARGE_CHUNK_BYTES * 4))
    with pytest.raises(MemoryError):
        writer.finish(tmp_path / "patch", small=True)
    writer.close()
    assert len(tried) == 1  # a chunk takes many seconds


def test_records_that_moved_cost_their_places_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a database whose page was split: half its records lie at the end, in another order, the rest moved up."""
    monkeypatch.setattr(covers, "SEGMENT_BYTES", 64 << 10)  # the end is far from the pages it came from
    generator, source = random.Random(5), tmp_path / "source"
    source.mkdir()
    pages = [[b"\x16\x03-" + generator.randbytes(29) + b"%08x" % n for n in range(95)] for _ in range(800)]
    (source / "data").write_bytes(b"".join(b"".join(page).ljust(4096, b"\0") for page in pages))
    old = build(tmp_path / "work", source)
    moved = []
    for number in generator.sample(range(800), 60):
        leaving = generator.sample(pages[number], 48)
        pages[number] = [record for record in pages[number] if record not in leaving]
        moved.append(sorted(leaving))
    (source / "data").write_bytes(b"".join(b"".join(page).ljust(4096, b"\0") for page in [*pages, *moved]))
    size = assert_rebuilt(tmp_path / "work", old, build(tmp_path / "work", source), small=True)
    assert size is not None
    assert size < 60 * 48 * 29 // 2  # half of the random bytes in them


def test_changed_files_are_remembered_up_to_a_bound_of_memory(
    two: tuple[Path, RevisionRecord, RevisionRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone_through = []

    def pairs(entry: Entry, count: int) -> Iterator[tuple[Entry, Entry]]:
        gone_through.append(entry)
        return ((entry, entry) for _ in range(count))

    small = Entry(b"small", Kind.FILE, 0o644, 0, "root", "root", 1, (Extent(bytes(32), 0, 1),))
    large = small._replace(extents=small.extents * 1024)
    for entry, count, times in ((small, 10_000, 1), (large, 30, 1), (large, 300, 2)):
        again = create._Again(partial(pairs, entry, count))
        gone_through.clear()
        assert [sum(1 for _ in again), sum(1 for _ in again)] == [count, count]
        assert len(gone_through) == times
    whole = assert_rebuilt(*two, small=False)
    monkeypatch.setattr(create, "_MAX_REMEMBERED_BYTES", 0)
    assert assert_rebuilt(*two, small=False) == whole


def test_a_patch_for_another_revision_is_refused(two: tuple[Path, RevisionRecord, RevisionRecord]) -> None:
    directory, old, new = two
    assert assert_rebuilt(directory, old, new, small=False)
    with pytest.raises(FormatError, match="another revision"):
        rebuild(directory, directory / "patch", new, new, directory / "other")


def test_a_damaged_patch_gives_an_error_and_no_false_block(two: tuple[Path, RevisionRecord, RevisionRecord]) -> None:
    directory, old, new = two
    assert assert_rebuilt(directory, old, new, small=True)
    sound, generator = (directory / "patch").read_bytes(), random.Random(1)
    truth = (directory / new.revision / PACK_NAME).read_bytes()
    for number in range(120):
        data = bytearray(sound)
        if number % 4:
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        else:
            del data[generator.randrange(len(data)) :]
        (directory / "patch").write_bytes(data)
        into = directory / f"into{number}"
        try:
            pack = rebuild(directory, directory / "patch", old, new, into)
        except RepositoryError:
            pack = PartialPack(into, new.packs[0])
        for block in range(new.packs[0].blocks):
            if pack.has(block):
                start = block * new.packs[0].block_bytes
                assert pack.read(block) == truth[start : start + pack.block_size(block)]
        pack.close()


@pytest.mark.parametrize("which", ["old", "new"])
@pytest.mark.parametrize("small", [True, False])
def test_a_damaged_pack_is_told_and_makes_no_patch(
    two: tuple[Path, RevisionRecord, RevisionRecord], which: str, *, small: bool
) -> None:
    directory, old, new = two
    record = old if which == "old" else new
    path = directory / record.revision / PACK_NAME
    sound = path.read_bytes()
    with Revision(directory, record).open() as reader:
        text, manifest = reader.find(b"data/0/text"), reader.manifest_frames[0].digest
        assert text is not None
        digests = [extent.frame for extent in text.extents if extent.frame is not None] + [manifest]
        places = [reader.own_pack.index[digest] for digest in digests]
    generator = random.Random(4)
    for place in places * 6:
        data = bytearray(sound)
        data[place.offset + generator.randrange(place.stored_bytes)] ^= 1 << generator.randrange(8)
        path.write_bytes(data)
        with pytest.raises(DigestMismatchError, match="the frame at"):
            assert_rebuilt(directory, old, new, small=small)


def test_what_was_read_unchecked_is_checked_afterwards(two: tuple[Path, RevisionRecord, RevisionRecord]) -> None:
    directory, old, _ = two
    path = directory / old.revision / PACK_NAME
    with Revision(directory, old).open() as reader:
        entry = reader.find(b"data/0/big")
        assert entry is not None
        digests = [extent.frame for extent in entry.extents if extent.frame is not None][:2]
        places = [reader.own_pack.index[digest] for digest in digests]
        data = bytearray(path.read_bytes())
        for place in places:
            data[place.offset + 9] ^= 1
        path.write_bytes(data)
        with reader.unchecked():
            reader.frame(digests[0])  # is kept in memory
            reader.prepare_frame(digests[1])
            with pytest.raises(DigestMismatchError):
                reader.checked_frame(digests[0])
        for digest in digests:
            with pytest.raises(DigestMismatchError):
                reader.frame(digest)


def test_what_goes_on_behind_the_end_of_the_pack_is_refused(
    two: tuple[Path, RevisionRecord, RevisionRecord], tmp_path: Path
) -> None:
    directory, _, new = two
    ref, path = new.packs[0], directory / new.revision / PACK_NAME
    pack = PartialPack.prepare(tmp_path / "into", ref, BlockList.of_pack(path, ref.block_bytes).digests)
    out = RebuiltPack(pack)
    out.write(path.read_bytes())
    assert pack.complete()
    with pytest.raises(DigestMismatchError, match="longer"):
        out.write(b"\0")
    pack.close()


def test_runs_of_no_literals_are_refused(tmp_path: Path) -> None:
    out = StreamWriter(tmp_path)
    out.data("runs", bytes(1000))
    out.finish(tmp_path / "patch", small=False)
    out.close()
    reader = StreamReader(tmp_path / "patch")
    with pytest.raises(FormatError, match="runs of nothing"):
        CoverReader(reader, cast("Base", None), 100).read(100)
    reader.close()


def test_sizes_that_a_patch_declares_are_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "patch"
    for hostile in (b"", b"TEDPATC\0", b"TEDPATC\0\x02\0\x14\0", b"TEDPATC\0\x01\0\x14\0\x01" + b"\xff" * 9):
        path.write_bytes(hostile)
        with pytest.raises(FormatError):
            StreamReader(path)
    out = StreamWriter(tmp_path)
    out.number("head", 1 << 40)
    path.unlink()
    out.finish(path, small=False)
    reader = StreamReader(path)
    assert reader.number("head") == 1 << 40
    with pytest.raises(FormatError, match="ends too early"):
        reader.number("head")
    assert all(reader.at_end(name) for name in STREAMS)
    reader.close()


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_differences_are_undone_by_adding(one: bytes, other: bytes) -> None:
    size = min(len(one), len(other))
    old, new = one[:size], other[:size]
    differs = difference(new, old)
    assert added(old, differs) == new
    assert differs == bytes((n - o) % 256 for n, o in zip(new, old, strict=True))


def test_a_patch_is_made_once_and_listed_with_its_root(two: tuple[Path, RevisionRecord, RevisionRecord]) -> None:
    directory, old, new = two
    (directory / new.revision / "PATCH-20200101T000000000000Z_TEMP").mkdir()
    size = make_patch(directory, old, new, "fast")
    assert make_patch(directory, old, new, "small") == size
    assert [path.name for path in (directory / new.revision).glob("PATCH-*")] == [f"PATCH-{old.revision}"]
    (ref,) = patches_of(directory / new.revision).values()
    assert (ref.revision, ref.bytes) == (patch_place(new.revision, old.revision), size)
    assert isinstance(ref, PackRef)
    BlockList.load(directory / ref.revision, ref)


def test_what_is_nothing_like_the_old_gets_no_patch(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a").write_bytes(random.Random(1).randbytes(200_000))
    old = build(tmp_path / "work", source)
    (source / "a").write_bytes(random.Random(2).randbytes(200_000))
    new = build(tmp_path / "work", source)
    assert make_patch(tmp_path / "work", old, new, "small") is None
    assert not list((tmp_path / "work" / new.revision).glob("PATCH-*"))


def test_packed_content_is_compared_only_where_something_of_it_returns(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    data = random.Random(1).randbytes(4_000_000)
    (source / "a").write_bytes(data)
    old = build(tmp_path / "work", source)
    (source / "a").write_bytes(random.Random(2).randbytes(4_000_000))
    other = build(tmp_path / "work", source)
    before_s = time.process_time()
    assert make_patch(tmp_path / "work", old, other, "small") is None
    assert time.process_time() - before_s < 8, "a comparison that finds nothing takes 3 s for a MiB"
    (source / "a").write_bytes(data[:1_000_000] + b"inserted" + data[1_000_000:])
    new = build(tmp_path / "work", source)
    size = make_patch(tmp_path / "work", old, new, "small")
    assert size is not None
    assert size < 1000


def test_a_file_of_very_many_pieces_keeps_its_lists_in_the_patch(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        for number in range(1300):
            file.seek(number * 131_072)
            file.write(b"%d " % number * 900)
    old = build(tmp_path / "work", source)
    with (source / "sparse").open("r+b") as file:
        file.seek(700 * 131_072)
        file.write(b"something else")
    size = assert_rebuilt(tmp_path / "work", old, build(tmp_path / "work", source), small=True)
    assert size is not None
    assert size < 1500


MEASURED = """
import random, sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from ted.content.entry import Entry, Extent, Kind
from ted.content.patch import covers, create, streams
from ted.content.patch.apply import apply_patch
from ted.content.patch.create import create_patch
from ted.content.patch.kept import RebuiltPack
from ted.content.blocks import BlockList, PartialPack
from ted.content.revision import Revision
from ted.content.working import read_record, record_stamps
directory, what = Path(sys.argv[1]), sys.argv[2]
old, new = (read_record(directory / stamp)[0] for stamp in record_stamps(directory))
with Revision(directory, old).open() as before, Revision(directory, new).open() as after:
    if what == "create":
        assert create_patch(before, after, directory / "patch", small=True)
    else:
        ref = new.packs[0]
        blocks = BlockList.of_pack(directory / new.revision / "DISTFILE.TED", ref.block_bytes).digests
        apply_patch(directory / "patch", before, RebuiltPack(PartialPack.prepare(directory / "into", ref, blocks)))
# of this process alone: getrusage would also know its parent's
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_memory_stays_bounded_at_both_ends(tmp_path: Path) -> None:
    source, generator = tmp_path / "source", random.Random(5)
    source.mkdir()
    with (source / "big").open("wb") as file:
        for number in range(120):
            file.seek(number * 5_000_000)
            file.write(generator.randbytes(300_000) + b"text and numbers %d " % number * 4000)
    old = build(tmp_path / "work", source)
    with (source / "big").open("r+b") as file:
        for number in range(0, 120, 2):
            file.seek(number * 5_000_000 + generator.randrange(300_000))
            file.write(generator.randbytes(20_000))
    new = build(tmp_path / "work", source)
    assert old.content_bytes == new.content_bytes > 590_000_000
    for what in ("create", "apply"):
        command = [sys.executable, "-c", textwrap.dedent(MEASURED), str(tmp_path / "work"), what]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 256 << 10
