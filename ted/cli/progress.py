"""Progress of long work on standard error: a bar on a terminal, nothing elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_SHOW_EVERY_S = 0.1


@contextmanager
def progress_bar(*, as_json: bool) -> Iterator[Progress]:
    """Yield a progress display for bytes; it shows itself only where a person looks.

    Args:
        as_json: A program reads what the command says; on a terminal that ssh made, error output stands between it.
    """
    with Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), disable=as_json or not sys.stderr.isatty(), transient=True,
    ) as progress:  # fmt: skip
        yield progress


@contextmanager
def download_bar(*, as_json: bool) -> Iterator[Callable[[int, int | None, str], None] | None]:
    """Yield what shows how far a download is: bytes done, bytes in all, what; ``None`` where nobody looks."""
    if as_json or not sys.stderr.isatty():
        yield None
        return
    with progress_bar(as_json=as_json) as progress:
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
