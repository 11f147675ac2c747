"""The compressions packages and indexes come in, by the end of a file's name."""

from __future__ import annotations

import bz2
import gzip
import lzma
import sys
import zlib
from functools import partial
from typing import IO, Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

DAMAGED = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstd.ZstdError)
"""What reading something damaged may raise."""


def opened(suffix: str, source: IO[bytes]) -> Any:
    """Return a file that unpacks ``source``; ``source`` itself where the suffix names no compression."""
    openers: dict[str, Any] = {
        "gz": gzip.open, "xz": lzma.open, "lzma": lzma.open, "bz2": bz2.open, "zst": zstd.ZstdFile,
    }  # fmt: skip
    return openers[suffix](source) if suffix in openers else source


def writing(name: str, target: IO[bytes]) -> Any:
    """Return a file that packs into ``target``, fast; ``name`` as rpm calls the compression.

    Raises:
        KeyError: It is not known.
    """
    writers: dict[str, Any] = {
        "gzip": lambda: gzip.GzipFile(fileobj=target, mode="wb", compresslevel=1, mtime=0),
        "bzip2": lambda: bz2.BZ2File(target, "wb", compresslevel=1),
        "xz": partial(lzma.open, target, "wb", preset=0),
        "lzma": partial(lzma.open, target, "wb", format=lzma.FORMAT_ALONE, preset=0),
        "zstd": lambda: zstd.ZstdFile(target, "wb", level=1),
    }
    return writers[name]()
