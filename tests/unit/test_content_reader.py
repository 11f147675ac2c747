"""Reading: whatever a manifest says, nothing leaves the tree, nothing is believed, only our own errors are raised."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack
import pytest

from ted.content.blocks import BlockList
from ted.content.builder import RevisionBuilder
from ted.content.entry import Entry, Kind
from ted.content.frame import encode
from ted.content.manifest import ManifestFrame, Run, parse_frame, parse_runs
from ted.content.pack import PackReader, PackWriter
from ted.content.record import PackRef, RevisionRecord
from ted.content.revision import Hole, Revision, RevisionReader, diff
from ted.errors import DigestMismatchError, FormatError, MissingContentError, RepositoryError, UsageError

STAMP = "20261122T125447123456Z"
CONTENT = b"hello, this is a file"
FRAME = hashlib.sha256(CONTENT).digest()


def row(path: bytes, kind: str = "d", **fields: Any) -> list[Any]:
    """A row of the manifest as it should be, with ``fields`` changed."""
    names = ["path", "kind", "mode", "mtime_ns", "owner", "group", "size", "extents", "link", "digest", "xattrs"]
    usual = [path, kind, 0o644, 0, "root", "root", 0, [], None, None, []]
    values: dict[str, Any] = dict(zip(names, usual, strict=True))
    if kind == "f":
        values |= {"size": len(CONTENT), "extents": [[FRAME, 0, len(CONTENT)]]}
    return [(values | fields)[name] for name in names]


def written(
    directory: Path,
    *frames: list[Any],
    index: Callable[[dict[str, Any]], Any] | None = None,
    more: Sequence[bytes] = (),
) -> RevisionRecord:
    """A revision whose manifest has exactly those frames of rows, whatever they say."""
    listed = []
    plains = [CONTENT, *more]
    for rows in frames:
        plain = b"".join(msgpack.packb(each) for each in rows)
        plains.append(plain)
        listed.append([rows[0][0], hashlib.sha256(plain).digest(), len(rows)])
    described: dict[str, Any] = {"format": 1, "frames": listed, "options": {}, "settings": {}, "type": "file"}
    if index is not None:
        index(described)
    plains.append(msgpack.packb(described))
    return packed(directory, plains)


def packed(directory: Path, plains: list[bytes]) -> RevisionRecord:
    """A revision with those frames, the last one its index."""
    (directory / STAMP).mkdir(parents=True)
    path = directory / STAMP / "DISTFILE.TED"
    writer = PackWriter(path)
    for plain in dict.fromkeys(plains):
        writer.add(encode(plain))
    writer.finish()
    blocks = BlockList.of_pack(path)
    own = PackRef(STAMP, blocks.pack_bytes, blocks.block_bytes, len(blocks), blocks.root.hex(), ((0, len(blocks)),))
    manifest = hashlib.sha256(plains[-1]).hexdigest()
    return RevisionRecord("hq", "lib", STAMP, "file", {}, manifest, (own,), 1, 1, datetime.now(UTC))


def read_all(directory: Path, record: RevisionRecord) -> list[Entry]:
    with Revision(directory, record).open() as reader:
        entries = list(reader.entries())
        for entry in entries:
            if entry.kind in {Kind.FILE, Kind.HARDLINK}:
                list(reader.chunks(entry))
        return entries


def read_all_in_runs(directory: Path, record: RevisionRecord) -> list[Entry]:
    """As ``read_all``, with files in runs where that can be."""
    with Revision(directory, record).open() as reader:
        entries: list[Entry] = []
        for found in reader.runs(b"", lambda _directory: True):
            entries += taken_from(found) if isinstance(found, Run) else [found]
        for entry in entries:
            if entry.kind in {Kind.FILE, Kind.HARDLINK}:
                list(reader.chunks(entry))
        return entries


def taken_from(run: Run) -> list[Entry]:
    """The entries of a run; the quick way says the same of them, and nothing if one is wrong."""
    try:
        entries = run.entries("here")
    except FormatError:
        assert run.files() is None
        raise
    assert run.files() == [
        (entry.path.rpartition(b"/")[2], entry.mtime_ns, entry.extents[0].offset, entry.size, entry.digest)
        for entry in entries
    ]
    for entry, which in zip(entries, run.which, strict=True):
        assert (entry.mode, entry.owner, entry.group) == run.rights[which]
        assert (entry.path.rpartition(b"/")[0], entry.extents[0].frame) == (run.directory, run.frame)
    return entries


def test_what_the_tests_write_is_sound(tmp_path: Path) -> None:
    rows = [row(b"a"), row(b"a/f", "f"), row(b"a/h", "h", link=b"a/f"), row(b"b", "l", link=b"/anywhere")]
    assert [entry.path for entry in read_all(tmp_path, written(tmp_path, rows))] == [b"a", b"a/f", b"a/h", b"b"]


HOSTILE = {
    "absolute path": [row(b"/etc/passwd", "f")],
    "path with dots": [row(b"a"), row(b"a/../../etc", "f")],
    "path with a dot": [row(b"."), row(b"./a")],
    "empty path": [row(b"")],
    "empty component": [row(b"a"), row(b"a//b")],
    "trailing slash": [row(b"a/")],
    "NUL in a path": [row(b"a\0b")],
    "long name": [row(b"n" * 256)],
    "long path": [row(b"/".join([b"n" * 200] * 30))],
    "path as text": [row("a")],  # type: ignore[arg-type]
    "path below a link": [row(b"evil", "l", link=b"/etc"), row(b"evil/passwd", "f")],
    "path below a file": [row(b"f", "f"), row(b"f/x", "f")],
    "path below nothing": [row(b"a/b")],
    "path below a sibling": [row(b"a"), row(b"ab/c")],
    "twice": [row(b"a"), row(b"a")],
    "file twice": [row(b"a", "f"), row(b"a", "f")],
    "out of order": [row(b"b"), row(b"a")],
    "file out of order": [row(b"a"), row(b"a/2", "f"), row(b"a/1", "f"), row(b"a/3", "f")],
    "file after one that is later": [row(b"a"), row(b"a/b"), row(b"a/b/f", "f"), row(b"a/a", "f")],
    "no name": [row(b"a"), row(b"a/", "f")],
    "dots for a name": [row(b"a"), row(b"a/..", "f"), row(b"a/f", "f")],
    "NUL in a name": [row(b"a"), row(b"a/f\0", "f")],
    "long name of a file": [row(b"a"), row(b"a/" + b"n" * 256, "f")],
    "file of an owner that is none": [row(b"f", "f", owner=[1])],
    "file below a file": [row(b"f", "f"), row(b"f/g", "f"), row(b"f/h", "f")],
    "out of component order": [row(b"a"), row(b"a-b"), row(b"a/b")],
    "unknown kind": [row(b"a", "x")],
    "device": [row(b"a", "b")],
    "kind that is no text": [row(b"a", ["d"])],  # type: ignore[arg-type]
    "kind that is no text, with a size": [row(b"a", ["f"], size=1)],  # type: ignore[arg-type]
    "type bits in the mode": [row(b"a", mode=0o100644)],
    "negative mode": [row(b"a", mode=-1)],
    "mode as truth": [row(b"a", mode=True)],
    "time without end": [row(b"a", mtime_ns=1.5)],
    "owner with control characters": [row(b"a", owner="root\n")],
    "owner without end": [row(b"a", owner=1 << 32)],
    "no owner": [row(b"a", owner="")],
    "long group": [row(b"a", group="g" * 300)],
    "directory with a size": [row(b"a", size=5)],
    "directory with content": [row(b"a", extents=[[FRAME, 0, 5]])],
    "negative size": [row(b"f", "f", size=-1, extents=[])],
    "size without extents": [row(b"f", "f", extents=[])],
    "extents that do not add up": [row(b"f", "f", size=999)],
    "negative extent": [row(b"f", "f", size=3, extents=[[FRAME, 0, 5], [FRAME, 0, -2]])],
    "empty extent": [row(b"f", "f", size=5, extents=[[FRAME, 0, 5], [None, 0, 0]])],
    "hole with an offset": [row(b"f", "f", size=5, extents=[[None, 1, 5]])],
    "extent beyond its frame": [row(b"f", "f", size=30, extents=[[FRAME, 0, 30]])],
    "extent behind its frame": [row(b"f", "f", size=5, extents=[[FRAME, 20, 5]])],
    "part of a frame without a digest": [row(b"f", "f", size=5, extents=[[FRAME, 3, 5]])],
    "frame that is not there": [row(b"f", "f", size=5, extents=[[bytes(32), 0, 5]])],
    "short digest": [row(b"f", "f", size=5, extents=[[FRAME[:31], 0, 5]])],
    "digest of something else": [row(b"f", "f", size=5, extents=[[FRAME, 0, 5]], digest=bytes(32))],
    "digest beside many extents": [row(b"f", "f", size=42, extents=[[FRAME, 0, 21]] * 2, digest=FRAME)],
    "digest beside a list of extents": [row(b"f", "f", size=42, extents=[[FRAME, 42]], digest=FRAME)],
    "digest of a hole": [row(b"f", "f", size=42, extents=[[None, 0, 42]], digest=FRAME)],
    "too many extents": [row(b"f", "f", size=1025, extents=[[FRAME, 0, 1]] * 1025)],
    "mixed extents": [row(b"f", "f", size=26, extents=[[FRAME, 5], [FRAME, 0, 21]])],
    "list that is none": [row(b"f", "f", size=5, extents=[[FRAME, 5]])],
    "extents that are none": [row(b"f", "f", extents=b"x" * 21)],
    "file with a link": [row(b"f", "f", link=b"x")],
    "link without a target": [row(b"l", "l")],
    "link with an empty target": [row(b"l", "l", link=b"")],
    "link with a NUL": [row(b"l", "l", link=b"a\0b")],
    "long link": [row(b"l", "l", link=b"x" * 4096)],
    "hard link to nothing": [row(b"h", "h", link=b"a")],
    "hard link forward": [row(b"h", "h", link=b"z"), row(b"z", "f")],
    "hard link to itself": [row(b"h", "h", link=b"h")],
    "hard link to a directory": [row(b"a"), row(b"h", "h", link=b"a")],
    "hard link to a symbolic link": [row(b"a", "l", link=b"/etc"), row(b"h", "h", link=b"a")],
    "hard link to a hard link": [row(b"a", "f"), row(b"b", "h", link=b"a"), row(b"c", "h", link=b"b")],
    "hard link out of the tree": [row(b"h", "h", link=b"../etc/passwd")],
    "hard link to the root": [row(b"h", "h", link=b"/etc/passwd")],
    "attributes that are the receiver's": [row(b"a", xattrs=[[b"security.selinux", b"x"]])],
    "trusted attributes": [row(b"a", xattrs=[[b"trusted.overlay.opaque", b"y"]])],
    "attributes twice": [row(b"a", xattrs=[[b"user.a", b"1"], [b"user.a", b"2"]])],
    "large attribute": [row(b"a", xattrs=[[b"user.a", bytes(70_000)]])],
    "attribute that is none": [row(b"a", xattrs=[[b"user.a"]])],
    "attributes that are none": [row(b"a", xattrs={"user.a": 1})],
    "too few fields": [[b"a", "d", 0]],
    "too many fields": [[*row(b"a"), 1]],
}  # fmt: skip


@pytest.mark.parametrize("rows", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_manifest_is_refused(tmp_path: Path, rows: list[Any]) -> None:
    record = written(tmp_path, rows)
    for read in (read_all, read_all_in_runs):
        with pytest.raises(RepositoryError):
            read(tmp_path, record)


def test_runs_are_what_the_entries_are(tmp_path: Path) -> None:
    other = hashlib.sha256(CONTENT + CONTENT).digest()
    digest = hashlib.sha256(CONTENT[:5]).digest()
    usual = [row(b"d/f%03d" % number, "f", mode=(0o644, 0o755)[number % 2], mtime_ns=number) for number in range(500)]
    part = row(b"d/g", "f", size=5, extents=[[FRAME, 0, 5]], digest=digest, owner=1)
    odd = [row(b"d/h", "f", xattrs=[[b"user.a", b"1"]]), row(b"d/i", "l", link=b"h"), row(b"d/j", "h", link=b"d/g")]
    elsewhere = row(b"d/k", "f", size=42, extents=[[other, 0, 42]])
    below = [row(b"d/l"), row(b"d/l/f", "f"), row(b"d/m", "f"), row(b"d/n", "f", size=0, extents=[])]
    last = [row(b"e"), *(row(b"e/%d" % number, "f", owner=number) for number in range(100, 400))]
    record = written(tmp_path, [row(b"d"), *usual, part, *odd, elsewhere, *below], last, more=[CONTENT + CONTENT])
    assert read_all_in_runs(tmp_path, record) == read_all(tmp_path, record)
    with Revision(tmp_path, record).open() as reader:
        found = list(reader.runs(b"d", lambda directory: directory == b"d"))
        runs = [each for each in found if isinstance(each, Run)]
        assert all(len(run.rows) < 20_000 for run in runs)
        assert sum(len(run.which) for run in runs) == 503
        assert len(runs) < 20
        assert [each.path for each in found if isinstance(each, Entry)] == [
            b"d", b"d/h", b"d/i", b"d/j", b"d/l", b"d/l/f", b"d/n"
        ]  # fmt: skip


RUBBISH: list[Any] = [
    None, True, -1, 0, 1, 5, 21, 22, 1 << 33, 1 << 63, 1.5, "", "x", b"", b"x", b"d/\0", FRAME, FRAME[:31], [], [1],
    [None], [[FRAME, 0, 21]] * 2, [[FRAME, 0, 5]], [[FRAME, 1, 21]], [[FRAME, -1, 21]], [[FRAME, 0, True]],
    [["x", 0, 21]], [[FRAME, 0, 21, 0]], [FRAME], {}, {"x": 1},
]  # fmt: skip


@pytest.mark.parametrize("field", range(11))
def test_a_run_accepts_what_an_entry_may_be(field: int) -> None:
    for value in RUBBISH:
        wrong = row(b"d/f", "f")
        wrong[field] = value
        plain = b"".join(msgpack.packb(each) for each in (row(b"d/a", "f"), wrong, row(b"d/z", "f")))
        frame = ManifestFrame(b"d/a", bytes(32), 3)
        assert what_is_read(plain, frame, runs=True) == what_is_read(plain, frame, runs=False), value


def what_is_read(plain: bytes, frame: ManifestFrame, *, runs: bool) -> list[Entry] | None:
    found = parse_runs(plain, frame, "", lambda _directory: True) if runs else parse_frame(plain, frame, "")
    try:
        return [entry for each in found for entry in (taken_from(each) if isinstance(each, Run) else [each])]
    except FormatError:
        return None


@pytest.mark.parametrize(
    "index",
    [
        lambda value: value.update(frames=[]) or value.pop("options"),
        lambda value: value.update(frames=5),
        lambda value: value.update(frames=[[b"a"]]),
        lambda value: value.update(frames=[[b"a", bytes(31), 1]]),
        lambda value: value.update(frames=[[b"/a", bytes(32), 1]]),
        lambda value: value.update(frames=[[b"a", bytes(32), 0]]),
        lambda value: value.update(frames=[[b"a", bytes(32), 1 << 40]]),
        lambda value: value["frames"].append(value["frames"][0]),
        lambda value: value["frames"][0].__setitem__(0, b"0"),
        lambda value: value["frames"][0].__setitem__(2, 1),
        lambda value: value["frames"][0].__setitem__(2, 3),
        lambda value: value["frames"][0].__setitem__(1, FRAME),
        lambda value: value["frames"][0].__setitem__(1, bytes(32)),
        lambda value: value.update(options=[]),
        lambda value: value.update(settings=None),
        lambda value: value.update(type=7),
        lambda value: value.update(type="rpm"),
        lambda value: value.update(more=1),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, index: Callable[[dict[str, Any]], Any]) -> None:
    record = written(tmp_path, [row(b"a"), row(b"b")], index=index)
    with pytest.raises(RepositoryError):
        read_all(tmp_path, record)


def test_an_unknown_manifest_format_says_which_and_what_to_do(tmp_path: Path) -> None:
    record = written(tmp_path, [row(b"a")], index=lambda value: value.update(format=2))
    with pytest.raises(FormatError, match="manifest format 2; this ted knows format 1"):
        read_all(tmp_path, record)


@pytest.mark.parametrize(
    "plain", [b"", b"\xc1", b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, b"\x80", b"\xdf\xff\xff\xff\xff\x00"]
)
def test_an_index_of_rubbish_is_refused(tmp_path: Path, plain: bytes) -> None:
    with pytest.raises(RepositoryError):
        read_all(tmp_path, packed(tmp_path, [CONTENT, plain or b"\x00"]))


def test_frames_out_of_order_are_refused(tmp_path: Path) -> None:
    """Each frame by itself is in order, and so are the first paths."""
    record = written(tmp_path, [row(b"a"), row(b"x")], [row(b"b"), row(b"c")])
    with pytest.raises(FormatError, match="out of order"):
        read_all(tmp_path, record)
    with Revision(tmp_path, record).open() as reader, pytest.raises(FormatError, match="out of order"):
        list(diff(None, reader))


def test_a_comparison_refuses_what_reading_refuses(tmp_path: Path) -> None:
    for name in ("path below a link", "path below nothing", "hard link to a directory", "out of order"):
        directory = tmp_path / name
        record = written(directory, HOSTILE[name])
        with Revision(directory, record).open() as reader, pytest.raises(FormatError):
            list(diff(None, reader))


def test_a_comparison_that_skips_frames_still_sees_a_path_below_a_link(tmp_path: Path) -> None:
    link = [row(b"evil", "l", link=b"/etc")]
    old = written(tmp_path / "old", link)
    new = written(tmp_path / "new", link, [row(b"evil/passwd", "f")])
    with Revision(tmp_path / "old", old).open() as before, Revision(tmp_path / "new", new).open() as after:
        with pytest.raises(FormatError, match="evil is no directory"):
            list(diff(before, after))
        with pytest.raises(FormatError, match="evil is no directory"):
            list(after.entries(b"evil/passwd"))


@pytest.fixture
def many(tmp_path: Path) -> Iterator[tuple[Path, RevisionRecord]]:
    """A revision of several manifest frames."""
    with RevisionBuilder(tmp_path, "hq", "lib", "file", {}, {"o": 1}) as builder:
        for number in range(3000):
            builder.add_bytes(f"data/d{number % 30:02}/f{number:04}", b"%d" % number * 50)
        builder.add_bytes("data/d05x", b"neighbour")
        builder.add_bytes("data/d05-x", b"neighbour")
        builder.add_bytes("verify/t", b"t")
        yield tmp_path, builder.finish().record


def opened(many: tuple[Path, RevisionRecord]) -> RevisionReader:
    return Revision(*many).open()


def test_a_prefix_yields_what_lies_at_and_below_it(many: tuple[Path, RevisionRecord]) -> None:
    with opened(many) as reader:
        assert len(reader.manifest_frames) > 3
        everything = list(reader.entries())
        assert len(everything) == 3 + 30 + 3000 + 2
        assert [entry.components for entry in everything] == sorted(entry.components for entry in everything)
        for prefix in (b"data", b"data/d05", b"data/d05/", b"data/d29/f2999", b"verify", b"data/d05x"):
            wanted = prefix.strip(b"/")
            expected = [entry for entry in everything if entry.path == wanted or entry.path.startswith(wanted + b"/")]
            assert list(reader.entries(prefix)) == expected
            assert expected
        for prefix in (b"nothing", b"data/d0", b"a", b"zzz", b"data/d05/f0005/below"):
            assert list(reader.entries(prefix)) == []
        with pytest.raises(UsageError):
            list(reader.entries(b"../etc"))
        assert (reader.type, dict(reader.options), dict(reader.settings)) == ("file", {"o": 1}, {})


def test_finding_one_entry_reads_only_its_frame(many: tuple[Path, RevisionRecord]) -> None:
    with opened(many) as reader:
        found = reader.find(b"data/d07/f0007")
        assert found is not None
        assert b"".join(part for part in reader.chunks(found) if isinstance(part, bytes)) == b"7" * 50
        assert reader.find(b"data/d07/f0008") is None
        assert reader.find(b"") is None


def test_damage_is_noticed_and_never_anything_but_our_own_error(many: tuple[Path, RevisionRecord]) -> None:
    directory, record = many
    path = directory / record.revision / "DISTFILE.TED"
    good = path.read_bytes()
    with opened(many) as reader:
        content = [entry for entry in reader.entries() if entry.kind is Kind.FILE]
    choice = random.Random(8)
    for _ in range(150):
        place = choice.randrange(16, len(good) - 60)
        path.write_bytes(good[:place] + bytes([good[place] ^ (1 << choice.randrange(8))]) + good[place + 1 :])
        with pytest.raises(RepositoryError), opened(many) as reader:
            reader.verify_frames()
    path.write_bytes(good)
    with opened(many) as reader:
        assert reader.verify_frames() == 3035
    path.write_bytes(good[: len(good) // 2])
    with pytest.raises(MissingContentError):
        opened(many)
    path.unlink()
    with pytest.raises(MissingContentError):
        opened(many)
    assert len(content) == 3003


def test_a_frame_in_blocks_that_are_not_live_is_not_looked_at(tmp_path: Path) -> None:
    with RevisionBuilder(tmp_path, "hq", "lib", "file", {}, {}) as builder:
        builder.add_bytes("data/large", random.Random(1).randbytes(900_000))
        record = builder.finish().record
    own = record.packs[0]
    partly = PackRef(own.revision, own.bytes, own.block_bytes, own.blocks, own.root, ((0, 1), (own.blocks - 1, 1)))
    fewer = RevisionRecord(**{name: getattr(record, name) for name in record.__slots__} | {"packs": (partly,)})
    with Revision(tmp_path, fewer).open() as reader, pytest.raises(MissingContentError, match="no pack holds"):
        reader.verify_frames()


def test_a_file_whose_frame_was_swapped_is_refused(tmp_path: Path) -> None:
    """The frame is sound and in the pack, but it is not this file's."""
    part = CONTENT[:5]
    good = row(b"f", "f", size=5, extents=[[FRAME, 0, 5]], digest=hashlib.sha256(part).digest())
    assert len(read_all(tmp_path / "good", written(tmp_path / "good", [good]))) == 1
    bad = row(b"f", "f", size=5, extents=[[FRAME, 1, 5]], digest=hashlib.sha256(part).digest())
    with pytest.raises(DigestMismatchError):
        read_all(tmp_path / "bad", written(tmp_path / "bad", [bad]))


