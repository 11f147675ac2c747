"""An append-only log of small records that survives a kill and notices a torn tail.

Rules:
 * A record is ``length u32 | CRC-32 u32 | payload | length u32`` (little-endian); the payload is msgpack.
   The length stands at both ends, so that an undo log of any size is read backwards in flat memory.
 * Everything up to the first record that does not check out is the log; what follows was torn by a crash and is
   cut off when the log is opened for appending again.
 * ``sync`` is the only promise of durability: after it returns, all records appended before it survive a power cut.
 * A payload above 16 MiB is refused when written and taken for a torn tail when read.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import msgpack

from ted.errors import FormatError
from ted.install.paths import reserve_room

MAGIC = b"TEDLOG\x00\x01"
MAX_PAYLOAD_BYTES = 16 << 20

_HEAD = struct.Struct("<II")
_TAIL = struct.Struct("<I")
_OVERHEAD_BYTES = _HEAD.size + _TAIL.size
_BUFFER_BYTES = 256 << 10


class LogWriter:
    """Append records to ``path``; made when it is not there, its torn tail cut off when it is.

    Raises:
        FormatError: The file is there and is not a log of a version this ted knows.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._pack = msgpack.Packer(use_bin_type=True).pack
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._pending: list[bytes] = []
        self._pending_bytes = 0
        try:
            self._position = self._open_end()
        except BaseException:
            os.close(self._fd)
            raise

    def _open_end(self) -> int:
        if os.fstat(self._fd).st_size < len(MAGIC):
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, MAGIC, 0)
            return len(MAGIC)
        with LogReader(self._path) as reader:
            end = reader.end
        if os.fstat(self._fd).st_size != end:  # cutting would give reserved room back
            os.ftruncate(self._fd, end)
        return end

    @property
    def position(self) -> int:
        """Offset of the next record, in bytes; what ``truncate`` takes."""
        return self._position

    def append(self, record: Any) -> None:
        """Add one record; it reaches the file at the latest with ``flush``."""
        self.append_packed(self._pack(record))

    def append_packed(self, payload: bytes) -> None:
        """As ``append``, for a record that was packed already, by msgpack."""
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise FormatError(f"{self._path}: a record of {len(payload)} bytes is above {MAX_PAYLOAD_BYTES}")
        self._pending += (
            _HEAD.pack(len(payload), zlib.crc32(payload)),
            payload,
            _TAIL.pack(len(payload)),
        )
        self._position += len(payload) + _OVERHEAD_BYTES
        self._pending_bytes += len(payload) + _OVERHEAD_BYTES
        if self._pending_bytes >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Hand everything to the kernel: it survives the end of this process."""
        data = memoryview(b"".join(self._pending))
        at = start = self._position - len(data)
        self._pending.clear()
        self._pending_bytes = 0
        try:
            while data:
                written = os.pwrite(self._fd, data, at)
                data, at = data[written:], at + written
        except OSError:
            # No room: what was not synced is dropped as a whole, so that what comes next stands behind what is whole.
            self._position = start
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, start)
            raise

    def reserve(self, size_bytes: int) -> None:
        """Take room for what is appended next, where the file system can: a full disk does not stop it then.

        Raises:
            OSError: There is no room (``ENOSPC``).
        """
        self.flush()
        reserve_room(self._fd, self._position, size_bytes)

    def sync(self) -> None:
        """Make everything durable: it survives a power cut."""
        self.flush()
        os.fsync(self._fd)

    def truncate(self, position: int) -> None:
        """Forget the records from ``position`` on."""
        self.flush()
        os.ftruncate(self._fd, position)
        self._position = position

    def close(self) -> None:
        """Flush and let go of the file."""
        if self._fd >= 0:
            try:
                self.flush()
            finally:
                os.close(self._fd)
                self._fd = -1


class LogReader:
    """Read the records of ``path`` forwards or backwards; memory stays flat.

    Raises:
        FormatError: Not a log, or of a version this ted does not know.
        FileNotFoundError: There is no such log.
    """

    def __init__(self, path: Path) -> None:
        self._map: mmap.mmap | None = None
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(len(MAGIC))
            if len(head) == len(MAGIC) and head != MAGIC:
                raise FormatError(
                    f"{path}: not a transaction log of this version",
                    hint="finish or roll back with the ted that wrote it, or remove the transaction by hand",
                )
            if size > len(MAGIC):
                self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        self.end = self._good_end()

    def _record_at(self, offset: int) -> tuple[int, int] | None:
        """Return where the payload at ``offset`` starts and ends, ``None`` when it does not check out."""
        data = self._map
        if data is None or offset + _OVERHEAD_BYTES > len(data):
            return None
        length, checksum = _HEAD.unpack_from(data, offset)
        start = offset + _HEAD.size
        stop = start + length
        if not length or length > MAX_PAYLOAD_BYTES or stop + _TAIL.size > len(data):
            return None
        if _TAIL.unpack_from(data, stop)[0] != length or zlib.crc32(memoryview(data)[start:stop]) != checksum:
            return None
        return start, stop

    def _good_end(self) -> int:
        offset = len(MAGIC)
        while (span := self._record_at(offset)) is not None:
            offset = span[1] + _TAIL.size
        return offset

    def __iter__(self) -> Iterator[Any]:
        return (record for _, record in self.forwards())

    def forwards(self, offset: int = len(MAGIC)) -> Iterator[tuple[int, Any]]:
        """Yield each record from ``offset`` on with the offset it stands at."""
        data = self._map
        while data is not None and offset < self.end:
            length = _TAIL.unpack_from(data, offset)[0]
            start = offset + _HEAD.size
            yield offset, msgpack.unpackb(data[start : start + length], raw=False, strict_map_key=False)
            offset = start + length + _TAIL.size

    def backwards(self) -> Iterator[Any]:
        """Yield each record, the newest first."""
        data, end = self._map, self.end
        while data is not None and end > len(MAGIC):
            length = _TAIL.unpack_from(data, end - _TAIL.size)[0]
            stop = end - _TAIL.size
            yield msgpack.unpackb(data[stop - length : stop], raw=False, strict_map_key=False)
            end -= length + _OVERHEAD_BYTES

    def close(self) -> None:
        """Let go of the file."""
        if self._map is not None:
            self._map.close()
            self._map = None

    def __enter__(self) -> LogReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
