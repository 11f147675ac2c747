"""Laws of the listing parsers: whatever a server sends is understood whole, or refused."""

from __future__ import annotations

import calendar
import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ted.errors import BuildError
from ted_plugins.sources.listing import (
    Kind,
    Listed,
    parse_full_time,
    parse_mlsd,
    parse_mlst,
    parse_sftp,
    parse_unix,
    permissions,
    time_of_stamp,
)

PARSERS = (parse_unix, parse_sftp, parse_mlsd)
NAMES = (
    st.binary(min_size=1, max_size=255)
    .filter(lambda name: not any(c in name for c in b"/\0\r\n"))
    .filter(lambda name: name not in {b".", b".."})
)
SIZES = st.integers(0, 2**63 - 1)
STAMPS = st.sampled_from(["Jan  1 00:00", "Feb 29  2024", "Nov 26 07:14", "Dec 31  1999", "Sep  9 23:59"])
OWNERS = st.sampled_from([b"ftp", b"1000", b"domain users", b"?", b"x 12 y", b"Jan"])
MODES = st.integers(0, 0o777)


def letters(mode: int) -> bytes:
    return bytes(letter if mode >> 8 - at & 1 else ord("-") for at, letter in enumerate(b"rwxrwxrwx"))


def unix_line(kind: bytes, mode: int, owner: bytes, size: int, stamp: str, name: bytes) -> bytes:
    return b"%s%s    1 %-8s %-8s %12d %s %s" % (kind, letters(mode), owner, owner, size, stamp.encode(), name)


@given(st.sampled_from([b"-", b"d"]), MODES, OWNERS, SIZES, STAMPS, NAMES)
def test_a_unix_line_gives_back_what_was_written(
    kind: bytes, mode: int, owner: bytes, size: int, stamp: str, name: bytes
) -> None:
    listed = parse_unix(unix_line(kind, mode, owner, size, stamp, name))
    assert listed is not None
    assert (listed.name, listed.size, listed.mode, listed.stamp) == (name, size, mode, " ".join(stamp.split()))
    assert listed.kind is (Kind.FILE if kind == b"-" else Kind.DIRECTORY)


@given(NAMES, st.binary(min_size=1, max_size=300).filter(lambda text: not any(c in text for c in b"\0\r\n")))
def test_the_target_of_a_link_is_as_long_as_its_size_says(name: bytes, target: bytes) -> None:
    line = unix_line(b"l", 0o777, b"ftp", len(target), "Nov 26 07:14", name + b" -> " + target)
    assert parse_unix(line) == Listed(name, Kind.LINK, len(target), "Nov 26 07:14", mode=0o777, target=target)


@given(NAMES, SIZES, st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)), MODES)  # noqa: DTZ001
def test_a_line_of_mlsd_gives_back_what_was_written(name: bytes, size: int, at: datetime, mode: int) -> None:
    stamp = at.strftime("%Y%m%d%H%M%S").rjust(14, "0")
    line = b"Type=file;SIZE=%d;modify=%s;UNIX.mode=%04o;unique=1g2; %s" % (size, stamp.encode(), mode, name)
    seconds = calendar.timegm(at.replace(microsecond=0).timetuple())
    assert parse_mlsd(line) == Listed(name, Kind.FILE, size, stamp, seconds, mode, "1g2")
    assert parse_mlst(b" " + line, b"x") == Listed(b"x", Kind.FILE, size, stamp, seconds, mode, "1g2")


@given(st.binary(max_size=400))
def test_any_bytes_are_understood_or_refused_and_a_name_never_leaves_its_directory(line: bytes) -> None:
    for parse in PARSERS:
        refusal = None
        try:
            listed = parse(line)
        except BuildError as error:
            refusal = error
        if refusal is not None:
            assert refusal.hint
            assert "\n" not in refusal.message
            continue
        if listed is not None:
            assert not any(c in listed.name for c in b"/\0\r\n")
            assert listed.name not in {b"", b".", b".."}
            assert 0 <= listed.size < 10**19


@pytest.mark.parametrize("name", [b"../etc", b"a/b", b"/", b"a\0b", b"x" * 256, b"a\rb"])
def test_a_name_that_is_none_is_refused(name: bytes) -> None:
    for line in (unix_line(b"-", 0o644, b"ftp", 5, "Nov 26 07:14", name), b"type=file;size=5; " + name):
        with pytest.raises(BuildError, match="no file's name"):
            (parse_mlsd if line.startswith(b"type") else parse_unix)(line)


@pytest.mark.parametrize("line", [b"-rw-r--r-- 1 ftp ftp 5 Nov 26 07:14 .", b"type=dir; ..", b"type=file;size=5; .."])
def test_a_file_called_dot_is_refused(line: bytes) -> None:
    with pytest.raises(BuildError, match="no file's name"):
        (parse_mlsd if line.startswith(b"type") else parse_unix)(line)


