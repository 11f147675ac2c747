"""Frames and packs: what is written is read back, and nothing hostile gets past the reader."""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import pytest

from ted.content.frame import CODEC_RAW, CODEC_ZSTD, MAX_FRAME_BYTES, Location, decode, encode
from ted.content.pack import MAGIC, ROW, TRAILER, DigestTable, PackReader, PackWriter
from ted.content.zstd import ZstdCompressor
from ted.errors import DigestMismatchError, FormatError, MissingContentError, RepositoryError

TEXT = b"the same words again and again\n" * 500


def write_pack(path: Path, plains: list[bytes]) -> bytes:
    writer = PackWriter(path)
    for plain in plains:
        writer.add(encode(plain))
    writer.finish()
    return path.read_bytes()


@pytest.mark.parametrize("rows_by_digest", [0, 2048])
def test_every_frame_is_read_back_and_the_index_is_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_by_digest: int
) -> None:
    """By bisecting, as in a large pack, and by the table of a small one."""
    monkeypatch.setattr("ted.content.pack._ROWS_BY_DIGEST", rows_by_digest)
    plains = [os.urandom(100 + number) + TEXT[:number] for number in range(300)]
    write_pack(tmp_path / "p", plains)
    reader = PackReader(tmp_path / "p")
    assert list(reader.index) == sorted(hashlib.sha256(plain).digest() for plain in plains)
    for plain in plains:
        digest = hashlib.sha256(plain).digest()
        assert reader.read(digest, reader.index[digest]) == plain
    assert hashlib.sha256(b"nothing").digest() not in reader.index
    reader.close()


def test_making_the_index_ends_when_it_must(tmp_path: Path) -> None:
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks > 2:
            raise InterruptedError

    with open(tmp_path / "p", "wb") as out:
        writer = PackWriter(tmp_path / "p", onto=out, check=check)
        for number in range(3 * 4096):
            writer.add(encode(b"%d" % number))
        with pytest.raises(InterruptedError):
            writer.finish()
        writer.abandon()


def test_a_pack_without_frames_is_72_bytes_and_valid(tmp_path: Path) -> None:
    assert len(write_pack(tmp_path / "p", [])) == 72
    assert len(PackReader(tmp_path / "p").index) == 0


def test_what_does_not_shrink_is_stored_raw() -> None:
    assert encode(os.urandom(5000)).codec == CODEC_RAW
    assert encode(TEXT).codec == CODEC_ZSTD
    assert encode(b"a").codec == CODEC_RAW


def test_a_frame_holds_at_most_4_mib() -> None:
    with pytest.raises(ValueError, match="4194304"):
        encode(bytes(MAX_FRAME_BYTES + 1))
    with pytest.raises(ValueError, match="1 to"):
        encode(b"")


@pytest.mark.parametrize("place", ["header", "trailer"])
def test_an_unknown_version_says_which_and_what_to_do(tmp_path: Path, place: str) -> None:
    data = bytearray(write_pack(tmp_path / "p", [TEXT]))
    struct.pack_into("<H", data, 8 if place == "header" else len(data) - 12, 7)
    (tmp_path / "p").write_bytes(data)
    with pytest.raises(FormatError, match="version 7; this ted knows version 1") as caught:
        PackReader(tmp_path / "p")
    assert "newer ted" in (caught.value.hint or "")


def test_a_file_that_is_no_pack_is_refused(tmp_path: Path) -> None:
    for data in (b"", b"x" * 71, b"x" * 4096):
        (tmp_path / "p").write_bytes(data)
        with pytest.raises(FormatError):
            PackReader(tmp_path / "p")
    with pytest.raises(MissingContentError):
        PackReader(tmp_path / "none")
    write_pack(tmp_path / "real", [TEXT])
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(MissingContentError):
        PackReader(tmp_path / "link")
    with pytest.raises(MissingContentError, match="the record says 5"):
        PackReader(tmp_path / "real", expected_bytes=5)


def test_a_pack_cut_anywhere_is_refused(tmp_path: Path) -> None:
    data = write_pack(tmp_path / "p", [TEXT, os.urandom(300)])
    for size in range(len(data)):
        (tmp_path / "p").write_bytes(data[:size])
        with pytest.raises(RepositoryError):
            PackReader(tmp_path / "p")


