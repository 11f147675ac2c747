"""The journal keeps the newest news, whoever brings it and in whatever order."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from multiprocessing.synchronize import Barrier
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from database_server import postgresql

from ted.cli import send_cmd
from ted.errors import AgentError, ConfigError, FormatError, RecordsError
from ted.records.database import _PostgreSQL, _quoted
from ted.records.journal import Journal
from ted.records.sends import send_result
from ted.records.states import NodeState, State

R1, R2 = "20260101T000000000000Z", "20260102T000000000000Z"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgresql() as url:
        yield url


@pytest.fixture
def schema_url(server: str) -> str:
    """Return the URL of a database server, with a schema of this test's own."""
    name = f"t{time.time_ns()}"
    with psycopg.connect(server) as db:
        db.execute(f'CREATE SCHEMA "{name}"')
    return f"{server}&options=-csearch_path%3D{name}"


@pytest.fixture(params=["sqlite", "postgresql"])
def journal(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Journal]:
    is_file = request.param == "sqlite"
    journal = Journal.at(tmp_path, "hq") if is_file else Journal(request.getfixturevalue("schema_url"), "hq")
    yield journal
    journal.close()


@pytest.fixture
def journal_in_a_file(tmp_path: Path) -> Iterator[Journal]:
    journal = Journal.at(tmp_path, "hq")
    yield journal
    journal.close()


def row(state: State, *, node: str = "e01", revision: str | None = R1, seq: int = 0, **more: object) -> NodeState:
    return NodeState(node, "hq", "dat", revision, state, "2026-01-01T00:00:00+00:00", seq=seq, **more)  # type: ignore[arg-type]


def state_of(journal: Journal, node: str = "e01") -> tuple[str, str | None]:
    found = journal.states(node=node)[0]
    return str(found.state), found.revision


def test_what_anybody_wrote_shows_without_reading_it(tmp_path: Path) -> None:
    with closing(Journal.at(tmp_path, "s01")) as mine, closing(Journal.at(tmp_path, "s01")) as others:
        seen = [mine.data_version()]
        for journal in (mine, others, mine):
            journal.report("hq", "app", R1, State.RECEIVED)
            seen.append(mine.data_version())
            assert mine.outbox()
            assert mine.data_version() == seen[-1]
    assert None not in seen
    assert len(set(seen)) == len(seen)


def test_what_cannot_be_told_is_read(tmp_path: Path, server: str) -> None:
    with closing(Journal(server, "s01")) as journal:
        assert journal.data_version() is None
    with closing(Journal.at(tmp_path, "s01")) as journal:
        (tmp_path / ".ted" / "records.sqlite").unlink()
        (tmp_path / ".ted" / "records.sqlite").mkdir()
        assert journal.data_version() is None


def test_a_report_is_a_state_and_a_receipt(journal: Journal) -> None:
    journal.report("hq", "dat", R1, State.RECEIVED)
    assert state_of(journal, "hq") == ("received", R1)
    assert [receipt.state for receipt in journal.outbox()] == [State.RECEIVED]


def test_a_receipt_that_was_replaced_meanwhile_stays_in_the_outbox(journal: Journal) -> None:
    first = journal.report("hq", "dat", R1, State.RECEIVING)
    second = journal.report("hq", "dat", R1, State.RECEIVED)
    journal.taken([first])
    assert journal.outbox() == [second]
    journal.taken([second])
    assert journal.outbox() == []


def test_old_news_changes_nothing(journal: Journal) -> None:
    journal.learn([row(State.EXTRACTED, seq=20)], forward=False)
    assert journal.learn([row(State.RECEIVED, seq=10)], forward=False) == []
    assert state_of(journal) == ("extracted", R1)


def installed(journal: Journal, node: str = "e01") -> str | None:
    return journal.states(node=node)[0].installed


def test_what_is_installed_stays_known_whatever_becomes_of_the_next_revision(journal: Journal) -> None:
    journal.learn([row(State.RECEIVED, seq=10)], forward=False)
    assert installed(journal) is None
    journal.learn([row(State.EXTRACTED, seq=20)], forward=False)
    for state, seq in ((State.PENDING, 0), (State.FAILED, 0), (State.RECEIVED, 30), (State.FAILED, 40)):
        journal.learn([row(state, revision=R2, seq=seq)], forward=False)
        assert (state_of(journal), installed(journal)) == ((state, R2), R1)
    journal.learn([row(State.EXTRACTED, revision=R2, seq=50)], forward=False)
    assert installed(journal) == R2
    journal.learn([row(State.ROLLED_BACK, revision=None, seq=60)], forward=False)
    assert installed(journal) is None, "what was there before ted is back"


