"""Two runs of bytes, byte by byte: as whole numbers, which is the fastest that Python has for it."""

from __future__ import annotations

_MASK_BYTES = 1 << 20
_LOW = int.from_bytes(b"\x7f" * _MASK_BYTES, "little")
_HIGH = int.from_bytes(b"\x80" * _MASK_BYTES, "little")
ALONG_BYTES = 1 << 10
ALONG_SAME = 0.75
ALONG_TAIL = 64
_SAME = bytes(16)
"""How many of so many bytes are the same where two runs lie alongside each other."""


def difference(new: bytes, old: bytes) -> bytes:
    """Return ``new`` minus ``old``, byte by byte, modulo 256."""
    low, high = _masks(len(new))
    a, b = int.from_bytes(new, "little"), int.from_bytes(old, "little")
    return (((a | high) - (b & low)) ^ ((a ^ ~b) & high)).to_bytes(len(new), "little")


def added(old: bytes, differs: bytes) -> bytes:
    """Return ``old`` plus ``differs``, byte by byte, modulo 256."""
    low, high = _masks(len(old))
    a, b = int.from_bytes(old, "little"), int.from_bytes(differs, "little")
    return (((a & low) + (b & low)) ^ ((a ^ b) & high)).to_bytes(len(old), "little")


def alongside(new: bytes, old: bytes) -> int:
    """Return how many first bytes of ``new`` lie alongside those of ``old``: most of them are the same."""
    count = min(len(new), len(old))
    unlike = _unlike(new[:count], old[:count])
    at = 0
    while at < count and unlike.count(0, at, at + ALONG_BYTES) >= min(ALONG_BYTES, count - at) * ALONG_SAME:
        at += ALONG_BYTES
    at = min(at, count)
    last_same = unlike.rfind(_SAME, 0, at)
    solid = last_same + len(_SAME) if last_same >= 0 else 0
    return at if at - solid <= ALONG_TAIL else solid


def alongside_from_end(new: bytes, old: bytes) -> int:
    """Return how many last bytes of ``new`` lie alongside those of ``old``."""
    return alongside(new[::-1], old[::-1])


def _unlike(new: bytes, old: bytes) -> bytes:
    """Return 0 for each byte that is the same, another number for each that is not."""
    return (int.from_bytes(new, "little") ^ int.from_bytes(old, "little")).to_bytes(len(new), "little")


def _masks(size: int) -> tuple[int, int]:
    if size <= _MASK_BYTES:
        return _LOW >> 8 * (_MASK_BYTES - size), _HIGH >> 8 * (_MASK_BYTES - size)
    return int.from_bytes(b"\x7f" * size, "little"), int.from_bytes(b"\x80" * size, "little")
