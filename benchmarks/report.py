"""A table as Markdown, with the machine it was taken on, and its place in docs/benchmarks.md."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"


@dataclass(frozen=True)
class Report:
    """A table with what must be known to read it."""

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    notes: Sequence[str] = field(default_factory=list)

    def markdown(self, command: str, load: str) -> str:
        """Return the text between the markers."""
        taken = time.strftime("%d %B %Y", time.gmtime())
        lines = [f"`{command}`, {taken}, {machine()}; load before and after: {load}.", ""]
        lines += ["| " + " | ".join(self.columns) + " |", "|" + " --- |" * len(self.columns)]
        lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in self.rows]
        if self.notes:
            lines += ["", *(f"* {note}" for note in self.notes)]
        return "\n".join(lines)


def machine() -> str:
    """Describe this machine in a line."""
    info = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*:\s*(.+)", info)
    memory = re.search(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())
    flags = " with SHA instructions" if re.search(r"\bsha_ni\b", info) else ""
    return (f"{os.cpu_count()} cores of {model[1].strip() if model else platform.machine()}{flags}, "
            f"{int(memory[1]) / 1024**2 if memory else 0:.0f} GiB, Linux {platform.release().split('-')[0]}, "
            f"Python {platform.python_version()}")  # fmt: skip


def load_average() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def write(report: Report, text: str, document: Path = DOCUMENT) -> None:
    """Put a table between its markers; a new one gets a section at the end."""
    begin, end = f"<!-- {report.name}:begin -->", f"<!-- {report.name}:end -->"
    old = document.read_text() if document.exists() else "# Benchmarks\n"
    if begin not in old:
        old = f"{old.rstrip()}\n\n## {report.title}\n\n{begin}\n{end}\n"
    head, rest = old.split(begin, 1)
    document.write_text(f"{head}{begin}\n{text}\n{end}{rest.split(end, 1)[1]}")


def mb(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:.1f}"


def spread(median: float, worst: float, digits: int = 2) -> str:
    """Return "median (worst)"."""
    return f"{median:.{digits}f} ({worst:.{digits}f})"
