"""Where compressed streams lie in a file: zip, gzip, xz and zstd files, deb and rpm packages.

Rules:
 * A container is told by its bytes, never by its name or by who brings it.
 * What is odd is no container, or has fewer streams: it then travels as the bytes it is. Nothing here is an error.
 * Only structure is read here; nothing is inflated. A stream whose end only its codec knows has no length.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field

from ted.content.opening.codecs import MAX_LZMA_DICTIONARY_BYTES, Codec, Read

MAX_STREAMS = 50_000
_MAX_READ_BYTES = 32 << 20
_MAX_BLOCKS = 20_000
_ZIP_MEMBER_MAGIC = b"PK\x01\x02"
_ZIP_LOCAL = struct.Struct("<4s5H3I2H")
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER_BYTES = 60
_RPM_MAGIC, _RPM_LEAD_BYTES = b"\xed\xab\xee\xdb", 96
_RPM_HEADER = struct.Struct(">3sB4xII")
_XZ_MAGIC, _XZ_FOOTER_MAGIC = b"\xfd7zXZ\0", b"YZ"
_XZ_CHECK_BYTES = (0, 4, 4, 4, 8, 8, 8, 16, 16, 16, 32, 32, 32, 64, 64, 64)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_MAGIC = b"\x1f\x8b\x08"
_GZIP_TRAILER_BYTES = 8
_GZIP_LEVELS = {2: 9, 4: 1}


@dataclass(frozen=True, slots=True)
class Packed:
    """One compressed stream: ``length`` raw bytes from ``start`` on, ``None`` where only the codec knows."""

    codec: Codec
    start: int
    length: int | None
    hint: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a container: from ``start`` to the next part, with the streams in it, which are one file together.

    ``archive``: their plain bytes may be a tar or cpio archive.
    """

    name: bytes
    start: int
    packed: tuple[Packed, ...] = ()
    archive: bool = False


@dataclass(slots=True)
class Container:
    """``kind`` is ``zip``, ``gz``, ``xz``, ``zst``, ``deb`` (any ar archive) or ``rpm``; parts tile the file."""

    kind: str
    parts: list[Part] = field(default_factory=list)


def kind_of(head: bytes) -> str | None:
    """Return what a file that begins with ``head`` (8 bytes) may be, ``None`` if nothing that can be opened."""
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head.startswith(_AR_MAGIC):
        return "deb"
    if head.startswith(_RPM_MAGIC):
        return "rpm"
    return _stream_kind(head)


def _stream_kind(head: bytes) -> str | None:
    if head.startswith(_GZIP_MAGIC):
        return "gz"
    if head.startswith(_XZ_MAGIC):
        return "xz"
    return "zst" if head.startswith(_ZSTD_MAGIC) else None


def container(read: Read, size: int) -> Container | None:
    """Return what a file holds, ``None`` if it is nothing that can be opened."""
    kind = kind_of(read(0, 8))
    if kind is None:
        return None
    try:
        found = Container(kind, list(_PARTS[kind](read, size)))
    except (ValueError, struct.error, IndexError, OverflowError):
        return None
    return found if any(part.packed for part in found.parts) else None


# one stream, or several as one file


def _of_stream(read: Read, start: int, end: int) -> tuple[Packed, ...]:
    kind = _stream_kind(read(start, 8))
    if kind == "gz":
        return _gzip(read, start)
    if kind == "zst":
        return _zstd(read, start)
    return tuple(_xz(read, start, end)) if kind == "xz" else ()


def _whole(read: Read, size: int) -> Iterator[Part]:
    yield Part(b"", 0, _of_stream(read, 0, size), archive=True)


def _gzip(read: Read, start: int) -> tuple[Packed, ...]:
    head = read(start, 64 << 10)
    flags, extra = head[3], head[8]
    if flags & 0xE0:
        return ()
    at = 10
    if flags & 4:
        at += 2 + int.from_bytes(head[at : at + 2], "little")
    for flag in (8, 16):  # name, comment
        if flags & flag:
            at = head.index(b"\0", at) + 1
    at += 2 * (flags >> 1 & 1)
    return (Packed(Codec.DEFLATE, start + at, None, _GZIP_LEVELS.get(extra, 0)),)


def _zstd(read: Read, start: int) -> tuple[Packed, ...]:
    descriptor = read(start, 5)[4]
    sized = descriptor >> 6 or descriptor & 0x20
    return (Packed(Codec.ZSTD, start, None, descriptor >> 2 & 1 | (2 if sized else 0)),)


