"""Bytes and durations as people write them.

Rules:
 * A number is bytes, or seconds. A string may carry a unit: ``256KiB``, ``2MB``; ``2m``, ``1h30m``.
 * ``KB MB GB TB`` are powers of 1000, ``KiB MiB GiB TiB`` powers of 1024. Case counts where it tells
   bytes from bits: ``2Mb`` is refused rather than guessed.
 * A rate is bytes per second; ``/s`` behind its unit is allowed and changes nothing.
 * Nothing is negative, nothing is infinite, and ``true`` is no number.
"""

from __future__ import annotations

import re

from ted.errors import ValueFormatError, shorten

MAX_BYTES = 1 << 60
MAX_DURATION_S = 10 * 366 * 86400.0
_ABSURD = 1e30

_BYTE_UNITS = {"": 1, "B": 1}
_BYTE_UNITS |= {f"{p}B": 1000**n for n, p in enumerate("KMGT", 1)} | {"kB": 1000}
_BYTE_UNITS |= {f"{p}iB": 1024**n for n, p in enumerate("KMGT", 1)}
_BYTE_UNITS |= {f"{p}ib": 1024**n for n, p in enumerate("kmgt", 1)}

_SECOND_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}

_BYTES = re.compile(r"(\d{1,20}(?:\.\d{1,6})?)\s*([A-Za-z]{0,3})", re.ASCII)
_DURATION = re.compile(r"(?:\d{1,12}(?:\.\d{1,6})?(?:ms|s|m|h|d|w)\s*)+", re.ASCII)
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)", re.ASCII)
_NUMBER = re.compile(r"\d{1,12}(?:\.\d{1,6})?", re.ASCII)


def parse_bytes(value: object) -> int:
    """Return the number of bytes that ``value`` (an integer, or ``"256KiB"``) says.

    Raises:
        ValueFormatError: It is no size.
    """
    if isinstance(value, str):
        return _bounded_bytes(_bytes_of_text(value.strip()), value)
    return _bounded_bytes(_plain_number(value, "a size in bytes", "256KiB or 2MB"), value)


def parse_rate_bytes_s(value: object) -> int:
    """Return bytes per second; never 0, since blank is how "unlimited" is written.

    Raises:
        ValueFormatError: It is no rate.
    """
    rate = parse_bytes(value.strip().removesuffix("/s") if isinstance(value, str) else value)
    if rate == 0:
        raise ValueFormatError("a rate of 0 would never send a byte", hint="leave it out for unlimited")
    return rate


def parse_duration_s(value: object) -> float:
    """Return the seconds that ``value`` (a number, or ``"2m"``, ``"1h30m"``) says.

    Raises:
        ValueFormatError: It is no duration.
    """
    if isinstance(value, str):
        seconds = _seconds_of_text(value.strip())
    else:
        seconds = _plain_number(value, "a duration", "120, 2m or 6h")
    if seconds > MAX_DURATION_S:
        raise ValueFormatError(f"{shorten(value)} is longer than ten years")
    return float(seconds)


def _bytes_of_text(text: str) -> float:
    match = _BYTES.fullmatch(text)
    if match is None:
        raise ValueFormatError(f"{shorten(text)} is not a size in bytes", hint="write 262144, 256KiB or 2MB")
    number, unit = match.groups()
    if unit not in _BYTE_UNITS:
        raise ValueFormatError(f"{shorten(text)} has an unknown unit {unit!r}", hint=_unit_hint(unit))
    return float(number) * _BYTE_UNITS[unit] if "." in number else int(number) * _BYTE_UNITS[unit]


def _unit_hint(unit: str) -> str:
    if unit.lower() in {"kb", "mb", "gb", "tb"}:
        return f"lines are measured in bits: write {unit[0].upper()}B if you mean bytes, or divide by 8"
    return "units are B, KB, MB, GB, TB (1000) and KiB, MiB, GiB, TiB (1024)"


def _bounded_bytes(number: float, value: object) -> int:
    if number > MAX_BYTES:
        raise ValueFormatError(f"{shorten(value)} is more than an exbibyte")
    if number != int(number):
        raise ValueFormatError(f"{shorten(value)} is not a whole number of bytes")
    return int(number)


def _seconds_of_text(text: str) -> float:
    if _NUMBER.fullmatch(text):
        return float(text)
    if not _DURATION.fullmatch(text):
        raise ValueFormatError(f"{shorten(text)} is not a duration", hint="write 120, 90s, 2m, 6h, 1d or 1h30m")
    return sum(float(number) * _SECOND_UNITS[unit] for number, unit in _DURATION_PART.findall(text))


def _plain_number(value: object, what: str, example: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _ABSURD:  # nor is NaN
        raise ValueFormatError(f"{shorten(value)} is not {what}", hint=f"write a number, or {example}")
    if value < 0:
        raise ValueFormatError(f"{shorten(value)} is negative", hint=f"write {what}, such as {example}")
    return value
