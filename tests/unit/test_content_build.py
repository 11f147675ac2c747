"""Building: what is found becomes a revision, and what cannot be sent is said."""

from __future__ import annotations

import errno
import os
import random
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ted.content import gather, store, walk
from ted.content.builder import BuildResult, RevisionBuilder
from ted.content.cut import MAX_GROUP_ENTRIES
from ted.content.entry import Entry, Kind
from ted.content.frame import Encoded
from ted.content.gather import Gatherer
from ted.content.pack import PackReader, PackWriter
from ted.content.record import RevisionRecord
from ted.content.revision import Hole, Revision, diff
from ted.content.walk import Excludes, Item, SourceTree
from ted.content.working import WorkingDirectory
from ted.errors import (
    BuildError,
    EmptySourceError,
    SourceChangedError,
    UnsupportedFileError,
    UsageError,
)


class Place:
    """A source and a place to build it in."""

    def __init__(self, root: Path) -> None:
        self.source = root / "source"
        self.source.mkdir()
        self.working = WorkingDirectory(root / "work")
        self.directory = self.working.distribution("hq", "lib")

    def builder(self, **arguments: Any) -> RevisionBuilder:
        options = arguments.pop("options", {})
        settings = arguments.pop("settings", {"priority": "high"})
        return RevisionBuilder(self.directory, "hq", "lib", "file", settings, options, **arguments)

    def build(self, *, force: bool = False, check: bool = False, **arguments: Any) -> BuildResult:
        tree = {key: arguments.pop(key) for key in ("exclude", "outside_links") if key in arguments}
        with self.builder(**arguments) as builder:
            builder.add_tree(self.source, "data/0", contents_only=True, **tree)
            return builder.finish(force=force, check=check)

    def read(self, record: RevisionRecord) -> dict[str, tuple[Entry, bytes]]:
        with Revision(self.directory, record).open() as reader:
            return {
                os.fsdecode(entry.path): (
                    entry,
                    b"".join(bytes(part.length) if isinstance(part, Hole) else part for part in reader.chunks(entry)),
                )
                for entry in reader.entries()
            }

    def left(self) -> list[str]:
        return sorted(path.name for path in self.directory.iterdir() if path.is_dir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def fill(directory: Path, files: int, size: int, seed: int = 1) -> None:
    """Files of text that shrinks about as source code does."""
    choice = random.Random(seed)
    words = ["".join(choice.choices("abcdefghijklmnopqrstuvwxyz", k=choice.randint(2, 10))) for _ in range(2000)]
    known = [" ".join(choice.choices(words, k=8)) for _ in range(20_000)]
    for number in range(files):
        below = directory / f"d{number // 100:03}"
        below.mkdir(exist_ok=True)
        (below / f"f{number:05}.txt").write_text("\n".join(choice.choices(known, k=size // 55)) + "\n")


# what is kept


def test_only_a_revision_that_is_whole_can_be_kept(place: Place) -> None:
    fill(place.source, 20, 30_000)
    first = place.build(options={"a": 1}).record
    (place.source / "more").write_bytes(b"more")
    second = place.build(options={"a": 2}).record
    assert [ref.revision for ref in second.packs] == [second.revision, first.revision]
    with place.builder() as builder:
        assert builder.former_options() == {"a": 2}
        builder.keep_former()
        assert builder.finish().record == second
    with place.builder() as builder:
        builder.add_bytes("acceptance/0", b"a test")
        builder.keep_former()
        (place.directory / first.revision / "DISTFILE.TED").unlink()
        with pytest.raises(BuildError, match="not whole"):
            builder.finish()
    with place.builder() as builder:
        assert builder.former_options() is None
        with pytest.raises(UsageError, match="no revision to keep"):
            builder.keep_former()


# what is found


def test_every_kind_of_entry_comes_back_as_it_was(place: Place) -> None:
    source = place.source
    (source / "empty dir").mkdir(mode=0o700)
    (source / "empty").touch()
    (source / "small").write_bytes(b"hello")
    (source / "small").chmod(0o4751)
    os.utime(source / "small", ns=(5, 1_234_567_890_123_456_789))
    large = random.Random(5).randbytes(3_000_000)
    (source / "large").write_bytes(large)
    (source / "link").symlink_to("small")
    os.link(source / "small", source / "zz")
    name = os.fsdecode(b"caf\xe9 \xff\n")
    (source / name).write_bytes(b"not UTF-8")
    os.utime(source / "empty", ns=(0, -1_000_000_001))
    found = place.read(place.build().record)
    assert list(found) == [
        "data", "data/0", f"data/0/{name}", "data/0/empty", "data/0/empty dir", "data/0/large", "data/0/link",
        "data/0/small", "data/0/zz",
    ]  # fmt: skip
    small, data = found["data/0/small"]
    assert (small.kind, small.mode, small.mtime_ns, data) == (Kind.FILE, 0o4751, 1_234_567_890_123_456_789, b"hello")
    assert found["data/0/large"][1] == large
    assert found[f"data/0/{name}"][1] == b"not UTF-8"
    link = found["data/0/link"][0]
    assert (link.kind, link.link) == (Kind.SYMLINK, b"small")
    hard, same = found["data/0/zz"]
    assert (hard.kind, hard.link, hard.size, hard.mode, same) == (Kind.HARDLINK, b"data/0/small", 5, 0o4751, b"hello")
    assert found["data/0/empty"][0].mtime_ns == -1_000_000_001
    directory = found["data/0/empty dir"][0]
    assert (directory.kind, directory.mode) == (Kind.DIRECTORY, 0o700)
    top, status = found["data/0"][0], source.stat()
    assert (top.mtime_ns, top.mode) == (status.st_mtime_ns, stat.S_IMODE(status.st_mode))


def test_a_pack_that_cannot_be_written_is_no_fault_of_a_source_and_is_not_gone_on_with(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.source / "large").write_bytes(os.urandom(40 << 20))
    first = place.build().record
    (place.source / "large").write_bytes(os.urandom(40 << 20))
    add, full = PackWriter.add, iter([True])

    def add_to_full_disk(self: PackWriter, *args: Any) -> Any:
        if next(full, False):  # there is room again when it is tried once more
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return add(self, *args)

    monkeypatch.setattr(PackWriter, "add", add_to_full_disk)
    with pytest.raises(BuildError, match="No space left on device") as refused:
        place.build()
    assert str(place.source) not in refused.value.message
    assert str(place.directory) in refused.value.message
    assert [each.name for each in place.directory.glob("2*")] == [first.revision]


def test_holes_stay_holes_and_short_ones_become_zeros(place: Place) -> None:
    with (place.source / "sparse").open("wb") as file:
        file.write(b"begin")
        file.seek(10 << 20)
        file.write(b"middle" * 50_000)
        file.truncate(30 << 20)
    with (place.source / "hole").open("wb") as file:
        file.truncate(1 << 40)
    record = place.build().record
    with Revision(place.directory, record).open() as reader:
        hole = reader.find(b"data/0/hole")
        sparse = reader.find(b"data/0/sparse")
        assert hole is not None
        assert sparse is not None
        assert list(reader.chunks(hole)) == [Hole(1 << 40)]
        parts = list(reader.chunks(sparse))
    assert sum(part.length for part in parts if isinstance(part, Hole)) > 28 << 20
    whole = b"".join(bytes(part.length) if isinstance(part, Hole) else part for part in parts)
    assert whole == (place.source / "sparse").read_bytes()
    assert record.packs[0].bytes < 100_000


def test_a_file_in_very_many_pieces_keeps_its_extents_in_lists(place: Place) -> None:
    with (place.source / "pieces").open("wb") as file:
        for number in range(3000):
            file.seek(number * 128 << 10)
            file.write(b"%d" % number)
    record = place.build().record
    with Revision(place.directory, record).open() as reader:
        entry = reader.find(b"data/0/pieces")
        assert entry is not None
        assert len(entry.lists) > 1
        assert entry.extents == ()
        assert sum(extent.length for extent in reader.extents(entry)) == entry.size
        whole = b"".join(bytes(part.length) if isinstance(part, Hole) else part for part in reader.chunks(entry))
    assert whole == (place.source / "pieces").read_bytes()


def test_extended_attributes_and_acls_travel(place: Place) -> None:
    path = place.source / "file"
    path.write_text("x")
    acl = bytes.fromhex("02000000 01000600ffffffff 02000400e8030000 04000400ffffffff 10000600ffffffff 20000000ffffffff")
    os.setxattr(path, "user.note", b"\x00\xff")
    os.setxattr(path, "system.posix_acl_access", acl)
    os.setxattr(place.source, "user.of.directory", b"yes")
    os.setxattr(path, "trusted.own", b"stays here")
    os.link(path, place.source / "other name")
    found = place.read(place.build().record)
    assert found["data/0/file"][0].xattrs == ((b"system.posix_acl_access", acl), (b"user.note", b"\x00\xff"))
    assert found["data/0"][0].xattrs == ((b"user.of.directory", b"yes"),)
    names = [found[f"data/0/{name}"][0] for name in ("file", "other name")]
    assert {entry.kind for entry in names} == {Kind.FILE, Kind.HARDLINK}
    assert names[0].xattrs == names[1].xattrs


def test_owners_are_names_where_they_have_one(place: Place) -> None:
    assert os.geteuid() == 0, "giving files away needs root: run the tests as root"
    for name, uid, gid in (("named", 1, 1), ("nameless", 54321, 54322)):
        (place.source / name).touch()
        os.chown(place.source / name, uid, gid)
    found = place.read(place.build().record)
    assert (found["data/0/named"][0].owner, found["data/0/named"][0].group) == ("daemon", "daemon")
    assert (found["data/0/nameless"][0].owner, found["data/0/nameless"][0].group) == (54321, 54322)


def test_hard_links_of_two_sources_are_files_of_their_own(place: Place, tmp_path: Path) -> None:
    """Two targets may end on two filesystems."""
    (tmp_path / "other").mkdir()
    (place.source / "a").write_text("same")
    os.link(place.source / "a", tmp_path / "other" / "a")
    with place.builder() as builder:
        builder.add_tree(place.source, "data/0", contents_only=True)
        builder.add_tree(tmp_path / "other", "data/1", contents_only=True)
        found = place.read(builder.finish().record)
    assert [entry.kind for entry, _ in found.values()].count(Kind.FILE) == 2


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A directory for trees deeper than Python's own removal can follow."""
    directory = tmp_path / "deep"
    directory.mkdir()
    yield directory
    subprocess.run(["rm", "-rf", str(directory)], check=True)


def test_a_very_deep_tree_is_walked_with_few_open_directories(deep: Path) -> None:
    place = Place(deep)
    fd = os.open(place.source, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    (place.source / "e").touch()
    assert place.build().files == 2


# where it goes


def test_rsyncs_trailing_slash_decides_whether_the_directory_itself_travels(place: Place) -> None:
    (place.source / "f").touch()
    with place.builder() as builder:
        builder.add_tree(place.source, "data/0", contents_only=False)
        builder.add_tree(place.source / "f", "data/1")
        builder.add_file("data/2/renamed", place.source / "f")
        builder.add_bytes("verify/test_it.py", b"x")
        found = place.read(builder.finish().record)
    assert list(found) == [
        "data", "data/0", "data/0/source", "data/0/source/f", "data/1", "data/1/f", "data/2", "data/2/renamed",
        "verify", "verify/test_it.py",
    ]  # fmt: skip


def test_several_sources_are_merged_and_a_name_given_twice_names_both(place: Place, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for path in ("b/x", "b/z", "c"):
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        (other / path).write_text(path)
    for path in ("a", "b/y"):
        (place.source / path).parent.mkdir(parents=True, exist_ok=True)
        (place.source / path).write_text(path)

    def both() -> BuildResult:
        with place.builder() as builder:
            builder.add_tree(place.source, "data/0", contents_only=True)
            builder.add_tree(other, "data/0", contents_only=True)
            return builder.finish()

    assert [path for path in place.read(both().record) if path.count("/") > 1] == [
        "data/0/a", "data/0/b", "data/0/b/x", "data/0/b/y", "data/0/b/z", "data/0/c",
    ]  # fmt: skip
    (place.source / "c").mkdir()
    with pytest.raises(BuildError, match="comes from both") as caught:
        both()
    assert str(place.source / "c") in str(caught.value)
    assert str(other / "c") in str(caught.value)


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("*.tmp", ["a", "a/c", "a/c/d", "x.txt"]),
        ("a/*.tmp", ["a", "a/c", "a/c/d", "x.tmp", "x.txt"]),
        ("/x.*", ["a", "a/b.tmp", "a/c", "a/c/d"]),
        ("c/", ["a", "a/b.tmp", "x.tmp", "x.txt"]),
        ("x.txt/", ["a", "a/b.tmp", "a/c", "a/c/d", "x.tmp", "x.txt"]),
        ("a/**", ["a", "x.tmp", "x.txt"]),
        ("/a/*", ["a", "x.tmp", "x.txt"]),
        ("?.t[!x]p", ["a", "a/c", "a/c/d", "x.txt"]),
        ("[xb].tmp", ["a", "a/c", "a/c/d", "x.txt"]),
        ("é", ["a", "a/b.tmp", "a/c", "a/c/d", "x.tmp", "x.txt"]),
        ("/", ["a", "a/b.tmp", "a/c", "a/c/d", "x.tmp", "x.txt"]),
    ],
)
def test_patterns_leave_out_what_rsyncs_would(place: Place, pattern: str, left: list[str]) -> None:
    (place.source / "a" / "c").mkdir(parents=True)
    for path in ("a/b.tmp", "a/c/d", "x.tmp", "x.txt"):
        (place.source / path).write_text(path)
    with place.builder() as builder:
        builder.add_tree(place.source, "data/0", contents_only=True, exclude=[pattern])
        found = place.read(builder.finish().record)
    assert [path.removeprefix("data/0/") for path in found][2:] == left
    command = ["rsync", "-r", "-n", "--out-format=%n", f"--exclude={pattern}", f"{place.source}/", "/nowhere/"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert sorted({name.rstrip("/") for name in listed} - {"."}) == sorted(left)


def test_a_question_mark_stands_for_a_letter_whatever_its_bytes() -> None:
    assert Excludes(["?"]).match("é".encode(), is_directory=False)
    assert Excludes(["\udcff*"]).match(b"\xff\xfe", is_directory=False)


@pytest.mark.parametrize("at", ["", "..", "data/../x", "/", "a//b", "x\0", "a/" + "n" * 256])
def test_a_place_outside_the_content_tree_is_refused(place: Place, at: str) -> None:
    with place.builder() as builder, pytest.raises(UsageError):
        builder.add_bytes(at, b"")


# what cannot be sent


def test_special_files_are_refused_by_name_with_what_to_do(place: Place) -> None:
    assert os.geteuid() == 0, "making a device needs root: run the tests as root"
    server = socket.socket(socket.AF_UNIX)
    makers = {
        "fifo": os.mkfifo,
        "disk": lambda path: os.mknod(path, 0o600 | stat.S_IFBLK, os.makedev(7, 200)),
        "tty": lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 3)),
        "socket": lambda path: server.bind(str(path)),
    }
    for name, make in makers.items():
        make(place.source / name)
        with pytest.raises(UnsupportedFileError, match=name) as caught:
            place.build()
        assert "exclude" in (caught.value.hint or "")
        assert place.build(exclude=[name], allow_empty=True).files == 0
        (place.source / name).unlink()
    server.close()


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "a/../../x", "./.././x"])
def test_links_that_leave_the_source_are_refused_unless_asked_for(place: Place, target: str) -> None:
    (place.source / "link").symlink_to(target)
    with pytest.raises(UnsupportedFileError, match="leads out of the source") as caught:
        place.build()
    assert "outside_links: keep" in (caught.value.hint or "")
    found = place.read(place.build(outside_links="keep").record)
    assert found["data/0/link"][0].link == target.encode()


def test_links_that_stay_inside_are_sent(place: Place) -> None:
    (place.source / "a" / "b").mkdir(parents=True)
    for target in ("../../x", "../b", ".", "dangling"):
        (place.source / "a" / "b" / "link").unlink(missing_ok=True)
        (place.source / "a" / "b" / "link").symlink_to(target)
        assert place.build().record.files == 0


def test_an_empty_or_missing_source_makes_no_revision(place: Place, tmp_path: Path) -> None:
    with pytest.raises(EmptySourceError, match="holds nothing"):
        place.build()
    (place.source / "x.tmp").touch()
    with pytest.raises(EmptySourceError):
        place.build(exclude=["*.tmp"])
    with place.builder() as builder:
        with pytest.raises(EmptySourceError, match="nowhere"):
            builder.add_tree(tmp_path / "nowhere", "data/0")
        with pytest.raises(EmptySourceError):
            builder.add_file("data/0/x", tmp_path / "nowhere")
        with pytest.raises(EmptySourceError):
            builder.finish()
    assert place.left() == []
    assert place.build(exclude=["*.tmp"], allow_empty=True).changed


# sources that change


def test_a_file_that_goes_on_changing_is_named(place: Place) -> None:
    path = place.source / "log"
    path.write_bytes(random.Random(1).randbytes(24 << 20))
    done = threading.Event()

    def write() -> None:
        with path.open("ab", buffering=0) as file:
            while not done.is_set():
                file.write(b"one line more\n")
                time.sleep(0.001)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(SourceChangedError, match=str(path)):
            place.build()
    finally:
        done.set()
        writer.join()
    assert place.left() == []
    assert place.build().changed


def test_a_file_that_changes_once_is_read_again(place: Place) -> None:
    path = place.source / "large"
    path.write_bytes(random.Random(1).randbytes(24 << 20))

    def touch() -> None:
        while not place.directory.is_dir() or not place.left():
            time.sleep(0.001)
        with path.open("r+b") as file:
            file.write(b"changed")

    writer = threading.Thread(target=touch)
    writer.start()
    found = place.read(place.build().record)
    writer.join()
    assert found["data/0/large"][1] == path.read_bytes()


def walked(source: Path) -> Iterator[str]:
    tree = SourceTree(source, b"data", Excludes(()), contents_only=True)
    try:
        for item in tree.items():
            if stat.S_ISREG(item.status.st_mode):
                os.close(item.open())
            yield os.fsdecode(item.path)
    finally:
        tree.close()


def test_what_goes_away_under_the_walk_is_named(place: Place) -> None:
    for name in ("a", "b", "c/d"):
        (place.source / name).parent.mkdir(exist_ok=True)
        (place.source / name).touch()
    walk = walked(place.source)
    assert [next(walk), next(walk)] == ["data", "data/a"]
    (place.source / "b").unlink()
    with pytest.raises(SourceChangedError, match="source/b"):
        next(walk)


def test_a_directory_that_becomes_a_link_under_the_walk_is_not_followed(place: Place, tmp_path: Path) -> None:
    (place.source / "a").touch()
    (place.source / "dir").mkdir()
    (place.source / "dir" / "x").touch()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "x").touch()
    tree = SourceTree(place.source, b"data", Excludes(()), contents_only=True)
    items = {item.path: item for item in tree.items()}
    (place.source / "dir").rename(place.source / "was")
    (place.source / "dir").symlink_to(tmp_path / "secret")
    with pytest.raises(SourceChangedError):
        os.close(items[b"data/dir/x"].open())
    tree.close()