def test_a_rollback_tells_from_what_it_went_back(journal: Journal) -> None:
    journal.report("hq", "dat", R2, State.EXTRACTED)
    journal.report("hq", "dat", R1, State.ROLLED_BACK)
    journal.report("hq", "dat", None, State.ROLLED_BACK)
    journal.learn([row(State.EXTRACTED, revision=R2, seq=10)], forward=False)
    journal.learn([row(State.ROLLED_BACK, revision=R1, seq=20)], forward=False)
    journal.learn([row(State.ROLLED_BACK, revision=R2, seq=40)], forward=False)  # what was between never came
    told = [(event["node"], event["revision"], event["message"]) for event in reversed(journal.events())
            if event["kind"] == "rolled_back"]  # fmt: skip
    assert told == [("hq", R1, f"from {R2}"), ("hq", None, f"from {R1}"), ("e01", R1, f"from {R2}"), ("e01", R2, "")]
    assert journal.states(node="e01")[0].error is None, "that is no error"


def test_a_receipt_says_what_is_installed_even_if_the_one_of_then_was_never_taken(journal: Journal) -> None:
    journal.report("hq", "dat", R1, State.EXTRACTED)
    journal.report("hq", "dat", R2, State.RECEIVED)
    (receipt,) = journal.outbox()
    assert (receipt.state, receipt.revision, receipt.installed) == (State.RECEIVED, R2, R1)
    above = NodeState.from_dict(receipt.to_dict())
    journal.learn([replace(above, node="s01")], forward=True)
    assert installed(journal, "s01") == R1
    assert [each.installed for each in journal.outbox()] == [R1, R1]


@pytest.mark.parametrize("state", [State.EXTRACTED, State.ROLLED_BACK])
def test_what_is_installed_is_known_after_an_upgrade_from_a_ted_that_kept_states_only(
    tmp_path: Path, state: State
) -> None:
    journal = Journal.at(tmp_path, "hq")
    journal.report("hq", "dat", R1, state)
    journal.learn([row(state, node=name, seq=20) for name in ("e01", "e02", "e03")], forward=False)
    journal.close()
    with closing(sqlite3.connect(tmp_path / ".ted" / "records.sqlite")) as db:
        db.execute("DROP TABLE installed")
        db.execute("PRAGMA user_version=0")
    journal = Journal.at(tmp_path, "hq")
    journal.report("hq", "dat", R2, State.RECEIVING)
    journal.learn([row(State.PENDING, node="e01", revision=R2)], forward=False)
    journal.learn([row(State.RECEIVED, node="e02", revision=R2, seq=30)], forward=False)
    assert {name: installed(journal, name) for name in ("hq", "e01", "e02", "e03")} == dict.fromkeys(
        ("hq", "e01", "e02", "e03"), R1
    )
    assert [receipt.installed for receipt in journal.outbox()] == [R1], "those above learn it again"
    journal.learn([row(State.ROLLED_BACK, node="e03", revision=None, seq=30)], forward=False)
    journal.learn([row(State.PENDING, node="e03", revision=R2)], forward=False)
    assert installed(journal, "e03") is None
    journal.close()


def test_nobody_else_says_what_a_node_has_installed(journal: Journal) -> None:
    journal.learn([row(State.PENDING, installed=R2)], forward=False)
    assert installed(journal) is None
    with pytest.raises(FormatError):
        NodeState.from_dict(row(State.RECEIVED, seq=1).to_dict() | {"installed": "../etc"})


def test_a_guess_never_replaces_the_news_that_a_node_has_it(journal: Journal) -> None:
    journal.learn([row(State.RECEIVED, seq=20)], forward=False)
    journal.learn([row(State.FAILED, error="does not answer")], forward=False)
    assert state_of(journal) == ("received", R1)


def test_a_guess_about_a_newer_revision_gives_way_to_the_next_real_news(journal: Journal) -> None:
    journal.learn([row(State.EXTRACTED, seq=20)], forward=False)
    journal.learn([row(State.PENDING, revision=R2)], forward=False)
    assert state_of(journal) == ("pending", R2)
    journal.learn([row(State.FAILED, revision=R2)], forward=False)
    assert state_of(journal) == ("failed", R2)
    journal.learn([row(State.RECEIVED, revision=R2, seq=21)], forward=False)
    assert state_of(journal) == ("received", R2)


