"""The words of package management, the same for every package manager."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ted.errors import FormatError

INDEX = "index.json"
PACKAGES, KEYS = "packages", "keys"
MAX_INDEX_BYTES = 8 << 20
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,200}")
VERSION = re.compile(r"[A-Za-z0-9._+~^:-]{1,200}")
ARCHITECTURE = re.compile(r"[a-z0-9_-]{1,40}")


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """A package in one version. ``version`` holds the epoch (where there is one) and the release."""

    name: str
    arch: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version} ({self.arch})"

    def whole(self) -> Package:
        """Return it without the state that dpkg's version of it bears where it is there in part only."""
        return replace(self, version=self.version.partition(" ")[0])

    def checked(self, where: str) -> Package:
        """Return it, if every part is one that a package manager's own tools would write.

        Raises:
            FormatError: A part is not: it could be taken for an option, or lead out of a directory.
        """
        for pattern, text in ((NAME, self.name), (ARCHITECTURE, self.arch), (VERSION, self.version)):
            if not pattern.fullmatch(text):
                raise FormatError(f"{where}: {text!r} is no name, version or architecture of a package")
        return self


@dataclass(frozen=True, slots=True)
class Listed:
    """A package of a distribution: what it is, and where it lies in the content tree.

    ``identity`` is what the package manager knows an installed package by, beyond its version; empty where it has no
    such thing. ``signed`` says whether it carries a signature, of whomever.
    """

    package: Package
    place: str
    identity: str = ""
    signed: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return its row in the index."""
        package = self.package
        return {"name": package.name, "arch": package.arch, "version": package.version, "place": self.place,
                "identity": self.identity}  # fmt: skip

    @classmethod
    def from_dict(cls, row: Any) -> Listed:
        """Return what a row of the index says.

        Raises:
            FormatError: It is not such a row.
        """
        fields = ("name", "arch", "version", "place", "identity")
        if not isinstance(row, dict) or not all(isinstance(row.get(field), str) for field in fields):
            raise FormatError(f"{INDEX}: {row!r} is no package")
        package = Package(row["name"], row["arch"], row["version"]).checked(INDEX)
        return cls(package, row["place"], row["identity"])


class Reader(Protocol):
    """Reads what a package file says of itself."""

    def __call__(self, path: str) -> Listed:
        """Return it, ``place`` empty.

        Raises:
            FormatError: It is no such file.
        """