def test_comparing_reads_only_what_differs(tmp_path: Path) -> None:
    def build(change: int) -> RevisionRecord:
        with RevisionBuilder(tmp_path, "hq", "lib", "file", {}, {}) as builder:
            for number in range(20_000):
                data = b"changed" if number == change else b"%d" % number
                builder.add_bytes(f"data/{number // 100:03}/f{number:05}", data)
            return builder.finish().record

    first, second = build(-1), build(12_345)

    class Counting(RevisionReader):
        read = 0

        def frame_entries(self, number: int) -> Iterator[Entry]:
            self.read += 1
            return super().frame_entries(number)

    with Counting(tmp_path, first) as old, Counting(tmp_path, second) as new:
        changes = list(diff(old, new))
        assert [path for path, _, _ in changes] == [b"data/123/f12345"]
        assert len(new.manifest_frames) > 20
        assert old.read <= 6
        assert new.read <= 6


def test_entries_are_remembered_as_far_as_there_is_room(tmp_path: Path) -> None:
    with RevisionBuilder(tmp_path, "hq", "lib", "file", {}, {}) as builder:
        for number in range(10_000):
            builder.add_bytes(f"data/{number // 100:03}/f{number:05}", b"%d" % number)
        record = builder.finish().record

    def again(room_bytes: int) -> tuple[int, list[Entry], int]:
        """Return how many frames there are, what the second pass gives, and how many frames it gave from memory."""
        with Revision(tmp_path, record).open() as reader:
            reader.remember_entries(room_bytes)
            first, second = (
                [list(reader.frame_entries(number)) for number in range(len(reader.manifest_frames))] for _ in "12"
            )
            assert first == second
            known = sum(a[0] is b[0] for a, b in zip(first, second, strict=True))
            return len(second), [entry for frame in second for entry in frame], known

    frames, entries, known = again(1 << 30)
    assert known == frames > 5
    assert len(entries) == 10_101
    some_bytes = sum(entry.memory_bytes for entry in entries) // 2
    assert 0 < again(some_bytes)[2] < frames
    assert again(0) == (frames, entries, 0)


