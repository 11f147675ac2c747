"""Packages in patches: whatever they are and whoever made them, the very bytes arrive; opened where that is exact."""

from __future__ import annotations

import gzip
import io
import lzma
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patch_rig import assert_rebuilt, build, rebuild

from ted.agent.patching import Step, is_usable, most_bytes, use_patch
from ted.content.blocks import PACK_NAME, BlockList, PartialPack
from ted.content.cut import MAX_PIECE_BYTES
from ted.content.opening.codecs import Codec, Inflated, Recipe, StreamError, behaviour
from ted.content.pack import HEADER
from ted.content.patch.apply import FrameKind, PackOut, apply_patch
from ted.content.patch.create import create_patch
from ted.content.patch.kept import closed_by, make_patch, patch_ref, patches_of, waits
from ted.content.patch.opened import (
    MAX_OPENED_STREAMS,
    Closed,
    OpenedLine,
    Spool,
    closing_codecs,
    opened_bytes,
    write_opened,
)
from ted.content.patch.packages import CODECS, _lie_apart
from ted.content.patch.streams import CHUNK_BYTES, STREAMS, StreamReader, StreamWriter, chunk_bytes
from ted.content.record import RevisionRecord
from ted.content.revision import Revision
from ted.content.zstd import CompressionParameter, ZstdCompressor
from ted.errors import DigestMismatchError, FormatError, RepositoryError
from ted.trust.catalog import Catalog
from ted.trust.chain import Patch, read_chain

Files = dict[str, bytes]
Make = Callable[[Files], bytes]
WORDS = [
    f"{word}{number}".encode() for word in ("alpha ", "beta\n", "gamma; ", "\0\1", "delta=") for number in range(40)
]


def files(seed: int, changed: int = 0) -> Files:
    """Return some files of words and noise; with ``changed`` a few bytes of some are others."""
    generator = random.Random(seed)
    found = {}
    for number in range(8):
        words = b"".join(generator.choices(WORDS, k=generator.choice((3, 300, 9000))))
        found[f"pkg/part{number}.txt"] = words + generator.randbytes(200)
    edits = random.Random(changed)
    for name in edits.sample(sorted(found), 5 if changed else 0):
        at = edits.randrange(len(found[name]))
        found[name] = found[name][:at] + edits.randbytes(30) + found[name][at:]
    return found


def deflated(plain: bytes, level: int, memory: int) -> bytes:
    made = zlib.compressobj(level, zlib.DEFLATED, -15, memory)
    return made.compress(plain) + made.flush()


def zipped(given: Files, level: int = 6, *, stream: bool = False) -> bytes:
    out = io.BytesIO()
    if stream:  # sizes follow the data
        out.seekable = lambda: False  # type: ignore[method-assign]
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name, data in given.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, 1, 1, 0, 0, 0)), data, zipfile.ZIP_DEFLATED, level)
    return out.getvalue()


def tarred(given: Files) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in given.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def gzipped(plain: bytes, level: int = 9, memory: int = 8) -> bytes:
    trailer = zlib.crc32(plain).to_bytes(4, "little") + (len(plain) & 0xFFFFFFFF).to_bytes(4, "little")
    return b"\x1f\x8b\x08\x08" + bytes(6) + b"name\0" + deflated(plain, level, memory) + trailer


def zstandard(plain: bytes, level: int, *, checksum: bool, sized: bool) -> bytes:
    options = {CompressionParameter.compression_level: level, CompressionParameter.checksum_flag: int(checksum)}
    made = ZstdCompressor(options=options)
    if sized:
        made.set_pledged_input_size(len(plain))
    return made.compress(plain) + made.flush()


def updated(root: Path, one: bytes, other: bytes) -> tuple[Path, RevisionRecord, RevisionRecord]:
    """Return two revisions: a package, and its next version under another name."""
    source = root / "source"
    source.mkdir()
    (source / "readme").write_text("what stays\n")
    (source / "thing-1.2.3.pkg").write_bytes(one)
    old = build(root / "work", source)
    (source / "thing-1.2.3.pkg").unlink()
    (source / "thing-1.2.4.pkg").write_bytes(other)
    return root / "work", old, build(root / "work", source)


