"""Packages opened in a patch: old and new bytes with compressed streams in them replaced by what they inflate to.

Rules:
 * The old line keeps its places; behind it come the plain bytes of the old streams that the patch names, in that order.
 * In the new bytes each stream that is named stands as its plain bytes, and its recipe makes the stream of them again.
 * A rebuilt pack is checked block by block as any other: a compressor that gives other bytes costs the patch, no more.
 * Plain bytes wait in a file without a name; neither end holds more than a piece of them. A reader inflates no more
   than the patch declares, and no patch may declare more than ``MAX_OPENED_BYTES``.
"""

from __future__ import annotations

import os
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ted.content.opening.codecs import (
    COMPRESSOR_ERRORS,
    PIECE_BYTES,
    Codec,
    Inflated,
    Read,
    Recipe,
    StreamError,
    compressor,
)
from ted.content.patch.base import Base, Span
from ted.content.patch.covers import CoverReader
from ted.content.patch.streams import StreamReader, StreamWriter, folded, unfolded
from ted.errors import DigestMismatchError, FormatError, RepositoryError

MAX_OPENED_BYTES = 8 << 30
MAX_OPENED_STREAMS = 1 << 17
"""That a patch opens, and that it closes."""
MAX_RAW_BYTES = 2 * MAX_OPENED_BYTES
"""Raw bytes of all old streams of a patch: more than what they inflate to only where they hold next to nothing."""
_MAX_RUNS = 1 << 18
"""Of all streams of a patch."""
_ENDLESS = 1 << 62
_NEW_RECIPE, _IN_RUNS = 1, 2
_HINT = "the pack itself is fetched instead"


class Spool:
    """Bytes that wait on the disk, in a file without a name.

    Args:
        directory: On the disk to use.
        most: Bytes it may hold.
    """

    def __init__(self, directory: Path, most: int) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 -- closed by close()
        self._most = most
        self.size = 0

    def close(self) -> None:
        """Forget everything."""
        self._file.close()

    def add(self, data: bytes) -> None:
        """Append bytes.

        Raises:
            FormatError: They are more than it may hold.
            RepositoryError: The disk takes no more.
        """
        if self.size + len(data) > self._most:
            raise FormatError("streams inflate to more than was declared", hint=_HINT)
        try:
            done = os.pwrite(self._file.fileno(), data, self.size)
        except OSError as error:
            raise RepositoryError(f"no room to open packages: {error.strerror}", hint=_HINT) from error
        if done != len(data):
            raise RepositoryError("no room to open packages", hint=_HINT)
        self.size += done

    def read(self, place: int, count: int) -> bytes:
        """Return bytes; fewer at the end."""
        return os.pread(self._file.fileno(), max(0, min(count, self.size - place)), place)

    def cut(self, size: int) -> None:
        """Forget what came after the first ``size`` bytes."""
        self.size = size


class OpenedLine:
    """The old line, and behind it what was opened of it."""

    def __init__(self, base: Base, directory: Path, most: int) -> None:
        self._base = base
        self._spool = Spool(directory, most)
        self.opened: list[tuple[int, int, Codec]] = []
        """(place, raw bytes, codec) of each stream that was opened."""

    def close(self) -> None:
        """Forget what was opened."""
        self._spool.close()

    @property
    def size(self) -> int:
        """The bytes of the line, with what was opened."""
        return self._base.size + self._spool.size

    @property
    def opened_bytes(self) -> int:
        """The plain bytes of what was opened."""
        return self._spool.size

    def open(self, place: int, codec: Codec) -> tuple[int, Span]:
        """Open the stream at a place; return its raw bytes, and where its plain ones are.

        Raises:
            FormatError: There is no such stream, or it inflates to too much; the line is as before.
        """
        start = self._spool.size
        self._base.check()
        stream = Inflated(codec, self._raw, place)
        try:
            for piece in stream:
                self._base.check()
                self._spool.add(piece)
        except (StreamError, FormatError) as error:
            self._spool.cut(start)
            raise FormatError(f"no stream to open at {place}: {error}", hint=_HINT) from error
        self.opened.append((place, stream.raw_bytes, codec))
        return stream.raw_bytes, (self._base.size + start, self._spool.size - start)

    def forget_to(self, state: tuple[int, int]) -> None:
        """Go back to an earlier ``state``."""
        del self.opened[state[0] :]
        self._spool.cut(state[1])

    @property
    def state(self) -> tuple[int, int]:
        """What ``forget_to`` goes back to."""
        return len(self.opened), self._spool.size

    def read(self, place: int, count: int) -> bytes:
        """Return ``count`` bytes of the line.

        Raises:
            FormatError: They are not all in it.
        """
        if place < 0 or place + count > self.size:
            raise FormatError("a patch points beyond the old revision", hint=_HINT)
        if place >= self._base.size:
            return self._spool.read(place - self._base.size, count)
        first = min(count, self._base.size - place)
        data = self._base.read(place, first)
        return data if first == count else data + self._spool.read(0, count - first)

    def _raw(self, place: int, count: int) -> bytes:
        count = min(count, self._base.size - place)
        return self._base.read(place, count) if place >= 0 and count > 0 else b""