def test_a_flipped_byte_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    plains = [TEXT, os.urandom(300)]
    data = write_pack(tmp_path / "p", plains)
    for place in range(len(data)):
        bad = bytearray(data)
        bad[place] ^= 0x41
        (tmp_path / "p").write_bytes(bad)
        try:
            reader = PackReader(tmp_path / "p")
            read = [reader.read(digest, reader.index[digest]) for digest in reader.index]
        except RepositoryError:
            continue
        assert sorted(read) == sorted(plains)  # bytes that mean nothing: 6 of the header, 2 of the trailer
        assert 10 <= place < 16 or place in range(len(data) - 10, len(data) - 8)


def forged(path: Path, rows: list[bytes], *, count: int | None = None, offset: int | None = None) -> PackReader:
    """A pack whose index says whatever we like, with a digest that fits."""
    body = struct.pack("<8sH6x", MAGIC, 1) + TEXT
    index = b"".join(rows)
    trailer = TRAILER.pack(
        len(body) if offset is None else offset,
        len(rows) if count is None else count,
        hashlib.sha256(index).digest(), 1, MAGIC,
    )  # fmt: skip
    path.write_bytes(body + index + trailer)
    return PackReader(path)


@pytest.mark.parametrize(
    "location",
    [
        (0, len(TEXT), len(TEXT), 0),
        (16, len(TEXT) + 1, len(TEXT) + 1, 0),
        (1 << 63, len(TEXT), len(TEXT), 0),
        (16, 10, 11, 0),
        (16, 0, 0, 0),
        (16, 100, 0xFFFFFFFF, 1),
        (16, 100, MAX_FRAME_BYTES + 1, 1),
        (16, 100, 100, 1),
        (16, 100, 200, 2),
        (16, 100, 200, 77),
    ],
)
def test_a_location_that_cannot_be_is_refused_before_anything_is_read(
    tmp_path: Path, location: tuple[int, int, int, int]
) -> None:
    digest = hashlib.sha256(TEXT).digest()
    reader = forged(tmp_path / "p", [ROW.pack(digest, *location)])
    with pytest.raises(FormatError):
        reader.index[digest]


def test_rows_that_are_not_in_order_or_twice_there_are_refused(tmp_path: Path) -> None:
    rows = [ROW.pack(bytes([number]) * 32, 16, len(TEXT), len(TEXT), 0) for number in range(3)]
    for wrong in ([rows[1], rows[0], rows[2]], [rows[0], rows[1], rows[1]]):
        with pytest.raises(FormatError, match="not in order"):
            forged(tmp_path / "p", wrong).index.find(bytes([1]) * 32)


def test_a_trailer_that_does_not_fit_the_file_is_refused(tmp_path: Path) -> None:
    row = ROW.pack(hashlib.sha256(TEXT).digest(), 16, len(TEXT), len(TEXT), 0)
    for count, offset in ((0xFFFFFFFF, None), (0, None), (1, 3), (1, 1 << 63)):
        with pytest.raises(FormatError):
            forged(tmp_path / "p", [row], count=count, offset=offset)


def test_a_frame_that_inflates_beyond_what_it_declares_is_refused() -> None:
    bomb = ZstdCompressor(3).compress(bytes(200 << 20), ZstdCompressor.FLUSH_FRAME)
    location = Location(16, len(bomb), 4 << 20, CODEC_ZSTD)
    with pytest.raises(DigestMismatchError):
        decode(bomb, location, hashlib.sha256(bytes(4 << 20)).digest(), "bomb")


def test_bytes_after_a_frame_are_refused() -> None:
    packed = ZstdCompressor(3).compress(TEXT, ZstdCompressor.FLUSH_FRAME) + b"more"
    with pytest.raises(DigestMismatchError):
        decode(packed, Location(16, len(packed), len(TEXT), CODEC_ZSTD), hashlib.sha256(TEXT).digest(), "here")


def test_the_digest_table_is_exact_even_for_digests_that_begin_alike(tmp_path: Path) -> None:
    table = DigestTable(tmp_path)
    known = [hashlib.sha256(b"%d" % number).digest() for number in range(5000)]
    known += [bytes(8) + digest[8:] for digest in known[:50]]
    for digest in known:
        assert digest not in table
        table.add(digest)
    assert all(digest in table for digest in known)
    assert not any(bytes(8) + digest[8:] in table for digest in known[50:5000])
    assert len(table) == 5050
    table.close()