def test_a_guess_travels_on_as_a_guess(journal: Journal) -> None:
    journal.learn([row(State.RECEIVED, seq=20)], forward=False)
    journal.learn([row(State.FAILED, revision=R2)], forward=True)
    assert [(receipt.seq, receipt.state) for receipt in journal.outbox()] == [(0, State.FAILED)]


def _start(journal: Journal) -> None:
    journal.start_send("s1", distributor="hq", distribution="dat", channel="av", revision=R1, tree=[],
                       hops=[("hq", "s01", False), ("s01", "e01", True)])  # fmt: skip


def test_a_send_ends_when_every_receiver_has_it(journal: Journal) -> None:
    _start(journal)
    journal.deliver([row(State.RECEIVED, node="s01", seq=1, bytes_done=10, bytes_total=10)])
    assert not send_result(journal.send("s1"))["done"]
    journal.deliver([row(State.RECEIVED, seq=1, bytes_done=10, bytes_total=10)])
    result = send_result(journal.send("s1"))
    assert (result["done"], result["changed"], result["bytes"], result["incomplete"]) == (True, True, 20, [])


def test_a_send_that_found_everything_there_changed_nothing(journal: Journal) -> None:
    _start(journal)
    journal.deliver([row(State.EXTRACTED, node="s01", seq=1, had=True), row(State.RECEIVED, seq=1, had=True)])
    result = send_result(journal.send("s1"))
    assert (result["done"], result["changed"], result["bytes"]) == (True, False, 0)


def test_a_receiver_that_failed_is_named_with_its_words(journal: Journal) -> None:
    _start(journal)
    journal.deliver([row(State.RECEIVED, node="s01", seq=1), row(State.FAILED, error="disk full")])
    result = send_result(journal.send("s1"))
    assert (result["done"], result["incomplete"], result["errors"]) == (True, ["e01"], {"e01": "disk full"})


def _start_again(journal: Journal, *having: str) -> None:
    journal.start_send("s2", distributor="hq", distribution="dat", channel="av", revision=R1, tree=[],
                       hops=[("hq", "s01", False), ("s01", "e01", True)], having=having)  # fmt: skip


def test_a_node_that_does_not_answer_has_what_it_is_known_to_have(journal: Journal) -> None:
    _start_again(journal, "e01")
    silence = [row(State.PENDING, node="s01", error="no answer"), row(State.PENDING, error="no answer")]
    journal.deliver(silence)
    assert send_result(journal.send("s2"))["states"] == {"s01": "pending", "e01": "pending"}, "it may be restarted"
    journal.deliver(silence, unasked=True)
    result = send_result(journal.send("s2"))
    assert result["states"] == {"s01": "pending", "e01": "received"}
    assert result["errors"] == {"s01": "no answer", "e01": "not asked: no answer"}
    journal.deliver([row(State.FAILED, node="s01", error="no answer")], unasked=True)
    result = send_result(journal.send("s2"))
    assert (result["done"], result["changed"], result["unasked"], result["incomplete"]) == (True, False, ["e01"], [])


def test_a_node_that_refuses_has_not_got_what_it_was_known_to_have(journal: Journal) -> None:
    _start_again(journal, "s01", "e01")
    journal.deliver([row(State.FAILED, node="s01", error="no root"), row(State.FAILED, error="not reached: no root")])
    result = send_result(journal.send("s2"))
    assert (result["done"], result["unasked"], result["incomplete"]) == (True, [], ["e01"])


@pytest.mark.parametrize(("word", "changed", "left"), [
    (row(State.RECEIVED, seq=2, had=True), False, []),
    (row(State.RECEIVED, seq=2, bytes_done=9, bytes_total=9), True, []),
    (row(State.FAILED, seq=2, error="disk full"), False, ["e01"]),
])  # fmt: skip
def test_a_nodes_own_word_counts_more_than_what_was_known_of_it(
    journal: Journal, word: NodeState, changed: bool, left: list[str]
) -> None:
    _start_again(journal, "e01")
    journal.deliver([row(State.PENDING, error="no answer")], unasked=True)
    journal.deliver([row(State.FAILED, error="not reached")], unasked=True)
    assert send_result(journal.send("s2"))["unasked"] == ["e01"]
    journal.deliver([word])
    result = send_result(journal.send("s2"))
    assert (result["changed"], result["incomplete"], result["unasked"]) == (changed, left, [])
    assert result["errors"] == ({"e01": "disk full"} if left else {})
    assert result["bytes"] == word.bytes_done


