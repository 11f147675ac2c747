"""The one place that knows where zstd comes from: the standard library from Python 3.14 on, else backports.zstd."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression.zstd import (
        CompressionParameter,
        DecompressionParameter,
        ZstdCompressor,
        ZstdDecompressor,
        ZstdError,
        zstd_version,
    )
else:
    from backports.zstd import (
        CompressionParameter,
        DecompressionParameter,
        ZstdCompressor,
        ZstdDecompressor,
        ZstdError,
        zstd_version,
    )

__all__ = [
    "CompressionParameter",
    "DecompressionParameter",
    "ZstdCompressor",
    "ZstdDecompressor",
    "ZstdError",
    "zstd_compress",
    "zstd_version",
]


def zstd_compress(plain: bytes, level: int) -> bytes:
    """Return ``plain`` as one zstd frame."""
    return ZstdCompressor(level).compress(plain, ZstdCompressor.FLUSH_FRAME)
