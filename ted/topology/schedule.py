"""When something happens by itself: one schedule, read and judged.

Rules:
 * A schedule is a mapping with exactly one of the keys ``never daily weekly monthly yearly every at
   immediately event cron``; ``never`` and ``immediately`` may stand alone as a word.
 * ``daily weekly monthly yearly`` name a time ``HH:MM`` or a window ``HH:MM-HH:MM``; a window whose end is
   before its start ends on the next day.
 * The day stands beside it (``days``, ``day``, ``month``), before the time in the same string
   (``"mon 02:00-05:00"``, ``"last 22:00"``, ``"12-24 22:00"``) or in a mapping with ``time``.
 * ``random`` picks a start inside the window, ``repeat`` starts again inside it, ``timezone`` replaces the
   local time of the machine that acts.
 * A Distributor's refresh never comes more often than every 180 s. ``event`` is for policies.

Nothing here asks what time it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, cast

from ted.errors import ValueFormatError
from ted.topology.names import suggestion
from ted.topology.units import parse_duration_s

Kind = Literal[
    "never", "daily", "weekly", "monthly", "yearly", "every", "at", "immediately", "event", "cron"
]  # fmt: skip

KINDS = ("never", "daily", "weekly", "monthly", "yearly", "every", "at", "immediately", "event", "cron")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
MIN_REFRESH_S = 180.0

_CALENDAR = ("daily", "weekly", "monthly", "yearly")
# What may stand beside each kind; `timezone` where a clock is read.
_BESIDE: dict[str, tuple[str, ...]] = {
    "never": (),
    "daily": ("days", "random", "repeat", "timezone"),
    "weekly": ("day", "days", "random", "repeat", "timezone"),
    "monthly": ("day", "random", "repeat", "timezone"),
    "yearly": ("day", "month", "date", "random", "repeat", "timezone"),
    "every": ("random", "repeat", "timezone"),
    "at": ("random", "repeat", "timezone"),
    "immediately": ("random", "repeat", "timezone"),
    "event": (),
    "cron": ("random", "repeat", "timezone"),
}
_DAYS_OF_MONTH = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)", re.ASCII)
_WINDOW = re.compile(r"(?:(?P<day>[a-z0-9-]+)\s+)?(?P<start>\d?\d:\d\d)(?:\s*-\s*(?P<end>\d?\d:\d\d))?", re.ASCII)
_ZONE = re.compile(r"[A-Za-z0-9+_-]{1,32}(?:/[A-Za-z0-9+_-]{1,32}){0,3}", re.ASCII)


@dataclass(frozen=True)
class Schedule:
    """When something starts by itself.

    Attributes:
        kind: Which of the ten; it says which of the others are set.
        start: Time of day it may begin (calendar kinds).
        end: End of the window, ``None`` for no window; before ``start``: on the next day.
        days: Weekdays, Monday first (daily: those it runs on; weekly: one).
        day: Day of the month (monthly, yearly); ``last`` for its last (monthly).
        month: 1 to 12 (yearly).
        every_s: Interval in seconds (every).
        at: Date and time (at); naive means local time of the machine that acts.
        event: Name of the event.
        cron: The five fields, single spaces between.
        random: Start at a random moment of the window (every: of the first interval).
        repeat_s: Start again this many seconds after each start, inside the window.
        timezone: IANA name, ``None`` for local time of the machine that acts.
    """

    kind: Kind
    start: time | None = None
    end: time | None = None
    days: tuple[str, ...] = ()
    day: int | Literal["last"] | None = None
    month: int | None = None
    every_s: float | None = None
    at: datetime | None = None
    event: str | None = None
    cron: str | None = None
    random: bool = False
    repeat_s: float | None = None
    timezone: str | None = None

    def shortest_interval_s(self) -> float | None:
        """Return the shortest time between two starts, ``None`` where it is a day or more."""
        intervals = [s for s in (self.every_s, self.repeat_s) if s is not None]
        if self.cron is not None:
            intervals += _cron_intervals_s(self.cron)
        return min(intervals, default=None)


def parse_schedule(value: object, *, events: bool = False) -> Schedule | None:
    """Return the schedule ``value`` describes, ``None`` for a blank one.

    Args:
        value: A mapping as the inventory contract describes it, or ``never``/``immediately``.
        events: Whether ``event`` is allowed (policies).

    Raises:
        ValueFormatError: It is no schedule; message and hint say which word is wrong.
    """
    if value is None or value == "":
        return None
    kind, argument, beside = _one_key(value)
    if kind == "event" and not events:
        raise ValueFormatError("'event' schedules are for policies", hint="use a time or an interval here")
    fields = _FIELDS[kind](kind, argument, beside) | _common(beside)
    schedule = Schedule(kind=kind, **fields)
    _check_together(schedule)
    return schedule


def parse_end(text: str, now: datetime) -> datetime:
    """Return the moment (aware, UTC) that ``text`` names as an end.

    Args:
        text: A time of day (``05:00``: the next one), a duration from now (``2h``), or an ISO date and time, which
            without an offset means the same zone as ``now``.
        now: In the zone that a time of day is meant in; naive: that of this machine, by its clock on that day.

    Raises:
        ValueFormatError: It is none of them, or not to come.
    """
    match = _TIME.fullmatch(text.strip())
    if match is not None:
        moment = now.replace(hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0)
        return (moment if moment > now else moment + timedelta(days=1)).astimezone(UTC)
    begin = now.astimezone(UTC)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        try:
            moment = begin + timedelta(seconds=parse_duration_s(text))
        except ValueFormatError as error:
            raise ValueFormatError(f"{text!r} is no end", hint="write 05:00, 2h or 2026-12-24T05:00") from error
    moment = (moment if moment.tzinfo is not None else moment.replace(tzinfo=now.tzinfo)).astimezone(UTC)
    if moment <= begin:
        raise ValueFormatError(f"{text!r} is over already", hint="name a time to come")
    return moment


def parse_refresh_schedule(value: object) -> Schedule | None:
    """Return a Distributor's refresh schedule: as ``parse_schedule``, but never more often than 180 s."""
    schedule = parse_schedule(value)
    interval_s = schedule.shortest_interval_s() if schedule else None
    if interval_s is not None and interval_s < MIN_REFRESH_S:
        raise ValueFormatError(
            f"a refresh every {interval_s:g} s is more often than every {MIN_REFRESH_S:g} s",
            hint="once a day is usual; `ted build` and a play refresh at once",
        )
    return schedule


