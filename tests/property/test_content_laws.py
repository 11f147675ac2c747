"""Laws of stored content, for whatever trees there are."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import msgpack
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ted.content.blocks import Bitmap, bounded_runs
from ted.content.builder import RevisionBuilder
from ted.content.entry import Entry, Extent, Kind, entry_from_row, pack_entry, path_problem
from ted.content.frame import Location, decode, encode
from ted.content.manifest import ManifestFrame, parse_frame, parse_index
from ted.content.record import RevisionRecord
from ted.content.retention import decide
from ted.content.revision import Hole, Revision, diff
from ted.errors import FormatError, RepositoryError

ORDINARY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
PURE = settings(max_examples=200, deadline=None)

names = st.one_of(
    st.sampled_from(
        [b"a", b"b", b"a-", b"a.b", b"A", b"-", b" ", b"\xff", b"caf\xc3\xa9", b"new\nline", b"...", b"%NAME%"]
    ),
    st.binary(min_size=1, max_size=12).filter(lambda name: path_problem(name) is None and b"/" not in name),
)
modes = st.integers(0, 0o7777)
times = st.one_of(st.integers(-(10**18), 4 * 10**18), st.just(0))
sizes = st.sampled_from([0, 1, 5, 4095, 4096, 70_000, 262_144, 262_145, 600_000])
xattrs = st.dictionaries(st.sampled_from([b"user.a", b"user.\xc3\xa9"]), st.binary(max_size=50), max_size=2)


@dataclass(frozen=True)
class File:
    seed: int
    size: int
    mode: int
    mtime_ns: int
    xattrs: dict[bytes, bytes]
    hole_bytes: int


@dataclass(frozen=True)
class Link:
    target: bytes


@dataclass(frozen=True)
class Same:
    """Another name of some file."""

    number: int


files = st.builds(File, st.integers(0, 5), sizes, modes, times, xattrs, st.sampled_from([0, 0, 0, 100_000]))
links = st.builds(Link, st.sampled_from([b"a", b"b/c", b"\xfe", b"./x"]))
leaves = st.one_of(files, files, files, links, st.builds(Same, st.integers(0, 20)))
trees = st.recursive(
    st.dictionaries(names, leaves, max_size=4),
    lambda below: st.dictionaries(names, st.one_of(leaves, below), max_size=4),
    max_leaves=12,
)
Tree = dict[bytes, object]


def content(file: File) -> bytes:
    data = hashlib.shake_128(b"%d" % file.seed).digest(file.size)
    return data if file.seed % 2 else (data[:64] * (file.size // 64 + 1))[: file.size]


def make(tree: Tree, directory: bytes, made: list[bytes]) -> None:
    for name, node in tree.items():
        path = directory + b"/" + name
        if isinstance(node, dict):
            os.mkdir(path)
            make(node, path, made)
        elif isinstance(node, Link):
            os.symlink(node.target, path)
        elif isinstance(node, Same):
            if made:
                os.link(made[node.number % len(made)], path)
        else:
            assert isinstance(node, File)
            make_file(node, path)
            made.append(path)


def make_file(file: File, path: bytes) -> None:
    with open(path, "wb") as stream:
        stream.seek(file.hole_bytes)
        stream.write(content(file))
        stream.truncate(file.hole_bytes + file.size)
    for name, value in file.xattrs.items():
        os.setxattr(path, name, value)
    os.chmod(path, file.mode)
    os.utime(path, ns=(0, file.mtime_ns))


@contextmanager
def place() -> Iterator[Path]:
    """Not ``tmp_path``: each example needs a fresh one."""
    directory = Path(tempfile.mkdtemp(prefix="ted-laws-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def seen(root: bytes) -> dict[bytes, tuple[object, ...]]:
    """What the operating system says is below ``root``: the other opinion."""
    found: dict[bytes, tuple[object, ...]] = {}
    first: dict[int, bytes] = {}
    for directory, below, there in os.walk(root):
        for name in [*below, *there]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            relative = os.path.relpath(path, root)
            if stat.S_ISLNK(status.st_mode):
                found[relative] = ("l", os.readlink(path), status.st_mtime_ns)
                continue
            attributes = {os.fsencode(each): os.getxattr(path, each) for each in os.listxattr(path)}
            kept = {each: value for each, value in attributes.items() if each.startswith(b"user.")}
            common = (stat.S_IMODE(status.st_mode), status.st_mtime_ns, tuple(sorted(kept.items())))
            if stat.S_ISDIR(status.st_mode):
                found[relative] = ("d", *common)
            else:
                with open(path, "rb") as file:
                    found[relative] = ("f", *common, file.read(), status.st_nlink, status.st_ino)
    for path in sorted(found, key=lambda each: each.split(b"/")):
        if found[path][0] == "f":
            first.setdefault(found[path][-1], path)  # type: ignore[arg-type]
            found[path] = (*found[path][:-2], first[found[path][-1]])  # type: ignore[index]
    return found


def stored(directory: Path, record: RevisionRecord) -> dict[bytes, tuple[object, ...]]:
    """What the revision says."""
    found: dict[bytes, tuple[object, ...]] = {}
    with Revision(directory, record).open() as reader:
        for entry in reader.entries(b"data/0"):
            path = entry.path.removeprefix(b"data/0").lstrip(b"/")
            common = (entry.mode, entry.mtime_ns, entry.xattrs)
            if not path:
                continue
            if entry.kind is Kind.SYMLINK:
                found[path] = ("l", entry.link, entry.mtime_ns)
            elif entry.kind is Kind.DIRECTORY:
                found[path] = ("d", *common)
            else:
                parts = reader.chunks(entry)
                data = b"".join(bytes(part.length) if isinstance(part, Hole) else part for part in parts)
                assert len(data) == entry.size
                assert entry.content_digest in {None, hashlib.sha256(data).digest()}
                first = path if entry.link is None else entry.link.removeprefix(b"data/0/")
                found[path] = ("f", *common, data, first)
    return found


def build(directory: Path, source: Path, *, earlier: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> RevisionRecord:
    with RevisionBuilder(directory, "hq", "lib", "file", {}, {}, allow_empty=True, now=lambda: earlier) as builder:
        builder.add_tree(source, "data/0", contents_only=True)
        return builder.finish().record


@ORDINARY
@given(tree=trees)
def test_what_is_read_is_what_was_there(tree: Tree) -> None:
    with place() as root:
        (root / "source").mkdir()
        make(tree, os.fsencode(root / "source"), [])
        record = build(root / "work", root / "source")
        before = seen(os.fsencode(root / "source"))
        assert stored(root / "work", record) == before
        assert record.files == sum(each[0] == "f" for each in before.values())


@ORDINARY
@given(tree=trees)
def test_the_same_tree_gives_the_same_bytes(tree: Tree) -> None:
    with place() as root:
        (root / "source").mkdir()
        make(tree, os.fsencode(root / "source"), [])
        records = [build(root / name, root / "source") for name in ("one", "two")]
        assert records[0].manifest == records[1].manifest
        packs = [
            (root / name / record.revision / "DISTFILE.TED").read_bytes()
            for name, record in zip(("one", "two"), records, strict=True)
        ]
        assert packs[0] == packs[1]
        assert build(root / "one", root / "source") == records[0]


@ORDINARY
@given(before=trees, after=trees)
def test_a_comparison_names_exactly_what_differs(before: Tree, after: Tree) -> None:
    with place() as root:
        records = []
        for number, tree in enumerate((before, after)):
            shutil.rmtree(root / "source", ignore_errors=True)
            (root / "source").mkdir()
            make(tree, os.fsencode(root / "source"), [])
            for directory, below, _ in os.walk(root / "source"):
                for path in (directory, *(os.path.join(directory, name) for name in below)):
                    if not os.path.islink(path):
                        os.utime(path, (0, 0))
            records.append(build(root / "work", root / "source", earlier=datetime(2026, 1, 1 + number, tzinfo=UTC)))
        with Revision(root / "work", records[0]).open() as old, Revision(root / "work", records[1]).open() as new:
            was = {entry.path: entry for entry in old.entries()}
            now = {entry.path: entry for entry in new.entries()}
            changes = list(diff(old, new))
            paths = [path for path, _, _ in changes]
            assert paths == sorted(paths, key=lambda path: path.split(b"/"))
            assert all((was.get(path), now.get(path)) == (left, right) for path, left, right in changes)
            same = {path for path in was.keys() & now.keys() if was[path].same_as(now[path])}
            assert set(paths) == (was.keys() | now.keys()) - same
            assert [entry for _, _, entry in diff(None, new)] == list(now.values())
        # same_as is never a false yes: what it calls the same reads the same
        left, right = (stored(root / "work", record) for record in records)
        for path in same:
            inner = path.removeprefix(b"data/0").lstrip(b"/")
            assert left.get(inner) == right.get(inner)


digests = st.binary(min_size=32, max_size=32)
extents = st.one_of(
    st.builds(Extent, digests, st.integers(0, 1000), st.integers(1, 1 << 22)),
    st.builds(Extent, st.none(), st.just(0), st.integers(1, 1 << 40)),
)
owners = st.one_of(st.sampled_from(["root", "jörg", "a b"]), st.integers(0, (1 << 32) - 1))


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    path = b"/".join(draw(st.lists(names, min_size=1, max_size=4)))
    kind = draw(st.sampled_from(Kind))
    pieces = tuple(draw(st.lists(extents, max_size=4))) if kind is Kind.FILE else ()
    link = {Kind.SYMLINK: b"../anything", Kind.HARDLINK: b"a/b"}.get(kind)
    size = sum(piece.length for piece in pieces)
    attributes = tuple(sorted(draw(xattrs).items()))
    shares_its_frame = len(pieces) == 1 and pieces[0].frame is not None
    digest = draw(st.one_of(st.none(), digests)) if shares_its_frame else None
    owner, group = draw(owners), draw(owners)
    return Entry(path, kind, draw(modes), draw(times), owner, group, size, pieces, link, digest, attributes)


@PURE
@given(entry=entries())
def test_an_entry_survives_its_row(entry: Entry) -> None:
    assert entry_from_row(msgpack.unpackb(pack_entry(entry)), "here") == entry


numbers = st.one_of(st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats())
rubbish = st.recursive(
    st.one_of(st.none(), numbers, st.text(max_size=5), st.binary(max_size=40)),
    lambda inner: st.one_of(st.lists(inner, max_size=12), st.dictionaries(st.text(max_size=5), inner, max_size=4)),
    max_leaves=25,
)


@PURE
@given(value=rubbish)
def test_rubbish_is_a_format_error_and_nothing_else(value: object) -> None:
    plain = msgpack.packb(value)
    for read in (
        lambda: entry_from_row(value, "here"),
        lambda: parse_index(plain, "here"),
        lambda: list(parse_frame(plain, ManifestFrame(b"a", bytes(32), 1), "here")),
    ):
        with pytest.raises(FormatError):
            read()


@PURE
@given(data=st.binary(max_size=300))
def test_bytes_that_are_none_of_ours_are_a_format_error(data: bytes) -> None:
    for read in (
        lambda: RevisionRecord.from_bytes(data),
        lambda: parse_index(data, "here"),
        lambda: list(parse_frame(data, ManifestFrame(b"a", bytes(32), 2), "here")),
    ):
        with pytest.raises(FormatError):
            read()


@PURE
@given(
    plain=st.binary(min_size=1, max_size=5000), repeat=st.integers(1, 20), place=st.integers(0), bit=st.integers(0, 7)
)
def test_a_frame_comes_back_and_a_flipped_bit_never_passes(plain: bytes, repeat: int, place: int, bit: int) -> None:
    frame = encode(plain * repeat)
    location = Location(16, len(frame.stored), frame.plain_bytes, frame.codec)
    assert decode(frame.stored, location, frame.digest, "here") == plain * repeat
    damaged = bytearray(frame.stored)
    damaged[place % len(damaged)] ^= 1 << bit
    try:
        assert decode(bytes(damaged), location, frame.digest, "here") == plain * repeat
    except RepositoryError:
        return
    assume(frame.codec == 1)  # a bit of zstd's header may mean nothing


runs = st.lists(st.tuples(st.integers(0, 300), st.integers(1, 30)), max_size=20)


@PURE
@given(held=runs, within=runs)
def test_runs_of_a_bitmap_are_exactly_its_bits(held: list[tuple[int, int]], within: list[tuple[int, int]]) -> None:
    bitmap = Bitmap(331)
    bitmap.set_runs(held)
    bits = {block for first, count in held for block in range(first, first + count)}
    assert {block for block in range(331) if block in bitmap} == bits
    for want, kind in ((bits, True), (set(range(331)) - bits, False)):
        found = bitmap.runs(held=kind)
        assert {block for first, count in found for block in range(first, first + count)} == want
        assert all(sum(one) < other[0] for one, other in pairwise(found))
        asked = {block for first, count in within for block in range(first, first + count)}
        part = bitmap.runs(within, held=kind)
        assert {block for first, count in part for block in range(first, first + count)} == want & asked
    assert Bitmap(331, bitmap.to_bytes()).runs() == bitmap.runs()
    assert bitmap.count() == len(bits)


@PURE
@given(held=runs, limit=st.integers(1, 8))
def test_joined_runs_cover_all_and_are_few(held: list[tuple[int, int]], limit: int) -> None:
    bitmap = Bitmap(331)
    bitmap.set_runs(held)
    exact = bitmap.runs()
    joined = bounded_runs(exact, limit)
    assert len(joined) <= limit
    assert all(sum(one) < other[0] for one, other in pairwise(joined))
    assert all(
        any(first <= start and start + count <= first + length for first, length in joined) for start, count in exact
    )


stamps = st.integers(1, 12).map(lambda number: f"202601{number:02}T000000000000Z")


@PURE
@given(
    revisions=st.dictionaries(stamps, st.sets(stamps, max_size=4), max_size=10),
    extra=st.sets(stamps), whole=st.sets(stamps), in_use=st.sets(stamps, max_size=3),
    maximum=st.one_of(st.none(), st.integers(1, 6)),
)  # fmt: skip
def test_retention_never_takes_what_a_kept_revision_needs(
    revisions: dict[str, set[str]], extra: set[str], whole: set[str], in_use: set[str], maximum: int | None
) -> None:
    refers_to = {stamp: {pack for pack in packs if pack <= stamp} | {stamp} for stamp, packs in revisions.items()}
    directories = set().union(extra, *refers_to.values())
    going = decide(refers_to, directories=directories, whole=whole, max_revisions=maximum, in_use=in_use)
    kept = refers_to.keys() - set(going.revisions)
    needed = set().union(*(refers_to[stamp] for stamp in kept))
    assert not needed & set(going.packs)
    assert not in_use & (set(going.revisions) | set(going.packs))
    assert directories == needed | set(going.packs) | (in_use & directories)
    complete = sorted(refers_to.keys() & whole)
    if complete:
        assert complete[-1] in kept
    if maximum is not None:
        assert len((kept & whole) - in_use) <= maximum
        assert set(complete[-maximum:]) <= kept