def _xz(read: Read, start: int, end: int) -> Iterator[Packed]:
    """Yield the blocks of an xz stream that ends at ``end``; they are listed in its index."""
    footer = read(end - 12, 12)
    flags = read(start + 6, 2)
    if footer[10:] != _XZ_FOOTER_MAGIC or footer[8:10] != flags or flags[0] or flags[1] > 15:
        return
    index_bytes = (int.from_bytes(footer[4:8], "little") + 1) * 4
    if index_bytes > _MAX_READ_BYTES:
        return
    index = read(end - 12 - index_bytes, index_bytes)
    count, at = _xz_number(index, 1)
    if index[0] or not 0 < count <= _MAX_BLOCKS:
        return
    place, check_bytes = start + 12, _XZ_CHECK_BYTES[flags[1]]
    found = []
    for _ in range(count):
        unpadded, at = _xz_number(index, at)
        _, at = _xz_number(index, at)
        header_bytes = (read(place, 1)[0] + 1) * 4
        dictionary_bytes = _xz_lzma_dictionary(read(place, header_bytes))
        length = unpadded - header_bytes - check_bytes
        if dictionary_bytes is None or length <= 0:
            return
        found.append(Packed(Codec.LZMA2, place + header_bytes, length, dictionary_bytes))
        place += -(-unpadded // 4) * 4
    if place == end - 12 - index_bytes:
        yield from found


def _xz_lzma_dictionary(header: bytes) -> int | None:
    """Return the dictionary's bytes of a block whose only filter is LZMA2, ``None`` for any other or a larger one."""
    flags, at = header[1], 2
    for flag in (0x40, 0x80):
        if flags & flag:
            _, at = _xz_number(header, at)
    identity, at = _xz_number(header, at)
    if flags & 0x3F or identity != 0x21 or header[at] != 1 or header[at + 1] > 40:
        return None
    bits = header[at + 1]
    dictionary_bytes: int = (2 | bits & 1) << (bits // 2 + 11)
    return dictionary_bytes if dictionary_bytes <= MAX_LZMA_DICTIONARY_BYTES else None


def _xz_number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 56:
            raise ValueError("a number that is too long")


def following(read: Read, last: Packed, end: int) -> Packed | None:
    """Return the stream right behind one whose length is known now, as gzip and zstd files may have several."""
    if last.length is None or last.codec is Codec.LZMA2:
        return None
    place = last.start + last.length + (_GZIP_TRAILER_BYTES if last.codec is Codec.DEFLATE else 0)
    try:
        more = _of_stream(read, place, end) if place + 8 < end else ()
    except (ValueError, IndexError):
        return None
    return more[0] if more and more[0].codec is last.codec else None


# zip


class _Window(io.RawIOBase):
    """What ``zipfile`` reads: never more than 32 MiB at once, nor a directory of more members than are opened.

    It reads a directory as a whole and makes objects of all members in it.
    """

    def __init__(self, read: Read, size: int) -> None:
        super().__init__()
        self._read, self._size, self._at = read, size, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = io.SEEK_SET, /) -> int:
        place += (0, self._at, self._size)[whence]
        if place < 0:
            raise OSError("before the beginning")
        self._at = place
        return place

    def read(self, count: int = -1, /) -> bytes:
        left = max(self._size - self._at, 0)
        count = left if count is None or count < 0 else min(count, left)
        if count > _MAX_READ_BYTES:
            raise ValueError("a directory that is too long")
        data = self._read(self._at, count) if count else b""
        if data.startswith(_ZIP_MEMBER_MAGIC) and data.count(_ZIP_MEMBER_MAGIC) > MAX_STREAMS:
            raise ValueError("too many members")
        self._at += len(data)
        return data


def _zip(read: Read, size: int) -> Iterator[Part]:
    try:
        with zipfile.ZipFile(_Window(read, size)) as archive:
            members, end = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, OSError, EOFError, UnicodeDecodeError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    if not 0 < len(members) <= MAX_STREAMS:
        return
    members.sort(key=lambda member: member.header_offset)
    if members[0].header_offset:
        yield Part(b"\0head", 0)
    last = 0
    for number, member in enumerate(members):
        start = member.header_offset
        limit = members[number + 1].header_offset if number + 1 < len(members) else end
        if start < last:
            raise ValueError("members overlap")
        yield Part(member.orig_filename.encode("utf-8", "surrogateescape"), start, _zip_data(read, member, limit))
        last = start + 1
    yield Part(b"\0directory", end)


def _zip_data(read: Read, member: zipfile.ZipInfo, limit: int) -> tuple[Packed, ...]:
    head = read(member.header_offset, _ZIP_LOCAL.size)
    if len(head) < _ZIP_LOCAL.size or head[:4] != b"PK\x03\x04":
        return ()
    _, _, flags, method, *_, name_bytes, extra_bytes = _ZIP_LOCAL.unpack(head)
    start = member.header_offset + _ZIP_LOCAL.size + name_bytes + extra_bytes
    encrypted = (flags | member.flag_bits) & 0x2041
    if method != zipfile.ZIP_DEFLATED or member.compress_type != method or encrypted:
        return ()
    if not 0 < member.compress_size <= limit - start:
        return ()
    return (Packed(Codec.DEFLATE, start, member.compress_size, 0),)


# packages


def _ar(read: Read, size: int) -> Iterator[Part]:
    yield Part(b"\0head", 0)
    at = len(_AR_MAGIC)
    for _ in range(MAX_STREAMS):
        head = read(at, _AR_HEADER_BYTES)
        if len(head) < _AR_HEADER_BYTES or head[58:] != b"`\n":
            break
        data, member_bytes = at + _AR_HEADER_BYTES, int(head[48:58])
        if member_bytes < 0 or data + member_bytes > size:
            break
        name = head[:16].rstrip(b" /").split(b".")[:2]  # data.tar.xz and data.tar.zst are the same part
        yield Part(b".".join(name), at, _of_stream(read, data, data + member_bytes), archive=True)
        at = data + member_bytes + member_bytes % 2
    if at < size:
        yield Part(b"\0tail", at)


def _rpm(read: Read, size: int) -> Iterator[Part]:
    yield Part(b"\0head", 0)
    at = _RPM_LEAD_BYTES
    for padding in (8, 1):  # the signature, and the header
        magic, _, entries, data_bytes = _RPM_HEADER.unpack(read(at, _RPM_HEADER.size))
        if magic != b"\x8e\xad\xe8":
            return
        at += _RPM_HEADER.size + 16 * entries + data_bytes
        at += -at % padding
    if at < size:
        yield Part(b"payload", at, _of_stream(read, at, size), archive=True)


_PARTS = {"zip": _zip, "gz": _whole, "xz": _whole, "zst": _whole, "deb": _ar, "rpm": _rpm}