def _one_key(value: object) -> tuple[Kind, object, dict[str, object]]:
    if value in ("never", "immediately"):
        return value, True, {}
    if not isinstance(value, Mapping):
        raise ValueFormatError(f"{value!r} is not a schedule", hint='write e.g. {daily: "02:00-05:00"}')
    kinds = [key for key in value if key in KINDS]
    if len(kinds) != 1:
        found = "none" if not kinds else " and ".join(kinds)
        near = next((s for s in (suggestion(str(k), KINDS) for k in value) if s), None)
        raise ValueFormatError(f"a schedule has exactly one of {', '.join(KINDS)}; this has {found}", hint=near)
    kind = cast(Kind, kinds[0])
    beside = {str(key): item for key, item in value.items() if key != kind}
    _refuse_others(kind, beside, _BESIDE[kind])
    return kind, value[kind], beside


def _refuse_others(kind: str, found: Mapping[str, object], allowed: tuple[str, ...]) -> None:
    for key in found:
        if key not in allowed:
            known = ", ".join(allowed) or "nothing"
            raise ValueFormatError(
                f"{key!r} does not go with {kind!r}", hint=suggestion(key, allowed) or f"{known} does"
            )


def _common(beside: Mapping[str, object]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "random" in beside:
        found["random"] = _flag("random", beside["random"])
    if beside.get("repeat") is not None:
        found["repeat_s"] = _interval_s("repeat", beside["repeat"])
    if beside.get("timezone") is not None:
        found["timezone"] = _zone(beside["timezone"])
    return found


def _check_together(schedule: Schedule) -> None:
    if schedule.start is not None and schedule.start == schedule.end:
        raise ValueFormatError("the window ends when it begins", hint="leave the end out for a single time")
    if schedule.random and schedule.kind in _CALENDAR and schedule.end is None:
        raise ValueFormatError("'random' needs a window to choose from", hint='write e.g. "02:00-05:00"')


# One reader per kind: (kind, argument, what stands beside it) -> fields of Schedule.


def _read_flag(kind: str, argument: object, _: Mapping[str, object]) -> dict[str, Any]:
    if isinstance(argument, Mapping) and kind == "immediately":  # {immediately: {repeat: 1h}}
        _refuse_others(kind, argument, _BESIDE[kind])
        return _common(argument)
    if argument not in (None, "") and not _flag(kind, argument):
        raise ValueFormatError(f"{kind}: false says nothing", hint="leave the schedule out")
    return {}


def _read_every(_: str, argument: object, __: Mapping[str, object]) -> dict[str, Any]:
    return {"every_s": _interval_s("every", argument)}


def _read_at(_: str, argument: object, __: Mapping[str, object]) -> dict[str, Any]:
    if isinstance(argument, datetime):
        return {"at": argument}
    try:
        return {"at": datetime.fromisoformat(str(argument))}
    except ValueError:
        raise ValueFormatError(
            f"{argument!r} is not a date and time", hint="write e.g. 2027-01-31T22:00, or with +01:00"
        ) from None


def _read_event(_: str, argument: object, __: Mapping[str, object]) -> dict[str, Any]:
    if not isinstance(argument, str) or not argument.strip() or len(argument) > 128:
        raise ValueFormatError(f"{argument!r} is not the name of an event")
    return {"event": argument.strip()}


def _read_cron(_: str, argument: object, __: Mapping[str, object]) -> dict[str, Any]:
    if not isinstance(argument, str):
        raise ValueFormatError(f"{argument!r} is not a cron expression", hint='write e.g. "30 2 * * mon-fri"')
    words = argument.lower().split()
    _cron_sets(words)
    return {"cron": " ".join(words)}


def _read_calendar(kind: str, argument: object, beside: Mapping[str, object]) -> dict[str, Any]:
    given = dict(beside)
    if isinstance(argument, Mapping):
        inner = {("time" if key in ("window", "at") else str(key)): item for key, item in argument.items()}
        _refuse_others(kind, inner, (*_BESIDE[kind], "time"))
        given |= inner
        argument = inner.get("time", "00:00")
    day, start, end = _window(kind, argument)
    fields: dict[str, Any] = {"start": start, "end": end}
    if day is not None:
        if any(key in given for key in ("day", "days", "date")):
            raise ValueFormatError(f"the day is said twice: {day!r} and beside it")
        given["date" if kind == "yearly" else "day"] = day
    return fields | _common(given) | _DAY_FIELDS[kind](given)


def _window(kind: str, argument: object) -> tuple[str | None, time, time | None]:
    if isinstance(argument, int) and not isinstance(argument, bool):
        guess = f"{argument // 60:02d}:{argument % 60:02d}"  # YAML 1.1 reads 12:30 as 750
        raise ValueFormatError(f"{argument} is not a time", hint=f'put the time in quotes: {kind}: "{guess}"')
    match = _WINDOW.fullmatch(argument.strip().lower()) if isinstance(argument, str) else None
    if match is None:
        raise ValueFormatError(
            f"{argument!r} is not a time or a window", hint=f'write {kind}: "HH:MM" or "HH:MM-HH:MM"'
        )
    start, end = match["start"], match["end"]
    return match["day"], _time(start), _time(end) if end else None


def _time(text: str) -> time:
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueFormatError(f"{text!r} is not a time of day", hint="00:00 to 23:59")
    return time(int(match[1]), int(match[2]))


def _days_daily(given: Mapping[str, object]) -> dict[str, Any]:
    if given.get("day") is not None:
        raise ValueFormatError("'day' does not go with 'daily'", hint="days: [mon, tue]")
    return {"days": _weekdays(given["days"])} if given.get("days") is not None else {}


def _days_weekly(given: Mapping[str, object]) -> dict[str, Any]:
    named = given.get("day") if given.get("day") is not None else given.get("days")
    if named is None:
        raise ValueFormatError("a weekly schedule needs its day", hint='{weekly: "02:00-05:00", day: mon}')
    days = _weekdays(named)
    if len(days) != 1:
        raise ValueFormatError("a weekly schedule has one day", hint="use daily with days: for several")
    return {"days": days}


def _days_monthly(given: Mapping[str, object]) -> dict[str, Any]:
    day = given.get("day")
    if day is None:
        raise ValueFormatError("a monthly schedule needs its day", hint="day: 1 to 31, or last")
    return {"day": "last" if day == "last" else _whole("day", day, 1, 31)}


def _days_yearly(given: Mapping[str, object]) -> dict[str, Any]:
    if given.get("date") is not None:
        month, dash, day = str(given["date"]).partition("-")
        if not dash:
            raise ValueFormatError(f"{given['date']!r} is not a date of the year", hint='date: "12-24"')
        given = {"month": month, "day": day}
    if given.get("day") is None or given.get("month") is None:
        raise ValueFormatError("a yearly schedule needs its date", hint='day: 24 and month: 12, or date: "12-24"')
    number = _month(given["month"])
    return {"month": number, "day": _whole("day", given["day"], 1, _DAYS_OF_MONTH[number - 1])}


_DAY_FIELDS = {
    "daily": _days_daily,
    "weekly": _days_weekly,
    "monthly": _days_monthly,
    "yearly": _days_yearly,
}
_FIELDS = dict.fromkeys(_CALENDAR, _read_calendar) | {
    "never": _read_flag,
    "immediately": _read_flag,
    "every": _read_every,
    "at": _read_at,
    "event": _read_event,
    "cron": _read_cron,
}


def _weekdays(value: object) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not names:
        raise ValueFormatError(f"{value!r} is not a list of weekdays", hint=f"days: [{', '.join(DAYS)}]")
    found = {_weekday(name) for name in names}
    return tuple(day for day in DAYS if day in found)


def _weekday(name: object) -> str:
    short = str(name).strip().lower()
    for day, full in zip(DAYS, _FULL_DAYS, strict=True):
        if short in (day, full):
            return day
    raise ValueFormatError(f"{name!r} is not a weekday", hint=f"one of {', '.join(DAYS)}")


_FULL_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def _month(value: object) -> int:
    short = str(value).strip().lower()[:3]
    return MONTHS.index(short) + 1 if short in MONTHS else _whole("month", value, 1, 12)


def _whole(what: str, value: object, least: int, most: int) -> int:
    text = str(value).strip()
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,4}", text, re.ASCII) or not least <= int(text) <= most:
        raise ValueFormatError(f"{value!r} is not a {what}", hint=f"{least} to {most}")
    return int(text)


