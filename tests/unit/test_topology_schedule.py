"""Every form of schedule of the inventory contract, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta, timezone
from time import tzset
from typing import Any

import pytest

from ted.errors import ConfigError, ValueFormatError
from ted.topology.schedule import Schedule, parse_end, parse_refresh_schedule, parse_schedule

TWO, FIVE = time(2), time(5)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("never", Schedule("never")),
        ({"never": True}, Schedule("never")),
        ({"never": None}, Schedule("never")),
        ({"daily": "02:00"}, Schedule("daily", start=TWO)),
        ({"daily": "2:00"}, Schedule("daily", start=TWO)),
        ({"daily": "02:00-05:00"}, Schedule("daily", start=TWO, end=FIVE)),
        ({"daily": "22:00-02:00"}, Schedule("daily", start=time(22), end=TWO)),
        ({"daily": "02:00-05:00", "days": ["fri", "Mon"]}, Schedule("daily", TWO, FIVE, days=("mon", "fri"))),
        ({"weekly": "02:00", "day": "sunday"}, Schedule("weekly", TWO, days=("sun",))),
        ({"weekly": "mon 02:00-05:00"}, Schedule("weekly", TWO, FIVE, days=("mon",))),
        ({"weekly": {"day": "mon", "time": "02:00"}}, Schedule("weekly", TWO, days=("mon",))),
        ({"monthly": "02:00", "day": 31}, Schedule("monthly", TWO, day=31)),
        ({"monthly": "02:00", "day": "last"}, Schedule("monthly", TWO, day="last")),
        ({"monthly": {"day": "last"}}, Schedule("monthly", time(0), day="last")),
        ({"monthly": "last 02:00-05:00"}, Schedule("monthly", TWO, FIVE, day="last")),
        ({"yearly": "02:00", "day": 24, "month": 12}, Schedule("yearly", TWO, day=24, month=12)),
        ({"yearly": "02:00", "date": "02-29"}, Schedule("yearly", TWO, day=29, month=2)),
        ({"yearly": "12-24 02:00"}, Schedule("yearly", TWO, day=24, month=12)),
        ({"yearly": {"month": "dec", "day": 24, "time": "02:00"}}, Schedule("yearly", TWO, day=24, month=12)),
        ({"every": "6h"}, Schedule("every", every_s=21600.0)),
        ({"every": 300, "random": True}, Schedule("every", every_s=300.0, random=True)),
        ({"at": "2027-01-31T22:00"}, Schedule("at", at=datetime(2027, 1, 31, 22))),  # noqa: DTZ001
        ({"at": "2027-01-31T22:00+00:00"}, Schedule("at", at=datetime(2027, 1, 31, 22, tzinfo=UTC))),
        ("immediately", Schedule("immediately")),
        ({"immediately": True}, Schedule("immediately")),
        ({"immediately": True, "repeat": "1h"}, Schedule("immediately", repeat_s=3600.0)),
        ({"immediately": {"repeat": "1h"}}, Schedule("immediately", repeat_s=3600.0)),
        ({"cron": "30  2 * * mon-fri"}, Schedule("cron", cron="30 2 * * mon-fri")),
        (
            {"daily": "02:00-05:00", "random": True, "repeat": "30m", "timezone": "UTC"},
            Schedule("daily", TWO, FIVE, random=True, repeat_s=1800.0, timezone="UTC"),
        ),
        (None, None),
        ("", None),
    ],
)
def test_every_form_of_the_contract_is_read(written: object, meant: Schedule | None) -> None:
    assert parse_schedule(written) == meant


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("daily", "not a schedule"),
        (42, "not a schedule"),
        ({}, "this has none"),
        ({"dayly": "02:00"}, "this has none"),
        ({"daily": "02:00", "every": "1h"}, "daily and every"),
        ({"daily": "02:00", "dayz": ["mon"]}, "'dayz' does not go with 'daily'"),
        ({"daily": "25:00"}, "not a time of day"),
        ({"daily": "02:60"}, "not a time of day"),
        ({"daily": "noon"}, "not a time or a window"),
        ({"daily": True}, "not a time or a window"),
        ({"daily": "02:00-02:00"}, "ends when it begins"),
        ({"daily": "02:00", "random": True}, "needs a window"),
        ({"daily": "02:00-05:00", "days": []}, "not a list of weekdays"),
        ({"daily": "02:00-05:00", "days": ["noday"]}, "not a weekday"),
        ({"daily": "02:00-05:00", "day": "mon"}, "does not go with"),
        ({"daily": "mon 02:00"}, "does not go with"),
        ({"weekly": "02:00"}, "needs its day"),
        ({"weekly": "02:00", "days": ["mon", "tue"]}, "one day"),
        ({"weekly": "mon 02:00", "day": "tue"}, "said twice"),
        ({"monthly": "02:00"}, "needs its day"),
        ({"monthly": "02:00", "day": 32}, "not a day"),
        ({"monthly": "02:00", "day": "first"}, "not a day"),
        ({"yearly": "02:00"}, "needs its date"),
        ({"yearly": "02:00", "date": "02-30"}, "not a day"),
        ({"yearly": "02:00", "date": "13-01"}, "not a month"),
        ({"every": 0}, "less than a second"),
        ({"every": "often"}, "not a duration"),
        ({"at": "tomorrow"}, "not a date and time"),
        ({"event": "startup"}, "for policies"),
        ({"cron": "* * * *"}, "five fields"),
        ({"cron": "60 * * * *"}, "not a minute"),
        ({"cron": "5-1 * * * *"}, "backwards"),
        ({"cron": "*/0 * * * *"}, "never comes"),
        ({"cron": "x * * * *"}, "not a minute"),
        ({"never": True, "repeat": "1h"}, "does not go with"),
        ({"daily": "02:00", "timezone": "Mars/Olympus"}, "not a known time zone"),
        ({"daily": "02:00", "timezone": "../../etc/passwd"}, "not a time zone"),
        ({"never": False}, "says nothing"),
        ({"daily": "02:00-05:00", "random": "perhaps"}, "neither true nor false"),
    ],
)
def test_what_is_no_schedule_is_refused_with_the_word_that_is_wrong(written: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_schedule(written)


def test_a_time_that_yaml_read_as_a_number_is_recognised() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_schedule({"daily": 750})
    assert '"12:30"' in (caught.value.hint or "")


def test_a_misspelt_kind_is_suggested() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_schedule({"dayly": "02:00"})
    assert caught.value.hint == "did you mean daily?"


def test_events_are_for_policies() -> None:
    assert parse_schedule({"event": "startup"}, events=True) == Schedule("event", event="startup")


@pytest.mark.parametrize(
    "written",
    [
        {"every": 179}, {"every": "1m"}, {"daily": "02:00-05:00", "repeat": 179}, {"immediately": True, "repeat": "1m"},
        {"cron": "* * * * *"}, {"cron": "*/2 2 * * *"}, {"cron": "0,1 2 * * *"}, {"cron": "0,58 * * * *"},
    ],
)  # fmt: skip
def test_a_refresh_more_often_than_every_180_s_is_an_error(written: object) -> None:
    assert parse_schedule(written) is not None  # fine for a build
    with pytest.raises(ConfigError, match="more often than every 180 s"):
        parse_refresh_schedule(written)


@pytest.mark.parametrize(
    "written",
    [
        {"every": 180}, {"daily": "02:00"}, {"cron": "*/3 * * * *"}, {"cron": "0,58 2 * * *"},
        "immediately", "never", None,
    ],
)  # fmt: skip
def test_a_refresh_every_180_s_or_less_often_is_taken(written: object) -> None:
    parse_refresh_schedule(written)


def test_random_repeat_and_timezone_may_stand_beside_an_interval() -> None:
    found = parse_schedule({"every": "2h", "repeat": "10m", "random": True, "timezone": "UTC"})
    assert (found.every_s, found.repeat_s) == (7200, 600)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("05:00", "2026-12-02T04:00"),
        ("23:30", "2026-12-01T22:30"),
        ("2h", "2026-12-01T22:15"),
        ("90", "2026-12-01T20:16:30"),
        ("2026-12-24T05:00", "2026-12-24T04:00"),
        ("2026-12-24T05:00+00:00", "2026-12-24T05:00"),
    ],
)
def test_an_end_is_a_time_of_day_a_duration_or_a_date(text: str, end: str) -> None:
    now = datetime(2026, 12, 1, 21, 15, tzinfo=timezone(timedelta(hours=1)))
    assert parse_end(text, now) == datetime.fromisoformat(f"{end}+00:00")


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("05:00", "2026-10-25T04:00"),
        ("8h", "2026-10-25T05:00"),
        ("2026-12-24T05:00", "2026-12-24T04:00"),
    ],
)
def test_an_end_beyond_a_change_of_the_clocks_is_by_the_clock_of_that_day(
    text: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    tzset()
    try:
        assert parse_end(text, datetime(2026, 10, 24, 23)) == datetime.fromisoformat(f"{end}+00:00")  # noqa: DTZ001
    finally:
        monkeypatch.undo()
        tzset()


@pytest.mark.parametrize(
    ("text", "said"), [("soon", "is no end"), ("25:00", "is no end"), ("2026-12-01", "is over already")]
)
def test_what_is_no_end_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueFormatError, match=said):
        parse_end(text, datetime(2026, 12, 1, 21, 15, tzinfo=UTC))