@dataclass(frozen=True, slots=True)
class Closed:
    """A stream of the new bytes that travels as its plain bytes.

    ``place``: where the first of its bytes that are among the new ones is; ``runs``: how many of its bytes are left out
    and are there, in turns, left out first (those left out lie in frames of the old revision); ``plain_at``: where its
    plain bytes wait.
    """

    place: int
    runs: tuple[int, ...]
    recipe: Recipe
    plain_bytes: int
    plain_at: int = 0

    @property
    def kept_bytes(self) -> int:
        """How many of its bytes are among the new ones."""
        return sum(self.runs[1::2])

    @property
    def end(self) -> int:
        """The place after its last byte."""
        return self.place + self.kept_bytes


class ClosedStreams:
    """Closed streams in the order they were added, in about 40 bytes each; their plain bytes wait nowhere."""

    def __init__(self) -> None:
        self._recipes: dict[Recipe, int] = {}
        self._recipe_of = array("B")  # there are not that many
        self._numbers = array("Q")  # place, plain bytes
        self._runs = array("Q")
        self._ends = array("I")

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[Closed]:
        recipes, start = list(self._recipes), 0
        for number, end in enumerate(self._ends):
            place, plain_bytes = self._numbers[2 * number : 2 * number + 2]
            yield Closed(place, tuple(self._runs[start:end]), recipes[self._recipe_of[number]], plain_bytes)
            start = end

    def add(self, closed: Closed) -> None:
        """Append a stream; its numbers are below 2^64."""
        self._recipe_of.append(self._recipes.setdefault(closed.recipe, len(self._recipes)))
        self._numbers.extend((closed.place, closed.plain_bytes))
        self._runs.extend(closed.runs)
        self._ends.append(len(self._runs))


def are_few(opened: int, closed: int, in_runs: int) -> bool:
    """Whether a patch may open and close so many streams, in so many runs."""
    return max(opened, closed) <= MAX_OPENED_STREAMS and in_runs <= _MAX_RUNS


def write_opened(out: StreamWriter, line: OpenedLine, closed: Sequence[Closed]) -> None:
    """Tell what was opened of the old line, and what is closed again among the new bytes."""
    out.number("opened", len(line.opened))
    out.number("opened", line.opened_bytes)
    end = 0
    for place, raw_bytes, codec in line.opened:
        out.number("opened", folded(place - end) << 2 | codec)
        end = place + raw_bytes
    out.number("opened", len(closed))
    end, recipe = 0, None
    for each in closed:
        whole = len(each.runs) == 2 and not each.runs[0]
        out.number("opened", (each.place - end) << 2 | _NEW_RECIPE * (each.recipe != recipe) | _IN_RUNS * (not whole))
        if each.recipe != recipe:
            for number in each.recipe:
                out.number("opened", number)
        out.number("opened", each.plain_bytes)
        if not whole:
            out.number("opened", len(each.runs))
        for number in each.runs[1:] if whole else each.runs:
            out.number("opened", number)
        end, recipe = each.end, each.recipe


