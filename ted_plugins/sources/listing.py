"""What a server says about the files of a directory: the lines of MLSD, of a Unix style LIST, and of ``sftp``'s ls.

Rules:
 * A line that is not understood is an error: what is skipped in silence would be missing on every subscriber.
 * A name is one component: never empty, ``.`` or ``..``, never with a slash, a NUL or the end of a line in it.
 * Names are bytes, as the server has them.
 * How the time is written (``stamp``) is kept as it is: it tells whether a file changed, in whatever zone the server
   lives. ``modified_at`` is there only where the server gave it in full and in UTC.
"""

from __future__ import annotations

import re
import stat
from calendar import timegm
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum

from ted.errors import BuildError

MAX_LINE_BYTES = 8 * 1024
_MAX_NAME_BYTES = 255
_MAX_SIZE_BYTES = (1 << 63) - 1


class Kind(Enum):
    """What a name in a listing is."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "link"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Listed:
    """One name in a directory.

    ``size`` is in bytes and of a file; ``modified_at`` in seconds since 1970; ``unique`` is the same wherever the
    server shows the same thing under another path; ``target`` is where a link leads.
    """

    name: bytes
    kind: Kind
    size: int = 0
    stamp: str = ""
    modified_at: int | None = None
    mode: int | None = None
    unique: str | None = None
    target: bytes | None = None


Parser = Callable[[bytes], Listed | None]
"""Reads one line; ``None`` for one that names nothing (the directory itself, a sum)."""

_UNIX = re.compile(
    rb"(?P<kind>[-dlbcpsD])(?P<mode>[-rwxsStTl]{9})[.+@]? +"
    rb".{1,300}? +(?:(?P<size>[0-9]{1,19})|[0-9]{1,9}, *[0-9]{1,9}) +"
    rb"(?P<stamp>(?P<month>[A-Z][a-z]{2}) +(?P<day>[0-9]{1,2}) +(?:[0-9]{1,2}:[0-9]{2}|[0-9]{4})) (?P<name>.+)",
    re.DOTALL,
)
_MONTHS = b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()
_KINDS = {b"-": Kind.FILE, b"d": Kind.DIRECTORY, b"l": Kind.LINK}
_FULL_TIME = re.compile(r"([0-9]{14})(?:\.[0-9]{1,9})?", re.ASCII)
_ESCAPED = re.compile(rb"\\([0-3][0-7]{2})")


def checked_name(name: bytes) -> bytes:
    """Return ``name`` if it is a single component that can be asked for and stored.

    Raises:
        BuildError: It is not.
    """
    if not name or name in {b".", b".."} or len(name) > _MAX_NAME_BYTES or any(c in name for c in b"/\0\r\n"):
        raise BuildError(
            f"the server lists {shown(name)}, which is no file's name",
            hint="leave its directory out, or rename it there",
        )
    return name


def shown(raw: bytes) -> str:
    """Return bytes of a server as a message may hold them: short, on one line, nothing a terminal acts on."""
    text = raw[:200].decode("utf-8", "backslashreplace")
    return repr(text) + ("..." if len(raw) > 200 else "")


def parse_unix(line: bytes) -> Listed | None:
    """Read a line of ``ls -l``, as LIST gives it.

    Raises:
        BuildError: It is no such line.
    """
    if re.fullmatch(rb"total [0-9]+", line):
        return None
    listed = _unix(line)
    if listed is None or listed.kind is not Kind.LINK:
        return listed and _named(listed, listed.name)
    name, target = _split_link(listed.name, listed.size)
    return _named(listed, name, target)


def parse_sftp(line: bytes) -> Listed | None:
    r"""Read a line of ``ls -la`` of the program sftp, which writes ``\303`` for a byte that cannot be printed.

    Raises:
        BuildError: It is no such line.
    """
    listed = _unix(line)
    return listed and _named(listed, _ESCAPED.sub(lambda match: bytes([int(match[1], 8)]), listed.name))


def _unix(line: bytes) -> Listed | None:
    match = _UNIX.fullmatch(line)
    if match is None or match["month"] not in _MONTHS or int(match["size"] or 0) > _MAX_SIZE_BYTES:
        raise _not_understood(line)
    kind = _KINDS.get(match["kind"], Kind.OTHER)
    if match["name"] in {b".", b".."} and kind is Kind.DIRECTORY:
        return None
    stamp = b" ".join(match["stamp"].split()).decode()
    return Listed(match["name"], kind, int(match["size"] or 0), stamp, mode=_mode(match["mode"]))


def _named(listed: Listed, name: bytes, target: bytes | None = None) -> Listed:
    return Listed(checked_name(name), listed.kind, listed.size, listed.stamp, mode=listed.mode, target=target)


def _split_link(shown_name: bytes, size: int) -> tuple[bytes, bytes | None]:
    """Return a link's name and target; a target is as long as the link's size says, whatever arrows are in it."""
    arrow = b" -> "
    if 0 < size < len(shown_name) - len(arrow) and shown_name[: len(shown_name) - size].endswith(arrow):
        return shown_name[: len(shown_name) - size - len(arrow)], shown_name[len(shown_name) - size :]
    name, found, target = shown_name.partition(arrow)
    return name, target if found else None


def _mode(text: bytes) -> int:
    """Return the nine letters as a number, without set-id and sticky bits: those mean nothing elsewhere."""
    return sum(bit << 8 - at for at, bit in enumerate(letter not in b"-STl" for letter in text))


def parse_mlsd(line: bytes) -> Listed | None:
    """Read a line of MLSD or MLST (RFC 3659).

    Raises:
        BuildError: It is no such line.
    """
    facts_text, space, name = line.partition(b" ")
    if not space or not facts_text.endswith(b";"):
        raise _not_understood(line)
    facts: dict[str, str] = {}
    for fact in facts_text[:-1].decode("utf-8", "replace").split(";"):
        key, equals, value = fact.partition("=")
        if not equals:
            raise _not_understood(line)
        facts[key.lower()] = value
    if facts.get("type", "").lower() in {"cdir", "pdir"}:
        return None
    return _of_facts(facts, name, line)


def parse_mlst(line: bytes, name: bytes) -> Listed:
    """Read the line of MLST about one thing, that the caller calls ``name``, whatever path the server writes.

    Raises:
        BuildError: It is no such line.
    """
    facts, space, _path = line.lstrip(b" ").partition(b" ")
    facts = re.sub(rb"(?i)type=[cp]dir;", b"type=dir;", facts)
    listed = parse_mlsd(facts + b" " + name) if space else None
    if listed is None:
        raise _not_understood(line)
    return listed


def _of_facts(facts: dict[str, str], name: bytes, line: bytes) -> Listed:
    type_, _, target = facts.get("type", "").partition(":")
    kind = {"file": Kind.FILE, "dir": Kind.DIRECTORY, "os.unix=slink": Kind.LINK, "os.unix=symlink": Kind.LINK}.get(
        type_.lower(), Kind.OTHER
    )
    try:
        size = _number(facts.get("size", "0"), 10)
        # pyftpdlib writes 0o644
        mode = _number(facts["unix.mode"].removeprefix("0o"), 8) & 0o777 if "unix.mode" in facts else None
        modified_at = parse_full_time(facts["modify"]) if "modify" in facts else None
    except ValueError:
        raise _not_understood(line) from None
    if size > _MAX_SIZE_BYTES or not facts.get("type"):
        raise _not_understood(line)
    return Listed(
        checked_name(name), kind, size, facts.get("modify", ""), modified_at, mode, facts.get("unique"),
        target.encode() if kind is Kind.LINK and target else None,
    )  # fmt: skip


def _number(text: str, base: int) -> int:
    if not re.fullmatch("[0-9]{1,19}", text):
        raise ValueError(text)
    return int(text, base)


def parse_full_time(text: str) -> int:
    """Return the seconds since 1970 that ``YYYYMMDDHHMMSS`` says in UTC; a fraction is cut off.

    Raises:
        ValueError: It is no such time.
    """
    match = _FULL_TIME.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is no time of FTP")
    digits = match[1]
    parts = [int(digits[:4]), *(int(digits[at : at + 2]) for at in range(4, 14, 2))]
    return _seconds(datetime(*parts, tzinfo=UTC))  # type: ignore[misc, arg-type]


def time_of_stamp(stamp: str, now: datetime) -> int:
    """Return the time that ``Nov 26 07:14`` or ``Nov 26 2026`` means, in seconds since 1970.

    Without a year it is the latest that is not after tomorrow (the server's zone is not known; UTC is assumed).

    Raises:
        ValueError: There is no such day.
    """
    month, day, rest = stamp.split()
    if ":" not in rest:
        return _seconds(datetime.strptime(f"{month} {day} {rest}", "%b %d %Y").replace(tzinfo=UTC))
    for year in range((now + timedelta(days=1)).year, now.year - 9, -1):  # eight years hold a 29 February
        try:
            found = datetime.strptime(f"{year} {month} {day} {rest}", "%Y %b %d %H:%M").replace(tzinfo=UTC)
        except ValueError:
            continue
        if found <= now + timedelta(days=1):
            return _seconds(found)
    raise ValueError(f"{stamp[:40]!r} is no day")


def _seconds(time: datetime) -> int:
    return timegm(time.timetuple())


def permissions(listed: Listed, *, directory: bool = False) -> int:
    """Return the mode that something listed gets here: as shown, but nobody else may write, and its owner may read."""
    if listed.mode is None:
        return 0o755 if directory else 0o644
    kept = listed.mode & ~(stat.S_IWGRP | stat.S_IWOTH)
    return kept | (stat.S_IRWXU if directory else stat.S_IRUSR)


def _not_understood(line: bytes) -> BuildError:
    return BuildError(
        f"the server lists {shown(line)}, which is neither MLSD's nor a Unix server's way to list a file",
        hint="a name with the end of a line in it does this too; leave its directory out, or rename it there",
    )