# unchanged, changed, cached


def test_an_unchanged_source_makes_no_new_revision(place: Place) -> None:
    fill(place.source, 50, 2000)
    first = place.build()
    again = place.build()
    assert (first.changed, again.changed) == (True, False)
    assert (again.record, again.record_bytes) == (first.record, first.record_bytes)
    assert (again.bytes_new, again.frames_new) == (0, 0)
    assert place.left() == [first.record.revision]


def test_settings_and_options_are_part_of_the_revision(place: Place) -> None:
    fill(place.source, 5, 2000)
    records = [
        place.build(**arguments).record
        for arguments in ({}, {"options": {"a": 1}}, {"settings": {"priority": "low"}}, {"options": {"a": 1}})
    ]
    assert len({record.manifest for record in records}) == 3
    assert records[1].manifest == records[3].manifest
    assert records[3].packs[0].bytes == 72  # all its frames are in earlier packs, the index too


def test_force_makes_a_new_revision_and_check_makes_none(place: Place) -> None:
    fill(place.source, 5, 2000)
    would = place.build(check=True)
    assert would.changed
    assert place.left() == []
    first = place.build()
    assert would.record.manifest == first.record.manifest
    forced = place.build(force=True)
    assert forced.changed
    assert forced.record.revision > first.record.revision
    assert forced.record.manifest == first.record.manifest
    assert not place.build(check=True).changed