def test_the_frames_of_a_file_are_read_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 256 << 10
    frames = [bytes([number]) * size for number in range(40)]
    extents = [[hashlib.sha256(each).digest(), 0, size] for each in frames]
    rows = msgpack.packb(row(b"f", "f", size=40 * size, extents=extents))
    listed = [[b"f", hashlib.sha256(rows).digest(), 1]]
    index = msgpack.packb({"format": 1, "frames": listed, "options": {}, "settings": {}, "type": "file"})
    record = packed(tmp_path, [*frames, rows, index])
    readers: set[str] = set()
    read = PackReader.read

    def noted(self: PackReader, *what: Any, **how: Any) -> bytes:
        readers.add(threading.current_thread().name.partition("_")[0])
        return read(self, *what, **how)

    with Revision(tmp_path, record).open() as reader:
        (entry,) = reader.entries()
        monkeypatch.setattr(PackReader, "read", noted)
        assert list(reader.chunks(entry)) == frames
    assert readers == {"ted-read"}


def joined(pieces: Iterable[bytes | memoryview | Hole]) -> bytes:
    """The bytes of a file without holes."""
    return b"".join(piece for piece in pieces if not isinstance(piece, Hole))


def small(tmp_path: Path) -> tuple[Path, RevisionRecord]:
    """A revision of ten small files that share a frame."""
    with RevisionBuilder(tmp_path, "hq", "lib", "file", {}, {}) as builder:
        for number in range(10):
            builder.add_bytes(f"data/f{number}", random.Random(number).randbytes(3000))
        return tmp_path, builder.finish().record


