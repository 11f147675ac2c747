"""Compressors: inflating a stream, and recipes by which a compressor gives the very bytes of a stream again.

Rules:
 * A recipe is a few numbers. It holds on a machine whose compressor gives the same bytes; nobody believes that it does
   before digests say so.
 * Both directions work on pieces: memory is the compressor's own, at most about 100 MiB (LZMA2 with 8 MiB).
 * The numbers of a recipe are bounded before a compressor sees them.
"""

from __future__ import annotations

import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from enum import IntEnum
from functools import cache
from typing import NamedTuple, Protocol

from ted.content.zstd import (
    CompressionParameter,
    DecompressionParameter,
    ZstdCompressor,
    ZstdDecompressor,
    ZstdError,
)

PIECE_BYTES = 256 << 10
MAX_LZMA_DICTIONARY_BYTES = 8 << 20

_MAX_WINDOW_LOG = 23
_EMPTY_BYTES = 1 << 20
"""Raw bytes that a stream may have beyond twice what it gives: else it could be endless work for nothing."""
_LZMA_DECODE = [{"id": lzma.FILTER_LZMA2, "dict_size": MAX_LZMA_DICTIONARY_BYTES}]
_LZMA_DICTIONARIES = (256 << 10, 1 << 20, 2 << 20, 4 << 20, 4 << 20, 8 << 20, 8 << 20)
"""Bytes of the dictionary for each preset; those above 6 need more memory than we allow."""

COMPRESSOR_ERRORS = (zlib.error, lzma.LZMAError, ZstdError, MemoryError)
"""What a compressor may raise that refuses its work."""

Read = Callable[[int, int], bytes]
"""(place, count) -> bytes; fewer at the end."""


class Codec(IntEnum):
    """How a stream is compressed."""

    DEFLATE = 0
    ZSTD = 1
    LZMA2 = 2


class Recipe(NamedTuple):
    """What makes a stream of its plain bytes.

    ``level``: zlib's 1-9, zstd's 1-19, a preset of xz 0-6. ``option``: the memory level of zlib (1-9); for zstd 1: a
    checksum follows, 2: the header tells the size; for xz 1: extreme.
    """

    codec: Codec
    level: int
    option: int

    def is_sound(self) -> bool:
        """Whether the numbers lie within what a compressor takes and our memory allows."""
        levels, options = _BOUNDS[self.codec]
        return self.level in levels and self.option in options


_SAMPLED_LEVELS = {Codec.DEFLATE: (1, 6, 9), Codec.ZSTD: (3, 19), Codec.LZMA2: (6,)}
_BOUNDS = {
    Codec.DEFLATE: (range(1, 10), range(1, 10)),
    Codec.ZSTD: (range(1, 20), range(4)),
    Codec.LZMA2: (range(7), range(2)),
}


class Compressor(Protocol):
    """What all compressors have in common here."""

    def compress(self, data: bytes, /) -> bytes:
        """Take plain bytes, return what is ready."""

    def flush(self) -> bytes:
        """Return the rest."""