def _flag(what: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "yes", "false", "no"):
        return value.strip().lower() in ("true", "yes")
    raise ValueFormatError(f"{what}: {value!r} is neither true nor false")


def _interval_s(what: str, value: object) -> float:
    try:
        seconds = parse_duration_s(value)
    except ValueFormatError as error:
        raise ValueFormatError(f"{what}: {error.message}", hint=error.hint) from None
    if seconds < 1:
        raise ValueFormatError(f"{what}: {value!r} is less than a second")
    return seconds


@lru_cache(maxsize=512)
def _zone(value: object) -> str:
    import zoneinfo

    if not isinstance(value, str) or not _ZONE.fullmatch(value):
        raise ValueFormatError(f"{value!r} is not a time zone", hint="write e.g. Europe/Berlin or UTC")
    known = zoneinfo.available_timezones()
    if known and value not in known:  # a machine without time zone data cannot judge
        raise ValueFormatError(f"{value!r} is not a known time zone", hint=suggestion(value, known))
    return value


# cron: minute hour day month weekday; *, lists, ranges, steps and names.

_CRON = (
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("weekday", 0, 7, ("sun", *DAYS[:-1])),
)
_CRON_PART = re.compile(r"(?P<from>\*|[a-z]{3}|\d{1,2})(?:-(?P<to>[a-z]{3}|\d{1,2}))?(?:/(?P<step>\d{1,2}))?", re.ASCII)