def test_what_files_share_is_compared_with_a_digest_once_as_a_part_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []

    def noted(plain: bytes | memoryview) -> bytes:
        hashed.append(len(plain))
        return hashlib.sha256(plain).digest()

    with opened(small(tmp_path)) as reader:
        entries = [entry for entry in reader.entries() if entry.kind is Kind.FILE and entry.path.startswith(b"data/f")]
        for where in ("ted.content.revision", "ted.content.frame"):
            monkeypatch.setattr(f"{where}.frame_digest", noted)
        for entry in entries:
            assert joined(reader.pieces(entry)) == joined(reader.chunks(entry))
            assert all(type(part) is bytes for part in reader.chunks(entry))
    assert hashed == [3000] * 30


def test_damage_in_what_files_share_harms_those_it_lies_in_and_is_told_with_its_place(tmp_path: Path) -> None:
    directory, record = small(tmp_path)
    path = directory / record.revision / "DISTFILE.TED"
    good = path.read_bytes()
    place = good.index(random.Random(4).randbytes(3000)) + 1500
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    with opened((directory, record)) as reader:
        for number in range(10):
            entry = reader.find(b"data/f%d" % number)
            assert entry is not None
            if number != 4:
                assert list(reader.chunks(entry)) == [random.Random(number).randbytes(3000)]
                continue
            with pytest.raises(DigestMismatchError, match="the frame at 16 is not"):
                list(reader.chunks(entry))