def test_a_deleted_file_leaves_the_next_revision_but_not_the_former(place: Place) -> None:
    fill(place.source, 5, 2000)
    first = place.build().record
    (place.source / "d000" / "f00002.txt").unlink()
    second = place.build().record
    with Revision(place.directory, first).open() as old, Revision(place.directory, second).open() as new:
        changes = {path: (was is not None, now is not None) for path, was, now in diff(old, new)}
    assert changes == {b"data/0/d000": (True, True), b"data/0/d000/f00002.txt": (True, False)}


def test_one_line_in_one_of_10_000_files_sends_little(place: Place) -> None:
    fill(place.source, 10_000, 4000)
    first = place.build()
    path = place.source / "d042" / "f04242.txt"
    path.write_text(path.read_text() + "one line more\n")
    second = place.build()
    print(f"first pack {first.bytes_new}, after one line {second.bytes_new} bytes in {second.frames_new} frames")
    assert second.frames_new <= 4
    assert second.bytes_new < 150_000
    assert [pack.revision for pack in second.record.packs] == [second.record.revision, first.record.revision]
    with Revision(place.directory, first.record).open() as old, Revision(place.directory, second.record).open() as new:
        assert [change[0] for change in diff(old, new)] == [b"data/0/d042/f04242.txt"]


