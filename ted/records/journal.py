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
import os
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from ted.records.database import Database, Row, Statements
from ted.records.states import FINAL, HOLDS, IN_SERVICE, NOT_ASKED, NodeState, State, clean, now_text, supersedes


class _Table:
    """A table whose rows are found and replaced by their key."""

    def __init__(self, name: str, key: Mapping[str, str], others: Mapping[str, str]) -> None:
        self.name, self.columns = name, {**key, **others}
        columns = ", ".join(f"{column} {kind}" for column, kind in self.columns.items())
        same = " AND ".join(f"{column} = :{column}" for column in key)
        self.create = f"CREATE TABLE IF NOT EXISTS {name} ({columns}, PRIMARY KEY ({', '.join(key)}))"
        self._find = f"SELECT * FROM {name} WHERE {same}"
        self._put = (
            f"INSERT INTO {name} ({', '.join(self.columns)}) "
            f"VALUES ({', '.join(f':{column}' for column in self.columns)}) "
            f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET "
            + ", ".join(f"{column} = excluded.{column}" for column in others)
        )

    def find(self, db: Statements, values: Mapping[str, Any]) -> Row | None:
        """Return the row with the key that is in ``values``, or ``None``."""
        return db.first(self._find, values)

    def put(self, db: Statements, *rows: Mapping[str, Any]) -> None:
        """Insert or replace rows."""
        db.run_each(self._put, rows)


_NAME, _TIME = "VARCHAR(128)", "VARCHAR(40)"
_NODE_STATE = dict.fromkeys(("node", "distributor", "distribution"), f"{_NAME} NOT NULL")
_STATE = {
    "revision": _NAME, "state": "VARCHAR(16) NOT NULL", "at": f"{_TIME} NOT NULL", "error": "TEXT",
    "seq": "BIGINT NOT NULL", "bytes_done": "BIGINT NOT NULL", "bytes_total": "BIGINT NOT NULL",
    "had": "BOOLEAN NOT NULL",
}  # fmt: skip
_STATES, _OUTBOX = _Table("states", _NODE_STATE, _STATE), _Table("outbox", _NODE_STATE, _STATE)
_INSTALLED = _Table("installed", _NODE_STATE, {"revision": _NAME})
_OFFERS = _Table(  # child "": what this node itself was offered
    "offers",
    {"send": f"{_NAME} NOT NULL", "child": f"{_NAME} NOT NULL"},
    {"distributor": f"{_NAME} NOT NULL", "distribution": f"{_NAME} NOT NULL", "revision": f"{_NAME} NOT NULL",
     "slip": "TEXT NOT NULL", "status": "VARCHAR(16) NOT NULL", "put_at_s": "BIGINT NOT NULL"},
)  # fmt: skip
_SENDS = _Table(
    "sends",
    {"send": "VARCHAR(64) NOT NULL"},
    {"distributor": f"{_NAME} NOT NULL", "distribution": f"{_NAME} NOT NULL", "channel": _NAME,
     "revision": f"{_NAME} NOT NULL", "started_at": f"{_TIME} NOT NULL", "ended_at": _TIME,
     "news_at_s": "BIGINT NOT NULL", "tree": "TEXT NOT NULL"},
)  # fmt: skip
_DELIVERIES = _Table(
    "deliveries",
    {"send": "VARCHAR(64) NOT NULL", "node": f"{_NAME} NOT NULL"},
    {"sender": f"{_NAME} NOT NULL", "target": "BOOLEAN NOT NULL", "state": "VARCHAR(16) NOT NULL",
     "had": "BOOLEAN NOT NULL", "error": "TEXT", "bytes_done": "BIGINT NOT NULL", "bytes_total": "BIGINT NOT NULL"},
)  # fmt: skip
_EVENTS = _Table(
    "events",
    {"id": "BIGSERIAL"},
    {"at": f"{_TIME} NOT NULL", "kind": "VARCHAR(32) NOT NULL", "node": f"{_NAME} NOT NULL", "distributor": _NAME,
     "distribution": _NAME, "revision": _NAME, "message": "TEXT NOT NULL"},
)  # fmt: skip
_TABLES = [
    *(table.create for table in (_STATES, _OUTBOX, _INSTALLED, _OFFERS, _SENDS, _DELIVERIES, _EVENTS)),
    "CREATE INDEX IF NOT EXISTS offers_of ON offers (distributor, distribution, child)",
]
_VERSION = 1


