"""Which of two versions is the newer one, as rpm and as dpkg decide it."""

from __future__ import annotations

import re
from itertools import zip_longest

_RPM_PARTS = re.compile(r"[0-9]+|[a-zA-Z]+|~|\^")
_DEB_PARTS = re.compile(r"([^0-9]*)([0-9]*)")


def compare_rpm(one: str, other: str) -> int:
    """Compare ``[epoch:]version[-release]`` as rpm does; negative when ``one`` is the older.

    Where one of them names no release, releases are not compared.
    """
    epoch, version, release = _parts(one)
    other_epoch, other_version, other_release = _parts(other)
    first = (epoch > other_epoch) - (epoch < other_epoch) or _rpm_segments(version, other_version)
    if first or not release or not other_release:
        return first
    return _rpm_segments(release, other_release)


def compare_deb(one: str, other: str) -> int:
    """Compare ``[epoch:]version[-revision]`` as dpkg does; negative when ``one`` is the older."""
    epoch, version, revision = _parts(one)
    other_epoch, other_version, other_revision = _parts(other)
    return (
        (epoch > other_epoch) - (epoch < other_epoch)
        or _deb_segments(version, other_version)
        or _deb_segments(revision, other_revision)
    )


def _parts(text: str) -> tuple[int, str, str]:
    epoch, colon, rest = text.partition(":")
    if not colon or not epoch.isdecimal():
        epoch, rest = "0", text
    version, _, release = rest.rpartition("-") if "-" in rest else (rest, "", "")
    return int(epoch), version, release


def _rpm_segments(one: str, other: str) -> int:
    ours, theirs = _rpm_order(one), _rpm_order(other)
    return (ours > theirs) - (ours < theirs)


def _rpm_order(text: str) -> list[tuple[int, int | str]]:
    """Return what sorts as rpm does: ``~`` before the end, ``^`` after the end alone, letters before numbers."""
    order: list[tuple[int, int | str]] = []
    for part in _RPM_PARTS.findall(text):
        if part in "~^":
            order.append((0 if part == "~" else 2, 0))
        else:
            order.append((4, int(part)) if part.isdecimal() else (3, part))
    return [*order, (1, 0)]


def _deb_segments(one: str, other: str) -> int:
    for left, right in zip_longest(_DEB_PARTS.findall(one), _DEB_PARTS.findall(other), fillvalue=("", "")):
        ours = ([_weight(letter) for letter in left[0]] + [0], int(left[1] or 0))
        theirs = ([_weight(letter) for letter in right[0]] + [0], int(right[1] or 0))
        if ours != theirs:
            return 1 if ours > theirs else -1
    return 0


def _weight(letter: str) -> int:
    """Sort ``~`` before the end, letters before everything else."""
    return -1 if letter == "~" else ord(letter) if letter.isalpha() else ord(letter) + 256