def sent_bytes(one: bytes, other: bytes, *, opening: str = "fast", small: bool | None = None) -> int:
    """Return what the update of a package costs (the pack where there is no patch); its very bytes came."""
    with tempfile.TemporaryDirectory() as root:
        directory, old, new = updated(Path(root), one, other)
        patch = assert_rebuilt(directory, old, new, small=small, opening=opening)
        return patch if patch is not None else new.packs[0].bytes


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32), level=st.integers(1, 9), memory=st.sampled_from((8, 9)), small=st.booleans(),
    kind=st.sampled_from(("zip", "gz")),
)  # fmt: skip
def test_what_zlib_closed_at_any_level_comes_back_and_costs_its_change(
    seed: int, level: int, memory: int, small: bool, kind: str
) -> None:
    def make(given: Files) -> bytes:
        return zipped(given, level) if kind == "zip" else gzipped(tarred(given), level, memory)

    one, other = make(files(seed)), make(files(seed, changed=seed + 1))
    assert sent_bytes(one, other, small=small) < 2500 + len(other) // 20


@pytest.mark.parametrize("level", [1, 3, 6, 12, 19])
@pytest.mark.parametrize(("checksum", "sized"), [(False, False), (True, True), (False, True)])
def test_what_zstd_closed_comes_back_and_costs_its_change(level: int, checksum: bool, sized: bool) -> None:
    def make(given: Files) -> bytes:
        return zstandard(tarred(given), level, checksum=checksum, sized=sized)

    one, other = make(files(1)), make(files(1, changed=2))
    assert sent_bytes(one, other) < 2500 + len(other) // 20


@pytest.mark.parametrize("preset", [0, 1, 3, 6, 6 | lzma.PRESET_EXTREME])
def test_what_xz_closed_is_opened_only_when_asked(preset: int) -> None:
    one, other = (lzma.compress(tarred(files(1, changed)), preset=preset) for changed in (0, 2))
    assert sent_bytes(one, other, opening="all") < 2500 + len(other) // 20
    assert sent_bytes(one, other) > len(other) // 2


def test_several_streams_behind_one_another_are_all_opened() -> None:
    def make(changed: int) -> bytes:
        return b"".join(gzipped(data) for data in files(4, changed).values())

    assert sent_bytes(make(0), make(1)) < 2500 + len(make(1)) // 20


def test_a_switched_off_distribution_opens_nothing() -> None:
    one, other = zipped(files(1)), zipped(files(1, changed=2))
    assert sent_bytes(one, other, opening="none") > len(other) // 3  # opened: less than 2500 + a twentieth


def by_program(words: list[str], suffix: str) -> Make:
    def make(given: Files) -> bytes:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / f"it{suffix}"
            path.write_bytes(tarred(given))
            return subprocess.run([*words, path.name], cwd=name, check=True, capture_output=True).stdout

    return make


def debian(compression: str) -> Make:
    def make(given: Files) -> bytes:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name) / "tree"
            for path, data in {**given, "DEBIAN/control": CONTROL}.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(data)
            for path in sorted(root.rglob("*"), reverse=True):
                os.utime(path, (0, 0))
            subprocess.run(["dpkg-deb", "--root-owner-group", f"-Z{compression}", "-b", str(root), f"{name}/it.deb"],
                           check=True, capture_output=True, env={**os.environ, "SOURCE_DATE_EPOCH": "0"})  # fmt: skip
            return Path(name, "it.deb").read_bytes()

    return make


CONTROL = b"Package: it\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\nDescription: it\n"
SPEC = """
Name: it
Version: {version}
Release: 1
Summary: it
License: MIT
BuildArch: noarch
%description
it
%files
/pkg
"""


def red_hat(payload: str) -> Make:
    def make(given: Files) -> bytes:
        with tempfile.TemporaryDirectory() as name:
            root = Path(name) / "root"
            for path, data in given.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(data)
            (Path(name) / "it.spec").write_text(SPEC.format(version=1))
            subprocess.run(["rpmbuild", "-bb", "--buildroot", str(root), "-D", f"_topdir {name}/top", "-D",
                            f"_binary_payload {payload}", "-D", "__spec_install_pre %{nil}", "-D", "__os_install_post "
                            "%{nil}", "-D", "_build_id_links none", f"{name}/it.spec"],
                           check=True, capture_output=True)  # fmt: skip
            (path,) = Path(name).rglob("*.rpm")
            return path.read_bytes()

    return make


@pytest.mark.parametrize(
    ("make", "opening"),
    [
        (debian("gzip"), "fast"), (debian("xz"), "all"), (red_hat("w9.gzdio"), "fast"), (red_hat("w6.xzdio"), "all"),
        (by_program(["xz", "-6", "-c"], ".tar"), "all"),
        (by_program(["xz", "--block-size=65536", "-c"], ".tar"), "all"),
    ],
    ids=["deb-gzip", "deb-xz", "rpm-gzip", "rpm-xz", "xz", "xz-blocks"],
)  # fmt: skip
def test_what_the_packagers_own_programs_made_is_opened(make: Make, opening: str) -> None:
    one, other = make(files(7)), make(files(7, changed=8))
    assert one != other
    assert sent_bytes(one, other, opening=opening) < 4500 + len(other) // 20


