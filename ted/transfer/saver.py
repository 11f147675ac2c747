"""Makes what is written to a pack durable about every second, beside the writing.

Rules:
 * A disk that takes a second for a flush does not hold up the line: nodes below wait for every block.
 * An error of the disk is raised where the next block would be written, and at the end.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from ted.content.blocks import PartialPack

EVERY_S = 1.0


class Saver:
    """A thread that flushes a pack while the body of the ``with`` writes to it; the last flush comes at its end."""

    def __init__(self, pack: PartialPack) -> None:
        self._pack = pack
        self._ended = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="ted-saver", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._pack.flush()

    def check(self) -> None:
        """Raise what the last flush raised, if anything."""
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not self._ended.wait(EVERY_S):
            try:
                self._pack.flush()
            except OSError as error:
                self._error = error
                return
