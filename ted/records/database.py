"""The database of a journal: SQLite in a file, or PostgreSQL by an URL. One SQL for both, parameters as ``:name``.

Rules:
 * Each use is one transaction. Whoever writes has the lock of all writers from its start, so that what it read stays
   true until it writes.
 * Connections are kept and used again, by one thread at a time.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from ted.errors import AgentError, ConfigError, RecordsError

BUSY_S = 20
Row = dict[str, Any]
_DRIVER = re.compile(r"(postgres(?:ql)?|sqlite)(?:\+\w+)?:")


class Statements:
    """What can be asked in a transaction."""

    def __init__(self, cursor: Any, translated: Any) -> None:
        self._cursor, self._translated = cursor, translated

    def rows(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Row]:
        """Return every row of the answer."""
        self._cursor.execute(self._translated(sql), values or ())
        names = [column[0] for column in self._cursor.description]
        return [dict(zip(names, row, strict=True)) for row in self._cursor]

    def first(self, sql: str, values: Mapping[str, Any] | None = None) -> Row | None:
        """Return the first row of the answer, or ``None``."""
        self._cursor.execute(self._translated(sql), values or ())
        row = self._cursor.fetchone()
        names = (column[0] for column in self._cursor.description)
        return None if row is None else dict(zip(names, row, strict=True))

    def run(self, sql: str, values: Mapping[str, Any] | None = None) -> None:
        """Change something."""
        self._cursor.execute(self._translated(sql), values or ())

    def run_each(self, sql: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Change something once for each of ``rows``."""
        self._cursor.executemany(self._translated(sql), list(rows))


class _Driver(Protocol):
    """What one kind of database does in its own way."""

    errors: type[Exception]
    begin_reading: str
    begin_writing: tuple[str, ...]

    def connect(self) -> Any:
        """Return a new connection whose transactions begin and end as they are told to."""

    def prepare(self, connection: Any, version: int, tables: Iterable[str]) -> None:
        """Make the tables that lack."""

    def is_broken(self, connection: Any) -> bool:
        """Return whether nothing can be asked of a connection any more."""

    def translated(self, sql: str) -> str:
        """Return a statement with its parameters as this driver writes them."""


class Database:
    """Connections to one database; safe for threads and processes, but not across a fork.

    Args:
        url: ``sqlite:////var/lib/ted/.ted/records.sqlite`` or ``postgresql://user:password@host/name``.
        what: What is kept there, for errors.
        tables: The statements that make its tables where they lack.
        version: Of these tables; a file that has it is not looked at again.

    Raises:
        ConfigError: No such kind of database, or its driver is not installed.
        AgentError: It cannot be opened.
    """

    def __init__(self, url: str, *, what: str, tables: Iterable[str], version: int) -> None:
        self._driver, self._what = _driver(url), what
        self._idle: list[Any] = []
        try:
            connection = self._driver.connect()
            self._driver.prepare(connection, version, tables)
        except self._driver.errors as error:
            raise AgentError(f"{what} cannot be opened in {without_password(url)}: {_line(error)}",
                             hint="see that it exists and is this user's") from error  # fmt: skip
        self._idle.append(connection)

    def close(self) -> None:
        """Give back every connection that is not in use."""
        while self._idle:
            self._idle.pop().close()

    @contextmanager
    def reading(self) -> Iterator[Statements]:
        """Yield a transaction that changes nothing and sees one state of everything."""
        with self._transaction([self._driver.begin_reading]) as statements:
            yield statements

    @contextmanager
    def writing(self) -> Iterator[Statements]:
        """Yield a transaction that no other one that writes runs beside."""
        with self._transaction(self._driver.begin_writing) as statements:
            yield statements

    @contextmanager
    def _transaction(self, begin: Iterable[str]) -> Iterator[Statements]:
        try:
            connection, cursor = self._begun(begin)
            try:
                yield Statements(cursor, self._driver.translated)
                cursor.execute("COMMIT")
            except BaseException:
                with suppress(self._driver.errors):
                    cursor.execute("ROLLBACK")
                raise
            finally:
                self._give_back(connection)
        except self._driver.errors as error:
            raise RecordsError(f"{self._what} cannot be used now: {_line(error)}",
                               hint="is the disk full, or the database down?") from error  # fmt: skip

    def _begun(self, begin: Iterable[str]) -> tuple[Any, Any]:
        """Return a connection, and its cursor in a new transaction; one that broke while it waited is replaced."""
        while True:
            try:
                connection, is_new = self._idle.pop(), False
            except IndexError:
                connection, is_new = self._driver.connect(), True
            cursor = connection.cursor()
            try:
                for sql in begin:
                    cursor.execute(sql)
            except self._driver.errors:
                is_broken = self._driver.is_broken(connection)
                self._give_back(connection)
                if is_new or not is_broken:
                    raise
            else:
                return connection, cursor

    def _give_back(self, connection: Any) -> None:
        if self._driver.is_broken(connection):
            connection.close()
        else:
            self._idle.append(connection)


