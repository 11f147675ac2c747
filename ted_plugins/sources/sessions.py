"""Logins at a server that has directories, and the walk through them: what FTP and SFTP have in common.

Rules:
 * No more logins are open than the server lets in: where it refuses one more, those that are open do the work.
 * A login that failed is closed and never used again.
 * A link is left out, or followed to what it leads to; one that leads back into a directory it lies in is left out and
   told. So is a directory that the server shows again inside itself.
 * The walk is bounded: in depth, and in names, directories counted too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Generic, NamedTuple, Protocol, TypeVar

from ted.errors import BuildError, EmptySourceError, TransferError
from ted_plugins.sources.listing import Kind, Listed, shown

MAX_DEPTH = 100


class Session(Protocol):
    """A login at a server; for one thread at a time. Errors as ``mirror.Source`` has them."""

    def absolute(self, path: bytes) -> bytes:
        """Return ``path`` from the top, where it was meant from the directory that the login begins in."""

    def look(self, path: bytes) -> Listed | None:
        """Return what is at ``path``, links followed; ``None`` when nothing is."""

    def entries(self, directory: bytes) -> Iterator[Listed]:
        """Return what a directory holds. All of it has come then: the login is free for something else."""

    def real(self, directory: bytes) -> bytes:
        """Return the path of a directory without links, as far as the server tells."""

    def close(self) -> None:
        """Leave at once."""

    def quit(self) -> None:
        """Say good-bye, and leave."""


S = TypeVar("S", bound=Session)


class Sessions(Generic[S]):
    """The logins of one build at one server.

    Args:
        log_in: Opens one more.
    """

    def __init__(self, log_in: Callable[[], S]) -> None:
        self._log_in = log_in
        self._idle: list[S] = []
        self._open = 0
        self._most: int | None = None
        self._changed = threading.Condition()

    @contextmanager
    def one(self) -> Iterator[S]:
        """Lend a login; it is closed if the body fails."""
        session = self._take()
        try:
            yield session
        except BaseException:
            session.close()
            self._give_back(None)
            raise
        self._give_back(session)

    def close(self) -> None:
        """Leave with every login that is not lent."""
        with self._changed:
            idle, self._idle = self._idle, []
            self._open -= len(idle)
        for session in idle:
            session.quit()

    def _take(self) -> S:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._idle or self._most is None or self._open < self._most)
                if self._idle:
                    return self._idle.pop()
                self._open += 1
            try:
                return self._log_in()
            except BaseException as error:
                with self._changed:
                    self._open -= 1
                    self._changed.notify_all()
                    # it answers 421 or 530, or hangs up, where too many are there already
                    if not self._open or not isinstance(error, TransferError | BuildError):
                        raise
                    self._most = self._open

    def _give_back(self, session: S | None) -> None:
        with self._changed:
            if session is None:
                self._open -= 1
                self._most = None if not self._open else self._most
            else:
                self._idle.append(session)
            self._changed.notify_all()


class Found(NamedTuple):
    """A file on a server: its path below the source, the path to ask for, and how it was listed."""

    relative: bytes
    path: bytes
    listed: Listed


class _Directory(NamedTuple):
    relative: bytes
    path: bytes
    above: tuple[object, ...]
    """What tells it and the directories above it from others."""


class Walk(Generic[S]):
    """A walk through what is at and below ``top``. Between two files it holds no login: others may need the only one.

    Args:
        sessions: Where.
        top: A directory or a file.
        follow_links: Take what links lead to.
        leave_out: Says of a path below ``top``, and whether it is a directory, that it is not wanted.
        most: Names at most, of files and directories.
        name: What to call the source in messages.
        warn: Told of what was left out.
    """

    def __init__(
        self,
        sessions: Sessions[S],
        top: bytes,
        *,
        follow_links: bool,
        leave_out: Callable[[bytes, bool], bool],
        most: int,
        name: str,
        warn: Callable[[str], None],
    ) -> None:
        self._sessions, self._follow = sessions, follow_links
        with sessions.one() as session:
            self.top = session.absolute(top)
        self._leave_out, self._most, self._name, self._warn = leave_out, most, name, warn
        self._count = self._links = self._others = 0

    def files(self) -> Iterator[Found]:
        """Yield every file.

        Raises:
            EmptySourceError: There is nothing at ``top``.
            BuildError: A listing is not understood, or there is too much.
        """
        start = self._look(self.top)
        if start is None:
            raise EmptySourceError(f"{self._name}: there is no such file or directory", hint="check the path there")
        if start.kind is not Kind.DIRECTORY:
            yield Found(start.name, self.top, start)
            return
        waiting = [_Directory(b"", self.top, (_identity(start, self._real(self.top)),))]
        while waiting:
            directory = waiting.pop()
            for listed in self._entries(directory.path):
                self._note()
                found = self._resolve(directory, listed)
                if isinstance(found, Found):
                    yield found
                elif found is not None:
                    waiting.append(found)
        self._tell()

    def _look(self, path: bytes) -> Listed | None:
        with self._sessions.one() as session:
            return session.look(path)

    def _real(self, directory: bytes) -> bytes:
        with self._sessions.one() as session:
            return session.real(directory)

    def _entries(self, directory: bytes) -> Iterator[Listed]:
        with self._sessions.one() as session:
            return session.entries(directory)

    def _note(self) -> None:
        self._count += 1
        if self._count > self._most:
            raise BuildError(f"{self._name}: more than {self._most} files and directories",
                             hint="narrow the source down, or raise max_files")  # fmt: skip

    def _resolve(self, directory: _Directory, listed: Listed) -> Found | _Directory | None:
        """Return the file or the directory that a name stands for; ``None`` where it is left out."""
        relative = directory.relative + b"/" + listed.name if directory.relative else listed.name
        path = directory.path.rstrip(b"/") + b"/" + listed.name
        meant = self._meant(relative, path, listed)
        if meant is None:
            return None
        if meant.kind is Kind.DIRECTORY:
            return self._descend(directory, relative, path, meant, linked=listed.kind is Kind.LINK)
        return Found(relative, path, meant)

    def _meant(self, relative: bytes, path: bytes, listed: Listed) -> Listed | None:
        """Return what is there, links followed; ``None`` where it is left out."""
        if self._leave_out(relative, listed.kind is Kind.DIRECTORY):
            return None
        if listed.kind is Kind.LINK and not self._follow:
            self._links += 1
            return None
        if listed.kind is Kind.LINK:
            led = self._look(path)
            if led is None:
                self._warn(f"{self._name}: the link {shown(relative)} leads to nothing, and is left out")
                return None
            listed = replace(led, name=listed.name)
            if listed.kind is Kind.DIRECTORY and self._leave_out(relative, True):
                return None
        if listed.kind not in {Kind.FILE, Kind.DIRECTORY}:
            self._others += 1
            return None
        return listed

    def _descend(
        self, directory: _Directory, relative: bytes, path: bytes, listed: Listed, *, linked: bool
    ) -> _Directory | None:
        if len(directory.above) >= MAX_DEPTH:
            raise BuildError(f"{self._name}: {shown(relative)} is more than {MAX_DEPTH} directories deep")
        inherited = directory.above[-1]
        real = self._real(path) if linked else None
        if real is None and isinstance(inherited, bytes):
            real = inherited.rstrip(b"/") + b"/" + listed.name
        own = _identity(listed, real if real is not None else path)
        if own in directory.above:
            self._warn(f"{self._name}: {shown(relative)} leads back to a directory it lies in, and is left out")
            return None
        return _Directory(relative, path, (*directory.above, own))

    def _tell(self) -> None:
        if self._links:
            self._warn(f"{self._name}: {self._links} symbolic links are left out; `follow_links: true` takes what they "
                       "lead to")  # fmt: skip
        if self._others:
            self._warn(f"{self._name}: {self._others} names that are neither files nor directories are left out")


def _identity(listed: Listed, real: bytes) -> object:
    """Return what is the same wherever a directory is shown: what the server says, else its path without links."""
    return listed.unique if listed.unique is not None else real
