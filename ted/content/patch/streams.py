"""The file of a patch: named streams of bytes, in chunks that are each stored in the smallest form.

Rules:
 * A chunk holds at most 16 MiB of plain bytes, 2 MiB in all streams but three, and a reader holds one of each: less
   than 90 MiB together.
 * Nothing is inflated beyond the plain size a chunk declares, nor with more memory than the bound says.
 * A reader is asked for exact counts; a stream that ends too early is refused.
"""

from __future__ import annotations

import bz2
import lzma
import os
import struct
import tempfile
from array import array
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import IO

from ted.content.durable import drop, sync_directory
from ted.content.zstd import DecompressionParameter, ZstdDecompressor, ZstdError, zstd_compress
from ted.errors import FormatError

MAGIC = b"TEDPATC\0"
VERSION = 2
CHUNK_BYTES = 2 << 20
LARGE_CHUNK_BYTES = 16 << 20
MAX_CHUNKS = 1 << 16
"""Of all streams together."""

CODEC_RAW = 0
CODEC_ZSTD = 1
CODEC_LZMA = 2
CODEC_BZIP2 = 3

_HEADER = struct.Struct("<8sHH")
_LZMA_DICTIONARY_BYTES = 8 << 20
_LZMA_FILTERS = [
    {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": _LZMA_DICTIONARY_BYTES, "lc": 4, "pb": 0}
]
_LZMA_DECODE = [{"id": lzma.FILTER_LZMA2, "dict_size": _LZMA_DICTIONARY_BYTES}]
_SMALLEST_WORTH_COMPRESSING = 24
_MAX_VARINT_BYTES = 10
_THREADS = 2

STREAMS = (
    "head", "index", "program", "sizes", "digests",
    "ops", "flags", "paths", "mtimes", "file_sizes", "fields", "extents", "lists",
    "opened", "gaps", "lengths", "places", "differences", "runs", "text", "literals",
)  # fmt: skip
"""The streams of a patch, in the order they are stored."""
_LARGE = frozenset({"differences", "text", "literals"})


def append_number(out: bytearray, number: int) -> None:
    """Append ``number`` (0 or more): seven bits a byte, lowest first."""
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


def chunk_bytes(name: str) -> int:
    """Return how many plain bytes a chunk of a stream holds at most."""
    return LARGE_CHUNK_BYTES if name in _LARGE else CHUNK_BYTES


def folded(number: int) -> int:
    """Return a number of either sign as one of 0 or more, small ones staying small."""
    return number << 1 if number >= 0 else (-number << 1) - 1


def unfolded(number: int) -> int:
    """Return what ``folded`` made ``number`` of."""
    return number >> 1 if not number & 1 else -((number + 1) >> 1)


class StreamWriter:
    """Collects the streams of one patch; they wait on the disk. Close it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._pending = {name: bytearray() for name in STREAMS}
        self._files: dict[str, IO[bytes]] = {}
        self._beside: list[IO[bytes]] = []

    def number(self, name: str, value: int) -> None:
        """Append a number of 0 or more."""
        append_number(self._pending[name], value)
        self._spill(name)

    def signed(self, name: str, value: int) -> None:
        """Append a number of either sign."""
        self.number(name, folded(value))

    def data(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Append bytes; the reader must know how many."""
        self._pending[name] += data
        self._spill(name)

    def _spill(self, name: str) -> None:
        pending = self._pending[name]
        if len(pending) >= 1 << 20:
            if name not in self._files:
                self._files[name] = self._file()
            self._files[name].write(pending)
            pending.clear()

    def _file(self) -> IO[bytes]:
        return tempfile.TemporaryFile(dir=self._directory)

    def beside(self) -> IO[bytes]:
        """Return a file for what waits until it can be appended; closed with this."""
        file = self._file()
        self._beside.append(file)
        return file

    def finish(self, path: Path, *, small: bool) -> int:
        """Write the patch to ``path``, durably; return its bytes."""
        with open(path, "xb") as out, closing(self._compressed(small=small)) as chunks:
            out.write(_HEADER.pack(MAGIC, VERSION, len(STREAMS)))
            for stored in chunks:
                out.write(stored)
            out.flush()
            os.fsync(out.fileno())
            size = out.tell()
        sync_directory(path.parent)
        return size

    def _compressed(self, *, small: bool) -> Generator[bytes, None, None]:
        """Yield what stands in the file, in order; several chunks are compressed at a time, and no more are held."""
        threads = 1 if small else _THREADS  # lzma takes too much memory for two
        pool = ThreadPoolExecutor(threads, thread_name_prefix="ted-compress")
        packing: deque[Future[bytes]] = deque()
        try:
            for name, plain in self._chunks_and_ends():
                wordy = name in {"text", "literals"}
                packing.append(pool.submit(_packed, plain, small=small, wordy=wordy))
                if len(packing) >= threads:
                    yield packing.popleft().result()
            while packing:
                yield packing.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _chunks_and_ends(self) -> Iterator[tuple[str, bytes]]:
        """Yield name and plain bytes of each chunk, and nothing at the end of each stream."""
        for name in STREAMS:
            for plain in self._chunks(name):
                yield name, plain
            yield name, b""

    def _chunks(self, name: str) -> Iterator[bytes]:
        file = self._files.get(name)
        if file is not None:
            file.write(self._pending[name])
            self._pending[name].clear()
            file.seek(0)
            while chunk := file.read(chunk_bytes(name)):
                yield chunk
        elif self._pending[name]:
            yield bytes(self._pending[name])

    def close(self) -> None:
        """Forget everything that waits."""
        drop(*self._files.values(), *self._beside)
        self._files.clear()
        self._beside.clear()


def _packed(plain: bytes, *, small: bool, wordy: bool) -> bytes:
    """Return a chunk as it stands in the file; of no bytes: what ends a stream."""
    if not plain:
        return b"\0"
    codec, stored = _smallest(plain, small=small, wordy=wordy)
    head = bytearray((codec + 1,))
    append_number(head, len(plain))
    append_number(head, len(stored))
    return bytes(head) + stored


def _smallest(plain: bytes, *, small: bool, wordy: bool) -> tuple[int, bytes]:
    """Return the codec and the stored bytes of a chunk; what is new is worth bzip2 even when time counts.

    What zstd cannot pack at all (it is packed or sealed) is not tried any further.
    """
    forms = [(CODEC_RAW, plain)]
    if len(plain) >= _SMALLEST_WORTH_COMPRESSING:
        level = 19 if small and len(plain) < 1 << 20 else 12 if small else 9
        forms.append((CODEC_ZSTD, zstd_compress(plain, level)))
        if len(forms[-1][1]) > len(plain) * 0.99:
            return min(forms, key=lambda form: len(form[1]))
        if small:
            forms.append((CODEC_LZMA, lzma.compress(plain, format=lzma.FORMAT_RAW, filters=_LZMA_FILTERS)))
        if small or wordy:
            forms.append((CODEC_BZIP2, bz2.compress(plain)))
    return min(forms, key=lambda form: len(form[1]))


class _Stream:
    """One stream of an open patch, from its first byte to its last."""

    def __init__(self, fd: int, name: str, chunks: array[int], where: str) -> None:
        self._fd = fd
        self._name = name
        self._chunks = iter(chunks)
        self._where = where
        self._plain = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        if self._at + count <= len(self._plain):
            self._at += count
            return self._plain[self._at - count : self._at]
        parts = []
        while count:
            if self._at == len(self._plain):
                self._next()
            part = self._plain[self._at : self._at + count]
            self._at += len(part)
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def number(self) -> int:
        value = shift = 0
        while True:
            if self._at == len(self._plain):
                self._next()
            byte = self._plain[self._at]
            self._at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift >= 7 * _MAX_VARINT_BYTES:
                raise FormatError(f"{self._where}: a number in stream {self._name} is too long")

    def at_end(self) -> bool:
        if self._at < len(self._plain):
            return False
        try:
            self._next()
        except FormatError:
            return True
        return False

    def _next(self) -> None:
        codec = next(self._chunks, None)
        if codec is None:
            raise FormatError(f"{self._where}: stream {self._name} ends too early")
        plain_bytes, offset, stored_bytes = (next(self._chunks) for _ in range(3))
        self._plain, self._at = b"", 0  # before the next one is unpacked
        stored = os.pread(self._fd, stored_bytes, offset)
        plain = _inflate(codec, stored, plain_bytes) if len(stored) == stored_bytes else None
        if plain is None or len(plain) != plain_bytes:
            raise FormatError(f"{self._where}: stream {self._name} cannot be unpacked")
        self._plain = plain


def _inflate(codec: int, stored: bytes, plain_bytes: int) -> bytes | None:
    if codec == CODEC_RAW:
        return stored
    try:
        if codec == CODEC_ZSTD:
            decompressor = ZstdDecompressor(options={DecompressionParameter.window_log_max: 24})
            return decompressor.decompress(stored, max_length=plain_bytes + 1)
        if codec == CODEC_LZMA:
            lzma_decompressor = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_LZMA_DECODE)
            return lzma_decompressor.decompress(stored, max_length=plain_bytes + 1)
        return bz2.BZ2Decompressor().decompress(stored, max_length=plain_bytes + 1)
    except (ZstdError, lzma.LZMAError, ValueError, EOFError, OSError):
        return None


