"""One rate for all connections of a build (``fetch_rate``): a bucket of tokens, one for each byte.

Rules:
 * Over any time that begins when the bucket is full, at most ``rate * time + burst`` bytes pass, whoever takes them.
 * Who takes more than is there waits for the debt to be paid; nobody overtakes: debts add up.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from typing import Annotated

from pydantic import BeforeValidator

_BURST_S = 0.25
_WEEK_S = 7 * 86_400
_UNITS = {"": 1, "B": 1, "kB": 1000} | {
    f"{prefix}{unit}": base**power
    for power, prefix in enumerate("KMGT", 1)
    for unit, base in (("B", 1000), ("iB", 1024))
}
_BYTES = re.compile(r"(\d{1,15}(?:\.\d{1,6})?)\s*([A-Za-z]{0,3})", re.ASCII)


class Rate:
    """A rate that threads share.

    Args:
        bytes_per_s: The rate; ``None`` lets everything pass.
        clock: Seconds that only grow.
        wait: Waits so many seconds; may raise to end the waiting.
    """

    def __init__(
        self,
        bytes_per_s: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._burst = (bytes_per_s or 0) * _BURST_S
        self._clock, self._wait = clock, wait
        self._lock = threading.Lock()
        self._tokens = self._burst
        self._at = clock()

    @property
    def step_bytes(self) -> int | None:
        """How much to take at once, so that no wait is long; ``None``: as much as there is."""
        return None if self._bytes_per_s is None else max(1, int(self._burst))

    @property
    def piece_bytes(self) -> int | None:
        """How much to take from a connection at once, so that a slow rate does not come in gusts; ``None``: as ever."""
        return None if self._bytes_per_s is None else max(1024, min(256 * 1024, self._bytes_per_s // 4))

    def within_s(self, count: int) -> int:
        """Return the seconds that so many bytes take at this rate; a week at most."""
        return 0 if self._bytes_per_s is None else min(-(-count // self._bytes_per_s), _WEEK_S)

    def take(self, count: int) -> None:
        """Take ``count`` bytes, and wait until they were there."""
        if self._bytes_per_s is None:
            return
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._bytes_per_s) - count
            self._at = now
            wait_s = -self._tokens / self._bytes_per_s
        if wait_s > 0:
            self._wait(wait_s)


def parse_size(value: object) -> int:
    """Return the bytes that a number or a text as ``256KiB`` or ``2MB`` says; ``/s`` behind it changes nothing.

    Raises:
        ValueError: It is no size, or not above 0.
    """
    text = value.strip().removesuffix("/s").strip() if isinstance(value, str) else value
    count: float = text if isinstance(text, int) and not isinstance(text, bool) else -1
    if isinstance(text, str) and (match := _BYTES.fullmatch(text)) and match[2] in _UNITS:
        count = float(match[1]) * _UNITS[match[2]]
    if not 1 <= count <= 1 << 60:
        raise ValueError(f"{value!r} is no size in bytes: write 262144, 256KiB or 2MB")
    return int(count)


Size = Annotated[int, BeforeValidator(parse_size, json_schema_input_type=int | str)]
"""An option that is a size or a rate: a number of bytes, or ``256KiB``, ``2MB``."""