def bytes_read() -> int:
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise AssertionError


def test_the_cache_spares_reading_and_never_changes_the_outcome(place: Place, tmp_path: Path) -> None:
    source = place.source
    fill(source, 400, 6000)
    (source / "large").write_bytes(random.Random(3).randbytes(3_000_000))
    with (source / "sparse").open("wb") as file:
        file.seek(5 << 20)
        file.write(b"end")
    with (source / "pieces").open("wb") as file:
        for number in range(1500):
            file.seek(number * 64 << 10)
            file.write(b"%d" % number)
    os.link(source / "large", source / "zlarge")
    os.setxattr(source / "large", "user.a", b"1")
    cache = place.working.build_cache("lib")
    place.build(cache=cache)
    time.sleep(2.1)  # what changed within 2 s before a build is not remembered
    before = bytes_read()
    assert not place.build(cache=cache).changed
    assert bytes_read() - before > 5_000_000
    before = bytes_read()
    assert not place.build(cache=cache).changed
    assert bytes_read() - before < 1_000_000

    some = sorted(source.glob("d00*/*.txt"))
    moved_at_ns = some[100].stat().st_mtime_ns
    same_size = some[100].read_bytes()[::-1]
    mutations = [
        lambda: some[3].write_text("new"),
        lambda: (some[100].write_bytes(same_size), os.utime(some[100], ns=(0, moved_at_ns))),
        some[7].unlink,
        lambda: some[8].rename(source / "d000" / "renamed"),
        lambda: (source / "d002" / "added").write_bytes(b"added" * 1000),
        lambda: some[9].chmod(0o600),
        lambda: os.chown(some[10], 1, 1),
        lambda: os.setxattr(source / "large", "user.a", b"2"),
        (source / "zlarge").unlink,
        lambda: os.truncate(source / "sparse", 6 << 20),
        lambda: os.truncate(source / "pieces", 70 << 20),
        lambda: os.truncate(some[12], 300_000),
    ]
    fresh = Place(tmp_path / "fresh" if (tmp_path / "fresh").mkdir() is None else tmp_path)
    fresh.source = source
    for mutate in mutations:
        mutate()
        result = place.build(cache=cache)
        assert result.changed
        assert result.record.manifest == fresh.build(check=True).record.manifest
    with Revision(place.directory, result.record).open() as reader:
        assert reader.verify_frames() > 400


