"""What newer steps of one rollback put back, for the older step that is undone after them.

A file that somebody else put in ted's place was saved by the step that replaced it, and comes back when that step is
undone. To the step before it looks changed since; but ted itself has just put it there, and what that step
saved is what the rollback wants.

Rules:
 * The logs of a step are handed to the next older one before anything of it is undone, so that a rollback killed
   anywhere goes on with them; they are links, and go with the older step's directory.
 * They are read only when something looks changed since.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any

from ted.install.acts import Bases
from ted.install.log import LogReader
from ted.install.paths import Base, stamp_of

_NAME = "newer"
_LOGS = ("bases", "undo")


def hand_down(newer: Path, older: Path) -> None:
    """Give the transaction in ``older`` the logs of the one in ``newer``, and those that it was given."""
    for source in [newer, *_handed(newer)]:
        place = older / _NAME / source.name
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in _LOGS:
            if (source / name).exists() and not (place / name).exists():
                _link(source / name, place / name)


class PutBack:
    """What those newer than the transaction in ``directory`` found where they replaced it, by path."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._found: dict[bytes, list[Any]] | None = None

    def is_there(self, base: Base, path: bytes, status: os.stat_result) -> bool:
        """Return whether ``status`` is of a file or link that one of them put back there."""
        if self._found is None:
            self._found = {}
            for handed in _handed(self._directory):
                self._read(handed, self._found)
        for what in self._found.get(_whole(base.path, path), ()):
            if isinstance(what, bytes):
                at, name = base.parent(path)
                if stat.S_ISLNK(status.st_mode) and os.readlink(name, dir_fd=at) == what:
                    return True
            elif same_file(what, stamp_of(status), base, path):
                return True
        return False

    @staticmethod
    def _read(handed: Path, found: dict[bytes, list[Any]]) -> None:
        bases = Bases(handed, handed.name)
        bases.load()
        with LogReader(handed / "undo") as log:
            for record in log:
                if record[0] in ("file", "link"):
                    kind, _, number, path, *rest = record
                    what = rest[1] if kind == "file" else rest[0]
                    found.setdefault(_whole(bases.places[number].path, path), []).append(what)


def same_file(noted: list[int], there: list[int], base: Base, path: bytes) -> bool:
    """Return whether ``there``, the stamp of what is at ``path`` now, is of the file whose stamp was ``noted``.

    So is what was put back of it from a copy. A file that was born after the stamp is another one, though it may
    have been given the inode of the noted one.
    """
    if not noted or noted[0] != there[0]:
        return False
    if noted[3:5] == there[3:5]:
        return True
    return noted[1:3] == there[1:3] and not base.born_after(path, noted[5])


def _handed(directory: Path) -> list[Path]:
    place = directory / _NAME
    return sorted(path for path in place.iterdir() if (path / "undo").exists()) if place.is_dir() else []


def _whole(base: str, path: bytes) -> bytes:
    return os.fsencode(base.rstrip("/")) + b"/" + path


def _link(source: Path, place: Path) -> None:
    try:
        os.link(source, place)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, place)