def encrypted(data: bytes) -> bytes:
    """Return a zip whose members say that they are encrypted."""
    found = bytearray(data)
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = found.find(magic)
        while place >= 0:
            found[place + at] |= 1
            place = found.find(magic, place + 4)
    return bytes(found)


def stored(given: Files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in given.items():
            archive.writestr(name, data)
    return out.getvalue()


def zip64(given: Files) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in given.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    return out.getvalue()


ODD: dict[str, Make] = {
    "truncated zip": lambda given: zipped(given)[:-3000],
    "truncated gzip": lambda given: gzipped(tarred(given))[:-500],
    "appended to zip": lambda given: zipped(given) + b"signature" * 100,
    "appended to gzip": lambda given: gzipped(tarred(given)) + b"signature" * 100,
    "before a zip": lambda given: b"#!/bin/sh\nexec python\n" + zipped(given),
    "zip64": zip64,
    "data descriptors": lambda given: zipped(given, stream=True),
    "encrypted": lambda given: encrypted(zipped(given)),
    "stored": stored,
    "empty members": lambda given: zipped(dict.fromkeys(given, b"")),
    "a zip in a zip": lambda given: zipped({"inner.zip": zipped(given), **given}),
    "gzip of nothing": lambda given: gzipped(b"") * len(given),
    "no tar": lambda given: gzipped(b"".join(given.values())),
    "wrong checksum": lambda given: gzipped(tarred(given))[:-8] + bytes(8),
    "level 0": lambda given: gzipped(tarred(given), 0),
    "fixed codes": lambda given: b"\x1f\x8b\x08" + bytes(7) + _fixed(tarred(given)) + bytes(8),
    "a head and no more": lambda given: b"PK\x03\x04" + b"".join(given.values()),
    "an rpm's lead": lambda given: b"\xed\xab\xee\xdb" + b"".join(given.values()),
    "an ar's head": lambda given: b"!<arch>\n" + b"".join(given.values()),
    "a deb by another zstd": debian("zstd"),
    "an rpm by another zstd": red_hat("w19.zstdio"),
    "gzip's own deflate": by_program(["gzip", "-n9", "-c"], ".tar"),
    "an xz's head": lambda given: b"\xfd7zXZ\0" + b"".join(given.values()),
    "a zstd's head": lambda given: b"\x28\xb5\x2f\xfd" + b"".join(given.values()),
}


def _fixed(plain: bytes) -> bytes:
    made = zlib.compressobj(6, zlib.DEFLATED, -15, 8, zlib.Z_FIXED)
    return made.compress(plain) + made.flush()


@pytest.mark.parametrize("what", ODD)
def test_what_is_odd_comes_back_all_the_same(what: str) -> None:
    sent_bytes(ODD[what](files(5)), ODD[what](files(5, changed=6)), opening="all")


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32),
    make=st.sampled_from((zipped, lambda given: gzipped(tarred(given)), lambda given: lzma.compress(tarred(given)))),
)
def test_what_was_damaged_anywhere_comes_back_as_it_is(seed: int, make: Make) -> None:
    generator = random.Random(seed)
    packages = []
    for changed in (0, 1):
        data = bytearray(make(files(11, changed)))
        for _ in range(generator.randrange(4)):
            at = generator.randrange(len(data))
            data[at : at + generator.randrange(3)] = generator.randbytes(generator.randrange(3))
        packages.append(bytes(data))
    sent_bytes(packages[0], packages[1], opening="all", small=False)


def test_an_old_package_that_ends_where_its_stream_should_begin_helps_nothing() -> None:
    plain = b"\n".join(random.Random(1).choices(WORDS, k=100_000))
    with tempfile.TemporaryDirectory() as root:
        directory, old, new = updated(Path(root), gzipped(plain)[:10], gzipped(plain))
        assert assert_rebuilt(directory, old, new, small=False) is None


def test_streams_that_share_bytes_are_told_from_those_that_lie_apart() -> None:
    first, second = Closed(0, (0, 10), GOOD, 9), Closed(10, (0, 5), GOOD, 9)
    assert _lie_apart([second, first])
    assert not _lie_apart([first, Closed(9, (0, 5), GOOD, 9)])
    assert not _lie_apart([first, first])


