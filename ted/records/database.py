"""The database of a journal: SQLite in a file, or PostgreSQL by an URL. One SQL for both, parameters as ``:name``.

Rules:
 * Each use is one transaction. Whoever writes has the lock of all writers from its start, so that what it read stays
   true until it writes.
 * Connections are kept and used again, by one thread at a time.
"""

from __future__ import annotations

import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote, unquote, unquote_to_bytes

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
    unopened_hint: str

    def connect(self) -> Any:
        """Return a new connection whose transactions begin and end as they are told to."""

    def prepare(self, connection: Any, owner: str, version: int, tables: Iterable[str]) -> None:
        """Make the tables where they lack; refuse those of another owner where several could have the same place."""

    def is_broken(self, connection: Any) -> bool:
        """Return whether nothing can be asked of a connection any more."""

    def translated(self, sql: str) -> str:
        """Return a statement with its parameters as this driver writes them."""

    def data_version(self) -> int | None:
        """See ``Database.data_version``."""

    def close(self) -> None:
        """Give back what it keeps for itself."""


class Database:
    """Connections to one database; safe for threads and processes, but not across a fork.

    Args:
        url: ``sqlite:////var/lib/ted/.ted/records.sqlite`` or ``postgresql://user:password@host/name``.
        owner: The node whose records they are.
        tables: The statements that make its tables where they lack.
        version: Of these tables; a place that has it, or a later one, is left as it is.

    Raises:
        ConfigError: No such kind of database, its driver is not installed, or another node keeps its records there.
        AgentError: It cannot be opened.
    """

    def __init__(self, url: str, *, owner: str, tables: Iterable[str], version: int) -> None:
        self._driver, self._what = _driver(url), f"the records of {owner}"
        self._told: Callable[[Exception], str] = lambda error: _without(_secrets(url), " ".join(str(error).split()))
        self._idle: list[Any] = []
        try:
            connection = self._driver.connect()
            try:
                self._driver.prepare(connection, owner, version, tables)
            except BaseException:
                connection.close()
                raise
        except self._driver.errors as error:
            # not as its cause: what a driver says may hold the password
            raise AgentError(f"{self._what} cannot be opened in {without_password(url)}: {self._told(error)}",
                             hint=self._driver.unopened_hint) from None  # fmt: skip
        self._idle.append(connection)

    def close(self) -> None:
        """Give back every connection that is not in use."""
        while self._idle:
            self._idle.pop().close()
        self._driver.close()

    def data_version(self) -> int | None:
        """Return a number that is another after every transaction that wrote; ``None`` where it cannot be told.

        Whichever process wrote. To ask takes some microseconds and never waits; for one thread.
        """
        return self._driver.data_version()

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
            raise RecordsError(f"{self._what} cannot be used now: {self._told(error)}",
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
                with suppress(self._driver.errors):
                    cursor.execute("ROLLBACK")  # of the part that was begun
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
    unopened_hint = "see that it exists and is this user's"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._watching: sqlite3.Connection | None = None

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        # WAL: readers never wait for the writer. NORMAL: kill -9 loses nothing; after a power cut the last
        # moments may be gone, and the states on disk (DISTSTATUS.TED) are what counts then.
        _switch_to_wal(connection)
        connection.execute("PRAGMA synchronous=NORMAL")
        return connection

    def prepare(self, connection: sqlite3.Connection, owner: str, version: int, tables: Iterable[str]) -> None:
        del owner  # the file is below its working directory
        if connection.execute("PRAGMA user_version").fetchone()[0] >= version:
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

    def data_version(self) -> int | None:
        try:
            if self._watching is None:  # the number is of what others wrote: a connection that never writes
                self._watching = sqlite3.connect(self.path, timeout=0, isolation_level=None, check_same_thread=False)
            version: int = self._watching.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.Error:
            return None
        return version

    def close(self) -> None:
        if self._watching is not None:
            self._watching.close()


class _PostgreSQL:
    """A server's; writers take a lock of ted's own, since they may be several processes of one node."""

    begin_reading = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
    # read committed: a snapshot from before the lock would not hold what the writer before has written
    begin_writing: tuple[str, ...] = (
        "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE",
        "SELECT pg_advisory_xact_lock(7465, hashtext(current_schema()))",
    )
    unopened_hint = "is the server up and reached from here, and do the name, user and password of database_url hold?"
    # nobody waits for ever, and a writer whose host is gone holds up nobody
    settings = (f"SET lock_timeout = '{BUSY_S}s'", "SET idle_in_transaction_session_timeout = '60s'")

    def __init__(self, url: str) -> None:
        try:
            import psycopg
        except ImportError as error:
            raise ConfigError(f"database_url {without_password(url)}: psycopg is not installed beside ted",
                              hint="pip install 'ted[postgresql]'") from error  # fmt: skip
        self._address, self._connect = _quoted(url), psycopg.connect
        self.errors: type[Exception] = psycopg.Error

    def connect(self) -> Any:
        connection = self._connect(self._address, autocommit=True, connect_timeout=BUSY_S)
        for setting in self.settings:
            connection.execute(setting)
        return connection

    def prepare(self, connection: Any, owner: str, version: int, tables: Iterable[str]) -> None:
        if self._version(connection, owner) >= version:
            return
        with connection.transaction():
            connection.execute(self.begin_writing[1])
            for sql in (*tables, "CREATE TABLE IF NOT EXISTS records (owner VARCHAR(128), version INTEGER)"):
                connection.execute(sql)
            if not self._version(connection, owner):  # another process may have been first
                connection.execute("INSERT INTO records VALUES (%s, %s)", (owner, version))

    @staticmethod
    def _version(connection: Any, owner: str) -> int:
        """Return the version of the tables that are there, 0 for none.

        Raises:
            ConfigError: They are another node's.
        """
        if connection.execute("SELECT to_regclass('records')").fetchone()[0] is None:
            return 0
        found = connection.execute("SELECT owner, version FROM records").fetchone()
        if found is not None and found[0] != owner:
            raise ConfigError(
                f"database_url of {owner}: {found[0]} keeps its records in that database",
                hint="give each Distributor a database or a schema of its own",
            )
        return 0 if found is None else int(found[1])

    def is_broken(self, connection: Any) -> bool:
        return bool(connection.closed)

    def translated(self, sql: str) -> str:
        return _as_psycopg(sql)

    def data_version(self) -> int | None:
        return None

    def close(self) -> None:
        pass


@cache
def _as_psycopg(sql: str) -> str:
    return re.sub(r":(\w+)", r"%(\1)s", sql)


def _driver(url: str) -> _Driver:
    found = _DRIVER.match(url)
    kind, rest = (found[1], url[found.end() :]) if found else ("", "")
    if kind == "sqlite" and rest.startswith("///") and len(rest) > len("///"):
        return _SQLite(Path(os.fsdecode(unquote_to_bytes(rest.removeprefix("///")))))
    if kind.startswith("postgres") and rest.startswith("//"):
        return _PostgreSQL(f"postgresql:{rest}")
    raise ConfigError(
        f"database_url {without_password(url)}: not a database that ted knows",
        hint="sqlite:////absolute/path.sqlite or postgresql://user:password@host/name",
    )


# A password may hold whatever somebody typed, `/`, `?` and `@` too: it ends at the last `@` before the parameters, or,
# where there is none before them and they do not follow a host and its port, at the last one.
_CREDENTIALS = re.compile(r"(?<=://)(?P<user>[^:@/?]*)(?::(?P<password>[^?]*|(?!\d*/).*))?@")
_PARAMETER = re.compile(r"(?<=password=)[^&]*")


def without_password(url: str) -> str:
    """Return an URL as it may be told."""
    return _without(_secrets(url), url) if "://" in url else "(not an URL)"


def _secrets(url: str) -> list[str]:
    """Return what must not be told, as it is written and as it is meant; the longest first."""
    whole = re.search(r"(?<=://)[^:@]*:(.*)@", url)
    found = [*(whole.groups() if whole else ()), *_PARAMETER.findall(url)]
    if (credentials := _CREDENTIALS.search(url)) and credentials["password"]:
        found.append(credentials["password"])
    return sorted({each for word in found for each in (word, unquote(word)) if each}, key=len, reverse=True)


def _without(secrets: Iterable[str], text: str) -> str:
    for secret in secrets:
        text = text.replace(secret, "***")
    return text


def _quoted(url: str) -> str:
    """Return an URL with its user and password as libpq reads them: what stands for something else there is escaped."""

    def quoted(found: re.Match[str]) -> str:
        password = found["password"]
        secret = "" if password is None else ":" + quote(unquote(password), safe="")
        return f"{quote(unquote(found['user']), safe='')}{secret}@"

    return _CREDENTIALS.sub(quoted, url, count=1)


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