def test_what_a_send_brought_to_a_relay_it_did_not_bring_to_it_as_a_target(journal: Journal) -> None:
    _start(journal)
    journal.deliver([row(State.RECEIVED, node="s01", seq=1), row(State.RECEIVED, seq=1)])
    assert journal.brought("hq", "dat", R1) == {"s01", "e01"}
    assert journal.brought("hq", "dat", R1, as_targets=True) == {"e01"}


def test_the_newest_revision_that_a_send_brought_stays_known_when_the_next_fails(journal: Journal) -> None:
    _start(journal)
    journal.deliver([row(State.RECEIVED, node="s01", seq=1), row(State.EXTRACTED, seq=1)])
    journal.start_send("s2", distributor="hq", distribution="dat", channel="av", revision=R2, tree=[],
                       hops=[("hq", "s01", False), ("s01", "e01", True)])  # fmt: skip
    journal.deliver([row(State.RECEIVED, node="s01", revision=R2, seq=2), row(State.FAILED, revision=R2)])
    assert journal.last_brought("hq", "dat") == {"s01": R2, "e01": R1}
    assert journal.last_brought("hq", "dat", after=R1) == {"s01": R2}
    assert journal.last_brought("hq", "other") == {}


def test_a_late_receipt_for_another_revision_does_not_touch_the_send(journal: Journal) -> None:
    _start(journal)
    journal.deliver([row(State.RECEIVED, revision=R2, seq=1)])
    assert send_result(journal.send("s1"))["states"]["e01"] == "pending"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    is_file = request.param == "sqlite"
    return f"sqlite:///{tmp_path}/records.sqlite" if is_file else str(request.getfixturevalue("schema_url"))


def _report_many(url: str, distribution: str) -> None:
    journal = Journal(url, "hq")
    for _ in range(50):
        journal.report("hq", distribution, R1, State.RECEIVING)
    journal.close()


def test_several_processes_write_at_once_and_nothing_is_lost(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_report_many, args=(url, f"n{n}")) for n in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    journal = Journal(url, "hq")
    assert [found.distribution for found in journal.states()] == ["n0", "n1", "n2"]
    journal.close()


def _open_with_others(path: str, name: str, together: Barrier) -> None:
    together.wait(30)
    Journal.at(Path(path), name).close()


