"""A target that wishes an extraction ill: links, directories and files of others wherever it wants to go."""

from __future__ import annotations

import os
from pathlib import Path

from ted.testing.looks import Snapshot, differences, shortened, snapshot


class HostileTarget:
    """A directory to extract to, and one beside it that nothing may reach.

    .. versionadded:: 0.1
    """

    def __init__(self, root: Path) -> None:
        self.path = root / "target"
        """Where to extract to."""
        self.elsewhere = root / "elsewhere"
        """Where the links lead; ``untouched`` tells."""
        self.path.mkdir(parents=True)
        self.elsewhere.mkdir()
        (self.elsewhere / "victim.txt").write_text("not ted's\n")
        self._before = self._look()

    def link(self, path: str, *, to_directory: bool = True) -> Path:
        """Have a link at ``path`` below the target that leads out of it: to a directory, or to a file in there."""
        place = self._place(path)
        place.symlink_to(self.elsewhere if to_directory else self.elsewhere / "victim.txt")
        return place

    def directory(self, path: str) -> Path:
        """Have a directory with a file of somebody else's at ``path``."""
        place = self._place(path)
        place.mkdir()
        (place / "theirs.txt").write_text("not ted's\n")
        return place

    def file(self, path: str) -> Path:
        """Have a file of somebody else's at ``path``."""
        place = self._place(path)
        place.write_text("not ted's\n")
        os.chmod(place, 0o604)
        return place

    def untouched(self) -> str:
        """Return how what lies elsewhere was changed, in words; empty when it was not."""
        return shortened(differences(self._before, self._look(), below=self.elsewhere.parent))

    def _place(self, path: str) -> Path:
        place = self.path / path
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def _look(self) -> Snapshot:
        return snapshot(self.elsewhere)
