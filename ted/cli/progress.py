"""Progress of long work on standard error: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_SHOW_EVERY_S = 0.1
LINES_EVERY_S = 30.0


@contextmanager
def progress_bar(*, as_json: bool) -> Iterator[Progress | None]:
    """Yield a progress display for bytes; ``None`` where nobody looks.

    Args:
        as_json: A program reads what the command says; on a terminal that ssh made, error output stands between it.
    """
    if as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    with Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    ) as progress:  # fmt: skip
        yield progress


class ProgressLines:
    """Says how far long work is where there is no terminal; the first time when it has become long.

    Args:
        as_json: A program reads what the command says; then nothing is said.
    """

    def __init__(self, *, as_json: bool) -> None:
        self._says = not as_json and not sys.stderr.isatty()
        self._last_s = time.monotonic()

    def due(self) -> bool:
        """Return whether it is time to say something."""
        return self._says and time.monotonic() - self._last_s >= LINES_EVERY_S

    def say(self, text: str) -> None:
        """Say it on standard error."""
        self._last_s = time.monotonic()
        click.echo(text, err=True)


@contextmanager
def download_bar(*, as_json: bool) -> Iterator[Callable[[int, int | None, str], None] | None]:
    """Yield what shows how far a download is: bytes done, bytes in all, what; ``None`` where nobody looks."""
    with progress_bar(as_json=as_json) as progress:
        if progress is None:
            yield None
            return
        tasks: dict[str, TaskID] = {}
        lock = threading.Lock()
        shown_s = 0.0

        def show(done: int, total: int | None, what: str) -> None:
            nonlocal shown_s
            now_s = time.monotonic()
            with lock:
                if now_s - shown_s < _SHOW_EVERY_S and done != total:
                    return
                shown_s = now_s
                if what not in tasks:
                    tasks[what] = progress.add_task(what, total=total)
                progress.update(tasks[what], completed=done, total=total)

        yield show


def human_bytes(count: float) -> str:
    """Return a count of bytes as people write it: ``0 B``, ``12.3 kB``, ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
