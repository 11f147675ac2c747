"""Where a build keeps frames: in the packs of earlier revisions if they are there, else in the new pack.

Rules:
 * A frame that a kept revision's pack holds is referred to, not repeated.
 * Frames are compressed beside the reading, by one thread less than there are cores (one at least), and by who reads
   where that is far ahead. They are written in the order they came: same input, same pack.
 * At most 16 MiB wait to be written, whatever the size of the source.
 * A pack less than a quarter of which would be live is retired, and so are those with the fewest live bytes beyond 32
   packs: their live frames move into the new pack.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from ted.content.blocks import Bitmap, bounded_runs
from ted.content.frame import Encoded, Location, encode, frame_digest
from ted.content.pack import DigestTable, PackReader, PackWriter
from ted.content.record import MAX_PACKS, PackRef
from ted.errors import BuildError

_MOST_WORKERS = 2
_BATCHES_AHEAD = 4
"""So many batches wait for each worker before who reads lends a hand."""
_MAX_WAITING_BYTES = 16 << 20
_BATCH_BYTES = 1 << 20
"""So much goes to a thread at once: to take turns at the interpreter costs time, most of all on a busy machine."""
_LIVE_SHARE_TO_KEEP = 4


class EarlierPack:
    """A pack of a kept revision, and which of its frames the new revision needs."""

    def __init__(self, ref: PackRef, reader: PackReader) -> None:
        self.ref = ref
        self.reader = reader
        self.live_bytes = 0
        self._live = Bitmap(len(reader.index))

    def find(self, digest: bytes) -> int | None:
        """Return the number of the frame, ``None`` if it is not in this pack."""
        return self.reader.index.find(digest)

    def location(self, number: int) -> Location:
        """Return where frame ``number`` lies."""
        return self.reader.index.at(number)[1]

    def need(self, number: int) -> None:
        """Note that the new revision needs frame ``number``."""
        if number not in self._live:
            self._live.add(number)
            self.live_bytes += self.location(number).stored_bytes

    @property
    def is_mostly_dead(self) -> bool:
        """Whether so little of it is needed that it had better be rewritten."""
        return self.live_bytes * _LIVE_SHARE_TO_KEEP < self.ref.bytes

    def live_frames(self) -> Iterator[Encoded]:
        """Yield the needed frames as they are stored, checked, in the order they lie."""
        numbers = [number for first, count in self._live.runs() for number in range(first, first + count)]
        numbers.sort(key=lambda number: self.location(number).offset)
        for number in numbers:
            digest, location = self.reader.index.at(number)
            self.reader.read(digest, location)  # what is damaged must not travel on under a new list
            yield Encoded(digest, location.codec, self.reader.stored(location), location.plain_bytes)

    def live_ref(self) -> PackRef:
        """Return the reference to this pack with the blocks that the new revision needs."""
        size = self.ref.block_bytes
        blocks = Bitmap(self.ref.blocks)
        for first, count in self._live.runs():
            for number in range(first, first + count):
                location = self.location(number)
                _add_range(blocks, location.offset, location.end, size)
        _add_range(blocks, 0, 1, size)
        _add_range(blocks, self.reader.index_offset, self.ref.bytes, size)
        ref = self.ref
        return PackRef(ref.revision, ref.bytes, size, ref.blocks, ref.root, tuple(bounded_runs(blocks.runs())))


def _add_range(blocks: Bitmap, start: int, end: int, block_bytes: int) -> None:
    for block in range(start // block_bytes, (end - 1) // block_bytes + 1):
        blocks.add(block)


class FrameStore:
    """The frames of one build. Used from one thread; close it."""

    def __init__(self, pack_path: Path, earlier: Sequence[EarlierPack], level: int) -> None:
        self.frames_new = 0
        self._earlier = list(earlier)
        self._level = level
        self._directory = pack_path.parent
        self._pack = PackWriter(pack_path)
        self._seen = DigestTable(pack_path.parent)
        workers = max(1, min(_MOST_WORKERS, len(os.sched_getaffinity(0)) - 1))
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="ted-compress")
        self._most_under_way = workers * _BATCHES_AHEAD
        self._batch: list[tuple[bytes, bytes]] = []
        self._batch_bytes = 0
        self._waiting: deque[Future[list[Encoded]]] = deque()
        self._waiting_sizes: deque[int] = deque()
        self._waiting_bytes = 0

    def close(self) -> None:
        """Give up whatever is unfinished; harmless after ``finish``."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._pack.abandon()
        self._seen.close()

    def put(self, plain: bytes, *, digest: bytes | None = None) -> bytes:
        """Keep a frame; return its digest, which is computed where the caller does not know it.

        Raises:
            BuildError: The pack cannot be written, such as on a full disk; no part of it is of use then.
        """
        if digest is None:
            digest = frame_digest(plain)
        try:
            if not self.need(digest) and digest not in self._seen:
                self._seen.add(digest)
                self._batch.append((plain, digest))
                self._batch_bytes += len(plain)
                if self._batch_bytes >= _BATCH_BYTES:
                    self._compress_batch()
        except OSError as error:  # told here: whoever reads a source would take it for the source's
            raise BuildError(
                f"{error.filename or self._directory}: {error.strerror}",
                hint="the former revision is unchanged; build again once mended",
            ) from error
        return digest

    def need(self, digest: bytes) -> bool:
        """Refer to a frame of an earlier pack; false if none holds it."""
        for pack in self._earlier:
            number = pack.find(digest)
            if number is not None:
                pack.need(number)
                return True
        return False

    def size_of(self, digest: bytes) -> int | None:
        """Return the plain bytes of a frame of an earlier pack, ``None`` if none holds it."""
        for pack in self._earlier:
            number = pack.find(digest)
            if number is not None:
                return pack.location(number).plain_bytes
        return None

    def read(self, digest: bytes) -> bytes | None:
        """Return a frame of an earlier pack, checked; ``None`` if none holds it."""
        for pack in self._earlier:
            number = pack.find(digest)
            if number is not None:
                return pack.reader.read(digest, pack.location(number))
        return None

    def finish(self) -> list[PackRef]:
        """Write the new pack to its end, durably; return the earlier packs it needs beside it."""
        if self._batch:
            self._compress_batch()
        while self._waiting:
            self._write_next()
        kept = self._retire()
        self.frames_new = self._pack.frames
        self._pack.finish()
        return [pack.live_ref() for pack in kept]

    def _retire(self) -> list[EarlierPack]:
        needed = [pack for pack in self._earlier if pack.live_bytes]
        dead = [pack for pack in needed if pack.is_mostly_dead]
        kept = [pack for pack in needed if not pack.is_mostly_dead]
        kept.sort(key=lambda pack: pack.live_bytes, reverse=True)
        for pack in dead + kept[MAX_PACKS - 1 :]:
            for frame in pack.live_frames():
                self._pack.add(frame)
        keep = {pack.ref.revision for pack in kept[: MAX_PACKS - 1]}
        return [pack for pack in needed if pack.ref.revision in keep]

    def _write_next(self) -> None:
        for frame in self._waiting.popleft().result():
            self._pack.add(frame)
        self._waiting_bytes -= self._waiting_sizes.popleft()

    def _compress_batch(self) -> None:
        self._waiting.append(self._encode_batch())
        self._waiting_sizes.append(self._batch_bytes)
        self._waiting_bytes += self._batch_bytes
        self._batch, self._batch_bytes = [], 0
        while self._waiting_bytes > _MAX_WAITING_BYTES:
            self._write_next()

    def _encode_batch(self) -> Future[list[Encoded]]:
        if sum(not encoded.done() for encoded in self._waiting) < self._most_under_way:
            return self._pool.submit(_encode_all, self._batch, self._level)
        done: Future[list[Encoded]] = Future()
        done.set_result(_encode_all(self._batch, self._level))
        return done


def _encode_all(frames: Sequence[tuple[bytes, bytes]], level: int) -> list[Encoded]:
    return [encode(plain, level, digest=digest) for plain, digest in frames]
