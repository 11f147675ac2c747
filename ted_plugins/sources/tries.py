"""When to try again: the one answer for files, pages and checksum files."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from ted.errors import RefusedError, TransferError

T = TypeVar("T")

_LONGEST_S = 30.0


def pause_s(error: TransferError, tried: int, retries: int) -> float:
    """Return how long to wait before another try.

    Args:
        error: What the last try ended with.
        tried: How many tries there were before that one.
        retries: How many there may be after the first.

    Raises:
        TransferError: ``error``: there is no other try.
    """
    if tried >= retries or isinstance(error, RefusedError):
        raise error
    return min(2.0**tried, _LONGEST_S)


def tried(do: Callable[[], T], retries: int, tell: Callable[[TransferError], object]) -> T:
    """Return what ``do`` returns, trying again where that can help.

    Raises:
        TransferError: What the last try ended with.
    """
    count = 0
    while True:
        try:
            return do()
        except TransferError as error:
            wait_s = pause_s(error, count, retries)
            tell(error)
        time.sleep(wait_s)
        count += 1
