"""The journal of one node: states, receipts on their way up, offers, sends and events.

Rules:
 * Every method is one transaction; several processes (agent, command, module) may use one journal at once.
 * Old news (``states.supersedes``) changes nothing.
 * The revision in service is kept apart from the state: a send that fails, or comes, says nothing about it.
 * The outbox keeps the latest receipt of each (node, distributor, distribution): it is bounded by the topology.
 * Offers and sends are written before they are acknowledged, so a killed agent goes on with them.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    MetaData,
    Select,
    String,
    Table,
    Text,
    and_,
    bindparam,
    create_engine,
    delete,
    event,
    exists,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from ted.errors import AgentError, ConfigError, RecordsError
from ted.records.states import FINAL, HOLDS, IN_SERVICE, NodeState, State, now_text, supersedes

_metadata = MetaData()
_name = String(128)

_states = Table(
    "states", _metadata,
    Column("node", _name, primary_key=True),
    Column("distributor", _name, primary_key=True),
    Column("distribution", _name, primary_key=True),
    Column("revision", _name),
    Column("state", String(16), nullable=False),
    Column("at", String(40), nullable=False),
    Column("error", Text),
    Column("seq", BigInteger, nullable=False),
    Column("bytes_done", BigInteger, nullable=False),
    Column("bytes_total", BigInteger, nullable=False),
    Column("had", Boolean, nullable=False),
)  # fmt: skip
_installed = Table(
    "installed", _metadata,
    Column("node", _name, primary_key=True),
    Column("distributor", _name, primary_key=True),
    Column("distribution", _name, primary_key=True),
    Column("revision", _name),
)  # fmt: skip
_outbox = Table("outbox", _metadata, *[column._copy() for column in _states.columns])  # noqa: SLF001
_offers = Table(
    "offers", _metadata,
    Column("send", _name, primary_key=True),
    Column("child", _name, primary_key=True),  # "" = what this node itself was offered
    Column("distributor", _name, nullable=False),
    Column("distribution", _name, nullable=False),
    Column("revision", _name, nullable=False),
    Column("slip", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("put_at_s", BigInteger, nullable=False),
    Index("offers_of", "distributor", "distribution", "child"),
)  # fmt: skip
_sends = Table(
    "sends", _metadata,
    Column("send", String(64), primary_key=True),
    Column("distributor", _name, nullable=False),
    Column("distribution", _name, nullable=False),
    Column("channel", _name),
    Column("revision", _name, nullable=False),
    Column("started_at", String(40), nullable=False),
    Column("ended_at", String(40)),
    Column("news_at_s", BigInteger, nullable=False),
    Column("tree", Text, nullable=False),
)  # fmt: skip
_deliveries = Table(
    "deliveries", _metadata,
    Column("send", String(64), primary_key=True),
    Column("node", _name, primary_key=True),
    Column("sender", _name, nullable=False),
    Column("target", Boolean, nullable=False),
    Column("state", String(16), nullable=False),
    Column("had", Boolean, nullable=False),
    Column("error", Text),
    Column("bytes_done", BigInteger, nullable=False),
    Column("bytes_total", BigInteger, nullable=False),
)  # fmt: skip
_events = Table(
    "events", _metadata,
    Column("id", Integer, primary_key=True),
    Column("at", String(40), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("node", _name, nullable=False),
    Column("distributor", _name),
    Column("distribution", _name),
    Column("revision", _name),
    Column("message", Text, nullable=False),
)  # fmt: skip


_NODE_STATE = ("node", "distributor", "distribution")


def _same(table: Table, *names: str) -> Any:
    """Return the condition that these columns are what the parameters ``of_...`` say."""
    return and_(*[table.c[name] == bindparam(f"of_{name}") for name in names])


class _Keyed:
    """Rows of a table that are found and replaced by some of their columns.

    The statements are made once: composing one costs more than asking it, and each node's news asks several.
    """

    def __init__(self, table: Table, *names: str) -> None:
        self._names, same = names, _same(table, *names)
        self._find, self._update, self._insert = select(table).where(same), update(table).where(same), insert(table)

    def find(self, db: Connection, values: Mapping[str, Any]) -> Any:
        """Return the row with the key that is in ``values``, or ``None``."""
        return db.execute(self._find, self._key(values)).first()

    def put(self, db: Connection, values: dict[str, Any]) -> None:
        """Insert or replace; the caller holds the transaction."""
        if db.execute(self._update, values | self._key(values)).rowcount:
            return
        try:
            with db.begin_nested():
                db.execute(self._insert, values)
        except IntegrityError:  # another process was first
            db.execute(self._update, values | self._key(values))

    def _key(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {f"of_{name}": values[name] for name in self._names}


_STATES, _OUTBOX, _INSTALLED = (_Keyed(table, *_NODE_STATE) for table in (_states, _outbox, _installed))
_OFFERS = _Keyed(_offers, "send", "child")
_TAKEN = delete(_outbox).where(_same(_outbox, *_NODE_STATE, "seq", "at"))
_OPEN_SENDS = select(_sends.c.send).where(
    _same(_sends, "distributor", "distribution", "revision"), _sends.c.ended_at.is_(None)
)
_NOT_ARRIVED = update(_deliveries).where(
    _same(_deliveries, "send", "node"), _deliveries.c.state.not_in(list(HOLDS))
)
_SLIPS = select(_offers.c.send, _offers.c.slip).where(
    _same(_offers, "child", "distributor", "distribution")
).order_by(_offers.c.put_at_s.desc(), _offers.c.send)  # fmt: skip


def _with_installed(table: Table) -> Select[Any]:
    """Return the question for states, each with the revision that is in service."""
    same = and_(*[table.c[name] == _installed.c[name] for name in _NODE_STATE])
    return select(table, _installed.c.revision.label("installed")).outerjoin(_installed, same)


_WAITING = _with_installed(_outbox).order_by(_outbox.c.seq)

BUSY_S = 20
EVENTS_KEPT = 10_000
SENDS_KEPT = 1_000
OFFERS_KEPT_S = 14 * 86_400  # twice the life of a slip


class SlipLike(Protocol):
    """What the journal keeps of a routing slip."""

    @property
    def header(self) -> Any:
        """Its signed header."""

    def encode(self) -> dict[str, Any]:
        """Return it as JSON."""


class Journal:
    """A node's records in a database; safe for threads and processes.

    Args:
        url: SQLAlchemy URL, such as ``sqlite:////var/lib/ted/.ted/records.sqlite``.
        node: This node's name: whose sequence numbers are counted here.
    """

    def __init__(self, url: str, node: str) -> None:
        self.node = node
        try:
            self._engine = _engine(url)
            # with the write lock from the start: another process may be making the tables at this moment
            with self._engine.connect() as connection, (
                db := connection.execution_options(ted_writes=True)
            ).begin():
                _metadata.create_all(db)
        except OperationalError as error:
            if "already exists" not in str(error):  # as above, in a database without that lock
                raise AgentError(f"records database {_without_password(url)}: {error.orig}",
                                 hint="see that its directory exists and is this user's") from error  # fmt: skip
        except (SQLAlchemyError, ImportError) as error:
            raise ConfigError(f"database_url {_without_password(url)}: {error}") from error

    @classmethod
    def at(cls, working_directory: Path, node: str) -> Journal:
        """Open the SQLite journal in a working directory."""
        directory = working_directory / ".ted"
        directory.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{directory}/records.sqlite", node)

    def close(self) -> None:
        """Give back every connection."""
        self._engine.dispose()

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._translated(), self._engine.connect() as db:
            yield db

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._translated(), self._engine.connect() as connection:
            db = connection.execution_options(ted_writes=True)
            with db.begin():
                yield db

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            cause = getattr(error, "orig", None) or error
            raise RecordsError(f"the records of {self.node} cannot be used now: {cause}",
                               hint="is the disk full, or the database down?") from error  # fmt: skip

    # -- states -----------------------------------------------------------------------------------------

    def report(
        self, distributor: str, distribution: str, revision: str | None, state: State, *, error: str | None = None,
        bytes_done: int = 0, bytes_total: int = 0, had: bool = False, installed: str | None = None,
    ) -> NodeState:  # fmt: skip
        """Record what this node itself did, and put a receipt into the outbox.

        ``installed`` is the revision in service, where that is known and not said by ``state`` and ``revision``.
        """
        installed = revision if state in IN_SERVICE else installed
        row = NodeState(self.node, distributor, distribution, revision, state, now_text(), error,
                        time.time_ns(), bytes_done, bytes_total, had, installed)  # fmt: skip
        with self._writing() as db:
            former = _STATES.find(db, _values(row))
            if former is not None and former.seq >= row.seq:  # the clock went back
                row = NodeState(**(row.to_dict() | {"seq": former.seq + 1, "state": state}))
            _note_former(db, former)
            _STATES.put(db, _values(row))
            _OUTBOX.put(db, _values(row))
            if state is not State.RECEIVING:
                _tell(db, row)
            _note_installed(db, row)
        return row

    def learn(self, rows: Collection[NodeState], *, forward: bool) -> list[NodeState]:
        """Record other nodes' news; old news is left out. ``forward`` puts it into the outbox as well.

        Returns:
            The rows that were news.
        """
        news: list[NodeState] = []
        if not rows:
            return news
        with self._writing() as db:
            for row in rows:
                former = _STATES.find(db, _values(row))
                if former is not None and not supersedes(row, _state(former)):
                    if forward and row.had and (row.state, row.revision) != (former.state, former.revision):
                        _forward_only(db, row)
                    continue
                # the same again, in answer to an offer: those above hear it in the answer to theirs
                told = former is not None and row.had and (former.state, former.revision) == (row.state, row.revision)
                kept = _values(row)
                if former is not None and row.seq == 0:
                    kept["seq"] = former.seq  # a guess keeps the node's own count: its next news is still newer
                _note_former(db, former)
                _STATES.put(db, kept)
                if forward and not told:
                    _OUTBOX.put(db, _values(row))
                if row.state is not State.RECEIVING and not told:
                    _tell(db, row)
                _note_installed(db, row)
                news.append(row)
        return news

    def states(
        self, *, node: str | None = None, distributor: str | None = None, distribution: str | None = None
    ) -> list[NodeState]:
        """Return what is known, ordered by distributor, distribution and node."""
        wanted = {"node": node, "distributor": distributor, "distribution": distribution}
        query = _with_installed(_states).where(*[_states.c[k] == v for k, v in wanted.items() if v is not None])
        query = query.order_by(_states.c.distributor, _states.c.distribution, _states.c.node)
        with self._reading() as db:
            return [_state(row) for row in db.execute(query)]

    def forget(self, distributor: str, distribution: str, nodes: Iterable[str] | None = None) -> None:
        """Drop what is known of a distribution (on ``nodes`` only, when given)."""
        only = None if nodes is None else list(nodes)
        with self._writing() as db:
            for table in (_states, _installed):
                clause = and_(table.c.distributor == distributor, table.c.distribution == distribution)
                db.execute(delete(table).where(clause if only is None else and_(clause, table.c.node.in_(only))))

    # -- receipts on their way up ------------------------------------------------------------------------

    def outbox(self) -> list[NodeState]:
        """Return the receipts not yet taken by the node above."""
        with self._reading() as db:
            return [_state(row) for row in db.execute(_WAITING)]

    def taken(self, rows: Iterable[NodeState]) -> None:
        """Forget receipts that the node above has, unless newer ones came meanwhile."""
        with self._writing() as db:
            for row in rows:
                db.execute(_TAKEN, _of(row, *_NODE_STATE, "seq", "at"))

    # -- offers ------------------------------------------------------------------------------------------

    def put_offers(self, offers: Iterable[tuple[str, SlipLike]]) -> None:
        """Remember offers until they are done: (child, slip), child ``""`` for what this node itself was offered.

        An offer of a send that is known already is opened again.
        """
        with self._writing() as db:
            for child, slip in offers:
                header = slip.header
                row = {
                    "send": header.send, "child": child, "distributor": header.distributor,
                    "distribution": header.distribution, "revision": header.revision,
                    "slip": json.dumps(slip.encode()), "status": "open", "put_at_s": int(time.time()),
                }  # fmt: skip
                _OFFERS.put(db, row)

    def close_offer(self, send: str, status: str, *, child: str = "") -> None:
        """Say how an offer ended: done, taken, failed or superseded."""
        with self._writing() as db:
            db.execute(update(_offers).values(status=status).where(_offers.c.send == send, _offers.c.child == child))

    def offers(
        self, *, status: str | None = None, child: str | None = None, distributor: str | None = None,
        distribution: str | None = None, most: int | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Return offers, newest first, ``most`` of them: the columns of the table, ``slip`` as JSON."""
        wanted = {"status": status, "child": child, "distributor": distributor, "distribution": distribution}
        query = select(_offers).where(*[_offers.c[k] == v for k, v in wanted.items() if v is not None])
        with self._reading() as db:
            found = db.execute(query.order_by(_offers.c.put_at_s.desc(), _offers.c.send).limit(most)).all()
        rows = [dict(row._mapping) for row in found]  # noqa: SLF001
        return [row | {"slip": json.loads(row["slip"])} for row in rows]

    def slips(self, child: str, distributor: str, distribution: str) -> list[tuple[str, str]]:
        """Return (send, slip as JSON text) of the offers to a child (``""``: of those to this node), newest first."""
        key = {"of_child": child, "of_distributor": distributor, "of_distribution": distribution}
        with self._reading() as db:
            return [(row.send, row.slip) for row in db.execute(_SLIPS, key)]

    # -- sends -------------------------------------------------------------------------------------------

    def start_send(self, send: str, *, distributor: str, distribution: str, channel: str | None, revision: str,
                   tree: list[Any], hops: list[tuple[str, str, bool]]) -> None:  # fmt: skip
        """Record a send and one delivery for each hop: (sender, receiver, is a target)."""
        with self._writing() as db:
            db.execute(insert(_sends).values(
                send=send, distributor=distributor, distribution=distribution, channel=channel, revision=revision,
                started_at=now_text(), ended_at=None, tree=json.dumps(tree), news_at_s=int(time.time()),
            ))  # fmt: skip
            if hops:
                db.execute(insert(_deliveries), [
                    {"send": send, "sender": sender, "node": receiver, "target": target, "state": State.PENDING,
                     "had": False, "error": None, "bytes_done": 0, "bytes_total": 0}
                    for sender, receiver, target in hops
                ])  # fmt: skip
            self._end_if_done(db, send)

    def deliver(self, rows: Collection[NodeState]) -> None:
        """Apply news to the deliveries of every open send that it concerns.

        A delivery that has arrived stays what it was then: what the node does later with the revision is a matter
        of its state.
        """
        if not rows:
            return
        with self._writing() as db:
            touched: set[str] = set()
            for row in rows:
                sends = db.execute(_OPEN_SENDS, _of(row, "distributor", "distribution", "revision")).scalars().all()
                values: dict[str, Any] = {"state": row.state, "error": row.error, "had": row.had}
                if row.bytes_total and not row.had:
                    values |= {"bytes_done": row.bytes_done, "bytes_total": row.bytes_total}
                for send in sends:
                    db.execute(_NOT_ARRIVED, values | {"of_send": send, "of_node": row.node})
                    touched.add(send)
            for send in touched:
                db.execute(update(_sends).values(news_at_s=int(time.time())).where(_sends.c.send == send))
                self._end_if_done(db, send)

    def supersede(self, distributor: str, distribution: str, revision: str, nodes: Iterable[str]) -> None:
        """Give up, in open sends of other revisions, the deliveries to ``nodes`` that have not arrived."""
        with self._writing() as db:
            older = db.execute(select(_sends.c.send).where(
                _sends.c.distributor == distributor, _sends.c.distribution == distribution,
                _sends.c.revision != revision, _sends.c.ended_at.is_(None),
            )).scalars().all()  # fmt: skip
            self._give_up(db, older, f"superseded by revision {revision}", nodes=list(nodes))

    def give_up_silent(self, silent_for_s: float) -> None:
        """Give up the deliveries of sends of which nothing was heard for that long."""
        with self._writing() as db:
            silent = db.execute(select(_sends.c.send).where(
                _sends.c.ended_at.is_(None), _sends.c.news_at_s < time.time() - silent_for_s,
            )).scalars().all()  # fmt: skip
            self._give_up(db, silent, f"nothing was heard of it for {silent_for_s:.0f} s", nodes=None)

    def _give_up(self, db: Connection, sends: Iterable[str], why: str, *, nodes: list[str] | None) -> None:
        for send in sends:
            where = and_(_deliveries.c.send == send, _deliveries.c.state.not_in([*FINAL, State.EXTRACTING]))
            if nodes is not None:
                where = and_(where, _deliveries.c.node.in_(nodes))
            db.execute(update(_deliveries).values(state=State.FAILED, error=why).where(where))
            self._end_if_done(db, send)

    def _end_if_done(self, db: Connection, send: str) -> None:
        open_ones = db.execute(
            select(_deliveries.c.node).where(
                _deliveries.c.send == send, _deliveries.c.state.not_in([*FINAL, State.EXTRACTING])
            )
        ).first()
        if open_ones is None:
            db.execute(update(_sends).values(ended_at=now_text()).where(_sends.c.send == send))

    def are_open(self, sends: Collection[str]) -> bool:
        """Return whether one of these sends has not ended: a small question, however many receivers there are."""
        query = select(_sends.c.send).where(_sends.c.send.in_(sends), _sends.c.ended_at.is_(None)).limit(1)
        with self._reading() as db:
            return db.execute(query).first() is not None

    def send(self, send: str) -> dict[str, Any] | None:
        """Return one send with its deliveries, or ``None``."""
        with self._reading() as db:
            head = db.execute(select(_sends).where(_sends.c.send == send)).first()
            if head is None:
                return None
            rows = db.execute(select(_deliveries).where(_deliveries.c.send == send)).all()
        return dict(head._mapping) | {  # noqa: SLF001
            "tree": json.loads(head.tree), "deliveries": [dict(row._mapping) for row in rows]  # noqa: SLF001
        }  # fmt: skip

    def brought(self, distributor: str, distribution: str, revision: str) -> set[str]:
        """Return the nodes that have a revision by a send that is still remembered."""
        query = select(_deliveries.c.node).join(_sends, _sends.c.send == _deliveries.c.send).where(
            _sends.c.distributor == distributor, _sends.c.distribution == distribution,
            _sends.c.revision == revision, _deliveries.c.state.in_(list(HOLDS)),
        )  # fmt: skip
        with self._reading() as db:
            return set(db.execute(query).scalars())

    def last_brought(self, distributor: str, distribution: str) -> dict[str, str]:
        """Return the newest revision that each node has by a send that is still remembered."""
        query = select(_deliveries.c.node, func.max(_sends.c.revision)).join(
            _sends, _sends.c.send == _deliveries.c.send
        ).where(
            _sends.c.distributor == distributor, _sends.c.distribution == distribution,
            _deliveries.c.state.in_(list(HOLDS)),
        ).group_by(_deliveries.c.node)  # fmt: skip
        with self._reading() as db:
            return {row[0]: row[1] for row in db.execute(query)}

    def sends(self, *, open_only: bool = False) -> list[dict[str, Any]]:
        """Return the heads of the sends, newest first."""
        query = select(_sends).order_by(_sends.c.started_at.desc())
        if open_only:
            query = query.where(_sends.c.ended_at.is_(None))
        with self._reading() as db:
            return [dict(row._mapping) for row in db.execute(query)]  # noqa: SLF001

    # -- events ------------------------------------------------------------------------------------------

    def note(self, kind: str, message: str, *, distributor: str | None = None, distribution: str | None = None,
             revision: str | None = None) -> None:  # fmt: skip
        """Record that something happened on this node."""
        with self._writing() as db:
            _event(db, kind, self.node, distributor, distribution, revision, message)

    def events(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the newest events, newest first."""
        with self._reading() as db:
            rows = db.execute(select(_events).order_by(_events.c.id.desc()).limit(limit)).all()
        return [dict(row._mapping) for row in rows]  # noqa: SLF001

    def failed_builds(self) -> list[dict[str, Any]]:
        """Return the newest word on each distribution's builds (``built``, ``build_failed``) where it is a failure."""
        newest = select(func.max(_events.c.id)).where(
            _events.c.node == self.node, _events.c.kind.in_(["built", "build_failed"])
        ).group_by(_events.c.distribution)  # fmt: skip
        query = select(_events).where(_events.c.id.in_(newest), _events.c.kind == "build_failed")
        with self._reading() as db:
            return [dict(row._mapping) for row in db.execute(query.order_by(_events.c.id.desc()))]  # noqa: SLF001

    def trim(self, max_age_s: float | None = None) -> None:
        """Drop events beyond the newest ``EVENTS_KEPT``, or older than ``max_age_s``, and old offers.

        The newest offer of a distribution to each child stays however old it is: it says who is behind that child,
        and, of this node's own, who is above it and whether it is a target.
        """
        with self._writing() as db:
            newest = db.execute(select(_events.c.id).order_by(_events.c.id.desc()).limit(1)).scalar() or 0
            db.execute(delete(_events).where(_events.c.id <= newest - EVENTS_KEPT))
            too_old_s = time.time() - OFFERS_KEPT_S
            newer = _offers.alias()
            db.execute(delete(_offers).where(
                _offers.c.status != "open", _offers.c.put_at_s < too_old_s,
                exists().where(newer.c.child == _offers.c.child, newer.c.distributor == _offers.c.distributor,
                               newer.c.distribution == _offers.c.distribution,
                               newer.c.put_at_s > _offers.c.put_at_s),
            ))  # fmt: skip
            ended = select(_sends.c.send).where(_sends.c.ended_at.is_not(None)).order_by(_sends.c.started_at.desc())
            for send in db.execute(ended.offset(SENDS_KEPT)).scalars().all():
                db.execute(delete(_deliveries).where(_deliveries.c.send == send))
                db.execute(delete(_sends).where(_sends.c.send == send))
            if max_age_s is not None:
                limit = (datetime.now(UTC) - timedelta(seconds=max_age_s)).isoformat(timespec="milliseconds")
                db.execute(delete(_events).where(_events.c.at < limit))


def _engine(url: str) -> Engine:
    is_file = url.startswith("sqlite")
    engine = create_engine(url, pool_pre_ping=not is_file, pool_size=8, max_overflow=64, pool_timeout=60)
    if is_file:

        @event.listens_for(engine, "connect")
        def _tune(connection: Any, _record: Any) -> None:
            # WAL: readers never wait for the writer. NORMAL: kill -9 loses nothing; after a power cut the last
            # moments may be gone, and the states on disk (DISTSTATUS.TED) are what counts then.
            connection.isolation_level = None
            connection.execute(f"PRAGMA busy_timeout={BUSY_S * 1000}")
            _switch_to_wal(connection)
            connection.execute("PRAGMA synchronous=NORMAL")

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            # writers take the lock from the start: a read that turns into a write would fail under another writer
            writes = connection.get_execution_options().get("ted_writes")
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _switch_to_wal(connection: Any) -> None:
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


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url

    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "(not an URL)"


def _of(row: NodeState, *names: str) -> dict[str, Any]:
    return {f"of_{name}": getattr(row, name) for name in names}


def _forward_only(db: Connection, row: NodeState) -> None:
    """Send on what a node said in answer to an offer although its state is another: it holds that revision."""
    waiting = _OUTBOX.find(db, _values(row))
    if waiting is None or waiting.seq <= row.seq:
        _OUTBOX.put(db, _values(row))


def _values(row: NodeState) -> dict[str, Any]:
    """Return the columns of a state; what is installed has a table of its own."""
    return {name: value for name, value in row.to_dict().items() if name != "installed"}


def _note_installed(db: Connection, row: NodeState) -> None:
    """Keep which revision is in service, where the node itself said it."""
    says = row.state in IN_SERVICE
    if row.seq and (says or row.installed is not None):
        revision = row.revision if says else row.installed
        values = {"node": row.node, "distributor": row.distributor, "distribution": row.distribution,
                  "revision": revision}  # fmt: skip
        _INSTALLED.put(db, values)


def _note_former(db: Connection, former: Any) -> None:
    """Keep what only a state tells that is about to be replaced: an older ted wrote no more than the states."""
    if former is not None and former.state in IN_SERVICE:
        row = _state(former)
        if _INSTALLED.find(db, _values(row)) is None:
            _note_installed(db, row)


def _tell(db: Connection, row: NodeState) -> None:
    """Put a state among the events, before what is installed is noted: a rollback tells from what it went back.

    Of another node it may be known late what was installed: what is older than where it went back to was not it.
    """
    message = row.error or ""
    if row.state is State.ROLLED_BACK and not message:
        former = _INSTALLED.find(db, _values(row))
        taken_back = former.revision if former is not None else None
        message = f"from {taken_back}" if (taken_back or "") > (row.revision or "") else ""
    _event(db, row.state, row.node, row.distributor, row.distribution, row.revision, message)


def _state(row: Any) -> NodeState:
    data = dict(row._mapping)  # noqa: SLF001
    state = State(data["state"])
    installed = data["revision"] if state in IN_SERVICE else data.get("installed")
    return NodeState(**(data | {"state": state, "had": bool(data["had"]), "installed": installed}))


def _event(db: Connection, kind: str, node: str, distributor: str | None, distribution: str | None,
           revision: str | None, message: str) -> None:  # fmt: skip
    db.execute(insert(_events).values(at=now_text(), kind=kind, node=node, distributor=distributor,
                                      distribution=distribution, revision=revision, message=message))  # fmt: skip
