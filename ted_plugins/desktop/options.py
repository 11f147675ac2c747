"""What an inventory says about desktop applications, and the rules it must keep.

Rules:
 * Applications have different names; what one requires is another of the same distribution, and never in a circle.
 * Whoever requires another needs the tree and the associations as they are at the source (``maintain_tree``,
   ``maintain_associations``): a chain that is torn apart does not start.
 * Sources lie on the Distributor's own disk, and below ``source_root`` where that is said.
"""

from __future__ import annotations

import os
import posixpath
import re
from graphlib import CycleError, TopologicalSorter
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from ted.options import Options as Base
from ted.options import TargetPath

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_GROUP = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_KEY = re.compile(r"[A-Za-z0-9-]{1,100}(\[[A-Za-z0-9_.@-]{1,50}\])?")
_MIME_PATTERN = r"^[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}$"
_ICON_SIZE = re.compile(r"(\d{1,4})x\1(@\d)?|scalable|symbolic")
ICON_ENDINGS = (".png", ".svg", ".xpm")


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r}: letters, digits, `.`, `_` and `-`, at most 100")
    return name


def _source(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise ValueError(f"{path!r} is not absolute: sources are paths on the Distributor")
    return path


def _folder(path: str) -> str:
    if path and not all(_NAME.fullmatch(part) for part in path.split("/")):
        raise ValueError(f"{path!r}: names between single slashes, such as Graphics/Paint")
    return path


def _group(name: str) -> str:
    if not _GROUP.fullmatch(name):
        raise ValueError(f"{name!r} is no name of a group: lower-case letters, digits, `_` and `-`, at most 32")
    return name


def _entry(entry: dict[str, str]) -> dict[str, str]:
    for key, value in entry.items():
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no key of a desktop entry")
        if "\n" in value or "\r" in value or "\0" in value:
            raise ValueError(f"{key}: a value is one line")
    if not entry.get("Name"):
        raise ValueError("needs a Name")
    if entry.get("Type", "Application") != "Application":
        raise ValueError("Type: only Application can be sent")
    return entry


def _icons(icons: dict[str, str]) -> dict[str, str]:
    for size, path in icons.items():
        if not _ICON_SIZE.fullmatch(size):
            raise ValueError(f"{size!r} is no size of an icon: 48x48, scalable or symbolic")
        if not _source(path).endswith(ICON_ENDINGS):
            raise ValueError(f"{path}: icons are {', '.join(ICON_ENDINGS)}")
    return icons


Source = Annotated[str, AfterValidator(_source)]


class MimeType(Base):
    """A kind of file that an application opens."""

    type: Annotated[str, Field(pattern=_MIME_PATTERN)] = Field(description="Its name, such as application/x-till.")
    comment: str = Field("", max_length=200, description="What people call it; with it or patterns it is made known.")
    patterns: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(
        default_factory=list, description="Names of such files, such as *.till."
    )
    default: bool = Field(False, description="Files of it open with this application unless a user chose another.")


class Application(Base):
    """One application: its files, its entry in the menu, its icons, what it opens, who may use it."""

    name: Annotated[str, AfterValidator(_name)] = Field(description="Names its directory, entry and icons.")
    version: str = Field("1", min_length=1, max_length=100, description="Raised by hand; see rebuild_on_version_only.")
    entry: Annotated[dict[str, str], AfterValidator(_entry)] = Field(
        description="Keys of its freedesktop desktop entry; Name is required, Exec and Icon may be relative."
    )
    sources: list[Source] = Field(
        default_factory=list, alias="from", description="Its files on the Distributor; rsync's trailing-slash rule."
    )
    exclude: list[str] = Field(default_factory=list, description="Patterns of what is left out.")
    icons: Annotated[dict[str, str], AfterValidator(_icons)] = Field(
        default_factory=dict, description="Size (48x48, scalable) and file on the Distributor."
    )
    mime: list[MimeType] = Field(default_factory=list, description="Kinds of files it opens.")
    folder: Annotated[str, AfterValidator(_folder)] = Field(
        "", description="Where it stands in the source tree, such as Graphics/Paint."
    )
    requires: list[str] = Field(default_factory=list, description="Applications of this distribution it needs.")
    groups: list[Annotated[str, AfterValidator(_group)]] = Field(
        default_factory=list, description="Groups it is associated with; made where missing, always without members."
    )


class Options(Base):
    """Options of the Desktop type."""

    applications: list[Application] = Field(min_length=1, description="What is sent.")
    path: TargetPath = Field(
        "%DEST_VOLUME%/opt", description="Directory in which each application gets one of its own."
    )
    share: TargetPath = Field(
        "%DEST_VOLUME%/usr/local/share", description="Data directory with applications/, icons/ and mime/."
    )
    source_root: Source | None = Field(None, description="Only files below it may be sent.")
    maintain_tree: bool = Field(False, description="Mirror the folders of the source tree below path and in the menu.")
    maintain_associations: bool = Field(
        False, description="Make missing groups (without members) and set defaults for kinds of files."
    )
    overwrite_folders: bool = Field(False, description="Also replace what describes a folder that is there already.")
    mirrors: list[TargetPath] = Field(
        default_factory=list, description="Directories (shares) on the Subscriber that hold the same applications."
    )
    mirror_order: Literal["none", "fault_tolerance", "load_balance"] = Field(
        "none", description="Start from the own copy only; then the mirrors as listed; or spread over all."
    )
    keep_source_paths: bool = Field(
        False, description="Leave paths in entries as they are (with %NAME%), instead of leading them to path."
    )
    preserve: list[Annotated[str, Field(pattern=f"^{_KEY.pattern}$")]] = Field(
        default_factory=list, description="Keys of an entry that keep the value they have on the Subscriber."
    )
    rebuild_on_version_only: bool = Field(
        False, description="A new revision only when an application's version was changed, or one came or went."
    )
    synchronize: bool = Field(
        False, description="Delete what an application no longer holds, and the entry of one that went."
    )
    allow_empty: bool = Field(False, description="Build even if a source is empty.")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        names = [application.name for application in self.applications]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"applications: {', '.join(twice)} is there twice")
        for application in self.applications:
            _check_requires(self, application, set(names))
            _check_sources(self, application)
        try:
            self.in_order()
        except CycleError as error:
            raise ValueError(f"requires goes in a circle: {' -> '.join(error.args[1])}") from error
        if self.mirror_order != "none" and not self.mirrors:
            raise ValueError(f"mirror_order: {self.mirror_order} needs mirrors")
        if self.mirrors and self.mirror_order == "none":
            raise ValueError("mirrors are used with mirror_order: fault_tolerance or load_balance")
        return self

    def in_order(self) -> list[Application]:
        """Return the applications, those that others require first."""
        by_name = {application.name: application for application in self.applications}
        order = TopologicalSorter({name: by_name[name].requires for name in sorted(by_name)}).static_order()
        return [by_name[name] for name in order]

    def directory(self, application: Application) -> str:
        """Return where the application's own directory is, below ``path``."""
        return f"{application.folder}/{application.name}".strip("/") if self.maintain_tree else application.name


def _check_requires(options: Options, application: Application, names: set[str]) -> None:
    if unknown := sorted(set(application.requires) - names):
        raise ValueError(f"{application.name} requires {', '.join(unknown)}, which this distribution does not hold")
    if application.requires and not (options.maintain_tree and options.maintain_associations):
        raise ValueError(
            f"{application.name} requires others: set maintain_tree and maintain_associations, so that what belongs "
            "together stays together"
        )


def _check_sources(options: Options, application: Application) -> None:
    if options.source_root is None:
        return
    root = posixpath.normpath(options.source_root)
    for path in (*application.sources, *application.icons.values()):
        if os.path.commonpath([root, posixpath.normpath(path)]) != root:
            raise ValueError(f"{application.name}: {path} does not lie below source_root {root}")