@pytest.mark.parametrize(
    "line",
    [
        b"total 12", b"drwxr-xr-x    3 ftp      ftp          4096 Nov 26 07:14 .",
        b"drwxr-xr-x    3 ftp      ftp          4096 Nov 26  2020 ..",
    ],
)  # fmt: skip
def test_what_names_nothing_is_passed_over(line: bytes) -> None:
    assert parse_unix(line) is None
    assert parse_mlsd(b"type=cdir;modify=20200101000000; /pub") is None


@pytest.mark.parametrize(
    "line",
    [
        b"", b"11-26-26  07:14AM       <DIR>          pub", b"-rw-r--r-- 1 ftp ftp 5 Foo 26 07:14 a",
        b"-rw-r--r-- 1 ftp ftp -5 Nov 26 07:14 a", b"-rw-r--r-- 1 ftp ftp 5 Nov 26 07:14", b"size=5; a",
        b"type=file;size=-5; a", b"type=file;size=x; a", b"type=file;modify=2026; a", b"type=file", b"garbage",
        b"type=file;size=99999999999999999999; a",
    ],
)  # fmt: skip
def test_a_line_of_another_kind_is_refused_by_every_parser(line: bytes) -> None:
    for parse in PARSERS:
        with pytest.raises(BuildError, match="the server lists"):
            parse(line)


def test_a_long_line_of_blanks_is_refused_soon() -> None:
    started_s = time.monotonic()
    for line in (b"-rw-r--r-- 1 " + b" " * 8000, b"-rw-r--r-- 1 " + b"1 " * 4000, b"-rw-r--r-- 1 " + b"1" * 8000):
        with pytest.raises(BuildError):
            parse_unix(line)
    assert time.monotonic() - started_s < 1


def test_devices_and_sockets_are_of_another_kind() -> None:
    assert parse_unix(b"crw-r--r-- 1 root root 1, 3 Nov 26 07:14 null") == Listed(
        b"null", Kind.OTHER, 0, "Nov 26 07:14", mode=0o644
    )
    listed = parse_mlsd(b"type=OS.unix=chr-1/3;modify=20200101000000; null")
    assert listed is not None
    assert listed.kind is Kind.OTHER


def test_sftp_writes_what_cannot_be_printed_as_octal() -> None:
    listed = parse_sftp(b"-rw-r--r--    ? root     root            2 Nov 26 07:15 \\377\\376")
    assert listed is not None
    assert listed.name == b"\xff\xfe"


def test_links_of_mlsd_tell_their_target_where_the_server_does() -> None:
    listed = parse_mlsd(b"type=OS.unix=slink:/pub/new;size=3; old")
    assert listed is not None
    assert (listed.kind, listed.target) == (Kind.LINK, b"/pub/new")


@given(st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1)), st.integers(0, 170 * 24 * 60))  # noqa: DTZ001
def test_a_time_without_a_year_is_the_latest_there_was(now: datetime, minutes_ago: int) -> None:
    now = now.replace(tzinfo=UTC)
    at = (now - timedelta(minutes=minutes_ago)).replace(second=0, microsecond=0)
    assert time_of_stamp(at.strftime("%b %d %H:%M"), now) == int(at.timestamp())


def test_the_turn_of_the_year_and_a_leap_day_are_read_right() -> None:
    def at(stamp: str, now: str) -> str:
        return datetime.fromtimestamp(time_of_stamp(stamp, datetime.fromisoformat(now)), UTC).isoformat()

    assert at("Dec 31 23:59", "2026-01-01T00:01:00+00:00") == "2025-12-31T23:59:00+00:00"
    assert at("Jan 1 05:00", "2025-12-31T22:00:00+00:00") == "2026-01-01T05:00:00+00:00"
    assert at("Feb 29 12:00", "2027-03-01T00:00:00+00:00") == "2024-02-29T12:00:00+00:00"
    assert at("Feb 29 2024", "2027-03-01T00:00:00+00:00") == "2024-02-29T00:00:00+00:00"
    with pytest.raises(ValueError, match="no day"):
        time_of_stamp("Feb 30 12:00", datetime.now(UTC))


@pytest.mark.parametrize("text", ["", "2026", "20261301000000", "2026010100000０", "20260101000000.x"])
def test_a_full_time_is_strict(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        parse_full_time(text)


def test_permissions_let_nobody_else_write_and_carry_no_set_id() -> None:
    listed = parse_unix(b"-rwsrwsrwt 1 ftp ftp 5 Nov 26 07:14 a")
    assert listed is not None
    assert permissions(listed) == 0o755
    assert permissions(Listed(b"a", Kind.FILE)) == 0o644
    assert permissions(Listed(b"a", Kind.DIRECTORY, mode=0), directory=True) == 0o700
