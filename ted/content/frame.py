"""One frame: the unit of compression and of deduplication.

Rules:
 * A frame is named by the SHA-256 of its plain bytes and holds 1 byte to 4 MiB of them.
 * It is stored raw unless zstd saves 3 % or more.
 * Nothing is inflated beyond the plain size that was declared, nor with a window above 8 MiB;
   what comes out is checked against the name, every time, or by who asked for it, part by part.
"""

from __future__ import annotations

import hashlib
import threading
from typing import NamedTuple

from ted.content.zstd import DecompressionParameter, ZstdCompressor, ZstdDecompressor, ZstdError
from ted.errors import HOW_TO_MEND, DigestMismatchError, FormatError

MAX_FRAME_BYTES = 4 << 20
DIGEST_BYTES = 32
CODEC_RAW = 0
CODEC_ZSTD = 1
CODEC_SEALED = 2
DEFAULT_LEVEL = 3

_MAX_WINDOW_LOG = 23
_OPTIONS: dict[int, int] = {DecompressionParameter.window_log_max: _MAX_WINDOW_LOG}
_SHORTEST_WORTH_COMPRESSING = 64


class Location(NamedTuple):
    """Where a frame lies in its pack, and how it is stored."""

    offset: int
    stored_bytes: int
    plain_bytes: int
    codec: int

    @property
    def end(self) -> int:
        """Offset of the first byte after the frame."""
        return self.offset + self.stored_bytes


class Encoded(NamedTuple):
    """A frame as it is to be stored."""

    digest: bytes
    codec: int
    stored: bytes
    plain_bytes: int


def frame_digest(plain: bytes | bytearray | memoryview) -> bytes:
    """Return the name of the frame that holds ``plain``."""
    return hashlib.sha256(plain).digest()


class _Compressors(threading.local):
    """One compressor a thread and level: making one costs more than a small frame."""

    def __init__(self) -> None:
        self._by_level: dict[int, ZstdCompressor] = {}

    def compress(self, plain: bytes, level: int) -> bytes:
        compressor = self._by_level.get(level)
        if compressor is None:
            compressor = self._by_level[level] = ZstdCompressor(level)
        return compressor.compress(plain, ZstdCompressor.FLUSH_FRAME)


_compressors = _Compressors()


def encode(plain: bytes, level: int = DEFAULT_LEVEL, *, digest: bytes | None = None) -> Encoded:
    """Return ``plain`` as a frame; may be called from several threads.

    Args:
        plain: 1 byte to ``MAX_FRAME_BYTES``.
        level: zstd's.
        digest: The name of ``plain`` where the caller knows it.
    """
    if not 0 < len(plain) <= MAX_FRAME_BYTES:
        raise ValueError(f"a frame holds 1 to {MAX_FRAME_BYTES} bytes, not {len(plain)}")
    if digest is None:
        digest = frame_digest(plain)
    if len(plain) >= _SHORTEST_WORTH_COMPRESSING:
        packed = _compressors.compress(plain, level)
        if len(packed) * 100 <= len(plain) * 97:
            return Encoded(digest, CODEC_ZSTD, packed, len(plain))
    return Encoded(digest, CODEC_RAW, plain, len(plain))


def check_location(location: Location, frames_end: int, where: str) -> None:
    """Refuse a location that cannot be one.

    Raises:
        FormatError: Outside the pack's frames, a size beyond the bounds, or a codec that is not known.
    """
    if location.codec == CODEC_SEALED:
        raise FormatError(f"{where}: a frame is sealed", hint="a newer ted opens sealed distributions")
    if location.codec not in {CODEC_RAW, CODEC_ZSTD}:
        raise FormatError(f"{where}: a frame has the unknown codec {location.codec}", hint="use a newer ted")
    if not 0 < location.plain_bytes <= MAX_FRAME_BYTES:
        raise FormatError(f"{where}: a frame declares {location.plain_bytes} bytes")
    too_long = location.stored_bytes > location.plain_bytes - (location.codec == CODEC_ZSTD)
    if too_long or not location.stored_bytes:
        raise FormatError(f"{where}: a frame is stored in {location.stored_bytes} bytes")
    if location.codec == CODEC_RAW and location.stored_bytes != location.plain_bytes:
        raise FormatError(f"{where}: a raw frame with two sizes")
    if location.offset < 16 or location.end > frames_end:
        raise FormatError(f"{where}: a frame lies outside the pack's frames")


def decode(stored: bytes, location: Location, digest: bytes, where: str, *, checked: bool = True) -> bytes:
    """Return the plain bytes of a frame.

    Args:
        stored: As read from the pack.
        location: Checked before with ``check_location``.
        digest: Its name.
        where: Named in errors.
        checked: Whether the bytes are compared with the name; without, they are only as many as declared.

    Raises:
        DigestMismatchError: The bytes are not those of that name.
    """
    plain = stored if location.codec == CODEC_RAW else _inflate(stored, location.plain_bytes)
    if plain is None or len(plain) != location.plain_bytes or (checked and frame_digest(plain) != digest):
        raise DigestMismatchError(
            f"{where}: the frame at {location.offset} is not {digest.hex()}",
            hint=HOW_TO_MEND,
        )
    return plain


def _inflate(stored: bytes, plain_bytes: int) -> bytes | None:
    decompressor = ZstdDecompressor(options=_OPTIONS)
    try:
        plain = decompressor.decompress(stored, max_length=plain_bytes + 1)
    except ZstdError:
        return None
    if len(plain) != plain_bytes or decompressor.unused_data:
        return None
    return plain