def _listed(states: Iterable[State]) -> str:
    return "(" + ", ".join(f"'{state}'" for state in sorted(states)) + ")"


_OR_ASSUMED = f"OR substr(error, 1, {len(NOT_ASKED)}) = :not_asked"
_HOLDS, _ARRIVED = _listed(HOLDS), _listed([*FINAL, State.EXTRACTING])
_SAME_INSTALLED = " AND ".join(f"installed.{name} = known.{name}" for name in _NODE_STATE)


def _known(table: _Table) -> str:
    """Return the question for states, each with the revision that is in service."""
    return (
        f"SELECT known.*, installed.revision AS installed FROM {table.name} AS known "
        f"LEFT JOIN installed ON {_SAME_INSTALLED}"
    )


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
        url: ``sqlite:////var/lib/ted/.ted/records.sqlite`` or ``postgresql://user:password@host/name``.
        node: This node's name: whose sequence numbers are counted here.
    """

    def __init__(self, url: str, node: str) -> None:
        self.node = node
        self._database = Database(url, owner=node, tables=_TABLES, version=_VERSION)
        self._reading, self._writing = self._database.reading, self._database.writing

    @classmethod
    def at(cls, working_directory: Path, node: str) -> Journal:
        """Open the SQLite journal in a working directory."""
        directory = working_directory / ".ted"
        directory.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{quote(os.fsencode(directory))}/records.sqlite", node)

    def close(self) -> None:
        """Give back every connection."""
        self._database.close()

    def data_version(self) -> int | None:
        """Return a number that is another after everything that was written here (``Database.data_version``)."""
        return self._database.data_version()

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
            if former is not None and former["seq"] >= row.seq:  # the clock went back
                row = replace(row, seq=former["seq"] + 1)
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
                found = _STATES.find(db, _values(row))
                former = None if found is None else _state(found)
                if former is not None and not supersedes(row, former):
                    if forward and row.had and (row.state, row.revision) != (former.state, former.revision):
                        _forward_only(db, row)
                    continue
                # the same again, in answer to an offer: those above hear it in the answer to theirs
                told = former is not None and row.had and (former.state, former.revision) == (row.state, row.revision)
                kept = _values(row)
                if former is not None and row.seq == 0:
                    kept["seq"] = former.seq  # a guess keeps the node's own count: its next news is still newer
                _note_former(db, found)
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
        where, wanted = _where("known", node=node, distributor=distributor, distribution=distribution)
        order = "ORDER BY known.distributor, known.distribution, known.node"
        with self._reading() as db:
            return [_state(row) for row in db.rows(f"{_known(_STATES)} {where} {order}", wanted)]

    def forget(self, distributor: str, distribution: str, nodes: Iterable[str] | None = None) -> None:
        """Drop what is known of a distribution (on ``nodes`` only, when given)."""
        of = {"distributor": distributor, "distribution": distribution}
        with self._writing() as db:
            for table in (_STATES, _INSTALLED):
                drop = f"DELETE FROM {table.name} WHERE distributor = :distributor AND distribution = :distribution"
                if nodes is None:
                    db.run(drop, of)
                else:
                    db.run_each(f"{drop} AND node = :node", [of | {"node": node} for node in nodes])

    # -- receipts on their way up ------------------------------------------------------------------------

    def outbox(self) -> list[NodeState]:
        """Return the receipts not yet taken by the node above."""
        with self._reading() as db:
            return [_state(row) for row in db.rows(f"{_known(_OUTBOX)} ORDER BY known.seq")]

    def taken(self, rows: Iterable[NodeState]) -> None:
        """Forget receipts that the node above has, unless newer ones came meanwhile."""
        with self._writing() as db:
            db.run_each(
                "DELETE FROM outbox WHERE node = :node AND distributor = :distributor "
                "AND distribution = :distribution AND seq = :seq AND at = :at",
                [_values(row) for row in rows],
            )

    # -- offers ------------------------------------------------------------------------------------------

    def put_offers(self, offers: Iterable[tuple[str, SlipLike]]) -> None:
        """Remember offers until they are done: (child, slip), child ``""`` for what this node itself was offered.

        An offer of a send that is known already is opened again.
        """
        rows = [
            {
                "send": slip.header.send, "child": child, "distributor": slip.header.distributor,
                "distribution": slip.header.distribution, "revision": slip.header.revision,
                "slip": json.dumps(slip.encode()), "status": "open", "put_at_s": int(time.time()),
            }
            for child, slip in offers
        ]  # fmt: skip
        with self._writing() as db:
            _OFFERS.put(db, *rows)

    def close_offer(self, send: str, status: str, *, child: str = "") -> None:
        """Say how an offer ended: done, taken, failed or superseded."""
        with self._writing() as db:
            db.run(
                "UPDATE offers SET status = :status WHERE send = :send AND child = :child",
                {"status": status, "send": send, "child": child},
            )

    def offers(
        self, *, status: str | None = None, child: str | None = None, distributor: str | None = None,
        distribution: str | None = None, most: int | None = None,
    ) -> list[dict[str, Any]]:  # fmt: skip
        """Return offers, newest first, ``most`` of them: the columns of the table, ``slip`` as JSON."""
        where, wanted = _where("offers", status=status, child=child, distributor=distributor, distribution=distribution)
        limit = "" if most is None else f"LIMIT {most:d}"
        with self._reading() as db:
            rows = db.rows(f"SELECT * FROM offers {where} ORDER BY put_at_s DESC, send {limit}", wanted)
        return [row | {"slip": json.loads(row["slip"])} for row in rows]

    def offered(self, child: str, distributor: str, distribution: str) -> list[str]:
        """Return the sends in which a distribution was offered to a child (``""``: to this node), newest first."""
        where, wanted = _where("offers", child=child, distributor=distributor, distribution=distribution)
        with self._reading() as db:
            rows = db.rows(f"SELECT send FROM offers {where} ORDER BY put_at_s DESC, send", wanted)
        return [row["send"] for row in rows]

    def slip(self, send: str, child: str) -> str | None:
        """Return the slip of an offer as JSON text."""
        with self._reading() as db:
            row = _OFFERS.find(db, {"send": send, "child": child})
        return None if row is None else row["slip"]

    # -- sends -------------------------------------------------------------------------------------------

    def start_send(
        self, send: str, *, distributor: str, distribution: str, channel: str | None, revision: str,
        tree: list[Any], hops: list[tuple[str, str, bool]], having: Collection[str] = (),
    ) -> None:  # fmt: skip
        """Record a send and one delivery for each hop: (sender, receiver, is a target).

        ``having`` are the receivers that are known to have the revision, should they not answer.
        """
        head = {
            "send": send, "distributor": distributor, "distribution": distribution, "channel": channel,
            "revision": revision, "started_at": now_text(), "ended_at": None, "tree": json.dumps(tree),
            "news_at_s": int(time.time()),
        }  # fmt: skip
        deliveries = [
            {"send": send, "sender": sender, "node": receiver, "target": target, "state": str(State.PENDING),
             "had": receiver in having, "error": None, "bytes_done": 0, "bytes_total": 0}
            for sender, receiver, target in hops
        ]  # fmt: skip
        with self._writing() as db:
            _SENDS.put(db, head)
            _DELIVERIES.put(db, *deliveries)
            _end_if_done(db, send)

    def deliver(self, rows: Collection[NodeState], *, unasked: bool = False) -> None:
        """Apply news to the deliveries of every open send that it concerns.

        A delivery that has arrived stays what it was then: what the node does later with the revision is a matter
        of its state. ``unasked``: these nodes do not answer; whoever was known to have the revision (``start_send``)
        has it, until it says something else itself.
        """
        if not rows:
            return
        with self._writing() as db:
            touched: set[str] = set()
            for row in rows:
                values = _values(row) | {"not_asked": NOT_ASKED, "why": f"{NOT_ASKED}{row.error}"}
                sends = db.rows(
                    "SELECT send FROM sends WHERE distributor = :distributor AND distribution = :distribution "
                    "AND revision = :revision AND ended_at IS NULL", values,
                )  # fmt: skip
                each_send = [values | each for each in sends]
                if unasked:
                    db.run_each(
                        "UPDATE deliveries SET state = 'received', error = :why "
                        f"WHERE send = :send AND node = :node AND had AND state NOT IN {_HOLDS}", each_send,
                    )  # fmt: skip
                had = ", had = :had" if row.seq else ""  # a guess knows nothing of that
                fetched = ", bytes_done = :bytes_done, bytes_total = :bytes_total"
                db.run_each(
                    f"UPDATE deliveries SET state = :state, error = :error{had}"
                    f"{fetched if row.bytes_total and not row.had else ''} WHERE send = :send AND node = :node "
                    f"AND (state NOT IN {_HOLDS} {_OR_ASSUMED if row.seq else ''})",
                    each_send,
                )
                touched |= {each["send"] for each in sends}
            for send in touched:
                db.run("UPDATE sends SET news_at_s = :now_s WHERE send = :send",
                       {"now_s": int(time.time()), "send": send})  # fmt: skip
                _end_if_done(db, send)

    def supersede(self, distributor: str, distribution: str, revision: str, nodes: Iterable[str]) -> None:
        """Give up, in open sends of other revisions, the deliveries to ``nodes`` that have not arrived."""
        with self._writing() as db:
            older = db.rows(
                "SELECT send FROM sends WHERE distributor = :distributor AND distribution = :distribution "
                "AND revision <> :revision AND ended_at IS NULL",
                {"distributor": distributor, "distribution": distribution, "revision": revision},
            )
            _give_up(db, older, f"superseded by revision {revision}", nodes=list(nodes))

    def give_up_silent(self, silent_for_s: float) -> None:
        """Give up the deliveries of sends of which nothing was heard for that long."""
        with self._writing() as db:
            silent = db.rows("SELECT send FROM sends WHERE ended_at IS NULL AND news_at_s < :since_s",
                             {"since_s": time.time() - silent_for_s})  # fmt: skip
            _give_up(db, silent, f"nothing was heard of it for {silent_for_s:.0f} s", nodes=None)

    def are_open(self, sends: Collection[str]) -> bool:
        """Return whether one of these sends has not ended: a small question, however many receivers there are."""
        asked = "SELECT send FROM sends WHERE send = :send AND ended_at IS NULL"
        with self._reading() as db:
            return any(db.first(asked, {"send": send}) for send in sends)

    def send(self, send: str) -> dict[str, Any] | None:
        """Return one send with its deliveries, or ``None``."""
        with self._reading() as db:
            head = _SENDS.find(db, {"send": send})
            rows = db.rows("SELECT * FROM deliveries WHERE send = :send", {"send": send})
        if head is None:
            return None
        deliveries = [row | {"target": bool(row["target"]), "had": bool(row["had"])} for row in rows]
        return head | {"tree": json.loads(head["tree"]), "deliveries": deliveries}

    def brought(self, distributor: str, distribution: str, revision: str, *, as_targets: bool = False) -> set[str]:
        """Return the nodes that have a revision by a send that is still remembered; ``as_targets``: for themselves."""
        where, wanted = _where("sends", distributor=distributor, distribution=distribution, revision=revision)
        those = f"{where} AND state IN {_HOLDS} {'AND target' if as_targets else ''}"
        with self._reading() as db:
            rows = db.rows(f"SELECT DISTINCT node {_DELIVERED} {those}", wanted)
        return {row["node"] for row in rows}

    def last_brought(self, distributor: str, distribution: str, *, after: str = "") -> dict[str, str]:
        """Return the newest revision, of those after ``after``, that each node has by a send still remembered."""
        where, wanted = _where("sends", distributor=distributor, distribution=distribution)
        asked = (
            f"SELECT node, max(revision) AS revision {_DELIVERED} {where} AND revision > :after "
            f"AND state IN {_HOLDS} GROUP BY node"
        )
        with self._reading() as db:
            return {row["node"]: row["revision"] for row in db.rows(asked, wanted | {"after": after})}

    def sends(self, *, open_only: bool = False) -> list[dict[str, Any]]:
        """Return the heads of the sends, newest first."""
        where = "WHERE ended_at IS NULL" if open_only else ""
        with self._reading() as db:
            return db.rows(f"SELECT * FROM sends {where} ORDER BY started_at DESC")

    # -- events ------------------------------------------------------------------------------------------

    def note(self, kind: str, message: str, *, distributor: str | None = None, distribution: str | None = None,
             revision: str | None = None) -> None:  # fmt: skip
        """Record that something happened on this node."""
        with self._writing() as db:
            _event(db, kind, self.node, distributor, distribution, revision, message)

    def events(self, limit: int = 100) -> list[dict[str, Any]]:
        """Return the newest events, newest first."""
        with self._reading() as db:
            return db.rows("SELECT * FROM events ORDER BY id DESC LIMIT :most", {"most": limit})

    def failed_builds(self) -> list[dict[str, Any]]:
        """Return the newest word on each distribution's builds (``built``, ``build_failed``) where it is a failure."""
        with self._reading() as db:
            return db.rows(
                "SELECT * FROM events WHERE kind = 'build_failed' AND id IN (SELECT max(id) FROM events "
                "WHERE node = :node AND kind IN ('built', 'build_failed') GROUP BY distribution) ORDER BY id DESC",
                {"node": self.node},
            )

    def trim(self, max_age_s: float | None = None) -> None:
        """Drop events beyond the newest ``EVENTS_KEPT``, or older than ``max_age_s``, and old offers.

        The newest offer of a distribution to each child stays however old it is: it says who is behind that child,
        and, of this node's own, who is above it and whether it is a target.
        """
        with self._writing() as db:
            db.run("DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - :kept", {"kept": EVENTS_KEPT})
            db.run(
                "DELETE FROM offers WHERE status <> 'open' AND put_at_s < :since_s AND EXISTS ("
                "SELECT 1 FROM offers AS newer WHERE newer.child = offers.child "
                "AND newer.distributor = offers.distributor AND newer.distribution = offers.distribution "
                "AND newer.put_at_s > offers.put_at_s)", {"since_s": time.time() - OFFERS_KEPT_S},
            )  # fmt: skip
            ended = db.rows("SELECT send FROM sends WHERE ended_at IS NOT NULL ORDER BY started_at DESC")
            for table in (_DELIVERIES, _SENDS):
                db.run_each(f"DELETE FROM {table.name} WHERE send = :send", ended[SENDS_KEPT:])
            if max_age_s is not None:
                limit = (datetime.now(UTC) - timedelta(seconds=max_age_s)).isoformat(timespec="milliseconds")
                db.run("DELETE FROM events WHERE at < :limit", {"limit": limit})