def compressor(recipe: Recipe, plain_bytes: int) -> Compressor:
    """Return what makes a stream of ``plain_bytes`` by a sound recipe."""
    if recipe.codec is Codec.DEFLATE:
        return zlib.compressobj(recipe.level, zlib.DEFLATED, -15, recipe.option)
    if recipe.codec is Codec.LZMA2:
        preset = recipe.level | (lzma.PRESET_EXTREME if recipe.option else 0)
        return lzma.LZMACompressor(lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": preset}])
    options: dict[int, int] = {
        CompressionParameter.compression_level: recipe.level,
        CompressionParameter.checksum_flag: recipe.option & 1,
        CompressionParameter.content_size_flag: recipe.option >> 1,
    }
    made = ZstdCompressor(options=options)
    if recipe.option & 2:
        made.set_pledged_input_size(plain_bytes)
    return made


def gives(recipe: Recipe, plain: Read, plain_bytes: int, raw: Read, raw_bytes: int) -> bool:
    """Whether a recipe gives exactly the raw bytes; ends at the first byte that differs."""
    made, done = compressor(recipe, plain_bytes), 0

    def matches(out: bytes) -> bool:
        nonlocal done
        done += len(out)
        return done <= raw_bytes and (not out or raw(done - len(out), len(out)) == out)

    for place in range(0, plain_bytes, PIECE_BYTES):
        if not matches(made.compress(plain(place, min(PIECE_BYTES, plain_bytes - place)))):
            return False
    return matches(made.flush()) and done == raw_bytes


@cache
def behaviour(codec: Codec) -> str:
    """Return what tells this machine's compressor from others: its codec and a digest of what it gives for a sample.

    Equal texts promise nothing, different ones tell that a recipe will hardly hold.
    """
    digest, sample = hashlib.sha256(), b"".join(b"%d %d\n" % (n, n * n * 2_654_435_761 >> 9) for n in range(4000))
    for level in _SAMPLED_LEVELS[codec]:
        made = compressor(Recipe(codec, level, 8 if codec is Codec.DEFLATE else 0), len(sample))
        digest.update(made.compress(sample) + made.flush())
    return f"{codec.name.lower()}:{digest.hexdigest()[:8]}"


class StreamError(Exception):
    """The bytes are no stream of that codec."""


class Inflated:
    """The plain bytes of one stream, piece by piece; afterwards ``raw_bytes`` says how long the stream was.

    Args:
        codec: How it is compressed.
        read: Gives the raw bytes by place.
        start: Where the stream begins.
    """

    def __init__(self, codec: Codec, read: Read, start: int) -> None:
        self.raw_bytes = 0
        self._plain_bytes = 0
        self._codec = codec
        self._read = read
        self._start = start

    def __iter__(self) -> Iterator[bytes]:
        """Yield pieces of at most 256 KiB.

        Raises:
            StreamError: It is no such stream, ends too early, or holds next to nothing for its length.
        """
        for plain in self._deflated() if self._codec is Codec.DEFLATE else self._other():
            self._plain_bytes += len(plain)
            yield plain

    def _more(self) -> bytes:
        if self.raw_bytes > 2 * self._plain_bytes + _EMPTY_BYTES:
            raise StreamError("next to nothing in it")
        data = self._read(self._start + self.raw_bytes, PIECE_BYTES)
        if not data:
            raise StreamError("cut short")
        self.raw_bytes += len(data)
        return data

    def _deflated(self) -> Iterator[bytes]:
        stream, waiting = zlib.decompressobj(-15), b""
        while not stream.eof:
            try:
                plain = stream.decompress(waiting or self._more(), PIECE_BYTES)
            except zlib.error as error:
                raise StreamError(str(error)) from error
            waiting = stream.unconsumed_tail
            if plain:
                yield plain
        self.raw_bytes -= len(stream.unused_data)

    def _other(self) -> Iterator[bytes]:
        stream: ZstdDecompressor | lzma.LZMADecompressor
        if self._codec is Codec.ZSTD:
            stream = ZstdDecompressor(options={DecompressionParameter.window_log_max: _MAX_WINDOW_LOG})
        else:
            stream = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_LZMA_DECODE)
        while not stream.eof:
            try:
                plain = stream.decompress(self._more() if stream.needs_input else b"", PIECE_BYTES)
            except (ZstdError, lzma.LZMAError, EOFError) as error:
                raise StreamError(str(error)) from error
            if plain:
                yield plain
        self.raw_bytes -= len(stream.unused_data)


def likely_recipes(codec: Codec, hint: int, known: Recipe | None) -> Iterator[Recipe]:
    """Yield the recipes worth trying, the likeliest first; at most 40.

    Args:
        codec: Of the stream.
        hint: What its header tells: a level of gzip (0: nothing), options of zstd, the bytes of an LZMA2 dictionary.
        known: The recipe that gave the stream before.
    """
    tried = set()
    for recipe in (*([known] if known is not None and known.codec is codec else []), *_RECIPES[codec](hint)):
        if recipe not in tried:
            tried.add(recipe)
            yield recipe


def _of_deflate(hint: int) -> Iterator[Recipe]:
    for level in ((hint,) if hint else ()) + (6, 9, 1, 5, 7, 8, 4, 3, 2):
        for memory in (8, 9):
            yield Recipe(Codec.DEFLATE, level, memory)


def _of_zstd(hint: int) -> Iterator[Recipe]:
    for level in (19, 3, *range(18, 3, -1), 2, 1):
        yield Recipe(Codec.ZSTD, level, hint)


def _of_lzma(hint: int) -> Iterator[Recipe]:
    for level in (6, *range(5, -1, -1)):
        if hint in {0, _LZMA_DICTIONARIES[level]}:
            yield from (Recipe(Codec.LZMA2, level, extreme) for extreme in (0, 1))


_RECIPES = {Codec.DEFLATE: _of_deflate, Codec.ZSTD: _of_zstd, Codec.LZMA2: _of_lzma}
