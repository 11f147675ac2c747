"""Getting at package files: on this disk, or in a local copy of what a server has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from ted.errors import BuildError
from ted_plugins.packages.repositories import Offered, matches

_CHUNK = 1 << 20


@dataclass(frozen=True)
class LocalRepository:
    """A repository in a directory of the Distributor."""

    name: str

    def read(self, place: str, max_bytes: int) -> bytes | None:
        """Return a file of it; ``None`` when it is not there.

        Raises:
            BuildError: It is larger, or cannot be read.
        """
        path = os.path.join(self.name, place)
        try:
            with open(path, "rb") as file:
                data = file.read(max_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise BuildError(f"{path}: cannot be read: {error.strerror}") from error
        if len(data) > max_bytes:
            raise BuildError(f"{path}: is larger than {max_bytes} bytes")
        return data

    def packages(self, offers: list[Offered]) -> dict[Offered, str]:
        """Return where each package lies, its digest checked.

        Raises:
            BuildError: One is not there, or not what the index promises.
        """
        found = {offer: os.path.join(self.name, offer.place) for offer in offers}
        for offer, path in found.items():
            try:
                same = matches(_chunks(path), offer.digest)
            except OSError as error:
                raise BuildError(f"{path}: cannot be read: {error.strerror}", hint="the index names it") from error
            if not same:
                raise BuildError(f"{path}: is not what the repository's index promises", hint="make the index anew")
        return found


def _chunks(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from iter(lambda: file.read(_CHUNK), b"")
