"""What is alike in some new bytes and some old ones, found by HDiffPatch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

from ted.content.patch.oldfile import CHUNK_BYTES, chunks
from ted.content.zstd import zstd_compress

_WORTH_A_LOOK_BYTES = 64 << 10


@dataclass(slots=True)
class Part:
    """Bytes that lie somewhere: ``place`` in the new bytes or in the base."""

    place: int
    data: bytes


@dataclass(slots=True)
class Segment:
    """New bytes without an exact copy, and the old bytes they may resemble."""

    new: list[Part] = field(default_factory=list)
    old: list[Part] = field(default_factory=list)
    new_bytes: int = 0
    old_bytes: int = 0


class Joined:
    """Parts as one run of bytes, and back to where they lie."""

    def __init__(self, parts: list[Part]) -> None:
        self.parts = parts
        self.data = b"".join(part.data for part in parts)
        self._places = [part.place for part in parts]
        self._starts = [0]
        for part in parts:
            self._starts.append(self._starts[-1] + len(part.data))

    @property
    def end(self) -> int:
        """The place after the last byte; 0 if there is none."""
        return self.parts[-1].place + len(self.parts[-1].data) if self.parts else 0

    def place_of(self, offset: int) -> tuple[int, int]:
        """Return the place of the byte at ``offset``, and how many bytes follow on from there in its part."""
        number = bisect_right(self._starts, offset) - 1
        inside = offset - self._starts[number]
        return self.parts[number].place + inside, len(self.parts[number].data) - inside

    def at(self, place: int, count: int) -> bytes:
        """Return the bytes at a place (of parts in rising order)."""
        if not count:
            return b""
        number = bisect_right(self._places, place) - 1
        start = self._starts[number] + place - self._places[number]
        return self.data[start : start + count]


Compared = tuple[Joined, list[tuple[int, int, int]]]
"""The new bytes of a segment, and what is alike of them: (place in the new bytes, place in the base, length)."""


def compare(segment: Segment) -> Compared:
    """Return what is alike in the new and the old bytes of a segment."""
    new = Joined(segment.new)
    return new, list(_alike(new, Joined(segment.old)))


def _alike(new: Joined, old: Joined) -> Iterator[tuple[int, int, int]]:
    """Yield (place in the new bytes, place in the base, length) of what is alike, nothing across two parts."""
    if not new.data or not old.data:
        return
    for old_at, new_at, length in _found_by_hdiffpatch(old.data, new.data):
        at, was, left = new_at, old_at, length
        while left:
            place, new_run = new.place_of(at)
            start, old_run = old.place_of(was)
            part = min(left, new_run, old_run)
            yield place, start, part
            at, was, left = at + part, was + part, left - part


def _found_by_hdiffpatch(old: bytes, new: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (old offset, new offset, length) of what HDiffPatch finds alike.

    Only the list of covers in its own format (``HDIFF13``) is used: sizes, then for each cover the step in the old
    bytes (with a sign bit), the gap in the new ones, the length; numbers are seven bits a byte, highest first.
    """
    try:
        import hdiffpatch
    except ImportError:  # no wheel for this machine: only equal chunks are found
        return
    if _resembles_nothing(old, new):
        return
    found = hdiffpatch.diff(old, new, None, validate=False)
    at = found.index(b"\0") + 1
    sizes = []
    for _ in range(11):
        value, at = _number(found, at, 0)
        sizes.append(value)
    old_end = new_end = 0
    for _ in range(sizes[2]):
        back = found[at] >> 7
        step, at = _number(found, at, 1)
        gap, at = _number(found, at, 0)
        length, at = _number(found, at, 0)
        old_at, new_at = old_end - step if back else old_end + step, new_end + gap
        if old_at < 0 or old_at + length > len(old) or new_at + length > len(new):
            return  # a format we do not know: what is left is literals
        yield old_at, new_at, length
        old_end, new_end = old_at + length, new_at + length


def _resembles_nothing(old: bytes, new: bytes) -> bool:
    """Whether ``new`` is packed or sealed and not one chunk of it is in ``old``: comparing that takes 3 s for a MiB."""
    if len(new) < _WORTH_A_LOOK_BYTES or len(zstd_compress(new, 1)) < len(new) * 0.98:
        return False
    names = {name for name, _, _ in chunks(old, CHUNK_BYTES)}
    return all(name not in names for name, _, _ in chunks(new, CHUNK_BYTES))


def _number(data: bytes, at: int, tag_bits: int) -> tuple[int, int]:
    more = 0x80 >> tag_bits
    value = data[at] & (more - 1)
    go_on = data[at] & more
    at += 1
    while go_on:
        value = value << 7 | data[at] & 127
        go_on = data[at] & 128
        at += 1
    return value, at
