"""The journal of one node: states, receipts on their way up, offers, sends and events.

Rules:
 * Every method is one transaction; several processes (agent, command, module) may use one journal at once.
 * Old news (``states.supersedes``) changes nothing.
 * The outbox keeps the latest receipt of each (node, distributor, distribution): it is bounded by the topology.
 * Offers and sends are written before they are acknowledged, so a killed agent goes on with them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    and_,
    create_engine,
    delete,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, OperationalError, SQLAlchemyError

from ted.errors import AgentError, ConfigError
from ted.records.states import FINAL, HOLDS, NodeState, State, now_text, supersedes

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
_outbox = Table("outbox", _metadata, *[column._copy() for column in _states.columns])  # noqa: SLF001
_offers = Table(
    "offers", _metadata,
    Column("distributor", _name, primary_key=True),
    Column("distribution", _name, primary_key=True),
    Column("child", _name, primary_key=True),  # "" = what this node itself was offered
    Column("revision", _name, nullable=False),
    Column("slip", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("first_try_at_s", BigInteger, nullable=False),
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

EVENTS_KEPT = 10_000


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
            _metadata.create_all(self._engine)
        except OperationalError as error:
            if "already exists" not in str(error):  # two processes made the tables at once
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

    # -- states -----------------------------------------------------------------------------------------

    def report(
        self, distributor: str, distribution: str, revision: str | None, state: State, *, error: str | None = None,
        bytes_done: int = 0, bytes_total: int = 0, had: bool = False,
    ) -> NodeState:  # fmt: skip
        """Record what this node itself did, and put a receipt into the outbox."""
        row = NodeState(self.node, distributor, distribution, revision, state, now_text(), error,
                        time.time_ns(), bytes_done, bytes_total, had)  # fmt: skip
        with self._engine.begin() as db:
            former = db.execute(select(_states.c.seq).where(_key(_states, row))).scalar()
            if former is not None and former >= row.seq:  # the clock went back
                row = NodeState(**(row.to_dict() | {"seq": former + 1, "state": state}))
            _put(db, _states, row.to_dict(), _key(_states, row))
            _put(db, _outbox, row.to_dict(), _key(_outbox, row))
            if state is not State.RECEIVING:
                _event(db, row.state, row.node, row.distributor, row.distribution, row.revision, row.error or "")
        return row

    def learn(self, rows: Iterable[NodeState], *, forward: bool) -> list[NodeState]:
        """Record other nodes' news; old news is left out. ``forward`` puts it into the outbox as well.

        Returns:
            The rows that were news.
        """
        news = []
        with self._engine.begin() as db:
            for row in rows:
                former = db.execute(select(_states).where(_key(_states, row))).first()
                if former is not None and not supersedes(row, _state(former)):
                    continue
                # the same again, in answer to an offer: those above hear it in the answer to theirs
                told = former is not None and row.had and (former.state, former.revision) == (row.state, row.revision)
                kept = row.to_dict()
                if former is not None and row.seq == 0:
                    kept["seq"] = former.seq  # a guess keeps the node's own count: its next news is still newer
                _put(db, _states, kept, _key(_states, row))
                if forward and not told:
                    _put(db, _outbox, row.to_dict(), _key(_outbox, row))
                if row.state is not State.RECEIVING and not told:
                    _event(db, row.state, row.node, row.distributor, row.distribution, row.revision, row.error or "")
                news.append(row)
        return news

    def states(
        self, *, node: str | None = None, distributor: str | None = None, distribution: str | None = None
    ) -> list[NodeState]:
        """Return what is known, ordered by distributor, distribution and node."""
        wanted = {"node": node, "distributor": distributor, "distribution": distribution}
        query = select(_states).where(*[_states.c[k] == v for k, v in wanted.items() if v is not None])
        query = query.order_by(_states.c.distributor, _states.c.distribution, _states.c.node)
        with self._engine.connect() as db:
            return [_state(row) for row in db.execute(query)]

    def forget(self, distributor: str, distribution: str, nodes: Iterable[str] | None = None) -> None:
        """Drop what is known of a distribution (on ``nodes`` only, when given)."""
        clause = and_(_states.c.distributor == distributor, _states.c.distribution == distribution)
        if nodes is not None:
            clause = and_(clause, _states.c.node.in_(list(nodes)))
        with self._engine.begin() as db:
            db.execute(delete(_states).where(clause))

    # -- receipts on their way up ------------------------------------------------------------------------

    def outbox(self) -> list[NodeState]:
        """Return the receipts not yet taken by the node above."""
        with self._engine.connect() as db:
            return [_state(row) for row in db.execute(select(_outbox).order_by(_outbox.c.seq))]

    def taken(self, rows: Iterable[NodeState]) -> None:
        """Forget receipts that the node above has, unless newer ones came meanwhile."""
        with self._engine.begin() as db:
            for row in rows:
                db.execute(delete(_outbox).where(
                    _key(_outbox, row), _outbox.c.seq == row.seq, _outbox.c.at == row.at
                ))  # fmt: skip

    # -- offers ------------------------------------------------------------------------------------------

    def put_offer(self, slip: dict[str, Any], *, distributor: str, distribution: str, revision: str,
                  child: str = "") -> None:  # fmt: skip
        """Remember an offer (received, or to be made to ``child``) until it is done."""
        row = {
            "distributor": distributor, "distribution": distribution, "child": child, "revision": revision,
            "slip": json.dumps(slip), "status": "open", "first_try_at_s": int(time.time()),
        }  # fmt: skip
        with self._engine.begin() as db:
            _put(db, _offers, row, _offer_key(distributor, distribution, child))

    def close_offer(self, distributor: str, distribution: str, revision: str, status: str, *,
                    child: str = "") -> None:  # fmt: skip
        """Say how an offer ended, unless a newer one took its place."""
        with self._engine.begin() as db:
            db.execute(
                update(_offers).values(status=status).where(
                    _offer_key(distributor, distribution, child), _offers.c.revision == revision
                )
            )  # fmt: skip

    def offers(self, *, status: str | None = None, child: str | None = None) -> list[dict[str, Any]]:
        """Return offers: ``{"distributor", "distribution", "child", "revision", "slip", "status", ...}``."""
        query = select(_offers)
        if status is not None:
            query = query.where(_offers.c.status == status)
        if child is not None:
            query = query.where(_offers.c.child == child)
        with self._engine.connect() as db:
            rows = [dict(row._mapping) for row in db.execute(query)]  # noqa: SLF001
        return [row | {"slip": json.loads(row["slip"])} for row in rows]

    def offer(self, distributor: str, distribution: str, child: str = "") -> dict[str, Any] | None:
        """Return one offer, or ``None``."""
        with self._engine.connect() as db:
            row = db.execute(select(_offers).where(_offer_key(distributor, distribution, child))).first()
        return None if row is None else dict(row._mapping) | {"slip": json.loads(row.slip)}  # noqa: SLF001

    # -- sends -------------------------------------------------------------------------------------------

    def start_send(self, send: str, *, distributor: str, distribution: str, channel: str | None, revision: str,
                   tree: list[Any], hops: list[tuple[str, str, bool]]) -> None:  # fmt: skip
        """Record a send and one delivery for each hop: (sender, receiver, is a target)."""
        with self._engine.begin() as db:
            db.execute(insert(_sends).values(
                send=send, distributor=distributor, distribution=distribution, channel=channel, revision=revision,
                started_at=now_text(), ended_at=None, tree=json.dumps(tree),
            ))  # fmt: skip
            if hops:
                db.execute(insert(_deliveries), [
                    {"send": send, "sender": sender, "node": receiver, "target": target, "state": State.PENDING,
                     "had": False, "error": None, "bytes_done": 0, "bytes_total": 0}
                    for sender, receiver, target in hops
                ])  # fmt: skip
            self._end_if_done(db, send)

    def deliver(self, rows: Iterable[NodeState]) -> None:
        """Apply news to the deliveries of every open send that it concerns."""
        with self._engine.begin() as db:
            touched: set[str] = set()
            for row in rows:
                sends = db.execute(select(_sends.c.send).where(
                    _sends.c.distributor == row.distributor, _sends.c.distribution == row.distribution,
                    _sends.c.revision == row.revision, _sends.c.ended_at.is_(None),
                )).scalars().all()  # fmt: skip
                for send in sends:
                    where = and_(_deliveries.c.send == send, _deliveries.c.node == row.node)
                    values: dict[str, Any] = {"state": row.state, "error": row.error, "had": row.had}
                    if row.bytes_total and not row.had:
                        values |= {"bytes_done": row.bytes_done, "bytes_total": row.bytes_total}
                    if row.state in HOLDS:  # a delivery stays what it was when the revision arrived
                        where = and_(where, _deliveries.c.state.not_in(list(HOLDS)))
                    db.execute(update(_deliveries).values(values).where(where))
                    touched.add(send)
            for send in touched:
                self._end_if_done(db, send)

    def _end_if_done(self, db: Any, send: str) -> None:
        open_ones = db.execute(
            select(_deliveries.c.node).where(
                _deliveries.c.send == send, _deliveries.c.state.not_in([*FINAL, State.EXTRACTING])
            )
        ).first()
        if open_ones is None:
            db.execute(update(_sends).values(ended_at=now_text()).where(_sends.c.send == send))

    def end_send(self, send: str) -> None:
        """Stop following a send."""
        with self._engine.begin() as db:
            db.execute(update(_sends).values(ended_at=now_text()).where(
                _sends.c.send == send, _sends.c.ended_at.is_(None)))  # fmt: skip

    def send(self, send: str) -> dict[str, Any] | None:
        """Return one send with its deliveries, or ``None``."""
        with self._engine.connect() as db:
            head = db.execute(select(_sends).where(_sends.c.send == send)).first()
            if head is None:
                return None
            rows = db.execute(select(_deliveries).where(_deliveries.c.send == send)).all()
        return dict(head._mapping) | {  # noqa: SLF001
            "tree": json.loads(head.tree), "deliveries": [dict(row._mapping) for row in rows]  # noqa: SLF001
        }  # fmt: skip

    def sends(self, *, open_only: bool = False) -> list[dict[str, Any]]:
        """Return the heads of the sends, newest first."""
        query = select(_sends).order_by(_sends.c.started_at.desc())
        if open_only:
            query = query.where(_sends.c.ended_at.is_(None))
        with self._engine.connect() as db:
            return [dict(row._mapping) for row in db.execute(query)]  # noqa: SLF001

    # -- events ------------------------------------------------------------------------------------------

    def note(self, kind: str, message: str, *, distributor: str | None = None, distribution: str | None = None,
             revision: str | None = None) -> None:  # fmt: skip
        """Record that something happened on this node."""
        with self._engine.begin() as db:
            _event(db, kind, self.node, distributor, distribution, revision, message)

    def events(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the newest events, newest first."""
        with self._engine.connect() as db:
            rows = db.execute(select(_events).order_by(_events.c.id.desc()).limit(limit)).all()
        return [dict(row._mapping) for row in rows]  # noqa: SLF001

    def trim(self, max_age_s: float | None = None) -> None:
        """Drop events beyond the newest ``EVENTS_KEPT``, or older than ``max_age_s``."""
        with self._engine.begin() as db:
            newest = db.execute(select(_events.c.id).order_by(_events.c.id.desc()).limit(1)).scalar() or 0
            db.execute(delete(_events).where(_events.c.id <= newest - EVENTS_KEPT))
            if max_age_s is not None:
                from datetime import UTC, datetime, timedelta

                limit = (datetime.now(UTC) - timedelta(seconds=max_age_s)).isoformat(timespec="milliseconds")
                db.execute(delete(_events).where(_events.c.at < limit))


