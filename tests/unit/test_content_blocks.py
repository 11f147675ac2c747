"""Blocks: what is here is known exactly, whatever was killed when."""

from __future__ import annotations

import errno
import io
import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ted.content import durable
from ted.content.blocks import Bitmap, BlockList, PartialPack, block_bytes_for, bounded_runs
from ted.content.record import PackRef
from ted.errors import DigestMismatchError, FormatError, MissingContentError

STAMP = "20261122T125447123456Z"
BLOCK = 64 << 10


def made(tmp_path: Path, size: int = 10 * BLOCK + 77) -> tuple[bytes, PackRef, bytes]:
    """Bytes of a pack, the reference to it, its block list."""
    data = random.Random(size).randbytes(size)
    source = tmp_path / "source"
    source.write_bytes(data)
    blocks = BlockList.of_pack(source, BLOCK)
    return data, PackRef(STAMP, size, BLOCK, len(blocks), blocks.root.hex(), ((0, len(blocks)),)), blocks.digests


def block(data: bytes, number: int) -> bytes:
    return data[number * BLOCK : (number + 1) * BLOCK]


@pytest.mark.parametrize(
    ("pack_bytes", "block_bytes"),
    [(0, 64), (72, 64), (16 << 20, 128), (64 << 20, 256), (1 << 30, 1024), (1 << 34, 4096), (1 << 40, 4096)],
)
def test_blocks_grow_with_the_root_of_the_pack(pack_bytes: int, block_bytes: int) -> None:
    assert block_bytes_for(pack_bytes) == block_bytes << 10


def test_a_pack_comes_in_block_by_block_in_any_order(tmp_path: Path) -> None:
    data, ref, digests = made(tmp_path)
    pack = PartialPack.prepare(tmp_path / STAMP, ref, digests)
    assert pack.missing() == [(0, 11)]
    for number in (10, 3, 4, 0):
        assert not pack.has(number)
        pack.write(number, block(data, number))
        assert pack.has(number)
        assert pack.read(number) == block(data, number)
    assert pack.missing() == [(1, 2), (5, 5)]
    assert pack.complete([(3, 2), (10, 1)])
    assert not pack.complete()
    for number in range(11):
        pack.write(number, block(data, number))
    pack.flush()
    pack.close()
    assert (tmp_path / STAMP / "DISTFILE.TED").read_bytes() == data
    assert PartialPack(tmp_path / STAMP, ref).complete()


def test_a_block_that_is_something_else_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    data, ref, digests = made(tmp_path)
    pack = PartialPack.prepare(tmp_path / STAMP, ref, digests)
    for number, wrong in ((0, block(data, 1)), (0, block(data, 0)[:-1]), (10, block(data, 10) + b"x"), (1, b"")):
        with pytest.raises(DigestMismatchError):
            pack.write(number, wrong)
        assert not pack.has(number)
    for number in (-1, 11):
        with pytest.raises(FormatError):
            pack.write(number, b"")
    with pytest.raises(MissingContentError):
        pack.read(0)
    assert not (tmp_path / STAMP / "DISTFILE.TED").exists()


def test_a_block_list_that_is_not_the_signed_one_is_refused(tmp_path: Path) -> None:
    _, ref, digests = made(tmp_path)
    for wrong in (digests[:-32], digests + bytes(32), bytes(32) + digests[32:], b""):
        with pytest.raises(DigestMismatchError):
            PartialPack.prepare(tmp_path / STAMP, ref, wrong)
    assert not (tmp_path / STAMP).exists()


def test_without_a_block_list_nothing_is_written(tmp_path: Path) -> None:
    data, ref, _ = made(tmp_path)
    (tmp_path / STAMP).mkdir()
    with pytest.raises(MissingContentError):
        PartialPack(tmp_path / STAMP, ref).write(0, block(data, 0))
    assert list((tmp_path / STAMP).iterdir()) == []