_DELIVERED = "FROM deliveries JOIN sends ON sends.send = deliveries.send"


def _where(table: str, **wanted: str | None) -> tuple[str, dict[str, str]]:
    """Return the clause for the columns that are asked for, and its values."""
    values = {name: value for name, value in wanted.items() if value is not None}
    same = " AND ".join(f"{table}.{name} = :{name}" for name in values)
    return f"WHERE {same}" if same else "", values


def _give_up(db: Statements, sends: Iterable[Row], why: str, *, nodes: list[str] | None) -> None:
    give_up = f"UPDATE deliveries SET state = 'failed', error = :why WHERE send = :send AND state NOT IN {_ARRIVED}"
    for row in sends:
        if nodes is None:
            db.run(give_up, row | {"why": why})
        else:
            db.run_each(f"{give_up} AND node = :node", [row | {"why": why, "node": node} for node in nodes])
        _end_if_done(db, row["send"])


def _end_if_done(db: Statements, send: str) -> None:
    db.run(
        "UPDATE sends SET ended_at = :now WHERE send = :send AND NOT EXISTS ("
        f"SELECT 1 FROM deliveries WHERE deliveries.send = sends.send AND state NOT IN {_ARRIVED})",
        {"send": send, "now": now_text()},
    )


def _forward_only(db: Statements, row: NodeState) -> None:
    """Send on what a node said in answer to an offer although its state is another: it holds that revision."""
    waiting = _OUTBOX.find(db, _values(row))
    if waiting is None or waiting["seq"] <= row.seq:
        _OUTBOX.put(db, _values(row))