def test_what_was_read_damaged_is_read_anew_the_next_time(tmp_path: Path) -> None:
    directory, record = small(tmp_path)
    path = directory / record.revision / "DISTFILE.TED"
    good = path.read_bytes()
    wanted = random.Random(4).randbytes(3000)
    place = good.index(wanted) + 1500
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    with opened((directory, record)) as reader:
        entry = reader.find(b"data/f4")
        assert entry is not None
        for _ in range(2):
            with pytest.raises(DigestMismatchError, match="the frame at 16 is not"):
                list(reader.chunks(entry))
        with path.open("r+b") as file:  # as `ted verify --repair` mends it
            file.write(good)
        assert list(reader.chunks(entry)) == [wanted]


@pytest.mark.parametrize("room_bytes", [1, 4 << 20])
def test_what_was_not_compared_is_compared_for_who_wants_a_whole_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_bytes: int
) -> None:
    """Also where the frame alone is more than what is kept."""
    monkeypatch.setattr("ted.content.revision._CACHED_BYTES", room_bytes)
    record = written(tmp_path, [row(b"f", "f")])
    path = tmp_path / record.revision / "DISTFILE.TED"
    good = path.read_bytes()
    path.write_bytes(good.replace(CONTENT, CONTENT.swapcase()))
    for prepares in (True, False):
        with Revision(tmp_path, record).open() as reader:
            with reader.unchecked():
                if prepares:
                    reader.prepare_frame(FRAME)
                else:
                    assert reader.frame(FRAME) == CONTENT.swapcase()
            with pytest.raises(DigestMismatchError):
                reader.frame(FRAME)