def test_several_packages_the_same_twice_and_in_pieces_of_the_old(tmp_path: Path) -> None:
    source, generator = tmp_path / "source", random.Random(1)
    source.mkdir()
    begin = {f"a{number}": generator.randbytes(900_000) for number in range(3)}  # the stream's beginning stays
    (source / "long.tar.gz").write_bytes(gzipped(tarred({**begin, **files(1)})))
    (source / "app-1.0.zip").write_bytes(zipped(files(2)))
    (source / "lib-1.0.zip").write_bytes(zipped(files(3)))
    old = build(tmp_path / "work", source)
    (source / "long.tar.gz").write_bytes(gzipped(tarred({**begin, **files(1, changed=9)})))
    (source / "app-1.1.zip").write_bytes(zipped(files(2, changed=9)))
    shutil.copy(source / "long.tar.gz", source / "same.tar.gz")
    (source / "lib-1.1.zip").write_bytes(zipped(files(3, changed=9)))
    new = build(tmp_path / "work", source)
    patch = assert_rebuilt(tmp_path / "work", old, new, small=None)
    assert patch is not None
    assert patch < 8000


def test_the_same_two_revisions_give_the_same_patch(tmp_path: Path) -> None:
    directory, old, new = updated(tmp_path, zipped(files(1)), zipped(files(1, changed=2)))
    made = []
    for _ in range(2):
        assert assert_rebuilt(directory, old, new, small=None)
        made.append((directory / "patch").read_bytes())
    assert made[0] == made[1]


# who closes otherwise, and who means harm


def test_the_catalog_tells_by_what_a_patch_was_proved_and_a_leaf_leaves_out_what_was_proved_otherwise(
    tmp_path: Path
) -> None:
    directory, old, new = updated(tmp_path, zipped(files(1)), zipped(files(1, changed=2)))
    assert make_patch(directory, old, new, "fast")
    (ref,) = patches_of(directory / new.revision).values()
    assert closed_by(directory, ref) == (behaviour(Codec.DEFLATE),)
    assert is_usable(Patch(ref.bytes, ref.root, closed_by(directory, ref)))
    assert is_usable(Patch(ref.bytes, ref.root))
    for text in ("deflate:00000000", "brotli:11111111", "", behaviour(Codec.DEFLATE) + "0"):
        assert not is_usable(Patch(ref.bytes, ref.root, (behaviour(Codec.ZSTD), text)))
    catalog = Catalog(tmp_path / "catalog", tmp_path / "keys")
    catalog.create("hq")
    told = Patch(ref.bytes, ref.root, closed_by(directory, ref))
    for patch in (told, told._replace(waiting_bytes=70), Patch(ref.bytes, ref.root), Patch(ref.bytes, ref.root, (), 5)):
        catalog.publish("app", {new.revision: b"record"}, {new.revision: {old.revision: patch}})
        chain = read_chain(tmp_path / "catalog", catalog.root_bytes())
        assert chain.patches("app", new.revision) == {old.revision: patch}


def test_what_is_opened_leaves_free_what_shall_stay_free(tmp_path: Path) -> None:
    directory, old, new = updated(tmp_path, zipped(files(1)), zipped(files(1, changed=2)))
    assert make_patch(directory, old, new, "fast")
    (patch,) = patches_of(directory / new.revision).values()
    ref, step = new.packs[0], Step(old, new, patch)
    blocks = BlockList.of_pack(directory / new.revision / PACK_NAME, ref.block_bytes).digests
    pack = PartialPack.prepare(tmp_path / "into", ref, blocks)
    with pytest.raises(RepositoryError, match="no room to open packages"):
        use_patch(directory, step, pack, lambda: None, min_free_bytes=1 << 60)
    assert pack.missing()
    use_patch(directory, step, pack, lambda: None, min_free_bytes=1)
    assert pack.complete()
    pack.close()


def test_room_is_counted_for_all_that_a_chain_of_patches_has_on_the_disk(tmp_path: Path) -> None:
    directory, old, new = updated(tmp_path, zipped(files(1)), zipped(files(1, changed=2)))
    assert make_patch(directory, old, new, "fast")
    (patch,) = patches_of(directory / new.revision).values()
    waiting_bytes = waits(directory, patch)
    assert waiting_bytes > len(zipped(files(1)))  # what the package holds, opened
    place, away = directory / new.revision, tmp_path / "away"
    place.rename(away)
    step = Step(old, new, patch, waiting_bytes)
    assert most_bytes(directory, new, []) == new.packs[0].bytes
    assert most_bytes(directory, new, [step]) == patch.bytes + new.packs[0].bytes + waiting_bytes
    # a pack between is whole while it serves, though the newest revision needs next to nothing of it
    newest = replace(new, revision="29990101T000000Z", packs=(replace(new.packs[0], revision="29990101T000000Z"),))
    last = Step(new, newest, replace(patch, revision="29990101T000000Z/PATCH-x"), 5)
    both = 2 * (patch.bytes + new.packs[0].bytes)
    assert most_bytes(directory, newest, [step, last]) == max(both + 5, both // 2 + waiting_bytes)



@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: mounting needs root")
def test_what_is_opened_takes_half_of_what_is_free_at_most(tmp_path: Path) -> None:
    def parts(first: bytes) -> Files:
        return {f"part{number}": first + b"".join(b"%d of %d\n" % (each, number) for each in range(400_000))
                for number in range(3)}  # fmt: skip

    source, disk = tmp_path / "source", tmp_path / "work"
    source.mkdir()
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], check=True)
    try:
        (source / "app.zip").write_bytes(zipped(parts(b"old")))  # 15 MB opened, a tenth as it is
        old = build(disk, source)
        (source / "app.zip").write_bytes(zipped(parts(b"new")))
        new = build(disk, source)
        with Revision(disk, old).open() as before, Revision(disk, new).open() as after:
            assert create_patch(before, after, disk / "patch", small=False)
        patch = StreamReader(disk / "patch")
        assert 0 < opened_bytes(patch) < 32 << 18
        patch.close()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


