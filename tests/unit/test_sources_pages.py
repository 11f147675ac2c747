"""Index pages as servers write them, and as nobody should."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ted.errors import BuildError
from ted_plugins.sources.checksums import parse_checksums, parse_digest
from ted_plugins.sources.pages import Listed, parse_page

URL = "http://host/pub/"
APACHE_PRE = b"""<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 3.2 Final//EN"><html><body>
<h1>Index of /pub</h1>
<pre><img src="/icons/blank.gif" alt="Icon "> <a href="?C=N;O=D">Name</a>     <a href="?C=M;O=A">Last modified</a>
<hr><img src="/icons/back.gif" alt="[PARENTDIR]"> <a href="/">Parent Directory</a>                             -
<img src="/icons/folder.gif" alt="[DIR]"> <a href="sub/">sub/</a>                    2024-03-01 10:20    -
<img src="/icons/compressed.gif" alt="[   ]"> <a href="a%20b.tar.gz">a b.tar.gz</a>  2024-03-02 11:21  1.2K
<img src="/icons/text.gif" alt="[TXT]"> <a href="small.txt">small.txt</a>            2024-03-03 12:22  999
<hr></pre></body></html>"""
APACHE_TABLE = b"""<html><body><table>
<tr><th valign="top"><img src="/icons/blank.gif" alt="[ICO]"></th><th><a href="?C=N;O=D">Name</a></th></tr>
<tr><td valign="top"><a href="sub/"><img src="/icons/folder.gif" alt="[DIR]"></a></td><td><a href="sub/">sub/</a></td>
<td align="right">2024-03-01 10:20  </td><td align="right">  - </td><td>&nbsp;</td></tr>
<tr><td valign="top"><a href="small.txt"><img src="/icons/text.gif" alt="[TXT]"></a></td>
<td><a href="small.txt">small.txt</a></td><td align="right">2024-03-03 12:22  </td><td align="right">999 </td></tr>
</table></body></html>"""
LIGHTTPD = b"""<table summary="Directory Listing"><tbody>
<tr class="d"><td class="n"><a href="../">..</a>/</td><td class="m">&nbsp;</td><td class="s">- &nbsp;</td></tr>
<tr><td class="n"><a href="x.iso">x.iso</a></td><td class="m">2024-Mar-03 12:22:01</td><td class="s">3.1M</td></tr>
</tbody></table>"""
PYTHON = b"""<html><body><ul>
<li><a href="sub/">sub/</a></li><li><a href="f%26g%25.txt">f&amp;g%.txt</a></li><li><a href="link">link@</a></li>
</ul></body></html>"""


def listed(page: bytes) -> list[tuple[str, bool, int | None, str | None]]:
    return [(each.name, each.is_directory, each.size_bytes, each.stamp) for each in parse_page(page, URL, "text/html")]


def test_pages_of_apache() -> None:
    assert listed(APACHE_PRE) == [
        ("sub", True, None, "2024-03-01 10:20 -"), ("a b.tar.gz", False, None, "2024-03-02 11:21 1.2K"),
        ("small.txt", False, 999, "2024-03-03 12:22 999"),
    ]  # fmt: skip
    assert listed(APACHE_TABLE) == [
        ("sub", True, None, "2024-03-01 10:20 -"), ("small.txt", False, 999, "2024-03-03 12:22 999"),
    ]  # fmt: skip


def test_pages_of_lighttpd_and_of_pythons_own_server() -> None:
    assert listed(LIGHTTPD) == [("x.iso", False, None, "2024-Mar-03 12:22:01 3.1M")]
    assert listed(PYTHON) == [("sub", True, None, None), ("f&g%.txt", False, None, None), ("link", False, None, None)]


def test_nginx_json_tells_bytes_and_seconds() -> None:
    rows = b"""[{"name":"d", "type":"directory", "mtime":"Sat, 02 Mar 2024 11:21:07 GMT"},
               {"name":"a b#", "type":"file", "mtime":"Sat, 02 Mar 2024 11:21:07 GMT", "size":7}]"""
    assert parse_page(rows, URL, "application/json")[1] == Listed(
        "a b#", f"{URL}a%20b%23", False, 7, "Sat, 02 Mar 2024 11:21:07 GMT", 1, 1_709_378_467
    )


@pytest.mark.parametrize(("kind", "data"), [
    ("application/octet-stream", b"x"), ("", b"x"), ("application/json", b"{"), ("application/json", b"{}"),
    ("application/json", b"[" * 100_000), ("text/html", b"just text"),
])  # fmt: skip
def test_what_is_no_page_is_told_so(kind: str, data: bytes) -> None:
    with pytest.raises(BuildError):
        parse_page(data, URL, kind)


PIECES = [
    b"<a href='",
    b"..",
    b"%2f",
    b"/",
    b"'>",
    b"</a>",
    b"x",
    b"%00",
    b"?",
    b"#",
    b"//h",
    b"&amp;",
    b"&#47;",
    b"\xff",
]


@given(
    st.sampled_from(["text/html", "application/json"]),
    st.binary(max_size=300) | st.lists(st.sampled_from(PIECES)).map(b"".join),
)
def test_whatever_a_page_says_names_are_one_component_or_it_is_refused(kind: str, data: bytes) -> None:
    try:
        found = parse_page(data, URL, kind)
    except BuildError:
        return
    for each in found:
        assert each.name not in {"", ".", ".."}
        assert not {"/", "\0"} & set(each.name)
        assert each.href.startswith(URL)


@pytest.mark.parametrize("piece", [b"<a href='", b"<a ", b"<!--", b"<", b"<a href=x>"])
def test_a_page_takes_a_time_that_grows_with_it_and_no_more(piece: bytes) -> None:
    def took_s(count: int) -> float:
        started_s = time.thread_time()
        list(parse_page(piece * count, URL, "text/html"))
        return time.thread_time() - started_s

    took_s(1000)
    assert took_s(400_000) < 100 * max(took_s(20_000), 0.002)


@given(st.binary(max_size=200))
def test_a_checksum_file_is_read_or_refused(data: bytes) -> None:
    try:
        found = parse_checksums(data, "SUMS")
    except BuildError:
        return
    for digest in found.values():
        assert parse_digest(digest) == digest
