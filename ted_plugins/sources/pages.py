"""What an index page of a web server lists: nginx (HTML and JSON), Apache, and others that write their pages alike.

Rules:
 * An entry is a link to one name directly below the page, on the same server; every other link (the parent, the
   sorting, other hosts) is no entry.
 * A name is one component of a path: never empty, ``.`` or ``..``, never with a slash or a NUL in it, also not when its
   percent signs are resolved.
 * Text that stands beside a link is kept as it is: it tells whether a file changed, in whatever time zone the server
   writes. Only a size in plain digits is one in bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from html import unescape
from typing import NamedTuple
from urllib.parse import quote_from_bytes, unquote_to_bytes, urljoin, urlsplit

from ted.errors import BuildError

MAX_STAMP = 200


class Listed(NamedTuple):
    """One name on a page."""

    name: str
    """As a file's name; bytes that are not UTF-8 as ``os.fsdecode`` has them."""
    href: str
    """Its address, absolute, without a query."""
    is_directory: bool
    size_bytes: int | None = None
    stamp: str | None = None
    """What tells versions apart; ``None`` where the page says nothing."""
    resolution_s: int = 60
    """How far apart two changes are that the stamp tells apart for certain."""
    mtime_s: int | None = None


def parse_page(data: bytes, url: str, content_type: str) -> list[Listed]:
    """Return what a page lists, each name once, in the page's order.

    Args:
        data: The page.
        url: Its address, ending with a slash.
        content_type: As the server says.

    Raises:
        BuildError: It is no index page.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/json":
        found = _of_json(data, url)
    elif kind in ("text/html", "application/xhtml+xml"):
        found = _of_html(data, url)
    else:
        raise BuildError(f"{url}: {kind or 'what comes'} is no index of a directory",
                         hint="a directory needs a server that lists it (nginx: autoindex on)")  # fmt: skip
    by_name: dict[tuple[str, bool], Listed] = {}
    for each in found:
        known = by_name.setdefault((each.name, each.is_directory), each)
        if known.stamp is None and each.stamp is not None:
            by_name[each.name, each.is_directory] = each  # a first link was a picture
    return list(by_name.values())


# -- nginx, autoindex_format json


def _of_json(data: bytes, url: str) -> Iterator[Listed]:
    try:
        rows = json.loads(data.decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        raise BuildError(f"{url}: JSON that cannot be read") from None
    if not isinstance(rows, list):
        raise BuildError(f"{url}: JSON, but no list of files")
    for row in rows:
        name = row.get("name") if isinstance(row, dict) else None
        if not isinstance(name, str) or row.get("type") not in ("file", "directory"):
            continue
        _check_name(name, url)
        is_directory = row["type"] == "directory"
        href = urljoin(url, quote_from_bytes(os.fsencode(name), safe="") + ("/" if is_directory else ""))
        yield Listed(name, href, is_directory, _whole(row.get("size")), str(row.get("mtime"))[:MAX_STAMP], 1,
                     _date(row.get("mtime")))  # fmt: skip


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


def _date(value: object) -> int | None:
    try:
        return int(parsedate_to_datetime(str(value)[:60]).timestamp())
    except (ValueError, TypeError, OverflowError):
        return None


# -- HTML

_PLAIN = re.compile(r"([A-Za-z0-9_.~-]+)/?", re.ASCII)
"""An address that needs no reading: a name, and nothing else."""
_SIZED = re.compile(r"(?:^|\s)([0-9]{1,18})\s*$")
_STAMPED = re.compile(
    r"[0-9]{1,2}-[A-Z][a-z]{2}-[0-9]{4} [0-9:]{4,8}|[0-9]{4}-(?:[0-9]{2}|[A-Z][a-z]{2})-[0-9]{2}[ T][0-9:]{4,8}"
)
_TAG = re.compile(r"<(/?)(a|tr)\b([^<>]*)>", re.IGNORECASE)
_HREF = re.compile(r"""\bhref\s*=\s*(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""", re.IGNORECASE)
_ANY_TAG = re.compile("<[^<>]*>")


def _of_html(data: bytes, url: str) -> Iterator[Listed]:
    page = data.decode("utf-8", "surrogateescape")
    if "<" not in page:
        raise BuildError(f"{url}: no index of a directory")
    for href, text in _links(page):
        if (listed := _of_link(url, href, text)) is not None:
            yield listed


def _links(page: str) -> Iterator[tuple[str, str]]:
    """Yield each link, and the text behind it up to the next one or the end of the row; in time that grows as the page.

    Not by a parser of HTML: index pages need none, and Python's takes time as the square of a hostile page.
    """
    href: str | None = None
    behind: int | None = None
    for tag in _TAG.finditer(page):
        if tag[1] and tag[2] in "aA":
            behind = tag.end()
            continue
        if href is not None:
            yield href, _text(page[behind : tag.start()] if behind is not None else "")
        found = _HREF.search(tag[3]) if tag[2] in "aA" else None
        href = unescape(found[1] or found[2] or found[3] or "") if found is not None else None
        behind = None
    if href is not None:
        yield href, _text(page[behind:] if behind is not None else "")


def _text(markup: str) -> str:
    return " ".join(unescape(_ANY_TAG.sub(" ", markup[:2000])).split())[:MAX_STAMP]


def _of_link(url: str, href: str, text: str) -> Listed | None:
    if (plain := _PLAIN.fullmatch(href)) is not None and plain[1] not in (".", ".."):
        return _entry(url, plain[1], url + href, href.endswith("/"), text)
    return _of_any_link(url, href, text)


def _of_any_link(url: str, href: str, text: str) -> Listed | None:
    try:
        target = urlsplit(urljoin(url, href))
        base = urlsplit(url)
    except ValueError:
        return None
    if target.query or (target.scheme, target.netloc) != (base.scheme, base.netloc):
        return None
    if target.path.count("/") != base.path.count("/") + target.path.endswith("/"):
        return None
    raw, above = unquote_to_bytes(os.fsencode(target.path)), unquote_to_bytes(base.path)
    if not raw.startswith(above) or raw == above:
        return None
    below = raw[len(above) :]
    name = os.fsdecode(below.removesuffix(b"/"))
    return _entry(url, name, target._replace(fragment="").geturl(), below.endswith(b"/"), text)


def _entry(url: str, name: str, href: str, is_directory: bool, text: str) -> Listed:
    _check_name(name, url)
    stamp = text if _STAMPED.search(text) else None
    size = _SIZED.search(text) if stamp else None
    return Listed(name, href, is_directory, int(size[1]) if size else None, stamp)


def _check_name(name: str, url: str) -> None:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise BuildError(f"{url}: lists a name that cannot be taken: {name[:200]!r}",
                         hint="leave its directory out with `exclude`, or have it renamed at the source")  # fmt: skip