def read_opened(patch: StreamReader, base: Base, directory: Path, new_bytes: int) -> tuple[OpenedLine, ClosedStreams]:
    """Return the line with what the patch opens, and what it closes again.

    Args:
        patch: The patch.
        base: The old line.
        directory: Where plain bytes may wait.
        new_bytes: All new bytes, closed.

    Raises:
        FormatError: It cannot be.
    """
    count, plain_bytes = patch.number("opened"), patch.number("opened")
    if count > MAX_OPENED_STREAMS or plain_bytes > MAX_OPENED_BYTES:
        raise patch.refuse("it opens more than may be opened")
    line = OpenedLine(base, directory, plain_bytes)
    try:
        end = total = 0
        for _ in range(count):
            told = patch.number("opened")
            if told & 3 >= len(Codec):
                raise patch.refuse("a stream of an unknown codec")
            place = end + unfolded(told >> 2)
            raw_bytes, _ = line.open(place, Codec(told & 3))
            line.opened.clear()  # only who makes a patch wants to know
            end, total = place + raw_bytes, total + raw_bytes
            if total > MAX_RAW_BYTES:
                raise patch.refuse("it opens more than may be opened")
        if line.opened_bytes != plain_bytes:
            raise patch.refuse("streams inflate to less than was declared")
        closed = ClosedStreams()
        for each in _read_closed(patch, new_bytes):
            base.check()
            closed.add(each)
        return line, closed
    except BaseException:
        line.close()
        raise


def opened_bytes(patch: StreamReader) -> int:
    """Return the plain bytes that a patch, of which nothing was read yet, opens of the old line."""
    count, plain_bytes = patch.number("opened"), patch.number("opened")
    if count > MAX_OPENED_STREAMS or plain_bytes > MAX_OPENED_BYTES:
        raise patch.refuse("it opens more than may be opened")
    return plain_bytes


def closing_codecs(path: Path) -> frozenset[Codec]:
    """Return the codecs by which a patch closes streams.

    Raises:
        FormatError: It is no patch.
    """
    patch = StreamReader(path)
    try:
        for _ in range(1 + patch.number("opened")):  # the sum, and the old streams
            patch.number("opened")
        return frozenset(closed.recipe.codec for closed in _read_closed(patch, _ENDLESS))
    finally:
        patch.close()


def _read_closed(patch: StreamReader, new_bytes: int) -> Iterator[Closed]:
    count = patch.number("opened")
    if count > MAX_OPENED_STREAMS:
        raise patch.refuse("it closes more than may be closed")
    end = total = in_runs = 0
    recipe: Recipe | None = None
    for _ in range(count):
        told = patch.number("opened")
        if told & _NEW_RECIPE:
            recipe = _recipe(patch)
        if recipe is None:
            raise patch.refuse("a stream without a recipe")
        plain_bytes = patch.number("opened")
        parts = patch.number("opened") if told & _IN_RUNS else 0
        in_runs += parts
        if in_runs > _MAX_RUNS:
            raise patch.refuse("a stream in too many runs")
        runs = tuple(patch.number("opened") for _ in range(parts)) or (0, patch.number("opened"))
        closed = Closed(end + (told >> 2), runs, recipe, plain_bytes)
        total += plain_bytes
        too_long = closed.end > new_bytes or sum(runs) > MAX_RAW_BYTES
        if not closed.kept_bytes or too_long or total > MAX_OPENED_BYTES:
            raise patch.refuse("a stream that cannot be")
        end = closed.end
        yield closed


def _recipe(patch: StreamReader) -> Recipe:
    codec, level, option = (patch.number("opened") for _ in range(3))
    if codec < len(Codec) and (recipe := Recipe(Codec(codec), level, option)).is_sound():
        return recipe
    raise patch.refuse("a recipe that is none")