def _values(row: NodeState) -> dict[str, Any]:
    """Return the columns of a state; what is installed has a table of its own."""
    values = row.to_dict() | {"error": None if row.error is None else clean(row.error)}
    del values["installed"]
    return values


def _note_installed(db: Statements, row: NodeState) -> None:
    """Keep which revision is in service, where the node itself said it."""
    says = row.state in IN_SERVICE
    if row.seq and (says or row.installed is not None):
        revision = row.revision if says else row.installed
        values = {"node": row.node, "distributor": row.distributor, "distribution": row.distribution,
                  "revision": revision}  # fmt: skip
        _INSTALLED.put(db, values)


def _note_former(db: Statements, former: Row | None) -> None:
    """Keep what only a state tells that is about to be replaced: an older ted wrote no more than the states."""
    if former is not None and former["state"] in IN_SERVICE:
        row = _state(former)
        if _INSTALLED.find(db, _values(row)) is None:
            _note_installed(db, row)


def _tell(db: Statements, row: NodeState) -> None:
    """Put a state among the events, before what is installed is noted: a rollback tells from what it went back.

    Of another node it may be known late what was installed: what is older than where it went back to was not it.
    """
    message = row.error or ""
    if row.state is State.ROLLED_BACK and not message:
        former = _INSTALLED.find(db, _values(row))
        taken_back = former["revision"] if former is not None else None
        message = f"from {taken_back}" if (taken_back or "") > (row.revision or "") else ""
    _event(db, row.state, row.node, row.distributor, row.distribution, row.revision, message)


def _state(row: Row) -> NodeState:
    state = State(row["state"])
    installed = row["revision"] if state in IN_SERVICE else row.get("installed")
    return NodeState(**(row | {"state": state, "had": bool(row["had"]), "installed": installed}))


def _event(db: Statements, kind: str, node: str, distributor: str | None, distribution: str | None,
           revision: str | None, message: str) -> None:  # fmt: skip
    db.run(
        "INSERT INTO events (at, kind, node, distributor, distribution, revision, message) "
        "VALUES (:at, :kind, :node, :distributor, :distribution, :revision, :message)",
        {"at": now_text(), "kind": str(kind), "node": node, "distributor": distributor, "distribution": distribution,
         "revision": revision, "message": clean(message)},
    )  # fmt: skip
