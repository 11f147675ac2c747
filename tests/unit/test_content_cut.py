"""Where content is cut: frozen by vectors, and by a reference in plain Python written from docs/format.md."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ted.content.builder import RevisionBuilder
from ted.content.cut import ExtentCutter, pieces
from ted.content.entry import Extent
from ted.content.revision import Revision

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "content_cut.json").read_text())
GEAR = [int(value, 16) for value in VECTORS["gear"]]
MASK_SMALL, MASK_LARGE = 0x0000D91707537000, 0x0000D90703537000
KIB = 1024


def stream(seed: str, size: int) -> bytes:
    """Bytes that look random and are the same everywhere."""
    blocks = (hashlib.sha256(f"{seed}:{number}".encode()).digest() for number in range(-(-size // 32)))
    return b"".join(blocks)[:size]


def sample(kind: str, seed: str, size: int) -> bytes:
    if kind == "hash":
        return stream(seed, size)
    if kind == "zeros":
        return bytes(size)
    line = stream(seed, 4096).hex().encode()
    rows = (b"%08d %s\n" % (i, line[i * 37 % 4000 : i * 37 % 4000 + 60]) for i in range(size // 70 + 1))
    return b"".join(rows)[:size]


def reference_pieces(data: bytes) -> Iterator[int]:
    """FastCDC 2020 as its paper has it: 64 KiB, 256 KiB, 1 MiB, normalisation 1, two bytes a step."""
    while data:
        length = reference_cut(data)
        yield length
        data = data[length:]


def reference_cut(data: bytes) -> int:
    if len(data) <= 64 * KIB:
        return len(data)
    end = min(len(data), 1024 * KIB)
    middle = min(256 * KIB, end)
    value = 0
    for place in range(64 * KIB, end // 2 * 2, 2):
        mask = MASK_SMALL if place < middle // 2 * 2 else MASK_LARGE
        value = ((value << 2) + (GEAR[data[place]] << 1)) & (1 << 64) - 1
        if not value & (mask << 1):
            return place
        value = (value + GEAR[data[place + 1]]) & (1 << 64) - 1
        if not value & mask:
            return place + 1
    return end


def reader_of(data: bytes, sizes: Iterator[int]) -> Any:
    """A stream whose reads return as many bytes as ``sizes`` says, as a pipe would."""
    place = 0

    def read_into(buffer: memoryview) -> int:
        nonlocal place
        part = data[place : place + min(len(buffer), next(sizes))]
        buffer[: len(part)] = part
        place += len(part)
        return len(part)

    return read_into


def endless(*sizes: int) -> Iterator[int]:
    while True:
        yield from sizes


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"{case['kind']}-{case['bytes']}")
def test_larger_files_are_cut_where_the_vectors_say(case: dict[str, Any]) -> None:
    data = sample(case["kind"], case["seed"], case["bytes"])
    found = list(pieces(reader_of(data, endless(1 << 30))))
    assert [len(piece) for piece in found] == case["pieces"]
    assert b"".join(found) == data


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: f"{case['kind']}-{case['bytes']}")
def test_the_reference_in_plain_python_agrees_with_the_vectors(case: dict[str, Any]) -> None:
    data = sample(case["kind"], case["seed"], case["bytes"])
    assert list(reference_pieces(data)) == case["pieces"]


def test_cuts_do_not_depend_on_how_much_each_read_returns() -> None:
    data = stream("short reads", 9_000_000)
    whole = [len(piece) for piece in pieces(reader_of(data, endless(1 << 30)))]
    short = [len(piece) for piece in pieces(reader_of(data, endless(1, 4095, 70_001, 1_048_576)))]
    assert short == whole
    assert len(whole) > 20


def test_a_change_moves_only_the_cuts_close_to_it() -> None:
    data = stream("change", 12_000_000)
    changed = data[:5_000_000] + b"one line more\n" + data[5_000_000:]
    before = {hashlib.sha256(piece).digest() for piece in pieces(reader_of(data, endless(1 << 30)))}
    after = [hashlib.sha256(piece).digest() for piece in pieces(reader_of(changed, endless(1 << 30)))]
    assert sum(digest not in before for digest in after) <= 2


def reference_groups(files: list[tuple[bytes, int]]) -> list[list[bytes]]:
    """Section 4 of docs/format.md, word for word, for trees of small files in one directory each."""
    groups: list[list[bytes]] = []
    held: list[bytes] = []
    size = entries = 0

    def end() -> None:
        nonlocal held, size, entries
        if held:
            groups.append(held)
        held, size, entries = [], 0, 0

    for path, length in files:
        if held and (size + length > 256 * KIB or path.split(b"/")[0] != held[0].split(b"/")[0]):
            end()
        held.append(path)
        size += length
        entries += 1
        marked = hashlib.sha256(path).digest()[0] % 16 == 0
        if (marked and (size >= 64 * KIB or entries >= 256)) or entries >= 1024:
            end()
    end()
    return groups


def test_small_files_are_grouped_as_the_format_says(tmp_path: Path) -> None:
    files = [(f"data/f{number:05}".encode(), 1 + number * 7919 % 9000) for number in range(700)]
    files += [(f"verify/t{number:03}.py".encode(), 50_000) for number in range(12)]
    files += [(f"data/z{number:05}".encode(), 1) for number in range(9000)]
    with RevisionBuilder(tmp_path, "hq", "lib", "file", {}, {}) as builder:
        for path, size in files:
            builder.add_bytes(path.decode(), stream(path.decode(), size))
        record = builder.finish().record
    groups: dict[bytes, list[bytes]] = {}
    with Revision(tmp_path, record).open() as reader:
        for entry in reader.entries():
            if entry.kind == "f":
                assert entry.extents[0].frame is not None
                groups.setdefault(entry.extents[0].frame, []).append(entry.path)
    assert list(groups.values()) == reference_groups(sorted(files))


def test_the_digest_of_a_known_tree_never_changes(tmp_path: Path) -> None:
    """Whatever else changes: if this fails, no revision will find its frames in an earlier one any more."""
    with RevisionBuilder(
        tmp_path, "hq", "lib", "file", {"priority": "high"}, {"b": [1], "a": {"z": None, "y": 2.5}},
        now=lambda: datetime(2026, 11, 22, 12, 54, 47, 123456, UTC),
    ) as builder:  # fmt: skip
        for number in range(300):
            path = f"data/0/d{number % 7}/f{number:03}"
            builder.add_bytes(path, sample("text", path, number * 131 % 5000), 0o640 + number % 8, number * 10**9)
        builder.add_bytes("data/0/large", stream("large", 2_000_000))
        builder.add_bytes("verify/test_it.py", b"def test_it(): pass\n")
        record = builder.finish().record
    assert record.manifest == json.loads(
        (Path(__file__).parents[1] / "vectors" / "content_tree.json").read_text()
    )["manifest"]  # fmt: skip
    assert record.revision == "20261122T125447123456Z"


def test_extents_of_very_long_files_go_into_lists_that_a_change_leaves_alone() -> None:
    extents = [Extent(hashlib.sha256(b"%d" % number).digest(), 0, 1) for number in range(20_000)]

    def lists_of(each: list[Extent]) -> list[tuple[Extent, ...]]:
        lists: list[tuple[Extent, ...]] = []
        cutter = ExtentCutter(lambda held: lists.append(tuple(held)))
        for extent in each:
            cutter.add(extent)
        assert cutter.finish() == ()
        return lists

    before = lists_of(extents)
    assert [extent for held in before for extent in held] == extents
    assert all(256 <= len(held) <= 2048 for held in before[:-1])
    after = lists_of([*extents[:5000], Extent(None, 0, 9), *extents[5000:]])
    assert len(set(after) - set(before)) <= 2


def test_few_extents_stay_with_their_file() -> None:
    def refuse(_: list[Extent]) -> None:
        raise AssertionError

    cutter = ExtentCutter(refuse)
    extents = [Extent(bytes(32), 0, 5)] * 1024
    for extent in extents:
        cutter.add(extent)
    assert cutter.finish() == tuple(extents)
