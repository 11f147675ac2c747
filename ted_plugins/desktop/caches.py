"""Make the caches of a data directory anew, or take them away where nothing is left to cache.

A transaction runs it as a program, ``caches.py SHARE``: before anything else, so that its undo comes last, and once
more at the end. It imports nothing of ted, so that it starts at once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

OF_MIME = (
    "XMLnamespaces", "aliases", "generic-icons", "globs", "globs2", "icons", "magic", "mime.cache", "subclasses",
    "treemagic", "types", "version",
)  # fmt: skip
TIMEOUT_S = 120


def refresh(share: Path) -> None:
    """Bring the caches of entries, kinds of files and icons below ``share`` up to date.

    Raises:
        subprocess.CalledProcessError: A program of the desktop failed.
    """
    _entries(share / "applications")
    _mime(share / "mime")
    _icons(share / "icons" / "hicolor")


def _entries(directory: Path) -> None:
    if any(directory.rglob("*.desktop")):
        _run("update-desktop-database", "-q", str(directory))
    else:
        (directory / "mimeinfo.cache").unlink(missing_ok=True)


def _mime(directory: Path) -> None:
    if any((directory / "packages").glob("*.xml")):
        _run("update-mime-database", str(directory))
        return
    for name in OF_MIME:
        (directory / name).unlink(missing_ok=True)
    for media in directory.glob("*/"):
        if media.name != "packages":
            for described in media.glob("*.xml"):
                described.unlink()
            if not any(media.iterdir()):
                media.rmdir()


def _icons(directory: Path) -> None:
    if not (directory / "icon-theme.cache").exists():
        return  # without a cache icons are found by looking
    if any(directory.glob("*/apps/*")):
        _run("gtk-update-icon-cache", "-q", "-f", "-t", str(directory))
    else:
        (directory / "icon-theme.cache").unlink()


def _run(*command: str) -> None:
    if shutil.which(command[0]) is not None:
        # A cache that a power cut damages is made anew: nothing of it need wait for the disk.
        subprocess.run(command, check=True, timeout=TIMEOUT_S, env={**os.environ, "PKGSYSTEM_ENABLE_FSYNC": "0"})


if __name__ == "__main__":
    refresh(Path(sys.argv[1]))
