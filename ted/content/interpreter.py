"""How the Python interpreter is set while much is built."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_OBJECTS_BETWEEN_COLLECTIONS = 50_000
_TURN_S = 0.0001


@contextmanager
def interpreter_for_building() -> Iterator[None]:
    """Let the interpreter look for cycles less often, and let threads take turns more often.

    Many small objects come and go here, and hardly a cycle among them. And a thread that has compressed a frame waits
    for its turn longer than it compressed: the thread that walks gives the interpreter up for microseconds only, and
    has it again before another wakes.
    """
    thresholds, turn_s = gc.get_threshold(), sys.getswitchinterval()
    gc.freeze()  # what is there already is not looked through again and again
    gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS, *thresholds[1:])
    sys.setswitchinterval(_TURN_S)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
        sys.setswitchinterval(turn_s)