def test_what_waits_for_the_first_file_that_changed_is_bounded(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20_000):
        if number % 1000 == 0:
            (place.source / f"d{number // 1000:02}").mkdir()
        (place.source / f"d{number // 1000:02}" / f"f{number:05}").write_bytes(b"setting %d" % number)
    cache = place.working.build_cache("lib")
    time.sleep(2.1)  # what changed within 2 s before a build is not remembered
    place.build(cache=cache)
    (place.source / "d00" / "f00000").write_bytes(b"another")
    most, take = 0, Gatherer.take

    def counted(self: Gatherer, found: Any) -> None:
        nonlocal most
        take(self, found)
        most = max(most, len(self._rows))

    monkeypatch.setattr(Gatherer, "take", counted)
    result = place.build(cache=cache)
    assert (result.files, result.frames_new) == (20_000, 3)
    assert 0 < most <= MAX_GROUP_ENTRIES
    (tmp_path / "fresh").mkdir()
    fresh = Place(tmp_path / "fresh")
    fresh.source = place.source
    assert result.record.manifest == fresh.build(check=True).record.manifest


def test_a_user_of_another_name_makes_another_manifest(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.source / "a").write_bytes(b"a")
    cache = place.working.build_cache("lib")
    time.sleep(2.1)
    place.build(cache=cache)
    for module in (gather, walk):
        monkeypatch.setattr(module, "owner_name", lambda uid: f"user{uid}")
    result = place.build(cache=cache)
    assert place.read(result.record)["data/0/a"][0].owner == f"user{os.getuid()}"