def _engine(url: str) -> Engine:
    engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    if url.startswith("sqlite"):

        @event.listens_for(engine, "connect")
        def _tune(connection: Any, _record: Any) -> None:
            # WAL: readers never wait for the writer. NORMAL: kill -9 loses nothing; after a power cut the last
            # moments may be gone, and the states on disk (DISTSTATUS.TED) are what counts then.
            connection.isolation_level = None
            connection.execute("PRAGMA busy_timeout=20000")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")

        @event.listens_for(engine, "begin")
        def _begin(connection: Any) -> None:
            # a write lock from the start: a read that turns into a write would fail under another writer
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _without_password(url: str) -> str:
    from sqlalchemy.engine import make_url

    try:
        return make_url(url).render_as_string(hide_password=True)
    except SQLAlchemyError:
        return "(not an URL)"


def _key(table: Table, row: NodeState) -> Any:
    return and_(table.c.node == row.node, table.c.distributor == row.distributor,
                table.c.distribution == row.distribution)  # fmt: skip


def _offer_key(distributor: str, distribution: str, child: str) -> Any:
    return and_(_offers.c.distributor == distributor, _offers.c.distribution == distribution,
                _offers.c.child == child)  # fmt: skip


def _put(db: Any, table: Table, values: dict[str, Any], key: Any) -> None:
    """Insert or replace; the caller holds the transaction."""
    if db.execute(update(table).values(values).where(key)).rowcount:
        return
    try:
        with db.begin_nested():
            db.execute(insert(table).values(values))
    except IntegrityError:  # another process was first
        db.execute(update(table).values(values).where(key))


def _state(row: Any) -> NodeState:
    data = dict(row._mapping)  # noqa: SLF001
    return NodeState(**(data | {"state": State(data["state"]), "had": bool(data["had"])}))


def _event(db: Any, kind: str, node: str, distributor: str | None, distribution: str | None,
           revision: str | None, message: str) -> None:  # fmt: skip
    db.execute(insert(_events).values(at=now_text(), kind=kind, node=node, distributor=distributor,
                                      distribution=distribution, revision=revision, message=message))  # fmt: skip