def test_what_was_not_flushed_is_fetched_again(tmp_path: Path) -> None:
    data, ref, digests = made(tmp_path)
    pack = PartialPack.prepare(tmp_path / STAMP, ref, digests)
    pack.write(2, block(data, 2))
    pack.flush()
    pack.write(5, block(data, 5))
    pack.close()
    again = PartialPack(tmp_path / STAMP, ref)
    assert (again.has(2), again.has(5)) == (True, False)
    again.write(5, block(data, 5))
    again.flush()
    assert PartialPack(tmp_path / STAMP, ref).missing() == [(0, 2), (3, 2), (6, 5)]


def test_what_was_written_and_not_recorded_is_reclaimed_as_far_as_it_is_sound(tmp_path: Path) -> None:
    data, ref, digests = made(tmp_path)
    pack = PartialPack.prepare(tmp_path / STAMP, ref, digests)
    for number in (0, 3, 4, 10):
        pack.write(number, block(data, number))
    pack.close()  # no flush: as a kill leaves it
    with (tmp_path / STAMP / "DISTFILE.TED").open("r+b") as file:
        file.seek(4 * BLOCK + 5)
        file.write(b"torn")
    again = PartialPack(tmp_path / STAMP, ref)
    assert again.missing() == [(0, 11)]
    assert again.reclaim() == 3
    assert again.missing() == [(1, 2), (4, 6)]
    again.flush()
    again.close()
    assert PartialPack(tmp_path / STAMP, ref).missing() == [(1, 2), (4, 6)]


def test_a_pack_can_be_opened_by_others_before_its_first_block_comes(tmp_path: Path) -> None:
    _data, ref, digests = made(tmp_path)
    pack = PartialPack.prepare(tmp_path / STAMP, ref, digests)
    assert pack.reclaim() == 0
    assert not (tmp_path / STAMP / "DISTFILE.TED").exists()
    pack.make()
    assert (tmp_path / STAMP / "DISTFILE.TED").stat().st_size == ref.bytes
    assert PartialPack(tmp_path / STAMP, ref).missing() == [(0, 11)]


def test_a_partial_older_pack_is_completed_later(tmp_path: Path) -> None:
    data, whole, digests = made(tmp_path)
    ref = PackRef(whole.revision, whole.bytes, whole.block_bytes, whole.blocks, whole.root, ((0, 2), (10, 1)))
    pack = PartialPack.prepare(tmp_path / STAMP, ref, digests)
    for number in (0, 1, 10):
        pack.write(number, block(data, number))
    pack.flush()
    assert pack.complete()
    pack.close()
    later = PartialPack(tmp_path / STAMP, whole)
    assert later.missing() == [(2, 8)]
    for number in range(2, 10):
        later.write(number, block(data, number))
    later.flush()
    assert PartialPack(tmp_path / STAMP, whole).complete()


def test_a_pack_without_a_bitmap_is_whole(tmp_path: Path) -> None:
    data, ref, _ = made(tmp_path)
    (tmp_path / STAMP).mkdir()
    (tmp_path / STAMP / "DISTFILE.TED").write_bytes(data)
    pack = PartialPack(tmp_path / STAMP, ref)
    assert pack.complete()
    assert pack.read(10) == block(data, 10)
    (tmp_path / STAMP / "DISTFILE.TED").write_bytes(data[:-1])
    with pytest.raises(FormatError, match="the record says"):
        PartialPack(tmp_path / STAMP, ref)