class EndedError(Exception):
    """What a check raises."""


class Checked(PackOut):
    """Takes a pack, and notes after how many bytes each check came; the check number ``last`` ends the work."""

    def __init__(self, last: int = 1 << 60) -> None:
        self.data = bytearray()
        self.checks: list[int] = []
        self._last = last

    def write(self, data: bytes, /) -> None:
        self.data += data

    def read(self, offset: int, count: int) -> bytes:
        return bytes(self.data[offset : offset + count])

    def check(self) -> None:
        self.checks.append(len(self.data))
        if len(self.checks) > self._last:
            raise EndedError


def test_what_applies_a_patch_is_asked_again_and_again_while_nothing_comes_out(tmp_path: Path) -> None:
    lines = b"".join(b"line %d of a text\n" % number for number in range(200_000))  # 4 MB, 15 pieces
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3000):
        (source / f"empty{number}").touch()
    (source / "text.gz").write_bytes(gzipped(lines))
    old = build(tmp_path / "work", source)
    for number in range(3000):
        os.utime(source / f"empty{number}", ns=(number, number))
    (source / "text.gz").write_bytes(gzipped(b"first" + lines))
    new = build(tmp_path / "work", source)
    assert assert_rebuilt(tmp_path / "work", old, new, small=False)
    with Revision(tmp_path / "work", old).open() as before:
        out = Checked()
        apply_patch(tmp_path / "work" / "patch", before, out, out.check)
        assert bytes(out.data) == (tmp_path / "work" / new.revision / PACK_NAME).read_bytes()
        silent = Counter(out.checks)
        assert silent[0] + silent[HEADER.size] > 3000 + 15 + 15  # old entries; what is opened; what is made again
        assert sum(count > 300 for count in silent.values()) > 2  # each manifest frame, entry by entry
        for last in range(1, len(out.checks), len(out.checks) // 10):
            ended = Checked(last)
            with pytest.raises(EndedError):
                apply_patch(tmp_path / "work" / "patch", before, ended, ended.check)
            assert len(ended.checks) == last + 1  # not once more: what ends it is not taken for a fault of the patch


def test_a_patch_that_opens_nothing_names_no_compressor(tmp_path: Path) -> None:
    directory, old, new = updated(tmp_path, b"text %d\n" * 9000, b"text %d\n" * 4000 + b"x" + b"text %d\n" * 5000)
    assert make_patch(directory, old, new, "fast")
    (ref,) = patches_of(directory / new.revision).values()
    assert closed_by(directory, ref) == ()


OTHER_ZLIB = """
import zlib
plain = zlib.compressobj
zlib.compressobj = lambda level, method, wbits, memory: plain(level, method, wbits, memory - 3)
"""
RECEIVE = """
import sys
from pathlib import Path
from ted.content.blocks import BlockList, PartialPack
from ted.content.patch.apply import apply_patch
from ted.content.patch.kept import RebuiltPack
from ted.content.revision import Revision
from ted.content.working import read_record, record_stamps
from ted.errors import DigestMismatchError
directory = Path(sys.argv[1])
old, new = (read_record(directory / stamp)[0] for stamp in record_stamps(directory))
ref = new.packs[0]
blocks = BlockList.of_pack(directory / new.revision / "DISTFILE.TED", ref.block_bytes).digests
pack = PartialPack.prepare(directory / "into", ref, blocks)
with Revision(directory, old).open() as before:
    try:
        apply_patch(directory / "patch", before, RebuiltPack(pack))
    except DigestMismatchError as error:
        print("given up:", error.message)
pack.flush()
"""


def test_a_machine_whose_zlib_gives_other_bytes_gives_up_and_keeps_what_is_right(tmp_path: Path) -> None:
    directory, old, new = updated(tmp_path, zipped(files(1)), zipped(files(1, changed=2)))
    assert assert_rebuilt(directory, old, new, small=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "sitecustomize.py").write_text(OTHER_ZLIB)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "other")}
    done = subprocess.run([sys.executable, "-c", RECEIVE, str(directory)], env=environment, check=True,
                          capture_output=True, text=True)  # fmt: skip
    assert "given up" in done.stdout
    pack, truth = PartialPack(directory / "into", new.packs[0]), (directory / new.revision / PACK_NAME).read_bytes()
    assert not pack.complete()
    for block in range(new.packs[0].blocks):
        if pack.has(block):
            start = block * new.packs[0].block_bytes
            assert pack.read(block) == truth[start : start + pack.block_size(block)]


