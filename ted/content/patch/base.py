"""The old revision as one line of bytes that a patch points into.

The line is the plain bytes of the content frames that the chosen manifest frames of the old revision refer to, each
once, in order of first reference. Both ends make it of the same revision, so that a place in it is enough.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence

from ted.content.entry import Entry, Kind
from ted.content.frame import DIGEST_BYTES
from ted.content.revision import RevisionReader
from ted.errors import FormatError

Span = tuple[int, int]
"""(place in the line, bytes)."""


class FrameLine:
    """Frames of a revision as one run of bytes. While they are read in order, the next one is on its way.

    Args:
        reader: Has the frames.
        check: Called at every frame that is read; what it raises ends that.
    """

    def __init__(self, reader: RevisionReader, check: Callable[[], None] = lambda: None) -> None:
        self._reader = reader
        self._check = check
        self._digests = bytearray()
        self._starts = array("Q", (0,))
        self._last = -2

    def __len__(self) -> int:
        return len(self._starts) - 1

    @property
    def size(self) -> int:
        """The bytes of the line."""
        return self._starts[-1]

    def append(self, digest: bytes, size: int) -> None:
        """Put a frame of ``size`` bytes at the end."""
        self._digests += digest
        self._starts.append(self._starts[-1] + size)

    def digest(self, number: int) -> bytes:
        """Return the name of a frame."""
        return bytes(self._digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES])

    def start(self, number: int) -> int:
        """Return where a frame begins; of the number after the last one, where the line ends."""
        return self._starts[number]

    def read(self, place: int, count: int) -> bytes:
        """Return ``count`` bytes of the line, all of them in it."""
        parts = []
        number = bisect_right(self._starts, place) - 1
        while count:
            self._check()
            start = place - self._starts[number]
            part = self._frame(number)[start : start + count]
            parts.append(part)
            place, count, number = place + len(part), count - len(part), number + 1
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _frame(self, number: int) -> bytes:
        if number == self._last + 1 and number + 1 < len(self):
            self._reader.prepare_frame(self.digest(number + 1))
        self._last = number
        return self._reader.frame(self.digest(number))


class Base:
    """The line of ``reader``'s manifest frames ``numbers``.

    Args:
        reader: The old revision.
        numbers: The manifest frames, in order.
        check: Called again and again wherever the work may be long; what it raises ends that.
    """

    def __init__(
        self, reader: RevisionReader, numbers: Sequence[int], check: Callable[[], None] = lambda: None
    ) -> None:
        self.check = check
        self._reader = reader
        self._numbers = numbers
        self._line = FrameLine(reader, check)
        self._number_of: dict[bytes, int] = {}
        for entry in self.entries():
            if entry.kind is Kind.FILE:
                for extent in reader.extents(entry):
                    check()
                    if extent.frame is not None and extent.frame not in self._number_of:
                        self._append(extent.frame)

    def _append(self, digest: bytes) -> None:
        size = self._reader.frame_bytes(digest)
        if size is None:
            raise FormatError(f"the old revision lacks the frame {digest.hex()}", hint="`ted verify --stored`")
        self._number_of[digest] = len(self._number_of)
        self._line.append(digest, size)

    def entries(self) -> Iterator[Entry]:
        """Yield the entries of the chosen manifest frames, in order."""
        for number in self._numbers:
            for entry in self._reader.frame_entries(number):
                self.check()
                yield entry

    @property
    def size(self) -> int:
        """The bytes of the line."""
        return self._line.size

    def number_of(self, digest: bytes) -> int | None:
        """Return the number of a frame in the line, ``None`` if it is not in it."""
        return self._number_of.get(digest)

    def digest(self, number: int) -> bytes | None:
        """Return the name of frame ``number``, ``None`` if there is no such."""
        if not 0 <= number < len(self._number_of):
            return None
        return self._line.digest(number)

    def frame_bytes(self, number: int) -> int:
        """Return the plain bytes of frame ``number``."""
        return self._line.start(number + 1) - self._line.start(number)

    def spans(self, entry: Entry) -> list[Span]:
        """Return where the bytes of a file of the old revision lie in the line; holes are left out."""
        found: list[Span] = []
        for extent in self._reader.extents(entry):
            number = self._number_of.get(extent.frame) if extent.frame is not None else None
            if number is not None:
                place = self._line.start(number) + extent.offset
                if found and sum(found[-1]) == place:
                    found[-1] = (found[-1][0], found[-1][1] + extent.length)
                else:
                    found.append((place, extent.length))
        return found

    def spans_of_frames(self, wanted: Callable[[bytes], bool]) -> Iterator[Span]:
        """Yield where the frames lie that are wanted by name."""
        for digest, number in self._number_of.items():
            if wanted(digest):
                yield self._line.start(number), self.frame_bytes(number)

    def read(self, place: int, count: int) -> bytes:
        """Return ``count`` bytes of the line.

        Raises:
            FormatError: They are not all in it.
        """
        if place < 0 or place + count > self.size:
            raise FormatError("a patch points beyond the old revision", hint="the pack itself is fetched instead")
        return self._line.read(place, count)
