"""Real files for the tables: wheels of the Python package index, downloaded once into ``~/.cache/ted/benchmarks``."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path

CACHE = Path.home() / ".cache" / "ted" / "benchmarks"


def unpack(requirement: str, place: Path) -> None:
    """Unpack a release (``numpy==1.26.4``) with the times in its wheel, which an update carries too."""
    with zipfile.ZipFile(_wheel(requirement)) as archive:
        archive.extractall(place)
        for item in archive.infolist():
            at_s = datetime(*item.date_time, tzinfo=UTC).timestamp()
            os.utime(place / item.filename, (at_s, at_s))


def _wheel(requirement: str) -> Path:
    """Return the wheel of a release, downloaded once."""
    place = CACHE / requirement.replace("==", "-")
    if not list(place.glob("*.whl")):
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:",
             "--python-version", "3.11", "--dest", str(place), requirement], check=True,
        )  # fmt: skip
    return next(place.glob("*.whl"))