class OpenedNew:
    """The new bytes with streams opened, at the end that makes the patch.

    Args:
        closed: By place, none in another.
        raw: (place, count) -> new bytes as they are.
        raw_bytes: All of those.
        spool: Holds the plain bytes.
    """

    def __init__(self, closed: Sequence[Closed], raw: Read, raw_bytes: int, spool: Spool) -> None:
        self.closed = closed
        self._raw = raw
        self._spool = spool
        self._places = [each.place for each in closed]
        self._starts: list[int] = []
        shift = 0
        for each in closed:
            self._starts.append(each.place + shift)
            shift += each.plain_bytes - each.kept_bytes
        self.size = raw_bytes + shift
        self._waiting = sorted((each.plain_at, number) for number, each in enumerate(closed) if each.plain_bytes)

    def place_of_plain(self, at: int) -> int:
        """Return the place of a plain byte that waits at ``at``."""
        waits_at, number = self._waiting[bisect_right(self._waiting, (at, len(self.closed))) - 1]
        return self._starts[number] + at - waits_at

    def pieces(self, place: int, count: int) -> Iterator[tuple[int, int, int]]:
        """Yield (place with streams opened, offset, length) of new bytes as they are, those in streams left out."""
        end, number = place + count, bisect_right(self._places, place) - 1
        at = place
        while at < end:
            inside = number >= 0 and at < self.closed[number].end
            if inside:
                at = self.closed[number].end
            else:
                until = min(end, self._places[number + 1] if number + 1 < len(self._places) else end)
                if until > at:
                    yield at + self._shift(number), at - place, until - at
                at = until
            if number + 1 < len(self._places) and at >= self._places[number + 1]:
                number += 1

    def _shift(self, number: int) -> int:
        """Return how far opened places lie behind after closed stream ``number``."""
        if number < 0:
            return 0
        each = self.closed[number]
        return self._starts[number] - each.place + each.plain_bytes - each.kept_bytes

    def read(self, place: int, count: int) -> bytes:
        """Return ``count`` bytes with streams opened."""
        parts = []
        while count:
            number = bisect_right(self._starts, place) - 1
            inside = place - self._starts[number] if number >= 0 else 0
            if number >= 0 and inside < self.closed[number].plain_bytes:
                each = self.closed[number]
                part = self._spool.read(each.plain_at + inside, min(count, each.plain_bytes - inside))
            else:
                after = self._starts[number + 1] if number + 1 < len(self._starts) else self.size
                part = self._raw(place - self._shift(number), min(count, after - place))
            if not part:
                raise ValueError("beyond the new bytes")
            parts.append(part)
            place, count = place + len(part), count - len(part)
        return b"".join(parts)


class Closing:
    """Gives back the new bytes as they are: what the covers give, streams closed again.

    Args:
        covers: Gives the new bytes with streams opened, in order.
        closed: What to close, by place.
    """

    def __init__(self, covers: CoverReader, closed: Iterable[Closed]) -> None:
        self._parts = self._all(covers, closed)
        self._ready = next(self._parts)

    def read(self, count: int) -> bytes:
        """Return the next ``count`` bytes, at most a frame's.

        Raises:
            FormatError: The patch has not got them.
            DigestMismatchError: A stream comes out otherwise here.
        """
        parts = []
        while count:
            self._ready = self._ready or self._parts.send(count)
            part, self._ready = self._ready[:count], self._ready[count:]
            parts.append(part)
            count -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    @staticmethod
    def _all(covers: CoverReader, closed: Iterable[Closed]) -> Generator[bytes, int, None]:
        """Yield everything in order, from between streams no more than what is asked for."""
        wanted, place = (yield b""), 0
        for each in closed:
            while place < each.place:
                count = min(wanted, each.place - place)
                place += count
                wanted = yield covers.read(count)
            for part in _close(covers, each):
                wanted = yield part
            place = each.end
        while True:
            wanted = yield covers.read(wanted)


def _close(covers: CoverReader, closed: Closed) -> Iterator[bytes]:
    """Yield the bytes of a stream that are among the new ones; it must be neither shorter nor longer."""
    runs, at, left = list(closed.runs), 0, 0
    for out in _stream(covers, closed):
        place = 0
        while place < len(out):
            while not left:
                if at == len(runs):
                    raise DigestMismatchError("a stream comes out longer on this machine", hint=_HINT)
                left, at = runs[at], at + 1
            part = out[place : place + left]
            if not at & 1:  # the second, fourth ... run
                yield part
            place, left = place + len(part), left - len(part)
    if left or any(runs[at:]):
        raise DigestMismatchError("a stream comes out shorter on this machine", hint=_HINT)


def _stream(covers: CoverReader, closed: Closed) -> Iterator[bytes]:
    made = compressor(closed.recipe, closed.plain_bytes)
    try:
        for place in range(0, closed.plain_bytes, PIECE_BYTES):
            yield made.compress(covers.read(min(PIECE_BYTES, closed.plain_bytes - place)))
        yield made.flush()
    except COMPRESSOR_ERRORS as error:
        raise DigestMismatchError(f"a stream cannot be made on this machine: {error}", hint=_HINT) from error