def test_processes_that_make_the_records_at_the_same_moment_all_succeed(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(10):
        together = context.Barrier(6)
        place = str(tmp_path / str(attempt))
        openers = [context.Process(target=_open_with_others, args=(place, f"n{n}", together)) for n in range(6)]
        for opener in openers:
            opener.start()
        for opener in openers:
            opener.join(60)
        assert [opener.exitcode for opener in openers] == [0] * 6


def test_events_beyond_the_limit_are_trimmed(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ted.records.journal.EVENTS_KEPT", 3)
    for number in range(10):
        journal.note("test", str(number))
    journal.trim()
    assert [event["message"] for event in journal.events()] == ["9", "8", "7"]


class _Slip:
    """As much of a routing slip as the records keep."""

    def __init__(self, send: str) -> None:
        self.header = SimpleNamespace(send=send, distributor="hq", distribution="dat", revision=R1)

    def encode(self) -> dict[str, Any]:
        return {"send": self.header.send}


def test_the_newest_offer_to_each_child_is_kept_however_old_it_is(journal_in_a_file: Journal, tmp_path: Path) -> None:
    journal = journal_in_a_file
    long_ago_s = time.time() - 30 * 86_400
    for send, child, age_s in (("a", "s01", 0), ("b", "s01", 60), ("c", "s02", 0), ("d", "", 0)):
        journal.put_offers([(child, _Slip(send))])
        journal.close_offer(send, "done", child=child)
        with closing(sqlite3.connect(tmp_path / ".ted" / "records.sqlite")) as db, db:
            db.execute("update offers set put_at_s = ? where send = ?", (long_ago_s + age_s, send))
    journal.trim()
    assert {(offer["child"], offer["send"]) for offer in journal.offers()} == {("s01", "b"), ("s02", "c"), ("", "d")}


def test_offers_to_a_child_are_named_newest_first_and_read_one_by_one(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, send in enumerate("acb"):
        monkeypatch.setattr("ted.records.journal.time.time", lambda number=number: 1_000.0 + number)
        journal.put_offers([("s01", _Slip(send)), ("", _Slip(f"{send}-own"))])
    assert journal.offered("s01", "hq", "dat") == ["b", "c", "a"]
    assert journal.offered("s01", "hq", "other") == journal.offered("s02", "hq", "dat") == []
    assert journal.slip("c", "s01") == '{"send": "c"}'
    assert journal.slip("c", "") is None


def test_a_database_that_cannot_be_opened_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match="records of hq cannot be opened"):
        Journal(f"sqlite:///{tmp_path}/no/such/place.sqlite", "hq")


@pytest.mark.parametrize("url", ["mysql://u:hush@db/ted", "records.sqlite", "sqlite://", "sqlite:///", "://:@["])
def test_a_database_of_another_kind_is_refused_with_what_there_is(url: str) -> None:
    with pytest.raises(ConfigError, match="not a database that ted knows") as raised:
        Journal(url, "hq")
    assert "hush" not in str(raised.value)
    assert "postgresql://" in (raised.value.hint or "")


def test_a_server_that_is_not_there_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(AgentError, match=r"opened in postgresql\+psycopg2://ted:") as raised:
        Journal(f"postgresql+psycopg2://ted:hush@/postgres?host={tmp_path}", "hq")
    assert "hush" not in str(raised.value)
    assert "is the server up" in str(raised.value.hint)


def test_a_file_that_cannot_be_opened_has_a_hint_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(AgentError) as raised:
        Journal(f"sqlite:///{tmp_path}/nowhere/records.sqlite", "hq")
    assert "is this user's" in str(raised.value.hint)


@pytest.mark.parametrize("secret", ["hu/sh", "hu#sh", "hu?sh", "hu%sh", "h@u:sh", "hush&x=1@y"])
def test_no_password_is_told_whatever_is_in_it(tmp_path: Path, secret: str) -> None:
    for url in (f"postgresql://ted:{secret}@/postgres?host={tmp_path}",
                f"postgresql://ted@/postgres?host={tmp_path}&password={secret.replace('&', '')}"):  # fmt: skip
        with pytest.raises(AgentError) as raised:
            Journal(url, "hq")
        told = "".join(traceback.format_exception(raised.value))
        assert "sh" not in told.rsplit("cannot be opened", 1)[1].replace(str(tmp_path), "")
        assert secret not in told


def test_a_password_may_hold_anything(server: str) -> None:
    with psycopg.connect(server, autocommit=True) as db:
        db.execute("CREATE ROLE typed LOGIN PASSWORD 'a/b#c?d%e@f'")
        assert _quoted("postgresql://typed:a/b#c?d%e@f@db:5/x?host=/y") == (
            "postgresql://typed:a%2Fb%23c%3Fd%25e%40f@db:5/x?host=/y"
        )
    assert _quoted("postgresql://typed:a%2Fb@db/x") == "postgresql://typed:a%2Fb@db/x"
    assert _quoted("postgresql:///x?options=-cfoo%3Da@b") == "postgresql:///x?options=-cfoo%3Da@b"
    assert _quoted("postgresql://db:5/x?options=a@b") == "postgresql://db:5/x?options=a@b"


def test_two_distributors_do_not_share_one_place(schema_url: str) -> None:
    Journal(schema_url, "hq").close()
    with pytest.raises(ConfigError, match="database_url of hq2: hq keeps its records in that database"):
        Journal(schema_url, "hq2")
    Journal(schema_url, "hq").close()


@pytest.mark.parametrize("how", ["lock_timeout", "cancelled"])
def test_a_writer_that_did_not_get_the_lock_is_good_for_the_next_time(
    schema_url: str, server: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_PostgreSQL, "settings", ("SET lock_timeout = '300ms'",) if how == "lock_timeout" else ())
    journal, writer = Journal(schema_url, "hq"), Journal(schema_url, "hq")
    with writer._writing(), ThreadPoolExecutor(1) as waiting:
        waits = waiting.submit(journal.note, "test", "waited in vain")
        if how == "cancelled":
            with psycopg.connect(server, autocommit=True) as db:
                while not db.execute("SELECT pg_cancel_backend(pid) FROM pg_locks WHERE NOT granted").fetchall():
                    time.sleep(0.01)
        with pytest.raises(RecordsError, match="the records of hq cannot be used now: cancel"):
            waits.result(30)
        assert journal.events() == [], "whoever reads waits for nobody"
    journal.note("test", "now")
    assert [event["message"] for event in journal.events()] == ["now"]
    journal.close()
    writer.close()


def test_writers_of_two_schemas_wait_not_for_one_another(server: str) -> None:
    urls = []
    for name in ("one", "two"):
        with psycopg.connect(server) as db:
            db.execute(f"CREATE SCHEMA {name}")
        urls.append(f"{server}&options=-csearch_path%3D{name}")
    one, two = (Journal(url, "hq") for url in urls)
    with one._writing():
        two.note("test", "at once")
    assert len(two.events()) == 1
    one.close()
    two.close()


def test_writers_see_what_the_one_before_wrote_whatever_the_default_isolation(schema_url: str) -> None:
    url = f"{schema_url}%20-cdefault_transaction_isolation%3Dserializable"
    first, second = Journal(url, "hq"), Journal(url, "hq")
    first.report("hq", "dat", R1, State.RECEIVING)
    with ThreadPoolExecutor(1) as waiting, first._writing() as db:
        waits = waiting.submit(second.report, "hq", "dat", R1, State.RECEIVED)
        time.sleep(0.3)
        db.run("UPDATE states SET seq = seq + 1")
    assert waits.result(30).state is State.RECEIVED
    first.close()
    second.close()


def test_a_role_that_may_make_no_tables_uses_those_that_are_there(server: str, schema_url: str) -> None:
    Journal(schema_url, "hq").close()
    schema = schema_url.rsplit("%3D", 1)[1]
    role = f"r{schema}"
    with psycopg.connect(server, autocommit=True) as db:
        db.execute(f"CREATE ROLE {role} LOGIN")
        db.execute(f'GRANT USAGE ON SCHEMA "{schema}" TO {role}')
        db.execute(f'GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "{schema}" TO {role}')
        db.execute(f'GRANT USAGE ON ALL SEQUENCES IN SCHEMA "{schema}" TO {role}')
    journal = Journal(schema_url.replace("ted@", f"{role}@"), "hq")
    journal.note("test", "written")
    assert len(journal.events()) == 1
    journal.close()


def test_what_is_no_character_holds_up_no_news(journal: Journal) -> None:
    told = {"error": "a\0b\ud800c"}
    news = NodeState.from_dict(row(State.FAILED, seq=5).to_dict() | told)
    assert journal.learn([news, row(State.FAILED, node="e02", seq=5, **told)], forward=True)
    journal.report("hq", "dat", R1, State.FAILED, **told)
    journal.note("test", told["error"])
    assert {found.error for found in (*journal.states(), *journal.outbox())} == {"a\ufffdb?c"}
    assert journal.events(1)[0]["message"] == "a\ufffdb?c"


def test_a_later_teds_file_is_left_as_it_is(tmp_path: Path) -> None:
    Journal.at(tmp_path, "hq").close()
    with closing(sqlite3.connect(tmp_path / ".ted" / "records.sqlite")) as db:
        db.execute("PRAGMA user_version=7")
        Journal.at(tmp_path, "hq").close()
        assert db.execute("PRAGMA user_version").fetchone() == (7,)


def test_a_working_directory_may_have_any_name(tmp_path: Path) -> None:
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a%20?#\xff"))
    journal = Journal.at(place, "hq")
    journal.note("test", "x")
    journal.close()
    assert (place / ".ted" / "records.sqlite").exists()


def test_a_connection_that_the_server_ended_is_replaced(schema_url: str) -> None:
    journal = Journal(schema_url, "hq")
    journal.report("hq", "dat", R1, State.RECEIVED)
    with psycopg.connect(schema_url, autocommit=True) as db:
        db.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                   "AND query = 'COMMIT'")  # fmt: skip
    assert state_of(journal, "hq") == ("received", R1)
    journal.close()


def test_what_a_full_or_broken_database_says_is_an_error_of_the_records(journal_in_a_file: Journal) -> None:
    with pytest.raises(RecordsError, match="the records of hq cannot be used now: no such table"):  # noqa: SIM117
        with journal_in_a_file._writing() as db:
            db.run("DELETE FROM nowhere")
    journal_in_a_file.note("test", "the connection is still good")
    assert len(journal_in_a_file.events()) == 1


def test_a_transaction_that_failed_leaves_nothing(journal: Journal) -> None:
    with suppress(ZeroDivisionError), journal._writing() as db:
        db.run("INSERT INTO installed VALUES ('a', 'b', 'c', 'd')")
        raise ZeroDivisionError
    with journal._reading() as db:
        assert db.rows("SELECT * FROM installed") == []


NO_STATE = {"node": "a", "distributor": "b", "distribution": "c", "state": "?"}


@pytest.mark.parametrize("data", [None, {}, {"node": 1}, NO_STATE])
def test_what_is_not_a_receipt_is_a_format_error(data: object) -> None:
    with pytest.raises(FormatError):
        NodeState.from_dict(data)


def test_a_receipt_with_a_huge_number_is_refused() -> None:
    with pytest.raises(FormatError, match="out of range"):
        NodeState.from_dict(row(State.RECEIVED, seq=2**63).to_dict())


@pytest.mark.parametrize("field", ["node", "revision", "distribution"])
def test_a_receipt_with_a_name_that_is_none_is_refused(field: str) -> None:
    for value in ("../etc", {}, "x" * 1000):
        with pytest.raises(FormatError):
            NodeState.from_dict(row(State.RECEIVED, seq=1).to_dict() | {field: value})


def test_old_news_after_the_arrival_does_not_open_a_delivery_again(journal: Journal) -> None:
    _start(journal)
    journal.deliver([row(State.RECEIVED, seq=6), row(State.RECEIVING, seq=5), row(State.FAILED, seq=7)])
    assert send_result(journal.send("s1"))["states"]["e01"] == "received"


def test_a_send_of_a_newer_revision_ends_the_older_one(journal: Journal) -> None:
    _start(journal)
    journal.deliver([row(State.RECEIVED, node="s01", seq=1)])
    journal.supersede("hq", "dat", R2, ["s01", "e01"])
    result = send_result(journal.send("s1"))
    assert (result["done"], result["states"]) == (True, {"s01": "received", "e01": "failed"})
    assert result["errors"] == {"e01": f"superseded by revision {R2}"}


def test_a_send_of_which_nothing_is_heard_ends(journal: Journal) -> None:
    _start(journal)
    journal.give_up_silent(3600)
    assert not send_result(journal.send("s1"))["done"]
    journal.give_up_silent(-5)
    assert send_result(journal.send("s1"))["done"]


def test_a_reader_does_not_wait_for_a_writer(journal_in_a_file: Journal, tmp_path: Path) -> None:
    journal = journal_in_a_file
    journal.report("hq", "dat", R1, State.RECEIVED)
    with sqlite3.connect(tmp_path / ".ted" / "records.sqlite", isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        assert len(journal.states()) == 1
        writer.execute("ROLLBACK")
    writer.close()


def test_who_waits_for_a_send_reads_all_its_receivers_when_it_has_ended(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal.start_send("s1", distributor="hq", distribution="dat", channel="av", revision=R1, tree=[],
                       hops=[("hq", "e01", True)])  # fmt: skip
    read, rests = Journal.send, iter(range(5))
    looks: list[str] = []

    def counted(self: Journal, send: str) -> dict[str, Any] | None:
        looks.append(send)
        return read(self, send)

    def rest(_s: float) -> None:
        if next(rests) == 3:
            journal.deliver([row(State.RECEIVED)])

    monkeypatch.setattr(Journal, "send", counted)
    monkeypatch.setattr(send_cmd.time, "sleep", rest)
    assert journal.are_open(["s0", "s1"])
    (result,) = send_cmd._follow(SimpleNamespace(as_json=True), journal, ["s1"], 60)
    assert result["done"]
    assert not journal.are_open(["s0", "s1"])
    assert looks == ["s1", "s1"]


def test_what_the_manual_drops_of_a_database_is_all_that_ted_made_there(schema_url: str) -> None:
    Journal(schema_url, "hq").close()
    manual = Path(__file__).parents[2] / "docs" / "inventory.md"
    (drop,) = [line for line in manual.read_text().splitlines() if line.startswith("DROP TABLE")]
    made = "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace"
    with psycopg.connect(schema_url) as db:
        assert db.execute(made).fetchall()
        db.execute(drop)
        assert db.execute(made).fetchall() == []
    Journal(schema_url, "another").close()
