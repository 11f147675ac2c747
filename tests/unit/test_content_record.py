"""The revision record: canonical, bounded, and refused whenever anything is not as it must be."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ted.content.record import MAX_RECORD_BYTES, PackRef, RevisionRecord, next_stamp
from ted.errors import FormatError

OWN, OLDER = "20261122T125447123456Z", "20261121T000000000000Z"


def record() -> RevisionRecord:
    return RevisionRecord(
        distributor="hq", distribution="dat", revision=OWN, type="file",
        settings={"priority": "high", "max_revisions": None, "platforms": {"os_family": "Debian"}},
        manifest="ab" * 32,
        packs=(
            PackRef(OWN, 200_000, 65536, 4, "cd" * 32, ((0, 4),)),
            PackRef(OLDER, 10 << 20, 65536, 160, "ef" * 32, ((0, 1), (7, 2), (158, 2))),
        ),
        files=7, content_bytes=123456, built_at=datetime(2026, 11, 22, 12, 54, 47, 5, UTC),
    )  # fmt: skip


def test_the_record_is_canonical_json_and_comes_back_equal() -> None:
    data = record().to_bytes()
    assert RevisionRecord.from_bytes(data) == record()
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()
    assert data.startswith(b'{"built_at":"2026-11-22T12:54:47.000005Z","content_bytes":123456,')


def test_live_bytes_count_the_short_last_block_as_it_is() -> None:
    own, older = record().packs
    assert own.live_bytes == 200_000
    assert (older.live_blocks, older.live_bytes) == (5, 5 * 65536)


def broken(change: Callable[[dict[str, Any]], Any]) -> bytes:
    value = json.loads(record().to_bytes())
    change(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value.pop("files"),
        lambda value: value.update(more=1),
        lambda value: value.update(files=-1),
        lambda value: value.update(files=1.0),
        lambda value: value.update(files=True),
        lambda value: value.update(distributor="../etc"),
        lambda value: value.update(distribution=".hidden"),
        lambda value: value.update(distribution="a" * 129),
        lambda value: value.update(distribution="a\n"),
        lambda value: value.update(type=None),
        lambda value: value.update(revision="20261399T125447123456Z"),
        lambda value: value.update(revision="../../../../../etc/x"),
        lambda value: value.update(manifest="AB" * 32),
        lambda value: value.update(built_at="yesterday"),
        lambda value: value.update(built_at=5),
        lambda value: value.update(built_at="2026-11-22T12:54:47Z"),
        lambda value: value.update(built_at="2026-11-22T12:54:47.5+00:00"),
        lambda value: value.update(built_at="2026-11-22T24:00:00.0Z"),
        lambda value: value.update(revision="20261122T240000000000Z"),
        lambda value: value.update(settings=[]),
        lambda value: value.update(settings={"unheard": 1}),
        lambda value: value.update(packs=[]),
        lambda value: value.update(packs=None),
        lambda value: value["packs"].reverse(),
        lambda value: value["packs"].append(value["packs"][1]),
        lambda value: value["packs"].extend([value["packs"][1]] * 40),
        lambda value: value["packs"][1].update(revision="20271122T125447123456Z"),
        lambda value: value["packs"][1].update(revision="../x"),
        lambda value: value["packs"][1].update(more=1),
        lambda value: value["packs"][0].update(live=[[0, 3]]),
        lambda value: value["packs"][0].update(bytes=71),
        lambda value: value["packs"][0].update(bytes=1 << 60),
        lambda value: value["packs"][0].update(blocks=5),
        lambda value: value["packs"][0].update(block_bytes=65537),
        lambda value: value["packs"][0].update(block_bytes=1),
        lambda value: value["packs"][0].update(root="x"),
        lambda value: value["packs"][1].update(live=[]),
        lambda value: value["packs"][1].update(live=[[0, 161]]),
        lambda value: value["packs"][1].update(live=[[160, 1]]),
        lambda value: value["packs"][1].update(live=[[5, 1], [3, 1]]),
        lambda value: value["packs"][1].update(live=[[3, 1], [4, 1]]),
        lambda value: value["packs"][1].update(live=[[3, 0]]),
        lambda value: value["packs"][1].update(live=[[3]]),
        lambda value: value["packs"][1].update(live=[[0, 1]] * 2000),
    ],
)
def test_anything_that_is_not_as_it_must_be_is_refused(change: Callable[[dict[str, Any]], Any]) -> None:
    with pytest.raises(FormatError):
        RevisionRecord.from_bytes(broken(change))


@pytest.mark.parametrize("found", [2, 0, "1", True, None])
def test_an_unknown_format_says_which_and_what_to_do(found: object) -> None:
    with pytest.raises(FormatError, match="this ted knows format 1") as caught:
        RevisionRecord.from_bytes(broken(lambda value: value.update(format=found)))
    assert "newer ted" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"format":1}', b"{}" + b" " * MAX_RECORD_BYTES,
     record().to_bytes() + b"\n", record().to_bytes().replace(b'"files":7', b'"files":7,"files":7'),
     record().to_bytes().replace(b'"priority":"high"', b'"priority":NaN')],
)  # fmt: skip
def test_bytes_that_are_no_canonical_record_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        RevisionRecord.from_bytes(data)


def test_stamps_only_ever_grow_whatever_the_clock_does() -> None:
    now = datetime(2026, 11, 22, 12, 54, 47, 123456, UTC)
    assert next_stamp(now, None) == OWN
    assert next_stamp(now, OWN) == "20261122T125447123457Z"
    assert next_stamp(now - timedelta(days=400), OWN) == "20261122T125447123457Z"
    assert next_stamp(now, "20261122T235959999999Z") == "20261123T000000000000Z"
    assert next_stamp(now + timedelta(seconds=1), OWN) == "20261122T125448123456Z"
