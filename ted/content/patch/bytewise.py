"""Two runs of bytes, byte by byte: as whole numbers, which is the fastest that Python has for it."""

from __future__ import annotations

_MASK_BYTES = 1 << 20
_LOW = int.from_bytes(b"\x7f" * _MASK_BYTES, "little")
_HIGH = int.from_bytes(b"\x80" * _MASK_BYTES, "little")
ALONG_BYTES = 1 << 10
"""Bytes that are looked at together when two runs may lie alongside each other."""
ALONG_SAME = 0.75
"""How much of the bytes that tell something must be the same; one that repeats the byte before tells nothing."""
ALONG_TAIL = 64
_SAME = bytes(16)


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
    """Return how many first bytes of ``new`` lie alongside those of ``old``: most of them are the same.

    Where one byte goes on and on, zeros mostly, any two places are alike: such bytes do not count.
    """
    count = min(len(new), len(old))
    unlike, telling = _unlike(new[:count], old[:count])
    at = 0
    while at < count:
        size = min(ALONG_BYTES, count - at)
        differ, tell = (size - each.count(0, at, at + size) for each in (unlike, telling))
        if differ > tell * (1 - ALONG_SAME):
            break
        at += size
    last_same = unlike.rfind(_SAME, 0, at)
    solid = last_same + len(_SAME) if last_same >= 0 else 0
    return at if at - solid <= ALONG_TAIL else solid


def alongside_from_end(new: bytes, old: bytes) -> int:
    """Return how many last bytes of ``new`` lie alongside those of ``old``."""
    return alongside(new[::-1], old[::-1])


def _unlike(new: bytes, old: bytes) -> tuple[bytes, bytes]:
    """Return two runs of numbers, 0 for each byte that is the same in both; in the second those that tell are not 0."""
    a, size = int.from_bytes(new, "little"), len(new)
    unlike = a ^ int.from_bytes(old, "little")
    steps = a ^ int.from_bytes(b"\0" + new[:-1], "little") if size else 0
    return unlike.to_bytes(size, "little"), (unlike | steps).to_bytes(size, "little")


def _masks(size: int) -> tuple[int, int]:
    if size <= _MASK_BYTES:
        return _LOW >> 8 * (_MASK_BYTES - size), _HIGH >> 8 * (_MASK_BYTES - size)
    return int.from_bytes(b"\x7f" * size, "little"), int.from_bytes(b"\x80" * size, "little")