class _SQLite:
    """A file; the writers' lock is SQLite's own."""

    errors: type[Exception] = sqlite3.Error
    begin_reading = "BEGIN"
    # the lock from the start: a read that turns into a write would fail under another writer
    begin_writing: tuple[str, ...] = ("BEGIN IMMEDIATE",)

    def __init__(self, path: Path) -> None:
        self.path = path

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        # WAL: readers never wait for the writer. NORMAL: kill -9 loses nothing; after a power cut the last
        # moments may be gone, and the states on disk (DISTSTATUS.TED) are what counts then.
        _switch_to_wal(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def prepare(self, connection: sqlite3.Connection, version: int, tables: Iterable[str]) -> None:
        if connection.execute("PRAGMA user_version").fetchone()[0] == version:
            return
        connection.execute("BEGIN IMMEDIATE")  # another process may be making them at this moment
        for sql in tables:
            connection.execute(sql.replace("BIGSERIAL", "INTEGER"))  # which counts by itself where it is the key
        connection.execute(f"PRAGMA user_version={version}")
        connection.execute("COMMIT")

    def is_broken(self, connection: sqlite3.Connection) -> bool:
        del connection
        return False

    def translated(self, sql: str) -> str:
        return sql


class _PostgreSQL:
    """A server's; writers take a lock of ted's own, since they may be several processes of one node."""

    begin_reading = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    begin_writing: tuple[str, ...] = ("BEGIN", "SELECT pg_advisory_xact_lock(7465)")

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise ConfigError(f"database_url {without_password(url)}: psycopg is not installed beside ted",
                              hint="pip install 'ted[postgresql]'") from error  # fmt: skip
        self._url, self._connect = url, psycopg.connect
        self.errors: type[Exception] = psycopg.Error

    def connect(self) -> Any:
        return self._connect(self._url, autocommit=True, connect_timeout=BUSY_S)

    def prepare(self, connection: Any, version: int, tables: Iterable[str]) -> None:
        del version
        with connection.transaction():
            for sql in (self.begin_writing[1], *tables):
                connection.execute(sql)

    def is_broken(self, connection: Any) -> bool:
        return bool(connection.closed)

    def translated(self, sql: str) -> str:
        return _as_psycopg(sql)


@cache
def _as_psycopg(sql: str) -> str:
    return re.sub(r":(\w+)", r"%(\1)s", sql)


def _driver(url: str) -> _Driver:
    found = _DRIVER.match(url)
    kind, rest = (found[1], url[found.end() :]) if found else ("", "")
    if kind == "sqlite" and rest.startswith("///") and len(rest) > len("///"):
        return _SQLite(Path(unquote(rest.removeprefix("///"))))
    if kind.startswith("postgres"):
        return _PostgreSQL(f"postgresql:{rest}")
    raise ConfigError(
        f"database_url {without_password(url)}: not a database that ted knows",
        hint="sqlite:////absolute/path.sqlite or postgresql://user:password@host/name",
    )


def without_password(url: str) -> str:
    """Return an URL as it may be told."""
    try:
        password = urlsplit(url).password
    except ValueError:
        return "(not an URL)"
    if "://" not in url:
        return "(not an URL)"
    return url if not password else url.replace(f":{password}@", ":***@")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on: alone of all statements it does not wait for another process's lock."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)
