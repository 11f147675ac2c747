"""A file, or a directory that a web server lists, as a source of a mirror.

Rules:
 * A listing that tells versions apart saves the request for a file once the file is older than the listing can hide
   (``_is_settled``); until then, and where a page tells nothing, the server is asked with ETag or date.
 * A version is known by its ETag, else by its date, and only once a second has passed since: what changes twice within
   the second of its date bears one name.
 * A cut download goes on with ``Range`` and ``If-Range``, so that another version comes whole; an answer that is not
   the very part that was asked for is not joined.
 * Pages, their number, their depth and their time are bounded; one that does not come is tried again, as files are.
"""

from __future__ import annotations

import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import unquote_to_bytes, urlsplit

from ted.errors import BuildError, EmptySourceError, SourceChangedError, TransferError
from ted.hookspecs import Excludes
from ted_plugins.sources.download import Download, Remote
from ted_plugins.sources.mirror import FetchInSteps
from ted_plugins.sources.pages import Listed, parse_page
from ted_plugins.sources.secrets import without_credentials
from ted_plugins.sources.tries import tried
from ted_plugins.sources.turns import Steps
from ted_plugins.sources.web import Access, Head, Sink, WebLines, WebSession, refusal, web_session
from ted_plugins.sources.workers import Behind

_LOG = logging.getLogger(__name__)
MAX_PAGE_BYTES = 64 * 1024 * 1024
MAX_PAGES = 100_000
MAX_DEPTH = 100
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})")
_HOT_S = 2
_LARGE_BYTES = 1 << 20
_GATHERED_BYTES = 512 * 1024
_GATHERED_S = 0.5
_NS = 10**9


class _Place(NamedTuple):
    """What a fetch needs to know of a file, beyond what a mirror knows."""

    url: str
    single: bool = False
    listed_at_s: int | None = None
    """The server's clock when it listed the file; ``None`` where the listing tells nothing."""
    resolution_s: int = 1


@dataclass
class WebSource:
    """Everything below one address that ends with a slash, or the one file at an address that does not.

    Directories are followed ``depth`` deep, and what is below is left out. ``digests`` are promised digests by path
    (``sha256:...``); when given, every file needs one, but those in ``undigested``. ``name_of_file`` is what the one
    file is called. Without ``trust_listing`` the server is asked for every file. A page is tried ``retries`` times
    again. ``within_s`` is how long a file may take in all, where that is bounded.
    """

    url: str
    access: Access
    depth: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    name_of_file: str | None = None
    digests: Mapping[str, str] | None = None
    undigested: frozenset[str] = frozenset()
    trust_listing: bool = True
    piece_bytes: int | None = None
    retries: int = 0
    within_s: int | None = None
    pages: int = field(default=0, init=False)

    @property
    def name(self) -> str:
        """The address."""
        return without_credentials(self.url)

    def listing(self) -> Iterator[Remote]:
        """Yield the files.

        Raises:
            EmptySourceError: There is no such directory.
            BuildError: It is no directory that can be mirrored.
            TransferError: It cannot be read now.
        """
        if not self.url.endswith("/"):
            path = self.name_of_file or file_name(self.url)
            digest = self._digest(path)
            yield Remote(path, None, None, None, digest, digest is not None, _Place(self.url, single=True))
            return
        with web_session(self.access) as session:
            yield from self._crawl(session)

    @contextmanager
    def connect_all(self, count: int) -> Iterator[WebLines[FetchInSteps]]:
        """Yield so many connections."""
        at_full_speed = self.piece_bytes is None

        def line(session: WebSession) -> FetchInSteps:
            return lambda remote, download: _Fetching(
                session, remote, download, at_full_speed=at_full_speed, within_s=self.within_s
            ).run()

        lines = WebLines(self.access, count, line, piece_bytes=self.piece_bytes)
        try:
            yield lines
        finally:
            lines.close()

    # -- listing

    def _crawl(self, session: WebSession) -> Iterator[Remote]:
        include, exclude = Excludes(self.include or ("*",)), Excludes(self.exclude)
        waiting = deque([(self.url, "", 0)])
        self.pages = 0
        while waiting:
            url, above, depth = waiting.popleft()
            at, found = self._page(session, url, top=not above)
            for each in found:
                path = f"{above}{each.name}"
                raw = path.encode("utf-8", "surrogateescape")
                if exclude.match(raw, is_directory=each.is_directory):
                    continue
                if each.is_directory and self.depth is not None and depth >= self.depth:
                    continue
                if each.is_directory:
                    if depth >= MAX_DEPTH:
                        raise BuildError(f"{self.name}: {path[:200]!r}... is deeper than {MAX_DEPTH} directories",
                                         hint="set `depth`, or leave it out with `exclude`")  # fmt: skip
                    waiting.append((each.href, f"{path}/", depth + 1))
                    self._bound(len(waiting))
                elif include.match(raw, is_directory=False):
                    yield self._remote(path, each, at)

    def _bound(self, waiting: int) -> None:
        if self.pages + waiting > MAX_PAGES:
            raise BuildError(f"{self.name}: more than {MAX_PAGES} directories",
                             hint="set `depth`, or leave some out with `exclude`")  # fmt: skip

    def _page(self, session: WebSession, url: str, *, top: bool) -> tuple[int | None, list[Listed]]:
        self.pages += 1
        shown = without_credentials(url)

        def read() -> tuple[Head, bytes]:
            head, body = session.read(url, MAX_PAGE_BYTES, compressed=True, within_s=self.access.page_within_s)
            if head.status not in (200, 404, 410):
                raise refusal(head, shown)
            return head, body

        head, body = tried(read, self.retries, lambda error: _LOG.info("trying again: %s", error.message))
        if head.status != 200:
            if top:
                raise EmptySourceError(f"{shown}: there is no such directory", hint="is the address right?")
            raise SourceChangedError(f"{shown}: was listed, and is not there", hint="build again")
        if head.moved and not head.url.endswith("/"):
            raise BuildError(f"{shown}: leads to {without_credentials(head.url)}, which is no directory")
        return head.time_s("date"), parse_page(body, head.url, head.headers.get("content-type", ""))

    def _remote(self, path: str, each: Listed, listed_at_s: int | None) -> Remote:
        digest = self._digest(path)
        mtime_ns = each.mtime_s * _NS if each.mtime_s is not None else None
        trusted = each.stamp is not None and self.trust_listing
        place = _Place(each.href, False, listed_at_s if trusted else None, each.resolution_s)
        return Remote(path, each.size_bytes, mtime_ns, each.stamp, digest, digest is not None, place)

    def _digest(self, path: str) -> str | None:
        if self.digests is None or path in self.undigested:
            return None
        if path not in self.digests:
            raise BuildError(f"{self.name}: no digest is promised for {path!r}",
                             hint="have it added to the checksum file, or `exclude` the file")  # fmt: skip
        return self.digests[path]