def _cron_sets(words: list[str]) -> list[set[int]]:
    if len(words) != len(_CRON):
        raise ValueFormatError(
            f"a cron expression has five fields, this has {len(words)}", hint="minute hour day month weekday"
        )
    return [_cron_field(word, *field) for word, field in zip(words, _CRON, strict=True)]


def _cron_field(word: str, what: str, least: int, most: int, names: tuple[str, ...]) -> set[int]:
    found: set[int] = set()
    for part in word.split(","):
        match = _CRON_PART.fullmatch(part)
        if match is None:
            raise ValueFormatError(f"cron: {part!r} is not a {what}", hint=f"{least} to {most}, *, a-b or */n")
        found |= _cron_range(match, what, least, most, names)
    return found


def _cron_range(match: re.Match[str], what: str, least: int, most: int, names: tuple[str, ...]) -> set[int]:
    def number(word: str) -> int:
        if word in names:
            return names.index(word) + least
        if not word.isdigit() or not least <= int(word) <= most:
            raise ValueFormatError(f"cron: {word!r} is not a {what}", hint=f"{least} to {most}")
        return int(word)

    step = int(match["step"] or 1)
    if step == 0:
        raise ValueFormatError(f"cron: a step of 0 for the {what} never comes")
    if match["from"] == "*":
        first, last = least, most
    else:
        first = number(match["from"])
        last = number(match["to"]) if match["to"] else (most if match["step"] else first)
    if last < first:
        raise ValueFormatError(f"cron: {match[0]!r} runs backwards")
    return set(range(first, last + 1, step))


def _cron_intervals_s(expression: str) -> list[float]:
    """Shortest gap between two minutes that match: inside an hour, and over its end."""
    minutes, hours, *_ = _cron_sets(expression.split())
    order = sorted(minutes)
    gaps = [60.0 * (later - earlier) for earlier, later in pairwise(order)]
    if any((hour + 1) % 24 in hours for hour in hours):
        gaps.append(60.0 * (60 - order[-1] + order[0]))
    return gaps