def test_the_bitmap_is_there_before_the_pack_is(tmp_path: Path) -> None:
    """Else a kill between the two would leave a hole that reads as a whole pack."""
    data, ref, digests = made(tmp_path)
    seen: list[tuple[bool, bool]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            pack = (tmp_path / STAMP / "DISTFILE.TED").exists()
            seen.append((pack, (tmp_path / STAMP / "BITMAP.TED").exists()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    PartialPack.prepare(tmp_path / STAMP, ref, digests).write(0, block(data, 0))
    time.sleep(0.05)
    done.set()
    watcher.join()
    assert seen[-1] == (True, True)
    assert (True, False) not in seen


def test_a_bitmap_whose_pack_was_lost_promises_nothing(tmp_path: Path) -> None:
    data, ref, digests = made(tmp_path)
    pack = PartialPack.prepare(tmp_path / STAMP, ref, digests)
    pack.write(3, block(data, 3))
    pack.flush()
    pack.close()
    (tmp_path / STAMP / "DISTFILE.TED").unlink()
    again = PartialPack(tmp_path / STAMP, ref)
    assert again.missing() == [(0, 11)]
    again.write(0, block(data, 0))
    again.close()
    assert PartialPack(tmp_path / STAMP, ref).missing() == [(0, 11)]


def test_a_damaged_bitmap_counts_as_empty_and_one_of_another_pack_is_refused(tmp_path: Path) -> None:
    data, ref, digests = made(tmp_path)
    pack = PartialPack.prepare(tmp_path / STAMP, ref, digests)
    pack.write(3, block(data, 3))
    pack.flush()
    path = tmp_path / STAMP / "BITMAP.TED"
    good = path.read_bytes()
    for place in range(len(good)):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert PartialPack(tmp_path / STAMP, ref).missing() == [(0, 11)]
        path.write_bytes(good[:place])
        assert PartialPack(tmp_path / STAMP, ref).missing() == [(0, 11)]
    path.write_bytes(good)
    other = PackRef(STAMP, ref.bytes, ref.block_bytes, ref.blocks, "ab" * 32, ref.live)
    with pytest.raises(FormatError, match="another pack"):
        PartialPack(tmp_path / STAMP, other)
    path.write_bytes(good + bytes(1 << 20))
    with pytest.raises(FormatError, match="longer than"):
        PartialPack(tmp_path / STAMP, ref)


def test_recheck_finds_damage_and_asks_for_those_blocks_again(tmp_path: Path) -> None:
    data, ref, digests = made(tmp_path)
    (tmp_path / STAMP).mkdir()
    path = tmp_path / STAMP / "DISTFILE.TED"
    path.write_bytes(data[: 4 * BLOCK] + bytes(BLOCK) + data[5 * BLOCK :])
    pack = PartialPack.prepare(tmp_path / STAMP, ref, digests)
    assert pack.recheck() == [(4, 1)]
    pack.close()
    pack = PartialPack(tmp_path / STAMP, ref)
    assert pack.missing() == [(4, 1)]
    pack.write(4, block(data, 4))
    assert pack.recheck() == []
    assert path.read_bytes() == data


def test_one_thread_writes_while_others_read_what_is_there(tmp_path: Path) -> None:
    data, ref, digests = made(tmp_path, 200 * BLOCK)
    pack = PartialPack.prepare(tmp_path / STAMP, ref, digests)
    wrong: list[int] = []
    reads = [0, 0, 0]

    def read(reader: int) -> None:
        choice = random.Random(reader)
        while not pack.complete() or reads[reader] < 100:
            number = choice.randrange(200)
            if pack.has(number):
                reads[reader] += 1
                if pack.read(number) != block(data, number):
                    wrong.append(number)

    readers = [threading.Thread(target=read, args=(number,)) for number in range(3)]
    for thread in readers:
        thread.start()
    for number in random.Random(1).sample(range(200), 200):
        pack.write(number, block(data, number))
        if number % 20 == 0:
            pack.flush()
    for thread in readers:
        thread.join()
    assert wrong == []


WRITER = """
import sys
from pathlib import Path
from ted.content.blocks import PartialPack
from ted.content.record import PackRef
directory, source, size, block_bytes, blocks, root, stamp = sys.argv[1:]
ref = PackRef(stamp, int(size), int(block_bytes), int(blocks), root, ((0, int(blocks)),))
pack = PartialPack(Path(directory), ref)
with open(source, "rb") as file:
    for first, count in pack.missing():
        for number in range(first, first + count):
            file.seek(number * ref.block_bytes)
            pack.write(number, file.read(ref.block_bytes))
            if number % 7 == 0:
                pack.flush()
                print(number, flush=True)
pack.flush()
print("done", flush=True)
"""


def test_after_kill_9_every_block_that_was_promised_is_there(tmp_path: Path) -> None:
    data, ref, digests = made(tmp_path, 1500 * BLOCK)
    PartialPack.prepare(tmp_path / STAMP, ref, digests).close()
    sizes = [str(ref.bytes), str(BLOCK), str(ref.blocks)]
    arguments = [str(tmp_path / STAMP), str(tmp_path / "source"), *sizes, ref.root, STAMP]
    choice = random.Random(9)
    flushed = -1
    for _ in range(60):
        with subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(choice.randrange(1, 12)):
                line = writer.stdout.readline().strip()
                flushed = max(flushed, int(line) if line.isdigit() else flushed)
            time.sleep(choice.random() * 0.02)
            writer.kill()
            rest = writer.stdout.read().split()
        flushed = max([flushed, *(int(word) for word in rest if word.isdigit())])
        pack = PartialPack(tmp_path / STAMP, ref)
        assert all(pack.has(number) for number in range(flushed + 1))
        assert pack.recheck() == []
        if pack.complete():
            break
        pack.close()
    assert pack.complete()
    assert (tmp_path / STAMP / "DISTFILE.TED").read_bytes() == data


def test_runs_beyond_the_limit_are_joined_over_the_smallest_gaps() -> None:
    runs = [(0, 1), (3, 1), (10, 5), (16, 2), (40, 1)]
    assert bounded_runs(runs, 5) == runs
    assert bounded_runs(runs, 4) == [(0, 1), (3, 1), (10, 8), (40, 1)]
    assert bounded_runs(runs, 2) == [(0, 18), (40, 1)]
    assert bounded_runs(runs, 1) == [(0, 41)]


def test_a_bitmap_tells_runs_of_both_kinds_within_bounds() -> None:
    bitmap = Bitmap(40)
    bitmap.set_runs([(3, 20), (30, 1)])
    assert bitmap.runs() == [(3, 20), (30, 1)]
    assert bitmap.runs(held=False) == [(0, 3), (23, 7), (31, 9)]
    assert bitmap.runs([(0, 5), (20, 15)]) == [(3, 2), (20, 3), (30, 1)]
    assert bitmap.count() == 21
    assert 40 not in bitmap
    assert -1 not in bitmap


def unreadable(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Have the disk fail for these blocks, as it does for a bad sector: until they are written, the last one longer."""
    bad, pread, pwrite, ftruncate = set(numbers), os.pread, os.pwrite, os.ftruncate

    def read(fd: int, size: int, offset: int) -> bytes:
        if offset // BLOCK in bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, size, offset)

    def write(fd: int, data: bytes, offset: int) -> int:
        if len(data) % os.sysconf("SC_PAGESIZE") and offset // BLOCK in bad:  # a part of a page
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        bad.discard(offset // BLOCK)
        return pwrite(fd, data, offset)

    def truncate(fd: int, size: int) -> None:
        bad.difference_update({number for number in bad if number * BLOCK >= size})
        ftruncate(fd, size)

    for name, function in (("pread", read), ("pwrite", write), ("ftruncate", truncate)):
        monkeypatch.setattr(os, name, function)


def test_what_cannot_be_read_is_damaged_is_not_taken_up_and_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, ref, digests = made(tmp_path)
    pack = PartialPack.prepare(tmp_path / STAMP, ref, digests)
    for number in range(11):
        pack.write(number, block(data, number))
    pack.flush()
    unreadable(monkeypatch, 3, 10)
    assert pack.recheck() == [(3, 1), (10, 1)]
    assert pack.reclaim() == 0
    for number in (3, 10):
        pack.write(number, block(data, number))
    assert pack.recheck() == []
    pack.close()
    assert pack.path.read_bytes() == data


def test_a_list_that_cannot_be_read_is_replaced(tmp_path: Path) -> None:
    _, ref, digests = made(tmp_path)
    (tmp_path / STAMP).mkdir()
    (tmp_path / STAMP / "BLOCKS.TED").symlink_to("/proc/self/mem")
    PartialPack.prepare(tmp_path / STAMP, ref, digests).close()
    assert (tmp_path / STAMP / "BLOCKS.TED").read_bytes() == digests


def test_a_small_file_on_a_bad_sector_is_told_with_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "BLOCKS.TED"
    path.write_bytes(b"digests")

    class Bad(io.FileIO):
        def read(self, _size: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(durable, "open", Bad, raising=False)
    with pytest.raises(FormatError, match=r"BLOCKS\.TED: cannot be read: Input/output error"):
        durable.read_bounded(path, 100)