def file_name(url: str) -> str:
    """Return what the file at an address is called; empty if the address does not say."""
    return unquote_to_bytes(urlsplit(url).path.rpartition("/")[2]).decode("utf-8", "surrogateescape")


class _Fetching:
    """One file on its way; asks once more, for the whole, when a part is not as it should be."""

    def __init__(
        self, session: WebSession, remote: Remote, download: Download, *, at_full_speed: bool, within_s: int | None
    ) -> None:
        self._session, self._remote, self._download = session, remote, download
        self._at_full_speed, self._within_s = at_full_speed, within_s
        self._body: _Body | None = None
        self._place: _Place = remote.handle
        self._offset = 0
        self._length: int | None = None
        self._validator: str | None = None
        self._begun = False

    def run(self) -> Steps[None]:
        try:
            yield from self._ask()
        except TransferError:
            self._end()  # what came is gone on with
            raise
        except BaseException:
            if self._body is not None:
                self._body.leave()
            raise
        self._end()

    def _ask(self) -> Steps[None]:
        partial = self._download.partial
        if partial is not None and _can_be_sent(partial.validator) and not partial.validator.startswith("W/"):
            self._offset, self._validator = partial.size_bytes, partial.validator
            yield from self._asking(self._range())
            if self._begun:
                return
            self._offset = 0
        head = yield from self._asking(self._only_if_changed())
        self._judge(head)

    def _asking(self, headers: tuple[str, ...]) -> Steps[Head]:
        return self._session.asking(self._place.url, self._take, headers=headers, within_s=self._within_s)

    def _end(self) -> None:
        if self._body is not None:
            self._body.close()

    def _range(self) -> tuple[str, ...]:
        return (f"Range: bytes={self._offset}-", f"If-Range: {self._validator}")

    def _only_if_changed(self) -> tuple[str, ...]:
        known = self._download.known
        if known is None or known.validator is None or not _can_be_sent(known.validator):
            return ()
        etag = known.validator.startswith(('"', "W/"))
        return (f"{'If-None-Match' if etag else 'If-Modified-Since'}: {known.validator}",)

    def _take(self, head: Head) -> Sink | None:
        self._length = head.length
        if head.status == 200:
            self._begin(head, 0, self._length)
        elif head.status == 206 and self._offset and (size := self._size_of_part(head)) is not None:
            self._begin(head, self._offset, size)
        else:
            return None
        if not self._at_full_speed:
            return self._download.write
        self._body = _Body(self._download.write, self._length)
        return self._body.take

    def _begin(self, head: Head, offset_bytes: int, size_bytes: int | None) -> None:
        self._begun = True
        if head.moved and urlsplit(head.url).path == f"{urlsplit(self._place.url).path}/":
            raise BuildError(f"{without_credentials(self._place.url)}: is a directory", hint="end it with a slash")
        if self._length is None and "content-length" in head.headers:
            raise TransferError(f"{without_credentials(self._place.url)}: a length that is no number of bytes")
        changed_s = head.time_s("last-modified")
        self._download.begin(
            offset_bytes=offset_bytes, validator=self._validator if offset_bytes else _version(head),
            size_bytes=size_bytes, mtime_ns=changed_s * _NS if changed_s is not None else None,
            settled=self._is_settled(changed_s),
        )  # fmt: skip

    def _size_of_part(self, head: Head) -> int | None:
        """Return the size of the whole if this is what was asked for: from there to the end, of that version."""
        match = _CONTENT_RANGE.fullmatch(head.headers.get("content-range", ""))
        if match is None or int(match[1]) != self._offset or int(match[2]) != int(match[3]) - 1:
            return None
        names = {head.etag, head.last_modified}
        return int(match[3]) if self._validator in names else None

    def _judge(self, head: Head) -> None:
        if head.status == 200 and self._begun:
            return
        shown = without_credentials(self._place.url)
        if head.status == 304:
            self._download.unchanged(settled=self._is_settled(head.time_s("last-modified")))
        elif head.status in (404, 410):
            if self._place.single:
                raise EmptySourceError(f"{shown}: there is no such file", hint="is the address right?")
            raise SourceChangedError(f"{shown}: was listed, and is not there", hint="build again")
        else:
            raise refusal(head, shown)

    def _is_settled(self, changed_s: int | None) -> bool | None:
        """Say whether the listing would show a change after it: its clock went on since the file's last one."""
        if self._remote.settled or self._place.listed_at_s is None or changed_s is None:
            return None
        resolution_s = self._place.resolution_s
        return (changed_s // resolution_s + 1) * resolution_s <= self._place.listed_at_s


class _Body:
    """A body on its way: libcurl hands over pieces too small to be written one by one.

    A large one is written, and hashed, while more of it comes.
    """

    def __init__(self, write: Callable[[bytes], object], size_bytes: int | None) -> None:
        self._write = write
        self._behind = Behind(write) if size_bytes is None or size_bytes >= _LARGE_BYTES else None
        self._pieces: list[bytes] = []
        self._bytes = 0
        self._due_s = time.monotonic() + _GATHERED_S

    def take(self, data: bytes) -> None:
        """Take the next piece."""
        self._pieces.append(data)
        self._bytes += len(data)
        if self._bytes >= _GATHERED_BYTES or time.monotonic() > self._due_s:
            self._hand_on()

    def close(self) -> None:
        """Wait until all of it is written; raises what writing raised."""
        try:
            if self._pieces:
                self._hand_on()
        finally:
            if self._behind is not None:
                self._behind.close()

    def leave(self) -> None:
        """Want no more of it."""
        if self._behind is not None:
            with suppress(BaseException):  # another error is told
                self._behind.close()

    def _hand_on(self) -> None:
        pieces, self._pieces, self._bytes = self._pieces, [], 0
        self._due_s = time.monotonic() + _GATHERED_S
        if self._behind is not None:
            self._behind.put(pieces)
        else:
            self._write(pieces[0] if len(pieces) == 1 else b"".join(pieces))


def _can_be_sent(validator: str) -> bool:
    """Return whether it fits into a header: an earlier ted kept what a server said, whatever it was."""
    return validator.isascii() and validator.isprintable()


def _version(head: Head) -> str | None:
    """Return what the server calls this version, if another version cannot be called the same."""
    changed_s, now_s = head.time_s("last-modified"), head.time_s("date")
    if changed_s is not None and (now_s is None or now_s - changed_s < _HOT_S):
        return None
    return head.etag or (head.last_modified if changed_s is not None else None)