class StreamReader:
    """An open patch. Used from one thread; close it.

    Raises (opening):
        FormatError: It is no patch, or of a version this ted does not know.
    """

    def __init__(self, path: Path) -> None:
        self._where = str(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            self._streams = self._open()
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def number(self, name: str) -> int:
        """Return the next number of a stream."""
        return self._streams[name].number()

    def signed(self, name: str) -> int:
        """Return the next number of either sign."""
        return unfolded(self._streams[name].number())

    def data(self, name: str, count: int) -> bytes:
        """Return the next ``count`` bytes of a stream; the caller has bounded the count."""
        return self._streams[name].take(count)

    def at_end(self, name: str) -> bool:
        """Whether a stream has nothing more."""
        return self._streams[name].at_end()

    def refuse(self, problem: str) -> FormatError:
        """Return the error that says what is wrong with this patch."""
        return FormatError(f"{self._where}: {problem}", hint="the pack itself is fetched instead")

    def _open(self) -> dict[str, _Stream]:
        size = os.fstat(self._fd).st_size
        head = os.pread(self._fd, _HEADER.size, 0)
        if len(head) < _HEADER.size or not head.startswith(MAGIC):
            raise self.refuse("not a patch of ted")
        _, version, count = _HEADER.unpack(head)
        if version != VERSION or count != len(STREAMS):
            raise self.refuse(f"patch format version {version}; this ted knows version {VERSION}")
        offset, streams, total = _HEADER.size, {}, 0
        for name in STREAMS:
            chunks = array("Q")  # codec, plain bytes, offset, stored bytes; the same of the next one
            while True:
                codec, plain, stored, offset = self._chunk_head(offset)
                if codec < 0:
                    break
                total += 1
                if not 0 < plain <= chunk_bytes(name) or stored > plain or codec > CODEC_BZIP2:
                    raise self.refuse(f"stream {name} has a chunk that cannot be")
                if total > MAX_CHUNKS:
                    raise self.refuse("more chunks than a patch has")
                chunks.extend((codec, plain, offset, stored))
                offset += stored
                if offset > size:
                    raise self.refuse(f"stream {name} goes beyond the end")
            streams[name] = _Stream(self._fd, name, chunks, self._where)
        if offset != size:
            raise self.refuse("something follows the end")
        return streams

    def _chunk_head(self, offset: int) -> tuple[int, int, int, int]:
        head = os.pread(self._fd, 1 + 2 * _MAX_VARINT_BYTES, offset)
        if not head:
            raise self.refuse("cut short")
        if not head[0]:
            return -1, 0, 0, offset + 1
        plain, at = _number_in(head, 1)
        stored, at = _number_in(head, at)
        if at > len(head):
            raise self.refuse("cut short")
        return head[0] - 1, plain, stored, offset + at


def _number_in(data: bytes, at: int) -> tuple[int, int]:
    """Return the number at ``at`` and where it ends; beyond the data where it is cut short."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    return 0, len(data) + 1
