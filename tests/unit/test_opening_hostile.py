"""Packages with absurd numbers in them: they are not opened, and what looks at them stays small."""

from __future__ import annotations

import io
import struct
import tarfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from ted.content.opening.archives import files_in
from ted.content.opening.codecs import Read
from ted.content.opening.containers import MAX_STREAMS, container

MIB = 1 << 20


def reads(data: bytes) -> Read:
    view = memoryview(data)
    return lambda place, count: bytes(view[place : place + count])


@contextmanager
def memory_below(limit_bytes: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit_bytes
    finally:
        tracemalloc.stop()


def zip_of(count: int) -> bytes:
    """Return a zip file whose directory has an entry of one name again and again."""
    local = struct.pack("<4s5H3I2H", b"PK\3\4", 20, 0, 8, 0, 0, 0, 2, 0, 1, 0) + b"n" + b"\3\0"
    entry = struct.pack("<4s6H3I5H2I", b"PK\1\2", 20, 20, 0, 8, 0, 0, 0, 2, 0, 1, 0, 0, 0, 0, 0, 0) + b"n"
    told = min(count, 7)  # the end tells fewer
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, told, told, len(entry) * count, len(local), 0)
    return local + entry * count + end


def test_a_zip_with_more_members_than_are_opened_is_closed_before_they_are_listed() -> None:
    data = zip_of(4 * MAX_STREAMS)
    with memory_below(32 * MIB):
        assert container(reads(data), len(data)) is None


def tar_of(*members: tuple[str, bytes, bytes]) -> bytes:
    """Return a tar archive of (name, kind, data)."""
    out = io.BytesIO()
    for name, kind, data in members:
        info = tarfile.TarInfo(name)
        info.type, info.size = kind, len(data)
        out.write(info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512))
    return out.getvalue() + bytes(1024)


def pax(number: int, count: int) -> bytes:
    records = b""
    for each in range(count):
        body = b" key%d.%d=%s\n" % (number, each, b"v" * 980)
        records += b"%d%s" % (len(body) + 4, body) if len(body) + 4 > 999 else b"%d%s" % (len(body) + 3, body)
    return records


def sparse_without_end(blocks: int) -> bytes:
    """Return a header of the old GNU form whose list of holes goes on for ``blocks``."""
    info = tarfile.TarInfo("sparse")
    info.type = tarfile.GNUTYPE_SPARSE
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[482] = 1
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    block = (b"%011o\0" % 1) * 42 + b"\1" + bytes(7)
    return bytes(head) + block * blocks


TAR: dict[str, Callable[[], bytes]] = {
    "settings for all that follow": lambda: tar_of(
        *[entry for number in range(64)
          for entry in (("g", tarfile.XGLTYPE, pax(number, 500)), (f"file{number}", tarfile.REGTYPE, b""))]),
    "a list of holes without end": lambda: tar_of(("first", tarfile.REGTYPE, b""))[:512] + sparse_without_end(20_000),
    "headers before headers": lambda: tar_of(
        ("first", tarfile.REGTYPE, b""), *[("x", tarfile.XHDTYPE, pax(n, 700)) for n in range(80)]),
}  # fmt: skip


@pytest.mark.parametrize("what", TAR)
def test_a_tar_that_tells_too_much_has_no_more_files_from_there_on(what: str) -> None:
    data = TAR[what]()
    assert len(data) > 9 * MIB
    with memory_below(8 * MIB):
        marks = list(files_in(reads(data), len(data)))
    assert len(marks) == (64 if "settings" in what else 1)


def test_names_of_an_archive_are_bounded_together() -> None:
    long = b"d/" * 2000
    header = b"070701" + b"0" * 48 + b"%08x" % 0 + b"0" * 32 + b"%08x" % (len(long) + 1) + b"0" * 8
    member = header + long + b"\0" + bytes(-(len(header) + len(long) + 1) % 4)
    count = (40 << 20) // len(member)
    data = member * count
    assert 4000 < sum(1 for _ in files_in(reads(data), len(data))) < count