def told(closed: list[Closed], opened: list[tuple[int, int, Codec]], plain_bytes: int) -> Callable[..., None]:
    """Return what tells these instead of what was opened."""

    def write(out: StreamWriter, line: OpenedLine, _: object) -> None:
        del line
        write_opened(out, cast("OpenedLine", SimpleNamespace(opened=opened, opened_bytes=plain_bytes)), closed)

    return write


GOOD = Recipe(Codec.DEFLATE, 6, 8)
HOSTILE: dict[str, tuple[list[Closed], list[tuple[int, int, Codec]], int]] = {
    "more than may be opened": ([], [(0, 1, Codec.DEFLATE)], 1 << 34),
    "a place before the line": ([], [(-5, 1, Codec.DEFLATE)], 10),
    "a place behind the line": ([], [(1 << 40, 1, Codec.DEFLATE)], 10),
    "no stream there": ([], [(3, 1, Codec.ZSTD)], 10),
    "level 99": ([Closed(0, (0, 100), Recipe(Codec.DEFLATE, 99, 8), 100)], [], 0),
    "memory of gigabytes": ([Closed(0, (0, 100), Recipe(Codec.LZMA2, 9, 1), 100)], [], 0),
    "level of zstd beyond": ([Closed(0, (0, 100), Recipe(Codec.ZSTD, 22, 0), 100)], [], 0),
    "nothing kept": ([Closed(0, (100, 0), GOOD, 100)], [], 0),
    "longer than the pack": ([Closed(0, (0, 1 << 40), GOOD, 100)], [], 0),
    "a bomb": ([Closed(0, (0, 100), GOOD, 1 << 40)], [], 0),
    "comes out shorter": ([Closed(0, (0, 4000), GOOD, 10)], [], 0),
    "comes out longer": ([Closed(0, (0, 10), GOOD, 4000)], [], 0),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_patch_is_refused(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, old, new = updated(tmp_path, zipped(files(1)), zipped(files(1, changed=2)))
    monkeypatch.setattr("ted.content.patch.create.write_opened", told(*HOSTILE[what]))
    monkeypatch.setattr("ted.content.patch.create._rebuilds", lambda *_: True)
    with Revision(directory, old).open() as before, Revision(directory, new).open() as after:
        size = create_patch(before, after, directory / "patch", small=False)
    assert size is not None
    with pytest.raises((FormatError, DigestMismatchError)):
        rebuild(directory, directory / "patch", old, new, directory / "into")


def test_an_old_stream_that_inflates_to_more_than_told_ends_there(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000)
    spool.add(bytes(1000))
    with pytest.raises(FormatError, match="more than was declared"):
        spool.add(b"x")
    spool.close()


def test_a_patch_that_nobody_thought_of_is_of_no_use_and_no_more(tmp_path: Path) -> None:
    directory, old, new = updated(tmp_path, zipped(files(1)), zipped(files(1, changed=2)))
    nested: dict[str, object] = {}
    for _ in range(500):
        nested = {"a": nested}
    head = msgpack.packb([bytes.fromhex(old.manifest), 3, [], ["file", nested, {}]])
    out = StreamWriter(tmp_path)
    out.number("head", len(head))
    out.data("head", head)
    out.data("index", bytes(3))
    out.data("program", bytes((5 + FrameKind.INDEX, 0)))
    out.data("opened", bytes(3))
    patch = patch_ref(new.revision, old.revision, 1000, "")
    (directory / patch.revision).mkdir()
    out.finish(directory / patch.revision / PACK_NAME, small=False)
    out.close()
    ref = new.packs[0]
    blocks = BlockList.of_pack(directory / new.revision / PACK_NAME, ref.block_bytes).digests
    pack = PartialPack.prepare(tmp_path / "into", ref, blocks)
    with pytest.raises(RepositoryError):
        use_patch(directory, Step(old, new, patch), pack, lambda: None, min_free_bytes=None)
    pack.close()


def test_all_runs_of_a_patch_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ted.content.patch.opened._MAX_RUNS", 10)
    closed = [Closed(place, (1, 2) * 3, GOOD, 9) for place in (0, 6)]
    for number in (1, 2):
        out = StreamWriter(tmp_path)
        told(closed[:number], [], 0)(out, cast("OpenedLine", None), None)
        out.finish(tmp_path / f"patch{number}", small=False)
    assert closing_codecs(tmp_path / "patch1") == {Codec.DEFLATE}
    with pytest.raises(FormatError, match="too many runs"):
        closing_codecs(tmp_path / "patch2")


def a_patch_of_the_most_of_everything(path: Path, old: RevisionRecord) -> None:
    """Write a patch that has of everything as much as a reader believes, and reads of every stream."""
    out = StreamWriter(path.parent)
    empty = msgpack.packb([[]] * 260_000)
    head = msgpack.packb([bytes.fromhex(old.manifest), 19, [], ["file", {"x": msgpack.unpackb(empty)}, {}]])
    out.number("head", len(head))
    out.data("head", head)
    for number in (0, 0, 1, 1 << 1 | 1, 0, 0, 0):  # one new manifest frame, of one entry, in this pack
        out.number("index", number)
    kinds = len(FrameKind)
    large = 40
    rest, runs = (1 << 22) - large - 3, (1 << 19) - 5
    for count, kind in (large, FrameKind.CONTENT), (1, FrameKind.LIST), (1, FrameKind.MANIFEST), (1, FrameKind.CARRIED):
        out.number("program", count * kinds + kind)
    out.data("program", bytes((kinds,)) * runs)
    out.number("program", (rest - runs) * kinds)
    out.number("program", 0)
    for _ in range(large):
        out.number("sizes", MAX_PIECE_BYTES)
    out.data("sizes", b"\1" * rest)
    closed = [Closed(large * MAX_PIECE_BYTES + number, (0, 1), GOOD, 60_000) for number in range(MAX_OPENED_STREAMS)]
    write_opened(out, cast("OpenedLine", SimpleNamespace(opened=[], opened_bytes=0)), closed)
    fields = msgpack.packb([0o644, ["root", "root"], ["f", None], []])
    out.number("gaps", 64)  # literals, a copy of ten bytes that differ, and literals
    out.number("gaps", 1 << 40)
    out.data("lengths", bytes((10 << 1 | 1, 2)))
    out.data("places", bytes(2))
    out.data("runs", bytes((9, 9)))
    out.data("ops", b"\1")
    out.data("flags", b"\xff")
    out.data("paths", b"\0\3new")
    out.data("mtimes", b"\2")
    out.data("file_sizes", b"\2")
    out.number("fields", len(fields))
    out.data("fields", fields)
    out.data("extents", bytes((1 << 1, 2 << 2, 0, 1)))  # one extent: the first new frame, from 0 on, one byte
    out.data("lists", bytes((1, 3, 1)))  # one extent: a hole of a byte
    for name in STREAMS:
        if name not in {"program", "sizes", "opened", "head", "index"}:
            out.data(name, b"\1" * chunk_bytes(name) * (3 if name == "literals" else 1))
    out.finish(path, small=False)
    out.close()


APPLY = """
import sys
from pathlib import Path
from ted.content.patch import streams
from ted.content.patch.apply import PackOut, apply_patch
from ted.content.revision import Revision
from ted.content.working import read_record, record_stamps
from ted.errors import RepositoryError
directory = Path(sys.argv[1])
class Out(PackOut):
    def __init__(self):
        self.file = open(directory / "out", "w+b", buffering=0)
    def write(self, data):
        self.file.write(data)
    def read(self, offset, count):
        import os
        return os.pread(self.file.fileno(), count, offset)
loaded = set()
load = streams._Stream._next
streams._Stream._next = lambda self: (loaded.add(self._name), load(self))[1]
old = read_record(directory / record_stamps(directory)[0])[0]
with Revision(directory, old).open() as before:
    try:
        apply_patch(directory / "patch", before, Out())
    except RepositoryError as error:
        print(error.message)
print(sorted(set(streams.STREAMS) - loaded))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.long
def test_a_patch_with_the_most_of_everything_stays_within_the_memory(tmp_path: Path) -> None:
    directory, old, _ = updated(tmp_path, random.Random(1).randbytes(100), b"x")
    a_patch_of_the_most_of_everything(directory / "patch", old)
    done = subprocess.run([sys.executable, "-c", APPLY, str(directory)], capture_output=True, text=True, check=True)
    said, unread, peak_kib = done.stdout.splitlines()
    assert "no pack holds the frame" in said, "it did not come as far as the frame that is carried"
    assert unread == "[]"
    assert int(peak_kib) < 256 << 10


def test_what_a_patch_has_too_much_of_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = tmp_path / "paths", tmp_path / "chunks", tmp_path / "streams"
    outs = [StreamWriter(tmp_path) for _ in paths]
    outs[0].data("paths", random.Random(1).randbytes(CHUNK_BYTES + 1))
    for name in STREAMS:
        outs[1].data(name, b"x")
    closed = [Closed(number, (0, 1), GOOD, 1) for number in range(MAX_OPENED_STREAMS + 1)]
    told(closed, [], 0)(outs[2], cast("OpenedLine", None), None)
    for out, path in zip(outs, paths, strict=True):
        out.finish(path, small=False)
        out.close()
    monkeypatch.setattr("ted.content.patch.streams.MAX_CHUNKS", len(STREAMS))
    StreamReader(paths[1]).close()
    monkeypatch.setattr("ted.content.patch.streams.MAX_CHUNKS", len(STREAMS) - 1)
    with pytest.raises(FormatError, match="more chunks"):
        StreamReader(paths[1])
    monkeypatch.setattr("ted.content.patch.streams.CHUNK_BYTES", CHUNK_BYTES - 1)
    with pytest.raises(FormatError, match="a chunk that cannot be"):
        StreamReader(paths[0])
    with pytest.raises(FormatError, match="more than may be closed"):
        closing_codecs(paths[2])


def test_a_stream_of_next_to_nothing_is_no_endless_work() -> None:
    empty_blocks = b"\0\0\0\xff\xff"

    def read(place: int, count: int) -> bytes:
        return (empty_blocks * (count // 5 + 2))[place % 5 :][:count]

    with pytest.raises(StreamError, match="next to nothing"):
        for _ in Inflated(Codec.DEFLATE, read, 0):
            pass


def test_a_damaged_patch_with_packages_gives_an_error_and_no_false_block(tmp_path: Path) -> None:
    directory, old, new = updated(tmp_path, zipped(files(1)), zipped(files(1, changed=2)))
    assert assert_rebuilt(directory, old, new, small=True)
    sound, generator = (directory / "patch").read_bytes(), random.Random(1)
    truth = (directory / new.revision / PACK_NAME).read_bytes()
    for number in range(80):
        data = bytearray(sound)
        data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
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


MEASURED = """
import sys
from pathlib import Path
from ted.content.blocks import BlockList, PartialPack
from ted.content.patch.apply import apply_patch
from ted.content.patch.create import create_patch
from ted.content.patch.kept import RebuiltPack
from ted.content.patch.packages import CODECS
from ted.content.revision import Revision
from ted.content.working import read_record, record_stamps
directory, what = Path(sys.argv[1]), sys.argv[2]
old, new = (read_record(directory / stamp)[0] for stamp in record_stamps(directory))
with Revision(directory, old).open() as before, Revision(directory, new).open() as after:
    if what == "create":
        assert create_patch(before, after, directory / "patch", small=None, codecs=CODECS["all"])
    else:
        ref = new.packs[0]
        blocks = BlockList.of_pack(directory / new.revision / "DISTFILE.TED", ref.block_bytes).digests
        apply_patch(directory / "patch", before, RebuiltPack(PartialPack.prepare(directory / "into", ref, blocks)))
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.long
def test_memory_stays_bounded_however_long_a_stream_is(tmp_path: Path) -> None:
    lines = b"".join(b"line %d of a long text that packs well\n" % number for number in range(20_000))

    def make(path: Path, changed: bytes) -> None:
        with gzip.GzipFile(path, "wb", 1, mtime=0) as file:
            for number in range(20):  # 160 MB
                file.write(lines if number % 10 else lines.replace(b"line 77", changed))
                file.write(bytes(7_500_000))

    source = tmp_path / "source"
    source.mkdir()
    make(source / "log-1.0.gz", b"line 77")
    (source / "it.tar.xz").write_bytes(lzma.compress(lines[: 1 << 20], preset=6))
    build(tmp_path / "work", source)
    make(source / "log-1.0.gz", b"lane 77")
    (source / "it.tar.xz").write_bytes(lzma.compress(b"more" + lines[: 1 << 20], preset=6))
    build(tmp_path / "work", source)
    for what in ("create", "apply"):
        command = [sys.executable, "-c", textwrap.dedent(MEASURED), str(tmp_path / "work"), what]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert int(done.stdout) < 256 << 10, what
    assert (tmp_path / "work" / "patch").stat().st_size < 30_000


def test_codecs_that_may_be_opened_have_names() -> None:
    assert CODECS["none"] < CODECS["fast"] < CODECS["all"] == frozenset(Codec)