@pytest.mark.parametrize("other", ["pipe", "directory", "link", "file"])
def test_what_stands_at_a_files_place_when_it_is_opened(
    place: Place, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    path = place.source / "a"
    path.write_bytes(b"before")
    opened = Item.open

    def swapped(self: Item) -> int:
        if path.is_file() and path.read_bytes() == b"before":
            path.unlink()
            {"pipe": os.mkfifo, "directory": os.mkdir, "link": lambda at: os.symlink("/etc/hostname", at),
             "file": lambda at: at.write_bytes(b"behind")}[other](path)  # fmt: skip
        return opened(self)

    monkeypatch.setattr(Item, "open", swapped)
    if other == "file":
        assert place.read(place.build().record)["data/0/a"][1] == b"behind"
    else:
        with pytest.raises(SourceChangedError, match=str(path)):
            place.build()


def test_a_cache_of_rubbish_is_only_a_slow_build(place: Place) -> None:
    fill(place.source, 30, 3000)
    cache = place.working.build_cache("lib")
    first = place.build(cache=cache)
    time.sleep(2.1)
    place.build(cache=cache)
    good = cache.read_bytes()
    assert len(good) > 1000
    choice = random.Random(2)
    for _ in range(60):
        bad = bytearray(good)
        for _ in range(3):
            bad[choice.randrange(len(bad))] = choice.randrange(256)
        cache.write_bytes(bad[: choice.randrange(len(bad))] if choice.random() < 0.3 else bad)
        result = place.build(cache=cache, force=True)
        with Revision(place.directory, result.record).open() as reader:
            reader.verify_frames()
    for rubbish in (b"", b"\xc1" * 100, os.urandom(5000)):
        cache.write_bytes(rubbish)
        assert place.build(cache=cache).record.manifest == first.record.manifest


# packs


def test_the_same_input_gives_the_same_pack(place: Place, tmp_path: Path) -> None:
    fill(place.source, 300, 5000)
    (place.source / "large").write_bytes(random.Random(3).randbytes(5_000_000))
    (tmp_path / "second").mkdir()
    second = Place(tmp_path / "second")
    second.source = place.source
    packs = []
    for each in (place, second):
        record = each.build(now=lambda: datetime(2026, 1, 1, tzinfo=UTC)).record
        packs.append((each.directory / record.revision / "DISTFILE.TED").read_bytes())
    assert packs[0] == packs[1]


@pytest.mark.parametrize("cores", [{0}, {0, 1}, {0, 1, 2, 3}], ids=len)
def test_the_pack_does_not_depend_on_who_compresses(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cores: set[int]
) -> None:
    """Where workers lag, who reads lends a hand; there is one worker at least, and two at most."""
    fill(place.source, files=40, size=500_000)
    place.build()
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other")
    other.source = place.source
    reader, has_lent, by = threading.current_thread(), threading.Event(), set[threading.Thread]()

    def lagging(frames: Sequence[tuple[bytes, bytes]], level: int) -> list[Encoded]:
        by.add(threading.current_thread())
        if threading.current_thread() is reader:
            has_lent.set()
        else:
            assert has_lent.wait(30)
        return encode_all(frames, level)

    encode_all = store._encode_all
    monkeypatch.setattr(store, "_encode_all", lagging)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    other.build()
    packs = [next(each.directory.glob("*/DISTFILE.TED")).read_bytes() for each in (place, other)]
    assert packs[0] == packs[1]
    assert reader in by
    assert len(by - {reader}) == min(max(1, len(cores) - 1), 2)


def test_a_mostly_dead_pack_is_retired(place: Place) -> None:
    choice = random.Random(4)
    for number in range(20):
        (place.source / f"f{number:02}").write_bytes(choice.randbytes(400_000))
    first = place.build().record
    for number in range(16):
        (place.source / f"f{number:02}").write_bytes(choice.randbytes(400_000))
    second = place.build()
    assert [pack.revision for pack in second.record.packs] == [second.record.revision]
    assert second.bytes_new > 20 * 400_000
    with Revision(place.directory, second.record).open() as reader:
        reader.verify_frames()
    assert first.revision != second.record.revision


def test_a_record_never_names_more_than_32_packs(place: Place) -> None:
    choice = random.Random(4)
    for number in range(40):
        (place.source / f"f{number:02}").write_bytes(choice.randbytes(300_000 + number))
        result = place.build()
    assert len(result.record.packs) == 32
    with Revision(place.directory, result.record).open() as reader:
        assert reader.verify_frames() == 42


def test_only_blocks_that_hold_what_is_needed_are_live(place: Place) -> None:
    choice = random.Random(4)
    for number in range(40):
        (place.source / f"f{number:02}").write_bytes(choice.randbytes(300_000))
    first = place.build(block_bytes=64 << 10).record
    for number in range(10, 25):
        (place.source / f"f{number:02}").write_bytes(choice.randbytes(1000))
    second = place.build().record
    live = second.packs[1]
    assert live.revision == first.revision
    assert 25 * 300_000 <= live.live_bytes < 26.5 * 300_000
    # what the record does not call live is not needed: a receiver never has it
    path = place.directory / first.revision / "DISTFILE.TED"
    data = bytearray(path.read_bytes())
    for number in range(live.blocks):
        if not any(begin <= number < begin + count for begin, count in live.live):
            data[number * live.block_bytes : (number + 1) * live.block_bytes] = bytes(live.block_bytes)
    path.write_bytes(data[: live.bytes])
    with Revision(place.directory, second).open() as reader:
        assert reader.verify_frames() == 42


def test_frames_of_a_damaged_pack_are_made_again(place: Place) -> None:
    fill(place.source, 100, 3000)
    first = place.build().record
    (place.directory / first.revision / "DISTFILE.TED").write_bytes(b"gone")
    second = place.build()
    assert second.changed
    assert [pack.revision for pack in second.record.packs] == [second.record.revision]
    with Revision(place.directory, second.record).open() as reader:
        reader.verify_frames()


# life of a build


def test_leaving_without_finish_leaves_no_trace(place: Place) -> None:
    fill(place.source, 3, 100)
    with place.builder() as builder:
        builder.add_tree(place.source, "data/0", contents_only=True)
        assert place.left()[0].endswith("_TEMP")
    assert place.left() == []


def test_two_builders_at_once_are_refused(place: Place) -> None:
    fill(place.source, 3, 100)
    with place.builder(), pytest.raises(BuildError, match=f"another build of lib is running .process {os.getpid()}."):
        place.build()
    assert place.build().changed


def test_stamps_grow_even_if_the_clock_stands_still(place: Place) -> None:
    fill(place.source, 3, 100)
    now = datetime(2026, 11, 22, 12, 54, 47, 123456, UTC)
    found = [place.build(now=lambda: now, force=True).record.revision for _ in range(3)]
    assert found == ["20261122T125447123456Z", "20261122T125447123457Z", "20261122T125447123458Z"]


BUILD = """
import sys
from pathlib import Path
from ted.content.builder import RevisionBuilder
directory, source, cache = map(Path, sys.argv[1:])
with RevisionBuilder(directory, "hq", "lib", "file", {}, {}, cache=cache) as builder:
    builder.add_tree(source, "data/0", contents_only=True)
    print("begun", flush=True)
    builder.finish(force=True)
"""


def test_a_builder_killed_at_any_time_harms_nothing(place: Place) -> None:
    fill(place.source, 300, 4000)
    (place.source / "large").write_bytes(random.Random(3).randbytes(20_000_000))
    place.build(settings={})
    arguments = [str(path) for path in (place.directory, place.source, place.working.build_cache("lib"))]
    choice = random.Random(11)
    killed = 0
    longest_s = 0.3
    for _ in range(60):
        (place.source / "new").write_bytes(choice.randbytes(8_000_000))
        with subprocess.Popen([sys.executable, "-c", BUILD, *arguments], stdout=subprocess.PIPE) as build:
            assert build.stdout is not None
            build.stdout.readline()
            begun_s = time.monotonic()
            try:
                build.wait(choice.random() * longest_s)
                longest_s = time.monotonic() - begun_s
            except subprocess.TimeoutExpired:
                build.kill()
                killed += 1
        for stamp in place.working.revisions("hq", "lib")[-2:]:
            record = place.working.record("hq", "lib", stamp)
            with Revision(place.directory, record).open() as reader:
                assert reader.verify_frames() in {306, 307}
        if killed == 12:
            break
    assert killed == 12
    place.build(settings={})
    assert not any(name.endswith("_TEMP") for name in place.left())
    assert not place.build(settings={}).changed


def test_leftovers_of_the_dead_are_removed_those_of_the_living_are_not(place: Place) -> None:
    leftover = place.directory / "20200101T000000000000Z_TEMP"
    leftover.mkdir(parents=True)
    (leftover / "DISTFILE.TED").touch()
    other = place.directory / "mine_TEMP"
    other.mkdir()
    assert place.working.clean_leftovers() == [leftover]
    with place.builder():
        assert place.working.clean_leftovers() == []
        assert len(place.left()) == 2
    assert place.left() == ["mine_TEMP"]


def test_packs_are_read_by_anything_that_reads_a_file(place: Place) -> None:
    fill(place.source, 30, 3000)
    record = place.build(block_bytes=1 << 20).record
    assert record.packs[0].block_bytes == 1 << 20
    reader = PackReader(place.directory / record.revision / "DISTFILE.TED", expected_bytes=record.packs[0].bytes)
    assert all(reader.read(digest, location) for digest, location in reader.index.items())
    reader.close()
