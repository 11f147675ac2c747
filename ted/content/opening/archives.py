"""Where the files of a tar or cpio archive begin, so that each can be compared with its like in another archive.

Rules:
 * An archive that makes no sense from some place on, or tells too much, has no more files from there on; nothing here
   is an error.
 * What is told only helps to compare: nothing depends on its being right.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

from ted.content.opening.codecs import Read

MAX_FILES = 200_000
_TAR_BLOCK_BYTES = 512
_CPIO_HEADER_BYTES = 110
_CPIO_MAGIC = (b"070701", b"070702")
_MAX_NAME_BYTES = 4096
_MAX_HEADER_BYTES = 1 << 20
"""Of all headers of one file."""
_MAX_NAMES_BYTES = 32 << 20
"""Of all names of one archive."""

Mark = tuple[int, bytes]
"""(where a file's header begins, its name)."""


def files_in(read: Read, size: int) -> Iterator[Mark]:
    """Yield where the files begin, in order; nothing where it is neither tar nor cpio."""
    head, left_bytes = read(0, _TAR_BLOCK_BYTES), _MAX_NAMES_BYTES
    is_tar, is_cpio = head[257:262] == b"ustar", head[:6] in _CPIO_MAGIC
    for place, name in _in_tar(read, size) if is_tar else _in_cpio(read, size) if is_cpio else ():
        left_bytes -= len(name)
        if left_bytes < 0:
            return
        yield place, name


class _View(io.RawIOBase):
    """What ``tarfile`` reads: at most 1 MiB for each file in the archive, as it keeps all that headers tell."""

    def __init__(self, read: Read, size: int) -> None:
        super().__init__()
        self._read, self._size, self._at = read, size, 0
        self.left_bytes = _MAX_HEADER_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = max(0, place + (0, self._at, self._size)[whence])
        return self._at

    def read(self, count: int = -1, /) -> bytes:
        if count > self.left_bytes:
            raise ValueError("headers that are too long")
        data = self._read(self._at, count) if count > 0 else b""
        self._at += len(data)
        self.left_bytes -= len(data)
        return data


def _in_tar(read: Read, size: int) -> Iterator[Mark]:
    try:
        view = _View(read, size)
        with tarfile.open(fileobj=view, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
            for _ in range(MAX_FILES):
                member = archive.next()
                if member is None:
                    return
                yield member.offset, member.name.encode("utf-8", "surrogateescape")
                view.left_bytes = _MAX_HEADER_BYTES
                archive.members.clear()  # type: ignore[attr-defined]  # it would remember all of them
                archive.pax_headers.clear()  # type: ignore[attr-defined]  # and what is told for all that follow
    except (tarfile.TarError, ValueError, OSError, EOFError, OverflowError, RecursionError):
        return


def _in_cpio(read: Read, size: int) -> Iterator[Mark]:
    at = 0
    for _ in range(MAX_FILES):
        head = read(at, _CPIO_HEADER_BYTES)
        if len(head) < _CPIO_HEADER_BYTES or head[:6] not in _CPIO_MAGIC:
            return
        try:
            file_bytes, name_bytes = int(head[54:62], 16), int(head[94:102], 16)
        except ValueError:
            return
        if not 0 < name_bytes <= _MAX_NAME_BYTES:
            return
        yield at, read(at + _CPIO_HEADER_BYTES, name_bytes - 1)
        data = at + -(-(_CPIO_HEADER_BYTES + name_bytes) // 4) * 4
        at = data + -(-file_bytes // 4) * 4
        if at >= size:
            return