def test_a_small_file_is_read_without_other_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readers: set[str] = set()
    read = PackReader.read

    def noted(self: PackReader, *what: Any, **how: Any) -> bytes:
        readers.add(threading.current_thread().name)
        return read(self, *what, **how)

    monkeypatch.setattr(PackReader, "read", noted)
    with RevisionBuilder(tmp_path, "hq", "lib", "file", {}, {}) as builder:
        builder.add_bytes("data/large", random.Random(1).randbytes(7_900_000))
        record = builder.finish().record
    with Revision(tmp_path, record).open() as reader:
        (entry,) = [entry for entry in reader.entries() if entry.path == b"data/large"]
        assert len(entry.extents) > 4
        assert len(joined(reader.pieces(entry))) == 7_900_000
    assert readers == {"MainThread"}


def test_the_frame_that_holds_a_prefix_is_parsed_once(
    many: tuple[Path, RevisionRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[ManifestFrame] = []

    def noted(plain: bytes, frame: ManifestFrame, where: str) -> Iterator[Entry]:
        parsed.append(frame)
        return parse_frame(plain, frame, where)

    monkeypatch.setattr("ted.content.revision.parse_frame", noted)
    with opened(many) as reader:
        assert len(list(reader.entries(b"data/d07"))) > 50
    assert len(parsed) == len(set(parsed))


def test_who_verifies_notices_damage_that_lies_in_no_file(tmp_path: Path) -> None:
    """A frame may hold files that only older revisions have."""
    part, digest = CONTENT[3:9], hashlib.sha256(CONTENT[3:9]).digest()
    record = written(tmp_path, [row(b"f", "f", size=6, extents=[[FRAME, 3, 6]], digest=digest)])
    path = tmp_path / record.revision / "DISTFILE.TED"
    good = path.read_bytes()
    place = good.index(CONTENT)
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    with Revision(tmp_path, record).open() as reader:
        (entry,) = reader.entries()
        assert list(reader.chunks(entry)) == [part]
        with pytest.raises(DigestMismatchError):
            reader.verify_frames()


def test_a_piece_is_what_the_chunks_of_a_file_are(tmp_path: Path) -> None:
    part = CONTENT[3:9]
    digest = hashlib.sha256(part).digest()
    record = written(tmp_path, [row(b"f", "f", size=6, extents=[[FRAME, 3, 6]], digest=digest), row(b"g", "f")])
    with Revision(tmp_path, record).open() as reader:
        assert reader.read_piece(FRAME, 3, 6, digest) == part
        assert reader.read_piece(FRAME, 0, len(CONTENT), None) == CONTENT
        for offset, length in ((2, 6), (3, 99)):
            with pytest.raises(DigestMismatchError):
                reader.read_piece(FRAME, offset, length, digest)
        for offset, length in ((3, 6), (1, len(CONTENT))):
            with pytest.raises(FormatError):
                reader.read_piece(FRAME, offset, length, None)
